"""Figures of probabilities against labels: accuracy, loss, confusion, each class's precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassFigures:
    """Of each class, (classes,): precision, recall, f1, 0 where not defined; support, its images."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


def top(probabilities: Probabilities, labels: Labels, k: int = 1) -> float:
    """The fraction of (n, classes) whose label is among the k most probable; NaN for no images.

    Of equally probable classes the one with the smaller number comes first.
    """
    if not len(labels):
        return float("nan")
    own = probabilities[np.arange(len(labels)), labels][:, None]
    if np.isnan(probabilities).any():
        raise ValueError("probabilities hold NaN")
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = (probabilities > own).sum(1) + ((probabilities == own) & before).sum(1)
    return float((rank < k).mean())


def loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean cross-entropy, in nats; NaN for no images."""
    if not len(labels):
        return float("nan")
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(own, 1e-30)).mean())


def confusion(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """(classes, classes): how many images of the row's class were taken for the column's."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_figures(table: NDArray[np.int64]) -> ClassFigures:
    """From a confusion matrix."""
    hits = np.diag(table).astype(np.float64)
    answered, support = table.sum(0), table.sum(1)
    precision = np.divide(hits, answered, out=np.zeros_like(hits), where=answered > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
    return ClassFigures(precision, recall, f1, support)
