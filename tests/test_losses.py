"""Losses: values and gradients of lpips, torchmetrics, DISTS-pytorch and plain formulas."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from verydeep import losses, modelfile, models
from verydeep.distances.metrics import HEADS_FILE, METRICS
from verydeep.errors import ImageError, MissingExtraError, VerydeepError
from verydeep.losses import (
    DISTS,
    LPIPS,
    ContentLoss,
    PerceptualLoss,
    StyleLoss,
    TotalVariation,
    lpips,
    trunk,
)
from verydeep.modelfile import Record
from verydeep.nets import network
from verydeep.preprocess import CAFFE, TORCHVISION

LAYERS = METRICS["lpips"].layers
NARROW = (4, 8, 16, 32, 32)  # channels of these layers, a sixteenth as wide


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _file(tmp_path_factory.mktemp("losses") / "tiny.safetensors")


def _file(path: Path, name: str = "vgg16", **record: object) -> Path:
    torch.manual_seed(0)
    net = network(name, width=1 / 16, classes=0)
    model = models.build(net).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    modelfile.write(path, Record(net, **{"preprocess": TORCHVISION, **record}), tensors)  # type: ignore[arg-type]
    return path


def _heads() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        tap: torch.rand(channels, generator=draw)
        for tap, channels in zip(LAYERS, NARROW, strict=True)
    }


def _lpips(file: Path, **choices: object) -> LPIPS:
    return LPIPS(net="vgg", model=file, heads=_heads(), **choices)  # type: ignore[arg-type]


def _dists(file: Path, **choices: object) -> DISTS:
    weights = torch.linspace(0.1, 1, 3 + sum(NARROW))
    return DISTS(model=file, alpha=weights, beta=weights.flip(0), **choices)  # type: ignore[arg-type]


def _all(file: Path) -> dict[str, nn.Module]:
    return {
        "lpips": _lpips(file, range="0..1"),
        "spatial": _lpips(file, range="0..1", spatial=True),
        "dists": _dists(file),
        "l1": PerceptualLoss(("relu2_1", "conv3_2"), (1, 0.5), model=file),
        "own": PerceptualLoss(("relu1_2", "pool2"), criterion=F.huber_loss, model=file),
        "content": ContentLoss(model=file),
        "style": StyleLoss(model=file, pool="avg"),
    }


KINDS = ("lpips", "spatial", "dists", "l1", "own", "content", "style")


def _images(
    n: int = 2, height: int = 40, width: int = 52, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Two batches in 0 to 1, alike and yet not the same; the first to be differentiated for."""
    draw = torch.Generator().manual_seed(height)
    y = torch.rand(n, 3, height, width, generator=draw, dtype=torch.float64)
    x = (y + 0.2 * torch.randn(y.shape, generator=draw, dtype=torch.float64)).clamp(0, 1)
    return x.to(dtype).requires_grad_(), y.to(dtype)


def _value(loss: nn.Module, *arguments: object, **options: object) -> Tensor:
    found = loss(*arguments, **options)
    assert isinstance(found, Tensor)
    return found


def _gradient(loss: nn.Module, x: Tensor, y: object) -> Tensor:
    return torch.autograd.grad(_value(loss, x, y).sum(), x)[0]


# ---------------------------------------------------------------------- against other implementations


@pytest.fixture(scope="module")
def real() -> LPIPS:
    return LPIPS(net="vgg")


def _features(loss: LPIPS) -> nn.Sequential:
    """A copy of its convolutions, as torchvision has them."""
    return nn.Sequential(*(copy.deepcopy(m) for part in loss.net.values() for m in part))


def _first(loss: nn.Module) -> nn.Module:
    """Its first convolution."""
    return loss.net["slice1"][0]  # type: ignore[index, return-value]


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch, real: LPIPS) -> None:
    """Other packages find the built-in convolutions where they would download torchvision's."""
    import torchvision

    def vgg16(**_: object) -> SimpleNamespace:
        return SimpleNamespace(features=_features(real).requires_grad_())

    monkeypatch.setattr(torchvision.models, "vgg16", vgg16)


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("size", [(16, 16), (33, 70)])
def test_lpips_is_that_of_lpips(real: LPIPS, size: tuple[int, int]) -> None:
    lpips = pytest.importorskip("lpips")
    reference = lpips.LPIPS(net="vgg", verbose=False)
    x, y = _images(2, *size)
    expected, parts = reference(x, y, retPerLayer=True, normalize=True)
    found, ours = real(x, y, retPerLayer=True, normalize=True)
    assert found.shape == expected.shape == (2, 1, 1, 1)
    assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    for one, other in zip(ours, parts, strict=True):
        assert_allclose(one.detach(), other.detach(), rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(v.sum(), x)[0] for v in (found, expected)]
    # single values may lie on the other side of a ReLU's or a pool's edge
    assert (gradients[0] - gradients[1]).norm() < 5e-3 * gradients[1].norm()
    z = (2 * x - 1).detach()
    expected = reference(z, 2 * y - 1)
    assert_allclose(_value(real, z, 2 * y - 1), expected.detach(), rtol=1e-5, atol=1e-7)
    reference.spatial = real.spatial = True
    try:
        expected, found = reference(z, 2 * y - 1).detach(), _value(real, z, 2 * y - 1)
    finally:
        real.spatial = False
    assert found.shape == (2, 1, *size)
    assert_allclose(found, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.usefixtures("theirs")
def test_dists_is_that_of_dists_pytorch() -> None:
    package = pytest.importorskip("DISTS_pytorch.DISTS_pt")
    reference = package.DISTS(load_weights=False)
    stored = load_file(HEADS_FILE)
    for name in ("alpha", "beta"):
        getattr(reference, name).data = stored[f"dists.{name}"].view(1, -1, 1, 1)
    reference.double()
    x, y = _images(2, 33, 70)
    exact = x.detach().double().requires_grad_()
    expected = reference(exact, y.double(), require_grad=True)
    loss = DISTS()
    found = _value(loss, x, y)
    assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=2e-7)
    assert_allclose(_value(loss, x, y, False, True).item(), expected.mean().item(), rtol=1e-5)
    assert not _value(loss, x, y, require_grad=False).requires_grad
    gradients = [torch.autograd.grad(v.sum(), t)[0] for v, t in ((found, x), (expected, exact))]
    assert (gradients[0] - gradients[1]).norm() < 5e-3 * gradients[1].norm()


