"""Read the tensors of a weights file of any common kind, by its first bytes, and run nothing in it.

.pth, .pt, .ckpt (torch, through its own reader for weights alone), .safetensors, .keras, .h5 and
.weights.h5 (Keras), .npz, .npy and .pkl (NumPy), .caffemodel. Names and shapes are as in the file; what
they mean is for `layouts` to say.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, WeightsError
from ..files.photo_paths import sniff

Named: TypeAlias = Iterator[tuple[str, NDArray[Any]]]

# torch.save before 1.6 begins with this number, pickled (torch/serialization.py, MAGIC_NUMBER)
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

KERAS_WEIGHTS = "model.weights.h5"  # in the zip that Keras 3 calls .keras
# The keys under which training scripts put the weights, in the order in which they are looked for.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "params", "weights")


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors by their names in the file, floats as float32 or float16, in the order of the file.

    Nested dictionaries become names joined by "/" (by "." in torch's files).
    Raises WeightsError where the file is missing, damaged, or not of a kind that holds weights;
    MissingExtraError where its kind needs a package that is not installed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        tensors = {name: _plain(array) for name, array in _reader(path, head)(path)}
    except (WeightsError, MissingExtraError):
        raise
    except Exception as error:  # readers of seven formats, each with errors of its own
        if isinstance(error, OSError) and error.strerror:  # HDF5's are about content, without it
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} cannot be read, it may be damaged: {reason}") from error
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    return tensors


def _reader(path: Path, head: bytes) -> Callable[[Path], Named]:
    if not head:
        raise WeightsError(f"{path} is empty")
    if head.startswith(b"\x89HDF"):
        return _read_hdf5
    if head.startswith(b"\x93NUMPY"):
        return _read_npy
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name for name in names):
            raise WeightsError(
                f"{path} is TorchScript, which is a program: open it with torch.jit.load where you trust "
                "it, and torch.save its state_dict()"
            )
        if KERAS_WEIGHTS in names:
            return _read_hdf5
        return _read_torch if any(name.endswith("data.pkl") for name in names) else _read_npz
    if head[8:9] == b"{":
        return _read_safetensors
    what, advice = sniff(head)
    if advice:
        raise WeightsError(f"{path} is {what}: {advice}")
    if _TORCH_LEGACY in head[:32] or path.suffix in (".pth", ".pt", ".tar"):
        return _read_torch
    if head[0] == 0x80:
        return _read_pickle
    if path.suffix == ".caffemodel":
        return _read_caffemodel
    raise WeightsError(
        f"{path} is of no kind that verydeep reads; expected .pth, .safetensors, .keras, .h5, .npz, "
        ".npy, .pkl or .caffemodel"
    )


def _read_torch(path: Path) -> Named:
    torch = needed("torch", f"reading {path.name}", "torch")
    try:
        # mapped, a zip file's tensors are read when they are written; the legacy format cannot be
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects besides its weights, and opening those could run code: "
            "load it where you trust it, and save its state_dict() alone"
        ) from error
    for name, value in _flat(_unwrapped(content), "."):
        if isinstance(value, torch.Tensor):
            value = value.detach().resolve_conj()
            value = value.float() if value.dtype == torch.bfloat16 else value
            yield name, value.numpy()


def _read_safetensors(path: Path) -> Named:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        narrow = {key for key in file.keys() if file.get_slice(key).get_dtype() == "BF16"}  # noqa: SIM118
        yield from ((key, file.get_tensor(key)) for key in file.keys() if key not in narrow)  # noqa: SIM118
    if narrow:  # bfloat16, which NumPy does not have
        needed("torch", f"reading {path.name}", "torch")
        with safe_open(path, framework="pt") as file:
            yield from ((key, file.get_tensor(key).float().numpy()) for key in sorted(narrow))


def _read_hdf5(path: Path) -> Named:
    h5py = needed("h5py", f"reading {path.name}", "keras")
    tensors: list[tuple[str, NDArray[Any]]] = []

    def visit(name: str, node: object) -> None:
        # a whole saved model carries its optimiser's numbers too
        if isinstance(node, h5py.Dataset) and not name.startswith(("optimizer", "top_level")):
            tensors.append((name, node[()]))

    inside: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = io.BytesIO(archive.read(KERAS_WEIGHTS))
    with h5py.File(inside, "r") as file:
        file.visititems(visit)
    yield from tensors


def needed(package: str, purpose: str, extra: str) -> Any:
    """A package; MissingExtraError, naming what it is for and the extra, where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(purpose, extra) from error


