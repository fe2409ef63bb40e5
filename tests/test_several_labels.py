"""Models whose photos may be of several classes, or of none: everything that reads one reads it so."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score

import verydeep
from verydeep import exporting, models, quantisation
from verydeep.datasets.labelled import find
from verydeep.engines import installed
from verydeep.errors import DataError
from verydeep.explanations import Explainer
from verydeep.modelfile import read
from verydeep.predictor import Answer, Failure, probabilities, sigmoid, softmax
from verydeep.published import conversion

from .conftest import Run
from .test_export import SUFFIX
from .test_quantize import images
from .tiny import IDS, NAMES, model_file, photo

EXACT: dict[str, Any] = {"engine": "onnxruntime", "precision": "exact"}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [photo(tmp_path / f"{number:02}.png", seed=number) for number in range(24)]


@pytest.fixture
def truth(photos: list[Path], tmp_path: Path) -> np.ndarray:
    """(photos, classes), logits of the model's network."""
    return verydeep.load(model_file(tmp_path / "plain.safetensors"), **EXACT).scores(photos)


@pytest.fixture
def model(truth: np.ndarray, tmp_path: Path) -> Path:
    """Its thresholds leave the first photo without a class, and most others with some."""
    chances = expit(truth.astype(np.float64))
    thresholds = np.minimum(1, np.maximum(np.quantile(chances, 0.6, axis=0), chances[0] + 1e-6))
    return model_file(tmp_path / "several.safetensors", thresholds=tuple(thresholds.tolist()))


@pytest.fixture
def said(truth: np.ndarray, model: Path) -> np.ndarray:
    """(photos, classes): whether the model says the class."""
    return np.asarray(expit(truth.astype(np.float64)) >= np.array(read(model).record.thresholds))


def test_probabilities_are_sigmoids_at_both_ends(model: Path) -> None:
    scores = np.array([[-800.0, -50.0, -1.0, 0.0, 1.0, 50.0, 800.0]])
    for found in (probabilities(read(model).record, scores), sigmoid(scores)):
        assert_allclose(found, expit(scores), rtol=1e-12)


def test_an_answer_is_all_that_reach_their_threshold(
    model: Path, photos: list[Path], truth: np.ndarray, said: np.ndarray
) -> None:
    predictor = verydeep.load(model, **EXACT)
    counts = set()
    for answer, scores, there in zip(predictor(photos, top=2), truth, said, strict=True):
        counts.add(int(there.sum()))
        order = [at for at in np.argsort(-scores) if there[at]] or np.argsort(-scores)[:2]
        assert [p.label for p in answer.predictions] == [NAMES[at] for at in order]
        assert [p.id for p in answer.predictions] == [IDS[at] for at in order]
        assert_allclose(
            [p.probability for p in answer.predictions], expit(scores[order]), rtol=1e-5
        )
        assert answer.sure == there.any()
        assert str(answer).startswith(f"{answer.path}: not sure: ") != answer.sure
    assert {0, 3} <= counts  # or this would show little


