"""Measure a model: labelled photos in, the paper's figures out.

For now one protocol: the model's own resize and one centre crop. The paper's dense and multi-crop
protocols (arXiv:1409.1556, section 3.2) come with a later version.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..files.wording import counted
from .labelled import class_of, class_table, labelled_photos, no_class

if TYPE_CHECKING:
    from ..predictor import Predictor

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how.

    top1, top5: fractions of the n photos that could be read. errors: photos that could not.
    expected_calibration_error: mean distance, 15 bins of equal width, between the first probability and
    how often it is right (Guo et al. 2017, arXiv:1706.04599). protocol: a phrase.
    """

    top1: float
    top5: float
    n: int
    errors: int
    expected_calibration_error: float
    protocol: str
    engine: str
    precision: str

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%} of {counted(self.n, 'photo')} "
            f"({self.protocol}, {self.engine} {self.precision}); "
            f"calibration error {self.expected_calibration_error:.2%}"
            + (f"; {self.errors} could not be read" if self.errors else "")
        )


def evaluate(
    model: str | os.PathLike[str] | Predictor = "builtin",
    data: str | os.PathLike[str] = ".",
    *,
    batch: int = 8,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Evaluation:
    """Accuracy of a model on a folder or tar of class folders, one centre crop a photo.

    A folder belongs to the class of its name or id, without regard to case; "_" stands for a space.
    on_event: called for each photo with {"event": "photo", "done": photos so far, "path": in `data`,
    "error": why it could not be read, or ""}.
    Raises DataError where a folder is no class of the model, or no photo could be read.
    """
    from ..predictor import Answer, Predictor, load

    predictor = model if isinstance(model, Predictor) else load(model)
    labels: list[int] = []
    names: list[str] = []

    def photos() -> Iterator[str | bytes]:
        classes = class_table(predictor.labels, predictor.record.class_ids)
        for path, photo in labelled_photos(data):
            index = class_of(path, classes)
            if index is None:
                raise no_class(os.fspath(data), path, classes)
            labels.append(index)
            names.append(path)
            yield photo

    number = {label: index for index, label in enumerate(predictor.record.class_ids)}
    number = number or {label: index for index, label in enumerate(predictor.labels)}
    ranks, firsts, errors = [], [], 0
    for at, item in enumerate(predictor.stream(photos(), top=5, batch=batch)):
        error = "" if isinstance(item, Answer) else item.error
        if on_event:
            on_event({"event": "photo", "done": at + 1, "path": names[at], "error": error})
        if not isinstance(item, Answer):
            errors += 1
            continue
        guesses = [number[p.id] for p in item.predictions]
        ranks.append(guesses.index(labels[at]) if labels[at] in guesses else 5)
        firsts.append(item.probability)
    if not ranks:
        raise DataError(
            f"{os.fspath(data)}: none of {counted(errors, 'photo')} could be read" if errors
            else f"{os.fspath(data)}: no photos in it; expected one folder for each class"
        )  # fmt: skip
    rank = np.array(ranks)
    crop = predictor.preprocess.crop_size
    return Evaluation(
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()),
        n=len(rank),
        errors=errors,
        expected_calibration_error=calibration_error(np.array(firsts), rank == 0),
        protocol=f"one centre crop of {crop}" if crop else "whole image",
        engine=predictor.engine,
        precision=predictor.precision,
    )


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of first answers: their probabilities, (n,), and whether each is right."""
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, probability - right, bins)
    return float(np.abs(gap).sum() / len(probability))
