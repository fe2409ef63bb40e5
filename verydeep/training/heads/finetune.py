"""The recipe `finetune`: the probe's head first, then the upper blocks with it, at falling rates.

A head that is solved before the blocks below it move keeps their features from being torn apart by a head
that knows nothing (Kumar et al., arXiv:2202.10054, "linear probing, then fine-tuning"). The lower blocks
are frozen: what they make of each view is computed once and kept on disk (`frozen.py`), so a step costs
what the upper blocks cost. Batch norms keep their statistics. A part of the training images is held out: it
stops the run, takes the best epoch and fits the temperature; the validation images only measure.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import modelfile
from ...engines.torch import precise
from ...errors import DataError
from ...files.atomic import replacing
from ...models import layers as module_layers
from ...nets import Head, Network
from ...predictor import Predictor
from ...published import find_model
from ..data import labelled
from ..data.labelled import Sample
from ..loop import Diverged
from ..record import about, checkpoint, figures, folder, report
from ..record.log import Log, read
from ..record.result import TrainResult
from ..signals import watched
from . import linear
from .choosing import candidates, choose
from .frozen import Frozen, frozen

Event = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class FinetuneConfig:
    """What a run is made of; config.json and the model file record it. DataError for what makes no sense.

    model: the weights, a built-in's or catalogue name or a model file. size: pixels a side that photos are
    stretched to. layers: that the head averages; none for the last six ReLUs.
    blocks: how many, from the top, are trained; the others are frozen. 5 are all. views: of each photo;
    the photo, its mirror image, and parts of it.
    epochs, batch, seed: an epoch shows each photo once, in one of its views.
    rate: of the uppermost convolution, the highest; each one below gets `fall` times that; head_rate: of
    the head. They rise in the first half epoch and fall by a cosine. decay: AdamW's. dropout: of averages.
    smoothing: of labels. average: decay of the running mean of the weights, which is measured and kept.
    hold: fraction of the training photos held out. patience: epochs without a smaller loss on them that end
    the run. checkpoint_minutes: between two checkpoints within an epoch. precision: of training, "fp32",
    "bf16", or "auto", bf16 where the processor computes in it.
    engine, features, threads: what computes the frozen blocks, and its precision.
    """

    recipe: str = "finetune"
    model: str = "builtin"
    size: int = 224
    layers: tuple[str, ...] = ()
    blocks: int = 1
    views: int = 3
    epochs: int = 12
    batch: int = 32
    seed: int = 0
    rate: float = 5e-5
    fall: float = 0.7
    head_rate: float = 2e-4
    decay: float = 0.01
    dropout: float = 0.3
    smoothing: float = 0.05
    average: float = 0.98
    hold: float = 0.1
    patience: int = 4
    checkpoint_minutes: float = 10.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    engine: str = "auto"
    features: Literal["exact", "fast", "half"] = "half"
    threads: int = 0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "size": (1, math.inf), "blocks": (1, 5), "views": (1, 100), "epochs": (1, math.inf),
            "batch": (1, math.inf), "seed": (0, 2**31), "rate": (0, 1), "fall": (0, 1),
            "head_rate": (0, 1), "decay": (0, 1), "dropout": (0, 0.95), "smoothing": (0, 0.95),
            "average": (0, 0.99999), "hold": (0.01, 0.5), "patience": (1, math.inf),
            "checkpoint_minutes": (0, math.inf), "threads": (0, math.inf),
        }  # fmt: skip
        for key, (low, high) in limits.items():
            if not low <= getattr(self, key) <= high:
                top = "" if high == math.inf else f", at most {high:g}"
                raise DataError(f"{key} is {getattr(self, key)}; expected {low:g} or more{top}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def finetune() -> FinetuneConfig:
    """A solved head, and then the last block of the built-in trunk trained with it.

    Command: verydeep train photos/ --recipe finetune --out run
    Expected: at least what a probe of photos of that size reaches, since the best epoch on held-out photos
    is kept.
    Duration: a quarter of an hour for 3,000 photos on two cores with bf16.
    """
    return FinetuneConfig()


class Upper(nn.Module):
    """The trained blocks and the head: maps of the last frozen layer in, scores out.

    network: with a head "gap". tensors: float32, by torchvision's key. first: number, in the trunk, of the
    first layer that is trained. head: solved on averages that `scale` scaled.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(
        self, network: Network, tensors: Mapping[str, NDArray[Any]], first: int,
        head: linear.LinearHead, scale: linear.Scaling, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names = network.head.layers
        self.trained = tuple(layer.name for layer in network.trunk[first:])
        last = max(i for i, layer in enumerate(network.trunk) if layer.name in self.names)
        self.upper = nn.ModuleDict()
        whole = module_layers.trunk(network)
        places = module_layers.positions(network.trunk)
        before = places[network.trunk[first - 1].name] if first else -1
        for layer in network.trunk[first : last + 1]:
            part = nn.Sequential(*list(whole.children())[before + 1 : places[layer.name] + 1])
            before = places[layer.name]
            keys = (layer.key, layer.norm_key) if layer.norm_key else (layer.key,)
            for module, key in zip(part, keys, strict=False):
                if key:
                    state = {
                        n: torch.from_numpy(np.array(tensors[f"{key}.{n}"]))
                        for n in module.state_dict()
                    }
                    module.load_state_dict(state)
            self.upper[layer.name] = part
        self.head = nn.Linear(*head.weight.shape[::-1])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))
        self.scale = scale
        self.register_buffer("mean", torch.from_numpy(scale.mean))
        self.register_buffer("inverse", torch.from_numpy(1 / scale.deviation))
        self.dropout = dropout
        self.columns, at = {}, 0
        for name in self.names:
            self.columns[name] = slice(at, at + network.layer(name).outputs)
            at += network.layer(name).outputs

    @property
    def stages(self) -> dict[str, nn.Sequential]:
        """The modules of each layer, with its batch norm, by paper name."""
        return {name: cast("nn.Sequential", part) for name, part in self.upper.items()}

    def train(self, mode: bool = True) -> Upper:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # a few small batches would make worse statistics than it came with
        return self

    def forward(self, maps: Tensor, averages: Tensor) -> Tensor:
        """maps: (n, channels, h, w). averages: (n, channels) of all the head's layers, of which those of
        trained layers are computed anew."""
        parts = {name: averages[:, self.columns[name]] for name in self.names}
        for name, module in self.upper.items():
            maps = module(maps)
            if name in parts:
                parts[name] = maps.float().mean((2, 3))
        joined = (torch.cat([parts[name] for name in self.names], 1) - self.mean) * self.inverse
        scores: Tensor = self.head(F.dropout(joined, self.dropout, self.training))
        return scores

    def solved(self) -> linear.LinearHead:
        """The head on averages as they are."""
        return self.scale.fold(
            linear.LinearHead(self.head.weight.detach().numpy(), self.head.bias.detach().numpy())
        )


