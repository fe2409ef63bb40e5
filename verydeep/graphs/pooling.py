"""Pool a graph's maps to one number a channel, inside the graph, so that an engine hands back no megabytes.

avg   the mean over all positions
max   the largest
gem   the generalised mean with p = 3, between the two (Radenovic et al., arXiv:1711.02512, section 3.2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from .writer import Graph

Pooling = Literal["avg", "max", "gem"]
GEM_POWER = 3  # the paper's, with which others' descriptors are made


def pooled(graph: Graph, pool: str) -> Graph:
    """The same graph with its outputs that are maps pooled to (batch, channels) float32.

    Outputs keep their names; those that are no maps (FC layers, scores) stay as they are. "gem" takes
    what is below zero as zero: the paper pools what follows a ReLU.
    """
    from .writer import Writer

    channels = {
        output.name: output.type.tensor_type.shape.dim[1].dim_value
        for output in graph.model.graph.output
        if len(output.type.tensor_type.shape.dim) == 4
    }
    writer = Writer(graph)
    # the outputs bear the layers' names, so the maps give theirs up
    maps = {name: f"{name}_map" for name in channels}
    for node in graph.model.graph.node:
        writer.copy(node, maps)
    for output in graph.model.graph.output:
        name = output.name
        if name not in channels:
            writer.outputs.append(output)
            continue
        if pool in ("max", "avg"):
            kind = "GlobalMaxPool" if pool == "max" else "GlobalAveragePool"
            mean = writer.node(kind, [maps[name]], f"{name}_pooled")
        else:
            above = writer.node("Relu", [maps[name]], f"{name}_above")
            power = above
            for _ in range(GEM_POWER - 1):
                power = writer.node("Mul", [power, above], f"{power}_times")
            mean = writer.node("GlobalAveragePool", [power], f"{name}_mean")
            root = writer.constant("gem_root", np.array([1 / GEM_POWER], np.float32))
            mean = writer.node("Pow", [mean, root], f"{name}_pooled")
        writer.node("Flatten", [mean], name, axis=1)
        writer.output(name, ["batch", channels[name]])
    return writer.graph()
