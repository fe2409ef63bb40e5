"""Progress: silent when quick, plain lines off a terminal, one wiped line on it."""

from __future__ import annotations

import sys

import pytest

from verydeep.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that each reading moves on by the first number of the list."""
    step, now = [1.0], [0.0]

    def read() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", read)
    return step


def test_quick_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    clock[0] = 0.01
    assert list(progress.progress(range(50))) == list(range(50))
    assert capsys.readouterr().err == ""


def test_plain_lines(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(range(40), total=40)) == list(range(40))
    assert clock == [1.0]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 photos of 40, 0:38 left, 1.0 a second"
    assert lines[1:] == ["32 photos of 40, 0:08 left, 1.0 a second"]


def test_a_terminal_has_one_line_that_is_wiped(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert clock
    for number in progress.progress(range(4), unit="files"):
        print(f"<{number}>", file=sys.stderr)
    text = capsys.readouterr().err
    assert "\n<3>" not in text
    assert text.startswith("<0>\n<1>\n2 files, 1.0 a second")
    assert "a second\r\033[K<2>\n" in text
    assert text.endswith("\r\033[K")