def groups(upper: Upper, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameters with the rate of each at its highest: the head's, and what falls from conv to conv."""
    found = [{"params": list(upper.head.parameters()), "rate": config.head_rate}]
    rate = config.rate
    for module in reversed(list(upper.stages.values())):
        parameters = list(module.parameters())
        if parameters:
            found.append({"params": parameters, "rate": rate})
            rate *= config.fall
    return found


def run(
    config: FinetuneConfig,
    data: object,
    val: object = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    device: str = "auto",
    event: Event | None = None,
) -> TrainResult:
    """Fine-tune on labelled photos and write model.safetensors, report.html and the rest into `out`.

    data, val: as `verydeep.training.data.labelled.find` takes them. resume: go on from the last checkpoint.
    device: as for `verydeep.load`; the upper blocks are trained on a CUDA device or the CPU.
    """
    return _Run(config, Path(out), device, event).train(data, val, resume)


@dataclass
class _Within:
    """How far an epoch has come: steps done; loss and right answers, summed."""

    steps: int = 0
    loss: float = 0.0
    right: float = 0.0


class _Run:
    def __init__(
        self, config: FinetuneConfig, folder: Path, device: str, event: Event | None
    ) -> None:
        cuda = device in ("auto", "cuda") and torch.cuda.is_available()
        self.where = torch.device("cuda" if cuda else "cpu")  # the upper blocks
        self.free = config.precision == "auto"
        if self.free:
            # torch for some systems is built without oneDNN, and then does not know the question
            able = cuda or (
                torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
                and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            )
            config = replace(config, precision="bf16" if able else "fp32")
        self.config, self.folder, self.device = config, folder, device
        self.listener = event
        self.began, self.before = time.perf_counter(), 0.0
        self.log: Log | None = None
        self.bad: dict[str, str] = {}

    def train(self, source: object, val: object, resume: bool) -> TrainResult:
        begun = folder.begun(self.folder) if resume else {}
        if begun and self.free:  # a run goes on as it began
            precision = begun["config"].get("precision", self.config.precision)
            self.config = replace(self.config, precision=precision)
        config = self.config
        self.data = labelled.find(source, val, seed=config.seed)
        folder.refuse_changes(self.folder, begun, config, self.data)
        self.model = modelfile.read(find_model(config.model))
        trunk = self.model.record.network
        layers = config.layers or candidates(trunk)[0][1:]
        candidates(trunk, layers)  # refuses what is no layer of the trunk
        head = Head("gap", len(self.data.classes), tuple(layers))
        self.network = replace(trunk, head=head)
        self.first = _first(self.network, config.blocks)
        self.cut = self.network.trunk[self.first - 1].name if self.first else ""
        least = self.network.cut(("fc8",)).minimum_size
        if config.size < least:
            raise DataError(f"size is {config.size}; {trunk.name} needs {least} or more here")
        own = self.model.record.preprocess
        self.preprocess = replace(own, resize="exact", resize_size=config.size, crop_size=None)
        self.predictor = Predictor(
            self.model, engine=config.engine, precision=config.features,
            threads=config.threads or None, device=self.device,
        )  # fmt: skip
        last = read(self.folder / "log.jsonl")[-1:]
        if resume and last and last[0].get("event") == "end":
            if self.listener is not None:
                text = f"{self.folder} had finished; nothing is done"
                self.listener({"event": "note", "text": text})
            return self._again()
        found = self._open(resume)
        try:
            with torch.random.fork_rng([0] if self.where.type == "cuda" else []):
                return self._train(found)
        finally:
            if self.log is not None:
                self.log.close()

    def _train(self, found: checkpoint.Checkpoint | None) -> TrainResult:
        config = self.config
        labels = np.array([s.label for s in self.data.train], np.int64)
        views = [self._frozen(self.data.train, view, "to train on") for view in range(config.views)]
        good = np.logical_and.reduce([view.good for view in views])
        if not good.any():
            raise DataError(f"no photo to train on can be read; {next(iter(self.bad.items()))}")
        parts = max(2, round(1 / config.hold))
        readable = np.flatnonzero(good)
        fold = linear.folds(labels[readable], parts, seed=config.seed)
        learn, hold = readable[fold != 0], readable[fold == 0]
        upper = self._start(views, labels, learn).to(self.where)
        optimiser = torch.optim.AdamW(groups(upper, config), weight_decay=config.decay)
        mean = {k: v.detach().clone() for k, v in upper.named_parameters()}
        best = {k: v.clone() for k, v in mean.items()}
        history: list[dict[str, float]] = []
        within = _Within()
        if found is not None:
            _restore(found, upper, optimiser, mean, best)
            history = list(found.facts["history"])
            within = _Within(**found.facts.get("within", {}))
        steps = -(-len(learn) // config.batch)

        def save() -> None:
            self._save(upper, optimiser, mean, best, history, steps, within)

        with watched() as stop:
            while len(history) <= config.epochs:
                epoch = len(history)
                line: dict[str, float] = {}
                if epoch:
                    line = self._epoch(
                        upper,
                        optimiser,
                        mean,
                        views,
                        labels,
                        learn,
                        epoch,
                        steps,
                        within,
                        save,
                        stop,
                    )
                    if stop():
                        save()
                        stop.raise_()
                    within = _Within()
                with _weights(upper, mean):
                    scores = self._scores(upper, views[0], hold)
                line["hold_loss"] = linear.log_loss(scores, labels[hold])
                line["hold_top1"] = float((scores.argmax(1) == labels[hold]).mean())
                if not history or line["hold_loss"] < min(one["hold_loss"] for one in history):
                    best = {k: v.clone() for k, v in mean.items()}
                history.append(line)
                self.tell({
                    "event": "epoch", "epoch": epoch, "step": epoch * steps, "seconds": self.seconds,
                    "loss": line["hold_loss"], "top1": line["hold_top1"], "judged": "held-out",
                    **{k: v for k, v in line.items() if not k.startswith("hold")},
                })  # fmt: skip
                save()
                losses = [one["hold_loss"] for one in history]
                if len(losses) - 1 - int(np.argmin(losses)) >= config.patience:
                    text = (
                        f"stopped: no smaller loss on held-out photos in {config.patience} epochs"
                    )
                    self.tell({"event": "note", "text": text})
                    break
        return self._finish(upper, best, history, views[0], labels, hold)

    def _start(self, views: list[Frozen], labels: NDArray[np.int64], learn: NDArray[Any]) -> Upper:
        """The probe's head on all views; where the penalty is chosen, those of a photo stay together."""
        config, classes = self.config, len(self.data.classes)
        every = np.concatenate([view.averages[learn] for view in views])
        truth, photo = np.tile(labels[learn], len(views)), np.tile(learn, len(views))
        chosen = choose(
            every, truth, classes, {self.network.head.layers: np.arange(every.shape[1])},
            seed=config.seed, groups=photo,
        )  # fmt: skip
        scale = linear.scaling(every)
        head = linear.solve(scale.apply(every), truth, classes, l2=chosen.l2, tolerance=1e-4)
        self.tell({
            "event": "note",
            "text": f"head solved: l2 {chosen.l2:g}, cross-validated top-1 {chosen.top1:.2%}; "
            f"{self.seconds:.1f} s",
        })  # fmt: skip
        keys = [key for layer in self.network.trunk for key in layer.tensors]
        return Upper(
            self.network, self.model.tensors(keys), self.first, head, scale, config.dropout
        )

    def _epoch(
        self, upper: Upper, optimiser: torch.optim.Optimizer, mean: dict[str, Tensor],
        views: list[Frozen], labels: NDArray[np.int64], learn: NDArray[Any], epoch: int, steps: int,
        within: _Within, save: Callable[[], None], stop: Callable[[], bool],
    ) -> dict[str, float]:  # fmt: skip
        """The steps of an epoch from where `within` says, which moves with them."""
        config = self.config
        draw = np.random.default_rng([config.seed, epoch])
        order, which = draw.permutation(learn), draw.integers(len(views), size=len(learn))
        rate = config.rate * _share(epoch * steps - 1, steps, config.epochs)
        saved = time.monotonic()
        upper.train()
        for number in range(within.steps, steps):
            if stop():
                break
            if time.monotonic() - saved >= 60 * config.checkpoint_minutes:
                save()
                saved = time.monotonic()
            step = (epoch - 1) * steps + number
            torch.manual_seed(config.seed * 1_000_003 + step)
            share = _share(step, steps, config.epochs)
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * share
            rate = config.rate * share
            picked = slice(number * config.batch, (number + 1) * config.batch)
            maps, averages = _batch(views, order[picked], which[picked], self.where)
            truth = torch.from_numpy(labels[order[picked]]).to(self.where)
            bf16 = config.precision == "bf16"
            with torch.autocast(self.where.type, torch.bfloat16, enabled=bf16):
                scores = upper(maps, averages)
            loss = F.cross_entropy(scores.float(), truth, label_smoothing=config.smoothing)
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(
                    f"the loss was {value} at step {step} (epoch {epoch}, rate {rate:.3g}); lower the "
                    f"rate, as with --set rate={config.rate / 3:.2g}; the last good checkpoint is in "
                    f"{self.folder / 'checkpoints'}"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            keep = min(config.average, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, parameter in upper.named_parameters():
                    mean[name].lerp_(parameter, 1 - keep)
            within.steps = number + 1
            within.loss += value * len(truth)
            within.right += float((scores.argmax(1) == truth).sum())
            if self.listener is not None:
                self.listener({
                    "event": "step", "epoch": epoch, "step": step + 1, "loss": value,
                    "images_per_second": (step + 1) * config.batch / max(1e-9, self.seconds),
                })  # fmt: skip
        return {
            "train_loss": within.loss / len(learn), "train_top1": within.right / len(learn), "rate": rate,
        }  # fmt: skip

    def _scores(self, upper: Upper, photos: Frozen, which: NDArray[Any]) -> NDArray[np.float32]:
        upper.eval()
        found = []
        with torch.no_grad(), precise(self.where.type, "exact"):
            for begin in range(0, len(which), 64):
                part = which[begin : begin + 64]
                maps, averages = _batch([photos], part, np.zeros(len(part), int), self.where)
                found.append(upper(maps, averages).cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, len(self.data.classes)), np.float32)

    def _finish(
        self, upper: Upper, best: dict[str, Tensor], history: list[dict[str, float]], plain: Frozen,
        labels: NDArray[np.int64], hold: NDArray[Any],
    ) -> TrainResult:  # fmt: skip
        with torch.no_grad():
            for name, value in upper.named_parameters():
                value.copy_(best[name])
        divide = linear.temperature(self._scores(upper, plain, hold), labels[hold])
        with torch.no_grad():
            upper.head.weight.div_(divide)
            upper.head.bias.div_(divide)
        samples, probabilities = self._validate(upper)
        truth = np.array([s.label for s in samples], np.int64)
        top1, top5 = figures.top(probabilities, truth), figures.top(probabilities, truth, 5)
        self._write_model(upper.cpu(), divide, top1, top5, len(truth))
        self.tell({
            "event": "end", "time": about.now(), "seconds": self.seconds,
            "best_epoch": int(np.argmin([one["hold_loss"] for one in history])),
            **({"top1": top1, "top5": top5} if samples else {}),
        })  # fmt: skip
        result = self._result(samples, probabilities, self.log.lines if self.log else [])
        report.write(result)
        return result

    def _validate(self, upper: Upper) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
        if not self.data.val:
            return (), np.zeros((0, len(self.data.classes)), np.float32)
        photos = self._frozen(self.data.val, 0, "to validate")
        which = np.flatnonzero(photos.good)
        scores = torch.from_numpy(self._scores(upper, photos, which))
        samples = tuple(self.data.val[number] for number in which)
        return samples, torch.softmax(scores.double(), 1).float().numpy()

    def _write_model(self, upper: Upper, divide: float, top1: float, top5: float, n: int) -> None:
        own = {key for layer in self.network.trunk for key in layer.tensors}
        tensors = {
            name: array for name, array in self.model.stored.items()
            if name in own or name.removesuffix(".q") in own or name.removesuffix(".scale") in own
        }  # fmt: skip
        trained = {layer.name: layer for layer in self.network.trunk}
        for name, part in upper.stages.items():
            layer = trained[name]
            for module, key in zip(part, (layer.key, layer.norm_key), strict=False):
                for field, value in module.state_dict().items():
                    whole = f"{key}.{field}"
                    tensors.pop(f"{whole}.q", None)
                    tensors.pop(f"{whole}.scale", None)
                    # half precision, as trunks are published; a batch norm's few numbers stay whole
                    half = field == "weight" and value.ndim == 4 and bool(value.abs().max() < 6e4)
                    tensors[whole] = (value.half() if half else value).numpy()
        head = upper.solved()
        tensors |= {"classifier.weight": head.weight, "classifier.bias": head.bias}
        config = self.config
        protocol = (
            f"{n} validation photos ({self.data.split}), one view, stretched to {config.size} pixels, "
            f"frozen blocks in {config.features} precision"
        )
        measured: list[dict[str, Any]] = [
            {"what": what, "value": round(value, 6), "n": n, "protocol": protocol}
            for what, value in (("top1", top1), ("top5", top5))
            if n
        ]
        record = modelfile.Record(
            self.network, self.preprocess, class_names=self.data.classes,
            licence=self.model.record.licence, measured=tuple(measured),
            provenance=cast("dict[str, Any]", {
                "made_by": "verydeep train", "command": about.command(), "versions": about.versions(),
                "config": config.to_dict(), "data": about.described(self.data),
                "temperature": round(divide, 6),
                "trunk": {"sha256": self.model.sha256,
                          "provenance": dict(self.model.record.provenance)},
            }),
        )  # fmt: skip
        modelfile.write(self.folder / "model.safetensors", record, tensors)

    def _frozen(self, samples: Sequence[Sample], view: int, what: str) -> Frozen:
        done = 0

        def passed(count: int) -> None:
            nonlocal done
            done += count
            if self.listener is not None:
                self.listener({"event": "features", "what": f"{what}, view {view + 1}",
                               "size": self.config.size, "done": done})  # fmt: skip

        made = frozen(
            self.predictor, samples, self.cut, self.network.head.layers, self.config.size, view=view,
            seed=self.config.seed, passed=passed,
        )  # fmt: skip
        for number, why in made.faults.items():
            self.bad.setdefault(samples[number].name, why.partition(": ")[2] or why)
        kept = "" if done else ", kept from before"
        text = f"{self.cut or 'pixels'} of {len(samples)} photos {what}, view {view + 1}{kept}"
        self.tell({"event": "note", "text": f"{text}; {self.seconds:.1f} s"})
        return made

    # The folder

    def _open(self, resume: bool) -> checkpoint.Checkpoint | None:
        if not resume:
            folder.refuse_another_run(self.folder)
        notes: list[str] = []
        found = checkpoint.latest(self.folder / "checkpoints", notes.append) if resume else None
        inputs = about.described(self.data)
        if found is not None:
            folder.refuse_changes(self.folder, found.facts, self.config, self.data)
            self.before = float(found.facts["seconds"])
        folder.made(self.folder)
        self.log = Log(self.folder / "log.jsonl", found.facts["step"] if found else 0)
        whole = {
            "config": self.config.to_dict(), "data": inputs, "init": self.config.model,
            **about.asked(), "device": self.device,
        }  # fmt: skip
        if found is None:
            with replacing(self.folder / "config.json", "w", encoding="utf-8") as file:
                json.dump(whole, file, indent=1)
        kind = "start" if found is None else "resume"
        step = found.facts["step"] if found else 0
        self.tell({"event": kind, "step": step, "time": about.now(), **whole})
        for line in self.data.warnings:
            self.tell({"event": "warning", "text": line})
        for line in notes:
            self.tell({"event": "note", "text": line})
        return found

    def _save(
        self, upper: Upper, optimiser: torch.optim.Optimizer, mean: dict[str, Tensor],
        best: dict[str, Tensor], history: list[dict[str, float]], steps: int,
        within: _Within,
    ) -> None:  # fmt: skip
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in upper.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in mean.items()}
        tensors |= {f"best.{k}": v for k, v in best.items()}
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
        step = max(0, len(history) - 1) * steps + within.steps
        facts = {
            "config": self.config.to_dict(), "data": about.described(self.data), "step": step,
            "history": history, "within": asdict(within), "seconds": self.seconds,
        }  # fmt: skip
        checkpoint.save(self.folder / "checkpoints", step, tensors, facts)

    def _again(self) -> TrainResult:
        """The result of a run that had finished; nothing is written."""
        samples, found = folder.judged(self.folder, self.data, self.bad)
        return self._result(samples, found, read(self.folder / "log.jsonl"))

    def _result(
        self, samples: tuple[Sample, ...], probabilities: NDArray[np.float32], log: Sequence[Any]
    ) -> TrainResult:
        return folder.result(
            self.folder, self.data, self.config, samples, probabilities,
            log=log, bad=self.bad, seconds=self.seconds,
        )  # fmt: skip

    def tell(self, line: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log(line)
        if self.listener is not None:
            self.listener(line)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began


class _weights:  # noqa: N801  # reads as the verb it is
    """Other weights in the module while the block runs."""

    def __init__(self, upper: Upper, other: Mapping[str, Tensor]) -> None:
        self.upper, self.other = upper, other

    def __enter__(self) -> None:
        self.own = {k: v.detach().clone() for k, v in self.upper.named_parameters()}
        self._set(self.other)

    def __exit__(self, *_: object) -> None:
        self._set(self.own)

    def _set(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.upper.named_parameters():
                value.copy_(values[name])


def _first(network: Network, blocks: int) -> int:
    """The number, in the trunk, of the first layer of the last so many blocks; 0 for all of them."""
    pools = [i for i, layer in enumerate(network.trunk) if layer.kind == "pool"]
    return pools[-blocks - 1] + 1 if blocks < len(pools) else 0


def _batch(
    views: Sequence[Frozen], which: NDArray[Any], view: NDArray[Any], where: torch.device
) -> tuple[Tensor, Tensor]:
    """Maps and averages of those photos, each in its view, on the device."""
    pairs = list(zip(which.tolist(), view.tolist(), strict=True))
    maps = np.stack([views[v].maps[w] for w, v in pairs]).astype(np.float32)
    averages = np.stack([views[v].averages[w] for w, v in pairs])
    return torch.from_numpy(maps).to(where), torch.from_numpy(averages).to(where)


def _share(step: int, steps: int, epochs: int) -> float:
    """Of the highest rate: up in the first half epoch, then down by a cosine."""
    warmup, total = max(1.0, steps / 2), steps * epochs
    if step < warmup:
        return (step + 1) / warmup if warmup > 1 else 1.0
    return (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup))) / 2


def _restore(
    found: checkpoint.Checkpoint, upper: Upper, optimiser: torch.optim.Optimizer,
    mean: dict[str, Tensor], best: dict[str, Tensor],
) -> None:  # fmt: skip
    with torch.no_grad():
        for name, value in upper.named_parameters():
            value.copy_(found.tensors[f"model.{name}"])
            mean[name].copy_(found.tensors[f"average.{name}"])
            best[name].copy_(found.tensors[f"best.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, kept in found.tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = kept.clone()
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
