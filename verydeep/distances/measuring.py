"""From pairs of pixels to distances: through an engine in batches, large photos in tiles.

Tiles overlap by what the layers see, so that memory does not grow with a photo. The features inside a tile
are those of the whole photo, so distances are, too, to rounding; the price is that margins are computed
twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from .. import __version__
from ..engines import ENGINES, REFERENCE, Engine
from ..engines.choice import Choice
from ..errors import EngineError
from ..graphs import Signature, Source, graph_key
from ..modelfile import ModelFile
from ..nets import Head, Network
from .inputs import Pair
from .metrics import IMAGE, METRICS, dists_of, heads, heads_sha256
from .records import About, Distance

if TYPE_CHECKING:
    from ..graphs.writer import Graph

LARGEST = 1 << 20  # pixels in one pass, all images together: 16 of 256x256
MOST_OTHERS = 8  # images that share one computation of their reference
WORTH_A_GROUP = 5  # images against one reference

# By precision, the distance (relative to the energy of the reference's features where the metric has no
# scale of its own) below which it would cost more than 2 % of it, and what such a pair is computed in
# instead. Measured at 96 and 128 pixels a side on graded distortions of photos, docs/log.md: above these,
# bf16 costs at most 2 % of any of the four distances, and Winograd's float32 at most 0.1 %.
FINER = {"half": (0.1, "fast"), "fast": (3e-3, "exact")}

# engines that compute in float32 without Winograd's shortcuts though less was asked for: nothing finer
DIRECT = {"half": ("onnxruntime",), "fast": ("onnxruntime", "openvino", "torch")}

Array = np.ndarray
Pixels = Literal["uint8", "float32"]
# value, engine, the part of each layer, the map of each layer, what a small value is small against
Reading = tuple[float, Engine, dict[str, float], list[Array], float]


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
        return max(0, int(images * pixels - LARGEST)), len(grid[0]) * len(grid[1]) * pixels

    return tuple(product(*min(product(rows, columns), key=cost)))


@lru_cache(maxsize=64)
def _shapes(
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


class Measure:
    """A metric's graphs on a model's trunk, and the engines that run them.

    told: engine, threads and device. precision: the one that was asked for.
    """

    def __init__(
        self,
        name: str,
        model: ModelFile,
        layers: tuple[str, ...],
        precision: str,
        told: Mapping[str, Any],
    ) -> None:
        self.name, self.model, self.layers = name, model, layers
        self.precision, self.told = precision, told
        network = model.record.network
        pool: Any = METRICS[name].pool or network.pool
        self.trunk = replace(network, head=Head(classes=0), pool=pool).cut(layers)
        # written by setdefault alone, which threads may do at once: it needs no lock that a fork could
        # leave closed
        self._choices: dict[tuple[Any, ...], Choice] = {}

    def pairs_at_once(self, pairs: list[Pair]) -> int:
        """How many of such pairs go together."""
        height, width = map(int, pairs[0][0].shape[:2])
        if len(pairs) > 1 and one_reference(pairs):
            return max(WORTH_A_GROUP, _others(height, width))
        return max(1, LARGEST // (2 * height * width))

    def distances(
        self,
        pairs: list[Pair],
        range: str | None,
        *,
        spatial: bool,
        to_come: int,
        precision: str = "",
    ) -> list[Distance]:
        """Of pairs of one size and dtype; those that the precision would cost too much, in a finer one.

        range: of floats. to_come: how many pairs are known to follow.
        """
        precision = precision or self.precision
        height, width = pairs[0][0].shape[:2]
        least, finer = FINER.get(precision, (0.0, ""))
        read = {"dists": self._dists, "style": self._styles}.get(self.name, self._maps)
        distances: list[Distance | None] = []
        for value, engine, layers, maps, scale in read(pairs, precision, to_come):
            small = not value >= least * scale
            if finer and small and engine.name not in DIRECT[precision]:
                distances.append(None)
                continue
            about = About(
                metric=METRICS[self.name].name,
                network=self.model.record.network.name,
                weights=self.model.sha256[:12],
                heads=heads_sha256()[:12] if METRICS[self.name].fitted else "",
                layers=self.layers,
                engine=engine.name,
                engine_version=engine.version,
                precision=precision,
                height=height,
                width=width,
                range="0..255" if pairs[0][0].dtype == np.uint8 else range or "0..65535",
                version=__version__,
            )
            if not np.isfinite(value):
                raise EngineError(
                    f"the distance is {value}, not a finite number; the weights in "
                    f"{self.model.path} may be damaged ({about})"
                )
            whole = _enlarged_sum(maps, height, width) if spatial else None
            distances.append(Distance(value, about, layers, whole))
        again = [pair for pair, one in zip(pairs, distances, strict=True) if one is None]
        redone: Iterator[Distance] = iter(())
        if again:
            redone = iter(self.distances(again, range, spatial=spatial, to_come=0, precision=finer))
        return [next(redone) if one is None else one for one in distances]

    # LPIPS and content: the mean of a map for each layer

    def _maps(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        sizes = self._sizes(pairs[0][0])
        readings: list[Reading] = []
        for groups, others, engine, passes in self._passes(_grouped(pairs), precision, to_come):
            maps = {
                layer: np.empty((groups, others, *size), np.float32)
                for layer, (_, *size) in sizes.items()
            }
            scales = np.full(groups, 0.0 if self.name == "content" else 1.0)
            for (down, across), outputs in passes:
                for layer, (stride, *size) in sizes.items():
                    rows, own_rows = down.units(stride, size[0])
                    columns, own_columns = across.units(stride, size[1])
                    part = outputs[f"{layer}_map"][:, :, own_rows, own_columns]
                    maps[layer][:, :, rows, columns] = part
                    if self.name == "content":
                        share = part[0, 0].size / (size[0] * size[1])
                        energy = outputs[f"{layer}_energy"].mean((1, 2, 3), dtype=np.float64)
                        scales += share * energy
            means = {layer: m.mean((2, 3), dtype=np.float64) for layer, m in maps.items()}
            for group, other in np.ndindex(groups, others):
                layers = {layer: float(mean[group, other]) for layer, mean in means.items()}
                own = [m[group, other] for m in maps.values()]
                readings.append((sum(layers.values()), engine, layers, own, float(scales[group])))
        return readings[: len(pairs)]

    # DISTS: moments of the image and of the layers

    def _dists(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        sizes = self._sizes(pairs[0][0])
        readings: list[Reading] = []
        for groups, others, engine, passes in self._passes(_grouped(pairs), precision, to_come):
            moments, shares = [], []
            for (down, across), outputs in passes:
                parts = [
                    outputs[f"{layer}_moments"].reshape(groups * others, 5, -1) for layer in sizes
                ]
                moments.append(np.concatenate(parts, 2).astype(np.float64))
                share = [down.share(s, h) * across.share(s, w) for s, h, w in sizes.values()]
                shares.append(np.repeat(share, [part.shape[2] for part in parts]))
            values = dists_of(_merged(np.stack(moments), np.stack(shares)), heads("dists"))
            readings += [(float(value), engine, {}, [], 1.0) for value in values]
        return readings[: len(pairs)]

    # Style: Gram matrices, which are an image's own: each goes through the trunk once

    def _styles(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        images = {id(image): image for pair in pairs for image in pair}
        grams: list[dict[str, Array]] = []
        alone = [[image] for image in images.values()]
        for count, _, engine, passes in self._passes(  # noqa: B007
            alone, precision, 2 * to_come
        ):
            total: dict[str, Any] = dict.fromkeys(self.layers, 0)
            for _, outputs in passes:
                for layer, (_, height, width) in self._sizes(pairs[0][0]).items():
                    # arXiv:1603.08155, equation 3
                    numbers = self.trunk.layer(layer).outputs * height * width
                    gram = outputs[f"{layer}_gram"].astype(np.float64) / numbers
                    total[layer] = total[layer] + gram
            grams += [{layer: total[layer][i] for layer in self.layers} for i in range(count)]
        known = dict(zip(images, grams, strict=True))
        readings: list[Reading] = []
        for pair in pairs:
            one, other = (known[id(image)] for image in pair)
            layers = {x: float(((one[x] - other[x]) ** 2).sum()) for x in self.layers}
            scale = sum(float((gram**2).sum()) for gram in one.values())
            readings.append((sum(layers.values()), engine, layers, [], scale))
        return readings

    # Passes through an engine

    def _sizes(self, image: Array) -> dict[str, tuple[int, int, int]]:
        """(stride, height, width) of what is read of such an image, by layer."""
        height, width = image.shape[:2]
        sizes = {IMAGE: (1, height, width)} if self.name == "dists" else {}
        return {**sizes, **_shapes(self.trunk, self.layers, height, width)}

    def _passes(
        self, groups: list[list[Array]], precision: str, to_come: int
    ) -> Iterator[tuple[int, int, Engine, Iterator[tuple[Tile, dict[str, Array]]]]]:
        """How many groups of how many others, the engine, and for each tile what the graph gives.

        groups: of a reference and what is compared with it. to_come: how many others follow.
        """
        height, width = groups[0][0].shape[:2]
        images = len(groups[0])
        at_once = max(1, LARGEST // (images * height * width))
        grid = tiles(self.trunk, height, width, min(images, 2))
        masked = len(grid) > 1 and self.name in ("dists", "style")
        for start in range(0, len(groups), at_once):
            part = groups[start : start + at_once]
            ahead = (len(part) + to_come // max(images - 1, 1)) * images - len(part)
            engine = self._engine(
                _window(part, grid[0], masked), precision, images - 1, masked,
                min(at_once, len(groups)), ahead,
            )  # fmt: skip
            outputs = ((tile, engine.run(_window(part, tile, masked))) for tile in grid)
            yield len(part), images - 1, engine, outputs

    def _engine(
        self, pixels: Array, precision: str, others: int, masked: bool, batch: int, to_come: int
    ) -> Engine:
        # what a race is held on: images that differ much, so that its check is of the engine, and not of
        # how alike the images are; it is worth it for so many images, and a group is several
        probe = np.concatenate([pixels[..., :3], pixels[:, ::-1, :, 3:]], axis=3)
        dtype: Any = pixels.dtype.name
        key = (precision, others, masked, dtype)
        if key not in self._choices:
            told = dict(self.told)
            kind = ENGINES.get(told["engine"])
            if kind and precision != self.precision and precision not in kind.precisions:
                told["engine"] = REFERENCE  # for pairs that the engine asked for is too coarse for
            source = self._source(others, masked, dtype)
            self._choices.setdefault(key, Choice(source, precision=precision, **told))
        return self._choices[key].engine(probe, batch=batch, to_come=to_come)

    def _source(self, others: int, masked: bool, pixels: Pixels) -> Source:
        def build() -> Graph:
            from ..graphs import distance as graph

            tensors = self.model.tensors(tuple(self.trunk.tensors))
            return graph.build(
                self.name, self.trunk, tensors, self.model.record.preprocess, layers=self.layers,
                heads=heads(self.name), others=others, pixels=pixels, masked=masked,
            )  # fmt: skip

        parts = {"content": ("map", "energy"), "dists": ("moments",), "style": ("gram",)}
        read = (IMAGE, *self.layers) if self.name == "dists" else self.layers
        outputs = [f"{x}_{part}" for x in read for part in parts.get(self.name, ("map",))]
        facts = [heads_sha256(), self.name, self.trunk.pool, " ".join(self.layers)]
        facts += [str(others), pixels, "masked" * masked]
        channels = 3 * (1 + others) + masked
        signature = Signature(pixels, channels, self.trunk.minimum_size, tuple(outputs))
        return Source(build, graph_key(self.model, facts, ["graphs/distance.py"]), signature)


def one_reference(pairs: list[Pair]) -> bool:
    """Whether the pairs have their first image in common."""
    return all(first is pairs[0][0] for first, _ in pairs)


def _others(height: int, width: int) -> int:
    """How many images share one computation of their reference."""
    return max(1, min(MOST_OTHERS, LARGEST // (height * width)))


def _grouped(pairs: list[Pair]) -> list[list[Array]]:
    """A reference and the images that share its computation, the last group filled up with the last."""
    reference, last = pairs[0][0], pairs[-1][1]
    others = _others(*reference.shape[:2])
    if others == 1 or len(pairs) < WORTH_A_GROUP or not one_reference(pairs):
        return [list(pair) for pair in pairs]
    rest = [pair[1] for pair in pairs] + [last] * (-len(pairs) % others)
    return [[reference, *rest[i : i + others]] for i in range(0, len(rest), others)]


def _window(groups: list[list[Array]], tile: Tile, masked: bool) -> Array:
    """(groups, height, width, 3 * images) of that tile; masked: and whether a pixel is the tile's own."""
    down, across = tile
    own = slice(down.start, down.stop), slice(across.start, across.stop)
    window = np.stack([np.concatenate([image[own] for image in group], axis=2) for group in groups])
    if not masked:
        return window
    mask = np.zeros((*window.shape[:3], 1), window.dtype)
    mask[:, down.units(1, down.own_stop)[1], across.units(1, across.own_stop)[1]] = 1
    return np.concatenate([window, mask], axis=3)


def _merged(moments: Array, shares: Array) -> Array:
    """Moments of the whole, (pairs, 5, channels), from those of its tiles, (tiles, pairs, 5, channels).

    shares: (tiles, channels), of the positions of a layer.
    """
    mean, variance, other_mean, other_variance, covariance = np.moveaxis(moments, 2, 0)

    def whole(values: Array) -> Array:
        return np.asarray((values * shares[:, None]).sum(0))

    a, b = mean - whole(mean), other_mean - whole(other_mean)
    merged = (mean, variance + a * a, other_mean, other_variance + b * b, covariance + a * b)
    return np.stack([whole(values) for values in merged], 1)


def _enlarged_sum(maps: list[Array], height: int, width: int) -> Array:
    """The sum of maps (h, w) at (height, width): bilinear, the centres of pixels aligned, edges repeated,
    as torch's ``Upsample(mode="bilinear", align_corners=False)``.
    """
    total = np.zeros((height, width), np.float32)
    for part in maps:
        total += np.asarray(
            Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)
        )
    return total
