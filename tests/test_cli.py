"""The commands as people type them: results, exit status, and one clear line for what goes wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest

from verydeep import benching, predictor, retrieval
from verydeep.cli import GROUPS, VERBS, options, output
from verydeep.errors import VerydeepError
from verydeep.files.photo_paths import find
from verydeep.files.wording import cells
from verydeep.nets import NETWORKS, network
from verydeep.published import catalog
from verydeep.published.catalog import of_kind

from .conftest import Run
from .tiny import NAMES, model_file, photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, in two folders, beside what is no photo."""
    for seed, name in enumerate(("b.png", "a.jpg", "deep/er/c.webp")):
        photo(tmp_path / "photos" / name, seed=seed)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    photo(tmp_path / "photos" / ".hidden" / "d.png")
    return tmp_path / "photos"


def table_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_size_as_it_is_typed() -> None:
    def typed(text: str | None) -> object:
        return options.pixels(cast(Any, None), cast(Any, None), text)

    sizes = {"224": 224, "480x640": (480, 640), "own": "own", None: None}
    assert {text: typed(text) for text in sizes} == sizes
    for bad in ("big", "0", "3x", "3x4x5", "-1", "9" * 5000):
        with pytest.raises(click.BadParameter, match=r'expected "224", "480x640"'):
            typed(bad)


def test_find(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*given: object) -> list[str]:
        return [os.path.relpath(p, folder) for p in find(map(str, given))]

    assert names(folder) == ["a.jpg", "b.png", "deep/er/c.webp"]
    assert names(folder / "b.png", folder / "a.jpg") == ["b.png", "a.jpg"]
    assert names(folder / "*.png") == ["b.png"]
    assert names(folder / "**" / "*.webp") == ["deep/er/c.webp"]
    assert names(folder / "notes.txt") == ["notes.txt"]  # named, so tried
    assert names(folder / "*.tiff") == ["*.tiff"]  # nothing matches: reported when it is opened
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder}/b.png\n\n{folder}/deep\n"))
    assert names("-") == ["b.png", "deep/er/c.webp"]
    odd = photo(tmp_path / "odd [1].png")  # a name that looks like a glob
    assert list(find([str(odd)])) == [str(odd)]


def test_classify_json(verydeep: Run, model: Path, folder: Path) -> None:
    outcome = verydeep("classify", folder, "--model", model, "--json", "--top", 2)
    assert outcome.status == 0
    value = json.loads(outcome.out)
    assert [os.path.relpath(item["path"], folder) for item in value] == [
        "a.jpg", "b.png", "deep/er/c.webp",
    ]  # fmt: skip
    for item in value:
        first, second = item["predictions"]
        assert first["probability"] >= second["probability"] > 0
        assert {first["label"], second["label"]} < set(NAMES)
        assert (item["engine"], item["precision"], item["sure"]) == ("onnxruntime", "fast", True)


def test_classify_text(verydeep: Run, tmp_path: Path, folder: Path) -> None:
    sure = model_file(tmp_path / "sure.safetensors", threshold=0.0)
    unsure = model_file(tmp_path / "unsure.safetensors", threshold=1.0)
    lines = verydeep("classify", folder / "a.jpg", "--model", sure, "--top", 7).out.splitlines()
    assert lines[0] == str(folder / "a.jpg")
    assert sorted(line.split("  ")[1].strip() for line in lines[1:]) == sorted(NAMES)
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert shares == sorted(shares, reverse=True)
    assert all("█" in line or "░" in line for line in lines[1:])
    assert "not sure" in verydeep("classify", folder / "a.jpg", "--model", unsure).out


def test_classify_csv(verydeep: Run, model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"")
    table = tmp_path / "out.csv"
    outcome = verydeep("classify", folder, "--model", model, "--csv", table, "--top", 2)
    assert outcome.status == 1
    rows = table_rows(table)
    assert list(rows[0]) == ["path", "rank", "label", "probability", "sure", "error"]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", "", "1", "2"]
    assert "bad.png" in rows[4]["error"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "photos", "tiny.safetensors"]
    outcome = verydeep("classify", folder, "--model", model, "--csv", tmp_path / "no" / "out.csv")
    assert outcome.status == 2
    assert "no/out.csv" in outcome.err


