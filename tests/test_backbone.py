"""The backbone: taps, their channels and strides, gradients, and what it does not compute."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from verydeep import models, published
from verydeep.errors import LayerError, VerydeepError
from verydeep.models import Backbone, backbone
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import CAFFE

from .tiny import model_file

TINY = 1 / 16
TAPS = ("relu3_1", "conv2_1", "pool4")  # every network has these; not in order


def _write(path: Path, net: Network) -> models.VGG:
    """A model file of random weights, and the whole module of it."""
    return models.load(model_file(path, net, preprocess=CAFFE))


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, models.VGG]:
    path = tmp_path / "m.safetensors"
    return path, _write(path, network("vgg16", width=TINY, classes=5))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_the_taps_of_the_whole_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = _write(path, network(name, width=TINY, classes=5))
    found = backbone(name, TAPS, weights=path).eval()
    x = torch.randn(2, 3, 64, 75, requires_grad=True)
    values, expected = found(x), model.taps(x, TAPS)
    assert list(values) == list(TAPS)
    for tap in TAPS:
        assert torch.equal(values[tap], expected[tap]), tap
        assert values[tap].shape[1] == found.channels[tap]
        sides = torch.tensor(values[tap].shape[2:])
        assert (sides == torch.tensor([64, 75]) // found.strides[tap]).all()
    gradients = [
        torch.autograd.grad(sum(v.square().sum() for v in maps.values()), x)[0]  # type: ignore[arg-type]
        for maps in (values, expected)
    ]
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_it_holds_no_more_than_the_taps_need(file: tuple[Path, models.VGG]) -> None:
    path, whole = file
    found = backbone("vgg16", ("relu3_3",), weights=path)
    assert len(found.features) == 16
    assert list(found.state_dict()) == list(network("vgg16", classes=0).cut(("relu3_3",)).tensors)
    # its keys are torchvision's, so a whole checkpoint's part loads
    part = {k: v for k, v in whole.state_dict().items() if k in found.state_dict()}
    found.load_state_dict(part, strict=True)


def test_defaults_are_vgg16s(
    monkeypatch: pytest.MonkeyPatch, file: tuple[Path, models.VGG]
) -> None:
    monkeypatch.setattr(published, "BUILTIN", file[0].rename(file[0].with_stem("vgg16")).parent)
    found = backbone()
    assert isinstance(found, Backbone)
    assert found.taps == ("relu3_3", "relu4_3", "relu5_3")
    assert found.strides == {"relu3_3": 4, "relu4_3": 8, "relu5_3": 16}
    assert found.channels == {"relu3_3": 16, "relu4_3": 32, "relu5_3": 32}
    assert found.record is not None
    assert found.record.preprocess == CAFFE
    assert found.training  # a part of somebody's network, which is trained


def test_defaults_of_every_network() -> None:
    for name in NETWORKS:
        last = 2 if "11" in name or "13" in name else 3
        body = backbone(name, weights=None, width=TINY)
        assert body.taps == tuple(f"relu{block}_{last}" for block in (3, 4, 5))
        assert list(body.strides.values()) == [4, 8, 16]


def test_random_weights_and_other_choices() -> None:
    found = backbone("vgg13_bn", "relu2_2", None, width=TINY, in_channels=6, pool="l2")
    assert found.taps == ("relu2_2",)
    assert found(torch.randn(1, 6, 33, 20))["relu2_2"].shape == (1, 8, 17, 10)
    assert found.record is None


def test_other_channels_adapt_the_first_filters(file: tuple[Path, models.VGG]) -> None:
    path, whole = file
    with pytest.warns(UserWarning, match="filters of conv1_1 were summed over") as caught:
        found = backbone("vgg16", ("conv1_1",), weights=path, in_channels=1)
    assert [w.filename for w in caught] == [__file__]
    x = torch.randn(1, 1, 9, 9)
    expected = whole.taps(x.expand(1, 3, 9, 9), ["conv1_1"])["conv1_1"]
    assert_allclose(found(x)["conv1_1"].detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    assert found.record is None


def _step(model: Backbone, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Values, the gradients of everything, and the state after one pass in training."""
    x = x.clone().requires_grad_()
    values = model(x)
    sum(v.square().sum() for v in values.values()).backward()  # type: ignore[union-attr]
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None for g in gradients)
    found = [*values.values(), x.grad, *gradients]
    return [t.detach() for t in found if t is not None], copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_checkpointing_changes_no_value(name: str) -> None:
    torch.manual_seed(0)
    plain = backbone(name, ("relu2_1", "relu5_3"), None, width=TINY).train()
    switched = copy.deepcopy(plain)
    switched.checkpointing = True
    x = torch.randn(2, 3, 48, 48)
    before = copy.deepcopy(plain.state_dict())
    (a, state_a), (b, state_b) = _step(plain, x), _step(switched, x)
    for one, other in zip(a, b, strict=True):
        assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    for key, value in state_a.items():  # the batch norms' statistics were counted once
        assert torch.equal(value, state_b[key]), key
    if name.endswith("_bn"):
        assert any(not torch.equal(value, before[key]) for key, value in state_a.items())
        assert state_b["features.1.num_batches_tracked"] == 1


