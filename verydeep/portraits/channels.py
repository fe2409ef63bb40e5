"""A contact sheet: of each block the maps that answer most strongly to the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..pictures.colours import coloured
from ..pictures.layout import FAINT, INK, MARGIN, PAPER, TEXT, TITLE, WIDTH, photo
from ..pictures.text import lines, write

if TYPE_CHECKING:
    from . import Block, Portrait

GAP, LABEL, SIDE = 12, 24, 150  # SIDE: room for a row's words


def draw(portrait: Portrait) -> Image.Image:
    """One row a block, the photo in front of the first; each map in the colours of its own range."""
    count = max(4, *(len(block.channels) for block in portrait.blocks))
    wide = (WIDTH - 2 * MARGIN - SIDE - (count - 1) * GAP) // count
    image = photo(portrait)
    scale = wide / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    said = lines(
        "Of each block the maps with the largest mean, strongest first, after the last ReLU. Black is 0, "
        "pale yellow the map's own largest value. Squares are units: they grow as the maps shrink.",
        TEXT,
        WIDTH - 2 * MARGIN - size[0] - 2 * GAP,
    )
    top = MARGIN + max(40 + 22 * len(said), size[1]) + 20
    step = size[1] + LABEL + GAP
    picture = Image.new("RGB", (WIDTH, top + len(portrait.blocks) * step + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(picture)
    write(pen, (MARGIN, MARGIN), "The strongest channels of each block", INK, TITLE)
    for at, line in enumerate(said):
        write(pen, (MARGIN, MARGIN + 40 + 22 * at), line, FAINT, TEXT)
    picture.paste(
        image.resize(size, Image.Resampling.BICUBIC),
        (MARGIN + SIDE + (count - 1) * (size[0] + GAP), MARGIN),
    )
    for at, block in enumerate(portrait.blocks):
        _row(picture, block, size, top + at * step)
    return picture


def _row(picture: Image.Image, block: Block, size: tuple[int, int], y: int) -> None:
    pen = ImageDraw.Draw(picture)
    channels, height, width = block.row.shape
    write(pen, (MARGIN, y), block.layer, INK, TITLE - 4)
    words = (
        f"{channels} maps",
        f"of {width} x {height} units",
        f"each sees {block.row.receptive_field} pixels",
    )
    for at, line in enumerate(words):
        write(pen, (MARGIN, y + 32 + 19 * at), line, FAINT, TEXT - 2)
    for at, channel in enumerate(block.channels):
        x = MARGIN + SIDE + at * (size[0] + GAP)
        picture.paste(tile(channel.map).resize(size, Image.Resampling.NEAREST), (x, y))
        write(pen, (x, y + size[1] + 4), str(channel.index), INK, TEXT - 2)
        mean = f"{channel.mean:.3g}"
        write(pen, (x + size[0], y + size[1] + 4), mean, FAINT, TEXT - 2, anchor="ra")


def tile(values: np.ndarray) -> Image.Image:
    """A map (h, w) as a picture of as many pixels: 0 is black, its largest value pale yellow."""
    return Image.fromarray(coloured(values / max(float(values.max()), 1e-30)))
