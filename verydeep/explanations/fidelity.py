"""Can a heat map be believed? Cover the image in its order, and give the network other weights.

deletion     the pixels that the map calls strongest are replaced by the mean colour first; the faster the
             class's probability falls, the smaller the area under the curve (Petsiuk et al.,
             arXiv:1806.07421, section 4.2)
insertion    the same pixels come first into a blurred image; the faster it rises, the larger the area
weights      layers get random weights from the head downwards, and the map is made again (Adebayo et al.,
             arXiv:1810.03292, section 4.1); a map that stays as it was shows the image, not the network

Areas are compared with those of the same map moved by half the photo, down and across. Two maps are
compared by Spearman's rank correlation, which neither scale nor colours can change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..nets import Network
from ..predictor import softmax
from .occlusion import mean_colour
from .passes import Passes

if TYPE_CHECKING:
    from . import Explainer, Explanation

# Mean rank correlation with all weights random, from which a map counts as unchanged. Maps have few cells,
# so chance alone gave up to 0.5 for CAM and Grad-CAM on six of examples/photos; edges give 1.
UNCHANGED = 0.7
BLUR = 5 / 224  # deviation of the insertion's first image, of its side: Petsiuk's 5 pixels at 224


@dataclass(frozen=True)
class Step:
    """random: the layers that had random weights, "fc8" or "conv5_1 to fc8". correlation: of the maps, -1
    to 1, the mean over the draws."""

    random: str
    correlation: float


@dataclass(frozen=True, eq=False)
class Fidelity:
    """What the checks say of one heat map.

    deletion, insertion: the class's probability with 0, 1/n, ... of the pixels replaced.
    deletion_area, insertion_area: below these curves, 0 to 1.
    moved_deletion_area, moved_insertion_area: the same for the map moved by half the photo.
    steps: with ever more random weights, the last one with all of them random.
    """

    label: str
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    deletion_area: float
    insertion_area: float
    moved_deletion_area: float
    moved_insertion_area: float
    steps: tuple[Step, ...]

    @property
    def changes(self) -> bool:
        """Whether the map depends on the weights: its correlation with all of them random is small."""
        return self.steps[-1].correlation < UNCHANGED

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        values: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, float):
                values[key] = round(value, 5)
            elif key in ("deletion", "insertion"):
                values[key] = [round(number, 5) for number in value]
        steps = [{"random": s.random, "correlation": round(s.correlation, 4)} for s in self.steps]
        return {"label": self.label, **values, "steps": steps, "changes": self.changes}

    def __str__(self) -> str:
        def against(area: float, moved: float, better: bool) -> str:
            return f"{area:.3f} (map moved {moved:.3f}){'' if better else ', which is no better'}"

        deletion = against(
            self.deletion_area,
            self.moved_deletion_area,
            self.deletion_area < self.moved_deletion_area,
        )
        insertion = against(
            self.insertion_area,
            self.moved_insertion_area,
            self.insertion_area > self.moved_insertion_area,
        )
        steps = ", ".join(f"{step.random} {step.correlation:+.2f}" for step in self.steps)
        verdict = (
            "the map depends on the weights"
            if self.changes
            else "THE MAP DOES NOT CHANGE: it shows the image, not what the network learned"
        )
        return (
            f"deletion area {deletion}, insertion area {insertion}\n"
            f"rank correlation with random weights: {steps}: {verdict}"
        )


def check(
    explainer: Explainer,
    explanation: Explanation,
    *,
    steps: int = 16,
    draws: int = 2,
    seed: int = 0,
) -> Fidelity:
    """Check the first heat map of an explanation that this explainer made.

    steps: of each curve. draws: of random weights for each group of layers. The same seed gives the same
    figures. Raises DataError where steps or draws are less than 1.
    """
    if steps < 1 or draws < 1:
        raise DataError(f"steps is {steps} and draws is {draws}; expected 1 or more of each")
    heat, pixels = explanation.maps[0], explanation.pixels
    draw = np.random.default_rng(seed)
    half = pixels.shape[0] // 2, pixels.shape[1] // 2
    moved = np.roll(heat.upscaled, half, (0, 1))  # as smooth, but elsewhere
    passes = Passes(explainer.predictor)
    plain = np.broadcast_to(mean_colour(explainer.predictor.preprocess, pixels.dtype), pixels.shape)
    blurred = _blurred(pixels)
    curves = []
    for shown in (heat.upscaled, moved):
        order = np.argsort(-shown.reshape(-1), kind="stable")
        for start, end in ((pixels, plain), (blurred, pixels)):
            images = _mixed(start, end, order, steps)
            curves.append([float(softmax(s)[heat.index]) for s in passes.scores(images, steps + 1)])
    areas = [(sum(curve) - (curve[0] + curve[-1]) / 2) / steps for curve in curves]
    return Fidelity(
        label=heat.label,
        deletion=tuple(curves[0]),
        insertion=tuple(curves[1]),
        deletion_area=areas[0],
        insertion_area=areas[1],
        moved_deletion_area=areas[2],
        moved_insertion_area=areas[3],
        steps=tuple(_random_steps(explainer, explanation, draws, draw)),
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of all values; equal values share their mean rank. 0 where one is constant."""
    ranks = [_ranks(np.asarray(values, np.float64).reshape(-1)) for values in (a, b)]
    first, second = (values - values.mean() for values in ranks)
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: np.ndarray = (last - (count - 1) / 2)[place.reshape(-1)]
    return ranks


