"""Write ONNX: a graph node after node, anew or out of another one; and the file of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # the newest that every engine we feed has read for years
IR_VERSION = 8  # goes with OPSET

INLINE_BYTES = 1024  # constants below this live in the model itself
ALIGNMENT = 4096  # of weights beside a file, so that they can be mapped into memory
PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # of one message, less what is no weight

Array = np.ndarray


@dataclass(frozen=True)
class Graph:
    """An ONNX model whose weights stand beside it, so that 528 MB are neither copied nor serialised.

    model: names its weights as external data. weights: those arrays, by the same names; they may be views
    of a memory-mapped model file.
    """

    model: onnx.ModelProto
    weights: dict[str, Array]

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(value.nbytes for value in self.weights.values())

    def inline(self) -> onnx.ModelProto:
        """The same model with its weights inside, for whoever needs one self-contained file."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                value = np.ascontiguousarray(self.weights[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return model


class Writer:
    """Collects nodes, constants and outputs; a constant of the same name is written once.

    base: a graph whose name, input and constants are at hand; its nodes are taken over by `copy`, and its
    outputs stay where no others are named. What no node reads in the end is left out.
    """

    def __init__(self, base: Graph | None = None, *, name: str = "") -> None:
        old = onnx.GraphProto(name=name) if base is None else base.model.graph
        self.name = old.name
        self.inputs = list(old.input)
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self._old_outputs = list(old.output)
        self._weights = {} if base is None else dict(base.weights)
        self._constants: dict[str, TensorProto] = {}
        for tensor in old.initializer:
            self._constants[tensor.name] = tensor

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def copy(self, node: onnx.NodeProto, names: Mapping[str, str] | None = None) -> None:
        """The same node; what `names` has is called otherwise."""
        names = names or {}
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = names.get(node.name, node.name)
        new.input[:] = [names.get(name, name) for name in node.input]
        new.output[:] = [names.get(name, name) for name in node.output]
        self.nodes.append(new)

    def split(self, value: str, parts: int, axis: int, name: str) -> list[str]:
        """Equal parts along the axis; one part is the value itself."""
        if parts == 1:
            return [value]
        outputs = [f"{name}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], outputs, name=name, axis=axis))
        return outputs

    def constant(self, name: str, value: Array) -> str:
        """Small ones live in the model, others stand beside it."""
        if name in self._constants:
            return name
        if value.nbytes < INLINE_BYTES:
            self._constants[name] = numpy_helper.from_array(value, name)
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self._constants[name] = TensorProto(name=name, data_type=kind, dims=value.shape)
            _place(self._constants[name], "weights", 0, value.nbytes)
            self._weights[name] = value
        return name

    def value(self, name: str) -> Array:
        """Of a constant."""
        if name in self._weights:
            return self._weights[name]
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def input(self, name: str, kind: int, shape: Sequence[str | int]) -> None:
        """The graph's only one, in place of the base's. kind: of TensorProto."""
        self.inputs = [helper.make_tensor_value_info(name, kind, shape)]

    def output(self, name: str, shape: Sequence[str | int]) -> None:
        """A float32 value of the graph that is an output, too."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def graph(self) -> Graph:
        constants, weights = dict(self._constants), dict(self._weights)
        read: set[str] = set()
        for node in self.nodes:
            read.update(node.input)
        for node in self.nodes:  # a value of a constant's name has come into its place
            read.difference_update(node.output)
        for name in self._constants.keys() - read:
            del constants[name]
            weights.pop(name, None)
        outputs = self.outputs or self._old_outputs
        body = helper.make_graph(
            self.nodes, self.name, self.inputs, outputs, list(constants.values())
        )
        model = helper.make_model(
            body,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="verydeep",
        )
        return Graph(model, weights)


def write_onnx(
    graph: Graph, path: Path, *, beside: bool = True, facts: Mapping[str, str] | None = None
) -> None:
    """The graph as an ONNX file.

    beside: whether the weights stand in `path` with ".data" added, little-endian, each page-aligned; from
    2 GB on they do in any case. facts: what the file says about itself, its `metadata_props`.
    """
    if beside or graph.size_bytes > PROTOBUF_LIMIT_BYTES:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        data = path.with_name(path.name + ".data")
        with open(data, "wb") as file:
            for tensor in model.graph.initializer:
                if tensor.name in graph.weights:
                    array = np.ascontiguousarray(graph.weights[tensor.name])
                    file.write(b"\0" * (-file.tell() % ALIGNMENT))
                    _place(tensor, data.name, file.tell(), array.nbytes)
                    file.write(array.data)
    else:
        model = graph.inline()
    for key, text in (facts or {}).items():
        model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


def _place(tensor: TensorProto, location: str, offset: int, size_bytes: int) -> None:
    """Where a tensor's values are, which are not in the model."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", size_bytes)):
        tensor.external_data.add(key=key, value=str(value))
