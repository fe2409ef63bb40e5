"""The int8 graph: its place in the model file, what it computes, and in which numbers."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx.reference import ReferenceEvaluator

from verydeep import modelfile
from verydeep.engines import ENGINES, Engine, installed, processor
from verydeep.errors import LayerError, ModelFileError
from verydeep.graphs import network as graph
from verydeep.graphs.int8 import build, plan, rounded, weight_scales
from verydeep.graphs.writer import Graph
from verydeep.modelfile import Activation, Record
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import CAFFE, TORCHVISION
from verydeep.quantisation.rounding import LIMIT, Tally, round_weights, second_moments, steps

from .tiny import pixels, tiny, weights

GOLDEN = Path(__file__).parent / "golden" / "modelfile_int8.safetensors"
MAKE = runpy.run_path(str(GOLDEN.with_name("modelfile_int8_make.py")))
ENGINES_HERE = [made.name for made in installed() if "int8" in made.precisions]

CASES = [
    ("vgg16", "gap", "max"),
    ("vgg16", "classic", "max"),
    ("vgg11_bn", "classic", "avg"),
    ("vgg16c_bn", "small", "l2"),
    ("vgg11_lrn", "gap", "max"),
]


def stored(net: Network, floats: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Random tensors with 8-bit weights but in `floats`, plain rounding of `tiny.weights`."""
    tensors = dict(weights(net))
    for layer in net.layers:
        if layer.key and layer.name not in floats:
            key = f"{layer.key}.weight"
            weight = tensors.pop(key)
            shape = (-1, *(1 for _ in weight.shape[1:]))
            scale = np.abs(weight).reshape(len(weight), -1).max(1).reshape(shape) / 127
            tensors[f"{key}.q"] = np.rint(weight / scale).astype(np.int8)
            tensors[f"{key}.scale"] = scale.astype(np.float32)
    return tensors


def ranges(net: Network, floats: tuple[str, ...], image: np.ndarray) -> dict[str, Activation]:
    """Each value's own largest number on those pixels as its range's end."""
    places = [name for name in plan(net, floats).places if name != "input"]
    built = graph.build(net, weights(net), TORCHVISION, taps=tuple(places), scores=False)
    found = Engine("onnxruntime", built, threads=1).run(image)
    made = {name: Activation(float(found[name].max()) / 255) for name in places}
    if "input" in plan(net, floats).places:
        made["input"] = Activation(0.0187, 114)
    return made


def int8_file(
    path: Path, net: Network, image: np.ndarray, floats: tuple[str, ...] = ("conv1_1", "fc8")
) -> modelfile.ModelFile:
    record = Record(net, activations=ranges(net, floats, image))
    modelfile.write(path, record, stored(net, floats))
    return modelfile.read(path)


def run(engine: str, built: Graph, image: np.ndarray) -> dict[str, np.ndarray]:
    return Engine(engine, built, precision="int8", threads=1).run(image)


# The model file


def test_golden_bytes_are_what_the_specification_alone_makes() -> None:
    assert GOLDEN.read_bytes() == MAKE["file_bytes"]()


def test_golden_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    model = modelfile.read(GOLDEN)
    assert json.loads(model.record.to_json()) == MAKE["RECORD"]
    modelfile.write(tmp_path / "again", model.record, model.stored)
    assert (tmp_path / "again").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_golden_file_computes_what_the_specification_says(engine: str) -> None:
    model = modelfile.read(GOLDEN)
    for seed in range(3):
        image = pixels(32, 41, 1, channels=1, seed=seed)
        expected = MAKE["scores"](image[0, :, :, 0].tolist())
        assert_allclose(run(engine, build(model), image)["scores"][0], expected, rtol=1e-6)
    rounded_off = Engine("onnxruntime", graph.build(
        model.record.network, model.tensors(), model.record.preprocess), threads=1)  # fmt: skip
    assert np.abs(rounded_off.run(image)["scores"][0] / expected - 1).max() > 1e-3


