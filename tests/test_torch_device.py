"""The torch engine on a CUDA device, which the processor plays: recorded graphs, copies, dtypes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verydeep.engines import ENGINES, TOLERANCES, Engine, Kind, relative_error
from verydeep.engines import race as races
from verydeep.engines import torch as ours
from verydeep.engines.race import race
from verydeep.graphs import network as graph
from verydeep.graphs.writer import Graph
from verydeep.losses import LPIPS
from verydeep.preprocess import TORCHVISION

from .test_gpu import captures
from .test_threads import at_once
from .tiny import pixels, tiny, weights

FUSED = {"captured": 1, "fused": 1}
# what makes a tensor of the host's numbers, or hands some to the host: no graph can hold either
HOSTS = {"lift_fresh", "_local_scalar_dense", "nonzero", "is_nonzero"}


class Recording(TorchDispatchMode):
    """Notes each operation with its tensors, as a CUDA graph does, to do it again in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in HOSTS:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        found = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Played:
    """What was asked of the device that the processor plays."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Recording, object, object]] = []
        self.replays = self.pinned = 0
        self.unknown = False  # to cuDNN, a convolution with its ReLU
        self.convolved: list[
            tuple[torch.dtype, bool, bool, bool]
        ] = []  # tries, TF32, with its ReLU

    @contextmanager
    def graph(
        self, recording: Recording, pool: object, stream: object, *, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.recorded.append((recording, pool, stream))
        with recording:
            yield


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """torch.cuda is there, and everything of it is the processor's."""
    it, to, tensor = Played(), Tensor.to, torch.tensor

    def pinned(value: Tensor) -> Tensor:
        it.pinned += 1
        return value.clone()

    def moved(value: Tensor, *given: Any, **told: Any) -> Tensor:
        given = tuple("cpu" if one == "cuda" else one for one in given)
        if told.pop("non_blocking", False):
            assert it.pinned, "such a copy from ordinary memory waits all the same"
        return to(value, *given, **told)

    def made(values: Any, *, device: Any = None, **told: Any) -> Tensor:
        return tensor(values, device="cpu" if device == "cuda" else device, **told)

    def convolution(
        x: Tensor, weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, tries: bool,
        deterministic: bool, tf32: bool,
    ) -> Tensor:  # fmt: skip
        assert deterministic is torch.are_deterministic_algorithms_enabled()
        it.convolved.append((x.dtype, tries, tf32, False))
        return torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)

    def rectified(
        x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:  # fmt: skip
        if it.unknown:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        it.convolved.append((x.dtype, torch.backends.cudnn.benchmark, False, True))
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    class CUDAGraph(Recording):
        def replay(self) -> None:
            it.replays += 1
            super().replay()

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "is_available": lambda: True, "get_device_capability": lambda: (8, 0), "graph": it.graph,
        "Stream": lambda: SimpleNamespace(wait_stream=lambda _: None), "CUDAGraph": CUDAGraph,
        "current_stream": lambda: stream, "stream": lambda _: nullcontext(),
        "graph_pool_handle": object,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "to", moved)
    monkeypatch.setattr(Tensor, "cpu", Tensor.clone)  # from a device it is a copy
    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch, "cudnn_convolution", convolution)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", rectified)
    return it


def made(name: str = "vgg11", head: str = "classic", **choices: object) -> Graph:
    net = tiny(name, head, **choices)
    return graph.build(net, weights(net), TORCHVISION, taps=("relu1_1", "pool5"))


def reference(built: Graph, image: np.ndarray) -> dict[str, np.ndarray]:
    return Engine("onnxruntime", built, threads=1).run(image)


def near(engine: Engine, built: Graph, image: np.ndarray) -> None:
    found = engine.run(image)
    for name, theirs in reference(built, image).items():
        assert relative_error(found[name], theirs) <= TOLERANCES[engine.precision], name


@pytest.mark.parametrize("precision", ["exact", "half"])
@pytest.mark.parametrize("name", ["vgg11", "vgg11_lrn", "vgg11_bn"])
def test_a_replay_is_of_its_own_pixels(played: Played, name: str, precision: str) -> None:
    built = made(name)
    for settings in ours.device_variants("cuda", precision)[1:]:
        played.replays, played.recorded = 0, []
        engine = Engine("torch", built, precision=precision, device="cuda", settings=settings)
        for seed, size in enumerate([(64, 97), (224, 224), (64, 97), (64, 97), (224, 224)]):
            near(engine, built, pixels(*size, 2, seed=seed))
        assert (len(played.recorded), played.replays) == (2, 5)
        (_, *one), (_, *other) = played.recorded
        assert one == other  # memory and stream of all graphs


