"""What a method of explaining is: pixels of one image in, a map for each class out; CAM and occlusion.

A map is not stretched over its image: each unit is put where its receptive field has its centre, which is
the same thing only where every pool divides evenly.

CAM: a head that averages its maps has already said what each unit adds to a score. Such a head's score is
bias + sum over channels k of w_k * mean(map_k), so the map sum_k w_k * map_k has the score, less the bias,
as its mean (Zhou et al., arXiv:1512.04150, equations 1 and 2). Where the head averages several layers, each
gives such a map at its own resolution; they are put on the finest one's grid and added, and the mean stays
what it was.

Occlusion: cover a patch of the image, and see how far the score falls (arXiv:1311.2901, section 4.2). The
patch has the mean colour of the pre-processing, which the network takes as zero. It is put on a grid of
places; the last one of a row or column ends at the border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, LayerError, NetworkError, nearest
from ..nets import Network
from ..preprocess import Preprocess
from .subject import Images, Subject

if TYPE_CHECKING:
    from . import Explainer

Pick = Callable[[np.ndarray], list[int]]  # scores of the image -> numbers of classes


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

    def upscaled(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map (h, w) for each of height x width pixels; float32."""
        down = interpolation(np.arange(height), self.ys)
        across = interpolation(np.arange(width), self.xs)
        return np.asarray(down @ values @ across.T, np.float32)


def centres(network: Network, layer: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in pixels, of the units of a trunk layer; the first pixel's centre is 0."""
    rows = network.cut((layer,)).rows(height, width)
    line = next(row for row in rows if row.layer.name == layer)
    ys, xs = (line.position + line.stride * np.arange(count) for count in line.shape[1:])
    return ys, xs


def interpolation(at: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights (len(at), len(known)) of linear interpolation; beyond the ends, the end's own value.

    at: where values are wanted. known: where they are known, increasing.
    """
    return np.stack([np.interp(at, known, unit) for unit in np.eye(len(known))], axis=1)


def cam(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    network = subject.network
    weights = _by_layer(subject)
    (values,) = subject.values([pixels], explainer.layers)
    scores = values["fc8"]
    classes = pick(scores)
    places = {name: centres(network, name, *pixels.shape[:2]) for name in explainer.layers}
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


def occlusion(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    height, width = pixels.shape[:2]
    window = explainer.window or max(1, min(height, width) // 4)
    stride = explainer.stride or max(1, window // 4)
    if window > min(height, width):
        raise DataError(
            f"window is {window}, and the network sees {width}x{height} pixels; "
            f"expected 1 to {min(height, width)}"
        )
    rows, columns = places(height, window, stride), places(width, window, stride)
    colour = mean_colour(subject.preprocess, pixels.dtype)

    def image(number: int) -> np.ndarray:
        """The whole one first, then with each place covered."""
        covered = pixels.copy()
        if number:
            row, column = divmod(number - 1, len(columns))
            top, left = rows[row], columns[column]
            covered[top : top + window, left : left + window] = colour
        return covered

    images = Images(1 + len(rows) * len(columns), image)
    whole, *others = subject.values(images)
    scores = whole["fc8"]
    classes = pick(scores)
    falls = scores - np.stack([item["fc8"] for item in others])
    falls = falls.reshape(len(rows), len(columns), -1)
    maps = [np.ascontiguousarray(falls[:, :, index]) for index in classes]
    ys, xs = (at + (window - 1) / 2 for at in (rows, columns))
    return Maps(scores, classes, maps, ys, xs, whole.engine, whole.precision)


def places(side: int, window: int, stride: int) -> np.ndarray:
    """First pixels of windows along a side, every `stride` and one at the end."""
    last = side - window
    return np.array(sorted({*range(0, last, stride), last}))


def mean_colour(preprocess: Preprocess, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The pixel, in the image's channel order, that the network takes as zero; rounded for uint8."""
    low, high = preprocess.range
    colour = (np.asarray(preprocess.mean) - low) / (high - low) * 255
    if preprocess.channel_order == "BGR":
        colour = colour[::-1]
    colour = np.clip(colour, 0, 255)
    return (np.rint(colour) if dtype == np.uint8 else colour).astype(dtype)


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
    if layer is None:
        return ()
    raise LayerError(
        f"method {name} reads the image itself, so layer {layer!r} means nothing to it; "
        "leave it out, or take gradcam"
    )


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
