"""Heat maps against other people's programs, against formulas written out, and on awkward input."""

from __future__ import annotations

import json
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from PIL import Image

import verydeep
from verydeep import models
from verydeep.errors import (
    DataError,
    EngineError,
    ImageError,
    LayerError,
    MissingExtraError,
    NetworkError,
    OutputError,
    VerydeepError,
)
from verydeep.explanations import METHODS, Explainer, Explanation, explain
from verydeep.explanations import picture as drawing
from verydeep.explanations.fidelity import check, rank_correlation
from verydeep.explanations.methods import centres, interpolation
from verydeep.nets import network
from verydeep.pictures import layout
from verydeep.predictor import Predictor
from verydeep.preprocess import Preprocess

from .conftest import Run
from .test_imports import BLOCK, python
from .tiny import IDS, NAMES, model_file, photo, tiny

WHOLE = Preprocess(resize="none", resize_size=None, crop_size=None)
GOLDEN = Path(__file__).parent / "golden"


def made(folder: Path, net: Any = None, **record: object) -> Predictor:
    return verydeep.load(
        model_file(folder / "m.safetensors", net, **record), precision="exact", engine="onnxruntime"
    )


def network_input(predictor: Predictor, image: Path) -> torch.Tensor:
    record = predictor.preprocess
    return torch.from_numpy(record.normalise(record.pixels(image)))


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(expected).max() > 0
    assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# CAM


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (63, 33)])
@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_the_mean_of_cam_is_the_score_less_the_bias(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    layers = ("relu2_1", "relu4_2", "relu5_2")
    net = network(name, head="gap", layers=layers, width=1 / 16, classes=7)
    predictor = made(tmp_path, net, preprocess=WHOLE)
    image = photo(tmp_path / "a.png", *size)
    scores = predictor.scores([image])[0]
    bias = predictor.model.tensors(["classifier.bias"])["classifier.bias"]
    seen = explain(predictor, image, top=7)
    assert seen.layers == layers
    assert sorted(heat.index for heat in seen.maps) == list(range(7))
    for heat in seen.maps:
        assert heat.map.shape == (size[0] // 2, size[1] // 2)
        assert heat.upscaled.shape == size
        assert heat.upscaled.dtype == np.float32
        expected = scores[heat.index] - bias[heat.index]
        assert heat.map.mean(dtype=np.float64) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert heat.score == pytest.approx(scores[heat.index], rel=1e-5)


def test_cam_of_one_layer_is_the_classic_one(tmp_path: Path) -> None:
    net = network("vgg16", head="gap", layers=("relu5_3",), width=1 / 16, classes=7)
    predictor = made(tmp_path, net)
    image = photo(tmp_path / "a.png")
    seen = explain(predictor, image, label="daisy")
    module = models.load(predictor.model.path)
    with torch.no_grad():
        maps = module.taps(network_input(predictor, image), ["relu5_3"])["relu5_3"][0]
        expected = torch.einsum("k,khw->hw", module.classifier.weight[3], maps)
    close(seen.map, expected.numpy())
    assert (seen.label, seen.maps[0].id, seen.maps[0].index) == ("daisy", IDS[3], 3)


def test_cam_of_several_layers_adds_them(tmp_path: Path) -> None:
    """Where sizes divide evenly, putting a unit at its place is torch's bilinear interpolation."""
    layers = ("relu3_2", "relu5_1", "relu4_1")
    net = network("vgg11", head="gap", layers=layers, width=1 / 16, classes=7)
    predictor = made(tmp_path, net, preprocess=WHOLE)
    image = photo(tmp_path / "a.png", 48, 64)
    module = models.load(predictor.model.path)
    with torch.no_grad():
        values = module.taps(network_input(predictor, image), layers)
        parts = module.classifier.weight[2].split([values[name].shape[1] for name in layers])
        expected = sum(
            F.interpolate(
                torch.einsum("k,khw->hw", part, values[name][0])[None, None],
                (12, 16), mode="bilinear",
            )[0, 0]
            for name, part in zip(layers, parts, strict=True)
        )  # fmt: skip
    seen = explain(predictor, image, label=2)
    close(seen.map, np.asarray(expected))
    up = F.interpolate(torch.from_numpy(seen.map)[None, None], (48, 64), mode="bilinear")[0, 0]
    close(seen.upscaled, up.numpy())
    one = explain(predictor, image, label=2, layer="relu5_1")
    assert one.layers == ("relu5_1",)
    close(one.map, torch.einsum("k,khw->hw", parts[1], values["relu5_1"][0]).detach().numpy())


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_cam_on_other_engines(tmp_path: Path, model: Path, engine: str) -> None:
    image = photo(tmp_path / "a.png")
    expected = explain(verydeep.load(model, precision="exact"), image)
    seen = explain(verydeep.load(model, engine=engine), image)
    close(seen.map, expected.map, 1e-3)
    assert (seen.engine, seen.precision) == (engine, "fast")


# Gradients


@pytest.mark.parametrize(
    ("head", "layer"),
    [("classic", None), ("classic", "relu3_2"), ("small", "conv4_1"), ("gap", "relu4_2"),
     ("gap", "pool4"), ("gap", None)],
)  # fmt: skip
def test_gradcam_is_pytorch_grad_cams(tmp_path: Path, head: str, layer: str | None) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from verydeep.models import layers

    class Raw(GradCAM):  # type: ignore[misc]
        """Keeps what is scaled up next."""

        def get_cam_image(self, *words: object, **named: object) -> np.ndarray:
            self.raw: np.ndarray = super().get_cam_image(*words, **named)
            return self.raw

    predictor = made(tmp_path, tiny(head=head, width=1 / 4), preprocess=Preprocess(
        resize_size=64, crop_size=64))  # fmt: skip
    image = photo(tmp_path / "a.png")
    seen = explain(predictor, image, method="gradcam", layer=layer, label=[5, 1])
    assert seen.layers == (layer or "relu5_2",)
    module = models.load(predictor.model.path)
    place = layers.positions(module.table.trunk)[layer or "relu5_2"]
    for heat in seen.maps:
        with Raw(module, [module.features[place]]) as theirs:
            theirs(network_input(predictor, image), [ClassifierOutputTarget(heat.index)])
            close(heat.map, np.maximum(theirs.raw[0], 0))


def test_gradcam_plus_is_the_papers(tmp_path: Path) -> None:
    """Against the formula in float64, and the library where gradients dwarf its epsilon."""
    from pytorch_grad_cam import GradCAMPlusPlus

    predictor = made(tmp_path, tiny(head="classic", width=1 / 4))
    image = photo(tmp_path / "a.png")
    module = models.load(predictor.model.path).double()
    values = module.taps(network_input(predictor, image).double(), ["relu4_2", "fc8"])
    maps = values["relu4_2"]
    (gradient,) = torch.autograd.grad(values["fc8"][0, 4], maps)
    g, a = gradient[0].numpy(), maps[0].detach().numpy()
    expected = np.zeros(a.shape[1:])
    for k in range(len(a)):
        total = a[k].sum()
        weight = 0.0
        for i, j in np.ndindex(*g[k].shape):
            below = 2 * g[k, i, j] ** 2 + total * g[k, i, j] ** 3
            if below:
                weight += g[k, i, j] ** 2 / below * max(g[k, i, j], 0)
        expected += weight * a[k]
    seen = explain(predictor, image, method="gradcam++", layer="relu4_2", label=4)
    close(seen.map, np.maximum(expected, 0), 1e-4)
    theirs = GradCAMPlusPlus(module, []).get_cam_weights(None, [], [], a[None], g[None] * 1e4)
    ours = explain_scaled(g * 1e4, a)
    assert_allclose(ours, theirs[0], rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


def explain_scaled(gradient: np.ndarray, maps: np.ndarray) -> np.ndarray:
    from verydeep.explanations.methods import weights_plus

    return weights_plus(torch.from_numpy(gradient), torch.from_numpy(maps)).numpy()


def test_gradcam_of_an_averaging_head_is_its_cam(tmp_path: Path, model: Path) -> None:
    """Where nothing follows the layer but its average, the gradient is the weight over the units."""
    image = photo(tmp_path / "a.png")
    predictor = verydeep.load(model, precision="exact")
    by_gradient = explain(predictor, image, method="gradcam", layer="relu5_2", top=7)
    by_weight = explain(predictor, image, layer="relu5_2", top=7)
    found, expected = (np.stack([heat.map for heat in s.maps]) for s in (by_gradient, by_weight))
    close(found, np.maximum(expected, 0) / 4)


@pytest.mark.parametrize("head", ["gap", "small"])
def test_ig_is_captums_and_complete(tmp_path: Path, head: str) -> None:
    from captum.attr import IntegratedGradients

    predictor = made(tmp_path, tiny(head=head))
    image = photo(tmp_path / "a.png")
    module = models.load(predictor.model.path)
    x = network_input(predictor, image)
    seen = explain(predictor, image, method="ig", label=[6, 2], steps=23)
    for heat in seen.maps:
        theirs = IntegratedGradients(module).attribute(x, target=heat.index, n_steps=23)
        close(heat.map, theirs[0].sum(0).detach().numpy())
    seen = explain(predictor, image, method="ig", label=6, steps=400)
    with torch.no_grad():
        gain = float(module(x)[0, 6] - module(torch.zeros_like(x))[0, 6])
    assert seen.map.sum(dtype=np.float64) == pytest.approx(gain, rel=1e-2)  # ReLU bends the way


# Occlusion


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_occlusion_is_captums(tmp_path: Path, order: Any) -> None:
    from captum.attr import Occlusion

    record = Preprocess(
        resize_size=32, crop_size=32, channel_order=order,
        mean=(0.4, 0.2, 0.6), std=(0.2, 0.3, 0.25),
    )  # fmt: skip
    predictor = made(tmp_path, preprocess=record)
    image = photo(tmp_path / "a.png")
    seen = explain(predictor, image, method="occlusion", label="violin", window=8, stride=8)
    x = network_input(predictor, image)
    theirs = Occlusion(models.load(predictor.model.path)).attribute(
        x, (3, 8, 8), (3, 8, 8), baselines=0, target=6
    )
    assert seen.map.shape == (4, 4)
    close(seen.map, theirs[0, 0, ::8, ::8].detach().float().numpy(), 1e-4)


def test_occlusion_reaches_the_border(tmp_path: Path) -> None:
    predictor = made(tmp_path, preprocess=WHOLE)
    image = photo(tmp_path / "a.png", 30, 41)
    seen = explain(predictor, image, method="occlusion", label=1, window=10, stride=7)
    assert seen.map.shape == (4, 6)  # 0 7 14 20, and 0 7 14 21 28 31
    pixels = np.array(Image.open(image))
    covered = pixels.copy()
    covered[20:, 31:] = np.rint(np.array(predictor.preprocess.mean) * 255)
    before, after = predictor.scores([pixels, covered])[:, 1]
    assert seen.map[3, 5] == pytest.approx(before - after, abs=1e-5)
    assert seen.upscaled[-1, -1] == pytest.approx(seen.map[3, 5], abs=1e-6)
    assert explain(predictor, image, method="occlusion").map.shape == (24, 35)  # 7 wide, every 1


# Every method


def test_methods_on_awkward_images(tmp_path: Path) -> None:
    """16 bits, one channel, a photo smaller than the crop, arrays: the same record comes back."""
    grey = made(
        tmp_path / "grey",
        tiny(in_channels=1),
        preprocess=Preprocess(
            resize_size=32, crop_size=32, channel_order="L", mean=(0.5,), std=(0.2,)
        ),
    ) if (tmp_path / "grey").mkdir() is None else None  # fmt: skip
    assert grey is not None
    deep = tmp_path / "deep.png"
    Image.fromarray((np.arange(40 * 50).reshape(40, 50) * 30).astype(np.uint16)).save(deep)
    small = photo(tmp_path / "small.png", 9, 12)
    colour = made(tmp_path, preprocess=Preprocess("none", None, 32))
    for method in METHODS:
        for predictor, image in (
            (grey, deep),
            (colour, small),
            (colour, np.array(Image.open(small))),
        ):
            seen = explain(predictor, image, method=method, steps=3, window=16, stride=16)
            assert isinstance(seen, Explanation)
            assert seen.upscaled.shape == (32, 32)
            assert np.isfinite(seen.map).all()
            assert seen.label in str(seen)
            assert seen.method == method
            assert seen.picture().mode == "RGB"
            answer = predictor(image)
            assert seen.label == answer.label
            assert seen.probability == pytest.approx(answer.probability, abs=1e-5)


def test_nothing_is_changed(tmp_path: Path, model: Path) -> None:
    predictor = verydeep.load(model, engine="onnxruntime")
    array = np.array(Image.open(photo(tmp_path / "a.png")))
    before, held = array.copy(), {k: v.copy() for k, v in predictor.model.tensors().items()}
    for method in METHODS:
        explainer = Explainer(predictor, method, steps=2, window=16)
        check(explainer, explainer(array), steps=2, draws=1)
    assert (array == before).all()
    for key, value in predictor.model.tensors().items():
        assert (value == held[key]).all()


def test_interpolation_and_places() -> None:
    known = np.array([7.5, 23.5, 39.5])
    values = np.array([1.0, -2.0, 5.0])
    at = np.arange(48)
    assert_allclose(interpolation(at, known) @ values, np.interp(at, known, values))
    assert_allclose(interpolation(at, np.array([3.0])), np.ones((48, 1)))
    ys, xs = centres(network("vgg16"), "relu5_3", 224, 100)
    assert (len(ys), len(xs)) == (14, 6)
    assert_allclose(ys[:2], [7.5, 23.5])


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (211, 503), (20, 90)])
@pytest.mark.parametrize(
    "record",
    [Preprocess(resize_size=128, crop_size=128), Preprocess(resize_size=150, crop_size=128),
     Preprocess("exact", 128, None), Preprocess("none", None, 60), WHOLE],
)  # fmt: skip
def test_the_box_is_where_the_pixels_come_from(
    tmp_path: Path, size: tuple[int, int], record: Preprocess
) -> None:
    """A photo whose colours are its coordinates: the crop's colours must be the box's coordinates."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(np.arange(width) / width * 255)[None]
    image[..., 1] = np.rint(np.arange(height) / height * 255)[:, None]
    image[..., 2] = 255
    seen = Explainer(made(tmp_path, preprocess=record))(image)
    left, top, right, bottom = seen.box
    rows, columns = seen.pixels.shape[:2]
    inside = seen.pixels[..., 2] == 255
    assert inside.any()
    for channel, low, high, count, whole, axis in (
        (0, left, right, columns, width, 1), (1, top, bottom, rows, height, 0)
    ):  # fmt: skip
        at = low + (np.arange(count) + 0.5) * (high - low) / count - 0.5
        place = np.expand_dims(at / whole * 255, 1 - axis)
        off = np.abs(seen.pixels[..., channel] - place)[inside]
        assert np.median(off) < 2.5
    scale = seen.photo.width / width
    assert scale == 1


def test_large_photos_are_kept_small(tmp_path: Path, model: Path) -> None:
    seen = explain(verydeep.load(model), photo(tmp_path / "big.jpg", 1500, 3000))
    assert seen.photo.size == (1600, 800)
    assert_allclose(seen.box, (400, 0, 1200, 800))


# Classes and refusals


def test_classes(tmp_path: Path, model: Path) -> None:
    explainer = Explainer(verydeep.load(model))
    assert explainer.classes(["school bus", "n00000000", 5, "6", "School Bus", "ant"]) == [
        2,
        0,
        5,
        6,
    ]
    twice = ("crane", "bee", "crane", "daisy", "tabby", "espresso", "violin")
    both = Explainer(made(tmp_path, class_names=twice))
    assert both.classes("n00000002") == [2]
    with pytest.raises(DataError, match=r"'crane' is the name of several: 0 \(n00000000\), 2 \("):
        both.classes("crane")
    with pytest.raises(DataError, match=r"no class 'viola'; did you mean violin\?"):
        explainer.classes("viola")
    with pytest.raises(DataError, match=r"no class 'bus'; did you mean school bus\?"):
        explainer.classes("bus")
    with pytest.raises(DataError, match=r"no class 'zz'; it knows 7, such as 'ant'"):
        explainer.classes("zz")
    with pytest.raises(DataError, match=r"class 7 does not exist; expected 0 to 6"):
        explainer.classes(7)
    with pytest.raises(DataError, match=r"class 70 does not exist; expected 0 to 6"):
        explainer.classes("70")
    with pytest.raises(DataError, match=r"the model knows no class '999"):
        explainer.classes("9" * 5000)  # of which Python makes no number
    with pytest.raises(DataError, match=r"no class was given"):
        explainer.classes([])
    assert explainer.classes(np.argsort([3.0, 1.0, 2.0])) == [1, 2, 0]  # as numpy gives numbers
    assert explainer.classes(np.int64(4)) == [4]
    for wrong in (1.5, True, [None]):
        with pytest.raises(DataError, match=r"is no class; expected the name of a class, its id"):
            explainer.classes(wrong)  # type: ignore[arg-type]


def test_refusals(tmp_path: Path, model: Path) -> None:
    predictor = verydeep.load(model)
    image = photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"method 'grad-cam' is unknown; did you mean gradcam"):
        explain(predictor, image, method="grad-cam")
    with pytest.raises(LayerError, match=r"no layer 'relu5_9'; did you mean relu5_2"):
        explain(predictor, image, layer="relu5_9", method="gradcam")
    with pytest.raises(
        LayerError, match=r"averages, relu4_2, relu5_2; 'relu3_1' .* gradcam for it"
    ):
        explain(predictor, image, layer="relu3_1")
    with pytest.raises(LayerError, match=r"do not depend on 'pool5': .* relu5_2 or a layer before"):
        explain(predictor, image, layer="pool5", method="gradcam")
    with pytest.raises(LayerError, match=r"'fc8' has no map, .* a layer of the trunk, such as"):
        explain(predictor, image, layer="fc8", method="gradcam++")
    for odd in (3, ["relu5_2"]):
        with pytest.raises(LayerError, match=r"has no layer"):
            explain(predictor, image, layer=odd)  # type: ignore[arg-type]
    for method in ("ig", "occlusion"):
        with pytest.raises(
            LayerError, match=rf"{method} reads the image itself, so layer 'relu5_2'"
        ):
            explain(predictor, image, layer="relu5_2", method=method)
    with pytest.raises(DataError, match=r"top is 0; expected a whole number, 1 or more"):
        explain(predictor, image, top=0)
    with pytest.raises(DataError, match=r"steps is 0; expected a whole number, 1 or more"):
        explain(predictor, image, method="ig", steps=0)
    with pytest.raises(DataError, match=r"window is 40, .* 32x32 pixels; expected 1 to 32"):
        explain(predictor, image, method="occlusion", window=40)
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        explain(predictor, tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"tiny\.png: 12x9 pixels is too small .* least 16 a side"):
        explain(made(tmp_path, preprocess=WHOLE), photo(tmp_path / "tiny.png", 9, 12))
    classic = model_file(tmp_path / "classic.safetensors", tiny(head="classic"))
    with pytest.raises(NetworkError, match=r"cam needs a head .* vgg11 has the \"classic\" head .* Use"
                       r" method gradcam"):  # fmt: skip
        explain(classic, image)
    trunk = model_file(tmp_path / "trunk.safetensors", tiny(classes=0))
    with pytest.raises(DataError, match=r"trunk without a head: it has no classes to explain"):
        explain(trunk, image)
    explainer = Explainer(predictor)
    with pytest.raises(DataError, match=r"steps is 0; expected a whole number"):
        check(explainer, explainer(image), steps=0)


def test_gradients_need_torch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"cam and occlusion do without.*verydeep\[torch\]"):
        Explainer(verydeep.load(model), "gradcam")


def test_without_torch(model: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png")
    words = ["verydeep", "explain", str(image), "--model", str(model), "--out", str(tmp_path)]
    words += ["--engine", "onnxruntime", "--check", "--method"]
    for method in ("cam", "occlusion"):
        code = f"{BLOCK}\nimport sys\nsys.argv = {[*words, method]!r}\n"
        done = python(f"{code}from verydeep.cli import main\nmain()")
        assert done.returncode == 0, done.stderr
        assert [*tmp_path.glob(f"a-*-{method}.png")]


# Fidelity


def test_rank_correlation() -> None:
    from scipy.stats import spearmanr

    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 9, (2, 6, 7)), draw.normal(size=(6, 7))
    for other in (a[1], b, -a[0], np.exp(a[0])):
        expected = spearmanr(a[0].reshape(-1), other.reshape(-1)).statistic
        assert rank_correlation(a[0], other) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a[0], np.ones((6, 7))) == 0


def test_fidelity(tmp_path: Path, model: Path) -> None:
    predictor = verydeep.load(model, precision="exact", engine="onnxruntime")  # no race
    image = photo(tmp_path / "a.png")
    explainer = Explainer(predictor)
    seen = explainer(image)
    found = explainer.check(seen, steps=8)
    assert found.label == seen.label
    assert len(found.deletion) == len(found.insertion) == 9
    assert found.deletion[0] == pytest.approx(seen.probability, abs=1e-5)
    assert found.insertion[-1] == pytest.approx(seen.probability, abs=1e-5)
    plain = np.empty((32, 32, 3), np.uint8)
    plain[:] = np.rint(np.array(predictor.preprocess.mean) * 255)
    index = seen.maps[0].index
    expected = verydeep.predictor.softmax(predictor.scores([plain])[0])[index]
    assert found.deletion[-1] == pytest.approx(expected, abs=1e-5)
    area = sum((a + b) / 2 / 8 for a, b in zip(found.deletion, found.deletion[1:], strict=False))
    assert found.deletion_area == pytest.approx(area)
    half = (-seen.upscaled).reshape(-1).argsort(kind="stable")[:512]
    pixels = seen.pixels.copy().reshape(-1, 3)
    pixels[half] = plain.reshape(-1, 3)[half]
    expected = verydeep.predictor.softmax(predictor.scores([pixels.reshape(32, 32, 3)])[0])[index]
    assert found.deletion[4] == pytest.approx(expected, abs=1e-5)
    assert [step.random for step in found.steps] == ["fc8", "conv5_1 to fc8", "all layers"]
    again = explainer.check(seen, steps=8)
    assert again.to_dict() == found.to_dict()
    assert json.loads(json.dumps(found.to_dict()))["changes"] == found.changes


def test_a_map_that_does_not_change_is_reported(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that only looks at the image, as edge detectors do."""
    real = METHODS["cam"]

    def only_the_image(subject: Any, options: Any, pixels: np.ndarray, pick: Any) -> Any:
        answer = real(subject, options, pixels, pick)
        values = pixels[::2, ::2].mean(2, dtype=np.float32)
        answer.maps[:] = [values[: len(m), : m.shape[1]] for m in answer.maps]
        return answer

    image = photo(tmp_path / "a.png")
    monkeypatch.setitem(METHODS, "cam", only_the_image)
    explainer = Explainer(verydeep.load(model))
    found = explainer.check(explainer(image), steps=2, draws=1)
    assert [step.correlation for step in found.steps] == pytest.approx([1, 1, 1])
    assert not found.changes
    assert str(found).startswith(
        "do not trust this map: it does not change with random weights, so it "
    )
    monkeypatch.undo()
    explainer = Explainer(verydeep.load(model))
    assert abs(explainer.check(explainer(image), steps=2, draws=1).steps[0].correlation) < 0.999


# The picture and the command


def test_the_picture(tmp_path: Path) -> None:
    """Against a golden that was looked at; tests/golden/explanation_make.py makes it again."""
    from .golden.explanation_make import picture

    found = np.asarray(picture(tmp_path), np.float32)
    golden = np.asarray(Image.open(GOLDEN / "explanation.png"), np.float32)
    assert found.shape == golden.shape
    assert np.abs(found - golden).mean() < 1.5
    assert np.abs(found - golden).max() < 90


def test_save(tmp_path: Path, model: Path) -> None:
    seen = explain(verydeep.load(model), photo(tmp_path / "a.png"))
    seen.save(tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as image:
        assert image.size == seen.picture().size
    seen.save(tmp_path / "seen.jpg")
    with Image.open(tmp_path / "seen.jpg") as image:
        assert image.format == "JPEG"
    with pytest.raises(
        OutputError, match=r"seen\.gif: expected a name that ends in \.png or \.jpg"
    ):
        seen.save(tmp_path / "seen.gif")
    assert not (tmp_path / "seen.gif").exists()
    with pytest.raises(OutputError, match=r"cannot be written: .*; make the folder first"):
        seen.save(tmp_path / "no" / "seen.png")


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (1, 1)])
def test_the_picture_of_a_narrow_photo(model: Path, size: tuple[int, int]) -> None:
    seen = explain(verydeep.load(model), np.full((*size, 3), 90, np.uint8))
    assert seen.picture().width >= layout.NARROWEST


