"""Every engine against the reference, and one clear line for everything that cannot be run."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from verydeep import modelfile, nets
from verydeep.engines import (
    ENGINES,
    TOLERANCES,
    Engine,
    installed,
    relative_error,
)
from verydeep.engines import onnxruntime as ours
from verydeep.errors import EngineError, ImageError
from verydeep.exporting import synthetic_photos
from verydeep.files.cache import Cache
from verydeep.graphs import Source, source_of
from verydeep.graphs import network as graph
from verydeep.graphs.writer import Graph
from verydeep.nets import NETWORKS, network
from verydeep.preprocess import TORCHVISION, Preprocess
from verydeep.published import find_model

from .tiny import model_file, photo, pixels, tiny, weights

HEADS = ("classic", "gap", "small")
SIZES = ((224, 224), (97, 130))
HERE = [kind.name for kind in installed()]
PROMISES = [(name, precision) for name in HERE for precision in TOLERANCES
            if precision in ENGINES[name].precisions]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Graph:
    net = tiny(head="small")
    return graph.build(net, weights(net), TORCHVISION, taps=("relu1_1",))


@pytest.mark.parametrize("name", ENGINES)
def test_declared_engines_are_installed(name: str) -> None:
    """The `dev` extra brings every engine: tests that ran without one would prove nothing."""
    assert ENGINES[name].available, f"tests need {name}: {ENGINES[name].install}"
    assert ENGINES[name].version


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NETWORKS)
def test_parity(name: str, head: str) -> None:
    """Each engine, in each precision that it offers, keeps its promise on each network and head."""
    net = tiny(name, head)
    built = graph.build(net, weights(net), TORCHVISION, taps=("relu2_1",))
    source = Source.of(built)
    images = {size: pixels(*size) for size in SIZES}
    judge = Engine("onnxruntime", source, threads=1)
    reference = {size: judge.run(image) for size, image in images.items()}
    for engine, precision in PROMISES:
        ours = Engine(
            engine,
            source,
            precision=precision,
            threads=1,
            device="cpu",
        )
        assert (ours.name, ours.precision) == (engine, precision)
        for size, image in images.items():
            outputs = ours.run(image)
            assert list(outputs) == ["relu2_1", "scores"]
            for output, value in outputs.items():
                theirs = reference[size][output]
                assert (value.shape, value.dtype) == (theirs.shape, np.float32)
                assert np.abs(theirs).max() > 1e-2  # anything agrees with zeros
                error = relative_error(value, theirs, scores=output == "scores")
                assert error <= TOLERANCES[precision], (engine, precision, size, output)


@pytest.mark.parametrize("pool", nets.POOLS)
@pytest.mark.parametrize("name", HERE)
def test_every_tap(name: str, pool: str) -> None:
    net = tiny("vgg11_lrn", "classic", pool=pool)
    built = graph.build(net, weights(net), TORCHVISION, taps=net.taps)
    image = pixels(64, 97, 3)
    theirs = Engine("onnxruntime", built, threads=1).run(image)
    ours = Engine(name, built, precision="fast", threads=1, device="cpu").run(image)
    assert list(ours) == [*net.taps, "scores"]
    for tap in net.taps:
        assert relative_error(ours[tap], theirs[tap], scores=False) <= 1e-5, tap


@pytest.mark.parametrize("name", HERE)
def test_full_width(name: str) -> None:
    """At full width Winograd and long sums show what they cost."""
    net = network("vgg16", head="gap", layers=("relu4_3", "relu5_3"), classes=10)
    built = graph.build(net, weights(net), TORCHVISION)
    image = pixels(96, 64, count=1)
    theirs = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    ours = Engine(name, built, precision="fast", threads=1, device="cpu")
    assert relative_error(ours.run(image)["scores"], theirs) <= TOLERANCES["fast"]


@pytest.mark.parametrize("names", [["mnn"], HERE], ids=["mnn", "all"])
def test_no_engine_changes_another_one_s_answers(names: list[str]) -> None:
    """Whichever precision was opened or run before, or runs beside it: the same bits at every size.

    MNN's choice of tiles is the whole process's when a module first runs, whoever it was told by.
    """
    net = network("vgg11", width=1 / 4, head="gap", layers=("relu5_2",), classes=7)
    source = Source.of(graph.build(net, weights(net), TORCHVISION, taps=("relu3_2",)))
    images = [pixels(*size, 1) for size in ((64, 64), (32, 96), (128, 80), (64, 64))]
    mine = [promise for promise in PROMISES if promise[0] in names]
    bits: dict[tuple[object, ...], bytes] = {}

    def opened(promise: tuple[str, str]) -> Engine:
        name, precision = promise
        return Engine(name, source, precision=precision, threads=1, device="cpu")

    def answer(one: Engine, at: int) -> None:
        value = one.run(images[at])["relu3_2"].tobytes()
        assert bits.setdefault((one.name, one.precision, images[at].shape), value) == value, one

    for order in itertools.permutations(mine) if len(names) == 1 else (mine, mine[::-1]):
        each = []
        for promise in order:  # each runs before the next one is opened
            each.append(opened(promise))
            answer(each[-1], 0)
        for at, run in itertools.product(range(4), (each, each[::-1])):
            for one in run:
                answer(one, at)
        each = [opened(promise) for promise in order]  # all are open before the first one runs
        with ThreadPoolExecutor(4) as pool:
            for at in range(4):
                list(pool.map(answer, each * 2, [at] * len(each) * 2))
    size = images[0].shape
    assert bits["mnn", "exact", size] != bits["mnn", "fast", size]  # so that a mix would be seen


def test_mnn_s_tiles_are_nobody_else_s() -> None:
    """A program's own use of MNN, or the check of an export, meets MNN's default after our `exact`."""
    import MNN.expr
    import MNN.nn

    net = network("vgg11", width=1 / 4, head="gap", layers=("relu5_2",), classes=7)
    built = graph.build(net, weights(net), TORCHVISION)
    image, file = pixels(64, 64, 1), Cache().folder

    def theirs() -> bytes:
        (entry,) = file.glob("mnn-*/graph.mnn")
        told = {"backend": "CPU", "numThread": 1, "precision": "high"}
        manager = MNN.nn.create_runtime_manager((told,))
        module = MNN.nn.load_module_from_file(
            str(entry), ["pixels"], ["scores"], runtime_manager=manager
        )
        exact.run(image)
        given = MNN.expr.const(image, list(image.shape), MNN.expr.NCHW, MNN.expr.uint8)
        (value,) = module.forward([given])
        return bytes(np.array(MNN.expr.convert(value, MNN.expr.NCHW).read()).tobytes())

    exact = Engine("mnn", built, precision="exact", threads=1)
    fast = Engine("mnn", built, precision="fast", threads=1).run(image)["scores"].tobytes()
    assert theirs() == fast != exact.run(image)["scores"].tobytes()


def test_mnn_s_converter_leaves_the_working_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes weights where it runs, under one name: two in one folder would read each other's."""
    monkeypatch.chdir(tmp_path)
    another = tmp_path / ".__convert_external_data.bin"
    another.write_bytes(b"another's weights")
    net = tiny(head="classic")
    Engine("mnn", graph.build(net, weights(net), TORCHVISION), threads=1)
    assert another.read_bytes() == b"another's weights"


