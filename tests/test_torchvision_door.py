"""Code written for torchvision.models.vgg runs on verydeep.models, with the same results."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from verydeep import modelfile, models, nets, published
from verydeep.errors import NetworkError, VerydeepError, WeightsError
from verydeep.models import vgg
from verydeep.models.layers import cfgs, make_layers
from verydeep.models.vgg import ENUMS
from verydeep.nets import NETWORKS, network
from verydeep.preprocess import CAFFE
from verydeep.published import catalog, supply

from .tiny import model_file

ROOT = Path(__file__).parents[1]
SHARED = [f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")]
TINY = 1 / 16


@pytest.fixture
def vgg16_file(tmp_path: Path) -> Path:
    path = tmp_path / "vgg16.safetensors"
    net = network("vgg16", width=TINY, classes=4)
    model_file(path, net, class_names=tuple("abcd"), preprocess=CAFFE, licence="MIT")
    return path


@pytest.fixture
def obtained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names that are asked of the catalogue, which answers with tiny files."""
    asked: list[str] = []

    def obtain(name: str, progress: bool = True) -> Path:
        asked.append(f"{name}{'' if progress else ' quietly'}")
        entry = catalog.entry(name)
        path = tmp_path / f"{name}.safetensors"
        if not path.exists():
            model_file(path, network(entry.network, width=TINY, classes=entry.classes))
        return path

    monkeypatch.setattr(supply, "obtain", obtain)
    return asked


# What torchvision.models.vgg has, and what became of it here. A name that a new torchvision adds
# must be decided on, and is found by the test below.
SAME = {
    "ImageClassification", "VGG", "VGG11_BN_Weights", "VGG11_Weights", "VGG13_BN_Weights", "VGG13_Weights",
    "VGG16_BN_Weights", "VGG16_Weights", "VGG19_BN_Weights", "VGG19_Weights", "WeightsEnum", "cfgs",
    "make_layers", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "Weights",
}  # fmt: skip
ELSEWHERE = {
    "_IMAGENET_CATEGORIES": "verydeep.published.catalog.class_names()",
    "_COMMON_META": "the table, the catalogue and the class names, in verydeep.models.vgg",
    "_vgg": "verydeep.models.vgg._vgg, which takes the words of before 0.13 too",
    "handle_legacy_interface": "pretrained= is a keyword of every builder",
    "_ovewrite_named_param": "other num_classes than the weights' are not refused here",
    "register_model": "verydeep.nets.NETWORKS",
    "_log_api_usage_once": "nothing is logged",
}
PYTHON = {"Any", "Optional", "Union", "cast", "nn", "partial", "torch"}  # its own imports


def test_every_name_of_torchvisions_module_is_accounted_for() -> None:
    theirs = {n for n in dir(torchvision.models.vgg) if not n.startswith("__")}
    assert theirs == SAME | set(ELSEWHERE) | PYTHON
    assert set(torchvision.models.vgg.__all__) <= SAME
    for name in SAME:
        assert hasattr(vgg, name), name
        assert hasattr(models, name) or name == "ImageClassification", name


@pytest.mark.parametrize("name", SHARED)
def test_checkpoints_load_both_ways(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=9)
        ours = getattr(models, name)(num_classes=9)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    children = [
        [(key, type(m)) for key, m in model.named_modules() if key] for model in (ours, theirs)
    ]
    assert children[0] == children[1]


def test_cfgs_and_make_layers_are_torchvisions() -> None:
    theirs = torchvision.models.vgg
    assert {key: cfgs[key] for key in theirs.cfgs} == theirs.cfgs
    for key, cfg in theirs.cfgs.items():
        for batch_norm in (False, True):
            with torch.device("meta"):
                a, b = theirs.make_layers(cfg, batch_norm), make_layers(cfg, batch_norm)
            assert [type(m) for m in a] == [type(m) for m in b], key
            assert {k: v.shape for k, v in a.state_dict().items()} == {
                k: v.shape for k, v in b.state_dict().items()
            }
    for key in ("C", "A-LRN"):  # the columns that torchvision left out, against the table's walk
        net = next(
            network(n, classes=0) for n, (c, bn) in NETWORKS.items() if (c, bn) == (key, False)
        )
        features = make_layers(cfgs[key])
        assert {f"features.{k}": tuple(v.shape) for k, v in features.state_dict().items()} == (
            net.tensors
        )
    with pytest.raises(NetworkError, match="cfg has 'X'; expected output channels"):
        make_layers([64, "X"])


@pytest.mark.usefixtures("quick_draws")
def test_the_constructor_takes_what_torchvisions_takes() -> None:
    outputs = []
    for door in (torchvision.models.vgg, vgg):
        torch.manual_seed(1)
        features = door.make_layers([8, "M", 512, "M"], batch_norm=True)
        model = door.VGG(features, num_classes=3, init_weights=True, dropout=0.25)
        assert model.classifier[2].p == model.classifier[5].p == 0.25
        x = torch.randn(2, 3, 30, 30)
        outputs.append([model(x), model.eval()(x)])
    assert_allclose(outputs[1][0].detach(), outputs[0][0].detach(), rtol=1e-5, atol=1e-7)
    assert_allclose(outputs[1][1].detach(), outputs[0][1].detach(), rtol=1e-5, atol=1e-7)


