"""What a GPU or a Mac would stumble over, found without one: the processor plays the device.

While the loop goes from batch to batch nothing may be float64, which MPS does not have, and nothing may
wait for the device but what is read for a line of the log.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verydeep import train
from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Batch
from verydeep.training.parallel import ALONE, Group

from .labelled import arrays, trained
from .processes import together
from .test_probe import photos

# operators whose answer the host has to have before it goes on
WAITS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "unique_dim",
    "_unique", "_unique2", "unique_consecutive", "repeat_interleave", "bincount", "item",
}  # fmt: skip
READS = (
    "tolist",
    "numpy",
    "cpu",
    "__array__",
)  # which are no operators where the device is the processor
HOST = ("counts", "agreed", "merged", "wait")  # of a Group: numbers that lie on the host


class Watch(TorchDispatchMode):
    """Notes what is wrong: at once what is float64, and at the next batch what waited and told nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: set[str] = set()
        self.waits: list[str] = []
        self.lines = self.steps = 0
        self.thread = threading.get_ident()
        self.looks = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.looks:
            name = func.overloadpacket.__name__
            masks = name in ("index", "index_put", "index_put_") and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            if name in WAITS or masks:
                self.waits.append("a mask" if masks else name)
            for value in tree_leaves((args, kwargs, found)):
                if isinstance(value, Tensor) and value.dtype == torch.float64:
                    self.wrong.add(f"float64 in {name}")
        return found

    def watched(self, epoch: Callable[..., Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
        """The batches of a feed, with a look at all that is done with them."""

        def batches(feed: Feed, *given: Any) -> Iterator[Batch]:
            self.waits = []
            for batch in epoch(feed, *given):
                with self:
                    self.looks = True
                    yield batch
                    self.looks = False
                self.steps += 1
                self.wrong |= {f"{name} in a step that tells nothing" for name in self.waits}
                self.waits = []

        return batches

    def reading(self, name: str) -> Callable[..., Any]:
        """A tensor's method that gives its numbers to the host."""
        method = getattr(Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.looks and threading.get_ident() == self.thread:
                self.waits.append(name)
            return method(tensor, *args, **kwargs)

        return read

    def apart(self, name: str) -> Callable[..., Any]:
        """A group's method that touches no device."""
        method = getattr(Group, name)

        def unseen(*args: Any) -> Any:
            looks, self.looks = self.looks, False
            try:
                return method(*args)
            finally:
                self.looks = looks

        return unseen

    def told(self, line: dict[str, Any]) -> None:
        """Called with a line of the log; what waited was for it."""
        if line["event"] == "step":
            self.lines += 1
            self.waits = []

    def listen(self, patch: pytest.MonkeyPatch) -> None:
        """Hear of what is no operator, and of what is none of the device's."""
        for name in READS:
            patch.setattr(Tensor, name, self.reading(name))
        for name in HOST:
            patch.setattr(Group, name, self.apart(name))


Begin = Callable[..., object]  # takes keywords out and event


def _small(data: Path, changes: dict[str, Any], **told: Any) -> None:
    trained(data, **told, **changes)


def _tuned(data: Path, model: Path, **told: Any) -> None:
    settings = {"size": 32, "epochs": 1, "batch": 2, "hold": 0.25, "precision": "fp32", "clip": 1.0}
    train("finetune", data, model=str(model), settings=settings, device="cpu", **told)


def _watched(rank: int, out: Path, begin: Begin, *given: Any) -> tuple[set[str], int, int]:
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "epoch", watch.watched(Feed.epoch))
        watch.listen(patch)
        begin(*given, out=out / str(rank), event=watch.told)
    if rank:  # it has no log whose lines could say what a wait was for
        watch.wrong = {what for what in watch.wrong if what.startswith("float64")}
    return watch.wrong, watch.steps, watch.lines


def wrong(world: int, out: Path, begin: Begin, *given: Any) -> set[str]:
    """What processes find, of whose steps at most every second tells something."""
    both = together(world, _watched, out, begin, *given)
    for rank, (code, told) in enumerate(both):
        assert code == 0, told
        assert isinstance(told, tuple), told
        _, steps, lines = told
        assert steps >= 40
        assert lines <= steps / 2 + 1
        assert bool(lines) == (rank == 0)
    return set.union(*(told[0] for _, told in both))


forked = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")


@forked
@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 1.0, "mixup": 0.2, "cutmix": 1.0, "size": 64, "grow": "0.5,1", "epochs": 2},
        {
            "optimiser": "muon", "precision": "bf16", "layout": "channels-last",
            "balance": "weights",
        },
        {"accumulate": 2, "average": 0.0, "schedule": "plateau"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_one_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = arrays(tmp_path / "set.npz", 88, 6)
    assert wrong(1, tmp_path, _small, data, {"batch": 2, "epochs": 1, **changes}) == set()


@forked
def test_fine_tuning(model: Path, tmp_path: Path) -> None:
    photos(tmp_path / "photos" / "train", 40)
    photos(tmp_path / "photos" / "val", 2, seed=1)
    assert wrong(1, tmp_path, _tuned, tmp_path / "photos", model) == set()


@forked
def test_two_processes(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz", 176, 6)
    changes = {"batch": 4, "epochs": 1, "accumulate": 2}
    assert wrong(2, tmp_path, _small, data, changes) == set()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (lambda x: x * 2, set()),
        (lambda x: x.double(), {"float64 in _to_copy"}),
        (lambda x: x * torch.tensor(2.0, dtype=torch.float64), {"float64 in lift_fresh", "float64 in mul"}),
        (lambda x: bool(x.sum() > 0), {"_local_scalar_dense"}),
        (lambda x: x.sum().item(), {"_local_scalar_dense"}),
        (lambda x: x[x > 0], {"a mask"}),
        (lambda x: x.tolist(), {"tolist"}),
        (lambda x: x.detach().cpu().numpy(), {"cpu", "numpy"}),
        (lambda _: ALONE.counts(1), set()),
    ],
)  # fmt: skip
def test_the_watch_sees_it(
    monkeypatch: pytest.MonkeyPatch, step: Callable[[Tensor], Any], found: set[str]
) -> None:
    watch = Watch()
    watch.listen(monkeypatch)
    x = torch.ones(3)
    batch = Batch(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int64))
    for tells in (False, True):
        watch.wrong = set()
        for _ in watch.watched(lambda *_: iter([batch]))(None):
            step(x)
            if tells:
                watch.told({"event": "step"})
        seen = {what.removesuffix(" in a step that tells nothing") for what in watch.wrong}
        assert seen == ({what for what in found if "float64" in what} if tells else found)
