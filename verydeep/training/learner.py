"""A network that learns: its optimiser, the running mean of its weights, and images as it takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engines.torch import precise
from ..models import VGG
from ..preprocess import Preprocess
from .coding import Coding
from .data.source import Batch
from .optim import grouped, optimiser
from .parallel import ALONE, Group, synced
from .recipes import Config
from .record.checkpoint import Checkpoint
from .speed import arithmetic


@dataclass(frozen=True, eq=False)
class Part:
    """What goes through the network at once, on the device.

    inputs: (n, c, h, w) float32. labels: (n,) int64, or (n, classes) float32 of 0 and 1. counts: (n,), 0
    for what is there only so that batch norm has two images. others, shares: as in a `Batch`.
    """

    inputs: Tensor
    labels: Tensor
    counts: Tensor
    others: Tensor | None = None
    shares: Tensor | None = None


class Learner:
    """A network that learns.

    model: its parameters are trained in place. average: the same network with the running mean of the
    weights, which is what is validated; the model itself where the recipe has none.
    teacher: a network whose answers are learned, too; it stays as it is. coding: how weights are rounded
    while it learns, and in the end; None for floats.
    """

    def __init__(
        self,
        model: VGG,
        config: Config,
        preprocess: Preprocess,
        device: torch.device,
        group: Group = ALONE,
        *,
        class_weights: Tensor | None = None,
        teacher: VGG | None = None,
        coding: Coding | None = None,
    ) -> None:
        self.config, self.device, self.group = config, device, group
        planes = config.layout != "channels-last"
        self._format = torch.contiguous_format if planes else torch.channels_last
        self.model: VGG = model.to(device).to(memory_format=self._format)
        self.coding = coding
        self.teacher: nn.Module | None = None
        if teacher is not None:
            teacher = teacher.requires_grad_(False).eval().to(device)
            self.teacher = teacher.to(memory_format=self._format)
        group.spread([*self.model.parameters(), *self.model.buffers()])
        groups = grouped(self.model, config)
        self.parameters = [tensor for each in groups for tensor in each["params"]]
        self.average = copy.deepcopy(self.model).eval() if config.average else self.model
        self.optimiser = optimiser(groups, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        for network in (self.model, self.teacher):
            for module in network.modules() if network is not None else ():
                if isinstance(module, nn.ReLU):
                    # nobody looks before it here, and it spares memory's bandwidth
                    module.inplace = True
        self.normalise = normaliser(preprocess, device)
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.net: nn.Module = self.model
        if group.world > 1:
            self.net = synced(self.net)
        if config.compile:
            self.net = torch.compile(self.net)  # type: ignore[assignment]
            if self.teacher is not None:
                self.teacher = torch.compile(self.teacher)  # type: ignore[assignment]
        live, mean = self.model.state_dict(), self.average.state_dict()
        floats = [name for name, value in live.items() if value.is_floating_point()]
        self._live, self._mean = [live[n] for n in floats], [mean[n] for n in floats]

    def train(self) -> None:
        """Ready to learn; what keeps its statistics does."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d) and (
                self.config.keep_norm or not module.weight.requires_grad
            ):
                module.eval()

    def set_rate(self, rate: float) -> None:
        """The schedule's rate, of which each group of parameters has its share."""
        for settings in self.optimiser.param_groups:
            settings["lr"] = rate * settings["share"]

    def rounded(self, network: nn.Module) -> AbstractContextManager[None]:
        """The network with weights as its file will have them, where they are to be coded."""
        return self.coding.rounded(network) if self.coding else nullcontext()

    def follow(self, step: int) -> None:
        """The running mean goes after the weights. step: counted over the whole run."""
        if self.average is self.model:
            return
        # young means are of few steps: (1 + step) / (10 + step), as TensorFlow's average had it
        keep = min(self.config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._live, 1 - keep)

    def parts(self, batch: Batch, side: int | None = None) -> Iterator[Part]:
        """The batch in `accumulate` parts, each of two images or more, which batch norm needs.

        Black ones that count for nothing stand in where there are fewer. Of several processes, whose batch
        norms wait for each other in each part, a part may have none. side: pixels that images are shown at;
        None for the recipe's size.
        """
        n, alike = len(batch.labels), self.group.world > 1
        parts = self.config.accumulate if alike else max(1, min(self.config.accumulate, n // 2))
        for number in range(parts):
            own = slice(number, None, parts)
            count = len(range(n)[own])
            images, labels, others, shares, shift = (
                self._moved(values, own, 0 if alike else 2)
                for values in (batch.images, batch.labels, batch.others, batch.shares, batch.shift)
            )
            assert images is not None
            assert labels is not None
            counts = (torch.arange(len(labels), device=self.device) < count).float()
            yield Part(self.shaped(images, shift, side), labels, counts, others, shares)

    def _moved(self, values: NDArray[Any] | None, own: slice, least: int) -> Tensor | None:
        """Those values on the device, zeros after them where they are fewer than `least`."""
        if values is None:
            return None
        mine = values[own]
        if len(mine) < least:
            missing = np.zeros((least - len(mine), *mine.shape[1:]), mine.dtype)
            mine = np.concatenate([mine, missing])
        found = torch.from_numpy(mine)
        return (
            found.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else found.to(self.device)
        )

    def shaped(
        self, images: Tensor, shift: Tensor | None = None, side: int | None = None
    ) -> Tensor:
        """(n, h, w, 3) uint8 to the network's input (n, c, h, w) float32, in its layout."""
        inputs = self.normalise(images, shift)
        if side is not None and side != inputs.shape[-1]:
            inputs = F.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
        return inputs.contiguous(memory_format=self._format)

    def scores(self, images: NDArray[np.uint8], side: int | None = None) -> NDArray[np.float32]:
        """(n, classes) of (n, h, w, 3) uint8, by the averaged weights. side: as for `parts`."""
        was = self.average.training
        self.average.eval()
        fp32 = self.config.precision == "fp32"  # not TF32 here: what is measured is the model file
        exact = precise(self.device.type, "exact" if fp32 else "half")
        # outside of inference mode, of which nothing that is learnt is to come
        rounded = self.rounded(self.average)
        with rounded, torch.inference_mode(), exact, arithmetic(self.config.precision, self.device):
            inputs = self.shaped(torch.from_numpy(images).to(self.device), None, side)
            found: NDArray[np.float32] = self.average(inputs).float().cpu().numpy()
        self.average.train(was)
        return found

    def weights(self) -> dict[str, Tensor]:
        """The averaged network's, on the CPU, its head for what the layers average to."""
        with self.rounded(self.average):
            held = {k: v.detach().cpu().clone() for k, v in self.average.state_dict().items()}
        return folded(held)

    def tensors(self) -> dict[str, Tensor]:
        """All that the learner has learned, by name, for a checkpoint."""
        held = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average is not self.model:
            held |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            held |= {f"optimiser.{number}.{k}": v for k, v in state.items() if v is not None}
        if scale := self.scaler.state_dict():
            held["scaler.scale"] = torch.tensor(scale["scale"])
        if self.coding:
            held["coding.price"] = torch.tensor(self.coding.price, dtype=torch.float64)
            held |= {f"coding.pulls.{k}": v for k, v in self.coding.pulls.items()}
        return held

    def restore(self, before: Checkpoint) -> None:
        """Become what `tensors` gave."""
        self.model.load_state_dict(before.under("model."))
        if self.average is not self.model:
            self.average.load_state_dict(before.under("average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in before.under("optimiser.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        for parameter, held in self.optimiser.state.items():
            for key, value in held.items():
                if value.shape == parameter.shape:
                    # a fused step takes the numbers as they lie, and a checkpoint has them in one order
                    held[key] = torch.empty_like(parameter).copy_(value)
        if self.coding:
            self.coding.price = float(before.tensors["coding.price"])
            pulls = before.under("coding.pulls.")
            self.coding.pulls = {k: v.to(self.device) for k, v in pulls.items()}
        if scale := before.under("scaler."):
            self.scaler.load_state_dict(
                {**self.scaler.state_dict(), "scale": float(scale["scale"])}
            )


class ScaledHead(nn.Linear):
    """A head that reads averages scaled, some of them left out while it learns.

    mean, inverse: of `probing.linear.Scaling`, what is taken from an average, and what the rest is times;
    they go with the weights into a checkpoint.
    """

    mean: Tensor
    inverse: Tensor
    dropout: float

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        scaled = (input - self.mean) * self.inverse
        return super().forward(F.dropout(scaled, self.dropout, self.training))


def scaled(head: nn.Module, dropout: float) -> ScaledHead:
    """The head of a network, in place, as one that reads averages scaled: by nothing, yet."""
    assert isinstance(head, nn.Linear)
    head.__class__ = ScaledHead
    assert isinstance(head, ScaledHead)
    head.dropout = dropout
    head.register_buffer("mean", torch.zeros(head.in_features))
    head.register_buffer("inverse", torch.ones(head.in_features))
    return head


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights on the CPU, a head that reads averages scaled being for them as they are."""
    if "classifier.inverse" not in tensors:
        return dict(tensors)
    weight, bias, mean, inverse = (
        tensors[f"classifier.{name}"].double() for name in ("weight", "bias", "mean", "inverse")
    )
    weight = weight * inverse
    own = {"classifier.weight": weight.float(), "classifier.bias": (bias - weight @ mean).float()}
    return {**tensors, **own}


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