def test_the_constructor_knows_the_tables_networks() -> None:
    with torch.device("meta"):
        for name, (column, batch_norm) in NETWORKS.items():
            model = vgg.VGG(make_layers(cfgs[column], batch_norm), num_classes=5)
            assert model.network == network(name, classes=5)
        strange = vgg.VGG(make_layers([8, "M"]))
        swapped = make_layers(cfgs["A"])
        swapped[1] = nn.Tanh()
        assert vgg.VGG(swapped).network is None
        for index, change in ((0, "stride"), (3, "dilation"), (6, "padding"), (5, "ceil_mode")):
            other = make_layers(cfgs["A"])
            setattr(other[index], change, True if change == "ceil_mode" else (2, 2))
            assert vgg.VGG(other).network is None, change
        grouped = make_layers([8, "M"])
        grouped[0] = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        assert vgg.VGG(grouped).network is None
        assert vgg.VGG(make_layers([8], in_channels=5000)).network is None
        in_place = make_layers(cfgs["A"])
        in_place[1].inplace = True  # the table would name a value that is gone
        assert vgg.VGG(in_place).network is None
    assert strange.network is None
    assert strange.classifier[0].in_features == 8 * 49  # type: ignore[index]


def test_init_weights_false_leaves_torchs_own() -> None:
    torch.manual_seed(3)
    model = models.vgg11(width=TINY, init_weights=False)
    torch.manual_seed(3)
    first = nn.Conv2d(3, 4, 3, padding=1)
    assert torch.equal(model.features[0].weight, first.weight)
    assert torch.equal(model.features[0].bias, first.bias)
    assert models.vgg11(width=TINY, dropout=0.1).classifier[2].p == 0.1  # type: ignore[index]


@pytest.mark.parametrize("name", [*ENUMS])
def test_every_spelling_of_published_weights(name: str, obtained: list[str]) -> None:
    enum = ENUMS[name]
    theirs = getattr(torchvision.models, enum.__name__)
    spellings: list[Any] = [
        "IMAGENET1K_V1", "DEFAULT", f"{enum.__name__}.IMAGENET1K_V1", f"{enum.__name__}.DEFAULT",
        enum.IMAGENET1K_V1, enum.DEFAULT, theirs.IMAGENET1K_V1, name,  # type: ignore[attr-defined]
    ]  # fmt: skip
    builder = getattr(models, name)
    for weights in spellings:
        model = builder(weights=weights)
        assert model.training  # as torchvision's
        assert model.network == network(name, width=TINY)
    assert obtained == [name] * len(spellings)
    builder(weights="DEFAULT", progress=False)
    builder("DEFAULT", False)
    assert obtained[-2:] == [f"{name} quietly"] * 2


