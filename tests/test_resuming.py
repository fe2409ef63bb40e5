"""A compression that was stopped, by whatever and whenever: it goes on, and ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import verydeep as package
from verydeep import benching, compression, modelfile
from verydeep.errors import ArgumentError, DataError, OutputError

from .test_pruning import quickly

GOALS = {"max_drop": 5, "multiply_adds": 500_000, "threads": 1}


def test_stopped_anywhere_it_ends_the_same(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Ctrl-C as a file is about to be written, again and again, one further each time."""
    monkeypatch.setattr(compression, "TRIALS", 2)
    monkeypatch.setattr(benching, "against", quickly)
    package.compress(model, tmp_path / "unbroken", calibrate=photos, **GOALS)
    out, write = tmp_path / "small", compression.write
    left = 0

    def stop(*given: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(*given)

    monkeypatch.setattr(compression, "write", stop)
    stops = 0
    while not out.exists():
        left = min(stops, 1)
        try:
            package.compress(model, out, calibrate=photos, resume=True, **GOALS)
        except KeyboardInterrupt:
            stops += 1
            assert not out.exists()
            assert "--resume goes on from there" in caplog.text
    assert stops == 4  # before each trial: 3 of the search, and the last
    assert out.read_bytes() == (tmp_path / "unbroken").read_bytes()
    assert not (tmp_path / "small.work").exists()


def test_killed_it_goes_on(model: Path, photos: Path, tmp_path: Path) -> None:
    """A process that ends at once, as by SIGKILL: nothing is tidied up."""
    program = (
        "import os, sys, verydeep\n"
        "model, out, photos, die, resume = sys.argv[1:]\n"
        "sys.argv[0] = 'verydeep'\n"
        "told = lambda event: event['event'] == die and os._exit(9)\n"
        "verydeep.compress(model, out, calibrate=photos, size=20_000, threads=1, on_event=told, "
        "resume=bool(resume))"
    )

    def run(out: str, die: str, resume: str = "") -> int:
        words = [sys.executable, "-c", program, model, out, photos, die, resume]
        return subprocess.run(words, cwd=tmp_path, check=False).returncode

    assert run("whole", "never") == 0
    assert run("small", "trial") == 9
    assert {"asked.json", "trial-0.safetensors"} <= set(os.listdir(tmp_path / "small.work"))
    assert run("small", "never", "yes") == 0
    assert not (tmp_path / "small.work").exists()
    ours, theirs = (modelfile.read(tmp_path / name) for name in ("small", "whole"))
    assert ours.stored.keys() == theirs.stored.keys()
    assert all(ours.stored[key].tobytes() == theirs.stored[key].tobytes() for key in ours.stored)
    made = ours.record.provenance["compressed_from"]
    assert "small" in made["command"]  # type: ignore[index,call-overload,operator]
    assert "yes" not in made["command"]  # type: ignore[index,call-overload,operator]  # but of whoever began


def test_what_was_stopped_is_never_lost_or_mixed_up(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "trial":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.compress(model, out, calibrate=photos, threads=1, on_event=stop)
    with pytest.raises(
        OutputError, match="a compression that was stopped; go on with it by --resu"
    ):
        package.compress(model, out, calibrate=photos)
    with pytest.raises(
        ArgumentError, match="was begun with size None, which is now 20000; ask for"
    ):
        package.compress(model, out, calibrate=photos, size=20_000, threads=1, resume=True)
    with pytest.raises(ArgumentError, match="was begun with threads 1, which is now None; ask"):
        package.compress(model, out, calibrate=photos, resume=True)
    (photos / "0.png").unlink()
    with pytest.raises(
        ArgumentError, match=r"calibrate 40 photos of digest .*, which is now 39 ph"
    ):
        package.compress(model, out, calibrate=photos, threads=1, resume=True)
    assert (tmp_path / "small.work" / "trial-0.safetensors").is_file()


def test_what_fails_at_once_leaves_nothing(model: Path, photos: Path, tmp_path: Path) -> None:
    for number in range(9, 40):
        (photos / f"{number}.png").unlink()
    with pytest.raises(DataError):
        package.compress(model, tmp_path / "small", calibrate=photos)
    assert not list(tmp_path.glob("small*"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebody_else_stays(model: Path, tmp_path: Path, resume: bool) -> None:
    note = tmp_path / "small.work" / "note"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(OutputError, match=r"small\.work: holds something else"):
        package.compress(model, tmp_path / "small", resume=resume)
    assert note.read_text() == "mine"
    (tmp_path / "other.work").write_text("a file")
    with pytest.raises(OutputError, match=r"other\.work: holds something else"):
        package.compress(model, tmp_path / "other", resume=resume)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="a device of Unix")
def test_stopped_on_its_way_to_a_device_nothing_is_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is another one each time, so none could go on from there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of its own"))
    (tmp_path / "of its own").mkdir()

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "trial":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.compress(model, "/dev/null", threads=1, on_event=stop)
    assert not list((tmp_path / "of its own").glob("tmp*"))
    assert "--resume" not in caplog.text


def test_two_do_not_make_one_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"

    def twice(_: Mapping[str, Any]) -> None:
        with pytest.raises(
            OutputError, match="another process makes it now; name another file, or"
        ):
            package.compress(model, out, resume=True)

    package.compress(model, out, threads=1, on_event=twice)
    assert out.exists()
