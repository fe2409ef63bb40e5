"""PyTorch: the graph run node by node, on the CPU or a GPU, in channels-last, its quickest layout.

Each engine computes in a thread of its own. OpenMP, which torch computes with, keeps its threads and their
number for each thread that calls: so the caller's number is not touched, and after a fork a new thread has
new ones, where the calling thread would wait for those that it lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError, log
from .forks import Turns, awaited

if TYPE_CHECKING:
    from ..graphs.writer import Graph
    from . import Engine, Run, Settings

Value = Any  # a tensor, or a numpy array of a few whole numbers on the way to a mask
Program = Callable[[Value], list[Value]]  # from pixels on the device to outputs there

_SETTINGS = Turns()  # of torch that are the whole process's
MOST_NUMBERS = 1 << 31  # of a map, which not every cuDNN can count; torch's own choice knows which
CAPTURED_SHAPES = 3  # of an engine: each keeps its input and outputs on the device
WARMING = (
    3  # runs before a capture, in which libraries choose their algorithms and take their memory
)


def devices() -> tuple[str, ...]:
    """Those that torch finds here, the quickest first."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return (*(name for name, found in there.items() if found), "cpu")


def device_variants(device: str, precision: str) -> tuple[Settings, ...]:
    """Beside launch by launch, on CUDA: captured; in float32 with channels as planes; in `half` with each
    convolution and its ReLU fused, which gained 1.4x on an H200, and in float32 nothing.

    Winograd's shorter multiplications in float32 are, in cuDNN, of planes. TF32 is none of them: with
    VGG-16's weights it is 1e-3 away in scores and 2.6e-3 in pool5, which `fast` does not allow.
    """
    import torch

    if device != "cuda":
        return ({},)
    more = "fused" if precision == "half" else "planes"
    if more == "fused" and torch.version.hip:
        return ({}, {"captured": 1})
    return ({}, {"captured": 1}, {"captured": 1, more: 1})


def prepare(engine: Engine) -> Run:
    import torch

    device, outputs, settings = engine.device, engine.source.outputs, engine.settings
    number = short(device) if engine.precision == "half" else torch.float32
    format_ = torch.contiguous_format if settings.get("planes") else torch.channels_last
    thread = worker(engine.threads)
    stopped, tried = Event(), Event()
    try:
        program: Program = thread.submit(
            _program, engine.source.graph, device, number, format_, stopped, tried,
            fused=bool(settings.get("fused")),
        ).result()  # fmt: skip
    except KeyError as error:
        raise EngineError(f"torch did not take the graph: it has no {error.args[0]}") from error
    captured = _Captured(program, tried) if settings.get("captured") else None

    def compute(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode(), precise(device, engine.precision):
            given = torch.from_numpy(pixels)
            if device == "cpu":
                # a copy, since an output may be a weight or the pixels themselves
                return [np.array(v.float().contiguous().numpy()) for v in program(given)]
            if device == "cuda":
                given = given.pin_memory().to(device, non_blocking=True)
            values = (captured or program)(given.to(device))
            return [v.float().contiguous().cpu().numpy() for v in values]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        stopped.clear()
        values = awaited(thread.submit(compute, pixels), stopped.set)
        return dict(zip(outputs, values, strict=True))

    return run


def worker(threads: int | None) -> ThreadPoolExecutor:
    """One thread, in which torch computes with so many; with its own choice where that is None."""
    import torch

    thread = ThreadPoolExecutor(1, "verydeep-torch")
    with _SETTINGS.lock:
        before = torch.get_num_threads()
        thread.submit(torch.set_num_threads, threads or before).result()
        torch.set_num_threads(before)  # threads to come get what was set last, here or there
    return thread


def short(device: str) -> Any:
    """The dtype of `half`: bfloat16, or float16 on a GPU that computes only in that."""
    import torch

    wide = device == "cpu"
    if device == "cuda":  # AMD's have it
        wide = bool(torch.version.hip) or torch.cuda.get_device_capability() >= (8, 0)
    elif device == "mps":
        wide = torch.backends.mps.is_macos_or_newer(14, 0)
    return torch.bfloat16 if wide else torch.float16


def repeatable() -> bool:
    """Whether the program wants the same numbers each time."""
    import torch

    asked = torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    return bool(asked)


def in_one_pass(
    x: Value, weight: Value, bias: Value, stride: Any, padding: Any, groups: int
) -> Value | None:
    """A convolution and its ReLU by cuDNN; None where it knows no such kernel for these shapes.

    It asks for no deterministic algorithm, and may not be called for MOST_NUMBERS of them.
    """
    import torch

    try:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, (1, 1), groups)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None


