"""Features as numpy's own archive: `numpy.load(file)` gives "path", "error" and an array a layer.

Numbers are stored as they are, so that they can be memory-mapped inside the archive; texts are deflated,
since numpy pads each to the longest. "about" is the record.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError

if TYPE_CHECKING:
    from .extraction import Journal

CHUNK_ROWS = 4096
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's entry: lengths of its name and of what follows


class Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._entries = {info.filename: info for info in archive.infolist()}
            if "about.npy" not in self._entries:
                raise DataError("it has no record; expected a file that `verydeep features` wrote")
            with archive.open("about.npy") as file:
                self.about = str(npy.read_array(file, allow_pickle=False))
            with archive.open("path.npy") as file:
                (self.rows,), _ = _header(file)

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        entry = self._entries[f"{layer}.npy"]
        if entry.compress_type != zipfile.ZIP_STORED:  # saved again by somebody
            with zipfile.ZipFile(self._path) as archive, archive.open(entry) as member:
                values = npy.read_array(member, allow_pickle=False)
            yield from (values[start : start + rows] for start in range(0, self.rows, rows))
            return
        with open(self._path, "rb") as file:
            file.seek(entry.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            file.seek(name + extra, os.SEEK_CUR)
            shape, dtype = _header(file)
            offset = file.tell()
        # a block at a time: a map of the whole counts as this process's memory, page by page, as it is read
        count, *row = shape
        row_bytes = dtype.itemsize * math.prod(row)
        for start in range(0, count, rows):
            block = (min(rows, count - start), *row)
            yield np.memmap(self._path, dtype, "r", offset + start * row_bytes, block)

    def texts(self, column: str) -> Iterator[str]:
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{column}.npy") as file:
            (count,), dtype = _header(file)
            for start in range(0, count, CHUNK_ROWS):
                part = file.read(dtype.itemsize * min(CHUNK_ROWS, count - start))
                yield from np.frombuffer(part, dtype).tolist()


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
                for _ in range(0, rows.rows, CHUNK_ROWS):
                    part = list(islice(texts, CHUNK_ROWS))
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


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
