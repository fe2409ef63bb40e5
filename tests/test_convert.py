"""Weights in every layout, made by the packages that use it, against the scores those packages give."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm.models.vgg as timm_vgg
import torch
import torchvision
from click.testing import CliRunner, Result
from torch import nn

from verydeep import modelfile, models, nets
from verydeep.cli.weights import weights as command
from verydeep.errors import MissingExtraError, OutputError, WeightsError
from verydeep.preprocess import CAFFE, PRESETS, TORCHVISION
from verydeep.published import catalog, layouts, recognition
from verydeep.published import conversion as convert
from verydeep.published.catalog import Entry, Published

from .tiny import model_file

WIDTH = 1 / 16
CLASSES = 5
# torch and Keras sum in other orders: float32, a dozen layers deep
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def state(net: nets.Network, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a size that lets values through to the end."""
    torch.manual_seed(seed)
    result = {}
    for key, shape in net.tensors.items():
        if key.endswith("num_batches_tracked"):
            result[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            result[key] = torch.rand(shape) + 0.5
        elif len(shape) > 1:
            result[key] = torch.randn(shape) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            result[key] = torch.randn(shape) * 0.1 + (1.0 if ".weight" in key else 0.0)
    return result


def small(name: str = "vgg11", **choices: Any) -> nets.Network:
    return nets.network(name, **{"width": WIDTH, "classes": CLASSES, **choices})


def torchvision_module(net: nets.Network) -> torchvision.models.VGG:
    """torchvision's own network of that width, which it does not offer by itself."""
    width = [
        round(int(c) * net.width) if c != "M" else "M" for c in nets.COLUMNS[net.column].split()
    ]
    features = torchvision.models.vgg.make_layers(width, batch_norm=net.batch_norm)  # type: ignore[arg-type]
    module = torchvision.models.VGG(features, net.head.classes, init_weights=False)
    hidden = net.top[1].outputs
    module.classifier[0] = nn.Linear(net.top[1].inputs, hidden)
    module.classifier[3] = nn.Linear(hidden, hidden)
    module.classifier[6] = nn.Linear(hidden, net.head.classes)
    return module.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def scores(path: Path, images: torch.Tensor) -> np.ndarray:
    """Of a model file, by our own module: what the conversion must not have changed."""
    with torch.no_grad():
        result: np.ndarray = models.load(path).eval()(images).numpy()
    return result


# torchvision, in all its ages


@pytest.mark.parametrize(
    "name", [n for n in nets.NETWORKS if n in torchvision.models.list_models()]
)
def test_every_torchvision_network_is_recognised_from_its_shapes(name: str) -> None:
    # on the meta device: the shapes of the real thing, without the 500 MB
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, init_weights=False).state_dict()
    tensors = {key: np.broadcast_to(np.float32(0), t.shape) for key, t in theirs.items()}
    found, ours, layout = layouts.arrange(tensors)
    assert found == nets.network(name)
    assert {key: a.shape for key, a in ours.items()} == found.tensors
    assert layout == "torchvision"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn"])
