"""Many processes as torchrun starts them, or this one alone: who we are, and what all of us agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Group:
    """This process, `rank` of `world`. restarted: torchrun began anew after a process had died."""

    rank: int = 0
    world: int = 1
    restarted: bool = False

    @property
    def first(self) -> bool:
        """Whether it is for this process to write and to tell."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def merged(self, facts: dict[str, str]) -> dict[str, str]:
        """What any process knows."""
        if self.world == 1:
            return facts
        all_: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(all_, facts)
        return {key: value for one in all_ for key, value in one.items()}

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()


ALONE = Group()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's environment names; left when the block ends."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # torchrun's store outlives a restart, and with it the addresses of processes that are dead; the
        # first to come would call those. (Over several machines the count may differ between them.)
        store = PrefixStore(f"restart {restarts}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Group(rank, world, restarts > 0)
    finally:
        dist.destroy_process_group()
