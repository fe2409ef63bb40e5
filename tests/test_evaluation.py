"""Accuracy against scikit-learn, on folders and tars, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, top_k_accuracy_score

import verydeep
from verydeep import modelfile
from verydeep.datasets.labelled import find, judged
from verydeep.datasets.labelled import open as content
from verydeep.datasets.listing import listed
from verydeep.errors import DataError
from verydeep.evaluation import class_of, class_table, figures
from verydeep.evaluation.figures import calibration_error
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


def test_what_cannot_be_unpacked_is_said(model: Path, data: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", data))
    with zipfile.ZipFile(archive) as file:
        entry = next(info for info in file.infolist() if info.filename.endswith("03.png"))
    content = bytearray(archive.read_bytes())
    content[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 255
    archive.write_bytes(content)
    events: list[Any] = []
    result = verydeep.evaluate(model, archive, on_event=events.append)
    assert (result.n, result.errors) == (34, 1)
    (error,) = filter(None, (event["error"] for event in events))
    assert "03.png: cannot be unpacked" in error


def test_calibration_error_equals_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    probability = draw.uniform(0, 1, 500)
    right = draw.uniform(0, 1, 500) < probability**2
    share, mean = calibration_curve(right, probability, n_bins=15)
    counts = np.histogram(probability, bins=15, range=(0, 1))[0]
    expected = np.sum(np.abs(share - mean) * counts[counts > 0]) / 500
    assert calibration_error(probability, right) == pytest.approx(expected)


def test_figures_of_what_is_not_finite_are_refused() -> None:
    """Of NaN there were plausible figures: the largest class of a row, a precision of 1."""
    labels = np.array([0, 1])
    for bad in (np.nan, np.inf):
        chances = np.array([[0.9, 0.1], [0.2, bad]], np.float32)
        for figure in (
            lambda: figures.average_precision(chances, np.eye(2)),  # noqa: B023
            lambda: figures.confusion(chances, labels),  # noqa: B023
            lambda: figures.accuracy(chances, labels),  # noqa: B023
            lambda: figures.calibration_error(chances[:, 1], labels == 1),  # noqa: B023
        ):
            with pytest.raises(DataError, match="not finite"):
                figure()


def test_what_is_not_divided_is_measured_as_it_is_trained_on(tmp_path: Path) -> None:
    """Of a table whose rows are partly of "train", and of no part."""
    for number in range(4):
        photo(tmp_path / f"{number}.png", seed=number)
    rows = ["0.png,a,train", "1.png,b,train", "2.png,a,", "3.png,b,"]
    table = tmp_path / "set.csv"
    table.write_text("\n".join(("path,label,split", *rows)))
    items, part = judged(listed(table))
    assert ([item.name for item in items], part) == (["0.png", "1.png", "2.png", "3.png"], "train")
    assert len(find(table, val_fraction=0).train) == 4
    table.write_text("\n".join(("path,label,split", *rows, "0.png,a,val")))
    assert [item.part for item in judged(listed(table))[0]] == ["val"]
    table.write_text("path,label\n0.png,a\n1.png,b\n")
    assert judged(listed(table))[1] == ""


def test_labels_that_are_numbers_of_nothing(model: Path, tmp_path: Path) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1])
    with pytest.raises(
        DataError, match="'0' is no class of the model; expected names, such as 'ant'"
    ):
        verydeep.evaluate(model, tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1], classes=NAMES)
    assert verydeep.evaluate(model, tmp_path / "a.npz").n == 2


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_twice_in_a_zip_is_its_last_file(tmp_path: Path) -> None:
    """As unpacking has it: the last one's bytes were both of them."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, text in (("ant/1.jpg", "old"), ("bee/2.jpg", "two"), ("ant/1.jpg", "new")):
            archive.writestr(name, text)
    found = listed(tmp_path / "a.zip").items
    assert [(item.name, content(item)) for item in found] == [
        ("ant/1.jpg", b"new"), ("bee/2.jpg", b"two"),
    ]  # fmt: skip


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
    for packed in ("", ".gz"):
        with tarfile.open(tmp_path / f"data.tar{packed}", f"w:{packed[1:]}") as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "data", arcname=".")
    photos = {item.name: item for item in listed(tmp_path / "data").items}
    assert sorted(photos) == ["ant/a.png", "ant/hard.png", "ant/soft.png"]
    bytes_of = {name: Path(str(content(item))).read_bytes() for name, item in photos.items()}
    for packed in ("", ".gz"):
        found = listed(tmp_path / f"data.tar{packed}").items
        assert {item.name: content(item) for item in found} == bytes_of
    (tmp_path / "data" / "ant" / "soft.png").unlink()
    (tmp_path / "data" / "ant" / "soft.png").symlink_to("gone.png")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data" / "ant" / "soft.png", arcname="ant/soft.png")
    assert [(i.name, content(i)) for i in listed(tmp_path / "data.tar").items] == [
        ("ant/soft.png", b"")
    ]


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz"])
def test_a_tar_that_is_cut_short_gives_one_line(packed: str, tmp_path: Path) -> None:
    photo(tmp_path / "ant" / "a.png", 64, 64)
    path = tmp_path / "data.tar"
    with tarfile.open(path, f"w:{packed}") as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "ant", "ant")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"data\.tar: (cannot be read: |not a data set)"):
        listed(path)


