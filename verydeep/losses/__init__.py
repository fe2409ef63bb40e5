"""Losses that see what VGG sees, for training in torch: frozen, finite, frugal.

>>> from verydeep.losses import LPIPS
>>> loss = LPIPS()                              # doctest: +SKIP
>>> loss(image, target).mean().backward()       # doctest: +SKIP
"""

from __future__ import annotations

from .dists import DISTS
from .features import ContentLoss, PerceptualLoss
from .lpips import LPIPS
from .metric import LearnedPerceptualImagePatchSimilarity
from .style import StyleLoss
from .trunk import Reference
from .variation import TotalVariation

__all__ = [
    "DISTS",
    "LPIPS",
    "ContentLoss",
    "LearnedPerceptualImagePatchSimilarity",
    "PerceptualLoss",
    "Reference",
    "StyleLoss",
    "TotalVariation",
]
