"""Where the units of a map lie on the image, from the table's strides and positions.

A map is not stretched over its image: each unit is put where its receptive field has its centre, which is
the same thing only where every pool divides evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..nets import Network
from ..preprocess import Preprocess

if TYPE_CHECKING:
    from ..pictures.layout import Box


def centres(network: Network, layer: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in pixels, of the units of a trunk layer; the first pixel's centre is 0."""
    rows = network.cut((layer,)).rows(height, width)
    line = next(row for row in rows if row.layer.name == layer)
    ys, xs = (line.position + line.stride * np.arange(count) for count in line.shape[1:])
    return ys, xs


def interpolation(at: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights (len(at), len(known)) of linear interpolation; beyond the ends, the end's own value.

    at: where values are wanted. known: where they are known, increasing.
    """
    return np.stack([np.interp(at, known, unit) for unit in np.eye(len(known))], axis=1)


def upscaled(
    values: np.ndarray, ys: np.ndarray, xs: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A map (h, w), whose units lie at ys and xs, for each of height x width pixels; float32."""
    down = interpolation(np.arange(height), ys)
    across = interpolation(np.arange(width), xs)
    return np.asarray(down @ values @ across.T, np.float32)


def blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    """The Gaussian mean around each pixel of (height, width[, channels]), as float64; whole at borders."""
    for axis in (0, 1):
        side = np.arange(values.shape[axis])
        weights = np.exp(-0.5 * (np.subtract.outer(side, side) / deviation) ** 2)
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


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
