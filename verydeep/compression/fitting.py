"""What a layer reads on photos, and the weights that do best there once layers before it have changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from ..quantisation.rounding import Moments
from .rounding import Curved, curved_by

# of the mean moment: how strongly fitted weights are drawn to what they were; and which are tried, from
# where on: few photos, or layers that hardly changed, want much of it
RIDGE = 2e-3
RIDGES, BEGIN = tuple(RIDGE * 4.0**power for power in range(-1, 7)), 3

Array = np.ndarray


class Inputs:
    """What a layer reads: means over places on photos, of (places, inputs) float32 at a time.

    paired: whether moments of each input with each other are kept, and not its own square alone. moments:
    these, where they are known.
    """

    def __init__(self, paired: bool, moments: Moments | None = None) -> None:
        self.paired = paired
        self._moments, self._count = moments or Moments(), 0
        self._sums, self._squares = np.zeros(()), np.zeros(())
        self._curved: Curved | None = None

    def add(self, batches: Iterable[Array]) -> None:
        for flat in batches:
            if self.paired:
                self._moments.add(flat)
            else:
                self._sums = self._sums + flat.sum(0, dtype=np.float64)
                self._squares = self._squares + np.square(flat, dtype=np.float64).sum(0)
                self._count += len(flat)

    @property
    def mean(self) -> Array:
        return self._moments.means[0] if self.paired else np.asarray(self._sums / self._count)

    @property
    def squares(self) -> Array:
        """Where they are not paired: about 0."""
        return np.asarray(self._squares / self._count)

    @property
    def moments(self) -> Array:
        """Where they are: about the mean, which the bias takes care of."""
        return self._moments.covariance

    def curved(self, cells: int) -> Curved:
        """Made once: it takes longer than all else of a trial."""
        if self._curved is None:
            self._curved = curved_by(self.moments, cells)
        return self._curved


def ridge(moments: Array, part: float = RIDGE) -> float:
    """What is added to each input's own moment; above 0 even where nothing answers on any photo."""
    return part * float(np.diagonal(moments).mean()) + 1e-12


def solved(
    weight: Array, own: Array, cross: Array, columns: Array | slice, part: float = RIDGE
) -> Array:
    """(outputs, columns): what answers with these columns alone as the whole weight did, by least squares.

    weight: (outputs, inputs). own: mean of x x' of what is read now, (columns, columns). cross: mean of the
    old answers times it, (outputs, columns). Both about their means. part: the ridge.
    """
    drawn = ridge(own, part)
    right = cross + drawn * weight[:, columns]
    return np.asarray(np.linalg.solve(own + drawn * np.eye(len(own)), right.T).T)


def best_ridge(
    weight: Array, halves: Sequence[tuple[Array, Array]], columns: Array | slice
) -> float:
    """Of RIDGES the one whose weights, solved on one half of the photos, lose least on the other.

    halves: `own` and `cross` of each, as `solved` takes them.
    """

    @cache
    def lost(number: int) -> float:
        """The squared error, but for what is the same for all."""
        if not 0 <= number < len(RIDGES):
            return math.inf
        total = 0.0
        for fitted, (own, cross) in (halves, halves[::-1]):
            found = solved(weight, *fitted, columns, RIDGES[number])
            total += float(((found @ own - 2 * cross) * found).sum())
        return total

    at = min(BEGIN, len(RIDGES) - 1)
    while lost(best := min(at - 1, at + 1, key=lost)) < lost(at):
        at = best
    return RIDGES[at]


def drifted(
    weight: Array, read: Iterable[tuple[Array, Array]], columns: Array | slice = slice(None),
    *, alone: bool = False,
) -> tuple[Inputs, Array, Array]:  # fmt: skip
    """What a layer reads by now, the weights that do best there, and what it answered before in the mean.

    weight: (outputs, inputs) float64. read: what it read before, (places, inputs) float32, and what it
    reads now, (places, columns), for each batch. columns: of its inputs, those that are left. alone:
    whether each batch is of one photo.
    """
    own: list[Moments] = []  # of either half
    cross: list[Moments] = []
    rows = weight.T.astype(np.float32)
    for number, (before, now) in enumerate(read):
        answered = before @ rows
        # of each batch the first photos and the last ones, so that both halves have some of all kinds
        middle = len(now) // 2 or len(now)
        if alone:
            middle = len(now) * (1 - number % 2)
        for half, some in enumerate((slice(middle), slice(middle, None))):
            if len(own) < 2:
                own.append(Moments(*own))
                cross.append(Moments(*cross))
            own[half].add(now[some])
            cross[half].add(answered[some], now[some])
    part = RIDGES[min(BEGIN, len(RIDGES) - 1)]
    if own[1].count:
        halves = [(one.covariance, two.covariance) for one, two in zip(own, cross, strict=True)]
        part = best_ridge(weight, halves, columns)
    known, both = Inputs(paired=True, moments=own[0] + own[1]), cross[0] + cross[1]
    found = solved(weight, known.moments, both.covariance, columns, part)
    return known, found, both.means[0]
