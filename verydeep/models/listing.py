"""The models by name, as torchvision spells it: list_models, get_model, get_weight and their kin."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ..errors import NetworkError, WeightsError, nearest
from ..nets import NETWORKS
from . import vgg
from .enums import WeightsEnum
from .module import VGG


def list_models(
    module: ModuleType | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[str]:
    """The names of the models, sorted.

    module: verydeep.models or verydeep.models.vgg, which hold all of them; any other holds none.
    include, exclude: shell patterns such as "*_bn"; a name matches where one of them does.
    """
    if module is not None and module.__name__ not in (__package__, vgg.__name__):
        return []
    wanted, unwanted = _patterns(include) or ["*"], _patterns(exclude)
    return sorted(
        name
        for name in NETWORKS
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted)
    )


def get_model_builder(name: str) -> vgg.Builder:
    """The function that builds the model of that name, in any case."""
    if name.lower() not in NETWORKS:
        raise NetworkError(f"network {name!r} is unknown{nearest(name.lower(), NETWORKS)}")
    builder: vgg.Builder = getattr(vgg, name.lower())
    return builder


def get_model(name: str, **config: Any) -> VGG:
    """The model of that name; `config` goes to its builder (weights, num_classes, ...)."""
    return get_model_builder(name)(**config)


def get_model_weights(name: str | vgg.Builder) -> type[WeightsEnum]:
    """The enum of a model's published weights, by its name or its builder.

    Raises WeightsError where none were published.
    """
    name = name if isinstance(name, str) else name.__name__
    get_model_builder(name)
    if name.lower() not in vgg.ENUMS:
        raise WeightsError(f"no weights of {name} were published")
    return vgg.ENUMS[name.lower()]


def get_weight(name: str) -> WeightsEnum:
    """The enum member of that full name, such as "VGG16_Weights.IMAGENET1K_V1"."""
    members = [enum[key] for enum in vgg.ENUMS.values() for key in enum.__members__]
    known = {f"{type(one).__name__}.{one.name}": one for one in members}
    known |= {f"{e.__name__}.DEFAULT": e["DEFAULT"] for e in vgg.ENUMS.values()}
    if name not in known:
        raise WeightsError(f"weights {name!r} are unknown{nearest(name, known)}")
    return known[name]


def _patterns(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
