"""The nearest photos of a file of features, by cosine: matrix products over blocks of it.

No index is built: a million photos of 512 numbers are 2 GB, which a memory map and one product per block
go through in seconds, and the answer is exact.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, overload

import numpy as np

from ..errors import DataError, ModelFileError
from .featurefile import FeatureFile, open_features

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..preprocess import ImageLike


@dataclass(frozen=True)
class Match:
    """A photo of the file. cosine: of its features' angle to the query's, 1 where they point alike."""

    path: str
    cosine: float
    row: int


@dataclass(frozen=True)
class Neighbours:
    """The photos nearest to one query, nearest first. query: its path, or None where it had none."""

    query: str | None
    matches: tuple[Match, ...]

    def to_dict(self) -> dict[str, object]:
        return {
            "query": self.query,
            "matches": [
                {"path": m.path, "cosine": round(m.cosine, 6), "row": m.row} for m in self.matches
            ],
        }

    def __str__(self) -> str:
        lines = [f"{m.cosine:9.4f}  {m.path}" for m in self.matches]
        return "\n".join([self.query or "image", *lines])


@overload
def similar(
    index: str | os.PathLike[str] | FeatureFile, queries: ImageLike, top: int = 10,
    *, layer: str | None = None, model: str | os.PathLike[str] | None = None,
    engine: str = "auto", threads: int | None = None, device: str = "auto",
) -> Neighbours: ...  # fmt: skip
@overload
def similar(
    index: str | os.PathLike[str] | FeatureFile, queries: list[ImageLike] | list[str], top: int = 10,
    *, layer: str | None = None, model: str | os.PathLike[str] | None = None,
    engine: str = "auto", threads: int | None = None, device: str = "auto",
) -> list[Neighbours]: ...  # fmt: skip
def similar(
    index: str | os.PathLike[str] | FeatureFile,
    queries: ImageLike | list[ImageLike] | list[str],
    top: int = 10,
    *,
    layer: str | None = None,
    model: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    threads: int | None = None,
    device: str = "auto",
) -> Neighbours | list[Neighbours]:
    """The `top` photos of a file of features that are nearest to a query, or to each in a list of them.

    index: a file that `features` wrote, or an open one. Queries are computed as it was: by the same
    model, layer, pool, size and precision. layer: which one, where the file has several. model: where its
    model file lies now, if it was moved.
    Raises DataError for a file that is none, ImageError for a query that cannot be read, ModelFileError
    where the model is not the one that made the file.
    """
    opened = index if isinstance(index, FeatureFile) else open_features(index)
    if top < 1:
        raise DataError(f"top is {top}; expected 1 or more")
    many = isinstance(queries, list)
    listed = cast("list[ImageLike]", queries if many else [queries])
    name = opened.about.layer(layer)
    asked = _computed(opened, listed, name, model, engine, threads, device)
    found = [
        Neighbours(os.fspath(q) if isinstance(q, str | os.PathLike) else None, matches)
        for q, matches in zip(listed, _search(opened, asked, top, name), strict=True)
    ]
    return found if many else found[0]


def unit_rows(block: np.ndarray) -> np.ndarray:
    """(rows, numbers) float32 of length 1 each; rows of zeros, or not of numbers, become zeros."""
    flat = np.array(block.reshape(len(block), -1), np.float32)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))
        good = np.isfinite(lengths) & (lengths > 0)
        flat /= np.where(good, lengths, 1).astype(np.float32)[:, None]
    flat[~good] = 0
    return flat


def _computed(
    index: FeatureFile, queries: Sequence[ImageLike], layer: str,
    model: str | os.PathLike[str] | None, engine: str, threads: int | None, device: str,
) -> np.ndarray:  # fmt: skip
    from ..predictor import load

    about = index.about
    try:
        predictor = load(
            about.model if model is None else model,
            engine=engine, precision=about.precision, threads=threads, device=device,
        )  # fmt: skip
    except ModelFileError as error:
        raise ModelFileError(
            f"{index.path} was made with {error}; say where it lies now"
        ) from error
    if predictor.sha256 != about.sha256:
        raise ModelFileError(
            f"{index.path} was made with another model than {predictor.model.path} (SHA-256 "
            f"{about.sha256[:12]}..., not {predictor.sha256[:12]}...); give that model, or make the file "
            "again"
        )
    pool = cast("Pooling | None", about.pool)
    return predictor.features(list(queries), layer, pool, size=about.size)[layer]


def _search(index: FeatureFile, asked: np.ndarray, top: int, layer: str) -> list[tuple[Match, ...]]:
    """For each query, its nearest rows, best first; equal ones in the order of the file."""
    queries = unit_rows(asked)
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for start, block in index.blocks(layer):
        readable = np.isfinite(block.reshape(len(block), -1)[:, 0])
        cosines = queries @ unit_rows(block).T
        cosines[:, ~readable] = -np.inf
        at = np.broadcast_to(np.arange(start, start + len(block)), cosines.shape)
        best = np.concatenate([best, cosines], axis=1)
        rows = np.concatenate([rows, at], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :top]
        best = np.take_along_axis(best, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    paths = index.paths_of(set(rows.ravel().tolist()))
    return [
        tuple(
            Match(paths[row], float(min(1, max(-1, cosine))), row)
            for cosine, row in zip(cosines.tolist(), places.tolist(), strict=True)
            if np.isfinite(cosine)
        )
        for cosines, places in zip(best, rows, strict=True)
    ]
