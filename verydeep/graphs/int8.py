"""Write a network's int8 graph: the float graph, with its values rounded to 8 bits where a record says so.

The form is ONNX's QDQ: a QuantizeLinear and a DequantizeLinear stand where a value is rounded, and an
engine that knows the form computes what lies between two of them in integers. One graph serves ONNX
Runtime and OpenVINO, and an engine that does not know the form still computes the same numbers.

A convolution or FC layer computes in integers where its weights are stored in 8 bits and the value that
it reads is rounded. Values are uint8 with one scale and zero point each, weights int8 with a scale for
each output channel and no zero point, biases int32 on the product of both scales.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx

from ..errors import LayerError, ModelFileError, nearest
from ..modelfile import Activation
from . import network as float_graph
from .writer import Graph, Writer

if TYPE_CHECKING:
    from ..modelfile import ModelFile
    from ..nets import Network

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
) -> Graph:
    """The int8 graph of a model file that `verydeep quantize` made; inputs and outputs as `graph.build`.

    ModelFileError where the file was not quantised.
    """
    require_quantised(model)
    net, record = model.record.network, model.record
    built = float_graph.build(
        net, model.tensors(), record.preprocess, taps=taps, scores=scores, pixels=pixels,
        several=bool(record.thresholds),
    )  # fmt: skip
    return rounded(built, record.activations, weight_scales(net, model.stored))


def weight_scales(network: Network, stored: Mapping[str, Array]) -> dict[str, Array]:
    """Scales of the layers whose weights are int8, by paper name: (outputs,) float64, above 0.

    stored: as in a model file. Where a batch norm follows, its factor is multiplied in, since the graph's
    weights have it; a factor of 0 leaves weights of 0, for which any scale will do.
    """
    scales = {}
    for layer in network.layers:
        q = stored.get(f"{layer.key}.weight.q") if layer.key else None
        if q is None or q.dtype != np.int8:
            continue
        scale = np.asarray(stored[f"{layer.key}.weight.scale"], np.float64).reshape(-1)
        if layer.norm_key:
            scale = scale * np.abs(float_graph.norm_factor(layer, stored))
        scales[layer.name] = np.where(scale > 0, scale, 1.0)
    return scales


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
    writer = Writer(graph)
    eight: dict[str, Activation] = {}  # values that are rounded, and how
    for node in graph.model.graph.node:
        name = node.output[0]
        source = eight.get(node.input[0])
        if node.op_type in ("Conv", "Gemm") and name in scales and source is not None:
            _integers(writer, node, source, np.asarray(scales[name], np.float64))
        how = activations.get(name)
        if how is None and node.op_type in _SELECTING:
            how = source
        if how is None:
            writer.copy(node)
        else:
            eight[name] = how
            writer.copy(node, {name: f"{name}_float"})
            rounding(writer, f"{name}_float", how, f"{name}_q", name)
    return writer.graph()


def large_sum() -> tuple[Graph, Array, float]:
    """A convolution whose sums do not fit into 16 bits, pixels for it, and the sum of all its products."""
    channels, largest, weight = 16, 255, 127
    total = float(largest * weight * channels * 9)
    writer = Writer(name="overflow")
    writer.input("pixels", onnx.TensorProto.UINT8, ["batch", "height", "width", channels])
    writer.node("Transpose", ["pixels"], "nchw", perm=[0, 3, 1, 2])
    writer.node("Cast", ["nchw"], "input", to=onnx.TensorProto.FLOAT)
    weights = np.full((channels, channels, 3, 3), weight, np.float32)
    parts = [
        writer.constant("weight", weights),
        writer.constant("bias", np.zeros(channels, np.float32)),
    ]
    moves = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
    writer.node("Conv", ["input", *parts], "sum", **moves)
    writer.output("sum", ["batch", channels, "sum_height", "sum_width"])
    # the sum is 200 in 8 bits
    how = {"input": Activation(1.0), "sum": Activation(total / 200)}
    graph = rounded(writer.graph(), how, {"sum": np.ones(channels)})
    return graph, np.full((1, 8, 8, channels), largest, np.uint8), total


def rounding(writer: Writer, value: str, how: Activation, middle: str, output: str) -> None:
    """The value rounded to 8 bits, called `output`; `middle` is what the integers are called."""
    scale = np.float32(how.scale)
    parameters = [
        writer.constant(f"scale_{scale!s}", np.array(scale)),
        writer.constant(f"zero_{how.zero_point}", np.array(how.zero_point, np.uint8)),
    ]
    writer.node("QuantizeLinear", [value, *parameters], middle)
    writer.node("DequantizeLinear", [middle, *parameters], output)


def _integers(writer: Writer, node: onnx.NodeProto, source: Activation, scale: Array) -> None:
    """The layer's weights as int8 and bias as int32, each with its DequantizeLinear of the old name."""
    weight, bias = (writer.value(name) for name in node.input[1:3])
    shape = (-1, *(1 for _ in weight.shape[1:]))
    # engines take the bias to be on this product, whatever its own scale says
    product = np.maximum(scale * np.float64(np.float32(source.scale)), _TINY)
    q = np.clip(np.rint(weight / scale.reshape(shape)), -128, 127).astype(np.int8)
    big = np.clip(np.rint(bias / product), -_LARGEST, _LARGEST).astype(np.int32)
    for name, values, steps in zip(node.input[1:3], (q, big), (scale, product), strict=True):
        # ONNX Runtime computes FC layers in integers only where the zeros are written out
        parts = {"q": values, "scale": steps.astype(np.float32)}
        parts["zero"] = np.zeros(len(steps), values.dtype)
        inputs = [writer.constant(f"{name}_{part}", array) for part, array in parts.items()]
        writer.node("DequantizeLinear", inputs, name, axis=0)


@dataclass(frozen=True)
class Plan:
    """What `plan` found, all by paper names and in the order of the table.

    sources: for each convolution and FC layer that computes in integers the value that is rounded for it,
    "input" or a layer; max pools hand a rounded value on, so that it is one from before them. places: all
    values that are rounded. ONNX Runtime computes a layer that a ReLU follows in integers only where what
    comes out is rounded too, so the ReLUs after these layers are among them.
    """

    sources: dict[str, str]
    places: tuple[str, ...]


def plan(network: Network, floats: Collection[str] = ()) -> Plan:
    """All layers with weights in integers, but for `floats`; LayerError where one of them has none."""
    weighted = [layer.name for layer in network.layers if layer.key]
    for name in floats:
        if name not in weighted:
            raise LayerError(
                f"{network.name} has no layer {name!r} with weights{nearest(name, weighted)}"
            )
    sources: dict[str, str] = {}
    rounded = set()
    value, last = "input", ""  # what the next layer reads, and the last layer with weights
    for layer in network.layers:
        if layer.key:
            last = layer.name
            if last not in floats:
                sources[last] = value
                rounded.add(value)
        elif layer.kind == "relu" and last in sources:
            rounded.add(layer.name)
        if not (layer.kind == "pool" and network.pool == "max"):
            value = layer.name
    order = ["input", *(layer.name for layer in network.layers)]
    places = tuple(name for name in order if name in rounded)
    return Plan(sources, places)
