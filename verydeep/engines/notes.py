"""What engines tell the person, on stderr, one line each."""

from __future__ import annotations

import sys

_SAID: set[str] = set()


def say(text: str) -> None:
    """One line on stderr, in the manner of the command's own."""
    if sys.stderr is not None:  # a program without a console has none
        print(f"verydeep: {text}", file=sys.stderr, flush=True)


def say_once(text: str) -> None:
    """The same, but never twice in one process."""
    if text not in _SAID:
        _SAID.add(text)
        say(text)
