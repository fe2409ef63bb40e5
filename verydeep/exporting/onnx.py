"""ONNX: one file with its weights inside, labels and pre-processing in `metadata_props`.

For `half` the weights are stored in float16 and cast to float32, which runtimes do once, when they load.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ..graphs.writer import Graph, Writer, write_onnx
from . import Job, Run


def write(job: Job, file: Path) -> None:
    graph = _halved(job.source.graph) if job.precision == "half" else job.source.graph
    write_onnx(graph, file, beside=False, facts=job.facts)


def _halved(graph: Graph) -> Graph:
    """The same graph with its weights in float16, each with a Cast to float32."""
    writer = Writer(graph)
    for name, value in graph.weights.items():
        half = writer.constant(f"{name}.half", value.astype(np.float16))
        writer.node("Cast", [half], name, to=onnx.TensorProto.FLOAT)
    for node in graph.model.graph.node:
        writer.copy(node)
    return writer.graph()


def load(file: Path, outputs: tuple[str, ...], precision: str, threads: int = 0) -> Run:  # noqa: ARG001
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        os.fspath(file), options, providers=["CPUExecutionProvider"]
    )

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(list(outputs), {"pixels": pixels}), strict=True))

    return run


def program(outputs: tuple[str, ...], precision: str) -> tuple[str, str]:  # noqa: ARG001
    names = list(outputs)
    return (
        "onnxruntime",
        f"""\
session = onnxruntime.InferenceSession(__file__[:-3])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
outputs = dict(zip({names}, session.run({names}, {{"pixels": pixels}})))""",
    )
