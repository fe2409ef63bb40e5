"""The built-in CIFAR-10 model: small, honest about how it came to be, right on photos of what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import verydeep
from verydeep import models
from verydeep.modelfile import ModelFile, read
from verydeep.predictor import builtin_models

ROOT = Path(__file__).parent.parent
RUN = ROOT / "docs" / "runs" / "cifar10"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(scope="module")
def cifar10() -> ModelFile:
    return read(builtin_models()["builtin/cifar10"])


def test_record_is_whole(cifar10: ModelFile) -> None:
    record, network = cifar10.record, cifar10.record.network
    assert cifar10.path.stat().st_size <= 8_000_000
    assert (network.name, network.width, network.head.classes) == ("vgg16_bn", 0.5, 10)
    assert list(record.class_names) == CLASSES
    assert record.licence == "BSD-3-Clause"
    assert record.preprocess.crop_size == 48
    assert cifar10.stored["features.0.weight"].dtype == "float16"
    assert all({"what", "value", "protocol"} == set(figure) for figure in record.measured)


def test_figures_meet_what_was_promised(cifar10: ModelFile) -> None:
    """Measured by `tools/build_cifar10.py` on the 10,000 test images; here: log and README say the same."""
    figures = {str(f["what"]): float(str(f["value"])) for f in cifar10.record.measured}
    assert figures["top1"] >= 0.94
    lines = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
    assert lines[0]["config"] == dict(cifar10.record.provenance)["config"]
    assert lines[-1]["event"] == "end"
    assert figures["top1"] == pytest.approx(
        lines[-1]["top1"], abs=1e-3
    )  # in float16 and in float32
    assert f"{figures['top1']:.2%}".replace("%", " %") in (ROOT / "README.md").read_text()
    assert (RUN / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("file", "label"),
    [("sports-car.jpg", "automobile"), ("tabby.png", "cat"), ("golden-retriever.jpg", "dog")],
)
def test_photos_are_named_rightly(file: str, label: str) -> None:
    photo = ROOT / "examples" / "photos" / file
    assert verydeep.load("builtin/cifar10")(photo).label == label


def test_torch_gives_the_same_scores(cifar10: ModelFile) -> None:
    photo = ROOT / "examples" / "photos" / "sports-car.jpg"
    predictor = verydeep.load(cifar10.path, engine="onnxruntime", precision="exact")
    model = models.load(cifar10.path)
    pixels = cifar10.record.preprocess.pixels(str(photo))[None]
    with torch.inference_mode():
        expected = model(torch.from_numpy(cifar10.record.preprocess.normalise(pixels)))
    torch.testing.assert_close(
        torch.from_numpy(predictor.scores([photo])), expected, rtol=1e-4, atol=1e-4
    )
