"""Features as a safetensors file: a tensor a layer, which every reader can map instead of loading.

The format has no texts: the paths are one tensor of UTF-8 bytes, "path", and one of the places where each
of them ends, "path.ends"; so are the errors. The record is "verydeep_features" in the metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ..errors import DataError, ModelFileError
from ..modelfile import header as safetensors_header
from ..modelfile.header import Header, Tensor
from .mapped import mapped_rows

if TYPE_CHECKING:
    from .journal import Journal

KEY = "verydeep_features"
CHUNK_ROWS = 4096
_DTYPES = {"F32": "<f4", "I64": "<i8", "U8": "u1"}


class _Tensors:
    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path, "rb") as file:
            header = safetensors_header.parse(path, file)
        if KEY not in header.metadata:
            raise DataError("it has no record; expected a file that `verydeep features` wrote")
        self.about = header.metadata[KEY]
        self._begin = header.begin
        self._tensors = header.tensors
        self.rows = header.tensors["path.ends"].shape[0]

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        tensor = self._tensors[layer]
        offset = self._begin + tensor.start
        yield from mapped_rows(self._path, _DTYPES[tensor.dtype], offset, tensor.shape, rows)

    def texts(self, column: str) -> Iterator[str]:
        text, ends = self._whole(column), self._whole(f"{column}.ends")
        begin = 0
        for start in range(0, self.rows, CHUNK_ROWS):
            for end in ends[start : start + CHUNK_ROWS].tolist():
                yield text[begin:end].tobytes().decode("utf-8", "surrogateescape")
                begin = end

    def _whole(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        offset, rows = self._begin + tensor.start, max(1, tensor.shape[0])
        found = list(mapped_rows(self._path, _DTYPES[tensor.dtype], offset, tensor.shape, rows))
        return found[0] if found else np.zeros(0, _DTYPES[tensor.dtype])


def open_stored(path: Path) -> _Tensors:
    try:
        return _Tensors(path)
    except (ModelFileError, KeyError) as error:
        raise DataError(f"it is no .safetensors file, or a damaged one: {error}") from error


def write(file: IO[bytes], journal: Journal) -> None:
    columns = ("path", "error")
    ends = {
        name: np.cumsum(
            np.fromiter((len(_bytes(t)) for t in journal.texts(name)), np.int64, journal.rows)
        )
        for name in columns
    }
    layers = journal.about.layers
    # the widest elements first, so that each tensor lies at a multiple of its element's size
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {
        **{f"{name}.ends": ("I64", (journal.rows,)) for name in columns},
        **{name: ("F32", (journal.rows, *shape)) for name, shape in layers.items()},
        **{name: ("U8", (int(ends[name][-1]) if journal.rows else 0,)) for name in columns},
    }
    tensors, end = {}, 0
    for name, (dtype, shape) in sizes.items():
        begin = end
        end += math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        tensors[name] = Tensor(dtype, shape, begin, end)
    file.write(safetensors_header.encode(Header({KEY: journal.about.to_json()}, tensors)))
    for name in columns:
        file.write(ends[name].astype("<i8").tobytes())
    for layer in layers:
        for block in journal.numbers(layer):
            file.write(block.tobytes())
    for name in columns:
        for text in journal.texts(name):
            file.write(_bytes(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
