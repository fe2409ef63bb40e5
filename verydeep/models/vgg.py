"""The door that readers of torchvision know: `vgg16(weights=...)` and its ten siblings.

`from verydeep.models.vgg import ...` has the names of `torchvision.models.vgg`. What torchvision
refuses (other classes or channels with trained weights) is done here, and said by one warning.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from .. import nets
from ..errors import NetworkError, WeightsError
from ..nets import NETWORKS, Network
from ..published import catalog, supply
from . import loading
from .enums import (
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
from .initialisation import initialise
from .layers import cfgs, make_layers
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

# The networks that somebody published weights of, under torchvision's enums.
ENUMS: dict[str, type[WeightsEnum]] = {
    "vgg11": VGG11_Weights,
    "vgg11_bn": VGG11_BN_Weights,
    "vgg13": VGG13_Weights,
    "vgg13_bn": VGG13_BN_Weights,
    "vgg16": VGG16_Weights,
    "vgg16_bn": VGG16_BN_Weights,
    "vgg19": VGG19_Weights,
    "vgg19_bn": VGG19_BN_Weights,
}

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
    layers: tuple[str, ...]
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
        if weights is None:
            return _untrained(name, choices)
        return _trained(name, weights, progress, choices)

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


def locate(name: str, weights: WeightsLike, progress: bool = True) -> Path:
    """The file of these weights for the network `name`, fetched where that is needed."""
    enum = ENUMS.get(name)
    if isinstance(weights, str) and weights == "builtin":
        return loading.BUILTIN
    if not isinstance(weights, str | os.PathLike):
        if enum is None:
            raise WeightsError(f"no weights of {name} were published; give a path, or None")
        member = enum.verify(weights)
        assert member is not None
        return supply.obtain(member.value.entry, progress)
    text = os.fspath(weights)
    member_name = text.removeprefix(f"{enum.__name__}.") if enum else text
    if enum and member_name in enum.__members__:
        return supply.obtain(enum[member_name].value.entry, progress)
    if text in catalog.ENTRIES:
        of = catalog.ENTRIES[text].network
        if of != name:  # said before half a gigabyte is fetched
            raise WeightsError(f"{name}: weights {text} are those of {of}")
        return supply.obtain(text, progress)
    if Path(text).exists():
        return Path(text)
    published = [*(enum.__members__ if enum else ())]
    published += [one.name for one in catalog.ENTRIES.values() if one.network == name]
    known = ", ".join(published)
    raise WeightsError(
        f"{name}: there are no weights {text!r}; expected the path of a file"
        + (f", or one of: {known}" if known else ", since none of this network were published")
    )


def _untrained(name: str, choices: Around) -> VGG:
    model = VGG.of(_network(name, choices, None), dropout=choices.get("dropout", 0.5))
    if choices.get("init_weights", True):
        initialise(model)
    return model


def _trained(name: str, weights: WeightsLike, progress: bool, choices: Around) -> VGG:
    found = expect(name, loading.read(locate(name, weights, progress), name), weights)
    network = _network(name, choices, found.network)
    adapted = adapt(name, found, network, stacklevel=3)
    return loading.assemble(adapted, dropout=choices.get("dropout", 0.5))


def expect(name: str, found: loading.Weights, weights: WeightsLike) -> loading.Weights:
    """The weights, where they are those of the network `name`; else WeightsError."""
    if found.network.name != name:
        raise WeightsError(f"{name}: weights {weights!s} are those of {found.network.name}")
    return found


def adapt(
    name: str, found: loading.Weights, network: Network, *, stacklevel: int
) -> loading.Weights:
    """The weights for that network, with one warning of what is new, where the user called."""
    adapted, notes = loading.adapt(found, network)
    if notes:
        warnings.warn(f"{name}: {'; '.join(notes)}", stacklevel=stacklevel + 1)
    return adapted


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
        layers=tuple(choices.get("layers", head.layers if kind == head.kind else ())),
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
