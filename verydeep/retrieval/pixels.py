"""Whether two photos are one picture: laid over each other, they have the same edges and the same colours.

Features say that two pages, two products on white or two dark photos are alike; only their pixels say that
they are the same. One is moved until it lies over the other (Lucas and Kanade 1981, with an affine map and
a gain), so that crops and small turns are found as well, and is mirrored where that does not help.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import ImageError
from ..pictures.layout import as_rgb
from ..preprocess import decode

SIDE, BLOCK = 160, 16  # pixels, of the pictures that are compared and of the blocks in them
STEPS = ((16, 6), (32, 5), (64, 4))  # from coarse to fine: side in pixels, steps of the search
# Measured on 24 flowers: copies of half and double size, JPEG quality 20, crops of 80 %, richer colours,
# turned by 3 degrees and mirrored have 0.94 and more, other flowers 0.3, other pages of text 0.84. All are
# found but two of the crops; with a white label, 3 of 24, and 1 of the grey ones.
LEAST_CORRELATION = 0.9
# levels, in 97 % of the blocks; richer colours have 6 to 20, other products 24 and more
LARGEST_COLOUR = 20.0
BLANK = 2  # levels between the darkest and the lightest
FLAT = 0.25  # levels of deviation, below which there are no edges to compare
WHITE = 245.0  # where a brighter copy is cut off
LEAST_SHARE = 0.3  # of a picture that must lie over the other

Array = NDArray[np.float32]
STILL = np.array([[1.0, 0, 0], [0, 1, 0]])  # coordinates run from -1 to 1


def same_picture(first: Image.Image | None, second: Image.Image | None) -> bool | None:
    """Whether two files hold one picture, by what `small` gives; None where one of them cannot be read."""
    if first is None or second is None:
        return None
    for picture, moved in product((second, ImageOps.mirror(second)), (False, True)):
        way = _laid_over(first, picture) if moved else STILL
        if way is not None and _equal(first, picture, way):
            return True
    return False


def is_blank(picture: Image.Image) -> bool:
    """Whether nothing is on it but one colour: two such are alike, whatever they are of."""
    extrema: Any = picture.getextrema()  # a pair for each channel
    return all(high - low <= BLANK for low, high in extrema)


def small(path: str) -> Image.Image | None:
    """The picture in a file, 160 pixels a side; None where it cannot be read."""
    with suppress(ImageError):
        return as_rgb(decode(path)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return None


def _laid_over(first: Image.Image, second: Image.Image) -> Array | None:
    """The affine map (2, 3) from the first's coordinates to the second's; None where it leads away."""
    way = STILL
    for side, steps in STEPS:
        target = np.asarray(first.convert("L").resize((side, side)), np.float32)
        picture = second.convert("L").convert("F").resize((side, side))
        x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 - 1] * 2)
        for _ in range(steps):
            seen = _warped(picture, way)
            within = _within(way, side)
            within[[0, -1]] = within[:, [0, -1]] = False
            if within.mean() < LEAST_SHARE:
                return None
            down, right = (slope * side / 2 for slope in np.gradient(seen))
            change = np.stack(
                [right * x, right * y, right, down * x, down * y, down, seen, np.ones_like(seen)],
                -1,
            )[within]
            square = change.T @ change
            square[np.diag_indices(8)] += 1e-4 * np.diag(square) + 1e-6
            answer = np.linalg.solve(square, change.T @ target[within])
            move = np.eye(3)
            move[:2] += answer[:6].reshape(2, 3) / max(0.2, answer[6])
            way = way @ move
    return np.asarray(way)


def _warped(picture: Image.Image, way: Array) -> Array:
    half = picture.width / 2
    (a, b, c), (d, e, f) = way
    numbers = (a, b, half * (c + 1 - a - b), d, e, half * (f + 1 - d - e))
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )
    return np.asarray(moved, np.float32)


def _within(way: Array, side: int) -> NDArray[np.bool_]:
    """(side, side): what of the first has something of the second over it."""
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 - 1] * 2)
    u, v = (a * x + b * y + c for a, b, c in way)
    return np.asarray((abs(u) < 1 - 1 / side) & (abs(v) < 1 - 1 / side))


def _equal(first: Image.Image, second: Image.Image, way: Array) -> bool:
    def blocks(values: Array) -> Array:
        """(blocks, pixels, channels)"""
        count = SIDE // BLOCK
        cut = values.reshape(count, BLOCK, count, BLOCK, -1).swapaxes(1, 2)
        return cut.reshape(count * count, BLOCK * BLOCK, -1)

    whole = blocks(_within(way, SIDE).astype(np.float32)).all((1, 2))
    if whole.mean() < LEAST_SHARE:
        return False
    one, other = blocks(np.asarray(first, np.float32))[whole], blocks(_warped(second, way))[whole]
    ours, theirs = (v.mean(2) - v.mean((1, 2))[:, None] for v in (one, other))  # edges, of grey
    deviation = ours.std(), theirs.std()
    if (ours * theirs).mean() < LEAST_CORRELATION * deviation[0] * deviation[1]:
        return False
    ours, theirs = one.mean(1), other.mean(1)  # colours
    if max(deviation) <= FLAT:  # nothing but a colour, which must be the same
        return bool(abs(ours - theirs).max() <= LARGEST_COLOUR)
    grey = theirs.mean(1, keepdims=True)
    # brighter and richer by as much as fits best, and by nothing where that is not known
    parts = np.stack([np.broadcast_to(grey, theirs.shape).ravel(), (theirs - grey).ravel()], 1)
    known = np.diag([1.0, 4 * len(parts)])
    gain, richer = np.linalg.solve(parts.T @ parts + known, parts.T @ ours.ravel() + known.sum(1))
    gain = min(max(gain, 0.5), 2.0)
    apart = np.abs(ours - gain * grey - min(max(richer, 0.6 * gain), 1.6 * gain) * (theirs - grey))
    cut_off = np.maximum(ours, theirs).max(1) > WHITE
    apart = apart[~cut_off] if not cut_off.all() else apart
    return bool(np.quantile(apart.max(1), 0.97) <= LARGEST_COLOUR)
