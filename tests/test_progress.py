"""Progress: silent when quick, plain lines off a terminal, one wiped line on it; and wording."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from verydeep.errors import log
from verydeep.files import progress
from verydeep.files.progress import LiveLine, Progress
from verydeep.files.wording import clock, counted, table


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that each reading moves on by the first number of the list."""
    step, now = [1.0], [0.0]

    def read() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", read)
    return step


def be_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def shown(text: str) -> list[str]:
    """The lines that stood on the terminal, without what moves the cursor and gives colours."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")


def test_quick_work_says_nothing(step: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    step[0] = 0.01
    assert list(progress.progress(range(50))) == list(range(50))
    assert capsys.readouterr().err == ""


def test_plain_lines(step: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(range(40), total=40)) == list(range(40))
    assert step == [1.0]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 of 40 photos, 1.0 a second, 0:00:38 left"
    assert lines[1:] == ["32 of 40 photos, 1.0 a second, 0:00:08 left"]


@pytest.mark.usefixtures("step")
def test_a_terminal_has_one_line_that_is_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_terminal(monkeypatch)

    def work() -> Iterator[int]:
        for number in range(4):
            if number == 3:
                log.info("said while the line stands")
            yield number

    for number in progress.progress(work(), "file"):
        print(f"<{number}>", file=sys.stderr)
    text = capsys.readouterr().err
    words = [line.strip() for line in shown(text) if line.strip()]
    assert words[:3] == ["<0>", "<1>", "2 files so far, 1.0 a second"]
    # results and notes begin a line: the live one was wiped before them
    for said in ("<2>", "verydeep: said while the line stands", "<3>"):
        assert said in words
    assert text.endswith("\x1b[2K")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 2  # the cursor is there again


def test_a_live_line_goes_when_its_work_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_terminal(monkeypatch)

    def work() -> None:
        with LiveLine() as line:
            line.show("x" * 100)  # longer than the terminal is wide: one line all the same
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    text = capsys.readouterr().err
    assert max(len(line) for line in shown(text)) <= 60
    assert text.endswith("\x1b[2K")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.usefixtures("step")
def test_bytes_that_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("byte", 528_000_000, done=100_000_000, name="vgg16") as bar:
        bar.advance(2_000_000)
        bar.advance(2_000_000)
    assert capsys.readouterr().err == ("vgg16: 104.0 of 528.0 MB, 2.0 MB a second, 0:03:32 left\n")


def test_wording() -> None:
    assert [counted(n, "photo") for n in (0, 1, 2, 6000)] == [
        "0 photos", "1 photo", "2 photos", "6,000 photos",
    ]  # fmt: skip
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [clock(s) for s in (0, 59.6, 3723, 360000)] == [
        "0:00:00", "0:01:00", "1:02:03", "100:00:00",
    ]  # fmt: skip
    rows = [("name", "size", "file"), ("vgg16", "9", "a"), ("b", "10", "")]
    assert table(rows, "<><").splitlines() == ["name   size  file", "vgg16     9  a", "b        10"]
    assert table(rows, "<>").splitlines()[1] == "vgg16     9     a"
