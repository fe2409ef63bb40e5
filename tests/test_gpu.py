"""What a CUDA device computes, against float64 on the processor; skipped where there is none."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import verydeep
from verydeep.distances import Perceptual
from verydeep.engines import ENGINES, TOLERANCES, Engine, relative_error
from verydeep.engines.race import race
from verydeep.errors import EngineError, ImageError
from verydeep.explanations import Explainer
from verydeep.graphs import Source
from verydeep.graphs import network as graph
from verydeep.losses import LPIPS, LearnedPerceptualImagePatchSimilarity, trunk
from verydeep.models.loading import Trained, as_torch, assemble
from verydeep.nets import POOLS, Network
from verydeep.predictor import Features
from verydeep.preprocess import TORCHVISION, Preprocess

from .conftest import Run
from .test_losses import KINDS, _all, _file, _gradient, _images, _value
from .test_processes import FORKING, ROOT
from .test_threads import at_once
from .tiny import model_file, photo, pixels, tiny, weights

# VERYDEEP_GPU=cpu rehearses on the processor what needs nothing of CUDA's own: do the tests run?
GPU = os.environ.get("VERYDEEP_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        GPU == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
of_cuda = pytest.mark.skipif(GPU != "cuda", reason="looks at what CUDA alone has")


@pytest.fixture
def ieee(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 as a program may ask torch for it; by default they round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _file(tmp_path_factory.mktemp("losses") / "tiny.safetensors")


@pytest.fixture
def eighth(tmp_path: Path) -> Path:
    """A model file of width 1/8 that takes images of 64 pixels a side."""
    record = Preprocess(resize_size=64, crop_size=64)
    net = tiny("vgg16", width=1 / 8, head="classic")
    return model_file(tmp_path / "m.safetensors", net, preprocess=record)


def truth(net: Network, held: dict[str, np.ndarray], image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap's values in float64, on the processor, by torch's own modules."""
    module = assemble(Trained(net, as_torch(held))).double().eval()
    x = (image / 255 - np.array(TORCHVISION.mean)) / np.array(TORCHVISION.std)
    with torch.no_grad():
        values = module.taps(torch.from_numpy(x.transpose(0, 3, 1, 2)), net.taps)
    return {name: value.numpy() for name, value in values.items()}


# ---------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("head", ["classic", "gap", "small"])
@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16c_bn", "vgg16", "vgg19_bn"])
def test_every_tap_in_every_precision(name: str, head: str) -> None:
    net = tiny(name, head)
    held = weights(net)
    built = graph.build(net, held, TORCHVISION, taps=net.taps)
    for precision, allowed in TOLERANCES.items():
        engine = Engine("torch", built, precision=precision, device=GPU)
        for size in ((64, 97), (224, 224)):
            theirs = truth(net, held, pixels(*size))
            ours = engine.run(pixels(*size))
            assert relative_error(ours["scores"], theirs["fc8"]) <= allowed
            for tap in net.taps:
                assert relative_error(ours[tap], theirs[tap], scores=False) <= allowed, tap


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool(pool: str) -> None:
    net = tiny("vgg16", "gap", pool=pool)
    held = weights(net)
    engine = Engine("torch", graph.build(net, held, TORCHVISION), device=GPU)
    theirs = truth(net, held, pixels(97, 65))["fc8"]
    assert relative_error(engine.run(pixels(97, 65))["scores"], theirs) <= TOLERANCES["exact"]


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_at_full_width(name: str) -> None:
    """Where sums are longest, and quicker algorithms cost most."""
    net = tiny(name, "small", width=1, classes=100)
    held = weights(net)
    theirs = truth(net, held, pixels(224, 224))["fc8"]
    built = graph.build(net, held, TORCHVISION)
    for precision, allowed in TOLERANCES.items():
        engine = Engine("torch", built, precision=precision, device=GPU)
        assert relative_error(engine.run(pixels(224, 224))["scores"], theirs) <= allowed, precision


