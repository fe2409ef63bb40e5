"""Measure a model: labelled photos in, the paper's figures out.

For now one protocol: the model's own resize and one centre crop. The paper's dense and multi-crop
protocols (arXiv:1409.1556, section 3.2) come with a later version.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, log, nearest
from ..files.photo_paths import composed
from ..files.progress import expect
from ..files.wording import counted
from ..training.data import labelled
from ..training.data.items import Item
from ..training.data.listing import listed
from ..training.data.shards import is_stream
from ..training.record.figures import calibration_error

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
    data: object = ".",
    *,
    batch: int = 8,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Evaluation:
    """Accuracy of a model on labelled photos in any form that `train` takes, one centre crop a photo.

    Of a set that is divided its val/ is measured, or else its test/. A folder belongs to the class of its
    name or id; where no class has just that name, without regard to case, "_" and "-" standing for a space.
    on_event: called for each photo with {"event": "photo", "done": photos so far, "path": in `data`,
    "error": why it could not be read, or ""}.
    Raises DataError where a folder is no class of the model, or no photo could be read.
    """
    from ..predictor import Answer, Predictor, load

    predictor = model if isinstance(model, Predictor) else load(model)
    ids = predictor.record.class_ids or predictor.labels
    classes = class_table(predictor.labels, ids)
    name = labelled.called(data)
    if is_stream(data):
        raise DataError(f"{name}: shards that are streamed; fetch them, and give their path")
    found = listed(data, lambda folder: class_of(folder, classes) is not None, multi=False)
    if found.multi:
        raise DataError(f"{name}: photos of several classes; expected one class a photo")
    for line in labelled.oddities(name, found):
        log.warning(line)
    items, part = labelled.judged(found)
    if not items:
        raise DataError(f"{name}: no photos in it{labelled.without_images(found)}")
    numbers = _numbered(name, items, predictor.labels, classes)

    damaged: dict[int, str] = {}  # of an archive, what cannot be had from it, and why

    def photos() -> Iterator[Any]:
        for at, item in enumerate(items):
            try:
                yield labelled.open(item)
            except OSError as error:
                damaged[at] = str(error)
                yield b""

    expect(len(items))
    ranks, firsts, errors = [], [], 0
    for at, (item, answer) in enumerate(
        zip(items, predictor.stream(photos(), top=5, batch=batch), strict=True)
    ):
        error = "" if isinstance(answer, Answer) else damaged.get(at, answer.error)
        if on_event:
            on_event({"event": "photo", "done": at + 1, "path": item.name, "error": error})
        if not isinstance(answer, Answer):
            errors += 1
            continue
        guesses, label = [p.id for p in answer.predictions], ids[numbers[item.labels[0]]]
        ranks.append(guesses.index(label) if label in guesses else 5)
        firsts.append(answer.probability)
    if not ranks:
        raise DataError(f"{name}: none of {counted(errors, 'photo')} could be read")
    rank = np.array(ranks)
    crop = predictor.preprocess.crop_size
    which = {"": "", "train": ", includes train/"}.get(part, f", the set's own {part}")
    return Evaluation(
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()),
        n=len(rank),
        errors=errors,
        expected_calibration_error=calibration_error(np.array(firsts), rank == 0),
        protocol=(f"one centre crop of {crop}" if crop else "whole image") + which,
        engine=predictor.engine,
        precision=predictor.precision,
    )


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
    for label in dict.fromkeys(item.labels[0] for item in items):
        number = class_of(label, classes)
        if number is None:
            known = dict.fromkeys(map(_plain, classes))
            raise DataError(
                f"{data}: {label!r} is no class of the model{nearest(_plain(label), known)}"
            )
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
