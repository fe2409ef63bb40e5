"""The model file: weights under torchvision's names, with the record of what they are.

A safetensors file; the specification is docs/format.md. It is checked against the table (`nets.py`)
when it is opened, but its weights are not read: `stored` holds views of a memory map. Nothing in a
model file is ever executed.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, cast

import numpy as np

from ..errors import ModelFileError, NetworkError, PreprocessError, nearest
from ..files import hashes, strict_json
from ..files.strict_json import JSON, shown
from ..nets import Head, Network
from ..preprocess import TORCHVISION, Preprocess
from . import header as safetensors_header
from .header import MAX_HEADER_BYTES, Header, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "Activation", "ModelFile", "Record", "read", "write"]

FORMAT_VERSION = 1

# safetensors' names of the types that a model file may hold, all little-endian
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
}
_FLOATS, _QUANTISED, _COUNTS = ("F32", "F16"), ("I8", "I16"), ("I64",)

_RECORD_KEYS = (
    "format_version", "network", "preprocess", "class_ids", "class_names", "threshold", "licence",
    "provenance", "measured",
)  # fmt: skip
_OPTIONAL_RECORD_KEYS = ("activations",)  # there only where it says something
_ROUNDED_KINDS = ("relu", "lrn", "pool", "average")  # what a convolution or FC layer may read
_ACTIVATION_KEYS = ("scale", "zero_point")
_NETWORK_KEYS = ("column", "batch_norm", "width", "in_channels", "pool", "head")
_HEAD_KEYS = ("kind", "classes", "layers")
_SCALES = (2.0**-100, 2.0**100)  # well within float32, and so are products with a weight's scale
_LONGEST_NAME = 1000  # characters, of a class id or name

# What people give by mistake, by its first bytes. Read only where the file is not safetensors.
_PTH = (
    "verydeep never opens these, since they can run code; `verydeep weights convert` makes a model"
)
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (rb"PK\x03\x04", f"a zip archive, probably a .pth from torch.save: {_PTH} file of one"),
    (rb"\x80[\x02-\x05]", f"a Python pickle, probably a .pth from torch.save: {_PTH} file of one"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"(?i)\s*<(!doctype|html)", "a web page, probably of a failed download: fetch it again"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a]", "an ONNX graph; expected a .safetensors file"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes them; expected a .safetensors file"),
    (rb"\x93NUMPY", "a NumPy array; expected a .safetensors file"),
    (rb"GGUF", "a GGUF file; expected a .safetensors file"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed; unpack it first"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "an image; expected a .safetensors file"),
    (rb"[\t\n\r -~]{8}|[\t\n\r -~]{3,7}\Z", "text; expected a .safetensors file"),
)
_CONVERT = "`verydeep weights convert` makes one of published or trained weights"


@dataclass(frozen=True)
class Activation:
    """How one value of the int8 graph is rounded: clip(round(value / scale) + zero_point, 0, 255).

    scale: a float32 number above 0, also as its shortest decimal. zero_point: 0 to 255, what stands for 0.
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        scale, zero = self.scale, self.zero_point
        if not _is_number(scale) or not _SCALES[0] <= scale <= _SCALES[1]:
            raise ModelFileError(
                f"an activation's scale is {shown(scale)}; expected a number from "
                f"{_SCALES[0]:.4g} to {_SCALES[1]:.4g}"
            )
        if not _is_integer(zero) or not 0 <= zero <= 255:
            raise ModelFileError(
                f"an activation's zero_point is {shown(zero)}; expected a whole number, 0 to 255"
            )
        object.__setattr__(self, "scale", float(np.float32(scale)))


