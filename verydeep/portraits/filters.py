"""The first layer's filters as colours: what each of them looks for in the pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..pictures.layout import FAINT, INK, MARGIN, PAPER, TEXT, TITLE, WIDTH
from ..pictures.text import lines, write

if TYPE_CHECKING:
    from . import Portrait

TILE, GAP, LABEL = 60, 14, 20
BAR = 4  # height of the bar that shows a filter's strength


def draw(portrait: Portrait) -> Image.Image:
    """A grid of tiles, numbered from 0, each with a bar as long as the filter is strong."""
    filters = portrait.filters
    columns = min(len(filters), (WIDTH - 2 * MARGIN + GAP) // (TILE + GAP))
    columns = math.ceil(len(filters) / math.ceil(len(filters) / columns))
    rows = math.ceil(len(filters) / columns)
    first = portrait.network.trunk[0]
    said = lines(
        f"{first.name}: each filter weighs {first.kernel} x {first.kernel} pixels. Grey is a weight of "
        "nothing, lighter and darker are what it adds and takes away in each colour; each tile has its "
        "own contrast. The bar is the filter's strength beside the strongest one's.",
        TEXT,
        WIDTH - 2 * MARGIN,
    )
    top = MARGIN + 40 + 22 * len(said) + 14
    step = TILE + BAR + LABEL + GAP
    picture = Image.new("RGB", (WIDTH, top + rows * step + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(picture)
    write(pen, (MARGIN, MARGIN), f"The {len(filters)} filters of the first layer", INK, TITLE)
    for at, line in enumerate(said):
        write(pen, (MARGIN, MARGIN + 40 + 22 * at), line, FAINT, TEXT)
    strength = np.sqrt((filters**2).sum((1, 2, 3)))
    strength = strength / max(float(strength.max()), 1e-30)
    for index, weights in enumerate(filters):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (TILE + GAP), top + row * step
        picture.paste(tile(weights).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        below = y + TILE + 3
        pen.rectangle((x, below, x + TILE - 1, below + BAR - 1), (228, 230, 234))
        pen.rectangle(
            (x, below, x + max(1, round(TILE * strength[index])) - 1, below + BAR - 1), INK
        )
        write(pen, (x + TILE / 2, below + BAR + 3), str(index), FAINT, 13, anchor="ma")
    return picture


def tile(weights: np.ndarray) -> Image.Image:
    """A filter (channels, height, width) as a picture of as many pixels: zero is middle grey."""
    size = max(float(np.abs(weights).max()), 1e-30)
    shown = 0.5 + weights / (2 * size)
    if len(shown) != 3:
        shown = np.repeat(shown.mean(0, keepdims=True), 3, 0)
    return Image.fromarray(np.rint(shown.transpose(1, 2, 0) * 255).astype(np.uint8))
