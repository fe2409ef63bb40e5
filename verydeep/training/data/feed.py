"""Feed the loop: which images make which step, prepared on threads ahead of it.

A step's images are a function of (seed, epoch, step) alone, and each image is seen once an epoch. With
several processes each takes every world-th image of the step, so none is seen twice, and together they see
what one process would; mixtures alone differ, since each process mixes its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from random import Random

import numpy as np

from ...datasets.shards import of_shards, read
from ...errors import DataError
from .. import draws
from ..recipes import Config
from .source import Batch, Indices, Labels, Source

AHEAD = 3  # batches ready or being made
BUFFER = 1000  # streamed files that wait to be drawn: some 100 MB of photos


class Feed:
    """The batches of each epoch, for this process (`rank`) of `world`.

    An epoch's last batch has what is left; a single image that is left joins the batch before it. A process
    gets at least two images of a step, or none, since batch norm can make nothing of one value.

    Of shards that are streamed each process has its own: an epoch deals them out by its seed, and what
    comes of them is drawn from a buffer. All take as many steps as the one could that was dealt the
    smallest. A run that is resumed within an epoch goes on where its shard begins: what was seen of that
    shard is seen again, and as much at the epoch's end is not.
    """

    def __init__(self, source: Source, config: Config, rank: int = 0, world: int = 1) -> None:
        self.count, self._shards = len(source.labels), of_shards(source.samples)
        there, what = (len(self._shards), "shards") if self._shards else (self.count, "images")
        if there < world:
            raise DataError(
                f"{there} {what} to train on, and {world} processes; take fewer processes, or more {what}"
            )
        if config.batch < world:
            raise DataError(f"batch is {config.batch}, and there are {world} processes")
        self._source, self._config = source, config
        self._rank, self._world = rank, world
        least, batch = self.count, config.batch
        if self._shards:
            batch = -(-batch // world)
            least = sum(sorted(map(len, self._shards))[: there // world])
        self.steps = steps(least, batch)
        self._more = max(0, least - self.steps * batch)  # a single image, or none

    def indices(self, epoch: int) -> Indices:
        """The images of an epoch, in order, of all processes.

        One that comes again, of a class that is rare, has a number of its own, as often above `count` as it
        came before, so that it is shown in another way.
        """
        config = self._config
        if config.balance == "sampling":
            return _balanced(self._source.labels, config.seed, epoch)
        return draws.order(config.seed, epoch, self.count)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Its batches from step `first` on."""
        if self._shards:
            yield from self._streamed(epoch, first)
            return
        order, size = self.indices(epoch), self._config.batch

        def prepare(step: int) -> Batch:
            end = self.count if step == self.steps - 1 else (step + 1) * size
            return self._source.batch(epoch, self._share(order[step * size : end]))

        yield from ahead(prepare, range(first, self.steps))

    def _share(self, indices: Indices) -> Indices:
        """Of a step's images those of this process."""
        takers = max(1, min(self._world, len(indices) // 2))
        return indices[self._rank :: takers] if self._rank < takers else indices[:0]

    def _streamed(self, epoch: int, first: int) -> Iterator[Batch]:
        from webdataset.filters import shuffle

        seed, size = self._config.seed, len(range(self._rank, self._config.batch, self._world))
        order = draws.order(seed, epoch, len(self._shards))[self._rank :: self._world]
        shards, done = [self._shards[at] for at in order], first * size
        while shards and done >= len(shards[0]):
            done -= len(shards.pop(0))
        with closing(read(self._source.samples, shards)) as coming:
            drawn = shuffle(BUFFER, initial=BUFFER, rng=Random(f"{seed} {epoch}"))(coming)

            def prepare(step: int) -> Batch:
                some = dict(islice(drawn, size + self._more * (step == self.steps - 1)))
                self._source.brought = some
                return self._source.batch(epoch, np.array(list(some), np.int64))

            yield from ahead(prepare, range(first, self.steps))


def steps(count: int, batch: int) -> int:
    """Batches in which `count` images are seen: the last may be smaller, or larger by a single image."""
    return max(1, -(-count // batch) - (batch > 1 and count % batch == 1))


def _balanced(labels: Labels, seed: int, epoch: int) -> Indices:
    """As many draws as there are images: a class, each as likely, and then one of its images.

    Where an image may have several labels, those that have none are one more class.
    """
    if labels.ndim == 1:
        chance = 1 / np.bincount(labels)[labels]
    else:
        labels = np.hstack([labels, ~labels.any(1, keepdims=True)])
        chance = (labels / labels.sum(0).clip(1)).sum(1, dtype=np.float64)
    count, draw = len(labels), np.random.default_rng([seed, epoch])
    drawn = draw.choice(count, count, p=chance / chance.sum())
    at = np.argsort(drawn, kind="stable")
    before = np.empty(count, np.int64)  # how often each draw's image was drawn before it
    before[at] = np.arange(count) - np.searchsorted(drawn[at], drawn[at])
    return drawn + count * before


def ahead(prepare: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """prepare(step) for each, made on a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(prepare, step))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
