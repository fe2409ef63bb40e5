"""Measure a model: labelled photos in, the paper's figures out.

By the model's own resize and one centre crop, or as the paper looks at an image (`views`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets import labelled
from ..datasets.items import Item, Listing
from ..datasets.listing import listed
from ..datasets.shards import is_stream
from ..errors import DataError, is_whole, log, nearest
from ..files.photo_paths import composed
from ..files.progress import expect
from ..files.wording import counted, table
from .figures import average_precision, calibration_error

if TYPE_CHECKING:
    from ..predictor import Answer, Predictor
    from .views import Views

__all__ = ["Evaluation", "LabelsEvaluation", "evaluate"]


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
        """What `verydeep evaluate --json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%} of {counted(self.n, 'photo')} "
            f"({self.protocol}, {self.engine} {self.precision}); "
            f"calibration error {self.expected_calibration_error:.2%}"
            + (f"; {self.errors} could not be read" if self.errors else "")
        )


@dataclass(frozen=True)
class LabelsEvaluation:
    """What was measured of a model that says several classes of an image, and how.

    classes: of each its "label", how many "photos" have it, its "average_precision", and its "f1" at the
    model's threshold; both are 0 to 1, and None where no photo has it. mean_average_precision, f1: the
    means of the others. n, errors, protocol: as of `Evaluation`.
    """

    mean_average_precision: float
    f1: float
    classes: tuple[Mapping[str, Any], ...]
    n: int
    errors: int
    protocol: str
    engine: str
    precision: str

    def to_dict(self) -> dict[str, object]:
        """What `verydeep evaluate --json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("class", "photos", "average precision", "F1")]
        for one in self.classes:
            label, photos, *figures = one.values()
            own = ("" if figure is None else f"{figure:.2%}" for figure in figures)
            rows.append((label, f"{photos:,}", *own))
        return (
            f"mean average precision {self.mean_average_precision:.2%}, F1 {self.f1:.2%} at the model's "
            f"thresholds, of {counted(self.n, 'photo')} ({self.protocol}, {self.engine} {self.precision})"
            + (f"; {self.errors} could not be read" if self.errors else "")
            + f"\n{table(rows, '<>')}"
        )


