"""Pool a graph's maps to one number a channel, inside the graph, so that an engine hands back no megabytes.

avg   the mean over all positions
max   the largest
gem   the generalised mean with p = 3, between the two (Radenovic et al., arXiv:1711.02512, section 3.2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import DataError, nearest

if TYPE_CHECKING:
    from .network import Graph

Pooling = Literal["avg", "max", "gem"]
POOLINGS: tuple[str, ...] = ("avg", "max", "gem")
GEM_POWER = 3  # the paper's, with which others' descriptors are made


def check(pool: object) -> None:
    """DataError where `pool` is neither None nor one of POOLINGS."""
    if pool is not None and pool not in POOLINGS:
        raise DataError(f"pool {pool!r} is unknown{nearest(str(pool), [*POOLINGS, 'None'])}")


def pooled(graph: Graph, pool: str) -> Graph:
    """The same graph with its outputs that are maps pooled to (batch, channels) float32.

    Outputs keep their names; those that are no maps (FC layers, scores) stay as they are. "gem" takes
    what is below zero as zero: the paper pools what follows a ReLU.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from .network import Graph as Made

    check(pool)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    body = model.graph

    def node(kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        body.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    if pool == "gem":
        root = np.array([1 / GEM_POWER], np.float32)
        body.initializer.append(numpy_helper.from_array(root, "gem_root"))
    for output in body.output:
        name, shape = output.name, output.type.tensor_type.shape.dim
        if len(shape) != 4:
            continue
        value = f"{name}_map"  # the layer's own value, since the output bears the layer's name
        for other in body.node:
            other.name = value if other.name == name else other.name
            for names in (other.input, other.output):
                names[:] = [value if used == name else used for used in names]
        if pool == "max":
            mean = node("GlobalMaxPool", [value], f"{name}_pooled")
        elif pool == "avg":
            mean = node("GlobalAveragePool", [value], f"{name}_pooled")
        else:
            above = node("Relu", [value], f"{name}_above")
            power = above
            for _ in range(GEM_POWER - 1):
                power = node("Mul", [power, above], f"{power}_times")
            mean = node("GlobalAveragePool", [power], f"{name}_mean")
            mean = node("Pow", [mean, "gem_root"], f"{name}_pooled")
        node("Flatten", [mean], name, axis=1)
        channels = shape[1].dim_value
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels]))
    return Made(model, graph.weights)
