"""Images to learn from, as they are shown in an epoch: cropped or shifted at random, mirrored, recoloured.

Photos are read again each time. arXiv:1409.1556, section 3.1: the shorter side becomes S, fixed or drawn
from a range for each image, and a crop is taken from anywhere in it. Without S, the crop is of a random
area and proportion (Szegedy et al. 2014, arXiv:1409.4842, section 6). A JPEG of which a crop needs only
every second pixel or fewer is decoded at a half, a quarter or an eighth of its size, which is sooner done.
Small images lie decoded in memory, and are shifted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets import labelled
from ...datasets.labelled import Sample, targets
from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import decode
from .. import draws
from ..recipes import Config
from . import augment
from .augment import Luck, Numbers, Pixels
from .colours import Statistics, colour_shift

PROPORTIONS = (3 / 4, 4 / 3)  # of a crop of random area

Indices = NDArray[np.int64]
Labels = NDArray[Any]  # (n,) int64, or (n, classes) float32 0 or 1 where an image may have several
Marks = NDArray[np.bool_]
Seen = tuple[Pixels, dict[int, str]]  # (n, size, size, 3); which are unreadable, and why


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
    held: the samples' pixels (n, size, size, 3), where they are in memory; None for photos, which threads
    read. brought: those of the samples that a stream has brought, by number, with the bytes of their files.
    """

    def __init__(
        self, samples: Sequence[Sample], config: Config, found: Statistics, classes: int = 0,
        held: Pixels | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.config = samples, config
        self.labels: Labels = targets(samples, classes)
        self.brought: dict[int, Sample] = {}
        self._found, self._mean = found, np.rint(found.mean).clip(0, 255).astype(np.uint8)
        self._held = held
        self._pool = ThreadPoolExecutor(config.threads or cores(), thread_name_prefix="photos")

    def batch(self, epoch: int, indices: Indices) -> Batch:
        """Those images, augmented as in that epoch; above their count, the same images in another way."""
        config, draw = self.config, partial(draws.uniform, self.config.seed, epoch)
        # what is mirrored in one epoch is not in the next, so that any two show both sides (Jordan 2024,
        # arXiv:2404.00498, section 3.6)
        side = draws.uniform(config.seed, 0, indices, "flip") < 0.5
        mirrored = (side ^ bool(epoch % 2)) & config.flip
        seen = self._cropped if self._held is None else self._shifted
        numbers, indices = indices, indices % len(self.samples)
        images, why = seen(indices, partial(draw, numbers), mirrored)
        bad = tuple((self.samples[indices[at]].name, text) for at, text in why.items())
        if bad:
            good = [at for at in range(len(indices)) if at not in why]
            images, indices, numbers = images[good], indices[good], numbers[good]
        luck, labels = partial(draw, numbers), self.labels[indices]
        others = shares = shift = None
        if config.cover:
            augment.cover(images, luck, round(config.cover * config.size), self._mean)
        if config.mixup or config.cutmix:
            shares = augment.mix(images, luck, config.mixup, config.cutmix)
            others = np.roll(labels, -1, axis=0)
        if config.colour:
            shift = colour_shift(self._found, luck, config.colour)
        return Batch(images, labels, others, shares, shift, bad)

    def _shifted(self, indices: Indices, luck: Luck, mirrored: Marks) -> Seen:
        """Of images in memory."""
        assert self._held is not None
        config = self.config
        padding = round(config.padding * config.size)
        images = augment.shifted(self._held[indices], luck, padding, mirrored)
        if config.jitter:
            for image, times in zip(images, augment.jitter(luck, config.jitter), strict=True):
                image[:] = np.asarray(augment.recoloured(Image.fromarray(image), times))
        return images, {}

    def _cropped(self, indices: Indices, luck: Luck, mirrored: Marks) -> Seen:
        """Of photos, read by threads."""
        config, size = self.config, self.config.size
        lucks = np.stack([luck(name) for name in ("scale", "proportion", "row", "column")], 1)
        times = augment.jitter(luck, config.jitter)
        images = np.zeros((len(indices), size, size, 3), np.uint8)

        def one(at: int) -> str | None:
            index = int(indices[at])
            try:
                crop = _crop(self.brought.get(index, self.samples[index]), lucks[at], config)
            except (ImageError, OSError) as error:
                return str(error)
            crop = augment.recoloured(crop, times[at]) if config.jitter else crop
            if mirrored[at]:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images[at] = np.asarray(crop)
            return None

        why = enumerate(self._pool.map(one, range(len(indices))))
        return images, {at: text for at, text in why if text is not None}


def _crop(sample: Sample, luck: Numbers, config: Config) -> Image.Image:
    """A crop of the photo, cut and rescaled in one go. luck (4,): for scale, proportion, row, column."""

    def sides(width: int, height: int) -> tuple[float, float]:
        """Width and height of the crop, in pixels of a photo of that size."""
        if config.scales:
            low, high = config.scales[0], config.scales[-1]
            shorter = low + math.floor(luck[0] * (high - low + 1))
            return (config.size * min(width, height) / shorter,) * 2
        narrow, broad = map(math.log, PROPORTIONS)
        proportion = math.exp(narrow + luck[1] * (broad - narrow))
        area = width * height * (config.area + luck[0] * (1 - config.area))
        return min(width, math.sqrt(area * proportion)), min(height, math.sqrt(area / proportion))

    photo = decode(labelled.open(sample), spare=lambda *size: min(sides(*size)) / config.size)
    if isinstance(photo, np.ndarray):  # of more than 8 bits
        photo = Image.fromarray(np.rint(photo).astype(np.uint8))
    wide, high = sides(*photo.size)
    left, top = luck[3] * (photo.width - wide), luck[2] * (photo.height - high)
    if config.scales:  # whole pixels of the rescaled photo
        one = wide / config.size
        left, top = round(left / one) * one, round(top / one) * one
    box = (left, top, min(photo.width, left + wide), min(photo.height, top + high))
    return photo.resize((config.size, config.size), Image.Resampling.BILINEAR, box)
