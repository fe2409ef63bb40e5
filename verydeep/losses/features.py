"""Losses on features: any layers, any weights, any criterion; content is one of them.

Johnson et al. 2016, arXiv:1603.08155, section 3.2; Gatys et al. 2015, arXiv:1508.06576.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..distances.metrics import METRICS, chosen
from ..errors import NetworkError, nearest
from ..models.vgg import WeightsLike
from ..nets import network as known
from ..preprocess import Range
from .distance import wide
from .trunk import Look, Looking, Reference, Trunk

Reduction = Literal["mean", "sum", "none"]
Criterion = Literal["l1", "l2"] | Callable[[Tensor, Tensor], Tensor]
REDUCTIONS = ("mean", "sum", "none")
NAMED = ("l1", "l2")


class PerceptualLoss(Looking):
    """The difference of features, averaged over channels and positions, summed over layers.

    layers: paper names, one or several, before or after ReLU ("conv3_3", "relu3_3"); by default the last
    ReLU of each of the first four blocks of VGG-16. weights: of each; by default 1.
    criterion: "l1" (absolute), "l2" (squared difference), or a function of both features, (n, c, h, w)
    each, to one number or to (n,).
    reduction: over the batch: "mean", "sum" or "none", which gives (n,).
    model, network: as for `verydeep.models.backbone`. pool: "max" or "avg" in place of the network's.
    range: of float images: "0..1", "-1..1" or "0..255"; uint8 images know theirs. checkpointing, check:
    as for `LPIPS`.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        criterion: Criterion = "l1",
        *,
        reduction: Reduction = "mean",
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        pool: str | None = None,
        range: Range = "0..1",
        checkpointing: bool | None = None,
        check: bool = True,
    ) -> None:
        layers = chosen(layers, METRICS["style"].layers, known(network))
        self_weights = weighted(layers, weights)
        if not callable(criterion) and criterion not in NAMED:
            raise NetworkError(f"criterion {criterion!r} is unknown{nearest(criterion, NAMED)}")
        known_reduction(reduction)
        trunk = Trunk(layers, model, network, pool=pool, checkpointing=checkpointing)
        super().__init__(trunk, range, check=check)
        self.weights = self_weights
        self.criterion: Criterion = criterion
        self.reduction: Reduction = reduction

    def forward(self, image: Tensor, target: Tensor | Reference) -> Tensor:
        """One number, or (n,) for reduction "none"; float32, or float64 as the images.

        image, target: (n, 3, h, w), the target also one for all or what `remember` gave.
        """
        trunk, x, y = self._pair(image, target, ("image", "target"))
        look = Look(self._whole) if callable(self.criterion) else Look(self._map, "rows")
        parts = trunk.look(x, y, look)
        if not callable(self.criterion):
            parts = [part.mean((1, 2, 3)) for part in parts]
        return reduced(parts, self.weights, self.reduction)

    def remember(self, target: Tensor) -> Reference:
        """The features of `target`, to be given in its place: computed once, without a graph."""
        return self._remembered(target)

    def _map(self, _tap: str, f0: Tensor, f1: Tensor) -> Tensor:
        with torch.autocast(f0.device.type, enabled=False):
            difference = wide(f0) - wide(f1)
            power = difference.abs() if self.criterion == "l1" else difference.square()
            return power.mean(1, keepdim=True)

    def _whole(self, _tap: str, f0: Tensor, f1: Tensor) -> Tensor:
        return self.criterion(  # type: ignore[operator]
            wide(f0), wide(f1).expand_as(f0)
        )


class ContentLoss(PerceptualLoss):
    """The squared difference of the features of one layer, or a few: what a picture shows.

    Arguments as for `PerceptualLoss`.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        *,
        reduction: Reduction = "mean",
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        pool: str | None = None,
        range: Range = "0..1",
        checkpointing: bool | None = None,
        check: bool = True,
    ) -> None:
        layers = chosen(layers, METRICS["content"].layers, known(network))
        super().__init__(
            layers, weights, "l2", reduction=reduction, model=model, network=network, pool=pool,
            range=range, checkpointing=checkpointing, check=check,
        )  # fmt: skip


def weighted(layers: Sequence[str], weights: Sequence[float] | None) -> tuple[float, ...]:
    each = (1.0,) * len(layers) if weights is None else tuple(float(w) for w in weights)
    if len(each) != len(layers):
        raise NetworkError(
            f"{len(each)} weights were given for {len(layers)} layers ({', '.join(layers)}); "
            "expected one for each"
        )
    return each


def known_reduction(name: str) -> None:
    if name not in REDUCTIONS:
        raise NetworkError(f"reduction {name!r} is unknown{nearest(name, REDUCTIONS)}")


def reduced(parts: Sequence[Tensor], weights: Sequence[float], reduction: Reduction) -> Tensor:
    """The weighted sum over layers of (n,) each, reduced over the batch."""
    total = torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum(0)
    if reduction == "none":
        return total
    return total.mean() if reduction == "mean" else total.sum()