def test_specification_names_what_the_record_has() -> None:
    text = (GOLDEN.parent.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    section = re.search(r"### int8\n(.*?)\n## ", text, re.DOTALL)
    assert section
    for word in ("activations", "scale", "zero_point", "input", "relu3_2", "lrn1", "avgpool"):
        assert f"`{word}`" in section[1], word


NET = network("vgg11", classes=0, width=1 / 512)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"activations are \{\}; expected a JSON object with one member"),
        ([], r"activations are \[\]; expected a JSON object"),
        (
            {"relu1_2": {"scale": 1, "zero_point": 0}},
            r"'relu1_2', which vgg11 .* did you mean relu",
        ),
        ({"conv1_1": {"scale": 1, "zero_point": 0}}, r"'conv1_1', which vgg11 .* does not round"),
        ({"avgpool": {"scale": 1, "zero_point": 0}}, r"'avgpool', which vgg11 .* does not round"),
        ({"relu1_1": {"scale": 1}}, r"activation 'relu1_1' has no 'zero_point'"),
        ({"relu1_1": 3}, r"activation 'relu1_1' is 3; expected a JSON object"),
        (
            {"relu1_1": {"scale": 1, "zero_point": 0, "zero": 0}},
            r"activation 'relu1_1' has an unknown key 'zero'; did you mean zero_point",
        ),
        (
            {"input": {"scale": 0, "zero_point": 0}},
            r"scale is 0; expected a number from 7\.8886",
        ),
        ({"input": {"scale": -1.0, "zero_point": 0}}, r"scale is -1\.0; expected"),
        ({"input": {"scale": 1e300, "zero_point": 0}}, r"scale is 1e\+300; expected"),
        ({"input": {"scale": True, "zero_point": 0}}, r"scale is True; expected"),
        ({"input": {"scale": "1", "zero_point": 0}}, r"scale is '1'; expected"),
        ({"input": {"scale": 1, "zero_point": 256}}, r"zero_point is 256; expected a whole number"),
        ({"input": {"scale": 1, "zero_point": -1}}, r"zero_point is -1; expected"),
        ({"input": {"scale": 1, "zero_point": 0.5}}, r"zero_point is 0\.5; expected"),
    ],
)
def test_record_refuses_activations(value: Any, message: str) -> None:
    record = json.loads(Record(NET).to_json())
    assert "activations" not in record
    record["activations"] = value
    with pytest.raises(ModelFileError, match=message):
        Record.from_json(json.dumps(record))


