"""A map over any Ray Dataset: each image's features, or labels, beside what its row holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, require_whole
from ..predictor import Failure, load
from ..retrieval.extraction import described
from .source import plain
from .work import Work, labels_of

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..preprocess import Size

ROWS = 64  # handed to a worker at once


def mapped(
    dataset: Any,
    column: str,
    layers: str | Sequence[str] | None = None,
    pool: Pooling | None = "avg",
    *,
    top: int = 0,
    size: Size = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int = 1,
    device: str = "cpu",
    batch: int = 8,
    **how: Any,
) -> Any:
    """A Ray Dataset with a column more for each layer, or with labels, and with "error".

    dataset: as `ray.data.read_images`, `read_parquet`, `read_webdataset` and others give it. column: that
    of the images: paths, bytes of files, or uint8 (height, width, channels). layers, pool, size, model and
    those after them: as for `features`. top: so many "labels" with "probabilities", and "sure", instead
    of features; size is a number then. how: what else `Dataset.map_batches` takes, as `concurrency`.
    An image that cannot be read has its error, and numbers that are not (NaN); others have "".
    """
    require_whole(DataError, 0, top=top)
    require_whole(DataError, batch=batch, threads=threads)
    predictor = load(model, engine=engine, precision=precision, device=device)
    about = replace(described(predictor, model, layers, pool, size), engine=engine)
    work = Work(replace(about, layers={}) if top else about, top, threads, device, batch)
    how = {"concurrency": 1, "batch_size": ROWS, "num_cpus": threads, **how}
    if device == "cuda":
        how = {"num_gpus": 1, **how}
    given = {"work": work, "column": column}
    return dataset.map_batches(_Mapping, fn_constructor_kwargs=given, batch_format="numpy", **how)


class _Mapping:
    """The one engine of a worker of Ray Data's."""

    def __init__(self, work: Work, column: str) -> None:
        self._work, self._column, self._predictor = work, column, work.load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        if self._column not in batch:
            raise DataError(f"no column {self._column!r} among {', '.join(batch)}")
        images = [plain(value) for value in batch[self._column]]
        made: list[Any] = list(self._work.stream(self._predictor, images))
        columns: dict[str, Any] = {"error": [getattr(one, "error", "") for one in made]}
        if self._work.top:
            rows = [labels_of(one) for one in made]
            for name in ("labels", "probabilities", "sure"):
                columns[name] = [row[name] for row in rows]
        for layer, shape in self._work.about.layers.items():
            columns[layer] = np.full((len(made), *shape), np.nan, np.float32)
            for row, one in zip(columns[layer], made, strict=True):
                if not isinstance(one, Failure):
                    row[...] = one[layer]
        return {**batch, **columns}
