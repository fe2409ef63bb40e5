"""The folder of a run: made, refused where it holds one already, and what a finished one amounts to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import modelfile
from ...errors import DataError, OutputError
from ...predictor import Predictor, softmax
from ..data import labelled
from ..data.labelled import Data, Sample
from . import about, figures
from .result import TrainResult

WITHOUT_EFFECT = ("threads", "checkpoint_minutes")  # settings that change no weight


class _Config(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def refuse_another_run(folder: Path) -> None:
    """OutputError for a folder that a run was begun in."""
    if (folder / "config.json").exists():
        raise OutputError(
            f"{folder} holds a run already; go on with it by --resume, or choose another folder"
        )


def begun(folder: Path) -> dict[str, Any]:
    """What config.json says of the run that was begun in the folder; empty where it says nothing."""
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return found if {"config", "data"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def refuse_changes(folder: Path, was: Mapping[str, Any], config: _Config, data: Data) -> None:
    """DataError where the run in the folder, which was begun as `was` says, is not this one."""
    if was:
        now = {"config": config.to_dict(), "data": about.described(data)}
        refuse_difference(folder, was, now, type(config)().to_dict())


def refuse_difference(
    folder: Path, was: Mapping[str, Any], now: Mapping[str, Any], usual: Mapping[str, Any]
) -> None:
    """The same of what config.json says of both runs; usual: the settings' defaults."""
    # a setting that is younger than the run had its default
    old, new = {**usual, **was["config"]}, now["config"]
    differ = [
        f"{k} was {old.get(k)}, is {v}"
        for k, v in new.items()
        if old.get(k) != v and k not in WITHOUT_EFFECT
    ]
    if differ:
        raise DataError(
            f"{folder} is a run of another configuration: {'; '.join(differ)}; resume it with its own, or "
            "choose another folder"
        )
    before, after = was["data"], now["data"]
    if before["digest"] != after["digest"]:
        raise DataError(
            f"the data has changed since the run in {folder} was begun: {before['train']} images to train "
            f"on and {before['val']} to validate then, {after['train']} and {after['val']} now, not all of "
            "them the same; choose another folder for a new run"
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
            rows.append(softmax(model.scores([labelled.open(sample)])[0]))
        except (ValueError, OSError) as error:
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
        top1=figures.top(probabilities, labels), top5=figures.top(probabilities, labels, 5),
        val=samples, probabilities=probabilities, labels=labels, warnings=data.warnings,
        bad=tuple(bad.items()), seconds=seconds,
    )  # fmt: skip
