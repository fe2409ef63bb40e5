"""Features against torch hooks and torchvision's extractor, pooling against its formulas, bad requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_allclose
from torchvision.models.feature_extraction import create_feature_extractor

import verydeep
from verydeep import engines, modelfile, models
from verydeep.errors import DataError, ImageError, LayerError, NetworkError, PreprocessError
from verydeep.graphs import source_of
from verydeep.predictor import Failure, Features
from verydeep.preprocess import TORCHVISION, Preprocess, sized

from .tiny import model_file, photo, pixels, tiny, weights

TAPS = ("conv1_1", "relu1_1", "pool2", "conv4_2", "relu5_2", "avgpool", "fc6", "relu7", "prob")


@pytest.fixture
def classic(tmp_path: Path) -> Path:
    return model_file(tmp_path / "classic.safetensors", tiny("vgg13_bn", head="classic"))


def hooked(path: Path, images: np.ndarray, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The same layers by forward hooks on the torch module; "prob" by torch's own soft-max."""
    module = models.load(path).eval()
    names = module.module_names
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        return lambda _m, _i, output: found.__setitem__(name, output.numpy().copy())

    for name in taps:
        if name in names:
            # with batch norm a convolution's tap is what the norm made of it
            layer = module.table.layer(name)
            module.get_submodule(layer.norm_key or names[name]).register_forward_hook(keep(name))
    with torch.inference_mode():
        inputs = modelfile.read(path).record.preprocess.normalise(images)
        scores = module(torch.from_numpy(inputs))
    return {**found, "prob": scores.softmax(1).numpy(), "avgpool": found["avgpool"]}


def test_layers_equal_torch_hooks(classic: Path) -> None:
    images = pixels(40, 72, 3)
    found = verydeep.load(classic, precision="exact").features(list(images), TAPS, size="own")
    expected = hooked(classic, images, TAPS)
    assert tuple(found) == TAPS
    for name in TAPS:
        assert found[name].dtype == np.float32
        assert engines.relative_error(found[name], expected[name], scores=False) < 1e-5, name
    assert found["conv1_1"].shape == (3, 4, 40, 72)
    assert found["relu5_2"].shape == (3, 32, 2, 4)
    assert found["conv1_1"].min() < 0 == found["relu1_1"].min()


def test_layers_equal_torchvision(tmp_path: Path) -> None:
    """`create_feature_extractor` on torchvision's own network, whose ReLUs are made not to overwrite."""
    net = tiny("vgg16")
    path = model_file(tmp_path / "m.safetensors", net)
    cfg = [x if x == "M" else max(1, int(x) // 16) for x in torchvision.models.vgg.cfgs["D"]]
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(cfg), init_weights=False)
    tensors = {k: torch.from_numpy(v) for k, v in weights(net).items() if k.startswith("features")}
    theirs.features.load_state_dict({k[len("features.") :]: v for k, v in tensors.items()})
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    wanted = {"features.21": "conv4_3", "features.22": "relu4_3", "features.29": "relu5_3"}
    extractor = create_feature_extractor(theirs.eval(), wanted)
    images = pixels(32, 48, 2)
    with torch.inference_mode():
        inputs = modelfile.read(path).record.preprocess.normalise(images)
        expected = extractor(torch.from_numpy(inputs))
    found = verydeep.load(path).features(list(images), tuple(wanted.values()), size="own")
    for name, value in expected.items():
        assert engines.relative_error(found[name], value.numpy(), scores=False) < 1e-5, name


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "ncnn", "mnn", "torch"])
def test_pooling_on_every_engine(engine: str, classic: Path) -> None:
    images = list(pixels(48, 32, 2))
    taps = ("conv3_1", "relu3_1", "pool4", "avgpool", "fc6")
    predictor = verydeep.load(classic, engine=engine, threads=1, device="cpu")
    maps = verydeep.load(classic, precision="exact").features(images, taps, size="own")
    formulas = {
        "avg": lambda x: x.mean((2, 3)),
        "max": lambda x: x.max((2, 3)),
        "gem": lambda x: np.mean(np.maximum(x, 0, dtype=np.float64) ** 3, (2, 3)) ** (1 / 3),
    }
    for pool, formula in formulas.items():
        found = predictor.features(images, taps, pool, size="own")
        for name in taps:
            expected = maps[name] if name == "fc6" else formula(maps[name])
            assert found[name].shape == expected.shape
            assert engines.relative_error(found[name], expected, scores=False) < 1e-3, (pool, name)
    assert predictor.engine == engine


