"""Small images held in memory, decoded once: a whole data set as one uint8 array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...preprocess import Preprocess
from . import labelled
from .labelled import Sample
from .views import Views

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
    views = Views(samples, fit, threads=threads)
    images = np.zeros((len(samples), size, size, 3), np.uint8)
    good: list[int] = []
    for numbers, pixels in views.batches():
        images[numbers] = pixels
        good += numbers.tolist()
    bad = tuple(sorted(views.bad.items()))  # threads read them in any order
    if samples and not good:
        raise DataError(f"not one of {len(samples)} images could be read; the first: {bad[0][1]}")
    largest = max(views.sides, default=0)
    return Pictures(
        images if len(good) == len(samples) else images[good],
        tuple(samples[at] for at in good), bad, largest if 0 < largest < size else None,
    )  # fmt: skip
