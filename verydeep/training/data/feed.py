"""Feed the loop: which images make which step, prepared on threads ahead of it.

A step's images are a function of (seed, epoch, step) alone, and each image is seen once an epoch. With
several processes each takes every world-th image of the step, so none is seen twice, and together they see
what one process would; mixtures alone differ, since each process mixes its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets.labelled import Sample, targets
from ...datasets.shards import of_shards, read
from ...errors import DataError
from .. import draws
from ..recipes import Config
from . import augment
from .augment import Luck
from .colours import Statistics, colour_shift, statistics
from .views import Views

AHEAD = 3  # batches ready or being made
BUFFER = 1000  # streamed files that wait to be drawn: some 100 MB of photos
MEASURED = 1000  # images in memory whose colours are measured

Indices = NDArray[np.int64]
Labels = NDArray[Any]  # (n,) int64, or (n, classes) float32 0 or 1 where an image may have several
Marks = NDArray[np.bool_]
Seen = tuple[NDArray[np.uint8], dict[int, str]]  # (n, size, size, 3); which are unreadable, and why


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step, of this process. images (n, h, w, 3) uint8 RGB; labels (n,) int64.

    Of a set with several labels an image, labels are (n, classes) float32, 0 or 1.
    others, shares: with mixup or cutmix, the second label of each image, in the same form, and the part,
    (n,), that is of the first. shift (n, 3) float32: added to every pixel, where the recipe shifts colours.
    bad: (name, why) of images that could not be read and are not here. n may be 0.
    """

    images: NDArray[np.uint8]
    labels: Labels
    others: Labels | None = None
    shares: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None
    bad: tuple[tuple[str, str], ...] = ()


class Source:
    """Labelled images, augmented as the config says. found: of their colours.

    classes: how many, which samples with several labels need. labels: (n,), or for those (n, classes).
    brought: those of the samples that a stream has brought, by number, with the bytes of their files.
    """

    def __init__(
        self, samples: Sequence[Sample], config: Config, found: Statistics, classes: int = 0
    ) -> None:
        self.samples, self.config = samples, config
        self.labels: Labels = targets(samples, classes)
        self.brought: dict[int, Sample] = {}
        self._found, self._mean = found, np.rint(found.mean).clip(0, 255).astype(np.uint8)

    def seen(self, indices: Indices, luck: Luck, mirrored: Marks) -> Seen:
        """Images as they look each by itself."""
        raise NotImplementedError

    def batch(self, epoch: int, indices: Indices) -> Batch:
        """Those images, augmented as in that epoch."""
        config, draw = self.config, partial(draws.uniform, self.config.seed, epoch)
        # what is mirrored in one epoch is not in the next, so that any two show both sides (Jordan 2024,
        # arXiv:2404.00498, section 3.6)
        side = draws.uniform(config.seed, 0, indices, "flip") < 0.5
        mirrored = (side ^ bool(epoch % 2)) & config.flip
        images, why = self.seen(indices, partial(draw, indices), mirrored)
        bad = tuple((self.samples[indices[at]].name, text) for at, text in why.items())
        if bad:
            good = [at for at in range(len(indices)) if at not in why]
            images, indices = images[good], indices[good]
        luck, labels = partial(draw, indices), self.labels[indices]
        others = shares = shift = None
        if config.cover:
            augment.cover(images, luck, round(config.cover * config.size), self._mean)
        if config.mixup or config.cutmix:
            shares = augment.mix(images, luck, config.mixup, config.cutmix)
            others = np.roll(labels, -1, axis=0)
        if config.colour:
            shift = colour_shift(self._found, luck, config.colour)
        return Batch(images, labels, others, shares, shift, bad)


class MemorySource(Source):
    """Small images in memory, shifted and flipped."""

    def __init__(self, held: Views, config: Config, classes: int = 0) -> None:
        assert held.images is not None
        self._images = held.images
        found = statistics([held.images[:: max(1, len(held.images) // MEASURED)]])
        super().__init__(held.samples, config, found, classes)

    def seen(self, indices: Indices, luck: Luck, mirrored: Marks) -> Seen:
        config = self.config
        padding = round(config.padding * config.size)
        images = augment.shifted(self._images[indices], luck, padding, mirrored)
        if config.jitter:
            for image, times in zip(images, augment.jitter(luck, config.jitter), strict=True):
                image[:] = np.asarray(augment.recoloured(Image.fromarray(image), times))
        return images, {}


class Feed:
    """The batches of each epoch, for this process (`rank`) of `world`.

    An epoch's last batch has what is left; a single image that is left joins the batch before it. A process
    gets at least two images of a step, or none, since batch norm can make nothing of one value.
    """

    def __init__(self, source: Source, config: Config, rank: int = 0, world: int = 1) -> None:
        self.count = len(source.labels)
        if self.count < world:
            raise DataError(f"{self.count} images to train on, and {world} processes; take fewer")
        if config.batch < world:
            raise DataError(f"batch is {config.batch}, and there are {world} processes")
        self.steps = steps(self.count, config.batch)
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
        order, size = self.indices(epoch), self._config.batch

        def prepare(step: int) -> Batch:
            end = self.count if step == self.steps - 1 else (step + 1) * size
            return self._source.batch(epoch, self._share(order[step * size : end]))

        yield from ahead(prepare, range(first, self.steps))

    def _share(self, indices: Indices) -> Indices:
        """Of a step's images those of this process."""
        takers = max(1, min(self._world, len(indices) // 2))
        return indices[self._rank :: takers] if self._rank < takers else indices[:0]


class StreamFeed(Feed):
    """The steps of one process, streamed from its own shards: no image is seen twice, whatever others do.

    An epoch deals the shards out by its seed, and what comes of them is drawn from a buffer. All processes
    take as many steps as the one could that was dealt the smallest shards. A run that is resumed within an
    epoch goes on where its shard begins: what was seen of that shard is seen again, and as much at the
    epoch's end is not.
    """

    def __init__(self, source: Source, config: Config, rank: int = 0, world: int = 1) -> None:
        super().__init__(source, config, rank, world)
        self._shards = of_shards(source.samples)
        count, largest = len(self._shards), -(-config.batch // world)
        if count < world:
            raise DataError(
                f"{count} shards to train on, and {world} processes, of which each streams its own; take "
                "fewer processes, or more and smaller shards"
            )
        self._size = len(range(rank, config.batch, world))
        least = sum(sorted(map(len, self._shards))[: count // world])
        self.steps = steps(least, largest)
        self._more = max(0, least - self.steps * largest)  # a single image, or none

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        from webdataset.filters import shuffle

        seed, size = self._config.seed, self._size
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
    """As many draws as there are images: a class, each as likely, and then one of its images."""
    if labels.ndim == 1:
        chance = 1 / np.bincount(labels)[labels]
    else:
        chance = (labels / labels.sum(0).clip(1)).sum(1, dtype=np.float64)
    draw = np.random.default_rng([seed, epoch])
    return draw.choice(len(labels), len(labels), p=chance / chance.sum())


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
