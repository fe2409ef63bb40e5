"""Coded weights as float32: of a large model decoded once, and mapped from verydeep's cache after that."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelFileError, log
from . import about, codec

if TYPE_CHECKING:
    from . import ModelFile

WORTH_KEEPING = 1 << 20  # weights; fewer are decoded sooner than a file is looked for
FILE = "weights.bin"  # float32, little-endian, one after another as the table has them
SPARE_BYTES = 1 << 20  # of what the entry says of itself


def weights(model: ModelFile, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Float32 weights by torchvision's key, of those that are coded; ModelFileError where one is damaged,
    EngineError where $VERYDEEP_CACHE_LIMIT is no size.

    Of a large model they are views of a file in the cache, which may be written to without changing it.
    """
    shapes = model.record.network.tensors
    coded = [key for key in shapes if f"{key}.code" in model.stored]
    count = sum(math.prod(shapes[key]) for key in coded)
    if count < WORTH_KEEPING:
        return _decoded(model, keys)
    from ..files.cache import Cache

    def make(folder: Path) -> None:
        with open(folder / FILE, "wb") as file:
            for weight in _decoded(model, coded).values():
                file.write(weight.astype("<f4").data)

    def load(folder: Path, _: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        values = _mapped(folder / FILE, count)
        found, at = {}, 0
        for key in coded:
            size = math.prod(shapes[key])
            found[key] = values[at : at + size].reshape(shapes[key])
            at += size
        return found

    cache = Cache()
    with suppress(EngineError, OSError):  # room nowhere
        found = cache.open(
            f"weights-{model.sha256[:24]}", {"weights": model.sha256}, make, load,
            needs_bytes=lambda: 4 * count + SPARE_BYTES, aside=False,
        )  # fmt: skip
        return {key: found[key] for key in keys}
    return _decoded(model, keys)


def _mapped(path: Path, count: int) -> NDArray[Any]:
    """So many numbers of a file, mapped; EngineError where it has others."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != 4 * count:
            raise EngineError(f"its {path.name} is cut short")
        try:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), "<f4")
        except OSError:  # no more maps or memory can be promised, which says nothing of the file
            return np.fromfile(file, "<f4")


def _decoded(model: ModelFile, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    shapes = model.record.network.tensors
    count = sum(math.prod(shapes[key]) for key in keys)
    if count >= WORTH_KEEPING and isinstance(
        codec._reader(np.zeros(2, np.uint32)), codec.PlainReader
    ):
        log.info(
            f"decoding {count / 1e6:.0f} million weights in Python, as the package constriction is not "
            "here, or cannot be loaded: a second a million"
        )

    def weight(key: str) -> NDArray[Any]:
        try:
            return codec.weight(model.stored[f"{key}.code"], shapes[key])
        except ModelFileError as error:
            raise about(model.path, f"the tensor {key}.code: {error}") from None

    # the range coder takes turns, and what surrounds it runs beside it
    with ThreadPoolExecutor(2, "verydeep-decoding") as threads:
        return dict(zip(keys, threads.map(weight, keys), strict=True))
