"""DISTS as a loss: structure and texture as the moments of feature maps under a smooth pool.

Ding et al. 2020, arXiv:2004.07728, equations 6 to 8; values are those of DISTS-pytorch 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..distances.metrics import DISTS_C1, DISTS_C2, HEADS_FILE, IMAGE, METRICS
from ..errors import NetworkError
from ..models.vgg import WeightsLike
from ..preprocess import Range
from .trunk import Look, Looking, Reference, Trunk, constant, wide


class DISTS(Looking):
    """The deep image structure and texture similarity, differentiable; 0 for equal images.

    range: of float images: "0..1", "-1..1" or "0..255"; uint8 images know theirs. model: weights of
    VGG-16, as for `verydeep.models.backbone`. alpha, beta: weights of texture and structure, (channels,)
    each: the image's 3 and then those of the five layers; by default the published. checkpointing, check:
    as for `LPIPS`.
    """

    def __init__(
        self,
        *,
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        range: Range = "0..1",
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
        checkpointing: bool | None = None,
        check: bool = True,
    ) -> None:
        layers = METRICS["dists"].layers
        trunk = Trunk(layers, model, network, pool="l2", checkpointing=checkpointing)
        super().__init__(trunk, range, check=check)
        self.layers = (IMAGE, *layers)
        stored = load_file(HEADS_FILE) if alpha is None or beta is None else {}
        alpha = stored["dists.alpha"] if alpha is None else alpha.detach().float()
        beta = stored["dists.beta"] if beta is None else beta.detach().float()
        channels = [trunk.in_channels, *trunk.body.channels.values()]
        for name, weights in (("alpha", alpha), ("beta", beta)):
            if weights.shape != (sum(channels),):
                raise NetworkError(
                    f"{name} has shape {tuple(weights.shape)}; expected ({sum(channels)},), a weight for "
                    "each channel of the image and of the layers"
                )
        whole = (alpha.double().sum() + beta.double().sum()).item()
        for name, weights in (("alpha", alpha), ("beta", beta)):
            for layer, part in zip((IMAGE, *layers), torch.split(weights, channels), strict=True):
                self.register_buffer(f"{name}_{layer}", constant(part / whole), persistent=False)

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
        with torch.set_grad_enabled(torch.is_grad_enabled() and require_grad):
            if isinstance(y, Tensor) and len(y) == 1 < len(x) and not y.requires_grad:
                y = self.remember(y)
            trunk, first, second = self._pair(x, y, ("x", "y"))
            other = second[IMAGE] if isinstance(second, Mapping) else _plain(trunk, second)
            parts = trunk.look(first, second, Look(self._similarity))
            parts.insert(0, self._similarity(IMAGE, _plain(trunk, first), other))
            distances = 1 - torch.stack(parts).sum(0)
            return distances.mean() if batch_average else distances

    def remember(self, target: Tensor) -> Reference:
        """The features of `target`, to be given as `y`: computed once, without a graph."""
        known = self._remembered(target)
        y, (black, white) = self._seen(target.detach(), "target")
        trunk = self.trunk.at(y)
        image = _plain(trunk, trunk.normalised(y, black, white))
        return Reference({IMAGE: image, **known.values}, known.size)

    def _similarity(self, layer: str, f0: Tensor, f1: Tensor) -> Tensor:
        """The weighted texture and structure of one layer, (n,)."""
        alpha: Tensor = getattr(self, f"alpha_{layer}").to(f0.device)
        beta: Tensor = getattr(self, f"beta_{layer}").to(f0.device)
        with torch.autocast(f0.device.type, enabled=False):
            f0, f1 = wide(f0), wide(f1)
            mean0, mean1 = f0.mean((2, 3), keepdim=True), f1.mean((2, 3), keepdim=True)
            centred0, centred1 = f0 - mean0, f1 - mean1
            variances = centred0.square().mean((2, 3)) + centred1.square().mean((2, 3))
            covariance = (centred0 * centred1).mean((2, 3))
            squares = mean0.square() + mean1.square()
            texture = (2 * mean0 * mean1 + DISTS_C1) / (squares + DISTS_C1)
            structure = (2 * covariance + DISTS_C2) / (variances + DISTS_C2)
            return (alpha * texture.flatten(1) + beta * structure).sum(1)


def _plain(trunk: Trunk, x: Tensor) -> Tensor:
    """The image from 0 to 1 that was normalised."""
    x = x.flip(1) if trunk.flip else x
    return x * trunk.std + trunk.mean
