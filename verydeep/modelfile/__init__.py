"""The model file: weights under torchvision's names, with the record of what they are.

A safetensors file (https://github.com/huggingface/safetensors#format): eight bytes give the header's
length; then come the header, a JSON object, and the tensors' bytes without gaps. The specification is
docs/format.md. It is checked against the table (`nets.py`) when it is opened, but its weights are not read:
`stored` holds views of a memory map. Nothing in a model file is ever executed. `write` makes one: whole or
not at all, the same bytes for the same content.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError, nearest
from ..files import strict_json
from ..files.strict_json import shown
from ..nets import Network
from .record import FORMAT_VERSION, Activation, Record

if TYPE_CHECKING:
    from ..files.hashes import Stamp

__all__ = ["FORMAT_VERSION", "Activation", "ModelFile", "Record", "is_model_file", "read", "write"]

# The data begins at a multiple of this, counted from the file's first byte: the size of I64 and F64.
_ALIGNMENT = 8

# safetensors' names of the types that a model file may hold, all little-endian
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_FLOATS, _QUANTISED, _COUNTS, _CODED = ("F32", "F16"), ("I8", "I16"), ("I64",), ("U8",)

# vgg19_bn's tensors take 15 kB, the names of ImageNet-21k's classes 1 MB. Parsed JSON takes up to
# some sixty times its size in memory, so this also bounds what a hostile file can make us allocate.
MAX_HEADER_BYTES = 8 * 2**20

_FORMS = ("q", "scale", "code")  # how a weight may be stored otherwise than as floats

_AGAIN = "it was cut short, added to or damaged: fetch or write it again"
_CONVERT = "`verydeep weights convert` makes a model file of published or trained weights"


@dataclass(frozen=True)
class Tensor:
    """One tensor: `dtype` is the format's name of its type; `start` and `stop` count bytes of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(eq=False, repr=False)
