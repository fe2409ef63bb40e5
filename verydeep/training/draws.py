"""Random numbers that are a function of what they are for: the seed, the epoch, the image, the purpose.

There is no state to carry along, so an image is augmented in the same way whatever the batch it is in, the
process that prepares it, or the step at which training was resumed. The function is SplitMix64's finaliser
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), once for each fact.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def bits(seed: int, epoch: int, indices: ArrayLike, purpose: str) -> NDArray[np.uint64]:
    """64 random bits for each index, (n,)."""
    state = np.asarray(indices, np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is wanted
        for fact in (zlib.crc32(purpose.encode()), epoch, seed):
            state = _mixed(state ^ _mixed(np.asarray(fact, np.uint64)))
    return state


def uniform(seed: int, epoch: int, indices: ArrayLike, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each index, (n,)."""
    whole = bits(seed, epoch, indices, purpose) >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 to count - 1: in what order an epoch goes through the images."""
    return np.argsort(bits(seed, epoch, np.arange(count), "order"), kind="stable")


def seed_of(seed: int, step: int, purpose: str) -> int:
    """A seed for torch's own generator: what dropout draws at that step."""
    return int(bits(seed, 0, [step], purpose)[0] >> np.uint64(1))


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
