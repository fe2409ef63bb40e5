"""Many processes as torchrun starts them, or this one alone: what all of them sum, agree on and share.

Each holds the whole network and learns from its share of a step's images; gradients are summed once a step.
The host's numbers go by gloo, and wait for no device; tensors go as their device does it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from ..engines.torch import devices
from ..errors import DataError, VerydeepError

# for one that lives and says nothing; one that ends is missed at once
TIMEOUT = timedelta(minutes=30)
LARGE = 1 << 20  # values of a gradient that is summed where it lies; smaller ones go together
# what gloo and NCCL say of a process that is no more, in errors that are RuntimeErrors
_GONE = re.compile(
    "Connection (closed|reset)|[Bb]roken pipe|[Tt]ime(d |-?)out|remote process exited"
)

T = TypeVar("T")


class Lost(VerydeepError, ConnectionError):  # noqa: N818  # read as a word
    """Another process of this run has ended, or no longer answers."""


@dataclass(frozen=True)
class Group:
    """This process, `rank` of `world`. What it does with others, all have to do, in the same order."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is for this process to write and to tell."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place, on the tensor's device."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def counts(self, *numbers: float) -> list[float]:
        """Each number summed over all processes, without a wait for any device."""
        if self.world == 1:
            return [*numbers]
        summed: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return summed

    def agreed(self, choice: T) -> T:
        """The first process's choice."""
        chosen = [choice]
        if self.world > 1:
            dist.broadcast_object_list(chosen)
        return chosen[0]

    def merged(self, facts: dict[str, str]) -> dict[str, str]:
        """What any process knows."""
        if self.world == 1:
            return facts
        all_: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(all_, facts)
        return {key: value for one in all_ for key, value in one.items()}

    def gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; where one has none, having no image, it is 0."""
        if self.world == 1:
            return
        small: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.numel() < LARGE:
                small.append(parameter.grad)
            else:
                self.sum(parameter.grad)
        if small:
            flat = self.sum(torch.cat([one.reshape(-1) for one in small]))
            parts = torch.split(flat, [one.numel() for one in small])
            torch._foreach_copy_(small, [p.view_as(g) for p, g in zip(parts, small, strict=True)])

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """The first process's values become everyone's, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()


ALONE = Group()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's environment names, left when the block ends, where `device` is current.

    Raises Lost where another process ends before this one does.
    """
    # what names no device, as NCCL, takes the current one; without this that is cuda:0 in every process
    own = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        with own:
            yield ALONE
        return
    store, rank, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # torchrun's store outlives a restart, and with it the addresses of processes that are dead; the
        # first to come would call those. (Over several machines the count may differ between them.)
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed_c10d.PrefixStore(f"restart {restarts}", store)
    lost, leave = "", dist.destroy_process_group
    with own:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        try:
            yield Group(rank, world)
        except BaseException as error:
            if device.type == "cuda":  # an orderly end would wait for the others
                leave = getattr(distributed_c10d, "_abort_process_group", leave)
            if not isinstance(error, RuntimeError) or not _GONE.search(str(error)):
                raise
            lost = str(error).partition("] ")[2].partition(". ")[0] or str(error)
        finally:
            leave()
    if lost:  # outside, since the first error holds the group, and with it threads, alive
        raise Lost(
            f"process {rank} of {world} has lost another, which ended or no longer answers; see what "
            f"that one said, and go on with --resume ({lost})"
        )


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004  # torch gives it
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose statistics, in training, are of all processes: (n, c, h, w) to the same.

    They are those of the images of all together, whatever each one's share. torch's own is for GPUs alone.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training:
            return super().forward(input)
        all_but_channels, shaped = (0, 2, 3), (1, -1, 1, 1)
        values = input.float()
        ones = values.new_full((1,), values.numel() / values.shape[1])
        sums: Tensor = _Sum.apply(torch.cat([values.sum(all_but_channels), ones]))
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        # First the mean and then squares, as E[x^2] - E[x]^2 cancels; `rest` is what rounding left in it.
        values = values - mean.view(shaped)
        sums = _Sum.apply(
            torch.cat([values.sum(all_but_channels), values.square().sum(all_but_channels)])
        )
        rest, squares = sums.view(2, -1) / count
        variance = squares - rest * rest
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            moves = (self.momentum or 0.0) * (
                count > 1
            )  # of one value, or none, nothing is learned
            self.running_mean.lerp_(mean + rest, moves)
            unbiased = variance * count / (count - 1).clamp(min=1)  # as torch's
            self.running_var.lerp_(unbiased, moves)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed: Tensor = (values - rest.view(shaped)) * scale.view(shaped) + self.bias.view(shaped)
        return normed.to(input.dtype)


def synced(model: nn.Module) -> nn.Module:
    """Every BatchNorm2d of the model becomes a SyncedNorm, in place, with its own weights."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedNorm
    return model


def device_of(name: str) -> torch.device:
    """The device of that name, as "cuda:1"; "auto" is the quickest here. torchrun's processes share no GPU.

    Raises DataError where it is not here.
    """
    here, alone = devices(), os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    if not alone:  # a Mac has one GPU
        here = tuple(kind for kind in here if kind != "mps")
    if name == "auto":
        name = here[0]
    if name.partition(":")[0] not in here:
        expected = ", ".join(["auto", *reversed(here)])
        raise DataError(f"device {name!r} is not here; expected one of: {expected}")
    if name == "cuda" and not alone:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(f"device {name!r} is none; expected a name as cpu, or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise DataError(
            f"device {name} is not here; expected cuda:0 to cuda:{count - 1}, one a process"
        )
    return device
