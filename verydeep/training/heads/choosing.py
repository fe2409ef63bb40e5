"""What cross-validation on the training photos chooses for a head: layers, penalty, temperature.

Nothing here sees a validation photo. Features are plain (photos, channels) arrays, as `features.py`
computes them; the heads are solved by `linear.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...files.progress import stage
from ...nets import Network
from ...predictor import softmax
from . import linear
from .linear import LinearHead

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # l2, strongest first
FIRST = 2  # of them: the one with which layers are compared
JUDGED = 6000  # training photos, at most, that choices are made on
REFUSED = 0.04, 0.01  # of photos like its own: for being unlike them, for lying between classes
FAMILIAR_L2, FAMILIAR_SHARE = 0.1, 0.25  # penalty; size beside the scores that tell classes apart
ROUGH = 2e-3  # the solver's tolerance for choices


def threshold(scores: NDArray[Any], divide: float = 1.0) -> float:
    """The probability of the first answer below which one in a hundred photos like these falls.

    scores: (photos, classes), logits of held-out photos. divide: their temperature, `linear.temperature`.
    """
    return round(float(np.quantile(softmax(scores / divide).max(axis=1), REFUSED[1])), 4)


def thresholds(
    scores: NDArray[Any], labels: NDArray[Any], divide: float = 1.0
) -> NDArray[np.float32]:
    """Of several labels: for each class the probability from which on saying it has the largest F1.

    scores, labels: (photos, classes), logits of held-out photos and 0 or 1. The threshold lies half way
    between the last photo that is said to have the class and the next; 0.5 where no photo has the class.
    """
    found = np.full(labels.shape[1], 0.5)
    for at in np.flatnonzero(labels.any(axis=0)):
        chance, true = (
            1 / (1 + np.exp(-np.asarray(scores[:, at], np.float64) / divide)),
            labels[:, at] > 0,
        )
        order = np.argsort(-chance, kind="stable")
        chance, hits = np.append(chance[order], 0.0), np.cumsum(true[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        last = int(
            np.where(chance[:-1] > chance[1:], f1, 0).argmax()
        )  # equal ones are said together
        found[at] = (chance[last] + chance[last + 1]) / 2
    return found.astype(np.float32)


def mcnemar(better: int, worse: int) -> float:
    """How likely so many or more wins are by chance: one-sided exact McNemar test of two classifiers.

    better, worse: photos that only the new one has right, and that only the old one has. Half of those on
    which they differ would be won by chance (McNemar 1947).
    """
    differ = better + worse
    return min(1.0, sum(
        math.exp(math.lgamma(differ + 1) - math.lgamma(won + 1) - math.lgamma(differ - won + 1)
                 - differ * math.log(2))
        for won in range(better, differ + 1)
    ))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Chosen:
    """What cross-validation came to.

    layers, columns: of the features. l2: the penalty. held_out: (photos, classes) float32, the scores of
    each judged photo by a head that did not see it. labels: theirs. temperature: that fits held_out.
    top1, loss: of held_out, the loss after the temperature. tried: a line for each thing compared.
    """

    layers: tuple[str, ...]
    columns: NDArray[np.int64]
    l2: float
    held_out: NDArray[np.float32]
    labels: NDArray[np.int64]
    temperature: float
    top1: float
    loss: float
    tried: tuple[Mapping[str, Any], ...]


def candidates(network: Network, layers: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
    """The sets of layers to compare, or the one that was asked for; the first has all that any has."""
    if layers:
        names = [layer.name for layer in network.trunk]
        for name in layers:
            network.layer(name)
            if name not in names:
                raise DataError(
                    f"layer {name!r} belongs to the head; a probe reads layers of the trunk"
                )
        return (tuple(dict.fromkeys(layers)),)
    relus = [layer.name for layer in network.trunk if layer.kind == "relu"]
    last = relus[-7:]  # of VGG-16 relu3_3 to relu5_3
    sets = (last, last[1:-1], last[-4:])
    return tuple(dict.fromkeys(tuple(s) for s in sets if s))


def choose(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    sets: Mapping[tuple[str, ...], NDArray[np.int64]],
    *,
    l2: float = 0.0,
    folds: int = 3,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
    limit: int = 500,
) -> Chosen:
    """The set of columns and the penalty whose held-out loss is least.

    features: (photos, channels) float32. sets: layers -> their columns. l2: 0 to choose it.
    groups: photos of one group, such as copies, are held out together. Layers are compared with
    one penalty; then the penalty is made weaker as long as that helps, or stronger where it does not.
    """
    scaled = linear.scaling(features).apply(features)
    fold = linear.folds(labels, min(folds, len(labels)), groups=groups, seed=seed)
    if not fold.any():  # all in one
        raise DataError(
            f"{len(labels)} photos to learn from, no two of which differ: nothing can be held out to "
            "choose by; expected more photos"
        )
    heads: dict[tuple[tuple[str, ...], int], LinearHead] = {}
    tried: list[_Tried] = []

    def tried_with(layers: tuple[str, ...], penalty: float) -> _Tried:
        part = scaled[:, sets[layers]] if len(sets) > 1 else scaled
        scores = np.zeros((len(labels), classes), np.float32)
        for number in stage(range(int(fold.max()) + 1), f"trying l2 {penalty:g}", "fold"):
            mine = fold == number
            made = linear.solve(
                part[~mine], labels[~mine], classes, l2=penalty, start=heads.get((layers, number)),
                tolerance=ROUGH, limit=limit,
            )  # fmt: skip
            scores[mine] = made.scores(part[mine])
            heads[layers, number] = made
        divide = linear.temperature(scores, labels)
        loss = linear.log_loss(scores, labels, divide=divide)
        top1 = float((scores.argmax(axis=1) == labels).mean())
        tried.append(_Tried(layers, penalty, scores, divide, top1, loss))
        return tried[-1]

    first = l2 or PENALTIES[FIRST]
    best = min((tried_with(layers, first) for layers in sets), key=lambda one: one.loss)
    if not l2:
        for way in (PENALTIES[FIRST + 1 :], PENALTIES[:FIRST][::-1]):  # weaker, else stronger
            for penalty in way:
                other = tried_with(best.layers, penalty)
                if other.loss >= best.loss:
                    break
                best = other
            if best.l2 != first:
                break
    lines = [{"layers": list(t.layers), "l2": t.l2, "top1": t.top1, "loss": t.loss} for t in tried]
    return Chosen(
        best.layers, sets[best.layers], best.l2, best.scores, labels, best.divide, best.top1, best.loss,
        tuple(lines),
    )  # fmt: skip


def familiarity(
    features: NDArray[np.float32], fold: NDArray[Any], widths: Sequence[int], seed: int = 0
) -> LinearHead:
    """One row, (1, channels): 0 and more for all but 4 % of photos like these, less for most others.

    A soft-max of classes cannot say "none of these". Photos of anything else are not at hand, so strangers
    are made: the mean of all photos, and what a photo has, dealt out to other channels of its layer. The
    row is what tells photos from strangers, by logistic regression; fold 0 is held out, for the bias.
    features: (photos, channels), the layers' channels, as many as `widths` says, one after another.
    """
    learnt, mean = features[fold != 0], features.mean(0)
    draw, strangers, begin = np.random.default_rng(seed), np.empty_like(learnt), 0
    for width in widths:
        part = slice(begin, begin + width)
        strangers[:, part] = (mean[part] + draw.permuted(learnt[:, part], axis=1)) / 2
        begin += width
    both = np.concatenate([learnt, strangers])
    scale = linear.scaling(both)
    head = scale.fold(linear.solve(
        scale.apply(both), np.repeat((0, 1), len(learnt)), 2, l2=FAMILIAR_L2, tolerance=ROUGH,
    ))  # fmt: skip
    weight = head.weight[:1] - head.weight[1:]
    held_out = features[fold == 0] @ weight[0]
    size = max(float(held_out.std()), 1e-6)
    bias = -np.quantile(held_out, REFUSED[0], keepdims=True)
    return LinearHead(weight / np.float32(size), (bias / size).astype(np.float32))


class _Tried(NamedTuple):
    layers: tuple[str, ...]
    l2: float
    scores: NDArray[np.float32]
    divide: float
    top1: float
    loss: float