@dataclass(frozen=True)
class Record:
    """What a model file says about its tensors. ModelFileError where the values do not make sense.

    network: what the tensors are for. preprocess: how an image becomes its input.
    class_ids: unique names for programs ("n04146614"); class_names: for people ("school bus"). Each
    is empty, or as long as network.head.classes.
    threshold: probability of the first answer, 0 to 1, below which the answer is "not sure".
    licence: of the weights, an SPDX expression or one line of text.
    provenance: whatever tells where the weights come from: sources, command, versions.
    measured: figures, each with at least "what", "value" (a number) and "protocol" (how to repeat
    the measurement).
    activations: the values that the int8 graph rounds, by paper name ("input" for the normalised image);
    empty for a model that was not quantised. See docs/format.md.
    """

    network: Network
    preprocess: Preprocess = TORCHVISION
    class_ids: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    threshold: float | None = None
    licence: str = ""
    provenance: Mapping[str, JSON] = field(default_factory=dict, hash=False)
    measured: tuple[Mapping[str, JSON], ...] = field(default=(), hash=False)
    activations: Mapping[str, Activation] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if replace(self.network) != self.network:
            raise ModelFileError(
                f"the network is {self.network.name} cut short; expected all of it"
            )
        classes = self.network.head.classes
        for what in ("class_ids", "class_names"):
            names = tuple(_lines(getattr(self, what), what))
            if names and len(names) != classes:
                raise ModelFileError(
                    f"the record has {len(names)} {what}, but the head has {classes} classes"
                )
            object.__setattr__(self, what, names)
        if len(set(self.class_ids)) != len(self.class_ids):
            twice = next(name for name in self.class_ids if self.class_ids.count(name) > 1)
            raise ModelFileError(f"the record has the class id {shown(twice)} twice")
        if self.threshold is not None:
            if not _is_number(self.threshold) or not 0 <= self.threshold <= 1:
                raise ModelFileError(
                    f"the record's threshold is {shown(self.threshold)}; expected 0 to 1, or null"
                )
            object.__setattr__(self, "threshold", float(self.threshold))
        if not isinstance(self.licence, str) or not _is_line(self.licence, longest=None):
            raise ModelFileError(
                f"the record's licence is {shown(self.licence)}; expected one line of text"
            )
        object.__setattr__(self, "provenance", _json_object(self.provenance, "provenance"))
        object.__setattr__(self, "measured", tuple(_measured(self.measured)))
        object.__setattr__(self, "activations", _activations(self.activations, self.network))

    def to_json(self) -> str:
        """The record as canonical JSON: keys sorted, no spaces."""
        network, head = self.network, self.network.head
        values: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "network": {
                "column": network.column,
                "batch_norm": network.batch_norm,
                "width": float(network.width),
                "in_channels": network.in_channels,
                "pool": network.pool,
                "head": {"kind": head.kind, "classes": head.classes, "layers": head.layers},
            },
            "preprocess": self.preprocess.to_dict(),
            "class_ids": self.class_ids,
            "class_names": self.class_names,
            "threshold": self.threshold,
            "licence": self.licence,
            "provenance": self.provenance,
            "measured": self.measured,
        }
        if self.activations:
            values["activations"] = {
                name: {"scale": a.scale, "zero_point": a.zero_point}
                for name, a in self.activations.items()
            }
        return strict_json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that `to_json` wrote. Unknown and missing keys are refused: ModelFileError."""
        try:
            record = strict_json.loads(text)
        except ValueError as error:
            raise ModelFileError(f"its record cannot be read as JSON: {error}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if _is_integer(version) and version > FORMAT_VERSION:
            raise ModelFileError(
                f"written by a newer verydeep: its format version is {version}, and this verydeep "
                f"reads {FORMAT_VERSION}; upgrade with: pip install --upgrade verydeep"
            )
        values = _fields(record, _RECORD_KEYS, "record", _OPTIONAL_RECORD_KEYS)
        if not _is_integer(version) or version != FORMAT_VERSION:
            raise ModelFileError(
                f"the record's format_version is {shown(version)}; expected {FORMAT_VERSION}"
            )
        preprocess = _json_object(values["preprocess"], "preprocess")
        try:
            return cls(
                network=_network(values["network"]),
                preprocess=Preprocess.from_dict(preprocess),
                class_ids=cast("tuple[str, ...]", values["class_ids"]),
                class_names=cast("tuple[str, ...]", values["class_names"]),
                threshold=cast("float | None", values["threshold"]),
                licence=cast("str", values["licence"]),
                provenance=cast("dict[str, JSON]", values["provenance"]),
                measured=cast("tuple[dict[str, JSON], ...]", values["measured"]),
                activations=_read_activations(values),
            )
        except (NetworkError, PreprocessError) as error:
            raise ModelFileError(f"its record does not make sense: {error}") from None


class ModelFile:
    """An open model file, memory-mapped and read-only. `read` makes one.

    path: as given. record: what the tensors are.
    stored: arrays as they lie in the file, by their names there: "features.0.weight", or
    "features.0.weight.q" with "features.0.weight.scale". They are read-only views of the map, which
    lives as long as one of them does. A file that is replaced (as `write` does) keeps its old bytes
    here; one that another program shortens in place must not be used any more.
    stamp: which file was opened: its device, inode, ctime_ns, size in bytes and mtime_ns, as they were
    then. Two that are equal mean the same bytes; whatever remembers something of this file keys it on them.
    """

    def __init__(
        self,
        path: Path,
        record: Record,
        stored: Mapping[str, NDArray[Any]],
        mapped: mmap.mmap,
        stamp: hashes.Stamp,
    ) -> None:
        self.path = path
        self.record = record
        self.stored: Mapping[str, NDArray[Any]] = MappingProxyType(dict(stored))
        self.stamp = stamp
        self._mapped = mapped

    def __repr__(self) -> str:
        return f"ModelFile({str(self.path)!r}, {self.record.network!r})"

    def tensors(self, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Weights by torchvision's key, all of them or those of `keys`, in shape `network.tensors`.

        float32, dequantised (q * scale); num_batches_tracked is int64. Tensors that are stored so
        already come as read-only views without a copy, the others as new arrays.
        ModelFileError for a key that the network does not have.
        """
        known = self.record.network.tensors
        result: dict[str, NDArray[Any]] = {}
        for key in known if keys is None else keys:
            if key not in known:
                raise ModelFileError(
                    f"{self.record.network.name} has no tensor {shown(key)}{nearest(key, known)}"
                )
            result[key] = self._tensor(key)
        return result

    @cached_property
    def sha256(self) -> str:
        """Of the whole file as it was when opened: 64 hexadecimal digits.

        Reads all of it, unless that was done before, by any process, and is still in verydeep's cache.
        """
        return hashes.sha256_of(
            self.stamp, self.path, lambda: hashlib.sha256(self._mapped).hexdigest()
        )

    def _tensor(self, key: str) -> NDArray[Any]:
        # Weights may be infinite, or NaNs of any kind: they are handed on, not complained about.
        with np.errstate(all="ignore"):
            if f"{key}.q" in self.stored:
                values = self.stored[f"{key}.q"].astype(np.float32)
                values *= self.stored[f"{key}.scale"]
                return values
            array = self.stored[key]
            dtype = np.int64 if array.dtype.kind == "i" else np.float32
            return np.require(array, dtype, "A")  # A: a foreign writer need not align its data


