"""Small images, augmented a batch at a time: shifted, flipped, partly covered, and mixed.

Shift with reflected edges and flip are Krizhevsky's (2009, and He et al. 2015, arXiv:1512.03385, section
4.2, with zeros), where an image mirrored in one epoch is not in the next, so that any two show both sides
(Jordan 2024, arXiv:2404.00498, section 3.6); the covered square is cutout (arXiv:1708.04552); the mixtures
are mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899). Pixels stay uint8. What happens to an image
depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import draws

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]


def shift_and_flip(
    images: Pixels, indices: Indices, *, seed: int, epoch: int, padding: int, flip: bool
) -> Pixels:
    """`images[indices]`, each moved by up to `padding` pixels and perhaps mirrored: (n, h, w, c).

    images: the whole set, (all, h, w, c) uint8. One gather does it all: reflecting and mirroring are ways
    of counting rows and columns.
    """
    height, width = images.shape[1:3]
    n = len(indices)

    def moved(side: int, purpose: str) -> Indices:
        u = draws.uniform(seed, epoch, indices, purpose)
        offset = np.floor(u * (2 * padding + 1)).astype(np.int64) - padding
        return _reflected(np.arange(side) + offset[:, None], side)

    rows, columns = moved(height, "row"), moved(width, "column")
    if flip:
        mirrored = (draws.uniform(seed, 0, indices, "flip") < 0.5) ^ bool(epoch % 2)
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    # a pixel's bytes travel as one number
    flat = (indices[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    pixels = images.reshape(-1, images.shape[3])
    gathered: Pixels = pixels[flat.reshape(-1)]
    return gathered.reshape(n, height, width, images.shape[3])


def _reflected(places: Indices, side: int) -> Indices:
    """Places beyond the edge, mirrored in the edge pixel: -1 is 1, `side` is side - 2."""
    if side == 1:
        return np.zeros_like(places)
    period = 2 * (side - 1)
    places = np.abs(places) % period
    return np.minimum(places, period - places)


def cover(
    batch: Pixels, indices: Indices, *, seed: int, epoch: int, side: int, colour: NDArray[np.uint8]
) -> None:
    """Fill a square of `side` pixels, its centre anywhere, with `colour` (c,), in place."""
    height, width = batch.shape[1:3]
    rows = _band(seed, epoch, indices, "cover row", height, np.full(len(indices), side))
    columns = _band(seed, epoch, indices, "cover column", width, np.full(len(indices), side))
    batch[rows[:, :, None] & columns[:, None, :]] = colour


def mixing(
    count: int, indices: Indices, *, seed: int, epoch: int, alpha: float
) -> tuple[Indices, NDArray[np.float64]]:
    """A partner among `count` images for each, and the share, from Beta(alpha, alpha), that stays."""
    partners = np.floor(draws.uniform(seed, epoch, indices, "partner") * count).astype(np.int64)
    seeds = draws.bits(seed, epoch, indices, "share")
    shares = [np.random.default_rng(int(s)).beta(alpha, alpha) for s in seeds]
    return partners, np.asarray(shares)


def paste(
    batch: Pixels,
    others: Pixels,
    indices: Indices,
    shares: NDArray[np.float64],
    *,
    seed: int,
    epoch: int,
) -> NDArray[np.float64]:
    """Cutmix, in place: a rectangle of each of `others` over the image. Returns the share that stays.

    The rectangle has the image's proportions and 1 - share of its area, less where an edge cuts it.
    """
    height, width = batch.shape[1:3]
    part = np.sqrt(1 - shares)
    rows = _band(seed, epoch, indices, "paste row", height, np.rint(part * height).astype(int))
    columns = _band(seed, epoch, indices, "paste column", width, np.rint(part * width).astype(int))
    mask = rows[:, :, None] & columns[:, None, :]
    batch[mask] = others[mask]
    left: NDArray[np.float64] = 1 - mask.mean((1, 2))
    return left


def _band(
    seed: int, epoch: int, indices: Indices, purpose: str, length: int, wide: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(n, length): where a band of that many pixels lies, its middle anywhere, its ends perhaps cut."""
    middle = np.floor(draws.uniform(seed, epoch, indices, purpose) * length).astype(np.int64)
    start = (middle - wide // 2)[:, None]
    places = np.arange(length)
    return (places >= start) & (places < start + wide[:, None])
