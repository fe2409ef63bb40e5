"""The training loop: plain torch, to be read from top to bottom.

`Learner` is a network with its optimiser and the running mean of its weights; `fit` takes it through the
epochs. Random numbers in the network (dropout) are seeded at each step, so that a run that is resumed
goes on as if it had never been broken.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engines.torch import precise
from ..errors import VerydeepError
from ..models import VGG
from ..preprocess import Preprocess
from . import draws
from .data.feed import Batch, Feed
from .muon import Muon
from .parallel import ALONE, Group, synced
from .precision import arithmetic
from .recipes import Config
from .schedule import drops_after, rate_at, side_at

Event = Callable[[dict[str, Any]], None]
TOLD_PER_EPOCH = 20  # lines of the log within an epoch, at most


class Diverged(VerydeepError, ArithmeticError):  # noqa: N818  # read as a word
    """The loss is no number any more."""


class Stopped(Exception):  # noqa: N818  # no error: somebody asked for it
    """The run was asked to stop, and did so after a step."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters that learn alike. rate: times the schedule's. decay: SGD's, on these.

    kernel: by Muon's orthogonal steps. level: a batch norm follows each, so that its length means nothing.
    """

    tensors: list[nn.Parameter]
    rate: float
    decay: float
    kernel: bool = False
    level: bool = False


@dataclass
class Position:
    """How far a run has come; all of it goes through a checkpoint as JSON.

    epoch, step: the next to do. loss, right, seen: summed over this epoch so far. epochs: what each
    finished epoch measured. bad: images that could not be read, (name, why).
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Learner:
    """A network that learns.

    model: its parameters are trained in place. average: the same network with the running mean of the
    weights, which is what is validated; the model itself where the recipe has none.
    parameters: groups that learn alike; None for all, with the recipe's decay.
    """

    def __init__(
        self,
        model: VGG,
        config: Config,
        preprocess: Preprocess,
        device: torch.device,
        group: Group = ALONE,
        *,
        parameters: Sequence[Parameters] | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self.config, self.device, self.group = config, device, group
        self.channels_last = config.layout == "channels-last"
        format_ = torch.channels_last if self.channels_last else torch.contiguous_format
        self.model: VGG = model.to(device).to(memory_format=format_)
        self.average = copy.deepcopy(self.model).eval() if config.average else self.model
        self.groups = list(parameters) if parameters is not None else grouped(model, config)
        self.optimiser = _optimiser(self.groups, config, device)
        for module in self.model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = (
                    True  # nobody looks before it here, and it spares memory's bandwidth
                )
        self.normalise = normaliser(preprocess, device)
        self.weights = None if class_weights is None else class_weights.to(device)
        self.net: nn.Module = self.model
        if config.sync_norm and group.world > 1:
            self.net = synced(self.net)
        if config.compile:
            self.net = torch.compile(self.net)  # type: ignore[assignment]
        if group.world > 1:
            # the mean over processes is taken here, of batches that may differ by an image
            ids = [device.index or 0] if device.type == "cuda" else None
            self.net = nn.parallel.DistributedDataParallel(self.net, device_ids=ids)
        live, mean = self.model.state_dict(), self.average.state_dict()
        floats = [name for name, value in live.items() if value.is_floating_point()]
        self._live, self._mean = [live[n] for n in floats], [mean[n] for n in floats]

    def learn(
        self, batch: Batch, rate: float, step: int, side: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of gradient descent; the loss and the number of right answers, each summed.

        step: counted over the whole run. side: pixels that images are shown at; None for the recipe's size.
        The sums are of this process's images, on the device.
        """
        config = self.config
        for group, settings in zip(self.groups, self.optimiser.param_groups, strict=True):
            settings["lr"] = rate * group.rate
        torch.manual_seed(draws.seed_of(config.seed, step, f"dropout {self.group.rank}"))
        count = torch.tensor(float(len(batch.labels)), device=self.device)
        counted = 1 if len(batch.labels) else 0
        total = self.group.sum(count.clone()).clamp(min=1)  # of all processes
        if not len(batch.labels):  # none could be read: a black image that counts for nothing
            black = config.size
            batch = Batch(np.zeros((1, black, black, 3), np.uint8), np.zeros(1, np.int64))
        self.optimiser.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device)
        parts = min(config.accumulate, len(batch.labels))
        for part in range(parts):
            inputs, labels, others, shares = self._on_device(batch, slice(part, None, parts), side)
            with arithmetic(config.precision, self.device):
                scores = self.net(inputs)
            scores = scores.float()
            losses = self._losses(scores, labels)
            if others is not None and shares is not None:
                losses = shares * losses + (1 - shares) * self._losses(scores, others)
            # processes average their gradients, so each is scaled up by how many there are
            losses = losses * counted
            (losses.sum() * (self.group.world / total)).backward()  # type: ignore[no-untyped-call]
            loss_sum += losses.detach().sum()
            right += (scores.detach().argmax(1) == labels).sum() * counted
        if config.clip:
            nn.utils.clip_grad_norm_(
                [p for g in self.groups for p in g.tensors], config.clip, foreach=True
            )
        self.optimiser.step()
        if config.average:
            # young means are of few steps: (1 + step) / (10 + step), as TensorFlow's average had it
            keep = min(config.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self._mean, self._live, 1 - keep)
        return loss_sum, right

    def probabilities(self, images: NDArray[np.uint8], side: int | None = None) -> Tensor:
        """(n, classes) float32 on the CPU, of (n, h, w, 3) uint8, by the averaged weights.

        side: as for `learn`.
        """
        was = self.average.training
        self.average.eval()
        fp32 = self.config.precision == "fp32"  # not TF32 here: what is measured is the model file
        exact = precise(self.device.type, "exact" if fp32 else "half")
        with torch.inference_mode(), exact, arithmetic(self.config.precision, self.device):
            scores = self.average(self._shaped(torch.from_numpy(images), None, side))
        self.average.train(was)
        return torch.softmax(scores.float(), 1).cpu()

    def tensors(self) -> dict[str, Tensor]:
        """All that the learner has learned, by name, for a checkpoint."""
        held = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average is not self.model:
            held |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            held |= {f"optimiser.{number}.{k}": v for k, v in state.items() if v is not None}
        return held

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        if self.average is not self.model:
            self.average.load_state_dict(under("average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimiser.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        for parameter, held in self.optimiser.state.items():
            for key, value in held.items():
                if value.shape == parameter.shape:
                    # a fused step takes the numbers as they lie, and a checkpoint has them in one order
                    held[key] = torch.empty_like(parameter).copy_(value)

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            scores, labels, self.weights, reduction="none", label_smoothing=self.config.smoothing
        )

    def _on_device(
        self, batch: Batch, part: slice, side: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        def moved(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[part]).to(self.device)

        labels = moved(batch.labels)
        assert labels is not None
        inputs = self._shaped(torch.from_numpy(batch.images[part]), moved(batch.shift), side)
        return inputs, labels, moved(batch.others), moved(batch.shares)

    def _shaped(
        self, images: Tensor, shift: Tensor | None = None, side: int | None = None
    ) -> Tensor:
        """(n, h, w, 3) uint8 to the network's input (n, c, h, w) float32, in its layout."""
        inputs = self.normalise(images.to(self.device, non_blocking=True), shift)
        if side is not None and side != inputs.shape[-1]:
            inputs = F.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
        format_ = torch.channels_last if self.channels_last else torch.contiguous_format
        return inputs.contiguous(memory_format=format_)


def grouped(model: VGG, config: Config) -> list[Parameters]:
    """Weights, on which the decay pulls, and biases and batch norms, on which it does so if decay_all.

    Under Muon the convolutions are a third group.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    kernels = [p for p in learning if p.dim() == 4 and config.optimiser == "muon"]
    own = {id(p) for p in kernels}
    weights = [p for p in learning if p.dim() > 1 and id(p) not in own]
    others = [p for p in learning if p.dim() <= 1]
    groups = [
        Parameters(
            kernels, config.kernel_rate / (config.rate or 1), config.decay, kernel=True,
            level=model.table.batch_norm,
        ),
        Parameters(weights, 1.0, config.decay),
        Parameters(others, 1.0, config.decay if config.decay_all else 0.0),
    ]  # fmt: skip
    return [group for group in groups if group.tensors]


def _optimiser(
    groups: Sequence[Parameters], config: Config, device: torch.device
) -> torch.optim.Optimizer:
    params: list[dict[str, Any]] = [{"params": g.tensors, "weight_decay": g.decay} for g in groups]
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            params, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov,
            fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
    for group, settings in zip(groups, params, strict=True):
        settings |= {"kernel": group.kernel, "level": group.level}
    return Muon(
        params, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
    )  # fmt: skip


def normaliser(
    preprocess: Preprocess, device: torch.device
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`Preprocess.normalise` on the device: one multiplication and one addition a value."""
    low, high = preprocess.range
    std, mean = torch.tensor(preprocess.std), torch.tensor(preprocess.mean)
    scale = ((high - low) / 255 / std).to(device)
    offset = ((low - mean) / std).to(device)
    reverse, grey = preprocess.channel_order == "BGR", preprocess.channel_order == "L"
    luma = torch.tensor([0.299, 0.587, 0.114], device=device)

    def normalise(images: Tensor, shift: Tensor | None = None) -> Tensor:
        values = images.float()
        if shift is not None:
            values = values + shift[:, None, None, :]
        if grey:
            values = (values @ luma)[..., None]
        if reverse:
            values = values.flip(-1)
        return (values * scale + offset).permute(0, 3, 1, 2)

    return normalise


def fit(
    learner: Learner,
    feed: Feed,
    position: Position,
    *,
    validate: Callable[[], dict[str, float]],
    event: Event,
    save: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Go through the epochs from `position` on, which moves with it.

    validate: measures the averaged network after each epoch: {"top1": ..., "loss": ...}.
    event: is given each line of the log. save: writes a checkpoint; called after each epoch, every
    `checkpoint_minutes` within one, and before stopping. stop: asked after each step.
    Raises Diverged where the loss is no number, Stopped where `stop` said so.
    """
    config, group, device = learner.config, learner.group, learner.device
    every = max(1, feed.steps // TOLD_PER_EPOCH)
    learner.model.train()
    saved = told = time.monotonic()
    while position.epoch < config.epochs:
        epoch = position.epoch
        side = side_at(config, epoch)
        drops = _drops(config, position)
        if config.schedule == "plateau" and drops > config.drops:
            break
        sums: list[tuple[Tensor, Tensor, int]] = []
        # of a run that was stopped between its last step and validation, no step is left to do
        rate = rate_at(config, (epoch + 1) * feed.steps - 1, feed.steps, drops)
        for batch in feed.epoch(epoch, position.step):
            step = epoch * feed.steps + position.step  # of the whole run
            rate = rate_at(config, step, feed.steps, drops)
            loss, right = learner.learn(batch, rate, step, side)
            sums.append((loss, right, len(batch.labels)))
            position.bad.update(batch.bad)
            position.step += 1
            now = time.monotonic()
            due = now - saved >= 60 * config.checkpoint_minutes
            halt = stop()
            if group.world > 1:  # all of us do the same
                asked = group.sum(torch.tensor([float(due), float(halt)], device=device))
                due, halt = (bool(value) for value in asked)
            if position.step % every and position.step < feed.steps and not due and not halt:
                continue
            # what was summed on the device is looked at now and then, since looking waits for it
            losses = group.sum(torch.stack([loss for loss, _, _ in sums]).double())
            counts = torch.tensor([count for _, _, count in sums], dtype=torch.double)
            counts = group.sum(counts.to(device))
            rights = group.sum(torch.stack([right for _, right, _ in sums]).double())
            means = (losses / counts.clamp(min=1)).tolist()  # of no image where none could be read
            seen = int(counts.sum())
            for offset, mean in enumerate(means):
                if not math.isfinite(mean):
                    raise Diverged(
                        f"the loss was {mean} at step {step - len(means) + 1 + offset} (epoch {epoch + 1}, "
                        f"rate {rate:.3g}); lower the rate, as with --set rate={config.rate / 3:.2g}"
                    )
            position.loss += float(losses.sum())
            position.right += int(rights.sum())
            position.seen += seen
            position.seconds += now - told
            event({
                "event": "step", "epoch": epoch + 1, "step": step + 1, "rate": rate,
                "loss": sum(means) / len(means), "top1": float(rights.sum()) / max(1, seen),
                "images_per_second": seen / max(now - told, 1e-9), "seconds": position.seconds,
            })  # fmt: skip
            sums, told = [], now
            if halt or due:
                save()
                saved = time.monotonic()
            if halt:
                raise Stopped
        told = time.monotonic()
        measured = validate()
        position.seconds += time.monotonic() - told
        row = {
            "event": "epoch", "epoch": epoch + 1, "step": (epoch + 1) * feed.steps, "rate": rate,
            "side": side, "train_loss": position.loss / max(1, position.seen),
            "train_top1": position.right / max(1, position.seen),
            **measured, "seconds": position.seconds,
        }  # fmt: skip
        position.epochs.append(row)
        event(row)
        position.epoch, position.step = epoch + 1, 0
        position.loss, position.right, position.seen = 0.0, 0, 0
        save()
        saved = told = time.monotonic()
    position.finished = True


def _drops(config: Config, position: Position) -> int:
    if config.schedule != "plateau":
        return 0
    measured = [row.get("top1", row["train_top1"]) for row in position.epochs]
    return drops_after(measured, config.patience)
