"""The picture of a portrait: the photo and what is said of it, the filters, and the blocks in rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..pictures import layout
from ..pictures.layout import FAINT, INK, TEXT, TITLE
from ..pictures.text import shortened
from . import FIELDS, filter_picture, words

if TYPE_CHECKING:
    from . import Block, Portrait

WIDTH = 1180
PHOTO, SIDE, GAP = 360, 150, 12  # the photo's longer side, room for a row's words, between tiles
FILTER, BAR = 60, (228, 230, 234)
BORDER = (226, 228, 232)  # beyond the photo, where the network reads zeros


def draw(portrait: Portrait) -> Image.Image:
    """An RGB picture; without a photo only the filters are there."""
    parts = [_top(portrait), _filters(portrait)]
    if portrait.pixels is not None:
        parts.append(_blocks(portrait))
    return layout.column(*parts, gap=44, margin=layout.MARGIN)


def _text(width: int, heading: str, text: str) -> Image.Image:
    title = layout.caption(width, heading, size=TITLE)
    return layout.column(title, layout.paragraph(text, width), gap=4)


def _top(portrait: Portrait) -> Image.Image:
    if portrait.pixels is None:
        return _text(WIDTH, words.title(portrait), words.network(portrait))
    photo = _outlined(portrait)
    width = WIDTH - photo.width - 2 * GAP
    parts = [
        _text(width, words.title(portrait), words.network(portrait)),
        layout.paragraph(words.photo(portrait), width),
    ]
    if portrait.answer is not None:
        parts.append(layout.paragraph(words.answer(portrait), width))
        for guess in portrait.answer.predictions:
            name = shortened(guess.label, TEXT, width // 3)
            line = layout.row(
                layout.caption(width // 3, name),
                layout.column(7, layout.bar(guess.probability, width // 2, 8, FIELDS[2], BAR)),
                layout.caption(70, right=f"{guess.probability:.1%}", colours=(INK, FAINT, FAINT)),
            )
            parts.append(line)
    return layout.row(photo, layout.column(*parts, gap=10), gap=2 * GAP)


def _outlined(portrait: Portrait) -> Image.Image:
    """The photo with the fields as squares."""
    photo = layout.fitted(portrait.photo, PHOTO)
    factor = photo.width / portrait.photo.width
    pen = ImageDraw.Draw(photo)
    for box, colour in reversed(list(zip(portrait.fields, FIELDS, strict=False))):
        left, top, right, bottom = (round(value * factor) for value in box)
        for grown, line, width in ((2, INK, 4), (1, colour, 2)):
            outline = (left - grown, top - grown, right + grown - 1, bottom + grown - 1)
            pen.rectangle(outline, outline=line, width=width)
    return photo


def _filters(portrait: Portrait) -> Image.Image:
    columns = math.ceil(len(portrait.filters) / math.ceil(len(portrait.filters) / 16))
    tiles = [
        layout.column(
            filter_picture(one).resize((FILTER, FILTER), Image.Resampling.NEAREST),
            3, layout.bar(strength, FILTER, 4, INK, BAR), 3,
            layout.caption(FILTER, middle=str(index), size=13),
        )
        for index, (one, strength) in enumerate(
            zip(portrait.filters, portrait.strengths, strict=True)
        )
    ]  # fmt: skip
    return layout.column(
        _text(WIDTH, *words.filters(portrait)), layout.grid(tiles, columns, 14), gap=18
    )


def _blocks(portrait: Portrait) -> Image.Image:
    """Of each block what one unit sees, and the strongest maps, each in the colours of its own range."""
    count = 1 + max(4, *(len(block.channels) for block in portrait.blocks))
    tile = layout.fitted(portrait.photo, (WIDTH - SIDE - (count - 1) * GAP) // count).size
    rows = []
    for block, box, colour in zip(portrait.blocks, portrait.fields, FIELDS, strict=False):
        said = [layout.caption(SIDE, block.layer, size=21)]
        said += [layout.paragraph(line, SIDE, layout.SMALL) for line in words.units(block)]
        field = _field(portrait.photo, block, box, colour, tile)
        maps = [
            layout.column(
                one.picture.resize(tile, Image.Resampling.NEAREST), 4,
                layout.caption(tile[0], str(one.index), right=f"{one.mean:.3g}", size=layout.SMALL,
                               colours=(INK, FAINT, FAINT)),
            )
            for one in block.channels
        ]  # fmt: skip
        rows.append(layout.row(layout.column(*said), layout.row(field, *maps, gap=GAP)))
    heading, text = words.CHANNELS
    text += f" In front, what one unit sees {words.place(portrait)}."
    return layout.column(_text(WIDTH, heading, text), 8, *rows, gap=GAP)


def _field(
    photo: Image.Image,
    block: Block,
    box: layout.Box,
    colour: tuple[int, int, int],
    tile: tuple[int, int],
) -> Image.Image:
    """What a unit sees, framed in its colour, in the middle of a tile."""
    seen = Image.new("RGB", (block.row.receptive_field,) * 2, BORDER)
    seen.paste(photo, (-round(box[0]), -round(box[1])))
    side = min(tile)
    how = Image.Resampling.NEAREST if seen.width < side / 2 else Image.Resampling.BICUBIC
    place = Image.new("RGB", tile, layout.PAPER)
    left, top = (tile[0] - side) // 2, (tile[1] - side) // 2
    pen = ImageDraw.Draw(place)
    pen.rectangle((left, top, left + side - 1, top + side - 1), INK)
    pen.rectangle((left + 1, top + 1, left + side - 2, top + side - 2), colour)
    place.paste(seen.resize((max(1, side - 8),) * 2, how), (left + 4, top + 4))
    return place