# the ways in which people make the original's, by what differs
PLAIN = {"net": "vgg", "verbose": False}
WAYS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "by name": ((), {"net": "vgg"}),
    "by place": ((True, "vgg"), {}),
    "all by place": ((True, "vgg", "0.1", True, True, False, False, True, None, True, False), {}),
    "maps": ((), {**PLAIN, "spatial": True}),
    "from a config": (
        (),
        {
            **PLAIN, "pretrained": True, "version": "0.1", "lpips": True, "pnet_rand": False,
            "pnet_tune": False, "use_dropout": True, "model_path": None, "eval_mode": True,
        },
    ),
    "without heads": ((), {**PLAIN, "lpips": False}),
    "random heads": ((), {**PLAIN, "pretrained": False}),
    "a random trunk": ((), {**PLAIN, "pnet_rand": True}),
    "heads of one's own": ((), {**PLAIN, "model_path": True}),
    "heads that learn": ((), {**PLAIN, "eval_mode": False}),
    "without dropout": ((), {**PLAIN, "eval_mode": False, "pretrained": False, "use_dropout": False}),
    "a trunk that learns": ((), {**PLAIN, "pnet_tune": True}),
}  # fmt: skip


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("way", WAYS)
def test_it_is_made_as_that_of_lpips_is(tmp_path: Path, way: str) -> None:
    lpips = pytest.importorskip("lpips")
    places, names = WAYS[way]
    if names.get("model_path"):
        path = tmp_path / "heads.pth"
        draw = torch.Generator().manual_seed(5)
        heads = {
            f"lin{n}.model.1.weight": torch.rand(1, channels, 1, 1, generator=draw)
            for n, channels in enumerate((64, 128, 256, 512, 512))
        }
        torch.save(heads, path)
        names = {**names, "model_path": str(path)}
    reference, loss = lpips.LPIPS(*places, **names), LPIPS(*places, **names)
    state, ours = reference.state_dict(), loss.state_dict()
    assert list(ours) == list(state)
    assert [v.shape for v in ours.values()] == [v.shape for v in state.values()]
    assert loss.training == reference.training
    trunk = [p.requires_grad for p in reference.net.parameters()]
    assert [p.requires_grad for p in loss.net.parameters()] == trunk
    if "random" in way or way == "without dropout":
        loss.load_state_dict(state)
    reference.eval()
    loss.eval()
    x, y = _images(1, 20, 24)
    expected, found = (_value(net, 2 * x - 1, 2 * y - 1) for net in (reference, loss))
    assert found.shape == expected.shape
    assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    for one, other in zip(loss.parameters(), reference.parameters(), strict=True):
        if one.requires_grad:
            slopes = [
                torch.autograd.grad(v.sum(), p, retain_graph=True)[0]
                for v, p in ((found, one), (expected, other))
            ]
            assert (slopes[0] - slopes[1]).norm() < 5e-3 * slopes[1].norm()
    if way == "heads that learn":
        loss.train()
        draws = [_value(loss, 2 * x - 1, 2 * y - 1) for _ in range(2)]
        assert not torch.equal(*draws)  # dropout


@pytest.mark.usefixtures("theirs")
def test_states_go_both_ways_between_lpips_and_this() -> None:
    lpips = pytest.importorskip("lpips")
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    torch.manual_seed(2)
    for values in reference.parameters():
        values.data += 0.01 * torch.rand(values.shape)
    loss, again = LPIPS(net="vgg"), lpips.LPIPS(net="vgg", verbose=False)
    loss.load_state_dict(reference.state_dict(), strict=True)
    again.load_state_dict(loss.state_dict(), strict=True)
    x, y = (2 * image - 1 for image in _images(1, 20, 24))
    expected = _value(reference, x, y).detach()
    assert torch.equal(_value(again, x, y).detach(), expected)
    assert_allclose(_value(loss, x, y).detach(), expected, rtol=1e-5)
    # what is computed in another type follows, too
    assert_allclose(_value(loss, x.double(), y.double()).detach(), expected, rtol=1e-5)


