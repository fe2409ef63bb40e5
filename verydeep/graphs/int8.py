"""Write a network's int8 graph: the float graph, with its values rounded to 8 bits where a record says so.

The form is ONNX's QDQ: a QuantizeLinear and a DequantizeLinear stand where a value is rounded, and an
engine that knows the form computes what lies between two of them in integers. One graph serves ONNX
Runtime and OpenVINO, and an engine that does not know the form still computes the same numbers.

A convolution or FC layer computes in integers where its weights are stored in 8 bits and the value that
it reads is rounded. Values are uint8 with one scale and zero point each, weights int8 with a scale for
each output channel and no zero point, biases int32 on the product of both scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import nets
from ..errors import ModelFileError
from . import network as float_graph
from .network import INLINE_BYTES, Graph

if TYPE_CHECKING:
    from ..modelfile import Activation, ModelFile
    from ..nets import Network
    from ..preprocess import Preprocess

Array = np.ndarray

# They hand on some of the values they are given, so their output needs no scale of its own, and
# rounding again changes nothing.
_SELECTING = ("MaxPool", "Flatten")

_LARGEST = 2.0**31 - 1  # of an int32
_TINY = float(np.finfo(np.float32).tiny)


def build(
    model: ModelFile,
    *,
    taps: tuple[str, ...] = (),
    scores: bool = True,
    pixels: Literal["uint8", "float32"] = "uint8",
    preprocess: Preprocess | None = None,
) -> Graph:
    """The int8 graph of a model file that `verydeep quantize` made; inputs and outputs as `graph.build`.

    preprocess: in place of the record's own. ModelFileError where the file was not quantised.
    """
    record = model.record
    require_quantised(model)
    tensors = model.tensors()
    built = float_graph.build(
        record.network,
        tensors,
        preprocess or record.preprocess,
        taps=taps,
        scores=scores,
        pixels=pixels,
    )
    scales = weight_scales(record.network, model.stored)
    return rounded(built, record.activations, scales)


def weight_scales(network: Network, stored: Mapping[str, Array]) -> dict[str, Array]:
    """Scales of the layers whose weights are int8, by paper name: (outputs,) float64, above 0.

    stored: as in a model file. Where a batch norm follows, its factor is multiplied in, since the graph's
    weights have it; a factor of 0 leaves weights of 0, for which any scale will do.
    """
    found = {}
    for layer in network.layers:
        q = stored.get(f"{layer.key}.weight.q") if layer.key else None
        if q is None or q.dtype != np.int8:
            continue
        scale = np.asarray(stored[f"{layer.key}.weight.scale"], np.float64).reshape(-1)
        if layer.norm_key:
            gamma = np.asarray(stored[f"{layer.norm_key}.weight"], np.float64)
            variance = np.asarray(stored[f"{layer.norm_key}.running_var"], np.float64)
            scale = scale * np.abs(gamma / np.sqrt(variance + nets.BATCH_NORM_EPSILON))
        found[layer.name] = np.where(scale > 0, scale, 1.0)
    return found


def require_quantised(model: ModelFile) -> None:
    """ModelFileError where the file says nothing of how values are rounded."""
    if not model.record.activations:
        raise ModelFileError(
            f"{model.path}: it was not quantised, and int8 needs a file that was; "
            "`verydeep quantize` makes one"
        )


def rounded(
    graph: Graph, activations: Mapping[str, Activation], scales: Mapping[str, Array]
) -> Graph:
    """A float graph of `graph.build` with values and weights rounded; its outputs keep their names.

    activations: by the name of the value, as in a record. scales: of layers with 8-bit weights, (outputs,),
    by paper name. A layer without, or whose input is not among the activations, stays in float.
    """
    writer = _Writer(graph)
    eight: dict[str, Activation] = {}  # values that are rounded, and how
    for node in graph.model.graph.node:
        name = node.output[0]
        new = onnx.NodeProto()
        new.CopyFrom(node)
        source = eight.get(node.input[0])
        if node.op_type in ("Conv", "Gemm") and name in scales and source is not None:
            new.input[1:] = writer.integers(node, source, np.asarray(scales[name], np.float64))
        own = activations.get(name)
        if own is None and node.op_type in _SELECTING:
            own = source
        if own is None:
            writer.nodes.append(new)
        else:
            eight[name] = own
            writer.rounding(new, own)
    return writer.graph()


class _Writer:
    """Collects the new nodes and constants; the old constants that are still read go along."""

    def __init__(self, old: Graph) -> None:
        self.old = old
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}

    def rounding(self, node: onnx.NodeProto, how: Activation) -> None:
        """The node, then its output's rounding, whose result takes the output's name."""
        name = node.output[0]
        parameters = self._parameters(how)
        node.output[0] = f"{name}_float"
        self.nodes += [
            node,
            helper.make_node(
                "QuantizeLinear", [f"{name}_float", *parameters], [f"{name}_q"], f"{name}_q"
            ),
            helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [name], name),
        ]
        node.name = f"{name}_float"

    def integers(self, node: onnx.NodeProto, source: Activation, scale: Array) -> list[str]:
        """The layer's weights as int8 and bias as int32, each with its DequantizeLinear: their names."""
        weight, bias = (self._old(name) for name in node.input[1:3])
        name = node.output[0]
        shape = (-1, *(1 for _ in weight.shape[1:]))
        # engines take the bias to be on this product, whatever its own scale says
        product = np.maximum(scale * np.float64(np.float32(source.scale)), _TINY)
        q = np.clip(np.rint(weight / scale.reshape(shape)), -128, 127).astype(np.int8)
        big = np.clip(np.rint(bias / product), -_LARGEST, _LARGEST).astype(np.int32)
        return [
            self._dequantised(f"{name}.weight", q, scale.astype(np.float32)),
            self._dequantised(f"{name}.bias", big, product.astype(np.float32)),
        ]

    def graph(self) -> Graph:
        old = self.old.model
        read = {name for node in self.nodes for name in node.input}
        read -= {node.output[0] for node in self.nodes}
        initializers = [tensor for tensor in old.graph.initializer if tensor.name in read]
        weights = {name: array for name, array in self.old.weights.items() if name in read}
        for name, array in self._constants.items():
            if array.nbytes < INLINE_BYTES:
                initializers.append(numpy_helper.from_array(array, name))
            else:
                weights[name] = array
                initializers.append(_external(name, array))
        graph = helper.make_graph(
            self.nodes, old.graph.name, old.graph.input, old.graph.output, initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=old.opset_import,
            ir_version=old.ir_version,
            producer_name=old.producer_name,
        )
        return Graph(model, weights)

    def _parameters(self, how: Activation) -> list[str]:
        """Names of the scale and the zero point; the same ones for the same values."""
        scale = np.float32(how.scale)
        names = [f"scale_{scale!s}", f"zero_{how.zero_point}"]
        self._constants[names[0]] = np.array(scale)
        self._constants[names[1]] = np.array(how.zero_point, np.uint8)
        return names

    def _dequantised(self, name: str, q: Array, scale: Array) -> str:
        # ONNX Runtime computes FC layers in integers only where the zeros are written out
        parts = {"q": q, "scale": scale, "zero": np.zeros(len(scale), q.dtype)}
        inputs = [f"{name}_{part}" for part in parts]
        self._constants.update(zip(inputs, parts.values(), strict=True))
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name, axis=0))
        return name

    def _old(self, name: str) -> Array:
        if name in self.old.weights:
            return self.old.weights[name]
        tensor = next(t for t in self.old.model.graph.initializer if t.name == name)
        return np.asarray(numpy_helper.to_array(tensor))


def _external(name: str, value: Array) -> onnx.TensorProto:
    """A tensor's place in the model, its values elsewhere."""
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "weights"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor
