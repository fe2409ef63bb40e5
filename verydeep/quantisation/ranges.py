"""Choose each value's range by what rounding it does to a later layer's output, measured on photos.

Where a range ends is a trade: beyond its end numbers are cut off, below it they are rounded more coarsely
the further away the end is. For each candidate the layers that follow are computed once more on the
rounded value, inside one graph, and the end that changes their output least is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graphs.network import Graph

if TYPE_CHECKING:
    from ..modelfile import Activation


def error_names(place: str, candidates: Sequence[Activation]) -> list[str]:
    """The outputs that `probed` adds for a place."""
    return [f"{place}_error_{number}" for number in range(len(candidates))]


def probed(graph: Graph, place: str, until: str, candidates: Sequence[Activation]) -> Graph:
    """The float graph with the squared change of `until` for each way of rounding `place` as its outputs.

    The outputs are those of `error_names`, (batch,) float32 each: the sum over one image of the squared
    difference between what `until` is with `place` rounded and what it is without.
    """
    old = graph.model.graph
    nodes = _between(old.node, place, until)
    new = list(old.node)
    constants = []
    outputs = []
    for number, (how, output) in enumerate(
        zip(candidates, error_names(place, candidates), strict=True)
    ):

        def renamed(name: str, number: int = number) -> str:
            return f"{name}@{place}@{number}"

        scale, zero = renamed("scale"), renamed("zero")
        constants += [
            numpy_helper.from_array(np.array(how.scale, np.float32), scale),
            numpy_helper.from_array(np.array(how.zero_point, np.uint8), zero),
        ]
        new.append(helper.make_node("QuantizeLinear", [place, scale, zero], [renamed("q")]))
        new.append(
            helper.make_node("DequantizeLinear", [renamed("q"), scale, zero], [renamed(place)])
        )
        inside = {place, *(node.output[0] for node in nodes)}
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = renamed(node.name)
            copy.input[:] = [renamed(name) if name in inside else name for name in node.input]
            copy.output[:] = [renamed(name) for name in node.output]
            new.append(copy)
        new.append(helper.make_node("Sub", [renamed(until), until], [renamed("change")]))
        new.append(
            helper.make_node("Flatten", [renamed("change")], [renamed("change_flat")], axis=1)
        )
        new.append(
            helper.make_node(
                "ReduceSumSquare", [renamed("change_flat")], [output], axes=[1], keepdims=0
            )
        )
        outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch"]))
    made = helper.make_graph(new, old.name, old.input, outputs, [*old.initializer, *constants])
    model = helper.make_model(
        made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version
    )
    return Graph(model, graph.weights)


def _between(nodes: Sequence[onnx.NodeProto], start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes on the ways from one value to another, in order."""
    reached, after = {start}, []
    for node in nodes:
        if reached & set(node.input):
            after.append(node)
            reached.update(node.output)
    needed, between = {end}, []
    for node in reversed(after):
        if needed & set(node.output):
            between.append(node)
            needed.update(node.input)
    return between[::-1]
