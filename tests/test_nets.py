"""The table, against the paper's figures and against torch, which counts and shapes on its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from verydeep import models, nets
from verydeep.errors import LayerError, NetworkError
from verydeep.nets import NETWORKS, Head, Network, network

# name: parameters with 1000 classes, of these in `features`, multiply-adds at 224 (arXiv:1409.1556,
# table 2 rounds the first; counted once by hand, here and by torch below)
COUNTS: dict[str, tuple[int, int, int]] = {
    "vgg11": (132_863_336, 9_220_480, 7_609_090_048),
    "vgg11_bn": (132_868_840, 9_225_984, 7_609_090_048),
    "vgg11_lrn": (132_863_336, 9_220_480, 7_609_090_048),
    "vgg13": (133_047_848, 9_404_992, 11_308_466_176),
    "vgg13_bn": (133_053_736, 9_410_880, 11_308_466_176),
    "vgg16c": (133_638_952, 9_996_096, 11_770_888_192),
    "vgg16c_bn": (133_647_400, 10_004_544, 11_770_888_192),
    "vgg16": (138_357_544, 14_714_688, 15_470_264_320),
    "vgg16_bn": (138_365_992, 14_723_136, 15_470_264_320),
    "vgg19": (143_667_240, 20_024_384, 19_632_062_464),
    "vgg19_bn": (143_678_248, 20_035_392, 19_632_062_464),
}

LAYERS = {"vgg11": 11, "vgg13": 13, "vgg16": 16, "vgg19": 19}  # the number in the name


def test_every_registered_network_is_pinned() -> None:
    assert set(COUNTS) == set(NETWORKS)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    net = network(name)
    parameters, features, multiply_adds = COUNTS[name]
    assert net.parameters == parameters
    assert sum(layer.parameters for layer in net.trunk) == features
    assert sum(row.multiply_adds for row in net.rows(224)) == multiply_adds
    assert sum(row.parameters for row in net.rows(224)) == parameters
    assert sum(row.size_bytes for row in net.rows(224)) == 4 * parameters
    assert net.weight_layers == LAYERS[name[:5]]
    assert net.name == name


def _meta(net: Network) -> models.VGG:
    with torch.device("meta"):
        return models.VGG.of(net)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(224, 224), (181, 97)])
def test_counts_equal_torchs(name: str, size: tuple[int, int]) -> None:
    net = network(name, head="classic", in_channels=1, classes=7)
    model = _meta(net)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 1, *size, device="meta"))
    rows = net.rows(*size)
    assert 2 * sum(row.multiply_adds for row in rows) == counter.get_total_flops()
    assert net.parameters == sum(p.numel() for p in model.parameters())
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == net.tensors


NETS = [
    *[network(name) for name in NETWORKS],
    network("vgg16", pool="l2", width=0.125, in_channels=4),
    network("vgg16c_bn", pool="avg", width=1 / 3, head="small", classes=10),
    network("vgg19", head="gap", layers=("relu5_4", "relu2_1", "conv4_4"), width=0.1),
    network("vgg13_bn", head="gap", layers=("pool5",), pool="l2"),
    network("vgg11", classes=0),
]


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("size", [(224, 224), (32, 35), (47, 61), (100, 33)])
def test_shapes_equal_torchs(net: Network, size: tuple[int, int]) -> None:
    x = torch.empty(1, net.in_channels, *size, device="meta")
    values = _meta(net).taps(x, net.taps)
    shapes = {row.layer.name: row.shape for row in net.rows(*size)}
    assert shapes == {name: tuple(value.shape[1:]) for name, value in values.items()}


def _seen(net: Network, height: int) -> dict[str, tuple[list[int], int]]:
    """For each layer: rows of the image that its middle unit depends on, and which unit that is.

    Independent of the table: the gradient of that unit with respect to an image of ones, through a
    network all of whose weights are 1.
    """
    model = models.VGG.of(net).double().eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.fill_(0 if key.endswith(("bias", "running_mean")) else 1)
    x = torch.ones(1, 3, height, net.minimum_size, dtype=torch.double, requires_grad=True)
    found = {}
    for name, value in model.taps(x, net.taps[:-1]).items():
        # the average and the FC layers: the first unit
        unit = value.shape[2] // 2 if value.dim() == 4 and name != "avgpool" else 0
        one = value.flatten(2)[0].sum(0) if value.dim() == 4 else value[0]
        one = one.reshape(-1, value.shape[3])[unit, 0] if value.dim() == 4 else one[0]
        (gradient,) = torch.autograd.grad(one, x, retain_graph=True)
        rows = gradient[0].sum((0, 2)).nonzero().flatten().tolist()
        found[name] = (rows, unit)
    return found


@pytest.mark.parametrize(
    ("name", "pool", "head"),
    [
        *[(name, "avg", "classic") for name in NETWORKS],
        *[("vgg16", "l2", "classic"), ("vgg19_bn", "l2", "small")],
        *[("vgg16c", "l2", "gap"), ("vgg13", "avg", "gap")],
    ],
)
def test_receptive_fields_equal_the_gradients(name: str, pool: str, head: str) -> None:
    taps = ("relu4_1", "pool5") if head == "gap" else ()
    net = network(name, width=1 / 64, pool=pool, head=head, layers=taps, classes=3)
    height = 448
    seen = _seen(net, height)
    rows = net.rows(height, net.minimum_size)
    assert [row.layer.name for row in rows[:-1]] == list(seen)
    for row in rows[:-1]:
        found, unit = seen[row.layer.name]
        centre = row.position + unit * row.stride
        first = math.ceil(centre - (row.receptive_field - 1) / 2)
        last = math.floor(centre + (row.receptive_field - 1) / 2)
        assert last - first + 1 == row.receptive_field
        expected = list(range(max(0, first), min(height - 1, last) + 1))
        assert (row.layer.name, found) == (row.layer.name, expected)


def test_receptive_fields_of_the_paper() -> None:
    # arXiv:1409.1556, section 2.3: two stacked 3x3 see 5x5, three see 7x7
    rows = {row.layer.name: row for row in network("vgg16").rows(224)}
    in_units = [
        1 + (rows[f"conv3_{i}"].receptive_field - rows["pool2"].receptive_field) // 4
        for i in (1, 2, 3)
    ]
    assert in_units == [3, 5, 7]
    # by the recurrence r += (k - 1) * stride, done by hand: 212 pixels at pool5, stride 32
    assert (rows["relu5_3"].receptive_field, rows["relu5_3"].stride) == (196, 16)
    assert (rows["pool5"].receptive_field, rows["pool5"].stride) == (212, 32)
    assert rows["pool5"].position == 15.5
    # at 224 the classic head's average is the identity, and fc6 sees all
    assert rows["avgpool"].receptive_field == 212
    assert rows["fc6"].receptive_field == 212 + 6 * 32


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pool", ["max", "avg", "l2"])
def test_minimum_size_is_torchs(name: str, pool: str) -> None:
    net = network(name, pool=pool, width=1 / 64, head="small")
    least = net.minimum_size
    assert least == (1 if pool == "l2" else 32)
    model = models.VGG.of(net).eval()
    assert model(torch.ones(1, 3, least, least)).shape == (1, 1000)
    assert net.rows(least)
    if least > 1:
        with pytest.raises(RuntimeError, match="too small"):
            model(torch.ones(1, 3, least - 1, least))
        with pytest.raises(NetworkError, match="too small"):
            net.rows(least - 1, least)


def test_layer_names_of_vgg16() -> None:
    # arXiv:1409.1556, table 1, column D
    blocks = [2, 2, 3, 3, 3]
    names: list[str] = []
    for block, count in enumerate(blocks, 1):
        for place in range(1, count + 1):
            names += [f"conv{block}_{place}", f"relu{block}_{place}"]
        names.append(f"pool{block}")
    names += ["avgpool", "fc6", "relu6", "fc7", "relu7", "fc8", "prob"]
    assert list(network("vgg16").taps) == names
    assert list(network("vgg16_bn").taps) == names  # batch norm moves indices, not names
    assert network("vgg11_lrn").taps[:4] == ("conv1_1", "relu1_1", "lrn1", "pool1")


def test_column_c_has_its_1x1_convolutions() -> None:
    kernels = {
        layer.name: layer.kernel for layer in network("vgg16c").trunk if layer.kind == "conv"
    }
    assert [n for n, k in kernels.items() if k == 1] == ["conv3_3", "conv4_3", "conv5_3"]
    assert set(kernels.values()) == {1, 3}


def test_cut_ends_at_the_last_tap() -> None:
    net = network("vgg16")
    cut = net.cut(("relu3_3", "conv2_1"))
    assert cut.taps[-1] == "relu3_3"
    assert cut.taps == net.taps[: len(cut.taps)]
    assert net.cut(("fc6",)).taps[-2:] == ("avgpool", "fc6")
    gap = network("vgg16", head="gap", layers=("relu4_3", "relu5_1"))
    assert gap.cut(("fc8",)).taps[-3:] == ("relu5_1", "avgpool", "fc8")
    assert gap.cut(("pool5",)).taps[-1] == "pool5"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network("vgg61"), "network 'vgg61' is unknown; did you mean vgg"),
        (lambda: network("resnet50"), "network 'resnet50' is unknown; expected one of: vgg11, "),
        (
            lambda: network("vgg16", head="clasic"),
            "head 'clasic' is unknown; did you mean classic?",
        ),
        (
            lambda: network("vgg16", pool="mean"),
            "pool 'mean' is unknown; expected one of: max, avg, l2",
        ),
        (lambda: network("vgg16", width=0), "width is 0; expected a number above 0, at most 16"),
        (lambda: network("vgg16", width=float("nan")), "width is nan; expected a number above 0"),
        (lambda: network("vgg16", in_channels=0), "in_channels is 0; expected a whole number"),
        (lambda: network("vgg16", classes=-1), "classes is -1; expected a whole number of 0 or"),
        (lambda: network("vgg16", classes=2.0), "classes is 2.0; expected a whole number"),
        (lambda: network("vgg16", head="gap"), 'head "gap" needs the layers it averages'),
        (
            lambda: network("vgg16", layers=("relu5_3",)),
            'head "classic" reads pool5; layers belong to head "gap"',
        ),
        (
            lambda: network("vgg16", head="gap", layers=("relu5_3", "relu5_3")),
            "head names a layer twice: relu5_3, relu5_3",
        ),
        (
            lambda: network("vgg16", head="gap", layers=("relu5_4",)),
            "vgg16 has no layer 'relu5_4'; did you mean relu5_3",
        ),
        (lambda: network("vgg16").layer("relu5-3"), "vgg16 has no layer 'relu5-3'; did you mean"),
        (lambda: network("vgg16").cut(("conv6_1",)), "vgg16 has no layer 'conv6_1'; did you mean"),
        (
            lambda: network("vgg19_bn").rows(224, 31),
            "an input of 224x31 pixels is too small for vgg19_bn: its pool5 needs at least 32x32",
        ),
        (lambda: Network(["D"]), "column ['D'] is unknown; expected one of: A, A-LRN, B, C, D, E"),
        (lambda: Network("D", batch_norm=1), "batch_norm is 1; expected true or false"),
        (lambda: network("vgg16", layers=None), "layers are None; expected names of layers"),
        (lambda: network("vgg16", layers=[3]), "layers are [3]; expected names of layers"),
        (lambda: Network("F"), "column 'F' is unknown; expected one of: A, A-LRN, B, C, D, E"),
    ],
)
def test_errors_say_what_to_do(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NetworkError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """As a search over widths gives them; the model file has them as JSON does."""
    own = np.array([8, 8, 8, 8, 8, 8, 8, 8])
    given = {"width": np.float32(0.5), "in_channels": np.int64(1), "channels": tuple(own)}
    net = replace(network("vgg11"), head=Head("gap", np.int64(3), ("relu5_2",)), **given)
    values = net.head.classes, net.width, net.in_channels, *net.channels
    assert json.loads(json.dumps(values)) == [3, 0.5, 1, *own.tolist()]


def test_an_unknown_layer_is_a_layer_error() -> None:
    with pytest.raises(LayerError):
        network("vgg16").layer("relu5_4")


def test_records_are_frozen_and_hashable() -> None:
    assert len({network("vgg16"), network("vgg16"), network("vgg19")}) == 2
    with pytest.raises(AttributeError):
        network("vgg16").width = 2.0  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Head().classes = 5  # type: ignore[misc]


def test_the_table_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, verydeep.nets; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'torch', 'onnx', 'PIL'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert nets.NETWORKS


def test_a_text_names_one_layer() -> None:
    net = network("vgg16", head="gap", layers="relu5_3", classes=5)
    assert net == network("vgg16", head="gap", layers=("relu5_3",), classes=5)
    assert nets.Head("gap", 5, "relu5_3") == net.head  # type: ignore[arg-type]
    assert net.cut("relu3_3") == net.cut(["relu3_3"])
    assert net.cut("relu3_3").taps[-1] == "relu3_3"