@pytest.mark.parametrize("name", HERE)
def test_protocol(name: str, built: Graph) -> None:
    engine = Engine(name, built, precision="fast", threads=2, device="cpu")
    assert (engine.name, engine.precision, engine.device) == (name, "fast", "cpu")
    outputs = engine.run(pixels(32, 40, 3))
    assert {k: (v.shape, v.dtype.name) for k, v in outputs.items()} == {
        "relu1_1": ((3, 4, 32, 40), "float32"),
        "scores": ((3, 7), "float32"),
    }
    kept = {k: v.copy() for k, v in outputs.items()}
    alone = engine.run(pixels(32, 40, 3)[1:2])  # another batch, which must not write over the first
    np.testing.assert_array_equal(outputs["scores"], kept["scores"])
    np.testing.assert_allclose(alone["scores"], outputs["scores"][1:2], rtol=1e-4)
    mirrored = pixels(32, 40, 3)[:, :, ::-1]  # a view, not in C order
    np.testing.assert_allclose(
        engine.run(mirrored)["scores"], engine.run(mirrored.copy())["scores"], rtol=1e-4
    )


@pytest.mark.parametrize("name", HERE)
def test_float_pixels(name: str) -> None:
    net = tiny(head="small")
    built = graph.build(net, weights(net), TORCHVISION, pixels="float32")
    image = pixels(32, 40).astype(np.float32) + np.float32(0.45)
    theirs = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    engine = Engine(name, built, precision="fast", threads=1, device="cpu")
    assert relative_error(engine.run(image)["scores"], theirs) <= 1e-5
    floor = engine.run(np.floor(image))["scores"]
    assert relative_error(floor, theirs) > 1e-5  # the fractions were not lost
    image[1, 3, 3, 0] = np.nan
    with pytest.raises(ImageError, match=r"not finite .* in image 1 of the batch"):
        engine.run(image)
    image[0, 0, 0, 0] = np.inf
    with pytest.raises(ImageError, match="in image 0 of the batch and 1 more"):
        engine.run(image)