def test_panels_have_one_scale_and_whole_titles(tmp_path: Path, model: Path) -> None:
    """An improbable class shows no colour, a certain one all of them; long names take more lines."""
    seen = explain(verydeep.load(model), photo(tmp_path / "a.png", 300, 100), top=len(NAMES))
    heat = next(heat for heat in seen.maps if heat.upscaled.max() > 0)

    def drawn(probability: float) -> Any:
        return drawing._panel(seen.photo, seen.box, replace(heat, probability=probability), "cam")

    def colour(probability: float) -> int:
        pixels = np.asarray(drawn(probability)[2], np.int16)
        return int((pixels.max(2) - pixels.min(2)).max())

    assert colour(1e-4) < 8 < colour(0.1) < colour(0.5) <= colour(1.0)
    long = replace(heat, label="a class with a very long name indeed")
    parts = [drawn(1.0), drawing._panel(seen.photo, seen.box, long, "cam")]
    assert len(layout.lines(long.label, layout.TITLE, layout.NARROWEST - 70)) > 1
    assert len({part.size for part in layout.panels(parts)}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="paths there are short as a whole")
def test_a_photo_of_a_long_name_has_a_picture(verydeep: Run, tmp_path: Path, model: Path) -> None:
    for letter, name in enumerate(
        ("a" * 250, "\u00e9" * 125, "\u732b" * 80 + "1", "\u732b" * 80 + "2")
    ):
        photo(tmp_path / f"{name}.png", seed=letter)
    out = tmp_path / "out"
    done = verydeep("explain", tmp_path, "--model", model, "--out", out, "--engine", "onnxruntime")
    assert done.status == 0, done.err
    assert len(list(out.iterdir())) == 4


