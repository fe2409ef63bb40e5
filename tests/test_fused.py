"""A GPU's kernels that compare features, by Triton's interpreter; test_gpu.py has the compiled ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verydeep.losses import LPIPS, PerceptualLoss, trunk

from .test_losses import LAYERS, NARROW, _file
from .test_processes import ROOT

# Triton asks as it is imported whether it shall interpret, so this is a process of its own
COMPARED = """
import json
import torch
from verydeep.losses import fused, lpips

def case(n, of, channels, dtype, layout):
    draw = torch.Generator().manual_seed(channels)
    f0, f1 = (torch.randn(k, channels, 5, 7, generator=draw).relu() for k in (n, of))
    f0[0, :, 1], f1[0, :, 2] = 0, 0  # nothing is seen there
    f0, f1 = (f.to(dtype).contiguous(memory_format=layout).requires_grad_() for f in (f0, f1))
    weights = torch.rand(channels, generator=draw)
    g = torch.randn(n, 1, 5, 7, generator=draw)
    found = []
    for kernels in (None, fused):
        lpips._kernels = lambda f: kernels
        value = lpips.unit_differences(f0, f1, weights)
        only = torch.autograd.grad(value, f0, g, retain_graph=True)
        found.append([value, *torch.autograd.grad(value, (f0, f1), g), *only])
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
]))
"""


def test_one_pass_is_what_many_are() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARED], capture_output=True, text=True, timeout=120,
        check=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    *whole, bf16, fp16 = json.loads(done.stdout)
    assert max(map(max, whole)) <= 1e-6
    assert max(bf16) <= 1e-2
    assert max(fp16) <= 1e-3


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


def test_both_images_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As small ones go through a GPU; the gradient of whom nobody asks is not in the other's way."""
    loss = LPIPS(
        net="vgg", model=_file(tmp_path / "tiny.safetensors"),
        heads=dict(zip(LAYERS, map(torch.ones, NARROW), strict=True)),
    )  # fmt: skip
    x, y = (torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    monkeypatch.setattr(loss, "check", False)

    def computed(*learn: Tensor) -> list[Tensor]:
        for image in (x, y):
            image.requires_grad_(any(image is one for one in learn))
        value = loss(x, y)
        return [value, *(torch.autograd.grad(value.sum(), learn) if learn else ())]

    apart = [computed(*learn) for learn in ((), (x,), (y,), (x, y))]
    looked, part = [], loss._part

    def together(images: list[Tensor], known: object, read: trunk.Read, *rest: Any) -> list[Tensor]:
        looked.append(len(images))
        _, other = images
        return part([torch.cat(images)], known, trunk._read_apart(read, other), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loss, "_part", together)
    for ours, theirs in zip(
        [computed(*learn) for learn in ((), (x,), (y,), (x, y))], apart, strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    assert looked


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


def test_what_is_not_joined(tmp_path: Path) -> None:
    """On the processor nothing; nor what learns, what somebody looks at, what autocast computes."""
    file = _file(tmp_path / "tiny.safetensors")
    heads = dict(zip(LAYERS, map(torch.ones, NARROW), strict=True))
    frozen, learning = (
        [*LPIPS(net="vgg", model=file, heads=heads, pnet_tune=tune).net["slice1"]]  # type: ignore[arg-type]
        for tune in (False, True)
    )
    image: Any = OnDevice("cuda")
    assert trunk._joined_up(frozen[:2], image)
    for other in (OnDevice("cpu"), OnDevice("cuda", 1 << 10)):
        assert not trunk._joined_up(frozen[:2], other)  # type: ignore[arg-type]
    assert not trunk._joined_up(frozen[1:3], image)
    assert not trunk._joined_up(learning[:2], image)
    image.dtype = torch.float16
    assert not trunk._joined_up(frozen[:2], image)
    image.dtype = torch.float32
    frozen[1].register_forward_hook(lambda *_: None)
    assert not trunk._joined_up(frozen[:2], image)
