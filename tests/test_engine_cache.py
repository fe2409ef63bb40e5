"""Prepared graphs and remembered choices: kept, bounded, shared, and never worth an error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verydeep.engines import Engine
from verydeep.engines.race import Memory, Standing
from verydeep.errors import EngineError
from verydeep.files.cache import MANIFEST, Cache
from verydeep.files.folders import cache_folder
from verydeep.graphs import Source
from verydeep.graphs import network as graph
from verydeep.preprocess import TORCHVISION

from .tiny import pixels, tiny, weights

ABOUT = {"engine": "toy", "version": "1"}
ROW = Standing("toy", "cpu", {"streams": 2}, 0.01, 8, 1e-6)


class Toy:
    """An engine's side of the cache: makes a file of its own bytes, and counts."""

    def __init__(self, cache: Cache, size: int = 1000) -> None:
        self.cache, self.size, self.made = cache, size, 0

    def make(self, folder: Path) -> None:
        self.made += 1
        (folder / "graph.toy").write_bytes(b"toy" + bytes(self.size - 3))

    def load(self, folder: Path, _about: Mapping[str, Any]) -> bytes:
        content = (folder / "graph.toy").read_bytes()
        if not content.startswith(b"toy"):
            raise EngineError("not a toy")
        return content

    def open(self, name: str = "toy-1", about: Mapping[str, Any] = ABOUT) -> bytes:
        return self.cache.open(name, about, self.make, self.load, needs_bytes=lambda: self.size)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(Cache(tmp_path / "cache" / "prepared", 10_000))


