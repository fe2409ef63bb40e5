"""From one entry of the table to the torch layers that compute it.

The modules stand where torchvision's ``models/vgg.py`` has them, so that keys and indices agree.
ReLU is
not in place, which costs no memory that training would not need anyway: hooks, taps and
checkpointing then see the values that the paper's names mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets import (
    BATCH_NORM_EPSILON,
    HEADS,
    L2_EPSILON,
    LRN_ALPHA,
    LRN_BETA,
    LRN_K,
    LRN_SIZE,
    Layer,
    Network,
)

__all__ = ["L2Pool2d", "classifier", "pooling", "positions", "trunk", "walk"]


class L2Pool2d(nn.Module):
    """The pooling of DISTS: the Hann-weighted root of summed squares, 3x3, stride 2, padding 1.

    Source: Ding et al. 2020, arXiv:2004.07728, section 3.2; Henaff and Simoncelli,
    arXiv:1511.06394. Maps (n, channels, h, w) to (n, channels, ceil(h / 2), ceil(w / 2)), any
    floating dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        # The window (1/4, 1/2, 1/4) is (1/2, 1/2) twice, so two plain averages of 2x2 compute it:
        # no weights to carry along, and no channel count to know.
        squares = F.avg_pool2d(x * x, 2, stride=1, padding=1)
        return torch.sqrt(F.avg_pool2d(squares, 2, stride=2) + L2_EPSILON)


def pooling(kind: str) -> nn.Module:
    """The pool of that name in nets.POOLS."""
    if kind == "max":
        return nn.MaxPool2d(2, 2)
    return nn.AvgPool2d(2, 2) if kind == "avg" else L2Pool2d()


def trunk(network: Network) -> nn.Sequential:
    """The layers from conv1_1 to the end of the trunk, as torchvision's `features`."""
    modules: list[nn.Module] = []
    for layer in network.trunk:
        if layer.kind == "conv":
            kernel, padding = layer.kernel, layer.padding
            modules.append(nn.Conv2d(layer.inputs, layer.outputs, kernel, padding=padding))
            if layer.norm_key:
                modules.append(nn.BatchNorm2d(layer.outputs, eps=BATCH_NORM_EPSILON))
        elif layer.kind == "relu":
            modules.append(nn.ReLU())
        elif layer.kind == "lrn":
            # torch divides the sum by its size; the paper does not
            modules.append(nn.LocalResponseNorm(LRN_SIZE, LRN_ALPHA * LRN_SIZE, LRN_BETA, LRN_K))
        else:
            modules.append(pooling(network.pool))
    return nn.Sequential(*modules)


def average(network: Network) -> nn.Module:
    """The average before the first FC layer; nothing for a trunk alone."""
    grid, _ = HEADS[network.head.kind]
    return nn.AdaptiveAvgPool2d((grid, grid)) if network.top else nn.Identity()


def classifier(network: Network, dropout: float = 0.5) -> nn.Module:
    """The FC layers, with dropout after the hidden ones (arXiv:1409.1556, section 3.1).

    One nn.Linear for the "gap" head, nothing for a trunk alone.
    """
    modules: list[nn.Module] = []
    for layer in network.top:
        if layer.kind == "fc":
            modules.append(nn.Linear(layer.inputs, layer.outputs))
        elif layer.kind == "relu":
            modules += [nn.ReLU(), nn.Dropout(dropout)]
    if network.head.kind == "gap" and modules:
        return modules[0]
    return nn.Sequential(*modules) if modules else nn.Identity()


def positions(layers: Iterable[Layer]) -> dict[str, int]:
    """For each paper name, the index in `features` (or `classifier`) of the module that computes
    it.
    """
    found: dict[str, int] = {}
    index = -1
    for layer in layers:
        if layer.kind in ("average", "softmax"):
            continue
        index += 2 if layer.norm_key else 1
        found[layer.name] = index
        if layer.kind == "relu" and layer.name in ("relu6", "relu7"):
            index += 1  # its dropout; the tap is the value before it
    return found


def walk(modules: Iterable[nn.Module], x: Tensor, stops: Mapping[str, int]) -> dict[str, Tensor]:
    """Run `modules` on `x` until the last of `stops`; the values there, each computed once."""
    last = max(stops.values(), default=-1)
    names = {index: name for name, index in stops.items()}
    found: dict[str, Tensor] = {}
    for index, module in enumerate(modules):
        if index > last:
            break
        x = module(x)
        if index in names:
            found[names[index]] = x
    return found
