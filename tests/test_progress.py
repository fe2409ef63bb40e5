"""Progress: what stands on a terminal's screen while each verb works, lines elsewhere; wording."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import threading
import time
import unicodedata
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest

from verydeep.cli.train import _Teller
from verydeep.files import progress
from verydeep.files.progress import Progress, reached, stage
from verydeep.files.wording import cells, clock, counted, plain, quoted, table
from verydeep.training.recipes import changed, small_images

from .tiny import model_file, photo

# Unicode's bidirectional classes of embeddings, overrides, isolates and what ends them
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class Screen:
    """A terminal's screen, of what verydeep needs of one: new lines, and a line that is wiped."""

    def __init__(self) -> None:
        self.lines = [""]
        self.shown: list[str] = []  # the last line, each time that it changed

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\n":
                self.lines.append("")
            elif part == "\r":
                self._column = 0
            elif part == "\x1b[2K":
                self.lines[-1] = ""
            elif part[0] != "\x1b":
                self.lines[-1] += part
            else:
                assert part.endswith("m"), f"{part!r} moves the cursor"
        if self.lines[-1] and self.shown[-1:] != self.lines[-1:]:
            self.shown.append(self.lines[-1])

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Terminal(io.StringIO):
    """A stream that calls itself a terminal, with its screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.screen.write(text)
        return len(text)


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 70) -> Screen:
    """stdout and stderr are one terminal from now on, where nothing is drawn but by `tick`."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "FIRST_SECONDS", 1e6)
    screen = Screen()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal(screen))
    return screen


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "FIRST_SECONDS", 1e6)
    return now


def tick() -> None:
    assert progress._Line.standing is not None
    progress._Line.standing.tick()


def test_quick_work_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(progress.progress(range(50), "counting")) == list(range(50))
    assert capsys.readouterr() == ("", "")
    screen = terminal(monkeypatch)
    assert list(progress.progress(range(50), "counting")) == list(range(50))
    assert screen.text == ""


