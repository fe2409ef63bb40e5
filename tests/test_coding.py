"""Weights learnt as multiples of steps: what bits cost, the file that comes of it, and runs that go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from verydeep import compress, load, modelfile
from verydeep.compression.learning import learnt, unnormed
from verydeep.errors import ArgumentError, DataError
from verydeep.modelfile.codec import Coded, encode
from verydeep.nets import network
from verydeep.training import learn
from verydeep.training.begin import train
from verydeep.training.coding import Coding, slopes_of
from verydeep.training.loop import fit
from verydeep.training.record.result import TrainResult

from . import tiny
from .labelled import CLASSES, SETTINGS, arrays, images

CHANNELS = (16, 16, 32, 32, 32, 32, 32, 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("set") / "set.npz")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose weights are coded, 32 channels wide."""
    folder = tmp_path_factory.mktemp("coded")
    head = {"head": "gap", "layers": "relu5_2", "classes": 3}
    net = network("vgg11", channels=CHANNELS, **head)
    given = tiny.model_file(folder / "given.safetensors", net, class_names=CLASSES)
    compress(given, folder / "coded.safetensors")
    return folder / "coded.safetensors"


def streams(path: Path) -> int:
    stored = modelfile.read(path).stored
    return sum(array.nbytes for key, array in stored.items() if key.endswith(".code"))


def laplace(shape: tuple[int, ...], size: float, seed: int = 0) -> Coded:
    draw = np.random.default_rng(seed)
    numbers = np.rint(draw.laplace(0, size, shape)).astype(np.int16)
    rows, columns = np.zeros(shape[0], np.int16), np.zeros(int(np.prod(shape[1:])), np.int16)
    return Coded(numbers, 0.25, rows, columns, shape[2] * shape[3], shape[3])


def test_slopes_are_what_a_number_more_costs() -> None:
    """Of the values' own two neighbours: what the codec takes for all, were one of them one larger."""
    grid = laplace((24, 16, 3, 3), 1.5)
    values = torch.from_numpy(grid.multiples + np.float32(0.25))
    bits, slopes = slopes_of(grid, values)
    assert slopes.shape == values.shape
    # the codec's own bytes, but for its head
    assert 0 < len(encode(grid)) - bits / 8 < 120
    size = np.abs(grid.multiples)
    mean = [float(slopes.numpy()[grid.multiples == n].mean()) for n in (-3, -1, 0, 1, 3)]
    assert mean[0] < mean[1] < 0 < mean[2] < mean[4]
    # one more of all that are not 0, by hand: farther from 0
    away = replace(grid, multiples=(grid.multiples + np.sign(grid.multiples)).astype(np.int16))
    above = np.where(grid.multiples > 0, slopes.numpy(), 0).sum()
    below = slopes_of(grid, values - 1)[1].numpy()
    added = above - np.where(grid.multiples < 0, below, 0).sum()
    assert size.max() > 5
    assert 0 < (len(encode(away)) - len(encode(grid))) * 8 < 2 * added


def test_the_estimate_is_within_a_hundredth_of_the_bytes() -> None:
    for size, seed in ((0.2, 1), (1.0, 2), (8.0, 3)):
        grids = {"a.weight": laplace((48, 40, 3, 3), size, seed)}
        coding = Coding(grids, 1000, torch.device("cpu"))
        other = replace(grids["a.weight"], multiples=laplace((48, 40, 3, 3), size, 9).multiples)
        model = torch.nn.ModuleDict({"a": torch.nn.Conv2d(40, 48, 3, bias=False)})
        with torch.no_grad():
            model["a"].weight.copy_(torch.from_numpy(other.weight))  # type: ignore[operator]
        found = coding.pull(model, 0, 10, 1.0)
        assert found is not None
        assert_allclose(found, len(encode(other)), rtol=0.01)


def test_a_run_becomes_smaller_and_its_file_is_what_was_trained(
    coded: Path, data: Path, tmp_path: Path
) -> None:
    aim = round(0.85 * streams(coded))
    own = {"code_bytes": aim, "optimiser": "adamw", "rate": 3e-3, "epochs": 40, "average": 0.0}
    result = train_coded(coded, data, tmp_path / "out", **own)
    found = modelfile.read(result.model)
    assert streams(result.model) <= 1.05 * aim
    rows = [line for line in result.log if line["event"] == "epoch"]
    assert_allclose(rows[-1]["code_bytes"], streams(result.model), rtol=0.05)
    # the same steps, but for the temperature in the head's
    before = modelfile.read(coded)
    for key, shape in found.record.network.tensors.items():
        if len(shape) > 1 and not key.startswith("classifier"):
            ours, theirs = (
                modelfile.codec.decode(one.stored[f"{key}.code"], shape) for one in (found, before)
            )
            assert ours.step == theirs.step
            np.testing.assert_array_equal(ours.columns, theirs.columns)
    # measured in training, by torch; now of the file, by another engine
    scores = load(result.model, engine="onnxruntime", precision="exact").scores(
        list(images(24, 1)[0])
    )
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert_allclose(probabilities, result.probabilities, atol=2e-5)


def train_coded(coded: Path, data: Path, out: Path, **changes: Any) -> TrainResult:
    resume = changes.pop("resume", False)
    settings = {**SETTINGS, "head": "gap", "start": "he", **changes}
    return train("small-images", data, out=out, init=coded, settings=settings, resume=resume)