def test_classes_that_differ_little_are_told_apart() -> None:
    table = class_table(["school bus", "School-Bus", "ant"], ["school bus", "School-Bus", "ant"])
    folders = ("school bus", "School-Bus", "ANT", "bee")
    assert [class_of(folder, table) for folder in folders] == [0, 1, 2, None]
    assert class_of("a b", class_table(["a-b", "a_b"], [])) is None  # of which of the two?


def named(path: Path, classes: list[str]) -> Path:
    """A tiny model of those classes."""
    net = tiny(classes=len(classes))
    record = modelfile.Record(network=net, class_names=tuple(classes))
    modelfile.write(path, record, weights(net))
    return path


def test_what_is_held_out_is_measured(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, part in enumerate(("train", "train", "valid")):
        photo(root / part / NAMES[number] / f"{number}.png", seed=number)
    photo(root / "train" / ".thumbs" / "0.png")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(root, ".")
    for where in (root, tmp_path / "data.tar"):
        result = verydeep.evaluate(model, where)
        assert (result.n, result.protocol.endswith(", the set's own val")) == (1, True)
    (root / "valid").rename(tmp_path / "elsewhere")
    result = verydeep.evaluate(model, root)
    assert (result.n, result.protocol.endswith(", includes train/")) == (2, True)


def test_it_takes_what_train_takes(model: Path, tmp_path: Path) -> None:
    for number in range(4):
        photo(tmp_path / "data" / NAMES[number % 2] / f"{number}.png", seed=number)
    paths = sorted((tmp_path / "data").rglob("*.png"))
    expected = verydeep.evaluate(model, tmp_path / "data").to_dict()
    table = tmp_path / "data.csv"
    table.write_text("".join(f"{p.relative_to(tmp_path)},{p.parent.name}\n" for p in paths))
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = [p.parent.name for p in paths]
    np.savez(tmp_path / "data.npz", val_images=images, val_labels=labels)
    for form in ("csv", "zip"):
        assert verydeep.evaluate(model, tmp_path / f"data.{form}").to_dict() == expected
    assert verydeep.evaluate(model, tmp_path / "data.npz").top1 == expected["top1"]
    with pytest.raises(
        DataError, match="shards that are streamed; fetch them, and give their path"
    ):
        verydeep.evaluate(model, "https://localhost/a-{0..9}.tar")


def test_classes_in_folders_that_are_links(model: Path, tmp_path: Path) -> None:
    for number in range(2):
        photo(tmp_path / "store" / NAMES[number] / f"{number}.png", seed=number)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAMES[0]).symlink_to(tmp_path / "store" / NAMES[0])
    shutil.copytree(tmp_path / "store" / NAMES[1], tmp_path / "data" / NAMES[1])
    assert verydeep.evaluate(model, tmp_path / "data").n == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_a_class_is_found_as_train_stored_it(tmp_path: Path) -> None:
    for number, name in enumerate((b"caf\xe9", b"bl\xfc, or so", "caf\u00e8".encode())):
        photo(
            Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "data"), name))) / f"{number}.png"
        )
    names = list(find(tmp_path / "data", val_fraction=0).classes)
    assert "caf\\udce9" in names
    assert verydeep.evaluate(named(tmp_path / "m.safetensors", names), tmp_path / "data").n == 3


def test_classes_that_differ_by_a_hyphen_are_not_one(tmp_path: Path) -> None:
    for number, name in enumerate(("a-b", "a_b", "c")):
        photo(tmp_path / "data" / name / f"{number}.png", seed=number)
    whole = named(tmp_path / "m.safetensors", ["a-b", "a_b", "c"])
    truth = verydeep.load(whole).scores(sorted((tmp_path / "data").rglob("*.png"))).argmax(1)
    assert verydeep.evaluate(whole, tmp_path / "data").top1 == np.mean(truth == [0, 1, 2])
    one = named(tmp_path / "n.safetensors", ["a b", "c"])
    with pytest.raises(DataError, match="'a-b' and 'a_b' would both be the model's 'a b'"):
        verydeep.evaluate(one, tmp_path / "data")


def test_refusals(verydeep: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "flat" / "a.png")
    photo(tmp_path / "other" / "violins" / "a.png")
    for where, message in (
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path / "text.tar", "not a data set that is known; expected a folder"),
        (tmp_path / "empty", "empty: no photos in it; expected one folder of images"),
        (tmp_path / "flat", "a.png: in no class folder; expected one folder for each class"),
        (tmp_path / "other", "'violins' is no class of the model; did you mean violin?"),
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
