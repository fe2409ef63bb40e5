"""The header of a safetensors file: which tensors it holds, and where each of them lies.

Source: https://github.com/huggingface/safetensors#format. Eight bytes give the header's length; then come
the header, a JSON object, and the tensors' bytes without gaps. The safetensors library checks that all of
this is so; here it is only read more strictly, so that nothing is left that two programs could understand
differently: no key twice, no member that the format does not have.

Errors are ModelFileError without the file's name, which the caller knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ModelFileError
from ..files import strict_json
from ..files.strict_json import shown

# vgg19_bn's tensors take 15 kB, the names of ImageNet-21k's classes 1 MB. Parsed JSON takes up to
# some sixty times its size in memory, so this also bounds what a hostile file can make us allocate.
MAX_HEADER_BYTES = 8 * 2**20

# The data begins at a multiple of this, counted from the file's first byte: the size of I64 and F64.
_ALIGNMENT = 8
_AGAIN = "it was cut short, added to or damaged: fetch or write it again"


@dataclass(frozen=True)
class Tensor:
    """One tensor: `dtype` is the format's name of its type; `start` and `stop` count bytes of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """metadata: `__metadata__`, empty where there is none. tensors: in the order of their bytes.
    begin: where the data begins, in bytes of the file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    begin: int = 0


def parse(path: Path, file: BinaryIO) -> Header:
    """What the header of the file at `path`, opened as `file`, says; checked against all of the file."""
    import safetensors

    file.seek(0)
    first = file.read(8)
    length, file_bytes = int.from_bytes(first, "little"), os.fstat(file.fileno()).st_size
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"its first eight bytes say that the header is {length} bytes long; expected at most "
            f"{MAX_HEADER_BYTES}: the file is damaged, or not a safetensors file"
        )
    if len(first) < 8 or length > file_bytes - 8:
        needed = (
            f"its header alone takes {8 + length}" if len(first) == 8 else "a header takes more"
        )
        raise ModelFileError(f"the file ends after {file_bytes} bytes, but {needed}; {_AGAIN}")
    text = file.read(length)
    try:
        entries: Any = strict_json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"its header cannot be read as JSON: {error}") from None
    if not isinstance(entries, dict) or not text.startswith(b"{"):
        raise ModelFileError(f"its header begins with {shown(text[:1])}; expected '{{'")
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as checked:
            names = checked.offset_keys()
    except safetensors.SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelFileError(f"its header does not fit the file: {reason}; {_AGAIN}") from None
    metadata = entries.pop("__metadata__", None) or {}
    if set(names) != set(entries):
        raise ModelFileError("another file took its place while it was read; try again")
    tensors = {}
    for name in names:
        entry = entries[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ModelFileError(
                f"tensor {shown(name)} is described by {shown(entry)}; "
                "expected dtype, shape and data_offsets"
            )
        tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
    return Header(metadata, tensors, 8 + length)


def encode(header: Header) -> bytes:
    """The file up to its data: eight bytes of length, and the header in the order of `tensors`.

    Spaces fill it up so that the data begins at a multiple of eight bytes.
    """
    entries: dict[str, object] = {}
    if header.metadata:
        entries["__metadata__"] = dict(header.metadata)
    for name, tensor in header.tensors.items():
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