@pytest.mark.parametrize("call", ["keyword", "positional"])
def test_pretrained_warns_once(call: str, obtained: list[str]) -> None:
    for value, instead in ((True, 'weights="DEFAULT"'), (False, "weights=None")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if call == "keyword":
                models.vgg13_bn(pretrained=value, width=TINY)
            else:
                models.vgg13_bn(value, width=TINY)
        assert [w.category for w in caught] == [UserWarning]  # torchvision's
        assert str(caught[0].message).endswith(f"is deprecated; write {instead}")
        assert caught[0].filename == __file__
    assert obtained == ["vgg13_bn"]


def test_features_only_weights_get_a_new_head(obtained: list[str]) -> None:
    with pytest.warns(UserWarning, match="vgg16: fc6, fc7, fc8 are new and untrained"):
        model = models.vgg16(weights=models.VGG16_Weights.IMAGENET1K_FEATURES)
    assert obtained == ["vgg16_features"]
    assert model.network == network("vgg16", width=TINY)
    assert torch.isfinite(model.classifier[6].weight).all()  # type: ignore[index]
    assert 0.009 < model.classifier[0].weight.std() < 0.011  # type: ignore[index,operator]


def test_state_dict_of_a_member(obtained: list[str]) -> None:
    state = models.VGG11_BN_Weights.DEFAULT.get_state_dict(progress=True, check_hash=True)
    models.build("vgg11_bn", width=TINY).load_state_dict(state, strict=True)
    assert obtained == ["vgg11_bn"]


def test_weights_from_a_model_file(vgg16_file: Path) -> None:
    expected = modelfile.read(vgg16_file)
    for path in (vgg16_file, str(vgg16_file)):
        model = models.vgg16(weights=path)
        assert model.record == expected.record
        for key, value in model.state_dict().items():
            assert np.array_equal(value, expected.tensors()[key])
    assert models.vgg16(weights=vgg16_file, num_classes=4).record == expected.record
    assert models.vgg16(weights=vgg16_file, dropout=0.3).classifier[2].p == 0.3  # type: ignore[index]
    assert models.vgg16(weights=vgg16_file, pool="avg").network == network(
        "vgg16", width=TINY, classes=4, pool="avg"
    )


@pytest.mark.parametrize("old", [False, True])
def test_weights_from_torchs_own_files(old: bool, tmp_path: Path) -> None:
    """A .pth, also with the keys of before 2017, when dropout came first."""
    state = models.build("vgg11", width=TINY, classes=4).state_dict()
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"} if old else {}
    saved = {}
    for key, value in state.items():
        prefix, part = key.rsplit(".", 1)
        saved[f"{moved.get(prefix, prefix)}.{part}"] = value
    torch.save(saved, tmp_path / "w.pth")
    model = models.vgg11(weights=tmp_path / "w.pth")
    assert model.record is None
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_builtin(vgg16_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.vgg16_bn(weights="builtin/cifar10").record.class_names[0] == "airplane"
    monkeypatch.setattr(published, "BUILTIN", vgg16_file.parent)
    assert models.vgg16(weights="builtin").record == modelfile.read(vgg16_file).record
    assert models.get_model("VGG16", weights="builtin").record is not None
    with pytest.raises(WeightsError, match="vgg19: weights builtin are those of vgg16"):
        models.vgg19(weights="builtin")


def test_the_file_is_read_once_and_its_memory_shared(
    vgg16_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = [], modelfile.read
    monkeypatch.setattr(modelfile, "read", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr(modelfile, "is_model_file", None)  # for files of others alone
    before = vgg16_file.read_bytes()
    for make in (models.load, models.vgg16, lambda f: models.backbone("vgg16", "relu5_3", f)):
        opened.clear()
        model = make(vgg16_file)
        assert opened == [vgg16_file]
        stored = read(vgg16_file).stored["features.0.bias"]
        with torch.no_grad():
            model.features[0].bias.add_(1)
        assert_allclose(model.features[0].bias.detach(), stored + 1)  # the map is the process's own
    assert vgg16_file.read_bytes() == before


def test_the_builtin_trunk_gives_torchvisions_features() -> None:
    """The convolutions that ship, in torchvision's own module, through its own extractor."""
    ours = models.vgg16(weights="builtin").eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg16().features
    theirs.load_state_dict(
        {k: v.clone() for k, v in ours.features.state_dict().items()}, strict=True, assign=True
    )
    assert_allclose(theirs[0].weight[0, 0, 0, 0].item(), -0.5537, rtol=0.01)  # torchvision's
    names = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3", "pool5")
    keys = {ours.module_names[name].removeprefix("features."): name for name in names}
    x = torch.randn(1, 3, 64, 97)
    with torch.no_grad():
        expected = create_feature_extractor(theirs.eval(), keys)(x)
        backbone = models.backbone("vgg16", names)(x)
        for found in (ours.taps(x, names), backbone):
            assert list(found) == list(names)
            for name in names:
                scale = expected[name].abs().max().item()
                assert_allclose(found[name], expected[name], rtol=0, atol=1e-5 * scale)


def test_other_classes_make_a_new_last_layer_and_say_so(vgg16_file: Path) -> None:
    with pytest.warns(UserWarning, match="fc8") as caught:
        model = models.vgg16(weights=vgg16_file, num_classes=5)
    assert [str(w.message) for w in caught] == ["vgg16: fc8 is new and untrained"]
    assert caught[0].filename == __file__
    before = modelfile.read(vgg16_file).tensors()
    after = {key: value.numpy() for key, value in model.state_dict().items()}
    assert after["classifier.6.weight"].shape == (5, 256)
    assert_allclose(after["classifier.6.weight"].std(), 0.01, rtol=0.1)
    assert not after["classifier.6.bias"].any()
    for key in before:
        if not key.startswith("classifier.6"):
            assert np.array_equal(before[key], after[key])
    # the record no longer names the old classes, and still knows the pre-processing
    assert model.record is not None
    assert model.record.network == model.network
    assert (model.record.preprocess, model.record.licence) == (CAFFE, "MIT")
    assert model.record.class_names == ()


def test_other_heads(vgg16_file: Path) -> None:
    with pytest.warns(UserWarning, match="vgg16: fc6, fc7, fc8 are new and untrained"):
        model = models.vgg16(weights=vgg16_file, head="small")
    assert model.table.head == nets.Head("small", 4)
    with pytest.warns(UserWarning, match="vgg16: fc8 is new and untrained"):
        model = models.vgg16(weights=vgg16_file, head="gap", layers="relu5_3")
    assert model.table.head.layers == ("relu5_3",)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    trunk = models.vgg16(weights=vgg16_file, num_classes=0)  # nothing new, so nothing said
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 1, 1)


def test_one_channel_answers_as_three_equal_ones(vgg16_file: Path) -> None:
    with pytest.warns(UserWarning, match="vgg16: the filters of conv1_1 were summed over"):
        grey = models.vgg16(weights=vgg16_file, in_channels=1).eval()
    colour = models.vgg16(weights=vgg16_file).eval()
    x = torch.randn(2, 1, 64, 64)
    assert_allclose(grey(x).detach(), colour(x.expand(2, 3, 64, 64)).detach(), rtol=1e-4, atol=1e-6)
    assert grey.record is None  # the pre-processing was for three channels


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_channels_repeat_the_filters_rescaled(vgg16_file: Path, channels: int) -> None:
    before = modelfile.read(vgg16_file).tensors()["features.0.weight"]
    with pytest.warns(UserWarning, match="repeated and rescaled"):
        model = models.vgg16(weights=vgg16_file, in_channels=channels)
    after = model.features[0].weight.detach().numpy()
    assert after.shape == (4, channels, 3, 3)
    for channel in range(channels):  # a constant image then answers about as it did
        assert_allclose(after[:, channel], before[:, channel % 3] * 3 / channels, rtol=1e-6)
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: models.vgg19(weights=f), "vgg19: weights .* are those of vgg16"),
        (lambda f: models.vgg16_bn(weights=f), "vgg16_bn: weights .* are those of vgg16"),
        (lambda f: models.vgg16(weights=f, width=0.5), "they have .* for features.0.weight, and"),
        (lambda f: models.vgg16(weights=f, nclasses=5), "vgg16 takes no nclasses; expected: num_"),
        (
            lambda _: models.vgg16(weights="IMAGENET1K_V2"),
            "there are no weights 'IMAGENET1K_V2'; expected the path of a file, or one of: IMAGENET1K",
        ),
        (lambda _: models.vgg16(weights="vgg19"), "vgg16: weights vgg19 are those of vgg19"),
        (lambda _: models.vgg16c(weights="DEFAULT"), "none of this network were published"),
        (lambda _: models.vgg16(weights=models.VGG19_Weights.DEFAULT), "is not of VGG16_Weights"),
        (
            lambda _: models.vgg16c(weights=models.VGG16_Weights.DEFAULT),
            "no weights of vgg16c were published",
        ),
        (lambda f: models.vgg16(weights=f, pretrained=True), "weights and pretrained were both"),
        (lambda _: models.get_model("vgg61"), "network 'vgg61' is unknown; did you mean vgg"),
        (lambda _: models.get_model(None), "network None is unknown; expected one of: vgg11, "),
        (lambda _: models.get_weight(None), "weights None are unknown"),
        (lambda _: models.vgg16(weights="x" * 5000), "vgg16: there are no weights 'xxx"),
        (lambda _: models.get_model_weights("vgg16c"), "no weights of vgg16c were published"),
        (
            lambda _: models.get_weight("VGG16_Weights.IMAGENET1K_V2"),
            "weights 'VGG16_Weights.IMAGENET1K_V2' are unknown; did you mean VGG16_Weights.IMA",
        ),
        (lambda _: models.vgg16(width=-1), "width is -1"),
    ],
)
def test_errors_say_what_to_do(
    call: Callable[[Path], object], message: str, vgg16_file: Path
) -> None:
    with pytest.raises(VerydeepError, match=message) as caught:
        call(vgg16_file)
    assert "\n" not in str(caught.value)


