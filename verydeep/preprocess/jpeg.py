"""JPEG files decoded by simplejpeg, where it is installed and its pixels are Pillow's, bit for bit.

Both run libjpeg-turbo, and decode about as fast. But Pillow keeps four bytes a pixel, and an array of its
image is three copies more, which take twice as long as the decoding; simplejpeg decodes into the array.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 2**28  # of a file, which is read whole
OLDEST = 2, 1  # libjpeg-turbo, since which what a progressive file lacks is smoothed as it is today


def array(image: Image.Image, file: BinaryIO) -> NDArray[np.uint8] | None:
    """(height, width, 3) of an image that PIL has opened, and not loaded, from `file`; not turned yet.

    None is for PIL to decode, which is all that is not certain to be the same: other colours than YCbCr
    and grey, and files of which libjpeg complains, so that they are refused, or read, as PIL does it.
    """
    simplejpeg = _simplejpeg() if image.format in ("JPEG", "MPO") else None
    if simplejpeg is None:
        return None
    file.seek(0)
    content = file.read(MOST_BYTES + 1)
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(content)
        if (width, height) != image.size or len(content) > MOST_BYTES:
            return None
        if colours not in ("YCbCr", "Gray") or not _agrees(sampling):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
        return pixels
    except (ValueError, KeyError, MemoryError):  # KeyError: a sampling without a name
        return None


@cache
def _simplejpeg() -> ModuleType | None:
    """The module, where it is installed and PIL has a libjpeg-turbo, and no other libjpeg."""
    from PIL import features

    has = features.version("libjpeg_turbo") if features.check("libjpeg_turbo") else None
    if has is None or tuple(map(int, has.split(".")[:2])) < OLDEST:
        return None
    try:
        module = import_module("simplejpeg")
    except Exception:  # not installed, or built for another numpy: whatever a broken one raises
        return None
    return (
        module if hasattr(module, "decode_jpeg") else None
    )  # of a half-removed one a folder is left


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