def test_the_command(verydeep: Run, tmp_path: Path, model: Path) -> None:
    for folder in ("one", "two"):
        photo(tmp_path / folder / "a.png", seed=len(folder))
    out = tmp_path / "new" / "out"
    words = ("explain", tmp_path / "one", tmp_path / "two", "--model", model, "--out", out)
    done = verydeep(*words, "--top", 2)
    assert done.status == 0
    assert sorted(f.name for f in out.iterdir()) == [
        "a-school-bus+espresso-cam-2.png",
        "a-school-bus+espresso-cam.png",
    ]
    assert str(out / "a-school-bus+espresso-cam-2.png") in done.out
    done = verydeep(*words, "--json", "--class", "tabby", "--class", "bee", "--method", "gradcam",
                    "--layer", "relu4_1", "--check", "--engine", "onnxruntime")  # fmt: skip
    records = json.loads(done.out)
    assert [Path(r["picture"]).name for r in records] == [
        "a-tabby+bee-gradcam.png",
        "a-tabby+bee-gradcam-2.png",
    ]
    assert [heat["label"] for heat in records[0]["maps"]] == ["tabby", "bee"]
    assert records[0]["layers"] == ["relu4_1"]
    assert records[0]["check"]["label"] == "tabby"
    assert records[1]["maps"][0]["shape"] == [4, 4]
    x, y = records[1]["maps"][0]["peak"]
    assert 0 <= x <= 1
    assert 0 <= y <= 1


