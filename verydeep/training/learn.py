"""What a recipe with a loop does in a run: network, images and loop put together, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import modelfile
from ..datasets.labelled import Sample, split, targets
from ..errors import DataError, OutputError
from ..evaluation import figures
from ..modelfile import ModelFile
from ..preprocess import Preprocess
from ..probing import linear
from ..probing.choosing import less, limits, mcnemar
from ..published import find_model
from .coding import coding_of, packed, scaled_by
from .data.colours import Statistics, few, statistics
from .data.feed import Feed
from .data.source import Source
from .data.views import Views, pictures
from .learner import Learner, ScaledHead, scaled
from .loop import Diverged, Position, Stopped, fit
from .optim import side_at
from .parallel import Group, device_of, joined
from .probe import Probe, ProbeConfig, shown
from .recipes import Config
from .record import checkpoint, folder
from .record.checkpoint import Checkpoint
from .record.result import TrainResult
from .run import Outcome, Run, trunk_of
from .signals import watched
from .speed import decided, memory_kept
from .start import started, teacher_of
from .stuck import Stuck

MEASURED_PHOTOS = 512  # for mean and covariance
LEAST_STEPS, LEAST_BATCH = 20, 16  # of an epoch, where a set is small
LEAST_TOTAL, MORE_EPOCHS = 1000, 4  # steps of a run; times the recipe's epochs, at most
CALIBRATED = 50  # images, fewer than which say nothing about a temperature
# how often chance would do as well, at most: more right answers than of the head alone; or as many, and
# smaller losses. The photos also took the epoch and the mixture, so chance does so a bit more often.
SURE, SURE_LOSS = 0.1, 0.05
SHARES = (0.25, 0.5, 0.75, 1.0)  # of what was trained, in the mixtures with the start


def learnt(run: Run) -> TrainResult:
    """Follow a recipe with a loop to its end; Ctrl-C and SIGTERM write a checkpoint first."""
    where = device_of(run.device)
    with joined(where) as group, own_numbers(where), memory_kept():
        one = Learning(run, group, where)
        before = one.before()
        if group.agreed(run.resume and run.finished()):
            done = group.agreed(run.again() if group.first else None)
            assert done is not None
            return done
        one.prepare(before)
        run.open(
            before.facts["step"] if before else 0, preprocess=one.preprocess.to_dict(),
            steps_per_epoch=one.feed.steps, processes=group.world, device=str(where),
        )  # fmt: skip
        with watched() as stop:  # before the first step there is nothing to save
            try:
                one.fit(stop)
                [stopped] = group.counts(stop())  # it may have come after the last step
            except Stopped:
                stopped = True
        if stopped:
            stop.raise_()
        return one.finish()


def own_numbers(where: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators as they were."""
    if where.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([where.index or 0], device_type=where.type)


