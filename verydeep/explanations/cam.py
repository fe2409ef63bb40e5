"""CAM: a head that averages its maps has already said what each unit adds to a score.

Such a head's score is bias + sum over channels k of w_k * mean(map_k), so the map sum_k w_k * map_k has
the score, less the bias, as its mean (Zhou et al., arXiv:1512.04150, equations 1 and 2). Where the head
averages several layers, each gives such a map at its own resolution; they are put on the finest one's
grid and added, and the mean stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import LayerError, NetworkError, nearest
from ..nets import Network
from ..predictor import Predictor
from .geometry import centres, interpolation
from .method import Found, Method, Options, Pick
from .passes import Passes


def prepare(
    predictor: Predictor, options: Options, tensors: Mapping[str, np.ndarray] | None = None
) -> Method:
    network = predictor.record.network
    layers = _layers(network, options.layer)
    key = network.layer("fc8").key
    held = predictor.model.tensors([f"{key}.weight"]) if tensors is None else tensors
    weights = _by_layer(network, held[f"{key}.weight"])
    passes = Passes(predictor, layers, tensors)

    def run(pixels: np.ndarray, pick: Pick) -> Found:
        height, width = pixels.shape[:2]
        values = passes(pixels[None])
        scores = values["scores"][0]
        classes = pick(scores)
        places = {name: centres(network, name, height, width) for name in layers}
        ys, xs = max(places.values(), key=lambda place: len(place[0]) * len(place[1]))
        maps = []
        for index in classes:
            total = np.zeros((len(ys), len(xs)))
            for name in layers:
                share = np.tensordot(weights[name][index], values[name][0].astype(np.float64), 1)
                total += _on(share, places[name], ys, xs)
            maps.append(total.astype(np.float32))
        return Found(scores, classes, maps, ys, xs, layers, passes.engine, passes.precision)

    return run


def _layers(network: Network, layer: str | None) -> tuple[str, ...]:
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


def _by_layer(network: Network, weight: np.ndarray) -> dict[str, np.ndarray]:
    """The head's weights (classes, features) for each layer that it averages: (classes, channels)."""
    sizes = [network.layer(name).outputs for name in network.head_inputs]
    parts = np.split(weight.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)
    return dict(zip(network.head_inputs, parts, strict=True))


def _on(
    share: np.ndarray, place: tuple[np.ndarray, np.ndarray], ys: np.ndarray, xs: np.ndarray
) -> np.ndarray:
    """A map put on a finer grid, with the same mean.

    Interpolation keeps the mean by itself where the grids divide evenly; what a border's remainder
    changes is spread over the whole.
    """
    if share.shape == (len(ys), len(xs)):
        return share
    finer: np.ndarray = interpolation(ys, place[0]) @ share @ interpolation(xs, place[1]).T
    finer += share.mean() - finer.mean()
    return finer
