"""How numbers, times and tables are written for people: one spelling of each, wherever they are said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# control characters, what ends a line, and what turns the direction of writing
_COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMED = 5  # of many are named in a line


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 photo", "2,000 photos", "2 batches", "2 epochs"."""
    ending = "es" if what.endswith(("s", "tch")) else "s"
    return f"{number:,} {what if number == 1 else what + ending}"


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


def table(rows: Iterable[Sequence[str]], align: str = "<") -> str:
    """Rows of texts as lines of columns, two spaces apart.

    align: "<" or ">" for each column; the last one counts for all that follow.
    """
    lines = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    return "\n".join(
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )
