"""Photos in, a file of their features out: one row a photo, in flat memory, going on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import photo_paths
from ..files.wording import counted
from .featurefile import About, FeatureFile, open_features, require_format, write
from .journal import Journal, finished, journal

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
    require_format(out)
    given = [photos] if isinstance(photos, str | os.PathLike) else photos
    files, _ = photo_paths.find_some([os.fspath(name) for name in given])
    predictor = load(model, engine=engine, precision=precision, threads=threads, device=device)
    about = describe(predictor, model, layers, pool, size)
    with journal(out, about) as rows:
        stream = predictor.features_stream(
            _after(rows, iter(files)), tuple(about.layers), pool, size=size, batch=batch
        )
        try:
            for item in stream:
                path, error = item.path or "", item.error if isinstance(item, Failure) else ""
                rows.add(path, None if isinstance(item, Failure) else item.values, error)
                if on_event:
                    on_event({"event": "photo", "path": path, "error": error, "done": rows.rows})
        finally:
            rows.flush()
        rows.about = replace(rows.about, engine=predictor.engine)
        write(out, rows)
    finished(out)
    return open_features(out)


def describe(
    predictor: Predictor,
    model: str | os.PathLike[str],
    layers: str | Sequence[str] | None,
    pool: str | None,
    size: Size,
) -> About:
    """What a file of such features says of itself; the errors of `Predictor.features`, beforehand."""
    from .. import __version__
    from ..published.finding import builtin_models

    none = predictor.features([], layers, pool, size=size)  # type: ignore[arg-type]
    shapes = {name: value.shape[1:] for name, value in none.items()}
    unknown = [name for name, shape in shapes.items() if 0 in shape]
    if unknown:
        raise DataError(
            f"photos of their own size have maps of {unknown[0]} of many sizes, which no table holds; "
            'give a pool such as "avg", or a size'
        )
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
