"""Round a layer's weights to 8 bits so that its answers change least on the inputs that it really gets.

Each output channel has its own step, chosen by search. Then the weights are rounded one input at a time,
and what a rounding does to the answers is made up for by the weights that are not yet rounded: GPTQ
(Frantar et al. 2022, arXiv:2210.17323), whose matrix is the inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

LIMIT = 127  # the largest 8-bit weight, either sign

Array = np.ndarray

_FRACTIONS = np.linspace(1, 0.5, 11)  # of the largest weight, tried as what LIMIT stands for
_BLOCK = 128  # columns whose corrections are passed on together
_DAMPING = 0.01  # share of the mean second moment that is added to each, as GPTQ's authors do


def steps(weight: Array, importance: Array) -> Array:
    """The step of each output channel that leaves the least squared error, (outputs,) float32 above 0.

    weight: (outputs, inputs). importance: of the error of each input's weight, (inputs,).
    """
    largest: Array = np.abs(weight).max(axis=1)
    best = np.full(len(weight), np.inf)
    chosen = largest / LIMIT
    for fraction in _FRACTIONS:
        step = np.maximum(largest * fraction / LIMIT, np.finfo(np.float32).tiny)[:, None]
        error = np.clip(np.rint(weight / step), -LIMIT, LIMIT) * step - weight
        cost = np.square(error) @ importance
        better = cost < best
        best[better], chosen[better] = cost[better], step[better, 0]
    chosen[largest == 0] = 1  # weights of 0 are 0 on any scale
    return np.asarray(chosen, np.float32)


def round_weights(weight: Array, step: Array, moments: Array | None = None) -> Array:
    """The weights as multiples of their channel's step, int8, in the shape of `weight`.

    weight: (outputs, inputs). step: (outputs,). moments: the inputs' second moments, (inputs, inputs),
    the mean of x x' over many inputs x; without them each weight is rounded for itself.
    """
    step = np.asarray(step, np.float64)
    if moments is None:
        nearest: Array = np.clip(np.rint(weight / step[:, None]), -LIMIT, LIMIT)
        return nearest.astype(np.int8)
    order = np.argsort(
        -np.diagonal(moments), kind="stable"
    )  # the inputs that matter most come first
    upper = _factor(moments[np.ix_(order, order)])
    rest = np.asarray(weight, np.float64)[:, order]
    q = np.zeros(weight.shape, np.int8)
    for start in range(0, rest.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rest.shape[1])
        errors = np.zeros((len(rest), stop - start))
        for column in range(start, stop):
            number = np.clip(np.rint(rest[:, column] / step), -LIMIT, LIMIT)
            q[:, order[column]] = number
            error = (rest[:, column] - number * step) / upper[column, column]
            rest[:, column:stop] -= np.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return q


def _factor(moments: Array) -> Array:
    """The upper Cholesky factor of the damped moments' inverse."""
    damped = np.asarray(moments, np.float64).copy()
    mean = np.diagonal(damped).mean()
    damped[np.diag_indices_from(damped)] += _DAMPING * mean if mean > 0 else 1.0
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def second_moments(
    maps: Iterable[Array], kernel: int, padding: int, *, patches: int, seed: int = 0
) -> Array:
    """The mean of x x' over patches x at random places, (inputs, inputs) float64.

    maps: batches of (batch, channels, height, width) float32, padded with 0 as the convolution does. Each
    patch is flattened as the convolution's weight is: (channels * kernel * kernel). patches: how many are
    taken of each image, all where it has fewer.
    """
    draw = np.random.default_rng(seed)
    total: Array = np.zeros(())
    count = 0
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    for batch in maps:
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(batch, sides), (kernel, kernel), (2, 3)
        )  # (batch, channels, rows, columns, kernel, kernel), a view
        rows, columns = windows.shape[2:4]
        picked = []
        for image in windows:
            places = draw.choice(rows * columns, min(patches, rows * columns), replace=False)
            # (channels, places, kernel, kernel)
            windows_there = image[:, places // columns, places % columns]
            picked.append(windows_there.transpose(1, 0, 2, 3).reshape(len(places), -1))
        flat = np.concatenate(picked)
        total = total + (flat.T @ flat).astype(np.float64)
        count += len(flat)
    return total / count
