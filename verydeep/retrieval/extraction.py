"""Photos in, a file of their features out: one row a photo, in flat memory, going on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files import photo_paths as found_photos
from .about import About
from .featurefile import FeatureFile, open_features, require_format, write
from .journal import Journal, finished, journal

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..predictor import Failure, Features, Predictor
    from ..preprocess import Size


def features(
    photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    layers: str | Sequence[str] = ("relu5_3",),
    pool: Pooling | None = "avg",
    *,
    size: Size = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
    batch: int = 8,
    watch: Callable[[Iterator[Features | Failure]], Iterator[Features | Failure]] = iter,
) -> FeatureFile:
    """Write the features of photos to `out`, a .npz, .safetensors or .parquet file, and open it.

    photos: files, folders (searched recursively) and globs. layers, pool, size: as for
    `Predictor.features`; whole maps (pool None) need photos of one size. watch: sees each photo's result
    on its way into the file, in order.

    A photo that cannot be read has a row with its error. Until all is done the rows lie in the folder
    OUT.partial; stopped or killed, the same call goes on from there.
    Raises DataError where there are no photos, or OUT.partial holds the rows of another call.
    """
    from ..predictor import load

    out = Path(out)
    require_format(out)
    given = [photos] if isinstance(photos, str | os.PathLike) else photos
    named = [os.fspath(name) for name in given]
    found, _ = found_photos.find_some(named)
    predictor = load(model, engine=engine, precision=precision, threads=threads, device=device)
    about = describe(predictor, model, layers, pool, size)
    with journal(out, about) as rows:
        left = _after(rows, found)
        stream = predictor.features_stream(
            left,
            tuple(about.layers),
            pool,
            size=size,
            batch=batch,
        )
        try:
            for item in watch(stream):
                _keep(rows, item)
        finally:
            rows.flush()
        rows.about = replace(about, engine=predictor.engine)
        write(out, rows)
    finished(out)
    return open_features(out)


def describe(
    predictor: Predictor,
    model: str | os.PathLike[str],
    layers: str | Sequence[str],
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
        name = os.path.abspath(predictor.model.path)
    return About(
        name, predictor.sha256, predictor.record.network.name, shapes, pool, size,
        predictor.precision, __version__,
    )  # fmt: skip


def _after(rows: Journal, found: Iterator[str]) -> Iterator[str]:
    """The photos that have no row yet, those that have one being the first."""
    done = rows.rows
    for number, path in enumerate(islice(rows.texts("path"), done)):
        now = next(found, "no photo")
        if now != path:
            raise DataError(
                f"{rows.folder} holds {done} rows of a run that was stopped, but the photos have changed "
                f"since: its row {number} is {path}, where now there is {now}; delete the folder to begin "
                "again"
            )
    return found


def _keep(rows: Journal, item: Features | Failure) -> None:
    from ..predictor import Failure

    assert item.path is not None
    if isinstance(item, Failure):
        rows.add(item.path, None, item.error)
    else:
        rows.add(item.path, item.values)
