"""DISTS as a loss: structure and texture as the moments of feature maps under a smooth pool.

Ding et al. 2020, arXiv:2004.07728, equations 6 to 8; values are those of DISTS-pytorch 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..distances.metrics import DISTS_C1, DISTS_C2, HEADS_FILE, IMAGE, METRICS
from ..errors import NetworkError
from .trunk import Looking, Reference, constant, precise, wide


class DISTS(Looking):
    """The deep image structure and texture similarity, differentiable; 0 for equal images.

    load_weights: False draws `alpha` and `beta` as DISTS-pytorch does before it is trained.
    alpha, beta: weights of texture and structure, (channels,) each: the image's 3 and then those of the
    five layers; by default the published. They are frozen parameters, (1, channels, 1, 1).
    options: model, network, range ("0..1"), checkpointing, check, as for `LPIPS`.
    """

    remembered = (IMAGE,)
    of_each = True

    def __init__(
        self,
        load_weights: bool = True,
        *,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(METRICS["dists"].layers, pool="l2", **options)
        self.sizes = [self.table.in_channels, *self.channels.values()]
        stored = load_file(HEADS_FILE) if load_weights else {}
        for name, given in (("alpha", alpha), ("beta", beta)):
            weights = stored.get(f"dists.{name}") if given is None else given
            if weights is None:
                weights = torch.empty(sum(self.sizes)).normal_(0.1, 0.01)
            if weights.shape != (sum(self.sizes),):
                raise NetworkError(
                    f"{name} has shape {tuple(weights.shape)}; expected ({sum(self.sizes)},), a weight "
                    "for each channel of the image and of the layers"
                )
            frozen = nn.Parameter(constant(weights).view(1, -1, 1, 1), requires_grad=False)
            self.register_parameter(name, frozen)
        self.alpha: nn.Parameter
        self.beta: nn.Parameter

    def forward(
        self,
        x: Tensor,
        y: Tensor | Reference,
        require_grad: bool = True,
        batch_average: bool = False,
    ) -> Tensor:
        """The distances, (n,), or their mean where `batch_average`; float32, or float64 as the images.

        x, y: images (n, 3, h, w), y also one for all or what `remember` gave. require_grad: False keeps
        no graph, which is what DISTS-pytorch does unless told.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(require_grad)):
            first, second = self._pair(x, y, ("x", "y"))
            undone = self.scaling_layer.undone
            other = second[IMAGE] if isinstance(second, Mapping) else undone(second)
            parts = self.look(first, second, self._similarity)
            parts.insert(0, self._similarity(IMAGE, undone(first), other))
            distances = 1 - torch.stack(parts).sum(0)
            return distances.mean() if batch_average else distances

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The image, too, and the layers' values for normalised images, without a graph."""
        return {IMAGE: self.scaling_layer.undone(x), **super().features(x)}

    def _similarity(self, layer: str, f0: Tensor, f1: Tensor) -> Tensor:
        """The weighted texture and structure of one layer, (n,)."""
        index = (IMAGE, *self.layers).index(layer)
        with precise(f0):
            f0, f1 = wide(f0), wide(f1)
            whole = self.alpha.sum() + self.beta.sum()
            alpha, beta = (
                torch.split((weights / whole).to(f0.dtype).flatten(), self.sizes)[index]
                for weights in (self.alpha, self.beta)
            )
            mean0, mean1 = f0.mean((2, 3), keepdim=True), f1.mean((2, 3), keepdim=True)
            centred0, centred1 = f0 - mean0, f1 - mean1
            variances = centred0.square().mean((2, 3)) + centred1.square().mean((2, 3))
            covariance = (centred0 * centred1).mean((2, 3))
            squares = mean0.square() + mean1.square()
            texture = (2 * mean0 * mean1 + DISTS_C1) / (squares + DISTS_C1)
            structure = (2 * covariance + DISTS_C2) / (variances + DISTS_C2)
            similarity: Tensor = (alpha * texture.flatten(1) + beta * structure).sum(1)
            return similarity
