"""Photos in, a file of their features out: one row a photo, in flat memory, going on where it stopped.

The formats hold their sizes at the front or their index at the end, so none can grow in place. Until a run
is done its rows lie in the folder FILE.partial: rows.jsonl, a line a photo, and a raw float32 file a layer.
Lines are written after the numbers they stand for; whatever a kill left behind them is cut off.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, OutputError
from ..files import photo_paths
from ..files.atomic import locked, replacing, require_writable
from ..files.wording import counted
from .featurefile import About, FeatureFile, damage_named, format_of, open_features, write

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..predictor import Predictor
    from ..preprocess import Size


def features(
    photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    pool: Pooling | None = "avg",
    *,
    size: Size = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
    batch: int = 8,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> FeatureFile:
    """Write the features of photos to `out`, a .npz or .parquet file, and open it.

    photos: files, folders (searched recursively) and globs. layers, pool, size: as for
    `Predictor.features`; whole maps (pool None) need photos of one size. on_event: called for each photo,
    in order, with {"event": "photo", "path": ..., "error": why it has no features or "", "done": photos
    that have a row now}.

    A photo that cannot be read has a row with its error. Until all is done the rows lie in the folder
    OUT.partial; stopped or killed, the same call goes on from there.
    Raises DataError where there are no photos, or OUT.partial holds the rows of another call.
    """
    from ..predictor import Failure, load

    out = Path(out)
    format_of(out)
    require_writable(out)
    files, _ = photo_paths.find_some(photo_paths.names(photos))
    predictor = load(model, engine=engine, precision=precision, threads=threads, device=device)
    about = described(predictor, model, layers, pool, size)
    with journal(out, about) as rows:
        for item in predictor.features_stream(
            _after(rows, iter(files)), tuple(about.layers), pool, size=size, batch=batch
        ):
            path, error = item.path or "", item.error if isinstance(item, Failure) else ""
            rows.add(path, None if isinstance(item, Failure) else item.values, error)
            if on_event:
                on_event({"event": "photo", "path": path, "error": error, "done": rows.rows})
        rows.about = replace(rows.about, engine=predictor.engine)
        write(out, rows)
    return open_features(out)


def described(
    predictor: Predictor,
    model: str | os.PathLike[str],
    layers: str | Sequence[str] | None,
    pool: str | None,
    size: Size,
) -> About:
    """What a file of such features says of itself; the errors of `Predictor.features`, beforehand."""
    from .. import __version__
    from ..published import builtin_models

    none = predictor.features([], layers, pool, size=size)  # type: ignore[arg-type]
    shapes = {name: value.shape[1:] for name, value in none.items()}
    unknown = [name for name, shape in shapes.items() if 0 in shape]
    if unknown:
        raise DataError(
            f"photos of their own size have maps of {unknown[0]} of many sizes, which no table holds; "
            'give a pool such as "avg", or a size'
        )
    if isinstance(size, tuple | list):
        size = int(size[0]), int(size[1])
    elif size is not None and size != "own":
        size = int(size)  # the record has Python's numbers
    name = os.fspath(model)
    if name not in builtin_models():
        name = os.path.abspath(predictor.model.path).encode("utf-8", "backslashreplace").decode()
    return About(
        name, predictor.sha256, predictor.record.network.name, shapes, pool, size,
        predictor.precision, __version__, folder=_here(),
    )  # fmt: skip


def _here() -> str:
    """The working folder; "" where its name is not UTF-8, which no record can hold."""
    folder = os.getcwd()
    return folder if folder == folder.encode("utf-8", "replace").decode() else ""


def _after(rows: Journal, files: Iterator[str]) -> Iterator[str]:
    """The photos that have no row yet, those that have one being the first."""
    done, folder = rows.rows, rows.about.folder
    for number, path in enumerate(islice(rows.texts("path"), done)):
        now = next(files, "no photo")
        if os.path.abspath(now) != os.path.abspath(os.path.join(folder, path)):
            raise DataError(
                f"{rows.folder} holds {counted(done, 'row')} of a run that was stopped, but the photos "
                f"have changed since: its row {number} is {path}, where now there is {now}; delete the "
                "folder to begin again"
            )
    return files


class Journal:
    """The rows of one run, as a format reads them. about: how they are made. rows: how many there are."""

    def __init__(self, folder: Path, about: About, opened: ExitStack) -> None:
        self.folder, self.about, self.rows = folder, about, 0
        self._row_bytes = {name: 4 * about.width(name) for name in about.layers}
        self._numbers = {
            name: opened.enter_context(self._file(name).open("ab")) for name in about.layers
        }
        self._lines = opened.enter_context((folder / "rows.jsonl").open("ab+"))
        most = min(file.tell() // self._row_bytes[name] for name, file in self._numbers.items())
        end = self._lines.seek(0)
        for line in islice(self._lines, most):
            if line.endswith(b"\n"):
                self.rows, end = self.rows + 1, end + len(line)
        self._lines.truncate(end)
        for name, file in self._numbers.items():
            file.truncate(self.rows * self._row_bytes[name])

    def add(self, path: str, values: Mapping[str, np.ndarray] | None, error: str = "") -> None:
        """One photo: its values by layer, or None and the reason why there are none."""
        for name, file in self._numbers.items():
            none = np.full(self.about.width(name), np.nan)
            file.write(np.asarray(none if values is None else values[name], "<f4").tobytes())
            file.flush()
        self._lines.write(json.dumps([path, error]).encode() + b"\n")
        self._lines.flush()
        self.rows += 1

    def texts(self, column: str) -> Iterator[str]:
        with open(self.folder / "rows.jsonl", "rb") as file:
            for line in file:
                yield json.loads(line)[("path", "error").index(column)]

    def numbers(self, layer: str, rows: int) -> Iterator[np.ndarray]:
        with open(self._file(layer), "rb") as file:
            while block := file.read(rows * self._row_bytes[layer]):
                yield np.frombuffer(block, "<f4").reshape(-1, *self.about.layers[layer])

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.f32"


@contextmanager
def journal(out: Path, about: About) -> Iterator[Journal]:
    """The journal beside `out`: a new one, or the one that the same command left there.

    It goes when the block ends well, its rows being in `out` then. Raises DataError where another command's
    is there or another process is at work on it, OutputError where the disk refuses.
    """

    def refuse() -> None:
        raise DataError(f"another process is writing {out}; wait for it, or give another --out")

    folder = out.with_name(f"{out.name}.partial")
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock", refuse), ExitStack() as opened:
            record, before = folder / "about.json", about
            if record.exists():
                with damage_named(folder):
                    before = About.from_json(record.read_text(encoding="utf-8"))
            if difference := before.difference(about):
                raise DataError(
                    f"{folder} holds the rows of another command ({difference}); give that command again "
                    "to go on with it, another --out, or delete the folder"
                )
            rows = Journal(folder, about, opened)
            if rows.rows:
                rows.about = replace(about, folder=before.folder)  # from where they were seen
            else:
                with replacing(record, "w", encoding="utf-8") as file:
                    file.write(about.to_json())
            yield rows
            opened.close()
            shutil.rmtree(folder, ignore_errors=True)  # before another may begin there
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        kept = "; what was done is kept, the same command goes on" if folder.is_dir() else ""
        raise OutputError(f"{folder}: cannot be written: {reason}{kept}") from error
    if os.name == "nt":  # it keeps the lock file, and so the folder, while that is open
        shutil.rmtree(folder, ignore_errors=True)
