"""The torch module: against torchvision's, against the formulas, and against its own promises."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.testing import assert_allclose
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from verydeep import modelfile, models, nets
from verydeep.errors import ArgumentError, LayerError, ModelFileError, NetworkError
from verydeep.modelfile import Record
from verydeep.models import VGG, backbone, build, load, warm_start
from verydeep.models.layers import L2Pool2d
from verydeep.nets import NETWORKS, network

SHARED = [f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")]  # torchvision has these
CFGS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
TINY = 1 / 16


def _torchvisions(name: str, width: float, classes: int) -> nn.Module:
    """torchvision's own module, made narrow by hand."""
    vgg = torchvision.models.vgg
    cfg = [v if v == "M" else int(v * width) for v in vgg.cfgs[CFGS[name[:5]]]]
    hidden = int(4096 * width)
    with torch.device("meta"):  # its own FC layers are never filled
        model = vgg.VGG(vgg.make_layers(cfg, name.endswith("_bn")), init_weights=False)
    model.features.to_empty(device="cpu")
    model.classifier[0] = nn.Linear(int(512 * width) * 49, hidden)
    model.classifier[3] = nn.Linear(hidden, hidden)
    model.classifier[6] = nn.Linear(hidden, classes)
    return model


def _randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights, biases and batch norm statistics that all matter, and keep the values near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                value.zero_()
                continue
            if "running_var" in key:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
                continue
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            else:
                value.copy_(noise * 0.1 + (1 if key.endswith("weight") else 0))


@pytest.mark.parametrize("name", SHARED)
def test_keys_and_shapes_equal_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = VGG.of(network(name)).state_dict()
    assert [(k, v.shape, v.dtype) for k, v in ours.items()] == [
        (k, v.shape, v.dtype) for k, v in theirs.items()
    ]
    assert {k: tuple(v.shape) for k, v in theirs.items()} == network(name).tensors


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("training", [False, True])
def test_scores_and_gradients_equal_torchvisions(name: str, training: bool) -> None:
    theirs = _torchvisions(name, TINY, 7)
    _randomise(theirs)
    ours = build(name, width=TINY, classes=7)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.train(training)
    ours.train(training)
    results = []
    for model in (theirs, ours):
        x = torch.randn(2, 3, 224, 75, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        torch.manual_seed(2)  # dropout draws the same
        scores = model(x)
        scores.square().sum().backward()
        results.append((scores.detach().numpy(), x.grad.numpy()))  # type: ignore[union-attr]
    (a, ga), (b, gb) = results
    assert np.abs(a).max() > 0.1
    assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())
    assert_allclose(gb, ga, rtol=1e-5, atol=1e-5 * np.abs(ga).max())


def test_full_size_scores_equal_torchvisions_under_the_same_seed() -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.vgg11_bn().eval()
    torch.manual_seed(5)
    ours = build("vgg11_bn").eval()
    for (key, a), (other, b) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(a, b), key
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_allclose(ours(x).numpy(), theirs(x).numpy(), rtol=1e-5, atol=1e-6)


def test_local_response_normalisation_is_the_papers_formula() -> None:
    # Krizhevsky et al. 2012, section 3.3, written out: the sum runs over n = 5 neighbours and is
    # not divided by n
    model = build("vgg11_lrn", width=1 / 4).double()
    lrn = model.features[2]  # type: ignore[index]
    a = torch.randn(2, 16, 5, 4, dtype=torch.double) * 100
    expected = np.empty(a.shape)
    values = a.numpy()
    for i in range(16):
        total = sum(values[:, j] ** 2 for j in range(max(0, i - 2), min(15, i + 2) + 1))
        expected[:, i] = values[:, i] / (2.0 + 1e-4 * total) ** 0.75
    assert np.abs(expected / values).min() < 0.2  # the sum matters at this size
    assert_allclose(lrn(a).numpy(), expected, rtol=1e-12)
    x = torch.randn(1, 3, 32, 32, dtype=torch.double)
    taps = model.taps(x, ["relu1_1", "lrn1"])
    assert torch.equal(lrn(taps["relu1_1"]), taps["lrn1"])


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8), (33, 20)])
def test_l2_pool_is_the_weighted_root_of_summed_squares(size: tuple[int, int]) -> None:
    # arXiv:2004.07728: a depthwise convolution of the squares with the 3x3 Hann window, as
    # DISTS-pytorch 0.1 computes it
    window = torch.tensor(nets.L2_WINDOW, dtype=torch.double)
    kernel = torch.outer(window, window).expand(6, 1, 3, 3)
    x = torch.randn(2, 6, *size, dtype=torch.double)
    squares = nn.functional.conv2d(x**2, kernel, stride=2, padding=1, groups=6)
    assert_allclose(L2Pool2d()(x).numpy(), torch.sqrt(squares + 1e-12).numpy(), rtol=1e-12)


