"""What engines race on: a graph without its large FC layers, since preparing those takes the longest.

VGG-16's FC layers are 495 of its 553 MB, and one multiplication in a hundred. What is left is all of the
convolutions, and whatever else does not wait for such a layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from . import Source

LARGE_BYTES = 32 << 20  # of one FC layer's weights


def lighter(source: Source) -> tuple[Source, Source]:
    """Without all that needs a large FC layer; and whole, with outputs more: what such layers read.

    The lighter graph has those outputs, too. Where there is no large FC layer, both are the source itself.
    """
    graph, weights = source.graph.model.graph, source.graph.weights
    lost: set[str] = set()  # values that need a large FC layer
    read: list[str] = []  # by the first of them
    for node in graph.node:
        large = node.op_type == "Gemm" and node.input[1] in weights
        if lost.intersection(node.input):
            lost.update(node.output)
        elif large and weights[node.input[1]].nbytes >= LARGE_BYTES:
            lost.update(node.output)
            read.append(node.input[0])
    if not lost:
        return source, source

    def part(*without: str) -> Source:
        from .writer import Writer  # onnx takes a while to load

        writer = Writer(source.graph)
        for name in read:
            if name not in source.outputs:
                writer.output(name, ["batch", f"{name}_features"])
        writer.outputs[:0] = [output for output in graph.output if output.name not in without]
        names = tuple(output.name for output in writer.outputs)
        needed = set(names)
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                writer.copy(node)
        writer.nodes.reverse()
        facts = "\0".join([source.key, *names, Path(__file__).read_text(encoding="utf-8")])
        key = hashlib.sha256(facts.encode()).hexdigest
        return replace(source, outputs=names, build=writer.graph, find_key=key)

    return part(*lost), part()


def layers_of(source: Source) -> str:
    """A digest of what takes an engine its time: convolutions, pools between them, large FC layers.

    Graphs that differ in their weights' numbers, in their classes, or in how pixels are normalised have the
    same.
    """
    graph, weights = source.graph.model.graph, source.graph.weights
    layers: list[str] = []
    pools: list[str] = []  # since the last convolution: after it they are the head's
    for node in graph.node:
        held = [weights[name] for name in node.input if name in weights]
        kernels = [one.shape for one in held if one.ndim == 4 or one.nbytes >= LARGE_BYTES]
        moves = sorted((a.name, list(a.ints)) for a in node.attribute if a.ints)
        if kernels:
            layers += [*pools, f"{node.op_type} {kernels} {moves}"]
            pools = []
        elif node.op_type in ("MaxPool", "AveragePool"):
            pools.append(f"{node.op_type} {moves}")
    return hashlib.sha256("\n".join(layers).encode()).hexdigest()[:32]
