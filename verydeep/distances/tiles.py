"""Large photos in tiles that overlap by what the layers see, so that memory does not grow with them.

The features inside a tile are those of the whole photo, so distances are, too, to rounding. The price is
that margins are computed twice: 1.5 times the arithmetic for 1.5 megapixels, twice for 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ..nets import Network

LARGEST = 1 << 20  # pixels in one pass, all images together: 16 of 256x256
TILED = 0.75  # of that where an image is tiled: a large one takes memory itself


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


@lru_cache(maxsize=64)
def tiles(trunk: Network, height: int, width: int, images: int) -> tuple[tuple[Span, Span], ...]:
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

    def cost(grid: tuple[list[Span], list[Span]]) -> tuple[int, int]:
        pixels = grid[0][0].stop * grid[1][0].stop
        return max(0, int(images * pixels - TILED * LARGEST)), len(grid[0]) * len(grid[1]) * pixels

    return tuple(product(*min(product(rows, columns), key=cost)))


@lru_cache(maxsize=64)
def shapes(
    trunk: Network, layers: tuple[str, ...], height: int, width: int
) -> dict[str, tuple[int, int, int]]:
    """Of each of the layers, (stride, height, width), for such an image."""
    rows = {row.layer.name: row for row in trunk.rows(height, width)}
    return {x: (rows[x].stride, *rows[x].shape[1:]) for x in layers}  # type: ignore[misc]


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