class _Captured:
    """A program that is recorded once for each of a few shapes, as a CUDA graph, and then replayed.

    A replay hands all its launches over at once, where for a small batch handing over takes longer than
    computing. Before it is recorded cuDNN tries which algorithms are the quickest. Shapes that are too
    many, and what cannot be recorded, run as they are. What lies outside the graphs' memory, as weights,
    the program keeps. Called in one thread, by turns. tried: set while algorithms are tried.
    """

    def __init__(self, program: Program, tried: Event) -> None:
        self.program, self._tried = program, tried
        self._kept: dict[tuple[int, ...], tuple[Any, Value, list[Value]] | None] = {}
        self._place: tuple[Any, Any] | None = None  # stream and memory, which all graphs share

    def __call__(self, pixels: Value) -> list[Value]:
        shape = tuple(pixels.shape)
        if shape not in self._kept and len(self._kept) < CAPTURED_SHAPES:
            try:
                self._kept[shape] = self._recorded(pixels)
            except RuntimeError as error:
                first = str(error).partition("\n")[0]
                log.info(f"torch captured no graph of {'x'.join(map(str, shape))} pixels: {first}")
                self._kept[shape] = None
        kept = self._kept.get(shape)
        if kept is None:
            return self.program(pixels)
        graph, given, values = kept
        given.copy_(pixels)
        graph.replay()
        return values

    def _recorded(self, pixels: Value) -> tuple[Any, Value, list[Value]]:
        """The graph, the pixels that it reads, and what it writes."""
        import torch
        from torch import cuda

        with _SETTINGS.lock:  # torch records one at a time
            if self._place is None:
                self._place = cuda.Stream(), cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
            stream, pool = self._place
            given, graph, cudnn = pixels.clone(), cuda.CUDAGraph(), torch.backends.cudnn
            stream.wait_stream(cuda.current_stream())
            self._tried.set()
            before, cudnn.benchmark = cudnn.benchmark, cudnn.benchmark or bool(torch.version.hip)
            try:
                with cuda.stream(stream):
                    for _ in range(WARMING):
                        self.program(given)
            finally:
                cudnn.benchmark = before
                self._tried.clear()
            # other threads may do what they like meanwhile, but wait for the whole device
            with cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                values = [v.float().contiguous() for v in self.program(given)]
            return graph, given, values


@contextmanager
def precise(device: str, precision: str) -> Iterator[None]:
    """CUDA multiplies in TF32, which keeps ten bits, in convolutions unless it is told not to, in products
    where somebody told it to; that is only for `half`.
    """
    import torch

    if device != "cuda" or precision == "half":
        yield
        return
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    switches: tuple[tuple[Callable[[], Any], Callable[[Any], None], object, Any], ...] = (
        (lambda: cudnn.allow_tf32, partial(setattr, cudnn, "allow_tf32"), False,
         getattr(cudnn, "conv", None)),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", products),
    )  # fmt: skip
    with _SETTINGS.lock, ExitStack() as restoring:
        for read, write, exact, newer in switches:
            with suppress(RuntimeError):  # torch says no more what was set by its newer name
                before = read()
                if before != exact:
                    write(exact)
                    restoring.callback(write, before)
            if getattr(newer, "fp32_precision", None) == "tf32":  # since torch 2.9
                newer.fp32_precision = "ieee"
                restoring.callback(setattr, newer, "fp32_precision", "tf32")
        yield