def _mixed(
    start: np.ndarray, end: np.ndarray, order: np.ndarray, steps: int
) -> Iterator[np.ndarray]:
    """From one image to the other, pixel by pixel in that order, in equal steps."""
    mixed = start.copy()
    flat, target = mixed.reshape(-1, start.shape[2]), end.reshape(-1, start.shape[2])
    before = 0
    for step in range(steps + 1):
        count = round(step * len(order) / steps)
        flat[order[before:count]] = target[order[before:count]]
        before = count
        yield mixed.copy()


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """The image without its details; dtype and shape as they were."""
    values = pixels.astype(np.float64)
    for axis in (0, 1):
        side = values.shape[axis]
        apart = np.subtract.outer(np.arange(side), np.arange(side))
        weights = np.exp(-0.5 * (apart / (BLUR * min(pixels.shape[:2]))) ** 2)
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return (np.rint(values) if pixels.dtype == np.uint8 else values).astype(pixels.dtype)


def _random_steps(
    explainer: Explainer, explanation: Explanation, draws: int, draw: np.random.Generator
) -> Iterator[Step]:
    heat = explanation.maps[0]
    network = explainer.predictor.record.network
    tensors = explainer.predictor.model.tensors()
    for name, layers in _groups(network):
        found = []
        for _ in range(draws):
            run = explainer.prepare(_randomised(network, tensors, layers, draw))
            values = run(explanation.pixels, lambda _: [heat.index]).maps[0]
            found.append(rank_correlation(heat.map, values))
        yield Step(name, sum(found) / len(found))


def _groups(network: Network) -> list[tuple[str, set[str]]]:
    """Layers with weights, from the head alone to all of them, in three steps."""
    weighted = [layer.name for layer in network.layers if layer.key]
    convolutions = [name for name in weighted if name.startswith("conv")]
    last = [name for name in convolutions if name[:5] == convolutions[-1][:5]]
    head = [name for name in weighted if name.startswith("fc")]
    return [
        (head[0] if len(head) == 1 else f"{head[0]} to {head[-1]}", set(head)),
        (f"{last[0]} to {head[-1]}", {*last, *head}),
        ("all layers", set(weighted)),
    ]


def _randomised(
    network: Network,
    tensors: dict[str, np.ndarray],
    layers: set[str],
    draw: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The weights with those of some layers drawn anew: normal, with He's deviation; biases 0."""
    mixed = dict(tensors)
    for layer in network.layers:
        if layer.name not in layers:
            continue
        for key, shape in layer.tensors.items():
            if key == f"{layer.key}.weight":
                deviation = math.sqrt(2 / math.prod(shape[1:]))
                mixed[key] = draw.normal(0, deviation, shape).astype(np.float32)
            elif key == f"{layer.key}.bias":
                mixed[key] = np.zeros(shape, np.float32)
    return mixed
