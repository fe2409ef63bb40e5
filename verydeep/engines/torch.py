"""PyTorch: the graph run node by node, on the CPU or a GPU, in channels-last, its quickest layout.

Each engine computes in a thread of its own. OpenMP, which torch computes with, keeps its threads and their
number for each thread that calls: so the caller's number is not touched, and after a fork a new thread has
new ones, where the calling thread would wait for those that it lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from .forks import Turns, awaited

if TYPE_CHECKING:
    from ..graphs.writer import Graph
    from . import Engine, Run

_SETTINGS = Turns()  # of torch that are the whole process's


def devices() -> tuple[str, ...]:
    """Those that torch finds here, the quickest first."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return (*(name for name, found in there.items() if found), "cpu")


def prepare(engine: Engine) -> Run:
    import torch

    device, outputs = engine.device, engine.source.outputs
    number = torch.bfloat16 if engine.precision == "half" else torch.float32
    thread = worker(engine.threads)
    stopped = Event()
    try:
        program = thread.submit(_program, engine.source.graph, device, number, stopped).result()
    except KeyError as error:
        raise EngineError(f"torch did not take the graph: it has no {error.args[0]}") from error

    def compute(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode(), precise(device, engine.precision):
            values = program(torch.from_numpy(pixels).to(device))
            # a copy, since an output may be a weight or the pixels themselves
            return [np.array(v.to("cpu", torch.float32).contiguous().numpy()) for v in values]

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


Value = Any  # a tensor, or a numpy array of a few whole numbers on the way to a mask


def _program(graph: Graph, device: str, number: Any, stopped: Event) -> Callable[[Any], list[Any]]:
    """The graph as a function of (batch, height, width, channels) pixels on the device: its outputs.

    number: the dtype in which convolutions and FC layers compute. stopped: set where nobody wants them.
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
        constants[tensor.name] = value.to(memory_format=torch.channels_last) if four else value
    operations = _operations(number, device)
    steps = []  # what computes, from which values or constants, with which options, to which name
    for node in nodes:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Split":  # a step a part, since a step has one output
            for part, output in enumerate(node.output):
                told = {**options, "parts": len(node.output), "part": part}
                steps.append((operations["Split"], node.input, told, output))
            continue
        steps.append((operations[node.op_type], node.input, options, node.output[0]))
    outputs = [output.name for output in graph.model.graph.output]
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


def _operations(number: Any, device: str) -> dict[str, Callable[..., Value]]:
    """ONNX's operations, as far as `verydeep.graphs` writes them, by torch's.

    Shapes, and the masks of the adaptive pool that are made from them, are numpy's until they meet a
    tensor. Convolutions and FC layers compute in `number`; what leads up to the first one, in float32.
    """
    import torch
    from torch.nn import functional as F

    def matmul(a: Value, b: Value) -> Any:
        if isinstance(a, np.ndarray):
            a = torch.tensor(a, dtype=b.dtype, device=device)
        if isinstance(b, np.ndarray):
            b = torch.tensor(b, dtype=a.dtype, device=device)
        return a @ b

    def padded(value: Any, pads: list[int]) -> tuple[Any, int]:
        if len(set(pads)) == 1:
            return value, pads[0]
        top, left, bottom, right = pads
        return F.pad(value, (left, right, top, bottom)), 0

    def conv(
        x: Any, weight: Any, bias: Any = None, *, strides: list[int], pads: list[int],
        kernel_shape: list[int], group: int = 1,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        x, padding = padded(x, pads)
        return F.conv2d(x.to(number), weight, bias, strides, padding, 1, group)

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
        return (a * b).contiguous(memory_format=torch.channels_last) if a.ndim == 4 else a * b

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
