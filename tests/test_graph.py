"""The ONNX graph against the torch module: every network, head and pool, square and not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose

from verydeep import models, nets
from verydeep.engines import Engine
from verydeep.errors import LayerError, NetworkError
from verydeep.graphs import network as graph
from verydeep.graphs.writer import Graph
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import CAFFE, TORCHVISION, Preprocess

from .tiny import pixels, tiny, weights

HEADS = ("classic", "gap", "small")
SIZES = ((224, 224), (260, 301))


def run(built: Graph, image: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(built.inline(), full_check=True)
    return Engine("onnxruntime", built, threads=1).run(image)


def torch_taps(
    net: Network, tensors: dict[str, np.ndarray], inputs: np.ndarray
) -> dict[str, np.ndarray]:
    module = models.build(net)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    module.eval().double()
    with torch.inference_mode():
        taps = module.taps(torch.from_numpy(inputs).double(), net.taps)
    return {name: value.numpy() for name, value in taps.items()}


def assert_close(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Relative error as verydeep means it: max |a - b| / max |b| over the batch, at most 1e-5."""
    assert ours.shape == theirs.shape, name
    assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(np.abs(theirs).max()), err_msg=name)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_torch(name: str, head: str) -> None:
    net = tiny(name, head)
    tensors = weights(net)
    built = graph.build(net, tensors, TORCHVISION)
    for height, width in SIZES:
        image = pixels(height, width)
        expected = torch_taps(net, tensors, TORCHVISION.normalise(image))["fc8"]
        assert np.abs(expected).max() > 1e-2  # a graph of zeros would agree with anything
        assert_close(run(built, image)["scores"], expected, f"{name} {height}x{width}")


@pytest.mark.parametrize("pool", nets.POOLS)
@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16c_bn"])
def test_every_tap_with_every_pool(name: str, pool: str) -> None:
    net = tiny(name, "classic", pool=pool)
    tensors = weights(net)
    built = graph.build(net, tensors, TORCHVISION, taps=net.taps)
    image = pixels(97, 64)
    ours = run(built, image)
    expected = torch_taps(net, tensors, TORCHVISION.normalise(image))
    assert list(ours) == [*net.taps, "scores"]
    for tap in net.taps:
        assert_close(ours[tap], expected[tap], tap)
    declared = {o.name: len(o.type.tensor_type.shape.dim) for o in built.model.graph.output}
    assert declared == {name: value.ndim for name, value in ours.items()}


def test_full_width() -> None:
    net = network("vgg16", head="gap", layers=("relu4_3", "relu5_3"), classes=10)
    tensors = weights(net)
    image = pixels(128, 160, count=1)
    expected = torch_taps(net, tensors, TORCHVISION.normalise(image))["fc8"]
    assert_close(run(graph.build(net, tensors, TORCHVISION), image)["scores"], expected, "scores")


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (224, 224), (225, 447), (512, 100)])
def test_adaptive_pool(size: tuple[int, int]) -> None:
    """The masks alone, against torch, below and above one unit a cell."""
    net = tiny("vgg11", "classic")
    built = graph.build(net, weights(net), TORCHVISION, taps=("pool5", "avgpool"), scores=False)
    ours = run(built, pixels(*size))
    expected = torch.nn.AdaptiveAvgPool2d(7)(torch.from_numpy(ours["pool5"]).double()).numpy()
    assert_allclose(ours["avgpool"], expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("record", [TORCHVISION, CAFFE, Preprocess(mean=(0, 0, 0), range=(-1, 1))])
def test_preprocessing_is_inside(record: Preprocess) -> None:
    net = tiny("vgg11", "small")
    tensors = weights(net)
    image = pixels(64, 64)
    expected = torch_taps(net, tensors, record.normalise(image))
    ours = run(graph.build(net, tensors, record, taps=("conv1_1",)), image)
    assert_close(ours["conv1_1"], expected["conv1_1"], "conv1_1")
    assert_close(ours["scores"], expected["fc8"], "scores")


def test_float_pixels_keep_their_values() -> None:
    net = tiny("vgg11", "small")
    tensors = weights(net)
    image = pixels(64, 64).astype(np.float32) + np.float32(0.25)
    expected = torch_taps(net, tensors, TORCHVISION.normalise(image))["fc8"]
    rounded = torch_taps(net, tensors, TORCHVISION.normalise(np.floor(image)))["fc8"]
    ours = run(graph.build(net, tensors, TORCHVISION, pixels="float32"), image)["scores"]
    assert_close(ours, expected, "scores")
    assert np.abs(ours - rounded).max() > 1e-4 * np.abs(expected).max()


def test_no_value_inside_is_of_8_bits() -> None:
    """TensorRT takes uint8 as an input alone."""
    net = tiny()
    built = graph.build(net, weights(net), TORCHVISION).inline()
    inferred = onnx.shape_inference.infer_shapes(built).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    assert [name for name, kind in kinds.items() if kind == onnx.TensorProto.UINT8] == ["pixels"]


@pytest.mark.parametrize(("channels", "order"), [(1, "L"), (4, "RGB")])
def test_other_channel_counts(channels: int, order: str) -> None:
    net = tiny("vgg11", "small", in_channels=channels)
    tensors = weights(net)
    means = (0.5,) * channels
    if channels == 4:
        with pytest.raises(NetworkError, match="takes 4 channels, but its pre-processing has 3"):
            graph.build(net, tensors, TORCHVISION)
        return
    record = Preprocess(channel_order=order, mean=means, std=means)
    image = pixels(64, 64, channels=channels)
    expected = torch_taps(net, tensors, record.normalise(image))["fc8"]
    assert_close(run(graph.build(net, tensors, record), image)["scores"], expected, "scores")


def test_cut_after_the_last_tap() -> None:
    net = tiny("vgg16", "classic")
    kept = {k: v for k, v in weights(net).items() if int(k.split(".")[1]) <= 12}
    kept = {k: v for k, v in kept.items() if k.startswith("features")}
    built = graph.build(net, kept, TORCHVISION, taps=("relu3_2",), scores=False)
    names = [node.name for node in built.model.graph.node]
    assert names[-1] == "relu3_2"
    assert "conv3_3" not in names


def test_batch_norm_is_folded() -> None:
    net = tiny("vgg16_bn")
    built = graph.build(net, weights(net), TORCHVISION)
    assert not [node for node in built.model.graph.node if node.op_type == "BatchNormalization"]


def test_refusals() -> None:
    net = tiny("vgg11", "classic")
    with pytest.raises(LayerError, match=r"no layer 'relu3_9'; did you mean relu3_"):
        graph.build(net, weights(net), TORCHVISION, taps=("relu3_9",))
    with pytest.raises(NetworkError, match="nothing is asked for"):
        graph.build(net, weights(net), TORCHVISION, scores=False)
    with pytest.raises(NetworkError, match="has no head"):
        graph.build(tiny("vgg11", classes=0), {}, TORCHVISION)
