"""LPIPS' distance at one layer in one pass over the features, as kernels of Triton's.

By torch's own operations a GPU goes some twelve times through features that it could read once, forward,
and twenty times backward. Triton comes with torch for CUDA on Linux; elsewhere, or where it has no compiler
to work with, those operations are what is left.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LAST = torch.channels_last
NUMBERS = 2048  # of each map in one program: as many rows of channels as that makes


@triton.jit  # type: ignore[untyped-decorator]
def _pair(a, b, weights, rows, repeated, channels, ROWS: tl.constexpr, WIDE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]  # noqa: N803
    """Rows of both maps as float32, where they lie in a, and which of them are there."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    place = row[:, None].to(tl.int64) * channels + column[None, :]
    other = (row % repeated)[:, None].to(tl.int64) * channels + column[None, :]
    x = tl.load(a + place, mask=inside, other=0).to(tl.float32)
    y = tl.load(b + other, mask=inside, other=0).to(tl.float32)
    w = tl.load(weights + column, mask=column < channels, other=0).to(tl.float32)
    return row, place, inside, x, y, w[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _norm(x) -> Any:  # type: ignore[no-untyped-def]
    """Of each row, (rows, 1): its length, 1 where that is 0, and what it is times for a length of 1."""
    squared = tl.sum(x * x, 1)[:, None]
    length, there = tl.sqrt_rn(squared), squared != 0  # what is no number stays none
    # 1e-10 is lpips', added outside of the root
    return tl.where(there, length, 1.0), tl.div_rn(1.0, length + 1e-10), there


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    a, b, weights, out, rows, repeated, channels, ROWS: tl.constexpr, WIDE: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    row, _, _, x, y, w = _pair(a, b, weights, rows, repeated, channels, ROWS, WIDE)
    _, by_x, _ = _norm(x)
    _, by_y, _ = _norm(y)
    apart = x * by_x - y * by_y
    tl.store(out + row, tl.sum(apart * apart * w, 1), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _slope(x, length, by, there, outer, gradient) -> Any:  # type: ignore[no-untyped-def]
    """d/dx, where `outer` is the weighted difference of the unit vectors, seen from x."""
    along = tl.div_rn(tl.sum(outer * x, 1)[:, None], length)
    return tl.where(there, (outer - x * by * along) * (2 * gradient * by), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    a, b, weights, gradients, out_a, out_b, rows, repeated, channels,
    OF_A: tl.constexpr, OF_B: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    row, place, inside, x, y, w = _pair(a, b, weights, rows, repeated, channels, ROWS, WIDE)
    gradient = tl.load(gradients + row, mask=row < rows, other=0)[:, None]
    length_x, by_x, there_x = _norm(x)
    length_y, by_y, there_y = _norm(y)
    outer = (x * by_x - y * by_y) * w
    if OF_A:
        tl.store(out_a + place, _slope(x, length_x, by_x, there_x, outer, gradient), mask=inside)
    if OF_B:
        tl.store(out_b + place, _slope(y, length_y, by_y, there_y, -outer, gradient), mask=inside)


def differences(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
    """(n, 1, h, w) float32 of features (n, c, h, w), or (1, c, h, w) expanded, and weights (c,) float32."""
    a, b = _laid_out(f0, f1)
    n, _, height, width = f0.shape
    out = a.new_empty((n, 1, height, width), dtype=torch.float32)
    _run(_forward, a, b, weights, out)
    return out


def slopes(
    f0: Tensor, f1: Tensor, weights: Tensor, gradient: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `differences` to f0 and f1, those that are needed, as the features are laid out."""
    a, b = _laid_out(f0, f1)
    of_a, of_b = (torch.empty_like(f0, memory_format=LAST) if need else None for need in needed)
    given = (
        weights,
        gradient.contiguous(),
        a if of_a is None else of_a,
        a if of_b is None else of_b,
    )
    _run(_backward, a, b, *given, OF_A=needed[0], OF_B=needed[1])
    return of_a, of_b


def _laid_out(f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor]:
    """Both as rows of channels, the second no longer than it is."""
    if len(f0) > 1 and not f1.stride(0):
        f1 = f1[:1]
    return f0.contiguous(memory_format=LAST), f1.contiguous(memory_format=LAST)


def _run(kernel: Any, a: Tensor, b: Tensor, *given: Tensor, **told: bool) -> None:
    channels = a.shape[1]
    rows, repeated = a.numel() // channels, b.numel() // channels
    wide = 1 << (channels - 1).bit_length()
    height = max(1, NUMBERS // wide)
    here = a.device.type == "cpu" or a.device.index == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(a.device):
        kernel[(-(-rows // height),)](
            a, b, *given, rows, repeated, channels, ROWS=height, WIDE=wide, **told
        )
