"""The training loop, to be read from top to bottom: forward, backward and step stand inside the `for`.

Random numbers in the network (dropout) are seeded at each step, so that a run that is resumed goes on as if
it had never been broken. Nothing waits for the device but the lines of the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import VerydeepError
from . import draws
from .data.feed import Feed
from .learner import Learner
from .optim import drops_after, rate_at, side_at
from .parallel import Group
from .recipes import Config
from .speed import arithmetic

Event = Callable[[dict[str, Any]], None]
TEMPERATURE = 4.0  # at which a teacher's answers are learned
TOLD_PER_EPOCH = 20  # lines of the log within an epoch, at most


class Diverged(VerydeepError, ArithmeticError):  # noqa: N818  # read as a word
    """The loss is no number any more."""


class Stopped(Exception):  # noqa: N818  # no error: somebody asked for it
    """The run was asked to stop, and did so after a step."""


@dataclass
class Position:
    """How far a run has come; all of it goes through a checkpoint as JSON.

    epoch, step: the next to do. loss, right, seen: summed over this epoch so far. epochs: what each
    finished epoch measured. bad: images that could not be read, name -> why. code_bytes: as last counted.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    code_bytes: float = 0.0

    @property
    def best_epoch(self) -> int:
        """The finished epoch of the least loss, counted from 1; 0 where none has measured one."""
        losses = [(row["loss"], row["epoch"]) for row in self.epochs if "loss" in row]
        return min(losses, default=(0.0, 0))[1]


