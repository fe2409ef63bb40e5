"""Winograd's convolution for a frozen trunk: fewer multiplications, in torch's own matrix products.

Of a map cut into tiles of m x m outputs, each tile costs (m + 2)^2 multiplications a pair of channels in
place of 9 m^2 (Lavin and Gray 2015, arXiv:1509.09308): 2.25 times fewer for m = 2, 4 times for m = 4. The
transforms around them cost memory traffic, which only maps of many channels win back, and whether they do
is the processor's affair: each kind of layer is timed both ways when it is first met.

The weights are transformed once, in both directions, since the gradient is a convolution too. They take
1.8 (m = 2) or 4 (m = 4) times the room of the filters, so the larger tiles are for the layers whose filters
are small. Rounding is that of a float32 convolution for m = 2, and about ten times that for m = 4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

LEAST_CHANNELS = 128  # on either side; with fewer, no processor that was tried gained
LEAST_TILES = 128  # with fewer, the transformed weights take more room than they are worth
SMALL_FILTERS = 1 << 16  # inputs times outputs: up to here tiles are 4x4, beyond 2x2
GAIN = 0.95  # of the plain time: to be quicker by less is noise

# Lavin and Gray's F(2x2, 3x3) and F(4x4, 3x3): of the input, of the filters, of the outputs
_MATRICES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
         [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}  # fmt: skip

# which way was the quicker, by channels, tile, size of the map and threads
_quicker: dict[tuple[int, ...], bool] = {}


class Convolution:
    """A frozen 3x3 convolution, computed in the way that is the quicker here.

    conv: stride 1, padding 1. Winograd's way is taken for float32 on a CPU, and neither while a compiler
    or torch.func looks on, nor under autocast, nor where torch was asked for deterministic algorithms,
    since what is timed may be decided otherwise another time.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.tile = 4 if conv.in_channels * conv.out_channels <= SMALL_FILTERS else 2
        self._made: tuple[tuple[int, int], _Kernel] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        conv = self.conv
        if not self._possible(x):
            return self._plain(x)

        def quick(x: Tensor) -> Tensor:
            found: Tensor = _Apply.apply(x, self._kernel())
            return found if conv.bias is None else found + conv.bias[:, None, None]

        size = (x.numel() // x.shape[1]).bit_length()
        key = (conv.in_channels, conv.out_channels, self.tile, size, torch.get_num_threads())
        if key not in _quicker:
            _quicker[key] = _seconds(quick, x) < GAIN * _seconds(self._plain, x)
        if _quicker[key]:
            return quick(x)
        self._made = None  # another size may make it again
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return found

    def _possible(self, x: Tensor) -> bool:
        conv = self.conv
        return (
            x.device.type == "cpu"
            and x.dtype == conv.weight.dtype == torch.float32
            and not conv.weight.requires_grad
            and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
            and x.numel() // x.shape[1] >= LEAST_TILES * self.tile**2
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not torch.are_deterministic_algorithms_enabled()
            and _has_memory(x)
        )

    def _kernel(self) -> _Kernel:
        weight = self.conv.weight
        now = (weight.data_ptr(), weight._version)
        if self._made is None or self._made[0] != now:
            self._made = (now, _Kernel(weight.numpy(), self.tile))
        return self._made[1]


class _Kernel:
    """Transformed filters, of a convolution and, once a gradient has been asked for, of its transpose."""

    def __init__(self, weight: NDArray[np.float32], tile: int) -> None:
        of_input, of_filters, of_outputs = (np.array(m) for m in _MATRICES[tile])
        self.tile = tile
        self.weight = weight
        outputs, inputs = weight.shape[:2]
        both = np.kron(of_filters, of_filters).astype(np.float32)
        filters = both @ weight.transpose(2, 3, 1, 0).reshape(9, -1)
        self.filters = torch.from_numpy(filters.reshape(-1, inputs, outputs))
        self.ahead, self.back = (
            torch.from_numpy(np.kron(m, m).astype(np.float32)) for m in (of_input, of_outputs)
        )
        self._transpose: _Kernel | None = None

    def transpose(self) -> _Kernel:
        """Of the convolution that takes gradients from outputs to inputs; its own transpose is this."""
        if self._transpose is None:
            other = _Kernel(self.weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], self.tile)
            other._transpose, self._transpose = self, other
        return self._transpose

    def __call__(self, x: Tensor) -> Tensor:
        """(n, inputs, height, width) to (n, outputs, height, width), channels-last."""
        m, side = self.tile, self.tile + 2
        n, channels, height, width = x.shape
        down, across = -(-height // m), -(-width // m)
        rows = F.pad(
            x.permute(0, 2, 3, 1), (0, 0, 1, across * m + 1 - width, 1, down * m + 1 - height)
        ).contiguous()
        image, row, pixel, one = rows.stride()
        # tiles overlap by two rows and columns: they are one view of the map
        tiles = rows.as_strided(
            (side, side, n, down, across, channels), (row, pixel, image, row * m, pixel * m, one)
        )
        made = (self.ahead @ tiles.reshape(side * side, -1)).view(side * side, -1, channels)
        products = torch.bmm(made, self.filters).view(side * side, -1)
        found = (self.back @ products).view(m, m, n, down, across, -1).permute(2, 3, 0, 4, 1, 5)
        whole = found.reshape(n, down * m, across * m, -1)
        return whole[:, :height, :width].permute(0, 3, 1, 2)


class _Apply(torch.autograd.Function):
    """A kernel's convolution, whose gradient is its transpose's."""

    @staticmethod
    def forward(x: Tensor, kernel: _Kernel) -> Tensor:
        return kernel(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Kernel], output: Tensor) -> None:  # noqa: ARG004
        ctx.kernel = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Apply.apply(gradient, ctx.kernel.transpose()), None


def _has_memory(x: Tensor) -> bool:
    """Whether x is a tensor as it is, and not the stand-in that torch.func's transforms look through."""
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


def _seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The better of two passes, after one that finds memory and filters."""
    x = x.detach()
    with torch.no_grad():
        run(x)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - began)
    return min(times)
