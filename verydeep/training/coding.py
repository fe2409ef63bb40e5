"""Weights learnt as the model file's codec holds them: whole multiples of steps, in few bytes.

The network computes with rounded weights; what they learn moves those behind them (straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432). Bits have a price in the loss (entropy-penalised training,
Oktay et al. 2020, arXiv:1906.06624): those of the codec's own model, between two multiples as on a straight
line. The price moves until all bytes are as many as were asked for. No step moves: a weight that is worth
fewer bits becomes smaller.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import modelfile
from ..errors import DataError
from ..modelfile.codec import LARGEST, Coded, Rate, decode, encode
from ..nets import Network
from ..published import find_model

Array = NDArray[Any]

EVERY = 4  # steps between two looks at the bits
PRICE = 4.0  # at first: of all bytes that are asked for, in the loss's unit
FIRM, SLOW, WILD = 8, 1.08, 2.0  # how the price answers to the size, and what it moves at most
SHRINKS = 0.5  # of the run, after which the size is to be what was asked for


class Coding:
    """The steps of each weight that is coded, by its key, and the price of a bit.

    grids: what a file of coded weights holds; their steps stay. aim: bytes of all these streams.
    """

    def __init__(self, grids: Mapping[str, Coded], aim: int, device: torch.device) -> None:
        self.grids, self.aim, self.price = grids, aim, PRICE
        self.steps: dict[str, Tensor] = {}
        self.pulls = {}  # of each weight: what the price times the bits pulls it by
        self.begun, self._heads = 0, 0.0
        for key, grid in grids.items():
            ones = replace(grid, multiples=np.ones_like(grid.multiples))
            self.steps[key] = torch.from_numpy(ones.weight).to(device)
            self.pulls[key] = torch.zeros_like(self.steps[key])
            size = len(encode(grid))
            self.begun += size
            self._heads += size - Rate(grid).total / 8

    def coded(self, weights: Mapping[str, Tensor]) -> dict[str, Coded]:
        """The nearest multiples of these weights."""
        found = {}
        for key, grid in self.grids.items():
            values = (weights[key].detach() / self.steps[key]).cpu().numpy()
            near = np.clip(np.rint(values), -LARGEST, LARGEST).astype(np.int16)
            found[key] = replace(grid, multiples=near)
        return found

    @contextmanager
    def rounded(self, model: nn.Module) -> Iterator[None]:
        """The model as its file will be: multiples of steps, and float16 for what is not coded."""
        own = dict(model.named_parameters())
        held = {key: value.detach().clone() for key, value in own.items()}
        with torch.no_grad():
            for key, value in own.items():
                step = self.steps.get(key)
                value.copy_(value.half() if step is None else torch.round(value / step) * step)
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in own.items():
                    value.copy_(held[key])

    def pull(self, model: nn.Module, step: int, steps: int, scale: float) -> float | None:
        """Add to the gradients those of what bits cost; the bytes where it has looked at them.

        step: of all `steps` of a run. scale: what gradients are times.
        """
        own, size = dict(model.named_parameters()), None
        if step % EVERY == 0:
            size = self._look(own, min(1.0, step / (SHRINKS * steps)))
        for key, pull in self.pulls.items():
            gradient = own[key].grad
            if gradient is not None:
                gradient.add_(pull, alpha=scale)
        return size

    def _look(self, weights: Mapping[str, Tensor], done: float) -> float:
        size, slopes = self._heads, {}
        for key, coded in self.coded(weights).items():
            bits, slopes[key] = slopes_of(coded, (weights[key].detach() / self.steps[key]).cpu())
            size += bits / 8
        ratio = size / max(self.aim, self.begun * (self.aim / self.begun) ** done)
        self.price *= min(max(ratio, 1 / SLOW), SLOW)
        price = self.price * min(max(ratio**FIRM, 1 / WILD), WILD)
        for key, slope in slopes.items():
            self.pulls[key] = slope.to(self.steps[key]) / self.steps[key] * (price / (8 * self.aim))
        return size


def coding_of(
    init: str | os.PathLike[str] | None, network: Network, aim: int, device: torch.device
) -> Coding | None:
    """The steps that the weights of `init` were coded with; None where no bytes are aimed at.

    DataError where its weights are not coded, or are of another network.
    """
    if not aim:
        return None
    file = None if init is None or os.path.isdir(init) else modelfile.read(find_model(init))
    keys = [f"{layer.key}.weight" for layer in network.layers if layer.key]
    if (
        file is None
        or file.record.network != network
        or any(f"{key}.code" not in file.stored for key in keys)
    ):
        raise DataError(
            f"code_bytes={aim} needs the same network to start from with its weights coded; make one with "
            "`verydeep compress MODEL --size SIZE --out FILE`, of a bit more bytes, and name it with --init"
        )
    grids = {key: decode(file.stored[f"{key}.code"], network.tensors[key]) for key in keys}
    return Coding(grids, aim, device)


def scaled_by(factor: float, coded: Coded) -> Coded:
    return replace(coded, step=float(np.float32(coded.step * factor)))


def packed(
    tensors: Mapping[str, Array], coded: Mapping[str, Coded], halved: Collection[str]
) -> dict[str, Array]:
    """What a file holds of these tensors, which are rounded already: streams, and float16 for `halved`."""
    found = dict(tensors)
    for key, one in coded.items():
        del found[key]
        found[f"{key}.code"] = np.frombuffer(encode(one), np.uint8)
    return found | {key: found[key].astype(np.float16) for key in halved if key in found}


def slopes_of(coded: Coded, values: Tensor) -> tuple[float, Tensor]:
    """The bits of a matrix, and what one more of each number would add, from the one below its value.

    values: of the weights in steps, of which `coded` has the nearest; the same shape.
    """
    rate = Rate(coded)
    shape = len(coded.rows), -1, coded.cells
    near, low = coded.multiples.reshape(shape), np.floor(values.numpy()).reshape(shape)
    slopes = np.empty(low.shape, np.float32)
    for cell in range(coded.cells):
        two = np.stack([low[:, :, cell], low[:, :, cell] + 1])
        below, above = rate.bits(slice(None), cell, near, two)
        slopes[:, :, cell] = above - below
    return rate.total, torch.from_numpy(slopes.reshape(values.shape))