def test_checkpointing_computes_again_instead_of_keeping() -> None:
    model = backbone("vgg16", ("relu5_3",), None, width=TINY)
    calls: list[nn.Module] = []
    for module in model.features:
        module.register_forward_hook(lambda m, *_: calls.append(m))
    for checkpointing, times in ((False, 1), (True, 2)):
        model.checkpointing = checkpointing
        calls.clear()
        values = model(torch.randn(1, 3, 64, 64, requires_grad=True))
        assert len(calls) == len(model.features)
        values["relu5_3"].sum().backward()
        assert len(calls) >= times * len(model.features) - (times - 1) * 6
    model.checkpointing = True
    calls.clear()
    with torch.no_grad():  # nothing to keep, so nothing to compute again
        model(torch.randn(1, 3, 64, 64))
    assert len(calls) == len(model.features)


def test_fx_export_and_compile() -> None:
    model = backbone("vgg16_bn", ("relu5_3", "relu2_2"), None, width=TINY).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    torch._dynamo.reset()
    for other in (
        torch.fx.symbolic_trace(model),
        torch.export.export(model, (x,)).module(),
        torch.compile(model, backend="eager", fullgraph=True),
    ):
        found = other(x)
        assert list(found) == list(expected)
        for tap, value in found.items():
            assert_allclose(value.detach(), expected[tap].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated", "ignore:The TorchScript type system"
)
def test_script() -> None:
    model = backbone(
        "vgg16_bn", ("relu5_3", "relu2_2"), None, width=TINY, checkpointing=True
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.checkpointing = False
    for other in (model, torch.fx.symbolic_trace(model)):
        found = torch.jit.script(other)(x)
        assert list(found) == list(expected) == ["relu5_3", "relu2_2"]
        for tap, value in found.items():
            assert_allclose(value.detach(), expected[tap].detach(), rtol=1e-5, atol=1e-6)


def test_it_trains_inside_another_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = backbone("vgg11", ("relu2_1", "relu4_2"), None, width=TINY)
            self.heads = nn.ModuleDict(
                {tap: nn.Conv2d(channels, 2, 1) for tap, channels in self.body.channels.items()}
            )

        def forward(self, x: Tensor) -> Tensor:
            maps = self.body(x)
            scores = [self.heads[tap](value) for tap, value in maps.items()]
            low, high = scores
            return low + nn.functional.interpolate(high, low.shape[2:])

    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(4, 3, 32, 32), torch.randint(0, 2, (4, 16, 16))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    copied = Net()
    copied.load_state_dict(net.state_dict())
    assert np.array_equal(copied(x).detach(), net(x).detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg11", ("relu3_3",), None), "the trunk of vgg11 has no layer 'relu3_3'; did you mean"),
        (("vgg16", ("fc7",), None), "the trunk of vgg16 has no layer 'fc7'"),
        (("vgg16", (), None), "no taps were named; expected at least one, such as"),
        (("vgg61",), "network 'vgg61' is unknown; did you mean"),
        (("vgg16", ("relu1_1",), "nowhere.pth"), "vgg16: there are no weights 'nowhere.pth'"),
    ],
)
def test_errors_say_what_to_do(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(VerydeepError) as caught:
        backbone(*arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_an_unknown_tap_is_a_layer_error(file: tuple[Path, models.VGG]) -> None:
    with pytest.raises(LayerError):
        backbone("vgg16", ("relu9_9",), weights=file[0])
    with pytest.raises(VerydeepError, match="are those of vgg16"):
        backbone("vgg13", ("relu2_2",), weights=file[0])