def read(path: str | os.PathLike[str]) -> ModelFile:
    """Open a model file: its header is read and checked against the table, its weights are mapped.

    ModelFileError, one line that names the file, whatever is wrong with it: missing, not a model
    file, cut short, damaged, of a newer version, or at odds with its own record. Beyond the header,
    only the scales of quantised tensors are read; the values of weights are not checked.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first, since opening a pipe would wait
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise ModelFileError(f"it is {kind}; expected a .safetensors file")
        with open(path, "rb") as file:
            return _read(path, file)
    except ModelFileError as error:
        raise _about(path, str(error)) from None
    except FileNotFoundError:
        raise _about(path, "there is no such file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _about(path, f"it cannot be read: {reason}") from None
    except ValueError as error:  # a path with a zero byte, or a file that shrank under our hands
        raise _about(path, f"it cannot be read: {error}") from None


def write(
    path: str | os.PathLike[str], record: Record, tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a model file. The same record and tensors give the same bytes.

    tensors: by torchvision's key, float32 or float16 (num_batches_tracked int64), in the shapes of
    `record.network.tensors`. Instead of a convolution's or FC layer's weight there may be
    `<key>.q`, int8 or int16, with `<key>.scale`, float32 of shape (out, 1, 1, 1) or (out, 1).

    The file appears whole or not at all: one that was at `path` before stays until the new one is
    safely on the disk. ModelFileError where tensors contradict the table, or the disk refuses.
    """
    path = Path(path)
    try:
        arrays = {name: _little_endian(name, array) for name, array in tensors.items()}
        _check(record.network, {name: (_dtype(a), a.shape) for name, a in arrays.items()})
        _check_scales(arrays)
        # Widest elements first, so that each tensor lies at a multiple of its element's size.
        names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
        layout, end = {}, 0
        for name in names:
            begin, end = end, end + arrays[name].nbytes
            layout[name] = Tensor(_dtype(arrays[name]), arrays[name].shape, begin, end)
        header = safetensors_header.encode(Header({"verydeep": record.to_json()}, layout))
        _replace(path, [header, *(arrays[name].reshape(-1).view(np.uint8).data for name in names)])
    except ModelFileError as error:
        raise _about(path, str(error)) from None
    except ValueError as error:  # a path with a zero byte
        raise _about(path, f"it cannot be written: {error}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _about(
            path,
            f"it cannot be written: {reason}; nothing was changed. Check that the folder exists "
            "and can be written to, and that its disk has room",
        ) from None


