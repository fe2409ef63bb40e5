"""Quantising: the int8 model answers as the float one, says how often, and refuses what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from verydeep import modelfile
from verydeep import quantisation as quantize
from verydeep.engines import Engine, installed
from verydeep.errors import (
    ArgumentError,
    DataError,
    EngineError,
    LayerError,
    ModelFileError,
    NetworkError,
    OutputError,
)
from verydeep.graphs import network as graph
from verydeep.graphs.int8 import build, plan
from verydeep.modelfile import Activation, ModelFile
from verydeep.nets import network
from verydeep.preprocess import CAFFE, TORCHVISION, Preprocess
from verydeep.quantisation import BATCH, Draft, batches
from verydeep.quantisation.rounding import error_names, probed

from .conftest import Run
from .tiny import model_file, photo, pixels, tiny, weights

ENGINES_HERE = [made.name for made in installed() if "int8" in made.precisions]


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth noise of 32 pixels a side."""
    draw = np.random.default_rng(seed)
    small = draw.uniform(0, 255, (count, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    return list((0.8 * small + draw.uniform(0, 51, small.shape)).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(40):
        photo(tmp_path / "photos" / f"{seed % 3}" / f"{seed:02}.png", seed=seed)
    return tmp_path / "photos"


def opened(path: Path, name: str = "vgg11", head: str = "gap", **choices: object) -> ModelFile:
    return modelfile.read(model_file(path, tiny(name, head, **choices)))


def scores(model: ModelFile, engine: str, pictures: list[np.ndarray]) -> np.ndarray:
    made = Engine(engine, build(model), precision="int8", threads=1)
    return made.run(np.stack(pictures))["scores"]


FIGURE = {"what": "top1", "value": 0.5, "protocol": "of the float model"}
CASES = [("vgg11", "gap", "max"), ("vgg11_bn", "classic", "avg"), ("vgg11_lrn", "small", "l2")]


@pytest.mark.parametrize(("name", "head", "pool"), CASES)
def test_int8_answers_as_float(name: str, head: str, pool: str, tmp_path: Path) -> None:
    path = model_file(tmp_path / "m", tiny(name, head, pool=pool), measured=(FIGURE,))
    model = modelfile.read(path)
    net = model.record.network
    checked = images(24, seed=1)
    made = quantize.quantise_pixels(model, images(16), checked, threads=1)
    modelfile.write(tmp_path / "q", made.record, made.tensors)
    again = modelfile.read(tmp_path / "q")
    exact = graph.build(net, model.tensors(), model.record.preprocess)
    theirs = Engine("onnxruntime", exact, threads=1).run(np.stack(checked))["scores"]
    for engine in ENGINES_HERE:
        ours = scores(again, engine, checked)
        error = quantize.score_error(ours, theirs)
        assert 1e-5 < error < 0.05, engine
        if engine == "onnxruntime":
            assert made.score_error == pytest.approx(error)
            assert made.agreement == (ours.argmax(1) == theirs.argmax(1)).mean()
    q = [key for key, array in again.stored.items() if array.dtype == np.int8]
    assert len(q) == net.weight_layers - len(made.floats)
    assert set(again.record.activations) == set(plan(net, made.floats).places)
    agreement, error = again.record.measured
    assert (agreement["value"], error["value"]) == (made.agreement, made.score_error)
    assert agreement["n"] == 24
    came_from = again.record.provenance["quantised_from"]
    assert came_from == {"sha256": model.sha256, "measured": [dict(FIGURE)]}


def test_float_layers_are_those_that_were_named(tmp_path: Path) -> None:
    model = opened(tmp_path / "m", "vgg11_bn", "classic")
    chosen = ("fc7", "conv3_1", "conv1_1")
    made = quantize.quantise_pixels(model, images(16), images(16, 1), floats=chosen, threads=1)
    assert made.floats == ("conv1_1", "conv3_1", "fc7")
    whole = {name.removesuffix(".q") for name, a in made.tensors.items() if a.dtype == np.int8}
    keys = {layer.name: f"{layer.key}.weight" for layer in model.record.network.layers if layer.key}
    assert whole == {key for name, key in keys.items() if name not in chosen}
    assert set(made.record.activations) == set(plan(model.record.network, chosen).places)
    one = quantize.quantise_pixels(model, images(16), images(16, 1), floats="fc7", threads=1)
    assert one.floats == ("fc7",)
    nothing = quantize.quantise_pixels(model, images(16), images(16, 1), floats=(), threads=1)
    assert nothing.floats == ()
    assert "input" in nothing.record.activations


def test_weights_of_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    """Their rounding is the file's own, and was perhaps made with care; in a float layer they get room."""
    net = tiny("vgg11")
    tensors = dict(weights(net))
    draw = np.random.default_rng(0)
    for key in ("features.0.weight", "features.8.weight", "features.11.weight"):
        shape = tensors.pop(key).shape
        tensors[f"{key}.q"] = draw.integers(-127, 128, shape, np.int8)
        tensors[f"{key}.scale"] = np.full((shape[0], 1, 1, 1), 0.002, np.float32)
    modelfile.write(tmp_path / "m", modelfile.Record(net), tensors)
    model = modelfile.read(tmp_path / "m")
    made = quantize.quantise_pixels(model, images(16), images(16), floats=("conv3_2",), threads=1)
    for key in ("features.0.weight", "features.11.weight"):
        for part in (f"{key}.q", f"{key}.scale"):
            np.testing.assert_array_equal(made.tensors[part], tensors[part])
    assert made.tensors["features.8.weight.q"].dtype == np.int16
    np.testing.assert_array_equal(
        made.tensors["features.8.weight.q"], tensors["features.8.weight.q"]
    )
    modelfile.write(tmp_path / "q", made.record, made.tensors)
    nodes = {node.name: node for node in build(modelfile.read(tmp_path / "q")).model.graph.node}
    assert "conv3_2.weight" not in nodes  # read as floats: no rounding stands before it
    assert "conv4_1.weight" in nodes


def draft_of(path: Path, name: str = "vgg11", head: str = "gap", **choices: object) -> Draft:
    model = opened(path, name, head, **choices)
    return Draft(model.record.network, model.record.preprocess, dict(model.stored), threads=1)


@pytest.mark.parametrize(
    ("head", "place", "until"),
    [("gap", "relu4_2", "scores"), ("gap", "relu2_1", "relu3_1"), ("classic", "avgpool", "relu7")],
)
def test_probe_measures_what_rounding_one_value_changes(
    head: str, place: str, until: str, tmp_path: Path
) -> None:
    draft = draft_of(tmp_path / "m", head=head)
    pictures = images(11)
    ways = [Activation(0.003), Activation(0.02, 7)]
    tap = () if until == "scores" else (until,)
    probe = probed(draft.graph(tap, scores=until == "scores"), place, until, ways)
    found = list(draft.run(probe, pictures))
    assert [len(f[error_names(place, ways)[0]]) for f in found] == [BATCH, 11 - BATCH]
    for way, name in zip(ways, error_names(place, ways), strict=True):
        draft.activations = {}
        plain = draft.graph(tap, scores=until == "scores")
        a = np.concatenate([f[until] for f in draft.run(plain, pictures)])
        draft.activations = {place: way}
        changed = draft.graph(tap, scores=until == "scores")
        b = np.concatenate([f[until] for f in draft.run(changed, pictures)])
        expected = np.square(a - b).reshape(11, -1).sum(1)
        assert expected.min() > 0
        assert_allclose(np.concatenate([f[name] for f in found]), expected, rtol=1e-3)


def test_means_are_corrected(tmp_path: Path) -> None:
    """A layer's mean on the calibration photos, after its ReLU, is the float model's, or near it."""
    model = opened(tmp_path / "m", "vgg11_bn", "classic")
    pictures = images(16)
    made = quantize.quantise_pixels(model, pictures, pictures, threads=1)
    record, net = model.record, model.record.network
    uncorrected = {k: v for k, v in model.stored.items() if k.endswith(".bias")}
    after = Draft(net, record.preprocess, made.tensors, made.record.activations, 1)
    before = replace(after, stored={**made.tensors, **uncorrected})
    exact = Draft(net, record.preprocess, dict(model.stored), threads=1)
    names = tuple(layer.name for layer in net.layers if layer.kind == "relu" or layer.name == "fc8")
    expected = exact.means(names, pictures, int8=False)
    gains = {}
    for name in names[1:]:
        off = [
            np.abs(d.means((name,), pictures)[name][0] - expected[name][0]) for d in (after, before)
        ]
        gains[name] = off[0].mean() / off[1].mean()
    assert gains["fc8"] < 0.01  # no ReLU follows: one step does it
    assert np.median(list(gains.values())) < 0.3, gains


def test_means_by_hand(tmp_path: Path) -> None:
    draft = draft_of(tmp_path / "m")
    pictures = images(11)
    found = draft.means(("conv2_1", "avgpool"), pictures, int8=False)
    taps = ("conv2_1", "avgpool")
    built = draft.graph(taps, int8=False)
    floats = np.stack(pictures).astype(np.float32)
    whole = Engine("onnxruntime", built, threads=1).run(floats)
    for name in taps:
        assert_allclose(found[name][0], whole[name].mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        assert_allclose(found[name][1], (whole[name] > 0).mean((0, 2, 3)), atol=1e-3)


@pytest.mark.parametrize(
    ("record", "least", "most"),
    [
        (TORCHVISION, (0 - 0.485) / 0.229, (1 - 0.406) / 0.225),
        (CAFFE, -123.68, 255 - 103.939),
        (Preprocess(mean=(0.0,) * 3), 0, 1 / 0.224),
        (Preprocess(range=(-1, 1), mean=(0.0,) * 3, std=(1.0,) * 3), -1, 1),
    ],
)
def test_input_range_holds_black_and_white(record: Preprocess, least: float, most: float) -> None:
    how = quantize.input_range(record)
    assert (0 - how.zero_point) * how.scale == pytest.approx(least, abs=0.51 * how.scale)
    assert (255 - how.zero_point) * how.scale == pytest.approx(most, abs=0.51 * how.scale)


def test_batches_share_a_size() -> None:
    given = [*images(9), np.zeros((40, 32, 3), np.float32), *images(2)]
    found = list(batches(given))
    assert [b.shape[:3] for b in found] == [(8, 32, 32), (1, 32, 32), (1, 40, 32), (2, 32, 32)]
    assert all(b.dtype == np.float32 for b in found)
    np.testing.assert_array_equal(np.concatenate([found[0], found[1]]), np.stack(given[:9]))


def test_refusals(tmp_path: Path) -> None:
    model = opened(tmp_path / "m")
    with pytest.raises(DataError, match=r"^3 photos to calibrate on; expected 16 or more"):
        quantize.quantise_pixels(model, images(3), images(16))
    with pytest.raises(DataError, match=r"^0 photos to check with; expected 16 or more"):
        quantize.quantise_pixels(model, images(16), [])
    with pytest.raises(LayerError, match=r"no layer 'conv9_9' with weights; did you mean conv"):
        quantize.quantise_pixels(model, images(16), images(16), floats=("conv9_9",))
    record = modelfile.Record(model.record.network, activations={"relu1_1": Activation(1.0)})
    modelfile.write(tmp_path / "q", record, model.tensors())
    with pytest.raises(ModelFileError, match=r"q: it was quantised already; expected the float"):
        quantize.quantise_pixels(modelfile.read(tmp_path / "q"), images(16), images(16))
    trunk = opened(tmp_path / "t", "vgg11", "classic", classes=0)
    with pytest.raises(NetworkError, match=r"t: it is a trunk without a head, .* quantise a model"):
        quantize.quantise_pixels(trunk, images(16), images(16))


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e38])
def test_values_without_a_range(value: float, tmp_path: Path) -> None:
    model = opened(tmp_path / "m")
    tensors = {key: array.copy() for key, array in model.tensors().items()}
    tensors["features.3.weight"][0] = value
    modelfile.write(tmp_path / "i", model.record, tensors)
    with pytest.raises(EngineError, match=r"relu\d_\d that are not finite \(NaN or infinite\)"):
        quantize.quantise_pixels(modelfile.read(tmp_path / "i"), images(16), images(16), threads=1)


def test_network_that_is_dead(tmp_path: Path) -> None:
    """Values that are 0 on all photos have a range all the same."""
    model = opened(tmp_path / "m")
    tensors = {key: np.zeros_like(array) for key, array in model.tensors().items()}
    modelfile.write(tmp_path / "z", model.record, tensors)
    made = quantize.quantise_pixels(
        modelfile.read(tmp_path / "z"), images(16), images(16), threads=1
    )
    assert (made.agreement, made.score_error) == (1.0, 0.0)


# The command


def test_command(verydeep: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    words = ("quantize", model, "--calibrate", photos, "--out", out, "--threads", 1)
    outcome = verydeep(*words, "--json", "--count", 38)
    assert outcome.status == 0, outcome.err
    value = json.loads(outcome.out)
    assert (value["calibrated"], value["checked"], value["unreadable"]) == (19, 19, 0)
    assert 0 <= value["agreement"] <= 1
    assert modelfile.read(out).record.activations
    assert outcome.err == ""
    outcome = verydeep(*words, "--check", photos / "1", "--float", "conv1_1", "--float", "fc8",
                       "--count", 16)  # fmt: skip
    assert outcome.status == 2
    assert "13 photos to check with; expected 16 or more" in outcome.err
    outcome = verydeep(*words, "--check", photos, "--float", "conv1_1")
    assert outcome.status == 0
    assert "the same first answer on" in outcome.out
    assert "of 40 photos" in outcome.out
    assert "conv1_1 in float32" in outcome.out


def test_command_reports_what_cannot_be_read(
    verydeep: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "0" / "bad.png").write_text("no photo")
    out = tmp_path / "int8.safetensors"
    outcome = verydeep("quantize", model, "--calibrate", photos, "--out", out, "--threads", 1)
    assert outcome.status == 1
    assert "bad.png" in outcome.err
    assert out.exists()


def test_command_refuses(verydeep: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        outcome = verydeep("quantize", *words)
        assert (outcome.status, outcome.out) == (2, "")
        return outcome.err

    out = tmp_path / "int8.safetensors"
    (tmp_path / "empty").mkdir()
    assert "no photos in" in refused(model, "--calibrate", tmp_path / "empty", "--out", out)
    given = ("--calibrate", photos)
    assert "no photos in" in refused(model, *given, "--check", tmp_path / "empty", "--out", out)
    assert "cannot be written" in refused(model, *given, "--out", tmp_path / "none" / "q")
    assert "Missing option '--out'" in refused(model, *given)
    assert "Missing option '--calibrate'" in refused(model, "--out", out)
    assert "there is no such file" in refused(tmp_path / "gone.safetensors", *given, "--out", out)
    assert not out.exists()


def test_out_is_checked_before_the_work(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none" / "q")
    for out in (tmp_path / "none" / "q", tmp_path / "link"):
        with pytest.raises(
            OutputError, match=r"cannot be written: No such file .*; make the folder"
        ):
            quantize.quantize(model, [str(photos)], out)
    assert capsys.readouterr().err == ""
    with pytest.raises(ArgumentError, match=r"count is 0; expected a whole number, 1 or more"):
        quantize.quantize(model, [str(photos)], tmp_path / "q", count=0)
    with pytest.raises(OutputError, match=r"it is a folder; name a file in it"):
        quantize.quantize(model, [str(photos)], tmp_path)
    before = model.read_bytes()
    with pytest.raises(OutputError, match=r"leads to the file that it is made of; name another"):
        quantize.quantize(model, [str(photos)], model)
    assert model.read_bytes() == before
    with pytest.raises(DataError, match=r"ndarray.0. is ndarray; expected .image, label"):
        quantize.quantize(model, images(16), tmp_path / "q")  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [("conv5_2",), ("conv4_1", "relu5_2"), ("pool3",)])
def test_heads_that_read_before_a_relu_or_in_the_middle(
    layers: tuple[str, ...], tmp_path: Path
) -> None:
    """Averages below 0 are rounded, too; layers that no score needs stay as they are."""
    net = network("vgg11", head="gap", layers=layers, classes=7, width=1 / 16)
    model = modelfile.read(model_file(tmp_path / "m", net))
    result = quantize.quantise_pixels(model, images(16), images(16, 1), floats=(), threads=1)
    assert result.score_error < 0.05
    average = result.record.activations["avgpool"]
    assert average.zero_point == (0 if layers == ("pool3",) else 128)
    if layers == ("pool3",):
        assert "features.11.weight" in result.tensors  # conv4_1's
        assert "relu4_1" not in result.record.activations
    modelfile.write(tmp_path / "q", result.record, result.tensors)
    ours = scores(modelfile.read(tmp_path / "q"), "onnxruntime", images(16, 1))
    assert ours.shape == (16, 7)


def test_photos_are_taken_evenly() -> None:
    assert quantize.spread([str(i) for i in range(10)], 5) == list("02468")
    assert quantize.spread(["a", "b"], 5) == ["a", "b"]
    assert pixels(4, 4).shape == (2, 4, 4, 3)
