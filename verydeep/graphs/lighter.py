"""What engines race on: a graph without its large FC layers, since preparing those takes the longest.

VGG-16's FC layers are 495 of its 553 MB, and one multiplication in a hundred. What is left is all of the
convolutions, and whatever else does not wait for such a layer.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from . import Source, program_text

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
        facts = "\0".join([source.key, *names, program_text("graphs/lighter.py")])
        key = hashlib.sha256(facts.encode()).hexdigest
        return replace(source, outputs=names, build=writer.graph, find_key=key)

    return part(*lost), part()


def layers_of(source: Source) -> str:
    """A digest of what takes an engine its time: all operations, with the sizes of their weights.

    Graphs that differ in their weights' numbers, in their classes, or in how pixels are normalised have the
    same; whole numbers that are no weights, as shapes and groups are, count.
    """
    graph, weights = source.graph.model.graph, source.graph.weights
    shapes = {name: array.shape for name, array in weights.items()}
    shapes |= {one.name: tuple(one.dims) for one in graph.initializer if one.name not in weights}
    whole = {
        one.name: (*one.int64_data, one.raw_data)
        for one in graph.initializer
        if one.name not in weights
        and one.data_type == 7  # TensorProto.INT64; INT32 are int8's biases
    }
    facts: list[object] = [source.dtype, source.channels, source.outputs]
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]  # weights of an int8 graph
        constants: list[object] = [whole.get(name, shapes.get(name)) for name in node.input]
        if node.op_type == "Gemm" and 4 * math.prod(shape := shapes[node.input[1]]) < LARGE_BYTES:
            constants = [shape[1:]]  # of the head: how many classes there are costs little
        attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
        facts.append((node.op_type, constants, attributes))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