class ModelFile:
    """An open model file, memory-mapped. `read` makes one.

    path: as given. record: what the tensors are.
    stored: arrays as they lie in the file, by their names there: "features.0.weight", or
    "features.0.weight.q" with "features.0.weight.scale", or "features.0.weight.code", which
    `verydeep.modelfile.codec` reads. They are read-only views of the map, which
    lives as long as one of them does. A file that is replaced (as `write` does) keeps its old bytes
    here; on Windows it cannot be replaced while it is open. One that another program shortens in place must
    not be used any more.
    stamp: which file was opened: its device, inode, ctime_ns, size in bytes and mtime_ns, as they were
    then. Two that are equal mean the same bytes; whatever remembers something of this file keys it on them.

    It can be pickled: the other process, on another machine too, opens the file of that path, and refuses
    one of another size, header, or first numbers of a tensor.
    """

    path: Path
    record: Record
    stored: Mapping[str, NDArray[Any]]
    _absolute: Path  # the working folder may be another one tomorrow
    _mapped: mmap.mmap
    _status: os.stat_result  # of the file that was opened, whatever has its name by now

    def __repr__(self) -> str:
        return f"ModelFile({str(self.path)!r}, {self.record.network!r})"

    def __reduce__(self) -> tuple[Callable[..., ModelFile], tuple[Path, str]]:
        return _reopen, (self._absolute, self._glance())

    def _glance(self) -> str:
        """What a copy of the file has in common with it and another model has not; little is read."""
        begin = 8 + int.from_bytes(self._mapped[:8], "little")
        digest = hashlib.sha256(self._mapped[:begin])
        digest.update(str(len(self._mapped)).encode())
        for array in self.stored.values():
            digest.update(array.ravel()[:16].tobytes())
        return digest.hexdigest()

    def tensors(
        self, keys: Iterable[str] | None = None, *, writable: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Weights by torchvision's key, all of them or those of `keys`, in shape `network.tensors`.

        float32, dequantised (q * scale) or decoded; num_batches_tracked is int64. Tensors that are stored
        so already come as read-only views without a copy, the others as new arrays.
        writable: views may be written to, as torch.from_numpy wants it. The map is copy-on-write, so that
        the file never changes; but this ModelFile does, and must not be used for anything else then.
        ModelFileError for a key that the network does not have, and for a coded tensor that is damaged.
        """
        known = self.record.network.tensors
        wanted = list(known if keys is None else keys)
        for key in wanted:
            if key not in known:
                raise ModelFileError(
                    f"{self.record.network.name} has no tensor {shown(key)}{nearest(key, known)}"
                )
        stored = self.decoded(wanted)
        result: dict[str, NDArray[Any]] = {}
        for key in wanted:
            array = dequantised(stored, key)
            if writable and not array.flags.writeable:
                shared = memoryview(self._mapped).readonly
                array = array.copy() if shared else array.view()
                array.flags.writeable = True
            result[key] = array
        return result

    def decoded(self, keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """`stored` with float32 weights in place of what is coded, all of it or that of `keys`.

        ModelFileError where a coded tensor is damaged.
        """
        known = self.record.network.tensors
        coded = [key for key in (known if keys is None else keys) if f"{key}.code" in self.stored]
        found = {name: array for name, array in self.stored.items() if not name.endswith(".code")}
        if coded:
            from .decoding import weights

            found.update(weights(self, coded))
        return found

    @property
    def size_bytes(self) -> int:
        """Of the file that was opened."""
        return self._status.st_size

    @cached_property
    def stamp(self) -> Stamp:
        from ..files import hashes  # not needed to read

        return hashes.stamp(self._status)

    @cached_property
    def sha256(self) -> str:
        """Of the whole file as it was when opened: 64 hexadecimal digits.

        Reads all of it, unless that was done before, by any process, and is still in verydeep's cache.
        """
        from ..files import hashes

        return hashes.sha256_of(
            self.stamp, self.path, lambda: hashlib.sha256(self._mapped).hexdigest()
        )


def dequantised(stored: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    """A tensor by torchvision's key as float32 (counts int64), without a copy where it is stored so."""
    # Weights may be infinite, or NaNs of any kind: they are handed on, not complained about.
    with np.errstate(all="ignore"):
        if f"{key}.q" in stored:
            values = stored[f"{key}.q"].astype(np.float32)
            values *= stored[f"{key}.scale"]
            return values
        dtype = np.int64 if stored[key].dtype.kind == "i" else np.float32
        return np.require(stored[key], dtype, "A")  # A: a foreign writer need not align its data


def key_of(name: str) -> str:
    """Torchvision's key of a tensor by its name in a file."""
    stem, _, form = name.rpartition(".")
    return stem if form in _FORMS else name


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
        raise about(path, str(error)) from None
    except FileNotFoundError:
        raise about(path, "there is no such file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise about(path, f"it cannot be read: {reason}") from None
    except ValueError as error:  # a path with a zero byte, or a file that shrank under our hands
        raise about(path, f"it cannot be read: {error}") from None


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file claims to be one, or is a .safetensors file so damaged that `read` must say it."""
    import safetensors

    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            return "verydeep" in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return Path(path).suffix == ".safetensors"


def about(path: Path, text: str) -> ModelFileError:
    """The error as a person sees it: one line that names the file, printable and not endless."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"{path}: {text}")
    return ModelFileError(line if len(line) <= 1000 else f"{line[:999]}…")


def _read(path: Path, file: BinaryIO) -> ModelFile:
    """The safetensors library checks that the header fits the file. Here it is read more strictly, so that
    nothing is left that two programs could understand differently: no key twice, no member that the format
    lacks.
    """
    import safetensors

    status = os.fstat(file.fileno())
    first = file.read(64)
    if not first:
        raise ModelFileError("the file is empty; expected a model file")
    length = int.from_bytes(first[:8], "little")
    if first[8:9] != b"{" or length > MAX_HEADER_BYTES:
        _refuse_foreign(first)
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"its first eight bytes say that the header is {length} bytes long; expected at most "
            f"{MAX_HEADER_BYTES}: the file is damaged, or not a safetensors file"
        )
    if len(first) < 8 or length > status.st_size - 8:
        needed = (
            f"its header alone takes {8 + length}" if len(first) >= 8 else "a header takes more"
        )
        raise ModelFileError(f"the file ends after {status.st_size} bytes, but {needed}; {_AGAIN}")
    file.seek(8)
    try:
        entries: Any = strict_json.loads(file.read(length))
    except ValueError as error:
        raise ModelFileError(f"its header cannot be read as JSON: {error}") from None
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as checked:
            names = checked.offset_keys()  # in the order of their bytes
    except safetensors.SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelFileError(f"its header does not fit the file: {reason}; {_AGAIN}") from None
    metadata = entries.pop("__metadata__", None) or {}
    if set(names) != set(entries):
        raise ModelFileError("another file took its place while it was read; try again")
    tensors: dict[str, Tensor] = {}
    for name in names:
        entry = entries[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ModelFileError(
                f"tensor {shown(name)} is described by {shown(entry)}; "
                "expected dtype, shape and data_offsets"
            )
        tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
    if "verydeep" not in metadata:
        raise ModelFileError(
            "it is a safetensors file, but not a verydeep model file, since its metadata has no "
            f"verydeep record; {_CONVERT}"
        )
    record = Record.from_json(metadata["verydeep"])
    check_table(record.network, tensors)
    # Copy-on-write, though nothing here writes, so that torch can take the very same pages.
    try:
        mapped = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_COPY)
    except OSError:  # not where a system promises no more memory than it has; reading needs none
        mapped = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
    stored: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        count, begin = math.prod(tensor.shape), 8 + length + tensor.start
        array = np.frombuffer(mapped, DTYPES[tensor.dtype], count, begin).reshape(tensor.shape)
        array.flags.writeable = False
        stored[name] = array
    check_scales(stored)
    return ModelFile(path, record, MappingProxyType(stored), path.absolute(), mapped, status)


def _reopen(path: Path, glance: str) -> ModelFile:
    """The file of a pickled ModelFile."""
    model = read(path)
    if model._glance() != glance:
        raise about(
            path, "it is not the file any more that was open when this was pickled; pickle again"
        )
    return model


def check_table(network: Network, given: Mapping[str, Tensor]) -> None:
    """Compare names, dtypes, shapes with the table: each tensor once, in one of its three forms."""
    allowed: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for key, shape in network.tensors.items():
        q, scale, code = f"{key}.q", f"{key}.scale", f"{key}.code"
        # weights of layers alone have several dimensions
        coded = len(shape) > 1 and code in given
        quantised = len(shape) > 1 and (q in given or scale in given)
        if key in given and (coded or quantised):
            form = "coded" if coded else "quantised"
            raise ModelFileError(f"it has {key} both as floats and {form}; expected one")
        if coded:
            from .codec import least_bytes

            stream = given[code].shape
            if len(stream) != 1 or stream[0] < least_bytes(shape):
                raise ModelFileError(
                    f"the tensor {code} has the shape {shown(list(stream))}; expected one dimension, "
                    f"and for {math.prod(shape)} weights {least_bytes(shape)} bytes at least"
                )
            allowed[code] = _CODED, stream
        elif quantised:
            allowed[q] = _QUANTISED, shape
            allowed[scale] = ("F32",), (shape[0], *[1] * (len(shape) - 1))
        else:
            allowed[key] = _COUNTS if key.endswith(".num_batches_tracked") else _FLOATS, shape
    if allowed.keys() != given.keys():
        _refuse_names(network, allowed, given)
    for name, (dtypes, shape) in allowed.items():
        tensor = given[name]
        if tensor.dtype not in dtypes:
            raise ModelFileError(
                f"the tensor {name} has the dtype {tensor.dtype}; expected {' or '.join(dtypes)}"
            )
        if tensor.shape != shape:
            raise ModelFileError(
                f"the tensor {name} has the shape {shown(list(tensor.shape))}, but {network.name} with the "
                f"record's choices has {list(shape)}"
            )


def _refuse_names(network: Network, allowed: Iterable[str], given: Iterable[str]) -> NoReturn:
    missing = [name for name in allowed if name not in given]
    extra = [name for name in given if name not in allowed]
    if missing:
        raise ModelFileError(
            f"the tensor {missing[0]}, which {network.name} needs, is missing{_others(missing)}"
            + (f"; it has {shown(extra[0])}, which is unknown{_others(extra)}" if extra else "")
        )
    raise ModelFileError(
        f"it has a tensor {shown(extra[0])}, which {network.name} does not"
        f"{_others(extra)}{nearest(extra[0], network.tensors)}"
    )


def check_scales(stored: Mapping[str, NDArray[Any]]) -> None:
    for name, array in stored.items():
        if name.endswith(".scale"):
            wrong = array[~(np.isfinite(array) & (array > 0))]
            if wrong.size:
                raise ModelFileError(
                    f"the tensor {name} has the value {wrong.flat[0]}; "
                    "expected finite numbers above 0"
                )


def _refuse_foreign(first: bytes) -> None:
    from ..files.photo_paths import sniff  # only where it is not what it should be

    what, advice = sniff(first)
    if what in ("a zip archive", "a Python pickle"):
        what += ", probably a .pth from torch.save"
        advice = f"verydeep never opens these, since they can run code; {_CONVERT}"
    if what:
        advice = advice or "expected a .safetensors file"
        raise ModelFileError(f"it is not a model file, but {what}; {advice}")
    if first[8:9] not in (b"", b"{"):
        raise ModelFileError(
            "it is not a safetensors file: its first eight bytes are not followed by '{' "
            f"but by {shown(first[8:9])}; {_CONVERT}"
        )


def _others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def write(
    path: str | os.PathLike[str], record: Record, tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a model file. The same record and tensors give the same bytes.

    tensors: by torchvision's key, float32 or float16 (num_batches_tracked int64), in the shapes of
    `record.network.tensors`. Instead of a convolution's or FC layer's weight there may be
    `<key>.q`, int8 or int16, with `<key>.scale`, float32 of shape (out, 1, 1, 1) or (out, 1); or
    `<key>.code`, uint8, as `verydeep.modelfile.codec.encode` makes it.

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
        coded = any(name.endswith(".code") for name in names)
        header = encode({"verydeep": record.to_json(coded)}, layout)
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
