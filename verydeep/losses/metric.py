"""LPIPS as a metric of torchmetrics: it stands in collections, and its states synchronise over processes.

What is gathered is a sum and a count, in float64 and without a graph: the memory stays flat
(torchmetrics#2093), except for reduction "none", which has to keep each distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..errors import DataError, ImageError
from ..models.vgg import WeightsLike
from .features import known_reduction
from .lpips import LPIPS, named


class LearnedPerceptualImagePatchSimilarity(Metric):
    """The LPIPS of all images given to `update`.

    net_type: "vgg" alone; torchmetrics' default is another, so one warning says so where it is not named.
    reduction: "mean", "sum", or "none" (also None). normalize: images are in 0 to 1 instead of -1 to 1.
    model, network, heads: as for `LPIPS`. options: torchmetrics' own.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    def __init__(
        self,
        net_type: str | None = None,
        reduction: Literal["mean", "sum", "none"] | None = "mean",
        normalize: bool = False,
        *,
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        heads: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        named("net_type", net_type)
        self.reduction = reduction or "none"
        known_reduction(self.reduction)
        range = "0..1" if normalize else "-1..1"
        self.net = LPIPS(net="vgg", model=model, network=network, heads=heads, range=range)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum")
        self.add_state("count", zero, dist_reduce_fx="sum")
        self.add_state("scores", [], dist_reduce_fx="cat")  # for reduction "none" alone

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Gather the distances of these images, (n, 3, h, w) each."""
        if img1.shape != img2.shape:
            raise ImageError(
                f"img1 has shape {tuple(img1.shape)} and img2 {tuple(img2.shape)}; expected the same"
            )
        distances = self.net(img1, img2).flatten()
        self.total: Tensor = self.total + distances.double().sum()
        self.count: Tensor = self.count + len(distances)
        if self.reduction == "none":
            self.scores: list[Tensor] = [*self.scores, distances]

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """`update`, and the value of these images alone, differentiable."""
        value: Tensor = super().forward(img1, img2)
        self.scores = [score.detach() for score in self.scores]
        return value

    def compute(self) -> Tensor:
        """The value over everything that was gathered; DataError where that is nothing."""
        if not self.count:
            raise DataError("no images were given yet; call update(img1, img2) first")
        if self.reduction == "none":
            return dim_zero_cat(self.scores)
        return (self.total / (self.count if self.reduction == "mean" else 1)).float()
