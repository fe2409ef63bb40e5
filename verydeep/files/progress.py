"""Progress on stderr for long work: a live line on a terminal, a plain line now and then elsewhere.

Work that is done within two seconds says nothing. Results may go to the same terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

from .wording import clock, counted

T = TypeVar("T")
QUIET_SECONDS = 2.0  # work shorter than this says nothing
TERMINAL_SECONDS, PLAIN_SECONDS = 0.2, 30.0  # between two lines
BAR_CELLS = 24
MEGABYTE = 1_000_000


class LiveLine:
    """A line at the foot of a terminal, drawn over by the next one; elsewhere it is never seen.

    `with LiveLine() as line:` takes it away at the end, whatever happens.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._live: Any = None  # rich.live.Live, once there is something to show
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def show(self, text: str, share: float | None = None) -> None:
        """Draw it, a few times a second at most. share: of the work that is done, 0 to 1, as a bar."""
        now = time.monotonic()
        if not self.terminal or now < self._due:
            return
        self._due = now + TERMINAL_SECONDS
        from rich.console import Console  # imported only here: it takes longer than most commands
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._live is None:
            self._live = Live(
                console=Console(stderr=True), auto_refresh=False, transient=True,
                redirect_stdout=False,  # results stay results; what is said on stderr goes above the line
            )  # fmt: skip
        line = Table.grid(padding=(0, 1))
        words = Text(text, no_wrap=True, overflow="ellipsis")
        if share is None:
            line.add_row(words)
        else:
            bar = ProgressBar(1.0, share, width=BAR_CELLS, complete_style="green")
            line.add_row(bar, words)
        self._live.start()
        self._live.update(line, refresh=True)

    def wipe(self) -> None:
        """Take it away, so that results can be printed where it stood."""
        if self._live is not None:
            self._live.stop()


class Progress(LiveLine):
    """How much of the work is done, told while it lasts: `with Progress() as bar:`, then `bar.advance()`.

    After a `wipe` the next `advance` brings the line back.

    unit: what is counted, in the singular; "byte" is told in megabytes. total: how many there are, where
    that is known. done: how many there were before this run. name: of the work.
    """

    def __init__(
        self, unit: str = "photo", total: int | None = None, *, done: int = 0, name: str = ""
    ) -> None:
        super().__init__()
        self.unit, self.total, self.done, self.name = unit, total, done, name
        self._before = done
        self._began = time.monotonic()
        self._due = self._began + QUIET_SECONDS

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if now < self._due:
            return
        text = self._text(now - self._began)
        if self.terminal:
            self.show(text, self.done / self.total if self.total else None)
        else:
            self._due = now + PLAIN_SECONDS
            print(text, file=sys.stderr, flush=True)

    def _text(self, seconds: float) -> str:
        rate = (self.done - self._before) / seconds
        if self.unit == "byte":
            whole = "" if self.total is None else f" of {self.total / MEGABYTE:,.1f}"
            counts = f"{self.done / MEGABYTE:,.1f}{whole} MB, {rate / MEGABYTE:.1f} MB"
        elif self.total is None:
            counts = f"{counted(self.done, self.unit)} so far, {rate:.1f}"
        else:
            counts = f"{self.done:,} of {counted(self.total, self.unit)}, {rate:.1f}"
        left = f", {clock((self.total - self.done) / rate)} left" if self.total and rate else ""
        return f"{self.name}{': ' if self.name else ''}{counts} a second{left}"


def progress(items: Iterable[T], unit: str = "photo", total: int | None = None) -> Iterator[T]:
    """Pass items on, telling how far they are. No live line stands where a result might be printed."""
    with Progress(unit, total) as bar:
        for item in items:
            bar.wipe()
            yield item
            bar.advance()
