"""Turn the table and its weights into one ONNX graph: pixels in, scores and taps out, no torch.

The graph takes pixels as a person has them, (batch, height, width, channels), and does the rest itself:
channel order, range, mean and std of the `Preprocess` record, batch norm folded into the convolutions,
every layer that is asked for as an output, and nothing after the last one needed. Batch, height and
width stay free for every head: the classic head's adaptive pool is two matrix products with averaging
masks that the graph makes from the shape it meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from onnx import TensorProto

from .. import nets
from ..errors import NetworkError
from ..nets import Layer, Network
from ..preprocess import Preprocess
from .writer import Graph, Writer

Array = np.ndarray


def build(
    network: Network,
    tensors: Mapping[str, Array],
    preprocess: Preprocess,
    *,
    taps: tuple[str, ...] = (),
    scores: bool = True,
    pixels: Literal["uint8", "float32"] = "uint8",
    several: bool = False,
) -> Graph:
    """The network as a graph.

    tensors: float32, by torchvision's keys, shapes as `network.tensors`; those of layers that are cut
    away may be missing. taps: paper names, each an output of that name. scores: whether the head's
    logits are an output, "scores", (batch, classes) float32. several: whether an image may be of several
    classes: then "prob" is the sigmoid of each score, and not their soft-max.

    Input "pixels": (batch, height, width, channels), RGB (or the one channel, or the many, that the
    record normalises); uint8, or float32 on the same 0..255 scale.
    Output of a trunk's tap and of "avgpool": (batch, channels, height, width) float32; of the FC layers,
    their ReLUs and "prob": (batch, features) float32.

    Raises LayerError for a tap that the network does not have, NetworkError where nothing is asked for
    or the record's channels are not the network's.
    """
    net = network.cut(taps, scores=scores)
    if len(preprocess.mean) != network.in_channels:
        raise NetworkError(
            f"{network.name} takes {network.in_channels} channels, "
            f"but its pre-processing has {len(preprocess.mean)}"
        )
    writer = Writer(name=network.name)
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    writer.input("pixels", kind, ["batch", "height", "width", network.in_channels])
    weights = fold_batch_norm(net, tensors)
    if preprocess.channel_order == "BGR":
        # the pixels stay RGB: turning the first filters round is free, turning the image is not
        first = f"{net.trunk[0].name}.weight"
        weights[first] = np.ascontiguousarray(weights[first][:, ::-1])
    # each layer reads the one before it, and its output bears its paper name
    value = _normalise(writer, preprocess, pixels)
    for layer in net.layers:
        if layer.kind == "softmax" and several:
            # MNN computes a sigmoid in place: a product keeps the scores, which may be an output
            one = writer.constant("prob_one", np.ones(1, np.float32))
            value = writer.node("Mul", [value, one], "prob_score")
            value = writer.node("Sigmoid", [value], layer.name)
        else:
            value = _layer(writer, net, layer, value, weights)
    for name in taps:
        layer = network.layer(name)
        is_map = layer in network.trunk
        sides: list[str | int] = [f"{name}_height", f"{name}_width"] if is_map else []
        if layer.kind == "average":
            sides = [layer.kernel, layer.kernel]
        writer.output(name, ["batch", layer.outputs, *sides])
    if scores:
        writer.node("Identity", ["fc8"], "scores")
        writer.output("scores", ["batch", network.head.classes])
    return writer.graph()


def fold_batch_norm(network: Network, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Weights and biases of a network's layers, batch norm multiplied into its convolution.

    Keys are "<paper name>.weight" and "<paper name>.bias"; float32. The products are formed in float64,
    so folding itself adds no more than one rounding.
    """
    folded: dict[str, Array] = {}
    for layer in network.layers:
        if not layer.key:
            continue
        weight, bias = tensors[f"{layer.key}.weight"], tensors[f"{layer.key}.bias"]
        if layer.norm_key:
            beta, mean = (
                np.asarray(tensors[f"{layer.norm_key}.{part}"], np.float64)
                for part in ("bias", "running_mean")
            )
            factor = norm_factor(layer, tensors)
            weight = weight * factor[:, None, None, None]
            bias = beta + (bias - mean) * factor
        folded[f"{layer.name}.weight"] = np.ascontiguousarray(weight, np.float32)
        folded[f"{layer.name}.bias"] = np.ascontiguousarray(bias, np.float32)
    return folded


def norm_factor(layer: Layer, tensors: Mapping[str, Array]) -> Array:
    """What a convolution's batch norm multiplies each channel by, (outputs,) float64."""
    gamma = np.asarray(tensors[f"{layer.norm_key}.weight"], np.float64)
    variance = np.asarray(tensors[f"{layer.norm_key}.running_var"], np.float64)
    return np.asarray(gamma / np.sqrt(variance + nets.BATCH_NORM_EPSILON))


def _normalise(writer: Writer, preprocess: Preprocess, pixels: str) -> str:
    """(pixels / 255 * (high - low) + low - mean) / std, written as one product and one sum."""
    low, high = preprocess.range
    mean = np.asarray(preprocess.mean, np.float64).reshape(1, -1, 1, 1)
    std = np.asarray(preprocess.std, np.float64).reshape(1, -1, 1, 1)
    factor, shift = (high - low) / 255 / std, (low - mean) / std
    if preprocess.channel_order == "BGR":
        factor, shift = factor[:, ::-1], shift[:, ::-1]
    value = "pixels"
    if pixels == "uint8":  # first of all: TensorRT takes uint8 as an input, and nowhere else
        value = writer.node("Cast", [value], "pixels_float", to=TensorProto.FLOAT)
    value = writer.node("Transpose", [value], "pixels_nchw", perm=[0, 3, 1, 2])
    factors = writer.constant("pixels_factor", factor.astype(np.float32))
    value = writer.node("Mul", [value, factors], "pixels_scaled")
    shifts = writer.constant("pixels_shift", shift.astype(np.float32))
    return writer.node("Add", [value, shifts], "input")