def test_other_channel_counts() -> None:
    net = tiny("vgg11", "small", in_channels=1)
    record = Preprocess(channel_order="L", mean=(0.5,), std=(0.25,))
    built = graph.build(net, weights(net), record)
    image = pixels(40, 32, channels=1)
    theirs = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    for name in HERE:
        engine = Engine(name, built, precision="fast", threads=1, device="cpu")
        assert relative_error(engine.run(image)["scores"], theirs) <= 1e-5, name


def test_streams_share_a_batch(built: Graph) -> None:
    image = pixels(32, 40, 5)
    alone = Engine("openvino", built, threads=2).run(image)
    shared = Engine("openvino", built, threads=2, settings={"streams": 2})
    for count in (5, 1, 2):
        ours = shared.run(image[:count])
        for name in ("relu1_1", "scores"):
            np.testing.assert_allclose(ours[name], alone[name][:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_ncnn_is_exact_on_the_built_in_weights(several: bool) -> None:
    """Winograd's tiles of 4x4, real weights: 2e-6 were seen. Soft-max and sigmoid keep the scores whole."""
    model = modelfile.read(find_model("builtin"))
    taps = (*(f"relu{block}_1" for block in range(1, 6)), "prob")
    built = graph.build(
        model.record.network, model.tensors(), model.record.preprocess, taps=taps, several=several
    )
    image = synthetic_photos(224, 224)
    theirs = Engine("onnxruntime", built, threads=1).run(image)
    for settings in ({}, {"streams": 2}):
        ours = Engine("ncnn", built, precision="exact", threads=2, settings=settings).run(image)
        for name, value in theirs.items():
            error = relative_error(ours[name], value, scores=name == "scores")
            assert error <= TOLERANCES["exact"], name


def test_ncnn_gives_an_image_the_same_bits_however_it_comes(built: Graph) -> None:
    """Alone or in a batch, in one thread or several, from any thread, beside any other."""
    images = pixels(40, 33, 6)
    whole = Engine("ncnn", built, threads=1).run(images)
    shared = Engine("ncnn", built, threads=2, settings={"streams": 2})
    with ThreadPoolExecutor(4) as pool:
        for start, ours in enumerate(pool.map(shared.run, [images[n:] for n in range(6)] * 3)):
            for name, value in whole.items():
                np.testing.assert_array_equal(ours[name], value[start % 6 :])


def test_ncnn_reads_the_fc_layers_once_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of VGG-16 are 495 MB: for each image by itself they took a third of all time."""
    from verydeep.engines import ncnn

    net = tiny(head="classic")
    built = graph.build(net, weights(net), TORCHVISION, taps=("relu6", "avgpool", "prob"))
    images = pixels(40, 56, 5)
    theirs = Engine("onnxruntime", built, threads=1).run(images)
    runs: list[list[str]] = []
    real = ncnn.extracted

    def counted(net: Any, given: Any, names: Any, **told: Any) -> Any:
        runs.append(list(names))
        return real(net, given, names, **told)

    monkeypatch.setattr(ncnn, "extracted", counted)
    for settings in ({}, {"streams": 2}):
        runs.clear()
        ours = Engine("ncnn", built, threads=2, settings=settings).run(images)
        assert sum("scores" in names for names in runs) == 1
        assert sum("avgpool" in names for names in runs) == 5
        for name, value in theirs.items():
            assert relative_error(ours[name], value, scores=name == "scores") < 1e-5, name


def test_memory_is_moved_into_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was mapped since, with what is in it; nothing where Linux is told to, or there is none."""
    from verydeep.engines import pages

    before = pages.mapped()
    if not before or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 1):
        pytest.skip("no large pages to ask for here")
    old = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = pages.mapped()
    new = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(new), 4096):
        new[page] = page >> 12 & 255

    def large() -> int:
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return int(rollup.partition("AnonHugePages:")[2].split()[0]) >> 10

    was = large()
    with monkeypatch.context() as patch:
        patch.setattr(pages, "SETTING", Path("/nowhere"))
        assert pages.mapped() == {}
        pages.enlarge(before)
        assert large() == was
    pages.enlarge(before)
    assert large() >= was + 32
    assert all(new[page] == page >> 12 & 255 for page in range(0, len(new), 4096))
    old.close()
    new.close()


