"""Read the weights in a .caffemodel: the few fields of Caffe's protocol buffer that hold them.

Source: Caffe's `src/caffe/proto/caffe.proto`, and the wire format of protocol buffers. A message is a
run of fields, each a key (number << 3 | type) and a value. A net holds layers, a layer its name and
its blobs, a blob its shape and its data. Nothing else is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# NetParameter's field of layers -> the fields of name and blobs in one: the format of 2014 (which the
# Oxford release has), and the one since.
_LAYERS = {2: (4, 6), 100: (1, 7)}
# BlobProto
_OLD_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_caffemodel(data: memoryview) -> dict[str, NDArray[Any]]:
    """The blobs by layer and place: {"conv1_1/0": weights, "conv1_1/1": biases}, float32.

    Shapes are as written: FC weights of the old format are (1, 1, out, in), biases (1, 1, 1, out).
    Raises ValueError where the bytes are not such a message.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for number, layer in _fields(data):
        if number not in _LAYERS or not isinstance(layer, memoryview):
            continue
        name_field, blob_field = _LAYERS[number]
        fields = [(key, value) for key, value in _fields(layer) if isinstance(value, memoryview)]
        names = [bytes(value).decode() for key, value in fields if key == name_field]
        blobs = [value for key, value in fields if key == blob_field]
        for place, blob in enumerate(blobs):
            tensors[f"{names[0] if names else ''}/{place}"] = _blob(blob)
    return tensors


def _blob(message: memoryview) -> NDArray[Any]:
    old = dict.fromkeys(_OLD_SHAPE, 1)
    shape: list[int] | None = None
    packed: list[NDArray[Any]] = []
    for number, value in _fields(message):
        if number in old and isinstance(value, int):
            old[number] = value
        elif number == _SHAPE and isinstance(value, memoryview):
            shape = [size for _, dims in _fields(value) for size in _sizes(dims)]
        elif number in (_DATA, _DOUBLE_DATA) and isinstance(value, memoryview):
            packed.append(np.frombuffer(value, "<f4" if number == _DATA else "<f8"))
    values = packed[0] if len(packed) == 1 else np.concatenate([np.empty(0, "<f4"), *packed])
    return values.reshape(shape if shape is not None else list(old.values()))


def _sizes(dims: int | memoryview) -> Iterator[int]:
    if isinstance(dims, int):
        yield dims
        return
    at = 0
    while at < len(dims):
        size, at = _varint(dims, at)
        yield size


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number with its value: an integer for a varint, the bytes for all the others.

    A lone float (type 5) is handed on as its four bytes, as if it were packed with no other.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if at + size > len(message):
            raise ValueError(
                f"field {number} ends {at + size - len(message):,} bytes after the file"
            )
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("the message is cut short")
        byte = message[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