def _layer(
    writer: Writer, net: Network, layer: Layer, value: str, weights: dict[str, Array]
) -> str:
    sides = [layer.kernel, layer.kernel]
    moves = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4, "kernel_shape": sides}
    if layer.key:
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        writer.constant(weight, weights[weight])
        writer.constant(bias, weights[bias])
        if layer.kind == "conv":
            return writer.node("Conv", [value, weight, bias], layer.name, **moves)
        if not value.startswith("relu"):
            value = writer.node("Flatten", [value], "flat", axis=1)
        return writer.node("Gemm", [value, weight, bias], layer.name, transB=1)
    if layer.kind == "relu":
        return writer.node("Relu", [value], layer.name)
    if layer.kind == "average":
        return _average(writer, layer, net.head_inputs)
    if layer.kind == "softmax":
        return writer.node("Softmax", [value], layer.name, axis=1)
    if layer.kind == "lrn":
        # ONNX divides alpha by the size; the paper does not
        return writer.node(
            "LRN", [value], layer.name, size=nets.LRN_SIZE, alpha=nets.LRN_ALPHA * nets.LRN_SIZE,
            beta=nets.LRN_BETA, bias=nets.LRN_K,
        )  # fmt: skip
    if net.pool == "l2":
        window = np.outer(nets.L2_WINDOW, nets.L2_WINDOW).astype(np.float32)
        filters = np.tile(window, (layer.outputs, 1, 1, 1))
        weight = writer.constant(f"l2_window_{layer.outputs}", filters)
        epsilon = writer.constant("l2_epsilon", np.float32(nets.L2_EPSILON).reshape(1))
        value = writer.node("Mul", [value, value], f"{layer.name}_squared")
        value = writer.node(
            "Conv", [value, weight], f"{layer.name}_blurred", group=layer.outputs, **moves
        )
        value = writer.node("Add", [value, epsilon], f"{layer.name}_positive")
        return writer.node("Sqrt", [value], layer.name)
    kind = "MaxPool" if net.pool == "max" else "AveragePool"
    return writer.node(kind, [value], layer.name, **moves)


def _average(writer: Writer, layer: Layer, inputs: tuple[str, ...]) -> str:
    """Average every input over a grid of `layer.kernel` cells a side, then join their channels."""
    parts = []
    for name in inputs:
        output = layer.name if len(inputs) == 1 else f"{name}_average"
        if layer.kernel == 1:
            parts.append(writer.node("GlobalAveragePool", [name], output))
        else:
            parts.append(_adaptive(writer, name, layer.kernel, output))
    return parts[0] if len(parts) == 1 else writer.node("Concat", parts, layer.name, axis=1)


def _adaptive(writer: Writer, value: str, cells: int, output: str) -> str:
    """torch's AdaptiveAvgPool2d for any height and width: masks @ value @ masks.

    Cell i averages the units from floor(i * size / cells) up to, without, ceil((i + 1) * size / cells).
    """

    def whole(name: str, numbers: list[int], shape: tuple[int, ...] = (-1,)) -> str:
        return writer.constant(name, np.array(numbers, np.int64).reshape(shape))

    shape = writer.node("Shape", [value], f"{output}_shape")
    zero, one = whole("zero", [0], ()), whole("one", [1], ())
    count = whole("cells", [cells])
    begin = whole("cells_begin", list(range(cells)), (cells, 1))
    end = whole("cells_end", list(range(1, cells + 1)), (cells, 1))
    up = whole("cells_less_one", [cells - 1])
    masks = []
    for axis in (2, 3):
        at = f"{output}_{axis}"
        size = writer.node("Gather", [shape, whole(f"axis_{axis}", [axis], ())], f"{at}_size")
        units = writer.node("Range", [zero, size, one], f"{at}_units")
        first = writer.node("Mul", [begin, size], f"{at}_first_times")
        first = writer.node("Div", [first, count], f"{at}_first")
        last = writer.node("Mul", [end, size], f"{at}_last_times")
        last = writer.node("Add", [last, up], f"{at}_last_up")
        last = writer.node("Div", [last, count], f"{at}_last")
        inside = writer.node(
            "And",
            [
                writer.node("GreaterOrEqual", [units, first], f"{at}_from"),
                writer.node("Less", [units, last], f"{at}_until"),
            ],
            f"{at}_inside",
        )
        mask = writer.node("Cast", [inside], f"{at}_mask", to=TensorProto.FLOAT)
        length = writer.node("Sub", [last, first], f"{at}_length")
        length = writer.node("Cast", [length], f"{at}_length_float", to=TensorProto.FLOAT)
        masks.append(writer.node("Div", [mask, length], f"{at}_mean"))
    right = writer.node("Transpose", [masks[1]], f"{output}_right", perm=[1, 0])
    value = writer.node("MatMul", [masks[0], value], f"{output}_rows")
    return writer.node("MatMul", [value, right], output)
