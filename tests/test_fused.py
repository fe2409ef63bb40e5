"""A GPU's kernels that compare features, by Triton's interpreter; test_gpu.py has the compiled ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verydeep.losses import LPIPS, PerceptualLoss, trunk

from .test_losses import _file, _lpips
from .test_processes import ROOT

# Triton asks as it is imported whether it shall interpret, so this is a process of its own
COMPARED = """
import json
import torch
from verydeep.losses import fused, lpips

def case(n, of, channels, dtype, layout, broken=False):
    draw = torch.Generator().manual_seed(channels)
    f0, f1 = (torch.randn(k, channels, 5, 7, generator=draw).relu() for k in (n, of))
    f0[0, :, 1], f1[0, :, 2] = 0, 0  # nothing is seen there
    f0[0, 0, 4, 4] = torch.nan if broken else 0
    f0, f1 = (f.to(dtype).contiguous(memory_format=layout).requires_grad_() for f in (f0, f1))
    weights = torch.rand(2 * channels, generator=draw)[::2]
    g = torch.randn(n, 1, 5, 7, generator=draw)
    found = []
    for kernels in (None, fused):
        lpips._kernels = lambda f: kernels
        value = lpips.unit_differences(f0, f1, weights)
        only = torch.autograd.grad(value, f0, g, retain_graph=True)
        found.append([value, *torch.autograd.grad(value, (f0, f1), g), *only])
    if broken:
        return [bool(torch.equal(a.isnan(), b.isnan())) for a, b in zip(*found)]
    return [float((a - b).float().norm() / b.float().norm()) for b, a in zip(*found)]

torch.manual_seed(0)
channels_last = torch.channels_last
print(json.dumps([
    case(3, 3, 64, torch.float32, channels_last),
    case(3, 1, 512, torch.float32, channels_last),
    case(2, 2, 100, torch.float32, torch.contiguous_format),
    case(1, 1, 3, torch.float32, channels_last),
    case(3, 1, 64, torch.bfloat16, channels_last),
    case(2, 2, 64, torch.float16, channels_last),
    case(2, 1, 64, torch.float32, channels_last, broken=True),
]))
"""


def test_one_pass_is_what_many_are() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARED], capture_output=True, text=True, timeout=120,
        check=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    *whole, bf16, fp16, broken = json.loads(done.stdout)
    assert max(map(max, whole)) <= 1e-6
    assert max(bf16) <= 1e-2
    assert max(fp16) <= 1e-3
    assert all(broken), "a number that is none ends as one"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A convolution and its ReLU go together on the processor too; of these is told which did."""
    found: list[object] = []
    as_it_is = trunk._rectified

    def rectified(convolution: nn.Module, x: Tensor) -> Tensor:
        found.append(convolution)
        return as_it_is(convolution, x)

    monkeypatch.setattr(trunk, "_rectified", rectified)
    monkeypatch.setattr(
        trunk, "_joined_up", lambda modules, _: [*map(type, modules)] == [nn.Conv2d, nn.ReLU]
    )
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_convolution_with_its_relu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: list[object], checkpointing: bool
) -> None:
    """Values, gradients and gradients of gradients are those of one after the other."""
    file = _file(tmp_path / "tiny.safetensors")
    loss = PerceptualLoss(
        ("conv1_2", "relu2_1", "relu3_1"), criterion="l2", model=file, checkpointing=checkpointing
    )
    y = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    x = (0.8 * y + 0.1).requires_grad_()

    def computed() -> tuple[Tensor, ...]:
        value = loss(x, y)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.square().sum(), x)
        return value, slope, bend

    ours = computed()
    # conv1_2 is read before its ReLU
    assert len({id(one) for one in joined}) == 4
    monkeypatch.setattr(trunk, "_joined_up", lambda *_: False)
    for one, other in zip(ours, computed(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("learns", [(), ("x",), ("y",), ("x", "y")])
def test_both_images_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learns: tuple[str, ...]
) -> None:
    """As small ones go through a GPU; the gradient of whom nobody asks is not in the other's way."""
    loss = _narrow(tmp_path)
    images = {
        name: torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate("xy")
    }
    learning = [images[name].requires_grad_() for name in learns]

    def computed() -> list[Tensor]:
        value = loss(images["x"], images["y"])
        return [value, *(torch.autograd.grad(value.sum(), learning) if learning else ())]

    apart, part = computed(), loss._part

    def together(given: list[Tensor], known: Any, read: trunk.Read, *rest: Any) -> list[Tensor]:
        return part([torch.cat(given)], known, trunk._read_apart(read, given[1]), *rest)

    monkeypatch.setattr(loss, "_part", together)
    for ours, theirs in zip(computed(), apart, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_which_trunks_take_both_at_once(tmp_path: Path) -> None:
    """Not one that learns, whose references have gradients too; nor one that somebody looks into."""
    assert _narrow(tmp_path)._unwatched()
    assert not _narrow(tmp_path, pnet_tune=True)._unwatched()
    hooked = _narrow(tmp_path)
    hooked.net["slice1"][0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    assert not hooked._unwatched()
    counting = _narrow(tmp_path)
    counting.net["slice2"].train()
    assert not counting._unwatched()


def _narrow(folder: Path, **choices: bool) -> LPIPS:
    return _lpips(_file(folder / "tiny.safetensors"), check=False, **choices)


class OnDevice:
    """As much of an image as is asked: 4096x4096 pixels on a device."""

    dtype = torch.float32

    def __init__(self, device: str, pixels: int = 1 << 24) -> None:
        self.device, self.pixels = torch.device(device), pixels

    def __getitem__(self, _: object) -> OnDevice:
        return self

    def numel(self) -> int:
        return self.pixels

    def element_size(self) -> int:
        return 4


def test_what_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor nothing; nor what learns, what somebody looks at, what autocast computes."""
    frozen, learning = (
        [*_narrow(tmp_path, pnet_tune=tune).net["slice1"]]  # type: ignore[arg-type]
        for tune in (False, True)
    )
    image: Any = OnDevice("cuda")
    joined = partial(trunk._joined_up, frozen[:2])
    assert joined(image)
    for other in (OnDevice("cpu"), OnDevice("cuda", 1 << 10), OnDevice("cuda", 1 << 30)):
        assert not joined(other)  # type: ignore[arg-type]
    assert not trunk._joined_up(frozen[1:3], image)
    assert not trunk._joined_up(learning[:2], image)
    for what, name, value in (
        (image, "dtype", torch.float16), (frozen[0], "padding_mode", "reflect"),
        (torch.backends.cudnn, "deterministic", True), (torch.version, "hip", "6.2"),
        (torch, "are_deterministic_algorithms_enabled", lambda: True),
        (torch, "is_autocast_enabled", lambda device: device == "cuda"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(what, name, value)
            assert not joined(image), name
    frozen[0].bias.requires_grad_()
    assert not joined(image)
    frozen[0].bias.requires_grad_(False)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not joined(image)
    handle.remove()
    assert joined(image)
    frozen[1].register_forward_hook(lambda *_: None)
    assert not joined(image)
