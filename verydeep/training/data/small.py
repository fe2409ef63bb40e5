"""Small images held in memory, decoded once: a whole data set as one uint8 array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, ImageError
from ...preprocess import Preprocess, decode
from . import labelled
from .labelled import Sample

MOST_BYTES = 8 * 2**30


@dataclass(frozen=True, eq=False)
class Pictures:
    """images (n, size, size, 3) uint8 RGB; samples that they are of; bad: (name, why) of the others.

    detail: the side of the images that they were enlarged from; None where not all were enlarged.
    """

    images: NDArray[np.uint8]
    samples: tuple[Sample, ...]
    bad: tuple[tuple[str, str], ...] = ()
    detail: int | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([s.label for s in self.samples], np.int64)


def pictures(samples: Sequence[Sample], size: int, threads: int = 0) -> Pictures:
    """All of the samples, the shorter side resized to `size` and the middle cropped.

    A sample that cannot be read is left out and told of in `bad`. DataError where they would not fit.
    """
    needed = len(samples) * size * size * 3
    if needed > MOST_BYTES:
        raise DataError(
            f"{len(samples)} images of {size}x{size} need {needed / 2**30:.1f} GiB of memory; "
            "set memory=false to read them again each epoch"
        )
    whole = labelled.stacked(samples)
    if whole is not None and whole.shape[1:3] == (size, size):
        rgb = np.repeat(whole, 3, axis=3) if whole.shape[3] == 1 else whole
        return Pictures(rgb, tuple(samples))
    fit = Preprocess(resize="shorter", resize_size=size, crop_size=size)
    images = np.zeros((len(samples), size, size, 3), np.uint8)
    sides = np.zeros(len(samples), np.int64)  # of the shorter ones
    bad: list[tuple[str, str]] = []
    good = np.ones(len(samples), bool)

    def load(index: int) -> str | None:
        try:
            decoded = decode(labelled.open(samples[index]))
            if isinstance(decoded, np.ndarray):
                sides[index] = min(decoded.shape[:2])
                pixels = fit.pixels(decoded, range=(0, 255))
            else:
                sides[index] = min(decoded.size)
                pixels = fit.pixels(decoded)
        except (ImageError, OSError) as error:
            return str(error)
        images[index] = np.rint(pixels) if pixels.dtype != np.uint8 else pixels
        return None

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for index, why in enumerate(pool.map(load, range(len(samples)))):
            if why is not None:
                good[index] = False
                bad.append((samples[index].name, why))
    kept = tuple(s for s, fine in zip(samples, good, strict=True) if fine)
    if samples and not kept:
        raise DataError(f"not one of {len(samples)} images could be read; the first: {bad[0][1]}")
    largest = int(sides[good].max(initial=0))
    return Pictures(
        images if not bad else images[good], kept, tuple(bad), largest if largest < size else None
    )
