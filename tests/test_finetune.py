"""Fine-tuning upper blocks from kept maps: equal to the whole network, resumed to the bit, refusals."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

import verydeep
from verydeep import modelfile
from verydeep.errors import DataError, OutputError
from verydeep.models import loading
from verydeep.nets import Head
from verydeep.predictor import Predictor
from verydeep.training.data.labelled import find
from verydeep.training.heads import finetune as module
from verydeep.training.heads import linear
from verydeep.training.heads.finetune import FinetuneConfig, Upper, run
from verydeep.training.heads.frozen import frozen

from .test_probe import photos
from .tiny import model_file, tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn"])
def trunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = tiny(request.param)
    return model_file(tmp_path_factory.mktemp("trunk") / "trunk.safetensors", net)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    photos(folder / "train", 12)
    photos(folder / "val", 4, seed=1)
    return folder


def config(trunk: Path, **changes: object) -> FinetuneConfig:
    given = {
        "model": str(trunk), "size": 32, "engine": "onnxruntime", "features": "exact", "epochs": 3,
        "batch": 8, "views": 2, "precision": "fp32", "hold": 0.25, "rate": 1e-4, "patience": 10,
        "smoothing": 0.0, "dropout": 0.0,
    }  # fmt: skip
    return FinetuneConfig(**{**given, **changes})  # type: ignore[arg-type]


def test_end_to_end(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    result = run(config(trunk), flowers, out=tmp_path / "out")
    epochs = [line for line in result.log if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    assert epochs[-1]["loss"] < epochs[0]["loss"]  # the solved head was not the end of it
    assert result.top1 > 0.9
    made = verydeep.load(result.model, engine="onnxruntime", precision="exact")
    paths = [str(path) for path in sorted((flowers / "val").glob("*/*.png"))]
    own = verydeep.predictor.softmax(made.scores(paths))
    # trained filters are stored in half precision
    assert_allclose(own, result.probabilities, atol=5e-3)
    before, after = modelfile.read(trunk), modelfile.read(result.model)
    network = after.record.network
    changed = {
        layer.name
        for layer in network.trunk
        for key in layer.tensors
        if not np.array_equal(before.tensors([key])[key], after.tensors([key])[key])
    }
    assert changed == {"conv5_1", "conv5_2"}
    for layer in network.trunk:
        if layer.norm_key:  # statistics are those that it came with
            for field in ("running_mean", "running_var"):
                key = f"{layer.norm_key}.{field}"
                assert_allclose(after.tensors([key])[key], before.tensors([key])[key])
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["views"] == 2


@pytest.mark.parametrize(("cut", "start"), [("pool4", "conv5_1"), ("", "conv1_1")])
def test_upper_blocks_on_kept_maps_are_the_network_on_photos(
    trunk: Path, flowers: Path, cut: str, start: str
) -> None:
    model = modelfile.read(trunk)
    layers = ("relu3_2", "relu5_1", "relu5_2")
    network = replace(model.record.network, head=Head("gap", 3, layers))
    predictor = Predictor(model, engine="onnxruntime", precision="exact")
    samples = find(flowers).val
    kept = frozen(predictor, samples, cut, layers, 32)
    draw = np.random.default_rng(0)
    width = kept.averages.shape[1]
    head = linear.LinearHead(
        draw.normal(size=(3, width)).astype(np.float32), draw.normal(size=3).astype(np.float32)
    )
    scale = linear.scaling(kept.averages)
    first = next(i for i, layer in enumerate(network.trunk) if layer.name == start)
    upper = Upper(network, model.tensors(), first, head, scale, 0.0).eval()
    with torch.no_grad():
        found = upper(
            torch.from_numpy(kept.maps.astype(np.float32)), torch.from_numpy(kept.averages)
        )
    raw = upper.solved()
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in model.tensors().items()}
    tensors |= {
        "classifier.weight": torch.from_numpy(raw.weight),
        "classifier.bias": torch.from_numpy(raw.bias),
    }
    whole = loading.assemble(loading.Trained(network, tensors)).eval()
    preprocess = replace(model.record.preprocess, resize="exact", resize_size=32, crop_size=None)
    pixels = np.stack([preprocess.pixels(str(sample.source)) for sample in samples])
    with torch.no_grad():
        expected = whole(torch.from_numpy(preprocess.normalise(pixels)))
    assert_allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    assert upper.trained[0] == start


def test_all_blocks(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    result = run(config(trunk, blocks=5, epochs=1, views=1), flowers, out=tmp_path / "out")
    before, after = modelfile.read(trunk), modelfile.read(result.model)
    for layer in after.record.network.trunk:
        for key in layer.tensors:
            if key.endswith("weight"):
                assert not np.array_equal(before.tensors([key])[key], after.tensors([key])[key])


def test_views(trunk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "left.png")
        Image.fromarray(pixels[:, ::-1]).save(folder / name / "right.png")
    samples = find(folder, val_fraction=0).train
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    seen = [frozen(predictor, samples, "pool2", ("relu2_1",), 32, view=v) for v in range(3)]
    assert_allclose(seen[0].averages[0], seen[1].averages[1], rtol=1e-4)
    assert_allclose(seen[0].maps[2], seen[1].maps[3], rtol=1e-2, atol=1e-2)
    assert np.abs(seen[2].averages - seen[0].averages).max() > 1e-3
    told: list[int] = []
    again = frozen(predictor, samples, "pool2", ("relu2_1",), 32, view=2, passed=told.append)
    assert told == []
    assert_allclose(again.averages, seen[2].averages)
    other = frozen(predictor, samples, "pool2", ("relu2_1",), 32, view=2, seed=1)
    assert np.abs(other.averages - seen[2].averages).max() > 1e-4


def test_resumed_it_ends_as_if_it_had_never_stopped(
    trunk: Path, flowers: Path, tmp_path: Path
) -> None:
    given = config(trunk, dropout=0.4)
    whole = run(given, flowers, out=tmp_path / "whole")

    def stop(line: object) -> None:
        if line["event"] == "step" and line["epoch"] == 2:  # type: ignore[index]
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(given, flowers, out=tmp_path / "cut", event=stop)
    with pytest.raises(OutputError, match="holds a run already"):
        run(given, flowers, out=tmp_path / "cut")
    with pytest.raises(DataError, match=r"epochs was 3, is 4; resume it with its own"):
        run(config(trunk, dropout=0.4, epochs=4), flowers, out=tmp_path / "cut", resume=True)
    resumed = run(given, flowers, out=tmp_path / "cut", resume=True)
    first, second = modelfile.read(whole.model), modelfile.read(resumed.model)
    for name, array in first.stored.items():
        assert np.array_equal(array, second.stored[name]), name
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*")}
    again = run(given, flowers, out=tmp_path / "cut", resume=True)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*")} == before
    assert again.top1 == resumed.top1


def test_checkpoints_are_kept_within_an_epoch(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = module.checkpoint.save

    def counted(folder: Path, step: int, *rest: object) -> Path:
        saved.append(step)
        return save(folder, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module.checkpoint, "save", counted)
    run(config(trunk, epochs=2, checkpoint_minutes=0.0), flowers, out=tmp_path / "often")
    steps = saved[-1] // 2
    assert sorted(set(saved)) == list(range(2 * steps + 1))
    saved.clear()
    run(config(trunk, epochs=2), flowers, out=tmp_path / "seldom")
    assert saved == [0, steps, 2 * steps]


def test_it_stops_early_and_keeps_the_best(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    wild = config(trunk, rate=1.0, head_rate=1.0, epochs=9, patience=2)
    result = run(wild, flowers, out=tmp_path / "out")
    losses = [line["loss"] for line in result.log if line["event"] == "epoch"]
    end = next(line for line in result.log if line["event"] == "end")
    assert len(losses) < 10
    assert end["best_epoch"] == int(np.argmin(losses)) == len(losses) - 3
    assert result.top1 > 0.9  # of the best epoch, not of the last


def test_rates_fall_from_layer_to_layer(trunk: Path) -> None:
    model = modelfile.read(trunk)
    network = replace(model.record.network, head=Head("gap", 3, ("relu5_2",)))
    head = linear.LinearHead(np.zeros((3, 32), np.float32), np.zeros(3, np.float32))
    scale = linear.Scaling(np.zeros(32, np.float32), np.ones(32, np.float32))
    first = module._first(network, 2)
    upper = Upper(network, model.tensors(), first, head, scale, 0.0)
    found = module.groups(upper, config(trunk, rate=1.0, fall=0.5, head_rate=0.3))
    assert [group["rate"] for group in found] == [0.3, 1.0, 0.5, 0.25, 0.125]
    named = {id(p): n for n, p in upper.named_parameters()}
    assert [named[id(group["params"][0])].split(".")[1] for group in found[1:]] == [
        "conv5_2", "conv5_1", "conv4_2", "conv4_1",
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in found) == len(named)


def test_refusals(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    for change, words in (
        ({"size": 8}, "size is 8; vgg11"),
        ({"layers": ("fc6",)}, "no layer 'fc6'|layer 'fc6' belongs"),
    ):
        with pytest.raises(DataError if "layers" not in change else Exception, match=words):
            run(config(trunk, **change), flowers, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for change, words in (
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"hold": 0.9}, "hold is 0.9; expected 0.01 or more, at most 0.5"),
    ):
        with pytest.raises(DataError, match=words):
            config(trunk, **change)
