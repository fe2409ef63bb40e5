"""A whole run: data, network and loop put together, in a folder from which it can go on at any time."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__, modelfile
from ..atomic import replacing
from ..errors import DataError, OutputError
from ..preprocess import Preprocess
from . import checkpoint, data, measures, recipes
from .checkpoint import Checkpoint
from .data import Data
from .distributed import Group, joined
from .feed import Feed, MemorySource
from .log import Log, read
from .loop import EVAL_BATCH, Diverged, Learner, Position, Stopped, fit
from .pictures import Pictures, pictures
from .precision import decided
from .recipes import Config, changed
from .result import TrainResult
from .signals import watched
from .start import started
from .statistics import Statistics, statistics
from .stuck import Stuck

__all__ = ["train"]

Event = Callable[[Mapping[str, Any]], None]


def train(
    recipe: str | Config,
    data: object,  # what it is
    val: object = None,
    *,
    out: str | os.PathLike[str],
    model: str | None = None,
    width: float | None = None,
    settings: Iterable[str] | Mapping[str, Any] = (),
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    event: Event | None = None,
) -> TrainResult:
    """Train a network on labelled images and write model.safetensors and the rest into `out`.

    recipe: a name of `verydeep.training.recipes.RECIPES`, or a config. data, val: as `data.find` takes
    them. settings: "key=value" each, or a mapping, changing the recipe; model and width are settings too.
    init: weights to start from. resume: go on from the last checkpoint in `out`, to the bit on a CPU.
    event: is given each line of the log as it is written.

    Raises DataError, NetworkError, WeightsError or OutputError before long work where something is wrong
    with what was given; Diverged where the loss is no number any more. Ctrl-C and SIGTERM write a
    checkpoint and then do what they always do.
    """
    config = recipe if isinstance(recipe, Config) else recipes.recipe(recipe)
    asked = dict(settings) if isinstance(settings, Mapping) else _pairs(settings)
    asked |= {k: v for k, v in (("model", model), ("width", width)) if v is not None}
    config = changed(config, asked)
    where = _device(device)
    folder = Path(out)
    with joined(where) as group, torch.random.fork_rng(), watched() as stop:
        run = _Run(config, folder, group, where, event)
        done = run.prepare(data, val, init, named="model" in asked, resume=resume)
        if done is not None:
            return done
        try:
            run.fit(stop)
        except Stopped:
            pass
        else:
            return run.finish()
        finally:
            run.close()
    stop.raise_()
    raise AssertionError("a stop without a signal")


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
        self, source: object, val: object, init: Any, *, named: bool, resume: bool
    ) -> TrainResult | None:
        """Everything that can be refused is refused here. A result where the run had finished."""
        config = self.config
        self.notes: list[str] = []
        self.data = data.find(source, val, seed=config.seed)
        before = self._before(resume)
        about = {"data": _described(self.data), "init": None if init is None else str(init)}
        if before is not None:
            self._compare(before.facts, about)
            stored = before.facts["config"]
            config = replace(config, precision=stored["precision"], layout=stored["layout"])
        self.held = self._pictures(self.data.train, config)
        torch.manual_seed(config.seed)
        model, expected, notes = started(config, len(self.data.classes), init, named=named)
        network = model.table
        config = replace(config, model=network.name, width=network.width, pool=network.pool)
        self.notes += notes
        self.preprocess = expected.with_size(config.size) if expected else self._preprocess()
        if before is None:
            config = self._agreed(decided(config, model, self.device))
        self.config = config
        self.val = self._pictures(self.data.val, config)
        self.position.bad.update([*self.held.bad, *self.val.bad])
        self.feed = Feed(MemorySource(self.held, config), config, self.group.rank, self.group.world)
        self.learner = Learner(
            model, config, self.preprocess, self.device, self.group,
            class_weights=_class_weights(self.held.labels, len(self.data.classes), config),
        )  # fmt: skip
        self.about = about
        step = 0
        if before is not None:
            self.learner.restore(before.tensors)
            self.position = Position(**before.facts["position"])
            step = before.facts["step"]
        self.stuck = Stuck(len(self.data.classes), network.batch_norm)
        if self.position.finished and (self.folder / "model.safetensors").exists():
            self.tell_only(f"{self.folder} had finished; nothing is done")
            return self._result(self._probabilities(), read(self.folder / "log.jsonl"))
        if self.group.first:
            self._open(step, before)
        return None

    def _before(self, resume: bool) -> Checkpoint | None:
        resume = resume or self.group.restarted
        if not resume:
            if self.group.first:
                held = [p for p in ("config.json", "checkpoints") if (self.folder / p).exists()]
                if held:
                    raise OutputError(
                        f"{self.folder} holds a run already; go on with it by --resume, or choose another "
                        "folder"
                    )
            return None
        found = checkpoint.latest(self.folder / "checkpoints", self.notes.append)
        if found is None:
            self.notes.append(f"no checkpoint in {self.folder} yet: beginning anew")
        return found

    def _compare(self, facts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """DataError where a run that is resumed is not the one that was begun."""
        old, new = dict(facts["config"]), self.config.to_dict()
        for key in ("precision", "layout"):
            if new[key] == "auto":
                new[key] = old[key]
        if about["init"] is not None:  # the network was taken from the weights
            for key in ("model", "width", "pool"):
                new[key] = old[key]
        old, new = old | {"init": facts["init"]}, new | {"init": about["init"]}
        differ = [f"{k} was {old.get(k)}, is {new.get(k)}" for k in new if old.get(k) != new.get(k)]
        if differ:
            raise DataError(
                f"{self.folder} is a run of another configuration: {'; '.join(differ)}; resume it with "
                "its own, or choose another folder"
            )
        if facts["data"]["digest"] != about["data"]["digest"]:
            was, now = facts["data"], about["data"]
            raise DataError(
                f"the data has changed since the checkpoint in {self.folder}: {was['train']} images to "
                f"train on and {was['val']} to validate then, {now['train']} and {now['val']} now, not "
                "all of them the same; choose another folder for a new run"
            )

    def _pictures(self, samples: tuple[data.Sample, ...], config: Config) -> Pictures:
        return pictures(samples, config.size, config.threads)

    def _preprocess(self) -> Preprocess:
        """Normalising by what this data's pixels are."""
        size = self.config.size
        found: Statistics = statistics([self.held.images])
        mean, std = (found.mean / 255).round(6), np.maximum(found.deviation / 255, 1e-3).round(6)
        return Preprocess(
            resize_size=size, crop_size=size, mean=tuple(mean.tolist()), std=tuple(std.tolist())
        )

    def _agreed(self, config: Config) -> Config:
        """The first process's choice, so that all compute alike."""
        if self.group.world == 1:
            return config
        chosen = [config]
        torch.distributed.broadcast_object_list(chosen)
        return chosen[0]

    def _open(self, step: int, before: Checkpoint | None) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be made: {error.strerror}; choose a folder you may write to"
            ) from error
        whole = {
            "verydeep": __version__, **self.about, "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(), "command": _command(),
            "versions": _versions(), "device": str(self.device), "processes": self.group.world,
        }  # fmt: skip
        if before is None:
            with replacing(self.folder / "config.json", "w", encoding="utf-8") as file:
                json.dump(whole, file, indent=1)
        self.log = Log(self.folder / "log.jsonl", step)
        kind = "start" if before is None else "resume"
        self.tell({"event": kind, "step": step, "time": _now(), **whole})
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
        found, labels = self._probabilities(), self.val.labels
        return {
            "loss": measures.loss(found, labels),
            "top1": measures.top(found, labels),
            "top5": measures.top(found, labels, 5),
        }

    def save(self) -> None:
        if self.group.first:
            done = self.position.epoch * self.feed.steps + self.position.step
            facts = {
                "config": self.config.to_dict(), **self.about, "step": done,
                "position": self.position.to_dict(),
            }  # fmt: skip
            folder = self.folder / "checkpoints"
            checkpoint.save(folder, done, self.learner.tensors(), facts)
        self.group.wait()

    # After the last step

    def finish(self) -> TrainResult:
        self.learner.config = replace(self.config, precision="fp32")  # what the model file will do
        found = self._probabilities()
        step = self.position.epoch * self.feed.steps
        path = self.folder / "model.safetensors"
        labels = self.val.labels
        top1, top5 = measures.top(found, labels), measures.top(found, labels, 5)
        if self.group.first:
            self.tell({
                "event": "end", "step": step, "time": _now(), "seconds": self.position.seconds,
                **({"top1": top1, "top5": top5} if len(labels) else {}),
            })  # fmt: skip
            self._write_model(path, top1, top5)
        self.save()
        result = self._result(found, self.log.lines if self.log else [])
        if self.group.first:
            _report(result)
        return result

    def _write_model(self, path: Path, top1: float, top5: float) -> None:
        network, n = self.learner.model.table, len(self.val.samples)
        protocol = f"{n} validation images ({self.data.split}), one view of {self.config.size} pixels, fp32"
        measured: list[dict[str, Any]] = [
            {"what": what, "value": round(value, 6), "n": n, "protocol": protocol}
            for what, value in (("top1", top1), ("top5", top5))
            if n
        ]
        provenance: dict[str, Any] = {
            "made_by": "verydeep train", "command": _command(), "config": self.config.to_dict(),
            "versions": _versions(), **self.about,
        }  # fmt: skip
        record = modelfile.Record(
            network, self.preprocess, class_names=self.data.classes,
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

    def _probabilities(self) -> NDArray[np.float32]:
        """(n, classes) of the validation images, computed by all processes together."""
        group, images = self.group, self.val.images
        whole = torch.zeros(len(images), len(self.data.classes))
        mine = images[group.rank :: group.world]
        if len(mine):
            whole[group.rank :: group.world] = self.learner.probabilities(_cut(mine))
        return group.sum(whole.to(self.device)).cpu().numpy() if group.world > 1 else whole.numpy()

    def _result(self, found: NDArray[np.float32], log: list[dict[str, Any]]) -> TrainResult:
        labels = self.val.labels
        return TrainResult(
            folder=self.folder, model=self.folder / "model.safetensors",
            classes=self.data.classes,
            config={**self.about, "config": self.config.to_dict()}, log=tuple(log),
            top1=measures.top(found, labels), top5=measures.top(found, labels, 5),
            val=self.val.samples, probabilities=found, labels=labels,
            warnings=self.data.warnings, bad=tuple(self.position.bad.items()),
            seconds=self.position.seconds,
        )  # fmt: skip


def _cut(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for at in range(0, len(images), EVAL_BATCH):
        yield images[at : at + EVAL_BATCH]


def _class_weights(labels: NDArray[np.int64], classes: int, config: Config) -> Tensor | None:
    """Images / (classes * images of the class), which is 1 where all are equally many."""
    if config.balance != "weights":
        return None
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()


def _report(result: TrainResult) -> None:
    pass


def _pairs(settings: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise DataError(f"--set {setting}: expected key=value, as in epochs=30")
        pairs[key.strip()] = value.strip()
    return pairs


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
    return torch.device(name)


def _described(found: Data) -> dict[str, Any]:
    return {
        "digest": found.digest, "classes": len(found.classes), "train": len(found.train),
        "val": len(found.val), "split": found.split,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    return {
        "verydeep": __version__, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "platform": platform.platform(terse=True),
    }  # fmt: skip


def _command() -> str:
    program = Path(sys.argv[0]).name
    program = "verydeep" if program == "__main__.py" else program  # python -m verydeep
    return shlex.join([program, *sys.argv[1:]])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