@of_cuda
def test_exact_whatever_the_program_told_torch() -> None:
    """TF32 in products is not `exact`; torch's other names for it are tested without a device."""
    net = tiny("vgg16", "classic", width=1 / 4)
    held = weights(net)
    engine = Engine("torch", graph.build(net, held, TORCHVISION), device=GPU)
    torch.set_float32_matmul_precision("high")
    try:
        ours = engine.run(pixels(64, 64))["scores"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert relative_error(ours, truth(net, held, pixels(64, 64))["fc8"]) <= TOLERANCES["exact"]


def settings_of(precision: str) -> tuple[dict[str, int], ...]:
    return ENGINES["torch"].load().device_variants(GPU, precision)  # type: ignore[no-any-return]


@of_cuda
@pytest.mark.parametrize("head", ["classic", "gap"])
@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16", "vgg19_bn"])
def test_what_was_captured_is_of_its_own_pixels(name: str, head: str) -> None:
    """tests/test_torch_device.py has the same, with the processor as the device."""
    net = tiny(name, head, width=1 / 4)
    held = weights(net)
    built = graph.build(net, held, TORCHVISION, taps=("relu1_1", "pool5"))
    for precision, allowed in TOLERANCES.items():
        for settings in settings_of(precision)[1:]:
            engine = Engine("torch", built, precision=precision, device=GPU, settings=settings)
            for seed, side in enumerate((224, 64, 224, 97, 128, 64)):
                image = pixels(side, 96, 3, seed=seed)
                ours, theirs = engine.run(image), truth(net, held, image)
                for tap, value in (("scores", theirs["fc8"]), ("pool5", theirs["pool5"])):
                    error = relative_error(ours[tap], value, scores=tap == "scores")
                    assert error <= allowed, (precision, settings, side, tap)
            assert len(captures(engine)) == 3
            assert all(captures(engine)), "what should have been captured was not"


def captures(engine: Engine) -> list[object]:
    """What an engine holds of each shape: a graph, or None where it could not be captured."""

    def within(function: object, name: str) -> object:
        cells = [cell.cell_contents for cell in function.__closure__]  # type: ignore[attr-defined]
        return next(c for c in cells if name in (type(c).__name__, getattr(c, "__name__", "")))

    held = within(within(engine._run, "compute"), "_Captured")
    return [*held._kept.values()]  # type: ignore[attr-defined]


@of_cuda
def test_captures_beside_other_threads_work() -> None:
    """One thread captures again and again; others compute, allocate and run engines of their own."""
    net = tiny("vgg16", "classic", width=1 / 8)
    built = graph.build(net, weights(net), TORCHVISION)
    image = pixels(64, 64)
    alone = Engine("torch", built, device=GPU).run(image)["scores"]

    def task(number: int) -> None:
        for _ in range(5):
            if number % 2:
                settings = {"captured": 1, **({"planes": 1} if number % 4 == 3 else {})}
                engine = Engine("torch", built, device=GPU, settings=settings)
                for _ in range(3):
                    assert relative_error(engine.run(image)["scores"], alone) <= 1e-5
            else:
                x = torch.randn(64, 64, device=GPU)
                assert float((x @ x.cpu().to(GPU)).sum()) == pytest.approx(
                    float((x @ x).sum()), 1e-3
                )

    at_once(task)


@of_cuda
def test_a_race_among_torchs_own_settings() -> None:
    net = tiny("vgg16", "gap", width=1 / 2)  # no large FC layers, which only the winner computes
    source = Source.of(graph.build(net, weights(net), TORCHVISION))
    for precision, allowed in TOLERANCES.items():
        winner, standings = race(
            source, pixels(224, 224, 4), [ENGINES["torch"]], precision=precision, threads=2,
            devices=(GPU,), seconds=1.0,
        )  # fmt: skip
        assert winner.device == GPU
        assert all(row.error <= allowed for row in standings)
        raced = [dict(row.settings) for row in standings]
        assert {"captured": 1} in raced, "a graph was not captured, or answered wrongly"


# ------------------------------------------------------------------------------------- the predictor


def test_a_predictor_on_the_device(eighth: Path) -> None:
    given = pixels(64, 64, 12)
    here = verydeep.load(eighth, device="cpu", precision="exact")
    there = verydeep.load(eighth, device=GPU, precision="exact")
    reference = here.scores(given)
    assert relative_error(there.scores(given), reference) <= TOLERANCES["exact"]
    assert relative_error(there.scores(torch.from_numpy(given).permute(0, 3, 1, 2).to(GPU)),
                          reference) <= TOLERANCES["exact"]  # fmt: skip
    again = pickle.loads(pickle.dumps(there))
    assert [a.label for a in again(list(given))] == [a.label for a in here(list(given))]
    if GPU == "cuda":
        assert next(iter(again.stream(given[:1]))).engine == "torch"  # type: ignore[union-attr]
    for pool in (None, "avg", "max", "gem"):
        layers = ("conv1_2", "relu5_3", "fc6")
        ours, theirs = there.features(given, layers, pool), here.features(given, layers, pool)  # type: ignore[arg-type]
        for layer in layers:
            assert relative_error(ours[layer], theirs[layer], scores=False) <= 1e-5, (pool, layer)
    sizes = [pixels(64 + 16 * (n % 3), 64, 1, seed=n)[0] for n in range(20)]
    streams = (p.features_stream(sizes, "relu4_3", size="own", top=1) for p in (there, here))
    for a, b in zip(*streams, strict=True):
        assert isinstance(a, Features)
        assert isinstance(b, Features)
        assert relative_error(a["relu4_3"], b["relu4_3"], scores=False) <= 1e-5
        assert a.answer.label == b.answer.label  # type: ignore[union-attr]


@of_cuda
def test_auto_takes_the_device_where_it_is_quicker(tmp_path: Path) -> None:
    """By far, for a network of full width: however long torch takes for it on the processor."""
    net = tiny("vgg16", "small", width=1)
    path = model_file(tmp_path / "m.safetensors", net, preprocess=Preprocess())
    given = list(pixels(224, 224, 40))
    there = list(verydeep.load(path).stream(given, batch=32))
    assert there[-1].engine == "torch"  # type: ignore[union-attr]
    here = verydeep.load(path, device="cpu", precision="exact")(given[:4])
    assert [a.label for a in there[:4]] == [a.label for a in here]  # type: ignore[union-attr]


def test_eight_threads_share_the_device(eighth: Path, file: Path) -> None:
    """Predictor, explainer and loss at once: the switches of TF32 are the whole process's."""
    predictor = verydeep.load(eighth, device=GPU, precision="exact")
    given = [pixels(64, 64, 1 + n % 3, seed=n) for n in range(8)]
    alone = [predictor.scores(images) for images in given]
    explainer = Explainer(predictor, "gradcam")
    heat = explainer(given[0][0], label=1).map
    loss = _all(file)["lpips"].to(GPU)
    x, y = (t.detach().to(GPU) for t in _images())
    x.requires_grad_()

    def task(number: int) -> None:
        for _ in range(10):
            assert_allclose(predictor.scores(given[number]), alone[number], rtol=1e-4, atol=1e-5)
            if number == 0:
                assert_allclose(explainer(given[0][0], label=1).map, heat, atol=1e-4 * heat.max())
            if number == 1:
                assert _gradient(loss, x, y).isfinite().all()

    at_once(task)
    assert torch.backends.cudnn.allow_tf32


@of_cuda
def test_what_closes_gives_its_memory_back(eighth: Path) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    with verydeep.load(eighth, device=GPU) as predictor:
        predictor.scores(pixels(64, 64))
        assert torch.cuda.memory_allocated() > before
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@of_cuda
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_says_that_it_cannot(eighth: Path) -> None:
    code = FORKING.replace('device="cpu"', 'device="cuda"')
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "torch", str(eighth), "1"],
        capture_output=True, text=True, timeout=120, check=True, cwd=ROOT,
    )  # fmt: skip
    *children, parent = done.stdout.splitlines()
    assert parent == "parent True"
    assert len(children) == 3
    for line in children:
        assert line.startswith("EngineError: ")
        assert "fork" in line
        assert "spawn" in line