def test_a_probability_that_is_its_threshold_is_said(tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.png")
    for threshold, sure, count in ((0.0, True, 7), (1.0, False, 5)):
        path = model_file(tmp_path / f"{sure}.safetensors", thresholds=(threshold,) * 7)
        answer = verydeep.load(path, engine="onnxruntime")(picture)
        assert (answer.sure, len(answer.predictions)) == (sure, count)


def test_classify_prints_all_of_them_and_no_others(
    verydeep: Run, model: Path, photos: list[Path], said: np.ndarray, tmp_path: Path
) -> None:
    words = ("classify", *photos, "--model", model, "--top", 2)
    rows = json.loads(verydeep(*words, "--json").out)
    assert [len(row["predictions"]) for row in rows] == [int(n) or 2 for n in said.sum(1)]
    assert [row["sure"] for row in rows] == said.any(1).tolist()
    outcome = verydeep(*words, "--csv", tmp_path / "out.csv")
    blocks = re.split(r"\n(?! )", outcome.out.strip())
    assert [block.count("%") for block in blocks] == [len(row["predictions"]) for row in rows]
    assert ["not sure" in block for block in blocks] == (~said.any(1)).tolist()
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        table = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    none = [{"label": ""}]  # of no class, and not of its guesses
    assert table == [
        (row["path"], p["label"])
        for row in rows
        for p in (row["predictions"] if row["sure"] else none)
    ]


def test_train_and_evaluate_read_what_classify_wrote(
    verydeep: Run, model: Path, photos: list[Path], said: np.ndarray, tmp_path: Path
) -> None:
    table = tmp_path / "out.csv"
    verydeep("classify", *photos, "--model", model, "--csv", table)
    found = find(table, val_fraction=0, multi=True)
    assert [len(sample.labels) for sample in found.train] == said.sum(1).tolist()
    done = verydeep("evaluate", model, table, "--json", "--engine", "onnxruntime")
    result = json.loads(done.out)
    assert result["n"] == len(said)
    # what it said is all there, so nothing is missed; at another precision, a tie may fall the other way
    assert (result["mean_average_precision"], result["f1"]) == pytest.approx((1, 1), abs=0.02)


def labelled(path: Path, photos: list[Path], labels: np.ndarray) -> Path:
    rows = (
        f"{file.name},{';'.join(NAMES[at] for at in np.flatnonzero(row))}\n"
        for file, row in zip(photos, labels, strict=True)
    )
    path.write_text("path,label\n" + "".join(rows), "utf-8")
    return path


def test_evaluate_equals_scikit_learn(
    verydeep: Run,
    model: Path,
    photos: list[Path],
    truth: np.ndarray,
    said: np.ndarray,
    tmp_path: Path,
) -> None:
    labels = np.random.default_rng(3).random(truth.shape) < 0.4
    labels[:, 5] = False
    labels[2] = False  # of no class
    (tmp_path / "00.png").write_text("no photo")
    words = ("evaluate", model, labelled(tmp_path / "data.csv", photos, labels))
    done = verydeep(*words, "--json", "--engine", "onnxruntime", "--precision", "exact")
    result = json.loads(done.out)
    labels, scores, said = labels[1:], truth[1:], said[1:]
    there = labels.any(0)
    expected = [
        average_precision_score(labels[:, at], scores[:, at]) if there[at] else None
        for at in range(7)
    ]
    f1 = [f1_score(labels[:, at], said[:, at]) if there[at] else None for at in range(7)]
    assert (done.status, result["n"], result["errors"]) == (1, 23, 1)
    assert [one["label"] for one in result["classes"]] == list(NAMES)
    assert [one["photos"] for one in result["classes"]] == labels.sum(0).tolist()
    for one, precision, score in zip(result["classes"], expected, f1, strict=True):
        assert (one["average_precision"], one["f1"]) == pytest.approx((precision, score))
    assert result["mean_average_precision"] == pytest.approx(np.mean([x for x in expected if x]))
    assert result["f1"] == pytest.approx(np.mean([x for x in f1 if x is not None]))
    text = verydeep(*words).out
    assert text.startswith("mean average precision ")
    assert "; 1 could not be read\n" in text
    assert re.search(r"^espresso +0 *$", text, re.MULTILINE)


def test_evaluate_takes_single_labels_too(model: Path, photos: list[Path], tmp_path: Path) -> None:
    """As one label of several; a name with a blank, or a comma, in it is one."""
    one = np.eye(7, dtype=bool)[np.arange(24) % 7]
    only = np.eye(7, dtype=bool)[np.full(24, 2)]  # "school bus" alone
    for labels in (one, only):
        result = verydeep.evaluate(model, labelled(tmp_path / "data.csv", photos, labels))
        assert [figure["photos"] for figure in result.classes] == labels.sum(0).tolist()  # type: ignore[union-attr]
    for number, name in enumerate(NAMES):
        photo(tmp_path / "folders" / name / "a.png", seed=number)
    folders = verydeep.evaluate(model, tmp_path / "folders")
    assert {figure["photos"] for figure in folders.classes} == {1}  # type: ignore[union-attr]


def test_evaluate_says_what_cannot_be_matched(verydeep: Run, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "00.png")
    table = tmp_path / "data.csv"
    for text, message in (
        ("00.png,ant;wasp", "'wasp' is no class of the model"),
        ("00.png,", "no photo is of any class; expected some that are"),
    ):
        table.write_text(f"path,label\n{text}\n", "utf-8")
        outcome = verydeep("evaluate", model, table)
        assert (outcome.status, outcome.out) == (2, "")
        assert message in outcome.err
    with pytest.raises(DataError, match="photos of several classes; expected one class a photo"):
        verydeep_of_several(tmp_path)


def verydeep_of_several(tmp_path: Path) -> None:
    """Photos of several classes for a model that gives one answer."""
    picture = np.zeros((4, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", val_images=picture, val_labels=np.ones((4, 7), int))
    verydeep.evaluate(model_file(tmp_path / "one.safetensors"), tmp_path / "a.npz")


@pytest.mark.parametrize("engine", [made.name for made in installed()])
def test_the_layer_prob_is_what_answers_say(
    engine: str, model: Path, photos: list[Path], truth: np.ndarray
) -> None:
    predictor = verydeep.load(model, engine=engine)
    for features, scores in zip(
        predictor.features_stream(photos, "prob", top=7), truth, strict=True
    ):
        assert not isinstance(features, Failure)
        assert features.answer is not None
        assert_allclose(features["prob"], expit(scores), atol=1e-4)
        first = features.answer  # of the same pass: MNN wrote over its scores
        assert first.probability == pytest.approx(
            features["prob"][NAMES.index(first.label)], abs=1e-4
        )


def test_a_torch_module_gives_it_too(model: Path, tmp_path: Path) -> None:
    import torch

    x = torch.randn(2, 3, 32, 32)
    module = models.load(model)
    scores, chances = (value.detach().numpy() for value in module.taps(x, ("fc8", "prob")).values())
    assert_allclose(chances, expit(scores), rtol=1e-5)
    plain = models.load(model_file(tmp_path / "one.safetensors")).taps(x, "prob")["prob"]
    assert_allclose(plain.detach().numpy(), softmax(scores), rtol=1e-5)


@pytest.mark.parametrize("method", ["cam", "occlusion"])
def test_explanations_bear_the_classs_own_probability(
    method: str, model: Path, photos: list[Path], truth: np.ndarray
) -> None:
    explainer = Explainer(verydeep.load(model, **EXACT), method)
    explanation = explainer(photos[3], top=3)
    order = np.argsort(-truth[3])[:3]
    assert [heat.index for heat in explanation.maps] == order.tolist()
    found = [heat.probability for heat in explanation.maps]
    assert_allclose(found, expit(truth[3][order]), rtol=1e-5)
    assert explainer.check(explanation, draws=1).deletion[0] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("to", SUFFIX)
def test_an_export_says_what_classify_says(
    to: str, model: Path, photos: list[Path], said: np.ndarray, tmp_path: Path
) -> None:
    done = exporting.export(model, to, tmp_path / f"out{SUFFIX[to]}", taps="prob")
    predictor = verydeep.load(model, **EXACT)
    for number in (0, int(said.sum(1).argmax())):
        answer = predictor(photos[number])
        assert isinstance(answer, Answer)
        command = [sys.executable, "-I", "-W", "error", str(done.program), str(photos[number])]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        rows = re.findall(r"^ *([\d.]+)%  (.+)$", ran.stdout, re.MULTILINE)
        assert [label for _, label in rows] == [p.label for p in answer.predictions]
        expected = [100 * p.probability for p in answer.predictions]
        assert_allclose([float(x) for x, _ in rows], expected, atol=0.11)
        assert ("not sure" in ran.stdout) == (not answer.sure)


def test_int8_is_compared_by_all_that_is_said(model: Path) -> None:
    opened = read(model)
    made = quantisation.quantise_pixels(opened, images(16), images(24, seed=1), threads=1)
    assert made.record.thresholds == opened.record.thresholds
    assert "int8 and float32 say the same classes of " in str(made)
    scores = np.random.default_rng(0).normal(size=(5, 7))
    assert quantisation.score_error(scores + 1, scores) == pytest.approx(0, abs=1e-12)
    assert quantisation.score_error(scores + 1, scores, several=True) > 0.1  # another probability
    moved = np.zeros((1, 7))
    assert not (quantisation.said(opened.record, moved - 9)).any()
    assert quantisation.said(opened.record, moved + 90).all()


def test_int8_predicts_as_any(model: Path, photos: list[Path], tmp_path: Path) -> None:
    made = quantisation.quantise_pixels(read(model), images(16), images(24, seed=1), threads=1)
    from verydeep.modelfile import write

    write(tmp_path / "q.safetensors", made.record, made.tensors)
    predictor = verydeep.load(tmp_path / "q.safetensors", precision="int8", engine="onnxruntime")
    values = predictor.features(photos[:2], ("fc8", "prob"))
    assert_allclose(values["prob"], expit(values["fc8"]), rtol=1e-4)


def test_summary_says_how_probabilities_are_made(
    verydeep: Run, model: Path, tmp_path: Path
) -> None:
    figure = tmp_path / "figure.svg"
    assert (
        ", 7 classes, several an image, input 3" in verydeep("summary", model, "--svg", figure).out
    )
    text = figure.read_text("utf-8")
    assert ("a sigmoid each" in text, "soft-max" in text) == (True, False)
    layers = json.loads(verydeep("summary", model, "--json").out)["layers"]
    assert [layer["kind"] for layer in layers][-2:] == ["fc", "sigmoid"]


def test_weights_verify_and_show_take_it(
    verydeep: Run, model: Path, photos: list[Path], said: np.ndarray, tmp_path: Path
) -> None:
    assert verydeep("weights", "verify", model).status == 0
    page = tmp_path / "page.html"
    number = int(said.sum(1).argmax())
    assert verydeep("show", model, photos[number], "--html", page).status == 0
    assert page.read_text("utf-8").count("<dt>") == said[number].sum()


@pytest.mark.parametrize(
    "told",
    [{"thresholds": (0.5, 0.2, 0.9, 0.4, 0.6, 0.3, 0.7)}, {"threshold": 0.25, "least_mean": 0.5}],
)
def test_a_converted_model_keeps_what_its_record_says_of_answers(
    told: dict[str, object], tmp_path: Path
) -> None:
    path = model_file(tmp_path / "own.safetensors", **told)
    conversion.convert(path, tmp_path / "again.safetensors")
    record = read(tmp_path / "again.safetensors").record
    assert {key: getattr(record, key) for key in told} == told
