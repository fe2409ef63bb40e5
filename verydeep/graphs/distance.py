"""Distances between images as graphs: a reference and others in, what a distance is made of out.

Both go through the trunk in one batch, and everything that reads whole feature maps (norms, differences,
the heads' weights, moments) happens inside the graph, so that an engine hands back one number a position,
or a few a channel, in place of 130 MB of features a pair at 256x256.

LPIPS: Zhang et al. 2018, arXiv:1801.03924, equation 1, with version 0.1's heads. DISTS: Ding et al. 2020,
arXiv:2004.07728, equations 6 to 8. Content and style: Johnson et al. 2016, arXiv:1603.08155, equations 2
to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from onnx import TensorProto

from ..nets import Network
from ..preprocess import Preprocess
from . import network as graph
from .writer import Graph, Writer

LPIPS_EPSILON = 1e-10  # added to the norm, as lpips 0.1.4 has it
IMAGE = "image"  # DISTS' first layer: the image itself, 0 to 1
MASK = "mask"
MOMENTS = 5  # of a pair and channel: two means, two variances, the covariance

Array = np.ndarray
Pixels = Literal["uint8", "float32"]


def build(
    metric: str,
    network: Network,
    tensors: Mapping[str, Array],
    preprocess: Preprocess,
    *,
    layers: tuple[str, ...],
    heads: Mapping[str, Array],
    others: int = 1,
    pixels: Pixels = "uint8",
    masked: bool = False,
) -> Graph:
    """The graph of a metric on a network's trunk.

    Input "pixels": (groups, height, width, 3 * (1 + others)): a reference, then the images to compare with
    it, side by side in the channels. Outputs, by layer, float32:

    "lpips": "<layer>_map" (groups, others, height, width), the weighted squared difference of unit vectors
    at each position. heads: one weight a channel, float32, by layer.
    "content": "<layer>_map", the squared difference of the features averaged over channels;
    "<layer>_energy" (groups, channels, 1, 1), the reference's squared features averaged over positions,
    against which a difference is small or not.
    "dists": "<layer>_moments", and those of IMAGE, (groups, others * MOMENTS * channels, 1, 1): for each
    channel the reference's mean and variance over positions, the other's, and their covariance. The
    network's pool should be "l2".
    "style": of single images (others 0), "<layer>_gram" (batch, channels, channels), the products of each
    two channels, summed over positions.

    masked: "dists" and "style" read those positions alone where a last channel of the input is 1, and not
    0; it is the same for all groups, and its edges lie where the trunk's strides do.
    """
    base = graph.build(network, tensors, preprocess, taps=layers, scores=False, pixels=pixels)
    writer = Writer(base)
    channels = network.in_channels * (1 + others)
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    writer.input("pixels", kind, ["groups", "height", "width", channels + masked])
    together = "pixels"
    if masked:
        own = _slice(
            writer, _slice(writer, "pixels", 3, channels, channels + 1, "own"), 0, 0, 1, "own_one"
        )
        own = writer.node("Transpose", [own], "own_nchw", perm=[0, 3, 1, 2])
        writer.node("Cast", [own], MASK, to=TensorProto.FLOAT)
        together = _slice(writer, "pixels", 3, 0, channels, "together")
    # The batch inside is all references, then all first others, and so on: halves along the first axis
    # are free in every engine, every second image is not. Groups lie in the first axis of the input, so
    # that an engine may share them out to its streams.
    images = writer.split(together, 1 + others, 3, "group")
    joined = writer.node("Concat", images, "images", axis=0) if others else together
    for node in base.model.graph.node:
        writer.copy(node, {"pixels": joined})
    masks = _masks(writer, network) if masked else {}
    if metric == "style":
        _grams(writer, network, layers, masks)
    elif metric == "dists":
        value = writer.node("Transpose", ["images"], "image_nchw", perm=[0, 3, 1, 2])
        if pixels == "uint8":
            value = writer.node("Cast", [value], "image_float", to=TensorProto.FLOAT)
        scale = writer.constant("image_scale", np.array([1 / 255], np.float32))
        value = writer.node("Mul", [value, scale], f"{IMAGE}_value")
        _moments(writer, IMAGE, value, 3, others, masks.get(IMAGE))
    for layer in layers:
        channels = network.layer(layer).outputs
        if metric == "dists":
            _moments(writer, layer, layer, channels, others, masks.get(layer))
        elif metric == "lpips":
            _squared_differences(writer, layer, heads[layer], others, unit=True)
        elif metric == "content":
            weights = np.full(channels, 1 / channels, np.float32)
            reference = _squared_differences(writer, layer, weights, others, unit=False)
            square = writer.node("Mul", [reference, reference], f"{layer}_square")
            energy = writer.node("GlobalAveragePool", [square], f"{layer}_energy")
            writer.output(energy, ["groups", channels, 1, 1])
    return writer.graph()


def _slice(writer: Writer, value: str, axis: int, start: int, stop: int, output: str) -> str:
    where = [
        writer.constant(f"{output}_{name}", np.array([number], np.int64))
        for name, number in (("start", start), ("stop", stop), ("axis", axis))
    ]
    return writer.node("Slice", [value, *where], output)


def _masks(writer: Writer, network: Network) -> dict[str, str]:
    """The mask as large as the image's and each layer's maps, (1, 1, height, width)."""
    masks = {IMAGE: MASK}
    by_stride = {1: MASK}
    for row in network.rows(network.minimum_size, network.minimum_size):
        if row.stride not in by_stride:
            # an l2 pool rounds sizes up, the others down
            window = 1 if network.pool == "l2" else row.stride
            by_stride[row.stride] = writer.node(
                "MaxPool", [MASK], f"{MASK}_{row.stride}",
                kernel_shape=[window, window], strides=[row.stride, row.stride],
            )  # fmt: skip
        masks[row.layer.name] = by_stride[row.stride]
    return masks


def _grams(
    writer: Writer, network: Network, layers: tuple[str, ...], masks: Mapping[str, str]
) -> None:
    flat = writer.constant("flat", np.array([0, 0, -1], np.int64))
    for layer in layers:
        channels = network.layer(layer).outputs
        value = layer
        if masks:
            value = writer.node("Mul", [layer, masks[layer]], f"{layer}_masked")
        rows = writer.node("Reshape", [value, flat], f"{layer}_rows")
        columns = writer.node("Transpose", [rows], f"{layer}_columns", perm=[0, 2, 1])
        product = writer.node("MatMul", [rows, columns], f"{layer}_gram")
        writer.output(product, ["batch", channels, channels])


def _squared_differences(
    writer: Writer, layer: str, weights: Array, others: int, *, unit: bool
) -> str:
    """Output "<layer>_map": sum over channels of weight * (reference - other)^2. Returns the reference.

    Written out, and not as a^2 + b^2 - 2ab, which would lose the digits of small distances.
    """
    value = layer
    if unit:
        norm = writer.node("ReduceL2", [layer], f"{layer}_norm", axes=[1], keepdims=1)
        epsilon = writer.constant("lpips_epsilon", np.array([LPIPS_EPSILON], np.float32))
        norm = writer.node("Add", [norm, epsilon], f"{layer}_positive")
        inverse = writer.node("Reciprocal", [norm], f"{layer}_inverse")
        value = writer.node("Mul", [layer, inverse], f"{layer}_unit")
    parts = writer.split(value, 1 + others, 0, f"{layer}_part")
    head = writer.constant(f"{layer}_head", weights.reshape(1, -1, 1, 1).astype(np.float32))
    maps = []
    for index, other in enumerate(parts[1:], 1):
        difference = writer.node("Sub", [parts[0], other], f"{layer}_difference_{index}")
        square = writer.node("Mul", [difference, difference], f"{layer}_square_{index}")
        moves = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}
        name = f"{layer}_map" if others == 1 else f"{layer}_map_{index}"
        maps.append(writer.node("Conv", [square, head], name, **moves))
    joined = maps[0] if others == 1 else writer.node("Concat", maps, f"{layer}_map", axis=1)
    writer.output(joined, ["groups", others, f"{layer}_height", f"{layer}_width"])
    return parts[0]


def _mean(writer: Writer, value: str, output: str, weights: str | None = None) -> str:
    """Over positions, weighted: rows first, since one sum over all of a large map loses digits."""
    if weights:
        value = writer.node("Mul", [value, weights], f"{output}_weighted")
    rows = writer.node("ReduceMean", [value], f"{output}_rows", axes=[3], keepdims=1)
    return writer.node("ReduceMean", [rows], output, axes=[2], keepdims=1)


def _moments(
    writer: Writer, layer: str, source: str, channels: int, others: int, mask: str | None
) -> None:
    """Output "<layer>_moments". Values less their means, and not means of squares less squared means."""
    weights = None
    if mask:
        share = _mean(writer, mask, f"{layer}_share")
        weights = writer.node("Div", [mask, share], f"{layer}_weights")
    mean = _mean(writer, source, f"{layer}_mean", weights)
    centred = writer.node("Sub", [source, mean], f"{layer}_centred")
    square = writer.node("Mul", [centred, centred], f"{layer}_square")
    variance = _mean(writer, square, f"{layer}_variance", weights)
    means = writer.split(mean, 1 + others, 0, f"{layer}_mean_part")
    variances = writer.split(variance, 1 + others, 0, f"{layer}_variance_part")
    parts = writer.split(centred, 1 + others, 0, f"{layer}_centred_part")
    moments = []
    for index in range(1, 1 + others):
        product = writer.node("Mul", [parts[0], parts[index]], f"{layer}_product_{index}")
        covariance = _mean(writer, product, f"{layer}_covariance_{index}", weights)
        moments += [means[0], variances[0], means[index], variances[index], covariance]
    writer.node("Concat", moments, f"{layer}_moments", axis=1)
    writer.output(f"{layer}_moments", ["groups", others * MOMENTS * channels, 1, 1])
