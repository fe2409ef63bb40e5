"""Measure a model: labelled photos in, the paper's figures out.

For now one protocol: the model's own resize and one centre crop. The paper's dense and multi-crop
protocols (arXiv:1409.1556, section 3.2) come with a later version.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, nearest
from ..files.photo_paths import composed, inside, is_photo
from ..files.wording import counted

if TYPE_CHECKING:
    from ..predictor import Predictor

__all__ = ["Evaluation", "evaluate"]


Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


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
    ids = predictor.record.class_ids or predictor.labels
    classes = class_table(predictor.labels, ids)
    asked: list[tuple[str, str]] = []  # path and class of each photo, as the predictor takes them

    def photos() -> Iterator[str | bytes]:
        for path, photo in labelled_photos(data):
            index = class_of(path, classes)
            if index is None:
                raise DataError(f"{os.fspath(data)}: {_stray(path, classes)}")
            asked.append((path, ids[index]))
            yield photo

    ranks, firsts, errors = [], [], 0
    for at, item in enumerate(predictor.stream(photos(), top=5, batch=batch)):
        path, label = asked[at]
        error = "" if isinstance(item, Answer) else item.error
        if on_event:
            on_event({"event": "photo", "done": at + 1, "path": path, "error": error})
        if not isinstance(item, Answer):
            errors += 1
            continue
        guesses = [prediction.id for prediction in item.predictions]
        ranks.append(guesses.index(label) if label in guesses else 5)
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


def class_figures(table: Labels) -> tuple[NDArray[np.float64], ...]:
    """Of each class precision, recall, F1 (0 where not defined) and support, from a confusion matrix."""
    hits, answered, support = np.diag(table).astype(np.float64), table.sum(0), table.sum(1)
    precision, recall = hits / np.maximum(answered, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(answered + support, 1)
    return precision, recall, f1, support


def labelled_photos(data: str | os.PathLike[str]) -> Iterator[tuple[str, str | bytes]]:
    """(path inside `data`, the photo as a path or as the bytes of the tar's member), sorted for a folder.

    Only names with an image's suffix count; hidden files and folders do not. A link in a tar is the file
    that it names; one that leads nowhere has no bytes. Raises DataError where `data` is neither a folder
    nor a tar that can be read.
    """
    path = Path(data)
    if os.path.isdir(path):
        for photo in inside(path):
            yield Path(photo).relative_to(path).as_posix(), photo
        return
    if not os.path.exists(path):
        raise DataError(
            f"{path}: no such file or folder; expected a folder or tar of class folders"
        )
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not is_photo(name.name) or any(part.startswith(".") for part in name.parts):
                    continue
                content: IO[bytes] | None = io.BytesIO()
                with suppress(KeyError):  # a link to what is not in the tar
                    content = tar.extractfile(member)
                if content is not None:  # a file, and no folder
                    yield str(name), content.read()
    except Exception as error:  # each way to compress has errors of its own
        raise DataError(
            f"{path}: neither a folder nor a tar that can be read; expected one of class folders"
        ) from error


def class_table(names: Iterable[str], ids: Iterable[str]) -> dict[str, int]:
    """Class number by name and by id, also without regard to case, "_" or "-" for a space. Ids win."""
    given = [(key, index) for keys in (names, ids) for index, key in enumerate(keys)]
    exact = {composed(key): index for key, index in given}
    return {_plain(key): index for key, index in given} | exact


def class_of(path: str, classes: Mapping[str, int]) -> int | None:
    """The class of a photo: the first folder on its way down that bears a class's name or id.

    classes: as `class_table` makes it.
    """
    for folder in PurePosixPath(path).parts[:-1]:
        for key in (composed(folder), _plain(folder)):
            if key in classes:
                return classes[key]
    return None


def _stray(path: str, classes: Mapping[str, int]) -> str:
    """What is wrong with a photo that lies in no class folder."""
    folder, *below = PurePosixPath(path).parts
    if not below:
        return f"{path} lies in no folder; expected one folder for each class"
    known = dict.fromkeys(map(_plain, classes))
    return f"folder {folder!r} is no class of the model{nearest(_plain(folder), known)}"


def _plain(name: str) -> str:
    return composed(name).strip().lower().replace("_", " ").replace("-", " ")
