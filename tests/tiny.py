"""Tiny networks, weights, photos and model files that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from verydeep import modelfile
from verydeep.nets import Network, network
from verydeep.preprocess import Preprocess


def tiny(name: str = "vgg11", head: str = "gap", **choices: object) -> Network:
    """A network a sixteenth as wide; a gap head reads its last ReLU and the one two before."""
    last = [layer.name for layer in network(name).trunk if layer.kind == "relu"]
    layers = (last[-3], last[-1]) if head == "gap" else ()
    choices = {"width": 1 / 16, "classes": 7, **choices}
    return network(name, head=head, layers=layers, **choices)  # type: ignore[arg-type]


def weights(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """He-scaled normals, and batch statistics away from 0 and 1, so that no layer's part is nothing."""
    draw = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for key, shape in net.tensors.items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.zeros((), np.int64)
        elif key.endswith("running_var"):
            tensors[key] = draw.uniform(0.5, 2, shape).astype(np.float32)
        elif len(shape) > 1:
            deviation = (2 / np.prod(shape[1:])) ** 0.5
            tensors[key] = draw.normal(0, deviation, shape).astype(np.float32)
        else:
            tensors[key] = draw.uniform(0.1, 1, shape).astype(np.float32)
    return tensors


def pixels(height: int, width: int, count: int = 2, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(count, height, width, channels) uint8 noise."""
    draw = np.random.default_rng([height, width, seed])
    return draw.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def photo(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """An image file of smooth noise, in the format of its suffix."""
    small = Image.fromarray(pixels(6, 8, 1, seed=seed)[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


NAMES = ("ant", "bee", "school bus", "daisy", "tabby", "espresso", "violin")
IDS = tuple(f"n{number:08}" for number in range(7))


def model_file(path: Path, net: Network | None = None, **record: object) -> Path:
    """A model file of random weights that takes images of 32 pixels a side and knows seven classes."""
    net = net or tiny()
    named = {"class_names": NAMES, "class_ids": IDS} if net.head.classes == len(NAMES) else {}
    fields = {"preprocess": Preprocess(resize_size=32, crop_size=32), **named, **record}
    modelfile.write(path, modelfile.Record(network=net, **fields), weights(net))  # type: ignore[arg-type]
    return path
