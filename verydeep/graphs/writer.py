"""Write a graph as an ONNX file with its weights beside it, as other programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .network import Graph

ALIGNMENT = 4096  # so that the weights can be mapped into memory


def write_onnx(graph: Graph, path: Path) -> None:
    """`path`, and `path` with ".data" added: the weights, float32, little-endian, each page-aligned."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    data = path.with_name(path.name + ".data")
    with open(data, "wb") as file:
        for tensor in model.graph.initializer:
            if tensor.name not in graph.weights:
                continue
            array = np.ascontiguousarray(graph.weights[tensor.name])
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
            del tensor.external_data[:]
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.data)
    path.write_bytes(model.SerializeToString())
