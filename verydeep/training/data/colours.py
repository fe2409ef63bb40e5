"""Mean and covariance of a data set's pixels, for normalising and for the paper's colour shift.

Colour shift: Krizhevsky et al. 2012, section 4.1, which arXiv:1409.1556, section 3.1 takes over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.labelled import Sample
from ...datasets.shards import of_shards
from .. import draws
from .augment import Luck

FEW_SHARDS = 16
CHUNK = 2**20  # pixels that are float64 at one time


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of RGB values on the scale 0 to 255: mean (3,), covariance (3, 3), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def deviation(self) -> NDArray[np.float64]:
        return np.sqrt(np.diag(self.covariance))


def few(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """About `count` of them, to be measured: any, or of streams those at the beginning of some shards."""
    shards = of_shards(samples)
    if not shards:
        return [samples[at] for at in draws.order(seed, 0, len(samples))[:count]]
    chosen = [shards[at] for at in draws.order(seed, 0, len(shards))[:FEW_SHARDS]]
    return [samples[at] for shard in chosen for at in shard[: -(-count // len(chosen))]]


def statistics(batches: Iterable[NDArray[np.uint8]]) -> Statistics:
    """Of all pixels of uint8 arrays whose last axis is RGB."""
    count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
    for batch in batches:
        whole = batch.reshape(-1, 3)
        for at in range(0, len(whole), CHUNK):
            pixels = whole[at : at + CHUNK].astype(np.float64)
            count += len(pixels)
            total += pixels.sum(0)
            squares += pixels.T @ pixels
    mean = total / count
    return Statistics(mean, squares / count - np.outer(mean, mean))


def colour_shift(found: Statistics, luck: Luck, deviation: float) -> NDArray[np.float32]:
    """What is added to every pixel of each image, (n, 3): along the principal axes of the colours.

    p1 a1 l1 + p2 a2 l2 + p3 a3 l3, p and l the eigenvectors and eigenvalues of the covariance, a normal of
    that deviation. As in the original the covariance is of values from 0 to 1, so that the eigenvalues
    stay small: its shift, times 255, is that of values from 0 to 255.
    """
    values, vectors = np.linalg.eigh(found.covariance / 255**2)
    u = [[luck(f"colour {axis} {which}") for axis in range(3)] for which in range(2)]
    normal = np.sqrt(-2 * np.log1p(-np.stack(u[0], 1)))  # Box and Muller 1958
    normal *= np.cos(2 * np.pi * np.stack(u[1], 1))
    shift: NDArray[np.float64] = (normal * deviation * values) @ vectors.T * 255
    return shift.astype(np.float32)
