"""From pairs of images, in whatever form they come, to pairs of pixels of one size and type."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from ..errors import ImageError
from ..predictor import Failure
from ..preprocess import ImageLike, Range, decoded, limits

# How far beyond its range a picture may go, in widths of the range: filters ring at edges.
OVERSHOOT = 0.5

Array = np.ndarray
Pair = tuple[Array, Array]


def suspicious(least: float, most: float, span: tuple[float, float]) -> bool:
    """Whether values said to have these black and white look like 0..1."""
    return 0 < most <= 1 and (span == (0, 255) or (span == (-1, 1) and least >= 0))


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
            self.span = limits(range)
        self.range, self.smallest = range, smallest
        self._name: object = None
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
            path = second if isinstance(second, str | os.PathLike) else None
            return Failure(None if path is None else os.fspath(path), str(error))
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
        low, high = self.span
        least, most = (low + float(v) * (high - low) / 255 for v in (pixels.min(), pixels.max()))
        if suspicious(least, most, self.span):
            warnings.warn(
                f"an image goes from {least:.4g} to {most:.4g} and its range was said to be "
                f"{range_name(self.range)}: if it is 0..1, say so",
                stacklevel=2,
            )
        return pixels

    def _reference(self, image: Any) -> Array:
        """The pixels of the first image: known by its path, else by what is in it."""
        name = image if isinstance(image, str | os.PathLike | bytes) else None
        if name is not None and name == self._name and self._pixels is not None:
            return self._pixels
        pixels = self.pixels(image)
        # an array may be a buffer that was filled anew
        if self._pixels is None or not _same(pixels, self._pixels):
            self._pixels, self._as_float = pixels, None
        self._name = name
        return self._pixels


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def _called(image: object, otherwise: str) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise


def _size(pixels: Array) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
