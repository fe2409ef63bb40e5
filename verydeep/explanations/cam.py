"""CAM: a head that averages its maps has already said what each unit adds to a score.

Such a head's score is bias + sum over channels k of w_k * mean(map_k), so the map sum_k w_k * map_k has
the score, less the bias, as its mean (Zhou et al., arXiv:1512.04150, equations 1 and 2). Where the head
averages several layers, each gives such a map at its own resolution; they are put on the finest one's
grid and added, and the mean stays what it was.
"""

from __future__ import annotations

import numpy as np

from .geometry import centres, interpolation
from .methods import Maps, Options, Pick
from .subject import Subject


def cam(subject: Subject, options: Options, pixels: np.ndarray, pick: Pick) -> Maps:
    network = subject.network
    weights = _by_layer(subject)
    (values,) = subject.values([pixels], options.layers)
    scores = values["fc8"]
    classes = pick(scores)
    places = {name: centres(network, name, *pixels.shape[:2]) for name in options.layers}
    ys, xs = max(places.values(), key=lambda place: len(place[0]) * len(place[1]))
    maps = []
    for index in classes:
        total = np.zeros((len(ys), len(xs)))
        for name, place in places.items():
            share = np.tensordot(weights[name][index], values[name].astype(np.float64), 1)
            total += _on(share, place, ys, xs)
        maps.append(total.astype(np.float32))
    return Maps(scores, classes, maps, ys, xs, values.engine, values.precision)


def _by_layer(subject: Subject) -> dict[str, np.ndarray]:
    """The head's weights (classes, features) for each layer that it averages: (classes, channels)."""
    network = subject.network
    weight = subject.tensor(f"{network.layer('fc8').key}.weight")
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
