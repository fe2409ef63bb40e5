"""Rows of numbers that lie in a file one after another, mapped a block at a time.

A map of the whole would count as this process's memory, page by page, as it is read; a block's goes when
nobody holds it any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def mapped_rows(
    path: Path, dtype: str, offset: int, shape: tuple[int, ...], rows: int
) -> Iterator[np.ndarray]:
    """Read-only blocks of at most so many rows of the array of that shape, `offset` bytes into the file."""
    count, *row = shape
    row_bytes = math.prod(row) * np.dtype(dtype).itemsize
    for start in range(0, count, rows):
        block = (min(rows, count - start), *row)
        if math.prod(block):
            yield np.memmap(path, dtype, "r", offset + start * row_bytes, block)
        else:
            yield np.zeros(block, dtype)