def test_threads_of_other_precisions_do_not_undo_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The switches are the whole process's: inside TF32 is off, cuDNN on, all else the program's."""
    cudnn = torch.backends.cudnn
    for name in ("allow_tf32", "benchmark", "deterministic"):
        monkeypatch.setattr(cudnn, name, True)

    def switches() -> tuple[bool, ...]:
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    inside: dict[str, set[tuple[bool, ...]]] = {"exact": set(), "fast": set(), "half": set()}

    def task(number: int) -> None:
        precision = ("exact", "fast", "half")[number % 3]
        for _ in range(50):
            with ours.precise("cuda", precision):
                inside[precision].add(switches())
                time.sleep(1e-4)
                inside[precision].add(switches())

    at_once(task)
    assert inside["exact"] == inside["fast"] == {(True, True, True, False)}
    assert all(one[:3] == (True, True, True) for one in inside["half"])
    assert switches() == (True, True, True, True)


@pytest.mark.usefixtures("played")
def test_what_was_given_stays() -> None:
    """A replay writes where the one before wrote; who has that answer keeps it."""
    built = made()
    engine = Engine("torch", built, device="cuda", settings={"captured": 1})
    first, image = engine.run(pixels(64, 64)), pixels(64, 64, seed=1)
    kept = {name: value.copy() for name, value in first.items()}
    second = engine.run(image)
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
        assert not np.array_equal(second[name], value)


def test_few_shapes_are_recorded(played: Played) -> None:
    built = made()
    engine = Engine("torch", built, device="cuda", settings={"captured": 1})
    for side in (32, 40, 48, 56, 64, 32, 64):
        near(engine, built, pixels(side, 48))
    assert len(played.recorded) == ours.CAPTURED_SHAPES
    assert played.replays == ours.CAPTURED_SHAPES + 1
    assert len(captures(engine)) == ours.CAPTURED_SHAPES
    assert all(captures(engine))


@pytest.mark.usefixtures("played")
def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand so on")

    monkeypatch.setattr(torch.cuda, "graph", lambda graph, *_, **__: refuse(graph))
    built = made()
    engine = Engine("torch", built, device="cuda", settings={"captured": 1})
    torch.backends.cudnn.benchmark = False
    with caplog.at_level("INFO", "verydeep"):
        for seed in range(3):
            near(engine, built, pixels(64, 64, seed=seed))
    assert not torch.backends.cudnn.benchmark
    (told,) = [record.message for record in caplog.records]
    why = "CUDA out of memory. Tried to allocate 2 GiB"
    assert told == f"torch captured no graph of 2x64x64x3 pixels: {why}"


def test_cudnn_tries_algorithms_only_before_a_graph(played: Played) -> None:
    """And asks for it by the call: what tries waits for the device, which no other thread's may then."""
    built = made()
    Engine("torch", built, device="cuda").run(pixels(64, 64))
    once = len(played.convolved)
    assert once == 8
    assert not any(tries for _, tries, *_ in played.convolved)
    engine = Engine("torch", built, device="cuda", settings={"captured": 1})
    engine.run(pixels(64, 64))
    tried = [tries for _, tries, *_ in played.convolved[once:]]
    assert tried == [True] * 8 * ours.WARMING + [False] * 8
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("name", ["vgg11", "vgg11_lrn", "vgg11_bn"])
def test_a_relu_that_alone_reads_a_convolution_is_fused_with_it(played: Played, name: str) -> None:
    net = tiny(name, "classic")
    built = graph.build(net, weights(net), TORCHVISION, taps=("conv2_1", "relu3_1", "pool5"))
    engine = Engine("torch", built, device="cuda", settings={"captured": 1, "fused": 1})
    near(engine, built, pixels(64, 97))
    alone = sum(not fused for *_, fused in played.convolved)
    # of conv2_1 somebody reads what comes before the ReLU
    assert (len(played.convolved), alone) == (8 * (ours.WARMING + 1), ours.WARMING + 1)
    assert not any(tf32 for _, _, tf32, _ in played.convolved)


@pytest.mark.parametrize("why", ["unknown", "benchmark", "deterministic", "off"])
def test_what_is_not_fused_runs_apart(
    played: Played, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """What cuDNN has no kernel for; and where the program asks for what such a call cannot be told."""
    cudnn = torch.backends.cudnn
    if why == "unknown":
        played.unknown = True
    elif why == "benchmark":
        monkeypatch.setattr(cudnn, "benchmark", True)
    elif why == "off":
        monkeypatch.setattr(cudnn, "enabled", False)
    else:
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    built = made()
    engine = Engine(
        "torch", built, precision="half", device="cuda", settings={"captured": 1, "fused": 1}
    )
    near(engine, built, pixels(64, 97))
    assert not any(fused for *_, fused in played.convolved)
    assert bool(played.convolved) is (why != "off")


def test_the_host_waits_for_the_answer_alone(played: Played) -> None:
    """Pixels come from pinned memory, and what the adaptive pool averages by is there already."""
    built = made()
    engine = Engine("torch", built, device="cuda")
    engine.run(pixels(224, 224))
    engine.run(pixels(64, 97))
    assert played.pinned == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", refused)
        assert engine.run(pixels(64, 97))["scores"].shape == (2, 7)


def refused(*_: object, **__: object) -> None:
    raise AssertionError("a copy to the device while it computes")


@pytest.mark.parametrize(
    ("device", "capability", "hip", "macos", "expected"),
    [
        ("cpu", (7, 5), None, True, torch.bfloat16),
        ("cuda", (7, 5), None, True, torch.float16),
        ("cuda", (8, 0), None, True, torch.bfloat16),
        ("cuda", (9, 0), None, True, torch.bfloat16),
        ("cuda", (7, 5), "6.2", True, torch.bfloat16),
        ("mps", (0, 0), None, False, torch.float16),
        ("mps", (0, 0), None, True, torch.bfloat16),
    ],
)
def test_half_is_what_the_device_computes(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], hip: str | None,
    macos: bool, expected: torch.dtype,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: macos)
    assert ours.short(device) == expected


