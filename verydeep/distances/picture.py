"""The picture of a distance: both photos, and where they differ, in perceptually uniform colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError
from ..pictures.colours import coloured
from ..pictures.text import lines, shortened, write

if TYPE_CHECKING:
    from .records import Distance

PANEL = 460  # longest side of a photo, pixels
MARGIN, GAP = 28, 24
TITLE, TEXT = 25, 16  # font sizes
HEAD, FOOT = 42, 62  # above and below a photo
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 30), (110, 116, 124)
LEAST = 160  # width of a panel, so that its words find room


def draw(
    first: Image.Image, second: Image.Image, distance: Distance, names: tuple[str, str]
) -> Image.Image:
    """An RGB picture: the two photos, the map with its scale, and the line that makes it reproducible.

    distance: with its map, of the photos' size. DataError where it has none.
    """
    if distance.map is None:
        raise DataError("the distance has no map; expected one that was computed with spatial=True")
    scale = PANEL / max(first.size)
    size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    top = float(distance.map.max())
    heat = Image.fromarray(distance.map / top if top > 0 else distance.map)
    # enlarged, a pixel stays a pixel: what the map does not know should not look smooth
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    colours = Image.fromarray(coloured(np.asarray(heat.resize(size, how))))
    photos = [p.convert("RGB").resize(size, Image.Resampling.BICUBIC) for p in (first, second)]
    name = distance.about.metric.split()[0]
    titles = (*names, f"{name} {float(distance):.4g}")
    width = max(LEAST, size[0])
    footer = lines(str(distance.about), TEXT - 2, 3 * width + 2 * GAP)
    height = HEAD + size[1] + FOOT
    canvas = Image.new(
        "RGB",
        (2 * MARGIN + 3 * width + 2 * GAP, MARGIN + height + 10 + 20 * len(footer) + MARGIN // 2),
        PAPER,
    )
    pen = ImageDraw.Draw(canvas)
    for at, (panel, title) in enumerate(zip((*photos, colours), titles, strict=True)):
        left = MARGIN + at * (width + GAP)
        canvas.paste(panel, (left, MARGIN + HEAD))
        place = (left, MARGIN + HEAD - 12)
        write(pen, place, shortened(title, TITLE, width), INK, TITLE, anchor="ls")
    up = MARGIN + HEAD + size[1] + 12
    bar = coloured(np.linspace(0, 1, width)[None, :].repeat(10, 0))
    canvas.paste(Image.fromarray(bar), (left, up))
    write(pen, (left, up + 16), "0", INK, TEXT)
    write(pen, (left + width / 2, up + 16), f"{name} at a pixel", FAINT, TEXT, anchor="ma")
    write(pen, (left + width, up + 16), f"{top:.3g}", INK, TEXT, anchor="ra")
    for at, line in enumerate(footer):
        write(pen, (MARGIN, MARGIN + height + 10 + 20 * at), line, FAINT, TEXT - 2)
    return canvas