def test_listing_is_torchvisions() -> None:
    for include, exclude in (("vgg*", None), ("*_bn", None), (["vgg1*"], ["*_bn", "vgg11*"])):
        found = models.list_models(include=include, exclude=exclude)
        expected = torchvision.models.list_models(include=include, exclude=exclude)
        assert [n for n in found if n in SHARED] == [n for n in expected if n in SHARED] != []
    assert models.list_models() == sorted(NETWORKS)
    assert models.list_models(module=models) == models.list_models(module=vgg) == sorted(NETWORKS)
    assert models.list_models(module=nets) == []
    for name in SHARED:
        enum = models.get_model_weights(name)
        assert enum is models.get_model_weights(models.get_model_builder(name))
        assert enum.__name__ == torchvision.models.get_model_weights(name).__name__
        full = f"{enum.__name__}.IMAGENET1K_V1"
        assert models.get_weight(full) is enum["IMAGENET1K_V1"]
        assert repr(models.get_weight(full)) == repr(torchvision.models.get_weight(full)) == full
        assert models.get_weight(f"{enum.__name__}.DEFAULT") is enum["DEFAULT"]


@pytest.mark.parametrize("name", SHARED)
def test_metadata_are_torchvisions_and_true(name: str) -> None:
    ours, theirs = models.get_model_weights(name), torchvision.models.get_model_weights(name)
    assert list(ours.__members__) == list(theirs.__members__)
    with torch.device("meta"):
        model = getattr(models, name)()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    for member in ours:
        other = theirs[member.name]
        assert member.url == other.url
        # torchvision's schema permits no other key
        assert set(member.meta) == set(other.meta) | {"license"}
        for key in ("num_params", "min_size", "categories", "recipe", "_ops", "_file_size"):
            assert member.meta[key] == other.meta[key], key
        measured, theirs_measured = (one.meta["_metrics"]["ImageNet-1K"] for one in (member, other))
        assert list(measured) == list(theirs_measured) == ["acc@1", "acc@5"]
        # where nothing was published, both are not a number
        assert_allclose([*measured.values()], [*theirs_measured.values()], rtol=0, atol=1e-9)
        # recomputed
        assert member.meta["num_params"] == sum(p.numel() for p in model.parameters())
        assert member.meta["_ops"] == round(counter.get_total_flops() / 2e9, 3)
        model.features(torch.empty(1, 3, *member.meta["min_size"], device="meta"))
        assert member.meta["licence"] == member.meta["license"] == "BSD-3-Clause"
        with pytest.raises(KeyError):
            member.meta["unquantized"]
        for copied in (copy.deepcopy(member.meta), pickle.loads(pickle.dumps(member.meta))):
            assert copied["licence"] == "BSD-3-Clause"


