"""OpenVINO on the CPU: float32, or bfloat16 where the processor computes in it.

Left alone, OpenVINO computes in bfloat16 wherever it can, so it is always told its precision.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Container
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .forks import HEED_SECONDS, never_destroy, require_own_threads, silenced

if TYPE_CHECKING:
    from ..graphs import Source
    from ..graphs.writer import Graph
    from . import Engine, Run, Settings

FEW_IMAGES = 2
LARGE_BYTES = 16 << 20  # of FC weights, above which no cache close to a core holds them

PREPARED_LAYERS = 64
PRIMITIVES = "256"  # in oneDNN's memory, beneath that one

HINTS = {"exact": "f32", "fast": "f32", "half": "bf16", "int8": "f32"}


def variants(source: Source, precision: str, threads: int, batch: int) -> tuple[Settings, ...]:
    """One stream of all threads; for a batch also as many streams as threads, each with its share.

    Where FC layers are large and the precision allows it, their weights are kept in 16 bits: for a few
    images, reading them from memory is all the time that they take.
    """
    fc: Settings = {}
    if precision == "fast" and batch <= FEW_IMAGES:
        weights = _fc_weights(source.graph)
        if sum(source.graph.weights[name].nbytes for name in weights) >= LARGE_BYTES:
            fc = {"fc": "f16"}
    streams = min(threads, batch)
    return tuple({"streams": n, **fc} for n in dict.fromkeys((1, streams)))


def computes_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 here. `processor.computes_bf16` asks the system instead."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def prepare(engine: Engine) -> Run:
    if engine.threads > 1:  # in one child of some two hundred they never answered
        require_own_threads("openvino")
    graph, hint = engine.source.graph, HINTS[engine.precision]
    streams = int(engine.settings.get("streams", 1))
    halved = _fc_weights(graph) if engine.settings.get("fc") == "f16" else ()
    with silenced():
        core = _core()
        if hint == "bf16" and not computes_bf16():
            hint = "f32"
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": engine.threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            # threads nailed to cores would fight with whoever else computes here
            "ENABLE_CPU_PINNING": False,
            # prepared layers, those of a few sizes of images: its own 5000 fill gigabytes
            "CPU_RUNTIME_CACHE_CAPACITY": PREPARED_LAYERS,
            # else FC layers with weights of few bits would compute with few bits, too
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        compiled = core.compile_model(_model(graph, halved), "CPU", config)
    names = engine.source.outputs
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.array_split(pixels, min(streams, len(pixels)))
        used = requests[: len(parts)]
        try:
            for request, part in zip(used, parts, strict=True):
                request.start_async({0: part}, share_inputs=True)
            for request in used:
                while not request.wait_for(round(HEED_SECONDS * 1000)):
                    pass
        except (
            BaseException
        ):  # of a signal, or of one request: all are free again when they have stopped
            for request in used:
                request.cancel()
            for request in used:
                with suppress(RuntimeError):
                    request.wait()
            raise
        views = [[r.get_output_tensor(i).data for r in used] for i in range(len(names))]
        return {  # copies, since the requests' own memory is written to by the next call
            name: np.concatenate(rows) if len(rows) > 1 else rows[0].copy()
            for name, rows in zip(names, views, strict=True)
        }

    return run


def package() -> Any:
    """The package, without its conversion tools.

    Importing those takes as long as all the rest, and tells the vendor that it happened. Who asks for
    `openvino.convert_model` later gets it all the same.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    tools = "openvino.tools.ovc"
    sys.modules[tools] = None  # type: ignore[assignment]  # makes importing it an ImportError
    try:
        import openvino
    finally:
        del sys.modules[tools]
    if not hasattr(openvino, "convert_model"):
        openvino.__getattr__ = _later
    return openvino


def _later(name: str) -> object:
    if name == "convert_model":
        from openvino.tools.ovc import convert_model

        return convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


def _core() -> Any:
    return _core_of(os.getpid())


@cache
def _core_of(_process: int) -> Any:
    """One a process: a fork takes the threads of its parent's away."""
    # read when the first layer is prepared; its own 1024 are those of dozens of sizes
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)
    core = package().Core()
    never_destroy(core)
    return core


def _fc_weights(graph: Graph) -> set[str]:
    named = {node.input[1] for node in graph.model.graph.node if node.op_type == "Gemm"}
    return named & graph.weights.keys()


def _model(graph: Graph, halved: Container[str]) -> Any:
    """The graph as OpenVINO's own, its weights read where they lie, those of `halved` in 16 bits.

    The weights are first declared as inputs, which takes no room, and then put in as constants that
    share the arrays' memory.
    """
    import onnx

    openvino = package()
    bare = onnx.ModelProto()
    bare.CopyFrom(graph.model)
    kept = [tensor for tensor in bare.graph.initializer if tensor.name not in graph.weights]
    for tensor in bare.graph.initializer:
        if tensor.name in graph.weights:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    model = _core().read_model(bare.SerializeToString())
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name in graph.weights:
            if name in halved:
                few = openvino.op.Constant(graph.weights[name].astype(np.float16))
                constant = openvino.opset8.convert(few, "f32")
                constant.get_rt_info()["decompression"] = True  # while it is read, not beforehand
            else:
                constant = openvino.op.Constant(_writable(graph.weights[name]), shared_memory=True)
            constant.set_friendly_name(name)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def _writable(array: np.ndarray) -> np.ndarray:
    """The same memory under an array that may be written to, which nobody does.

    OpenVINO shares no array that is read-only, such as those of a memory-mapped model file.
    """
    array = np.ascontiguousarray(array)
    if array.flags.writeable or not array.size:
        return array
    memory: Any = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # lives as long as the view does
    return np.frombuffer(memory, array.dtype).reshape(array.shape)
