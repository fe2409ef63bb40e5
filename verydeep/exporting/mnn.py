"""MNN: one file; labels and pre-processing as JSON in `bizCode`, the one text that the format has room for.

For `half` the weights are stored in float16.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.forks import silenced
from ..engines.mnn import convert
from ..graphs.writer import Graph, Writer, write_onnx
from . import Job, Run

CONFIG = {"backend": "CPU", "precision": "high"}


def write(job: Job, file: Path) -> None:
    graph = file.with_suffix(".onnx")
    write_onnx(_flattened(job.source.graph), graph)
    half = job.precision == "half"
    text = json.dumps(job.facts, ensure_ascii=False)
    size = job.source.graph.size_bytes // (2 if half else 1)
    convert(graph, file, text, size, *(["--fp16"] if half else []))
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink()


def _flattened(graph: Graph) -> Graph:
    """The graph with its flat taps flattened once more: MNN's FC layers are convolutions inside."""
    inside = {
        output.name: f"{output.name}.inside"
        for output in graph.model.graph.output
        if len(output.type.tensor_type.shape.dim) == 2 and output.name != "scores"
    }
    writer = Writer(graph)
    for node in graph.model.graph.node:
        writer.copy(node, inside)
    for name, value in inside.items():
        writer.node("Flatten", [value], name, axis=1)
    return writer.graph()


def load(file: Path, outputs: tuple[str, ...], precision: str, threads: int = 4) -> Run:  # noqa: ARG001
    with silenced():
        import MNN.expr
        import MNN.nn

        manager = MNN.nn.create_runtime_manager(({**CONFIG, "numThread": threads},))
        network = MNN.nn.load_module_from_file(
            os.fspath(file), ["pixels"], list(outputs), runtime_manager=manager
        )
    expr: Any = MNN.expr

    def run(pixels: np.ndarray, keep: object = manager) -> dict[str, np.ndarray]:  # noqa: ARG001
        given = expr.const(pixels, list(pixels.shape), expr.NCHW, expr.uint8)
        # read() gives a view of memory that MNN uses again
        values = network.forward([given])
        arrays = [np.array(expr.convert(value, expr.NCHW).read()) for value in values]
        return dict(zip(outputs, arrays, strict=True))

    return run


def program(outputs: tuple[str, ...], precision: str) -> tuple[str, str]:  # noqa: ARG001
    names = list(outputs)
    return (
        "MNN.nn, MNN.expr as expr",
        f"""\
load, runtime = MNN.nn.load_module_from_file, MNN.nn.create_runtime_manager
net = load(__file__[:-3], ["pixels"], {names}, runtime_manager=runtime(({CONFIG},)))
labels = json.loads(json.loads(net.get_info()["bizCode"])["labels"])
values = net.forward([expr.const(pixels, list(pixels.shape), expr.NCHW, expr.uint8)]); \
outputs = {{name: expr.convert(v, expr.NCHW).read() for name, v in zip({names}, values)}}""",
    )
