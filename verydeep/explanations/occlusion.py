"""Occlusion: cover a patch of the image, and see how far the score falls (arXiv:1311.2901, section 4.2).

The patch has the mean colour of the pre-processing, which the network takes as zero. It is put on a grid of
places; the last one of a row or column ends at the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import DataError
from ..predictor import Predictor
from ..preprocess import Preprocess
from .method import Found, Method, Options, Pick
from .passes import Passes


def prepare(
    predictor: Predictor, options: Options, tensors: Mapping[str, np.ndarray] | None = None
) -> Method:
    passes = Passes(predictor, (), tensors)

    def run(pixels: np.ndarray, pick: Pick) -> Found:
        height, width = pixels.shape[:2]
        window = options.window or max(1, min(height, width) // 4)
        stride = options.stride or max(1, window // 4)
        if window > min(height, width):
            raise DataError(
                f"window is {window}, and the network sees {width}x{height} pixels; "
                f"expected 1 to {min(height, width)}"
            )
        rows, columns = places(height, window, stride), places(width, window, stride)
        colour = mean_colour(predictor.preprocess, pixels.dtype)

        def covered() -> Iterator[np.ndarray]:
            yield pixels
            for top in rows:
                for left in columns:
                    image = pixels.copy()
                    image[top : top + window, left : left + window] = colour
                    yield image

        values = np.stack(list(passes.scores(covered(), 1 + len(rows) * len(columns))))
        scores = values[0]
        classes = pick(scores)
        falls = (scores - values[1:]).reshape(len(rows), len(columns), -1)
        middle = (window - 1) / 2
        return Found(
            scores, classes, [np.ascontiguousarray(falls[:, :, i]) for i in classes],
            rows + middle, columns + middle, (), passes.engine, passes.precision,
        )  # fmt: skip

    return run


def places(side: int, window: int, stride: int) -> np.ndarray:
    """First pixels of windows along a side, every `stride` and one at the end."""
    starts = list(range(0, side - window + 1, stride))
    if starts[-1] != side - window:
        starts.append(side - window)
    return np.array(starts)


def mean_colour(preprocess: Preprocess, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The pixel, in the image's channel order, that the network takes as zero; rounded for uint8."""
    low, high = preprocess.range
    colour = (np.asarray(preprocess.mean) - low) / (high - low) * 255
    if preprocess.channel_order == "BGR":
        colour = colour[::-1]
    colour = np.clip(colour, 0, 255)
    return (np.rint(colour) if dtype == np.uint8 else colour).astype(dtype)