def test_l2_pool_has_a_gradient_at_zero() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    L2Pool2d()(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 1, 4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize(("pool", "kind"), [("max", nn.MaxPool2d), ("avg", nn.AvgPool2d)])
def test_other_pools(pool: str, kind: type[nn.Module]) -> None:
    model = build("vgg11", width=1 / 64, pool=pool)
    x = torch.randn(1, 3, 32, 32)
    taps = model.taps(x, ["relu1_1", "pool1"])
    expected = kind(2, 2)(taps["relu1_1"])  # type: ignore[call-arg]
    assert torch.equal(taps["pool1"], expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_taps_equal_hooks(name: str, training: bool) -> None:
    """Each tap is what a forward hook on its module sees: nothing changes a value in place."""
    model = build(name, width=TINY, classes=5)
    _randomise(model)
    model.train(training)
    state = copy.deepcopy(model.state_dict())  # a training pass moves the batch norm statistics
    x = torch.randn(2, 3, 64, 97)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(module).register_forward_hook(
            lambda _m, _i, output, key=tap: seen.__setitem__(key, output)
        )
        for tap, module in model.module_names.items()
    ]
    torch.manual_seed(0)
    scores = model(x)
    for hook in hooks:
        hook.remove()
    seen["prob"] = torch.softmax(scores, 1)
    model.load_state_dict(state)
    torch.manual_seed(0)
    taps = model.taps(x, model.table.taps)
    assert list(taps) == list(model.table.taps) == list(seen)
    for tap, value in taps.items():
        assert torch.equal(value, seen[tap]), tap
    for tap in taps:
        if tap.startswith("relu"):
            before = taps[tap.replace("relu", "conv" if "_" in tap else "fc")]
            assert before.min() < 0  # the value before ReLU is still there
            assert torch.equal(taps[tap], torch.relu(before))
    assert torch.equal(taps["fc8"], scores)


def test_taps_compute_each_layer_once_and_stop_at_the_last() -> None:
    model = build("vgg16", width=1 / 64)
    calls: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    found = model.taps(torch.randn(1, 3, 32, 32), ["relu3_3", "conv1_2", "relu3_3"])
    assert list(found) == ["relu3_3", "conv1_2"]
    assert calls == [f"features.{i}" for i in range(16)]


@pytest.mark.parametrize("name", ["vgg16", "vgg13_bn"])
def test_gap_head_is_a_linear_on_averages_in_the_order_named(name: str) -> None:
    layers = ("relu5_2", "relu3_1", "conv4_2")
    model = build(name, width=TINY, head="gap", layers=layers, classes=5).eval()
    x = torch.randn(2, 3, 70, 41)
    calls: list[int] = []
    model.features[-1].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index,operator]
    assert isinstance(model.classifier, nn.Linear)
    assert [k for k in model.state_dict() if k.startswith("classifier")] == [
        "classifier.weight",
        "classifier.bias",
    ]
    maps = model.taps(x, layers)
    joined = torch.cat([maps[layer].mean((2, 3)) for layer in layers], 1)
    weight, bias = model.classifier.weight, model.classifier.bias
    expected = (joined @ weight.T + bias).detach().numpy()
    scores = model(x)
    assert_allclose(scores.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    taps = model.taps(x, ["avgpool", "fc8"])
    assert taps["avgpool"].shape == (2, weight.shape[1], 1, 1)
    assert torch.equal(taps["fc8"], scores)
    assert not calls  # pool5 is never computed


def test_small_head() -> None:
    model = build("vgg16_bn", head="small", classes=10, width=TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(x).shape == (2, 10)
    shapes = {k: tuple(v.shape) for k, v in model.classifier.state_dict().items()}
    assert shapes == {
        "0.weight": (32, 32), "0.bias": (32,), "3.weight": (32, 32), "3.bias": (32,),
        "6.weight": (10, 32), "6.bias": (10,),
    }  # fmt: skip


def test_a_trunk_gives_its_last_map() -> None:
    model = build("vgg11", width=TINY, classes=0)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), model.taps(x, ["pool5"])["pool5"])
    assert all(key.startswith("features.") for key in model.state_dict())
    assert "fc8" not in model.table.taps


