"""The numbers a network starts from, before training.

Each recipe is a function that overwrites the weights of one layer in place; RECIPES has them by name.
A deeper network can also start from a trained A: see `verydeep.models.warm_start`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from ..errors import NetworkError, nearest

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
