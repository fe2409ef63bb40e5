"""How every picture is put together: tiles, captions and colour scales, in columns, rows and grids.

A part is an RGB picture on white paper; parts are joined to larger ones until one is the whole. Their sizes
follow from what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from .colours import coloured
from .text import Colour, length, lines, shortened, write

MARGIN, GAP = 28, 24
TITLE, TEXT, SMALL = 25, 16, 14  # font sizes
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 30), (110, 116, 124)
PANEL, NARROWEST = (
    460,
    160,
)  # longest side of a photo under a title; room for the words of a narrow one

Part: TypeAlias = "Image.Image | int"  # a number is so much room
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


def column(*parts: Part, gap: int = 0, margin: int = 0) -> Image.Image:
    """Parts one below the other, so far apart, with so much paper around them."""
    return _joined(parts, gap, margin, 1)


def row(*parts: Part, gap: int = 0) -> Image.Image:
    """Parts side by side, their tops at one height."""
    return _joined(parts, gap, 0, 0)


def grid(parts: Sequence[Image.Image], columns: int, gap: int = GAP) -> Image.Image:
    """Parts of one size in rows, from left to right."""
    starts = range(0, len(parts), columns)
    return column(*(row(*parts[at : at + columns], gap=gap) for at in starts), gap=gap)


def _joined(parts: Sequence[Part], gap: int, margin: int, axis: int) -> Image.Image:
    sizes = np.array([(0, 0) if isinstance(part, int) else part.size for part in parts])
    along = [part if isinstance(part, int) else part.size[axis] for part in parts]
    size = [int(side) + 2 * margin for side in sizes.max(0)]
    size[axis] = sum(along) + gap * (len(parts) - 1) + 2 * margin
    whole = Image.new("RGB", (size[0], size[1]), PAPER)
    at = [margin, margin]
    for part, room in zip(parts, along, strict=True):
        if not isinstance(part, int):
            whole.paste(part, (at[0], at[1]))
        at[axis] += room + gap
    return whole


def caption(
    width: int,
    left: str = "",
    middle: str = "",
    right: str = "",
    *,
    size: int = TEXT,
    height: int | None = None,
    colours: tuple[Colour, Colour, Colour] = (INK, FAINT, INK),
) -> Image.Image:
    """One line of text with up to three places for words; its height follows from its size."""
    part = Image.new("RGB", (width, height or round(1.4 * size)), PAPER)
    pen = ImageDraw.Draw(part)
    places = ((0, left, "la"), (width / 2, middle, "ma"), (width, right, "ra"))
    for (x, words, anchor), colour in zip(places, colours, strict=True):
        write(pen, (x, 0), words, colour, size, anchor)
    return part


def paragraph(text: str, width: int, size: int = TEXT, colour: Colour = FAINT) -> Image.Image:
    """Text in as many lines as it needs."""
    lead = round(1.4 * size)
    words = lines(text, size, width)
    part = Image.new("RGB", (width, lead * len(words)), PAPER)
    for at, line in enumerate(words):
        write(ImageDraw.Draw(part), (0, lead * at), line, colour, size)
    return part


def panel(title: str, value: str, picture: Image.Image, *foot: Part) -> Image.Image:
    """A picture under its title, with a value on the right, and what follows beneath."""
    width = max(NARROWEST, picture.width)
    words = shortened(title, TITLE, width - (length(value, TITLE) + 14 if value else 0))
    head = caption(width, words, right=value, size=TITLE, height=36, colours=(INK, FAINT, FAINT))
    return column(6, head, picture, *foot)


def under(picture: Image.Image, words: str) -> Image.Image:
    """The whole: a picture with a margin, and words in small beneath."""
    foot = paragraph(words, picture.width, SMALL)
    return column(picture, 20, foot, margin=MARGIN)


def scale(
    width: int, top: str, unit: str, colours: Callable[[np.ndarray], np.ndarray] = coloured
) -> Image.Image:
    """A bar of the colours for 0 to `top`, with what they measure beneath."""
    bar = Image.fromarray(colours(np.linspace(0, 1, width)[None].repeat(10, 0)))
    return column(bar, 6, caption(width, "0", unit, top))


def bar(share: float, width: int, height: int, colour: Colour, rest: Colour) -> Image.Image:
    """A bar that is filled as far as a share, 0 to 1, by a pixel at least."""
    whole = Image.new("RGB", (width, height), rest)
    whole.paste(colour, (0, 0, max(1, round(width * share)), height))
    return whole


def fitted(photo: Image.Image, side: int = PANEL) -> Image.Image:
    """A photo at such a size that its longer side has so many pixels."""
    factor = side / max(photo.size)
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    return photo.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Decoded pixels for drawing: arrays, 0 to 255, have more than 8 bits, or one channel."""
    if isinstance(image, np.ndarray):
        pixels = np.rint(image).astype(np.uint8)
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
    return image.convert("RGB")
