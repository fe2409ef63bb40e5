"""The door that readers of torchvision know: `vgg16(weights=...)`, its ten siblings, and their lists.

`from verydeep.models.vgg import ...` has the names of `torchvision.models.vgg`. What torchvision
refuses (other classes or channels with trained weights) is done here, and said by one warning.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypedDict, Unpack

from .. import nets
from ..errors import NetworkError, WeightsError, nearest
from ..nets import NETWORKS, Network
from ..published import catalog, supply
from ..published.finding import builtin_models
from . import loading
from .adapting import adapt
from .enums import (
    ENUMS,
    VGG11_BN_Weights,
    VGG11_Weights,
    VGG13_BN_Weights,
    VGG13_Weights,
    VGG16_BN_Weights,
    VGG16_Weights,
    VGG19_BN_Weights,
    VGG19_Weights,
    Weights,
    WeightsEnum,
)
from .layers import cfgs, initialise, make_layers
from .module import VGG

__all__ = [
    "VGG",
    "VGG11_BN_Weights",
    "VGG11_Weights",
    "VGG13_BN_Weights",
    "VGG13_Weights",
    "VGG16_BN_Weights",
    "VGG16_Weights",
    "VGG19_BN_Weights",
    "VGG19_Weights",
    "Weights",
    "WeightsEnum",
    "cfgs",
    "make_layers",
    "vgg11",
    "vgg11_bn",
    "vgg11_lrn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg16c",
    "vgg16c_bn",
    "vgg19",
    "vgg19_bn",
]

WeightsLike = WeightsEnum | str | os.PathLike[str]


class Around(TypedDict, total=False):
    """What can be chosen around a named network; the defaults are the weights' own, if any.

    num_classes (1000), in_channels (3), head ("classic"), layers (of head "gap"), width (1.0), pool
    ("max"): see `verydeep.nets.network`. dropout (0.5): after the hidden FC layers. init_weights
    (True): torchvision's initialisation, else torch's own for each layer; for a network without
    weights.
    """

    num_classes: int
    in_channels: int
    head: str
    layers: str | Iterable[str]
    width: float
    pool: str
    dropout: float
    init_weights: bool


class Builder(Protocol):
    """A function of the door."""

    __name__: str

    def __call__(
        self,
        weights: WeightsLike | bool | None = None,
        progress: bool = True,
        *,
        pretrained: bool | None = None,
        **choices: Unpack[Around],
    ) -> VGG: ...


def _builder(name: str) -> Builder:
    column, batch_norm = NETWORKS[name]
    about = f"column {column}{' with batch norm' if batch_norm else ''}"
    enum = ENUMS.get(name)

    def builder(
        weights: WeightsLike | bool | None = None,
        progress: bool = True,
        *,
        pretrained: bool | None = None,
        **choices: Unpack[Around],
    ) -> VGG:
        if isinstance(weights, bool):  # torchvision's old first argument
            weights, pretrained = None, weights
        if pretrained is not None:
            if weights is not None:
                raise WeightsError(
                    f"{name}: weights and pretrained were both given; give weights alone"
                )
            instead = 'weights="DEFAULT"' if pretrained else "weights=None"
            warnings.warn(
                f"{name}: pretrained={pretrained} is deprecated; write {instead}",
                DeprecationWarning,
                stacklevel=2,
            )
            weights = "DEFAULT" if pretrained else None
        network, dropout = partial(_network, name, choices), choices.get("dropout", 0.5)
        if weights is not None:
            return trained(name, weights, network, progress=progress, dropout=dropout)
        model = VGG.of(network(None), dropout=dropout)
        if choices.get("init_weights", True):
            initialise(model)
        return model

    builder.__name__ = builder.__qualname__ = name
    published = f"a member of {enum.__name__} or its name, " if enum else ""
    builtin = '"builtin" (the real convolutions, with a "gap" head of its own classes), '
    builtin = builtin if name == "vgg16" else ""
    builder.__doc__ = f"""The paper's {about} (arXiv:1409.1556, table 1).

    weights: {published}the path of a model file or of weights in any layout that verydeep reads,
    {builtin}or None for random ones.
    progress: a bar on stderr while weights are fetched.
    pretrained: the old spelling of weights="DEFAULT"; deprecated.
    choices: see `verydeep.models.vgg.Around`. With weights, other `num_classes`, `in_channels` or
    `head` than theirs make new FC layers or adapt the first filters, and a warning says so.

    Returns the module in training mode, as torchvision does: call `.eval()` before inference.
    Raises NetworkError for what the table does not have, WeightsError for weights that are not this
    network's.
    """
    return builder


def trained(
    name: str,
    weights: WeightsLike,
    network: Callable[[Network], Network],
    *,
    taps: tuple[str, ...] = (),
    progress: bool = True,
    dropout: float = 0.5,
) -> VGG:
    """The module of these weights, which are fetched where that is needed.

    network: makes of the weights' network the one that is wanted; one warning says what is new in it,
    where the caller was called. taps: where given, only what these layers need is read.
    Raises WeightsError where the weights are not those of the network `name`.
    """
    given = loading.read(_located(name, weights, progress), name, taps=taps)
    if given.network.name != name:
        raise WeightsError(f"{name}: weights {weights!s} are those of {given.network.name}")
    fitting, notes = adapt(given, network(given.network))
    if notes:
        warnings.warn(f"{name}: {'; '.join(notes)}", stacklevel=3)
    return loading.assemble(fitting, dropout=dropout)


def _located(name: str, weights: WeightsLike, progress: bool) -> Path:
    """The file of these weights for the network `name`, fetched where that is needed."""
    enum = ENUMS.get(name)
    if not isinstance(weights, str | os.PathLike):
        member = enum.verify(weights) if enum else None
        if member is None:
            raise WeightsError(f"no weights of {name} were published; give a path, or None")
        return supply.obtain(member.value.entry, progress)
    text = os.fspath(weights)
    if isinstance(weights, str) and text in builtin_models():
        return builtin_models()[text]
    members = enum.__members__ if enum else {}
    member = members.get(text.removeprefix(f"{enum.__name__}.") if enum else text)
    if member is not None:
        return supply.obtain(member.value.entry, progress)
    if text in catalog.ENTRIES:
        of = catalog.ENTRIES[text].network
        if of != name:  # said before half a gigabyte is fetched
            raise WeightsError(f"{name}: weights {text} are those of {of}")
        return supply.obtain(text, progress)
    if Path(text).exists():
        return Path(text)
    entries = [one.name for one in catalog.ENTRIES.values() if one.network == name]
    known = ", ".join([*members, *entries])
    raise WeightsError(
        f"{name}: there are no weights {text!r}; expected the path of a file"
        + (f", or one of: {known}" if known else ", since none of this network were published")
    )


def _network(name: str, choices: Around, trained: Network | None) -> Network:
    """The network that was asked for: what was not chosen is as in the weights, or as in the paper."""
    unknown = set(choices) - set(Around.__annotations__)
    if unknown:
        known = ", ".join(Around.__annotations__)
        raise NetworkError(f"{name} takes no {', '.join(sorted(unknown))}; expected: {known}")
    of = trained if trained is not None else nets.network(name)
    head = of.head if of.head.classes else nets.Head()
    kind = choices.get("head", head.kind)
    return nets.network(
        name,
        classes=choices.get("num_classes", head.classes),
        head=kind,
        layers=choices.get("layers", head.layers if kind == head.kind else ()),
        width=choices.get("width", of.width),
        in_channels=choices.get("in_channels", of.in_channels),
        pool=choices.get("pool", of.pool),
    )


vgg11 = _builder("vgg11")
vgg11_bn = _builder("vgg11_bn")
vgg11_lrn = _builder("vgg11_lrn")
vgg13 = _builder("vgg13")
vgg13_bn = _builder("vgg13_bn")
vgg16c = _builder("vgg16c")
vgg16c_bn = _builder("vgg16c_bn")
vgg16 = _builder("vgg16")
vgg16_bn = _builder("vgg16_bn")
vgg19 = _builder("vgg19")
vgg19_bn = _builder("vgg19_bn")


def list_models(
    module: ModuleType | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[str]:
    """The names of the models, sorted.

    module: verydeep.models or verydeep.models.vgg, which hold all of them; any other holds none.
    include, exclude: shell patterns such as "*_bn"; a name matches where one of them does.
    """
    if module is not None and module.__name__ not in (__package__, __name__):
        return []

    def matches(name: str, patterns: str | Iterable[str] | None) -> bool:
        patterns = [patterns] if isinstance(patterns, str) else patterns or ()
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return sorted(n for n in NETWORKS if matches(n, include or "*") and not matches(n, exclude))


def get_model_builder(name: str) -> Builder:
    """The function that builds the model of that name, in any case."""
    if name.lower() not in NETWORKS:
        raise NetworkError(f"network {name!r} is unknown{nearest(name.lower(), NETWORKS)}")
    builder: Builder = globals()[name.lower()]
    return builder


def get_model(name: str, **config: Any) -> VGG:
    """The model of that name; `config` goes to its builder (weights, num_classes, ...)."""
    return get_model_builder(name)(**config)


def get_model_weights(name: str | Builder) -> type[WeightsEnum]:
    """The enum of a model's published weights, by its name or its builder.

    Raises WeightsError where none were published.
    """
    name = get_model_builder(name if isinstance(name, str) else name.__name__).__name__
    if name not in ENUMS:
        raise WeightsError(f"no weights of {name} were published")
    return ENUMS[name]


def get_weight(name: str) -> WeightsEnum:
    """The enum member of that full name, such as "VGG16_Weights.IMAGENET1K_V1"."""
    known = {
        f"{enum.__name__}.{key}": member
        for enum in ENUMS.values()
        for key, member in enum.__members__.items()
    }
    if name not in known:
        raise WeightsError(f"weights {name!r} are unknown{nearest(name, known)}")
    return known[name]
