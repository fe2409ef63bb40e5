"""The two forms of a file of features: numpy's own archive, and a Parquet table for pandas and others.

Both have "path", "error" and the numbers of each layer, a row a photo, and the record's JSON. A class reads
an open file of its form in blocks, and writes one of a journal, which is read in the same way: rows, about
(the record's JSON), texts(column) of "path" or "error", and numbers(layer, rows): blocks of so many rows,
float32, not a number where a photo failed. Others may save such a file again, so each column is looked at
first: require(column, row) is a ValueError where it is not there, or not of texts or of numbers as a row
has them; row: their shape, None for texts.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from .extraction import Journal

ROWS = 8192  # of texts in one go, and of a Parquet file in a group at most
KEY = b"verydeep_features"  # of the record in a Parquet file's metadata
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's entry: lengths of its name and of what follows
NO_RECORD = "it has no record; expected a file that `verydeep features` wrote"


class Source:
    """A file that is opened for each reading: the same one as at first, or DataError.

    No handle is kept: that could not be pickled, and on Windows nobody could replace the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _state(os.stat(path))

    @property
    def unchanged(self) -> bool:
        """Whether the path still leads to that file, and nobody wrote to it."""
        try:
            return _state(os.stat(self._path)) == self._known
        except OSError:
            return False

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        with open(self._path, "rb") as file:
            if _state(os.fstat(file.fileno())) != self._known:
                raise DataError("it has changed since it was opened; open it again")
            yield file


def _state(status: os.stat_result) -> tuple[int, int, int]:
    """Which file it is, and since when. Without its device, which another machine numbers otherwise."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class Npz:
    """`numpy.load(file)` gives "path", "error", an array a layer, and "about", which is the record.

    Numbers are stored as they are, so that they can be memory-mapped inside the archive; texts are
    deflated, since numpy pads each to the longest.
    """

    def __init__(self, path: Path) -> None:
        self.source = Source(path)
        with self.source.opened() as opened, zipfile.ZipFile(opened) as archive:
            self._entries = {info.filename: info for info in archive.infolist()}
            if "about.npy" not in self._entries:
                raise DataError(NO_RECORD)
            with archive.open("about.npy") as file:
                self.about = str(npy.read_array(file, allow_pickle=False))
            with archive.open("path.npy") as file:
                (self.rows,), _, _ = _header(file)

    def require(self, column: str, row: tuple[int, ...] | None) -> None:
        if f"{column}.npy" not in self._entries:
            raise ValueError(f"it has no {column}")
        with (
            self.source.opened() as opened,
            zipfile.ZipFile(opened) as archive,
            archive.open(f"{column}.npy") as file,
        ):
            shape, _, dtype = _header(file)
        what, kind = ("texts", "U") if row is None else ("floats", "f")
        wanted = (self.rows, *(row or ()))
        if dtype.kind != kind or shape != wanted:
            raise ValueError(f"{column} is {dtype} {shape}, not {what} {wanted}")

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        entry = self._entries[f"{layer}.npy"]
        with self.source.opened() as file:
            with zipfile.ZipFile(file) as archive, archive.open(entry) as member:
                shape, by_column, dtype = _header(member)
                offset = member.tell()
                if by_column or entry.compress_type != zipfile.ZIP_STORED:
                    member.seek(0)  # saved again by somebody
                    values = npy.read_array(member, allow_pickle=False)
                    yield from (values[start : start + rows] for start in range(0, self.rows, rows))
                    return
            file.seek(entry.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            offset += file.tell() + name + extra
            # a block at a time: a map of the whole counts as this process's memory, page by page, once read
            count, *row = shape
            row_bytes = dtype.itemsize * math.prod(row)
            for start in range(0, count, rows):
                block = (min(rows, count - start), *row)
                yield np.memmap(file, dtype, "r", offset + start * row_bytes, block)

    def texts(self, column: str) -> Iterator[str]:
        with (
            self.source.opened() as opened,
            zipfile.ZipFile(opened) as archive,
            archive.open(f"{column}.npy") as file,
        ):
            (count,), _, dtype = _header(file)
            for start in range(0, count, ROWS):
                part = file.read(dtype.itemsize * min(ROWS, count - start))
                yield from np.frombuffer(part, dtype).tolist()

    @staticmethod
    def write(file: IO[bytes], rows: Journal) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            about = np.array(rows.about.to_json())
            with _member(archive, "about", about.shape, about.dtype) as member:
                member.write(about.tobytes())
            for layer in rows.about.layers:
                shape = (rows.rows, *rows.about.layers[layer])
                with _member(archive, layer, shape, np.dtype("<f4")) as member:
                    for block in rows.numbers(layer, rows.about.step(layer)):
                        member.write(block.tobytes())
            for column in ("path", "error"):
                longest = max(map(len, rows.texts(column)), default=1)
                dtype = np.dtype(f"<U{max(1, longest)}")
                texts = rows.texts(column)
                with _member(archive, column, (rows.rows,), dtype, deflate=True) as member:
                    while part := list(islice(texts, ROWS)):
                        member.write(np.array(part, dtype).tobytes())


def _member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *,
    deflate: bool = False,
) -> IO[bytes]:  # fmt: skip
    entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same rows give the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    member = archive.open(entry, "w", force_zip64=True)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(member, header)
    return member


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape of an array in numpy's form, whether it lies column by column, and its dtype."""
    version = npy.read_magic(file)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)