@of_cuda
def test_what_the_device_cannot_is_refused_at_once(eighth: Path) -> None:
    with pytest.raises(EngineError, match="device 'cuda:7' is unknown"):
        verydeep.load(eighth, device="cuda:7")
    if "cuda" not in import_module("verydeep.engines.onnxruntime").devices():
        with pytest.raises(EngineError, match="onnxruntime finds no CUDA device here"):
            verydeep.load(eighth, device=GPU, precision="int8")


@of_cuda
def test_commands_on_the_device(verydeep: Run, eighth: Path, tmp_path: Path) -> None:
    image, told = photo(tmp_path / "a.png", 64, 64), ("--model", eighth, "--device", GPU)
    done = verydeep("classify", image, *told, "--json")
    assert done.status == 0, done.err
    assert '"engine": "torch"' in done.out
    assert (
        verydeep("explain", image, *told, "--out", tmp_path / "out", "--method", "ig").status == 0
    )
    done = verydeep("features", image, *told, "--out", tmp_path / "f.npz")
    assert done.status == 0, done.err


@pytest.mark.parametrize("metric", ["lpips", "dists", "content", "style"])
def test_distances_on_the_device(metric: str) -> None:
    a, b = pixels(96, 80, 3), pixels(96, 80, 3, seed=1)
    here = Perceptual(metric, device="cpu", precision="exact")(list(a), list(b))
    for precision, allowed in (("exact", 1e-4), ("fast", 1e-3), ("half", 3e-2)):
        there = Perceptual(metric, device=GPU, precision=precision)(list(a), list(b))
        assert_allclose(there, here, rtol=allowed)