def test_a_run_that_was_stopped_goes_on_to_the_bit(
    coded: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"code_bytes": streams(coded) // 2, "optimiser": "adamw", "rate": 3e-3, "epochs": 3}
    whole = train_coded(coded, data, tmp_path / "whole", **own)

    def stopped(*given: Any, **named: Any) -> None:
        asked = iter(range(100))
        fit(*given, **{**named, "stop": lambda: next(asked) == 6})  # within the second epoch

    with monkeypatch.context() as patch:
        patch.setattr(learn, "fit", stopped)
        with pytest.raises(SystemExit):
            train_coded(coded, data, tmp_path / "cut", **own)
    cut = train_coded(coded, data, tmp_path / "cut", **own, resume=True)
    assert any(line["event"] == "resume" and line["step"] == 7 for line in cut.log)
    one, other = (modelfile.read(result.model).stored for result in (whole, cut))
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key])


def test_another_file_of_coded_weights_is_not_gone_on_with(
    coded: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are others, and in them the same weights are other numbers."""
    own = {"code_bytes": streams(coded) // 2, "optimiser": "adamw", "rate": 3e-3, "epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(
            learn, "fit", lambda *given, **named: fit(*given, **{**named, "stop": lambda: True})
        )
        with pytest.raises(SystemExit):
            train_coded(coded, data, tmp_path / "cut", **own)
    before = coded.read_bytes()
    compress(coded, tmp_path / "other", size=len(before) - 1000, again=True)
    coded.write_bytes((tmp_path / "other").read_bytes())
    with pytest.raises(DataError, match="is not the file any more that the run in"):
        train_coded(coded, data, tmp_path / "cut", **own, resume=True)
    coded.write_bytes(before)
    assert train_coded(coded, data, tmp_path / "cut", **own, resume=True).model.exists()


def test_how_many_bytes_it_came_to_is_said(coded: Path, data: Path, tmp_path: Path) -> None:
    aim = streams(coded) // 3
    own = {"code_bytes": aim, "optimiser": "adamw", "rate": 3e-3, "epochs": 2}
    result = train_coded(coded, data, tmp_path / "out", **own)
    notes = [line["text"] for line in result.log if line["event"] == "note"]
    taken = streams(result.model)
    assert f"its streams take {taken:,} bytes of {aim:,}; more epochs make it less" in notes


def test_weights_that_are_not_coded_are_refused(data: Path, tmp_path: Path) -> None:
    net = network("vgg11", head="gap", layers="relu5_2", classes=3, width=1 / 16)
    given = tiny.model_file(tmp_path / "given.safetensors", net, class_names=CLASSES)
    with pytest.raises(DataError, match="code_bytes=900 needs the same network to start from with"):
        train_coded(given, data, tmp_path / "out", code_bytes=900)
    assert not (tmp_path / "out").exists()


def test_without_batch_norms_the_answers_are_the_same(tmp_path: Path) -> None:
    given = modelfile.read(tiny.model_file(tmp_path / "g.safetensors", tiny.tiny("vgg13_bn")))
    bare = tmp_path / "bare.safetensors"
    modelfile.write(bare, *unnormed(given))
    assert modelfile.read(bare).record.network.name == "vgg13"
    assert not any("running" in key for key in modelfile.read(bare).stored)
    shown = list(tiny.pixels(32, 32, 4))
    theirs, ours = (
        load(path, engine="onnxruntime", precision="exact").scores(shown)
        for path in (given.path, bare)
    )
    assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_a_size_that_cannot_be_is_refused_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least that is named is what a file takes whose weights are all 0."""
    monkeypatch.setattr("verydeep.compression.compress", pytest.fail)
    net = network("vgg11_bn", head="gap", layers="relu5_2", classes=3, width=1 / 16)
    given = modelfile.read(tiny.model_file(tmp_path / "g", net, class_names=CLASSES))

    def refused(size: Any) -> str:
        with pytest.raises(ArgumentError) as caught:
            learnt(given, data, tmp_path / "out", size=size, calibrate=[])
        return str(caught.value)

    assert refused("6KB") == "size is '6KB'; expected a whole number, 1 or more"
    least = int(refused(900).partition("fewer than ")[2].split()[0])
    record, bare = unnormed(given)
    streams = {}
    for key, array in bare.items():
        if array.ndim > 1:
            cells = int(np.prod(array.shape[2:]))
            rows, columns = (np.zeros(n, np.int16) for n in (len(array), array[0].size))
            zeros = Coded(
                np.zeros(array.shape, np.int16),
                1.0,
                rows,
                columns,
                cells,
                array.shape[-1] if cells > 1 else 1,
            )
            streams[f"{key}.code"] = np.frombuffer(encode(zeros), np.uint8)
    coded = {key: array for key, array in bare.items() if array.ndim == 1}
    modelfile.write(tmp_path / "zero", record, {**coded, **streams})
    assert_allclose(least, (tmp_path / "zero").stat().st_size, rtol=0.1)
    assert f"size is {least - 1}; no file of this network has fewer" in refused(least - 1)


def test_small_by_training(data: Path, tmp_path: Path) -> None:
    """From a network with batch norms to a file of so many bytes, the whole network being the teacher."""
    net = network("vgg11_bn", head="gap", layers="relu5_2", classes=3, width=1 / 16)
    given = tiny.model_file(tmp_path / "given.safetensors", net, class_names=CLASSES)
    size = 40_000
    made = learnt(
        modelfile.read(given), data, tmp_path / "out", size=size, calibrate=[],
        settings={**SETTINGS, "start": "he", "head": "gap", "epochs": 1, "optimiser": "adamw"},
    )  # fmt: skip
    # these few steps only begin to make it smaller than it was coded
    assert made.stat().st_size < 1.3 * size < given.stat().st_size
    record = modelfile.read(made).record
    assert record.network.name == "vgg11"
    assert record.provenance["config"]["teacher"] == str(given)  # type: ignore[index, call-overload]
    assert "compressed_from" in record.provenance
