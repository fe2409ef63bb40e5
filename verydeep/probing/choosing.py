"""What cross-validation on the training photos chooses for a head: layers, penalty, temperature.

Nothing here sees a validation photo. Features are plain (photos, channels) arrays, as `features.py`
computes them; the heads are solved by `linear.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..evaluation.figures import accuracy
from ..files.progress import stage
from ..nets import Network
from ..predictor import sigmoid, softmax
from . import linear
from .linear import LinearHead, Scaling

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # l2, strongest first
FIRST = 2  # of them: the one with which layers are compared
LEAST = 5  # photos that have a class, for a threshold of its own
JUDGED = 6000  # training photos, at most, that choices are made on
REFUSED = 0.04, 0.01  # of photos like its own: for being unlike them, for lying between classes
FAMILIAR_L2, FAMILIAR_SHARE = 0.1, 0.25  # penalty; size beside the scores that tell classes apart
ROUGH, FINE = 2e-3, 1e-4  # the solver's tolerance for choices and for the answer
FOLDS, IN_FOLDS = 10, 3000  # of a small set, at most; photos in all folds together


def threshold(scores: NDArray[Any], divide: float = 1.0) -> float:
    """The probability of the first answer below which one in a hundred photos like these falls.

    scores: (photos, classes), logits of held-out photos. divide: their temperature, `linear.temperature`.
    """
    least = float(np.quantile(softmax(scores / divide).max(axis=1), REFUSED[1]))
    return math.floor(least * 1e4) / 1e4  # rounded up, sure answers would be refused


def thresholds(
    scores: NDArray[Any], labels: NDArray[Any], divide: float = 1.0
) -> NDArray[np.float32]:
    """Of several labels: for each class the probability from which on saying it has the largest F1.

    scores, labels: (photos, classes), logits of held-out photos and 0 or 1. The threshold lies half way
    between the last photo that is said to have the class and the next. It is 0.5 where that would say the
    class of every photo, which has the largest F1 where nothing is known of it, and where fewer than five
    photos have it: one that the head misses would bring the threshold down to where all photos are.
    """
    found = np.full(labels.shape[1], 0.5)
    for at in np.flatnonzero((labels > 0).sum(axis=0) >= LEAST):
        chance, true = sigmoid(scores[:, at] / divide), labels[:, at] > 0
        order = np.argsort(-chance, kind="stable")
        chance, hits = np.append(chance[order], 0.0), np.cumsum(true[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        ends = chance[:-1] > chance[1:]  # equal ones are said together
        last = int(np.where(ends, f1, 0).argmax())
        if last < len(true) - 1:
            found[at] = (chance[last] + chance[last + 1]) / 2
    return found.astype(np.float32)


def limits(scores: NDArray[Any], labels: NDArray[Any], divide: float) -> dict[str, Any]:
    """Of held-out photos: "threshold", or of several labels "thresholds", as a model's record has them."""
    if labels.ndim == 1:
        return {"threshold": threshold(scores, divide)}
    return {"thresholds": tuple(thresholds(scores, labels, divide).tolist())}


def mcnemar(better: int, worse: int) -> float:
    """How likely so many or more wins are by chance: one-sided exact McNemar test of two classifiers.

    better, worse: photos that only the new one has right, and that only the old one has. Half of those on
    which they differ would be won by chance (McNemar 1947).
    """
    differ = better + worse
    chances = (math.comb(differ, won) for won in range(better, differ + 1))
    return float(sum(chances) / 2**differ)


