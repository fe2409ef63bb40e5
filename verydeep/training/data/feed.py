"""Feed the loop: which images make which step, prepared on threads ahead of it.

A step's images are a function of (seed, epoch, step) alone. With several processes each takes every
world-th image of the step, so none is seen twice, and together they see what one process would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .. import draws
from ..recipes import Config
from . import augment
from .mixtures import mixed
from .small import Pictures

AHEAD = 3  # batches ready or being made

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step, of this process. images (n, h, w, 3) uint8 RGB; labels (n,) int64.

    others, shares: with mixup or cutmix, the second label of each image and the part, (n,), that is of
    the first. shift (n, 3) float32: added to every pixel, where the recipe shifts colours.
    bad: (name, why) of images that could not be read and are not here.
    """

    images: NDArray[np.uint8]
    labels: Indices
    others: Indices | None = None
    shares: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None
    bad: tuple[tuple[str, str], ...] = ()


class Source(Protocol):
    """Where images come from."""

    labels: Indices

    def batch(self, epoch: int, indices: Indices) -> Batch:
        """Those images, augmented as in that epoch."""


class MemorySource:
    """Small images in memory, augmented a batch at a time."""

    def __init__(self, held: Pictures, config: Config) -> None:
        self.labels = held.labels
        self._images = np.ascontiguousarray(held.images)
        self._config = config
        self._colour = np.rint(held.images[:: max(1, len(held.images) // 1000)].mean((0, 1, 2)))

    def batch(self, epoch: int, indices: Indices) -> Batch:
        config, labels = self._config, self.labels[indices]
        images = self._augmented(epoch, indices)
        if not config.mixup and not config.cutmix:
            return Batch(images, labels)

        def partner(of: Indices) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            return self._augmented(epoch, of), np.ones(len(of), bool)

        others, shares = mixed(images, indices, self.labels, epoch, config, partner)
        return Batch(images, labels, others, shares)

    def _augmented(self, epoch: int, indices: Indices) -> NDArray[np.uint8]:
        config = self._config
        images = augment.shift_and_flip(
            self._images, indices, seed=config.seed, epoch=epoch,
            padding=round(config.padding * config.size), flip=config.flip,
        )  # fmt: skip
        if config.cover:
            augment.cover(
                images, indices, seed=config.seed, epoch=epoch,
                side=round(config.cover * config.size), colour=self._colour.astype(np.uint8),
            )  # fmt: skip
        return images


class Feed:
    """The batches of each epoch, for this process (`rank`) of `world`."""

    def __init__(self, source: Source, config: Config, rank: int = 0, world: int = 1) -> None:
        self.count = len(source.labels)
        if self.count < world:
            raise DataError(f"{self.count} images to train on, and {world} processes; take fewer")
        if config.batch < world:
            raise DataError(f"batch is {config.batch}, and there are {world} processes")
        # the last images of an epoch that do not fill a batch come first in some other epoch
        self.steps = max(1, self.count // config.batch)
        self._source, self._config = source, config
        self._rank, self._world = rank, world

    def indices(self, epoch: int) -> Indices:
        """The images of an epoch, in order, of all processes."""
        config = self._config
        if config.balance == "sampling":
            return _balanced(self._source.labels, config.seed, epoch)
        return draws.order(config.seed, epoch, self.count)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Its batches from step `first` on."""
        part = self._parts(epoch, first)

        def prepare(step: int) -> Batch:
            return self._source.batch(epoch, part(step))

        yield from _ahead(prepare, range(first, self.steps))

    def _parts(self, epoch: int, first: int) -> Callable[[int], Indices]:  # noqa: ARG002  # streams begin there
        """What gives this process's images of a step; steps are asked for in order from `first` on."""
        order, size = self.indices(epoch), self._config.batch
        return lambda step: order[step * size : (step + 1) * size][self._rank :: self._world]


def _balanced(labels: Indices, seed: int, epoch: int) -> Indices:
    """As many draws as there are images: a class, each as likely, and then one of its images."""
    places = np.arange(len(labels))
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    which = np.floor(draws.uniform(seed, epoch, places, "class") * len(by_class)).astype(np.int64)
    sizes = np.array([len(members) for members in by_class])
    nth = np.floor(draws.uniform(seed, epoch, places, "of class") * sizes[which]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    chosen: Indices = np.concatenate(by_class)[starts[which] + nth]
    return chosen


def _ahead(prepare: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
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