def test_torchvision_scores_are_kept_in_both_file_formats(
    name: str, legacy: bool, images: torch.Tensor, tmp_path: Path
) -> None:
    net = small(name)
    weights = state(net)
    module = torchvision_module(net)
    module.load_state_dict(weights)
    torch.save(weights, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(tmp_path / "in.pth") != legacy
    record = convert.convert(tmp_path / "in.pth", tmp_path / "out", preprocess="torchvision")
    assert record.network == net
    assert record.preprocess == TORCHVISION
    with torch.no_grad():
        np.testing.assert_allclose(
            scores(tmp_path / "out", images), module(images).numpy(), **CLOSE
        )


def names_of_2016(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    return {
        key.replace(key[:12], moved.get(key[:12], key[:12])): tensor
        for key, tensor in weights.items()
    }


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "bare": lambda w: w,
    "data parallel": lambda w: {f"module.{key}": tensor for key, tensor in w.items()},
    "compiled data parallel": lambda w: {f"module._orig_mod.{k}": t for k, t in w.items()},
    "checkpoint": lambda w: {"state_dict": w, "epoch": 74, "best_prec1": 71.6},
    "nested checkpoint": lambda w: {"model": {"state_dict": w}, "optimizer": {"state": {}}},
    "data parallel features": lambda w: {
        "arch": "vgg11_bn",
        "state_dict": {k.replace("features.", "features.module."): t for k, t in w.items()},
    },
    "lightning": lambda w: {"state_dict": {f"model.{k}": t for k, t in w.items()}},
    "lightning, a weighted loss": lambda w: {
        "state_dict": {**{f"model.{k}": t for k, t in w.items()}, "criterion.weight": torch.ones(5)}
    },
    "a model of timm in transformers": lambda w: {f"timm_model.{k}": t for k, t in w.items()},
    "beside its averages": lambda w: {"model": w, "ema_model": w, "args": {"lr": 0.1}},
    "somebody's own": lambda w: {f"student.net.{k}": t for k, t in w.items()},
    "a loss's, in parallel": lambda w: {
        **{f"module.model.module.{k}": t for k, t in w.items()},
        "module.loss.weight": torch.ones(5),
    },
    "2016": names_of_2016,
    "2016, data parallel": lambda w: {f"module.{k}": t for k, t in names_of_2016(w).items()},
    "double": lambda w: {key: tensor.double() for key, tensor in w.items()},
    "no counts": lambda w: {k: t for k, t in w.items() if not k.endswith("tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_do_not_matter(wrapping: str, tmp_path: Path) -> None:
    net = small("vgg11_bn")
    weights = state(net)
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / "in.pth")
    found = convert.load_weights(tmp_path / "in.pth")
    assert found.network == net
    assert found.layout == ("own head" if "2016" in wrapping else "torchvision")
    for key, tensor in weights.items():
        if key.endswith("tracked"):
            assert found.tensors[key] == (0 if wrapping == "no counts" else 7)
        else:
            np.testing.assert_array_equal(found.tensors[key], tensor.numpy())
            assert found.tensors[key].dtype == np.float32


def test_what_stands_beside_the_network_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = WRAPPINGS["lightning, a weighted loss"](state(small()))
    torch.save(weights, tmp_path / "in.ckpt")
    convert.load_weights(tmp_path / "in.ckpt")
    assert capsys.readouterr().err == "verydeep: left out 'criterion.weight', beside the network\n"


def headless() -> dict[str, torch.Tensor]:
    return {k: t for k, t in state(small("vgg16")).items() if k.startswith("features")}


def renamed(pattern: str) -> dict[str, torch.Tensor]:
    return {pattern.format(k.removeprefix("features.")): t for k, t in headless().items()}


# what the commonest scripts leave, and what is said of it where the table has no such head
OTHER_HEADS: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str]] = {
    "fastai": (
        lambda: {**renamed("0.0.{}"), "1.2.weight": torch.ones(64), "1.8.weight": torch.ones(5, 64)},
        r"no head, and no place for '1\.2\.weight' \(and 1 more\), which may be one",
    ),
    "the whole of LPIPS": (
        lambda: {
            "scaling_layer.shift": torch.zeros(1, 3, 1, 1), **renamed("net.slice1.{}"),
            **{f"lin{n}.model.1.weight": torch.ones(1, 4, 1, 1) for n in range(5)},
        },
        r"no place for 'scaling_layer\.shift' \(and 5 more\)",
    ),
    "SSD": (
        lambda: {**renamed("{}"), "31.weight": torch.zeros(64, 32, 3, 3), "31.bias": torch.zeros(64)},
        r"it has no features\.31",
    ),
    "two layers": (
        lambda: {
            **headless(), "classifier.fc1.weight": torch.zeros(32, 1568),
            "classifier.fc1.bias": torch.zeros(32), "classifier.fc2.weight": torch.zeros(5, 32),
            "classifier.fc2.bias": torch.zeros(5),
        },
        r"it has no fc layer number 1 \(and 1 more\)",
    ),
    "a Sequential in its last place": (
        lambda: {
            **{k: t for k, t in state(small("vgg16")).items() if "classifier.6" not in k},
            "classifier.6.0.weight": torch.zeros(64, 256), "classifier.6.3.weight": torch.zeros(5, 64),
        },
        r"it has no fc layer number 4",
    ),
    "a linear layer on whole maps": (
        lambda: {**headless(), "classifier.weight": torch.zeros(5, 1568)},
        r"one FC layer on whole maps",
    ),
    "timm's without its last layer": (
        lambda: {
            **headless(), "pre_logits.fc1.weight": torch.zeros(256, 32, 7, 7),
            "pre_logits.fc2.weight": torch.zeros(256, 256, 1, 1),
        },
        r"it has no fc6",
    ),
    "the whole of SSD": (  # of whose names the trunk's are fewer than half
        lambda: {
            **renamed("vgg.{}"), "L2Norm.weight": torch.zeros(32),
            **{f"{part}.{n}.weight": torch.zeros(8, 8, 3, 3) for part in ("loc", "conf", "extras")
               for n in range(12)},
        },
        r"no place for 'vgg\.0\.weight'",
    ),
    "the encoder of U-Net": (
        lambda: {
            **{f"encoder.{k}": t for k, t in headless().items()},
            **{f"decoder.blocks.{n}.conv.weight": torch.zeros(8, 8, 3, 3) for n in range(40)},
        },
        r"no place for 'encoder\.features\.0\.weight'",
    ),
    "a head of a name that nobody knows": (
        lambda: {**headless(), "decide.0.weight": torch.zeros(5, 32)},
        r"no place for 'decide\.0\.weight'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", OTHER_HEADS)
def test_the_convolutions_under_any_head_can_be_taken(script: str, tmp_path: Path) -> None:
    make, reason = OTHER_HEADS[script]
    torch.save(make(), tmp_path / "in.pth")
    with pytest.raises(
        WeightsError, match=rf"{reason}.*(; `verydeep weights convert --trunk` takes|with --trunk)"
    ):
        convert.load_weights(tmp_path / "in.pth")
    found = convert.load_weights(tmp_path / "in.pth", trunk=True)
    assert found.network == small("vgg16", classes=0)
    for key, tensor in headless().items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


@pytest.mark.parametrize("trunk", [False, True])
def test_of_two_networks_none_is_chosen(trunk: bool, tmp_path: Path) -> None:
    both = {
        f"{whose}.{k}": t for whose in ("student", "teacher") for k, t in state(small()).items()
    }
    torch.save(both, tmp_path / "in.pth")
    line = r"two networks, 'student\.features\.0\.weight' of one and 'teacher\.features\.0\.weight' of the"
    with pytest.raises(WeightsError, match=line):
        convert.load_weights(tmp_path / "in.pth", trunk=trunk)


@pytest.mark.parametrize(
    "names", [("0", "2", "4"), ("hidden", "again", "answer"), ("fc9", "fc10", "fc11")]
)
def test_a_head_of_three_layers_is_taken_whole_by_any_names(
    names: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = small()
    places = dict(zip(("0", "3", "6"), names, strict=True))
    weights = {
        re.sub(r"classifier\.(\d)", lambda found: f"classifier.{places[found[1]]}", key): tensor
        for key, tensor in state(net).items()
    }
    torch.save(weights, tmp_path / "in.pth")
    found = convert.load_weights(tmp_path / "in.pth")
    assert found.network == net
    for key, tensor in state(net).items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())
    assert "a ReLU after each but the last" in capsys.readouterr().err


def test_a_trunk_is_the_deepest_that_its_names_allow(tmp_path: Path) -> None:
    """In the paper's names vgg13's convolutions are some of vgg16's."""
    net = small("vgg19")
    np.savez(tmp_path / "in.npz", **{
        f"{name}_{part}": array
        for name, pair in pair_of(state(net), net).items() for part, array in zip("Wb", pair, strict=True)
    })  # fmt: skip
    assert convert.load_weights(tmp_path / "in.npz", trunk=True).network == small(
        "vgg19", classes=0
    )


def test_torchscript_is_called_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "in.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(WeightsError, match=r"is TorchScript, .* torch\.jit\.load"):
        convert.load_weights(tmp_path / "in.pt")


@pytest.mark.parametrize(
    "pattern", ["features.{}", "{}", "slice1.{}", "net.slice2.{}", "stage3.{}", "0.0.{}"]
)
def test_convolutions_alone_make_a_trunk(pattern: str, tmp_path: Path) -> None:
    net = small("vgg16", classes=0)
    weights = state(net)
    named = {pattern.format(key.removeprefix("features.")): t for key, t in weights.items()}
    safetensors.torch.save_file(named, tmp_path / "in.safetensors")
    found = convert.load_weights(tmp_path / "in.safetensors")
    assert found.network == net
    assert found.network.head.classes == 0
    for key, tensor in weights.items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    weights = {key: tensor.to(dtype) for key, tensor in state(small()).items()}
    path = tmp_path / f"in{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(weights, path)
    found = convert.load_weights(path)
    kept = np.float16 if dtype == torch.float16 else np.float32  # NumPy has no bfloat16
    for key, tensor in weights.items():
        assert found.tensors[key].dtype == kept
        np.testing.assert_array_equal(found.tensors[key], tensor.float().numpy())


@pytest.mark.parametrize(
    "net",
    [
        small("vgg11_lrn"),
        small("vgg16c_bn", in_channels=1),
        small("vgg19", width=0.3, in_channels=4),
        small("vgg13", head="small", classes=10),
        small("vgg11", width=0.05, classes=1),
    ],
    ids=str,
)
def test_other_networks_of_the_table(net: nets.Network, tmp_path: Path) -> None:
    torch.save(state(net), tmp_path / "in.pth")
    found = convert.load_weights(tmp_path / "in.pth")
    assert found.network.tensors == net.tensors
    assert (found.network.column, found.network.head) == (net.column, net.head)
    assert found.network.width == pytest.approx(net.width, rel=0.05)


def test_a_head_on_averages_must_be_named(tmp_path: Path) -> None:
    net = small("vgg16", head="gap", layers=("relu4_3", "relu5_3"))
    torch.save(state(net), tmp_path / "in.pth")
    with pytest.raises(WeightsError, match="name them with --averages"):
        convert.load_weights(tmp_path / "in.pth")
    found = convert.load_weights(tmp_path / "in.pth", averages=("relu4_3", "relu5_3"))
    assert found.network == net
    assert convert.load_weights(tmp_path / "in.pth", trunk=True).network.head.classes == 0
    with pytest.raises(
        WeightsError, match=r"no network of the table has .* and the layers relu6_9"
    ):
        convert.load_weights(tmp_path / "in.pth", averages=("relu6_9",))


def test_a_classifier_of_nan_becomes_a_trunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = state(small("vgg16"))
    for key in weights:
        if key.startswith("classifier"):
            weights[key] = torch.full_like(weights[key], torch.nan)
    torch.save(weights, tmp_path / "in.pth")
    record = convert.convert(tmp_path / "in.pth", tmp_path / "out", preprocess="features")
    assert record.network == small("vgg16", classes=0)
    said = "its classifier is NaN and was left out: a trunk that gives features"
    assert capsys.readouterr().err == f"verydeep: {said}\n"
    np.testing.assert_array_equal(
        modelfile.read(tmp_path / "out").tensors()["features.28.weight"],
        weights["features.28.weight"].numpy(),
    )
    weights["features.5.weight"][0, 0, 0, 0] = torch.inf
    torch.save(weights, tmp_path / "in.pth")
    with pytest.raises(WeightsError, match=r"features\.5\.weight holds NaN or infinity"):
        convert.load_weights(tmp_path / "in.pth")


# timm


@pytest.mark.parametrize("batch_norm", [False, True])
def test_timm_both_ways(batch_norm: bool, images: torch.Tensor, tmp_path: Path) -> None:
    net = small("vgg11_bn" if batch_norm else "vgg11")
    cfg = [4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    torch.manual_seed(0)
    module = timm_vgg.VGG(cfg, CLASSES, norm_layer=nn.BatchNorm2d if batch_norm else None)
    module.pre_logits = timm_vgg.ConvMlp(32, 256, 7)
    module.head = timm_vgg.ClassifierHead(256, CLASSES)
    for tensor in module.buffers():
        if tensor.dtype == torch.float32:
            tensor.uniform_(0.5, 1.5)
    module.eval()
    with torch.no_grad():
        expected = module(images).numpy()
    path = tmp_path / "model.safetensors"  # as transformers wraps it
    wrapped = {f"timm_model.{key}": tensor for key, tensor in module.state_dict().items()}
    safetensors.torch.save_file(wrapped, path)
    record = convert.convert(path, tmp_path / "out", preprocess="torchvision")
    assert record.network == net
    assert record.provenance["layout"] == "timm"
    np.testing.assert_allclose(scores(tmp_path / "out", images), expected, **CLOSE)
    for suffix, load in ((".safetensors", safetensors.torch.load_file), (".pth", torch.load)):
        back = tmp_path / f"back{suffix}"
        convert.export(tmp_path / "out", back, "timm")
        theirs = load(back)  # type: ignore[operator]
        assert {k: t.shape for k, t in theirs.items()} == {
            k: t.shape for k, t in module.state_dict().items()
        }
        for key, tensor in module.state_dict().items():
            assert torch.equal(theirs[key], tensor)


# Keras: its layout by its own classes, which warn of what NumPy will not allow one day

KERAS_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


def keras_network(keras: Any, name: str, size: int, top: str) -> Any:
    """Keras's VGG at our width, layer by layer as in keras.applications."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = image = keras.Input((size, size, 3))
    for layer in small(name).trunk:
        if layer.kind == "conv":
            block, place = layer.name.removeprefix("conv").split("_")
            x = layers.Conv2D(
                layer.outputs, 3, padding="same", activation="relu",
                bias_initializer="random_normal", name=f"block{block}_conv{place}",
            )(x)  # fmt: skip
        elif layer.kind == "pool":
            x = layers.MaxPooling2D(2, strides=2)(x)
    if top == "classic":
        x = layers.Flatten()(x)
        x = layers.Dense(256, activation="relu", bias_initializer="random_normal", name="fc1")(x)
        x = layers.Dense(256, activation="relu", bias_initializer="random_normal", name="fc2")(x)
        x = layers.Dense(CLASSES, name="predictions")(x)
    elif top == "averages":
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(CLASSES)(x)
    return keras.Model(image, x)


def keras_scores(model: Any, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = model(images.permute(0, 2, 3, 1)).cpu().numpy()
    return result


@KERAS_WARNS
@pytest.mark.parametrize("file", ["model.weights.h5", "whole.h5", "whole.keras"])
def test_keras_files(file: str, keras: Any, images: torch.Tensor, tmp_path: Path) -> None:
    model = keras_network(keras, "vgg11", 224, "classic")
    if file.startswith("whole"):
        model.compile("adam", "mse")  # the optimiser's numbers are stored too
        model.save(tmp_path / file)
    else:
        model.save_weights(tmp_path / file)
    record = convert.convert(tmp_path / file, tmp_path / "out", preprocess="caffe")
    assert record.network == small()
    assert record.preprocess == CAFFE
    np.testing.assert_allclose(
        scores(tmp_path / "out", images), keras_scores(model, images), **CLOSE
    )


@KERAS_WARNS
def test_keras_features_under_a_head_of_ones_own(
    keras: Any, images: torch.Tensor, tmp_path: Path
) -> None:
    keras_network(keras, "vgg16", 224, "none")  # Keras goes on counting its layers' names
    model = keras_network(keras, "vgg16", 224, "averages")
    model.save_weights(tmp_path / "in.weights.h5")
    with pytest.raises(WeightsError, match=r"include_top=False averages pool5"):
        convert.load_weights(tmp_path / "in.weights.h5")
    convert.convert(
        tmp_path / "in.weights.h5", tmp_path / "out", preprocess="caffe", averages=("pool5",)
    )
    np.testing.assert_allclose(
        scores(tmp_path / "out", images), keras_scores(model, images), **CLOSE
    )


@KERAS_WARNS
@pytest.mark.parametrize("file", ["in.keras", "in.weights.h5", "in.h5"])
@pytest.mark.parametrize("dense", [1, 2])
def test_keras_network_within_another(
    file: str, dense: int, keras: Any, images: torch.Tensor, tmp_path: Path
) -> None:
    """As its guide of transfer learning has it; two Dense layers are no head of the table."""
    layers = keras.layers
    base = keras_network(keras, "vgg16", 224, "none")
    head = [layers.GlobalAveragePooling2D(), *(layers.Dense(CLASSES) for _ in range(dense))]
    model = keras.Sequential([base, *head])
    model.build((None, 224, 224, 3))
    getattr(model, "save_weights" if ".weights." in file else "save")(tmp_path / file)
    if dense == 2:
        with pytest.raises(WeightsError, match=r"--trunk` takes its convolutions alone"):
            convert.load_weights(tmp_path / file)
        assert convert.load_weights(tmp_path / file, trunk=True).network == small(
            "vgg16", classes=0
        )
        return
    convert.convert(tmp_path / file, tmp_path / "out", preprocess="caffe", averages=("pool5",))
    np.testing.assert_allclose(
        scores(tmp_path / "out", images), keras_scores(model, images), **CLOSE
    )


def hwio(weights: dict[str, torch.Tensor], net: nets.Network) -> dict[str, tuple[Any, Any]]:
    """(kernel, bias) by paper name as TensorFlow has them, fc6 over rows, columns, channels."""
    result = {}
    for layer in net.layers:
        if not layer.key:
            continue
        weight = weights[f"{layer.key}.weight"].numpy()
        if layer.kind == "conv":
            kernel = np.einsum("oihw->hwio", weight)
        elif layer.name == "fc6":
            kernel = np.einsum("ocyx->yxco", weight.reshape(-1, 32, 7, 7)).reshape(7 * 7 * 32, -1)
        else:
            kernel = np.einsum("oi->io", weight)
        result[layer.name] = (kernel, weights[f"{layer.key}.bias"].numpy())
    return result


def test_the_first_dense_layer_of_a_session_has_no_number(tmp_path: Path) -> None:
    net = small("vgg16", head="gap", layers=("pool5",))
    weights = state(net)
    with h5py.File(tmp_path / "in.h5", "w") as file:  # as model.save("in.h5") writes it
        for name, (kernel, bias) in hwio(weights, net).items():
            place = f"block{name[4]}_conv{name[6]}" if name.startswith("conv") else "dense"
            file[f"model_weights/{place}/{place}/kernel"] = kernel
            file[f"model_weights/{place}/{place}/bias"] = bias
    imported = convert.load_weights(tmp_path / "in.h5", averages=("pool5",))
    assert imported.network == net
    for key, tensor in weights.items():
        np.testing.assert_array_equal(imported.tensors[key], tensor.numpy())


def test_the_published_keras_file(tmp_path: Path) -> None:
    """The names in vgg16_weights_tf_dim_ordering_tf_kernels.h5, written by hand."""
    net = small("vgg16")
    weights = state(net)
    names = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    with h5py.File(tmp_path / "in.h5", "w") as file:
        for name, (kernel, bias) in hwio(weights, net).items():
            layer = names.get(name) or "block{}_conv{}".format(*name[4:].split("_"))
            file[f"{layer}/{layer}_W_1:0"] = kernel
            file[f"{layer}/{layer}_b_1:0"] = bias
        file.create_group("flatten")
    found = convert.load_weights(tmp_path / "in.h5")
    assert found.network == net
    for key, tensor in weights.items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


# Caffe and those who ported it


def write_caffe(path: Path, arrays: dict[str, tuple[Any, Any]], old: bool) -> None:
    """A .caffemodel: the format of 2014 has num, channels, height, width in place of a shape."""

    def varint(number: int) -> bytes:
        head, rest = number & 0x7F, number >> 7
        return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def blob(array: np.ndarray) -> bytes:
        data = field(5, array.astype("<f4").tobytes())
        if old:
            shape = (1,) * (4 - array.ndim) + array.shape
            return b"".join(field(n, size) for n, size in enumerate(shape, 1)) + data
        return data + field(7, field(1, b"".join(varint(size) for size in array.shape)))

    layers = b""
    for name, pair in arrays.items():
        number, name_field, blob_field = (2, 4, 6) if old else (100, 1, 7)
        body = field(name_field, name.encode()) + b"".join(field(blob_field, blob(a)) for a in pair)
        layers += field(number, body) + field(number, field(name_field, b"relu"))
    path.write_bytes(field(1, b"VGG_tiny") + layers)


def pair_of(weights: dict[str, torch.Tensor], net: nets.Network) -> dict[str, tuple[Any, Any]]:
    return {
        layer.name: tuple(weights[f"{layer.key}.{part}"].numpy() for part in ("weight", "bias"))
        for layer in net.layers
        if layer.key
    }  # type: ignore[misc]


def save_npy(path: Path, content: object) -> None:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


CAFFE_FILES: dict[str, Callable[[Path, dict[str, Any], nets.Network], object]] = {
    "2014.caffemodel": lambda p, w, n: write_caffe(p, pair_of(w, n), old=True),
    "2015.caffemodel": lambda p, w, n: write_caffe(p, pair_of(w, n), old=False),
    # caffe-tensorflow, and tensorflow-vgg's vgg16.npy
    "dicts.npy": lambda p, w, n: save_npy(
        p, {k: {"weights": a, "biases": b} for k, (a, b) in hwio(w, n).items()}
    ),
    "lists.npy": lambda p, w, n: save_npy(p, {k: list(pair) for k, pair in hwio(w, n).items()}),
    # the npz of "VGG in TensorFlow"
    "flat.npz": lambda p, w, n: np.savez(
        p, **{f"{k}_{s}": a for k, ab in hwio(w, n).items() for s, a in zip("Wb", ab, strict=True)}
    ),
    "oihw.npz": lambda p, w, n: np.savez(
        p, **{f"{k}.{i}": a for k, ab in pair_of(w, n).items() for i, a in enumerate(ab)}
    ),
}


@pytest.mark.parametrize("name", ["vgg16", "vgg16c"])
@pytest.mark.parametrize("file", CAFFE_FILES)
def test_caffe_layouts(file: str, name: str, tmp_path: Path) -> None:
    net = small(name)
    weights = state(net)
    CAFFE_FILES[file](tmp_path / file, weights, net)
    found = convert.load_weights(tmp_path / file)
    assert found.network == net
    assert found.layout == "caffe"
    for key, tensor in weights.items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


def test_flax_pickles(tmp_path: Path) -> None:
    """The layout of the JAX port of LPIPS, 13 convolutions counted from 0."""
    net = small("vgg16", classes=0)
    weights = state(net)
    convs = [{"kernel": kernel, "bias": bias} for kernel, bias in hwio(weights, net).values()]
    content = {"VGG16_0": {f"Conv_{count}": conv for count, conv in enumerate(convs)}}
    (tmp_path / "in.ckpt").write_bytes(pickle.dumps(content))
    found = convert.load_weights(tmp_path / "in.ckpt")
    assert found.network == net
    for key, tensor in weights.items():
        np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


def test_names_that_do_not_tell_lrn_apart_take_a_word(tmp_path: Path) -> None:
    net = small("vgg11_lrn")
    write_caffe(tmp_path / "in.caffemodel", pair_of(state(net), net), old=True)
    assert convert.load_weights(tmp_path / "in.caffemodel").network.name == "vgg11"
    assert convert.load_weights(tmp_path / "in.caffemodel", network="vgg11_lrn").network == net


# What is refused


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file", ["in.pth", "in.pkl", "in.npy"])
def test_nothing_in_a_file_is_run(file: str, tmp_path: Path) -> None:
    content = {"features.0.weight": torch.zeros(4, 3, 3, 3), "x": Bomb(tmp_path / "bang")}
    if file == "in.pth":
        torch.save(content, tmp_path / file)
    elif file == "in.pkl":
        (tmp_path / file).write_bytes(pickle.dumps({"x": Bomb(tmp_path / "bang")}))
    else:
        save_npy(tmp_path / file, {"x": Bomb(tmp_path / "bang")})
    with pytest.raises(WeightsError, match="run code"):
        convert.load_weights(tmp_path / file)
    assert not (tmp_path / "bang").exists()
    if file == "in.pkl":
        pickle.loads((tmp_path / file).read_bytes())
        assert (tmp_path / "bang").exists()  # so the question above can be answered wrongly


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "may be damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "may be damaged"),
        (b"hello" * 50, "of no kind that verydeep reads"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{" + bytes(100), "may be damaged"),
    ],
)
def test_files_that_are_no_weights(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "in.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        convert.load_weights(tmp_path / "in.bin")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "in.bin") in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".caffemodel", ".safetensors", ".h5"])
def test_files_that_are_cut_short(suffix: str, tmp_path: Path) -> None:
    net = small()
    path, weights = tmp_path / f"in{suffix}", state(net)
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, (kernel, bias) in pair_of(weights, net).items():
                file[f"{name}/kernel"], file[f"{name}/bias"] = kernel, bias
    elif suffix == ".caffemodel":
        write_caffe(path, pair_of(weights, net), old=True)
    else:
        (torch.save if suffix == ".pth" else safetensors.torch.save_file)(weights, path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(WeightsError, match=r"(may be|added to or) damaged"):
        convert.load_weights(path)


def test_a_model_file_that_cannot_be_used_is_told_by_its_own_error(tmp_path: Path) -> None:
    """Not taken for foreign weights, whose record would be lost without a word."""
    golden = Path(__file__).parent / "golden"
    path = tmp_path / "model.safetensors"
    plain = (golden / "modelfile.safetensors").read_bytes()
    assert plain.count(rb"format_version\":1") == 1
    coded = bytearray((golden / "modelfile_coded.safetensors").read_bytes())
    coded[-1] ^= 1
    for content, reason in (
        (
            plain.replace(rb"format_version\":1", rb"format_version\":9"),
            "written by a newer verydeep",
        ),
        (bytes(coded), "its checksum is not that of its numbers"),
        (plain[:-9], "it was cut short, added to or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"model\.safetensors: .*{reason}"):
            convert.load_weights(path)
    with pytest.raises(WeightsError, match="it is a folder"):
        convert.load_weights(tmp_path)


def test_another_kind_of_file_may_have_our_ending(tmp_path: Path) -> None:
    with open(tmp_path / "in.safetensors", "wb") as file:
        np.savez(file, **{key: tensor.numpy() for key, tensor in state(small()).items()})
    assert convert.load_weights(tmp_path / "in.safetensors").network == small()


def test_networks_that_are_not_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "in.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"no place for 'features\.3\.squeeze\.weight' \(and \d+"
    ):
        convert.load_weights(path)
    weights = state(small("vgg16"))
    del weights["features.28.bias"]
    torch.save(weights, path)
    with pytest.raises(
        WeightsError, match=r"nearest is vgg16, width 0\.0625, .*: features\.28\.bias is missing$"
    ):
        convert.load_weights(path)
    weights["features.28.bias"] = torch.zeros(31)
    torch.save(weights, path)
    with pytest.raises(WeightsError, match=r"features\.28\.bias is \(31,\), expected \(32,\)"):
        convert.load_weights(path)
    torch.save({key: tensor.int() for key, tensor in state(small()).items()}, path)
    with pytest.raises(WeightsError, match="is int32; expected floating point"):
        convert.load_weights(path)


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("layout", [None, "torchvision", "caffe", "keras", "features"])
@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"": np.float32(0)},
        {"module.": np.float32(0)},
        {"features.0.weight": np.float32(0)},
        {"features.0.weight": np.zeros((0, 0, 3, 3)), "features.0.bias": np.zeros(0)},
        {"features.0.weight": np.zeros((4, 3, 3, 3)), "features.3.weight": np.float32(0)},
        {"conv1_1": np.float32(0), "fc6": np.float32(0), "fc8": np.float32(0)},
        {"block1_conv1": np.zeros(()), "predictions": np.zeros((1, 1, 1, 1))},
        {"0.weight": np.zeros((4, 3, 3, 3)), "2.weight": np.zeros(5), "2.bias": np.zeros(())},
    ],
    ids=str,
)
def test_little_or_nothing_is_refused_at_once(
    tensors: dict[str, Any], layout: str | None, trunk: bool
) -> None:
    with pytest.raises(WeightsError) as caught:
        layouts.arrange(
            {key: np.asarray(value) for key, value in tensors.items()}, layout=layout, trunk=trunk
        )
    assert "\n" not in str(caught.value)
    if not tensors:
        assert str(caught.value) == "there are no tensors; expected the weights of a network"


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz")
    torch.save({}, tmp_path / "in.pth")
    torch.save({"step": 3, "loss": 0.5}, tmp_path / "numbers.pth")
    torch.save({"state_dict": {"features.0.weight": torch.tensor(0.0)}}, tmp_path / "scalar.pth")
    safetensors.torch.save_file({}, tmp_path / "in.safetensors")
    ring: dict[str, Any] = {}
    ring["model"] = ring
    (tmp_path / "ring.pkl").write_bytes(pickle.dumps(ring))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=path.name) as caught:
            convert.load_weights(path)
        assert "\n" not in str(caught.value)


def test_unknown_words_get_a_hint(tmp_path: Path) -> None:
    torch.save(state(small()), tmp_path / "in.pth")
    for choices, hint in (
        ({"preprocess": "torchvison"}, "did you mean torchvision"),
        ({"network": "vgg61"}, "did you mean vgg"),
        ({"layout": "kears"}, "did you mean keras"),
        ({"claim": "vgg16-kears"}, "did you mean vgg16-keras"),
    ):
        with pytest.raises(WeightsError, match=hint):
            convert.convert(tmp_path / "in.pth", tmp_path / "out", **choices)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="layout 'tim' is unknown; did you mean timm"):
        convert.export(tmp_path / "in.pth", tmp_path / "out.pth", "tim")
    with pytest.raises(WeightsError, match=r"written as \.safetensors or \.pth"):
        convert.export(tmp_path / "in.pth", tmp_path / "out.bin", "timm")
    with pytest.raises(WeightsError, match="there is no such file"):
        convert.load_weights(tmp_path / "none.pth")


# Whose weights they are


def test_pre_processing_is_never_guessed(tmp_path: Path) -> None:
    torch.save(state(small()), tmp_path / "in.pth")
    with pytest.raises(
        WeightsError,
        match=r"does not say which pre-processing .* --preprocess torchvision\|features",
    ):
        convert.convert(tmp_path / "in.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = convert.convert(tmp_path / "in.pth", tmp_path / "out", preprocess=PRESETS["lpips"])
    assert record.preprocess == PRESETS["lpips"]
    assert (
        record.provenance["sha256"]
        == hashlib.sha256((tmp_path / "in.pth").read_bytes()).hexdigest()
    )


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published file, small: the catalogue's "tiny", vgg16 with torchvision's pre-processing."""
    path = tmp_path / "tiny-12345678.pth"
    torch.save(state(small("vgg16", classes=1000)), path)
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    entry = Entry(
        "tiny",
        "vgg16",
        "V1",
        (Published(f"http://host/{path.name}", digest),),
        "MIT",
        "torchvision",
    )
    monkeypatch.setitem(catalog.ENTRIES, "tiny", entry)
    return path


def test_a_published_file_needs_no_word(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = Path(shutil.copy(known, tmp_path / "renamed.pth"))
    for path in (known, renamed):
        record = convert.convert(path, tmp_path / "out")
        assert record.preprocess == TORCHVISION
        assert record.class_names[0] == "tench"
        assert record.licence == "MIT"
        said = "this is tiny by its digest: pre-processing torchvision"
        assert capsys.readouterr().err == f"verydeep: {said}\n"
    convert.convert(known, tmp_path / "out", preprocess="torchvision", claim="tiny")
    with pytest.raises(WeightsError, match="is tiny, whose pre-processing is torchvision"):
        convert.convert(known, tmp_path / "out", preprocess="caffe")


def test_what_is_said_of_a_model_file_must_hold(known: Path, tmp_path: Path) -> None:
    ours, other = tmp_path / "ours.safetensors", tmp_path / "other.safetensors"
    convert.convert(known, ours)
    convert.load_weights(ours, claim="tiny", network="vgg16")
    choices: tuple[tuple[dict[str, Any], str], ...] = (
        ({"claim": "vgg19"}, "catalogue name is 'tiny', not vgg19; leave --as out"),
        ({"network": "vgg19"}, "network is 'vgg16', not vgg19; leave --network out"),
        ({"layout": "caffe"}, "layout is 'verydeep', not caffe; leave --from out"),
        ({"averages": ("pool5",)}, "averages is none, not pool5; leave --averages out"),
    )
    for choice, reason in choices:
        with pytest.raises(WeightsError, match=reason):
            convert.load_weights(ours, **choice)
    with pytest.raises(WeightsError, match="did you mean vgg19"):
        convert.load_weights(ours, claim="vgg91")
    torch.save(state(small("vgg16", head="gap", layers=("pool5",))), tmp_path / "in.pth")
    convert.convert(tmp_path / "in.pth", other, preprocess="caffe", averages=("pool5",))
    convert.load_weights(other, averages=("pool5",))
    with pytest.raises(WeightsError, match="catalogue name is none, not tiny"):
        convert.convert(other, tmp_path / "out", claim="tiny")


FIGURE = {"what": "top1", "value": 0.5, "protocol": "by hand"}


@pytest.mark.parametrize(
    ("sure", "kept", "said"),
    [
        ({"threshold": 0.5, "least_mean": 0.25, "measured": (FIGURE,)}, {}, "left out what"),
        ({"thresholds": (0.25,) * 5}, {"thresholds": (0.25,) * 5}, "its thresholds were"),
        ({}, {}, ""),
    ],
)
def test_what_was_measured_with_another_pre_processing_is_left_out(
    sure: dict[str, Any],
    kept: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    model_file(source, small(), preprocess=TORCHVISION, licence="MIT", **sure)
    for same in (None, "torchvision"):
        record = convert.convert(source, target, preprocess=same)
        assert {key: getattr(record, key) for key in sure} == sure
    assert convert.convert(source, target, preprocess="caffe", trunk=True).measured == ()
    assert capsys.readouterr().err == ""
    record = convert.convert(source, target, preprocess="caffe")
    made = {"provenance": record.provenance, "licence": "MIT"}
    assert record == modelfile.Record(small(), CAFFE, **made, **kept)
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"verydeep: {said}") for line in lines] == [True] * bool(said)


def planted(
    name: str, corners: tuple[tuple[float, ...], ...], turned: bool = False
) -> dict[str, Any]:
    """Random weights, with the first values of famous ones."""
    weights = state(small(name, classes=0))
    values = torch.tensor(corners)
    weights["features.0.weight"][: len(corners), :, 0, 0] = values.flip(1) if turned else values
    return weights


OXFORD = next(one for one in recognition.FINGERPRINTS if "Oxford" in one.whose)
THEIRS = next(one for one in recognition.FINGERPRINTS if "vgg16, IMAGENET" in one.whose)


def test_caffe_weights_under_torchvisions_name_are_refused(known: Path, tmp_path: Path) -> None:
    torch.save(planted("vgg16", OXFORD.corners), known)
    with pytest.raises(WeightsError) as caught:
        convert.convert(known, tmp_path / "out")
    assert str(caught.value) == (
        f"{known} claims to be tiny and is not: its values are Oxford's VGG-16 of 2014, which Caffe "
        "and Keras have, which expects pre-processing caffe, where tiny expects torchvision; if you "
        "know what it is, give it another name, and say its pre-processing with --preprocess"
    )
    other = tmp_path / "other.pth"
    shutil.copy(known, other)
    with pytest.raises(WeightsError, match=r"other\.pth claims to be tiny and is not"):
        convert.convert(other, tmp_path / "out", claim="tiny")


def test_other_contradictions_of_a_name_are_refused(known: Path, tmp_path: Path) -> None:
    torch.save(state(small("vgg16"), seed=5), known)
    with pytest.raises(
        WeightsError, match=r"its SHA-256 is \w{16}\.\.\., where the published file"
    ):
        convert.convert(known, tmp_path / "out", preprocess="torchvision")
    torch.save(state(small("vgg19")), known)
    with pytest.raises(WeightsError, match="its shapes are those of vgg19"):
        convert.convert(known, tmp_path / "out", preprocess="torchvision")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("one", recognition.FINGERPRINTS, ids=lambda one: str(one.whose[:12]))
def test_famous_values_are_recognised(
    one: recognition.Fingerprint,
    half: bool,
    turned: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "in.pth"
    weights = planted(one.network, one.corners, turned)
    torch.save({k: t.half() if half else t for k, t in weights.items()}, path)
    wrong = "caffe" if one.preprocess == "torchvision" else "torchvision"
    with pytest.raises(WeightsError, match=f"holds {one.whose}, .* contradicts") as caught:
        convert.convert(path, tmp_path / "out", preprocess=wrong if not turned else one.preprocess)
    if turned:
        assert f"they take channels in the order {'BGR' if wrong == 'caffe' else 'RGB'}" in str(
            caught.value
        )
        with pytest.raises(WeightsError, match="does not say which"):
            convert.convert(path, tmp_path / "out")
        return
    record = convert.convert(path, tmp_path / "out")
    assert record.preprocess == PRESETS[one.preprocess]
    assert f"these are {one.whose}, by the values of their first filters" in capsys.readouterr().err


def test_weights_trained_further_are_believed_to_be_what_is_said(tmp_path: Path) -> None:
    weights = state(small("vgg16")) | planted("vgg16", THEIRS.corners)  # five classes
    torch.save(weights, tmp_path / "in.pth")
    record = convert.convert(tmp_path / "in.pth", tmp_path / "out", preprocess="caffe")
    assert record.preprocess == CAFFE
    with pytest.raises(WeightsError, match="does not say which"):
        convert.convert(tmp_path / "in.pth", tmp_path / "out")


def test_the_scale_is_compared_too() -> None:
    features = PRESETS["features"]  # RGB as torchvision's, but 0 to 255
    assert recognition.expects(THEIRS, False, features).startswith("they take values 0.017")
    assert recognition.expects(THEIRS, False, PRESETS["lpips"]) == ""
    assert recognition.expects(OXFORD, True, features) == ""


# The command


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments], standalone_mode=False)


def test_convert_command(tmp_path: Path) -> None:
    weights = state(small("vgg11", head="gap", layers=("pool5",)))
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save(weights, source)
    (tmp_path / "labels").write_text("n1\tcat\nn2\tdog\nbird\nfish\nn5\tant\n")
    result = run(
        "convert", source, target, "--preprocess", "torchvision", "--averages", "pool5",
        "--labels", tmp_path / "labels", "--licence", "MIT",
    )  # fmt: skip
    assert result.exception is None
    assert result.stdout == f"{target}\n"
    assert "vgg11, 5 classes" in result.stderr
    record = modelfile.read(target).record
    assert record.class_ids == ("n1", "n2", "bird", "fish", "n5")
    assert record.class_names == ("cat", "dog", "bird", "fish", "ant")
    assert record.licence == "MIT"
    result = run("convert", target, tmp_path / "back.pth", "--to", "torchvision")
    assert result.exception is None
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(weights)
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert isinstance(
        run("convert", target, tmp_path / "x.pth", "--to", "timm").exception, WeightsError
    )
    few = run("convert", source, target, "--preprocess", "caffe", "--averages", "pool5", "--labels",
              "imagenet")  # fmt: skip
    assert "1000 class_ids, but the head has 5 classes" in str(few.exception)
    assert "has no place" in str(
        run("convert", source, "x.pth", "--to", "timm", "--preprocess", "caffe").exception
    )


def test_a_disk_that_fills_under_a_pth_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, back = tmp_path / "m.safetensors", tmp_path / "back.pth"
    torch.save(state(small("vgg11")), tmp_path / "in.pth")
    convert.convert(tmp_path / "in.pth", model, preprocess="caffe")

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(bytes(data)) > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda tensors, _out: save(tensors, Full()))
    with pytest.raises((OSError, OutputError), match="No space left on device"):
        convert.export(model, back, "torchvision")
    assert not back.exists()


def test_a_pth_is_a_torch_file_and_the_way_back_keeps_all(tmp_path: Path) -> None:
    net = small("vgg11_bn")
    torch.save(state(net), tmp_path / "in.pth")
    model, back = tmp_path / "m.safetensors", tmp_path / "back.pth"
    convert.convert(
        tmp_path / "in.pth", model, preprocess="caffe", labels=[(f"n{i}", f"a {i}") for i in range(5)],
        licence="MIT",
    )  # fmt: skip
    result = run("convert", model, back)
    assert result.exception is None
    assert result.stdout == f"{back}\n"
    assert zipfile.is_zipfile(back)
    loaded = torch.load(back, weights_only=True)
    torchvision_module(net).load_state_dict(loaded)
    again = tmp_path / "again.safetensors"
    assert run("convert", back, again, "--preprocess", "caffe").exception is None
    assert modelfile.read(again).record.network == net
    for key, tensor in state(net).items():
        assert torch.equal(loaded[key], tensor)
        np.testing.assert_array_equal(modelfile.read(again).tensors()[key], tensor.numpy())
    assert (
        run("convert", model, tmp_path / "copy.safetensors", "--licence", "BSD").exception is None
    )
    record, kept = (
        modelfile.read(tmp_path / "copy.safetensors").record,
        modelfile.read(model).record,
    )
    assert (record.preprocess, record.class_ids, record.class_names, record.licence) == (
        CAFFE, kept.class_ids, kept.class_names, "BSD",
    )  # fmt: skip
    assert record.provenance["sha256"] == modelfile.read(model).sha256
    assert convert.convert(model, again, trunk=True).network == small("vgg11_bn", classes=0)
    told = run("convert", model, tmp_path / "x.pth", "--to", "verydeep")
    assert "a model file ends in .safetensors" in str(told.exception)
    assert not (tmp_path / "x.pth").exists()


def test_a_quantised_model_is_no_state_dict(tmp_path: Path) -> None:
    source = Path(__file__).parent / "golden" / "modelfile_int8.safetensors"
    for name in ("out.pth", "out.safetensors"):
        result = run("convert", source, tmp_path / name)
        assert isinstance(result.exception, WeightsError)
        assert "convert the float model that it was made from" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_labels_gives_one_line(tmp_path: Path) -> None:
    torch.save(state(small()), tmp_path / "in.pth")
    (tmp_path / "labels.txt").write_text("\n")
    result = run(
        "convert", tmp_path / "in.pth", tmp_path / "out", "--preprocess", "torchvision",
        "--labels", tmp_path / "labels.txt",
    )  # fmt: skip
    assert isinstance(result.exception, WeightsError)
    assert "there are no labels; expected one for each" in str(result.exception)


def test_torchvision_loads_strictly_what_we_write_for_it(tmp_path: Path) -> None:
    net = small("vgg13_bn")
    torch.save(state(net), tmp_path / "in.pth")
    convert.convert(tmp_path / "in.pth", tmp_path / "model", preprocess="torchvision")
    convert.export(tmp_path / "model", tmp_path / "back.safetensors", "torchvision")
    module = torchvision_module(net)
    module.load_state_dict(safetensors.torch.load_file(tmp_path / "back.safetensors"))
    for key, tensor in state(net).items():
        assert torch.equal(module.state_dict()[key], tensor)


@pytest.mark.parametrize(("missing", "file"), [("h5py", "in.h5"), ("torch", "in.pth")])
def test_a_missing_package_gives_its_install_line(
    missing: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "h5py":
        with h5py.File(tmp_path / file, "w") as h5:
            h5["fc1/kernel"] = np.zeros((2, 2))
    else:
        torch.save(state(small()), tmp_path / file)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r'pip install "verydeep\[(keras|torch)\]"'):
        convert.load_weights(tmp_path / file)


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    torch.save(state(small()), tmp_path / "in.pth")
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        convert.export(tmp_path / "in.pth", tmp_path / "none" / "out.pth", "timm")
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]
    with pytest.raises(OutputError, match=r"in\.pth: leads to the file that it is made of"):
        convert.export(tmp_path / "in.pth", tmp_path / "in.pth", "timm")
    (tmp_path / "in.safetensors").symlink_to("in.pth")
    with pytest.raises(OutputError, match=r"in\.safetensors: leads to the file that it is made of"):
        convert.convert(tmp_path / "in.pth", tmp_path / "in.safetensors", preprocess="caffe")


def test_written_state_dicts_say_that_they_are_torchs(tmp_path: Path) -> None:
    torch.save(state(small()), tmp_path / "in.pth")
    convert.export(tmp_path / "in.pth", tmp_path / "out.safetensors", "timm")
    data = (tmp_path / "out.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}  # timm and transformers ask for it
    assert safetensors.numpy.load(data)["head.fc.bias"].shape == (CLASSES,)
