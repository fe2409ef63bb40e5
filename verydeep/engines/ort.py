"""ONNX Runtime on the CPU: the engine of the base install, and the reference for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineError

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = ["OnnxRuntime", "open_engine"]


class OnnxRuntime:
    """An ONNX Runtime session in float32."""

    name = "onnxruntime"

    def __init__(self, graph: Graph, *, precision: str, threads: int | None) -> None:
        import onnxruntime

        if precision != "exact":
            raise EngineError(
                f"engine onnxruntime computes in precision exact; {precision!r} was asked for"
            )
        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # what an engine prints by itself is silenced
        if threads is not None:
            options.intra_op_num_threads = threads
        # the session may read the arrays where they are for as long as it lives, so they are kept
        self._weights = [
            onnxruntime.OrtValue.ortvalue_from_numpy(v) for v in graph.weights.values()
        ]
        options.add_external_initializers(list(graph.weights), self._weights)
        try:
            self._session = onnxruntime.InferenceSession(
                graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a class of its own for every status
            line = str(error).splitlines()[0]
            raise EngineError(f"onnxruntime did not take the graph: {line}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self._names, {"pixels": pixels})
        except Exception as error:
            line = str(error).splitlines()[0]
            shape = "x".join(map(str, pixels.shape))
            raise EngineError(
                f"onnxruntime failed on {shape} {pixels.dtype} pixels: {line}"
            ) from error
        return dict(zip(self._names, values, strict=True))


def open_engine(graph: Graph, *, precision: str, threads: int | None) -> OnnxRuntime:
    return OnnxRuntime(graph, precision=precision, threads=threads)
