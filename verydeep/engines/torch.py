"""PyTorch: the graph run node by node, on the CPU or a GPU.

torch           channels-last, the layout that its convolutions run fastest in
torch-eager     its default layout: what torchvision's networks do when nobody says otherwise
torch-compiled  torch.compile; needs a C++ compiler and minutes, so that nothing chooses it by itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from .silence import silenced

if TYPE_CHECKING:
    from ..graphs.network import Graph
    from . import Order, Run, Settings, Source


def variants(source: Source, order: Order, batch: int) -> tuple[Settings, ...]:  # noqa: ARG001
    """The settings worth a race: none."""
    return ({},)


def best_device() -> str:
    """cuda or mps where torch finds one, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def prepare(name: str, source: Source, order: Order) -> Run:
    import torch

    if order.device == "cuda" and not torch.cuda.is_available():
        raise EngineError("torch finds no CUDA device here; expected one, or --device cpu")
    if order.device == "mps" and not torch.backends.mps.is_available():
        raise EngineError("torch finds no Apple GPU (mps) here; expected one, or --device cpu")
    layout = torch.contiguous_format if name == "torch-eager" else torch.channels_last
    number = torch.bfloat16 if order.precision == "half" else torch.float32
    try:
        program = _program(source.graph, order.device, number, layout)
    except KeyError as error:
        raise EngineError(f"torch did not take the graph: it has no {error.args[0]}") from error
    compiled: dict[Any, Program] = {}

    def forward(pixels: Any) -> tuple[Any, ...]:
        if name != "torch-compiled":
            return program.run(pixels)
        if pixels.shape not in compiled:
            with silenced():  # compilers talk
                compiled[pixels.shape] = program.compiled(pixels)
                return compiled[pixels.shape].run(pixels)
        return compiled[pixels.shape].run(pixels)

    outputs = source.signature.outputs

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        before = torch.get_num_threads()
        torch.set_num_threads(order.threads)  # it is the whole process's
        try:
            with torch.inference_mode(), _precise(order):
                values = forward(torch.from_numpy(pixels).to(order.device))
                found = [v.to("cpu", torch.float32).contiguous().numpy() for v in values]
        except Exception as error:
            shape = "x".join(map(str, pixels.shape))
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(f"{name} failed on {shape} pixels: {line}") from error
        finally:
            torch.set_num_threads(before)
        return dict(zip(outputs, found, strict=True))

    return run


def _precise(order: Order) -> AbstractContextManager[object]:
    """CUDA's own default multiplies in TF32, which keeps ten bits; that is only for `half`."""
    import torch

    if order.device == "cuda" and order.precision != "half":
        allowed: AbstractContextManager[object] = torch.backends.cudnn.flags(allow_tf32=False)
        return allowed
    return nullcontext()


Value = Any  # a tensor, or a numpy array of a few whole numbers on the way to a mask


@dataclass(frozen=True)
class Step:
    """One node: what it computes, from which values or constants, and the name of what comes out."""

    operation: Callable[..., Value]
    inputs: tuple[str, ...]
    options: Mapping[str, Any]
    output: str


class Program:
    """A graph as steps that torch can walk."""

    def __init__(
        self, steps: Sequence[Step], constants: Mapping[str, Value], outputs: Sequence[str]
    ) -> None:
        self.steps = steps
        self.constants = constants
        self.outputs = tuple(outputs)
        self._last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._walk: Callable[[Any], tuple[Any, ...]] = self._eager

    def run(self, pixels: Any) -> tuple[Any, ...]:
        """The outputs for (batch, height, width, channels) pixels on the program's device."""
        return self._walk(pixels)

    def compiled(self, pixels: Any) -> Program:
        """This program for pixels of that shape alone, compiled; its masks are constants then."""
        import torch

        values: dict[str, Value] = {}
        self._eager(pixels, values)
        masks = {
            name: torch.tensor(value, dtype=torch.float32, device=pixels.device)
            for name, value in values.items()
            if isinstance(value, np.ndarray | np.generic)
        }
        steps = [step for step in self.steps if step.output not in masks]
        constants = {name: v for name, v in self.constants.items() if torch.is_tensor(v)}
        fixed = Program(steps, {**constants, **masks}, self.outputs)
        fixed._walk = torch.compile(fixed._eager, dynamic=False)
        return fixed

    def _eager(self, pixels: Any, kept: dict[str, Value] | None = None) -> tuple[Any, ...]:
        values: dict[str, Value] = {"pixels": pixels}
        for index, step in enumerate(self.steps):
            arguments = [values[i] if i in values else self.constants[i] for i in step.inputs]
            value = values[step.output] = step.operation(*arguments, **step.options)
            if kept is not None:
                kept[step.output] = value
            for name in step.inputs:
                if self._last[name] == index and name not in self.outputs:
                    values.pop(name, None)  # nobody reads it any more
        return tuple(values[name] for name in self.outputs)


def _program(graph: Graph, device: str, number: Any, layout: Any) -> Program:
    """number: the dtype in which convolutions and FC layers compute. layout: of their maps."""
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
        constants[tensor.name] = value.to(memory_format=layout) if value.ndim == 4 else value
    operations = _operations(number, layout, device)
    steps = []
    for node in nodes:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Split":  # a step a part, since a step has one output
            for part, output in enumerate(node.output):
                told = {**options, "parts": len(node.output), "part": part}
                steps.append(Step(operations["Split"], tuple(node.input), told, output))
            continue
        steps.append(Step(operations[node.op_type], tuple(node.input), options, node.output[0]))
    return Program(steps, constants, [output.name for output in graph.model.graph.output])


def _operations(number: Any, layout: Any, device: str) -> dict[str, Callable[..., Value]]:
    """ONNX's operations, as far as `verydeep.graphs` writes them, by torch's.

    Shapes, and the masks of the adaptive pool that are made from them, are numpy's until they meet a
    tensor. Convolutions and FC layers compute in `number`; what leads up to the first one, in float32.
    """
    import torch
    from torch.nn import functional as F

    def matmul(a: Value, b: Value) -> Any:
        made = [
            torch.tensor(x, dtype=y.dtype, device=device) if isinstance(x, np.ndarray) else x
            for x, y in ((a, b), (b, a))
        ]
        return made[0] @ made[1]

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
        return (a * b).contiguous(memory_format=layout) if a.ndim == 4 else a * b

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
        "Softmax": lambda x, axis: F.softmax(x, axis),
        "Split": lambda x, axis, parts, part: x.chunk(parts, axis)[part],
        "Sqrt": torch.sqrt,
        "Sub": lambda a, b: a - b,
        "Transpose": transpose,
    }
