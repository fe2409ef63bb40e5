"""How every picture is put together: colours for numbers, text, and tiles in columns, rows and grids.

A part is an RGB picture on white paper; parts are joined to larger ones until one is the whole. Their sizes
follow from what they hold. Text is in Pillow's own font (Aileron), so that nothing need be installed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 28, 24
TITLE, TEXT, SMALL = 25, 16, 14  # font sizes
SPACE = 0.28  # between words, of the size
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 30), (110, 116, 124)
PANEL = 460  # longest side of a photo under a title
NARROWEST = 160  # room for the words of a narrow one

Part: TypeAlias = "Image.Image | int"  # a number is so much room
Panel: TypeAlias = "tuple[str, str, Image.Image, Sequence[Part]]"  # title, value, picture, foot
Colour: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


# Inferno, by Nathaniel Smith and Stefan van der Walt (CC0), as in matplotlib 3.11: every fifth of its 256
# steps from black through purple and orange to pale yellow; the others lie on straight lines between
# them, to within one level. Equal steps of value look equally far apart; it is read as well in grey, and
# by people who see fewer colours.
_FIFTHS = bytes.fromhex(
    "00000402020c0504170a072210092d160b391e0c45260c512f0a5b380962400a67490b6a510e6c59106e61136e"
    "69166e71196e781c6d801f6c88226a902568982766a02a63a82e5fb0315bb73557bf3952c63d4dcc4248d34743"
    "d94d3ddf5337e45a31e9612bed6925f1711ff47918f78212f98b0bfa9407fb9d07fca60cfcb014fbba1ffac42a"
    "f8cd37f6d746f4e156f2ea69f2f27df5f992fcffa4"
)

_STEPS = np.arange(256)
INFERNO: np.ndarray = np.rint(
    [np.interp(_STEPS, _STEPS[::5], list(_FIFTHS[channel::3])) for channel in range(3)]
).T.astype(np.uint8)


def coloured(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1, of any shape, as colours: the same shape and RGB, uint8.

    What lies outside 0..1 takes the colour of the nearer end.
    """
    steps = np.clip(np.nan_to_num(values), 0, 1) * (len(INFERNO) - 1)
    colours: np.ndarray = INFERNO[np.rint(steps).astype(np.intp)]
    return colours


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font at that many pixels."""
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """How wide text is drawn, in pixels.

    Word by word, since the font's kerning takes the space after a digit nearly away.
    """
    words = text.split(" ")
    return sum(font(size).getlength(word) for word in words) + SPACE * size * (len(words) - 1)


def shortened(text: str, size: int, room: float, *, end: bool = False) -> str:
    """The text as the font can write it, cut to fit in so many pixels; end: its end stays."""
    text = _writable(text)
    if length(text, size) <= room:
        return text
    most = max(1, int(room))  # no letter is narrower than a pixel
    text = text[-most:] if end else text[:most]
    while text and length(text + "...", size) > room:
        text = text[1:] if end else text[:-1]
    return f"...{text}" if end else f"{text}..."


def lines(text: str, size: int, room: float) -> list[str]:
    """The text as the font can write it, in lines that fit in so many pixels."""
    rows = [""]
    pieces: list[str] = []
    for word in _writable(text).split(" "):
        while (
            length(word, size) > room and len(word) > 1
        ):  # too long for any line: broken where it must
            fits = max(1, sum(length(word[:end], size) <= room for end in range(1, len(word))))
            pieces.append(word[:fits])
            word = word[fits:]
        pieces.append(word)
    for word in pieces:
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and length(longer, size) > room:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _writable(text: str) -> str:
    """The font has ASCII and little else: accents are dropped, what it lacks becomes "?"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c == "\N{MIDDLE DOT}" else "?" for c in plain)


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
    for words, share, colour in zip((left, middle, right), (0, 0.5, 1), colours, strict=True):
        x = share * (width - length(words, size))
        for word in words.split(" "):
            pen.text((x, 0), word, colour, font(size))
            x += font(size).getlength(word) + SPACE * size
    return part


def paragraph(text: str, width: int, size: int = TEXT, colour: Colour = FAINT) -> Image.Image:
    """Text in as many lines as it needs."""
    rows = lines(text, size, width)
    return column(*(caption(width, line, size=size, colours=(colour,) * 3) for line in rows))


def sheet(given: Sequence[Panel], columns: int, words: str) -> Image.Image:
    """The whole: panels in rows with a margin, and words in small beneath."""
    whole = grid(panels(given), columns)
    return column(whole, 20, paragraph(words, whole.width, SMALL), margin=MARGIN)


def panels(given: Sequence[Panel]) -> list[Image.Image]:
    """Pictures under their titles, each with a value on the right, and with what follows beneath.

    given: (title, value, picture, foot) each. Titles take the lines that they need, all as many, so that
    the pictures stand side by side.
    """
    wide = [max(NARROWEST, picture.width) for _, _, picture, _ in given]
    titles = []
    for (title, value, _, _), width in zip(given, wide, strict=True):
        room = width - (length(value, TITLE) + 14 if value else 0)
        narrow = any(length(word, TITLE) > room for word in title.split(" "))
        titles.append(
            [*([""] if narrow and value else []), *lines(title, TITLE, width if narrow else room)]
        )
    most = max(map(len, titles))
    colours = (INK, FAINT, FAINT)
    return [
        column(6, *(
            caption(width, line, right="" if at else value, size=TITLE, height=36, colours=colours)
            for at, line in enumerate(title + [""] * (most - len(title)))
        ), picture, *foot)
        for (_, value, picture, foot), title, width in zip(given, titles, wide, strict=True)
    ]  # fmt: skip


def scale(
    width: int, top: str, unit: str, colours: Callable[[np.ndarray], np.ndarray] = coloured
) -> Image.Image:
    """A bar of the colours for 0 to `top`, with what they measure beneath."""
    bar = Image.fromarray(colours(np.linspace(0, 1, width)[None].repeat(10, 0)))
    if length(unit, TEXT) + 2 * length(f"{top} ", TEXT) <= width:
        return column(bar, 6, caption(width, "0", unit, top))
    return column(bar, 6, caption(width, "0", "", top), paragraph(unit, width))


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


def centred(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture in the middle of so much paper."""
    place = Image.new("RGB", size, PAPER)
    place.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return place


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Decoded pixels for drawing: arrays, 0 to 255, have more than 8 bits, or one channel."""
    if isinstance(image, np.ndarray):
        pixels = np.rint(image).astype(np.uint8)
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
    return image.convert("RGB")
