"""A file of features: one row a photo, with its path, what a network made of it, or why that failed.

Three formats hold the same: .npz for numpy, .safetensors for anything that maps memory, .parquet for
tables (needs pyarrow). Each is written from a journal and read in blocks, so that a million photos need no
memory. A photo that could not be read has an error, and numbers that are not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ..errors import DataError
from ..files.atomic import replacing
from .about import About

if TYPE_CHECKING:
    from typing import IO

    from .journal import Journal

BLOCK_BYTES = 16 << 20  # of numbers that are looked at in one go

# suffix -> the module that reads and writes it: `open_stored(path)` and `write(file, journal)`
FORMATS: dict[str, str] = {".npz": "npz", ".parquet": "parquet", ".safetensors": "tensors"}


class Stored(Protocol):
    """What a format's reader offers. about: the record's JSON. rows: how many photos."""

    about: str
    rows: int

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        """The layer in blocks of so many rows, (rows, ...) float32, not a number where a photo failed."""

    def texts(self, column: str) -> Iterator[str]:
        """One column of all rows, "path" or "error"."""


class FeatureFile:
    """An open file of features.

    path: as given. about: how the features were made.
    """

    def __init__(self, path: Path, stored: Stored, about: About) -> None:
        self.path = path
        self.about = about
        self._stored = stored

    def __len__(self) -> int:
        """Photos, those that could not be read included."""
        return self._stored.rows

    def __str__(self) -> str:
        about = self.about
        pool = f" {about.pool}" if about.pool else ""
        layers = ", ".join(
            f"{name}{pool} ({'x'.join(map(str, shape))})" for name, shape in about.layers.items()
        )
        how = f"{about.network} ({about.engine} {about.precision})"
        return f"{self.path}: {len(self):,} photos, {layers}, {how}"

    def __repr__(self) -> str:
        return f"<FeatureFile {self}>"

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.about.layers)

    @cached_property
    def paths(self) -> list[str]:
        """One a row."""
        return list(self._stored.texts("path"))

    @cached_property
    def errors(self) -> list[str]:
        """One a row: why the photo could not be read, "" where it could."""
        return list(self._stored.texts("error"))

    def paths_of(self, rows: Collection[int]) -> dict[int, str]:
        """Paths of some rows, without keeping those of all."""
        wanted = set(rows)
        return {i: path for i, path in enumerate(self._stored.texts("path")) if i in wanted}

    def blocks(
        self, layer: str | None = None, rows: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, values): the layer in blocks of some megabytes, (rows, ...) float32.

        layer: None where there is only one. rows: the most in a block. Rows of photos that could not be
        read are not numbers (NaN).
        """
        name = self.about.layer(layer)
        start = 0
        step = max(1, BLOCK_BYTES // (4 * self.about.width(name)))
        step = step if rows is None else min(step, rows)
        for block in self._stored.numbers(name, step):
            yield start, block
            start += len(block)

    def numbers(self, layer: str | None = None) -> np.ndarray:
        """The whole layer, (rows, ...) float32: a memory map, except of a .parquet file."""
        name = self.about.layer(layer)
        blocks = list(self._stored.numbers(name, max(1, len(self))))
        if blocks:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return np.zeros((0, *self.about.layers[name]), np.float32)


def is_feature_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name says so; what is inside is seen when it is opened."""
    return Path(path).suffix.lower() in FORMATS


def require_format(path: str | os.PathLike[str]) -> None:
    """DataError where the suffix is of no format, MissingExtraError where its library is missing."""
    _module(Path(path))


def open_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Open a file that `features` wrote; DataError, naming it, where it is none or is damaged."""
    path = Path(path)
    module = _module(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `verydeep features` makes one of photos")
    try:
        stored = cast(Stored, module.open_stored(path))
        about = About.from_json(stored.about)
        return FeatureFile(path, stored, about)
    except (DataError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def write(path: Path, journal: Journal) -> None:
    """Write the rows of a journal, whole or not at all."""
    module = _module(path)
    journal.flush()  # it is read from its files
    with replacing(path) as file:
        module.write(cast("IO[bytes]", file), journal)


def _module(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(
            f"{path}: a file of features ends in {', '.join(FORMATS)}; this one ends in "
            f"{suffix or 'nothing'}"
        )
    return import_module(f"{__package__}.{FORMATS[suffix]}")