def test_what_the_command_cannot_do(verydeep: Run, tmp_path: Path, model: Path) -> None:
    good = photo(tmp_path / "a.png")
    (tmp_path / "bad.jpg").write_text("no photo")
    out = tmp_path / "out"

    def run(*words: object) -> tuple[int, str]:
        done = verydeep("explain", "--model", model, "--out", out, *words)
        return done.status, done.err

    status, said = run(good, tmp_path / "bad.jpg")
    assert status == 1
    assert "bad.jpg: not an image that can be read" in said
    assert "1 of 2 files could not be read" in said
    assert run(tmp_path / "bad.jpg")[0] == 2
    (tmp_path / "empty").mkdir()
    assert "no photos in" in run(tmp_path / "empty")[1]
    assert "no class 'voilin'; did you mean violin?" in run(good, "--class", "voilin")[1]
    assert "no layer 'relu9'" in run(good, "--layer", "relu9")[1]
    done = verydeep("explain", good, "--model", model, "--out", good)
    assert (done.status, done.out) == (2, "")
    assert "a.png: a file, and a folder is needed" in done.err
    assert "Missing option '--out'" in verydeep("explain", good).err


def test_the_verbs_methods_are_all_there(verydeep: Run) -> None:
    text = verydeep("explain", "--help").out
    assert all(re.search(rf"\b{re.escape(method)}[ ,;]", text) for method in METHODS)


