"""A linear classifier solved, not trained: logistic regression with an L2 penalty, in numpy.

The loss is convex, so there is one answer and no rate, batch or epoch to choose. L-BFGS (Liu and Nocedal
1989) finds it; since scores are linear in the weights, the search along a direction costs no pass over the
features, and each step costs two. Everything here works on a plain (examples, features) array: what the
features are is the caller's business.

Labels are whole numbers, (examples,), where each example is of one class: then a soft-max of the scores
says which. Or they are 0 and 1, (examples, classes), where it may be of several or none: then a sigmoid of
each score says whether.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..predictor import sigmoid, softmax

Array = NDArray[Any]

MEMORY = 10  # pairs of steps and changes of gradient that L-BFGS remembers
ENOUGH_DECREASE = 1e-4  # Armijo's condition, of the decrease that the slope promises
FLAT = 0.5  # a step is good where the slope along it has fallen to this much of what it was


@dataclass(frozen=True)
class LinearHead:
    """scores = features @ weight.T + bias.

    weight: (classes, features) float32. bias: (classes,) float32. steps: of the solver.
    gradient: largest absolute entry of the loss's gradient where it stopped; 0 at the answer.
    """

    weight: Array
    bias: Array
    steps: int = 0
    gradient: float = 0.0

    def scores(self, features: Array) -> Array:
        """Logits, (examples, classes) float32, of (examples, features)."""
        return np.asarray(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Scaling:
    """What brings each feature to mean 0 and a fitting size; a feature that never changes becomes 0.

    mean, deviation: (features,) float32, what is taken away and what the rest is divided by.
    """

    mean: Array
    deviation: Array

    def apply(self, features: Array) -> Array:
        """A new float32 array, (examples, features)."""
        return np.asarray((features - self.mean) / self.deviation, np.float32)

    def fold(self, head: LinearHead) -> LinearHead:
        """The head that gives on raw features what `head` gives on scaled ones."""
        weight = head.weight.astype(np.float64) / self.deviation
        bias = head.bias - weight @ self.mean.astype(np.float64)
        return replace(head, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def scaling(features: Array, widths: Sequence[int] | None = None) -> Scaling:
    """The scaling of (examples, features); sums are formed in float64.

    widths: of layers, whose channels the features are, one layer after another. Then all layers have the
    same size, and a channel is divided by the geometric mean of its own deviation and its layer's, so that
    lively channels count for more: measured better than a deviation of 1 for each, which is None.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    still = deviation <= 1e-6 * np.maximum(1e-30, np.abs(mean))  # rounding, or nothing at all
    divisor = deviation
    if widths is not None:
        layers = np.split(deviation, np.cumsum(widths)[:-1])
        divisor = np.sqrt(deviation * np.repeat([layer.mean() for layer in layers], widths))
    return Scaling(mean.astype(np.float32), np.where(still, np.inf, divisor).astype(np.float32))


def solve(
    features: Array,
    labels: Array,
    classes: int,
    *,
    l2: float,
    start: LinearHead | None = None,
    tolerance: float = 1e-5,
    limit: int = 500,
) -> LinearHead:
    """The head that minimises mean cross-entropy + l2 / 2 * (sum of squared weights); biases are free.

    features: (examples, features) float32, scaled. labels: (examples,) whole numbers below `classes`, or
    (examples, classes) of 0 and 1, where the cross-entropy is the sum of the classes' binary ones.
    start: a head to begin with, such as the answer for a neighbouring l2. Stops where the gradient's
    largest entry is at most `tolerance`, or after `limit` steps.

    scikit-learn's ``LogisticRegression(C=1 / (l2 * examples))`` has the same answer; for labels of 0 and 1
    one for each class.
    """
    if not l2 > 0:
        raise DataError(f"l2 is {l2}; expected a number above 0, or the answer may be infinite")
    loss = _Loss(features, np.asarray(labels), classes, l2)
    at = np.zeros((classes, features.shape[1] + 1))
    if start is not None:
        at[:, :-1], at[:, -1] = start.weight, start.bias
    scores = loss.scores(at)
    gradient = loss.gradient(at, scores)
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=MEMORY)
    steps = 0
    while steps < limit and np.abs(gradient).max(initial=0) > tolerance:
        direction = _direction(gradient, pairs)
        along = loss.scores(direction)
        step = loss.search(at, direction, scores, along, first=1.0 if pairs else None)
        if step == 0:  # no better point can be told apart in these digits
            break
        at, scores, before = at + step * direction, scores + step * along, gradient
        gradient = loss.gradient(at, scores)
        change, move = gradient - before, step * direction
        curvature = float((change * move).sum())
        if curvature > 0:
            pairs.append((move, change, curvature))
        steps += 1
    largest = float(np.abs(gradient).max(initial=0))
    return LinearHead(at[:, :-1].astype(np.float32), at[:, -1].astype(np.float32), steps, largest)


