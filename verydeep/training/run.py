"""A run in its folder: what every recipe shares, from its first line of the log to the report at the end.

Each recipe has a module with `learnt(run)`, which opens the run, learns, and hands `Run.finish` an
`Outcome`. Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, modelfile
from ..datasets import labelled
from ..datasets.labelled import Labelled, Sample
from ..errors import DataError
from ..evaluation import figures
from ..files.atomic import replacing
from ..files.progress import reached, stage
from ..files.wording import some
from ..modelfile import ModelFile, key_of, provenance
from ..nets import Network
from ..predictor import Failure, Predictor, sigmoid, softmax
from ..preprocess import Preprocess
from .record import folder, report
from .record.folder import Log, is_first
from .record.result import TrainResult

WITHOUT_EFFECT = ("threads", "checkpoint_minutes")  # settings that change no weight
MADE = ("model.safetensors", "report.html")  # at the end of a run, in this order
Event = Callable[[Mapping[str, Any]], None]
# the samples that could be read, and their scores (n, classes) float32
Judge = Callable[[Sequence[Sample], str], tuple[tuple[Sample, ...], NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a recipe came to.

    network, preprocess, tensors, licence: of the model file; the temperature is in the head already.
    judge: gives the scores of samples, and says in words what they are for.
    protocol: how images were shown. threshold, least_mean, thresholds: as in `modelfile.Record`.
    measured, provenance, told: what the record's figures, its provenance and the log's last line have
    beside what those of every run have.
    """

    network: Network
    preprocess: Preprocess
    tensors: Mapping[str, NDArray[Any]]
    judge: Judge
    protocol: str
    licence: str = ""
    threshold: float | None = None
    least_mean: float | None = None
    thresholds: tuple[float, ...] = ()
    measured: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """A run in its folder. Of the processes that torchrun starts, only the first writes and tells.

    config: settled as the run goes on. data: what it learns from. init: weights to start from. named: the
    settings that were asked for. listeners: are given each line of the log. bad: images that could not be
    read, name -> why. seconds: of training so far, those before a resume included.
    """

    def __init__(
        self, config: Any, data: Labelled, folder: Path, *, init: str | os.PathLike[str] | None = None,
        named: Collection[str] = (), resume: bool = False, device: str = "auto",
        listeners: Sequence[Event] = (),
    ) -> None:  # fmt: skip
        self.config, self.data, self.folder = config, data, folder
        self.init, self.named = None if init is None else os.fspath(init), named
        self.resume, self.device, self._listeners = resume, device, listeners
        self.first = is_first()
        self.bad: dict[str, str] = {}
        self.notes: list[str] = []
        self.inputs: dict[str, Any] = {}
        self._log: Log | None = None
        self._began, self.earlier = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self._began

    # Before the work

    def finished(self) -> bool:
        """Whether the folder holds a run that has come to its end."""
        lines = folder.logged(self.folder / "log.jsonl")[-1:]
        whole = bool(lines) and lines[0].get("event") == "end"
        return whole and all((self.folder / made).exists() for made in MADE)

    def refuse_changes(self, was: Mapping[str, Any]) -> None:
        """DataError where the run in the folder, which was begun as `was` says, is not this one."""
        if not was:
            return
        # a setting that is younger than the run had its default
        old = {**type(self.config)().to_dict(), **was["config"], "init": was.get("init")}
        new = {**self.config.to_dict(), "init": self.init}
        differ = [
            f"{key} was {old[key]}, is {value}" for key, value in new.items()
            if old[key] != value and key not in WITHOUT_EFFECT
        ]  # fmt: skip
        if differ:
            raise DataError(
                f"{self.folder} is a run of another configuration: {'; '.join(differ)}; resume it with its "
                "own, or choose another folder"
            )
        before, after = was["data"], self.data.described()
        if before["digest"] != after["digest"]:
            raise DataError(
                f"the data has changed since the run in {self.folder} was begun: {before['train']} images "
                f"to train on and {before['val']} to validate then, {after['train']} and {after['val']} "
                "now, not all of them the same; choose another folder for a new run"
            )

    def open(self, step: int = 0, **facts: Any) -> None:
        """Make the folder, or go on in it after `step` steps; facts: what else config.json says."""
        self.inputs = {"data": self.data.described(), "init": self.init}
        if not self.first:
            return
        folder.made(self.folder)
        if not self.resume:
            folder.refuse_another_run(self.folder)
        self._log = Log(self.folder / "log.jsonl", step)
        for name in MADE:  # of a process that was killed as it wrote
            for half in self.folder.glob(f".{name}.*.part"):
                half.unlink(missing_ok=True)
        whole = {
            "verydeep": __version__, "config": self.config.to_dict(), **self.inputs, **provenance.asked(),
            "device": str(self.device), **facts,
        }  # fmt: skip
        if not step:
            with replacing(self.folder / "config.json", "w", encoding="utf-8") as file:
                json.dump(whole, file, indent=1)
        kind = "resume" if step else "start"
        self.tell({"event": kind, "step": step, "time": provenance.now(), **whole})
        for line in self.data.warnings:
            self.tell({"event": "warning", "step": step, "text": line})
        for line in self.notes:
            self.note(line)

    def tell(self, line: Mapping[str, Any]) -> None:
        """A line of the log, for people too."""
        if self._log is not None:
            self._log(line)
        self.show(line)

    def show(self, line: Mapping[str, Any]) -> None:
        """For people alone."""
        for listener in self._listeners if self.first else ():
            listener(line)

    def passed(self, what: str, size: int, total: int) -> Callable[[int], None]:
        """To be told how many photos have features, of so many; what they are for, in words."""
        facts = {"event": "features", "what": what, "size": size, "total": total}
        return lambda done: self.show({**facts, "done": done})

    def note(self, text: str) -> None:
        self.tell({"event": "note", "text": text})

    # After it

    def finish(self, outcome: Outcome) -> TrainResult:
        """Measure, write the model and the report."""
        seen = {
            k for s in self.data.train if s.name not in self.bad for k in (s.labels or (s.label,))
        }
        if gone := [name for at, name in enumerate(self.data.classes) if at not in seen]:
            text = f"no image to train on of these could be read, so nothing is known of them: {some(gone)}"
            self.tell({"event": "warning", "step": 0, "text": text})
        reached(1, 3, "validating")
        samples, scores = outcome.judge(self.data.val, "to validate")
        found = self._probabilities(scores)
        rows = [*self._figures(outcome, samples, scores, ""), *outcome.measured]
        if tested := self.data.test:
            rows += self._figures(outcome, *outcome.judge(tested, "to test"), ", test")
        rows = [row for row in rows if math.isfinite(row["value"])]  # as of photos of no class
        if not self.first:
            return self._result(samples, found, outcome.thresholds)
        reached(2, 3, "writing the model")
        made = {
            "made_by": "verydeep train", "command": provenance.command(), "versions": provenance.versions(),
            "config": self.config.to_dict(), **self.inputs, **outcome.provenance,
        }  # fmt: skip
        record = modelfile.Record(
            outcome.network, outcome.preprocess, class_names=self.data.classes, licence=outcome.licence,
            threshold=outcome.threshold, least_mean=outcome.least_mean, thresholds=outcome.thresholds,
            provenance=made, measured=tuple(rows),
        )  # fmt: skip
        modelfile.write(self.folder / "model.safetensors", record, outcome.tensors)
        told = {
            row["what"]: row["value"] for row in rows if row["what"].startswith(("top", "mean"))
        }
        self.tell({
            "event": "end", "time": provenance.now(), "seconds": self.seconds, **told, **outcome.told,
        })  # fmt: skip
        result = self._result(samples, found, outcome.thresholds)
        reached(3, 3, "writing the report")
        report.write(result)
        return result

    def again(self) -> TrainResult:
        """The result of a run that had finished, measured anew; nothing is written."""
        self.note(f"{self.folder} had finished; nothing is done")
        model = Predictor(modelfile.read(self.folder / "model.safetensors"), precision="exact")
        rows, samples = [], []
        damaged: dict[int, str] = {}
        stream = model.features_stream(labelled.opened(self.data.val, damaged), "fc8")
        pairs = zip(self.data.val, stream, strict=True)
        for at, (sample, answer) in enumerate(
            stage(pairs, "measuring", "image", len(self.data.val))
        ):
            if isinstance(answer, Failure):
                self.bad[sample.name] = damaged.get(at, answer.error)
                continue
            rows.append(answer["fc8"])
            samples.append(sample)
        scores = np.array(rows, np.float32).reshape(-1, len(self.data.classes))
        found = self._probabilities(scores)
        return self._result(tuple(samples), found, model.record.thresholds)

    def _probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of scores (n, classes): a soft-max; where an image may be of several classes, a sigmoid each."""
        found = sigmoid(scores) if self.data.multi else softmax(scores)
        return found.astype(np.float32)

    def _figures(
        self, outcome: Outcome, samples: tuple[Sample, ...], scores: NDArray[np.float32], which: str
    ) -> list[dict[str, Any]]:
        """How right the scores are, as a record has it; none of no samples. which: ends figures' names."""
        if not samples:
            return []
        values = figures.accuracy(scores, labelled.targets(samples, self.data.classes))
        if len(self.data.classes) <= 5:  # it is all of them
            values.pop("top5", None)
        if outcome.threshold is not None:
            refused = softmax(scores).max(1) < outcome.threshold
            if outcome.least_mean is not None:
                refused |= scores.mean(1) < outcome.least_mean
            values["not sure"] = float(refused.mean())
        own = "test images" if which else f"validation images ({self.data.split})"
        shared = {"n": len(samples), "protocol": f"{len(samples)} {own}, {outcome.protocol}"}
        return [
            {"what": f"{what.replace('_', ' ')}{which}", "value": round(value, 6), **shared}
            for what, value in values.items()
        ]

    def _result(
        self,
        samples: tuple[Sample, ...],
        probabilities: NDArray[np.float32],
        thresholds: tuple[float, ...],
    ) -> TrainResult:
        labels = labelled.targets(samples, self.data.classes)
        right = figures.accuracy(probabilities, labels)
        begun = folder.begun(self.folder)  # only the first process needs to see the folder
        log = self._log.lines if self._log else folder.logged(self.folder / "log.jsonl")
        return TrainResult(
            folder=self.folder, model=self.folder / "model.safetensors", classes=self.data.classes,
            config=begun or {"config": self.config.to_dict(), **self.inputs}, log=tuple(log),
            val=samples, probabilities=probabilities, labels=labels, warnings=self.data.warnings,
            bad=tuple(self.bad.items()), seconds=self.seconds, thresholds=thresholds,
            top1=right.get("top1", math.nan), top5=right.get("top5", math.nan),
        )  # fmt: skip

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def trunk_of(model: ModelFile, network: Network) -> dict[str, NDArray[Any]]:
    """The tensors of the trunk as they are stored, rounded ones too."""
    own = {key for layer in network.trunk for key in layer.tensors}
    return {name: array for name, array in model.stored.items() if key_of(name) in own}
