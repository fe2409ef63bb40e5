"""Occlusion: cover a patch of the image, and see how far the score falls (arXiv:1311.2901, section 4.2).

The patch has the mean colour of the pre-processing, which the network takes as zero. It is put on a grid of
places; the last one of a row or column ends at the border.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from ..preprocess import Preprocess
from .methods import Maps, Options, Pick
from .subject import Images, Subject


def occlusion(subject: Subject, options: Options, pixels: np.ndarray, pick: Pick) -> Maps:
    height, width = pixels.shape[:2]
    window = options.window or max(1, min(height, width) // 4)
    stride = options.stride or max(1, window // 4)
    if window > min(height, width):
        raise DataError(
            f"window is {window}, and the network sees {width}x{height} pixels; "
            f"expected 1 to {min(height, width)}"
        )
    rows, columns = places(height, window, stride), places(width, window, stride)
    colour = mean_colour(subject.preprocess, pixels.dtype)

    def image(number: int) -> np.ndarray:
        """The whole one first, then with each place covered."""
        covered = pixels.copy()
        if number:
            row, column = divmod(number - 1, len(columns))
            top, left = rows[row], columns[column]
            covered[top : top + window, left : left + window] = colour
        return covered

    images = Images(1 + len(rows) * len(columns), image)
    whole, *others = subject.values(images)
    scores = whole["fc8"]
    classes = pick(scores)
    falls = scores - np.stack([item["fc8"] for item in others])
    falls = falls.reshape(len(rows), len(columns), -1)
    maps = [np.ascontiguousarray(falls[:, :, index]) for index in classes]
    ys, xs = (at + (window - 1) / 2 for at in (rows, columns))
    return Maps(scores, classes, maps, ys, xs, whole.engine, whole.precision)


def places(side: int, window: int, stride: int) -> np.ndarray:
    """First pixels of windows along a side, every `stride` and one at the end."""
    last = side - window
    return np.array(sorted({*range(0, last, stride), last}))


def mean_colour(preprocess: Preprocess, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The pixel, in the image's channel order, that the network takes as zero; rounded for uint8."""
    low, high = preprocess.range
    colour = (np.asarray(preprocess.mean) - low) / (high - low) * 255
    if preprocess.channel_order == "BGR":
        colour = colour[::-1]
    colour = np.clip(colour, 0, 255)
    return (np.rint(colour) if dtype == np.uint8 else colour).astype(dtype)
