"""ONNX: one file with its weights inside, labels and pre-processing in `metadata_props`.

For `half` the weights are stored in float16 and cast to float32, which runtimes do once, when they load.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graphs.network import Graph
from .formats import Job, Program, Run

PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # of one message, less what is no weight


def write(job: Job, file: Path) -> None:
    write_model(job.graph, file, job.facts, half=job.precision == "half")


def write_model(graph: Graph, file: Path, facts: dict[str, str], *, half: bool = False) -> None:
    """half: whether weights are stored in float16. More than 2 GB stand beside it, in `file`.data."""
    size = sum(value.nbytes for value in graph.weights.values()) // (2 if half else 1)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for key, text in facts.items():
        model.metadata_props.add(key=key, value=text)
    if half:
        kept = [t for t in model.graph.initializer if t.name not in graph.weights]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        nodes = list(model.graph.node)
        del model.graph.node[:]
        for name, value in graph.weights.items():
            stored = numpy_helper.from_array(value.astype(np.float16), f"{name}.half")
            model.graph.initializer.append(stored)
            cast = helper.make_node("Cast", [stored.name], [name], name, to=TensorProto.FLOAT)
            model.graph.node.append(cast)
        model.graph.node.extend(nodes)
    else:
        for tensor in model.graph.initializer:
            if tensor.name in graph.weights:
                value = np.ascontiguousarray(graph.weights[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    beside = size > PROTOBUF_LIMIT_BYTES
    onnx.save_model(
        model, os.fspath(file), save_as_external_data=beside, location=f"{file.name}.data"
    )


def load(file: Path, outputs: tuple[str, ...], precision: str) -> Run:  # noqa: ARG001
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = session.run(list(outputs), {"pixels": pixels})
        return dict(zip(outputs, found, strict=True))

    return run


def program(outputs: tuple[str, ...], precision: str) -> Program:  # noqa: ARG001
    names = list(outputs)
    return Program(
        "onnxruntime",
        (
            "session = onnxruntime.InferenceSession(__file__[:-3])",
            'labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])',
        ),
        f'outputs = dict(zip({names}, session.run({names}, {{"pixels": pixels}})))',
    )
