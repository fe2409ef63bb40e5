"""From one entry of the table to the torch layers that compute it.

The modules stand where torchvision's ``models/vgg.py`` has them, so that keys and indices agree.
ReLU is not in place, which costs no memory that training would not need anyway: hooks, taps and
checkpointing then see the values that the paper's names mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import NetworkError
from ..nets import (
    BATCH_NORM_EPSILON,
    COLUMNS,
    HEADS,
    L2_EPSILON,
    LRN_ALPHA,
    LRN_BETA,
    LRN_K,
    LRN_SIZE,
    Layer,
    Network,
)

# The table's columns as torchvision's `cfgs` has them, and the two columns that torchvision left
# out.
cfgs: dict[str, list[str | int]] = {
    column: [int(entry) if entry.isdigit() else entry for entry in entries.split()]
    for column, entries in COLUMNS.items()
}


class L2Pool2d(nn.Module):
    """The pooling of DISTS: the Hann-weighted root of summed squares, 3x3, stride 2, padding 1.

    Source: Ding et al. 2020, arXiv:2004.07728, section 3.2; Henaff and Simoncelli,
    arXiv:1511.06394. Maps (n, channels, h, w) to (n, channels, ceil(h / 2), ceil(w / 2)), any
    floating dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = L2_EPSILON

    def forward(self, x: Tensor) -> Tensor:
        # The window (1/4, 1/2, 1/4) is (1/2, 1/2) twice, so two plain averages of 2x2 compute it:
        # no weights to carry along, and no channel count to know.
        squares = F.avg_pool2d(x * x, 2, stride=1, padding=1)
        return torch.sqrt(F.avg_pool2d(squares, 2, stride=2) + self.epsilon)


def make_layers(
    cfg: Sequence[str | int], batch_norm: bool = False, *, in_channels: int = 3
) -> nn.Sequential:
    """The convolutions of a column, each with its ReLU, and its pools: torchvision's function.

    cfg: output channels, "M" for a 2x2 max-pool, "LRN", or "256:1" for a 1x1 convolution; `cfgs`
    has the paper's columns. Raises NetworkError for any other entry.
    """
    modules: list[nn.Module] = []
    for entry in cfg:
        number, _, kernel = str(entry).partition(":")
        if entry == "M":
            modules.append(pooling("max"))
        elif entry == "LRN":
            modules.append(response_normalisation())
        elif number.isdigit() and int(number) and kernel in ("", "1", "3"):
            channels = int(number)
            modules += convolution(in_channels, channels, int(kernel or 3), batch_norm)
            modules.append(nn.ReLU())
            in_channels = channels
        else:
            raise NetworkError(
                f'cfg has {entry!r}; expected output channels such as 64 or "256:1", "M" or "LRN"'
            )
    return nn.Sequential(*modules)


def convolution(inputs: int, outputs: int, kernel: int, batch_norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return [conv, nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPSILON)] if batch_norm else [conv]


def response_normalisation() -> nn.Module:
    # torch divides the sum by its size; the paper does not
    return nn.LocalResponseNorm(LRN_SIZE, LRN_ALPHA * LRN_SIZE, LRN_BETA, LRN_K)


def pooling(kind: str) -> nn.Module:
    """The pool of that name in nets.POOLS."""
    if kind == "max":
        return nn.MaxPool2d(2, 2)
    return nn.AvgPool2d(2, 2) if kind == "avg" else L2Pool2d()


def trunk(network: Network) -> nn.Sequential:
    """The layers from conv1_1 to the end of the network's trunk, as torchvision's `features`."""
    modules: list[nn.Module] = []
    for layer in network.trunk:
        if layer.kind == "conv":
            norm = bool(layer.norm_key)
            modules += convolution(layer.inputs, layer.outputs, layer.kernel, norm)
        elif layer.kind == "relu":
            modules.append(nn.ReLU())
        elif layer.kind == "lrn":
            modules.append(response_normalisation())
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
    places: dict[str, int] = {}
    index = -1
    for layer in layers:
        if layer.kind in ("average", "softmax"):
            continue
        index += 2 if layer.norm_key else 1
        places[layer.name] = index
        if layer.kind == "relu" and layer.name in ("relu6", "relu7"):
            index += 1  # its dropout; the tap is the value before it
    return places


def walk(modules: Iterable[nn.Module], x: Tensor, stops: Mapping[str, int]) -> dict[str, Tensor]:
    """Run `modules` on `x` until the last of `stops`; the values there, each computed once."""
    last = max(stops.values(), default=-1)
    names = {index: name for name, index in stops.items()}
    values: dict[str, Tensor] = {}
    for index, module in enumerate(modules):
        if index > last:
            break
        x = module(x)
        if index in names:
            values[names[index]] = x
    return values
