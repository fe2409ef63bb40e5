"""What a layer reads on photos, and the weights that do best there once layers before it have changed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..quantisation.rounding import Moments
from .rounding import Curved, curved_by

RIDGE = 2e-3  # of the mean moment: how strongly fitted weights are drawn to what they were

Array = np.ndarray


class Inputs:
    """What a layer reads: means over places on photos, of (places, inputs) float32 at a time.

    paired: whether moments of each input with each other are kept, and not its own square alone.
    """

    def __init__(self, paired: bool) -> None:
        self.paired = paired
        self._moments, self._count = Moments(), 0
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


def ridge(moments: Array) -> float:
    """What is added to each input's own moment; above 0 even where nothing answers on any photo."""
    return RIDGE * float(np.diagonal(moments).mean()) + 1e-12


def solved(weight: Array, own: Array, cross: Array, columns: Array | slice) -> Array:
    """(outputs, columns): what answers with these columns alone as the whole weight did, by least squares.

    weight: (outputs, inputs). own: mean of x x' of what is read now, (columns, columns). cross: mean of the
    old answers times it, (outputs, columns). Both about their means.
    """
    drawn = ridge(own)
    right = cross + drawn * weight[:, columns]
    return np.asarray(np.linalg.solve(own + drawn * np.eye(len(own)), right.T).T)


def drifted(
    weight: Array, read: Iterable[tuple[Array, Array]], columns: Array | slice = slice(None)
) -> tuple[Inputs, Array, Array]:
    """What a layer reads by now, the weights that do best there, and what it answered before in the mean.

    weight: (outputs, inputs) float64. read: what it read before, (places, inputs) float32, and what it
    reads now, (places, columns), for each batch. columns: of its inputs, those that are left.
    """
    known, cross, rows = Inputs(paired=True), Moments(), weight.T.astype(np.float32)
    for before, now in read:
        known.add([now])
        cross.add(before @ rows, now)
    return known, solved(weight, known.moments, cross.covariance, columns), cross.means[0]