def test_members_and_builders_survive_copies() -> None:
    for member in models.VGG16_Weights:
        assert copy.deepcopy(member) is member
        assert pickle.loads(pickle.dumps(member)) is member
    for name in NETWORKS:
        builder = models.get_model_builder(name)
        assert pickle.loads(pickle.dumps(builder)) is builder
        assert builder.__name__ == name
        assert builder.__doc__


class _Copies(TorchDispatchMode):
    """Counts the bytes of every new tensor that holds numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        tensors = [a for a in args if isinstance(a, Tensor) and not a.is_meta]
        given = {a.untyped_storage().data_ptr() for a in tensors}
        storages = (torch.UntypedStorage, torch.TypedStorage)
        given |= {a.data_ptr() for a in args if isinstance(a, storages)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_meta:
            storage = result.untyped_storage()
            if storage.data_ptr() not in given:
                self.size_bytes += storage.nbytes()
        return result


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_arrive_without_a_copy(kind: str, tmp_path: Path) -> None:
    net = network("vgg11", width=1 / 8, classes=4)
    path = tmp_path / f"w.{kind}"
    if kind == "pth":
        torch.save(models.build(net).state_dict(), path)
    else:
        model_file(path, net)
    with _Copies() as copies:
        model = models.vgg11(weights=path)
    size = 4 * sum(p.numel() for p in model.parameters())
    assert size > 8_000_000
    assert copies.size_bytes < size / 100
    with _Copies() as copies:
        models.build(net)
    assert copies.size_bytes >= size  # the count counts


def test_importing_the_door_does_not_import_torchvision() -> None:
    code = "import sys, verydeep.models; print('torchvision' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "False"]


def test_torch_hub() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    assert sorted(hubconf.__all__) == sorted(
        [*NETWORKS, "backbone", "get_model_weights", "get_weight"]
    )
    enum = torch.hub.load(str(ROOT), "get_model_weights", source="local", name="vgg13")
    member = torch.hub.load(
        str(ROOT), "get_weight", source="local", name="VGG13_Weights.IMAGENET1K_V1"
    )
    assert member is enum.DEFAULT is models.VGG13_Weights.DEFAULT
    model = torch.hub.load(
        str(ROOT), "vgg13", source="local", trust_repo=True, width=TINY, num_classes=2
    )
    assert model.network == network("vgg13", width=TINY, classes=2)


# -- the names of torchvision's file until its 0.13
# ------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_draws")
def test_a_listing_of_the_old_file_runs(obtained: list[str]) -> None:
    from verydeep.models.vgg import (
        VGG,
        _vgg,
        cfgs,
        load_state_dict_from_url,
        make_layers,
        model_urls,
    )

    assert [*model_urls] == SHARED
    for name, url in model_urls.items():
        assert url == torchvision.models.get_model_weights(name).DEFAULT.url
    plain = VGG(make_layers(cfgs["D"]), num_classes=7, init_weights=True)
    assert plain.network == network("vgg16", classes=7)
    # CRAFT and the ports of Faster R-CNN
    model_urls["vgg13_bn"] = model_urls["vgg13_bn"].replace("https://", "http://")
    for words in ((), (None, "cpu", False, True)):
        state = load_state_dict_from_url(model_urls["vgg13_bn"], *words)
        models.vgg13_bn(width=TINY).load_state_dict(state)
    assert obtained == ["vgg13_bn", "vgg13_bn quietly"]
    assert load_state_dict_from_url(model_urls["vgg11"].replace("8a719046", "bbd30ac9"))
    assert load_state_dict_from_url(model_urls["vgg11"], map_location="meta")[
        "features.0.bias"
    ].is_meta
    obtained.clear()
    for name, cfg, batch_norm in (("vgg11", "A", False), ("vgg16_bn", "D", True)):
        for words in ((name, cfg, batch_norm, True, False), (cfg, batch_norm, "DEFAULT", False)):
            assert _vgg(*words).network == network(name, width=TINY)
        for words in ((name, cfg, batch_norm, False, True), (cfg, batch_norm, None, True)):
            torch.manual_seed(2)
            built = _vgg(*words, num_classes=5)
            torch.manual_seed(2)
            expected = getattr(torchvision.models, name)(num_classes=5)
            assert torch.equal(built.features[0].weight, expected.features[0].weight)
            assert torch.equal(built.classifier[6].weight, expected.classifier[6].weight)
    assert obtained == ["vgg11 quietly"] * 2 + ["vgg16_bn quietly"] * 2
    cfgs["mine"] = [8, "M", 512, "M"]
    try:
        named = {"batch_norm": False, "progress": True, "num_classes": 2}
        assert len(_vgg(cfg="mine", weights=None, **named).features) == 6
        assert len(_vgg("vgg_mine", "mine", pretrained=False, **named).features) == 6
        assert _vgg("vgg_mine", "mine", False, False, True, num_classes=2).network is None
    finally:
        del cfgs["mine"]
    with pytest.raises(
        TypeError, match="_vgg takes cfg, batch_norm, weights, progress, and perhaps"
    ):
        _vgg("A", False)


def test_an_address_that_the_catalogue_does_not_have_is_torch_hubs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: asked.append((a, k)))
    vgg.load_state_dict_from_url("https://example.org/mine.pth", "there", check_hash=True)
    assert asked == [
        (("https://example.org/mine.pth", "there", None, True), {"check_hash": True}),
    ]


def test_subclasses_of_vgg() -> None:
    class Mine(vgg.VGG):
        def _initialize_weights(self) -> None:
            super()._initialize_weights()
            nn.init.ones_(self.features[0].bias)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    with torch.device("meta"):  # the classifier of a hundred million weights is never filled
        meta = Mine(make_layers([8, "M", 16, "M"]), num_classes=3)
    assert meta.classifier[6].out_features == 3
    model = Mine.of(network("vgg11", width=TINY, classes=3)).eval()
    model._initialize_weights()
    assert (model.features[0].bias == 1).all()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), vgg.VGG.forward(model, 2 * x))


def test_the_last_layer_is_replaced_on_the_builtin_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network("vgg16", width=TINY, classes=4, head="gap", layers=("relu5_3",))
    model_file(tmp_path / "vgg16.safetensors", net)
    monkeypatch.setattr(published, "BUILTIN", tmp_path)
    with pytest.warns(UserWarning, match="vgg16: fc6, fc7, fc8 are new and untrained"):
        model = models.vgg16(weights="builtin", head="classic", num_classes=1000)
    assert model.network == network("vgg16", width=TINY)
    model.classifier[6] = nn.Linear(model.classifier[6].in_features, 2)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    trunk = models.vgg16(weights="builtin", num_classes=0)
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_torchvisions_registry_knows_our_builders() -> None:
    for name in SHARED:
        theirs = torchvision.models.get_model_weights(name)
        assert torchvision.models.get_model_weights(models.get_model_builder(name)) is theirs
        assert (
            models.get_model_weights(getattr(torchvision.models, name)).__name__ == theirs.__name__
        )
    with pytest.raises(ValueError, match="WeightsEnum class"):
        torchvision.models.get_model_weights(models.vgg16c)
    shown = inspect.signature(models.vgg16)
    assert [*shown.parameters] == ["weights", "progress", "pretrained", "choices"]
    assert repr(models.vgg16) == "<function vgg16>"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: m.vgg11(nclasses=5), TypeError),
        (lambda m: m.get_model("vgg11", nclasses=5), TypeError),
        (lambda m: m.get_model("vgg61"), ValueError),
        (lambda m: m.get_model_builder("vgg61"), ValueError),
        (lambda m: m.get_weight("VGG16"), ValueError),
        (lambda m: m.get_weight("VGG61_Weights.DEFAULT"), ValueError),
        (lambda m: m.get_weight("VGG16_Weights.IMAGENET1K_V9"), KeyError),
        (lambda m: m.VGG16_Weights.verify("IMAGENET1K_V9"), KeyError),
        (lambda m: m.VGG16_Weights.verify(m.VGG19_Weights.DEFAULT), TypeError),
        (lambda m: m.VGG16_Weights.verify(5), TypeError),
        (lambda m: m.vgg16(weights="IMAGENET1K_V9"), KeyError),
        (lambda m: m.vgg16(weights=m.VGG19_Weights.DEFAULT), TypeError),
        (lambda m: m.VGG(m.vgg.make_layers([8]), classes=5), TypeError),
    ],
)
def test_an_errors_type_is_torchvisions(call: Callable[[ModuleType], object], error: type) -> None:
    for door in (torchvision.models, models):
        with pytest.raises(error) as caught:
            call(door)
    assert not str(caught.value).startswith(("'", '"'))


_A_ROW = """
import sys, types
from pathlib import Path
import verydeep