def test_off_a_terminal_there_is_a_line_every_ten_seconds(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("classifying", total=40) as bar:
        for second in range(1, 30):
            now[0] = second
            if second > 4:
                bar.advance()
            tick()
    assert capsys.readouterr().err.splitlines() == [
        "classifying: 0 of 40 photos, 0:00:02",
        "classifying: 8 of 40 photos, 1.0/s, 0:00:32 left",
        "classifying: 18 of 40 photos, 1.0/s, 0:00:22 left",
    ]


def test_a_dumb_terminal_has_lines(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with Progress("classifying", total=40):
        for now[0] in (1, 3):
            tick()
        assert screen.lines == ["classifying: 0 of 40 photos, 0:00:03", ""]
        assert isinstance(sys.stdout, Terminal)


class Writer:
    """A stream of a program's own, with write() and flush() alone."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class Notebook(Writer):
    """stderr of Jupyter's kernel: no terminal, but its descriptor is that of one that nobody sees."""

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.fileno, self.isatty = lambda: descriptor, lambda: False


def test_the_line_goes_where_stderr_goes_and_nowhere_where_there_is_none(
    now: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = (tmp_path / "closed").open("w")
    closed.close()
    with (tmp_path / "unseen").open("w") as unseen:
        writers = (Writer(), Notebook(unseen.fileno()))
        for stream in (*writers, closed, None):
            monkeypatch.setattr(sys, "stderr", stream)
            if stream is closed:
                monkeypatch.setattr(sys, "__stderr__", stream)
            with Progress("classifying", total=40):
                assert progress._Line.standing is not None
                now[0] += progress.PLAIN_FIRST_SECONDS
                with suppress(ValueError, AttributeError):  # as the thread does
                    tick()
    assert [writer.text for writer in writers] == ["classifying: 0 of 40 photos, 0:00:02\n"] * 2
    assert (tmp_path / "unseen").read_text() == ""


def test_a_stream_that_stood_for_stderr_for_a_while_is_not_closed() -> None:
    bar, stream = Progress("classifying", total=40), io.StringIO()
    with redirect_stderr(stream):
        bar.__enter__()
    bar.__exit__()
    assert not stream.closed


def test_what_comes_first_slowly_does_not_spoil_the_rate(now: list[float]) -> None:
    bar = Progress("classifying", total=100, done=10)
    now[0] = 50
    bar.advance(10)
    assert bar.text() == "20 of 100 photos, 0.2/s, 0:06:40 left"
    now[0] = 60
    bar.advance(20)
    assert bar.text() == "40 of 100 photos, 2.0/s, 0:00:30 left"
    training = Progress("training", "")
    now[0] = 65
    assert training.text() == "0:00:05"
    slow = Progress("explaining", total=3)
    now[0] = 165
    slow.advance()
    assert slow.text() == "1 of 3 photos, 100 s each, 0:03:20 left"
    fetched = Progress("vgg16", "byte", 528_000_000, done=100_000_000)
    now[0] = 167
    fetched.advance(4_000_000)
    assert fetched.text() == "104.0 of 528.0 MB, 2.0 MB/s, 0:03:32 left"


def test_steps_that_take_longer_later_count_for_the_time_that_is_left(now: list[float]) -> None:
    bar = Progress("training", "step", 20)
    bar.effort = lambda done: min(done, 10) + 4 * max(0, done - 10)
    now[0], bar.done = 2, 2
    bar.text()
    now[0], bar.done = 6, 6
    # four steps in four seconds; still to do are 4 of these, and 10 that take four times as long
    assert bar.text() == "6 of 20 steps, 1.0/s, 0:00:44 left"


def test_a_run_that_shows_larger_images_later_foretells_its_end(now: list[float]) -> None:
    config = changed(small_images(), {"epochs": 4, "grow": "0.5,1", "size": 40})
    data = {"classes": 3, "train": 10, "val": 5, "split": "its own"}
    told = {"config": config.to_dict(), "data": data, "steps_per_epoch": 5, "device": "cpu"}
    teller = _Teller()
    teller({"event": "start", **told})
    shown = []
    for step in (1, 5):
        now[0] += 4
        teller({"event": "step", "epoch": 1, "step": step, "loss": 1.0, "images_per_second": 9})
        shown.append(teller.text())
    # 4 steps in 4 seconds, as the 5 of the next epoch; then 10 of four times the pixels
    assert shown[-1] == "5 of 20 steps, 1.0/s, 0:00:45 left"
    epoch = {"top1": 0.5, "loss": 1.0, "train_loss": 1.0, "train_top1": 0.5, "rate": 0.1}
    line = teller._epoch({"event": "epoch", "epoch": 1, "seconds": 5.0, **epoch})
    assert line.endswith("0:00:05, 0:00:45 left")


def test_a_line_stands_below_what_is_printed(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)
    for number in progress.progress(range(3), "classifying", total=3):
        now[0] += 1
        tick()
        assert re.search(rf"classifying [━╺╸]+ {number} of 3 photos, .*", screen.lines[-1])
        print(f"<{number}>", file=sys.stdout if number else sys.stderr)
        assert "classifying" in screen.lines[-1], "it is there again at once"
        assert screen.lines[-2] == f"<{number}>"
    assert screen.text == "<0>\n<1>\n<2>\n"
    assert isinstance(sys.stdout, Terminal)


def test_a_line_that_is_begun_is_not_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with Progress("thinking", ""):
        tick()
        print("one ", end="")
        tick()
        print("line")
        assert screen.lines[-2] == "one line"
        assert "thinking" in screen.lines[-1]
    with pytest.raises(TypeError), Progress("thinking", ""):
        sys.stdout.write(b"no")  # type: ignore[arg-type]  # by this click tells text from bytes


def test_who_kept_stderr_writes_no_line_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a handler of logging that is made while the line stands."""
    screen = terminal(monkeypatch)
    with Progress("thinking", ""):
        kept = sys.stderr
        tick()
    for message in ("one", "two"):
        print(message, file=kept)
    assert screen.text == "one\ntwo\n"


def test_stages_take_the_line_and_give_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    assert list(stage(range(3), "unwatched")) == [0, 1, 2]
    with Progress("quantising", ""):
        for number in stage(range(2), "rounding weights", "layer"):
            tick()
            assert f" {number} of 2 layers" in screen.lines[-1]
        tick()
        assert "quantising" in screen.lines[-1]
    assert screen.text == ""


def test_stages_are_counted_and_have_no_rate(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch, 100)
    reached(1, 5, "unwatched")
    with Progress("exporting", ""):
        for number, doing in enumerate(("writing", "running"), 1):
            reached(number, 5, doing)
            now[0] += 3
            tick()
        assert re.search(r"running [━╺╸]+ 1 of 5 stages, 0:00:06$", screen.lines[-1])


def test_a_narrow_terminal_has_the_figures_and_no_bar(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch, 50)
    with Progress("classifying", total=2000, done=0) as bar:
        now[0] = 1
        bar.advance(20)
        now[0] = 2
        bar.advance(20)
        tick()
        assert "40 of 2,000 photos, " in screen.text
        assert screen.text.endswith(" left")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (60, "classifying 80 of 20,000 photos, 5.0/s, 1:06:24 left"),
        (50, "class… 80 of 20,000 photos, 5.0/s, 1:06:24 left"),
        (40, "classifyi… 80 of 20,000, 1:06:24 left"),
        (36, "class… 80 of 20,000, 1:06:24 left"),
        (24, "classif… 1:06:24 left"),
    ],
)
def test_the_time_that_is_left_is_left_out_last(
    columns: int, words: str, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch, columns)
    with Progress("classifying", total=20000) as bar:
        for now[0] in (4, 12):
            bar.advance(40)
            tick()
        assert screen.text.endswith(words)


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_it_is_one_line_on_any_terminal(
    columns: int, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch, columns)
    with Progress("x" * 30, total=1_000_000, done=500_000) as bar:
        now[0] = 5
        bar.advance(500)
        tick()
        assert len(screen.lines) == 1
        assert 10 < len(screen.lines[0]) < columns


def test_it_goes_when_its_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    def work() -> None:
        with Progress("working"):
            tick()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert screen.text == ""
    assert progress._Line.standing is None


def test_what_is_counted_in_a_thread_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    counted = threading.Event()

    def count() -> int:
        counted.set()
        return 7

    with Progress("classifying", total=count) as bar:
        assert counted.wait(60)
        while bar.total is None:
            time.sleep(0.001)
        tick()
        assert "0 of 7 photos" in screen.lines[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_leaves_the_line_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with Progress("working"):
        tick()
        with progress._Line._lock:  # held at the fork
            child = os.fork()
            if not child:
                try:
                    with Progress("of the child"):
                        print("said")
                    os._exit(0 if screen.text.endswith("said\n") else 1)
                except BaseException:
                    os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# What stands on the screen of a real pseudo-terminal, for each verb that works for long

SLOW = """
import signal, sys, time
from importlib import import_module
from verydeep import cli
from verydeep.files.progress import _Line

def slowly(function, calls=[0]):
    def slow(*words, **more):
        calls[0] += 1
        if calls[0] <= 2:  # these two wait until the line has moved three times
            seen, until = set(), time.monotonic() + 60
            while len(seen) < 3 and time.monotonic() < until:
                seen |= {_Line.standing._drawn} - {""} if _Line.standing else set()
                time.sleep(0.02)
        return function(*words, **more)
    return slow

signal.signal(signal.SIGINT, signal.default_int_handler)  # which who runs tests may ignore
module, _, name = sys.argv[1].rpartition(".")
module, _, owner = module.partition(":")
holder = getattr(import_module(module), owner) if owner else import_module(module)
setattr(holder, name, slowly(getattr(holder, name)))
sys.argv = ["verydeep", *sys.argv[2:]]
cli.main()
"""
PIXELS = "verydeep.preprocess:Preprocess.pixels"
VERBS = {  # verb: what is made slow, the words, what the line must have said
    "classify": (PIXELS, "P --model M --engine onnxruntime", "classifying .* 0 of 40 photos"),
    "features": (PIXELS, "P --model M --out f.npz --engine onnxruntime", "features .* 0 of 40 photos"),
    "distance": (
        "verydeep.distances.perceptual:_Decoder.pair", "P P --model M --metric content",
        "comparing .* 0 of 40 pairs",
    ),
    "duplicates": (PIXELS, "P --model M --engine onnxruntime", "duplicates .* 0 of 40 photos"),
    "evaluate": (PIXELS, "M P", "evaluating .* 0 of 40 photos"),
    "check": ("verydeep.datasets.check._look", "P", "looking at images .* of 40 images"),
    "quantize": (PIXELS, "M --calibrate P --out q.safetensors", "reading photos .* 0 of 20 photos"),
    "export": (
        "verydeep.exporting.onnx.write", "M --to onnx --out m.onnx",
        "writing m.onnx .* 0 of 4 stages, 0:00:0",
    ),
    "train": (
        PIXELS, "P --recipe probe --model M --set sizes=32 --set layers=relu4_2 --set engine=onnxruntime "
        "--set precision=exact --out run", "computing features .* of 36 photos",
    ),
    "train --find-lr": (
        "verydeep.training.learner:Learner.follow",
        "P --recipe small-images --model vgg11_bn --width 0.0625 --set precision=fp32 "
        "--set layout=default --set batch=12",
        "trying learning rates .* 1 of 100 steps, ",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    for number in range(40):
        photo(folder / "P" / ("ant", "bee")[number % 2] / f"{number}.png", seed=number)
    model_file(folder / "M.safetensors")
    return folder


pseudo_terminals = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has none of this kind"
)


def on_a_terminal(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, stop: bool = False
) -> tuple[Screen, int]:
    """What the verb leaves on its screen, and its exit status. stop: by Ctrl-C, once its line says so."""
    import pty
    import subprocess

    slow, words, said = VERBS[verb]
    paths = {"P": str(place / "P"), "M": str(place / "M.safetensors")}
    typed = [*verb.split(), *(paths.get(word, word) for word in words.split())]
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p))
    command = [sys.executable, "-c", SLOW, slow, *typed]
    run = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=place)
    os.close(theirs)
    screen = Screen()
    with open(ours, "rb", buffering=0) as reader:
        while True:
            try:
                read = reader.read(2**16)
            except OSError:  # of a terminal, this is its end
                break
            if not read:
                break
            screen.write(read.decode("utf-8", "replace").replace("\r\n", "\n"))
            if stop and any(re.search(said, line) for line in screen.shown):
                run.send_signal(signal.SIGINT)
                stop = False
    return screen, run.wait()


@pseudo_terminals
@pytest.mark.parametrize("verb", VERBS)
def test_on_a_terminal_a_verb_shows_how_far_it_is(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, status = on_a_terminal(verb, place, monkeypatch)
    assert status in (0, 1), screen.text
    lines = [line for line in screen.shown if re.search(VERBS[verb][2], line)]
    assert lines, (screen.shown, screen.text)
    moved = [line for line in screen.shown if re.search(r"[⠀-⣿] ", line)]
    assert len(set(moved)) >= 3, moved
    assert not re.search("[⠀-⣿]", screen.text), "nothing of it is left"


@pseudo_terminals
@pytest.mark.parametrize("verb", ["classify", "features", "distance", "evaluate"])
def test_ctrl_c_leaves_one_line(verb: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, status = on_a_terminal(verb, place, monkeypatch, stop=True)
    assert status == 130
    kept = "verydeep: what was done is in f.npz.partial; the same command goes on"
    assert [line for line in screen.lines if line not in ("", kept)] == ["verydeep: stopped"]


def test_a_profile_shows_how_far_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verydeep.training import begin, measuring
    from verydeep.training.learner import Learner

    screen = terminal(monkeypatch, 100)
    follow = Learner.follow

    def followed(*words: Any) -> Any:
        tick()
        return follow(*words)

    monkeypatch.setattr(measuring, "SECONDS", 0.3)
    monkeypatch.setattr(Learner, "follow", followed)
    settings = {"batch": 12, "precision": "fp32", "layout": "default"}
    with Progress("measuring", ""):
        begin.profile(
            "small-images", place / "P", model="vgg11_bn", width=1 / 16, settings=settings
        )
    assert re.search(
        r"measuring the network [━╺╸]+ 3 of [\d,]+ steps, .* left", "\n".join(screen.shown)
    )


def test_no_character_that_turns_the_direction_of_writing_is_left() -> None:
    turning = [
        chr(n) for n in range(sys.maxunicode) if unicodedata.bidirectional(chr(n)) in TURNING
    ]
    marks = ["\u061c", "\u200e", "\u200f"]
    assert len(turning) == 9
    for character in (*turning, *marks):
        assert plain(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_a_name_in_advice_is_quoted_for_this_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shlex.split(quoted(Path("it's here"))) == ["it's here"]
    monkeypatch.setattr(sys, "platform", "win32")  # whose shell does not know '
    assert quoted(Path("my model.onnx.py")) == '"my model.onnx.py"'


def test_wording() -> None:
    assert [counted(n, what) for n in (1, 8) for what in ("batch", "class", "epoch")] == [
        "1 batch", "1 class", "1 epoch", "8 batches", "8 classes", "8 epochs",
    ]  # fmt: skip
    assert [counted(n, "photo") for n in (0, 1, 2, 6000)] == [
        "0 photos", "1 photo", "2 photos", "6,000 photos",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.6, 3723, 360000)] == [
        "0:00:00", "0:01:00", "1:02:03", "100:00:00",
    ]  # fmt: skip
    rows = [("name", "size", "file"), ("vgg16", "9", "a"), ("b", "10", "")]
    assert table(rows, "<><").splitlines() == ["name   size  file", "vgg16     9  a", "b        10"]
    assert table(rows, "<>").splitlines()[1] == "vgg16     9     a"
    assert table([]) == ""


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    rich = pytest.importorskip("rich.cells")
    for text in ("abc", "蜜蜂", "é", "e\u0301", "ｶﾞ", "Ａ", "한국", "\U0001f41d", "кит", "ไก่"):
        assert cells(text) == rich.cell_len(text), text
    rows = [("蜜蜂", "1"), ("bee", "2"), ("e\u0301", "3"), ("turned\u202e", "4"), ("x" * 300, "5")]
    first, *others, turned, long = table(rows).splitlines()
    assert first == f"蜜蜂{' ' * 36}  1"
    assert {cells(line) for line in (first, *others, turned)} == {43}
    assert turned.startswith(r"turned\u202e ")
    assert long == f"{'x' * 300}  5"
    assert table(rows[:2], ">").splitlines() == ["蜜蜂  1", " bee  2"]
