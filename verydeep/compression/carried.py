"""Photos carried through a network from layer to layer, so that each layer is computed once.

A layer is fitted to what it reads once those before it are rounded. To run the network from its input for
each of them takes the square of its depth; here the maps that a layer read are kept for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..quantisation import Draft
from ..quantisation.rounding import part_of

KEPT = (
    2**30
)  # bytes of maps; more of them (of the first layers) are computed again from what is kept

Array = np.ndarray


class Carried:
    """The photos in one draft, as far as they were carried.

    images: (height, width, channels) each, as `Draft.run` takes them.
    """

    def __init__(self, draft: Draft, images: Sequence[Array]) -> None:
        self._draft = draft
        self._values, self._at = images, ""

    def maps(self, name: str) -> Iterator[Array]:
        """A later layer's maps, (batch, channels, height, width) float32 for each batch.

        Layers from the last one asked for on are computed as they stand in the draft by now.
        """
        graph = self._draft.graph((name,), int8=False)
        if self._at:
            graph = part_of(graph, self._at, self._values[0].shape[-1], name)
        kept: list[Array] = []
        size = 0
        for batch in self._draft.run(graph, self._values):
            size += batch[name].nbytes
            if size <= KEPT:
                kept.extend(batch[name].transpose(0, 2, 3, 1))
            else:
                kept.clear()
            yield batch[name]
        if size <= KEPT:
            self._values, self._at = kept, name
