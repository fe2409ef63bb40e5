"""What a picture shows, how it is painted and how smooth it is, as losses: what style transfer adds up.

Features of any layers, by any criterion, and the products of their channels: Johnson et al. 2016,
arXiv:1603.08155, section 3.2 and equations 3 and 4; Gatys et al. 2015, arXiv:1508.06576. Total variation:
Rudin, Osher and Fatemi 1992; as a loss, Mahendran and Vedaldi 2014, arXiv:1412.0035.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..distances.metrics import METRICS, chosen
from ..errors import ImageError, NetworkError, nearest
from ..nets import network as network_of
from .trunk import Looking, Reference, fits, precise, wide

Reduction = Literal["mean", "sum", "none"]
Criterion = Literal["l1", "l2"] | Callable[[Tensor, Tensor], Tensor]
REDUCTIONS = ("mean", "sum", "none")
NAMED = ("l1", "l2")


class _Weighted(Looking):
    """The sum of a number for each layer, weighted, over a batch."""

    usual = METRICS["style"].layers

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        *,
        reduction: Reduction = "mean",
        network: str = "vgg16",
        **options: Any,
    ) -> None:
        layers = chosen(layers, self.usual, network_of(network))
        each = (1.0,) * len(layers) if weights is None else tuple(map(float, weights))
        if len(each) != len(layers):
            raise NetworkError(
                f"{len(each)} weights were given for {len(layers)} layers ({', '.join(layers)}); "
                "expected one for each"
            )
        known_reduction(reduction)
        super().__init__(layers, network=network, **options)
        self.weights = each
        self.reduction: Reduction = reduction

    def _reduced(self, parts: Sequence[Tensor]) -> Tensor:
        """Of (n,) for each layer."""
        weighted = [part * weight for part, weight in zip(parts, self.weights, strict=True)]
        return reduced(torch.stack(weighted).sum(0), self.reduction)


class PerceptualLoss(_Weighted):
    """The difference of features, averaged over channels and positions, summed over layers.

    layers: paper names, one or several, before or after ReLU ("conv3_3", "relu3_3"); by default the last
    ReLU of each of the first four blocks of VGG-16. weights: of each; by default 1.
    criterion: "l1" (absolute), "l2" (squared difference), or a function of both features, (n, c, h, w)
    each, to one number or to (n,).
    options: reduction: over the batch: "mean", the default, "sum" or "none", which gives (n,).
    model ("builtin"), network ("vgg16"): as for `verydeep.models.backbone`. pool: "max" or "avg" in place
    of the network's. range: of float images: "0..1", the default, "-1..1", "0..255" or (black, white);
    uint8 images know theirs. checkpointing, check: as for `LPIPS`.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        criterion: Criterion = "l1",
        **options: Any,
    ) -> None:
        if not callable(criterion) and criterion not in NAMED:
            raise NetworkError(f"criterion {criterion!r} is unknown{nearest(criterion, NAMED)}")
        super().__init__(layers, weights, **options)
        self.criterion: Criterion = criterion

    def forward(self, image: Tensor, target: Tensor | Reference) -> Tensor:
        """One number, or (n,) for reduction "none"; float32, or float64 as the images.

        image, target: (n, 3, h, w), the target also one for all or what `remember` gave.
        """
        x, y = self._pair(image, target, ("image", "target"))
        if callable(self.criterion):
            return self._reduced(self.look(x, y, self._whole))
        maps = self.look(x, y, self._map, "rows")
        return self._reduced([part.mean((1, 2, 3)) for part in maps])

    def _map(self, _layer: str, f0: Tensor, f1: Tensor) -> Tensor:
        with precise(f0):
            difference = wide(f0) - wide(f1)
            power = difference.abs() if self.criterion == "l1" else difference.square()
            return power.mean(1, keepdim=True)

    def _whole(self, _layer: str, f0: Tensor, f1: Tensor) -> Tensor:
        return self.criterion(  # type: ignore[operator]
            wide(f0), wide(f1).expand_as(f0)
        )