def test_record_refuses_activations_that_are_none() -> None:
    with pytest.raises(ModelFileError, match=r"is 1\.0; expected an Activation"):
        Record(NET, activations={"relu1_1": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ModelFileError, match="expected a mapping"):
        Record(NET, activations=[1])  # type: ignore[arg-type]


def test_scales_are_float32_numbers() -> None:
    record = Record(NET, activations={"relu1_1": Activation(0.1)})
    assert record.activations["relu1_1"].scale == float(np.float32(0.1))
    assert Record.from_json(record.to_json()) == record


# Which layers


def test_plan_by_hand() -> None:
    made = plan(network("vgg11"), ("conv1_1", "fc8"))
    assert made.sources == {
        "conv2_1": "relu1_1", "conv3_1": "relu2_1", "conv3_2": "relu3_1", "conv4_1": "relu3_2",
        "conv4_2": "relu4_1", "conv5_1": "relu4_2", "conv5_2": "relu5_1", "fc6": "avgpool",
        "fc7": "relu6",
    }  # fmt: skip
    relus = "relu1_1 relu2_1 relu3_1 relu3_2 relu4_1 relu4_2 relu5_1 relu5_2".split()
    assert made.places == (*relus, "avgpool", "relu6", "relu7")
    pooled = plan(network("vgg11_lrn", head="gap", layers=("relu5_2",), pool="avg"))
    assert pooled.sources["conv1_1"] == "input"
    assert pooled.sources["conv2_1"] == "pool1"
    assert pooled.sources["fc8"] == "avgpool"
    assert {"relu1_1", "pool1", "relu2_1"} <= set(pooled.places)
    assert "lrn1" not in pooled.places
    assert plan(network("vgg11_lrn"), ("conv1_1",)).sources["conv2_1"] == "lrn1"


def test_plan_refuses_what_is_no_layer_with_weights() -> None:
    for name in ("conv9_1", "relu1_1"):
        with pytest.raises(LayerError, match=rf"vgg11 has no layer '{name}' with weights"):
            plan(network("vgg11"), (name,))


# What the graph computes


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize(("name", "head", "pool"), CASES)
def test_engines_agree_with_onnx_own_arithmetic(
    name: str, head: str, pool: str, engine: str, tmp_path: Path
) -> None:
    """The reference of the onnx package computes in numpy, node by node, as the standard says."""
    net = tiny(name, head, pool=pool)
    image = pixels(32, 47, 2)
    built = build(int8_file(tmp_path / "m", net, image))
    inlined = built.inline()
    onnx.checker.check_model(inlined, full_check=True)
    inlined.opset_import[0].version = 21  # the same operations; the reference has none for 17
    expected = ReferenceEvaluator(inlined).run(None, {"pixels": image})[0]
    ours = run(engine, built, image)["scores"]
    exact = graph.build(net, modelfile.read(tmp_path / "m").tensors(), TORCHVISION)
    floats = Engine("onnxruntime", exact, threads=1).run(image)["scores"]
    rounding = np.abs(expected - floats).max()
    assert 0 < rounding < 0.1 * np.abs(floats).max()
    # where two ways of adding up fall on two sides of a half, a value differs by one step; OpenVINO
    # averages in 8 bits, and the reference's own normalisation lies a little off
    share = 0.5 if pool == "max" and "lrn" not in name else 3
    assert np.abs(ours - expected).max() < share * rounding


def optimised(built: Graph, tmp_path: Path) -> Counter[str]:
    """Operations that ONNX Runtime makes of the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = built.inline().SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return Counter(node.op_type for node in nodes)


@pytest.mark.parametrize(("name", "head", "pool"), CASES)
def test_onnxruntime_computes_in_integers(name: str, head: str, pool: str, tmp_path: Path) -> None:
    net = tiny(name, head, pool=pool)
    image = pixels(32, 32, 2)
    made = optimised(build(int8_file(tmp_path / "m", net, image, floats=())), tmp_path)
    kinds = Counter(layer.kind for layer in net.layers if layer.key)
    assert made["QLinearConv"] == kinds["conv"]
    assert made["QGemm"] == kinds["fc"]
    assert made["Gemm"] == 0
    made = optimised(build(int8_file(tmp_path / "m", net, image, ("conv1_1", "fc8"))), tmp_path)
    assert made["QLinearConv"] == kinds["conv"] - 1
    assert made["QGemm"] == kinds["fc"] - 1
    assert made["Gemm"] == 1


def test_openvino_computes_in_integers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    net = tiny("vgg11", "classic", width=1 / 4)  # below that it finds no kernel for some layers
    built = build(int8_file(tmp_path / "m", net, pixels(32, 32)))
    path = tmp_path / "m.onnx"
    onnx.save(built.inline(), path)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    types = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected"):
            types[node.get_friendly_name()] = info["runtimePrecision"].astype(str)
    whole = [kind for kind in types.values() if kind in ("i8", "u8")]
    assert len(types) == 11
    assert len(whole) == 9, types


def test_batch_norm_with_negative_factors(tmp_path: Path) -> None:
    """The factor belongs to the scale; where it is negative, the integers change their sign."""
    net = tiny("vgg11_bn")
    tensors = stored(net, ("fc8",))
    gamma = tensors["features.1.weight"]
    gamma[0], gamma[1] = -gamma[0], 0
    scales = weight_scales(net, tensors)
    assert all((scale > 0).all() for scale in scales.values())
    record = Record(net, activations=ranges(net, ("fc8",), pixels(32, 32)))
    modelfile.write(tmp_path / "m", record, tensors)
    built = build(modelfile.read(tmp_path / "m"))
    q = onnx.numpy_helper.to_array(next(
        t for t in built.inline().graph.initializer if t.name == "conv1_1.weight_q"))  # fmt: skip
    assert_array_equal(q[0], -tensors["features.0.weight.q"][0])
    assert not q[1].any()
    assert_array_equal(q[2:], tensors["features.0.weight.q"][2:])


def test_blue_first_turns_the_integers_too(tmp_path: Path) -> None:
    net = tiny("vgg11")
    tensors = stored(net)
    record = Record(net, CAFFE, activations={"input": Activation(1.0, 128)})
    modelfile.write(tmp_path / "m", record, tensors)
    built = build(modelfile.read(tmp_path / "m"))
    q = next(t for t in built.inline().graph.initializer if t.name == "conv1_1.weight_q")
    assert_array_equal(onnx.numpy_helper.to_array(q), tensors["features.0.weight.q"][:, ::-1])


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_taps_are_the_rounded_values(engine: str, tmp_path: Path) -> None:
    net = tiny("vgg16")
    image = pixels(48, 32)
    model = int8_file(tmp_path / "m", net, image)
    found = run(engine, build(model, taps=("relu2_2", "pool2", "conv3_1")), image)
    scale = model.record.activations["relu2_2"].scale
    numbers = found["relu2_2"] / np.float32(scale)
    assert_allclose(numbers, np.rint(numbers), atol=1e-4)
    assert 200 < numbers.max() <= 255.5
    assert_allclose(
        found["pool2"],
        found["relu2_2"].reshape(2, -1, 12, 2, 8, 2).max((3, 5)),
        rtol=1e-6,
    )
    assert found["scores"].shape == (2, 7)
    assert (found["conv3_1"] < 0).any()


def test_float_pixels(tmp_path: Path) -> None:
    net = tiny("vgg11")
    image = pixels(32, 32)
    model = int8_file(tmp_path / "m", net, image)
    expected = run("onnxruntime", build(model), image)["scores"]
    floats = run("onnxruntime", build(model, pixels="float32"), image.astype(np.float32))["scores"]
    assert_array_equal(floats, expected)


def test_a_float_model_has_no_int8_graph(model: Path) -> None:
    message = r"tiny\.safetensors: it was not quantised, .* `verydeep quantize` makes one$"
    with pytest.raises(ModelFileError, match=message):
        build(modelfile.read(model))


def test_nothing_rounded_is_the_float_graph() -> None:
    net = tiny("vgg11_bn", "classic")
    image = pixels(40, 32)
    built = graph.build(net, weights(net), TORCHVISION)
    expected = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    assert_array_equal(run("onnxruntime", rounded(built, {}, {}), image)["scores"], expected)


# Ranges and weights


def test_tally_against_sorting_all_numbers() -> None:
    draw = np.random.default_rng(0)
    parts = [np.maximum(draw.normal(0, 10.0**p, (2, 3, 5, 7)), 0).astype("f4") for p in (-3, 0, 2)]
    tally = Tally()
    for part in parts:
        tally.add(part)
    numbers = np.sort(np.concatenate([p.reshape(-1) for p in parts]))
    assert tally.largest == pytest.approx(numbers[-1], rel=1 / 256)
    for top in (1.0, 50.0, 400.0):
        step = top / 255
        rounded_off = np.minimum(np.rint(numbers / step), 255) * step
        expected = np.square(rounded_off - numbers).mean()
        assert tally.squared_error(top) == pytest.approx(expected, rel=0.05)
    ends = tally.ends()
    assert ends == tuple(sorted(ends))
    assert ends[-1] == tally.largest
    least = min(tally.squared_error(top) for top in np.geomspace(1, 1000, 200))
    assert min(tally.squared_error(end) for end in ends) < 1.05 * least
    dead = Tally()
    dead.add(np.zeros((1, 2, 3, 4), np.float32))
    assert dead.ends() == (2**-0.25, 1.0)
    channels = np.concatenate([p.transpose(1, 0, 2, 3).reshape(3, -1) for p in parts], axis=1)
    assert_allclose(tally.squares / tally.positions, np.square(channels, dtype="f8").mean(1))


def test_weights_are_rounded_to_the_nearest_and_clipped() -> None:
    weight = np.array([[0.5, -1.26, 2.0, 300.0], [0, 0, 0, 0]], np.float32)
    q = round_weights(weight, np.array([0.5, 1.0]))
    assert q.dtype == np.int8
    assert_array_equal(q, [[1, -3, 4, LIMIT], [0, 0, 0, 0]])


def test_steps_leave_less_error_than_the_largest_weight_does() -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(0, 1, (20, 400))
    weight[:, :40] *= 4
    importance = np.repeat([0.01, 1], [40, 360])  # the large ones are seldom used
    plain = np.abs(weight).max(1) / LIMIT

    def cost(step: np.ndarray) -> np.ndarray:
        return np.square(round_weights(weight, step) * step[:, None] - weight) @ importance

    chosen = steps(weight, importance)
    assert (cost(chosen) <= cost(plain) * (1 + 1e-6)).all()
    assert cost(chosen).sum() < 0.9 * cost(plain).sum()
    assert_array_equal(steps(np.zeros((2, 3)), np.ones(3)), [1, 1])


def test_correlated_inputs_let_roundings_make_up_for_each_other() -> None:
    draw = np.random.default_rng(0)
    inputs = np.maximum(draw.normal(size=(3000, 20)) @ draw.normal(size=(20, 150)), 0)
    weight = draw.normal(size=(10, 150))
    moments = inputs.T @ inputs / len(inputs)
    step = steps(weight, np.diagonal(moments))

    def error(q: np.ndarray) -> float:
        return float(np.linalg.norm(inputs @ (q * step[:, None] - weight).T))

    q = round_weights(weight, step, moments)
    assert np.abs(q).max() <= LIMIT
    assert error(q) < 0.7 * error(round_weights(weight, step))
    assert round_weights(weight, step, np.zeros((150, 150))).dtype == np.int8  # no photo at all


def test_second_moments_are_of_what_a_convolution_reads() -> None:
    """W M W' is the mean of the squared answers, for answers by another implementation."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    maps = [
        draw.normal(size=(2, 3, 6, 7)).astype("f4"),
        draw.normal(size=(1, 3, 4, 9)).astype("f4"),
    ]
    for kernel, padding in ((3, 1), (1, 0)):
        weight = draw.normal(size=(4, 3, kernel, kernel)).astype("f4")
        moments = second_moments(maps, kernel, padding, patches=1000)  # more than there are: all
        answers = [
            torch.nn.functional.conv2d(
                torch.from_numpy(m), torch.from_numpy(weight), padding=padding
            )
            for m in maps
        ]
        flat = torch.cat([a.transpose(0, 1).flatten(1) for a in answers], 1).numpy()
        rows = weight.reshape(4, -1)
        assert_allclose(
            rows @ moments @ rows.T, flat @ flat.T / flat.shape[1], rtol=1e-4, atol=1e-4
        )
    some = second_moments(maps, 3, 1, patches=5)
    assert some.shape == (27, 27)
    assert np.linalg.matrix_rank(some, tol=1e-4) == 15  # five of each of three images
    assert_array_equal(some, second_moments(maps, 3, 1, patches=5))


