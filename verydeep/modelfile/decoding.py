"""Coded weights as float32: of a large model decoded once, and mapped from verydeep's cache after that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelFileError
from . import about, codec

if TYPE_CHECKING:
    from . import ModelFile

WORTH_KEEPING = 1 << 20  # weights; fewer are decoded sooner than a file is looked for
SPARE_BYTES = 1 << 20  # of files' headers


def weights(model: ModelFile, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Float32 weights by torchvision's key, of those that are coded; ModelFileError where one is damaged.

    Views of files in the cache where the model is large, which may be written to without changing them.
    """
    shapes = model.record.network.tensors
    coded = [key for key in shapes if f"{key}.code" in model.stored]
    count = sum(math.prod(shapes[key]) for key in coded)
    if count < WORTH_KEEPING:
        return _decoded(model, keys)
    from ..files.cache import Cache

    cache = Cache()

    def make(folder: Path) -> None:
        for key, weight in _decoded(model, coded).items():
            np.save(folder / f"{key}.npy", weight)

    def load(folder: Path, _: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        # what does not stay in the cache is read, since it is deleted next
        mode: Any = "c" if folder.parent == cache.folder else None
        return {key: _read(folder / f"{key}.npy", shapes[key], mode) for key in keys}

    with suppress(EngineError):  # room nowhere
        return cache.open(
            f"weights-{model.sha256[:24]}", {"weights": model.sha256}, make, load,
            needs_bytes=lambda: 4 * count + SPARE_BYTES,
        )  # fmt: skip
    return _decoded(model, keys)


def _read(path: Path, shape: tuple[int, ...], mode: Any) -> NDArray[Any]:
    """One that was kept; EngineError, which makes it anew, where it is another thing."""
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except ValueError as error:
        raise EngineError(f"its {path.name} cannot be read: {error}") from error
    if array.dtype != np.float32 or array.shape != shape:
        raise EngineError(f"its {path.name} is of {array.dtype} and {array.shape}")
    found: NDArray[Any] = array.view(np.ndarray)
    return found


def _decoded(model: ModelFile, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    shapes = model.record.network.tensors

    def weight(key: str) -> NDArray[Any]:
        try:
            return codec.decode(model.stored[f"{key}.code"], shapes[key]).weight
        except ModelFileError as error:
            raise about(model.path, f"the tensor {key}.code: {error}") from None

    # the range coder takes turns, and what surrounds it runs beside it
    with ThreadPoolExecutor(2, "verydeep-decoding") as threads:
        return dict(zip(keys, threads.map(weight, keys), strict=True))
