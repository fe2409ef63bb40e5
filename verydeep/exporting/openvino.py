"""OpenVINO's IR: an .xml with labels and pre-processing in its `rt_info`, its weights in a .bin beside it.

For `half` the weights are stored in float16; OpenVINO then computes in bfloat16 where the processor does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.forks import silenced
from ..engines.openvino import package
from ..graphs.writer import write_onnx
from . import Job, Run

# left alone it computes in bfloat16 wherever it can, so that only `half` leaves it alone
FLOAT32: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}


def write(job: Job, file: Path) -> None:
    openvino = package()
    graph = file.with_suffix(".onnx")
    write_onnx(job.source.graph, graph)
    with silenced():
        model = openvino.Core().read_model(os.fspath(graph))
        for key, text in job.facts.items():
            model.set_rt_info(text, ["verydeep", key])
        openvino.save_model(model, os.fspath(file), compress_to_fp16=job.precision == "half")
    del model  # it reads the ONNX file's weights where they are
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink()


def load(file: Path, outputs: tuple[str, ...], precision: str, threads: int = 0) -> Run:
    openvino = package()
    config = {} if precision == "half" else FLOAT32
    with silenced():
        network = openvino.Core().compile_model(
            os.fspath(file), "CPU", {**config, "INFERENCE_NUM_THREADS": threads}
        )

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        values = network(pixels)
        return {name: np.array(values[name]) for name in outputs}

    return run


def program(outputs: tuple[str, ...], precision: str) -> tuple[str, str]:
    config = {} if precision == "half" else FLOAT32
    return (
        "openvino",
        f"""\
model = openvino.Core().read_model(__file__[:-3])
labels = json.loads(model.get_rt_info(["verydeep", "labels"]).astype(str))
network = openvino.Core().compile_model(model, "CPU", {config})
values = network(pixels); outputs = {{name: values[name] for name in {list(outputs)}}}""",
    )
