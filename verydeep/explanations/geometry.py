"""Where the units of a map lie on the image, from the table's strides and positions.

A map is not stretched over its image: each unit is put where its receptive field has its centre, which is
the same thing only where every pool divides evenly.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..nets import Network, Row
from ..preprocess import Preprocess

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


def centres(network: Network, layer: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in pixels, of the units of a trunk layer; the first pixel's centre is 0."""
    row = _row(network, layer, height, width)
    _, rows, columns = row.shape
    ys, xs = (row.position + row.stride * np.arange(n) for n in (rows, columns))
    return ys, xs


def _row(network: Network, layer: str, height: int, width: int) -> Row:
    rows = network.cut((layer,)).rows(height, width)
    return next(row for row in rows if row.layer.name == layer)


def interpolation(at: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights (len(at), len(known)) of linear interpolation; beyond the ends, the end's own value.

    at: where values are wanted. known: where they are known, increasing.
    """
    index = np.clip(np.searchsorted(known, at, side="right") - 1, 0, max(0, len(known) - 2))
    after = np.minimum(index + 1, len(known) - 1)
    gap = np.where(after > index, known[after] - known[index], 1)
    share = np.clip((at - known[index]) / gap, 0, 1)
    weights = np.zeros((len(at), len(known)))
    rows = np.arange(len(at))
    np.add.at(weights, (rows, index), 1 - share)
    np.add.at(weights, (rows, after), share)
    return weights


def upscaled(
    values: np.ndarray, ys: np.ndarray, xs: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A map (h, w), whose units lie at ys and xs, for each of height x width pixels; float32."""
    down = interpolation(np.arange(height), ys)
    across = interpolation(np.arange(width), xs)
    return np.asarray(down @ values @ across.T, np.float32)


def seen_box(
    preprocess: Preprocess, size: tuple[int, int], drawn: tuple[int, int], seen: tuple[int, int]
) -> Box:
    """The part of a photo that the network's pixels show, in pixels of the photo as it is drawn.

    size: the photo's width and height. drawn: those of the copy that is drawn on. seen: those of the
    network's pixels. The box lies partly outside the photo where the crop was padded.
    """
    width, height = size
    resized_height, resized_width = preprocess._resized_size(height, width)
    scale_x, scale_y = drawn[0] / resized_width, drawn[1] / resized_height
    left, top = _cut(resized_width - seen[0]), _cut(resized_height - seen[1])
    return left * scale_x, top * scale_y, (left + seen[0]) * scale_x, (top + seen[1]) * scale_y


def _cut(spare: int) -> int:
    """Pixels that the centre crop takes away before it, less than 0 where it pads; see `preprocess`."""
    return round(spare / 2) if spare >= 0 else -(-spare // 2)
