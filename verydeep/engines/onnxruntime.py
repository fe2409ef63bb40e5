"""ONNX Runtime: the engine of the base install, and in float32 the reference for all others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from ..errors import EngineError
from .forks import awaited

if TYPE_CHECKING:
    from ..graphs import Source
    from . import Engine, Run, Settings

PACKED_FROM = 4  # images in a batch
LONG_PIXELS = 3 * 300_000  # more than some half a second of work, which is to stop at Ctrl-C

# CUDA's own default multiplies in TF32, which keeps ten bits
PROVIDERS: dict[str, list[object]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


def devices() -> tuple[str, ...]:
    """Those for which this build has code."""
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ("cuda", "cpu") if cuda else ("cpu",)


def variants(
    source: Source, precision: str, threads: int, batch: int  # noqa: ARG001
) -> tuple[Settings, ...]:  # fmt: skip
    """For a batch, FC weights in an order that suits products with several rows.

    Putting them in that order takes half the time of opening and as much memory again, and brings a few
    per cent for eight images, nothing for one.
    """
    return ({"packed": 1},) if batch >= PACKED_FROM else ({},)


def prepare(engine: Engine) -> Run:
    onnxruntime.disable_telemetry_events()  # of builds that read no such word
    if engine.device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(
            None
        ):  # it prints; libraries that pip installed are found by this alone
            onnxruntime.preload_dlls()
    graph = engine.source.graph
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what an engine prints by itself is silenced
    # a plan of memory for each shape would be kept beside the memory of its first run: twice as much
    options.enable_mem_pattern = False
    options.intra_op_num_threads = engine.threads
    # else its threads go on waiting for more, at full speed for 40 ms, beside whoever decodes or computes
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not engine.settings.get("packed"):
        options.add_session_config_entry("session.disable_prepacking", "1")
    # the session may read the arrays where they are for as long as it lives, so they are kept
    values = list(map(onnxruntime.OrtValue.ortvalue_from_numpy, graph.weights.values()))
    options.add_external_initializers(list(graph.weights), values)
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), options, providers=PROVIDERS[engine.device]
    )
    used = session.get_providers()
    if engine.device == "cuda" and "CUDAExecutionProvider" not in used:
        version = getattr(onnxruntime, "cuda_version", "")
        raise EngineError(
            "onnxruntime cannot use CUDA here and would compute on the CPU: there is no such device, or "
            f"libraries are missing (CUDA {version or 'of its build'}, cuDNN 9); use --device cpu, or "
            'install them with: pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
    names = list(engine.source.outputs)
    beside = ThreadPoolExecutor(1, "verydeep-onnxruntime")

    def run(pixels: np.ndarray, keep: object = values) -> dict[str, np.ndarray]:  # noqa: ARG001
        given = {"pixels": pixels}
        if pixels.size < LONG_PIXELS or current_thread() is not main_thread():
            return dict(zip(names, session.run(names, given), strict=True))
        options = onnxruntime.RunOptions()
        running = beside.submit(session.run, names, given, options)
        outputs = awaited(running, lambda: setattr(options, "terminate", True))
        return dict(zip(names, outputs, strict=True))

    return run