def test_second_moments_of_what_varies_little_beside_its_mean() -> None:
    """Their part about the mean is what varies, and not what float32 leaves of it."""
    draw = np.random.default_rng(1)
    maps = [(1000 + draw.normal(0, 1, (4, 5, 20, 20))).astype("f4") for _ in range(3)]
    every = np.concatenate(maps).transpose(1, 0, 2, 3).reshape(5, -1).astype(np.float64)
    found = second_moments(maps, 1, 0, patches=400)
    assert_allclose(
        found - np.outer(every.mean(1), every.mean(1)), np.cov(every, bias=True), atol=1e-5
    )


# The processor


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("flags\t\t: fpu avx2 avx_vnni\n", True),
        ("model name : avx512_vnni\nflags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd asimddp\n", True),
        ("Features\t: fp asimd\n", False),
        ("", None),
    ],
)
def test_processor_flags(
    text: str, fast: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.multiplies_fast.__wrapped__() is fast


@pytest.mark.parametrize(
    ("system", "answer", "fast"),
    [("darwin", "1", True), ("darwin", "", False), ("win32", "1", None)],
)
def test_processor_without_a_list_of_flags(
    system: str, answer: str, fast: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(processor.sys, "platform", system)
    monkeypatch.setattr(processor, "_sysctl", lambda name: answer if "DotProd" in name else "")
    assert processor.multiplies_fast.__wrapped__() is fast


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_overflow_is_found_where_it_is(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine gives that adds pairs of products in 16 bits, as x86 without VNNI does."""
    opened = Engine

    def saturating(*arguments: Any, **options: Any) -> Engine:
        real = opened(*arguments, **options)
        inner: Callable[[np.ndarray], dict[str, np.ndarray]] = real._run
        share = (2**15 - 1) / (2 * 255 * 127)
        real._run = lambda image: {name: value * share for name, value in inner(image).items()}
        return real

    assert engine in ENGINES
    honest = processor.overflows.__wrapped__(engine)
    assert isinstance(honest, bool)
    if processor.multiplies_fast():
        assert not honest
        monkeypatch.setattr("verydeep.engines.Engine", saturating)
        assert processor.overflows.__wrapped__(engine)


def test_every_network_has_a_plan() -> None:
    for name in NETWORKS:
        made = plan(network(name))
        assert len(made.sources) == network(name).weight_layers
        assert set(made.sources.values()) <= set(made.places)
