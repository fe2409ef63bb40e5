"""How right a model's probabilities are: accuracy, loss, calibration, and the figures of each class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]
SURE = 1.96  # standard deviations: 95 of 100 draws of a normal are no further from its middle


def _require_finite(values: NDArray[np.floating]) -> None:
    """DataError where they are no numbers: of them there would be figures as well."""
    if not np.isfinite(values).all():
        raise DataError("scores or probabilities that are not finite have no figures")


def reliability(
    probability: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """First answers, (n,) probabilities and whether each is right, in bins of equal width.

    Returns of each bin how many answers it has, their mean probability, and how often they are right; the
    last two are NaN where it is empty.
    """
    _require_finite(probability)
    of = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(of, minlength=bins)
    with np.errstate(invalid="ignore"):
        return count, *(np.bincount(of, x, bins) / count for x in (probability, right))  # type: ignore


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of first answers: their probabilities, (n,), and whether each is right."""
    count, mean, accuracy = reliability(probability, right, bins)
    return float(np.nansum(count * np.abs(mean - accuracy)) / len(probability))


def top(probabilities: Probabilities, labels: Labels, k: int = 1) -> float:
    """The fraction of (n, classes) whose label is among the k most probable; NaN for no images.

    Of equally probable classes the one with the smaller number comes first.
    """
    if not len(labels):
        return float("nan")
    own = probabilities[np.arange(len(labels)), labels][:, None]
    _require_finite(probabilities)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = (probabilities > own).sum(1) + ((probabilities == own) & before).sum(1)
    return float((rank < k).mean())


def accuracy(scores: Probabilities, labels: NDArray[Any]) -> dict[str, float]:
    """ "top1" and "top5" of (n, classes), as `top` has them.

    Of labels (n, classes) of 0 and 1 it is "mean_average_precision".
    """
    if labels.ndim == 2:
        return {"mean_average_precision": mean_average_precision(scores, labels)}
    return {f"top{k}": top(scores, labels, k) for k in (1, 5)}


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Where a share lies that was `hits` of `count`, in 95 of 100 samples: Wilson's interval (1927)."""
    middle = (hits + SURE**2 / 2) / (count + SURE**2)
    spread = SURE * math.sqrt(hits * (count - hits) / count + SURE**2 / 4) / (count + SURE**2)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def paired_interval(better: int, worse: int, count: int) -> tuple[float, float]:
    """Where the share lies that a new model loses to an old one, in 95 of 100 samples of `count` photos.

    better, worse: photos that only the new one has right, and that only the old one has. Wald's interval
    with half a photo more in each of the four cells (Agresti and Min 2005, Statistics in Medicine 24, 729).
    """
    count += 2
    lost = (worse - better) / count
    spread = SURE * math.sqrt(better + worse + 1 - count * lost**2) / count
    return max(-1.0, lost - spread), min(1.0, lost + spread)


def confusion(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """(classes, classes): how many images of the row's class were taken for the column's."""
    _require_finite(probabilities)
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_figures(table: Labels) -> tuple[NDArray[np.float64], ...]:
    """Of each class precision, recall, F1 (0 where not defined) and support, from a confusion matrix."""
    hits, answered, support = np.diag(table).astype(np.float64), table.sum(0), table.sum(1)
    precision, recall = hits / np.maximum(answered, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(answered + support, 1)
    return precision, recall, f1, support


def average_precision(
    probabilities: Probabilities, labels: NDArray[np.number]
) -> NDArray[np.float64]:
    """Of each class the precision at each photo that has it, averaged; NaN where no photo has the class.

    probabilities, labels: (n, classes), the labels 0 or 1. Photos of equal probability are found together,
    as scikit-learn has it."""
    _require_finite(probabilities)
    found = np.full(labels.shape[1], np.nan)
    for at in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-probabilities[:, at], kind="stable")
        chance, hits = probabilities[order, at], np.cumsum(labels[order, at] > 0)
        last = np.append(chance[:-1] > chance[1:], True)  # of those that are found together
        more = np.diff(hits[last], prepend=0)
        found[at] = (more * hits[last] / (np.flatnonzero(last) + 1)).sum() / hits[-1]
    return found


def mean_average_precision(probabilities: Probabilities, labels: NDArray[np.number]) -> float:
    """The mean of `average_precision` over the classes that some photo has; NaN where none has any."""
    return (
        float(np.nanmean(average_precision(probabilities, labels)))
        if labels.any()
        else float("nan")
    )