def _program(
    graph: Graph, device: str, number: Any, format_: Any, stopped: Event, tried: Event, *, fused: bool
) -> Program:  # fmt: skip
    """The graph as a function of (batch, height, width, channels) pixels on the device: its outputs.

    number: the dtype in which convolutions and FC layers compute. format_: torch's, of maps and kernels.
    stopped: set where nobody wants them. tried: set while convolutions try their algorithms. fused:
    a convolution and the ReLU that alone reads it are one step.
    """
    import onnx
    import torch

    nodes = graph.model.graph.node
    multiplied = {i for node in nodes if node.op_type in ("Conv", "Gemm") for i in node.input}
    constants: dict[str, Value] = {}
    for tensor in graph.model.graph.initializer:
        big = graph.weights.get(tensor.name)
        array = onnx.numpy_helper.to_array(tensor) if big is None else big
        if array.dtype.kind != "f":
            constants[tensor.name] = array
            continue
        # a copy, since the array may be read-only
        dtype = number if tensor.name in multiplied else torch.float32
        value = torch.tensor(array, dtype=dtype, device=device)
        four = value.ndim == 4
        constants[tensor.name] = value.to(memory_format=format_) if four else value
    operations = _operations(number, device, format_, tried)
    outputs = [output.name for output in graph.model.graph.output]
    read = Counter([*outputs, *(name for node in nodes for name in node.input)])
    relus = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
    joined = {
        node.output[0]: relus[node.output[0]] for node in nodes
        if fused and node.op_type == "Conv" and node.output[0] in relus and read[node.output[0]] == 1
    }  # fmt: skip
    steps = []  # what computes, from which values or constants, with which options, to which name
    for node in nodes:
        if node.op_type == "Relu" and node.input[0] in joined:
            continue
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Split":  # a step a part, since a step has one output
            for part, output in enumerate(node.output):
                told = {**options, "parts": len(node.output), "part": part}
                steps.append((operations["Split"], node.input, told, output))
            continue
        name = node.output[0]
        kind = "Conv, Relu" if name in joined else node.op_type
        steps.append((operations[kind], node.input, options, joined.get(name, name)))
    last = {name: i for i, (_, inputs, *_) in enumerate(steps) for name in inputs}

    def program(pixels: Any) -> list[Any]:
        values: dict[str, Value] = {"pixels": pixels}
        for index, (operation, inputs, options, output) in enumerate(steps):
            if stopped.is_set():
                raise CancelledError
            arguments = [values[i] if i in values else constants[i] for i in inputs]
            values[output] = operation(*arguments, **options)
            for name in inputs:
                if last[name] == index and name not in outputs:
                    values.pop(name, None)  # nobody reads it any more
        return [values[name] for name in outputs]

    return program


