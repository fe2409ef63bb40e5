"""Engines run a graph: one small file an engine, behind one protocol.

An engine is opened on a graph that `verydeep.graph` built, is always told its precision, and gives named
outputs for pixels. `exact` means a relative error of at most 1e-5 against the reference; other
precisions come with the engines that have them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import EngineError, nearest

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = ["ENGINES", "Engine", "open_engine"]

# name -> the module that opens it
ENGINES: dict[str, str] = {"onnxruntime": "ort"}


class Engine(Protocol):
    """One prepared graph."""

    @property
    def name(self) -> str:
        """The engine's name, a key of ENGINES."""

    @property
    def precision(self) -> str:
        """The precision it was told: "exact"."""

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32, for (batch, height, width, channels) pixels.

        pixels: of the dtype that the graph was built for, uint8 or float32 on the 0..255 scale.
        """


def open_engine(
    name: str, graph: Graph, *, precision: str = "exact", threads: int | None = None
) -> Engine:
    """Prepare the graph in the engine of that name.

    threads: how many the engine may use; None leaves it to the engine (one for each core).
    Raises EngineError where the engine is unknown, or does not take the graph or the precision.
    """
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown{nearest(name, ENGINES)}")
    opened: Engine = import_module(f"{__name__}.{ENGINES[name]}").open_engine(
        graph, precision=precision, threads=threads
    )
    return opened