def pyarrow() -> Any:
    """The package; MissingExtraError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("a .parquet file", "parquet") from error
    return pyarrow


class Parquet:
    """Columns "path", "error" and a list of floats a layer; null where a photo could not be read."""

    def __init__(self, path: Path) -> None:
        self.source = Source(path)
        with self.source.opened() as opened, pyarrow().parquet.ParquetFile(opened) as file:
            metadata = file.schema_arrow.metadata or {}
            if KEY not in metadata:
                raise DataError(NO_RECORD)
            self.about = metadata[KEY].decode()
            self.rows = file.metadata.num_rows
            self._schema = file.schema_arrow

    def require(self, column: str, row: tuple[int, ...] | None) -> None:
        at = self._schema.get_field_index(column)
        if at < 0:
            raise ValueError(f"it has no column {column}, or several")
        of, kind = pyarrow().types, self._schema.field(at).type
        if row is None:
            kind = kind.value_type if of.is_dictionary(kind) else kind
            none = column == "error" and of.is_null(kind)  # saved again, and no photo failed
            if not (none or of.is_string(kind) or of.is_large_string(kind)):
                raise ValueError(f"{column} is of {kind}, not of texts")
            return
        fixed = of.is_fixed_size_list(kind) and kind.list_size == math.prod(row)
        lists = fixed or of.is_list(kind) or of.is_large_list(kind)
        if not lists or not of.is_floating(kind.value_type):
            raise ValueError(f"{column} is of {kind}, not of lists of {math.prod(row)} floats")

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        shape = json.loads(self.about)["layers"][layer]
        for column in self._column(layer, rows):
            good = np.asarray(column.is_valid())
            values = np.full((len(column), *shape), np.nan, np.float32)
            # flatten() leaves out what is null
            values[good] = np.asarray(column.flatten()).reshape(-1, *shape)
            yield values

    def texts(self, column: str) -> Iterator[str]:
        for part in self._column(column, ROWS):
            yield from (text or "" for text in part.to_pylist())

    def _column(self, name: str, rows: int) -> Iterator[Any]:
        with self.source.opened() as opened, pyarrow().parquet.ParquetFile(opened) as file:
            # group by group, since iter_batches keeps those that it has passed
            for group in range(file.num_row_groups):
                for chunk in file.read_row_group(group, columns=[name]).column(0).chunks:
                    for start in range(0, len(chunk), rows):
                        yield chunk.slice(start, rows)

    @staticmethod
    def write(file: IO[bytes], rows: Journal, facts: Mapping[bytes, bytes] | None = None) -> None:
        """facts: what else its metadata has to say."""
        pa, about = pyarrow(), rows.about
        kinds = [
            pa.field("path", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            *(pa.field(name, pa.list_(pa.float32(), about.width(name))) for name in about.layers),
        ]
        schema = pa.schema(kinds, metadata={KEY: about.to_json().encode(), **(facts or {})})
        step = min(ROWS, about.step(*about.layers))
        numbers = [rows.numbers(name, step) for name in about.layers]
        # a path that is not UTF-8 has its odd bytes escaped: the format allows no others
        paths, errors = (
            (text.encode("utf-8", "backslashreplace").decode() for text in rows.texts(column))
            for column in ("path", "error")
        )
        # numbers of networks do not repeat: a dictionary of them, or compressing them, is work for nothing
        packed = dict.fromkeys(("path", "error"), "zstd")
        with pa.parquet.ParquetWriter(
            file, schema, use_dictionary=["error"], compression=packed
        ) as writer:
            while part := list(islice(paths, step)):
                failed = [text or None for text in islice(errors, step)]
                columns = [pa.array(part), pa.array(failed, pa.string())]
                missing = pa.array([text is not None for text in failed])
                for blocks, kind in zip(numbers, schema.types[2:], strict=True):
                    flat = pa.array(next(blocks).reshape(-1))
                    columns.append(
                        pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=missing)
                    )
                writer.write_table(pa.table(columns, schema=schema), row_group_size=step)
