"""A graph before it is built: what it will look like, and the digest by which caches know it.

Building a graph reads and dequantises every weight. An engine that finds its prepared file in the cache
needs none of that, so it is handed a `Source` and builds the graph only where it must.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineError

if TYPE_CHECKING:
    from ..graphs.network import Graph

_MOVES = ("strides", "kernel_shape", "pads")


@dataclass(frozen=True)
class Signature:
    """What goes into a graph and what comes out.

    dtype: of the pixels, "uint8" or "float32". channels: of the pixels. minimum_size: pixels a side below
    which a pool has nothing left to read. outputs: names, in order.
    """

    dtype: str
    channels: int
    minimum_size: int
    outputs: tuple[str, ...]


class Source:
    """A graph, or the function that builds it.

    key: names the graph in caches: equal keys must mean equal graphs; or the function that finds it.
    Without one, the graph is built and its weights are read to make one.
    signature: without one, it is read from the graph.
    """

    def __init__(
        self,
        graph: Graph | Callable[[], Graph],
        key: str | Callable[[], str] | None = None,
        signature: Signature | None = None,
    ) -> None:
        self._made = graph
        self._key = key
        self._signature = signature

    @property
    def has_key(self) -> bool:
        """Whether the key is known without reading the weights."""
        return isinstance(self._key, str) or "key" in self.__dict__

    @cached_property
    def graph(self) -> Graph:
        return self._made() if callable(self._made) else self._made

    @cached_property
    def key(self) -> str:
        """At least 128 bits, as hexadecimal digits."""
        if self._key is not None:
            return self._key() if callable(self._key) else self._key
        digest = hashlib.sha256(self.graph.model.SerializeToString(deterministic=True))
        for name, array in sorted(self.graph.weights.items()):
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def signature(self) -> Signature:
        return self._signature or _signature(self.graph)


def _signature(graph: Graph) -> Signature:
    if not graph.model.graph.input:
        raise EngineError("this is not a graph that verydeep built: it has no input for pixels")
    pixels = graph.model.graph.input[0].type.tensor_type
    size = 1
    for node in reversed(graph.model.graph.node):
        moves = {a.name: list(a.ints) for a in node.attribute if a.name in _MOVES}
        if node.op_type in ("Conv", "MaxPool", "AveragePool") and "strides" in moves:
            step, kernel, pads = moves["strides"][0], moves["kernel_shape"][0], moves["pads"][0]
            size = max(1, (size - 1) * step + kernel - 2 * pads)
    return Signature(
        dtype={2: "uint8"}.get(pixels.elem_type, "float32"),  # 2 is TensorProto.UINT8
        channels=pixels.shape.dim[3].dim_value,
        minimum_size=size,
        outputs=tuple(output.name for output in graph.model.graph.output),
    )
