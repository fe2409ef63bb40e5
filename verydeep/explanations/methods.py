"""What a method of explaining is: pixels of one image in, a map for each class out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from ..errors import LayerError, NetworkError, nearest
from ..nets import Network
from .subject import Subject

# method -> the module that has the function of that name ("++" is _plus there)
METHODS: dict[str, str] = {
    "cam": "cam",
    "gradcam": "gradients",
    "gradcam++": "gradients",
    "occlusion": "occlusion",
    "ig": "gradients",
}
GRADIENTS = tuple(name for name, module in METHODS.items() if module == "gradients")


@dataclass(frozen=True)
class Options:
    """What a method is told; see `Explainer`. layers: that it reads, none where it reads the image."""

    layers: tuple[str, ...] = ()
    steps: int = 50
    window: int | None = None
    stride: int | None = None


@dataclass(frozen=True, eq=False)
class Maps:
    """What a method says of one image.

    scores: (classes,) float32, of the whole image. classes: those that were picked. maps: one a picked
    class, (h, w) float32. ys, xs: where the maps' rows and columns lie, in pixels of the image; the
    first pixel's centre is 0.
    """

    scores: np.ndarray
    classes: list[int]
    maps: list[np.ndarray]
    ys: np.ndarray
    xs: np.ndarray
    engine: str
    precision: str


Pick = Callable[[np.ndarray], list[int]]  # scores of the image -> numbers of classes
Method = Callable[[Subject, Options, np.ndarray, Pick], Maps]  # of pixels (height, width, channels)


def method_of(name: str) -> Method:
    """The function of a method."""
    module = import_module(f".{METHODS[name]}", __package__)
    function: Method = getattr(module, name.replace("++", "_plus"))
    return function


def layers_read(network: Network, name: str, layer: str | None) -> tuple[str, ...]:
    """The layers whose maps a method reads: those that a person chose, or its own choice.

    NetworkError or LayerError where the network has none such, or the method cannot use it.
    """
    if layer is not None:
        network.layer(layer)
    if name == "cam":
        return _averaged(network, layer)
    if name in ("gradcam", "gradcam++"):
        return (_before_the_scores(network, layer),)
    if layer is not None:
        raise LayerError(
            f"method {name} reads the image itself, so layer {layer!r} means nothing to it; "
            "leave it out, or take gradcam"
        )
    return ()


def _averaged(network: Network, layer: str | None) -> tuple[str, ...]:
    if network.head.kind != "gap":
        raise NetworkError(
            f'cam needs a head that averages its maps (head "gap"); this {network.name} has the '
            f'"{network.head.kind}" head with FC layers in between. Use method gradcam'
        )
    read = network.head.layers
    if layer is not None and layer not in read:
        raise LayerError(
            f"cam reads the layers that this head averages, {', '.join(read)}; {layer!r} is not one"
            f"{nearest(layer, read) if len(read) > 12 else ''}. Use method gradcam for it"
        )
    return read if layer is None else (layer,)


def _before_the_scores(network: Network, layer: str | None) -> str:
    """A layer with a map on which the scores depend; the last ReLU where none was chosen."""
    read = network.cut("fc8")
    names = [one.name for one in read.trunk]
    if layer is None:
        return read.last_relus[-1]
    if layer in names:
        return layer
    if layer in [one.name for one in network.trunk]:
        raise LayerError(
            f"the scores of this {network.name} do not depend on {layer!r}: its head reads "
            f"{', '.join(network.head_inputs)}; expected {names[-1]} or a layer before it"
        )
    raise LayerError(
        f"{layer!r} has no map, only one number a channel; expected a layer of the trunk, such as "
        f"{names[-1]}{nearest(layer, names)}"
    )
