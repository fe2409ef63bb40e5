"""Cut a graph in two where the FC layers begin, so that each part can run where it runs best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = ["FLAT", "fc_bytes", "fc_weights", "split"]

FLAT = "flat"  # what the first FC layer reads, (batch, features)


def fc_weights(graph: Graph) -> dict[str, int]:
    """The FC layers' weights by name, with their size in bytes."""
    names = [node.input[1] for node in graph.model.graph.node if node.op_type == "Gemm"]
    return {name: graph.weights[name].nbytes for name in names if name in graph.weights}


def fc_bytes(graph: Graph) -> int:
    """Size of all FC weights: what one pass reads from memory, whatever the batch."""
    return sum(fc_weights(graph).values())


def split(graph: Graph) -> tuple[Graph, Graph]:
    """The part from the pixels to "flat", which becomes an output, and the part from there on.

    Each keeps the outputs that it computes, and only the weights that it needs. The graph must have an
    FC layer.
    """
    import onnx

    from ..graph import Graph

    nodes = list(graph.model.graph.node)
    cut = next(i for i, node in enumerate(nodes) if FLAT in node.output) + 1
    flat = onnx.helper.make_tensor_value_info(FLAT, onnx.TensorProto.FLOAT, ["batch", "features"])
    parts = []
    for part, inputs, more in (
        (nodes[:cut], graph.model.graph.input, [flat]),
        (nodes[cut:], [flat], []),
    ):
        made = {name for node in part for name in node.output}
        needed = {name for node in part for name in node.input}
        outputs = [output for output in graph.model.graph.output if output.name in made]
        constants = [t for t in graph.model.graph.initializer if t.name in needed]
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        model.ClearField("graph")
        model.graph.CopyFrom(
            onnx.helper.make_graph(part, graph.model.graph.name, inputs, outputs + more, constants)
        )
        parts.append(Graph(model, {n: v for n, v in graph.weights.items() if n in needed}))
    return parts[0], parts[1]
