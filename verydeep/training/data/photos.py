"""Photos to train on, read again in each epoch: rescaled and cropped at random, mirrored, recoloured.

arXiv:1409.1556, section 3.1: the shorter side becomes S, fixed or drawn from a range for each image, and a
crop is taken from anywhere in it. Without S, the crop is of a random area and proportion (Szegedy et al.
2014, arXiv:1409.4842, section 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import decode
from .. import draws
from ..recipes import Config
from . import labelled
from .augment import cover
from .colours import Statistics, colour_shift
from .feed import Batch
from .labelled import Sample
from .mixtures import mixed

Indices = NDArray[np.int64]
PROPORTIONS = (3 / 4, 4 / 3)  # of a crop of random area


class PhotoSource:
    """Photos, read by threads. found: of their colours, for the recipe's colour shift."""

    def __init__(self, samples: Sequence[Sample], config: Config, found: Statistics) -> None:
        self.labels = np.array([s.label for s in samples], np.int64)
        self._samples: Sequence[Sample] | Mapping[int, Sample] = samples
        self._config, self._found = config, found
        self._colour = np.rint(found.mean).clip(0, 255).astype(np.uint8)
        self._pool = ThreadPoolExecutor(config.threads or cores(), thread_name_prefix="photos")

    def batch(self, epoch: int, indices: Indices) -> Batch:
        config = self._config
        images, why = self._seen(epoch, indices)
        others: Indices | None = None
        shares: NDArray[np.float32] | None = None
        shift: NDArray[np.float32] | None = None
        if config.mixup or config.cutmix:

            def partner(of: Indices) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
                pictures, failed = self._seen(epoch, of)
                return pictures, np.array([text is None for text in failed])

            others, shares = mixed(images, indices, self.labels, epoch, config, partner)
        if config.colour:
            shift = colour_shift(
                self._found, indices, seed=config.seed, epoch=epoch, deviation=config.colour
            )
        good = np.array([text is None for text in why])
        bad = [
            (self._samples[i].name, text)
            for i, text in zip(indices, why, strict=True)
            if text is not None
        ]
        return Batch(
            images[good],
            self.labels[indices][good],
            None if others is None else others[good],
            None if shares is None else shares[good],
            None if shift is None else shift[good],
            tuple(bad),
        )

    def _seen(self, epoch: int, indices: Indices) -> tuple[NDArray[np.uint8], list[str | None]]:
        """The images as they look in that epoch, and of each None, or why it could not be read."""
        config, size = self._config, self._config.size
        names = ("scale", "row", "column", "proportion", "flip")
        luck = np.stack([draws.uniform(config.seed, epoch, indices, name) for name in names], 1)
        images = np.zeros((len(indices), size, size, 3), np.uint8)

        def one(at: int) -> str | None:
            try:
                images[at] = _view(self._samples[indices[at]], luck[at], config)
            except (ImageError, OSError) as error:
                return str(error)
            return None

        why = list(self._pool.map(one, range(len(indices))))
        if config.cover:
            cover(
                images, indices, seed=config.seed, epoch=epoch, side=round(config.cover * size),
                colour=self._colour,
            )  # fmt: skip
        return images, why


def _view(sample: Sample, luck: NDArray[np.float64], config: Config) -> NDArray[np.uint8]:
    """(size, size, 3): a crop of the photo, cut and rescaled in one go."""
    photo = decode(labelled.open(sample))
    if isinstance(photo, np.ndarray):  # of more than 8 bits
        photo = Image.fromarray(np.rint(photo).astype(np.uint8))
    box = _box(photo.width, photo.height, luck, config)
    side = (config.size, config.size)
    seen = np.asarray(photo.resize(side, Image.Resampling.BILINEAR, box))
    return seen[:, ::-1] if config.flip and luck[4] < 0.5 else seen


def _box(
    width: int, height: int, luck: NDArray[np.float64], config: Config
) -> tuple[float, float, float, float]:
    """left, top, right, bottom of the crop, in pixels of the photo."""
    if config.scales:
        low, high = config.scales[0], config.scales[-1]
        shorter = low + math.floor(luck[0] * (high - low + 1))
        one = min(width, height) / shorter  # a pixel of the rescaled photo
        wide = high_ = config.size * one
    else:
        narrow, broad = map(math.log, PROPORTIONS)
        proportion = math.exp(narrow + luck[3] * (broad - narrow))
        area = width * height * (config.area + luck[0] * (1 - config.area))
        wide = min(width, math.sqrt(area * proportion))
        high_ = min(height, math.sqrt(area / proportion))
        one = 0.0
    left, top = luck[2] * (width - wide), luck[1] * (height - high_)
    if one:  # whole pixels of the rescaled photo
        left, top = round(left / one) * one, round(top / one) * one
        left, top = min(left, width - wide), min(top, height - high_)
    left, top = max(0.0, left), max(0.0, top)
    return left, top, min(float(width), left + wide), min(float(height), top + high_)
