"""LPIPS as a metric over a data set: torchmetrics' `LearnedPerceptualImagePatchSimilarity`, without it.

What is gathered is a sum and a count, in float64 and without a graph: the memory stays flat
(torchmetrics#2093), except for reduction "none", which has to keep each distance.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import DataError, ImageError, NetworkError, nearest
from ..models.vgg import WeightsLike
from .lpips import LPIPS

REDUCTIONS = ("mean", "sum", "none")


class LearnedPerceptualImagePatchSimilarity(nn.Module):
    """The LPIPS of all images given to `update`, over one process.

    net_type: "vgg" alone. reduction: "mean", "sum", or "none" (also None). normalize: images are in 0 to 1
    instead of -1 to 1. model, network, heads: as for `LPIPS`.
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(
        self,
        net_type: str = "vgg",
        reduction: Literal["mean", "sum", "none"] | None = "mean",
        normalize: bool = False,
        *,
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        heads: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if reduction is not None and reduction not in REDUCTIONS:
            raise NetworkError(
                f"reduction {reduction!r} is unknown{nearest(reduction, REDUCTIONS)}"
            )
        self.reduction = reduction or "none"
        self.normalize = normalize
        given = "0..1" if normalize else "-1..1"
        self.net = LPIPS(net=net_type, model=model, network=network, heads=heads, range=given)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sum, self._count = torch.zeros((), dtype=torch.float64), 0
        self._scores: list[Tensor] = []

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Gather the distances of these images, (n, 3, h, w) each."""
        with torch.no_grad():
            self._gather(self._distances(img1, img2))

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """`update`, and the value of these images alone, differentiable."""
        distances = self._distances(img1, img2)
        self._gather(distances.detach())
        return self._reduced(distances)

    def compute(self) -> Tensor:
        """The value over everything that was gathered; DataError where that is nothing."""
        if not self._count:
            raise DataError("no images were given yet; call update(img1, img2) first")
        if self.reduction == "none":
            return torch.cat(self._scores)
        total = self._sum / (self._count if self.reduction == "mean" else 1)
        return total.float()

    def _distances(self, img1: Tensor, img2: Tensor) -> Tensor:
        if img1.shape != img2.shape:
            raise ImageError(
                f"img1 has shape {tuple(img1.shape)} and img2 {tuple(img2.shape)}; expected the same"
            )
        found = self.net(img1, img2)
        assert isinstance(found, Tensor)
        return found.flatten()

    def _gather(self, distances: Tensor) -> None:
        self._sum = self._sum.to(distances.device) + distances.double().sum()
        self._count += len(distances)
        if self.reduction == "none":
            self._scores.append(distances)

    def _reduced(self, distances: Tensor) -> Tensor:
        if self.reduction == "none":
            return distances
        return distances.mean() if self.reduction == "mean" else distances.sum()