def fit(
    learner: Learner,
    feed: Feed,
    position: Position,
    *,
    validate: Callable[[], dict[str, Any]] = dict,
    event: Event = lambda _: None,
    save: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    rate_of: Callable[[int], float] | None = None,
    every: int = 0,
) -> None:
    """Go through the epochs from `position` on, which moves with it.

    validate: measures the averaged network after each epoch: {"top1": ..., "loss": ...}.
    event: is given each line of the log. save: writes a checkpoint; called after each epoch, every
    `checkpoint_minutes` within one, and before stopping. stop: asked after each step.
    rate_of: a step's rate, in place of the schedule's. every: steps to a line, 0 for a twentieth epoch.
    Raises Diverged where the loss is no number, Stopped where `stop` said so.
    """
    config, device, group = learner.config, learner.device, learner.group
    every = every or max(1, feed.steps // TOLD_PER_EPOCH)
    saved = time.monotonic()
    while not _over(config, position):
        epoch = position.epoch
        side, drops = side_at(config, epoch), drops_after(config, position.epochs)
        # of a run that was stopped between its last step and validation, no step is left to do
        rate = rate_at(config, (epoch + 1) * feed.steps - 1, feed.steps, drops)
        meter = Meter(learner)
        learner.train()
        for batch in feed.epoch(epoch, position.step):
            step = epoch * feed.steps + position.step  # of the whole run
            rate = rate_of(step) if rate_of else rate_at(config, step, feed.steps, drops)
            learner.set_rate(rate)
            due = time.monotonic() - saved >= 60 * config.checkpoint_minutes
            # of all processes together, which do the same; the device is not asked
            total, due_, halt = group.counts(len(batch.labels), due, stop())
            torch.manual_seed(draws.seed_of(config.seed, step, f"dropout {group.rank}"))

            learner.optimiser.zero_grad(set_to_none=True)
            with learner.rounded(learner.model):
                for part in learner.parts(batch, side):
                    with arithmetic(config.precision, device):
                        scores = learner.net(part.inputs)
                    losses = criterion(scores.float(), part.labels, learner) * part.counts
                    if part.others is not None and part.shares is not None:
                        others = criterion(scores.float(), part.others, learner) * part.counts
                        losses = part.shares * losses + (1 - part.shares) * others
                    if learner.teacher is not None:
                        with torch.no_grad(), arithmetic(config.precision, device):
                            theirs = learner.teacher(part.inputs)
                        unlike = distance(scores.float(), theirs.float(), part.labels.dim() > 1)
                        losses = (losses + unlike * part.counts) / 2
                    learner.scaler.scale(losses.sum() / max(1, total)).backward()  # type: ignore[no-untyped-call]
                    meter.add(losses, scores, part.labels, part.counts)
            group.gradients(learner.parameters)
            if learner.coding:
                scale = learner.scaler.get_scale()
                size = learner.coding.pull(learner.model, step, config.epochs * feed.steps, scale)
                position.code_bytes = size or position.code_bytes
            if config.clip:
                learner.scaler.unscale_(learner.optimiser)
                nn.utils.clip_grad_norm_(learner.parameters, config.clip)
            learner.scaler.step(learner.optimiser)
            learner.scaler.update()
            learner.follow(step)

            meter.images += int(total)
            position.bad.update(batch.bad)
            position.step += 1
            if position.step % every == 0 or position.step == feed.steps or due_ or halt:
                event(meter.line(position, step, rate))
            if due_ or halt:
                save()
                saved = time.monotonic()
            if halt:
                raise Stopped
        began = time.monotonic()
        measured = validate()
        position.seconds += time.monotonic() - began
        row = {
            "event": "epoch", "epoch": epoch + 1, "step": (epoch + 1) * feed.steps, "rate": rate,
            "side": side, "train_loss": position.loss / max(1, position.seen),
            **({"code_bytes": position.code_bytes} if learner.coding else {}),
            "train_top1": position.right / max(1, position.seen),
            **measured, "seconds": position.seconds,
        }  # fmt: skip
        position.epochs.append(row)
        event(row)
        position.epoch, position.step = epoch + 1, 0
        position.loss, position.right, position.seen = 0.0, 0, 0
        save()
        saved = time.monotonic()


def criterion(scores: Tensor, labels: Tensor, learner: Learner) -> Tensor:
    """The loss of each image, (n,), of scores (n, classes) float32.

    labels: (n,) int64, cross-entropy; or (n, classes) 0 and 1, the mean of each class's binary one.
    """
    smoothing, weights = learner.config.smoothing, learner.class_weights
    if labels.dim() == 1:
        return F.cross_entropy(scores, labels, weights, reduction="none", label_smoothing=smoothing)
    aim = labels * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(scores, aim, weights, reduction="none").mean(1)


def distance(scores: Tensor, theirs: Tensor, several: bool) -> Tensor:
    """How far each image's answers are from a teacher's, (n,), of scores (n, classes); 0 for the same.

    The soft-maxes' divergence, both at a temperature, and times its square, so that its gradient stays as
    large: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2. several: where an image may be of
    several classes, the mean of each class's own.
    """
    if several:
        aim = torch.sigmoid(theirs)
        own, least = (
            F.binary_cross_entropy_with_logits(one, aim, reduction="none").mean(1)
            for one in (scores, theirs)
        )
        return own - least
    own, aim = (F.log_softmax(one / TEMPERATURE, 1) for one in (scores, theirs))
    return F.kl_div(own, aim, reduction="none", log_target=True).sum(1) * TEMPERATURE**2


class Meter:
    """Counts on the device, and looks at what it counted for a line of the log: looking waits for it."""

    def __init__(self, learner: Learner) -> None:
        self._group: Group = learner.group
        self._told = time.monotonic()
        self._rate = learner.config.rate
        self._clear()

    def _clear(self) -> None:
        self._sums: list[Tensor] = []  # of each part: loss, and how many are right
        self.images = 0

    def add(self, losses: Tensor, scores: Tensor, labels: Tensor, counts: Tensor) -> None:
        """What a part of a step came to; tensors stay where they are."""
        first = scores.detach().argmax(1)
        right = (
            first == labels if labels.dim() == 1 else labels.gather(1, first[:, None])[:, 0] > 0.5
        )
        self._sums.append(torch.stack([losses.detach().sum(), (right * counts).sum()]))

    def line(self, position: Position, step: int, rate: float) -> dict[str, Any]:
        """What all processes learned since the last line; `position` is given the sums.

        Raises Diverged where a loss is no number.
        """
        sums = self._group.sum(torch.stack(self._sums)).tolist()
        loss, rights = map(sum, zip(*sums, strict=True))
        now, images, right = time.monotonic(), max(1, self.images), round(rights)
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss was {loss} by step {step} (epoch {position.epoch + 1}, rate {rate:.3g}); lower "
                f"the rate, as with --set rate={self._rate / 3:.2g}"
            )
        position.loss += loss
        position.right += right
        position.seen += self.images
        position.seconds += now - self._told
        found = {
            "event": "step", "epoch": position.epoch + 1, "step": step + 1, "rate": rate,
            "loss": loss / images, "top1": right / images,
            "images_per_second": self.images / max(now - self._told, 1e-9),
            "seconds": position.seconds,
        }  # fmt: skip
        self._told = now
        self._clear()
        return found


def _over(config: Config, position: Position) -> bool:
    """Whether no epoch is left: all are done, or nothing comes of more."""
    if position.epoch >= config.epochs:
        return True
    if config.hold:
        best = position.best_epoch
        return 0 < best <= position.epoch - config.patience
    return config.schedule == "plateau" and drops_after(config, position.epochs) > config.drops
