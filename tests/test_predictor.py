"""The predictor against the pieces it is made of, and on awkward images."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from verydeep import load, modelfile, models
from verydeep.errors import (
    ArgumentError,
    DataError,
    EngineError,
    ImageError,
    ModelFileError,
    NetworkError,
)
from verydeep.predictor import Answer, Failure, Features, softmax
from verydeep.preprocess import Preprocess

from .conftest import Run
from .tiny import IDS, NAMES, model_file, photo, pixels, tiny, weights


def test_scores_equal_torch(model: Path, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{i}.png", 48 + 3 * i, 64, seed=i) for i in range(5)]
    predictor = load(model)
    record = modelfile.read(model).record
    inputs = np.concatenate(
        [record.preprocess.normalise(record.preprocess.pixels(f)[None]) for f in files]
    )
    module = models.load(model).eval()
    with torch.inference_mode():
        expected = module(torch.from_numpy(inputs)).numpy()
    assert_allclose(predictor.scores(files), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    answer = predictor(files[3], top=7)
    probability = torch.from_numpy(expected[3]).softmax(0).numpy()
    assert [p.probability for p in answer.predictions] == pytest.approx(
        sorted(probability)[::-1], abs=1e-5
    )
    assert answer.label == NAMES[int(probability.argmax())]
    assert answer.predictions[0].id == IDS[int(probability.argmax())]
    assert (answer.path, answer.engine, answer.precision) == (str(files[3]), "onnxruntime", "fast")


def test_one_image_in_every_form(model: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.png")
    image = Image.open(file)
    array = np.array(image)
    predictor = load(model)
    expected = predictor(file).predictions
    forms = [str(file), file.read_bytes(), image, array, torch.from_numpy(array).permute(2, 0, 1)]
    for form in forms:
        answer = predictor(form)
        assert answer.predictions == expected, type(form)
        assert answer.path == (form if isinstance(form, str) else None)
    for answer in predictor(forms):  # a batch may be summed in another order than one image
        assert [p.label for p in answer.predictions] == [p.label for p in expected]
        assert [p.probability for p in answer.predictions] == pytest.approx(
            [p.probability for p in expected], abs=1e-6
        )
    assert predictor([]) == []
    assert predictor.scores([]).shape == (0, 7)


def test_sixteen_bits_keep_their_values(model: Path, tmp_path: Path) -> None:
    """A 16-bit image between two 8-bit ones answers between them, not as either."""
    low = pixels(32, 32, 1)[0, :, :, 0] // 2
    deep = Image.fromarray(low.astype(np.uint16) * 257 + 128)
    deep.save(tmp_path / "deep.png")
    Image.fromarray(low).save(tmp_path / "low.png")
    predictor = load(model)
    scores = predictor.scores([tmp_path / "low.png", tmp_path / "deep.png"])
    assert np.abs(scores[0] - scores[1]).max() > 0
    record = modelfile.read(model).record.preprocess
    assert record.pixels(tmp_path / "deep.png").dtype == np.float32


def test_stream_keeps_order_and_goes_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("not a photo")
    names = ["a.png", "bad.jpg", "b.png", "gone.png", "c.png"]
    for seed, name in enumerate("abc"):
        photo(tmp_path / f"{name}.png", seed=seed)
    paths = [tmp_path / name for name in names] * 5
    for batch in (1, 2, 8):
        items = list(load(model).stream(paths, batch=batch, top=1))
        assert [Path(item.path or "").name for item in items] == names * 5
        assert [type(item) for item in items] == [Answer, Failure, Answer, Failure, Answer] * 5
        assert {item.error for item in items if isinstance(item, Failure) and "gone" in item.error}
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        load(model)([tmp_path / "a.png", tmp_path / "bad.jpg"])


def test_seconds(model: Path, tmp_path: Path) -> None:
    predictor = load(model)
    assert predictor.seconds == {"decode": 0, "engine": 0}
    began = time.perf_counter()
    predictor([photo(tmp_path / "a.png"), photo(tmp_path / "b.png", seed=1)])
    passed = time.perf_counter() - began
    assert 0 < predictor.seconds["engine"] < passed
    assert 0 < predictor.seconds["decode"] < 2 * passed


def test_stream_reads_no_more_than_it_needs(model: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png")
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield file

    stream = load(model).stream(endless(), batch=2)
    for _ in range(3):
        next(stream)
    assert taken < 30
    stream.close()  # type: ignore[attr-defined]


def test_images_of_many_shapes(tmp_path: Path) -> None:
    """A record without a crop: an image keeps its shape, whatever its neighbours are."""
    record = Preprocess(resize="none", resize_size=None, crop_size=None)
    model = model_file(tmp_path / "whole.safetensors", preprocess=record)
    shapes = [(40, 50), (40, 50), (64, 33), (40, 50), (32, 90)]
    files = [photo(tmp_path / f"{i}.png", *shape, seed=i) for i, shape in enumerate(shapes)]
    predictor = load(model)
    together = predictor.scores(files)
    alone = np.concatenate([predictor.scores([f]) for f in files])
    assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    small = photo(tmp_path / "small.png", 12, 40)
    with pytest.raises(
        ImageError, match=r"small\.png: 40x12 pixels is too small .* at least 16 a side"
    ):
        predictor(small)


def test_size(model: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 100, 100)
    assert load(model, size=64).preprocess == Preprocess(resize_size=64, crop_size=64)
    assert load(model, size=64)(file) != load(model)(file)
    with pytest.raises(
        NetworkError, match=r"size 8 is too small for this model; .* at least 16 pixels a side"
    ):
        load(model, size=8)


def test_not_sure_below_the_threshold(tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png")
    answers = {}
    for threshold in (0.0, 1.0, None):
        path = model_file(tmp_path / "m.safetensors", threshold=threshold)
        answers[threshold] = load(path)(file)
    assert answers[0.0].sure
    assert answers[None].sure
    assert not answers[1.0].sure
    assert "not sure: " in str(answers[1.0])
    assert "not sure" not in str(answers[0.0])


def test_labels_without_names(tmp_path: Path) -> None:
    plain = model_file(tmp_path / "a.safetensors", class_names=(), class_ids=())
    assert load(plain).labels[6] == "class 6"
    ids = model_file(tmp_path / "b.safetensors", class_names=())
    assert load(ids).labels == IDS


def test_numbers_that_are_not_finite_are_errors(tmp_path: Path, verydeep: Run) -> None:
    """Neither an answer that is sure nor JSON with NaN in it; layers before the damage are given."""
    net = tiny()
    path = tmp_path / "m.safetensors"
    file = photo(tmp_path / "a.png")
    record = modelfile.read(model_file(path)).record
    last = [key for key in net.tensors if key.endswith("weight")][-1]
    for bad in (np.nan, np.inf):
        broken = weights(net)
        broken[last][0] = bad
        modelfile.write(path, record, broken)
        predictor = load(path)
        for call in (predictor, predictor.scores):
            with pytest.raises(EngineError, match="onnxruntime fast gave scores that are not"):
                call(file)  # type: ignore[operator]
        with pytest.raises(EngineError, match="scores that are not finite"):
            next(predictor.stream([file]))
        assert np.isfinite(predictor.features(file, "relu1_1")["relu1_1"]).all()
        done = verydeep("classify", "--model", path, file, "--json")
        assert done.status == 2
        assert "NaN" not in done.out
        assert "scores that are not finite" in done.err.splitlines()[-1]
    first = next(key for key in net.tensors if key.endswith("weight"))
    broken = weights(net)
    broken[first][0] = np.nan
    modelfile.write(path, record, broken)
    with pytest.raises(EngineError, match="gave relu1_1 that are not finite"):
        load(path).features(file, "relu1_1")


def test_one_image_and_several_in_every_call(model: Path, tmp_path: Path) -> None:
    """A list, a tuple or one axis more are several; a name's letters and an image's rows are none."""
    predictor = load(model, engine="onnxruntime")
    file = photo(tmp_path / "a.png")
    array = np.array(Image.open(file))
    batch = np.stack([array, array[::-1]])
    tensor = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2)
    expected = predictor.scores([array, array[::-1]])
    for one in (file, str(file), file.read_bytes(), array, tensor[0]):
        assert_allclose(predictor.scores(one), expected[:1], rtol=1e-4)
        assert isinstance(predictor(one), Answer)
        assert [type(item) for item in predictor.stream(one)] == [Answer]  # type: ignore[arg-type]
        assert predictor.features(one, "relu1_1")["relu1_1"].shape[0] == 1
        assert len(list(predictor.features_stream(one, "relu1_1"))) == 1  # type: ignore[arg-type]
    for several in (batch, tensor, [array, array[::-1]], (array, array[::-1])):
        assert_allclose(predictor.scores(several), expected, rtol=1e-4)
        answers = predictor(several)
        assert [answer.label for answer in answers] == [
            predictor.labels[i] for i in expected.argmax(1)
        ]
        assert len(list(predictor.stream(several))) == 2  # type: ignore[arg-type]
        assert predictor.features(several, "relu1_1")["relu1_1"].shape[0] == 2


def test_range_is_taken_by_every_call(model: Path) -> None:
    """As the message about floats says it is."""
    predictor = load(model, engine="onnxruntime")
    array = pixels(32, 32, 1)[0]
    expected = predictor.scores(array)
    floats, signed = array / 255, array.astype(np.float32) / 127.5 - 1
    assert_allclose(predictor.scores(floats, range=(0, 1)), expected, rtol=1e-3, atol=1e-4)
    assert_allclose(predictor.scores(signed, range="-1..1"), expected, rtol=1e-3, atol=1e-4)
    label = predictor(array).label
    assert predictor(floats, range=(0, 1)).label == label
    (answer,) = predictor.stream([floats], range="0..1")
    assert isinstance(answer, Answer)
    assert answer.label == label
    with pytest.raises(ImageError, match=r"range=\(0, 1\)"):
        predictor(floats)


def test_layers_that_are_not_named(tmp_path: Path) -> None:
    """The last ReLU of the network, which is relu5_3 in VGG-16 alone."""
    image = pixels(32, 32, 1)[0]
    for name, layer in (("vgg11", "relu5_2"), ("vgg13", "relu5_2"), ("vgg16", "relu5_3")):
        predictor = load(model_file(tmp_path / f"{name}.safetensors", tiny(name, "small")))
        assert list(predictor.features(image)) == [layer]
        (item,) = predictor.features_stream([image])
        assert isinstance(item, Features)
        assert list(item.values) == [layer]


def test_softmax_of_huge_scores() -> None:
    assert_allclose(softmax(np.array([1e4, 1e4 - 1])), [0.731058578630005, 0.268941421369995])


def test_refusals(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model 'bultin': .*; did you mean builtin"):
        load("bultin")
    with pytest.raises(ModelFileError, match=r"gone\.safetensors"):
        load(tmp_path / "gone.safetensors")
    for wrong in (None, b"builtin", 3):
        with pytest.raises(ArgumentError, match=r"the model is .*; expected a name or a path"):
            load(wrong)  # type: ignore[arg-type]
    trunk = model_file(tmp_path / "trunk.safetensors", tiny(classes=0))
    with pytest.raises(DataError, match="a trunk without a head"):
        load(trunk)(photo(tmp_path / "a.png"))
    with pytest.raises(DataError, match="top is 0"):
        load(model)(tmp_path / "a.png", top=0)


@pytest.mark.skipif(
    not hasattr(os, "sysconf"), reason="Windows does not say how much memory it has"
)
def test_what_memory_cannot_hold_is_refused_at_once(
    verydeep: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "a.png")
    pages = {"SC_PHYS_PAGES": 25_000, "SC_PAGE_SIZE": 4096}  # 102 MB
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    for words in (
        ("classify", file, "--model", model),
        ("bench", model),
        ("evaluate", model, tmp_path),
    ):
        done = verydeep(*words, "--size", 3000)
        assert done.status == 2
        assert re.search(
            r"\d images? of 3000x3000 at once would take [\d.]+ GB of memory, and this machine has 0.1; "
            "take a smaller size or batch", done.err,
        )  # fmt: skip
    assert verydeep("classify", file, "--model", model, "--size", 500).status == 0
    whole = pixels(3000, 3000, 1)
    with pytest.raises(EngineError, match="1 image of 3000x3000 at once would take"):
        load(model, engine="onnxruntime").features(whole[0], "relu1_1", "avg", size="own")
