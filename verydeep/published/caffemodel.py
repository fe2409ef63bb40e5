"""Read the weights in a .caffemodel: the few fields of Caffe's protocol buffer that hold them.

Source: Caffe's `src/caffe/proto/caffe.proto`. A net holds layers, a layer its name and its blobs, a blob
its shape and its data. Fields that are not named here are skipped.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import (  # type: ignore[import-untyped]  # comes with onnx
    descriptor_pb2,
    message_factory,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Message -> field -> number and type; "*" is repeated. `layers` is the format of 2014, which the Oxford
# release has, `layer` the one since. Packed floats are read as the bytes that they are.
_MESSAGES = {
    "Net": {"layers": (2, "Layer2014*"), "layer": (100, "Layer*")},
    "Layer2014": {"name": (4, "string"), "blobs": (6, "Blob*")},
    "Layer": {"name": (1, "string"), "blobs": (7, "Blob*")},
    "Blob": {
        "num": (1, "int32"), "channels": (2, "int32"), "height": (3, "int32"), "width": (4, "int32"),
        "data": (5, "bytes*"), "shape": (7, "Shape"), "double_data": (8, "bytes*"),
    },
    "Shape": {"dim": (1, "int64*")},
}  # fmt: skip


def read_caffemodel(path: Path) -> dict[str, NDArray[Any]]:
    """The blobs by layer and place: {"conv1_1/0": weights, "conv1_1/1": biases}, float32 or float64.

    Shapes are as written: FC weights of the old format are (1, 1, out, in), biases (1, 1, 1, out).
    Raises protobuf's DecodeError or ValueError where the bytes are not such a message.
    """
    net = _net()()
    net.ParseFromString(path.read_bytes())
    return {
        f"{layer.name}/{place}": _array(blob)
        for layer in (*net.layers, *net.layer)
        for place, blob in enumerate(layer.blobs)
    }


def _array(blob: Any) -> NDArray[Any]:
    packed, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    shape = [blob.num or 1, blob.channels or 1, blob.height or 1, blob.width or 1]
    return np.frombuffer(b"".join(packed), dtype).reshape(
        list(blob.shape.dim) if blob.HasField("shape") else shape
    )


@cache
def _net() -> Any:
    """The class of a whole net."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    return message_factory.GetMessages([file])["caffe.Net"]