def test_nothing_after_the_last_layer_is_computed(classic: Path) -> None:
    model = modelfile.read(classic)
    graph = source_of(model, "uint8", ("relu3_1",), scores=False).graph
    assert graph.model.graph.node[-1].output[0] == "relu3_1"
    assert not any(name.startswith(("conv3_2", "conv4", "fc")) for name in graph.weights)
    whole = source_of(model, "uint8", ("relu3_1",)).graph
    assert [output.name for output in whole.model.graph.output] == ["relu3_1", "scores"]


def test_the_key_tells_graphs_apart(classic: Path) -> None:
    model = modelfile.read(classic)
    asked: list[dict[str, Any]] = [
        {}, {"taps": ("relu1_1",)}, {"taps": ("relu1_1",), "scores": False},
        {"taps": ("relu1_1",), "pool": "avg"}, {"taps": ("relu1_1",), "pool": "max"},
        {"taps": ("relu1_1", "relu1_2")}, {"taps": ("relu1_2", "relu1_1")},
    ]  # fmt: skip
    keys = [source_of(model, "uint8", **words).key for words in asked]
    assert len(set(keys)) == len(asked)
    again = [source_of(model, "uint8", **words).key for words in asked]
    assert again == keys


def test_labels_and_features_from_one_pass(classic: Path, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    (tmp_path / "bad.jpg").write_text("no photo")
    predictor = verydeep.load(classic)
    alone = predictor(files)
    runs = 0
    choose = predictor._choice

    def counting(*words: Any) -> Any:
        nonlocal runs
        runs += 1
        return choose(*words)

    predictor._choice = counting  # type: ignore[method-assign]
    items = list(predictor.features_stream([*files, tmp_path / "bad.jpg"], "relu5_2", "avg", top=5))
    assert runs == 1
    assert isinstance(items[3], Failure)
    assert "bad.jpg" in items[3].error
    features = predictor.features(files, "relu5_2", "avg")["relu5_2"]
    for item, answer, expected in zip(items, alone, features, strict=False):
        assert isinstance(item, Features)
        assert item.answer is not None
        assert item.path == answer.path
        assert [p.label for p in item.answer.predictions] == [p.label for p in answer.predictions]
        assert item.answer.probability == pytest.approx(answer.probability, abs=1e-5)
        assert_allclose(item["relu5_2"], expected, rtol=1e-5, atol=1e-6)
    assert str(items[0]) == f"{files[0]}: relu5_2 32 (onnxruntime fast)"


def test_a_trunk_alone_has_features_but_no_labels(tmp_path: Path) -> None:
    path = model_file(tmp_path / "trunk.safetensors", tiny(head="classic", classes=0))
    predictor = verydeep.load(path)
    file = photo(tmp_path / "a.png")
    assert predictor.features(file, "pool5").keys() == {"pool5"}
    with pytest.raises(DataError, match="a trunk without a head"):
        predictor.features_stream([file], "pool5", top=1)
    with pytest.raises(NetworkError, match="no head here"):
        source_of(predictor.model, "uint8")
    with pytest.raises(LayerError, match="has no layer 'fc6'"):
        predictor.features(file, "fc6")


def test_sizes(classic: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 50, 70)
    predictor = verydeep.load(classic)
    shapes = {
        None: (32, 32), 48: (48, 48), (40, 64): (40, 64), "own": (50, 70),
    }  # fmt: skip
    for size, expected in shapes.items():
        found = predictor.features(file, "conv1_1", size=size)  # type: ignore[arg-type]
        assert found["conv1_1"].shape == (1, 4, *expected)
    stretched = sized(TORCHVISION, (40, 64)).pixels(file)
    from PIL import Image

    assert_allclose(stretched, np.asarray(Image.open(file).resize((64, 40), 2)), atol=0)
    for wrong in ((3,), (0, 4), "owm", 1.5, True):
        with pytest.raises(PreprocessError, match=r"size is .*; expected pixels a side"):
            sized(Preprocess(), wrong)  # type: ignore[arg-type]


def test_a_size_replaces_the_one_before(tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 30, 50)
    stretched = sized(TORCHVISION, (40, 64))
    assert stretched.sides == (40, 64)
    assert Preprocess.from_dict(stretched.to_dict()) == stretched
    assert sized(stretched, 32).pixels(file).shape == (32, 32, 3)
    assert sized(stretched, (20, 10)).pixels(file).shape == (20, 10, 3)
    assert sized(stretched, "own").pixels(file).shape == (30, 50, 3)
    assert sized(TORCHVISION, "own").sides is None


def test_images_of_mixed_sizes(classic: Path, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{i}.png", 40 + 8 * i, 64, seed=i) for i in range(3)]
    predictor = verydeep.load(classic)
    with pytest.raises(
        DataError, match="differ in size, so their maps of pool2 do, 10x16 and 12x16"
    ):
        predictor.features(files, "pool2", size="own")
    together = predictor.features(files, "pool2", "gem", size="own")["pool2"]
    alone = [predictor.features(f, "pool2", "gem", size="own")["pool2"][0] for f in files]
    assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)


def test_forms_of_images(classic: Path) -> None:
    """One image, a list, a batch as an array; uint8 and floats; none at all."""
    predictor = verydeep.load(classic)
    batch = pixels(32, 32, 3)
    before = batch.copy()
    expected = predictor.features(list(batch), "relu2_1", "avg")["relu2_1"]
    assert_allclose(predictor.features(batch, "relu2_1", "avg")["relu2_1"], expected)
    assert_allclose(
        predictor.features(batch[0], "relu2_1", "avg")["relu2_1"], expected[:1], rtol=1e-5
    )
    floats = list((batch / 255).astype(np.float32))
    found = predictor.features(floats, "relu2_1", "avg", range=(0, 1))["relu2_1"]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2)
    assert_allclose(predictor.features(tensor, "relu2_1", "avg")["relu2_1"], expected)
    assert (batch == before).all()
    assert predictor.features([], "relu2_1")["relu2_1"].shape == (0, 8, 16, 16)
    assert predictor.features([], ["relu2_1", "fc6"], "avg")["fc6"].shape == (0, 256)
    assert predictor.features([], "relu2_1", size="own")["relu2_1"].shape == (0, 8, 0, 0)


