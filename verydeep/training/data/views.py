"""Images to validate with, as the model file will see them: one view each, in batches, read by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import Preprocess, decode
from . import labelled
from .labelled import Sample
from .shards import of_shards, read

BATCH = 128

Numbers = NDArray[np.int64]


class Views:
    """The samples under one pre-processing. bad: (name, why) of those that could not be read, so far.

    held: the pixels (n, size, size, 3), where they lie in memory. labels: those of the samples, if not
    given. sides: the shorter side, in pixels, of each photo that was read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        *,
        held: NDArray[np.uint8] | None = None,
        threads: int = 0,
        labels: NDArray[Any] | None = None,
    ) -> None:
        self.samples = tuple(samples)
        single = np.array([s.label for s in samples], np.int64)
        self.labels = single if labels is None else labels
        self.bad: dict[str, str] = {}
        self.sides: list[int] = []
        self._preprocess, self._held, self._threads = preprocess, held, threads

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[tuple[Numbers, NDArray[np.uint8]]]:
        """(numbers of samples, their pixels (n, size, size, 3)); of `world` processes that of this `rank`.

        Each takes every world-th sample, or, where they are streamed, every world-th shard.
        """
        if self._held is not None:
            mine = np.arange(rank, len(self.samples), world)
            for at in range(0, len(mine), BATCH):
                yield mine[at : at + BATCH], self._held[mine[at : at + BATCH]]
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
