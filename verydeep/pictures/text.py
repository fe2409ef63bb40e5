"""Text on pictures, in Pillow's own font (Aileron), so that nothing need be installed."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Colour: TypeAlias = tuple[int, int, int]

SPACE = 0.28  # between words, of the size
MIDDLE_DOT = "\N{MIDDLE DOT}"


@cache
def font(size: int) -> Font:
    """The font at that many pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """How wide `write` makes the text, in pixels."""
    words = text.split(" ")
    return sum(font(size).getlength(word) for word in words) + SPACE * size * (len(words) - 1)


def write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: Colour,
    size: int,
    anchor: str = "la",
) -> None:
    """Write one line. anchor: "l", "m" or "r", then "a" (top) or "s" (baseline), as Pillow's.

    Word by word, since the font's kerning takes the space after a digit nearly away.
    """
    x, y = at
    x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * length(text, size)
    for word in text.split(" "):
        pen.text((x, y), word, colour, font(size), anchor=f"l{anchor[1]}")
        x += font(size).getlength(word) + SPACE * size


def shortened(text: str, size: int, room: float, *, end: bool = False) -> str:
    """The text as the font can write it, cut to fit in so many pixels; end: its end stays."""
    text = _writable(text)
    if length(text, size) <= room:
        return text
    while text and length(text + "...", size) > room:
        text = text[1:] if end else text[:-1]
    return f"...{text}" if end else f"{text}..."


def lines(text: str, size: int, room: float) -> list[str]:
    """The text as the font can write it, in lines that fit in so many pixels."""
    rows = [""]
    for word in _writable(text).split(" "):
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and length(longer, size) > room:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _writable(text: str) -> str:
    """The font has ASCII and little else: accents are dropped, what it lacks becomes "?"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c == MIDDLE_DOT else "?" for c in plain)
