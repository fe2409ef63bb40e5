"""The five methods of explaining: pixels of one image in, a map for each class out.

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

The others follow gradients of a class's score, before the soft-max, through torch's module. Grad-CAM
weights each map of a layer by its mean gradient (arXiv:1610.02391, equations 1 and 2), Grad-CAM++ by a sum
over its positive gradients with a weight for each position (arXiv:1710.11063, equations 5, 7 and 19). Both
keep what is above zero. Integrated gradients are summed along the straight way from a plain image
(arXiv:1703.01365), the mean colour of the pre-processing. The integral is a Gauss-Legendre sum, as
captum's. The values of all pixels add up to what the score gains on the way (completeness, the paper's
proposition 1); a pixel's value is the sum over its channels.
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
    from torch import Tensor

    from ..models import VGG
    from . import Explainer

BATCH = 10  # points of ig's way in one pass

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


def gradcam(
    subject: Subject,
    explainer: Explainer,
    pixels: np.ndarray,
    pick: Pick,
    weights: Callable[[Tensor, Tensor], Tensor] = lambda gradient, _: gradient.mean((1, 2)),
) -> Maps:
    """The layer's maps, by weights that follow from gradients and maps, (channels, h, w) each."""
    import torch

    (layer,) = explainer.layers

    def compute(module: VGG, x: Tensor) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        values = module.taps(x.requires_grad_(), [layer, "fc8"])
        maps, scores = values[layer], values["fc8"][0]
        numbers = scores.detach().cpu().numpy()
        classes, sums = pick(numbers), []
        for index in classes:
            (gradient,) = torch.autograd.grad(scores[index], maps, retain_graph=True)
            with torch.no_grad():
                total = torch.tensordot(weights(gradient[0], maps[0]), maps[0], 1).relu()
            sums.append(total.cpu().numpy())
        return numbers, classes, sums

    ys, xs = centres(subject.network, layer, *pixels.shape[:2])
    return Maps(*subject.in_torch(pixels, compute), ys, xs, "torch", "exact")


def gradcam_plus(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    return gradcam(subject, explainer, pixels, pick, weights_plus)


def weights_plus(gradient: Tensor, maps: Tensor) -> Tensor:
    """A weight for each map (channels,), of its gradient and values (channels, h, w).

    Equation 19 writes the higher derivatives of exp(score) as powers of the first; its common factor
    exp(score) is left out, as in all programs, since it would overflow.
    """
    import torch

    squares = gradient**2
    below = 2 * squares + maps.sum((1, 2), keepdim=True) * squares * gradient
    alpha = torch.where(below != 0, squares / torch.where(below != 0, below, 1), 0)
    return (alpha * gradient.relu()).sum((1, 2))


def ig(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    import torch

    points, weights = np.polynomial.legendre.leggauss(explainer.steps)

    def compute(module: VGG, x: Tensor) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        with torch.no_grad():
            scores = module(x)[0].cpu().numpy()
        classes = pick(scores)
        sums = [torch.zeros_like(x[0]) for _ in classes]
        for start in range(0, explainer.steps, BATCH):
            part = slice(start, start + BATCH)
            along = torch.from_numpy((points[part] + 1) / 2).to(x)  # from -1..1 to 0..1
            share = torch.from_numpy(weights[part] / 2).to(x)
            way = (along[:, None, None, None] * x).requires_grad_()
            values = module(way)
            for total, index in zip(sums, classes, strict=True):
                (gradient,) = torch.autograd.grad(values[:, index].sum(), way, retain_graph=True)
                total += torch.tensordot(share, gradient, 1)
        return scores, classes, [(total * x[0]).sum(0).cpu().numpy() for total in sums]

    ys, xs = (np.arange(side) for side in pixels.shape[:2])
    return Maps(*subject.in_torch(pixels, compute), ys, xs, "torch", "exact")


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
