"""A whole run: data, network and loop put together, in a folder from which it can go on at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__, modelfile
from ..errors import DataError, OutputError
from ..files.atomic import replacing
from ..preprocess import Preprocess, sized
from . import heap
from .data import labelled
from .data.colours import Statistics, few, statistics
from .data.feed import Feed, MemorySource, Source, StreamFeed
from .data.photos import PhotoSource
from .data.shards import of_shards
from .data.views import Views, pictures
from .loop import Diverged, Learner, Position, Stopped, fit
from .parallel import ALONE, Group, joined
from .precision import decided
from .profile import Profile, profile
from .ratetest import RateTest, rate_test
from .recipes import Config
from .record import about, checkpoint, figures, folder
from .record.checkpoint import Checkpoint
from .record.log import Log, read
from .record.result import TrainResult
from .schedule import side_at
from .signals import watched
from .start import started
from .stuck import Stuck

MEASURED_PHOTOS = 512  # for mean and covariance

Event = Callable[[Mapping[str, Any]], None]
T = TypeVar("T")


def run(
    config: Config,
    data: object,
    val: object = None,
    *,
    out: str | os.PathLike[str],
    init: str | os.PathLike[str] | None = None,
    named: Collection[str] = (),
    resume: bool = False,
    device: str = "auto",
    event: Event | None = None,
) -> TrainResult:
    """Train by that config; the rest is as `verydeep.training.begin.train` has it.

    named: the settings that were asked for by name, and are not only the recipe's defaults.
    """
    where = _device(device)
    with joined(where) as group, _own_numbers(where), heap.kept():
        one = _Run(config, Path(out), group, where, event)
        try:
            done = one.prepare(data, val, init, named=named, resume=resume)
            if done is not None:
                return done
            with watched() as stop:  # before the first step there is nothing to save
                try:
                    one.fit(stop)
                except Stopped:
                    pass
                else:
                    return one.finish()
        finally:
            one.close()
    stop.raise_()
    raise AssertionError("a stop without a signal")


def rates(
    config: Config, data: object, val: object = None, *, init: str | os.PathLike[str] | None = None,
    named: Collection[str] = (), device: str = "auto",
) -> RateTest:  # fmt: skip
    """A rate range test of that config; arguments as for `run`. Nothing is written."""
    where = _device(device)
    with _own_numbers(where):
        one = _Run(config, Path(os.curdir), ALONE, where, None)
        one.prepare(data, val, init, named=named, resume=False, opens=False)
        return rate_test(one.learner, one.feed)


def measured(
    config: Config, data: object, val: object = None, *, init: str | os.PathLike[str] | None = None,
    named: Collection[str] = (), device: str = "auto",
) -> Profile:  # fmt: skip
    """How fast input and network are under that config; arguments as for `run`. Nothing is written."""
    where = _device(device)
    with _own_numbers(where), heap.kept():
        one = _Run(config, Path(os.curdir), ALONE, where, None)
        one.prepare(data, val, init, named=named, resume=False, opens=False)
        return profile(one.learner, one.feed)


class _Run:
    """What one run holds. Only the first process of a group writes."""

    def __init__(
        self, config: Config, folder: Path, group: Group, device: torch.device, event: Event | None
    ) -> None:
        self.config, self.folder, self.group, self.device = config, folder, group, device
        self.listener = event
        self.position = Position()
        self.log: Log | None = None

    # Before the first step

    def prepare(
        self,
        source: object,
        val: object,
        init: Any,
        *,
        named: Collection[str],
        resume: bool,
        opens: bool = True,
    ) -> TrainResult | None:
        """Everything that can be refused is refused here. A result where the run had finished.

        opens: whether the folder is made, and what is in it looked at.
        """
        config = self.config
        self.notes: list[str] = []
        if opens and self.group.first:
            _writable(self.folder)
        self.data = labelled.find(source, val, seed=config.seed)
        before = self._before(resume) if opens else None
        inputs = {"data": about.described(self.data), "init": None if init is None else str(init)}
        if before is not None:
            self._compare(before.facts, inputs)
            stored = before.facts["config"]
            config = replace(config, precision=stored["precision"], layout=stored["layout"])
        held = pictures(self.data.train, config.size, config.threads) if config.memory else None
        torch.manual_seed(config.seed)
        model, expected, notes = started(config, len(self.data.classes), init, named=named)
        network = model.table
        config = replace(config, model=network.name, width=network.width, pool=network.pool)
        self.notes += notes
        found = self._statistics(held)
        shown = _as_shown(expected, config) if expected else _fitted(found, config)
        self.preprocess = replace(shown, detail=held.detail if held else None)
        self.licence = model.record.licence if model.record else ""
        if before is None:
            config = self._agreed(decided(config, model, self.device))
        self.config = config
        if held is not None:
            self.val = pictures(self.data.val, config.size, config.threads)
            self.position.bad.update(held.bad | self.val.bad)
        else:
            self.val = Views(self.data.val, self.preprocess, threads=config.threads)
        learnt: Source = (
            MemorySource(held, config) if held else PhotoSource(self.data.train, config, found)
        )
        feed = StreamFeed if of_shards(self.data.train) else Feed
        self.feed = feed(learnt, config, self.group.rank, self.group.world)
        self.learner = Learner(
            model, config, self.preprocess, self.device, self.group,
            class_weights=_class_weights(learnt.labels, len(self.data.classes), config),
        )  # fmt: skip
        self.inputs = inputs
        step = 0
        if before is not None:
            self.learner.restore(before.tensors)
            self.position = Position(**before.facts["position"])
            step = before.facts["step"]
        self.stuck = Stuck(len(self.data.classes), network.batch_norm)
        if self._agreed(self.position.finished and (self.folder / "model.safetensors").exists()):
            self.tell_only(f"{self.folder} had finished; nothing is done")
            self.learner.config = replace(config, precision="fp32")  # as `finish` measured it
            return self._result(*self._probabilities(), read(self.folder / "log.jsonl"))
        if self.group.first and opens:
            self._open(step, before)
        return None

    def _before(self, resume: bool) -> Checkpoint | None:
        self.anew = not (resume or self.group.restarted)
        if self.anew:
            if self.group.first:
                held = [p for p in ("config.json", "checkpoints") if (self.folder / p).exists()]
                if held:
                    raise OutputError(
                        f"{self.folder} holds a run already; go on with it by --resume, or choose another "
                        "folder"
                    )
            return None
        # of the first process for all: they need not share a disk
        found: Checkpoint | None = None
        if self.group.first:
            found = checkpoint.latest(self.folder / "checkpoints", self.notes.append)
        found = self._agreed(found)
        if found is None:
            if self.group.first and (self.folder / "model.safetensors").exists():
                raise OutputError(
                    f"{self.folder} holds a model, and no checkpoint to go on from; choose another folder"
                )
            self.notes.append(f"no checkpoint in {self.folder} yet: beginning anew")
        return found

    def _compare(self, facts: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """DataError where a run that is resumed is not the one that was begun."""
        old, new = facts["config"], self.config.to_dict()
        for key in ("precision", "layout"):
            if new[key] == "auto":
                new[key] = old[key]
        if inputs["init"] is not None:  # the network was taken from the weights
            for key in ("model", "width", "pool"):
                new[key] = old[key]
        was = {"config": {**old, "init": facts.get("init")}, "data": facts["data"]}
        now = {"config": {**new, "init": inputs["init"]}, "data": inputs["data"]}
        folder.refuse_difference(self.folder, was, now, Config().to_dict())

    def _statistics(self, held: Views | None) -> Statistics:
        """Of the training images' colours; of photos, those of a few hundred say enough."""
        if held is not None and held.images is not None:
            return statistics([held.images])
        config, samples = self.config, self.data.train
        chosen = few(samples, MEASURED_PHOTOS, config.seed)
        fit = Views(chosen, _fitted(None, config), threads=config.threads)
        batches = [images for _, images in fit.batches()]
        if not batches:
            first = next(iter(fit.bad.values()))
            raise DataError(f"not one of {len(chosen)} images could be read; the first: {first}")
        return statistics(batches)

    def _agreed(self, choice: T) -> T:
        """The first process's choice, so that all compute alike."""
        if self.group.world == 1:
            return choice
        chosen = [choice]
        torch.distributed.broadcast_object_list(chosen)
        return chosen[0]

    def _open(self, step: int, before: Checkpoint | None) -> None:
        folder.made(self.folder)
        if self.anew:  # making ready took its time, and another may have begun meanwhile
            folder.refuse_another_run(self.folder)
        self.log = Log(self.folder / "log.jsonl", step)
        whole = {
            "verydeep": __version__, **self.inputs, "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(), **about.asked(),
            "device": str(self.device), "processes": self.group.world,
        }  # fmt: skip
        if before is None:
            with replacing(self.folder / "config.json", "w", encoding="utf-8") as file:
                json.dump(whole, file, indent=1)
        kind = "start" if before is None else "resume"
        self.tell({"event": kind, "step": step, "time": about.now(),
                   "steps_per_epoch": self.feed.steps, **whole})  # fmt: skip
        for line in self.data.warnings:
            self.tell({"event": "warning", "step": step, "text": line})
        for line in self.notes:
            self.tell({"event": "note", "step": step, "text": line})

    # The steps

    def fit(self, stop: Callable[[], bool]) -> None:
        try:
            fit(
                self.learner, self.feed, self.position,
                validate=self.validate, event=self.watch, save=self.save, stop=stop,
            )  # fmt: skip
        except Diverged as error:
            last = checkpoint.latest(self.folder / "checkpoints", lambda _: None)
            good = f"; the last good checkpoint is {last.path}" if last else ""
            raise Diverged(f"{error}{good}") from None

    def watch(self, line: dict[str, Any]) -> None:
        self.tell(line)
        found = self.stuck(line)
        if found:
            self.tell({"event": "warning", "step": line["step"], "text": found})

    def validate(self) -> dict[str, float]:
        if not len(self.val.samples):
            return {}
        # at the side that it learns from now, since it knows no other yet
        found, labels = self._probabilities(side_at(self.config, self.position.epoch))
        if not len(labels):  # not one could be read
            return {}
        if not np.isfinite(found).all():
            raise Diverged(
                f"the network's answers are no numbers after epoch {self.position.epoch + 1}; lower the "
                f"rate, as with --set rate={self.config.rate / 3:.2g}"
            )
        return {
            "loss": figures.loss(found, labels),
            "top1": figures.top(found, labels),
            "top5": figures.top(found, labels, 5),
        }

    def save(self) -> None:
        tensors = self.learner.tensors()
        if not all(bool(t.isfinite().all()) for t in tensors.values()):
            raise Diverged(
                f"weights are no numbers any more, in epoch {self.position.epoch + 1}; lower the rate, as "
                f"with --set rate={self.config.rate / 3:.2g}"
            )
        if self.group.first:
            done = self.position.epoch * self.feed.steps + self.position.step
            facts = {
                "config": self.config.to_dict(), **self.inputs, "step": done,
                "position": self.position.to_dict(),
            }  # fmt: skip
            folder = self.folder / "checkpoints"
            checkpoint.save(folder, done, tensors, facts)
        self.group.wait()

    # After the last step

    def finish(self) -> TrainResult:
        self.learner.config = replace(self.config, precision="fp32")  # what the model file will do
        found, labels = self._probabilities()
        step = self.position.epoch * self.feed.steps
        path = self.folder / "model.safetensors"
        top1, top5 = figures.top(found, labels), figures.top(found, labels, 5)
        if self.group.first:
            self.tell({
                "event": "end", "step": step, "time": about.now(), "seconds": self.position.seconds,
                **({"top1": top1, "top5": top5} if len(labels) else {}),
            })  # fmt: skip
            self._write_model(path, len(labels), top1, top5)
        result = self._result(found, labels, self.log.lines if self.log else [])
        if self.group.first:
            _report(result)
        self.save()  # last, since it says that the run has finished
        return result

    def _write_model(self, path: Path, n: int, top1: float, top5: float) -> None:
        network = self.learner.model.table
        protocol = f"{n} validation images ({self.data.split}), one view of {self.config.size} pixels, fp32"
        measured: list[dict[str, Any]] = [
            {"what": what, "value": round(value, 6), "n": n, "protocol": protocol}
            for what, value in (("top1", top1), ("top5", top5))
            if n
        ]
        provenance: dict[str, Any] = {
            "made_by": "verydeep train", "command": about.command(), "config": self.config.to_dict(),
            "versions": about.versions(), **self.inputs,
        }  # fmt: skip
        record = modelfile.Record(
            network, self.preprocess, class_names=self.data.classes, licence=self.licence,
            provenance=provenance,
            measured=tuple(measured),
        )  # fmt: skip
        tensors = self.learner.average.state_dict()
        arrays = {k: tensors[k].detach().cpu().contiguous().numpy() for k in network.tensors}
        modelfile.write(path, record, arrays)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def tell(self, line: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log(line)
        if self.group.first and self.listener is not None:
            self.listener(line)

    def tell_only(self, text: str) -> None:
        if self.group.first and self.listener is not None:
            self.listener({"event": "note", "text": text})

    def _probabilities(
        self, side: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, classes) and labels (n,) of the validation images that could be read, by all processes.

        side: pixels that they are shown at; None for the recipe's size.
        """
        group, count = self.group, len(self.val.samples)
        whole = torch.zeros(count, len(self.data.classes) + 1)  # the last column: it was read
        for numbers, images in self.val.batches(group.rank, group.world):
            whole[numbers, :-1] = self.learner.probabilities(images, side)
            whole[numbers, -1] = 1
        self.position.bad = group.merged({**self.position.bad, **self.val.bad})
        found = group.sum(whole.to(self.device)).cpu().numpy()
        self.read = found[:, -1] > 0
        return found[self.read, :-1], self.val.labels[self.read]

    def _result(
        self, found: NDArray[np.float32], labels: NDArray[np.int64], log: list[dict[str, Any]]
    ) -> TrainResult:
        begun = folder.begun(self.folder)  # only the first process needs to see the folder
        return TrainResult(
            folder=self.folder, model=self.folder / "model.safetensors",
            classes=self.data.classes,
            config=begun or {**self.inputs, "config": self.config.to_dict()},
            log=tuple(log),
            top1=figures.top(found, labels), top5=figures.top(found, labels, 5),
            val=tuple(s for s, good in zip(self.val.samples, self.read, strict=True) if good),
            probabilities=found, labels=labels,
            warnings=self.data.warnings, bad=tuple(self.position.bad.items()),
            seconds=self.position.seconds,
        )  # fmt: skip


def _as_shown(expected: Preprocess, config: Config) -> Preprocess:
    """What the weights that a run starts from expect, at the size, and resized as this run does it."""
    if not config.memory:
        return sized(expected, config.size)
    plain = Preprocess()
    return replace(
        expected, resize="shorter", resize_size=config.size, crop_size=config.size,
        interpolation=plain.interpolation,
    )  # fmt: skip


def _fitted(found: Statistics | None, config: Config) -> Preprocess:
    """Pre-processing for a network that starts from nothing: normalised by what this data's pixels are.

    The paper subtracts the mean and does nothing else (arXiv:1409.1556, section 2.1).
    """
    size = config.size
    plain = Preprocess(resize_size=size if config.memory else round(size * 8 / 7), crop_size=size)
    if found is None:
        return plain
    mean, std = found.mean, np.maximum(found.deviation, 0.5)
    if config.recipe == "paper":
        mean, std = mean.round(3), np.ones(3)
        plain = replace(plain, range=(0.0, 255.0))
    else:
        mean, std = (mean / 255).round(6), (std / 255).round(6)
    return replace(plain, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _class_weights(labels: NDArray[np.int64], classes: int, config: Config) -> Tensor | None:
    """Images / (classes * images of the class), which is 1 where all are equally many."""
    if config.balance != "weights":
        return None
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()


def _writable(folder: Path) -> None:
    """OutputError where nothing can be written into `folder`, which need not be there yet."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; expected a folder to write into")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: cannot be written into; choose a folder you may write to")


def _report(result: TrainResult) -> None:
    from .record import report

    report.write(result)


def _own_numbers(where: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators as they were."""
    found: AbstractContextManager[None] = torch.random.fork_rng(
        [where.index or 0] if where.type == "cuda" else []
    )
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    known = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind = name.partition(":")[0]
    if not known.get(kind, False):
        here = ", ".join(["auto", *(kind for kind, is_here in known.items() if is_here)])
        raise DataError(f"device {name!r} is not here; expected one of: {here}")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise DataError(f"device {name!r} is none; expected a name as cpu, or cuda:0") from error