def less(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """How likely so much smaller a mean loss is by chance: one-sided paired t-test, of many photos' losses.

    A photo that is named more surely counts, and not only one that is named otherwise: this tells smaller
    gains from chance than `mcnemar` can.
    """
    gains = theirs - ours
    error = gains.std() / math.sqrt(max(1, len(gains) - 1))
    return 0.5 * math.erfc(float(gains.mean() / error) / math.sqrt(2)) if error else 1.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """What cross-validation came to.

    layers, columns: of the features. scaling: of these columns. l2: the penalty.
    held_out: (photos, classes) float32, the scores of each judged photo by a head that did not see it.
    labels: theirs. folds: how many there were. temperature: that fits held_out. top1, loss: of held_out,
    the loss after the temperature; of several labels top1 is the mean average precision. tried: a line for
    each attempt.
    """

    layers: tuple[str, ...]
    columns: NDArray[np.int64]
    scaling: Scaling
    l2: float
    held_out: NDArray[np.float32]
    labels: NDArray[Any]
    temperature: float
    top1: float
    loss: float
    folds: int
    tried: tuple[Mapping[str, Any], ...] = ()

    @property
    def figure(self) -> str:
        """What the log calls `top1`."""
        return "mean_average_precision" if self.labels.ndim == 2 else "top1"


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
    sets = (last, last[2:], last[-4:])
    return tuple(dict.fromkeys(tuple(s) for s in sets if s))


def choose(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    classes: int,
    widths: Mapping[str, int],
    sets: Sequence[tuple[str, ...]],
    *,
    l2: float = 0.0,
    folds: int = 3,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
    limit: int = 500,
) -> Chosen:
    """The set of layers and the penalty whose held-out loss is least.

    features: (views, photos, channels) float32. A photo is learned from in all its views and judged by the
    first. widths: layer -> its channels, one layer after another. sets: of layers, to be compared. l2: 0
    to choose it. folds: at least so many; a small set has up to ten, so that nine tenths of it are learned
    from. groups: photos of one group, such as copies, are held out together. Layers are compared with one
    penalty; then it is made weaker as long as that helps, or stronger where it does not.
    """
    views, count, channels = features.shape
    rows = features.reshape(-1, channels)
    scale = linear.scaling(rows, tuple(widths.values()))
    scaled = scale.apply(rows).reshape(features.shape)
    parts = min(count, max(folds, min(FOLDS, IN_FOLDS // count)))
    fold = linear.folds(labels, parts, groups=groups, seed=seed)
    if not fold.any():  # all in one
        raise DataError(
            f"{count} photos to learn from, no two of which differ: nothing can be held out to choose by; "
            "expected more photos"
        )
    heads: dict[tuple[tuple[str, ...], int], LinearHead] = {}
    tried: list[Chosen] = []

    def tried_with(layers: tuple[str, ...], penalty: float) -> Chosen:
        at = columns(widths, layers)
        scores = np.zeros((count, classes), np.float32)
        for number in stage(range(int(fold.max()) + 1), f"trying l2 {penalty:g}", "fold"):
            mine = fold == number
            learnt = scaled[:, ~mine][..., at].reshape(-1, len(at))
            made = linear.solve(
                learnt, np.concatenate([labels[~mine]] * views), classes, l2=penalty,
                start=heads.get((layers, number)), tolerance=ROUGH, limit=limit,
            )  # fmt: skip
            scores[mine] = made.scores(scaled[0, mine][:, at])
            heads[layers, number] = made
        divide = linear.temperature(scores, labels)
        loss = linear.log_loss(scores, labels, divide=divide)
        top1 = next(iter(accuracy(scores, labels).values()))
        own = Scaling(scale.mean[at], scale.deviation[at])
        tried.append(Chosen(layers, at, own, penalty, scores, labels, divide, top1, loss, parts))
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
    lines = (
        {"layers": list(t.layers), "l2": t.l2, t.figure: t.top1, "loss": t.loss} for t in tried
    )
    return replace(best, tried=tuple(lines))


def columns(widths: Mapping[str, int], layers: Sequence[str]) -> NDArray[np.int64]:
    """Of features whose layers have so many channels, one after another: those of `layers`."""
    ends = dict(zip(widths, np.cumsum(list(widths.values())), strict=True))
    return np.concatenate([np.arange(ends[name] - widths[name], ends[name]) for name in layers])


def finished(
    features: NDArray[np.float32], labels: NDArray[Any], classes: int, widths: Mapping[str, int],
    chosen: Chosen, *, groups: NDArray[Any] | None = None, seed: int = 0, limit: int = 500,
) -> LinearHead:  # fmt: skip
    """The head that was chosen, solved on all photos; on raw features, with its temperature in it.

    features: (views, photos, channels) float32. groups: as for `choose`. What all scores have in common is
    nothing to a soft-max: it says how familiar a photo is. Sigmoids have no such thing.
    """
    part = features[..., chosen.columns]
    rows = part.reshape(-1, part.shape[2])
    head = linear.solve(
        chosen.scaling.apply(rows), np.concatenate([labels] * len(part)), classes, l2=chosen.l2,
        tolerance=FINE, limit=limit,
    )  # fmt: skip
    head = chosen.scaling.fold(head)
    weight, bias = head.weight / chosen.temperature, head.bias / chosen.temperature
    if labels.ndim == 1:
        at = np.random.default_rng(seed).permutation(len(labels))[:JUDGED]
        names = None if groups is None else groups[at]
        fold = linear.folds(labels[at], min(3, len(at)), groups=names, seed=seed)
        known = familiarity(part[0, at], fold, [widths[name] for name in chosen.layers], seed)
        size = FAMILIAR_SHARE * chosen.held_out.std() / chosen.temperature
        weight = weight - weight.mean(0) + known.weight * size
        bias = bias - bias.mean() + known.bias * size
    return replace(head, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


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
