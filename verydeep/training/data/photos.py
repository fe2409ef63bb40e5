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
from PIL import Image

from ...datasets import labelled
from ...datasets.labelled import Sample
from ...engines.processor import cores
from ...errors import ImageError
from ...preprocess import decode
from ..recipes import Config
from . import augment
from .augment import Luck, Numbers
from .colours import Statistics
from .feed import Indices, Marks, Seen, Source

PROPORTIONS = (3 / 4, 4 / 3)  # of a crop of random area


class PhotoSource(Source):
    """Photos, read by threads."""

    def __init__(
        self, samples: Sequence[Sample], config: Config, found: Statistics, classes: int = 0
    ) -> None:
        super().__init__(samples, config, found, classes)
        self._pool = ThreadPoolExecutor(config.threads or cores(), thread_name_prefix="photos")

    def seen(self, indices: Indices, luck: Luck, mirrored: Marks) -> Seen:
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