def test_one_loss_in_two_types_from_two_threads(file: Path) -> None:
    loss = _lpips(file, range="0..1")
    x, y = _images()
    pairs = [(x.detach(), y), (x.detach().double(), y.double())]
    expected = [_value(copy.deepcopy(loss), *pair) for pair in pairs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: _value(loss, *pair), pairs * 20))
    assert all(torch.equal(value, expected[n % 2]) for n, value in enumerate(found))
    assert expected[1].dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_without_a_batch_and_one_channel_for_all(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images(1)
    expected = _value(loss, x, y).detach()
    assert torch.equal(_value(loss, x[0], y[0]).detach(), expected)
    grey = x[:, :1]
    expected = _value(loss, grey.expand(-1, 3, -1, -1), y).detach()
    assert torch.equal(_value(loss, grey, y).detach(), expected)
    assert torch.equal(_value(loss, grey[0], loss.remember(y[0])).detach(), expected)


@pytest.mark.usefixtures("theirs")
def test_lpips_takes_one_channel_and_no_batch_alike(real: LPIPS) -> None:
    lpips = pytest.importorskip("lpips")
    reference = lpips.LPIPS(net="vgg", verbose=False)
    x, y = (t.detach() for t in _images(1, 20, 24))
    for pair in ((x[0], y[0]), (x[:, :1], y), (x[0, :1], y[0, :1])):
        expected = reference(*pair, normalize=True)
        assert_allclose(_value(real, *pair, normalize=True), expected.detach(), rtol=1e-5)


def test_dists_is_made_as_that_of_dists_pytorch() -> None:
    assert torch.equal(DISTS(True).alpha, DISTS(load_weights=True).alpha)
    loss = DISTS(load_weights=False)
    assert abs(loss.alpha.mean() - 0.1) < 0.01
    published = DISTS()
    for name in ("alpha", "beta"):  # as its readers do
        getattr(loss, name).data = load_file(HEADS_FILE)[f"dists.{name}"].view(1, -1, 1, 1)
    x, y = _images(1, 20, 24)
    assert torch.equal(_value(loss, x, y), _value(published, x, y))


def _metric() -> Any:
    with warnings.catch_warnings():  # torchmetrics' own
        warnings.simplefilter("ignore")
        pytest.importorskip("torchmetrics")
        return losses.LearnedPerceptualImagePatchSimilarity


def test_the_metric_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch, real: LPIPS) -> None:
    kind = _metric()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
        package = pytest.importorskip("torchmetrics.image.lpip")
    features = _features(real)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: features)
    x, y = _images(3, 32, 40)
    for reduction in ("mean", "sum", "none"):
        reference = package.LearnedPerceptualImagePatchSimilarity("vgg", reduction, normalize=True)
        metric = kind("vgg", reduction, normalize=True)
        for start in (0, 1):
            parts = x[start : start + 2], y[start : start + 2]
            expected, batch = reference(*parts), metric(*parts)
            assert_allclose(batch.detach(), expected.detach(), rtol=1e-5)
            assert batch.requires_grad
        expected, value = reference.compute(), metric.compute()
        assert_allclose(value, expected.detach(), rtol=1e-5)
        metric.reset()
        metric.update(x, y)
        reference.reset()
        reference.update(x, y)
        assert_allclose(metric.compute(), reference.compute().detach(), rtol=1e-5)
        assert not metric.compute().requires_grad


def test_the_metric_plots_what_it_computes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = _metric()("vgg", model=file, heads=_heads(), normalize=True)
    metric.update(*_images(2))
    monkeypatch.setattr(metric, "_plot", lambda _value, axes: (metric.compute(), axes))
    assert metric.plot()[0] == metric.compute()


def test_the_metric_in_torchmetrics_ways(file: Path) -> None:
    """Collections, pickles, several processes; and states without a graph after `forward`."""
    kind = _metric()
    from torchmetrics import MetricCollection

    x, y = _images(3)
    both = {"dist_sync_fn": lambda t, group: [t, t], "distributed_available_fn": lambda: True}  # noqa: ARG005
    for reduction in ("mean", "sum", "none"):
        options = {"normalize": True, "model": file, "heads": _heads()}
        metric = kind("vgg", reduction, **options)
        collection = MetricCollection({"lpips": metric})
        collection(x, y)
        (value,) = collection.compute().values()
        expected = _value(_lpips(file, range="0..1"), x, y).detach().flatten()
        expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
        assert_allclose(value.detach(), expected, rtol=1e-4)
        assert not any(score.requires_grad for score in metric.all_scores)
        assert_allclose(pickle.loads(pickle.dumps(metric)).compute().detach(), expected, rtol=1e-4)
        twice = kind("vgg", reduction, **options, **both)
        twice.update(x, y)
        two = expected if reduction == "mean" else 2 * expected
        two = torch.cat([expected, expected]) if reduction == "none" else two
        assert_allclose(twice.compute().detach(), two, rtol=1e-4)
        empty = kind("vgg", reduction, **options)
        # torchmetrics says so, too
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="No samples"):  # noqa: PT030
            empty.compute()


@pytest.mark.parametrize(
    ("shapes", "offset"),
    [
        ([(1, 1, 28, 28), (1, 3, 28, 28)], 0), ([(1, 3, 28, 28), (1, 1, 28, 28)], 0),
        ([(1, 1, 28, 28)] * 2, 0), ([(3, 28, 28)] * 2, 0), ([(1, 3, 28, 28)] * 2, -5),
    ],
)  # fmt: skip
def test_the_metric_refuses_as_torchmetrics_does(
    file: Path, shapes: list[tuple[int, ...]], offset: float
) -> None:
    metric = _metric()("vgg", model=file, heads=_heads())
    images = [torch.rand(shape) + offset for shape in shapes]
    with pytest.raises(ValueError, match="Expected both input arguments to be normalized tensors "):
        metric(*images)


def test_the_metric_needs_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verydeep.losses.metric", None)
    with pytest.raises(MissingExtraError, match=r'pip install "verydeep\[metrics\]"'):
        losses.LearnedPerceptualImagePatchSimilarity  # noqa: B018


@pytest.mark.parametrize("argument", ["net", "net_type"])
def test_a_net_that_was_not_named_is_warned_of(file: Path, argument: str) -> None:
    kind = LPIPS if argument == "net" else _metric()
    with pytest.warns(
        UserWarning, match=f"^{argument} was not named: .* write {argument}=.vgg"
    ) as caught:
        kind(model=file, heads=_heads())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    lpips_has = (True, "vgg", "0.1", True, False, False, False, True, None, True, False)
    LPIPS(*lpips_has, model=file, heads=_heads())  # type: ignore[arg-type]


