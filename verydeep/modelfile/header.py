"""The header of a safetensors file: which tensors it holds, and where each of them lies.

Source: https://github.com/huggingface/safetensors#format. Eight bytes give the header's length;
then come the header, a JSON object, and the tensors' bytes without gaps. This reader is stricter
than the format asks: nothing is left that two programs could understand differently.

Errors are ModelFileError without the file's name, which the caller knows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ModelFileError
from ..files import strict_json
from ..files.strict_json import JSON, shown

# Bits of one element, by the format's names (safetensors 0.8). Model files use five of these; the
# others are known so that a foreign file is refused for what it is, not for its size.
BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

# vgg19_bn's tensors take 15 kB, the names of ImageNet-21k's classes 1 MB. Parsed JSON takes up to
# some sixty times its size in memory, so this also bounds what a hostile file can make us allocate.
MAX_HEADER_BYTES = 8 * 2**20

# The data begins at a multiple of this, counted from the file's first byte: that of I64 and F64.
_ALIGNMENT = 8
_MAX_DIMENSIONS = 8  # a VGG needs four; a product of millions of factors would take minutes


@dataclass(frozen=True)
class Tensor:
    """One tensor: `dtype` is a key of BITS; `start` and `stop` count bytes of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """metadata: `__metadata__`, empty where there is none. tensors: in the order of their bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def parse_length(first: bytes, file_bytes: int) -> int:
    """The header's length in bytes, from the file's first eight, checked against the file's."""
    if len(first) < 8:
        raise ModelFileError(
            f"the file ends after {len(first)} bytes, within the eight that give the header's "
            "length; it was cut short: fetch or write it again"
        )
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"its first eight bytes say that the header is {length} bytes long; expected at most "
            f"{MAX_HEADER_BYTES}: the file is damaged, or not a safetensors file"
        )
    if length > file_bytes - 8:
        raise ModelFileError(
            f"the file ends after {file_bytes} bytes; expected at least {8 + length}, the header "
            "alone: it was cut short, fetch or write it again"
        )
    if length < 2:
        raise ModelFileError(f"its header is {length} bytes long; expected at least 2")
    return length


def parse(header: bytes, data_bytes: int) -> Header:
    """What the header's text says, checked against the number of bytes that follow it."""
    if header[:1] != b"{":
        raise ModelFileError(f"its header begins with {shown(header[:1])}; expected '{{'")
    try:
        entries = strict_json.loads(header)
    except ValueError as error:
        raise ModelFileError(f"its header cannot be read as JSON: {error}") from None
    assert isinstance(entries, dict)  # it begins with {
    metadata = _metadata(entries.pop("__metadata__", {}))
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    # Empty tensors share their start with the next one, so the end decides as well.
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, tensor in ordered.items():
        if tensor.start != end:
            fault = "overlaps the tensor before it" if tensor.start < end else "leaves a gap"
            raise ModelFileError(
                f"tensor {shown(name)} begins at byte {tensor.start} of the data and {fault}; "
                f"expected {end}"
            )
        end = tensor.stop
    if end != data_bytes:
        raise ModelFileError(
            f"its tensors take {end} bytes, but {data_bytes} follow the header; the file was "
            f"{'cut short' if data_bytes < end else 'added to'}: fetch or write it again"
        )
    return Header(metadata, ordered)


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


def _metadata(value: JSON) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ModelFileError(f"its __metadata__ is {shown(value)}; expected a JSON object")
    result: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise ModelFileError(
                f"its __metadata__ has {shown(text)} under {shown(key)}; expected text"
            )
        result[key] = text
    return result


def _tensor(name: str, entry: JSON) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(
            f"tensor {shown(name)} is described by {shown(entry)}; "
            "expected dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ModelFileError(
            f"tensor {shown(name)} has the dtype {shown(dtype)}; expected one of {', '.join(BITS)}"
        )
    sizes, limits = _naturals(shape), _naturals(offsets)
    if sizes is None or len(sizes) > _MAX_DIMENSIONS:
        raise ModelFileError(
            f"tensor {shown(name)} has the shape {shown(shape)}; "
            f"expected at most {_MAX_DIMENSIONS} whole numbers of 0 or more"
        )
    if limits is None or len(limits) != 2 or limits[1] < limits[0]:
        raise ModelFileError(
            f"tensor {shown(name)} has the data_offsets {shown(offsets)}; "
            "expected two whole numbers, begin and end"
        )
    bits = math.prod(sizes) * BITS[dtype]
    if bits != 8 * (limits[1] - limits[0]):
        raise ModelFileError(
            f"tensor {shown(name)} has {limits[1] - limits[0]} bytes, "
            f"but {dtype} of shape {list(sizes)} takes {bits / 8:.15g}"
        )
    return Tensor(dtype, sizes, limits[0], limits[1])


def _naturals(value: JSON) -> tuple[int, ...] | None:
    """The whole numbers of 0 or more in a JSON array; None for all else (true is no number)."""
    if not isinstance(value, list):
        return None
    numbers = tuple(n for n in value if isinstance(n, int) and not isinstance(n, bool) and n >= 0)
    return numbers if len(numbers) == len(value) else None