class ContentLoss(PerceptualLoss):
    """The squared difference of the features of one layer, or a few: what a picture shows.

    Arguments as for `PerceptualLoss`; by default relu3_3.
    """

    usual = METRICS["content"].layers

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(layers, weights, "l2", **options)


class StyleLoss(_Weighted):
    """The squared difference of Gram matrices, summed over their entries and over layers.

    A Gram matrix is divided by channels * height * width, so the style may be of another size than the
    image. pool: "avg" gives smoother pictures (Gatys et al.), "max" is what the network was trained with.
    Arguments as for `PerceptualLoss`, but for the criterion.
    """

    def forward(self, image: Tensor, style: Tensor | Reference) -> Tensor:
        """One number, or (n,) for reduction "none"; float32, or float64 as the images.

        image: (n, 3, h, w). style: (n or 1, 3, height, width) of any size, or what `remember` gave.
        """
        if isinstance(style, Reference):
            fits(style, self.layers)
            other = [style.values[tap] for tap in self.layers]
        else:
            other = self._grams(style, "style")
        grams = self._grams(image, "image")
        if len(other[0]) not in (1, len(grams[0])):
            raise ImageError(
                f"{len(other[0])} styles were given for {len(grams[0])} images; expected one or as many"
            )
        parts = [
            (ours - theirs.to(ours.device)).square().sum((1, 2))
            for ours, theirs in zip(grams, other, strict=True)
        ]
        return self._reduced(parts)

    def remember(self, style: Tensor) -> Reference:
        """The Gram matrices of `style`, to be given in its place: small, and computed once."""
        with torch.no_grad():
            values = dict(zip(self.layers, self._grams(style, "style"), strict=True))
        return Reference(values, (style.shape[-2], style.shape[-1]))

    def _grams(self, image: Tensor, what: str) -> list[Tensor]:
        seen, black_white = self._seen(image, what)
        x = self._normalised(seen, *black_white)
        grams = self.look(x, None, lambda _layer, f: gram(f), "sum")
        rows = {r.layer.name: r.shape for r in self.table.rows(*x.shape[2:])}
        return [
            g / float(torch.Size(rows[tap]).numel())
            for tap, g in zip(self.layers, grams, strict=True)
        ]


class TotalVariation(nn.Module):
    """The differences of vertical and horizontal neighbours, summed, for each value of the image.

    power: 1 takes their absolute values, 2 their squares. reduction: over the batch, as for
    `PerceptualLoss`.
    """

    def __init__(self, power: Literal[1, 2] = 1, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        if power not in (1, 2):
            raise NetworkError(f"power is {power!r}; expected 1 or 2")
        known_reduction(reduction)
        self.power = power
        self.reduction: Reduction = reduction

    def forward(self, image: Tensor) -> Tensor:
        """One number, or (n,) for reduction "none". image: floats (n, c, h, w) in any range."""
        if image.ndim != 4 or not image.is_floating_point():
            raise ImageError(
                f"image is {image.dtype} of shape {tuple(image.shape)}; expected floats (n, c, h, w)"
            )
        down, right = image.diff(dim=2), image.diff(dim=3)
        change = torch.abs if self.power == 1 else torch.square
        total = change(down).sum((1, 2, 3)) + change(right).sum((1, 2, 3))
        return reduced(total / image[0].numel(), self.reduction)


def gram(features: Tensor) -> Tensor:
    """Products of each two channels, (n, c, c), of features (n, c, h, w), summed over positions."""
    with precise(features):
        rows = wide(features).flatten(2)
        return rows @ rows.transpose(1, 2)


def known_reduction(name: str) -> None:
    if name not in REDUCTIONS:
        raise NetworkError(f"reduction {name!r} is unknown{nearest(name, REDUCTIONS)}")


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """(n,), or over the batch."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()