source = Path(verydeep.__file__).with_name("nets.py").read_text(encoding="utf-8")
column, row = '"Z": "4 M 8:1 M 8 M 8 M 8 M"', '"vgg8": ("Z", False)'
for table, row in (("COLUMNS: dict[str, str] = {", column), ("bool]] = {", row)):
    assert source.count(table) == 1
    source = source.replace(table, f"{table} {row},")
nets = types.ModuleType("verydeep.nets")
sys.modules[nets.__name__] = verydeep.nets = nets
exec(compile(source, "nets.py", "exec"), nets.__dict__)

import numpy as np
import torch
from verydeep import models
from verydeep.cli import main
from verydeep.modelfile import Record, write
from verydeep.preprocess import Preprocess

assert models.list_models(include="vgg8") == ["vgg8"] and "vgg8" in models.__all__
root, sys.argv = sys.argv[1], ["verydeep", "summary", "vgg8"]
try:
    main()
except SystemExit as end:
    assert not end.code
for builder in (models.vgg8, models.vgg.vgg8, models.get_model_builder("VGG8")):
    model = builder(num_classes=5, head="small", width=0.5).eval()
    assert model.network == nets.network("vgg8", classes=5, head="small", width=0.5)
assert models.vgg.VGG(models.make_layers(models.cfgs["Z"]), num_classes=3).network.name == "vgg8"
write("m.safetensors", Record(model.network, Preprocess(resize_size=32, crop_size=32)),
      {key: value.numpy() for key, value in model.state_dict().items()})
assert models.vgg8("m.safetensors").network == model.network
pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
record = models.load("m.safetensors").record
found = verydeep.load("m.safetensors", engine="onnxruntime", precision="exact").scores(pixels)
with torch.no_grad():
    expected = model(torch.from_numpy(record.preprocess.normalise(pixels)))
