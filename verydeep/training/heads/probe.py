"""The recipe `probe`: a linear head solved on averages of a trained network's layers, in minutes.

The trunk is never trained. Each photo goes through it once, by the fastest engine; what its layers
average to is kept (`features.py`), and a logistic regression is solved on that (`linear.py`). Which
layers, how strong a penalty and, where several are given, which input size: cross-validation on the
training photos says, never the validation photos. The model file that comes out has a head "gap" on those
layers, so every engine runs it, and what comes after the last of them is not computed.

Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import modelfile
from ...errors import DataError
from ...files.atomic import replacing
from ...files.progress import reached
from ...modelfile import ModelFile
from ...nets import Head
from ...predictor import Predictor, softmax
from ...preprocess import Preprocess, sized
from ...published import find_model
from ..data import labelled
from ..data.labelled import Sample
from ..record import about, figures, folder, report
from ..record.log import Log, read
from ..record.result import TrainResult
from . import linear
from .choosing import FAMILIAR_SHARE, JUDGED, REFUSED, Chosen, candidates, choose, familiarity
from .features import Averages, averages
from .linear import LinearHead

FINE = 1e-4  # the solver's tolerance for the answer
Event = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ProbeConfig:
    """What a probe is made of; config.json and the model file record it. DataError for what makes no sense.

    model: the weights, a built-in's or catalogue name or a model file.
    sizes: pixels a side that photos are brought to; with several, cross-validation takes one, and each
    costs a pass over the training photos. stretch: whether a photo is stretched to the square, so that
    nothing is cut away; else it is resized and cropped as the model's record does.
    layers: paper names that the head averages; none for those that cross-validation chooses.
    l2: the penalty; 0 for the one that cross-validation chooses. folds: of cross-validation.
    epochs: passes over the features that the solver takes at most. batch: photos in one pass of the engine.
    seed: of the folds.
    engine, precision, threads: of the features, as `verydeep.load` has them; threads 0 for one a core.
    """

    recipe: str = "probe"
    model: str = "builtin"
    sizes: tuple[int, ...] = (160,)
    stretch: bool = True
    layers: tuple[str, ...] = ()
    l2: float = 0.0
    folds: int = 3
    epochs: int = 500
    batch: int = 16
    seed: int = 0
    engine: str = "auto"
    precision: Literal["exact", "fast", "half"] = "half"
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise DataError(f"sizes is {self.sizes}; expected different numbers of pixels, as 160")
        for key, least in {
            "l2": 0, "folds": 2, "epochs": 1, "batch": 1, "seed": 0, "threads": 0,
        }.items():  # fmt: skip
            if getattr(self, key) < least:
                raise DataError(f"{key} is {getattr(self, key)}; expected {least} or more")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def probe() -> ProbeConfig:
    """A linear head on the built-in trunk, solved; nothing of the trunk is trained.

    Command: verydeep train photos/ --recipe probe --out run
    Expected: 92 % of five kinds of flowers told apart from 2,400 photos.
    Duration: two minutes for 3,000 photos on two cores with bf16; seconds for photos seen before.
    """
    return ProbeConfig()


def write_model(
    path: Path, model: ModelFile, preprocess: Preprocess, layers: tuple[str, ...], head: LinearHead,
    classes: tuple[str, ...], provenance: Mapping[str, Any], measured: Sequence[Mapping[str, Any]],
    threshold: float | None = None, least_mean: float | None = None,
) -> None:  # fmt: skip
    """The trunk of `model`, as it is stored, with that head on the averages of `layers`."""
    network = replace(model.record.network, head=Head("gap", len(classes), layers))
    own = {key for layer in network.trunk for key in layer.tensors}
    tensors = {
        name: array for name, array in model.stored.items()
        if name in own or name.removesuffix(".q") in own or name.removesuffix(".scale") in own
    }  # fmt: skip
    tensors |= {"classifier.weight": head.weight, "classifier.bias": head.bias}
    record = modelfile.Record(
        network, preprocess, class_names=classes, threshold=threshold, least_mean=least_mean,
        licence=model.record.licence,
        provenance=provenance, measured=tuple(measured),
    )  # fmt: skip
    modelfile.write(path, record, tensors)


def run(
    config: ProbeConfig,
    data: object,
    val: object = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    device: str = "auto",
    event: Event | None = None,
) -> TrainResult:
    """Solve a head on labelled photos and write model.safetensors, report.html and the rest into `out`.

    data, val: as `verydeep.training.data.labelled.find` takes them. resume: on a finished run, nothing is
    done; of one that was stopped, the features that it computed are there. event: is given each line of the
    log. Raises DataError, LayerError or OutputError before long work where something is wrong.
    """
    return _Run(config, Path(out), device, event).train(data, val, resume)


class _Run:
    """What one run holds."""

    def __init__(self, config: ProbeConfig, folder: Path, device: str, event: Event | None) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.listener = event
        self.began = time.perf_counter()
        self.log: Log | None = None
        self.bad: dict[str, str] = {}

    def train(self, source: object, val: object, resume: bool) -> TrainResult:
        config = self.config
        self.data = labelled.find(source, val, seed=config.seed)
        if resume:
            folder.refuse_changes(self.folder, folder.begun(self.folder), config, self.data)
        model = modelfile.read(find_model(config.model))
        self.sets = candidates(model.record.network, config.layers)
        every = tuple(layer.name for layer in model.record.network.trunk
                      if any(layer.name in s for s in self.sets))  # fmt: skip
        self.every = every
        sizes = {size: self._preprocess(model, size) for size in config.sizes}
        self.predictor = Predictor(
            model, engine=config.engine, precision=config.precision,
            threads=config.threads or None, device=self.device,
        )  # fmt: skip
        if resume and self._finished():
            return self._again()
        self._open(resume)
        try:
            return self._train(model, sizes)
        finally:
            if self.log is not None:
                self.log.close()

    def _train(self, model: ModelFile, sizes: dict[int, Preprocess]) -> TrainResult:
        config, classes = self.config, self.data.classes
        best: tuple[int, Averages, Chosen] | None = None
        reached(1, 6, "choosing layers")
        for size in config.sizes:
            made = self._averages(self.data.train, size, "to train on")
            good = self._good(made, "to train on")
            labels = np.array([s.label for s in self.data.train], np.int64)
            chosen = self._choose(made, labels, good)
            for line in chosen.tried:
                self.tell({"event": "tried", "size": size, **line})
            if best is None or chosen.loss < best[2].loss:
                best = size, made, chosen
        assert best is not None
        size, made, chosen = best
        good, labels = ~np.isnan(made.values[:, 0]), np.array([s.label for s in self.data.train])
        reached(2, 6, "solving the head")
        features = np.ascontiguousarray(made.values[good][:, chosen.columns])
        scale = linear.scaling(features)
        head = linear.solve(
            scale.apply(features), labels[good], len(classes), l2=chosen.l2, tolerance=FINE,
            limit=config.epochs,
        )  # fmt: skip
        head = scale.fold(head)
        reached(3, 6, "learning what is not sure")
        known = self._familiar(features, labels[good], np.array(made.digests)[good], chosen)
        apart = (head.weight - head.weight.mean(0)) / chosen.temperature
        head = LinearHead(  # what all scores have in common is nothing to soft-max
            (apart + known.weight).astype(np.float32),
            ((head.bias - head.bias.mean()) / chosen.temperature + known.bias).astype(np.float32),
            head.steps, head.gradient,
        )  # fmt: skip
        self.tell({
            "event": "chosen", "size": size, "layers": list(chosen.layers), "l2": chosen.l2,
            "temperature": chosen.temperature, "top1": chosen.top1, "loss": chosen.loss,
            "steps": head.steps, "seconds": self.seconds,
        })  # fmt: skip
        reached(4, 6, "validating")
        samples, scores = self._validate(head, size, chosen.columns)
        probabilities = softmax(scores).astype(np.float32)
        held_out = softmax(chosen.held_out / chosen.temperature).max(1)
        threshold = round(float(np.quantile(held_out, REFUSED[1])), 4)
        refused = (scores.mean(1) < 0) | (probabilities.max(1) < threshold)
        truth = np.array([s.label for s in samples], np.int64)
        top1, top5 = figures.top(probabilities, truth), figures.top(probabilities, truth, 5)
        reached(5, 6, "writing the model")
        path = self.folder / "model.safetensors"
        write_model(
            path, model, sizes[size], chosen.layers, head, classes,
            self._provenance(model, chosen), self._measured(size, chosen, top1, top5, refused),
            threshold, least_mean=0.0,
        )  # fmt: skip
        self.tell({
            "event": "end", "time": about.now(), "seconds": self.seconds,
            **({"top1": top1, "top5": top5} if samples else {}),
        })  # fmt: skip
        result = self._result(samples, probabilities, self.log.lines if self.log else [])
        reached(6, 6, "writing the report")
        report.write(result)
        return result

    def _preprocess(self, model: ModelFile, size: int) -> Preprocess:
        """How photos are prepared at that size; DataError where it is too small for the layers."""
        network = model.record.network
        least = network.cut(self.every).minimum_size
        if size < least:
            raise DataError(
                f"sizes has {size}, too small for {self.every[-1]} of {network.name}; expected {least} or "
                "more"
            )
        own = model.record.preprocess
        if self.config.stretch:
            return replace(own, resize="exact", resize_size=size, crop_size=None)
        return sized(own, size)

    def _averages(self, samples: Sequence[Sample], size: int, what: str) -> Averages:
        done = 0

        def passed(count: int) -> None:
            nonlocal done
            done += count
            if self.listener is not None:
                self.listener({"event": "features", "what": what, "size": size, "done": done,
                               "total": len(samples)})  # fmt: skip

        made = averages(
            self.predictor, samples, self.every, size=(size, size) if self.config.stretch else size,
            batch=self.config.batch, passed=passed,
        )  # fmt: skip
        for at, why in made.faults.items():
            self.bad.setdefault(samples[at].name, why)
        engine = f" by {made.engine} {made.precision}" if made.computed else ""
        self.tell({
            "event": "note",
            "text": f"features of {len(samples)} photos {what} at {size} pixels: {made.computed} "
            f"computed{engine}, {len(samples) - made.computed - len(made.faults)} kept from before; "
            f"{self.seconds:.1f} s",
        })  # fmt: skip
        return made

    def _good(self, made: Averages, what: str) -> NDArray[np.bool_]:
        good = ~np.isnan(made.values[:, 0])
        if not good.any():
            name, why = next(iter(self.bad.items()))
            raise DataError(f"no photo {what} can be read; {name}: {why}")
        return good

    def _choose(self, made: Averages, labels: NDArray[np.int64], good: NDArray[np.bool_]) -> Chosen:
        names, columns = np.array(made.digests), {}
        channels = [self.predictor.record.network.layer(name).outputs for name in self.every]
        ends = np.cumsum(channels)
        of = {n: np.arange(e - c, e) for n, c, e in zip(self.every, channels, ends, strict=True)}
        for layers in self.sets:
            columns[layers] = np.concatenate([of[name] for name in layers])
        at = np.flatnonzero(good)
        if len(at) > JUDGED:
            shares = linear.folds(labels[at], -(-len(at) // JUDGED), seed=self.config.seed)
            at = at[shares == 0]
        return choose(
            made.values[at], labels[at], len(self.data.classes), columns, l2=self.config.l2,
            folds=self.config.folds, seed=self.config.seed, groups=names[at],
            limit=self.config.epochs,
        )  # fmt: skip

    def _familiar(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], names: NDArray[Any],
        chosen: Chosen,
    ) -> LinearHead:  # fmt: skip
        """What all scores have in common; small beside what tells classes apart."""
        at = np.random.default_rng(self.config.seed).permutation(len(labels))[:JUDGED]
        folds = min(self.config.folds, len(at))
        fold = linear.folds(labels[at], folds, groups=names[at], seed=self.config.seed)
        widths = [self.predictor.record.network.layer(name).outputs for name in chosen.layers]
        known = familiarity(features[at], fold, widths, self.config.seed)
        size = np.float32(FAMILIAR_SHARE * chosen.held_out.std() / chosen.temperature)
        return LinearHead(known.weight * size, known.bias * size)

    def _validate(
        self, head: LinearHead, size: int, columns: NDArray[np.int64]
    ) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
        """The validation photos that can be read, and their scores."""
        if not self.data.val:
            return (), np.zeros((0, len(self.data.classes)), np.float32)
        made = self._averages(self.data.val, size, "to validate")
        good = self._good(made, "to validate")
        samples = tuple(s for s, fine in zip(self.data.val, good, strict=True) if fine)
        return samples, head.scores(made.values[good][:, columns])

    def _measured(
        self, size: int, chosen: Chosen, top1: float, top5: float, refused: NDArray[np.bool_]
    ) -> list[dict[str, Any]]:
        how = "stretched to" if self.config.stretch else "one crop of"
        view = f"one view, {how} {size} pixels, features in {self.config.precision} precision"
        folds = (
            f"{self.config.folds} folds of {len(chosen.labels)} training photos, held out; {view}"
        )
        rows: list[dict[str, Any]] = [
            {"what": "top1, cross-validated", "value": round(chosen.top1, 6), "protocol": folds}
        ]
        if n := len(refused):
            unsure = round(float(refused.mean()), 6)
            protocol = f"{n} validation photos ({self.data.split}), {view}"
            rows = [
                {"what": "top1", "value": round(top1, 6), "n": n, "protocol": protocol},
                {"what": "top5", "value": round(top5, 6), "n": n, "protocol": protocol},
                {
                    "what": "not sure",
                    "value": unsure,
                    "n": n,
                    "protocol": protocol,
                },
                *rows,
            ]
        return rows

    def _provenance(self, model: ModelFile, chosen: Chosen) -> dict[str, Any]:
        return {
            "made_by": "verydeep train", "command": about.command(), "versions": about.versions(),
            "config": self.config.to_dict(), "data": about.described(self.data),
            "chosen": {"layers": list(chosen.layers), "l2": chosen.l2,
                       "temperature": round(chosen.temperature, 6)},
            "trunk": {"sha256": model.sha256, "provenance": dict(model.record.provenance)},
        }  # fmt: skip

    # The folder

    def _finished(self) -> bool:
        lines = read(self.folder / "log.jsonl")
        done = bool(lines) and lines[-1].get("event") == "end"
        return done and (self.folder / "model.safetensors").exists()

    def _again(self) -> TrainResult:
        """The result of a run that had finished; nothing is written."""
        if self.listener is not None:
            self.listener({"event": "note", "text": f"{self.folder} had finished; nothing is done"})
        samples, probabilities = folder.judged(self.folder, self.data, self.bad)
        return self._result(samples, probabilities, read(self.folder / "log.jsonl"))

    def _open(self, resume: bool) -> None:
        if not resume:
            folder.refuse_another_run(self.folder)
        folder.made(self.folder)
        self.log = Log(self.folder / "log.jsonl")
        whole = {
            "config": self.config.to_dict(), "data": about.described(self.data), "init": self.config.model,
            **about.asked(), "device": self.device,
        }  # fmt: skip
        with replacing(self.folder / "config.json", "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=1)
        self.tell({"event": "start", "time": about.now(), **whole})
        for line in self.data.warnings:
            self.tell({"event": "warning", "text": line})

    def tell(self, line: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log(line)
        if self.listener is not None:
            self.listener(line)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def _result(
        self, samples: tuple[Sample, ...], probabilities: NDArray[np.float32], log: Sequence[Any]
    ) -> TrainResult:
        return folder.result(
            self.folder, self.data, self.config, samples, probabilities,
            log=log, bad=self.bad, seconds=self.seconds,
        )  # fmt: skip
