"""Progress on stderr for long work: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

T = TypeVar("T")
QUIET_SECONDS = 2.0  # work shorter than this says nothing
WIPE = "\r\033[K"  # back to the start of the line, and clear it
TERMINAL_SECONDS, PLAIN_SECONDS = 0.2, 30.0  # between two lines


def progress(items: Iterable[T], *, total: int | None = None, unit: str = "photos") -> Iterator[T]:
    """Pass `items` on, telling how many are done, the rate, and the time left where `total` is known.

    The live line is wiped before an item is passed on, so that results may go to the same terminal.
    """
    terminal = sys.stderr.isatty()
    began = time.monotonic()
    due = began + QUIET_SECONDS
    shown = False
    for count, item in enumerate(items, 1):
        if shown:
            click.echo(WIPE, err=True, nl=False)
            shown = False
        yield item
        now = time.monotonic()
        if now >= due:
            due = now + (TERMINAL_SECONDS if terminal else PLAIN_SECONDS)
            rate = count / (now - began)
            left = "" if total is None else f" of {total}, {_clock((total - count) / rate)} left"
            click.echo(f"{count} {unit}{left}, {rate:.1f} a second", err=True, nl=not terminal)
            shown = terminal
    if shown:
        click.echo(WIPE, err=True, nl=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