def test_made_once(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.open() == toy.open() == b"toy" + bytes(997)
    assert toy.made == 1
    (entry,) = toy.cache.entries()
    assert (entry.name, entry.about["engine"], entry.about["version"]) == ("toy-1", "toy", "1")
    assert entry.size_bytes > 1000
    assert not [p for p in toy.cache.folder.iterdir() if p.name.endswith(".part")]
    assert capsys.readouterr().err == ""


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[600] ^= 1
    file.write_bytes(content)


def foreign(file: Path) -> None:
    manifest = file.parent / MANIFEST
    value = json.loads(manifest.read_text())
    value["about"]["version"] = "2"
    manifest.write_text(json.dumps(value))


def hostile(file: Path) -> None:
    value = {
        "about": {"format": 1, **ABOUT},
        "files": {"../../secret": {"sha256": "00"}},
    }
    (file.parent / MANIFEST).write_text(json.dumps(value))


def empty(file: Path) -> None:
    """An entry of no files: nothing says what its file should be."""
    value = json.loads((file.parent / MANIFEST).read_text())
    (file.parent / MANIFEST).write_text(json.dumps({**value, "files": {}}))
    flipped(file)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "graph.toy: No such file or directory"),
        (shortened, "its graph.toy is damaged"),
        (flipped, "its graph.toy is damaged"),
        (foreign, "made for something else"),
        (hostile, "its entry.json is missing or damaged"),
        (empty, "its entry.json is missing or damaged"),
        (lambda file: (file.parent / MANIFEST).unlink(), "its entry.json is missing or damaged"),
        (
            lambda file: (file.parent / MANIFEST).write_text("[1"),
            "its entry.json is missing or damaged",
        ),
    ],
)
def test_damage_is_rebuilt_and_said(
    toy: Toy, harm: Callable[[Path], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.open()
    harm(toy.cache.folder / "toy-1" / "graph.toy")
    assert toy.open() == b"toy" + bytes(997)
    assert toy.made == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "rebuilding it" in lines[0]
    assert toy.open() == b"toy" + bytes(997)
    assert toy.made == 2


def test_a_file_in_an_entrys_place_goes(toy: Toy) -> None:
    toy.cache.folder.mkdir(parents=True)
    (toy.cache.folder / "toy-1").write_text("in the way")
    toy.open()
    assert toy.cache.entries()[0].name == "toy-1"
    assert sorted(p.name for p in toy.cache.folder.iterdir()) == ["toy-1", "toy-1.lock"]


def test_what_the_engine_itself_refuses_is_rebuilt(
    toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "make", lambda folder: (folder / "graph.toy").write_bytes(b"tin" * 9))
    with pytest.raises(EngineError, match="not a toy"):
        toy.open()
    monkeypatch.undo()
    assert toy.open() == b"toy" + bytes(997)
    assert "cannot be used: not a toy; rebuilding it" in capsys.readouterr().err


def test_a_copied_cache_is_right(toy: Toy, tmp_path: Path) -> None:
    """Other times of change, the same bytes."""
    toy.open()
    shutil.copytree(toy.cache.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = Toy(Cache(tmp_path / "copy", 10_000))
    copy.open()
    assert copy.made == 0


def test_the_limit(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.size = 2800
    for age, name in enumerate(("a", "b", "c")):
        toy.open(name)
        manifest = toy.cache.folder / name / MANIFEST
        os.utime(manifest, (1000 + age, 1000 + age))
    toy.open("a")  # used again: b is now the oldest
    assert toy.made == 3
    toy.open("d")
    assert {entry.name for entry in toy.cache.entries()} == {"a", "c", "d"}
    assert sum(entry.size_bytes for entry in toy.cache.entries()) <= 10_000
    monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", "1.5MB")
    assert Cache().limit_bytes == 1_500_000
    monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", "much")
    with pytest.raises(EngineError, match="VERYDEEP_CACHE_LIMIT is 'much'; expected bytes"):
        Cache()


def test_larger_than_the_limit(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.size = 20_000
    assert len(toy.open()) == len(toy.open()) == 20_000
    assert toy.cache.entries() == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # said once
    assert "more than the cache's limit" in lines[0]


def test_what_is_open_stays_whole(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which moves no folder of open files: it is not counted as gone, either."""
    toy.size = 2800
    for age, name in enumerate(("a", "b", "c")):
        toy.open(name)
        os.utime(toy.cache.folder / name / MANIFEST, (1000 + age, 1000 + age))
    replace = os.replace

    def moved(source: Path, target: Path) -> None:
        if Path(source).name == "a" and Path(target).suffix == ".part":
            raise PermissionError(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", moved)
    toy.open("d")
    assert {entry.name for entry in toy.cache.entries()} == {"a", "c", "d"}
    assert 0 < toy.cache.clear() < 7000
    assert [entry.name for entry in toy.cache.entries()] == ["a"]
    assert toy.open("a") == b"toy" + bytes(2797)


def test_what_is_not_to_lie_elsewhere_is_not_made(toy: Toy) -> None:
    toy.size = 20_000
    with pytest.raises(EngineError, match="there is no room for big"):
        toy.cache.open("big", ABOUT, toy.make, toy.load, needs_bytes=lambda: 20_000, aside=False)
    assert toy.made == 0


def test_abandoned_halves_go(toy: Toy) -> None:
    toy.cache.folder.mkdir(parents=True)
    for name, age in ((".old.part", 10**6), (".new.part", 10)):
        part = toy.cache.folder / name
        part.mkdir()
        now = part.stat().st_mtime
        os.utime(part, (now - age, now - age))
    toy.open()
    assert {p.name for p in toy.cache.folder.iterdir() if p.is_dir()} == {".new.part", "toy-1"}


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    toy = Toy(Cache(tmp_path / "file" / "prepared", 10_000))
    assert toy.open() == toy.open("toy-2") == b"toy" + bytes(997)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "cannot be written" in lines[0]
    assert "VERYDEEP_CACHE names another" in lines[0]


def test_a_disk_that_fills(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path) -> None:
        (folder / "graph.toy").write_bytes(b"toy")
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = toy.make
    monkeypatch.setattr(
        toy, "make", lambda folder: full(folder) if "prepared" in str(folder) else whole(folder)
    )
    assert toy.open() == b"toy" + bytes(997)  # the other disk had room
    assert "No space left on device); going on without it" in capsys.readouterr().err
    assert [p for p in toy.cache.folder.iterdir() if p.is_dir()] == []
    monkeypatch.setattr(toy, "make", full)
    with pytest.raises(EngineError, match="No space left on device; free some space"):
        toy.open()


def test_a_disk_without_room(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(EngineError, match=r"needs 0 MB on a disk, .* free some space"):
        toy.open()
    assert toy.made == 0


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    """One makes it, the other waits and finds it; both get it."""
    code = (
        "import logging, sys, time\nlogging.basicConfig(level='INFO')\nfrom pathlib import Path\n"
        "from tests.test_engine_cache import Cache, Toy\n"
        f"toy = Toy(Cache(Path({str(tmp_path)!r}) / 'prepared', 10_000))\n"
        "make = toy.make\n"
        "def slow(folder):\n    make(folder)\n    time.sleep(0.5)\n"
        "toy.make = slow\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "print(len(toy.open()), toy.made)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate() for process in both]
    assert sorted(out for out, _ in told) == ["1000 0\n", "1000 1\n"], told
    assert sum("another process is preparing toy-1" in err for _, err in told) == 1


def test_mnn_keeps_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing: made once, found without building the graph, rebuilt when damaged."""
    net = tiny(head="small")
    built = graph.build(net, weights(net), TORCHVISION)
    cache = Cache()
    first = Engine("mnn", built, precision="fast", threads=1)
    (entry,) = cache.entries()
    assert [p.name for p in sorted(entry.path.iterdir())] == [MANIFEST, "graph.mnn"]

    def never() -> Iterator[None]:
        raise AssertionError("the graph was built")

    whole = Source.of(built)
    lazy = replace(whole, build=never, find_key=lambda: whole.key)  # type: ignore[arg-type]
    again = Engine("mnn", lazy, precision="fast", threads=1)
    image = pixels(32, 32)
    np.testing.assert_array_equal(again.run(image)["scores"], first.run(image)["scores"])
    file = entry.path / "graph.mnn"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    rebuilt = Engine("mnn", whole, precision="fast", threads=1)
    np.testing.assert_array_equal(rebuilt.run(image)["scores"], first.run(image)["scores"])
    assert file.stat().st_size == len(content)
    assert "rebuilding it" in capsys.readouterr().err


def test_memory() -> None:
    path = cache_folder() / "choices.json"
    race = {"graph": "a", "batch": 8}
    assert Memory().standings(race) == ()
    Memory().remember(race, [ROW])
    assert Memory().standings(race) == (ROW,)
    assert Memory().standings({**race, "batch": 1}) == ()
    assert [row["race"] for row in Memory().choices()] == [race]
    memory = Memory()
    memory.clear()
    assert memory.standings(race) == ()
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 2}', '{"format": 2, "rows": 3}', "\ud800", "[" * 100_000],
)
def test_a_memory_that_cannot_be_read(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = cache_folder() / "choices.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert Memory().standings({"graph": "a"}) == ()
    assert "cannot be read; what it remembered will be found anew" in capsys.readouterr().err
    Memory().remember({"graph": "a"}, [ROW])
    assert Memory().standings({"graph": "a"}) == (ROW,)


def test_a_folder_in_a_memorys_place(capsys: pytest.CaptureFixture[str]) -> None:
    path = cache_folder() / "choices.json"
    path.mkdir(parents=True)
    assert not Memory().remember({"batch": 8}, [ROW])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"verydeep: {path} is a folder, so nothing is remembered; remove it"
    path.rmdir()
    assert Memory().remember({"batch": 8}, [ROW])


def test_a_memory_of_another_version_is_begun_anew(capsys: pytest.CaptureFixture[str]) -> None:
    path = cache_folder() / "choices.json"
    path.write_text('{"format": 1, "choices": {}, "digests": {}}')
    assert Memory().standings({"graph": "a"}) == ()
    assert capsys.readouterr().err == ""


def test_standings_that_make_no_sense() -> None:
    path = cache_folder() / "choices.json"
    for change in ({"seconds": 0}, {"seconds": "x"}, {"engine": 1}, {"settings": None}):
        Memory().remember({"graph": "a"}, [ROW])
        value = json.loads(path.read_text())
        (row,) = value["rows"].values()
        row["standings"][0].update(change)
        path.write_text(json.dumps(value))
        assert Memory().standings({"graph": "a"}) == (), change


def test_a_memory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "file"))
    Memory().remember({"graph": "a"}, [ROW])
    assert "cannot be written (File exists); going on without it" in capsys.readouterr().err
