"""builtin/cifar10, which verydeep trained itself: its record, its log and docs/models.md are one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import verydeep
from verydeep.modelfile import ModelFile, read
from verydeep.predictor import builtin_models

ROOT = Path(__file__).parent.parent
RUN = ROOT / "docs" / "runs" / "cifar10"
PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def cifar10() -> ModelFile:
    return read(builtin_models()["builtin/cifar10"])


def measured(model: ModelFile) -> dict[str, float]:
    return {str(one["what"]): float(str(one["value"])) for one in model.record.measured}


def test_the_record(cifar10: ModelFile) -> None:
    record = cifar10.record
    network = record.network
    assert (network.name, network.width, network.head.kind) == ("vgg16_bn", 0.5, "gap")
    assert record.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert (record.preprocess.resize_size, record.preprocess.crop_size) == (64, 64)
    assert measured(cifar10)["top1"] >= 0.94
    assert builtin_models()["builtin/cifar10"].stat().st_size <= 8_000_000
    assert record.preprocess.detail == 32  # photos lose what the network has never seen
    kinds = {
        array.dtype for key, array in cifar10.stored.items() if key.endswith(("weight", "bias"))
    }
    assert kinds == {np.dtype(np.float16)}


def test_the_record_is_what_the_run_wrote(cifar10: ModelFile) -> None:
    lines = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    config = json.loads((RUN / "config.json").read_text())["config"]
    assert len(epochs) == config["epochs"]
    assert lines[-1]["event"] == "end"
    # float16 and another engine turn a few of 10,000 answers
    assert measured(cifar10)["top1"] == pytest.approx(lines[-1]["top1"], abs=5e-4)
    assert cifar10.record.provenance["config"] == config
    page = (RUN / "report.html").read_text()
    assert f"{lines[-1]['top1']:.2%}" in page
    assert "data:image" not in page  # no picture of a data set is in this repository


def test_the_documentation_says_what_was_measured(cifar10: ModelFile) -> None:
    row = re.search(
        r"\| `builtin/cifar10`.*\| ([\d.]+) % top-1", (ROOT / "docs/models.md").read_text()
    )
    assert row
    assert float(row[1]) == pytest.approx(100 * measured(cifar10)["top1"], abs=0.05)


@pytest.mark.parametrize(
    ("photo", "label"),
    [("sports-car.jpg", "automobile"), ("tabby.png", "cat"), ("golden-retriever.jpg", "dog")],
)
def test_photos_are_named_rightly(photo: str, label: str) -> None:
    assert verydeep.load("builtin/cifar10")(PHOTOS / photo).label == label


def test_torch_and_onnx_agree() -> None:
    photos = [str(PHOTOS / name) for name in ("sports-car.jpg", "tabby.png")]
    scores = [
        verydeep.load("builtin/cifar10", engine=engine, precision="exact").scores(photos)
        for engine in ("onnxruntime", "torch")
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
