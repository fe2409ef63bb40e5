"""From pairs of images, in whatever form they come, to pairs of pixels of one size and type."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from ..errors import ImageError
from ..files import hashes
from ..predictor import Failure
from ..preprocess import ImageLike, Range, decoded, limits

# How far beyond its range a picture may go, in widths of the range: filters ring at edges.
OVERSHOOT = 0.5

Array = np.ndarray
Pair = tuple[Array, Array]


def warn_if_suspicious(
    what: str, least: float, most: float, range: Range, stacklevel: int = 3
) -> None:
    """Of values that look like 0..1 where another range was said."""
    span = limits(range)
    if 0 < most <= 1 and (span == (0, 255) or (span == (-1, 1) and least >= 0)):
        warnings.warn(
            f"{what} goes from {least:.4g} to {most:.4g} and its range was said to be "
            f"{range_name(range)}: if it is 0..1, say so",
            stacklevel=stacklevel,
        )


def range_name(range: Range) -> str:
    """As a person writes it: "0..1"."""
    return range if isinstance(range, str) else "{:g}..{:g}".format(*limits(range))


class Decoder:
    """Images to pixels. The pixels of a first image that comes again are those that came before, so that
    who shares its computation can ask with `is`.

    range: of floats; images of 8 and 16 bits know theirs. smallest: side in pixels.
    """

    def __init__(self, range: Range, smallest: int) -> None:
        if range is not None:
            limits(range)
        self.range, self.smallest = range, smallest
        self._known: object = None
        self._pixels: Array | None = None
        self._as_float: Array | None = None

    def pair(self, first: ImageLike, second: ImageLike) -> Pair | Failure:
        """Two (height, width, 3) arrays of one size and dtype, uint8 or float32 from 0 to 255."""
        try:
            a, b = self._reference(first), self.pixels(second)
            if a.shape != b.shape:
                raise ImageError(
                    f"{_called(first, 'the first image')} is {_size(a)} and "
                    f"{_called(second, 'the second')} {_size(b)} pixels; a distance needs images of one "
                    "size: crop or resize one of them"
                )
            if min(a.shape[:2]) < self.smallest:
                raise ImageError(
                    f"{_called(first, 'the images')}: {_size(a)} pixels are too few; this distance needs "
                    f"at least {self.smallest} a side"
                )
        except ImageError as error:
            return Failure(_called(second, None), str(error))
        if a.dtype == b.dtype:
            return a, b
        if self._as_float is None:
            self._as_float = a.astype(np.float32)
        return self._as_float, b.astype(np.float32)

    def pixels(self, image: Any) -> Array:
        """A new array."""
        try:
            return decoded(image)
        except ImageError:  # a scale that is not known, unless it was told
            if self.range is None:
                raise
        pixels = decoded(image, range=self.range, overshoot=OVERSHOOT)
        low, high = limits(self.range)
        least, most = (low + float(v) * (high - low) / 255 for v in (pixels.min(), pixels.max()))
        warn_if_suspicious("an image", least, most, self.range)
        return pixels

    def _reference(self, image: Any) -> Array:
        """The pixels of the first image: known by its file as it is now, else by what is in it."""
        known: object = image if isinstance(image, bytes) else None
        if isinstance(image, str | os.PathLike) and os.path.exists(image):
            known = image, hashes.stamp(os.stat(image))
        if known is not None and known == self._known and self._pixels is not None:
            return self._pixels
        pixels, old = self.pixels(image), self._pixels
        # an array may be a buffer that was filled anew
        if old is None or old.dtype != pixels.dtype or not np.array_equal(old, pixels):
            old, self._as_float = pixels, None
        self._known, self._pixels = known, old
        return old


def _called(image: object, otherwise: Any) -> Any:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise


def _size(pixels: Array) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
