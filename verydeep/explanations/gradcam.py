"""Grad-CAM and Grad-CAM++: a layer's maps, weighted by what the score's gradient says of them.

Grad-CAM weights each map by its mean gradient (arXiv:1610.02391, equations 1 and 2), Grad-CAM++ by a sum
over its positive gradients with a weight for each position (arXiv:1710.11063, equations 5, 7 and 19). Both
keep what is above zero. The gradient is that of the class's score, before the soft-max.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import LayerError, nearest
from ..nets import Network
from ..predictor import Predictor
from .geometry import centres
from .method import Found, Method, Options, Pick
from .torch_module import module_of, normalised

if TYPE_CHECKING:
    from torch import Tensor


def prepare(
    predictor: Predictor,
    options: Options,
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    plus: bool = False,
) -> Method:
    network = predictor.record.network
    layer = _layer(network, options.layer)
    module = module_of(predictor, tensors)

    def run(pixels: np.ndarray, pick: Pick) -> Found:
        import torch

        x = normalised(predictor, pixels).requires_grad_()
        values = module.taps(x, [layer, "fc8"])
        maps, scores = values[layer], values["fc8"][0]
        classes = pick(scores.detach().numpy())
        found = []
        for index in classes:
            (gradient,) = torch.autograd.grad(scores[index], maps, retain_graph=True)
            weights = _plus(gradient[0], maps[0]) if plus else gradient[0].mean((1, 2))
            with torch.no_grad():
                total = torch.tensordot(weights, maps[0], 1).relu()
            found.append(total.numpy())
        ys, xs = centres(network, layer, *pixels.shape[:2])
        numbers = scores.detach().numpy()
        return Found(numbers, classes, found, ys, xs, (layer,), "torch", "exact")

    return run


def prepare_plus(
    predictor: Predictor, options: Options, tensors: Mapping[str, np.ndarray] | None = None
) -> Method:
    return prepare(predictor, options, tensors, plus=True)


def _plus(gradient: Tensor, maps: Tensor) -> Tensor:
    """A weight for each map (channels,), of its gradient and values (channels, h, w).

    Equation 19 writes the higher derivatives of exp(score) as powers of the first; its common factor
    exp(score) is left out, as in all programs, since it would overflow.
    """
    import torch

    maps = maps.detach()
    squares = gradient**2
    below = 2 * squares + maps.sum((1, 2), keepdim=True) * squares * gradient
    alpha = torch.where(below != 0, squares / torch.where(below != 0, below, 1), 0)
    return (alpha * gradient.relu()).sum((1, 2))


def _layer(network: Network, layer: str | None) -> str:
    """The layer to read: a map on which the scores depend."""
    read = network.cut(("fc8",)).trunk
    if layer is None:
        return [found.name for found in read if found.kind == "relu"][-1]
    names = [found.name for found in read]
    if layer in names:
        return layer
    if layer in [found.name for found in network.trunk]:
        raise LayerError(
            f"the scores of this {network.name} do not depend on {layer!r}: its head reads "
            f"{', '.join(network.head_inputs)}; expected {names[-1]} or a layer before it"
        )
    raise LayerError(
        f"{layer!r} has no map, only one number a channel; expected a layer of the trunk, such as "
        f"{names[-1]}{nearest(layer, names)}"
    )
