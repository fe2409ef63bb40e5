"""Progress on stderr for long work: a live line on a terminal, a plain line every ten seconds elsewhere.

A door says what is being done: `with Progress("computing features", total=400) as bar: bar.advance()`.
What it calls may say how far its own part is by `stage`, which is silent where nobody watches. A thread
keeps the line alive, so that it moves while the work does not. Whether stderr is a terminal decides that
can take back a line; on one, whatever is printed meanwhile, results too, goes above the line.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Self, TextIO, TypeVar

from .wording import clock, counted

T = TypeVar("T")
FIRST_SECONDS, TICK_SECONDS = 0.3, 0.2  # on a terminal; work shorter than the first says nothing
PLAIN_FIRST_SECONDS, PLAIN_SECONDS = 2.0, 10.0  # elsewhere
BAR_CELLS = 30  # at most
MEGABYTE = 1_000_000
WIPE = "\r\x1b[2K"


class Progress:
    """Work that is watched while it lasts. Within another such work it takes the line over for a while.

    doing: what is being done. unit: what is counted, in the singular; "byte" is told in megabytes. total:
    how many there are, or what counts them, in a thread of its own; None where nobody knows. done: how many
    there were before. All may be changed at any time.
    """

    def __init__(
        self, doing: str, unit: str = "photo", total: int | Callable[[], int] | None = None, *,
        done: int = 0,
    ) -> None:  # fmt: skip
        self._count = total if callable(total) else None
        self.total = None if callable(total) else total
        self.doing, self.unit, self.done = doing, unit, done
        self.effort: Callable[[int], float] = float  # that so many take, where not all take as long
        # from where on the rate is counted: later the moment of the first result, since opening takes time
        self._since = time.monotonic(), done
        self._began = self._since

    def __enter__(self) -> Self:
        if self._count:
            threading.Thread(target=self._counted, daemon=True).start()
        _Line.watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        _Line.leave(self)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def _counted(self) -> None:
        with suppress(Exception):  # whoever does the work says it
            assert self._count is not None
            self.total = self._count()

    def text(self, most: float = math.inf) -> str:
        """How many of how many, how many a second, how long still; without a unit, how long so far.

        most: characters that there is room for; what matters least is left out, the time last.
        """
        now, (start, before) = time.monotonic(), self._began
        if self.done > before and self._since == self._began:
            self._since = now, self.done
        if self.done > self._since[1]:
            start, before = self._since
        rate = (self.done - before) / max(now - start, 1e-3) if self.unit != "stage" else 0
        size = MEGABYTE if self.unit == "byte" else 1
        if self.unit == "byte":
            whole = "" if self.total is None else f" of {self.total / size:,.1f}"
            count = f"{self.done / size:,.1f}{whole} MB"
        elif self.total is None:
            count = counted(self.done, self.unit) if self.unit and self.done else ""
        else:
            count = f"{self.done:,} of {counted(self.total, self.unit)}"
        each = f"{rate / size:.1f}{' MB' if size > 1 else ''}/s"
        each = each if rate >= 0.1 else f"{1 / rate:.0f} s each" if rate else ""
        left = clock(now - self._began[0])
        if rate and self.total:
            first, done, last = map(self.effort, (before, self.done, self.total))
            left = f"{clock((last - done) / (done - first) * (now - start))} left"
        numbers = count.rpartition(" ")[0]
        ways = ((count, each, left), (count, left), (numbers, left), (left,))
        lines = [", ".join(filter(None, words)) for words in ways]
        return next((line for line in lines if len(line) <= most), left)


def progress(
    items: Iterable[T], doing: str, unit: str = "photo",
    total: int | Callable[[], int] | None = None,
) -> Iterator[T]:  # fmt: skip
    """Pass items on, telling how far they are. total: where they do not know it themselves."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(doing, unit, total) as bar:
        for item in items:
            yield item
            bar.advance()


def stage(
    items: Iterable[T], doing: str, unit: str = "step", total: int | None = None
) -> Iterator[T]:
    """The same for a part of what is watched; where nothing is, only the items."""
    return progress(items, doing, unit, total) if _Line.standing else iter(items)


def within(doing: str, unit: str = "photo") -> AbstractContextManager[Progress]:
    """The same for what tells of itself how much of it is done."""
    part = Progress(doing, unit)
    return part if _Line.standing else nullcontext(part)


def expect(total: int) -> None:
    """So many there are of what is being done, known before the first is: for whoever watches."""
    with _Line._lock:
        if _Line.standing:
            _Line.standing.work[-1].total = total


def reached(number: int, of: int, doing: str) -> None:
    """What is watched is at the stage of that number, from 1. No two take as long, so no rate is told."""
    with _Line._lock:
        if _Line.standing:
            work = _Line.standing.work[-1]
            work.doing, work.unit, work.done, work.total = doing, "stage", number - 1, of


