"""Photos to train on, read again in each epoch: rescaled and cropped at random, mirrored, recoloured.

arXiv:1409.1556, section 3.1: the shorter side becomes S, fixed or drawn from a range for each image, and a
crop is taken from anywhere in it. Without S, the crop is of a random area and proportion (Szegedy et al.
2014, arXiv:1409.4842, section 6). A JPEG of which a crop needs only every second pixel or fewer is decoded
at a half, a quarter or an eighth of its size, which is sooner done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import decode
from .. import draws
from ..recipes import Config
from . import augment, labelled
from .colours import Statistics
from .feed import Indices, Labels, Seen, Source
from .labelled import Sample

PROPORTIONS = (3 / 4, 4 / 3)  # of a crop of random area

Numbers = NDArray[np.float64]


class PhotoSource(Source):
    """Photos, read by threads."""

    def __init__(
        self, samples: Sequence[Sample], config: Config, found: Statistics,
        labels: Labels | None = None,
    ) -> None:  # fmt: skip
        super().__init__(samples, config, found, labels)
        self._pool = ThreadPoolExecutor(config.threads or cores(), thread_name_prefix="photos")

    def seen(self, epoch: int, indices: Indices) -> Seen:
        config, size = self.config, self.config.size
        names = ("scale", "row", "column", "proportion", "flip")
        luck = np.stack([draws.uniform(config.seed, epoch, indices, name) for name in names], 1)
        times = augment.jitter(indices, seed=config.seed, epoch=epoch, most=config.jitter)
        images = np.zeros((len(indices), size, size, 3), np.uint8)

        def one(at: int) -> str | None:
            index = int(indices[at])
            try:
                photo = _crop(self.brought.get(index, self.samples[index]), luck[at], config)
            except (ImageError, OSError) as error:
                return str(error)
            images[at] = np.asarray(
                augment.recoloured(photo, times[at]) if config.jitter else photo
            )
            return None

        return images, list(self._pool.map(one, range(len(indices))))


def _crop(sample: Sample, luck: Numbers, config: Config) -> Image.Image:
    """A crop of the photo, cut and rescaled in one go, perhaps mirrored."""

    def spare(width: int, height: int) -> float:
        wide, high = _sides(width, height, luck, config)
        return min(wide, high) / config.size

    photo = decode(labelled.open(sample), spare=spare)
    if isinstance(photo, np.ndarray):  # of more than 8 bits
        photo = Image.fromarray(np.rint(photo).astype(np.uint8))
    wide, high = _sides(photo.width, photo.height, luck, config)
    left, top = luck[2] * (photo.width - wide), luck[1] * (photo.height - high)
    if config.scales:  # whole pixels of the rescaled photo
        one = wide / config.size
        left, top = round(left / one) * one, round(top / one) * one
    box = (left, top, min(photo.width, left + wide), min(photo.height, top + high))
    crop = photo.resize((config.size, config.size), Image.Resampling.BILINEAR, box)
    mirrored = config.flip and luck[4] < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def _sides(width: int, height: int, luck: Numbers, config: Config) -> tuple[float, float]:
    """Width and height of the crop, in pixels of the photo."""
    if config.scales:
        low, high = config.scales[0], config.scales[-1]
        shorter = low + math.floor(luck[0] * (high - low + 1))
        side = config.size * min(width, height) / shorter
        return side, side
    narrow, broad = map(math.log, PROPORTIONS)
    proportion = math.exp(narrow + luck[3] * (broad - narrow))
    area = width * height * (config.area + luck[0] * (1 - config.area))
    return min(width, math.sqrt(area * proportion)), min(height, math.sqrt(area / proportion))
