"""Losses that see what VGG sees, for training in torch: frozen, finite, frugal.

>>> from verydeep.losses import LPIPS
>>> loss = LPIPS(net="vgg")                     # doctest: +SKIP
>>> loss(image, target).mean().backward()       # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from .dists import DISTS
from .features import ContentLoss, PerceptualLoss, StyleLoss, TotalVariation
from .lpips import LPIPS
from .trunk import Reference

if TYPE_CHECKING:
    from .metric import LearnedPerceptualImagePatchSimilarity

__all__ = [
    "DISTS", "LPIPS", "ContentLoss", "LearnedPerceptualImagePatchSimilarity", "PerceptualLoss",
    "Reference", "StyleLoss", "TotalVariation",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name != "LearnedPerceptualImagePatchSimilarity":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        metric = import_module(".metric", __name__)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, "metrics") from error
    return getattr(metric, name)
