"""Every warning stands at the line of the program that called, whichever door it came through."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import verydeep
from verydeep import losses, models
from verydeep.models.vgg import ImageClassification
from verydeep.nets import network

from .tiny import model_file

ROOT = Path(__file__).parents[1]
TINY = 1 / 16
DARK = np.full((1, 32, 32, 3), 0.5, np.float32)  # looks like 0..1, whatever else is said
FLOATS = torch.full((1, 3, 32, 32), 0.5)
PICTURE = Image.fromarray(np.zeros((9, 9, 3), np.uint8))

RANDOM: Any = {"model": None, "heads": {"relu1_2": torch.ones(64)}}


def _lpips() -> losses.LPIPS:
    return losses.LPIPS(net="vgg", **RANDOM)


def _metric() -> Any:
    return losses.LearnedPerceptualImagePatchSimilarity("vgg", **RANDOM)


def _collection() -> Any:
    from torchmetrics import MetricCollection

    return MetricCollection([_metric()])


# each on one line, whose number the warning has to bear
DOORS: dict[str, Callable[[Path], object]] = {
    "builder": lambda _: models.vgg11(pretrained=False, width=TINY),
    "get_model": lambda _: models.get_model("vgg11", pretrained=False, width=TINY),
    "get_model_builder": lambda _: models.get_model_builder("vgg11")(False, width=TINY),
    "partial": lambda _: partial(models.vgg11, width=TINY)(pretrained=False),
    "hub": lambda _: torch.hub.load(str(ROOT), "vgg11", source="local", pretrained=False, width=TINY),
    "new head": lambda f: models.vgg11(f, num_classes=3),
    "new head by name": lambda f: models.get_model("vgg11", weights=f, num_classes=3),
    "channels": lambda f: models.backbone("vgg11", "relu1_1", f, in_channels=1),
    "small images": lambda _: models.build("vgg11", width=TINY)(FLOATS),
    "inside": lambda _: nn.Sequential(models.build("vgg11", width=TINY))(FLOATS),
    "antialias": lambda _: ImageClassification(crop_size=8, antialias=False)(PICTURE),
    "net": lambda _: losses.LPIPS(**RANDOM),
    "net_type": lambda _: losses.LearnedPerceptualImagePatchSimilarity(**RANDOM),
    "LPIPS": lambda _: _lpips()(FLOATS, FLOATS),
    "LPIPS with gradients": lambda _: _lpips()(FLOATS.clone().requires_grad_(), FLOATS),
    "content": lambda _: losses.ContentLoss("relu1_1", model=None, range="0..255")(FLOATS, FLOATS),
    "style": lambda _: losses.StyleLoss("relu1_1", model=None, range="0..255")(FLOATS, FLOATS),
    "a reference": lambda _: losses.ContentLoss("relu1_1", model=None, range="0..255").remember(FLOATS),
    "update": lambda _: _metric().update(FLOATS, FLOATS),
    "metric": lambda _: _metric()(FLOATS, FLOATS),
    "collection": lambda _: _collection()(FLOATS, FLOATS),
    "lpips": lambda _: verydeep.lpips(DARK[0], DARK[0], range="0..255", engine="onnxruntime"),
    "several": lambda _: verydeep.content_distance(DARK, DARK, range="-1..1", engine="onnxruntime"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_warning_stands_at_the_callers_line(door: str, tmp_path: Path) -> None:
    file = model_file(tmp_path / "m.safetensors", network("vgg11", width=TINY, classes=4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        DOORS[door](file)
    assert caught
    line = DOORS[door].__code__.co_firstlineno
    assert {(w.category, w.filename, w.lineno) for w in caught} == {(UserWarning, __file__, line)}


def test_a_stream_of_distances_warns_where_it_is_read() -> None:
    measure = verydeep.Perceptual("content", layers="relu1_1", engine="onnxruntime")
    stream = measure.stream([(DARK[0], DARK[0])], range="0..255")
    with pytest.warns(UserWarning, match="said to be") as caught:
        next(stream)
    lines = inspect.getsourcelines(test_a_stream_of_distances_warns_where_it_is_read)
    line = lines[1] + next(i for i, text in enumerate(lines[0]) if "next(stream)" in text)
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, line)}


def test_no_module_warns_but_by_the_one_that_finds_the_line() -> None:
    calls = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "verydeep").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "warnings.warn"
    ]
    assert calls == ["verydeep/errors.py"]
