"""From pairs of pixels to distances: through an engine in batches, or tile by tile where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..engines import ENGINES, REFERENCE, Signature, Source
from ..engines.choice import Choice
from ..engines.source import graph_key
from ..nets import Head
from .metrics import IMAGE, Metric, dists_of, heads, heads_sha256
from .tiles import LARGEST, Span, shapes, tiles

if TYPE_CHECKING:
    from ..engines import Engine
    from ..graphs.writer import Graph
    from ..modelfile import ModelFile
    from .inputs import Pair

MOST_OTHERS = 8  # images that share one computation of their reference
WORTH_A_GROUP = 5  # images against one reference

Array = np.ndarray
Pixels = Literal["uint8", "float32"]
Tile = tuple[Span, Span]


@dataclass(frozen=True)
class Reading:
    """A pair as an engine in some precision sees it.

    layers: the part of each layer, where the value is their sum. maps: of each layer, where there are
    any. scale: what a small value is small against.
    """

    value: float
    engine: Engine
    layers: Mapping[str, float]
    maps: tuple[Array, ...] = ()
    scale: float = 1.0


class Measure:
    """A metric's graphs on a model's trunk, and the engines that run them.

    told: engine, threads and device. precision: the one that was asked for.
    """

    def __init__(
        self,
        name: str,
        metric: Metric,
        model: ModelFile,
        layers: tuple[str, ...],
        precision: str,
        told: Mapping[str, Any],
    ) -> None:
        self.name, self.model, self.layers = name, model, layers
        self.precision, self.told = precision, told
        network = model.record.network
        pool: Any = metric.pool or network.pool
        self.trunk = replace(network, head=Head(classes=0), pool=pool).cut(layers)
        self.smallest = self.trunk.minimum_size
        # readings of pairs of one size and dtype, in a precision; and how many pairs are known to follow
        self.read: Callable[[list[Pair], str, int], list[Reading]] = self._maps
        if name in ("style", "dists"):
            self.read = self._styles if name == "style" else self._dists
        # written by setdefault alone, which threads may do at once: it needs no lock that a fork could
        # leave closed
        self._choices: dict[tuple[str, str, int, str], Choice] = {}

    def pairs_at_once(self, pairs: list[Pair]) -> int:
        """How many of such pairs go together."""
        height, width = map(int, pairs[0][0].shape[:2])
        if len(pairs) > 1 and one_reference(pairs):
            return max(WORTH_A_GROUP, _others(height, width))
        return max(1, LARGEST // (2 * height * width))

    # LPIPS and content: the mean of a map for each layer

    def _maps(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        height, width = pairs[0][0].shape[:2]
        sizes = shapes(self.trunk, self.layers, height, width)
        readings: list[Reading] = []
        for groups, others, engine, passes in self._passes(pairs, precision, to_come):
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
                own = tuple(m[group, other] for m in maps.values())
                scale = float(scales[group])
                readings.append(Reading(sum(layers.values()), engine, layers, own, scale))
        return readings[: len(pairs)]

    # DISTS: moments of the image and of the layers

    def _dists(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        if self._fits(pairs[0][0], 2):
            readings: list[Reading] = []
            for groups, others, engine, passes in self._passes(pairs, precision, to_come):
                ((_, outputs),) = passes
                count = groups * others
                parts = [v.reshape(count, 5, -1).astype(np.float64) for v in outputs.values()]
                values = dists_of(np.concatenate(parts, 2), heads("dists"))
                readings += [Reading(float(value), engine, {}) for value in values]
            return readings[: len(pairs)]
        return [self._tiled_dists(pair, precision) for pair in pairs]

    def _tiled_dists(self, pair: Pair, precision: str) -> Reading:
        sums: dict[str, Any] = {}
        counts: dict[str, int] = {}
        engine, tiled = self._features(list(pair), precision)
        for features in tiled:
            for layer, (one, other) in features.items():
                sums[layer] = sums.get(layer, 0) + _sums(one, other)
                counts[layer] = counts.get(layer, 0) + one[0].size
        parts = [total / counts[layer] for layer, total in sums.items()]
        mean, other_mean, square, other_square, product = np.concatenate(parts, 1)
        moments = [mean, square - mean**2, other_mean, other_square - other_mean**2]
        moments.append(product - mean * other_mean)
        value = dists_of(np.stack(moments)[None], heads("dists"))
        return Reading(float(value[0]), engine, {})

    # Style: Gram matrices, which are an image's own: each goes through the trunk once

    def _styles(self, pairs: list[Pair], precision: str, to_come: int) -> list[Reading]:
        images = list({id(image): image for pair in pairs for image in pair}.values())
        place = {id(image): index for index, image in enumerate(images)}
        height, width = images[0].shape[:2]
        at_once = max(1, LARGEST // (height * width))
        grams: list[dict[str, Array]] = []
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            if self._fits(images[0], 1):
                stacked = np.stack(part)
                batch = min(at_once, len(images))
                engine = self._engine("style", stacked, precision, 0, batch, 2 * to_come)
                outputs = engine.run(stacked)
                grams += [
                    {x: outputs[f"{x}_gram"][i] for x in self.layers} for i in range(len(part))
                ]
            else:
                total: dict[str, Any] = dict.fromkeys(self.layers, 0.0)
                engine, tiled = self._features(part, precision)
                for features in tiled:
                    for layer in self.layers:
                        rows = features[layer][0].reshape(len(features[layer][0]), -1)
                        total[layer] = total[layer] + (rows @ rows.T).astype(np.float64)
                grams.append(total)
        for layer, (_, *size) in shapes(self.trunk, self.layers, height, width).items():
            # arXiv:1603.08155, equation 3
            numbers = self.trunk.layer(layer).outputs * size[0] * size[1]
            for gram in grams:
                gram[layer] = gram[layer].astype(np.float64) / numbers
        readings = []
        for pair in pairs:
            one, other = (grams[place[id(image)]] for image in pair)
            layers = {x: float(((one[x] - other[x]) ** 2).sum()) for x in self.layers}
            scale = sum(float((gram**2).sum()) for gram in one.values())
            readings.append(Reading(sum(layers.values()), engine, layers, (), scale))
        return readings

    # Passes through an engine

    def _fits(self, image: Array, images: int) -> bool:
        return len(tiles(self.trunk, *image.shape[:2], images)) == 1

    def _passes(
        self, pairs: list[Pair], precision: str, to_come: int
    ) -> Iterator[tuple[int, int, Engine, Iterator[tuple[Tile, dict[str, Array]]]]]:
        """How many groups of how many others, the engine, and for each tile what the graph gives."""
        height, width = pairs[0][0].shape[:2]
        alike = one_reference(pairs) and len(pairs) >= WORTH_A_GROUP
        others = _others(height, width) if alike else 1
        groups = [list(pair) for pair in pairs]
        if others > 1:  # the last image fills up the last group
            rest = [pair[1] for pair in pairs] + [pairs[-1][1]] * (-len(pairs) % others)
            groups = [[pairs[0][0], *rest[i : i + others]] for i in range(0, len(rest), others)]
        at_once = max(1, LARGEST // ((1 + others) * height * width))
        grid = tiles(self.trunk, height, width, 2)
        for start in range(0, len(groups), at_once):
            part = groups[start : start + at_once]
            first = _window(part, grid[0])
            ahead = (len(part) + to_come // others) * (1 + others) - len(part)
            batch = min(at_once, len(groups))
            engine = self._engine(self.name, first, precision, others, batch, ahead)
            outputs = (
                (tile, engine.run(first if tile is grid[0] else _window(part, tile)))
                for tile in grid
            )
            yield len(part), others, engine, outputs

    def _features(
        self, images: list[Array], precision: str
    ) -> tuple[Engine, Iterator[dict[str, Array]]]:
        """The engine, and tile by tile what a tile knows of large images: (images, channels, height,
        width) float32, by layer; by IMAGE their pixels, from 0 to 1.
        """
        height, width = images[0].shape[:2]
        sizes = {IMAGE: (1, height, width), **shapes(self.trunk, self.layers, height, width)}
        # features that leave the graph take as much memory again
        grid = tiles(self.trunk, height, width, 2 * len(images))
        pixels = np.stack([_cut(image, grid[0]) for image in images])
        engine = self._engine("features", pixels, precision, 0, len(images), 0)

        def parts() -> Iterator[dict[str, Array]]:
            for down, across in grid:
                pixels = np.stack([_cut(image, (down, across)) for image in images])
                image = pixels.transpose(0, 3, 1, 2) / np.float32(255)
                features = {IMAGE: image, **engine.run(pixels)}
                own = {}
                for layer, (stride, *size) in sizes.items():
                    rows, columns = down.units(stride, size[0])[1], across.units(stride, size[1])[1]
                    own[layer] = features[layer][:, :, rows, columns]
                yield own

        return engine, parts()

    def _engine(
        self, what: str, pixels: Array, precision: str, others: int, batch: int, to_come: int
    ) -> Engine:
        # what a race is held on: images that differ much, so that its check is of the engine, and not of
        # how alike the images are; it is worth it for so many images, and a group is several
        probe = np.concatenate([pixels[..., :3], pixels[:, ::-1, :, 3:]], axis=3)
        key = (what, precision, others, pixels.dtype.name)
        if key not in self._choices:
            told = dict(self.told)
            kind = ENGINES.get(told["engine"])
            if kind and precision != self.precision and precision not in kind.precisions:
                told["engine"] = REFERENCE  # for pairs that the engine asked for is too coarse for
            source = self._source(what, others, pixels.dtype.name)  # type: ignore[arg-type]
            self._choices.setdefault(key, Choice(source, precision=precision, **told))
        return self._choices[key].engine(probe, batch=batch, to_come=to_come)

    def _source(self, what: str, others: int, pixels: Pixels) -> Source:
        names = {
            "lpips": [f"{layer}_map" for layer in self.layers],
            "content": [f"{x}_{part}" for x in self.layers for part in ("map", "energy")],
            "dists": [f"{layer}_moments" for layer in (IMAGE, *self.layers)],
            "style": [f"{layer}_gram" for layer in self.layers],
            "features": list(self.layers),
        }[what]

        def build() -> Graph:
            from ..graphs import distance as graph

            tensors = self.model.tensors(tuple(self.trunk.tensors))
            return graph.build(
                what, self.trunk, tensors, self.model.record.preprocess, layers=self.layers,
                heads=heads(what), others=others, pixels=pixels,
            )  # fmt: skip

        facts = [heads_sha256(), what, self.trunk.pool, " ".join(self.layers), str(others), pixels]
        code = ("graphs/network.py", "nets.py", "graphs/distance.py")
        key = graph_key(self.model, facts, code)
        signature = Signature(pixels, 3 * (1 + others), self.smallest, tuple(names))
        return Source(build, key, signature)


def one_reference(pairs: list[Pair]) -> bool:
    """Whether the pairs have their first image in common."""
    return all(first is pairs[0][0] for first, _ in pairs)


def _others(height: int, width: int) -> int:
    """How many images share one computation of their reference."""
    return max(1, min(MOST_OTHERS, LARGEST // (height * width)))


def _cut(image: Array, tile: Tile) -> Array:
    down, across = tile
    return image[down.start : down.stop, across.start : across.stop]


def _window(groups: list[list[Array]], tile: Tile) -> Array:
    """(groups, height, width, 3 * images) of that tile."""
    return np.stack([np.concatenate([_cut(x, tile) for x in group], axis=2) for group in groups])


def _sums(one: Array, other: Array) -> Array:
    """Of two images' features (channels, height, width): (5, channels) float64, the sums of both, of
    their squares and of their products.
    """
    sums = np.empty((5, len(one)))
    for channel, maps in enumerate(zip(one, other, strict=True)):
        a, b = (np.ravel(each).astype(np.float64) for each in maps)
        sums[:, channel] = a.sum(), b.sum(), a @ a, b @ b, a @ b
    return sums