np.testing.assert_allclose(found.reshape(-1), expected[0], rtol=1e-4, atol=1e-5)
hub = torch.hub.load(root, "vgg8", source="local", num_classes=0)
assert hub(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 1, 1)
taps = models.backbone("vgg8", ("relu2_1", "pool3"), "m.safetensors")
assert taps.channels == {"relu2_1": 4, "pool3": 4}
print("all the way")
"""


def test_a_network_is_a_row(tmp_path: Path) -> None:
    """A row more in the table is a network in the summary, the graph, torch, the file and the hub."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _A_ROW, str(ROOT)],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.endswith("all the way\n"), done.stderr
    assert "conv2_1" in done.stdout


# -- graphs of all kinds
# ------------------------------------------------------------------------------

# every kind of layer, pool and head once; the columns differ in numbers only
CHOICES: dict[str, dict[str, Any]] = {
    "vgg11_lrn": {},
    "vgg16c_bn": {},
    "vgg11_bn gap": {"head": "gap", "layers": ("relu5_1", "relu3_2"), "pool": "l2"},
    "vgg11 small": {"head": "small", "pool": "avg"},
    "vgg11 trunk": {"num_classes": 0},
}


@pytest.fixture(params=CHOICES)
def tiny(request: pytest.FixtureRequest) -> tuple[models.VGG, Tensor]:
    choices = {"num_classes": 3, "width": TINY, **CHOICES[request.param]}
    torch.manual_seed(0)
    return models.get_model(request.param.split()[0], **choices).eval(), torch.randn(2, 3, 64, 75)


def test_fx(tiny: tuple[models.VGG, Tensor]) -> None:
    model, x = tiny
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated", "ignore:The TorchScript type system"
)
def test_script(tiny: tuple[models.VGG, Tensor]) -> None:
    model, x = tiny
    traced = torch.fx.symbolic_trace(model)
    node = model.module_names[model.table.trunk[1].name]
    extractor = create_feature_extractor(model, {node: "first"})
    for one in (model, traced, extractor):
        expected, found = one(x), torch.jit.script(one)(x)
        if isinstance(expected, dict):
            expected, found = expected["first"], found["first"]
        assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated", "ignore:The TorchScript type system"
)
@pytest.mark.parametrize("kind", ["cfg", "module"])
@pytest.mark.usefixtures("quick_draws")
def test_convolutions_of_ones_own(kind: str) -> None:
    class Own(nn.Module):  # no Sequential
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 512, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    features = Own() if kind == "module" else make_layers([8, "M", 512, "M"])
    model = vgg.VGG(features, num_classes=3).eval()
    assert model.network is None
    assert not hasattr(model, "table")
    assert not hasattr(model, "module_names")
    assert "classifier" in dict(inspect.getmembers(model))
    with pytest.raises(NetworkError, match="this VGG stands on convolutions that are not in the"):
        model.taps(torch.zeros(1, 3, 32, 32), "relu1_1")
    with pytest.raises(NetworkError, match="this VGG stands on convolutions that are not in the"):
        models.warm_start(model, model)
    x = torch.randn(1, 3, 32, 32)
    assert_allclose(torch.jit.script(model)(x).detach(), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_torchvisions_feature_extractor(tiny: tuple[models.VGG, Tensor]) -> None:
    model, x = tiny
    taps = {key: name for name, key in model.module_names.items() if not name.startswith("fc")}
    if model.table.head.kind == "gap":  # never computes what its head does not read
        read = model.table.cut(model.table.head.layers).taps
        taps = {key: name for key, name in taps.items() if name in read}
    found = create_feature_extractor(model, taps)(x)
    expected = model.taps(x, list(taps.values()))
    assert list(found) == list(expected)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_export(tiny: tuple[models.VGG, Tensor]) -> None:
    model, x = tiny
    size = torch.export.Dim("height", min=64, max=512), torch.export.Dim("width", min=64, max=512)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch, 2: size[0], 3: size[1]},))
    for other in (x, torch.randn(1, 3, 97, 64)):
        assert_allclose(
            program.module()(other).detach(), model(other).detach(), rtol=1e-5, atol=1e-6
        )


def test_compile(tiny: tuple[models.VGG, Tensor]) -> None:
    model, x = tiny
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))


# -- idioms of public code, written anew
# --------------------------------------------------------------


def transfer_learning(door: ModuleType) -> list[Tensor]:
    """PyTorch's transfer-learning tutorial: freeze all, replace the last layer, train it."""
    model = door.vgg11(weights=None)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier[6] = nn.Linear(model.classifier[6].in_features, 2)
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9
    )
    losses = []
    for _ in range(2):
        x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return [*losses, model.classifier[6].weight.detach().flatten()[:64]]


def perceptual_loss(door: ModuleType) -> list[Tensor]:
    """As in fast style transfer's ports: slices of `features`, frozen, mean squared difference."""
    features = door.vgg16(weights=None).features.eval()
    slices = nn.ModuleList([features[:4], features[4:9], features[9:16], features[16:23]])
    for parameter in slices.parameters():
        parameter.requires_grad = False
    a, b = torch.randn(1, 3, 40, 40, requires_grad=True), torch.randn(1, 3, 40, 40)
    x, y, loss = a, b, torch.zeros(())
    for part in slices:
        x, y = part(x), part(y)
        loss = loss + F.mse_loss(x, y)
    loss.backward()
    assert a.grad is not None
    return [loss.detach(), a.grad]