def evaluate(
    model: str | os.PathLike[str] | Predictor = "builtin",
    data: object = ".",
    *,
    batch: int = 8,
    views: Views = "centre",
    scales: int | Sequence[int] = (),
    fuse: str | os.PathLike[str] | Predictor | Sequence[str | os.PathLike[str] | Predictor] = (),
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Evaluation | LabelsEvaluation:
    """Accuracy of a model on labelled photos in any form that `train` takes.

    data: as that, or what `found_for` gave. A model whose record has thresholds is measured on all labels
    of each photo: a `LabelsEvaluation`.

    Of a set that is divided its val/ is measured, or else its test/. A folder belongs to the class of its
    name or id; where no class has just that name, without regard to case, "_" and "-" standing for a space.

    views: how a photo is looked at: "centre" is the model's own resize and one centre crop; "dense",
    "crops" and "both" are those of the paper's section 3.2, see `verydeep.evaluation.views`. scales: pixels
    of the shorter side for these, such as (256, 384, 512); none for the model's own. fuse: more models of
    the same classes, to take the mean of all of them. batch: images at once, of "centre".
    on_event: called for each photo with {"event": "photo", "done": photos so far, "path": in `data`,
    "error": why it could not be read, or ""}, and, where one class is the answer, "right": whether it is.
    Raises DataError where a folder is no class of the model, no photo could be read, or models cannot look
    so or be fused.
    """
    from ..predictor import Failure, Predictor, load, probabilities
    from .views import Viewer, fusable, seen

    predictor = model if isinstance(model, Predictor) else load(model)
    found = data if isinstance(data, Listing) else found_for(predictor, data)
    name, several = found.name, bool(predictor.record.thresholds)
    items, part = labelled.judged(found)
    ids, classes = _classes(predictor)
    numbers = _numbered(name, items, predictor.labels, classes)

    sides: Any = (scales,) if is_whole(scales) else scales
    viewers = [Viewer.of(predictor, views, sides)]
    for one in (fuse,) if isinstance(fuse, str | os.PathLike | Predictor) else fuse:
        other = one if isinstance(one, Predictor) else predictor.like(one)
        fusable(predictor, other)
        viewers.append(Viewer.of(other, views, sides))
    damaged: dict[int, str] = {}  # of an archive, what cannot be had from it, and why
    photos = labelled.opened(items, damaged)
    answers: Iterable[Any]  # a Failure, or all probabilities, or an Answer
    if views != "centre" or fuse:
        answers = seen(viewers, photos)
    elif several:
        answers = (
            one if isinstance(one, Failure) else probabilities(predictor.record, one["fc8"])
            for one in predictor.features_stream(photos, "fc8", batch=batch)
        )
    else:
        answers = predictor.stream(photos, top=5, batch=batch)
    expect(len(items))
    said: list[Any] = []  # (probabilities, which classes are there), or (rank, first probability)
    for at, (item, answer) in enumerate(zip(items, answers, strict=True)):
        own = [numbers[label] for label in item.labels]
        error = damaged.get(at, answer.error) if isinstance(answer, Failure) else ""
        event = {"event": "photo", "done": at + 1, "path": item.name, "error": error}
        if isinstance(answer, Failure):
            pass
        elif several:
            said.append((answer, np.isin(np.arange(len(ids)), own)))
        else:
            (guesses, probability), label = _first(answer, ids), ids[own[0]]
            rank = guesses.index(label) if label in guesses else 5
            said.append((rank, probability))
            event["right"] = rank == 0
        if on_event:
            on_event(event)
    errors = len(items) - len(said)
    if not said:
        raise DataError(f"{name}: none of {counted(errors, 'photo')} could be read")
    first, second = map(np.array, zip(*said, strict=True))
    which = {"": "", "train": ", includes train/"}.get(part, f", the set's own {part}")
    fused = f", {counted(len(viewers), 'network')} fused" if fuse else ""
    how: dict[str, Any] = {
        "n": len(said),
        "errors": errors,
        "protocol": "; ".join(dict.fromkeys(map(str, viewers))) + fused + which,
        "engine": predictor.engine,
        "precision": predictor.precision,
    }
    if several and not second.any():
        raise DataError(f"{name}: no photo is of any class; expected some that are")
    if several:
        return _of_labels(predictor, first, second, how)
    return Evaluation(
        top1=float((first == 0).mean()),
        top5=float((first < 5).mean()),
        expected_calibration_error=calibration_error(second, first == 0),
        **how,
    )


def _first(answer: Answer | np.ndarray, ids: Sequence[str]) -> tuple[list[str], float]:
    """The ids of the five first classes, and the first one's probability. answer: or all probabilities."""
    if isinstance(answer, np.ndarray):
        best = np.argsort(-answer, kind="stable")[:5]
        return [ids[at] for at in best], float(answer[best[0]])
    return [one.id for one in answer.predictions], answer.probability


def found_for(predictor: Predictor, data: object) -> Listing:
    """What `evaluate` measures that model on; DataError where it is nothing that can be."""
    name = labelled.called(data)
    if is_stream(data):
        raise DataError(f"{name}: shards that are streamed; fetch them, and give their path")
    several = bool(predictor.record.thresholds)
    _, classes = _classes(predictor)
    found = listed(data, lambda folder: class_of(folder, classes) is not None, multi=several)
    if found.multi and not several:
        raise DataError(f"{name}: photos of several classes; expected one class a photo")
    for line in labelled.oddities(name, found):
        log.warning(line)
    if not found.items:
        raise DataError(f"{name}: no photos in it{labelled.without_images(found)}")
    return replace(found, name=name)


def _classes(predictor: Predictor) -> tuple[tuple[str, ...], dict[str, int]]:
    """The id of each class, and its `class_table`."""
    ids = predictor.record.class_ids or predictor.labels
    return ids, class_table(predictor.labels, ids)


def _of_labels(
    predictor: Predictor, chances: np.ndarray, true: np.ndarray, how: dict[str, Any]
) -> LabelsEvaluation:
    """Of probabilities (photos, classes), and whether each photo is of each class."""
    said, photos = chances >= np.array(predictor.record.thresholds), true.sum(0)
    precision = average_precision(chances, true)
    f1 = 2 * (true & said).sum(0) / np.maximum(said.sum(0) + photos, 1)
    there = photos > 0
    keys = ("label", "photos", "average_precision", "f1")
    rows = zip(predictor.labels, photos.tolist(), precision.tolist(), f1.tolist(), strict=True)
    classes = tuple(
        dict(zip(keys, row if row[1] else (*row[:2], None, None), strict=True)) for row in rows
    )
    means = float(precision[there].mean()), float(f1[there].mean())
    return LabelsEvaluation(*means, classes, **how)


def class_table(names: Iterable[str], ids: Iterable[str]) -> dict[str, int]:
    """Class number by name and by id, also without regard to case, "_" or "-" for a space. Ids win.

    A spelling that two classes share is neither's.
    """
    table: dict[str, int] = {}
    for way in (_plain, composed):
        for keys in (names, ids):
            spelt = [way(key) for key in keys]
            count = Counter(spelt)
            table |= {key: index for index, key in enumerate(spelt) if count[key] == 1}
    return table


def class_of(name: str, classes: Mapping[str, int]) -> int | None:
    """The class that bears that name or id. classes: as `class_table` makes it."""
    return next((classes[key] for key in (composed(name), _plain(name)) if key in classes), None)


def _numbered(
    data: str, items: Iterable[Item], names: Sequence[str], classes: Mapping[str, int]
) -> Mapping[str, int]:
    """The class of each label; DataError where one has none, or two have the same."""
    numbers: dict[str, int] = {}
    bearer: dict[int, str] = {}
    for label in dict.fromkeys(label for item in items for label in item.labels):
        number = class_of(label, classes)
        if number is None:
            hint = nearest(_plain(label), dict.fromkeys(map(_plain, classes)))
            if label.isdecimal():
                hint = f"; expected names, such as {names[0]!r}"
            raise DataError(f"{data}: {label!r} is no class of the model{hint}")
        other = bearer.setdefault(number, label)
        if other != label:
            raise DataError(
                f"{data}: {other!r} and {label!r} would both be the model's {names[number]!r}; expected "
                "one folder for a class, so put them into one, or leave one out"
            )
        numbers[label] = number
    return numbers


def _plain(name: str) -> str:
    return composed(name).strip().lower().replace("_", " ").replace("-", " ")
