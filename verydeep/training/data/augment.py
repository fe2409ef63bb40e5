"""Images of a batch, augmented: shifted, flipped, recoloured, partly covered, mixed with each other.

Shift with reflected edges and flip are Krizhevsky's (2009, and He et al. 2015, arXiv:1512.03385, section
4.2, with zeros), where an image mirrored in one epoch is not in the next, so that any two show both sides
(Jordan 2024, arXiv:2404.00498, section 3.6); the covered square is cutout (arXiv:1708.04552); the mixtures
are mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899). Pixels stay uint8. What happens to an image
depends on (seed, epoch, index) alone; mixtures depend on the batch, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import draws

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]

LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as PIL's grey


def shift_and_flip(
    images: Pixels, indices: Indices, *, seed: int, epoch: int, padding: int, flip: bool
) -> Pixels:
    """`images[indices]`, each moved by up to `padding` pixels and perhaps mirrored: (n, h, w, c).

    images: the whole set, (all, h, w, c) uint8. One gather does it all: reflecting and mirroring are ways
    of counting rows and columns.
    """
    height, width = images.shape[1:3]

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
    gathered: Pixels = images.reshape(-1, images.shape[3])[flat.reshape(-1)]
    return gathered.reshape(len(indices), *images.shape[1:])


def _reflected(places: Indices, side: int) -> Indices:
    """Places beyond the edge, mirrored in the edge pixel: -1 is 1, `side` is side - 2."""
    if side == 1:
        return np.zeros_like(places)
    period = 2 * (side - 1)
    places = np.abs(places) % period
    return np.minimum(places, period - places)


def jitter(indices: Indices, *, seed: int, epoch: int, most: float) -> NDArray[np.float64]:
    """For each image how many times its brightness, contrast and saturation, (n, 3), from 1 - most on."""
    names = ("brightness", "contrast", "saturation")
    luck = np.stack([draws.uniform(seed, epoch, indices, name) for name in names], 1)
    return 1 + most * (2 * luck - 1)


def recoloured(photo: Image.Image, times: NDArray[np.float64]) -> Image.Image:
    """An RGB photo of that many times its saturation, contrast about its mean grey, and brightness.

    All three are blends, and so one affine map of a pixel, cut off at 0 and 255 once.
    """
    brightness, contrast, saturation = times
    colours = saturation * np.eye(3) + (1 - saturation) * LUMA
    grey = np.asarray(photo.convert("L")).mean()
    offset = np.full((3, 1), brightness * (1 - contrast) * grey)
    matrix = np.hstack([brightness * contrast * colours, offset])
    return photo.convert("RGB", tuple(matrix.ravel().tolist()))


def cover(
    batch: Pixels, indices: Indices, *, seed: int, epoch: int, side: int, colour: NDArray[np.uint8]
) -> None:
    """Fill a square of `side` pixels, its centre anywhere, with `colour` (c,), in place."""
    squares = _boxes(batch, indices, np.full((len(indices), 2), side), seed, epoch, "cover")
    for image, (rows, columns) in zip(batch, squares, strict=True):
        image[rows, columns] = colour


def mix(
    batch: Pixels, indices: Indices, *, seed: int, epoch: int, mixup: float, cutmix: float
) -> NDArray[np.float32]:
    """Mix each image with the one after it in the batch, in place. Returns the part that stays, (n,).

    mixup, cutmix: alpha of the part's distribution, Beta(alpha, alpha); where both are above 0, each image
    gets the one or the other. Cutmix's rectangle has the image's proportions, less where an edge cuts it.
    """
    cut = np.full(len(indices), cutmix > 0)
    if mixup:
        cut &= draws.uniform(seed, epoch, indices, "cut or mix") < 0.5
    draw = np.random.default_rng(draws.bits(seed, epoch, indices[:1], "share"))
    alpha = np.where(cut, cutmix, mixup)
    shares = draw.beta(alpha, alpha).astype(np.float32)
    height, width = batch.shape[1:3]
    sides = np.rint(np.sqrt(1 - shares)[:, None] * (height, width)).astype(np.int64)
    boxes = _boxes(batch, indices, sides, seed, epoch, "paste")
    following = np.roll(batch, -1, axis=0)  # as they were before
    for at, (rows, columns) in enumerate(boxes):
        if cut[at]:
            batch[at, rows, columns] = following[at, rows, columns]
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            shares[at] = 1 - area / (height * width)
        else:
            batch[at] = np.rint(shares[at] * batch[at] + (1 - shares[at]) * following[at])
    return shares


def _boxes(
    batch: Pixels, indices: Indices, sides: Indices, seed: int, epoch: int, purpose: str
) -> list[tuple[slice, slice]]:
    """Rows and columns of a box of `sides` (n, 2) in each image, its middle anywhere, perhaps cut off."""
    lengths = np.array(batch.shape[1:3])
    luck = [draws.uniform(seed, epoch, indices, f"{purpose} {way}") for way in ("row", "column")]
    starts = np.floor(np.stack(luck, 1) * lengths).astype(np.int64) - sides // 2
    stops = np.minimum(starts + sides, lengths)
    ends = zip(np.maximum(starts, 0).tolist(), stops.tolist(), strict=True)
    return [(slice(top, bottom), slice(left, right)) for (top, left), (bottom, right) in ends]