def test_profile(verydeep: Run, model: Path, folder: Path) -> None:
    outcome = verydeep("classify", folder, "--model", model, "--profile", "--engine", "onnxruntime")
    # of a machine that takes two seconds to begin, and of the test before, which still counts its photos
    late = rf"classifying: .*\n|verydeep: (?!{re.escape(str(folder))})\S+: 1 file is not used: .*\n"
    told = re.sub(late, "", outcome.err)
    assert re.fullmatch(
        r"verydeep: \S+: 1 file is not used: 1 \.txt\n"
        r"verydeep: 3 photos in [\d.]+ s, [\d.]+ a second; decoding [\d.]+ s \(\d+%, in \d threads beside "
        r"the engine\), engine onnxruntime fast [\d.]+ s \(\d+%, opening and choosing it included\)\n",
        told,
    )


def test_unreadable_files_are_reported_and_skipped(
    verydeep: Run, model: Path, folder: Path
) -> None:
    (folder / "text.jpg").write_text("hello")
    outcome = verydeep("classify", folder, folder / "gone.png", "--model", model, "--json")
    assert outcome.status == 1
    value = json.loads(outcome.out)
    assert [("error" in item, Path(item["path"]).name) for item in value] == [
        (False, "a.jpg"), (False, "b.png"), (True, "text.jpg"), (False, "c.webp"), (True, "gone.png"),
    ]  # fmt: skip
    assert "text.jpg" in outcome.err
    assert "gone.png" in outcome.err
    assert "2 of 5 files could not be read" in outcome.err