class Learning:
    """What a run with a loop holds between its start and its end."""

    def __init__(self, run: Run, group: Group, device: torch.device) -> None:
        self.run, self.group, self.device = run, group, device
        if run.config.start == "probe":  # of finetune the model is the weights
            run.init = run.init or run.config.model
        elif run.config.recipe == "finetune":
            raise DataError(
                f"recipe finetune goes on from trained weights, and start is {run.config.start}; leave "
                "start out, or take small-images or paper"
            )
        self.position = Position(bad=run.bad)
        self.best: Mapping[str, Tensor] = {}  # of the averaged network
        self.begun: dict[str, Tensor] = {}  # the same, as it began, with a solved head
        self.source: ModelFile | None = None  # of the weights that a solved head or coding is for
        self._shown: dict[int, Views] = {}

    # Before the first step

    def before(self) -> Checkpoint | None:
        """The checkpoint to go on from, which the first process has: they need not share a disk.

        Raises DataError where the folder holds another run than the one that is asked for.
        """
        run, found = self.run, None
        was: Mapping[str, Any] = {}  # what the run in the folder says of itself
        if run.resume and self.group.first:
            found = checkpoint.latest(run.folder / "checkpoints", run.notes.append)
            was = found.facts if found else folder.begun(run.folder)
            if not found and (run.folder / "model.safetensors").exists():
                raise OutputError(
                    f"{run.folder} holds a model, and no checkpoint to go on from; choose another folder"
                )
        found, was = self.group.agreed((found, was))
        if found is None and run.resume:
            run.notes.append(f"no checkpoint in {run.folder} yet: beginning anew")
        run.config, notes = _fitted(run.config, len(run.data.train), run.named)
        if found is None:
            run.notes += notes
        elif was.get("position", {}).keys() != vars(Position()).keys():
            raise DataError(
                f"{run.folder} was begun by another version of verydeep; go on with that one, or choose "
                "another folder for a new run"
            )
        if was:
            run.config = _settled(run, was["config"])
            run.refuse_changes(was)
        return found

    def prepare(self, before: Checkpoint | None) -> None:
        """Everything that can be refused is refused here."""
        run, data = self.run, self.run.data
        config: Config = run.config
        classes = len(data.classes)
        learn, self.hold = _parted(data.train, config)
        several = classes if data.multi else 0
        if config.start == "probe":
            self.source = modelfile.read(find_model(run.init or ""))
        fit = _resized(Preprocess(), config)
        held = pictures(learn, fit, config.threads) if config.memory else None
        if held is not None and not held.samples:
            raise _unread(held.bad, len(learn))
        torch.manual_seed(config.seed)
        model, expected, notes = started(config, classes, run.init, named=run.named)
        run.notes += notes
        network = model.table
        own = {key: getattr(network, key) for key in ("width", "channels", "pool")}
        run.config = config = replace(config, model=network.name, **own)
        colours = self._colours(learn, held)
        seen = _resized(expected, config) if expected else _normalised(colours, config)
        self.preprocess = replace(seen, detail=held.detail if held else None)
        teacher = teacher_of(config.teacher, self.preprocess, data.classes)
        self.licence = model.record.licence if model.record else ""
        try:
            config = self.group.agreed(decided(config, self.device))
        except DataError as error:
            if before is None:
                raise
            what = str(error).partition(";")[0]
            raise DataError(
                f"{what}, and the run in {run.folder} was begun with it; go on on a device that can, or "
                "choose another folder for a new run"
            ) from error
        run.config = config
        if held is not None:
            run.bad.update(held.bad)
        drawn, rank, world = config.shown(), self.group.rank, self.group.world
        images = held.images if held else None
        source = Source(held.samples if held else learn, drawn, colours, several, images)
        self.feed = Feed(source, drawn, rank, world)
        if config.start == "probe":
            head = scaled(model.classifier, config.dropout)
            if before is None:
                self._solve(head, model.table.head.layers, learn)
        coding = coding_of(self.run.init, network, config.code_bytes, self.device)
        if coding:
            self.source = modelfile.read(find_model(run.init or ""))
        self.learner = Learner(
            model, config, self.preprocess, self.device, self.group, teacher=teacher,
            class_weights=_class_weights(source.labels, classes, config), coding=coding,
        )  # fmt: skip
        if config.start == "probe" and self.hold:
            self.begun = self._averaged()
        if before is not None:
            self._restore(before)
        self.stuck = Stuck(classes, network.batch_norm or config.start == "probe")

    def _colours(self, samples: Sequence[Sample], held: Views | None) -> Statistics:
        """Of the training images; of photos, those of a few hundred say enough."""
        if held is not None and held.images is not None:
            return statistics([held.images])
        config = self.run.config
        chosen = few(samples, MEASURED_PHOTOS, config.seed)
        views = Views(chosen, _normalised(None, config), threads=config.threads)
        batches = [images for _, images in views.batches()]
        if not batches:
            raise _unread(views.bad, len(chosen))
        return statistics(batches)

    def _solve(self, head: ScaledHead, layers: tuple[str, ...], samples: Sequence[Sample]) -> None:
        """Make the head the one that `probe` solves on these samples, before any temperature.

        The first process does; the others are given its weights as all start.
        """
        if not self.group.first:
            return
        trunk = self._probe(layers)
        made = trunk.averages(samples, self.run.config.size, "to start from")
        good, classes = trunk.good(made, "to train on"), len(self.run.data.classes)
        labels = targets(samples, classes)[good]
        chosen = trunk.choose(made.values[good][None], labels, np.array(made.digests)[good])
        # `take` keeps photos one after another in memory, and with that the last digit of sums
        scaling = chosen.scaling
        values = scaling.apply(made.values[good].take(chosen.columns, axis=1))
        solved = linear.solve(values, labels, classes, l2=chosen.l2, tolerance=1e-4)
        found = {"weight": solved.weight, "bias": solved.bias, "mean": scaling.mean,
                 "inverse": 1 / scaling.deviation}  # fmt: skip
        head.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})

    def _probe(self, layers: tuple[str, ...]) -> Probe:
        """The one whose head this run starts from."""
        config = self.run.config
        own = ProbeConfig(
            model=str(self.run.init), sizes=(config.size,), layers=layers,
            seed=config.seed, threads=config.threads, stretch=config.stretch,
        )  # fmt: skip
        return Probe(self.run, own, self.device.type)  # engines know no number of a device

    def _restore(self, before: Checkpoint) -> None:
        begun = before.facts["source"]
        if self.source and begun and self.source.sha256 != begun:
            raise DataError(
                f"{self.source.path} is not the file any more that the run in {self.run.folder} began "
                "with; put that one back, or choose another folder for a new run"
            )
        self.learner.restore(before)
        self.position = Position(**before.facts["position"])
        self.run.bad.update(self.position.bad)
        self.position.bad = self.run.bad
        self.run.earlier = before.facts["seconds"]
        self.best = before.under("best.")
        self.begun |= before.under("begun.")

    def _averaged(self) -> dict[str, Tensor]:
        """The averaged network's weights as they are now, copied to the CPU."""
        return {k: v.cpu().clone() for k, v in self.learner.average.state_dict().items()}

    # The steps

    def fit(self, stop: Any) -> None:
        """From where it is to the last epoch."""
        try:
            begun = self.position.epoch or self.position.step
            if self.run.config.start == "probe" and not begun and (measured := self._validate()):
                row = {"event": "epoch", "epoch": 0, "step": 0, **measured}
                self.run.tell({**row, "seconds": self.run.seconds})  # the head alone
            fit(
                self.learner, self.feed, self.position, validate=self._validate, event=self._told,
                save=self.save, stop=stop,
            )  # fmt: skip
        except Diverged as error:
            place = self.run.folder
            good = f", and go on from its last good checkpoint by --init {place}, in another folder"
            raise Diverged(f"{error}{good if checkpoint.there(place) else ''}") from None

    def _told(self, line: dict[str, Any]) -> None:
        self.run.tell(line)
        if found := self.stuck(line):
            self.run.tell({"event": "warning", "step": line["step"], "text": found})

    def _validate(self) -> dict[str, Any]:
        """By the images held out where there are any, else by those to validate with."""
        judged = self.hold or self.run.data.val
        if not judged:
            return {}
        config = self.run.config
        # at the side that it learns from now, since what was drawn at random knows no other yet
        side = None if config.start == "probe" else side_at(config, self.position.epoch)
        samples, scores = self.scores(judged, side=side)
        if not samples and self.hold:
            name, why = next(
                (s.name, self.run.bad[s.name]) for s in judged if s.name in self.run.bad
            )
            raise DataError(
                f"not one of {len(judged)} photos that were held out can be read; {name}: {why}; mend or "
                "delete them, or hold none out by --set hold=0"
            )
        if not samples:  # not one could be read
            return {}
        if not np.isfinite(scores).all():
            rate = config.rate
            raise Diverged(
                f"the network's answers are no numbers after epoch {self.position.epoch + 1}; lower the "
                f"rate, as with --set rate={rate / 3:.2g}"
            )
        labels = targets(samples, self.run.data.classes)
        measured = {"loss": linear.log_loss(scores, labels), **figures.accuracy(scores, labels)}
        # there is no mean of no class
        measured = {what: value for what, value in measured.items() if math.isfinite(value)}
        if not self.hold:
            return measured
        before = [row["loss"] for row in self.position.epochs]
        # before the first step it is the head alone
        if self.position.step and measured["loss"] < min(before, default=math.inf):
            self.best = self._averaged()
        return {**measured, "judged": "held-out"}

    def scores(
        self, samples: Sequence[Sample], side: int | None = None
    ) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
        """(n, classes) of the samples that could be read, by all processes.

        side: pixels that they are shown at; None for the recipe's size.
        """
        group, views = self.group, self._views_of(samples)
        samples = views.samples
        # the last column: it was read
        whole = torch.zeros(len(samples), len(self.run.data.classes) + 1)
        for numbers, images in views.batches(group.rank, group.world):
            whole[numbers, :-1] = torch.from_numpy(self.learner.scores(images, side))
            whole[numbers, -1] = 1
        self.run.bad.update(group.merged({**self.run.bad, **views.bad}))
        found = group.sum(whole.to(self.device)).cpu().numpy()
        read = found[:, -1] > 0
        return tuple(s for s, good in zip(samples, read, strict=True) if good), found[read, :-1]

    def _views_of(self, samples: Sequence[Sample]) -> Views:
        """The samples as the model file will see them; those in memory are decoded once."""
        if id(samples) not in self._shown:
            config = self.run.config
            views = (
                pictures(samples, self.preprocess, config.threads)
                if config.memory and samples
                else Views(samples, self.preprocess, threads=config.threads)
            )
            self.run.bad.update(views.bad)
            self._shown[id(samples)] = views
        return self._shown[id(samples)]

    def save(self) -> None:
        """Write a checkpoint; Diverged where there is nothing worth keeping."""
        tensors = self.learner.tensors()
        if not torch.stack([t.isfinite().all().to(self.device) for t in tensors.values()]).all():
            raise Diverged(
                f"weights are no numbers any more, in epoch {self.position.epoch + 1}; lower the rate, as "
                f"with --set rate={self.run.config.rate / 3:.2g}"
            )
        if self.group.first:
            tensors |= {f"best.{k}": v for k, v in self.best.items()}
            # all else of the start is in the weights that it started from
            head = {k: v for k, v in self.begun.items() if k.startswith("classifier.")}
            tensors |= {f"begun.{k}": v for k, v in head.items()}
            done = self.position.epoch * self.feed.steps + self.position.step
            facts = {
                "config": self.run.config.to_dict(), **self.run.inputs, "step": done,
                "position": vars(self.position), "seconds": self.run.seconds,
                "source": self.source.sha256 if self.source else "",
            }  # fmt: skip
            checkpoint.save(self.run.folder / "checkpoints", done, tensors, facts)
        self.group.wait()

    # After the last step

    def finish(self) -> TrainResult:
        """Take the best of what was learned, measure it, write it."""
        run, config, learner = self.run, self.run.config, self.learner
        told: dict[str, Any] = {"step": self.position.epoch * self.feed.steps}
        better = True
        if self.best:
            learner.average.load_state_dict(self.best)
            told["best_epoch"] = best = self.position.best_epoch
            if self.begun:
                told["mixed"], better = self._mixed()
            else:
                run.note(f"epoch {best} is kept, of the least loss on held-out images")
        learner.config = replace(config, precision="fp32")  # what the model file will do
        if better:
            mixed = {"trained_share": told["mixed"]} if "mixed" in told else {}
            outcome = replace(self._outcome(mixed), told=told)
        else:
            outcome = self._probe(learner.model.table.head.layers).solved()
            outcome = replace(outcome, told={**told, "best_epoch": 0})
        return run.finish(outcome)

    def _mixed(self) -> tuple[float, bool]:
        """Mix the trained weights with those of the start: how much of them, and whether that is better.

        Weights on the way from one network to another that was trained from it are often better than both:
        Wortsman et al., arXiv:2109.01903. The held-out photos say which are, and whether they beat the head
        alone, each with a temperature of its own.
        """
        judged = {}
        for share in (0.0, *SHARES):
            self._mix(share)
            judged[share] = self.scores(self.hold)
        # those that could be read each time
        names = set.intersection(*({s.name for s in read} for read, _ in judged.values()))
        right, losses, sure = {}, {}, len(names) >= CALIBRATED
        for share, (read, scores) in judged.items():
            good = np.array([s.name in names for s in read])
            labels, scores = targets(read, len(self.run.data.classes))[good], scores[good]
            several = labels.ndim == 2
            right[share] = (
                ((scores > 0) == (labels > 0)).ravel() if several else scores.argmax(1) == labels
            )
            divide = linear.temperature(scores, labels) if sure else 1.0
            losses[share] = linear.losses(scores, labels, divide=divide)
        share = min(SHARES, key=lambda one: losses[one].mean())
        head, best = right[0.0], right[share]
        won, lost = int((best & ~head).sum()), int((head & ~best).sum())
        chances = mcnemar(won, lost), less(losses[share], losses[0.0])
        better = chances[0] < SURE or (sure and won >= lost and chances[1] < SURE_LOSS)
        share, better = self.group.agreed((share, better))
        if better:
            self._mix(share)
        kept = (
            "it is kept"
            if better
            else "no sure gain, so the head alone is kept, solved on all photos"
        )
        self.run.note(
            f"of {len(names)} held-out photos the head alone has {head.mean():.2%} right, epoch "
            f"{self.position.best_epoch}, of which {share:.0%} is taken, {best.mean():.2%} ({won} won, "
            f"{lost} lost, p = {chances[0]:.3f}; loss {losses[0.0].mean():.3f} and "
            f"{losses[share].mean():.3f}, p = {chances[1]:.3f}): {kept}"
        )
        return share, better

    def _mix(self, share: float) -> None:
        """So much of the best epoch's weights, and of those of the start what is left."""
        self.learner.average.load_state_dict({
            key: torch.lerp(begun, self.best[key], share) if begun.is_floating_point() else self.best[key]
            for key, begun in self.begun.items()
        })  # fmt: skip

    def _outcome(self, mixed: Mapping[str, float]) -> Outcome:
        """Of the weights as they are. mixed: how much of them was trained, for the record."""
        run, config, learner = self.run, self.run.config, self.learner
        network, data = learner.model.table, run.data
        judged = self.hold or data.val
        read, scores = self.scores(judged)
        divide = 1.0
        sure: dict[str, Any] = {"thresholds": (0.5,) * len(data.classes)} if data.multi else {}
        if len(read) >= CALIBRATED:
            labels = targets(read, data.classes)
            divide = linear.temperature(scores, labels)
            sure = limits(scores, labels, divide)
        weights = learner.weights()
        coded = learner.coding.coded(weights) if learner.coding else {}
        last = [layer.key for layer in network.layers if layer.key][-1]
        for name in (f"{last}.weight", f"{last}.bias"):
            weights[name] = weights[name] / divide
        tensors = {k: weights[k].contiguous().numpy() for k in network.tensors}
        if config.start == "probe":
            tensors = self._compact(tensors)
        if coded:
            coded[f"{last}.weight"] = scaled_by(1 / divide, coded[f"{last}.weight"])
            own = dict(learner.model.named_parameters())
            tensors = packed(tensors, coded, own.keys() - {f"{last}.bias"})
            taken = sum(tensors[f"{key}.code"].nbytes for key in coded)
            much = "; more epochs make it less" if taken > config.code_bytes else ""
            run.note(f"its streams take {taken:,} bytes of {config.code_bytes:,}{much}")

        def judge(
            samples: Sequence[Sample], _: str
        ) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
            found, answers = (read, scores) if samples is judged else self.scores(samples)
            return found, answers / np.float32(divide)

        fitted = "held-out training" if self.hold else "the same"
        calibrated = (
            f", temperature and threshold by {fitted} images" if "threshold" in sure else ""
        )
        return Outcome(
            network, self.preprocess, tensors, judge,
            f"one view of {config.size} pixels, fp32{calibrated}", licence=self.licence,
            provenance={"temperature": round(divide, 6), **mixed}, **sure,
        )  # fmt: skip

    def _compact(self, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Trained filters in half precision, as trunks are published; what was not trained as it came."""
        own = dict(self.learner.model.named_parameters())
        assert self.source is not None
        source = trunk_of(self.source, self.learner.model.table)
        for key, value in list(tensors.items()):
            if key in own and not own[key].requires_grad:
                del tensors[key]
                tensors |= {k: v for k, v in source.items() if modelfile.key_of(k) == key}
            elif value.ndim == 4 and float(np.abs(value).max()) < 6e4:
                tensors[key] = value.astype(np.float16)
        return tensors


def _unread(bad: Mapping[str, str], count: int) -> DataError:
    first = next(iter(bad.values()))
    return DataError(f"not one of {count} images could be read; the first: {first}")


def _settled(run: Run, stored: Mapping[str, Any]) -> Config:
    """The config with what a run settles by itself, as the one that is gone on with did."""
    config: Config = run.config
    keys = [key for key in ("precision", "layout") if getattr(config, key) == "auto"]
    if run.init is not None:  # the network was taken from the weights, which are finetune's model
        given = () if config.start == "probe" else run.named
        keys += ["pool", *(key for key in ("model", "width", "channels") if key not in given)]
    return replace(config, **{key: stored[key] for key in keys if key in stored})


def _fitted(config: Config, count: int, named: Collection[str]) -> tuple[Config, list[str]]:
    """A batch that a set of `count` images has some of, with rates that suit it, and epochs enough.

    Rates go with the root of the batch. What was asked for by name stays.
    """
    batch = config.batch
    while batch > LEAST_BATCH and count < LEAST_STEPS * batch and "batch" not in named:
        batch //= 2
    if batch == config.batch:
        return config, []
    share = math.sqrt(batch / config.batch)
    rates = {
        key: getattr(config, key) * share
        for key in ("rate", "kernel_rate", "head_rate")
        if key not in named
    }
    epochs = config.epochs
    if "epochs" not in named and not config.hold:  # held-out images end a run by themselves
        epochs = max(epochs, min(MORE_EPOCHS * epochs, -(-LEAST_TOTAL * batch // count)))
    fitted = replace(
        config, batch=batch, accumulate=min(config.accumulate, batch), epochs=epochs, **rates
    )
    return fitted, [
        f"{count} images are few for batches of {config.batch}: they are of {batch}, for {epochs} epochs, "
        f"and the rates that are not set {share:.2g} times the recipe's; --set batch={config.batch} takes "
        "it as it is"
    ]


def _parted(
    samples: tuple[Sample, ...], config: Config
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """To learn from, and held out."""
    if not config.hold:
        return samples, ()
    learn, held, _ = split(samples, config.seed, config.hold)
    return tuple(learn), tuple(held)


def _resized(own: Preprocess, config: Config) -> Preprocess:
    """`own` at the config's size, resized as this run does it: into memory always in the same way."""
    size = config.size
    if config.memory:
        own = replace(own, interpolation=Preprocess().interpolation)
        if not config.stretch:
            return replace(own, resize="shorter", resize_size=size, crop_size=size)
    return shown(own, size, config.stretch)


def _normalised(found: Statistics | None, config: Config) -> Preprocess:
    """Pre-processing for a network that starts from nothing: normalised by what this data's pixels are.

    The paper subtracts the mean and does nothing else (arXiv:1409.1556, section 2.1).
    """
    plain = _resized(Preprocess(), config)
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
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    return torch.from_numpy(counts.sum() / (classes * np.maximum(counts, 1))).float()
