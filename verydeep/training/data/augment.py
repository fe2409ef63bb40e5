"""Images of a batch, augmented: shifted, flipped, recoloured, partly covered, mixed with each other.

Shift with reflected edges and flip are Krizhevsky's (2009, and He et al. 2015, arXiv:1512.03385, section
4.2, with zeros); the covered square is cutout (arXiv:1708.04552); the mixtures are mixup (arXiv:1710.09412)
and cutmix (arXiv:1905.04899). Pixels stay uint8. What happens to an image is a function of its luck, which
gives a number in [0, 1) for each image and purpose; mixtures are of the batch, too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Luck = Callable[[str], Numbers]  # for a purpose (n,), of the n images of a batch

LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as PIL's grey


def shifted(images: Pixels, luck: Luck, padding: int, mirrored: NDArray[np.bool_]) -> Pixels:
    """Each of the images (n, h, w, c) moved by up to `padding` pixels, and mirrored where it says so."""
    height, width = images.shape[1:3]
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, edges, mode="reflect")
    rows, columns = ((luck(way) * (2 * padding + 1)).astype(np.int64) for way in ("row", "column"))
    moved = np.empty_like(images)
    for at, (row, column) in enumerate(zip(rows, columns, strict=True)):
        crop = padded[at, row : row + height, column : column + width]
        moved[at] = crop[:, ::-1] if mirrored[at] else crop
    return moved


def jitter(luck: Luck, most: float) -> Numbers:
    """For each image how many times its brightness, contrast and saturation, (n, 3), from 1 - most on."""
    names = ("brightness", "contrast", "saturation")
    return 1 + most * (2 * np.stack([luck(name) for name in names], 1) - 1)


def recoloured(photo: Image.Image, times: Numbers) -> Image.Image:
    """An RGB photo of that many times its saturation, contrast about its mean grey, and brightness.

    All three are blends, and so one affine map of a pixel, cut off at 0 and 255 once.
    """
    brightness, contrast, saturation = times
    colours = saturation * np.eye(3) + (1 - saturation) * LUMA
    grey = np.asarray(photo.convert("L")).mean()
    offset = np.full((3, 1), brightness * (1 - contrast) * grey)
    matrix = np.hstack([brightness * contrast * colours, offset])
    return photo.convert("RGB", tuple(matrix.ravel().tolist()))


def cover(batch: Pixels, luck: Luck, side: int, colour: Pixels) -> None:
    """Fill a square of `side` pixels, its middle anywhere, with `colour` (c,), in place."""
    for image, box in zip(batch, _boxes(batch, luck, "cover", side), strict=True):
        image[box] = colour


def mix(batch: Pixels, luck: Luck, mixup: float, cutmix: float) -> NDArray[np.float32]:
    """Mix each image with the one after it in the batch, in place. Returns the part that stays, (n,).

    mixup, cutmix: alpha of the part's distribution, Beta(alpha, alpha); where both are above 0, each image
    gets the one or the other. Cutmix's rectangle has the image's proportions, less where an edge cuts it.
    """
    height, width = batch.shape[1:3]
    cut = luck("cut or mix") < (0.5 if mixup else 1) if cutmix else np.zeros(len(batch), bool)
    alpha = np.where(cut, cutmix, mixup)
    draw = np.random.default_rng((luck("share") * 2**53).astype(np.int64))
    shares = draw.beta(alpha, alpha).astype(np.float32)
    sides = np.sqrt(1 - shares)[:, None] * (height, width)
    boxes = _boxes(batch, luck, "paste", np.rint(sides).astype(np.int64))
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
    batch: Pixels, luck: Luck, purpose: str, sides: int | NDArray[np.int64]
) -> list[tuple[slice, slice]]:
    """Rows and columns of a box of `sides` (n, 2) in each image, its middle anywhere, perhaps cut off."""
    lengths = np.array(batch.shape[1:3])
    middles = np.stack([luck(f"{purpose} row"), luck(f"{purpose} column")], 1)
    starts = (middles * lengths).astype(np.int64) - sides // 2
    ends = np.stack([np.maximum(starts, 0), np.minimum(starts + sides, lengths)], -1)
    return [(slice(*rows), slice(*columns)) for rows, columns in ends.tolist()]
