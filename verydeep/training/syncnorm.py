"""Batch norm over the batches of all processes, on any device; torch's own is for GPUs alone.

Mean and variance are those of the images of all processes together, whatever each one's share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


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
    """A BatchNorm2d whose statistics, in training, are of all processes: (n, c, h, w) to the same."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training:
            return super().forward(input)
        values = input.float()
        ones = values.new_full((1,), values.numel() / values.shape[1])
        sums = torch.cat([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3)), ones])
        total: Tensor = _Sum.apply(sums)
        count = total[-1]
        mean, square = total[:-1].view(2, -1) / count
        variance = (square - mean * mean).clamp(min=0)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = self.momentum or 0.0
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # unbiased, as torch's
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shaped = (1, -1, 1, 1)
        moved = values * scale.view(shaped) + (self.bias - mean * scale).view(shaped)
        normed: Tensor = moved.to(input.dtype)
        return normed


def synced(model: nn.Module) -> nn.Module:
    """Every BatchNorm2d of the model becomes a SyncedNorm, in place, with its own weights."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedNorm
    return model
