"""Features as a Parquet table: columns "path", "error" and a list of floats a layer, for pandas and others.

The record is "verydeep_features" in the schema's metadata. A photo that could not be read has null.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, MissingExtraError
from .featurefile import About

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtraError("a .parquet file", "parquet") from error

if TYPE_CHECKING:
    from .extraction import Journal

KEY = b"verydeep_features"
GROUP_ROWS = 8192


class Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if KEY not in metadata:
                raise DataError("it has no record; expected a file that `verydeep features` wrote")
            self.about = metadata[KEY].decode()
            self.rows = file.metadata.num_rows

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        shape = About.from_json(self.about).layers[layer]
        for column in self._column(layer, rows):
            good = np.asarray(column.is_valid())
            values = np.full((len(column), *shape), np.nan, np.float32)
            # flatten() leaves out what is null
            values[good] = np.asarray(column.flatten()).reshape(-1, *shape)
            yield values

    def texts(self, column: str) -> Iterator[str]:
        for part in self._column(column, GROUP_ROWS):
            yield from (text or "" for text in part.to_pylist())

    def _column(self, name: str, rows: int) -> Iterator[Any]:
        with pq.ParquetFile(self._path) as file:
            # group by group, since iter_batches keeps those that it has passed
            for group in range(file.num_row_groups):
                for chunk in file.read_row_group(group, columns=[name]).column(0).chunks:
                    for start in range(0, len(chunk), rows):
                        yield chunk.slice(start, rows)


def write(file: IO[bytes], rows: Journal) -> None:
    about = rows.about
    kinds = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        *(pa.field(name, pa.list_(pa.float32(), about.width(name))) for name in about.layers),
    ]
    schema = pa.schema(kinds, metadata={KEY: about.to_json().encode()})
    step = min(GROUP_ROWS, about.step(*about.layers))
    numbers = {name: rows.numbers(name, step) for name in about.layers}
    paths, errors = rows.texts("path"), rows.texts("error")
    # numbers of networks do not repeat: a dictionary of them, or compressing them, is work for nothing
    packed = dict.fromkeys(("path", "error"), "zstd")
    with pq.ParquetWriter(file, schema, use_dictionary=["error"], compression=packed) as writer:
        for _ in range(0, rows.rows, step):
            texts = [[_text(t) for t in islice(column, step)] for column in (paths, errors)]
            failed = np.array([bool(text) for text in texts[1]])
            columns = [
                pa.array(texts[0]),
                pa.array([text or None for text in texts[1]], pa.string()),
            ]
            for name, blocks in numbers.items():
                flat = pa.array(next(blocks).reshape(-1))
                columns.append(
                    pa.FixedSizeListArray.from_arrays(
                        flat, about.width(name), mask=pa.array(failed)
                    )
                )
            writer.write_table(pa.table(columns, schema=schema), row_group_size=step)


def _text(text: str) -> str:
    """A path that is not UTF-8 with its odd bytes escaped: the format allows no others."""
    return text.encode("utf-8", "backslashreplace").decode()
