"""Cosines of features with a file's rows: matrix products over blocks of it, each row looked at."""

from __future__ import annotations

import numpy as np

from .featurefile import BLOCK_BYTES, FeatureFile


def unit_rows(block: np.ndarray) -> np.ndarray:
    """(rows, numbers) float32 of length 1 each; rows of zeros, or not of numbers, become zeros."""
    flat = np.array(block.reshape(len(block), -1), np.float32)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))
        good = np.isfinite(lengths) & (lengths > 0)
        flat /= np.where(good, lengths, 1).astype(np.float32)[:, None]
    flat[~good] = 0
    return flat


def best(cosines: np.ndarray, rows: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` of each query, (queries, top): both best first, equal ones in their order."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(rows, order, axis=1)


def closest(
    known: tuple[np.ndarray, np.ndarray], cosines: np.ndarray, start: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `top` of what is known, (queries, n) cosines and rows, and of the rows from `start` on.

    Best first, equal ones in the order of the rows. cosines: (queries, rows).
    """
    at = np.broadcast_to(np.arange(start, start + cosines.shape[1]), cosines.shape)
    both = np.concatenate([known[0], cosines], axis=1)
    return best(both, np.concatenate([known[1], at], axis=1), top)


def nearest_rows(
    file: FeatureFile, layer: str, queries: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """(queries, top) cosines and rows: the nearest, best first; equal ones in the order of the file.

    queries: as `unit_rows` gives them. Rows of photos that could not be read have the cosine -inf.
    """
    # as many at once as leave their cosines with a block in as many bytes
    step = max(1, BLOCK_BYTES // (4 * file.about.step(layer)))
    parts = [queries[at : at + step] for at in range(0, len(queries), step)] or [queries]
    known = [
        (np.zeros((len(part), 0), np.float32), np.zeros((len(part), 0), np.int64)) for part in parts
    ]
    for start, block in file.blocks(layer):
        units, bad = unit_rows(block), file.failed[start : start + len(block)]
        for at, part in enumerate(parts):
            cosines = part @ units.T
            cosines[:, bad] = -np.inf
            known[at] = closest(known[at], cosines, start, top)
    cosines, rows = (np.concatenate(found) for found in zip(*known, strict=True))
    return cosines, rows