def test_one_module_goes_with_its_predictor(model: Path, tmp_path: Path) -> None:
    import gc
    import weakref

    predictor = verydeep.load(model)
    image = photo(tmp_path / "a.png")
    made = set()
    for layer in ("relu3_1", "relu4_1", "relu5_1"):
        explain(predictor, image, method="gradcam", layer=layer)
        made.add(id(predictor.held["module"]))
    assert len(made) == 1
    module = weakref.ref(predictor.held["module"])
    predictor.close()
    gc.collect()
    assert module() is None
    explain(predictor, image, method="gradcam")
    module, gone = weakref.ref(predictor.held["module"]), weakref.ref(predictor)
    del predictor
    gc.collect()
    assert gone() is None
    assert module() is None


# Threads, processes, devices


@pytest.mark.parametrize("method", METHODS)
def test_eight_threads_equal_one(tmp_path: Path, method: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    predictor = made(tmp_path)
    explainer = Explainer(predictor, method, steps=3, window=16, stride=16)
    images = [photo(tmp_path / f"{seed}.png", seed=seed) for seed in range(8)]
    expected = [explainer(image, label=3) for image in images]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: explainer(image, label=3), 3 * images))
    for answer, alone in zip(answers, 3 * expected, strict=True):
        assert_allclose(answer.map, alone.map, rtol=1e-4, atol=1e-6)
        assert answer.maps[0].score == pytest.approx(alone.maps[0].score, rel=1e-5)


