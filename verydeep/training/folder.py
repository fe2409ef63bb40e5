"""The folder of a run: made, refused where it holds one already, and what a finished one amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import modelfile
from ..errors import OutputError
from ..predictor import Predictor, softmax
from . import about, measures
from . import data as data_module
from .data import Data, Sample
from .result import TrainResult

__all__ = ["judged", "made", "refuse_another_run", "result"]


class _Config(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def refuse_another_run(folder: Path) -> None:
    """OutputError for a folder that a run was begun in."""
    if (folder / "config.json").exists():
        raise OutputError(
            f"{folder} holds a run already; go on with it by --resume, or choose another folder"
        )


def made(folder: Path) -> None:
    """The folder is there afterwards, or OutputError says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}; choose a folder you may write to"
        ) from error


def judged(
    folder: Path, data: Data, bad: dict[str, str]
) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
    """The validation photos that can be read, and what a finished run's model says of them, (n, classes).

    bad: gets (name: why) of the others.
    """
    model = Predictor(modelfile.read(folder / "model.safetensors"))
    rows, samples = [], []
    for sample in data.val:
        try:
            rows.append(softmax(model.scores([data_module.open(sample)])[0]))
        except ValueError as error:
            bad[sample.name] = str(error)
            continue
        samples.append(sample)
    return tuple(samples), np.array(rows, np.float32).reshape(-1, len(data.classes))


def result(
    folder: Path,
    data: Data,
    config: _Config,
    samples: tuple[Sample, ...],
    probabilities: NDArray[np.float32],
    *,
    log: Sequence[Any],
    bad: dict[str, str],
    seconds: float,
) -> TrainResult:
    """The end of a run that was validated on those samples, with those probabilities."""
    labels = np.array([s.label for s in samples], np.int64)
    return TrainResult(
        folder=folder, model=folder / "model.safetensors", classes=data.classes,
        config={"config": config.to_dict(), "data": about.described(data)}, log=tuple(log),
        top1=measures.top(probabilities, labels), top5=measures.top(probabilities, labels, 5),
        val=samples, probabilities=probabilities, labels=labels, warnings=data.warnings,
        bad=tuple(bad.items()), seconds=seconds,
    )  # fmt: skip