@pytest.mark.parametrize("method", ["cam", "gradcam", "gradcam++", "ig", "occlusion"])
def test_explanations_on_the_device(method: str, model: Path) -> None:
    image = pixels(32, 32)[0]
    where = {}
    for device in ("cpu", GPU):
        predictor = verydeep.load(model, device=device, precision="exact")
        explainer = Explainer(predictor, method)
        where[device] = explainer(image, label=2).map
        if method == "gradcam":
            where[f"{device} check"] = explainer.check(explainer(image, label=2)).deletion_area
    scale = np.abs(where["cpu"]).max()
    assert_allclose(where[GPU], where["cpu"], atol=1e-4 * scale)
    if method == "gradcam":
        assert where[f"{GPU} check"] == pytest.approx(where["cpu check"], abs=1e-4)


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.usefixtures("ieee")
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_against_float64(
    file: Path, kind: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "large":  # as large maps go through: apart, each convolution with its ReLU
        monkeypatch.setattr(trunk, "TOGETHER_BYTES", 0)
        monkeypatch.setattr(trunk, "FUSED_BYTES", 0)
        filled = [torch.full((1 << k,), torch.nan, device=GPU) for k in range(8, 24)]
        del filled  # what was not written yet is no number
    x, y = _images()
    loss = _all(file)[kind]
    wide = x.detach().double().requires_grad_()
    value, slope = _value(loss, wide, y.double()).detach(), _gradient(loss, wide, y.double())
    moved = copy.deepcopy(loss).to(GPU)
    for ours in (moved, copy.deepcopy(moved), copy.deepcopy(moved).cpu().to(GPU)):
        for layout in (torch.contiguous_format, torch.channels_last):
            a = x.detach().to(GPU, memory_format=layout).requires_grad_()
            b = y.to(GPU, memory_format=layout)
            assert_allclose(_value(ours, a, b).detach().cpu(), value, rtol=1e-4)
            assert (_gradient(ours, a, b).cpu() - slope).norm() <= 1e-2 * slope.norm()
            assert_allclose(_value(ours, a.double(), b).detach().cpu(), value, rtol=1e-5)
        known = ours.remember(y.to(GPU))  # type: ignore[operator]
        assert_allclose(_value(ours, x.to(GPU), known).detach().cpu(), value, rtol=1e-4)
        known = loss.remember(y)  # type: ignore[operator]
        assert_allclose(_value(ours, x.to(GPU), known).detach().cpu(), value, rtol=1e-4)
        few = _value(ours, x.to(GPU), y[:1].to(GPU)).detach().cpu()
        assert_allclose(few, _value(loss, x, y[:1]).detach(), rtol=1e-4)
    if GPU != "cuda":
        return
    with pytest.raises(ImageError, match=r"is on cpu and the loss on cuda:0; .*loss.to\('cpu'\)"):
        moved(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_in_fewer_bits(file: Path, kind: str) -> None:
    x, y = _images(2, 64, 64)
    loss = _all(file)[kind].to(GPU)
    value, slope = _value(loss.cpu(), x, y).detach(), _gradient(loss, x, y)
    loss.to(GPU)

    def near(found: Tensor, a: Tensor, allowed: float, turn: float) -> None:
        (gradient,) = torch.autograd.grad(found.float().sum(), a)
        assert (found.detach().float().cpu() - value).norm() <= allowed * value.norm()
        assert (gradient.float().cpu() - slope).norm() <= turn * slope.norm()

    a, b = x.detach().to(GPU).requires_grad_(), y.to(GPU)
    near(_value(loss, a, b), a, 5e-3, 0.1)  # as torch comes, in TF32
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(GPU, dtype):
            found = _value(loss, a, b)
        near(found, a, 6e-2, 0.5)
        c = x.detach().to(GPU, dtype).requires_grad_()
        near(_value(loss, c, b.to(dtype)), c, 6e-2, 0.5)
    assert _value(loss, (255 * b).byte(), b.bfloat16()).isfinite().all()


@of_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_nothing_and_is_captured(file: Path, kind: str) -> None:
    """After its first call, that is: then a whole step can be replayed as a CUDA graph."""
    loss = _all(file)[kind].to(GPU)
    x, y = (t.detach().to(GPU) for t in _images())
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(_value(loss, x, y).sum(), x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(_value(loss, x, y).sum(), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        value = _value(loss, x, y)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        x.copy_(x.flip(3))
    captured.replay()
    x = x.detach().requires_grad_()
    assert_allclose(value.detach().cpu(), _value(loss, x, y).detach().cpu(), rtol=1e-3)
    fresh = _gradient(loss, x, y)
    assert (gradient - fresh).norm() <= 2e-2 * fresh.norm()


@of_cuda
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_loss(file: Path) -> None:
    loss = _all(file)["lpips"].to(GPU)
    x, y = (t.detach().to(GPU) for t in _images(1, 32, 32))
    x.requires_grad_()
    expected, slope = _value(loss, x, y).detach(), _gradient(loss, x, y)
    compiled = torch.compile(loss, fullgraph=True)
    found = compiled(x, y)
    assert_allclose(found.detach().cpu(), expected.cpu(), rtol=5e-3)
    assert (torch.autograd.grad(found.sum(), x)[0] - slope).norm() <= 0.1 * slope.norm()


@pytest.mark.usefixtures("ieee")
def test_the_built_in_loss_goes_to_other_machines() -> None:
    x, y = (t.detach() for t in _images(1, 64, 64))
    loss = LPIPS(net="vgg", range="0..1")
    expected = float(loss(x, y))
    moved = copy.deepcopy(loss).to(GPU)
    assert float(moved(x.to(GPU), y.to(GPU))) == pytest.approx(expected, rel=1e-4)
    buffer = io.BytesIO()
    torch.save(moved, buffer)
    buffer.seek(0)
    back = torch.load(buffer, map_location="cpu", weights_only=False)
    assert float(back(x, y)) == pytest.approx(expected, rel=1e-5)
    metric = LearnedPerceptualImagePatchSimilarity("vgg", normalize=True).to(GPU)
    metric.update(x.detach().to(GPU), y.to(GPU))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-4)