def style_transfer(door: ModuleType) -> list[Tensor]:
    """Gatys et al. as PyTorch's tutorial has it: walk the layers, Gram matrices, L-BFGS on pixels."""
    cnn = door.vgg19(weights=None).features.eval()
    model, count, wanted = nn.Sequential(), 0, []
    for layer in cnn.children():
        if isinstance(layer, nn.Conv2d):
            count += 1
            name = f"conv_{count}"
        elif isinstance(layer, nn.ReLU):
            name, layer = f"relu_{count}", nn.ReLU(inplace=False)
        elif isinstance(layer, nn.MaxPool2d):
            name = f"pool_{count}"
        else:
            raise AssertionError(type(layer))
        model.add_module(name, layer)
        if name in ("conv_1", "conv_2", "conv_3"):
            wanted.append(len(model) - 1)
        if count == 4:
            break

    def grams(image: Tensor) -> list[Tensor]:
        found = []
        for index, layer in enumerate(model):
            image = layer(image)
            if index in wanted:
                flat = image.flatten(2)[0]
                found.append(flat @ flat.T / image.numel())
        return found

    target = [g.detach() for g in grams(torch.rand(1, 3, 32, 32))]
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    optimiser = torch.optim.LBFGS([pixels], max_iter=2)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = sum((F.mse_loss(a, b) for a, b in zip(grams(pixels), target, strict=True)))
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return [pixels.detach()]


def detector_backbone(door: ModuleType) -> list[Tensor]:
    """SSD as torchvision builds it: find the pools, one of them with ceil_mode, slice before conv5."""
    features = door.vgg16(weights=None).features
    _, _, third, fourth, _ = (i for i, m in enumerate(features) if isinstance(m, nn.MaxPool2d))
    features[third].ceil_mode = True
    low = nn.Sequential(*features[:fourth])
    high = nn.Sequential(*features[fourth:-1], nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 64, 3, padding=6,
                                                                                dilation=6))  # fmt: skip
    with torch.no_grad():
        a = low(torch.randn(1, 3, 75, 75))
        return [a, high(a)]


def segmentation(door: ModuleType) -> list[Tensor]:
    """FCN-16s: indices of the pools, FC layers turned into convolutions, scores added up."""
    model = door.vgg11_bn(weights=None, num_classes=4).eval()
    pools = [i for i, m in enumerate(model.features) if isinstance(m, nn.MaxPool2d)]
    fc6, fc8 = model.classifier[0], model.classifier[6]
    conv6 = nn.Conv2d(512, 16, 7, padding=3)
    conv6.weight.data.copy_(fc6.weight.data[:16].view(16, 512, 7, 7))
    score4 = nn.Conv2d(512, 4, 1)
    score = nn.Conv2d(16, 4, 1)
    score.weight.data.copy_(fc8.weight.data[:, :16].view(4, 16, 1, 1))
    with torch.no_grad():
        pool4 = model.features[: pools[3] + 1](torch.randn(1, 3, 64, 96))
        pool5 = model.features[pools[3] + 1 :](pool4)
        coarse = score(F.relu(conv6(pool5)))
        up = F.interpolate(coarse, size=pool4.shape[2:], mode="bilinear", align_corners=False)
        return [pool5, up + score4(pool4)]


@pytest.fixture
def quick_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hundred million weights of fc6 are one drawn row, repeated: in both doors the same."""

    def quick(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(tensor: Tensor, *args: Any, **choices: Any) -> Tensor:
            if tensor.numel() < 4_000_000 or tensor.is_meta:
                return draw(tensor, *args, **choices)
            with torch.no_grad():
                return tensor.copy_(draw(torch.empty_like(tensor[:1]), *args, **choices))

        return drawn

    for name in ("normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, quick(getattr(nn.init, name)))


@pytest.mark.usefixtures("quick_draws")
@pytest.mark.parametrize(
    "program",
    [transfer_learning, perceptual_loss, style_transfer, detector_backbone, segmentation],
)
def test_public_idioms_give_torchvisions_results(
    program: Callable[[ModuleType], list[Tensor]],
) -> None:
    results = []
    for door in (torchvision.models, models):
        torch.manual_seed(7)
        results.append(program(door))
    for theirs, ours in zip(*results, strict=True):
        assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * theirs.abs().max().item())
        assert theirs.abs().max() > 0


def test_the_page_lists_every_name() -> None:
    page = (Path(__file__).parent.parent / "docs" / "torchvision.md").read_text(encoding="utf-8")
    rows = "".join(line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`(\w+)`", rows))
    assert listed == SAME | set(ELSEWHERE) | PYTHON


def test_a_damaged_model_file_is_never_sent_to_the_converter(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.safetensors")
    assert supply.obtain(path) == path
    path.write_bytes(path.read_bytes().replace(b'\\"A\\"', b'\\"Q\\"'))
    for load in (supply.obtain, lambda p: models.vgg11(weights=p), models.load):
        with pytest.raises(VerydeepError, match=r"m\.safetensors: .*'Q' is unknown"):
            load(path)