class _Loss:
    """The penalised cross-entropy of heads held as (classes, features + 1), the bias last."""

    def __init__(self, features: Array, labels: Array, classes: int, l2: float) -> None:
        self.features, self.several = features, labels.ndim == 2
        self.chances = sigmoid if self.several else softmax
        self.truth = labels if self.several else np.eye(classes, dtype=np.float32)[labels]
        self.penalty = np.append(np.full(features.shape[1], l2), 0.0)

    def scores(self, head: Array) -> Array:
        weight = head[:, :-1].astype(np.float32)
        return np.asarray((self.features @ weight.T).astype(np.float64) + head[:, -1])

    def gradient(self, head: Array, scores: Array) -> Array:
        error = (self.chances(scores) - self.truth) / len(scores)
        gradient = self.penalty * head
        gradient[:, :-1] += error.astype(np.float32).T @ self.features
        gradient[:, -1] += error.sum(axis=0)
        return np.asarray(gradient)

    def search(
        self, at: Array, direction: Array, scores: Array, along: Array, first: float | None
    ) -> float:
        """A good step: Newton's method on the loss along the line, kept between what is known.

        first: the step to try before others; None for the one that a parabola gives.
        """
        there, truth = direction * self.penalty, (self.truth * along).sum(axis=1)
        linear, square = float((there * at).sum()), float((there * direction).sum())

        def loss(step: float) -> tuple[float, float, float]:
            moved = scores + step * along
            value = (_log_sum(moved, self.several) - (self.truth * moved).sum(axis=1)).mean()
            chances = self.chances(moved)
            each = chances * along
            slope = (each.sum(axis=1) - truth).mean()
            own = (each**2).sum(axis=1) if self.several else each.sum(axis=1) ** 2
            bend = ((each * along).sum(axis=1) - own).mean()
            return (
                float(value) + step * linear + step * step * square / 2,
                float(slope) + linear + step * square,
                float(bend) + square,
            )

        value, slope, bend = loss(0.0)
        if slope >= 0 or bend <= 0:
            return 0.0
        step = first or -slope / bend
        low, high = 0.0, np.inf
        for _ in range(20):
            now, slope_now, bend_now = loss(step)
            good = now <= value + ENOUGH_DECREASE * step * slope
            if good and abs(slope_now) <= FLAT * -slope:
                return step
            if good and slope_now < 0:
                low = step
            else:
                high = step
            newton = step - slope_now / bend_now if bend_now > 0 else np.inf
            middle = (low + high) / 2 if np.isfinite(high) else 2 * step
            step = newton if low < newton < high and np.isfinite(newton) else middle
        return low


def _direction(gradient: Array, pairs: Sequence[tuple[Array, Array, float]]) -> Array:
    """L-BFGS's two loops: the step that the remembered curvature suggests."""
    direction = -gradient
    factors = []
    for move, change, curvature in reversed(pairs):
        factor = float((move * direction).sum()) / curvature
        direction = direction - factor * change
        factors.append(factor)
    if pairs:
        _, change, curvature = pairs[-1]
        direction = direction * (curvature / float((change * change).sum()))
    for (move, change, curvature), factor in zip(pairs, reversed(factors), strict=True):
        direction = direction + (factor - float((change * direction).sum()) / curvature) * move
    return np.asarray(direction)


def folds(labels: Array, count: int, *, groups: Array | None = None, seed: int = 0) -> Array:
    """A fold, 0 to count - 1, for each example, (examples,): each class spread evenly, in seeded order.

    groups: (examples,), examples of the same group (views of one photo, copies) share a fold. Of several
    labels the rarest is spread evenly.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        rarity = labels / np.maximum(labels.sum(axis=0), 1)
        labels = np.where(labels.any(axis=1), rarity.argmax(axis=1), -1)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    kind = labels[first]
    draw = np.random.default_rng(seed)
    fold = np.empty(len(first), np.int64)
    begin = 0
    for label in np.unique(kind):
        mine = draw.permutation(np.flatnonzero(kind == label))
        fold[mine] = (begin + np.arange(len(mine))) % count
        begin += len(mine)  # small classes do not all put their one more into fold 0
    return np.asarray(fold[member])


def losses(scores: Array, labels: Array, *, divide: float = 1.0) -> Array:
    """Cross-entropy of logits (examples, classes), each divided by `divide`, in nats: (examples,).

    Of labels of 0 and 1 it is the mean of all classes' binary cross-entropies.
    """
    scores, labels = np.asarray(scores, np.float64) / divide, np.asarray(labels)
    if labels.ndim == 2:
        found = (_log_sum(scores, True) - (labels * scores).sum(axis=1)) / labels.shape[1]
    else:
        found = _log_sum(scores) - scores[np.arange(len(labels)), labels]
    return np.asarray(found)


def log_loss(scores: Array, labels: Array, *, divide: float = 1.0) -> float:
    """The mean of `losses`."""
    return float(losses(scores, labels, divide=divide).mean())


def temperature(scores: Array, labels: Array) -> float:
    """What to divide held-out logits by, so that their probabilities are as right as they say.

    Guo et al. 2017, arXiv:1706.04599: the one number that minimises the cross-entropy, 0.05 to 20.
    """
    low, high = np.log(0.05), np.log(20.0)
    golden = (5**0.5 - 1) / 2
    for _ in range(40):  # one valley in the inverse temperature, and so in its logarithm
        left, right = high - golden * (high - low), low + golden * (high - low)
        losses = [log_loss(scores, labels, divide=float(np.exp(at))) for at in (left, right)]
        low, high = (low, right) if losses[0] < losses[1] else (left, high)
    return float(np.exp((low + high) / 2))


def _log_sum(scores: Array, several: bool = False) -> Array:
    """(examples,): log of the sum of a row's exponentials; `several`: the sum of log(1 + exponential)."""
    if several:
        return np.asarray(np.logaddexp(0, scores).sum(axis=1))
    most = scores.max(axis=1)
    return np.asarray(most + np.log(np.exp(scores - most[:, None]).sum(axis=1)))
