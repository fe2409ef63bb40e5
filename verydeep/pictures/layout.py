"""The paper that a portrait's pictures are drawn on: its size, its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ..portraits import Portrait

WIDTH, MARGIN = 1240, 32
TITLE, TEXT = 26, 16  # font sizes
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 30), (110, 116, 124)

# One a block, from the first: steps of inferno that are seen on light and dark photos.
FIELDS = ((252, 255, 164), (251, 165, 10), (238, 85, 50), (201, 60, 140), (120, 70, 220))


def photo(portrait: Portrait) -> Image.Image:
    """What the network looked at, as RGB."""
    assert portrait.pixels is not None
    pixels = np.rint(portrait.pixels).astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, 2))
