"""Images to validate with, as the model file will see them: one view each, in batches, read by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import Preprocess
from . import labelled
from .labelled import Sample

BATCH = 128


class Views:
    """The samples under one pre-processing. bad: (name, why) of those that could not be read, so far."""

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        *,
        held: NDArray[np.uint8] | None = None,
        threads: int = 0,
    ) -> None:
        """held: the pixels (n, size, size, 3), where they lie in memory."""
        self.samples = tuple(samples)
        self.labels = np.array([s.label for s in samples], np.int64)
        self.bad: dict[str, str] = {}
        self._preprocess, self._held, self._threads = preprocess, held, threads

    def batches(
        self, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """(numbers of the samples, their pixels (n, size, size, 3)), every world-th sample from `rank`."""
        mine = np.arange(rank, len(self.samples), world)
        if self._held is not None:
            for at in range(0, len(mine), BATCH):
                yield mine[at : at + BATCH], self._held[mine[at : at + BATCH]]
            return
        with ThreadPoolExecutor(self._threads or cores()) as pool:
            for at in range(0, len(mine), BATCH):
                numbers = mine[at : at + BATCH]
                yield from self._decoded(pool, numbers, [self.samples[n] for n in numbers])

    def _decoded(
        self, pool: ThreadPoolExecutor, numbers: NDArray[np.int64], samples: Sequence[Sample]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Those samples, which have those numbers, as one batch without the bad ones; none of none."""
        seen = list(pool.map(self._seen, samples))
        good = [i for i, one in enumerate(seen) if isinstance(one, np.ndarray)]
        if good:
            yield numbers[good], np.stack([seen[i] for i in good])  # type: ignore[misc]

    def _seen(self, sample: Sample) -> NDArray[np.uint8] | None:
        try:
            return pixels(sample, self._preprocess)
        except (ImageError, OSError) as error:
            self.bad[sample.name] = str(error)
            return None


def pixels(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(h, w, 3) uint8; ImageError or OSError where the sample cannot be read."""
    found = preprocess.pixels(labelled.open(sample))
    if found.shape[2] == 1:
        found = np.repeat(found, 3, axis=2)
    return found if found.dtype == np.uint8 else np.rint(found).astype(np.uint8)
