"""A file of features: one row a photo, with its path, what a network made of it, or why that failed.

Two formats hold the same: .npz for numpy, .parquet for tables (needs pyarrow). Each is written from a
journal and read in blocks, so that a million photos need no memory. A photo that could not be read has an
error, and numbers that are not. The record says how the features were made, so that those of a query can
be computed in the same way.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from lzma import LZMAError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..files import strict_json
from ..files.atomic import replacing
from ..files.wording import counted
from ..preprocess import Size
from .tables import Npz, Parquet, pyarrow

if TYPE_CHECKING:
    from .extraction import Journal

FORMAT = 2  # of the record; 1 had no folder
BLOCK_BYTES = 16 << 20  # of numbers that are looked at in one go

FORMATS: dict[str, type[Npz | Parquet]] = {".npz": Npz, ".parquet": Parquet}
OLD_FORMAT = ".safetensors"
# RuntimeError: it wants a password, or is packed in a way that is not known here
DAMAGE = (
    ValueError, KeyError, OSError, EOFError, RuntimeError, LZMAError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class About:
    """How the features of a file were made.

    model: as it was named, a file by its absolute path. sha256: of the model file. network: its name.
    layers: paper names, with the shape that one photo has in each. pool, size: as `Predictor.features`
    takes them. precision: a class, as "fast". version: of verydeep. engine: the last one that computed.
    folder: in which the command ran, so that relative paths are found from elsewhere; "" in old files.
    """

    model: str
    sha256: str
    network: str
    layers: Mapping[str, tuple[int, ...]] = field(hash=False)
    pool: str | None
    size: Size
    precision: str
    version: str
    engine: str = "auto"
    folder: str = ""

    def width(self, layer: str) -> int:
        """How many numbers a photo has in that layer."""
        return math.prod(self.layers[layer])

    def layer(self, name: str | None = None) -> str:
        """That layer, or the only one; DataError where it is not there or there are several."""
        if name is None and len(self.layers) == 1:
            return next(iter(self.layers))
        if name is None or name not in self.layers:
            asked = "several layers, and none is named" if name is None else f"no layer {name!r}"
            raise DataError(f"{asked}; expected one of {', '.join(self.layers)}")
        return name

    def step(self, *layers: str) -> int:
        """Of how many photos these layers are some megabytes each."""
        return max(1, BLOCK_BYTES // (4 * max(map(self.width, layers))))

    def to_json(self) -> str:
        # JSON's keys are sorted, so the order of the layers is told
        return strict_json.dumps({**asdict(self), "format": FORMAT, "order": list(self.layers)})

    @classmethod
    def from_json(cls, text: str) -> About:
        """The inverse of `to_json`; DataError where it is not what that writes."""
        try:
            values: dict[str, Any] = dict(strict_json.loads(text))  # type: ignore[arg-type]
            if (number := values.pop("format")) > FORMAT:
                raise DataError(
                    f"written by a newer verydeep: its format is {number}, and this one reads {FORMAT}; "
                    "upgrade with: pip install --upgrade verydeep"
                )
            shapes, size = values["layers"], values["size"]
            values["layers"] = {name: tuple(map(int, shapes[name])) for name in values.pop("order")}
            values["size"] = tuple(size) if isinstance(size, list) else size
            if number < 1 or not shapes or set(shapes) != set(values["layers"]):
                raise ValueError
            return cls(**values)  # unknown and missing keys are TypeErrors
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            again = "delete it, and give the command that made it again"
            raise DataError(f"its record is damaged; {again}") from None

    def difference(self, other: About) -> str:
        """In what the other's command differs, "layer relu5_3, now relu4_3"; empty where in nothing."""
        words = []
        for name in ("sha256", "layers", "pool", "size", "precision"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours == theirs:
                continue
            if name == "sha256":
                name, ours, theirs = "model", self.model, other.model
            elif name == "layers":
                ours, theirs = ", ".join(ours), ", ".join(theirs)
            words.append(f"{name} {ours}, now {theirs}")
        return "; ".join(words)


class FeatureFile:
    """An open file of features. DataError where it was replaced or written to since.

    path: as given. about: how the features were made.
    """

    def __init__(self, path: Path, stored: Npz | Parquet, about: About) -> None:
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
        return f"{self.path}: {counted(len(self), 'photo')}, {layers}, {how}"

    @property
    def unchanged(self) -> bool:
        """Whether the path still leads to the file that was opened."""
        return self._stored.source.unchanged

    def _texts(self, column: str) -> Iterator[str]:
        with damage_named(self.path):
            yield from self._stored.texts(column)

    @cached_property
    def paths(self) -> list[str]:
        """One a row."""
        return list(self._texts("path"))

    @cached_property
    def errors(self) -> list[str]:
        """One a row: why the photo could not be read, "" where it could."""
        return list(self._texts("error"))

    @cached_property
    def failed(self) -> np.ndarray:
        """(rows,) bool: the photos that could not be read."""
        return np.fromiter(map(bool, self._texts("error")), bool, len(self))

    def paths_of(self, rows: Collection[int]) -> dict[int, str]:
        """Paths of some rows, without keeping those of all."""
        texts, wanted = self._texts("path"), sorted(set(rows))
        gaps = (row - before - 1 for before, row in pairwise((-1, *wanted)))
        return {row: next(islice(texts, gap, None)) for row, gap in zip(wanted, gaps, strict=True)}

    def photo(self, path: str) -> str:
        """Where the photo of that path is now: as seen from where the features were made, from here, or
        from beside this file. Where it is in none of these, the place where it was."""
        places = [
            os.path.join(folder, path) for folder in (self.about.folder, "", self.path.parent)
        ]
        return next(filter(os.path.exists, places), places[0])

    def blocks(
        self, layer: str | None = None, rows: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, values): the layer in blocks of some megabytes, (rows, ...) float32.

        layer: None where there is only one. rows: the most in a block. Rows of photos that could not be
        read are not numbers (NaN). Raises DataError where another row has such numbers.
        """
        name = self.about.layer(layer)
        start, step = 0, self.about.step(name)
        for block in self._numbers(name, step if rows is None else min(step, rows)):
            odd = ~np.isfinite(block.reshape(len(block), -1)).all(1)
            odd &= ~self.failed[start : start + len(block)]
            if odd.any():
                row = start + int(odd.argmax())
                raise DataError(
                    f"{self.path}: {name} of {self.paths_of([row])[row]} (row {row}) has numbers that are "
                    "not finite; make the file again with `verydeep features`"
                )
            yield start, block
            start += len(block)

    def rows_of(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), ...) float32: some rows, given in rising order. Of a .npz no others are read."""
        start, found = 0, []
        for block in self._numbers(layer, self.about.step(layer)):
            first, last = np.searchsorted(rows, (start, start + len(block)))
            found.append(block[rows[first:last] - start])
            start += len(block)
        return np.concatenate(found)

    def numbers(self, layer: str | None = None) -> np.ndarray:
        """The whole layer, (rows, ...) float32: a memory map, except of a .parquet file."""
        name = self.about.layer(layer)
        blocks = list(self._numbers(name, max(1, len(self))))
        if blocks:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return np.zeros((0, *self.about.layers[name]), np.float32)

    def _numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        """Blocks of the layer."""
        with damage_named(self.path):
            yield from self._stored.numbers(layer, rows)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """DataError, naming the path, where what is there cannot be read."""
    try:
        yield
    except (DataError, PermissionError) as error:
        raise DataError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise DataError(f"{path}: no {path.suffix} file, or a damaged one ({error})") from error


def is_feature_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name says so; what is inside is seen when it is opened."""
    return Path(path).suffix.lower() in {*FORMATS, OLD_FORMAT}


def format_of(path: Path) -> type[Npz | Parquet]:
    """The form of its suffix: DataError where there is none, MissingExtraError if it lacks a library."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(
            f"{path}: a file of features ends in {' or '.join(FORMATS)}"
            + (f", no longer in {suffix}; make it again" if suffix == OLD_FORMAT else "")
        )
    if FORMATS[suffix] is Parquet:
        pyarrow()
    return FORMATS[suffix]


def open_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Open a file that `features` wrote; DataError, naming it, where it is none or is damaged."""
    path = Path(path)
    form = format_of(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `verydeep features` makes one of photos")
    with damage_named(path):
        stored = form(path)
        about = About.from_json(stored.about)
        for column, row in {"path": None, "error": None, **about.layers}.items():
            stored.require(column, row)
        return FeatureFile(path, stored, about)


def write(path: Path, rows: Journal) -> None:
    """Write the rows of a journal, whole or not at all."""
    with replacing(path) as file:
        format_of(path).write(file, rows)
