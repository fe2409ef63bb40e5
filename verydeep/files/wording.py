"""How numbers, times and tables are written for people: one spelling of each, wherever they are said."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

# control characters, what ends a line, and what turns the direction of writing
_COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMED = 5  # of many are named in a line
MOST_CELLS = 40  # of a column


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 photo", "2,000 photos", "2 batches", "2 epochs"."""
    ending = "es" if what.endswith(("s", "tch")) else "s"
    return f"{number:,} {what if number == 1 else what + ending}"


def quoted(name: str | os.PathLike[str]) -> str:
    """A name as the shell of this system takes it."""
    import shlex  # in here, since most starts say no such line
    import subprocess

    text = os.fspath(name)
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)


def plain(text: str) -> str:
    r"""A file's name, or what has one in it, as a line shows it: what commands a terminal is escaped.

    >>> print(plain("new\nline.jpg"))
    new\nline.jpg
    """
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def some(names: Iterable[str]) -> str:
    """Some names, the first five in full: "a, b, c, d, e and 3 more"."""
    names = list(map(plain, names))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def cells(text: str) -> int:
    """How wide a terminal shows it: most signs of East Asia take two cells, accents of their own none."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    none, two = ("Mn", "Me", "Cf"), ("W", "F")
    return sum(0 if category(c) in none else 1 + (east_asian_width(c) in two) for c in text)


def column(texts: Iterable[str], side: str = "<") -> list[str]:
    """Texts, as `plain` has them, made as wide as the widest; one of more than MOST_CELLS widens no other.

    side: "<" or ">", where they stand.
    """
    texts = list(map(plain, texts))
    width = min(MOST_CELLS, max(map(cells, texts)))
    gaps = [" " * (width - cells(text)) for text in texts]
    return [t + gap if side == "<" else gap + t for t, gap in zip(texts, gaps, strict=True)]


def table(rows: Iterable[Sequence[str]], align: str = "<") -> str:
    """Rows of texts as lines of columns, two spaces apart.

    align: "<" or ">" for each column; the last one counts for all that follow.
    """
    columns = list(zip(*rows, strict=True))
    sides = align.ljust(len(columns), align[-1])
    lines = zip(*map(column, columns, sides), strict=True)
    return "\n".join("  ".join(line).rstrip() for line in lines)