def test_threads_are_the_processes_own_again(tmp_path: Path, model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        explain(verydeep.load(model, threads=1), photo(tmp_path / "a.png"), method="gradcam")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_refused(verydeep: Run, tmp_path: Path, model: Path) -> None:
    image = photo(tmp_path / "a.png")
    words = ("--model", model, "--out", tmp_path / "out", "--device", "cuda")
    for method in ("gradcam", "ig"):
        done = verydeep("explain", image, *words, "--method", method)
        assert (done.status, done.out) == (2, "")
        assert "no CUDA device here" in done.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gradients_on_the_device(tmp_path: Path, model: Path) -> None:
    image = photo(tmp_path / "a.png")
    for method in ("gradcam", "gradcam++", "ig"):
        there = explain(verydeep.load(model, device="cuda"), image, method=method, label=2)
        here = explain(verydeep.load(model, device="cpu"), image, method=method, label=2)
        close(there.map, here.map, 1e-4)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize("method", ["cam", "gradcam", "ig"])
def test_after_a_fork(tmp_path: Path, model: Path, method: str) -> None:
    code = f"""
import os, numpy, verydeep
from verydeep.errors import EngineError
from verydeep.explanations import Explainer
explainer = Explainer(verydeep.load({str(model)!r}), {method!r}, steps=3)
image = {str(photo(tmp_path / "a.png"))!r}
map = explainer(image).map
if not os.fork():
    try:
        os._exit(7 if numpy.allclose(explainer(image).map, map, atol=1e-5) else 8)
    except EngineError as error:
        os._exit(9 if "by fork" in str(error) and "spawn" in str(error) else 8)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = python(code)
    # torch's backward pass cannot go on in a child where there is a GPU, whatever computes
    refused = torch.cuda.is_available() and method != "cam"
    assert (done.returncode, done.stdout.strip()) == (0, "9" if refused else "7"), done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_pickled(tmp_path: Path, model: Path, method: str) -> None:
    explainer = Explainer(verydeep.load(model, engine="onnxruntime"), method, steps=3, window=16)
    image = photo(tmp_path / "a.png")
    seen = explainer(image)
    again = pickle.loads(pickle.dumps(explainer))(image)
    assert_allclose(again.map, seen.map, atol=1e-6)
    assert pickle.loads(pickle.dumps(seen)).maps[0].score == seen.maps[0].score


# What is wrong is said


def test_scores_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    from verydeep import modelfile

    from .tiny import weights

    net = tiny()
    tensors = weights(net)
    tensors["classifier.weight"][2] = np.nan
    path = tmp_path / "nan.safetensors"
    modelfile.write(path, modelfile.Record(network=net), tensors)
    image = photo(tmp_path / "a.png")
    for method in METHODS:
        with pytest.raises(VerydeepError, match="finite"):
            explain(path, image, method=method, window=100, stride=100)


def test_check_of_a_map_that_another_made(tmp_path: Path, model: Path) -> None:
    image = photo(tmp_path / "a.png")
    explainer = Explainer(verydeep.load(model))
    other = Explainer(made(tmp_path, tiny("vgg16", classes=3)))
    with pytest.raises(DataError, match=(
        r"the explanation is cam relu4_2 relu5_2 of vgg11 \(tiny\.safetensors\), and this Explainer "
        r"makes cam relu5_1 relu5_3 of vgg16 \(m\.safetensors\); check it with the one that made it"
    )):  # fmt: skip
        other.check(explainer(image))
    with pytest.raises(DataError, match="check it with the one that made it"):
        Explainer(explainer.predictor, "gradcam").check(explainer(image))


def test_class_names_in_either_spelling(tmp_path: Path) -> None:
    import unicodedata

    names = ("ant", "bee", "caf\u00e9", "daisy", "tabby", "espresso", "violin")
    explainer = Explainer(made(tmp_path, class_names=names))
    for spelling in ("NFC", "NFD"):
        assert explainer.classes(unicodedata.normalize(spelling, "Caf\u00e9")) == [2]


@pytest.mark.parametrize("number", [0, 2.5, "2"])
def test_counts_are_whole_numbers(model: Path, number: Any) -> None:
    predictor, image = verydeep.load(model), np.zeros((40, 40, 3), np.uint8)
    expected = rf"is {number!r}; expected a whole number, 1 or more"
    for refused in (
        lambda: explain(predictor, image, top=number),
        lambda: explain(predictor, image, method="ig", steps=number),
        lambda: explain(predictor, image, method="occlusion", window=number),
        lambda: predictor.stream([image], top=number),
        lambda: predictor.stream([image], batch=number),
        lambda: predictor.features_stream([image], batch=number),
        lambda: verydeep.show(predictor, strongest=number),
        lambda: verydeep.Perceptual("content", model=model).stream([], batch=number),
    ):
        with pytest.raises(DataError, match=expected):
            refused()
    with pytest.raises(EngineError, match=expected):
        verydeep.load(model, threads=number)


def test_one_image_at_a_time(model: Path) -> None:
    explainer = Explainer(verydeep.load(model))
    for several in ([np.zeros((40, 40, 3), np.uint8)] * 2, np.zeros((2, 40, 40, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"not an image; expected a path|one by one"):
            explainer(several)  # type: ignore[arg-type]
