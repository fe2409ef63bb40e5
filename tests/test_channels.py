"""Networks with channels of their own: odd counts through every door, and removing is as good as zeros."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.utils.flop_counter import FlopCounterMode

import verydeep
from verydeep import modelfile, models
from verydeep.benching import float64
from verydeep.cli.train import _Teller
from verydeep.distances import Perceptual
from verydeep.engines import TOLERANCES, Engine, installed, relative_error
from verydeep.errors import NetworkError, WeightsError
from verydeep.exporting import FORMATS
from verydeep.graphs import source_of
from verydeep.models import loading
from verydeep.models.widening import widened
from verydeep.nets import COLUMNS, NETWORKS, Network, network
from verydeep.published.conversion import load_weights
from verydeep.training.begin import train

from .conftest import Run
from .test_finetune import config, flowers, sure  # noqa: F401  # fixtures
from .tiny import model_file, photo, pixels, weights

GOLDEN = Path(__file__).parent / "golden" / "modelfile_channels.safetensors"
COUNTS = (33, 7, 3, 1)
FULL = 40


def odd(name: str = "vgg11", head: str = "gap", **choices: object) -> Network:
    """A network of the table with 33, 7, 3 and 1 channels, again and again, and as many FC features."""
    layers = {"gap": ("relu5_1", "relu4_2")}.get(head, ())
    entries = COLUMNS[NETWORKS[name][0]].split()
    count = sum(entry[0].isdigit() for entry in entries) + 2 * (head != "gap")
    channels = [COUNTS[i % 4] for i in range(count)]
    return network(name, classes=7, head=head, layers=layers, channels=channels, **choices)  # type: ignore[arg-type]


def test_the_table_with_channels_of_its_own() -> None:
    net = odd("vgg11_bn", "classic", in_channels=1)
    convs = [layer for layer in net.trunk if layer.kind == "conv"]
    assert [layer.outputs for layer in convs] == [33, 7, 3, 1, 33, 7, 3, 1]
    assert [layer.inputs for layer in convs] == [1, 33, 7, 3, 1, 33, 7, 3]
    # of fc6: 49 places of pool5's one channel
    assert [net.tensors[f"classifier.{i}.weight"] for i in (0, 3, 6)] == [(33, 49), (7, 33), (7, 7)]
    assert net.widths == "channels 33-7-3-1-33-7-3-1-33-7"
    with torch.device("meta"):
        model = models.VGG.of(net)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 1, 97, 64, device="meta"))
    rows = net.rows(97, 64)
    assert 2 * sum(row.multiply_adds for row in rows) == counter.get_total_flops()
    assert net.parameters == sum(p.numel() for p in model.parameters())


def test_one_network_is_said_in_one_way() -> None:
    plain = network("vgg16", width=0.5, head="classic", classes=5)
    own = [layer.outputs for layer in plain.layers if layer.kind in ("conv", "fc")][:-1]
    assert replace(plain, channels=own) == plain
    assert replace(plain, channels=own).channels == ()
    assert replace(plain, channels=own[:-2]) == plain
    narrow = replace(plain, channels=[7, *own[1:-2]])
    # the hidden FC layers are the table's times the width
    assert narrow.channels == (7, *own[1:-2], 2048, 2048)
    assert narrow != plain
    # and a head without any has none
    bare = replace(narrow, head=verydeep.Head(classes=0))
    assert bare.channels == (7, *own[1:-2])
    assert replace(narrow) == narrow


@pytest.mark.parametrize("given", [(1, 2), (0,) * 8, (65537,) * 8, (1.0,) * 8, "8", 8, (1,) * 9])
def test_what_is_no_list_of_channels_is_refused(given: object) -> None:
    told = r"channels are .*; expected 8 whole numbers, 1 to 65536, one for each convolution of column A"
    with pytest.raises(NetworkError, match=told):
        network("vgg11", channels=given)  # type: ignore[arg-type]


# The model file


def test_the_file_says_them(tmp_path: Path) -> None:
    net = odd(head="small")
    path = model_file(tmp_path / "odd.safetensors", net)
    model = modelfile.read(path)
    assert model.record.network == net
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    record = json.loads(header["__metadata__"]["verydeep"])
    assert record["format_version"] == 3  # of which older readers say that they are too old
    assert record["network"]["channels"] == [33, 7, 3, 1, 33, 7, 3, 1, 33, 7]
    text = json.dumps(record)
    assert modelfile.Record.from_json(text) == model.record


def test_golden_file(tmp_path: Path) -> None:
    """What the specification alone makes is read, and written again byte for byte."""
    made = runpy.run_path(str(GOLDEN.with_name("modelfile_channels_make.py")))
    assert GOLDEN.read_bytes() == made["file_bytes"]()
    model = modelfile.read(GOLDEN)
    assert model.record.network.channels == tuple(made["CHANNELS"])
    assert {k: list(v.shape) for k, v in model.stored.items()} == made["tensors"]()
    modelfile.write(tmp_path / "again.safetensors", model.record, model.stored)
    assert (tmp_path / "again.safetensors").read_bytes() == GOLDEN.read_bytes()


# Zeros


def removed(
    full: Network, given: dict[str, np.ndarray], seed: int = 0
) -> tuple[Network, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Some channels of every layer chosen: the network without the others, its tensors, the full tensors
    with the others zeroed, and the kept channels of each layer. Row by row and column by column."""
    draw = np.random.default_rng(seed)
    small, zeroed, kept = {}, {k: v.copy() for k, v in given.items()}, {}
    counts = iter(COUNTS * 5)
    before = np.arange(full.in_channels)
    for layer in full.layers:
        if layer.kind == "average":
            before = np.concatenate([
                kept[name] + sum(full.layer(other).outputs for other in full.head_inputs[:at])
                for at, name in enumerate(full.head_inputs)
            ])  # fmt: skip
            grid = layer.kernel**2
            before = np.array([c * grid + place for c in before for place in range(grid)])
        if layer.kind in ("conv", "fc"):
            last = layer.name == "fc8"
            chosen = np.arange(layer.outputs)
            if not last:
                chosen = np.sort(draw.permutation(layer.outputs)[: next(counts)])
            gone = np.setdiff1d(np.arange(layer.outputs), chosen)
            weight = given[f"{layer.key}.weight"]
            small[f"{layer.key}.weight"] = np.stack([weight[c][before] for c in chosen])
            for key in list(layer.tensors)[1:]:
                small[key] = given[key][chosen] if given[key].ndim else given[key]
            for part in ("weight", "bias"):
                for key in filter(None, (layer.key, layer.norm_key)):
                    zeroed[f"{key}.{part}"][gone] = 0
            before = chosen
        kept[layer.name] = before
    channels = [len(kept[la.name]) for la in full.layers if la.kind in ("conv", "fc")]
    channels = channels[:-1] if full.head.classes else channels
    net = replace(full, channels=tuple(channels))
    return net, {key: small[key] for key in net.tensors}, zeroed, kept