def test_bad_requests(classic: Path, tmp_path: Path) -> None:
    predictor = verydeep.load(classic)
    file = photo(tmp_path / "a.png")
    with pytest.raises(LayerError, match=r"no layer 'relu5_4'; did you mean relu5_2"):
        predictor.features(file, "relu5_4")
    with pytest.raises(DataError, match=r"pool 'mean' is unknown; expected one of: avg, max, gem"):
        predictor.features(file, "relu5_2", "mean")  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="nothing is asked for"):
        predictor.features(file, [])
    with pytest.raises(
        NetworkError, match=r"size 8x40 is too small for relu5_2; .* at least 16 pixels"
    ):
        predictor.features(file, "relu5_2", size=(8, 40))
    small = photo(tmp_path / "small.png", 12, 40)
    with pytest.raises(
        ImageError, match=r"small\.png: 40x12 pixels is too small for pool5; .* 32 a"
    ):
        predictor.features(small, ["relu1_1", "pool5"], size="own")
    assert predictor.features(small, "relu3_1", size="own")["relu3_1"].shape == (1, 16, 3, 10)
    image = np.zeros((32, 32, 3), np.float32)
    image[3, 4, 1] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        predictor.features(image, "relu1_1", range=(0, 1))
    with pytest.raises(ImageError, match=r"no such file"):
        predictor.features([file, tmp_path / "gone.png"], "relu1_1")
    with pytest.raises(DataError, match="top is -1"):
        predictor.features_stream([file], "relu1_1", top=-1)


def test_a_stream_reads_no_more_than_it_needs(classic: Path, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png")
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield file

    stream = verydeep.load(classic).features_stream(endless(), "relu1_1", "max", batch=2)
    for _ in range(3):
        next(stream)
    assert taken < 30
    stream.close()  # type: ignore[attr-defined]
