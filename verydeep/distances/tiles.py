"""What goes through a network together: images that share a reference; large photos in tiles.

Tiles overlap by what the layers see, so memory does not grow with a photo. The features inside a tile are
those of the whole photo, so distances are, too, to rounding; the price is that margins are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

from ..nets import Network
from .metrics import IMAGE

LARGEST = 1 << 20  # pixels in one pass, all images together: 16 of 256x256
MOST_OTHERS = 8  # images that share one computation of their reference
WORTH_A_GROUP = 5  # images against one reference

Array = np.ndarray
# (height, width, 3) each, of one size and type: uint8, or float32 from 0 to 255
Pair = tuple[Array, Array]


def one_reference(pairs: list[Pair]) -> bool:
    """Whether the pairs have their first image in common."""
    return all(first is pairs[0][0] for first, _ in pairs)


def _others(pair: Pair) -> int:
    """How many such images share one computation of their reference."""
    return max(1, min(MOST_OTHERS, LARGEST // pair[0][..., 0].size))


def at_once(pairs: list[Pair]) -> int:
    """How many of such pairs go together."""
    if len(pairs) > 1 and one_reference(pairs):
        return max(WORTH_A_GROUP, _others(pairs[0]))
    return max(1, LARGEST // (2 * pairs[0][0][..., 0].size))


def go_together(good: list[Pair], pair: Pair) -> bool:
    """Whether the pair may join these: one size and type, and no other reference after a group of one."""
    (known, _), reference = good[0], pair[0]
    if (known.shape, known.dtype) != (reference.shape, reference.dtype):
        return False
    return reference is known or len(good) < WORTH_A_GROUP or not one_reference(good)


def grouped(pairs: list[Pair]) -> list[list[Array]]:
    """A reference and the images that share its computation, the last group filled up with the last."""
    others = _others(pairs[0])
    if others == 1 or len(pairs) < WORTH_A_GROUP or not one_reference(pairs):
        return [list(pair) for pair in pairs]
    rest = [pair[1] for pair in pairs] + [pairs[-1][1]] * (-len(pairs) % others)
    return [[pairs[0][0], *rest[i : i + others]] for i in range(0, len(rest), others)]


@dataclass(frozen=True)
class Span:
    """Pixels `start` to `stop` along one axis, of which the tile answers for `own_start` to `own_stop`.

    Starts are multiples of the trunk's stride.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int

    def units(self, stride: int, size: int) -> tuple[slice, slice]:
        """Its own among the `size` units of a layer of that stride: in the whole map, in the tile's."""
        first, before = self.own_start // stride, self.start // stride
        # the last tile's map ends where the whole one does, however the pools round
        last = size if self.own_stop == self.stop else self.own_stop // stride
        return slice(first, last), slice(first - before, last - before)

    def share(self, stride: int, size: int) -> float:
        """Of the `size` units that are its own."""
        own = self.units(stride, size)[0]
        return float(own.stop - own.start) / size


Tile = tuple[Span, Span]  # rows, columns


@lru_cache(maxsize=64)
def grid(trunk: Network, height: int, width: int, images: int) -> tuple[Tile, ...]:
    """Rows and columns of each tile of such images, of which `images` go through the trunk together.

    One tile where the whole fits into a pass. Else the grid of tiles that fit with the least overlap, or
    the smallest tiles that the overlap leaves.
    """
    if images * height * width <= LARGEST:
        return ((Span(0, height, 0, height), Span(0, width, 0, width)),)
    last = trunk.rows(height, width)[-1]
    reach = int((last.receptive_field - 1) / 2 - last.position)
    margin = -(-reach // last.stride) * last.stride
    rows, columns = (list(_splits(size, margin, last.stride)) for size in (height, width))

    def cost(spans: tuple[list[Span], list[Span]]) -> tuple[int, int]:
        pixels = spans[0][0].stop * spans[1][0].stop
        return max(0, int(images * pixels - LARGEST)), len(spans[0]) * len(spans[1]) * pixels

    return tuple(product(*min(product(rows, columns), key=cost)))


@lru_cache(maxsize=64)
def shapes(
    trunk: Network, layers: tuple[str, ...], height: int, width: int
) -> dict[str, tuple[int, int, int]]:
    """Of each of the layers, IMAGE among them, (stride, height, width), for such an image."""
    known = {row.layer.name: (row.stride, *row.shape[1:]) for row in trunk.rows(height, width)}
    return {x: (1, height, width) if x == IMAGE else known[x] for x in layers}  # type: ignore[misc]


def _splits(size: int, margin: int, stride: int) -> Iterator[list[Span]]:
    """The axis in one span, two, three, ..., all of one length, so that an engine meets one shape."""
    yield [Span(0, size, 0, size)]
    odd = size % stride  # which makes the last start a multiple of the stride, too
    inner = size - odd - 2 * margin
    for count in range(2, max(inner // stride, 1) + 1):
        step = -(-inner // (count * stride)) * stride
        length = step + 2 * margin + odd
        edges = [0, *range(step + margin, size - odd - margin, step), size]
        starts = [min(max(edge - margin, 0), size - length) for edge in edges[:-1]]
        yield [
            Span(start, start + length, own_start, own_stop)
            for start, own_start, own_stop in zip(starts, edges, edges[1:], strict=False)
        ]


def window(groups: list[list[Array]], tile: Tile, masked: bool) -> Array:
    """(groups, height, width, 3 * images) of that tile; masked: and whether a pixel is the tile's own."""
    down, across = tile
    own = slice(down.start, down.stop), slice(across.start, across.stop)
    pixels = np.stack([np.concatenate([image[own] for image in group], axis=2) for group in groups])
    if not masked:
        return pixels
    mask = np.zeros((*pixels.shape[:3], 1), pixels.dtype)
    mask[:, down.units(1, down.own_stop)[1], across.units(1, across.own_stop)[1]] = 1
    return np.concatenate([pixels, mask], axis=3)


def merged(moments: Array, shares: Array) -> Array:
    """Moments of the whole, (pairs, 5, channels), from those of its tiles, (tiles, pairs, 5, channels).

    shares: (tiles, channels), of the positions of a layer.
    """
    mean, variance, other_mean, other_variance, covariance = np.moveaxis(moments, 2, 0)

    def whole(values: Array) -> Array:
        return np.asarray((values * shares[:, None]).sum(0))

    a, b = mean - whole(mean), other_mean - whole(other_mean)
    parts = (mean, variance + a * a, other_mean, other_variance + b * b, covariance + a * b)
    return np.stack([whole(values) for values in parts], 1)


def enlarged_sum(maps: list[Array], height: int, width: int) -> Array:
    """The sum of maps (h, w) at (height, width): bilinear, the centres of pixels aligned, edges repeated,
    as torch's ``Upsample(mode="bilinear", align_corners=False)``.
    """
    total = np.zeros((height, width), np.float32)
    for part in maps:
        total += np.asarray(
            Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)
        )
    return total
