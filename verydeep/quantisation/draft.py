"""A model on its way to int8: its tensors and ranges as they stand, and what its graphs give on photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engines import Signature, Source, open_engine
from ..graphs import network as float_graph
from ..graphs.int8 import rounded, weight_scales
from ..graphs.writer import Graph
from ..modelfile import Activation
from ..modelfile.reading import dequantised
from ..nets import Network
from ..preprocess import Preprocess

BATCH = 8  # images in one run

Array = np.ndarray


@dataclass
class Draft:
    """stored: as a model file holds them, floats or `.q` with `.scale`. activations: rounded so far."""

    network: Network
    preprocess: Preprocess
    stored: dict[str, Array]
    activations: dict[str, Activation] = field(default_factory=dict)
    threads: int | None = None

    def graph(
        self, taps: tuple[str, ...] = (), *, scores: bool = False, int8: bool = True
    ) -> Graph:
        """The graph as it stands, for float32 pixels; without `int8`, nothing in it is rounded."""
        tensors = {key: dequantised(self.stored, key) for key in self.network.tensors}
        built = float_graph.build(
            self.network, tensors, self.preprocess, taps=taps, scores=scores, pixels="float32"
        )
        if not int8:
            return built
        return rounded(built, self.activations, weight_scales(self.network, self.stored))

    def run(self, graph: Graph, images: Sequence[Array]) -> Iterator[dict[str, Array]]:
        """The outputs of each batch; images: as `batches`."""
        outputs = tuple(output.name for output in graph.model.graph.output)
        # said here, since a graph with branches is not what it would be read from
        signature = Signature("float32", self.network.in_channels, 1, outputs)
        source = Source(graph, signature=signature)
        engine = open_engine("onnxruntime", source, precision="int8", threads=self.threads)
        for batch in batches(images):
            yield engine.run(batch)

    def scores(self, images: Sequence[Array], *, int8: bool = True) -> Array:
        """(images, classes)."""
        outputs = self.run(self.graph(scores=True, int8=int8), images)
        return np.concatenate([batch["scores"] for batch in outputs])

    def means(
        self, names: tuple[str, ...], images: Sequence[Array], *, int8: bool = True
    ) -> dict[str, tuple[Array, Array]]:
        """Each layer's mean over images and positions, and the share of it above 0, by its name.

        Both are (outputs,) float64.
        """
        sums: dict[str, Array] = {name: np.zeros(()) for name in names}
        above: dict[str, Array] = {name: np.zeros(()) for name in names}
        count = dict.fromkeys(names, 0)
        for outputs in self.run(self.graph(names, int8=int8), images):
            for name in names:
                value = outputs[name]
                axes = (0, *range(2, value.ndim))
                sums[name] = sums[name] + value.sum(axes, dtype=np.float64)
                above[name] = above[name] + (value > 0).sum(axes)
                count[name] += value.size // value.shape[1]
        return {name: (sums[name] / count[name], above[name] / count[name]) for name in names}


def batches(images: Sequence[Array]) -> Iterator[Array]:
    """(batch, height, width, channels) float32; neighbours of one size share a batch.

    images: (height, width, channels) each, uint8 or float32 from 0 to 255.
    """
    start = 0
    for end in range(1, len(images) + 1):
        full = end - start == BATCH
        if end == len(images) or full or images[end].shape != images[start].shape:
            yield np.stack(images[start:end]).astype(np.float32)
            start = end
