"""int8 through the predictor: integers where the processor has them, a faithful substitute elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import verydeep
from verydeep.engines import Engine, installed, processor
from verydeep.errors import EngineError, ModelFileError
from verydeep.graphs import Source
from verydeep.graphs import int8 as qdq
from verydeep.graphs.lighter import layers_of
from verydeep.modelfile import ModelFile

from .test_int8 import int8_file
from .tiny import photo, pixels, tiny

ENGINES_HERE = [kind.name for kind in installed() if "int8" in kind.precisions]


@pytest.fixture
def quantised(tmp_path: Path) -> ModelFile:
    net = tiny("vgg11", "gap")
    return int8_file(tmp_path / "int8.safetensors", net, pixels(64, 64, 4))


def integers(model: ModelFile, images: np.ndarray) -> np.ndarray:
    built = qdq.build(model)
    return Engine("onnxruntime", built, precision="int8", threads=1).run(images)["scores"]


def test_int8_is_computed_in_integers(quantised: ModelFile, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{i}.png", 64, 64, seed=i) for i in range(3)]
    predictor = verydeep.load(quantised.path, precision="int8", engine="onnxruntime")
    images = np.stack([predictor.preprocess.pixels(file) for file in files])
    expected = integers(quantised, images)
    np.testing.assert_array_equal(predictor.scores(files), expected)
    floats = verydeep.load(quantised.path, precision="exact").scores(files)
    assert np.abs(floats - expected).max() > 1e-4 * np.abs(expected).max()
    assert predictor(files[0]).precision == "int8"


@pytest.mark.parametrize("head", ["gap", "small"])  # of which the one has hidden FC layers
def test_auto_races_every_engine_that_has_int8(
    head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = tiny("vgg11", head)
    quantised = int8_file(tmp_path / "int8.safetensors", net, pixels(64, 64, 4))
    file = photo(tmp_path / "photo.png", 64, 64)
    predictor = verydeep.load(quantised.path, precision="int8")
    answers = list(predictor.stream([file] * 40))
    said = capfd.readouterr().err
    assert f"here: {', '.join(ENGINES_HERE)} on " in said
    assert "left out" not in said
    assert {(answer.precision) for answer in answers if isinstance(answer, verydeep.Answer)} == {
        "int8"
    }


def test_layers_of_int8_are_the_same_whatever_the_numbers(tmp_path: Path) -> None:
    def layers(name: str, images: np.ndarray) -> str:
        net = tiny("vgg11", "small")
        made = int8_file(tmp_path / f"{name}.safetensors", net, images)
        return layers_of(Source.of(qdq.build(made)))

    assert layers("a", pixels(64, 64, 4)) == layers("b", pixels(64, 64, 4, seed=1))


def test_auto_takes_no_engine_that_adds_up_wrongly(
    quantised: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "multiplies_fast", lambda: None)  # as on Windows
    monkeypatch.setattr(processor, "overflows", lambda _: True)
    predictor = verydeep.load(quantised.path, precision="int8")
    assert predictor(photo(tmp_path / "a.png", 64, 64)).precision == "fast"


def test_without_products_of_integers_floats_compute(
    quantised: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "multiplies_fast", lambda: False)
    file = photo(tmp_path / "photo.png", 64, 64)
    predictor = verydeep.load(quantised.path, precision="int8")
    assert predictor(file).precision == "fast"
    expected = verydeep.load(quantised.path).scores([file])
    np.testing.assert_array_equal(predictor.scores([file]), expected)


def test_an_engine_that_overflows_is_refused_by_name(
    quantised: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "multiplies_fast", lambda: False)
    monkeypatch.setattr(processor, "overflows", lambda _: True)
    with pytest.raises(EngineError, match="onnxruntime adds up 8-bit products wrongly"):
        verydeep.load(quantised.path, precision="int8", engine="onnxruntime")


def test_a_float_model_is_refused(model: Path) -> None:
    with pytest.raises(ModelFileError, match="was not quantised, and int8 needs a file that was"):
        verydeep.load(model, precision="int8")
