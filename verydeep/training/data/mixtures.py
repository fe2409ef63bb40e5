"""Mixup or cutmix of a batch: each image with a partner from the whole set, and labels in proportion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .. import draws
from ..recipes import Config
from . import augment

Indices = NDArray[np.int64]
Seen = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # images, and which of them could be read


def mixed(
    images: NDArray[np.uint8],
    indices: Indices,
    labels: Indices,
    epoch: int,
    config: Config,
    augmented: Callable[[Indices], Seen],
) -> tuple[Indices, NDArray[np.float32]]:
    """Mix `images` (n, h, w, 3), which are those of `indices`, in place.

    labels: of the whole set. augmented: gives a partner as it looks in this epoch. Returns the partners'
    labels and the part of each image, (n,), that is still itself.
    """
    cut = np.full(len(indices), bool(config.cutmix))
    if config.mixup:
        cut &= draws.uniform(config.seed, epoch, indices, "cut or mix") < 0.5
    others, shares = labels[indices].copy(), np.ones(len(indices))
    for cutting, alpha in ((True, config.cutmix), (False, config.mixup)):
        at = np.flatnonzero(cut == cutting)
        if not len(at):
            continue
        partners, share = augment.mixing(
            len(labels), indices[at], seed=config.seed, epoch=epoch, alpha=alpha
        )
        second, good = augmented(partners)
        first, share = images[at], np.where(good, share, 1.0)
        if cutting:
            share = augment.paste(first, second, indices[at], share, seed=config.seed, epoch=epoch)
        else:
            weight = share[:, None, None, None]
            first = np.rint(weight * first + (1 - weight) * second).astype(np.uint8)
        images[at], shares[at], others[at] = first, share, labels[partners]
    return others, shares.astype(np.float32)