def _read_npz(path: Path) -> Named:
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            yield name, archive[name]


def _read_npy(path: Path) -> Named:
    """A dictionary saved by numpy.save: an array of one object, which is pickled."""
    with open(path, "rb") as file:
        form = np.lib.format
        old = form.read_magic(file) == (1, 0)
        header = form.read_array_header_1_0 if old else form.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.kind != "O" or shape not in ((), (1,)):
            raise WeightsError(f"{path} is one array; expected a dictionary of named arrays")
        content = _ArraysOnly(file).load()
    yield from _flat(content.item() if isinstance(content, np.ndarray) else content, "/")


def _read_pickle(path: Path) -> Named:
    with open(path, "rb") as file:
        yield from _flat(_unwrapped(_ArraysOnly(file).load()), "/")


# The few fields of Caffe's messages that hold weights, after its src/caffe/proto/caffe.proto: message ->
# field -> number and type; "*" is repeated. `layers` is the format of 2014, which the Oxford release has,
# `layer` the one since. Packed floats are read as the bytes that they are.
_CAFFE = {
    "Net": {"layers": (2, "Layer2014*"), "layer": (100, "Layer*")},
    "Layer2014": {"name": (4, "string"), "blobs": (6, "Blob*")},
    "Layer": {"name": (1, "string"), "blobs": (7, "Blob*")},
    "Blob": {
        "num": (1, "int32"), "channels": (2, "int32"), "height": (3, "int32"), "width": (4, "int32"),
        "data": (5, "bytes*"), "shape": (7, "Shape"), "double_data": (8, "bytes*"),
    },
    "Shape": {"dim": (1, "int64*")},
}  # fmt: skip


@cache
def _caffe_net() -> Any:
    """protobuf's class for a whole net."""
    from google.protobuf import (  # type: ignore[import-untyped]  # comes with onnx
        descriptor_pb2,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _CAFFE.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _CAFFE:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    return message_factory.GetMessages([file])["caffe.Net"]


def _read_caffemodel(path: Path) -> Named:
    """By layer and place, "conv1_1/0" the weights, "conv1_1/1" the biases, in shapes as written.

    FC weights of the old format are (1, 1, out, in), biases (1, 1, 1, out).
    """
    net = _caffe_net()()
    net.ParseFromString(path.read_bytes())
    for layer in (*net.layers, *net.layer):
        for place, blob in enumerate(layer.blobs):
            packed, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
            shape = [getattr(blob, axis) or 1 for axis in ("num", "channels", "height", "width")]
            shape = list(blob.shape.dim) if blob.HasField("shape") else shape
            yield f"{layer.name}/{place}", np.frombuffer(b"".join(packed), dtype).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that admits NumPy's arrays and numbers, and nothing that could run code."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file, encoding="latin1")  # files from Python 2 hold bytes as text

    def find_class(self, module: str, name: str) -> Any:
        multiarray = np.ndarray.__reduce__(np.empty(0))[0].__module__
        if name in ("_reconstruct", "scalar") and module in (
            "numpy.core.multiarray", "numpy._core.multiarray",
        ):  # fmt: skip
            return super().find_class(multiarray, name)
        if (module, name) in {
            ("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"),
            ("_codecs", "encode"),
        }:  # fmt: skip
            return super().find_class(module, name)
        raise WeightsError(f"it is a pickle that asks for {module}.{name}, which could run code")


def _unwrapped(content: object) -> object:
    """The weights in a checkpoint that holds more: the first of WRAPPERS that it has."""
    for _ in range(8):  # deep enough, and a pickle may hold itself
        if not isinstance(content, Mapping):
            break
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return content


def _flat(content: object, joint: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists, by their joined keys."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, joint, f"{prefix}{joint}{key}" if prefix else str(key))
    elif prefix and hasattr(content, "shape"):
        yield prefix, content


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """float64 and wider become float32; float32, float16 and integers stay. Big-endian is turned."""
    array = np.asarray(array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