def test_what_ncnn_is_told_of_spinning_is_told_to_it_alone() -> None:
    """torch has an OpenMP too, which reads the same when it is loaded."""
    code = (
        "import os, verydeep.engines.ncnn\n"
        "assert os.environ.get('GOMP_SPINCOUNT') == os.environ.get('EXPECTED')\n"
    )
    bare = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for told in ({}, {"GOMP_SPINCOUNT": "7", "EXPECTED": "7"}):
        subprocess.run([sys.executable, "-c", code], check=True, env={**bare, **told})


def test_ncnn_is_called_by_one_thread_where_it_takes_all_cores(
    built: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP lets its threads sleep where several callers' are more than the cores."""
    from verydeep.engines import ncnn

    callers: set[int] = set()
    real = ncnn.extracted

    def noted(*given: Any, **choices: Any) -> Any:
        callers.add(threading.get_ident())
        return real(*given, **choices)

    monkeypatch.setattr(ncnn, "extracted", noted)
    engines = [Engine("ncnn", built, threads=2) for _ in range(3)]
    for engine in engines:
        engine.run(pixels(32, 32))
    assert len(callers) == 1


def test_ncnn_does_not_keep_a_graph_that_it_had_built(tmp_path: Path) -> None:
    """It has weights of its own: beside them, the graph's would be there twice."""
    source = source_of(modelfile.read(model_file(tmp_path / "m.safetensors")), "uint8")
    Engine("ncnn", source, threads=1).run(pixels(32, 32))
    assert "graph" not in vars(source)


GROWTH = """
import sys
import threading
from pathlib import Path
import numpy as np
import verydeep
predictor = verydeep.load(sys.argv[1], engine=sys.argv[2], threads=1)
sizes = [(height, width) for height in range(32, 64, 2) for width in range(32, 64, 2)]
np.random.default_rng(0).shuffle(sizes)
for count, size in enumerate(sizes[:160]):
    predictor.features(np.zeros((*size, 3), np.uint8), "relu5_2", "avg", size="own")
    if count in (60, 159):
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("RssAnon:")[2].split()[0]) / 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux tells it")
@pytest.mark.parametrize("name", [n for n in ("onnxruntime", "openvino", "ncnn") if n in HERE])
def test_images_of_many_sizes_take_no_more_memory(name: str, tmp_path: Path) -> None:
    """OpenVINO keeps what it prepared for each size, unless told: 35 MB of these, 395 of a whole VGG-16."""
    net = network("vgg11", width=1 / 4, head="gap", layers=("relu5_2",), classes=7)
    words = [sys.executable, "-c", GROWTH, str(model_file(tmp_path / "m", net)), name]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    first, last = map(float, done.stdout.split())
    assert last - first < 15  # MB


def test_fc_weights_in_16_bits() -> None:
    """Within `fast`, and it shows: the weights really are kept in fewer bits."""
    net = tiny("vgg11", "classic")
    built = graph.build(net, weights(net), TORCHVISION)
    image = pixels(64, 64)
    theirs = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    engine = Engine("openvino", built, precision="fast", threads=1, settings={"fc": "f16"})
    assert 1e-5 < relative_error(engine.run(image)["scores"], theirs) <= TOLERANCES["fast"]


def test_cuda_where_there_is_one(built: Graph) -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match=r"torch finds no CUDA device here; .* --device cpu"):
            Engine("torch", built, device="cuda")
        pytest.skip("no CUDA device")
    image = pixels(32, 40)
    theirs = Engine("onnxruntime", built, threads=1).run(image)["scores"]
    for precision in TOLERANCES:
        ours = Engine("torch", built, precision=precision, device="cuda").run(image)["scores"]
        assert relative_error(ours, theirs) <= TOLERANCES[precision]


TOLD = (
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "cudnn.allow_tf32 = False",
    "torch.backends.fp32_precision = 'tf32'",
    "cudnn.fp32_precision = 'tf32'",
    "cudnn.conv.fp32_precision = 'ieee'",
    "products.fp32_precision = 'tf32'",
)
TF32 = """
import os, sys, torch
from verydeep.engines.torch import precise
cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
def settings():
    newer = [o.fp32_precision for o in (cudnn.conv, cudnn.rnn, products)]
    return [*newer, cudnn.benchmark, cudnn.deterministic]
def look(told):
    cudnn.benchmark = cudnn.deterministic = True
    exec(told)
    before = settings()
    with precise("cuda", "exact"):
        conv, _, matmul, *others = settings()
        assert "tf32" not in (conv, matmul), (told, conv, matmul)
        assert others == [True, True], told
    assert settings() == before, (told, settings())
for told in sys.argv[1:]:
    child = os.fork()  # each has a torch of its own that nobody has told anything
    if not child:
        status = 1
        try:
            look(told)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert not os.waitpid(child, 0)[1], told
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_exact_whatever_the_program_told_torch_of_tf32() -> None:
    """torch has two names for it and reads neither where the other was written; what was set is kept."""
    import torch

    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has one name for it")
    done = subprocess.run([sys.executable, "-c", TF32, *TOLD], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_onnxruntime_does_not_fall_back_to_the_cpu(
    built: Graph, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A build with CUDA on a machine without its libraries computes on the CPU and says nothing."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.raises(EngineError, match="onnxruntime finds no CUDA device here"):
        Engine("onnxruntime", built, device="cuda")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setitem(ours.PROVIDERS, "cuda", ["CPUExecutionProvider"])  # what becomes of it then
    looked = []

    def preload_dlls() -> None:  # which prints what it does not find
        looked.append(print("Failed to load libcudnn.so.9"))

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    told = (
        r"cannot use CUDA here .*\(CUDA 13.0, cuDNN 9\); use --device cpu, or install them with: pip "
        r'install "onnxruntime-gpu\[cuda,cudnn\]"$'
    )
    with pytest.raises(EngineError, match=told):
        Engine("onnxruntime", built, device="cuda")
    assert looked == [None]
    Engine("onnxruntime", built, device="cpu")
    assert looked == [None]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", HERE)
def test_bad_pixels(name: str, built: Graph) -> None:
    engine = Engine(name, built, precision="fast", threads=1, device="cpu")
    none = engine.run(pixels(32, 40, 1)[:0])
    assert {k: v.shape for k, v in none.items()} == {"relu1_1": (0, 4, 32, 40), "scores": (0, 7)}
    with pytest.raises(
        ImageError, match=r"31x40 pixels .* too small: this graph needs at least 32"
    ):
        engine.run(pixels(31, 40))
    with pytest.raises(ImageError, match="are float32; this graph was built for uint8"):
        engine.run(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ImageError, match=r"shape 1x3x32x32; expected \(batch, height, width, 3\)"):
        engine.run(np.zeros((1, 3, 32, 32), np.uint8))


def test_refusals(built: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EngineError, match=r"engine 'onyx' is unknown; did you mean mnn|onnxruntime"
    ):
        Engine("onyx", built)
    with pytest.raises(
        EngineError, match="mnn computes in precision exact or fast or half; 'int8' was asked"
    ):
        Engine("mnn", built, precision="int8")
    with pytest.raises(EngineError, match="precision 'fats' is unknown; did you mean fast"):
        Engine("onnxruntime", built, precision="fats")
    with pytest.raises(EngineError, match="openvino runs on cpu; 'cuda' was asked for"):
        Engine("openvino", built, device="cuda")
    with pytest.raises(EngineError, match=r"device 'gpu' is unknown; .*cpu"):
        Engine("torch", built, device="gpu")
    with pytest.raises(EngineError, match="threads is 0; expected a whole number, 1 or more"):
        Engine("onnxruntime", built, threads=0)
    with pytest.raises(EngineError, match="not a graph that verydeep built"):
        Engine("onnxruntime", Graph(onnx.ModelProto(), {}))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in ENGINES:
        assert not ENGINES[name].available
        with pytest.raises(
            EngineError, match=f"{name} is not installed; install it with: pip install"
        ):
            Engine(name, built, precision="fast")
    assert ENGINES["mnn"].install == 'pip install "verydeep[mnn]"'


@pytest.mark.parametrize("name", HERE)
def test_a_graph_that_an_engine_does_not_take(name: str, built: Graph) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(built.model)
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Twist"
    with pytest.raises(EngineError, match=f"{name.split('-')[0]} did not take the graph: .+"):
        Engine(name, Graph(model, built.weights), precision="fast")
    assert Cache().entries() == []


@pytest.mark.parametrize("name", HERE)
def test_silence(name: str, tmp_path: Path) -> None:
    """Nothing that an engine's own code prints reaches a terminal."""
    code = (
        "from tests.test_engines import *\n"
        "net = tiny(head='small'); built = graph.build(net, weights(net), TORCHVISION)\n"
        f"Engine({name!r}, built, precision='fast', threads=1, device='cpu').run(pixels(32, 40))"
    )
    environment = {**os.environ, "VERYDEEP_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_openvino_does_not_report_to_its_vendor() -> None:
    """Its conversion tools, which send an event when imported, are not imported; asked for, they come."""
    code = (
        "import sys\nfrom verydeep.engines.openvino import computes_bf16\ncomputes_bf16()\n"
        "assert not [m for m in sys.modules if 'telemetry' in m or m == 'openvino.tools.ovc']\n"
        "import openvino, openvino.tools\nassert not hasattr(openvino, 'no_such_name')\n"
        "import importlib.util\nassert importlib.util.find_spec('openvino.tools.ovc')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the home folder is said in another way there")
def test_no_engine_leaves_a_number_of_this_machine(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 and OpenVINO's tools write one into the home folder when they are imported."""
    model_file(tmp_path / "m.safetensors")
    photo(tmp_path / "a.png")
    (tmp_path / "home").mkdir()
    code = (
        "import verydeep\n"
        "for name in ('onnxruntime', 'openvino', 'ncnn', 'mnn'):\n"
        "    verydeep.load('m.safetensors', engine=name)('a.png')\n"
        "verydeep.export('m.safetensors', 'onnx', 'm.onnx')\n"
        "verydeep.export('m.safetensors', 'openvino', 'm.xml')\n"
        "verydeep.bench('m.safetensors', rounds=1, batches=[1], precisions='exact')\n"
    )
    wanted = {
        k: v for k, v in os.environ.items() if "TELEMETRY" not in k and not k.startswith("XDG_")
    }
    environment = {
        **wanted, "HOME": str(tmp_path / "home"), "VERYDEEP_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [str(p) for p in (tmp_path / "home").rglob("*") if p.is_file()] == []


def test_relative_error() -> None:
    a, b = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
    assert relative_error(a, b) == 0.5
    assert relative_error(a, b, scores=False) == pytest.approx(2 / 17**0.5)
    assert np.isnan(relative_error(np.array([np.nan, 1]), b[0]))
    assert np.isnan(relative_error(a, b[:, :1]))
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf
