"""Rows on their way into a file of features, kept in a folder so that a run that was stopped goes on.

The formats hold their sizes at the front or their index at the end, so none can grow in place. Until a run
is done its rows lie in FILE.partial: rows.jsonl, a line a photo, and a raw float32 file a layer. Lines are
written after the numbers they stand for; whatever a kill left behind them is cut off.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DataError, OutputError
from ..files.lock import locked
from .featurefile import About

BLOCK_BYTES = 8 << 20
FLUSH_SECONDS = 1.0  # so much work at most is lost by a kill


class Journal:
    """The rows of one run. `journal` opens one.

    about: how they are made. rows: how many there are.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder = folder
        self.about = about
        self.rows, end = self._whole_rows()
        self._lines = _appending(folder / "rows.jsonl", end)
        self._numbers = {
            name: _appending(self._file(name), self.rows * self._row_bytes(name))
            for name in about.layers
        }
        self._flushed = time.monotonic()

    def add(self, path: str, values: Mapping[str, np.ndarray] | None, error: str = "") -> None:
        """One photo: its values by layer, or None and the reason why there are none."""
        for name, file in self._numbers.items():
            if values is None:
                file.write(np.full(self.about.width(name), np.nan, np.float32).tobytes())
            else:
                file.write(np.ascontiguousarray(values[name], "<f4").tobytes())
        self._lines.write(json.dumps([path, error]).encode() + b"\n")
        self.rows += 1
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        for file in (*self._numbers.values(), self._lines):
            file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        for file in (*self._numbers.values(), self._lines):
            file.close()

    def texts(self, column: str) -> Iterator[str]:
        """One column of all rows, "path" or "error"."""
        place = ("path", "error").index(column)
        with open(self.folder / "rows.jsonl", "rb") as file:
            for line in file:
                yield json.loads(line)[place]

    def numbers(self, layer: str, rows: int | None = None) -> Iterator[np.ndarray]:
        """The layer's values in blocks, (rows, ...) float32; not numbers where a photo could not be read.

        rows: in a block; None for some megabytes of them.
        """
        rows = rows or max(1, BLOCK_BYTES // self._row_bytes(layer))
        with open(self._file(layer), "rb") as file:
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                block = np.frombuffer(file.read(count * self._row_bytes(layer)), "<f4")
                yield block.reshape(count, *self.about.layers[layer])

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.f32"

    def _row_bytes(self, layer: str) -> int:
        return 4 * self.about.width(layer)

    def _whole_rows(self) -> tuple[int, int]:
        """Rows of which everything is there, and where their lines end."""
        rows = end = 0
        path = self.folder / "rows.jsonl"
        if not path.exists():
            return 0, 0
        most = min(_size(self._file(n)) // self._row_bytes(n) for n in self.about.layers)
        with open(path, "rb") as file:
            for line in file:
                if rows == most or not line.endswith(b"\n"):
                    break
                rows, end = rows + 1, end + len(line)
        return rows, end


@contextmanager
def journal(out: Path, about: About) -> Iterator[Journal]:
    """The journal beside `out`: a new one, or the one that the same command left there.

    Removed by `finished`, kept otherwise. Raises DataError where another command's is there or another
    process is at work on it, OutputError where the disk refuses.
    """
    folder = out.with_name(f"{out.name}.partial")
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock", lambda: _refuse_second(out)):
            record = folder / "about.json"
            text = record.read_text(encoding="utf-8") if record.exists() else ""
            before = About.from_json(text) if text else about
            difference = before.difference(about)
            if difference:
                raise DataError(
                    f"{folder} holds the rows of another command ({difference}); give that command again "
                    "to go on with it, another --out, or delete the folder"
                )
            opened = Journal(folder, about)
            if opened.rows:
                opened.about = replace(about, folder=before.folder)  # from where they were seen
            else:
                record.write_text(about.to_json(), encoding="utf-8")
            try:
                yield opened
            finally:
                opened.close()
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        kept = "; what was done is kept, the same command goes on" if folder.exists() else ""
        raise OutputError(f"{folder}: cannot be written: {reason}{kept}") from error


def finished(out: Path) -> None:
    """Remove the journal beside `out`, whose rows have found their place."""
    shutil.rmtree(out.with_name(f"{out.name}.partial"), ignore_errors=True)


def _refuse_second(out: Path) -> None:
    raise DataError(f"another process is writing {out}; wait for it, or give another --out")


def _appending(path: Path, end: int) -> IO[bytes]:
    """The file, open to be added to after its first `end` bytes; the rest is cut off."""
    file = open(path, "ab")  # noqa: SIM115  # the journal closes it
    file.truncate(end)
    file.seek(end)
    return file


def _size(path: Path) -> int:
    return os.stat(path).st_size if path.exists() else 0
