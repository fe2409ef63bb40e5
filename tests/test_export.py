"""An exported file runs in its real engine, alone, and gives what the model gives."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import verydeep as package
from verydeep import engines, export
from verydeep.formats import FORMATS, mnn, openvino
from verydeep.formats import onnx as onnx_format
from verydeep.formats import torch as torch_format
from verydeep.nets import Network
from verydeep.preprocess import CAFFE, Preprocess

from .tiny import model_file, photo, pixels, tiny, weights

SUFFIX = {name: form.suffix for name, form in FORMATS.items()}
LOAD: dict[str, Callable[..., Callable[[np.ndarray], dict[str, np.ndarray]]]] = {
    "onnx": onnx_format.load,
    "openvino": openvino.load,
    "mnn": mnn.load,
    "torch": torch_format.load,
}


def independent(net: Network, preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """Scores by the torch module and the reference pre-processing: neither is part of an export."""
    import torch

    from verydeep import models

    module = models.build(net)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in weights(net).items()}
    module.load_state_dict(tensors)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the classic head says that 32 pixels are few
        found = module.eval().double()(torch.from_numpy(preprocess.normalise(images)).double())
    return found.numpy()


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("name", "head", "pool"),
    [("vgg11", "classic", "max"), ("vgg11_bn", "gap", "l2"), ("vgg11", "small", "avg")],
)
def test_any_batch_and_size(to: str, name: str, head: str, pool: str, tmp_path: Path) -> None:
    net = tiny(name, head, pool=pool)
    preprocess = Preprocess(resize_size=32, crop_size=32)
    model = model_file(tmp_path / "tiny.safetensors", net, preprocess=preprocess)
    done = export.export(model, to, tmp_path / f"tiny{SUFFIX[to]}")
    assert 0 <= done.error <= 1e-3
    run = LOAD[to](done.path, ("scores",), "fast")
    for height, width, count in ((32, 32, 1), (50, 33, 3), (64, 96, 2)):
        images = pixels(height, width, count)
        expected = independent(net, preprocess, images)
        assert engines.relative_error(run(images)["scores"], expected) < 1e-3


@pytest.mark.parametrize("to", FORMATS)
def test_the_program_beside_it_runs(to: str, tmp_path: Path) -> None:
    """As a program of its own, elsewhere, with verydeep out of reach."""
    model = model_file(
        tmp_path / "tiny.safetensors", preprocess=replace(CAFFE, resize_size=40, crop_size=32)
    )
    image = photo(tmp_path / "photo.png", 90, 120)
    (tmp_path / "made").mkdir()
    done = export.export(model, to, tmp_path / "made" / f"tiny{SUFFIX[to]}")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "made", elsewhere)
    program = elsewhere / done.program.name
    text = program.read_text(encoding="utf-8")
    assert "verydeep" not in re.sub(r'\["verydeep", "labels"\]', "", text)
    lines = [
        line for line in text.splitlines() if line and not line.startswith(("#", "import", "from"))
    ]
    assert len(lines) <= 9
    command = [sys.executable, "-I", "-W", "error", str(program), str(image)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr
    rows = re.findall(r"^ *([\d.]+)%  (.+)$", ran.stdout, re.MULTILINE)
    answer = package.load(model, engine="onnxruntime", precision="exact")(image)
    expected = {p.label: p.probability for p in answer.predictions}
    assert [label for _, label in rows] == list(expected)
    for percent, label in rows:  # PIL resizes and crops in one step: a pixel value or so from ours
        assert float(percent) / 100 == pytest.approx(expected[label], abs=0.02)
