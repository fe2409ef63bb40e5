"""Style as the products of channels: two pictures with equal Gram matrices are painted alike.

Gatys et al. 2015, arXiv:1508.06576; with the scale of Johnson et al. 2016, arXiv:1603.08155, equations 3
and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distances.metrics import METRICS, chosen
from ..models.vgg import WeightsLike
from ..nets import network as known
from ..preprocess import Range
from .distance import wide
from .features import Reduction, known_reduction, reduced, weighted
from .images import size_free
from .trunk import Look, Looking, Reference, Trunk


def gram(features: Tensor) -> Tensor:
    """Products of each two channels, (n, c, c), of features (n, c, h, w), summed over positions."""
    with torch.autocast(features.device.type, enabled=False):
        rows = wide(features).flatten(2)
        return rows @ rows.transpose(1, 2)


class StyleLoss(Looking):
    """The squared difference of Gram matrices, summed over their entries and over layers.

    A Gram matrix is divided by channels * height * width, so the style may be of another size than the
    image. pool: "avg" gives smoother pictures (Gatys et al.), "max" is what the network was trained with.
    The other arguments as for `PerceptualLoss`.
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
        layers = chosen(layers, METRICS["style"].layers, known(network))
        each = weighted(layers, weights)
        known_reduction(reduction)
        trunk = Trunk(layers, model, network, pool=pool, checkpointing=checkpointing)
        super().__init__(trunk, range, check=check)
        self.weights = each
        self.reduction: Reduction = reduction

    def forward(self, image: Tensor, style: Tensor | Reference) -> Tensor:
        """One number, or (n,) for reduction "none"; float32, or float64 as the images.

        image: (n, 3, h, w). style: (n or 1, 3, height, width) of any size, or what `remember` gave.
        """
        if isinstance(style, Reference):
            size_free(style.values, self.layers, len(style), len(image))
            other = [style.values[tap] for tap in self.layers]
        else:
            other = self._grams(style, "style")
            size_free(None, self.layers, len(style), len(image))
        parts = [
            (ours - theirs.to(ours.device)).square().sum((1, 2))
            for ours, theirs in zip(self._grams(image, "image"), other, strict=True)
        ]
        return reduced(parts, self.weights, self.reduction)

    def remember(self, style: Tensor) -> Reference:
        """The Gram matrices of `style`, to be given in its place: small, and computed once."""
        with torch.no_grad():
            values = dict(zip(self.layers, self._grams(style, "style"), strict=True))
        return Reference(values, (style.shape[2], style.shape[3]))

    def _grams(self, image: Tensor, what: str) -> list[Tensor]:
        seen, black_white = self._seen(image, what)
        trunk = self.trunk.at(seen)
        x = trunk.normalised(seen, *black_white)
        grams = trunk.look(x, None, Look(lambda _tap, f, _other: gram(f), "sum"))
        rows = {r.layer.name: r.shape for r in self.trunk.body.network.rows(*x.shape[2:])}
        return [
            g / float(torch.Size(rows[tap]).numel())
            for tap, g in zip(self.layers, grams, strict=True)
        ]