def _read(path: Path, file: BinaryIO) -> ModelFile:
    status = os.fstat(file.fileno())  # of the file that is open, whatever has its name by now
    file_bytes = status.st_size
    first = file.read(64)
    if not first:
        raise ModelFileError("the file is empty; expected a model file")
    if first[8:9] != b"{" or int.from_bytes(first[:8], "little") > MAX_HEADER_BYTES:
        _refuse_foreign(first)
    length = safetensors_header.parse_length(first, file_bytes)
    file.seek(8)
    header = safetensors_header.parse(file.read(length), file_bytes - 8 - length)
    if "verydeep" not in header.metadata:
        raise ModelFileError(
            "it is a safetensors file, but not a verydeep model file, since its metadata has no "
            f"verydeep record; {_CONVERT}"
        )
    record = Record.from_json(header.metadata["verydeep"])
    _check(record.network, {name: (t.dtype, t.shape) for name, t in header.tensors.items()})
    mapped = mmap.mmap(file.fileno(), file_bytes, access=mmap.ACCESS_READ)
    stored: dict[str, NDArray[Any]] = {}
    for name, tensor in header.tensors.items():
        count, offset = math.prod(tensor.shape), 8 + length + tensor.start
        flat = np.frombuffer(mapped, _DTYPES[tensor.dtype], count, offset)
        stored[name] = flat.reshape(tensor.shape)
    _check_scales(stored)
    return ModelFile(path, record, stored, mapped, hashes.stamp(status))