def test_nothing_readable_or_found(verydeep: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    outcome = verydeep("classify", tmp_path / "text.jpg", "--model", model, "--json")
    assert outcome.status == 2
    assert "error" in json.loads(outcome.out)[0]
    outcome = verydeep("classify", tmp_path / "empty", "--model", model)
    assert (outcome.status, outcome.out) == (2, "")
    assert "no photos in" in outcome.err
    for words in ([], [tmp_path, "--model", "nonsense"], [tmp_path, "--top", "0"]):
        outcome = verydeep("classify", *words)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err


def test_unknown_command(verydeep: Run) -> None:
    outcome = verydeep("clasify")
    assert outcome.status == 2
    assert "no command 'clasify'; did you mean classify" in outcome.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verydeep: Run, verb: str) -> None:
    outcome = verydeep(verb, "--help")
    assert outcome.status == 0
    assert verb in outcome.out.splitlines()[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_summary(verydeep: Run, name: str) -> None:
    value = json.loads(verydeep("summary", name, "--json").out)
    net = network(name)
    assert value["totals"]["parameters"] == net.parameters
    assert [layer["name"] for layer in value["layers"]] == list(net.taps)
    assert value["layers"][0] == {
        "name": "conv1_1",
        "kind": "conv",
        "shape": [64, 224, 224],
        "parameters": net.layer("conv1_1").parameters,
        "multiply_adds": 3 * 64 * 9 * 224 * 224,
        "size_bytes": 4 * net.layer("conv1_1").parameters,
        "receptive_field": 3,
        "stride": 1,
        "position": 0.0,
    }
    text = verydeep("summary", name).out
    assert f"{net.parameters:,} parameters" in text


def test_summary_of_files_and_sizes(verydeep: Run, model: Path) -> None:
    assert "gap head on relu4_2, relu5_2, 7 classes" in verydeep("summary", model).out
    wide = json.loads(verydeep("summary", "vgg11", "--input", "64x320", "--json").out)
    assert wide["layers"][0]["shape"] == [64, 64, 320]
    for words, message in (
        (["vgg11", "--input", "31"], "too small for vgg11: its pool5 needs at least 32x32"),
        (["vgg11", "--input", "big"], "'big' is not a size"),
        (["vgg21"], "no model 'vgg21'"),
    ):
        outcome = verydeep("summary", *words)
        assert outcome.status == 2
        assert message in outcome.err


def test_models(verydeep: Run) -> None:
    value = json.loads(verydeep("models", "--json").out)
    assert [row["name"] for row in value["networks"]] == list(NETWORKS)
    assert value["builtin"][0]["name"] == "builtin"
    text = verydeep("models").out
    assert all(name in text for name in NETWORKS)


def test_a_folder_does_not_hide_a_network(
    verydeep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg11").mkdir()
    assert "132,863,336 parameters" in verydeep("summary", "vgg11").out


@pytest.mark.skipif(sys.platform == "win32", reason="names there are text")
def test_names_that_are_not_utf8_are_printed(model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(photo(tmp_path / "a.png"), name)
    words = [sys.executable, "-m", "verydeep", "classify", name, "--model", model]
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stdout.splitlines()[0] == name
    done = subprocess.run([*words, "--json"], capture_output=True, check=True)
    assert os.fsencode(json.loads(done.stdout)[0]["path"]) == name


COLOURED = "new\nline \x1b[31m\u202egpj.png"  # and what a person sees of it
ESCAPED = r"new\nline \x1b[31m\u202egpj.png"


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_names_never_command_a_terminal(
    verydeep: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("flat", "set/a", "set/b"):
        os.makedirs(folder)
        photo(tmp_path / folder / COLOURED)
        photo(tmp_path / folder / "b.png")
    (tmp_path / "flat" / f"bad {COLOURED}").write_text("no image")
    own = ("--model", str(model))
    verydeep("features", "flat", "--out", "f.npz", *own)
    for words in (
        ("classify", "flat", *own), ("explain", "flat", "--out", "seen", "--method", "occlusion", *own),
        ("distance", "flat/b.png", f"flat/{COLOURED}", "--engine", "torch"),
        ("similar", "f.npz", f"flat/{COLOURED}"), ("duplicates", "flat", *own),
        ("weights", "verify", f"flat/{COLOURED}"), ("check", "set"), ("classify", f"--{COLOURED}"),
    ):  # fmt: skip
        done = verydeep(*words)
        for text in (done.out, done.err):
            assert not set(text) & {"\x1b", "\u202e"}, words
            assert "new\nline" not in text, words
        assert ESCAPED in done.out + done.err, words
    written = json.loads(verydeep("classify", f"flat/{COLOURED}", "--json", *own).out)
    assert written[0]["path"] == f"flat/{COLOURED}"


def test_labels_never_command_a_terminal(verydeep: Run, tmp_path: Path) -> None:
    """Nor shift the bars: they are measured as a terminal shows them, and a long one widens no other."""
    names = ("ant", "蜜蜂", "turned\u202e", "x" * 300, *NAMES[4:])
    own = model_file(tmp_path / "own.safetensors", class_names=names)
    image = photo(tmp_path / "a.png")
    words = ("explain", image, "--model", own, "--out", tmp_path / "seen", "--method", "occlusion")
    for done in (
        verydeep("classify", image, "--model", own, "--top", 7), verydeep(*words, "--top", 7)
    ):  # fmt: skip
        assert done.status == 0
        lines = [line for line in done.out.splitlines()[1:] if "x" * 300 not in line]
        assert len(lines) == 6
        assert len({cells(line) for line in lines}) == 1
        assert max(map(cells, lines)) < 120
        assert "\u202e" not in done.out
        assert r"turned\u202e" in done.out


def test_a_file_that_looks_like_an_option(
    verydeep: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("--model", str(model))
    for name in ("-dash.png", "--top.png"):
        photo(tmp_path / name)
        done = verydeep("classify", name, *own)
        assert (done.status, done.out) == (2, "")
        assert f"; for the file write ./{name}, or -- before all names; see" in done.err
        assert verydeep("classify", *own, f"./{name}").status == 0
        assert verydeep("classify", *own, "--", name).status == 0
    assert "for the file" not in verydeep("classify", "-gone.png", *own).err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "verydeep", "models"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "verydeep: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_number_that_is_not_finite_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Listing(as_json=True) as listing:
        listing({"score": 1.0})
        with pytest.raises(VerydeepError, match="a number that is not finite"):
            listing({"score": float("nan")})
    assert json.loads(capsys.readouterr().out) == [{"score": 1.0}]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_valid_json_and_the_table(name: str, model: Path, tmp_path: Path) -> None:
    if sys.platform == "win32" and name == "SIGTERM":
        pytest.skip("it ends a process there at once")
    for number in range(30):
        photo(tmp_path / "photos" / f"{number}.png", seed=number)
    table = tmp_path / "out.csv"
    # a background job of a shell ignores Ctrl-C, and so do its children unless they are told otherwise
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from verydeep.cli import main; main()"
    command = [sys.executable, "-c", program, "classify", "-", "--model", str(model), "--json"]
    process = subprocess.Popen(
        [*command, "--batch", "1", "--csv", str(table)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    for number in range(30):
        process.stdin.write(f"{tmp_path}/photos/{number}.png\n")
    process.stdin.flush()  # stdin stays open: the command waits for more
    head = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.Signals[name])
    if name == "SIGTERM":
        process.send_signal(signal.SIGTERM)  # as `timeout` does
    out, err = (
        process.stdout.read(),
        process.stderr.read(),
    )  # communicate() would lose what is buffered
    assert process.wait(60) == (130 if name == "SIGINT" else 143), err
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    assert err.strip().endswith("verydeep: stopped")
    value = json.loads(head + out)
    assert 1 <= len(value) <= 30
    # Ctrl-C may come after a photo is said and before its rows are
    assert len(table_rows(table)) in (5 * len(value), 5 * len(value) - 5)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_ctrl_c_while_the_command_is_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += f"sys.path.insert(0, {str(tmp_path)!r}); from verydeep.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_ctrl_c_before_the_first_photo_keeps_the_table_of_before(
    verydeep: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "out.csv"
    words = ("classify", folder, "--model", model, "--csv", table)
    assert verydeep(*words).status == 0
    before = table.read_bytes()

    def stopped(*_: object, **__: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(predictor.Predictor, "stream", stopped)
    assert verydeep(*words).status == 130
    assert table.read_bytes() == before
    table.unlink()
    assert verydeep(*words).status == 130
    assert not table.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="it ends a process there at once")
def test_sigterm_says_how_features_go_on(
    verydeep: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is as it was after the command."""
    add = retrieval.extraction.Journal.add

    def added(*words: Any) -> None:
        add(*words)
        signal.raise_signal(signal.SIGTERM)

    words = ("features", folder, "--model", model, "--out", tmp_path / "f.npz")
    with monkeypatch.context() as ending:
        ending.setattr(retrieval.extraction.Journal, "add", added)
        done = verydeep(*words)
    assert done.status == 143
    assert "f.npz.partial; the same command goes on" in done.err
    assert done.err.endswith("verydeep: stopped\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert verydeep(*words).status == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_second_sigterm_ends_what_the_first_cannot() -> None:
    """Not the one that `timeout` sends to the group just after the first."""
    program = """
import signal, time
from verydeep import cli

with cli._ending_like_ctrl_c():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGTERM)
        print("kept", flush=True)
        time.sleep(1.1)
        signal.raise_signal(signal.SIGTERM)
        print("never", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "kept\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigterm_ends_a_forked_child_as_ever() -> None:
    ran = subprocess.run([sys.executable, "-c", FORKS], check=True, capture_output=True, text=True)
    assert ran.stdout == "-15\n"


FORKS = """
import os, signal, time
from verydeep.cli import _ending_like_ctrl_c
with _ending_like_ctrl_c():
    there, here = os.pipe()
    child = os.fork()
    if not child:
        os.write(here, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(there, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_is_json_in_any_encoding(encoding: str, model: Path, tmp_path: Path) -> None:
    name = "é\U0001f41d" if os.path.supports_unicode_filenames or sys.platform == "linux" else "é"
    file = photo(tmp_path / f"{name}.png")
    words = [
        sys.executable,
        "-m",
        "verydeep",
        "classify",
        str(file),
        "--model",
        str(model),
        "--json",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(words, capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout.decode("utf-8"))[0]["path"] == str(file)


def test_lists_have_a_record_a_line(
    verydeep: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "f.npz"
    assert verydeep("features", folder, "--model", model, "--out", index).status == 0
    (folder / "bad.png").write_bytes(b"")
    rows = [benching.Row("mnn", "exact", n, 0.1, None, None, 0.0, None, 0.1, 1) for n in (1, 8)]
    monkeypatch.setattr(benching, "bench", lambda *_, **__: rows)
    for words, count in (
        (("classify", folder, "--model", model), 4), (("similar", index, folder), 4),
        (("weights", "list"), len(catalog.ENTRIES)), (("bench", model), 2),
    ):  # fmt: skip
        lines = verydeep(*words, "--json").out.splitlines()
        assert len(lines) == count + 1
        records = [json.loads(line[1:]) for line in lines[:-1]]
        assert records == json.loads("".join(lines))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
@pytest.mark.parametrize(
    ("more", "styled"),
    [({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colours_where_they_are_wanted(more: dict[str, str], styled: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **more}
    words = [sys.executable, "-m", "verydeep", "summary", "vgg11"]
    run = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while read := os.read(ours, 2**16):
            shown += read
    except OSError:  # of a terminal, this is its end
        pass
    os.close(ours)
    assert run.wait() == 0
    assert b"conv1_1" in shown
    assert (b"\x1b" in shown) == styled


def test_broken_pipe_is_quiet(model: Path, folder: Path) -> None:
    command = f"{sys.executable} -m verydeep classify {folder} --model {model} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder / "a.jpg")
    # on a busy machine it takes seconds, and says how far it is
    lines = [line for line in done.stderr.splitlines() if not line.startswith("classifying")]
    assert lines == [f"verydeep: {folder}: 1 file is not used: 1 .txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clasify"], "no command 'clasify'; did you mean classify?; see verydeep --help"),
        (["classify"], "Missing argument 'PATH...'; see verydeep classify --help"),
        (
            ["classify", "x", "--top", "0"],
            "Invalid value for '--top': 0 is not a whole number, 1 or more; see ",
        ),
        (
            ["classify", "x", "--tip", "1"],
            "No such option '--tip'. Did you mean '--top'?; see",
        ),
        (
            ["show", "x", "--strongest", "many"],
            "Invalid value for '--strongest': many is not a whole number, 1 to 32; see ",
        ),
        (["models", "x"], "Got unexpected extra argument (x); see verydeep models --help"),
    ],
)
def test_wrong_usage_is_one_line(verydeep: Run, words: list[str], message: str) -> None:
    outcome = verydeep(*words)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"verydeep: {message}")
    assert outcome.err.count("\n") == 1


def test_no_words_is_help(verydeep: Run) -> None:
    outcome = verydeep()
    assert all(verb in outcome.out + outcome.err for verb in VERBS)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
def test_closed_streams(model: Path, folder: Path) -> None:
    """What was for stderr must not end up among the results, and nothing breaks."""
    (folder / "text.jpg").write_text("hello")
    command = f"{sys.executable} -m verydeep classify {folder} --model {model} --json"
    done = subprocess.run(f"{command} 2>&-", shell=True, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, len(json.loads(done.stdout))) == (1, 4)
    done = subprocess.run(f"{command} >&-", shell=True, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_layers_that_were_not_named_are_chosen(
    verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(*_: object, **choices: object) -> None:
        raise VerydeepError(f"{choices}")

    monkeypatch.setattr("verydeep.quantisation.quantize", quantize)
    words = ("quantize", "builtin", "--calibrate", "photos", "--out", "x")
    for more, floats in (((), "None"), (("--float", "fc8"), "('fc8',)")):
        assert f"'floats': {floats}" in verydeep(*words, *more).err


def test_labels_with_a_mark_of_their_encoding(verydeep: Run, tmp_path: Path) -> None:
    """As Notepad writes text; and a file that is none is one line."""
    from verydeep.cli import weights

    labels = tmp_path / "labels.txt"
    labels.write_text("n1\ta cat\nn2\ta dog\n", encoding="utf-8-sig")
    assert weights._labels(None, None, str(labels)) == [("n1", "a cat"), ("n2", "a dog")]  # type: ignore[arg-type]
    done = verydeep("weights", "convert", "x", "y", "--labels", tmp_path / "gone.txt")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "cannot read the labels in" in done.err


def test_no_input_is_written_over(
    verydeep: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, index = folder / "a.jpg", folder / "b.png", tmp_path / "f.npz"
    assert verydeep("features", folder, "--model", model, "--out", index).status == 0
    own, table, drawn = tmp_path / "own.csv", tmp_path / "own.txt", tmp_path / "own.png"
    shutil.copy(model, own)
    shutil.copy(model, drawn)
    shutil.copy(model, figure := tmp_path / "own.svg")
    shutil.copy(a, tmp_path / "photo.csv")
    shutil.copy(a, table)
    leads = "leads to the file that it is made of; name another file"
    for words, out, message in (
        (("classify", b, "--model", model, "--csv"), b, leads),
        (
            ("classify", folder, "--model", model, "--csv"),
            b,
            "is a PNG image, and no table; name another file",
        ),
        (("classify", folder / "*", "--model", model, "--csv"), b, "is a PNG image, and no table"),
        (("classify", b, "--model", model, "--csv"), table, "is a JPEG image, and no table"),
        (("classify", b, "--model", model, "--csv"), model, leads),
        (("classify", b, "--model", own, "--csv"), own, leads),
        (("classify", "photo.csv", "--model", model, "--csv"), tmp_path / "photo.csv", leads),
        (("similar", index, folder, "--sheet"), b, leads),
        (("similar", index, a, "--sheet"), b, leads),  # which it finds
        (("features", folder, index, "--model", model, "--out"), index, leads),
        (("show", model, b, "--size", 48, "--out"), b, leads),
        (("show", drawn, "--out"), drawn, leads),
        (("summary", figure, "--svg"), figure, leads),
        (("distance", a, b, "--model", model, "--metric", "content", "--map"), b, leads),
        (("quantize", model, "--calibrate", folder, "--out"), b, "is named as a photo; write"),
        (("quantize", model, "--calibrate", folder, "--check", own, "--out"), own, leads),
        (("compress", model, "--calibrate", folder, "--out"), b, "is named as a photo; write"),
        (("compress", model, "--data", index, "--out"), index, leads),
        (("weights", "convert", model), b, "is named as a photo; write"),
    ):
        before = out.read_bytes()
        done = verydeep(*words, out)
        assert (done.status, out.read_bytes()) == (2, before), words
        assert message in done.err, (words, done.err)
        assert not done.out or words[:3] == ("similar", index, a)


def test_a_table_is_written_over(verydeep: Run, model: Path, tmp_path: Path) -> None:
    """And into what is no file, of whatever name."""
    words = ("classify", photo(tmp_path / "a.png"), "--model", model, "--csv")
    for _ in range(2):
        for name in ("a.csv", "a.tsv", "a"):
            assert verydeep(*words, tmp_path / name).status == 0
    command = [sys.executable, "-m", "verydeep", *map(str, words), "/dev/stdout"]
    if os.path.exists("/dev/stdout"):
        with open(tmp_path / "out.txt", "wb") as file:
            subprocess.run(command, stdout=file, check=True)
        assert "path,rank,label" in (tmp_path / "out.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["-", ""])
def test_a_name_that_is_none(
    name: str, verydeep: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for words in (("classify", model, "--csv", name), ("weights", "convert", model, name)):
        done = verydeep(*words)
        assert (done.status, done.out) == (2, "")
        assert f"{name!r} is not the name of a file; expected one" in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_help_groups_every_verb_and_begins_with_one_to_try(verydeep: Run) -> None:
    alone, asked = verydeep(), verydeep("help")
    assert alone.err == asked.out
    assert (alone.status, asked.status) == (2, 0)
    assert asked.out.startswith("Try this: verydeep classify photo.jpg\n")
    grouped = [verb for verbs in GROUPS.values() for verb in verbs.split()]
    assert sorted(grouped) == sorted(VERBS)
    for verb in grouped:
        assert re.search(rf"^  {verb} +\S", asked.out, re.MULTILINE), verb
    assert asked.out.index("Look:") < asked.out.index("Measure:") < asked.out.index("Train:")
    for words in (("quantize",), ("weights", "list")):
        assert verydeep("help", *words).out == verydeep(*words, "--help").out != ""
    assert verydeep("version").out == verydeep("--version").out != ""
    assert "no command 'clasify'; did you mean classify?" in verydeep("help", "clasify").err


def test_a_class_is_suggested_by_its_word_or_kind(verydeep: Run, tmp_path: Path) -> None:
    bee = Path(__file__).parents[1] / "examples" / "photos" / "bee.jpg"
    for word, hint in (
        ("golden", "no class 'golden'; did you mean golden retriever?"),
        ("dog", "of this kind it knows Chihuahua, Yorkshire terrier, golden retriever, Labrador"),
        ("Cats", "of this kind it knows tabby, Persian cat, Egyptian cat"),
        ("monkey", "of this kind it knows baboon"),
        ("panda", "did you mean lesser panda?"),
        ("zzz", "it knows 200, such as 'goldfish'"),
    ):
        done = verydeep("explain", bee, "--out", tmp_path, "--class", word)
        assert done.status == 2
        assert hint in done.err, done.err
    assert of_kind("dog", ["n02123045"], ["tabby"]) == "; it knows no dog"


def test_builtin_models_and_runs_are_verified(verydeep: Run) -> None:
    done = verydeep("weights", "verify", "builtin", "builtin/cifar10")
    assert done.status == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["ok", "ok"]


@pytest.mark.parametrize("count", ["9" * 5000, "99999999999", "100000"])
def test_numbers_of_threads_that_no_machine_has(
    count: str, verydeep: Run, model: Path, tmp_path: Path
) -> None:
    done = verydeep("classify", photo(tmp_path / "a.png"), "--model", model, "--threads", count)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "threads" in done.err
