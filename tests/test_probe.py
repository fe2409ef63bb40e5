"""A probe end to end on tiny networks and photos whose classes are colours; its cache; its refusals."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics import log_loss as sklearn_log_loss

import verydeep
from verydeep import modelfile
from verydeep.datasets.labelled import Sample, find
from verydeep.errors import DataError, LayerError, OutputError
from verydeep.predictor import softmax
from verydeep.probing import features as features_module
from verydeep.probing.choosing import candidates, choose, familiarity, finished
from verydeep.probing.features import averages
from verydeep.training import probe
from verydeep.training.begin import train as run
from verydeep.training.probe import ProbeConfig

from .conftest import Outcome, Run
from .tiny import model_file, tiny

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}


def photos(folder: Path, count: int, seed: int = 0) -> Path:
    """Class folders of noisy photos of one colour each, all different."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            draw = np.random.default_rng([seed, number, *colour])
            noise = draw.normal(0, 60, (40, 48, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("trunk") / "trunk.safetensors")


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("flowers")
    photos(folder / "train", 12)
    photos(folder / "val", 6, seed=1)
    yield folder
    assert len([*folder.rglob("*.png")]) == 54, "a test changed what all share"


def config(trunk: Path, **changes: object) -> ProbeConfig:
    given = {"model": str(trunk), "sizes": (32,), "engine": "onnxruntime", "precision": "exact"}
    return ProbeConfig(**{**given, **changes})  # type: ignore[arg-type]


def test_end_to_end(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    lines: list[dict[str, object]] = []
    result = run(config(trunk), flowers, out=tmp_path / "out", event=lines.append)
    assert result.top1 > 0.9
    assert result.classes == ("blue", "green", "red")
    assert result.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    made = verydeep.load(result.model, engine="onnxruntime", precision="exact")
    network = made.record.network
    assert network.head.kind == "gap"
    assert made.record.class_names == result.classes
    assert made.record.preprocess.resize == "exact"
    # the model file says of the photos themselves what the run said of its features
    paths = sorted((flowers / "val").glob("*/*.png"))
    answers = made([str(path) for path in paths])
    own = np.array([[next(p.probability for p in a.predictions if p.label == c)
                     for c in result.classes] for a in answers])  # fmt: skip
    assert_allclose(own, result.probabilities, atol=2e-4)
    figures = {m["what"]: m for m in made.record.measured}
    assert figures["top1"]["value"] == pytest.approx(result.top1)
    assert "18 validation images" in str(figures["top1"]["protocol"])
    assert made.record.provenance["config"] == config(trunk).to_dict() | {
        "sizes": [32],
        "layers": [],
    }
    # what lies in the folder
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["config"]["recipe"] == "probe"
    logged = [
        json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["event"] for line in logged if line["event"] != "tried"] == [
        "start", "note", "note", "chosen", "note", "end",
    ]  # fmt: skip
    assert [line for line in lines if line["event"] != "features"] == logged
    done = [line["done"] for line in lines if line["event"] == "features"]
    assert done == [*range(1, 37)] * 2 + [*range(1, 19)]  # as they are and mirrored; to validate


def test_a_second_run_computes_nothing_and_says_the_same(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config(trunk), flowers, out=tmp_path / "a")
    monkeypatch.setattr(
        verydeep.Predictor, "_run", lambda *_: pytest.fail("the network was run again")
    )

    def none(*args: object, **_: object) -> object:
        photos = args[1]
        assert len(photos) == 0  # type: ignore[arg-type]
        return iter(())

    monkeypatch.setattr(verydeep.Predictor, "features_stream", none)
    second = run(config(trunk), flowers, out=tmp_path / "b")
    assert_allclose(second.probabilities, first.probabilities, rtol=1e-6)
    assert "0 computed" in str([line for line in second.log if line["event"] == "note"])


def test_features_are_the_averages_of_the_layers(trunk: Path, flowers: Path) -> None:
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    samples = find(flowers).train
    last = [layer.name for layer in predictor.record.network.trunk if layer.kind == "relu"][-2:]
    made = averages(predictor, samples, last, size=(32, 32))
    assert made.computed == len(samples)
    whole = predictor.features([str(s.source) for s in samples], last, size=(32, 32))
    expected = np.concatenate([whole[layer].mean(axis=(2, 3)) for layer in last], axis=1)
    assert_allclose(made.values, expected, rtol=1e-4, atol=1e-5)


def test_features_of_mirror_images(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    for name in ("0.png", "1.png"):
        with Image.open(flowers / "val" / "red" / name) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"no")
    there = [Sample(str(flowers / "val" / "red" / f"{n}.png"), 0, str(n)) for n in range(2)]
    here = [Sample(str(tmp_path / f"{n}.png"), 0, str(n)) for n in range(3)]
    made = averages(predictor, here, ("relu3_1",), size=(32, 32), mirrored=True)
    plain = averages(predictor, there, ("relu3_1",), size=(32, 32))
    assert_allclose(made.values[:2], plain.values, rtol=1e-4, atol=1e-5)
    assert list(made.faults) == [2]


def test_a_photo_is_known_by_its_content_and_a_space_by_all_it_depends_on(
    trunk: Path, flowers: Path, tmp_path: Path
) -> None:
    samples = find(flowers).train
    layers = ("relu1_1",)

    def computed(model: Path = trunk, precision: str = "exact", **options: object) -> int:
        predictor = verydeep.load(model, engine="onnxruntime", precision=precision)
        given: dict[str, object] = {"layers": layers, "size": (32, 32), **options}
        return averages(predictor, samples, **given).computed  # type: ignore[arg-type]

    assert computed() == 36
    assert computed() == 0
    assert computed(size=(34, 34)) == 36
    assert computed(layers=("relu2_1",)) == 36
    assert computed(precision="fast") == 36
    assert computed(mirrored=True) == 36
    other = model_file(tmp_path / "other.safetensors", threshold=0.5)
    assert computed(other) == 36
    moved = photos(tmp_path / "moved", 13)
    samples = tuple(find(moved, val_fraction=0).train)
    assert computed() == 3  # one new photo a class; twelve are as they were, elsewhere


def test_a_run_that_is_stopped_keeps_what_it_computed(
    trunk: Path, flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SHARD", 8)
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    samples = find(flowers).train

    def stop(_: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(1)
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        averages(predictor, samples, ("relu1_1",), size=(32, 32), passed=stop)
    assert averages(predictor, samples, ("relu1_1",), size=(32, 32)).computed in (16, 17)


def test_a_damaged_cache_is_computed_again(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    samples = find(flowers).train
    first = averages(predictor, samples, ("relu1_1",), size=(32, 32))
    for file in (tmp_path / "cache" / "features").rglob("averages.npy"):
        file.write_bytes(file.read_bytes()[:-9])
    again = averages(predictor, samples, ("relu1_1",), size=(32, 32))
    assert again.computed == 36
    assert_allclose(again.values, first.values)


def test_bad_photos_are_left_out_and_listed(trunk: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "data", 10)
    (folder / "red" / "3.png").write_bytes(b"")
    (folder / "blue" / "0.png").write_bytes((folder / "blue" / "0.png").read_bytes()[:200])
    result = run(config(trunk), folder, out=tmp_path / "out")
    assert len(result.bad) == 2
    assert {name.rpartition("/")[2] for name, _ in result.bad} == {"3.png", "0.png"}
    assert any("the file is empty" in why for _, why in result.bad)
    for part in ("val", "test"):  # what cannot be measured costs no model
        for file in photos(tmp_path / "parts" / part, 2, seed=len(part)).rglob("*.png"):
            file.write_bytes(b"no" + str(file).encode())
    photos(tmp_path / "parts" / "train", 10)
    result = run(config(trunk), tmp_path / "parts", out=tmp_path / "unmeasured")
    assert result.model.exists()
    assert np.isnan(result.top1)
    assert len(result.bad) == 12
    told = [line["text"] for line in result.log if "photos to test at" in line.get("text", "")]
    assert ": 0 computed, 0 kept from before" in told[0]
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no")
    with pytest.raises(DataError, match="no photo to train on can be read"):
        run(config(trunk), folder, out=tmp_path / "none")


def test_what_was_computed_is_counted_without_what_could_not_be_read(
    trunk: Path, tmp_path: Path
) -> None:
    data = find(photos(tmp_path / "photos", 12), val_fraction=0)
    Path(str(data.train[0].source)).unlink()
    for number, counts in enumerate((": 35 computed by", ": 0 computed, 35 kept from before")):
        result = run(config(trunk), data, out=tmp_path / str(number))
        told = [
            line["text"] for line in result.log if "photos to train on at" in line.get("text", "")
        ]
        assert counts in told[0]


def test_choosing_never_sees_what_is_held_out() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 2
    useful = (labels[:, None] + draw.normal(0, 0.6, (200, 4))).astype(np.float32)
    noise = draw.normal(size=(200, 300)).astype(np.float32)
    both = np.concatenate([useful, noise], axis=1)[None]
    widths = {"useful": 4, "noise": 300}
    sets = (("useful", "noise"), ("useful",), ("noise",))
    chosen = choose(both, labels, 2, widths, sets)
    assert chosen.layers == ("useful",)
    assert chosen.columns.tolist() == [0, 1, 2, 3]
    alone = choose(noise[None], labels, 2, {"noise": 300}, sets[2:])
    assert 0.35 < alone.top1 < 0.65  # by chance, though a head could learn all of them by heart
    assert choose(both, labels, 2, widths, sets, l2=0.5).l2 == 0.5
    # a photo's other views are held out with it
    mirrored = np.stack([noise, noise + 1e-3])
    again = choose(mirrored, labels, 2, {"noise": 300}, sets[2:])
    assert again.held_out.shape == (200, 2)
    assert 0.35 < again.top1 < 0.65
    assert (chosen.folds, choose(both, labels, 2, widths, sets, l2=1.0, folds=12).folds) == (10, 12)
    assert (
        choose(np.tile(useful, (6, 1))[None], np.tile(labels, 6), 2, {"useful": 4}, sets[1:2]).folds
        == 3
    )


def test_photos_of_several_labels(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, truth = ["file,labels"], []
    for number in range(60):
        red, blue = number % 2, number % 3 == 0
        pixels = np.random.default_rng(number).normal(90, 40, (40, 48, 3))
        pixels += np.array([90 * red, 0, 90 * blue])
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        labels = [name for name, there in (("red", red), ("blue", blue)) if there]
        rows.append(f'{number}.png,"{";".join(labels)}"')
        truth.append([blue, bool(red)])
    Path("labels.csv").write_text("\n".join(rows) + "\n")
    result = run(config(trunk, val_fraction=0.3), "labels.csv", out="out")
    assert result.classes == ("blue", "red")
    numbers = [int(Path(sample.name).stem) for sample in result.val]
    assert result.labels.tolist() == np.array(truth, float)[numbers].tolist()
    assert np.isnan(result.top1)
    expected = average_precision_score(result.labels, result.probabilities)
    assert result.mean_average_precision == pytest.approx(expected)
    assert expected > 0.9
    assert f"mean average precision {expected:.2%}" in str(result)
    record = modelfile.read(result.model).record
    assert record.thresholds == result.thresholds
    assert len(record.thresholds) == 2
    assert (record.threshold, record.least_mean) == (None, None)
    figures = {row["what"]: row["value"] for row in record.measured}
    assert figures["mean average precision"] == pytest.approx(expected, abs=1e-6)
    page = Path("out", "report.html").read_text()
    assert "average precision" in page
    assert "held-out mean average precision" in page
    again = run(config(trunk, val_fraction=0.3), "labels.csv", out="out", resume=True)
    assert_allclose(again.probabilities, result.probabilities, atol=2e-3)
    assert again.thresholds == result.thresholds


def test_the_head_is_scikit_learns_on_all_views() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(90) % 3
    views = labels[:, None] + draw.normal(0, 2, (2, 90, 12)) * np.arange(1, 13) + 40
    views = views.astype(np.float32)
    widths = {"low": 7, "high": 5}
    chosen = choose(views, labels, 3, widths, (("high",),), l2=0.05)
    rows = views[..., 7:].reshape(180, 5)
    deviation = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.sqrt(deviation * deviation.mean())
    other = LogisticRegression(C=1 / (0.05 * 180), tol=1e-9, max_iter=10_000)
    other.fit(scaled, np.tile(labels, 2))
    made = finished(views, labels, 3, widths, chosen).scores(rows)
    apart = made - made.mean(axis=1, keepdims=True)  # the rest says how familiar a photo is
    expected = other.decision_function(scaled) / chosen.temperature
    assert_allclose(apart, expected - expected.mean(axis=1, keepdims=True), atol=0.01)


def test_several_labels_are_chosen_for_and_solved() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random((150, 3)) < (0.5, 0.3, 0.1)).astype(np.float32)
    useful = (labels @ draw.normal(size=(3, 8)) + draw.normal(0, 0.4, (150, 8))).astype(np.float32)
    noise = draw.normal(size=(150, 60)).astype(np.float32)
    widths = {"noise": 60, "useful": 8}
    both = np.concatenate([noise, useful], axis=1)[None]
    chosen = choose(both, labels, 3, widths, (("noise",), ("useful",)))
    assert chosen.layers == ("useful",)
    chances = 1 / (1 + np.exp(-chosen.held_out.astype(np.float64) / chosen.temperature))
    expected = np.mean([sklearn_log_loss(labels[:, at], chances[:, at]) for at in range(3)])
    assert chosen.loss == pytest.approx(expected, rel=1e-5)
    assert chosen.top1 == pytest.approx(average_precision_score(labels, chosen.held_out))
    head = finished(both, labels, 3, widths, chosen)
    alone = finished(both, labels, 3, widths, replace(chosen, temperature=1.0))
    assert_allclose(head.weight * chosen.temperature, alone.weight, rtol=1e-5)
    assert_allclose(head.bias * chosen.temperature, alone.bias, rtol=1e-5)


def test_copies_are_held_out_together() -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(100) % 2, 2)
    noise = np.repeat(draw.normal(size=(100, 300)), 2, axis=0).astype(np.float32)
    every = {"noise": 300}, (("noise",),)
    leaky = choose(noise[None], labels, 2, *every, l2=0.01)
    honest = choose(noise[None], labels, 2, *every, l2=0.01, groups=np.repeat(np.arange(100), 2))
    assert leaky.top1 > 0.75
    assert 0.3 < honest.top1 < 0.7


def test_candidates() -> None:
    network = verydeep.network("vgg16")
    sets = candidates(network)
    assert sets[0] == tuple("relu3_3 relu4_1 relu4_2 relu4_3 relu5_1 relu5_2 relu5_3".split())
    assert all(set(s) <= set(sets[0]) for s in sets)
    assert candidates(network, ("relu5_3",)) == (("relu5_3",),)
    with pytest.raises(LayerError, match="did you mean relu5_3"):
        candidates(network, ("relu5_33",))
    with pytest.raises(DataError, match="layer 'fc6' belongs to the head"):
        candidates(network, ("fc6",))
    assert candidates(tiny("vgg11"))[0][-1] == "relu5_2"


def test_sizes_and_layers_are_chosen_or_told(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    told = config(trunk, sizes=(32, 36), layers=("relu2_1",), l2=0.2, stretch=False)
    result = run(told, flowers, out=tmp_path / "out")
    record = modelfile.read(result.model).record
    assert record.network.head.layers == ("relu2_1",)
    assert record.preprocess.crop_size in (32, 36)
    assert {line["size"] for line in result.log if line["event"] == "tried"} == {32, 36}
    assert {line["l2"] for line in result.log if line["event"] == "tried"} == {0.2}


def test_few_photos_are_taken_larger_and_mirrored(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for few, size, views in ((36, 224, 2), (35, 160, 1)):
        monkeypatch.setattr(probe, "FEW", few)
        result = run(config(trunk, sizes=()), flowers, out=tmp_path / str(few))
        assert modelfile.read(result.model).record.preprocess.resize_size == size
        notes = [str(line["text"]) for line in result.log if line["event"] == "note"]
        assert sum("to train on" in text for text in notes) == views
        assert {line["size"] for line in result.log if line["event"] == "tried"} == {size}


def test_refusals(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"sizes has 8, too small for relu5_2 of vgg11; expected \d+"
    ):
        run(config(trunk, sizes=(8,)), flowers, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for change, words in (
        ({"sizes": (64, 64)}, "sizes is"),
        ({"l2": -1.0}, "l2 is -1.0; expected 0 or more"),
        ({"folds": 1}, "folds is 1; expected 2 or more"),
    ):
        with pytest.raises(DataError, match=words):
            config(trunk, **change)
    run(config(trunk), flowers, out=tmp_path / "out")
    with pytest.raises(OutputError, match="holds a run already; go on with it by --resume"):
        run(config(trunk), flowers, out=tmp_path / "out")


def test_resuming_a_finished_run_changes_nothing(
    trunk: Path, flowers: Path, tmp_path: Path
) -> None:
    first = run(config(trunk), flowers, out=tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    again = run(config(trunk), flowers, out=tmp_path / "out", resume=True)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    assert again.top1 == first.top1
    (tmp_path / "out" / "model.safetensors").unlink()
    third = run(config(trunk), flowers, out=tmp_path / "out", resume=True)
    assert_allclose(third.probabilities, first.probabilities, rtol=1e-6)


def begun(verydeep: Run, trunk: Path, data: object, out: object) -> Outcome:
    few = ("sizes=32", "layers=relu4_2", "engine=onnxruntime", "precision=exact")
    words = [word for one in few for word in ("--set", one)]
    return verydeep("train", data, "--recipe", "probe", "--model", trunk, *words, "--out", out)


def test_a_run_is_taken_wherever_a_model_is(
    trunk: Path, flowers: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = begun(verydeep, trunk, flowers, "a run")
    assert done.status == 0, done.err
    *_, report, next_one = done.out.splitlines()
    assert report == f"report: {Path('a run', 'report.html')}"
    program, *words = shlex.split(next_one.removeprefix("try it: "))
    photo = str(flowers / "val" / "red" / "0.png")
    assert program == "verydeep"
    words[words.index("photo.jpg")] = photo
    assert "red" in verydeep(*words).out
    for words in (
        ("evaluate", "a run", flowers / "val"), ("summary", "a run"),
        ("export", "a run", "--to", "onnx", "--out", "a.onnx"),
        ("explain", photo, "--model", "a run", "--out", "seen"),
        ("features", photo, "--model", "a run", "--out", "f.npz"),
        ("duplicates", flowers / "val", "--model", "a run", "--layer", "relu1_1"),
        ("distance", photo, photo, "--model", "a run", "--metric", "content"),
        ("quantize", "a run", "--calibrate", flowers, "--count", "32", "--out", "q.safetensors"),
        ("train", flowers, "--recipe", "probe", "--init", "a run", "--out", "b", "--set", "sizes=32"),
        ("bench", "a run", "--rounds", "1", "--batch", "1", "--engines", "onnxruntime",
         "--precision", "exact"),
    ):  # fmt: skip
        done = verydeep(*words)
        assert done.status == 0, (words, done.err)
    (tmp_path / "a run" / "model.safetensors").unlink()
    done = verydeep("classify", "--model", "a run", photo)
    assert done.status == 2
    program, *words = shlex.split(done.err.partition("finish it with: ")[2])
    assert verydeep(*words).status == 0  # the advice works
    assert verydeep("classify", "--model", "a run", photo).status == 0


def test_a_run_goes_on_with_nothing_said_again(
    trunk: Path, flowers: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = os.path.relpath(flowers)
    first = begun(verydeep, trunk, here, "out")
    assert first.status == 0, first.err
    before = json.loads(Path("out", "config.json").read_text())
    Path("out", "model.safetensors").unlink()
    Path("out").rename(tmp_path / "there" / "moved")
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "there")
        done = verydeep("train", "--resume", "--out", "moved")
        assert done.status == 0, done.err
        Path(tmp_path, "there", "moved", "model.safetensors").unlink()
    after = json.loads((tmp_path / "there" / "moved" / "config.json").read_text())
    assert after["config"] == before["config"]
    out = tmp_path / "there" / "moved"
    assert after["command"] == f"{before['command']} --resume --out {out}"

    monkeypatch.chdir(tmp_path)
    for words in (
        ("--resume", "--out", "none"),
        (here, "--recipe", "probe", "--resume", "--out", "none"),
    ):
        done = verydeep("train", *words)
        assert (done.status, done.out) == (2, "")
        assert "--resume: there is no folder none" in done.err
        assert not Path("none").exists()
    (tmp_path / "empty").mkdir()
    done = verydeep("train", "--resume", "--out", "empty")
    assert done.status == 2
    assert "does not say by which command it was begun; give DATA and --recipe" in done.err
    assert "Missing argument 'DATA'" in verydeep("train").err


def test_a_quantised_trunk_stays_as_it_is_stored(tmp_path: Path, flowers: Path) -> None:
    built_in = verydeep.load().model
    few = {"sizes": (32,), "layers": ("relu1_2",), "engine": "onnxruntime", "precision": "exact"}
    result = run(ProbeConfig(**few), flowers, out=tmp_path / "out")  # type: ignore[arg-type]
    made = modelfile.read(result.model)
    for name, array in made.stored.items():
        if not name.startswith("classifier"):
            assert array.dtype == built_in.stored[name].dtype
            assert (array == built_in.stored[name]).all()
    assert made.record.licence == built_in.record.licence


def test_it_runs_without_torch(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from verydeep.training.probe import ProbeConfig\n"
        "from verydeep.training.begin import train as run\n"
        f"run(ProbeConfig(model={str(trunk)!r}, sizes=(32,), engine='onnxruntime'),"
        f" {str(flowers)!r}, out={str(tmp_path / 'out')!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_what_is_familiar_is_told_from_the_rest() -> None:
    """Photos like its own are refused in one of twenty cases; others, whose channels are others, mostly."""
    draw = np.random.default_rng(0)

    def averages(count: int, lively: slice) -> np.ndarray:
        values = draw.exponential(0.1, (count, 120))  # quiet channels
        values[:, lively] += draw.exponential(1.0, (count, lively.stop - lively.start))
        return values.astype(np.float32)

    own = averages(600, slice(0, 40))
    head = familiarity(own[:300], np.arange(300) % 3, (120,))
    assert head.weight.shape == (1, 120)
    others = averages(300, slice(70, 110))
    refused = [float((head.scores(x) < 0).mean()) for x in (own[300:], others)]
    assert 0 < refused[0] < 0.12
    assert refused[1] > 0.95
    assert np.std(own[:300:3] @ head.weight[0]) == pytest.approx(1, rel=1e-3)


def test_a_trained_classifier_can_say_not_sure(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    result = run(config(trunk), flowers, out=tmp_path / "run")
    record = modelfile.read(result.model).record
    assert record.least_mean == 0
    predictor = verydeep.load(result.model)
    photos = sorted(flowers.rglob("*.png"))
    answers = predictor(photos)
    scores = predictor.scores(photos)
    assert record.threshold is not None
    sure = (scores.mean(1) >= 0) & (softmax(scores).max(1) >= record.threshold)
    assert [answer.sure for answer in answers] == sure.tolist()
    assert sum(answer.sure for answer in answers) > len(answers) // 2
    figure = next(row for row in record.measured if row["what"] == "not sure")
    assert 0 <= figure["value"] <= 1
