"""What processes of a group sum, agree on and share, and how they end where one of them does."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from verydeep.errors import DataError
from verydeep.training import parallel
from verydeep.training.parallel import ALONE, device_of, joined, synced

from .processes import together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
CPU = torch.device("cpu")


def _agreed(rank: int, large: int) -> dict[str, Any]:
    parallel.LARGE = large
    with joined(CPU) as group:
        assert (group.rank, group.first) == (rank, rank == 0)
        kernel = nn.Parameter(torch.zeros(4, 3, 3, 3).to(memory_format=torch.channels_last))
        bias = nn.Parameter(torch.zeros(4))
        if rank:  # the first has no image, and no gradient
            numbers = torch.arange(108.0).reshape(4, 3, 3, 3) * rank
            (kernel * numbers).sum().backward()
            (bias * rank).sum().backward()
        group.gradients([kernel, bias])
        own = torch.full((2, 2), float(rank + 1))
        group.spread([own])
        assert kernel.grad is not None
        assert bias.grad is not None
        return {
            "kernel": kernel.grad.numpy(), "bias": bias.grad.numpy(), "spread": own.tolist(),
            "counts": group.counts(rank, 0.5, 2**40 + 1), "agreed": group.agreed({"of": rank}),
            "merged": group.merged({str(rank): "bad"}),
            "sum": group.sum(torch.tensor([1.0, rank])).tolist(),
        }  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("large", [1, 1 << 20])  # each gradient by itself, and all in one piece
def test_what_is_summed_and_agreed(world: int, large: int) -> None:
    for code, told in together(world, _agreed, large):
        assert code == 0, told
        of_all = sum(range(world))
        assert_allclose(told.pop("kernel"), of_all * np.arange(108.0).reshape(4, 3, 3, 3))
        assert_allclose(told.pop("bias"), np.full(4, of_all))
        assert told == {
            "spread": [[1, 1], [1, 1]], "counts": [of_all, 0.5 * world, world * (2**40 + 1)],
            "agreed": {"of": 0}, "merged": {str(rank): "bad" for rank in range(world)},
            "sum": [world, of_all],
        }  # fmt: skip


def test_one_process_is_a_group_too() -> None:
    weight = nn.Parameter(torch.ones(2))
    ALONE.gradients([weight])
    assert weight.grad is None
    assert ALONE.counts(1, 2.5) == [1, 2.5]
    assert ALONE.agreed("x") == "x"
    assert ALONE.merged({"a": "b"}) == {"a": "b"}


def _case() -> tuple[Tensor, Tensor, Tensor]:
    """Values far from 0 and close together, the gradient that comes back, and weights."""
    draw = torch.Generator().manual_seed(0)
    x = 300 + 0.1 * torch.randn(8, 4, 6, 6, generator=draw)
    return x, torch.randn(8, 4, 6, 6, generator=draw), torch.randn(2, 4, generator=draw)


def _norm(weights: Tensor) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(weights[0])
        norm.bias.copy_(weights[1])
    return norm


def _normed(rank: int, shares: tuple[int, ...]) -> dict[str, Any]:
    x, dy, weights = (part.clone() for part in _case())
    own = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    x, dy = x[own].requires_grad_(), dy[own]
    with joined(CPU) as group:
        norm = synced(nn.Sequential(_norm(weights)))[0]
        y = norm(x)
        (y * dy).sum().backward()
        group.gradients(norm.parameters())
        assert x.grad is not None
        return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | _state(norm)


def _state(norm: nn.BatchNorm2d) -> dict[str, Any]:
    grads = {
        f"d{name}": p.grad.numpy() for name, p in norm.named_parameters() if p.grad is not None
    }
    return grads | {name: buffer.numpy() for name, buffer in norm.named_buffers()}


@pytest.mark.parametrize("shares", [(4, 4), (7, 1), (5, 3, 0)])
def test_batch_norm_is_that_of_the_joined_batch(shares: tuple[int, ...]) -> None:
    """Where the mean is 3000 deviations, which E[x^2] - E[x]^2 in float32 does not survive."""
    x, dy, weights = _case()
    x = x.double().requires_grad_()
    norm = _norm(weights).double()
    y = norm(x)
    (y * dy).sum().backward()
    assert x.grad is not None
    found = together(len(shares), _normed, shares)
    assert [code for code, _ in found] == [0] * len(shares), found
    for key, value in ({"y": y.detach().numpy(), "dx": x.grad.numpy()}).items():
        mine = np.concatenate([told[key] for _, told in found])
        assert_allclose(mine, value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=key)
    for _, told in found:
        for key, value in _state(norm).items():
            assert_allclose(told[key], value, rtol=1e-4, atol=1e-4, err_msg=key)


def _little(rank: int, values: int) -> dict[str, Any]:
    with joined(CPU):
        norm = synced(nn.Sequential(nn.BatchNorm2d(2)))[0]
        x = torch.ones(values if rank else 0, 2, 1, 1, requires_grad=True)
        norm(x).sum().backward()
        assert x.grad is not None
        return {"dx": x.grad.numpy()} | _state(norm)


@pytest.mark.parametrize("values", [0, 1])
def test_batch_norm_of_no_image_or_of_one_value(values: int) -> None:
    """All finite, and nothing learned of a variance that is none."""
    for code, told in together(2, _little, values):
        assert code == 0, told
        assert all(np.isfinite(value).all() for value in told.values())
        assert_allclose(told["running_mean"], 0)
        assert_allclose(told["running_var"], 1)


def _leaving(rank: int, signum: int) -> float:
    parallel.TIMEOUT = timedelta(seconds=3)
    began = time.monotonic()
    with joined(CPU) as group:
        group.wait()
        if rank == 1:
            os.kill(os.getpid(), signum)
        while time.monotonic() < began + 60:
            group.counts(1)
    raise AssertionError("nothing was missed")


@pytest.mark.parametrize("world", [2, 3])
def test_one_that_is_killed_is_missed_at_once(world: int) -> None:
    found = together(world, _leaving, signal.SIGKILL)
    assert found.pop(1) == (-signal.SIGKILL, None)
    for rank, (code, told) in zip((0, 2), found, strict=False):
        assert code == 0
        assert told.startswith(f"Lost: process {rank} of {world} has lost another")
        assert re.search(r"go on with --resume \([A-Z][^!\n]{20,120}\)$", told), told


def _no_more(rank: int) -> None:
    parallel.TIMEOUT = timedelta(seconds=3)
    with joined(CPU) as group:
        group.wait()
        if rank:
            raise DataError("mine alone")
        group.wait()


def test_one_that_fails_says_why_and_the_other_that_it_is_gone() -> None:
    (_, first), (_, second) = together(2, _no_more)
    assert second == "DataError: mine alone"
    assert first.startswith("Lost: process 0 of 2")


def _silent(rank: int) -> None:
    parallel.TIMEOUT = timedelta(seconds=2)
    with joined(CPU) as group:
        group.wait()
        if rank:
            time.sleep(6)  # it lives, and says nothing
        group.counts(1)


def test_one_that_says_nothing_is_given_up() -> None:
    (_, first), _ = together(2, _silent)
    assert first.startswith("Lost: process 0 of 2")
    assert "go on with --resume (Timed out waiting" in first


def _threads(rank: int) -> list[str]:  # noqa: ARG001
    with joined(CPU) as group:
        group.counts(1)
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that does may want Python when it is no more, and the process ends by an abort."""
    for code, told in together(2, _threads):
        assert code == 0, told
        assert not [name for name in told if "gloo" in name], told


def test_each_process_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "devices", lambda: ("cuda", "mps", "cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device_of(name)) for name in ("auto", "cuda", "cuda:1", "mps", "cpu")] == [
        "cuda", "cuda", "cuda:1", "mps", "cpu",
    ]  # fmt: skip
    with pytest.raises(
        DataError, match="device 'tpu' is not here; expected one of: auto, cpu, mps, cuda"
    ):
        device_of("tpu")
    with pytest.raises(DataError, match="device cuda:2 is not here; expected cuda:0 to cuda:1"):
        device_of("cuda:2")
    with pytest.raises(DataError, match="device 'cpu:x' is none"):
        device_of("cpu:x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(device_of(name)) for name in ("auto", "cuda")] == ["cuda:1", "cuda:1"]
    with pytest.raises(DataError, match="'mps' is not here"):  # one GPU, two processes
        device_of("mps")
    monkeypatch.setattr(parallel, "devices", lambda: ("mps", "cpu"))
    assert device_of("auto") == torch.device("cpu")
