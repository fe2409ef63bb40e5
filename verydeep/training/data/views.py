"""Images as the model file will see them: one view each, read by threads, in batches or into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ...datasets import labelled
from ...datasets.labelled import Sample
from ...datasets.shards import of_shards, read
from ...engines.processor import cores
from ...errors import DataError, ImageError
from ...files.progress import stage
from ...preprocess import Preprocess, decode

BATCH = 128
MOST_BYTES = 8 * 2**30  # that `pictures` may take


class Views:
    """The samples under one pre-processing.

    bad: why those could not be read that could not, so far, by name. sides: the shorter one of each photo
    that was read. images: the pixels (n, h, w, 3) uint8, where they are in memory, and `detail` there
    the side that all of them were enlarged from; None where not all were.
    """

    def __init__(
        self, samples: Sequence[Sample], preprocess: Preprocess, *, threads: int = 0
    ) -> None:
        self.samples = tuple(samples)
        self.bad: dict[str, str] = {}
        self.images: NDArray[np.uint8] | None = None
        self.detail: int | None = None
        self.sides: list[int] = []
        self._preprocess, self._threads = preprocess, threads

    def batches(
        self, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """(numbers of samples, their pixels (n, h, w, 3)); of `world` processes that of this `rank`.

        Each takes every world-th sample, or, where they are streamed, every world-th shard.
        """
        if self.images is not None:
            mine = np.arange(rank, len(self.samples), world)
            for at in range(0, len(mine), BATCH):
                yield mine[at : at + BATCH], self.images[mine[at : at + BATCH]]
            return
        shards = of_shards(self.samples)
        every = islice(enumerate(self.samples), rank, None, world)
        coming = read(self.samples, shards[rank::world]) if shards else every
        with ThreadPoolExecutor(self._threads or cores()) as pool:
            while some := list(islice(coming, BATCH)):
                seen = pool.map(self._seen, (sample for _, sample in some))
                good = {n: one for (n, _), one in zip(some, seen, strict=True) if one is not None}
                if good:
                    yield np.array(list(good)), np.stack(list(good.values()))

    def _seen(self, sample: Sample) -> NDArray[np.uint8] | None:
        try:
            photo = decode(labelled.open(sample))
            wide = isinstance(photo, np.ndarray)  # of more than 8 bits
            pixels = self._preprocess.pixels(photo, range=(0, 255) if wide else None)
        except (ImageError, OSError) as error:
            self.bad[sample.name] = str(error)
            return None
        self.sides.append(min(photo.shape[:2] if isinstance(photo, np.ndarray) else photo.size))
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        return pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)


def pictures(samples: Sequence[Sample], preprocess: Preprocess, threads: int = 0) -> Views:
    """All of the samples in memory, under that pre-processing, whose images are all of one size.

    Those that cannot be read are left out, and in `bad`. DataError where they would not fit.
    """
    assert preprocess.sides is not None
    height, width = preprocess.sides
    needed = len(samples) * height * width * 3
    if needed > MOST_BYTES:
        raise DataError(
            f"{len(samples)} images of {width}x{height} need {needed / 2**30:.1f} GiB of memory; "
            "set memory=false to read them again each epoch"
        )
    views = Views(samples, preprocess, threads=threads)
    images, good = np.zeros((len(samples), height, width, 3), np.uint8), []
    whole = stage(views.batches(), "reading images", "batch", -(-len(samples) // BATCH))
    for numbers, pixels in whole:
        images[numbers] = pixels
        good += numbers.tolist()
    if len(good) < len(samples):
        images = images[good]
        views.samples = tuple(samples[at] for at in good)
    views.images, least, largest = images, min(height, width), max(views.sides, default=0)
    views.detail = largest if 0 < largest < least else None
    return views
