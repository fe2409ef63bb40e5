"""Round a layer's weights for few bytes: each number by what it costs the answers, and what in bits.

Three things, none of which looks at labels:

- a step for each column. What a change of a weight costs, once those not yet rounded have made up for
  what they can, is its square over that of the moments' factor; equal costs for all are what loses least
  at a given size, so steps go with the factor (waterfilling; as in arXiv:2603.04956);
- second-order compensation (GPTQ, arXiv:2210.17323), by the loop that int8 has, too;
- of the two numbers around a value, and 0, the one whose cost and bits together are least. Bits are those
  of the codec's own model, fitted to a first rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..modelfile.codec import EXPONENTS, LARGEST, Coded, Rate, grid, quarters
from ..quantisation.rounding import DAMPING, compensate, factor

Array = np.ndarray

# What a bit may cost, in squared steps: uniform rounding costs 1/12, and a bit less costs 4 times as much.
SLOPE = 2 * math.log(2) / 12
_DEAD = 0.4  # the first rounding goes away from 0 from 1 - this part of a step on


class Curved(NamedTuple):
    """An order of inputs, and the `factor` of their moments in it."""

    order: Array
    upper: Array


def curved_by(moments: Array, cells: int) -> Curved:
    """moments: of a layer's inputs, (inputs, inputs), the mean of x x'; `cells` of them are one channel."""
    # channels that matter most first, the cells of each in the codec's order
    energy = np.diagonal(moments).reshape(-1, cells).sum(1)
    first = np.argsort(-energy, kind="stable")
    order = (first[:, None] * cells + np.arange(cells)).ravel()
    return Curved(order, factor(moments, order).astype(np.float32))


def round_coded(
    weight: Array,
    step: float,
    curved: Curved | None = None,
    importance: Array | None = None,
    rows: Array | None = None,
) -> Coded:
    """A layer's weights as multiples of steps.

    weight: (outputs, inputs, ...). step: the geometric mean of the columns'.
    curved: what `curved_by` makes of the inputs' moments; or importance: their diagonal alone, (inputs,),
    and nothing is made up for. Without either all inputs count alike.
    rows: int16, (outputs,): exponents of steps, where some outputs matter less than others.
    """
    cells, width = grid(weight.shape)
    flat = np.asarray(weight, np.float64).reshape(len(weight), -1)
    channels = flat.shape[1] // cells
    costs = np.ones(flat.shape[1])
    if curved is not None:
        costs[curved.order] = np.diagonal(curved.upper)
    elif importance is not None:
        costs = 1 / np.sqrt(importance + DAMPING * importance.mean() + 1e-30)
    middle = math.exp(float(np.log(costs).mean()))
    columns = np.clip(np.rint(4 * np.log2(costs / middle)), -EXPONENTS, EXPONENTS).astype(np.int16)
    rows = np.zeros(len(flat), np.int16) if rows is None else rows
    by_row, by_column = (quarters(part).astype(np.float64) for part in (rows, columns))
    units = flat / by_row[:, None] / by_column
    # no finer than multiples can be, with room for what is made up for
    step = float(np.float32(min(max(step, 2 * np.abs(units).max() / LARGEST, 1e-30), 1e30)))
    units /= step
    by_row *= step
    small = np.sign(units) * np.floor(np.abs(units) + (1 - _DEAD))
    draft = np.clip(small, -LARGEST, LARGEST).astype(np.int16).reshape(weight.shape)
    rate = Rate(Coded(draft, step, rows, columns, cells, width))
    chosen = np.zeros((len(flat), channels, cells), np.int16)

    def choose(some: slice, cell: int, values: Array) -> Array:
        """The numbers for values in steps, (outputs, channels)."""
        low = np.clip(np.floor(values), -LARGEST, LARGEST - 1)
        options = np.stack([low, low + 1, np.zeros_like(low)])
        cost = np.square(values - options)
        cost += SLOPE * rate.bits(some, cell, chosen[:, some], options)
        best = np.take_along_axis(options, cost.argmin(0)[None], 0)[0]
        chosen[:, some, cell] = best
        return np.asarray(best)

    def decide(column: int, values: Array) -> Array:
        channel, cell = divmod(column, cells)
        size = by_row * by_column[column]
        best = choose(slice(channel, channel + 1), cell, (values / size)[:, None])
        return np.asarray(best[:, 0] * size)

    if curved is not None:
        compensate(flat, curved.order, curved.upper, decide)
    else:
        for cell in range(cells):
            choose(slice(None), cell, units[:, cell::cells])
    return Coded(chosen.reshape(weight.shape), step, rows, columns, cells, width)
