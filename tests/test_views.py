"""The paper's evaluation: dense, by crops, both, at several scales, by several networks; against torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from verydeep import evaluate, load, modelfile, models
from verydeep.errors import DataError, EngineError
from verydeep.evaluation.views import Viewer
from verydeep.predictor import sigmoid, softmax
from verydeep.preprocess import Preprocess

from .conftest import Run
from .tiny import NAMES, model_file, photo, tiny

CLASSIC = Preprocess(resize_size=240, crop_size=224)


@pytest.fixture
def classic(tmp_path: Path) -> Path:
    """A model with the paper's head, which reads 7x7 places."""
    return model_file(tmp_path / "classic.safetensors", tiny(head="classic"), preprocess=CLASSIC)


def shown(path: Path, shorter: int, mirrored: bool = False) -> torch.Tensor:
    """(1, 3, height, width): the photo of 64 x 48 pixels with its shorter side so long, normalised."""
    image = Image.open(path).resize((int(shorter * 64 / 48), shorter), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    pixels = pixels.flip(3) if mirrored else pixels
    mean, std = (torch.tensor(part)[:, None, None] for part in (CLASSIC.mean, CLASSIC.std))
    return ((pixels - mean) / std).float()


@torch.no_grad()
def convolved(net: Any, images: torch.Tensor) -> np.ndarray:
    """Scores, the mean over all places, of FC layers that are convolutions: 7x7, 1x1, 1x1."""
    fc6, fc7, fc8 = (layer for layer in net.classifier if isinstance(layer, torch.nn.Linear))
    maps = net.features(images)
    maps = F.relu(F.conv2d(maps, fc6.weight.view(len(fc6.weight), -1, 7, 7), fc6.bias))
    maps = F.relu(F.conv2d(maps, fc7.weight[..., None, None], fc7.bias))
    return F.conv2d(maps, fc8.weight[..., None, None], fc8.bias).mean((2, 3)).numpy()


def test_dense_is_the_whole_network_as_convolutions(classic: Path, tmp_path: Path) -> None:
    one, net = photo(tmp_path / "a.png"), models.vgg11(weights=str(classic)).eval()
    viewer = Viewer.of(load(classic), "dense", (288,))
    expected = np.mean([softmax(convolved(net, shown(one, 288, m)))[0] for m in (False, True)], 0)
    assert convolved(net, shown(one, 288)).shape == (1, 7)
    assert net.features(shown(one, 288)).shape[2:] == (9, 12)  # 3x6 places
    np.testing.assert_allclose(viewer(str(one)), expected, rtol=1e-4)


@torch.no_grad()
def test_crops_are_five_by_five_over_all_of_it(classic: Path, tmp_path: Path) -> None:
    one, net = photo(tmp_path / "a.png"), models.vgg11(weights=str(classic)).eval()
    viewer = Viewer.of(load(classic), "crops", (240,))
    crops = [
        shown(one, 240, mirrored)[..., y : y + 224, x : x + 224]  # of 240 x 320
        for mirrored in (False, True)
        for y in (0, 4, 8, 12, 16)
        for x in (0, 24, 48, 72, 96)
    ]
    expected = softmax(net(torch.cat(crops)).numpy()).mean(0)
    np.testing.assert_allclose(viewer(str(one)), expected, rtol=1e-4)


def test_what_is_averaged_are_probabilities(classic: Path, tmp_path: Path) -> None:
    one, predictor = str(photo(tmp_path / "a.png")), load(classic)

    def said(views: Any, *scales: int) -> np.ndarray:
        return Viewer.of(predictor, views, scales)(one)

    parts = [said(way, scale) for way in ("dense", "crops") for scale in (224, 256)]
    np.testing.assert_allclose(said("both", 224, 256), np.mean(parts, 0), rtol=1e-6)
    np.testing.assert_allclose(said("dense"), said("dense", 240))  # the model's own
    centre = softmax(predictor.scores(one))[0]
    np.testing.assert_allclose(said("centre"), centre, rtol=1e-5)
    assert said("both", 224, 256).sum() == pytest.approx(1)


def test_a_head_on_averages_reads_the_whole_photo(model: Path, tmp_path: Path) -> None:
    one, predictor = photo(tmp_path / "a.png"), load(model)
    pixels = replace(predictor.preprocess, resize_size=40, crop_size=None).pixels(one)
    both = [pixels, np.ascontiguousarray(pixels[:, ::-1])]
    expected = softmax(predictor.features(both, "fc8", size="own")["fc8"]).mean(0)
    np.testing.assert_allclose(Viewer.of(predictor, "dense", (40,))(one), expected, rtol=1e-5)


@pytest.mark.parametrize("views", ["dense", "crops", "both"])
def test_images_of_all_kinds(views: Any, tmp_path: Path) -> None:
    grey = tiny(in_channels=1)
    luma = Preprocess(
        resize_size=32, crop_size=32, channel_order="L", mean=(0.5,), std=(0.25,), detail=24
    )
    path = model_file(tmp_path / "grey.safetensors", grey, preprocess=luma)
    viewer = Viewer.of(load(path), views, (32, 48))
    for image in (photo(tmp_path / "a.png"), photo(tmp_path / "b.jpg", 40, 40)):
        assert viewer(image).shape == (7,)
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    coloured = Viewer.of(load(model_file(tmp_path / "m.safetensors")), views, (32,))
    small = Image.fromarray((np.asarray(deep) / 257).round().astype(np.uint8))
    np.testing.assert_allclose(coloured(tmp_path / "deep.png"), coloured(small), rtol=0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(14):
        photo(tmp_path / "data" / NAMES[number % 7] / f"{number:02}.png", seed=number)
    return tmp_path / "data"


def test_what_is_measured(verydeep: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (data / "bee" / "zz.png").write_text("no photo")
    other = model_file(tmp_path / "other.safetensors", tiny("vgg13"))
    words = ["--views", "both", "--scales", "32,48", "--fuse", other]
    done = verydeep("evaluate", model, data, *words, "--json")
    assert done.status == 1, done.err  # one photo cannot be read
    assert "zz.png" in done.err
    found = json.loads(done.out)
    assert (found["n"], found["errors"]) == (14, 1)
    assert found["protocol"] == (
        "dense and 5x5 crops of 32 at 32, 48 pixels, flipped too, 2 networks fused"
    )
    viewers = [Viewer.of(load(path), "both", (32, 48)) for path in (model, other)]
    photos = sorted(data.rglob("[01]*.png"), key=lambda path: path.stem)
    chances = np.mean([[viewer(one) for one in photos] for viewer in viewers], 0)
    right = chances.argmax(1) == np.arange(14) % 7
    assert found["top1"] == pytest.approx(right.mean())
    centre = verydeep("evaluate", model, data, "--json", "--fuse", model)
    plain = verydeep("evaluate", model, data, "--json")
    fused, one = json.loads(centre.out), json.loads(plain.out)
    assert fused.pop("protocol") == "one centre crop of 32, 2 networks fused"
    assert one.pop("protocol") == "one centre crop of 32"
    for key in ("top1", "top5", "expected_calibration_error"):
        assert fused[key] == pytest.approx(one[key])


def test_several_labels(tmp_path: Path) -> None:
    path = model_file(tmp_path / "several.safetensors", thresholds=(0.5,) * 7)
    predictor, lines = load(path), []
    for number in range(8):
        photo(tmp_path / f"{number}.png", seed=number)
        lines.append(f"{number}.png,{NAMES[number % 7]};{NAMES[(number + 2) % 7]}")
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *lines]))
    viewer = Viewer.of(predictor, "dense", (40,))
    pixels = replace(predictor.preprocess, resize_size=40, crop_size=None).pixels(
        tmp_path / "0.png"
    )
    both = [pixels, np.ascontiguousarray(pixels[:, ::-1])]
    expected = sigmoid(predictor.features(both, "fc8", size="own")["fc8"]).mean(0)
    np.testing.assert_allclose(viewer(tmp_path / "0.png"), expected, rtol=1e-5)
    found = evaluate(path, tmp_path / "labels.csv", views="dense", scales=(40,))
    assert found.n == 8
    assert found.protocol == "dense at 40 pixels, flipped too"


