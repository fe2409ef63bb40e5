"""The table computed in float64, in plain numpy: the yardstick that no engine has a part in.

A convolution is one matrix product for each place of its kernel. A second or so for VGG-16 at 224.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import nets
from ..nets import Layer, Network
from ..preprocess import Preprocess

Array = np.ndarray


def scores(
    network: Network, tensors: Mapping[str, Array], preprocess: Preprocess, pixels: Array
) -> Array:
    """Logits (images, classes), float64, for pixels (images, height, width, channels) in RGB order.

    tensors: by torchvision's keys, as `modelfile.ModelFile.tensors` gives them.
    """
    order = slice(None, None, -1) if preprocess.channel_order == "BGR" else slice(None)
    low, high = preprocess.range
    x = pixels[..., order].astype(np.float64) * ((high - low) / 255) + low
    x = (x - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.stack([_image(network, tensors, image) for image in x.transpose(0, 3, 1, 2)])


def _image(net: Network, tensors: Mapping[str, Array], x: Array) -> Array:
    found: dict[str, Array] = {}
    for layer in net.trunk:
        if layer.kind == "conv":
            x = _normalised(_conv(x, layer, tensors), layer, tensors)
        elif layer.kind == "relu":
            x = np.maximum(x, 0)
        elif layer.kind == "lrn":
            x = _lrn(x)
        else:
            x = _pool(x, net.pool)
        if layer.name in net.head_inputs:
            found[layer.name] = x
    for layer in net.top:
        if layer.kind == "average":
            x = np.concatenate([_average(found[name], layer.kernel) for name in net.head_inputs])
            x = x.reshape(-1)
        elif layer.kind == "fc":
            weight, bias = tensors[f"{layer.key}.weight"], tensors[f"{layer.key}.bias"]
            x = weight.astype(np.float64) @ x + bias
        elif layer.kind == "relu":
            x = np.maximum(x, 0)
    return x


def _conv(x: Array, layer: Layer, tensors: Mapping[str, Array]) -> Array:
    weight = tensors[f"{layer.key}.weight"].astype(np.float64)
    p, k = layer.padding, layer.kernel
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    height, width = x.shape[1:]
    total = np.zeros((layer.outputs, height * width))
    for row in range(k):
        for column in range(k):
            window = padded[:, row : row + height, column : column + width]
            total += weight[:, :, row, column] @ window.reshape(layer.inputs, -1)
    total += np.asarray(tensors[f"{layer.key}.bias"], np.float64)[:, None]
    return total.reshape(layer.outputs, height, width)


def _normalised(x: Array, layer: Layer, tensors: Mapping[str, Array]) -> Array:
    if not layer.norm_key:
        return x
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (
        np.asarray(tensors[f"{layer.norm_key}.{part}"], np.float64)[:, None, None] for part in parts
    )
    return (x - mean) / np.sqrt(variance + nets.BATCH_NORM_EPSILON) * gamma + beta


def _lrn(x: Array) -> Array:
    half = nets.LRN_SIZE // 2
    squares = np.pad(x * x, ((half, half), (0, 0), (0, 0)))
    total = sum(squares[i : i + len(x)] for i in range(nets.LRN_SIZE))
    return np.asarray(x / (nets.LRN_K + nets.LRN_ALPHA * total) ** nets.LRN_BETA)


def _pool(x: Array, kind: str) -> Array:
    kernel, stride, padding = nets.POOLS[kind]
    x = x * x if kind == "l2" else x
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    height, width = ((side - kernel) // stride + 1 for side in x.shape[1:])
    windows = {
        (row, column): x[:, row::stride, column::stride][:, :height, :width]
        for row in range(kernel)
        for column in range(kernel)
    }
    if kind == "max":
        return np.asarray(np.maximum.reduce(list(windows.values())))
    if kind == "avg":
        return np.asarray(sum(windows.values()) / kernel**2)
    window = np.outer(nets.L2_WINDOW, nets.L2_WINDOW)
    total = sum(window[place] * part for place, part in windows.items())
    return np.asarray(np.sqrt(total + nets.L2_EPSILON))


def _average(x: Array, cells: int) -> Array:
    """torch's adaptive average: cell i averages from floor(i * n / cells) to ceil((i + 1) * n / cells)."""
    masks = []
    for side in x.shape[1:]:
        mask = np.zeros((cells, side))
        for i in range(cells):
            first, last = i * side // cells, -(-(i + 1) * side // cells)
            mask[i, first:last] = 1 / (last - first)
        masks.append(mask)
    return np.asarray(masks[0] @ x @ masks[1].T)
