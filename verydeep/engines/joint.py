"""Two engines for one graph: MNN for the convolutions, OpenVINO for the FC layers.

Winograd's shorter multiplications are MNN's; FC layers only read their weights from memory, which
OpenVINO does from 16 bits a weight, half as long.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from . import mnn, openvino
from .source import Signature, Source
from .split import FLAT, split

if TYPE_CHECKING:
    from . import Order, Run, Settings

__all__ = ["prepare", "variants"]

HEAD = frozenset({"fc6", "relu6", "fc7", "relu7", "fc8", "prob", "scores"})


def variants(source: Source, order: Order, batch: int) -> tuple[Settings, ...]:  # noqa: ARG001
    """Itself, where there are FC layers worth the trouble."""
    return ({},) if openvino.weighs(source, batch) else ()


def prepare(name: str, source: Source, order: Order) -> Run:  # noqa: ARG001
    whole = source.signature
    convolved = tuple(n for n in whole.outputs if n not in HEAD)
    trunk = Source(
        lambda: split(source.graph)[0],
        hashlib.sha256(f"{source.key} to {FLAT}".encode()).hexdigest(),
        Signature(whole.dtype, whole.channels, whole.minimum_size, (*convolved, FLAT)),
    )
    first = mnn.prepare("mnn", trunk, order)
    names = tuple(n for n in whole.outputs if n in HEAD)
    second = openvino.run_of(split(source.graph)[1], names, order, {"streams": 1, "fc": "f16"})

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = first(pixels)
        found |= second(found.pop(FLAT))
        return {name: found[name] for name in whole.outputs}

    return run
