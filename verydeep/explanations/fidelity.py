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

from ..errors import DataError, require_whole
from ..nets import Layer, Network
from ..predictor import probabilities
from .methods import mean_colour
from .picture import blurred
from .subject import Images, Subject

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
        return {**asdict(self), "changes": self.changes}

    def __str__(self) -> str:
        fall, moved_fall = self.deletion_area, self.moved_deletion_area
        rise, moved_rise = self.insertion_area, self.moved_insertion_area
        steps = ", ".join(f"{step.random} {step.correlation:+.2f}" for step in self.steps)
        doubts = []
        if not self.changes:
            doubts.append(
                "it does not change with random weights, so it shows the image, not what was learnt"
            )
        if fall >= moved_fall:
            doubts.append(
                "covering what it shows lowers the class no faster than covering another place"
            )
        if rise <= moved_rise:
            doubts.append("uncovering what it shows raises the class no faster than another place")
        verdict = f"do not trust this map: {'; '.join(doubts)}" if doubts else (
            "this map can be believed: covering what it shows lowers the class, and it depends on what was "
            "learnt"
        )  # fmt: skip
        return (
            f"{verdict}\n"
            f"deletion area {fall:.3f} (map moved {moved_fall:.3f}), "
            f"insertion area {rise:.3f} (map moved {moved_rise:.3f})\n"
            f"rank correlation with random weights: {steps}"
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
    require_whole(DataError, steps=steps, draws=draws)
    require_whole(DataError, 0, seed=seed)
    heat, pixels = explanation.maps[0], explanation.pixels
    own = (explainer.model, explainer.method, explainer.layers)
    given = (explanation.model, explanation.method, explanation.layers)
    if own != given or explainer.predictor.labels[heat.index : heat.index + 1] != (heat.label,):
        theirs, ours = (" ".join((m, *layers, "of", model)) for model, m, layers in (given, own))
        raise DataError(
            f"the explanation is {theirs}, and this Explainer makes {ours}; check it with the one that "
            "made it"
        )
    subject = Subject(explainer.predictor)
    half = pixels.shape[0] // 2, pixels.shape[1] // 2
    moved = np.roll(heat.upscaled, half, (0, 1))  # as smooth, but elsewhere
    plain = np.broadcast_to(mean_colour(subject.preprocess, pixels.dtype), pixels.shape)
    faint = blurred(pixels, BLUR * min(pixels.shape[:2]))
    faint = (np.rint(faint) if pixels.dtype == np.uint8 else faint).astype(pixels.dtype)
    curves = []
    for shown in (heat.upscaled, moved):
        for start, end in ((pixels, plain), (faint, pixels)):
            rows = subject.values(_mixed(start, end, shown, steps))
            chances = (probabilities(explainer.predictor.record, row["fc8"]) for row in rows)
            curves.append([float(chance[heat.index]) for chance in chances])
    areas = [(sum(curve) - (curve[0] + curve[-1]) / 2) / steps for curve in curves]
    draw = np.random.default_rng(seed)
    return Fidelity(
        heat.label, tuple(curves[0]), tuple(curves[1]), areas[0], areas[1], areas[2], areas[3],
        tuple(_random_steps(explainer, explanation, draws, draw)),
    )  # fmt: skip


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of all values; equal values share their mean rank. 0 where one is constant."""
    ranks = [_ranks(np.asarray(values, np.float64).reshape(-1)) for values in (a, b)]
    first, second = (values - values.mean() for values in ranks)
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)])


def _mixed(start: np.ndarray, end: np.ndarray, shown: np.ndarray, steps: int) -> Images:
    """From one image to the other, the strongest pixels of a map first, in equal steps."""
    order = np.argsort(-shown.reshape(-1), kind="stable")

    def image(step: int) -> np.ndarray:
        mixed = start.copy()
        gone = order[: round(step * len(order) / steps)]
        mixed.reshape(-1, mixed.shape[2])[gone] = end.reshape(-1, mixed.shape[2])[gone]
        return mixed

    return Images(steps + 1, image)


def _random_steps(
    explainer: Explainer, explanation: Explanation, draws: int, draw: np.random.Generator
) -> Iterator[Step]:
    heat = explanation.maps[0]
    tensors = explainer.predictor.model.tensors()
    for name, layers in _groups(explainer.predictor.record.network):
        alike = 0.0
        for _ in range(draws):
            other = Subject(explainer.predictor, _randomised(tensors, layers, draw))
            maps = explainer.run(other, explainer, explanation.pixels, lambda _: [heat.index]).maps
            alike += rank_correlation(heat.map, maps[0])
        yield Step(name, alike / draws)


def _groups(network: Network) -> list[tuple[str, list[Layer]]]:
    """Layers with weights, from the head alone to all of them, in three steps."""
    weighted = [layer for layer in network.layers if layer.key]
    head = [layer for layer in weighted if layer.kind == "fc"]
    block = weighted[-len(head) - 1].name.split("_")[0]
    last = [layer for layer in weighted if layer.name.startswith(f"{block}_")] + head
    names = [f"{group[0].name} to {head[-1].name}" for group in (head, last)]
    return [
        (names[0] if len(head) > 1 else head[0].name, head),
        (names[1], last),
        ("all layers", weighted),
    ]


def _randomised(
    tensors: dict[str, np.ndarray], layers: list[Layer], draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """The weights with those of some layers drawn anew: normal, with He's deviation; biases 0."""
    mixed = dict(tensors)
    for layer in layers:
        shape = layer.tensors[f"{layer.key}.weight"]
        normal = draw.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        mixed[f"{layer.key}.weight"] = normal.astype(np.float32)
        mixed[f"{layer.key}.bias"] = np.zeros(shape[0], np.float32)
    return mixed