def _check(network: Network, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compare names, dtypes, shapes with the table: each tensor once, in one of its two forms."""
    allowed: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for key, shape, is_weight in _table(network):
        q, scale = f"{key}.q", f"{key}.scale"
        if is_weight and (q in found or scale in found):
            if key in found:
                raise ModelFileError(f"it has {key} both as floats and quantised; expected one")
            allowed[q] = _QUANTISED, shape
            allowed[scale] = ("F32",), (shape[0], *(1 for _ in shape[1:]))
        elif key.endswith(".num_batches_tracked"):
            allowed[key] = _COUNTS, shape
        else:
            allowed[key] = _FLOATS, shape
    missing = [name for name in allowed if name not in found]
    extra = [name for name in found if name not in allowed]
    if missing:
        raise ModelFileError(
            f"the tensor {missing[0]}, which {network.name} needs, is missing{_others(missing)}"
            + (f"; it has {shown(extra[0])}, which is unknown{_others(extra)}" if extra else "")
        )
    if extra:
        raise ModelFileError(
            f"it has a tensor {shown(extra[0])}, which {network.name} does not"
            f"{_others(extra)}{nearest(extra[0], network.tensors)}"
        )
    for name, (dtypes, shape) in allowed.items():
        dtype, found_shape = found[name]
        if dtype not in dtypes:
            raise ModelFileError(
                f"the tensor {name} has the dtype {dtype}; expected {' or '.join(dtypes)}"
            )
        if found_shape != shape:
            raise ModelFileError(
                f"the tensor {name} has the shape {list(found_shape)}, but {network.name} with the "
                f"record's choices has {list(shape)}"
            )


def _table(network: Network) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Key and shape of every tensor, and whether it is a weight that may be quantised."""
    for layer in network.layers:
        for key, shape in layer.tensors.items():
            yield key, shape, key == f"{layer.key}.weight"


def _check_scales(stored: Mapping[str, NDArray[Any]]) -> None:
    for name, array in stored.items():
        if name.endswith(".scale"):
            wrong = array[~(np.isfinite(array) & (array > 0))]
            if wrong.size:
                raise ModelFileError(
                    f"the tensor {name} has the value {wrong.flat[0]}; "
                    "expected finite numbers above 0"
                )


def _dtype(array: NDArray[Any]) -> str:
    """safetensors' name of an array's dtype; numpy's own where a model file cannot hold it."""
    names = (name for name, dtype in _DTYPES.items() if dtype == array.dtype)
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


def _replace(path: Path, chunks: Sequence[bytes | memoryview]) -> None:
    """Write `chunks` to a new file beside `path`, wait for the disk, and give it the name."""
    path = path.resolve()  # behind a link, the file is replaced and not the link
    if path.exists() and not path.is_file():  # such as /dev/null, which must not be replaced
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ModelFileError(f"it is {kind}; expected the name of a new or an old model file")
    temporary = path.parent / f".verydeep-{os.urandom(8).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name, too, should survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError:
            pass  # some network file systems cannot; the file is complete all the same
        finally:
            os.close(folder)


def _refuse_foreign(first: bytes) -> None:
    for pattern, what in _FOREIGN:
        if re.match(pattern, first):
            raise ModelFileError(f"it is not a model file, but {what}")
    if first[8:9] not in (b"", b"{"):
        raise ModelFileError(
            "it is not a safetensors file: its first eight bytes are not followed by '{' "
            f"but by {shown(first[8:9])}; {_CONVERT}"
        )


def _about(path: Path, text: str) -> ModelFileError:
    """The error as a person sees it: one line that names the file, printable and not endless."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"{path}: {text}")
    return ModelFileError(line if len(line) <= 1000 else f"{line[:999]}…")


def _network(value: JSON) -> Network:
    fields = _fields(value, _NETWORK_KEYS, "record's network")
    head = _fields(fields["head"], _HEAD_KEYS, "record's network's head")
    # The table checks what the values say; here only what kind of value they are.
    for what, name in (*fields.items(), *head.items()):
        if what in ("column", "pool", "kind") and not _is_line(name, longest=64):
            raise ModelFileError(f"the record's {what} is {shown(name)}; expected a name")
    if not isinstance(fields["batch_norm"], bool):
        raise ModelFileError(
            f"the record's batch_norm is {shown(fields['batch_norm'])}; expected true or false"
        )
    layers = tuple(_lines(head["layers"], "head's layers", longest=64))
    return Network(
        fields["column"],
        fields["batch_norm"],
        fields["width"],
        fields["in_channels"],
        fields["pool"],
        Head(head["kind"], head["classes"], layers),
    )


def _fields(
    value: JSON, keys: tuple[str, ...], what: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A JSON object that has exactly these keys, and perhaps some of the optional ones."""
    if not isinstance(value, dict):
        raise ModelFileError(f"the {what} is {shown(value)}; expected a JSON object")
    known = (*keys, *optional)
    for key in value:
        if key not in known:
            raise ModelFileError(f"the {what} has an unknown key {shown(key)}{nearest(key, known)}")
    for key in keys:
        if key not in value:
            raise ModelFileError(f"the {what} has no {key!r}")
    return value


def _json_object(value: object, what: str) -> dict[str, JSON]:
    """A copy of a mapping whose values are JSON."""
    if not isinstance(value, Mapping):
        raise ModelFileError(f"the record's {what} is {shown(value)}; expected a JSON object")
    try:
        # depth 2: the record lies around it and, for measured, a list
        return cast("dict[str, JSON]", strict_json.checked(dict(value), depth=2))
    except ValueError as error:
        raise ModelFileError(f"the record's {what} cannot be stored: {error}") from None


def _measured(figures: object) -> Iterator[dict[str, JSON]]:
    if not isinstance(figures, list | tuple):
        raise ModelFileError(f"the record's measured is {shown(figures)}; expected a list")
    for index, figure in enumerate(figures):
        copy = _json_object(figure, f"measured[{index}]")
        for key in ("what", "protocol"):
            if not isinstance(copy.get(key), str) or not copy[key]:
                raise ModelFileError(
                    f"the record's measured[{index}] has {shown(copy.get(key))} as {key!r}; "
                    "expected text"
                )
        if not _is_number(copy.get("value")):
            raise ModelFileError(
                f"the record's measured[{index}] has {shown(copy.get('value'))} as 'value'; "
                "expected a number"
            )
        yield copy


def _read_activations(record: dict[str, Any]) -> dict[str, Activation]:
    if "activations" not in record:
        return {}
    values = record["activations"]
    if not isinstance(values, dict) or not values:
        raise ModelFileError(
            f"the record's activations are {shown(values)}; expected a JSON object with one member for "
            "each rounded value, or none at all for a model that was not quantised"
        )
    found = {}
    for name, value in values.items():
        fields = _fields(value, _ACTIVATION_KEYS, f"record's activation {shown(name)}")
        found[name] = Activation(fields["scale"], fields["zero_point"])
    return found


def _activations(given: object, network: Network) -> dict[str, Activation]:
    """A copy, checked against the table: only layers that have maps or features can be rounded."""
    if not isinstance(given, Mapping):
        raise ModelFileError(f"the record's activations are {shown(given)}; expected a mapping")
    known = ["input", *(layer.name for layer in network.layers if layer.kind in _ROUNDED_KINDS)]
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, known) if isinstance(name, str) else ""
            raise ModelFileError(
                f"the record has an activation {shown(name)}, which {network.name} with the record's "
                f"choices does not round{hint}"
            )
        if not isinstance(value, Activation):
            raise ModelFileError(
                f"the record's activation {shown(name)} is {shown(value)}; expected an Activation"
            )
    return dict(given)


def _lines(names: object, what: str, longest: int = _LONGEST_NAME) -> Iterator[str]:
    if not isinstance(names, list | tuple):
        raise ModelFileError(f"the record's {what} is {shown(names)}; expected a list of names")
    for name in names:
        if not name or not _is_line(name, longest):
            raise ModelFileError(
                f"the record's {what} has {shown(name)}; expected 1 to {longest} characters "
                "of text without control characters"
            )
        yield name


def _is_line(text: object, longest: int | None) -> bool:
    """Whether it is text that stays on one line: no control characters, surrogates, line breaks."""
    return (
        isinstance(text, str)
        and (longest is None or len(text) <= longest)
        and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    )


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
