"""ncnn on the CPU: convolutions by Winograd's tiles of 4x4 outputs, which round well enough for `exact`.

The graph is written in ncnn's own text, in memory. ncnn copies each weight once, out of the mapped model
file where that has it in float32, and keeps it in the order in which it multiplies.

ncnn computes one image at a time. Those of a batch go one after another through all threads, or as many at
once as there are threads through one each. Python's lock is released meanwhile, and each image has an
extractor of its own, so that calls need not take turns. OpenMP, which ncnn computes with, keeps threads for
each thread that calls: so these are threads of ours, which a forked child makes anew, and where ncnn takes
all cores for an image it is one thread that calls, for all models.

FC layers are a network of their own, which takes a whole batch as the columns of one matrix: VGG-16's have
495 MB of weights, and to read those takes nearly all of their time.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from .forks import awaited, silenced
from .pages import enlarge, mapped

if TYPE_CHECKING:
    from ..graphs import Source
    from ..graphs.writer import Graph
    from . import Engine, Run, Settings

# Read once, as ncnn brings an OpenMP of its own. Threads that wait for each other after a layer would spin
# for milliseconds, and keep the cores from whoever decodes: on a busy machine an image took six times as
# long. Without spinning at all each layer waits for a thread to wake, a tenth and more of a small image.
SPINNING, SPINS = "GOMP_SPINCOUNT", "3000"  # some tens of microseconds
TOLD = os.environ.get(SPINNING)
os.environ[SPINNING] = TOLD or SPINS
try:
    import ncnn
finally:
    if TOLD is None:  # others have an OpenMP, too
        del os.environ[SPINNING]

MAGIC = "7767517"  # the first line of its text
MASK = "mask"  # beside the pixels
# its own names of what it is told not to do
HALVES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
LARGEST_TILES = "use_winograd63_convolution"  # for a few channels; they round too much for `exact`
NO_WINOGRAD, FEW = 64, 4  # a layer's bit that says so; channels that a convolution reads, at most
FLOAT32 = np.zeros(1, np.int32)  # stands before weights that might be of another type
SUMMED = 256  # products of an FC layer that are summed one after another, at least
PIECES = 16  # sums of an FC layer, at most
REGISTER = 16  # numbers, of the widest processor

_CALLERS: dict[int, ThreadPoolExecutor] = {}  # by process, since threads do not live through a fork

# ONNX's operations that are a layer of ncnn's, with its parameters: its docs/developer-guide/operators.md.
# Axes do not count the batch, and are of channels, height and width. A number is a float where it has a
# point, and has at most 15 characters.
LAYERS = {
    "Add": "BinaryOp 0=0",
    "Concat": "Concat 0=0",
    "Div": "BinaryOp 0=3",
    "Flatten": "Flatten",
    "GlobalMaxPool": "Pooling 0=0 4=1",
    "Identity": "Noop",
    "MatMul": "MatMul",
    "Mul": "BinaryOp 0=2",
    "Reciprocal": "UnaryOp 0=15",
    "Relu": "ReLU",
    "Sigmoid": "Sigmoid",
    "Softmax": "Softmax 0=0 1=1",
    "Sqrt": "UnaryOp 0=5",
    "Sub": "BinaryOp 0=1",
}
BY_CHANNEL = {"Add": "Bias", "Mul": "Scale"}  # of a constant, one number a channel
POOLS = {"MaxPool": 0, "AveragePool": 1}
REDUCTIONS = {  # over one axis
    "ReduceMean": "Reduction 0=3 1=0 -23303=1,{} 4=1 5=1",
    "ReduceL2": "Reduction 0=8 1=0 -23303=1,{} 4=1 5=1",
}


def variants(
    source: Source, precision: str, threads: int, batch: int  # noqa: ARG001
) -> tuple[Settings, ...]:  # fmt: skip
    """All threads for each image; for a batch also as many images at once, with a thread each."""
    return tuple({"streams": n} for n in dict.fromkeys((min(threads, batch), 1)))


def prepare(engine: Engine) -> Run:
    source, streams = engine.source, int(engine.settings.get("streams", 1))
    # what is built here is not kept, since ncnn has its own weights then
    graph = vars(source).get("graph") or source.build()
    text, head = Text(graph, head=False), Text(graph, head=True)
    del graph
    whole = one_caller()
    ours = whole if streams == 1 else ThreadPoolExecutor(streams, "verydeep-ncnn")
    threads = max(1, engine.threads // streams)
    before, largest = mapped(), 0  # of images so far
    with silenced():
        net = ours.submit(opened, text, threads, engine.precision).result()
        if head.inputs:
            fc = whole.submit(opened, head, engine.threads, engine.precision).result()
    enlarge(before)

    def image(pixels: np.ndarray, index: int, outputs: dict[str, np.ndarray], count: int) -> None:
        maps = pixels.transpose(2, 0, 1)
        given: dict[str, Any] = {}
        if text.masked:
            maps, given[MASK] = maps[:-1], mat(maps[-1:])
        # what is computed for each image, then what compares them
        lanes = [{**given, "pixels": mat(lane)} for lane in np.split(maps, text.lanes)]
        for lane, values in enumerate(lanes):
            for name, value in extracted(net, values, text.parts, as_it_is=True):
                given[text.parts[name][lane]] = value
        for name, value in extracted(net, given if text.parts else lanes[0], text.outputs):
            array = np.asarray(value)
            if name not in outputs:  # the first of two threads makes it
                outputs.setdefault(name, np.empty((count, *array.shape), np.float32))
            outputs[name][index] = array

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal largest
        outputs: dict[str, np.ndarray] = {}
        stopped, left = Event(), iter(range(len(pixels)))

        def some() -> None:
            for index in left:  # each is had by one thread
                if stopped.is_set():
                    raise CancelledError
                image(pixels[index], index, outputs, len(pixels))

        def together() -> None:
            columns = {name: mat(outputs[name].T) for name in head.inputs}
            for name, value in extracted(fc, columns, head.outputs):
                outputs[name] = np.ascontiguousarray(np.asarray(value).T)

        running = [ours.submit(some) for _ in range(min(streams, len(pixels)))]
        try:
            for one in running:
                awaited(one, stopped.set)
        except BaseException:
            stopped.set()
            wait(running)
            raise
        if head.inputs:
            awaited(whole.submit(together), stopped.set)
        if pixels[0].size > largest:  # ncnn keeps what its maps took for those of the next image
            largest = pixels[0].size
            enlarge(before)
        return {name: outputs[name] for name in source.outputs}

    return run


def one_caller() -> ThreadPoolExecutor:
    """The thread that calls ncnn where that computes with all of its threads: one in a process.

    OpenMP keeps threads for each that calls it. Where these are more than the cores it lets them sleep
    instead of spin: with two callers an image took a tenth longer.
    """
    return _CALLERS.setdefault(os.getpid(), ThreadPoolExecutor(1, "verydeep-ncnn"))


def opened(text: Text, threads: int, precision: str) -> Any:
    """ncnn's network of it, computing in float32; EngineError where ncnn refuses it."""

    class Reader(ncnn.DataReader):  # type: ignore[misc]  # ncnn has no types
        """Hands the weights over one after another, as ncnn asks for them."""

        def read(self, place: object, size: int) -> int:
            given = np.ascontiguousarray(next(weights))
            if given.nbytes != size:
                return 0
            ctypes.memmove(address(ctypes.py_object(place), None), given.ctypes.data, size)
            return size

    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    weights = iter(text.weights)
    net = ncnn.Net()
    net.opt.num_threads = threads
    off = (*HALVES, "use_bf16_storage")
    for name in (*off, LARGEST_TILES) if precision == "exact" else off:
        setattr(net.opt, name, False)
    if net.load_param_mem(text.text) or net.load_model(Reader()):
        raise EngineError("ncnn did not take the graph: it cannot read its layers or weights")
    text.weights.clear()
    return net