def files(folder: Path, name: str, head: str, pool: str = "max") -> tuple[Path, Path, Network]:
    """Of the full network with zeros, and of that without these channels."""
    layers = ("relu5_1", "relu4_2") if head == "gap" else ()
    count = sum(e[0].isdigit() for e in COLUMNS[NETWORKS[name][0]].split()) + 2 * (head != "gap")
    channels: list[int] = [FULL] * count
    full = network(name, classes=7, head=head, layers=layers, pool=pool, channels=channels)
    net, small, zeroed, _ = removed(full, weights(full))
    assert set(net.channels) == set(COUNTS)
    paths = folder / "full.safetensors", folder / "small.safetensors"
    how = modelfile.read(model_file(folder / "any.safetensors")).record.preprocess
    for path, one, tensors in zip(paths, (full, net), (zeroed, small), strict=True):
        modelfile.write(path, modelfile.Record(one, how), tensors)
    return *paths, net


@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
@pytest.mark.parametrize(
    ("name", "head", "pool"),
    [("vgg11", "classic", "max"), ("vgg13_bn", "gap", "avg"), ("vgg16c_bn", "small", "max"),
     ("vgg16_bn", "classic", "l2")],
)  # fmt: skip
def test_without_them_as_with_zeros(
    name: str, head: str, pool: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """In every engine, in every precision but int8; and in float64, without any engine."""
    full, small, net = files(tmp_path, name, head, pool)
    image = pixels(*size)
    whole, less = modelfile.read(full), modelfile.read(small)
    judge = float64.scores(whole.record.network, whole.tensors(), whole.record.preprocess, image)
    own = float64.scores(net, less.tensors(), less.record.preprocess, image)
    # the l2 pool makes 1e-6 of 0
    assert_allclose(own, judge, rtol=1e-4 if pool == "l2" else 1e-9)
    assert np.ptp(judge) > 1e-3
    for kind in installed():
        for precision in {*kind.precisions} - {"int8"}:
            made = Engine(
                kind.name, source_of(less, "uint8"), precision=precision, threads=1, device="cpu"
            )
            error = relative_error(made.run(image)["scores"], judge)
            assert error <= max(TOLERANCES[precision], 2e-5), (kind.name, precision)
    module = models.load(small)
    with torch.no_grad():
        x = torch.from_numpy(less.record.preprocess.normalise(image))
        assert relative_error(module(x).numpy(), judge) <= 2e-5


def test_removing_touches_the_right_columns_of_fc6() -> None:
    """One channel of the last convolution less is 49 columns less, of that channel."""
    full = network("vgg11", classes=2, width=1 / 128)  # four channels before fc6
    given = weights(full)
    given["classifier.0.weight"][:] = np.arange(4 * 49)
    net, small, _, kept = removed(full, given, seed=3)
    channels = kept["conv5_2"]
    places = [49 * c + p for c in channels for p in range(49)]
    assert small["classifier.0.weight"].shape[1] == 49 * net.channels[7] == 49 * len(channels)
    assert small["classifier.0.weight"][0].tolist() == places


def test_features_of_what_was_kept(tmp_path: Path) -> None:
    full, small, net = files(tmp_path, "vgg11", "gap")
    _, _, _, kept = removed(
        replace(net, channels=(FULL,) * 8), weights(replace(net, channels=(FULL,) * 8))
    )
    image = photo(tmp_path / "photo.png")
    layers = ("conv1_1", "relu3_2", "pool5")
    one, other = (
        verydeep.load(p, precision="exact", engine="onnxruntime").features(image, layers=layers)
        for p in (full, small)
    )
    for layer in layers:
        assert_allclose(other[layer], one[layer][:, kept[layer]], rtol=1e-4, atol=1e-5)


# Every other door


@pytest.mark.parametrize(("name", "head"), [("vgg11", "classic"), ("vgg13_bn", "gap")])
def test_int8(name: str, head: str, tmp_path: Path) -> None:
    path = model_file(tmp_path / "odd.safetensors", odd(name, head))
    for seed in range(40):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    out = tmp_path / "int8.safetensors"
    made = verydeep.quantize(path, [str(tmp_path / "photos")], out)
    assert made.record.network == odd(name, head)
    model, image = modelfile.read(out), pixels(64, 64)
    theirs = Engine("onnxruntime", source_of(modelfile.read(path), "uint8"), threads=1).run(image)
    for kind in installed():
        if "int8" in kind.precisions:
            source = source_of(model, "uint8", int8=True)
            ours = Engine(kind.name, source, precision="int8", threads=1, device="cpu").run(image)
            assert relative_error(ours["scores"], theirs["scores"]) < 0.3, kind.name


@pytest.mark.parametrize("to", FORMATS)
def test_export(to: str, tmp_path: Path) -> None:
    path = model_file(tmp_path / "odd.safetensors", odd(head="small"))
    out = tmp_path / f"odd{FORMATS[to].suffix}"
    made = verydeep.export(path, to, out)  # which compares its answers
    assert made.error <= TOLERANCES["fast"]


@pytest.mark.parametrize("head", ["classic", "gap"])
def test_every_verb(verydeep: Run, head: str, tmp_path: Path) -> None:
    path = model_file(tmp_path / "odd.safetensors", odd("vgg11_bn", head))
    image = photo(tmp_path / "photo.png")
    wide = "33-7-3-1-33-7-3-1" + "-33-7" * (head == "classic")
    told = verydeep("summary", path, "--svg", tmp_path / "figure.svg")
    assert f"vgg11_bn (column A, batch norm), channels {wide}," in told.out
    assert " 33 x 224 x 224 " in " ".join(told.out.split())
    assert (tmp_path / "figure.svg").exists()
    small = tmp_path / "half.safetensors"
    for words in (
        ("classify", image, "--model", path),
        ("explain", image, "--model", path, "--method", "gradcam", "--out", tmp_path / "explained"),
        ("show", path, image, "--out", tmp_path / "s.png"),
        ("features", image, "--model", path, "--layer", "relu4_2", "--out", tmp_path / "f.npz"),
        ("weights", "convert", path, small),
    ):
        done = verydeep(*words)
        assert done.status == 0, (words, done.err)
    assert modelfile.read(small).record.network == odd("vgg11_bn", head)


def test_torch_and_its_friends(tmp_path: Path) -> None:
    path = model_file(tmp_path / "odd.safetensors", odd())
    body = models.backbone("vgg11", ("relu2_1", "relu5_2"), path)
    assert body.channels == {"relu2_1": 7, "relu5_2": 1}
    given = models.vgg11(weights=path)
    assert given.table == odd()
    with pytest.warns(UserWarning, match="fc8 is new"):
        other = models.vgg11(weights=path, num_classes=3)
    assert other.table.channels == odd().channels
    with pytest.raises(
        WeightsError, match=r"are those of vgg11, channels 33-7-.*vgg11, width 1, needs"
    ):
        models.vgg11(weights=path, width=1.0)
    assert load_weights(path, trunk=True).network.channels == odd().channels


def test_what_needs_the_tables_channels_says_so(tmp_path: Path) -> None:
    path = model_file(tmp_path / "odd.safetensors", odd("vgg16"))
    with pytest.raises(NetworkError, match=r"is vgg16 of channels 33-7-.*; lpips was fitted to"):
        Perceptual("lpips", model=path)
    with pytest.raises(WeightsError, match=r"vgg16 of channels 33-.*cannot become one of width 2"):
        widened(loading.read(path), 2)


@pytest.mark.usefixtures("sure")
def test_training_goes_on_from_such_a_file(flowers: Path, tmp_path: Path) -> None:  # noqa: F811
    net = odd("vgg11_bn")
    path = model_file(tmp_path / "odd.safetensors", net)
    result = train(config(path, epochs=1), flowers, out=tmp_path / "out")
    assert modelfile.read(result.model).record.network.channels == net.channels
    start = next(line for line in result.log if line["event"] == "start")
    assert f": {net.name} of {net.widths}, " in _Teller()._start(start)
    (tmp_path / "out" / "model.safetensors").unlink()
    again = train(config(path, epochs=1), flowers, out=tmp_path / "out", resume=True)
    assert modelfile.read(again.model).record.network.channels == net.channels