def test_content_style_and_variation_are_their_formulas(file: Path) -> None:
    x, y = _images()
    body = models.backbone("vgg16", ("relu3_3", "conv2_1"), file)
    mean, std = torch.tensor(TORCHVISION.mean), torch.tensor(TORCHVISION.std)
    fx, fy = (body((t - mean[:, None, None]) / std[:, None, None]) for t in (x, y))
    loss = ContentLoss(("conv2_1", "relu3_3"), (1, 3), model=file, reduction="none")
    squares = {tap: (fx[tap] - fy[tap]).square().mean((1, 2, 3)) for tap in fx}
    expected = squares["conv2_1"] + 3 * squares["relu3_3"]
    assert_allclose(_value(loss, x, y).detach(), expected.detach(), rtol=1e-4)
    absolute = PerceptualLoss(("relu3_3",), model=file, reduction="sum")
    expected = (fx["relu3_3"] - fy["relu3_3"]).abs().mean((1, 2, 3)).sum()
    assert_allclose(_value(absolute, x, y).item(), expected.item(), rtol=1e-4)
    expected = torch.zeros(2)
    for tap in fx:
        c, h, w = fx[tap].shape[1:]
        grams = [torch.einsum("nchw,ndhw->ncd", f[tap], f[tap]) / (c * h * w) for f in (fx, fy)]
        expected = expected + (grams[0] - grams[1]).square().sum((1, 2))
    loss = StyleLoss(("relu3_3", "conv2_1"), model=file, reduction="none")
    assert_allclose(_value(loss, x, y).detach(), expected.detach(), rtol=1e-4)
    image = np.array([[[[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]]])
    assert _value(TotalVariation(), torch.tensor(image)).item() == (1 + 2 + 0 + 2 + 1 + 1) / 6
    assert _value(TotalVariation(2), torch.tensor(image)).item() == (1 + 4 + 0 + 4 + 1 + 1) / 6


# ------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images(1, 16, 18, torch.float64)
    # along a few directions, since a whole Jacobian takes a pass for each value
    draw = torch.Generator().manual_seed(3)
    gradient = _gradient(loss, x, y)
    assert gradient.dtype == torch.float64
    with torch.no_grad():
        for _ in range(4):
            step = 1e-6 * torch.randn(x.shape, generator=draw, dtype=torch.float64)
            expected = (_value(loss, x + step, y).sum() - _value(loss, x - step, y).sum()) / 2
            assert_allclose((gradient * step).sum(), expected, rtol=1e-4, atol=1e-14)


def test_the_fused_distance_by_gradcheck() -> None:
    draw = torch.Generator().manual_seed(0)
    f0, f1 = (torch.rand(2, 3, 2, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(3, generator=draw, dtype=torch.float64)
    f0, f1 = f0.requires_grad_(), f1.requires_grad_()
    function = lambda a, b: lpips.unit_differences(a, b, weights)  # noqa: E731
    assert torch.autograd.gradcheck(function, (f0, f1))
    assert torch.autograd.gradgradcheck(function, (f0, f1))
    one = f1.detach()[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (f0, one))


def test_the_fused_distance_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(2, 8, 5, 7, requires_grad=True), torch.rand(2, 8, 5, 7)
    found = []
    for chunk in (1 << 20, 24):
        monkeypatch.setattr(lpips, "CHUNK", chunk)
        value = lpips.unit_differences(x, y, torch.arange(8.0))
        found.append((value, *torch.autograd.grad(value.square().sum(), x)))
    for one, other in zip(*found, strict=True):
        assert_allclose(one.detach(), other.detach(), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identical_images_have_a_finite_gradient(file: Path, kind: str, dtype: torch.dtype) -> None:
    loss = _all(file)[kind]
    x = torch.rand(1, 3, 32, 32)
    x[:, :, :, 16:] = 0  # where features may well be all zero
    x = x.to(dtype).requires_grad_()
    value = _value(loss, x, x.detach())
    assert value.dtype == torch.float32
    assert value.abs().max() < 2e-7
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    f0 = torch.rand(1, 4, 3, 3)
    f0[:, :, 1] = 0
    f0 = f0.requires_grad_()
    for f1 in (f0.detach(), torch.rand(1, 4, 3, 3)):
        value = lpips.unit_differences(f0, f1, torch.ones(4))
        unit = [f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (f0.detach(), f1)]
        expected = (unit[0] - unit[1]).square().sum(1, keepdim=True)
        assert_allclose(value.detach(), expected, rtol=1e-5, atol=1e-12)
        (gradient,) = torch.autograd.grad(value.sum(), f0)
        assert gradient.isfinite().all()
        assert (gradient[:, :, 1] == 0).all()
    # nor is it where the processor takes numbers that are not normal for 0, as many set it to
    assert np.float32(lpips.SMALLEST) >= np.finfo(np.float32).tiny


def test_both_images_may_learn(file: Path) -> None:
    x, y = _images()
    y.requires_grad_()
    loss = _lpips(file, range="0..1")
    one, other = torch.autograd.grad(_value(loss, x, y).sum(), (x, y))
    back, forth = torch.autograd.grad(_value(loss, y, x).sum(), (x, y))
    assert one.abs().max() > 0
    assert_allclose(one, back, rtol=1e-4, atol=1e-7)
    assert_allclose(other, forth, rtol=1e-4, atol=1e-7)


# --------------------------------------------------------------- memory: strips, parts, checkpointing


# each kind once; odd and even heights; strips of one image, parts of several; kept and computed again
@pytest.mark.parametrize(
    ("kind", "size", "bytes_", "again"),
    [
        ("lpips", (71, 33), 1 << 8, None),
        ("lpips", (64, 44), 6000, True),
        ("spatial", (71, 33), 6000, False),
        ("dists", (71, 33), 1 << 8, True),
        ("l1", (64, 44), 1 << 8, True),
        ("own", (64, 44), 6000, None),
        ("content", (71, 33), 6000, True),
        ("style", (71, 33), 1 << 8, False),
    ],
)
def test_strips_and_parts_change_no_value(
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    kind: str,
    size: tuple[int, int],
    bytes_: int,
    again: bool | None,
) -> None:
    loss = _all(file)[kind]
    x, y = _images(3, *size)
    reference = loss.remember(y)
    expected, slope = _value(loss, x, y), _gradient(loss, x, y)
    strips: list[int] = []
    inner = trunk.Looking._strip

    def counting(*arguments: object, **options: object) -> list[Tensor]:
        strips.append(1)
        return inner(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trunk.Looking, "_strip", counting)
    monkeypatch.setitem(trunk.PART_BYTES, "cpu", bytes_)
    monkeypatch.setattr(trunk, "LEAST_ROWS", 8)
    loss.checkpointing = again
    for target in (y, reference):
        strips.clear()
        assert_allclose(_value(loss, x, target).detach(), expected.detach(), rtol=1e-4)
        assert len(strips) > 8 or kind in ("dists", "own")
        gradient = _gradient(loss, x, target)
        assert (gradient - slope).norm() < 1e-4 * slope.norm()


def test_checkpointing_keeps_less(file: Path) -> None:
    """What is kept for the backward pass, as autograd is asked to keep it."""
    x, y = _images(1, 64, 64)
    kept = {}
    for again in (False, True):
        loss = _lpips(file, range="0..1", checkpointing=again)
        sizes: list[int] = []

        def pack(t: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            _value(loss, x, y)
        kept[again] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_the_reference_keeps_no_graph(file: Path) -> None:
    x, y = _images()
    for loss in _all(file).values():
        seen: list[bool] = []
        hook = _first(loss).register_forward_hook(
            lambda _m, _i, out, seen=seen: seen.append(out.requires_grad)
        )
        _value(loss, x, y)
        hook.remove()
        assert True in seen
        assert False in seen  # the reference's pass, and hooks see both


def test_many_calls_leave_nothing(file: Path) -> None:
    loss = LPIPS(net="vgg", model=file, heads={"relu2_1": torch.ones(8)}, range="0..1")
    x, y = _images(1, 16, 16)

    def tensors() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(o, Tensor) for o in gc.get_objects())

    for _ in range(3):
        _value(loss, x, y).sum().backward()
    before = tensors()
    for _ in range(60):  # one that stays from each call would show
        _value(loss, x, y).sum().backward()
    assert tensors() <= before


# ----------------------------------------------------------------------------- references and batches


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_may_be_remembered_and_be_one_for_many(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images(3)
    expected = _value(loss, x, y[:1].expand(3, -1, -1, -1)).detach()
    calls: list[int] = []
    _first(loss).register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    reference = loss.remember(y[:1])
    assert len(reference) == sum(calls) == 1
    for target, images in ((y[:1], 4), (reference, 3)):
        calls.clear()
        assert_allclose(_value(loss, x, target).detach(), expected, rtol=1e-4, atol=1e-8)
        assert sum(calls) == images
    slope = _gradient(loss, x, y[:1].expand(3, -1, -1, -1))
    assert (_gradient(loss, x, reference) - slope).norm() < 1e-4 * slope.norm()


def test_one_image_against_several(file: Path) -> None:
    loss = _lpips(file, range="0..1")
    x, y = _images(3)
    expected = _value(loss, x[:1].expand(3, -1, -1, -1), y)
    assert_allclose(_value(loss, x[:1], y).detach(), expected.detach(), rtol=1e-5)


def test_a_style_may_be_of_another_size(file: Path) -> None:
    loss = StyleLoss(model=file)
    x, _ = _images(2, 40, 40)
    style = torch.rand(1, 3, 56, 33)
    assert_allclose(
        _value(loss, x, style).item(), _value(loss, x, loss.remember(style)).item(), rtol=1e-5
    )


# --------------------------------------------------------------------------- ranges and preprocessing


def test_ranges(file: Path) -> None:
    """What `verydeep.lpips` takes, refuses and warns of, see test_perceptual.py."""
    x, y = (t.detach() for t in _images())
    expected = _value(_lpips(file, range="0..1"), x, y)
    assert torch.equal(_value(_lpips(file, range=(0, 1)), x, y), expected)
    assert_allclose(_value(_lpips(file, range=(0, 4)), 4 * x, 4 * y), expected, rtol=1e-4)
    assert _value(_lpips(file, range="0..1"), 1.4 * x - 0.2, y).isfinite().all()
    with pytest.raises(ImageError, match="in0 goes from"):
        _lpips(file, range="0..1")(3 * x, y)
    assert_allclose(_value(_lpips(file), 2 * x - 1, 2 * y - 1), expected, rtol=1e-4)
    assert_allclose(_value(_lpips(file), x, y, normalize=True), expected, rtol=1e-5)
    assert_allclose(_value(_lpips(file, range="0..255"), 255 * x, 255 * y), expected, rtol=1e-4)
    eight = (255 * x).byte()
    exact = _value(_lpips(file, range="0..1"), eight / 255, y)
    assert_allclose(_value(_lpips(file, range="0..1"), eight, y), exact, rtol=1e-4)
    assert_allclose(
        _value(_dists(file, range="-1..1"), 2 * x - 1, 2 * y - 1),
        _value(_dists(file), x, y),
        rtol=1e-4,
    )


def test_weights_have_their_own_preprocessing(tmp_path: Path) -> None:
    path = _file(tmp_path / "caffe.safetensors", preprocess=CAFFE)
    x, y = (t.detach() for t in _images())
    body = models.backbone("vgg16", ("relu3_3",), path)
    mean = torch.tensor(CAFFE.mean)[:, None, None]
    fx, fy = (body(255 * t.flip(1) - mean)["relu3_3"] for t in (x, y))
    found = _value(ContentLoss(model=path), x, y)
    assert_allclose(found.item(), (fx - fy).square().mean().item(), rtol=1e-4)
    same, scaling = torch.rand(1, 3, 24, 24), _dists(path).scaling_layer
    assert_allclose(scaling.undone(scaling(same, 0, 1)), same, atol=1e-6)


def test_batch_norm_stays_frozen(tmp_path: Path) -> None:
    path = _file(tmp_path / "bn.safetensors", "vgg11_bn")
    loss = PerceptualLoss(("conv2_1", "relu3_2"), model=path, network="vgg11_bn").train()
    x, y = _images()
    first = _value(loss, x, y)
    assert torch.equal(first, _value(loss, x, y))
    assert not _first(loss).training


# -------------------------------------------------------------- torch's ways: dtype, copies, compiler


@pytest.mark.parametrize("kind", KINDS)
def test_float64_and_autocast_and_half(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images()
    expected = _value(loss, x, y).detach()
    exact = _value(loss, x.double(), y.double())
    assert exact.dtype == torch.float64
    assert_allclose(exact.detach(), expected, rtol=1e-4, atol=1e-8)
    again = _value(loss, x, y)
    assert again.dtype == torch.float32
    assert_allclose(again.detach(), expected, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        found = _value(loss, x, y)
    assert found.dtype == torch.float32
    assert_allclose(found.detach().mean(), expected.mean(), rtol=0.1, atol=1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    loss.bfloat16()
    found = _value(loss, x, y)
    assert found.dtype == torch.float32
    assert_allclose(found.detach().mean(), expected.mean(), rtol=0.1, atol=1e-3)


def test_the_finer_of_both_types_counts(file: Path) -> None:
    """A bfloat16 image does not round its float32 target."""
    y = torch.rand(1, 3, 32, 32)
    rough = y.bfloat16()
    for loss in (_lpips(file, range="0..1"), ContentLoss(model=file)):
        expected = _value(loss, rough.float(), y)
        assert expected.item() > 0
        assert_allclose(_value(loss, rough, y), expected, rtol=1e-5)
        assert_allclose(_value(loss, y, rough), expected, rtol=1e-5)
        assert_allclose(_value(loss, rough, loss.remember(y)), expected, rtol=1e-5)


def test_nothing_is_moved_inside_forward(file: Path) -> None:
    """float64 images, also under inference_mode, leave a loss that can be differentiated through."""
    x, y = _images()
    for make in (
        lambda: _lpips(file, range="0..1"),
        lambda: _dists(file),
        lambda: StyleLoss(model=file),
    ):
        with torch.inference_mode():
            made = make()
            _value(made, x.double(), y.double())
            _value(made, x, y)
        weight = _first(made).weight
        expected, slope = _value(make(), x, y).detach(), _gradient(make(), x, y)
        assert_allclose(
            _gradient(made, x.double(), y.double()), slope, atol=1e-4 * slope.abs().max()
        )
        assert torch.equal(_gradient(made, x, y), slope)
        assert torch.equal(_value(made, x, y).detach(), expected)
        assert _first(made).weight is weight
        assert _first(made).weight.dtype == torch.float32


def test_torch_func(file: Path) -> None:
    x, y = _images(3)
    x = x.detach()
    for loss in (_lpips(file, range="0..1"), _dists(file), ContentLoss(model=file)):
        one = lambda a, b, loss=loss: loss(a[None], b[None]).sum()  # noqa: E731
        expected = torch.stack([one(a, b) for a, b in zip(x, y, strict=True)])
        assert_allclose(torch.vmap(one)(x, y), expected, rtol=1e-4)
        slopes = torch.vmap(torch.func.grad(one))(x, y)
        slope = _gradient(loss, x[:1].requires_grad_(), y[:1])[0]
        x = x.detach()
        assert (slopes[0] - slope).norm() < 1e-3 * slope.norm()


def test_layers_of_shorter_networks(tmp_path: Path) -> None:
    path = _file(tmp_path / "vgg11.safetensors", "vgg11")
    x, y = _images()
    for kind, layers in (
        (ContentLoss, ("relu3_2",)), (PerceptualLoss, ("relu1_1", "relu2_1", "relu3_2", "relu4_2")),
        (StyleLoss, ("relu1_1", "relu2_1", "relu3_2", "relu4_2")),
    ):  # fmt: skip
        loss = kind(model=path, network="vgg11")
        assert loss.layers == layers
        assert _value(loss, x, y) > 0
    assert ContentLoss("relu2_1", model=path, network="vgg11").layers == ("relu2_1",)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_holds_it_it_stays_as_it_is(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    holder = nn.Sequential(nn.Conv2d(3, 3, 1), loss).train()
    assert not any(module.training for module in loss.modules())
    assert [p for p in holder.parameters() if p.requires_grad] == list(holder[0].parameters())
    assert next(loss.parameters()).device == torch.device("cpu")
    holder.load_state_dict(holder.state_dict(), strict=True)
    assert _first(holder.double()[1]).weight.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images()
    expected = _value(loss, x, y)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(_value(other, x, y), expected)
        assert _first(other) is not _first(loss)
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    other = torch.load(buffer, weights_only=False)
    assert torch.equal(_value(other, x, y), expected)


@pytest.mark.parametrize("kind", ["lpips", "dists", "style"])
def test_compile(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images(1, 32, 32)
    expected, slope = _value(loss, x, y).detach(), _gradient(loss, x, y)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = compiled(x, y)
    assert_allclose(found.detach(), expected, rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert (gradient - slope).norm() < 1e-3 * slope.norm()


def test_it_leaves_the_images_as_they_are(file: Path) -> None:
    x, y = (t.detach() for t in _images())
    for loss in _all(file).values():
        a, b = x.clone(), y.clone()
        _value(loss, a, b)
        assert torch.equal(a, x)
        assert torch.equal(b, y)


def test_an_optimiser_finds_the_reference(file: Path) -> None:
    _, y = _images(1, 32, 32)
    loss = _lpips(file, range="0..1")
    x = torch.full_like(y, 0.5).requires_grad_()
    reference = loss.remember(y)
    optimiser = torch.optim.Adam([x], 0.02)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        value = _value(loss, x, reference).mean()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


# ---------------------------------------------------------------------------------------- bad inputs


def _raised(loss: nn.Module, *arguments: object) -> str:
    with pytest.raises(ImageError) as caught:
        loss(*arguments)
    return str(caught.value)


def test_images_that_cannot_be_used(file: Path) -> None:
    loss = _lpips(file, range="0..1")
    x, y = (t.detach() for t in _images())
    assert _raised(loss, x.numpy(), y) == "in0 is a ndarray; expected a tensor (n, c, h, w)"
    assert _raised(loss, x[:, :2], y) == (
        "in0 has shape (2, 2, 40, 52); expected (n, 3, height, width), one image of these, or one channel "
        "for all"
    )
    assert _raised(loss, x, y.to("meta")) == (
        "in1 is on meta and the loss on cpu; move one of them, as in loss.to('meta')"
    )
    assert _raised(loss, x, y[:, :, :30]).startswith(
        "in0 has shape (2, 3, 40, 52) and in1 (2, 3, 30, 52); expected the same, or one image"
    )
    assert _raised(loss, x[:, :, :15], y) == (
        "in0 is 15x52 pixels, too small for the layers that are read: expected at least 16x16"
    )
    assert _raised(loss, x.long(), y) == "in0 is of torch.int64; expected floats, or uint8"
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    assert _raised(loss, broken, y) == "in0 has values that are not numbers (NaN)"
    assert _raised(loss, x, 255 * y).endswith(
        "range was said to be 0..1; scale it, or say which of 0..255, 0..1, -1..1 or (black, white) it is"
    )
    assert "in0 goes from" in _raised(loss, (255 * x).requires_grad_(), y)
    # what learns may overshoot, and its NaN is the optimiser's to see
    assert _value(loss, (3 * x - 1).requires_grad_(), y).isfinite().all()
    assert _value(loss, broken.requires_grad_(), y).isnan().any()
    unchecked = _lpips(file, range="0..1", check=False)
    assert _value(unchecked, 255 * x, y).isfinite().all()


def test_a_range_that_only_looks_wrong_is_warned_of(file: Path) -> None:
    x, y = (t.detach() for t in _images())
    with pytest.warns(UserWarning, match=r"said to be -1\.\.1: if it is 0\.\.1, say so") as caught:
        _lpips(file)(x, 2 * y - 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"said to be 0\.\.255: if it is 0\.\.1, say so"):
        _value(_lpips(file, range="0..255"), x, 255 * y)


def test_references_that_do_not_fit(file: Path) -> None:
    loss, other = _lpips(file, range="0..1"), ContentLoss(model=file)
    x, y = (t.detach() for t in _images())
    assert _raised(loss, x, other.remember(y)).startswith(
        "the reference was remembered by another loss: it has relu3_3; expected relu1_2, relu2_2"
    )
    assert _raised(loss, x[:, :, :32], loss.remember(y)) == (
        "the reference was remembered of 2 images of 40x52, and there are 2 of 32x52; expected one or "
        "as many, of the same size"
    )
    style = StyleLoss(model=file)
    assert _raised(style, torch.rand(3, 3, 32, 32), style.remember(y)) == (
        "2 styles were given for 3 images; expected one or as many"
    )
    assert _raised(style, x, other.remember(y)).startswith(
        "the reference was remembered by another"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LPIPS(net="alex"), "Argument `net` must be one of ('vgg', 'vgg16'), but got alex: other"),
        (lambda: LPIPS(net="vgg", version="0.0"), "version '0.0' is not here; expected \"0.1\", whose"),
        (lambda: LPIPS(net="vgg", range="0-1"), "range is '0-1'; expected (black, white)"),
        (lambda: LPIPS(net="vgg", model_path="a.pth"), "cannot read a.pth: No such file or directory"),
        (lambda: LPIPS(net="vgg", model_path=HEADS_FILE), f"{HEADS_FILE} does not hold heads of vgg"),
        (lambda: LPIPS(net="vgg", heads={"relu1_2": torch.ones(3)}), "the head of relu1_2 has shape (3,)"),
        (lambda: DISTS(alpha=torch.ones(3)), "alpha has shape (3,); expected (1475,)"),
        (lambda: PerceptualLoss(("relu9_1",)), "the trunk of vgg16 has no layer 'relu9_1'; did you"),
        (lambda: PerceptualLoss(("relu1_1",) * 2), "a layer is named twice: relu1_1, relu1_1"),
        (lambda: PerceptualLoss(("relu1_1",), (1, 2)), "2 weights were given for 1 layers (relu1_1)"),
        (lambda: PerceptualLoss(criterion="l3"), "criterion 'l3' is unknown; expected one of: l1, l2"),
        (lambda: StyleLoss(reduction="avg"), "reduction 'avg' is unknown"),
        (lambda: TotalVariation(3), "power is 3; expected 1 or 2"),
        (lambda: _metric()("vgg", "max"), "Argument `reduction` must be one of ('mean', 'sum', 'none', "),
        (lambda: _metric()("squeeze"), "Argument `net_type` must be one of ('vgg', 'vgg16'), but got squ"),
        (lambda: _metric()("vgg", normalize=1), "Argument `normalize` should be an bool but got 1"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(VerydeepError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kind", [LPIPS, DISTS, PerceptualLoss, ContentLoss, StyleLoss])
def test_a_keyword_that_there_is_not_is_a_type_error(kind: Any) -> None:
    line = rf"{kind.__name__}\.__init__\(\) got an unexpected keyword argument 'nett'"
    with pytest.raises(TypeError, match=line):
        kind(**({"net": "vgg"} if kind is LPIPS else {}), nett="vgg")


def test_what_lpips_says_of_itself(file: Path) -> None:
    """The public attributes of lpips.LPIPS(net="vgg")."""
    loss = _lpips(file)
    assert (loss.pnet_type, loss.version, loss.L, tuple(loss.chns)) == ("vgg", "0.1", 5, NARROW)
    assert (loss.lpips, loss.spatial, loss.pnet_tune, loss.pnet_rand) == (True, False, False, False)
    tuned = LPIPS(net="vgg16", model=file, heads=_heads(), pnet_tune=True)
    assert (tuned.pnet_type, tuned.pnet_tune) == ("vgg16", True)


@pytest.mark.parametrize("kind", ["lpips", "spatial", "dists"])
def test_no_images_have_no_distances(file: Path, kind: str) -> None:
    """As in lpips; a loss that is a mean has none, and says so."""
    loss, x = _all(file)[kind], _images()[0]
    shape = _value(loss, x, x).shape[1:]
    for pair in ((x[:0], x[:0]), (x[:0], x[:1]), (x[:1], x[:0])):
        value = _value(loss, *pair)
        assert value.shape == (0, *shape)
        value.sum().backward()
    if kind == "lpips":
        _, parts = loss(x[:0], x[:0], retPerLayer=True)
        assert [part.shape for part in parts] == [(0, 1, 1, 1)] * 5
    assert _raised(_all(file)["l1"], x[:0], x[:0]).startswith("image has shape (0, 3, 40, 52)")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_alone_on_meta(file: Path, kind: str) -> None:
    loss, (x, y) = _all(file)[kind], _images()
    shape = _value(loss, x, y).shape
    assert _value(loss.to("meta"), x.to("meta"), y.to("meta")).shape == shape
    line = "is on cpu and the loss on meta; nothing can be moved from there; make the loss anew"
    assert _raised(loss, x, y).endswith(line)


def test_hooks_of_frozen_heads_see_and_change_the_whole(file: Path) -> None:
    loss, (x, y) = _lpips(file, range="0..1"), _images()
    before = _value(loss, x, y)
    seen: list[tuple[int, ...]] = []
    modules: Any = loss.lins
    modules[1].model[-1].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    assert_allclose(_value(loss, x, y).detach(), before.detach(), rtol=1e-5)
    assert seen == [(2, 1, 20, 26)]
    large = torch.zeros(1, 3, 600, 600)  # which goes through in strips where nobody looks on
    _value(loss, large, large)
    assert seen[1:] == [(1, 1, 300, 300)]
    loss.lin0.register_forward_hook(lambda _, __, out: out * 0)
    _, parts = loss(x, y, retPerLayer=True)
    assert [bool(part.any()) for part in parts] == [False, True, True, True, True]


def test_public_names() -> None:
    assert losses.__all__ == [
        "DISTS",
        "LPIPS",
        "ContentLoss",
        "LearnedPerceptualImagePatchSimilarity",
        "PerceptualLoss",
        "Reference",
        "StyleLoss",
        "TotalVariation",
    ]


# -- whoever looks on
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of torch: what is traced may be constant, or is deprecated
def test_a_traced_loss_computes_from_its_images(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    traced = torch.jit.trace(loss, tuple(f.detach() for f in _images()))
    x, y = (f.flip(0) for f in _images())
    value, expected = traced(x, y), loss(x, y)
    assert_allclose(value.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    ours, theirs = (torch.autograd.grad(v.sum(), x)[0] for v in (value, expected))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    if kind == "own":
        return  # ONNX has no Huber loss
    buffer = io.BytesIO()
    torch.onnx.export(loss, (x.detach(), y), buffer, dynamo=False)
    session = ort.InferenceSession(buffer.getvalue())
    a, b = (f.detach() for f in _images())
    fed = {i.name: f.numpy() for i, f in zip(session.get_inputs(), (a, b), strict=True)}
    assert_allclose(session.run(None, fed)[0], loss(a, b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")  # which torch calls by itself
def test_modes_and_forward_derivatives(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = (f.detach() for f in _images())
    tangent = y - x
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, tangent), y)).tangent
    _, expected = torch.func.jvp(lambda image: loss(image, y), (x,), (tangent,))
    assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = loss(mode.from_tensor(x), mode.from_tensor(y))
    assert fake.shape == loss(x, y).shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_of_inference_mode_serves_gradients(file: Path, kind: str) -> None:
    loss = _all(file)[kind]
    x, y = _images()
    expected = torch.autograd.grad(loss(x, loss.remember(y)).sum(), x)[0]
    with torch.inference_mode():
        reference = loss.remember(y)
    assert torch.equal(torch.autograd.grad(loss(x, reference).sum(), x)[0], expected)


def test_a_loss_is_made_on_the_default_device(file: Path) -> None:
    with torch.device("meta"):
        made = [*_all(file).values(), LPIPS(net="vgg", model=file, pretrained=False)]
        made += [DISTS(), models.backbone(), models.load(file)]
    for module in made:
        assert {f.device.type for f in [*module.parameters(), *module.buffers()]} == {"meta"}
