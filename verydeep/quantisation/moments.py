"""Second moments of what a convolution reads: how large each input is, and which go together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Array = np.ndarray


def second_moments(
    maps: Iterable[Array], kernel: int, padding: int, *, patches: int, seed: int = 0
) -> Array:
    """The mean of x x' over patches x at random places, (inputs, inputs) float64.

    maps: batches of (batch, channels, height, width) float32, padded with 0 as the convolution does. Each
    patch is flattened as the convolution's weight is: (channels * kernel * kernel). patches: how many are
    taken of each image, all where it has fewer.
    """
    draw = np.random.default_rng(seed)
    total: Array = np.zeros(())
    count = 0
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    for batch in maps:
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(batch, sides), (kernel, kernel), (2, 3)
        )  # (batch, channels, rows, columns, kernel, kernel), a view
        rows, columns = windows.shape[2:4]
        picked = []
        for image in windows:
            places = draw.choice(rows * columns, min(patches, rows * columns), replace=False)
            found = image[
                :, places // columns, places % columns
            ]  # (channels, places, kernel, kernel)
            picked.append(found.transpose(1, 0, 2, 3).reshape(len(places), -1))
        flat = np.concatenate(picked)
        total = total + (flat.T @ flat).astype(np.float64)
        count += len(flat)
    return total / count
