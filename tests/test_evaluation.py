"""Accuracy against scikit-learn, on folders and tars, and what is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, top_k_accuracy_score

import verydeep
from verydeep import modelfile
from verydeep.errors import DataError
from verydeep.evaluation import calibration_error, class_of, class_table, labelled_photos
from verydeep.predictor import softmax

from .conftest import Run
from .tiny import IDS, NAMES, photo, tiny, weights


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos in folders by name, by id, with "_" and capitals, and one level deeper."""
    folders = ["Ant", IDS[1], "school_bus", f"{IDS[3]}/images", "tabby", "espresso", "violin"]
    for number in range(35):
        photo(tmp_path / "data" / folders[number % 7] / f"{number:02}.png", seed=number)
    return tmp_path / "data"


def test_equals_scikit_learn(model: Path, data: Path) -> None:
    result = verydeep.evaluate(model, data)
    files = sorted(data.rglob("*.png"), key=lambda p: int(p.stem))
    truth = np.arange(35) % 7
    scores = verydeep.load(model).scores(files)
    assert result.n == 35
    assert result.errors == 0
    assert result.top1 == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert result.top5 == pytest.approx(top_k_accuracy_score(truth, scores, k=5))
    probability = softmax(scores)
    expected = calibration_error(probability.max(1), scores.argmax(1) == truth)
    assert result.expected_calibration_error == pytest.approx(expected)


def test_calibration_error_equals_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    probability = draw.uniform(0, 1, 500)
    right = draw.uniform(0, 1, 500) < probability**2
    share, mean = calibration_curve(right, probability, n_bins=15)
    counts = np.histogram(probability, bins=15, range=(0, 1))[0]
    expected = np.sum(np.abs(share - mean) * counts[counts > 0]) / 500
    assert calibration_error(probability, right) == pytest.approx(expected)


def test_tar_equals_folder(verydeep: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (data / "violin" / "bad.jpg").write_text("no photo")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(data, arcname="top")
    words = ("--json", "--engine", "onnxruntime")
    outcomes = [
        verydeep("evaluate", model, where, *words) for where in (data, tmp_path / "data.tar")
    ]
    assert outcomes[0].status == outcomes[1].status == 1
    folder, tar_file = (json.loads(outcome.out) for outcome in outcomes)
    assert folder == pytest.approx(tar_file)  # a tar has an order of its own, and so other batches
    assert folder["errors"] == 1
    assert "1 could not be read" in verydeep("evaluate", model, data).out


def test_a_tar_has_the_photos_that_its_folder_has(tmp_path: Path) -> None:
    photo(tmp_path / "data" / "ant" / "a.png")
    (tmp_path / "data" / "ant" / "hard.png").hardlink_to(tmp_path / "data" / "ant" / "a.png")
    (tmp_path / "data" / "ant" / "soft.png").symlink_to("a.png")
    photo(tmp_path / "data" / ".thumbs" / "small.png")
    (tmp_path / "data" / "folder.png").mkdir()
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data", arcname=".")
    photos = {path: Path(str(at)).read_bytes() for path, at in labelled_photos(tmp_path / "data")}
    assert sorted(photos) == ["ant/a.png", "ant/hard.png", "ant/soft.png"]
    assert dict(labelled_photos(tmp_path / "data.tar")) == photos
    (tmp_path / "data" / "ant" / "soft.png").unlink()
    (tmp_path / "data" / "ant" / "soft.png").symlink_to("gone.png")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data" / "ant" / "soft.png", arcname="ant/soft.png")
    assert dict(labelled_photos(tmp_path / "data.tar")) == {"ant/soft.png": b""}  # no photo


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz"])
def test_a_tar_that_is_cut_short_gives_one_line(packed: str, tmp_path: Path) -> None:
    photo(tmp_path / "ant" / "a.png", 64, 64)
    path = tmp_path / "data.tar"
    with tarfile.open(path, f"w:{packed}") as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "ant", "ant")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"data\.tar: neither a folder nor a tar that can be read"):
        list(labelled_photos(path))


def test_classes_that_differ_little_are_told_apart() -> None:
    table = class_table(["school bus", "School-Bus", "ant"], ["school bus", "School-Bus", "ant"])
    folders = ("school bus", "School-Bus", "ANT", "bee")
    assert [class_of(f"{folder}/a.png", table) for folder in folders] == [0, 1, 2, None]


def test_refusals(verydeep: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "flat" / "a.png")
    photo(tmp_path / "other" / "violins" / "a.png")
    for where, message in (
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path / "text.tar", "neither a folder nor a tar that can be read; expected"),
        (tmp_path / "empty", "empty: no photos in it; expected one folder"),
        (tmp_path / "flat", "a.png lies in no folder"),
        (tmp_path / "other", "folder 'violins' is no class of the model; did you mean violin?"),
    ):
        outcome = verydeep("evaluate", model, where)
        assert (outcome.status, outcome.out) == (2, "")
        assert message in outcome.err


def test_scores_that_are_no_numbers_are_an_error(verydeep: Run, data: Path, tmp_path: Path) -> None:
    net = tiny()
    tensors = weights(net)
    tensors["classifier.bias"][1] = np.nan
    path = tmp_path / "nan.safetensors"
    modelfile.write(path, modelfile.Record(network=net, class_names=NAMES, class_ids=IDS), tensors)
    done = verydeep("evaluate", path, data, "--json", "--engine", "onnxruntime")
    assert (done.status, done.out) == (2, "")
    assert "finite" in done.err