@pytest.mark.parametrize("tap", ["avgpool", "fc6", "relu6", "fc8"])
def test_a_network_cut_in_its_head(tap: str) -> None:
    whole = build("vgg11", width=TINY, head="small", classes=3).eval()
    part = VGG.of(whole.table.cut(tap)).eval()
    part.load_state_dict({key: whole.state_dict()[key] for key in part.state_dict()})
    assert list(part.state_dict()) == list(part.table.tensors)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(part(x).flatten(1), whole.taps(x, tap)[tap].flatten(1))


def test_small_images_on_the_classic_head_are_noticed() -> None:
    model = build("vgg11", width=TINY).eval()
    with pytest.warns(UserWarning, match=r'repeats 49 times.*head="small"'):
        model(torch.randn(1, 3, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(1, 3, 64, 32))


def test_the_classifier_may_be_replaced_as_tutorials_do() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = build("vgg11", width=TINY).eval()
    inputs = model.classifier[0].in_features  # type: ignore[index]
    model.classifier = nn.Identity()
    assert model(x).shape == (2, inputs)
    model.classifier = nn.Linear(inputs, 2)  # type: ignore[arg-type]
    assert model(x).shape == (2, 2)
    with pytest.raises(LayerError, match="the classifier was replaced, so there is no relu7"):
        model.taps(x, ["relu7"])


@pytest.mark.parametrize(("init", "deviation"), [("paper", 0.1), ("torchvision", 0.01)])
def test_initialisation_of_fc_layers(init: str, deviation: float) -> None:
    torch.manual_seed(0)
    model = build("vgg11_bn", width=1 / 8, init=init)  # type: ignore[arg-type]
    weight = model.classifier[0].weight  # type: ignore[index]
    assert_allclose(weight.std().item(), deviation, rtol=0.01)
    assert_allclose(weight.mean().item(), 0, atol=deviation / 100)
    _starts_plain(model)


def test_initialisation_of_convolutions() -> None:
    def deviations(init: str) -> dict[str, float]:
        torch.manual_seed(0)
        model = build("vgg13", width=1 / 2, classes=0, init=init)  # type: ignore[arg-type]
        return {k: v.std().item() for k, v in model.state_dict().items() if v.dim() == 4}

    shapes = network("vgg13", width=1 / 2).tensors
    for key, value in deviations("paper").items():
        assert_allclose(value, 0.1, rtol=0.07, err_msg=key)  # variance 1e-2, section 3.1
    for key, value in deviations("torchvision").items():  # He et al. 2015, fan-out
        assert_allclose(value, (2 / (shapes[key][0] * 9)) ** 0.5, rtol=0.07, err_msg=key)
    for key, value in deviations("glorot").items():  # Glorot and Bengio 2010
        out, inputs = shapes[key][:2]
        assert_allclose(value, (2 / (9 * (out + inputs))) ** 0.5, rtol=0.07, err_msg=key)
    for key, value in deviations("he").items():  # He et al. 2015, fan-in
        assert_allclose(value, (2 / (9 * shapes[key][1])) ** 0.5, rtol=0.07, err_msg=key)


def _starts_plain(model: VGG) -> None:
    for key, value in model.state_dict().items():
        if key.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert not value.any(), key
        elif "running_var" in key or (value.dim() == 1 and key.endswith("weight")):
            assert (value == 1).all(), key


@pytest.mark.parametrize("name", ["vgg13", "vgg16c", "vgg19", "vgg16_bn"])
def test_warm_start_takes_four_convolutions_and_the_fc_layers(name: str) -> None:
    trained = build("vgg11", width=TINY, classes=5)
    _randomise(trained, 1)
    model = build(name, width=TINY, classes=5)
    _randomise(model, 2)
    before = copy.deepcopy(model.state_dict())
    copied = warm_start(model, trained)
    # arXiv:1409.1556, section 3.1
    assert copied == ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    keys = {layer.key: layer.name for layer in model.table.layers if layer.key}
    for key, value in model.state_dict().items():
        prefix, part = key.rsplit(".", 1)
        if keys.get(prefix) in copied:
            theirs = trained.table.layer(keys[prefix]).key
            assert torch.equal(value, trained.state_dict()[f"{theirs}.{part}"]), key
        else:
            assert torch.equal(value, before[key]), key


def test_warm_start_takes_the_batch_norm_too() -> None:
    trained, model = build("vgg11_bn", width=TINY), build("vgg16_bn", width=TINY)
    _randomise(trained)
    warm_start(model, trained)
    ours = model.table.layer("conv3_2").norm_key
    theirs = trained.table.layer("conv3_2").norm_key
    assert ours != theirs
    for part in ("weight", "bias", "running_mean", "running_var"):
        expected = trained.state_dict()[f"{theirs}.{part}"]
        assert torch.equal(model.state_dict()[f"{ours}.{part}"], expected)


def test_warm_start_refuses_another_width_and_changes_nothing() -> None:
    model, trained = build("vgg13", width=TINY), build("vgg11", width=TINY, classes=7)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NetworkError, match=r"fc8 is \(7, 256\) in vgg11 and \(1000, 256\) in vgg"):
        warm_start(model, trained)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_survives_pickle_and_copy(name: str) -> None:
    model = build(name, width=1 / 64, pool="l2", classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(model(x), other(x))
        assert other.network == model.network


def test_activations_are_not_kept_for_nothing() -> None:
    for module in build("vgg16_bn", width=1 / 64).modules():
        assert not getattr(module, "inplace", False)


def _operations(compute: Callable[[], object]) -> list[str]:
    """The names of what torch computes, seen from below, where a mode would be somebody who looks on."""
    with torch.autograd.profiler.profile() as profile:
        compute()
    return [event.name for event in profile.function_events]


@pytest.mark.parametrize("name", ["vgg13", "vgg11_bn", "vgg11_lrn"])
@pytest.mark.parametrize("training", [False, True])
def test_relu_makes_no_new_maps_where_nobody_looks_on(name: str, training: bool) -> None:
    model = build(name, width=TINY, classes=3).train(training)
    _randomise(model)
    plain = copy.deepcopy(model)
    kept: list[torch.Tensor] = []
    plain.features[0].register_forward_hook(lambda _m, _i, output: kept.append(output))
    count = sum(isinstance(m, nn.ReLU) for m in model.features)
    results = []
    for one, in_place in ((model, count), (plain, 0)):
        x = torch.randn(
            2, 3, 64, 64, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        torch.manual_seed(2)
        scores: list[torch.Tensor] = []
        names = _operations(lambda one=one, x=x, scores=scores: scores.append(one(x)))
        scores[0].square().sum().backward()
        assert names.count("aten::relu_") == in_place
        assert names.count("aten::relu") == count + 2 - in_place
        results.append([*scores, x.grad, *(p.grad for p in one.parameters()), *one.buffers()])
    assert kept[0].min() < 0  # a hook's value stays what it was
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "watch",
    [
        lambda m: m.features.register_forward_hook(lambda *_: None),
        lambda m: m.features[3].register_full_backward_hook(lambda *_: None),
        lambda m: m.features[1].register_forward_pre_hook(lambda *_: None),
        lambda m: setattr(m.features[0], "forward", m.features[0].forward),
        lambda m: setattr(m.features[0], "_conv_forward", m.features[0]._conv_forward),
        lambda m: setattr(m, "features", nn.Sequential(nn.Identity(), nn.ReLU(), *m.features)),
    ],
)
def test_whoever_looks_on_sees_every_value(watch) -> None:  # type: ignore[no-untyped-def]
    model = build("vgg11", width=TINY, classes=3)
    watch(model)
    x = torch.randn(1, 3, 64, 64)
    before = x.clone()
    names = _operations(lambda: model(x).sum().backward())
    assert torch.equal(x, before)
    expected = 8 if isinstance(model.features[0], nn.Identity) else 0
    assert names.count("aten::relu_") == expected
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert "aten::relu_" not in _operations(lambda: model(x))


class _Remembering(torch.Tensor):
    """Weights, of whose products the last is kept."""

    kept: list[torch.Tensor]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        value = super().__torch_function__(func, types, args, kwargs or {})
        if func in (F.conv2d, torch.conv2d):
            cls.kept.append(value)
        return value


@pytest.mark.parametrize("how", ["dispatch", "function", "subclass", "conv2d", "forward"])
def test_what_a_mode_or_another_function_of_torchs_keeps_stays_what_it_was(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = build("vgg11", width=TINY, classes=3), []
    x = torch.randn(1, 3, 64, 64)
    expected = model.features[0](x)

    def remembering(compute):  # type: ignore[no-untyped-def]
        return lambda *args, **kwargs: kept.append(compute(*args, **kwargs)) or kept[-1]

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return remembering(func)(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return remembering(func)(*args, **(kwargs or {}))

    if how == "subclass":
        weight = model.features[0].weight.detach().as_subclass(_Remembering)
        model.features[0].weight = nn.Parameter(weight)
        monkeypatch.setattr(_Remembering, "kept", kept, raising=False)
    elif how == "conv2d":
        monkeypatch.setattr(F, "conv2d", remembering(F.conv2d))
    elif how == "forward":
        forward = nn.Conv2d.forward
        monkeypatch.setattr(nn.Conv2d, "forward", lambda *args: remembering(forward)(*args))
    modes = {"dispatch": Dispatch, "function": Function}
    with modes.get(how, nullcontext)():
        model(x)
    same = [v for v in kept if isinstance(v, torch.Tensor) and v.shape == expected.shape]
    assert any(torch.equal(value, expected) for value in same)


def test_relu_that_somebody_replaced_or_compiled_is_what_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = build("vgg11", width=TINY, classes=3), []
    relu = F.relu
    with monkeypatch.context() as patched:
        patched.setattr(F, "relu", lambda *args, **kw: calls.append(0) or relu(*args, **kw))
        model(torch.randn(1, 3, 64, 64))
    assert len(calls) == 10
    forward = nn.ReLU.forward
    with monkeypatch.context() as patched:
        patched.setattr(nn.ReLU, "forward", lambda *args: calls.append(0) or forward(*args))
        model(torch.randn(1, 3, 64, 64))
    assert len(calls) == 20
    model.features.compile(backend=lambda graph, _inputs: calls.append(0) or graph)
    model(torch.randn(1, 3, 64, 64))
    assert len(calls) == 21


def test_one_relu_may_stand_in_many_places() -> None:
    model = build("vgg11", width=TINY, classes=3)
    x = torch.randn(1, 3, 64, 64)
    model.features = nn.Sequential(
        *(model.features[1] if isinstance(m, nn.ReLU) else m for m in model.features)
    )
    model.classifier[4] = model.classifier[1]
    model.eval()
    assert torch.equal(model(x), model.classifier(model.avgpool(model.features(x)).flatten(1)))
    taps = model.taps(x, ("relu5_2", "relu7"))
    assert torch.equal(taps["relu5_2"], model.features[:20](x))
    assert torch.equal(
        taps["relu7"], model.classifier[:5](model.avgpool(model.features(x)).flatten(1))
    )
    whole = backbone("vgg11", ("relu3_2", "pool5"), None, width=TINY, checkpointing=True)
    whole.features[4] = whole.features[1]
    whole.features[7] = whole.features[1]
    x.requires_grad_()
    assert torch.equal(whole(x)["pool5"], whole.features(x))


def _written(path: Path, record: Record, model: nn.Module) -> None:
    tensors = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    modelfile.write(path, record, tensors)


LOADED = [
    network("vgg16_bn", width=TINY, classes=6),
    network("vgg11_lrn", width=TINY, classes=6, in_channels=1),
    network("vgg19", width=TINY, classes=6, head="gap", layers=("relu5_4", "relu4_1")),
    network("vgg16c", width=TINY, classes=6, head="small", pool="l2"),
    network("vgg13", width=TINY, classes=0, pool="avg"),
]


@pytest.mark.parametrize("net", LOADED, ids=str)
def test_load_gives_the_module_that_was_written(net: nets.Network, tmp_path: Path) -> None:
    model = build(net).eval()
    _randomise(model)
    record = Record(net, licence="CC0-1.0", provenance={"made": "by a test"})
    _written(tmp_path / "m.safetensors", record, model)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)  # no wasted initialisation
    assert found.record == record
    assert found.network == net
    assert not found.training
    assert all(p.requires_grad and not p.is_meta for p in found.parameters())
    x = torch.randn(2, net.in_channels, 64, 75)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_all_weights_are_of_one_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """Under another default, as torchvision's are: those of a file, new ones, and adapted ones."""
    net = network("vgg11_bn", width=TINY, classes=6)
    path = tmp_path / "m.safetensors"
    _written(path, Record(net), build(net).eval())
    given = load(path)
    torch.set_default_dtype(dtype)
    try:
        with pytest.warns(UserWarning, match="fc8 is new and untrained"):
            model = models.vgg11_bn(weights=str(path), num_classes=5, in_channels=1).eval()
        assert {value.dtype for value in model.state_dict().values()} == {dtype, torch.int64}
        assert model(torch.zeros(1, 1, 64, 64)).dtype == dtype
        assert all(value.dtype == dtype for value in models.vgg11(width=TINY).parameters())
        # the file's own types, whatever the default
        assert all(value.dtype == torch.float32 for value in load(path).parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    first = given.features[0].weight.sum(1, keepdim=True)
    assert torch.equal(model.features[0].weight, first.to(dtype))


@pytest.mark.parametrize("init", ["torchvision", "he"])
def test_random_weights_are_on_the_default_device(init: str) -> None:
    with torch.device("meta"):
        model = build("vgg11_bn", init=init, width=TINY)  # type: ignore[arg-type]
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_load_dequantises(tmp_path: Path) -> None:
    net = network("vgg11", width=TINY, classes=6)
    model = build(net).eval()
    _randomise(model)
    tensors = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    for key, kind, levels in (("features.3", np.int8, 127), ("classifier.6", np.int16, 32767)):
        weight = tensors.pop(f"{key}.weight")
        largest = np.abs(weight).reshape(len(weight), -1).max(1)
        scale = (largest / levels).astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
        tensors[f"{key}.weight.q"] = np.round(weight / scale).astype(kind)
        tensors[f"{key}.weight.scale"] = scale
    tensors["features.0.weight"] = tensors["features.0.weight"].astype(np.float16)
    path = tmp_path / "m.safetensors"
    modelfile.write(path, Record(net), tensors)
    state = load(path).state_dict()
    expected = modelfile.read(path).tensors()  # numpy's reading of the same file
    assert set(state) == set(net.tensors)
    for key, value in state.items():
        assert value.dtype == torch.float32
        assert np.array_equal(value.numpy(), expected[key]), key
    original = model.state_dict()["features.3.weight"]
    assert 0 < (state["features.3.weight"] - original).abs().max() < original.abs().max() / 100


def test_training_a_loaded_module_leaves_the_file_alone(tmp_path: Path) -> None:
    net = network("vgg11_bn", width=TINY, classes=3)
    path = tmp_path / "m.safetensors"
    _written(path, Record(net), build(net))
    before = path.read_bytes()
    model = load(path).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(
        model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])
    ).backward()
    optimiser.step()
    assert path.read_bytes() == before
    assert not torch.equal(
        model.state_dict()["features.0.weight"], load(path).state_dict()["features.0.weight"]
    )


def test_load_refuses_what_is_not_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build("vgg11", width=1 / 64).state_dict(), path)
    with pytest.raises(ModelFileError, match=r"weights\.pth"):
        load(path)
    with pytest.raises(ModelFileError, match=r"absent\.safetensors"):
        load(tmp_path / "absent.safetensors")
    for wrong in (None, b"absent.safetensors"):
        with pytest.raises(ArgumentError, match=r"the model is .*; expected the path of a file"):
            load(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build("vgg61"), "network 'vgg61' is unknown"),
        (
            lambda: build("vgg16", init="kaiming", width=TINY),
            "initialisation 'kaiming' is unknown; expected one of: torchvision, paper, glorot",
        ),
        (
            lambda: build(network("vgg16"), classes=5),
            "classes given beside a Network, which already has its own",
        ),
        (
            lambda: build("vgg11", width=TINY).taps(torch.zeros(1, 3, 32, 32), ["relu1_2"]),
            "vgg11 has no layer 'relu1_2'; did you mean relu",
        ),
        (
            lambda: build("vgg11", width=TINY).taps(torch.zeros(1, 3, 32, 32), []),
            "no taps were named",
        ),
        (
            lambda: VGG(nn.Sequential(nn.Conv2d(3, 2, 3))).taps(torch.zeros(1), ["relu1_1"]),
            "this VGG stands on convolutions that are not in the table",
        ),
    ],
)
def test_errors_say_what_to_do(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NetworkError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_public_names() -> None:
    assert all(hasattr(models, name) for name in models.__all__)
