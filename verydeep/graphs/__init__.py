"""Table and weights to ONNX. Here a graph before it is built: what it will look like, its key in caches.

Building a graph reads and dequantises every weight. An engine that finds its prepared file in the cache
needs none of that, so it is handed a `Source` and builds the graph only where it must.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from .. import __version__
from ..errors import EngineError

if TYPE_CHECKING:
    from ..modelfile import ModelFile
    from .writer import Graph

_MOVES = ("strides", "kernel_shape", "pads")
POOLINGS = ("avg", "max", "gem")  # see `verydeep.graphs.pooling`
_PACKAGE = Path(__file__).parent.parent
_BUILDERS = ("nets.py", "graphs/network.py", "graphs/writer.py")  # of every graph


@dataclass(frozen=True)
class Source:
    """A graph before it is built: what goes into it, what comes out, and its key.

    dtype: of the pixels, "uint8" or "float32". channels: of the pixels. minimum_size: pixels a side below
    which a pool has nothing left to read. outputs: names, in order. build: makes the graph. find_key: what
    names it in caches, at least 128 bits as hexadecimal digits, for which a whole file may have to be read;
    equal keys must mean equal graphs. maps: of the first layer, 0 where nobody knows.
    """

    dtype: str
    channels: int
    minimum_size: int
    outputs: tuple[str, ...]
    build: Callable[[], Graph]
    find_key: Callable[[], str]
    maps: int = 0

    @cached_property
    def graph(self) -> Graph:
        return self.build()

    @cached_property
    def key(self) -> str:
        return self.find_key()

    @classmethod
    def of(cls, graph: Graph) -> Source:
        """A graph that was built; its weights are read where its key is asked for."""
        if not graph.model.graph.input:
            raise EngineError("this is not a graph that verydeep built: it has no input for pixels")
        pixels = graph.model.graph.input[0].type.tensor_type
        size = 1
        for node in reversed(graph.model.graph.node):
            moves = {a.name: list(a.ints) for a in node.attribute if a.name in _MOVES}
            if node.op_type in ("Conv", "MaxPool", "AveragePool") and "strides" in moves:
                step, kernel, pads = moves["strides"][0], moves["kernel_shape"][0], moves["pads"][0]
                size = max(1, (size - 1) * step + kernel - 2 * pads)
        return cls(
            dtype={2: "uint8"}.get(pixels.elem_type, "float32"),  # 2 is TensorProto.UINT8
            channels=pixels.shape.dim[3].dim_value,
            minimum_size=size,
            outputs=tuple(output.name for output in graph.model.graph.output),
            build=lambda: graph,
            find_key=partial(_key, graph),
        )


def source_of(
    model: ModelFile,
    pixels: Literal["uint8", "float32"],
    taps: tuple[str, ...] = (),
    scores: bool = True,
    *,
    pool: str | None = None,
    int8: bool = False,
) -> Source:
    """A model file's graph, cut after the last layer asked for, built when an engine wants it.

    taps: paper names, each an output of that name. scores: whether the head's logits are an output, last,
    "scores". pool: what `verydeep.graphs.pooling` does to the taps that are maps; None leaves them whole.
    int8: the graph that computes in integers, of a file that `verydeep quantize` made.
    Its key is the file's SHA-256 with what else the graph depends on, the code that builds it included.
    A file that was hashed before and has not changed since is not read again.
    Raises LayerError for a tap that the network does not have, NetworkError where nothing is asked for,
    or scores of a trunk without a head.
    """
    network = model.record.network
    taps = tuple(dict.fromkeys(taps))
    cut = network.cut(taps, scores=scores)

    def build() -> Graph:
        from . import network as graph

        if int8:
            from . import int8 as qdq

            built = qdq.build(model, taps=taps, scores=scores, pixels=pixels)
        else:
            built = graph.build(
                network, model.tensors(cut.tensors), model.record.preprocess,
                taps=taps, scores=scores, pixels=pixels, several=bool(model.record.thresholds),
            )  # fmt: skip
        if pool is None:
            return built
        from .pooling import pooled

        return pooled(built, pool)

    code = [*(["graphs/pooling.py"] if pool else []), *(["graphs/int8.py"] if int8 else [])]
    outputs = (*taps, *(("scores",) if scores else ()))
    facts = [pixels, *outputs, f"pool {pool}"]
    return Source(
        pixels, network.in_channels, cut.minimum_size, outputs, build,
        partial(graph_key, model, facts, code), maps=cut.trunk[0].outputs,
    )  # fmt: skip


def graph_key(model: ModelFile, facts: Sequence[str], code: Sequence[str]) -> str:
    """The key of a graph made of that file, whose bytes may have to be hashed for it.

    facts: what else the graph depends on. code: the modules that build it beside those of every graph, by
    their path in the package.
    """
    texts = [program_text(name) for name in (*_BUILDERS, *code)]
    return hashlib.sha256("\0".join([model.sha256, *facts, *texts]).encode()).hexdigest()


def program_text(name: str) -> str:
    """What that module does: its source, or in a program that was frozen without these the version."""
    try:
        return (_PACKAGE / name).read_text(encoding="utf-8")
    except OSError:
        return __version__


def _key(graph: Graph) -> str:
    digest = hashlib.sha256(graph.model.SerializeToString(deterministic=True))
    for name, array in sorted(graph.weights.items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
