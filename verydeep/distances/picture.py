"""The picture of a distance: both photos, and where they differ, in perceptually uniform colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import DataError
from ..pictures import layout
from .records import Distance


def draw(
    first: Image.Image, second: Image.Image, distance: Distance, names: tuple[str, str]
) -> Image.Image:
    """An RGB picture: the two photos, the map with its scale, and the line that makes it reproducible.

    distance: with its map, of the photos' size. DataError where it has none.
    """
    if distance.map is None:
        raise DataError("the distance has no map; expected one that was computed with spatial=True")
    photos = [layout.fitted(photo) for photo in (first, second)]
    top = float(distance.map.max())
    heat = Image.fromarray(distance.map / top if top > 0 else distance.map)
    # enlarged, a pixel stays a pixel: what the map does not know should not look smooth
    larger = photos[0].width > first.width
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    colours = Image.fromarray(layout.coloured(np.asarray(heat.resize(photos[0].size, how))))
    name = distance.about.metric.split()[0]
    scale = layout.scale(max(layout.NARROWEST, colours.width), f"{top:.3g}", f"{name} at a pixel")
    return layout.under(
        layout.row(
            *(layout.panel(name, "", photo) for name, photo in zip(names, photos, strict=True)),
            layout.panel(f"{name} {float(distance):.4g}", "", colours, 12, scale),
            gap=layout.GAP,
        ),
        str(distance.about),
    )
