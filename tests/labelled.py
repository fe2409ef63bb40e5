"""Small labelled sets that the tests of training share: images that a tiny network learns in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verydeep import modelfile, train
from verydeep.preprocess import Preprocess
from verydeep.training.data.colours import statistics
from verydeep.training.data.source import Source
from verydeep.training.data.views import Views
from verydeep.training.recipes import Config
from verydeep.training.record.result import TrainResult

CLASSES = ("red", "green", "blue")


def images(count: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(count, size, size, 3) uint8 noise, brighter in the channel of its label (count,)."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 160, (count, size, size, 3))
    pixels[np.arange(count), :, :, labels] += 60
    return pixels.astype(np.uint8), labels


def folders(place: Path, count: int, seed: int = 0) -> Path:
    """Such images as files, in a folder for each class."""
    for number, (one, label) in enumerate(zip(*images(count, seed), strict=True)):
        path = place / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(path)
    return place


def arrays(path: Path, train_count: int = 48, val_count: int = 24, seed: int = 0) -> Path:
    """An .npz of such images."""
    learn, learn_labels = images(train_count, seed)
    judge, judge_labels = images(val_count, seed + 1)
    np.savez(
        path, train_images=learn, train_labels=learn_labels, val_images=judge,
        val_labels=judge_labels, classes=np.array(CLASSES),
    )  # fmt: skip
    return path


def in_memory(held: Views, config: Config, classes: int = 0) -> Source:
    """To learn from images in memory."""
    assert held.images is not None
    return Source(held.samples, config, statistics([held.images]), classes, held.images)


def assert_same(one: Path, other: Path) -> None:
    """The models of two runs' folders, to the bit."""
    first, second = (modelfile.read(out / "model.safetensors").tensors() for out in (one, other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


FIT = Preprocess(resize_size=32, crop_size=32)  # as images are kept in memory

# of a run that takes a second: 3 epochs of 4 steps, in which this learns more than the recipe's own would
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch": 12, "warmup": 1.0, "rate": 0.05, "precision": "fp32", "layout": "default",
    "average": 0.9, "head": "small", "start": "glorot", "optimiser": "sgd", "schedule": "cosine",
    "grow": "1", "size": 32,
}  # fmt: skip


def trained(
    data: object,
    out: Path,
    *,
    event: Any = None,
    resume: bool = False,
    init: Any = None,
    device: str = "cpu",
    **changes: Any,
) -> TrainResult:
    """The result of `small-images` on a VGG-11 with batch norm, a sixteenth as wide."""
    settings = {**SETTINGS, **changes}
    return train(
        "small-images", data, out=out, model="vgg11_bn", width=1 / 16, settings=settings,
        init=init, event=event, resume=resume, device=device,
    )  # fmt: skip
