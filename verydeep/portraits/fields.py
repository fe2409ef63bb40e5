"""Receptive fields on the photo: how much of it one unit of each block sees, and what is there.

The units lie one behind the other: all have their field's centre where the last block's strongest channel
has its strongest unit, as nearly as their grids allow. Sizes and places are the table's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..explanations.geometry import Box
from ..pictures.layout import (
    FAINT,
    FIELDS,
    INK,
    MARGIN,
    PAPER,
    TEXT,
    TITLE,
    WIDTH,
    photo,
)
from ..pictures.text import lines, write

if TYPE_CHECKING:
    from . import Block, Portrait

PHOTO = 600  # longest side, pixels
GAP = 14
BORDER = (226, 228, 232)  # beyond the photo, where the network reads zeros


def draw(portrait: Portrait) -> Image.Image:
    """The photo with the fields as squares; beside it, what each of them shows, at one size."""
    image = photo(portrait)
    boxes = fields(portrait)
    scale = PHOTO / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    words = lines(said(portrait), TEXT, WIDTH - 2 * MARGIN)
    top = MARGIN + 40 + 22 * len(words) + 14
    side = (PHOTO - (len(boxes) - 1) * GAP) // len(boxes)
    height = max(size[1], len(boxes) * (side + GAP) - GAP)
    picture = Image.new("RGB", (WIDTH, top + height + MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    write(pen, (MARGIN, MARGIN), "What a unit sees", INK, TITLE)
    for at, line in enumerate(words):
        write(pen, (MARGIN, MARGIN + 40 + 22 * at), line, FAINT, TEXT)
    picture.paste(
        _outlined(image.resize(size, Image.Resampling.BICUBIC), boxes, scale), (MARGIN, top)
    )
    for at, (block, box) in enumerate(zip(portrait.blocks, boxes, strict=True)):
        x, y = MARGIN + size[0] + 2 * GAP, top + at * (side + GAP)
        _patch(picture, image, block, box, (x, y), side, _colour(at))
    return picture


def said(portrait: Portrait) -> str:
    """Where the units are, and why their fields are as large as they are."""
    last = portrait.blocks[-1]
    return (
        f"One unit of each block, all where channel {last.channels[0].index} of {last.layer} is strongest. "
        "Each convolution widens what a unit sees by two steps of its grid; each pool doubles the step. "
        "What lies beyond the photo is read as zero."
    )


def fields(portrait: Portrait) -> list[Box]:
    """What the unit of each block sees, in pixels of what the network looked at."""
    last = portrait.blocks[-1]
    row, column = last.channels[0].peak
    centre = _at(last, column), _at(last, row)
    return [field(block, centre) for block in portrait.blocks]


def field(block: Block, centre: tuple[float, float]) -> Box:
    """What the unit nearest to a centre sees: left, top, right, bottom, in pixels of the input."""
    half = block.row.receptive_field / 2
    x, y = (_at(block, _nearest(block, place)) + 0.5 for place in centre)
    return x - half, y - half, x + half, y + half


def _at(block: Block, unit: int) -> float:
    """The pixel at the centre of a unit's field; the first pixel's centre is 0."""
    return block.row.position + block.row.stride * unit


def _nearest(block: Block, place: float) -> int:
    return max(0, round((place - block.row.position) / block.row.stride))


def _colour(at: int) -> tuple[int, int, int]:
    return FIELDS[at % len(FIELDS)]


def _outlined(image: Image.Image, boxes: list[Box], scale: float) -> Image.Image:
    pen = ImageDraw.Draw(image)
    for at, box in reversed(list(enumerate(boxes))):
        left, top, right, bottom = (round(value * scale) for value in box)
        for grown, colour, width in ((2, INK, 4), (1, _colour(at), 2)):
            outline = (left - grown, top - grown, right + grown - 1, bottom + grown - 1)
            pen.rectangle(outline, outline=colour, width=width)
    return image


def _patch(
    picture: Image.Image,
    image: Image.Image,
    block: Block,
    box: Box,
    at: tuple[int, int],
    side: int,
    colour: tuple[int, int, int],
) -> None:
    """What the field shows, framed in its colour, and in words beside it."""
    x, y = at
    row = block.row
    whole = Image.new("RGB", (row.receptive_field,) * 2, BORDER)
    whole.paste(image, (-round(box[0]), -round(box[1])))
    how = Image.Resampling.NEAREST if whole.width < side / 2 else Image.Resampling.BICUBIC
    pen = ImageDraw.Draw(picture)
    pen.rectangle((x, y, x + side - 1, y + side - 1), INK)
    pen.rectangle((x + 1, y + 1, x + side - 2, y + side - 2), colour)
    picture.paste(whole.resize((side - 8, side - 8), how), (x + 4, y + 4))
    x += side + GAP + 6
    write(pen, (x, y + 6), block.layer, INK, TITLE - 4)
    for at_line, line in enumerate(facts(block)):
        write(pen, (x, y + 40 + 22 * at_line), line, FAINT, TEXT)


def facts(block: Block) -> tuple[str, str]:
    """What is to be said of a block's units, in two lines."""
    row = block.row
    _, height, width = row.shape
    return (
        f"sees {row.receptive_field} x {row.receptive_field} pixels",
        f"{width} x {height} units, {row.stride} pixel{'s' if row.stride > 1 else ''} apart",
    )
