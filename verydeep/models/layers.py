"""From one entry of the table to the torch layers that compute it, and the numbers they start from.

The modules stand where torchvision's ``models/vgg.py`` has them, so that keys and indices agree.
ReLU is not in place, which costs no memory that training would not need anyway: hooks, taps and
checkpointing then see the values that the paper's names mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import NetworkError, nearest
from ..nets import (
    BATCH_NORM_EPSILON,
    COLUMNS,
    L2_EPSILON,
    LRN_ALPHA,
    LRN_BETA,
    LRN_K,
    LRN_SIZE,
    Layer,
    Network,
    convolutions,
)

Recipe = Literal["torchvision", "paper", "glorot", "he"]

# The table's columns as torchvision's `cfgs` has them, with the two that torchvision left out.
cfgs: dict[str, list[str | int]] = {
    column: [int(entry) if entry.isdigit() else entry for entry in entries.split()]
    for column, entries in COLUMNS.items()
}


HIDDEN = ("relu6", "relu7")  # dropout follows these


class L2Pool2d(nn.Module):
    """The pooling of DISTS: the Hann-weighted root of summed squares, 3x3, stride 2, padding 1.

    Source: Ding et al. 2020, arXiv:2004.07728, section 3.2; Henaff and Simoncelli,
    arXiv:1511.06394. Maps (n, channels, h, w) to (n, channels, ceil(h / 2), ceil(w / 2)), any
    floating dtype.
    """

    __constants__ = ("epsilon",)
    epsilon = L2_EPSILON  # torch.jit.script sees no global number

    def forward(self, x: Tensor) -> Tensor:
        # The window (1/4, 1/2, 1/4) is (1/2, 1/2) twice, so two plain averages of 2x2 compute it:
        # no weights to carry along, and no channel count to know. The edge is padded apart, since
        # avg_pool2d's own padding gives wrong gradients on CUDA in channels-last (pytorch#188344).
        squares = F.avg_pool2d(F.pad(x * x, (1, 1, 1, 1)), 2, stride=1)
        return torch.sqrt(F.avg_pool2d(squares, 2, stride=2) + self.epsilon)


def make_layers(
    cfg: Sequence[str | int], batch_norm: bool = False, *, in_channels: int = 3
) -> nn.Sequential:
    """The convolutions of a column, each with its ReLU, and its pools: torchvision's function.

    cfg: output channels, "M" for a 2x2 max-pool, "LRN", or "256:1" for a 1x1 convolution; `cfgs`
    has the paper's columns. Raises NetworkError for any other entry.
    """
    entries = [str(entry) for entry in cfg]
    for entry in entries:
        if not re.fullmatch(r"M|LRN|0*[1-9][0-9]*(:[13])?", entry):
            raise NetworkError(
                f'cfg has {entry!r}; expected output channels such as 64 or "256:1", "M" or "LRN"'
            )
    return nn.Sequential(*modules(convolutions(entries, in_channels, batch_norm)))


def trunk(network: Network) -> nn.Sequential:
    """The layers from conv1_1 to the end of the network's trunk, as torchvision's `features`."""
    return nn.Sequential(*modules(network.trunk, network.pool))


def modules(part: Iterable[Layer], pool: str = "max", dropout: float = 0.5) -> Iterator[nn.Module]:
    """What computes these layers: batch norms with their convolutions, and no soft-max.

    pool: a key of nets.POOLS. dropout: after the hidden FC layers (arXiv:1409.1556, section 3.1).
    """
    for layer in part:
        if layer.kind == "conv":
            yield nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, padding=layer.padding)
            if layer.norm_key:
                yield nn.BatchNorm2d(layer.outputs, eps=BATCH_NORM_EPSILON)
        elif layer.kind == "relu":
            yield nn.ReLU()
            if layer.name in HIDDEN:
                yield nn.Dropout(dropout)
        elif layer.kind == "lrn":  # torch divides the sum by its size; the paper does not
            yield nn.LocalResponseNorm(LRN_SIZE, LRN_ALPHA * LRN_SIZE, LRN_BETA, LRN_K)
        elif layer.kind == "pool":
            yield {"max": nn.MaxPool2d(2, 2), "avg": nn.AvgPool2d(2, 2), "l2": L2Pool2d()}[pool]
        elif layer.kind == "average":
            yield nn.AdaptiveAvgPool2d((layer.kernel, layer.kernel))
        elif layer.kind == "fc":
            yield nn.Linear(layer.inputs, layer.outputs)


def positions(part: Iterable[Layer]) -> dict[str, int]:
    """For each paper name, the index in `features` (or `classifier`) of what computes it."""
    return {layer.name: layer.place for layer in part if layer.kind not in ("average", "softmax")}


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


# How each recipe draws the weights of a convolution and of an FC layer.
RECIPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # Kaiming normal, fan-out, and N(0, 0.01) for the FC layers: torchvision's ``VGG.__init__``
    "torchvision": (
        lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
        lambda w: nn.init.normal_(w, 0, 0.01),
    ),
    # N(0, variance 1e-2), which is standard deviation 0.1 (arXiv:1409.1556, section 3.1). Meant for A:
    # the deeper networks do not learn from this alone, and start from a trained A (`warm_start`).
    "paper": (lambda w: nn.init.normal_(w, 0, 0.1),) * 2,
    # Glorot and Bengio 2010, which the paper later found to need no pre-training (section 3.1)
    "glorot": (lambda w: nn.init.xavier_normal_(w),) * 2,
    # N(0, 2 / fan-in), which keeps the size of values behind ReLUs (arXiv:1502.01852, section 2.2)
    "he": (lambda w: nn.init.kaiming_normal_(w, mode="fan_in", nonlinearity="relu"),) * 2,
}


def initialise(model: nn.Module, recipe: Recipe = "torchvision") -> None:
    """Overwrite every weight of `model` by that recipe, in place.

    Biases become 0, batch norms the identity, in all of them. The order of the draws is
    torchvision's: after the same `torch.manual_seed` the recipe "torchvision" gives torchvision's
    very numbers.
    """
    if recipe not in RECIPES:
        raise NetworkError(f"initialisation {recipe!r} is unknown{nearest(recipe, RECIPES)}")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            RECIPES[recipe][isinstance(module, nn.Linear)](module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
