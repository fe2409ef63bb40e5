"""Winograd's convolution of the losses: equal to torch's in values and gradients, used where it may be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verydeep.losses import winograd


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Winograd's way is always the quicker, of few channels and tiles too; notes each use of it."""
    calls: list[bool] = []
    inner = winograd._Apply.apply

    def noted(x: Tensor, kernel: winograd._Kernel) -> Tensor:
        calls.append(True)
        return inner(x, kernel)  # type: ignore[no-any-return]

    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 3)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    monkeypatch.setattr(winograd._Apply, "apply", noted)
    times = iter([1.0, 2.0] * 100)
    monkeypatch.setattr(winograd, "_seconds", lambda *_: next(times))
    monkeypatch.setattr(winograd, "_quicker", {})
    return calls


def convolution(inputs: int = 6, outputs: int = 5, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)


def image(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("tile", "tolerance"), [(2, 1e-6), (4, 1e-5)])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (6, 17), (1, 9)])
def test_equals_torch(used: list[bool], tile: int, tolerance: float, size: tuple[int, int]) -> None:
    conv = convolution(bias=size != (8, 12))
    ours = winograd.Convolution(conv)
    ours.tile = tile
    if size[0] * size[1] < tile**2:
        pytest.skip("less than a tile")
    x = image(2, 6, *size).requires_grad_()
    expected = F.conv2d(
        x.double(),
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        padding=1,
    )
    found = ours(x)
    assert used == [True]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * 5)
    towards = image(*found.shape)
    ours_, theirs = (
        torch.autograd.grad((y * towards).sum(), x)[0] for y in (found, expected.float())
    )
    torch.testing.assert_close(ours_, theirs, rtol=0, atol=tolerance * 5)


def test_the_gradient_has_a_gradient(used: list[bool]) -> None:
    conv = convolution()
    ours = winograd.Convolution(conv)
    x = image(1, 6, 8, 8).requires_grad_()
    found = []
    for run in (ours, conv):
        [slope] = torch.autograd.grad(run(x).pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.pow(2).sum(), x)[0])
    assert used
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_filters_that_change_are_transformed_again(used: list[bool]) -> None:
    conv = convolution()
    ours = winograd.Convolution(conv)
    x = image(1, 6, 8, 8)
    ours(x)
    kernel = ours._made
    ours(x)
    assert ours._made is kernel
    with torch.no_grad():
        conv.weight.mul_(2)
    torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)
    conv.double()
    conv.float()
    torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)
    assert len(used) == 4


def _autocast(run: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return run()


def _deterministic(run: Callable[[], Tensor]) -> Tensor:
    torch.use_deterministic_algorithms(True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("under", [_autocast, _deterministic])
def test_where_it_may_not(
    used: list[bool], under: Callable[[Callable[[], Tensor]], Tensor]
) -> None:
    conv = convolution()
    ours = winograd.Convolution(conv)
    x = image(1, 6, 8, 8)
    assert torch.equal(under(lambda: ours(x)), under(lambda: conv(x)))
    assert torch.equal(ours.conv.double()(x.double()), ours(x.double()))
    conv.float().requires_grad_(True)
    assert torch.equal(ours(x), conv(x))
    conv.requires_grad_(False)
    slopes = [torch.func.grad(lambda x, run=run: run(x).pow(2).sum())(x) for run in (ours, conv)]
    assert torch.equal(*slopes)
    assert not used


def test_the_slower_way_is_not_taken(monkeypatch: pytest.MonkeyPatch, used: list[bool]) -> None:
    monkeypatch.setattr(winograd, "_seconds", lambda *_: 1.0)
    conv = convolution()
    ours = winograd.Convolution(conv)
    x = image(1, 6, 8, 8)
    assert torch.equal(ours(x), conv(x))
    assert list(winograd._quicker.values()) == [False]
    assert ours._made is None
    assert not used
