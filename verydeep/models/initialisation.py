"""The numbers a network starts from, before training.

Each recipe is a function that overwrites the weights of a whole module in place; RECIPES has them
by name. A deeper network can also start from a trained A: see `warm_start`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..errors import NetworkError, nearest

if TYPE_CHECKING:
    from .module import VGG

Recipe = Literal["torchvision", "paper", "glorot", "he"]


def _torchvision(module: nn.Module) -> None:
    """Kaiming normal, fan-out, and N(0, 0.01) for the FC layers: torchvision's ``VGG.__init__``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)


def _paper(module: nn.Module) -> None:
    """N(0, variance 1e-2), which is standard deviation 0.1 (arXiv:1409.1556, section 3.1).

    Meant for A. The deeper networks start from a trained A, since they do not learn from this
    alone.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0, 0.1)


def _glorot(module: nn.Module) -> None:
    """Glorot and Bengio 2010, which the paper later found to need no pre-training (section 3.1)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)


def _he(module: nn.Module) -> None:
    """N(0, 2 / fan-in), which keeps the size of values behind ReLUs (arXiv:1502.01852, section 2.2)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


RECIPES: dict[str, Callable[[nn.Module], None]] = {
    "torchvision": _torchvision,
    "paper": _paper,
    "glorot": _glorot,
    "he": _he,
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
        RECIPES[recipe](module)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


# The first four convolutions of A and the three FC layers (arXiv:1409.1556, section 3.1). Matched
# by the paper's names: the k-th convolution of a deeper network has other channels than A's k-th.
WARM_START_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


def warm_start(model: VGG, trained: VGG) -> tuple[str, ...]:
    """Copy a trained A's first four convolutions and three FC layers into a deeper network, in
    place.

    Layers that the two networks' heads do not share are left as they are. Returns the paper names
    of the layers that were copied. Raises NetworkError where a shape differs (another width, head
    size or number of classes), before anything is changed.
    """
    net, trained_net = model.table, trained.table
    shared = set(net.taps) & set(trained_net.taps)
    pairs: list[tuple[str, str]] = []
    for name in filter(shared.__contains__, WARM_START_LAYERS):
        ours, theirs = net.layer(name), trained_net.layer(name)
        # a trained network without batch norm leaves ours the identity that it starts as
        prefixes = {ours.key: theirs.key}
        if ours.norm_key and theirs.norm_key:
            prefixes[ours.norm_key] = theirs.norm_key
        for key, shape in ours.tensors.items():
            prefix, part = key.rsplit(".", 1)
            if prefix not in prefixes:
                continue
            other = f"{prefixes[prefix]}.{part}"
            if theirs.tensors[other] != shape:
                raise NetworkError(
                    f"{name} is {theirs.tensors[other]} in {trained_net.name} and {shape} in "
                    f"{net.name}; a warm start needs the same width, head and number of classes"
                )
            pairs.append((key, other))
    source, target = trained.state_dict(), model.state_dict()
    with torch.no_grad():
        for key, other in pairs:
            target[key].copy_(source[other])
    return tuple(name for name in WARM_START_LAYERS if name in shared)