def _operations(
    number: Any, device: str, format_: Any, tried: Event
) -> dict[str, Callable[..., Value]]:
    """ONNX's operations, as far as `verydeep.graphs` writes them, by torch's.

    Shapes, and the masks of the adaptive pool that are made from them, are numpy's until they meet a
    tensor. Convolutions and FC layers compute in `number`; what leads up to the first one, in float32.
    tried: set while cuDNN tries which algorithms are the quickest.
    """
    import torch
    from torch.nn import functional as F

    # a copy to a GPU waits for it, and graphs of it read what they read when they were recorded; there is
    # one for each height or width of maps
    masks: dict[tuple[object, ...], Any] = {}
    cudnn = torch.backends.cudnn
    direct = device == "cuda" and not torch.version.hip and cudnn.is_available()  # type: ignore[no-untyped-call]

    def mask(values: np.ndarray, dtype: Any) -> Any:
        key = (values.shape, values.tobytes(), dtype)
        if key not in masks:
            masks[key] = torch.tensor(values, dtype=dtype, device=device)
        return masks[key]

    def matmul(a: Value, b: Value) -> Any:
        held, other = (a, b) if isinstance(a, np.ndarray) else (b, a)
        if isinstance(held, np.ndarray) and np.array_equal(held, np.eye(len(held))):
            return other  # 7x7 cells of 7x7
        a = mask(a, b.dtype) if isinstance(a, np.ndarray) else a
        return a @ (mask(b, a.dtype) if isinstance(b, np.ndarray) else b)

    def padded(value: Any, pads: list[int]) -> tuple[Any, int]:
        if len(set(pads)) == 1:
            return value, pads[0]
        top, left, bottom, right = pads
        return F.pad(value, (left, right, top, bottom)), 0

    def by_call(x: Any, weight: Any) -> bool:
        """Whether cuDNN is called past torch's choice."""
        numbers = x.shape[0] * x.shape[2] * x.shape[3] * len(weight)
        return bool(direct and cudnn.enabled and numbers < MOST_NUMBERS)

    def conv(
        x: Any, weight: Any, bias: Any = None, *, strides: list[int], pads: list[int],
        kernel_shape: list[int], group: int = 1,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        x, padding = padded(x, pads)
        x = x.to(number)
        if not by_call(x, weight):
            return F.conv2d(x, weight, bias, strides, padding, 1, group)
        # trying is asked for here alone: its switch is the whole process's, and whatever tries waits for
        # the whole device, which it may not while another thread captures
        x = torch.cudnn_convolution(
            x, weight, (padding, padding), strides, (1, 1), group, tried.is_set() or cudnn.benchmark,
            repeatable(), number is not torch.float32,
        )  # fmt: skip
        return x if bias is None else x.add_(bias[:, None, None])

    def rectified(
        x: Any, weight: Any, bias: Any = None, *, strides: list[int], pads: list[int], **told: Any
    ) -> Any:
        # such a call tries where the program's switch is on, and asks for no deterministic algorithm
        if by_call(x, weight) and not (cudnn.benchmark or repeatable()):
            around, padding = padded(x, pads)
            both, groups = (padding, padding), told.get("group", 1)
            found = in_one_pass(around.to(number), weight, bias, strides, both, groups)
            if found is not None:
                return found
        return conv(x, weight, bias, strides=strides, pads=pads, **told).relu_()

    def max_pool(x: Any, *, kernel_shape: list[int], strides: list[int], pads: list[int]) -> Any:
        return F.max_pool2d(x, kernel_shape, strides, pads[:2])

    def average_pool(
        x: Any, *, kernel_shape: list[int], strides: list[int], pads: list[int]
    ) -> Any:
        return F.avg_pool2d(x, kernel_shape, strides, pads[:2], count_include_pad=False)

    def lrn(x: Any, *, size: int, alpha: float, beta: float, bias: float) -> Any:
        return F.local_response_norm(x.to(torch.float32), size, alpha, beta, bias)

    def gemm(x: Any, weight: Any, bias: Any, *, transB: int) -> Any:  # noqa: N803  # ONNX's name
        return F.linear(x.to(number), weight if transB else weight.T, bias)

    def reshape(x: Any, shape: np.ndarray) -> Any:
        """ONNX's: 0 keeps a side, -1 takes what is left."""
        return x.reshape([x.shape[i] if side == 0 else int(side) for i, side in enumerate(shape)])

    def transpose(x: Value, *, perm: list[int]) -> Value:
        return np.transpose(x, perm) if isinstance(x, np.ndarray) else x.permute(perm)

    def cast(x: Value, *, to: int) -> Value:  # noqa: ARG001  # the graph casts to floats only
        if isinstance(x, np.ndarray):
            return x.astype(np.float32)
        return x.to(torch.float32)

    def multiply(a: Value, b: Value) -> Value:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a * b
        # the first product is of the pixels: here the layout of all that follows is decided
        return (a * b).contiguous(memory_format=format_) if a.ndim == 4 else a * b

    def whole(divide: Callable[..., Any]) -> Callable[[Value, Value], Value]:
        def apply(a: Value, b: Value) -> Value:
            return divide(a, b) if np.asarray(a).dtype.kind == "i" else np.divide(a, b)

        return apply

    return {
        "Add": lambda a, b: a + b,
        "And": lambda a, b: a & b,
        "AveragePool": average_pool,
        "Cast": cast,
        "Concat": lambda *parts, axis: torch.cat(parts, axis),
        "Conv": conv,
        "Conv, Relu": rectified,
        "Div": whole(np.floor_divide),
        "Flatten": lambda x, axis: x.flatten(axis),
        "Gather": lambda x, index: x[index],
        "Gemm": gemm,
        "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
        "GlobalMaxPool": lambda x: x.amax((2, 3), keepdim=True),
        "GreaterOrEqual": lambda a, b: a >= b,
        "Identity": lambda x: x,
        "LRN": lrn,
        "Less": lambda a, b: a < b,
        "MatMul": matmul,
        "MaxPool": max_pool,
        "Mul": multiply,
        "Pow": lambda a, b: a**b,
        "Range": lambda start, stop, step: np.arange(start, stop, step),
        "Reciprocal": lambda x: 1 / x,
        "ReduceL2": lambda x, axes, keepdims: x.float().norm(dim=axes, keepdim=bool(keepdims)),
        "ReduceMean": lambda x, axes, keepdims: x.float().mean(axes, keepdim=bool(keepdims)),
        "Reshape": reshape,
        "Relu": F.relu,
        "Shape": lambda x: np.array(x.shape, np.int64),
        "Sigmoid": torch.sigmoid,
        "Softmax": lambda x, axis: F.softmax(x, axis),
        "Split": lambda x, axis, parts, part: x.chunk(parts, axis)[part],
        "Sqrt": torch.sqrt,
        "Sub": lambda a, b: a - b,
        "Transpose": transpose,
    }
