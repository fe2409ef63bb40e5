"""Photos streamed from shards: each process reads its own, once an epoch, and keeps a buffer's worth.

The order of an epoch follows from the listing, the seed and the epoch alone: shards are shuffled and dealt
out, and their images drawn from a buffer that moves along them. The stream only brings the bytes, in the
order in which they lie in the shards, so that a run that is resumed opens no shard that it has done with.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ...engines.processor import cores
from ...errors import DataError
from .. import draws
from ..recipes import Config
from .colours import Statistics
from .feed import Batch, Feed
from .labelled import Sample
from .listing import Streamed
from .photos import PhotoSource
from .shards import entries, forget
from .views import BATCH, Views

Indices = NDArray[np.int64]
BUFFER = 1000  # files that wait to be drawn: some 100 MB of photos
FEW_SHARDS = 16


def streamed(samples: Sequence[Sample]) -> bool:
    """Whether these are images of shards that must be streamed."""
    return bool(samples) and isinstance(samples[0].source, Streamed)


def few(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """About `count` samples at the beginning of some shards, to be read without streaming all of them."""
    shards = _by_shard(samples)
    chosen = [shards[at] for at in draws.order(seed, 0, len(shards))[:FEW_SHARDS]]
    return [samples[n] for shard in chosen for n in shard[: -(-count // len(chosen))]]


class StreamSource(PhotoSource):
    """Photos as a stream brings them; `begin` says which are coming, and batches are asked for in order."""

    def __init__(self, samples: Sequence[Sample], config: Config, found: Statistics) -> None:
        super().__init__(samples, config, found)
        self.shards = _by_shard(samples)
        self._listed = samples
        self._coming = _read(samples, ())
        self._waiting: dict[int, Sample] = {}

    def begin(self, shards: Iterable[Indices]) -> None:
        """Stream those images of each shard, and no others."""
        self.close()
        self._coming, self._waiting = _read(self._listed, shards), {}

    def batch(self, epoch: int, indices: Indices) -> Batch:
        for number in indices.tolist():
            while number not in self._waiting:
                at, sample = next(self._coming)
                self._waiting[at] = sample
        self._samples = {number: self._waiting.pop(number) for number in indices.tolist()}
        return super().batch(epoch, indices)

    def close(self) -> None:
        """Hang up."""
        self._coming.close()


class StreamFeed(Feed):
    """The steps of one process, from its own shards: no image is seen twice, whatever the others do.

    All processes take as many steps as the one could that was dealt the smallest shards.
    """

    def __init__(self, source: StreamSource, config: Config, rank: int = 0, world: int = 1) -> None:
        super().__init__(source, config, rank, world)
        count = len(source.shards)
        if count < world:
            raise DataError(
                f"{count} shards to train on, and {world} processes, of which each streams its own; take "
                "fewer processes, or more and smaller shards"
            )
        self._stream = source
        self._size = len(range(rank, config.batch, world))
        least = sum(sorted(map(len, source.shards))[: count // world])
        self.steps = max(1, least // -(-config.batch // world))

    def indices(self, epoch: int) -> Indices:
        """The images of an epoch, in order, of this process."""
        row = np.concatenate([self._stream.shards[at] for at in self._dealt(epoch)])
        luck = draws.uniform(self._config.seed, epoch, row, "buffer")
        slots = np.floor(luck * BUFFER).astype(np.int64)
        held, drawn = row[:BUFFER].copy(), row[BUFFER:].copy()
        for at, slot in enumerate(slots[BUFFER:].tolist()):
            drawn[at], held[slot] = held[slot], drawn[at]
        rest = held[np.argsort(draws.bits(self._config.seed, epoch, held, "order"), kind="stable")]
        return np.concatenate([drawn, rest])[: self.steps * self._size]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        try:
            yield from super().epoch(epoch, first)
        finally:
            self._stream.close()

    def _parts(self, epoch: int, first: int) -> Callable[[int], Indices]:
        order, size = self.indices(epoch), self._size
        wanted = order[first * size :]
        shards = (self._stream.shards[at] for at in self._dealt(epoch))
        self._stream.begin(shard[np.isin(shard, wanted)] for shard in shards)
        return lambda step: order[step * size : (step + 1) * size]

    def _dealt(self, epoch: int) -> Indices:
        order = draws.order(self._config.seed, epoch, len(self._stream.shards))
        return order[self._rank :: self._world]


class StreamViews(Views):
    """Images to validate with, streamed; each process takes every world-th shard."""

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[tuple[Indices, NDArray[np.uint8]]]:
        mine = _by_shard(self.samples)[rank::world]
        with (
            closing(_read(self.samples, mine)) as coming,
            ThreadPoolExecutor(self._threads or cores()) as pool,
        ):
            while some := list(islice(coming, BATCH)):
                numbers = np.array([number for number, _ in some], np.int64)
                yield from self._decoded(pool, numbers, [sample for _, sample in some])


def _by_shard(samples: Sequence[Sample]) -> list[Indices]:
    """The numbers of the samples of each shard, in the shard's order."""
    found: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        assert isinstance(sample.source, Streamed)
        found.setdefault(sample.source.shard, []).append(number)
    return [np.array(numbers, np.int64) for numbers in found.values()]


def _read(
    samples: Sequence[Sample], shards: Iterable[Indices]
) -> Generator[tuple[int, Sample], None, None]:
    """Those samples, shard after shard, each with its number, and with the bytes of its file as source."""
    for numbers in shards:
        wanted: dict[tuple[str, int], int] = {}
        shard = ""
        for number in numbers.tolist():
            source = samples[number].source
            assert isinstance(source, Streamed)
            shard, wanted[source.name, source.size_bytes] = source.shard, number
        if not wanted:  # nothing is opened for nothing
            continue
        with closing(entries(shard)) as coming:
            for entry, content in coming:
                at = wanted.pop((entry.name, entry.size_bytes), None)
                if at is not None:
                    yield at, replace(samples[at], source=content)
                if not wanted:
                    break
        if wanted:
            forget(shard)
            raise DataError(
                f"{shard}: {next(iter(wanted))[0]} is not there as it was when the shard was listed; the "
                "next run lists it anew"
            )