def mat(array: np.ndarray) -> Any:
    """ncnn's own float32 copy of an array of three dimensions."""
    value = ncnn.Mat(array.shape[::-1])
    np.asarray(value)[...] = array
    return value


def extracted(
    net: Any, given: Mapping[str, Any], names: Iterable[str], *, as_it_is: bool = False
) -> Iterator[tuple[str, Any]]:
    """Those values, by name, of one image; in the order in which they are computed.

    as_it_is: for ncnn alone, its channels side by side as it computes with them.
    """
    extractor = net.create_extractor()
    for name, value in given.items():
        extractor.input(name, value)
    for name in names:
        value = ncnn.Mat()
        if status := extractor.extract(name, value, int(as_it_is)):
            raise EngineError(f"{name} has status {status}, which may mean too little memory")
        yield name, value


class Text:
    """A graph as ncnn reads it.

    text: its layers, one a line. weights: the arrays that these ask for, in their order. outputs: names, in
    the order in which they are computed.

    ncnn knows no batch. Where images of one group are compared, `lanes` of them lie side by side in the
    pixels' channels, and `parts` has those values that each image is computed up to: their names for the
    images of the group, which then go in together. masked: whether one more channel is a mask of all.

    head: False for what is computed image by image, up to what FC layers read; True for these alone, of a
    batch: each value is a matrix with a column for each image. None for all, of one image. inputs: names.
    """

    def __init__(self, graph: Graph, *, head: bool | None = None) -> None:
        import onnx

        model = graph.model.graph
        self.weights: list[np.ndarray] = []
        self.parts: dict[str, list[str]] = {}
        self.lanes, self.masked = 1, any(node.op_type == "Slice" for node in model.node)
        self.head = head
        self._lines: list[tuple[str, list[str], list[str], str]] = []
        self._constants = {
            tensor.name: graph.weights[tensor.name]
            if tensor.name in graph.weights
            else onnx.numpy_helper.to_array(tensor)
            for tensor in model.initializer
        }
        self._blobs: dict[str, str] = {}  # ncnn's name of what an operation leaves as it is
        self._sizes: set[str] = set()  # what is computed from shapes alone
        self._channels: dict[str, int] = {}
        fc: set[str] = set()  # values of FC layers, and all that is computed of them
        for node in model.node:
            if node.op_type == "Gemm" or fc.intersection(node.input):
                fc.update(node.output)
        wanted = {output.name for output in model.output}
        nodes = list(model.node)
        self.inputs = ["pixels", *([MASK] if self.masked else [])]
        if head is not None:
            first = [node for node in nodes if fc.intersection(node.output)]
            read = {name for node in first for name in node.input} - fc - self._constants.keys()
            nodes = first if head else [node for node in nodes if node not in first]
            wanted = wanted & fc if head else wanted - fc | read
            self.inputs = sorted(read) if head else self.inputs
        for name in self.inputs:
            self._line("Input", [], [name])
        for node in nodes:
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            try:
                self._node(node.op_type, list(node.input), list(node.output), options)
            except KeyError as error:
                raise EngineError(
                    f"ncnn did not take the graph: it has no {error.args[0]}"
                ) from error
        # ncnn forgets a value when it was read, so each is taken before what is computed of it
        computed = [name for *_, outputs, _ in self._lines for name in outputs]
        self.outputs = [name for name in computed if name in wanted]
        self.parts = {name: self.parts[name] for name in computed if name in self.parts}
        self._constants.clear()

    @property
    def text(self) -> str:
        """With a layer that hands it on wherever a value is read more than once."""
        reads = Counter(name for _, inputs, *_ in self._lines for name in inputs)
        lines = []
        seen: Counter[str] = Counter()
        for kind, inputs, outputs, options in self._lines:
            names = []
            for name in inputs:
                names.append(f"{name}/{seen[name]}" if reads[name] > 1 else name)
                seen[name] += 1
            lines.append((kind, names, outputs, options))
            for name in outputs:
                if reads[name] > 1:
                    copies = [f"{name}/{number}" for number in range(reads[name])]
                    lines.append(("Split", [name], copies, ""))
        blobs = sum(len(outputs) for _, _, outputs, _ in lines)
        rows = [
            f"{kind} {outputs[0]} {len(inputs)} {len(outputs)} {' '.join(inputs + outputs)} {options}"
            for kind, inputs, outputs, options in lines
        ]
        return "\n".join([MAGIC, f"{len(lines)} {blobs}", *rows]) + "\n"

    def _line(self, layer: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        kind, _, options = layer.partition(" ")
        self._lines.append((kind, list(inputs), list(outputs), options))

    def _node(
        self, kind: str, inputs: list[str], outputs: list[str], options: Mapping[str, Any]
    ) -> None:
        output = outputs[0]
        if kind == "Shape" or (self._sizes.intersection(inputs) and kind != "MatMul"):
            self._sizes.update(outputs)
            return
        values = [self._blobs.get(name, name) for name in inputs if name not in self._constants]
        constants = [self._constants[name] for name in inputs if name in self._constants]
        self._channels[output] = self._channels.get(inputs[0], 0)
        if kind == "MatMul" and self._sizes.intersection(inputs):  # rows, then columns, of a grid
            if inputs[0] in self._sizes:
                self._blobs[output] = values[1]
            else:
                cells = int(self._constants["cells"][0])
                self._line(f"Pooling 0=1 7=1 8={cells} 18={cells}", values[:1], outputs)
        elif kind == "Split" and options["axis"] == 3:
            self.lanes = len(outputs)
            self._blobs.update(dict.fromkeys(outputs, values[0]))
        elif kind == "Split":
            self.parts[values[0]] = outputs
            for name in outputs:
                self._line("Input", [], [name])
        elif kind == "Cast" or options.get("perm") == [0, 3, 1, 2] or options.get("axis") == 0:
            self._blobs[output] = values[0]  # done on the way in; images are side by side
        elif kind == "Slice":  # the channels of images, or the last one
            self._blobs[output] = MASK if constants[0].item() else values[0]
        elif kind == "Conv":
            weight, groups, pad = constants[0], options.get("group", 1), options["pads"][0]
            (side, _), (step, _) = options["kernel_shape"], options["strides"]
            self._channels[output] = len(weight)
            # of so few channels Winograd's tiles take longer to make than they save
            plain = f" 31={NO_WINOGRAD}" if self.head is not None and weight.shape[1] <= FEW else ""
            line = (
                f"0={len(weight)} 1={side} 3={step} 4={pad} 5={len(constants) - 1} 6={weight.size}"
            )
            line = (
                f"ConvolutionDepthWise {line} 7={groups}"
                if groups > 1
                else f"Convolution {line}{plain}"
            )
            self._line(line, values, outputs)
            self.weights += [FLOAT32, *constants]
        elif kind == "Gemm":
            weight, bias = constants
            weight = weight if options.get("transB") else weight.T
            if not self.head:
                self._line(f"InnerProduct 0={len(weight)} 1=1 2={weight.size}", values, outputs)
                self.weights += [FLOAT32, weight, bias]
                return
            # the last rows, less than a register, would be summed otherwise for one image than for several
            more = -len(weight) % REGISTER
            bias = np.pad(bias, (0, more))
            # long sums lose digits; and what ncnn makes its weights of stands beside them for a moment
            step = max(SUMMED, -(-weight.shape[1] // PIECES))
            cuts = range(0, weight.shape[1], step)
            weight = np.pad(weight, ((0, more), (0, 0))) if more else weight
            parts = [weight[:, start : start + step] for start in cuts]
            names = [f"{output}/from{start}" for start in cuts]
            reads = [f"{name}/read" for name in names]
            sizes = ",".join(str(part.shape[1]) for part in parts)
            self._line(f"Slice -23300={len(parts)},{sizes} 1=0", values, reads)
            for at, part in enumerate(parts):
                line = f"Gemm 4=1 7={len(part)} 9={part.shape[1]}{'' if at else ' 6=1 10=1'}"
                self._line(line, reads[at : at + 1], names[at : at + 1])
                self.weights += [FLOAT32, part, *([] if at else [FLOAT32, bias])]
            self._line("Eltwise 0=1" if len(parts) > 1 else "Noop", names, [f"{output}/rows"])
            line = f"Slice -23300=2,{len(weight) - more},{more} 1=0" if more else "Noop"
            self._line(line, [f"{output}/rows"], [output, f"{output}/more"] if more else outputs)
        elif kind in POOLS:
            (side, _), (step, _) = options["kernel_shape"], options["strides"]
            pad = options.get("pads", [0])[0]
            self._line(f"Pooling 0={POOLS[kind]} 1={side} 2={step} 3={pad} 5=1", values, outputs)
        elif kind == "GlobalAveragePool":  # one sum over all of a large map loses digits
            self._line(REDUCTIONS["ReduceMean"].format(2), values, [f"{output}/rows"])
            self._line(REDUCTIONS["ReduceMean"].format(1), [f"{output}/rows"], outputs)
        elif kind in REDUCTIONS:
            self._line(REDUCTIONS[kind].format(options["axes"][0] - 1), values, outputs)
        elif kind == "LRN":
            line = "LRN 0=0 1={size} 2={alpha:.8e} 3={beta:.8e} 4={bias:.8e}"
            self._line(line.format(**options), values, outputs)
        elif kind == "Reshape":  # of maps to rows
            self._line(f"Reshape 0=-1 1={self._channels[output]}", values, outputs)
        elif options.get("perm") == [0, 2, 1]:
            self._line("Permute 0=1", values, outputs)
        elif values == values[:1] * 2 and kind == "Mul":
            self._line("UnaryOp 0=4", values[:1], outputs)
        elif kind == "Pow":  # its BinaryOp of that name gives 1e38 for 0
            self._line(f"Power 0={constants[0].item():.8e}", values, outputs)
        elif constants and constants[0].size == 1:
            self._line(f"{LAYERS[kind]} 1=1 2={constants[0].item():.8e}", values, outputs)
        elif constants:
            self._line(f"{BY_CHANNEL[kind]} 0={constants[0].size}", values, outputs)
            self.weights += constants
        else:
            self._line(LAYERS[kind], values, outputs)
