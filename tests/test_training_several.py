"""Images of several classes at once: from a table of labels to a model file with a threshold for each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from verydeep import modelfile, train
from verydeep.training.begin import train as run
from verydeep.training.probe import ProbeConfig
from verydeep.training.recipes import changed, finetune

from .labelled import SETTINGS, trained
from .tiny import model_file

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes of up to three colours, named in one cell."""
    folder, draw = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows = []
    for number in range(100):
        there = draw.integers(0, 2, 3)
        image = draw.integers(20, 60, (48, 48, 3))
        for at in np.flatnonzero(there):
            image[16 * at : 16 * at + 16, :, at] = draw.integers(190, 250, (16, 48))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        names = [name for name, one in zip(("red", "green", "blue"), there, strict=True) if one]
        rows.append((f"{number}.png", ";".join(names)))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "labels"), *rows])
    return folder / "labels.csv"


def judged(result: Any) -> None:
    record = modelfile.read(result.model).record
    assert record.class_names == CLASSES
    assert len(record.thresholds) == 3
    assert record.threshold is None
    assert result.labels.shape == result.probabilities.shape == (len(result.val), 3)
    theirs = average_precision_score(result.labels, result.probabilities, average="macro")
    assert result.mean_average_precision == pytest.approx(theirs)
    assert result.mean_average_precision > 0.9
    figure = next(row for row in record.measured if row["what"] == "mean average precision")
    assert figure["value"] == pytest.approx(result.mean_average_precision, abs=1e-5)
    assert np.isnan(result.top1)
    assert "mean average precision" in str(result)
    assert result.to_dict()["mean_average_precision"] == result.mean_average_precision


def test_a_probe(table: Path, tmp_path: Path) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors")
    config = ProbeConfig(model=str(trunk), sizes=(48,), engine="onnxruntime", precision="exact")
    judged(run(config, table, out=tmp_path / "run"))


@pytest.mark.parametrize("memory", [True, False])
def test_a_loop(table: Path, tmp_path: Path, memory: bool) -> None:
    settings = {
        **SETTINGS, "size": 32, "epochs": 8, "memory": memory, "mixup": 0.1, "cutmix": 0.1, "cover": 0.0,
        "balance": "weights", "area": 0.9, "padding": 0.0,
    }  # fmt: skip
    done = train(
        "small-images", table, out=tmp_path / "run", model="vgg11_bn", width=1 / 8, settings=settings,
        device="cpu",
    )  # fmt: skip
    judged(done)
    epochs = [line for line in done.log if line["event"] == "epoch"]
    assert epochs[-1]["mean_average_precision"] == pytest.approx(
        done.mean_average_precision, abs=0.05
    )


def test_fine_tuning(table: Path, tmp_path: Path) -> None:
    config = changed(
        finetune(), {"model": str(model_file(tmp_path / "trunk.safetensors")), "size": 48, "epochs": 2,
                     "batch": 16, "precision": "fp32", "layout": "default", "jitter": 0.0},
    )  # fmt: skip
    judged(run(config, table, out=tmp_path / "run"))


@pytest.mark.parametrize("recipe", ["probe", "small-images"])
def test_what_was_learnt_is_kept_whatever_it_is_judged_by(
    recipe: str, table: Path, tmp_path: Path
) -> None:
    """Photos to validate that are of no class, and photos to test that cannot be read."""
    names = dict(csv.reader(table.read_text("utf-8").splitlines()))
    del names["file"]
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes((table.parent / f"{number}.png").read_bytes())
    parts = ["test" if at > 35 else "train" for at in range(40)]
    rows = [(f"{at}.png", names[f"{at}.png"], parts[at]) for at in range(40)]
    rows += [(f"none {at}.png", "", "val") for at in range(3)]
    for at in range(3):
        Image.new("RGB", (48, 48), (50, 50, 50 + at)).save(tmp_path / f"none {at}.png")
    for at in range(36, 40):
        (tmp_path / f"{at}.png").write_bytes(b"no photo")
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "labels", "split"), *rows])
    if recipe == "probe":
        trunk = model_file(tmp_path / "trunk.safetensors")
        config: Any = ProbeConfig(model=str(trunk), sizes=(32,), engine="onnxruntime")
        result = run(config, tmp_path / "t.csv", out=tmp_path / "run")
    else:
        result = trained(tmp_path / "t.csv", tmp_path / "run")
    assert np.isnan(result.mean_average_precision)
    assert str(result).endswith("3 images to validate with are of no class")
    record = modelfile.read(result.model).record
    assert not {"mean average precision", "mean average precision, test"} & {
        row["what"] for row in record.measured
    }
    assert len(result.bad) == 4
    assert (tmp_path / "run" / "report.html").exists()
