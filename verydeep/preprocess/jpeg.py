"""Large JPEG files decoded by simplejpeg, where it is installed and its pixels are Pillow's, bit for bit.

Both run libjpeg-turbo. Pillow fetches the memory of a large image page by page and has to be fed; from
some eight million pixels on that costs as much as the decoding. Smaller ones Pillow decodes as fast.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

LARGE = 2**23  # pixels, from which on it is worth it
MOST_BYTES = 2**28  # of a file, which is read whole
OLDEST = 2, 1  # libjpeg-turbo, since which what a progressive file lacks is smoothed as it is today


def quickly(image: Image.Image, file: BinaryIO) -> Image.Image:
    """An image that PIL has opened, and not loaded, from `file`: decoded as RGBX, or as it was.

    Left to PIL is all that is not certain to give the same: small images, other colours than YCbCr and
    grey, and files of which libjpeg complains, so that they are refused, or read, as PIL does it.
    """
    from PIL import Image

    if image.format not in ("JPEG", "MPO") or image.width * image.height < LARGE:
        return image
    simplejpeg = _simplejpeg()
    if simplejpeg is None:
        return image
    file.seek(0)
    content = file.read(MOST_BYTES + 1)
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(content)
        if (width, height) != image.size or len(content) > MOST_BYTES:
            return image
        if colours not in ("YCbCr", "Gray") or not _agrees(sampling):
            return image
        pixels = simplejpeg.decode_jpeg(content, "RGBX")
    except (ValueError, KeyError, MemoryError):  # KeyError: a sampling without a name
        return image
    quick = Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1)  # nothing is copied
    quick.info = image.info  # with what turns it
    return quick


@cache
def _simplejpeg() -> ModuleType | None:
    """The module, where it is installed and PIL has a libjpeg-turbo, and no other libjpeg."""
    from PIL import features

    has = features.version("libjpeg_turbo") if features.check("libjpeg_turbo") else None
    if has is None or tuple(map(int, has.split(".")[:2])) < OLDEST:
        return None
    try:
        return import_module("simplejpeg")
    except (ImportError, ValueError):  # ValueError: built for another numpy
        return None


@cache
def _agrees(sampling: str) -> bool:
    """Whether both decode a small file of noise with that sampling of colours to the same pixels."""
    from io import BytesIO

    from PIL import Image

    simplejpeg = import_module("simplejpeg")
    noise = np.random.default_rng(0).integers(0, 256, (67, 83, 3), np.uint8)
    content = simplejpeg.encode_jpeg(noise, colorsubsampling=sampling)
    ours = simplejpeg.decode_jpeg(content, "RGB")
    return np.array_equal(ours, np.asarray(Image.open(BytesIO(content)).convert("RGB")))
