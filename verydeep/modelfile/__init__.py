"""The model file: weights under torchvision's names, with the record of what they are.

A safetensors file; the specification is docs/format.md. It is checked against the table (`nets.py`)
when it is opened, but its weights are not read: `stored` holds views of a memory map. Nothing in a
model file is ever executed. `write` makes one: whole or not at all, the same bytes for the same content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError
from ..files.strict_json import shown
from .reading import (
    DTYPES,
    MAX_HEADER_BYTES,
    ModelFile,
    Tensor,
    about,
    check_scales,
    check_table,
    is_model_file,
    read,
)  # fmt: skip
from .record import FORMAT_VERSION, Activation, Record

# The data begins at a multiple of this, counted from the file's first byte: the size of I64 and F64.
_ALIGNMENT = 8

__all__ = ["FORMAT_VERSION", "Activation", "ModelFile", "Record", "is_model_file", "read", "write"]


def write(
    path: str | os.PathLike[str], record: Record, tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a model file. The same record and tensors give the same bytes.

    tensors: by torchvision's key, float32 or float16 (num_batches_tracked int64), in the shapes of
    `record.network.tensors`. Instead of a convolution's or FC layer's weight there may be
    `<key>.q`, int8 or int16, with `<key>.scale`, float32 of shape (out, 1, 1, 1) or (out, 1).

    The file appears whole or not at all: one that was at `path` before stays until the new one is
    safely on the disk. ModelFileError where tensors contradict the table; OutputError where the file cannot
    be written.
    """
    path = Path(path)
    try:
        arrays = {name: _little_endian(name, array) for name, array in tensors.items()}
        # Widest elements first, so that each tensor lies at a multiple of its element's size.
        names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
        layout, end = {}, 0
        for name in names:
            begin, end = end, end + arrays[name].nbytes
            layout[name] = Tensor(_dtype(arrays[name]), arrays[name].shape, begin, end)
        check_table(record.network, layout)
        check_scales(arrays)
        header = encode({"verydeep": record.to_json()}, layout)
    except ModelFileError as error:
        raise about(path, str(error)) from None
    from ..files.atomic import replacing  # not needed to read

    try:
        with replacing(path) as file:
            file.write(header)
            for name in names:
                file.write(arrays[name].reshape(-1).view(np.uint8).data)
    except ValueError as error:  # a path with a zero byte
        raise about(path, f"it cannot be written: {error}") from None


def encode(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """The file up to its data: eight bytes of length, and the header, in the order of `tensors`.

    Spaces fill it up so that the data begins at a multiple of eight bytes.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(metadata)
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.stop],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"the header would be {len(text)} bytes long; at most {MAX_HEADER_BYTES} are allowed: "
            "keep less in the record"
        )
    return len(text).to_bytes(8, "little") + text


def _dtype(array: NDArray[Any]) -> str:
    """safetensors' name of an array's dtype; numpy's own where a model file cannot hold it."""
    names = (name for name, dtype in DTYPES.items() if dtype == array.dtype)
    return next(names, str(array.dtype))


def _little_endian(name: object, array: object) -> NDArray[Any]:
    """The array in the file's byte order, which copies nothing on common machines."""
    if not isinstance(name, str):
        raise ModelFileError(f"it was given a tensor named {shown(name)}; expected text")
    if isinstance(array, np.generic):  # what numpy's arithmetic makes of arrays without dimensions
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise ModelFileError(
            f"the tensor {shown(name)} was given as {type(array).__name__}; expected a numpy array"
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