def test_one_scale_and_one_network_more_need_no_list(
    model: Path, data: Path, tmp_path: Path
) -> None:
    other = model_file(
        tmp_path / "other.safetensors", preprocess=Preprocess(resize_size=40, crop_size=36)
    )
    told = evaluate(model, data, views="dense", scales=40, fuse=str(other))
    assert told == evaluate(model, data, views="dense", scales=(40,), fuse=[load(other)])
    own = evaluate(model, data, views="dense", fuse=other)
    assert own.protocol == (
        "dense at 32 pixels, flipped too; dense at 40 pixels, flipped too, 2 networks fused"
    )


def test_scores_that_are_no_numbers_are_an_error(classic: Path, tmp_path: Path) -> None:
    opened = modelfile.read(classic)
    tensors = {key: np.array(array) for key, array in opened.stored.items()}
    tensors["classifier.6.bias"][1] = np.nan
    modelfile.write(tmp_path / "nan.safetensors", opened.record, tensors)
    viewer = Viewer.of(load(tmp_path / "nan.safetensors"), "dense", ())
    with pytest.raises(EngineError, match="finite"):
        viewer(photo(tmp_path / "a.png"))


def test_refusals(verydeep: Run, model: Path, classic: Path, data: Path, tmp_path: Path) -> None:
    others = model_file(tmp_path / "others.safetensors", class_names=tuple("abcdefg"), class_ids=())
    for which, words, message in (
        (model, ["--scales", "32"], "scales are for views dense, crops and both"),
        (model, ["--views", "densely"], "views 'densely' is unknown; did you mean dense?"),
        (model, ["--views", "dense", "--scales", "40,x"], "'x' is not a whole number"),
        (
            model,
            ["--views", "crops", "--scales", "31"],
            "views crops at 31: too small; expected",
        ),
        (classic, ["--views", "dense", "--scales", "223"], "the shorter side, 224 or more"),
        (model, ["--fuse", others], "has other classes than"),
    ):
        done = verydeep("evaluate", which, data, *words)
        assert (done.status, done.out) == (2, ""), done.err
        assert message in done.err
    whole = Preprocess(resize="none", resize_size=None, crop_size=None)
    path = model_file(tmp_path / "whole.safetensors", preprocess=whole)
    predictor = load(path)
    assert str(Viewer.of(predictor, "dense", (48,))) == "dense at 48 pixels, flipped too"
    with pytest.raises(DataError, match="takes images as they are; give scales"):
        Viewer.of(predictor, "dense", ())
    with pytest.raises(DataError, match="that a crop could have; take views dense"):
        Viewer.of(predictor, "crops", (48,))
    shorter = Preprocess(resize_size=64, crop_size=None)
    path = model_file(tmp_path / "shorter.safetensors", preprocess=shorter)
    assert Viewer.of(load(path), "dense", ()).scales == (64,)


def test_the_weights_of_a_coded_head_are_read_once(
    classic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    decoded = modelfile.ModelFile.decoded

    def counted(self: Any, keys: Any = None) -> Any:
        reads.append(keys)
        return decoded(self, keys)

    viewer = Viewer.of(load(classic), "dense", (224, 256))
    viewer(photo(tmp_path / "a.png"))
    monkeypatch.setattr(modelfile.ModelFile, "decoded", counted)
    viewer(photo(tmp_path / "b.png"))
    assert not reads