def test_half_on_an_older_card(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    built = made()
    near(Engine("torch", built, precision="half", device="cuda"), built, pixels(64, 64))
    dtypes = {dtype for dtype, *_ in played.convolved}
    assert dtypes == {torch.float16}


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "exact", [{}]),
        ("mps", "exact", [{}]),
        ("cuda", "exact", [{}, {"captured": 1}, {"captured": 1, "planes": 1}]),
        ("cuda", "fast", [{}, {"captured": 1}, {"captured": 1, "planes": 1}]),
        ("cuda", "half", [{}, {"captured": 1}, FUSED]),
    ],
)
def test_what_is_raced(device: str, precision: str, expected: list[dict[str, int]]) -> None:
    source = Engine("onnxruntime", made(), threads=1).source
    assert [*ENGINES["torch"].variants(source, precision, 1, 8, device)] == expected
    assert [*ENGINES["onnxruntime"].variants(source, precision, 1, 8, "cuda")] == [{}]


@pytest.mark.usefixtures("played")
def test_a_race_on_the_device() -> None:
    """All of torch's settings answer, each is judged, and the winner is one of them."""
    source = Engine("onnxruntime", made(), threads=1).source
    winner, standings = race(
        source, pixels(64, 64, 4), [ENGINES["torch"]], precision="exact", threads=1, devices=("cuda",),
        seconds=0.1,
    )  # fmt: skip
    assert winner.device == "cuda"
    assert {} in [row.settings for row in standings]
    assert all(row.error <= TOLERANCES["exact"] for row in standings)


def test_a_race_times_no_capture(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes a second, once: replays would look slow."""
    timed, captured = races.timed, []

    def watched(engine: Engine, images: np.ndarray) -> float:
        before = len(played.recorded)
        seconds = timed(engine, images)
        captured.append(len(played.recorded) - before)
        return seconds

    monkeypatch.setattr(races, "timed", watched)
    source = Engine("onnxruntime", made(), threads=1).source
    race(
        source, pixels(64, 64, 8), [ENGINES["torch"]], precision="exact", threads=1, devices=("cuda",),
        seconds=0.1,
    )  # fmt: skip
    assert played.recorded
    assert not any(captured)


@pytest.mark.usefixtures("played")
def test_a_graph_that_answers_wrongly_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    replay: Callable[..., None] = Recording.replay

    def wrong(recording: Recording) -> None:
        replay(recording)
        for value in tree_leaves(recording.done[-1][3]):
            value.mul_(1.001)

    monkeypatch.setattr(Recording, "replay", wrong)
    source = Engine("onnxruntime", made(), threads=1).source
    winner, standings = race(
        source, pixels(64, 64, 4), [ENGINES["torch"]], precision="exact", threads=1, devices=("cuda",),
        seconds=0.1,
    )  # fmt: skip
    assert winner.settings == {}
    assert [row.settings for row in standings] == [{}]


def test_a_kind_without_settings_for_devices() -> None:
    kind: Kind = ENGINES["mnn"]
    if not kind.available:
        pytest.skip("MNN is not installed")
    source = Engine("onnxruntime", made(), threads=1).source
    assert kind.variants(source, "exact", 1, 1, "cuda") == ({},)


class NoDoubles(TorchFunctionMode):
    """A default device that has no float64, as a Mac's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        if func is torch.tensor and told.get("dtype") == torch.float64 and "device" not in told:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return func(*args, **told)


def test_a_loss_is_made_where_the_default_device_has_no_float64() -> None:
    with NoDoubles():
        loss = LPIPS(net="vgg", pnet_rand=True)
        with pytest.raises(TypeError, match="MPS"):
            torch.tensor(1.0, dtype=torch.float64)
    expected = torch.tensor([-0.030, -0.088, -0.188])  # lpips' own
    torch.testing.assert_close(loss.scaling_layer.shift.flatten(), expected)