class _Line:
    """The line at the foot of the terminal, and the thread that keeps it alive; there is one at most."""

    standing: _Line | None = None
    _lock = threading.RLock()

    def __init__(self) -> None:
        self.work: list[Progress] = []  # the last is told of
        self.terminal = _terminal(sys.stderr)
        self._stderr = sys.stderr  # which may be another when this ends
        self.stream = _own(self._stderr)
        self._drawn = ""
        self._rich: Any = None  # its console and spinner, once something is drawn
        self.midline = False  # somebody has begun a line, and not ended it
        self._due = time.monotonic() + PLAIN_FIRST_SECONDS
        self._end = threading.Event()
        streams = {"stdout": sys.stdout, "stderr": sys.stderr} if self.terminal else {}
        self._above = {
            name: _Above(there, self) for name, there in streams.items() if _terminal(there)
        }
        vars(sys).update(self._above)
        threading.Thread(target=self._live, daemon=True, name="progress").start()

    @classmethod
    def watch(cls, work: Progress) -> None:
        with cls._lock:
            cls.standing = cls.standing or cls()
            cls.standing.work.append(work)

    @classmethod
    def leave(cls, work: Progress) -> None:
        with cls._lock:
            line = cls.standing
            if line is None or work not in line.work:
                return
            line.work.remove(work)
            if line.work:
                return
            cls.standing = None
            line._end.set()
            if line.shown:
                line.stream.write(WIPE)
                line.stream.flush()
            line._drawn = ""  # somebody may have kept what stood for stderr
            for name, above in line._above.items():
                if getattr(sys, name) is above:
                    setattr(sys, name, above.stream)
            if line.stream is not line._stderr:
                line.stream.close()

    @classmethod
    def in_child(cls) -> None:
        """After a fork the line is the parent's, and so may be whoever holds the lock."""
        if cls.standing:
            cls.standing._drawn = ""
        cls._lock, cls.standing = threading.RLock(), None

    def _live(self) -> None:
        seconds = FIRST_SECONDS
        while not self._end.wait(seconds):
            # nobody reads it, there is nothing to write to, or it has just ended
            with suppress(OSError, ValueError, IndexError, AttributeError):
                self.tick()
            seconds = TICK_SECONDS

    def tick(self) -> None:
        """Draw it anew, or print it where that is due."""
        work = self.work[-1]
        text = self._rendered(work) if self.terminal else f"{work.doing}: {work.text()}"
        with self._lock:
            if self._end.is_set():
                return
            if self.terminal:
                self._drawn = text
                text = f"{WIPE}{text}" if self.shown else ""
            elif time.monotonic() >= self._due:
                self._due = time.monotonic() + PLAIN_SECONDS
                text += "\n"
            else:
                return
            self.stream.write(text)  # at once: others write to the same place
            self.stream.flush()

    def _rendered(self, work: Progress) -> str:
        from rich.console import Console  # imported only here: it takes longer than most commands
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        if self._rich is None:
            console = Console(file=self.stream, force_terminal=True)
            unicode = console.encoding.lower().startswith("utf")
            self._rich = console, Spinner("dots" if unicode else "line", style="green")
        console, spinner = self._rich
        doing = Text(work.doing, no_wrap=True, overflow="ellipsis")
        words = Text(work.text(console.width - 8), no_wrap=True, overflow="ellipsis")
        doing.truncate(max(4, console.width - 4 - words.cell_len), overflow="ellipsis")
        room = console.width - 6 - doing.cell_len - words.cell_len
        bar = [ProgressBar(work.total or None, work.done, width=min(BAR_CELLS, room))]
        line = Table.grid(padding=(0, 1))
        line.add_row(spinner, doing, *(bar if room >= 4 else []), words)  # figures before a picture
        with console.capture() as captured:
            console.print(line, end="", width=console.width - 1, height=1)
        return str(captured.get()).partition("\n")[0]

    @property
    def shown(self) -> str:
        """What stands there now."""
        return "" if self.midline else self._drawn


def _terminal(stream: TextIO | None) -> bool:
    """Whether it is one: nothing that is closed, has write() alone, or is not there, as in pythonw.

    Nor one that can only print lines.
    """
    with suppress(AttributeError, ValueError):
        return bool(stream and stream.isatty() and os.environ.get("TERM") != "dumb")
    return False


def _own(stream: TextIO) -> TextIO:
    """The same place under a descriptor of its own: into that one's an engine prints as it opens.

    Of the process's stream alone: where another stands in its place, a notebook's for one, what is written
    to it is not what is written to the descriptor that it may name.
    """
    if stream is not sys.__stderr__:
        return stream
    try:
        return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")
    except (OSError, ValueError, AttributeError):  # not a file, closed, or none: it has none
        return stream


class _Above:
    """A stream to the terminal on which a line stands: what is written goes above it."""

    def __init__(self, stream: TextIO, line: _Line) -> None:
        self.stream, self._line = stream, line

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected a str, got {type(text).__name__}")  # by which click tells
        line = self._line
        with line._lock:
            before = WIPE if line.shown else ""
            line.midline = not text.endswith("\n") if text else line.midline
            self.stream.write(f"{before}{text}{line.shown}")  # at once, so that nothing flickers
            self.stream.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_Line.in_child)
