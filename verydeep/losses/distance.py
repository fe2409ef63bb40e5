"""The distance of LPIPS at one layer, fused: unit vectors are made, compared and dropped in cache.

Written with torch's own operations it stores several arrays as large as the features, and its gradient is
not a number where an image's features are all zero, since a root has no slope there
(PerceptualSimilarity#69, #121). Here only the features themselves are kept, and where they are all zero
the gradient is zero, as that of the ReLU before it is. Zhang et al. 2018, arXiv:1801.03924, equation 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .images import transformed

EPSILON = 1e-10  # added to the norm, outside the root, as lpips 0.1.4 has it
SMALLEST = (
    1e-38  # of a squared norm; keeps the root's slope finite and no value from being what it is
)
CHUNK = 1 << 17  # numbers in one piece, so that a few of them stay in cache


def unit_differences(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
    """The weighted squared difference of unit vectors at each position, (n, 1, h, w), at least float32.

    f0: features (n, c, h, w). f1: the same, or (1, c, h, w) for all. weights: (c,).
    """
    with torch.autocast(f0.device.type, enabled=False):
        f0, f1 = wide(f0), wide(f1)
        weights = weights.to(f0.device, f0.dtype)
        if (
            transformed()
        ):  # a compiler fuses it by itself, torch.func knows the plain operations alone
            weights = weights[:, None, None]
            return ((_unit(f0, 1) - _unit(f1, 1)).square() * weights).sum(1, keepdim=True)
        differences: Tensor = _Differences.apply(f0, f1.expand_as(f0), weights)
        return differences


def wide(f: Tensor) -> Tensor:
    """The features in float32 at least."""
    return f.float() if f.dtype in (torch.float16, torch.bfloat16) else f


def _unit(f: Tensor, dim: int) -> Tensor:
    norm = f.square().sum(dim, keepdim=True).clamp_min(SMALLEST).sqrt()
    return f / (norm + EPSILON)


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
        n, _, height, width = f0.shape
        differences = f0.new_empty(n * height * width)
        for a, b, out in _chunks(f0, f1, differences):
            torch.mv((_unit(a, 1) - _unit(b, 1)).square_(), weights, out=out)
        return differences.view(n, 1, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f0, f1, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # to be differentiated once more
            g, w = gradient, weights[:, None, None]
            both = (_slope(f0, f1, w, g, 1), _slope(f1, f0, w, g, 1))
            return (*(d if need else None for d, need in zip(both, needed, strict=True)), None)
        n, channels, height, width = f0.shape
        slopes = [f0.new_empty(n * height * width, channels) if need else None for need in needed]
        outs = [f0 if rows is None else rows for rows in slopes]
        for a, b, g, out0, out1 in _chunks(f0, f1, gradient.reshape(-1), *outs):
            g = g[:, None]
            if needed[0]:
                out0.copy_(_slope(a, b, weights, g, 1))
            if needed[1]:
                out1.copy_(_slope(b, a, weights, g, 1))
        maps = [
            None if rows is None else rows.view(n, height, width, channels).permute(0, 3, 1, 2)
            for rows in slopes
        ]
        return (*maps, None)


def _slope(a: Tensor, b: Tensor, weights: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """d/da of gradient * sum of weights * (unit(a) - unit(b))^2; zero where a is."""
    squared = a.square().sum(dim, keepdim=True)
    norm = squared.clamp_min(SMALLEST).sqrt()
    unit = a / (norm + EPSILON)
    outer = (unit - _unit(b, dim)) * weights
    along = (outer * a).sum(dim, keepdim=True) / norm
    scale = torch.where(squared > 0, 2 * gradient / (norm + EPSILON), 0)
    return (outer - unit * along) * scale


def _chunks(*arrays: Tensor) -> Any:
    """Feature maps as rows of channels, and other arrays beside them, in pieces."""
    rows = [f.permute(0, 2, 3, 1).flatten(0, 2) if f.ndim == 4 else f for f in arrays]
    size = len(rows[0])
    if rows[0].device.type == "cpu":
        size = max(1, CHUNK // rows[0].shape[1])
    return zip(*(torch.split(r, size) for r in rows), strict=True)
