"""A metric on a model, for as many images as one likes: through an engine in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..engines import ENGINES, REFERENCE, check
from ..engines.choice import Choice
from ..errors import (
    DataError,
    EngineError,
    Failure,
    ImageError,
    NetworkError,
    require,
    require_whole,
    warn,
)
from ..files import hashes
from ..graphs import Source, graph_key
from ..modelfile import ModelFile, read
from ..nets import Head, Network
from ..preprocess import ImageLike, Range, decoded, limits, several
from ..published import find_model
from . import tiles
from .metrics import IMAGE, METRICS, chosen, dists_of, heads, heads_sha256
from .records import About, Distance, Distances
from .tiles import Pair

if TYPE_CHECKING:
    from ..graphs.writer import Graph

PRECISIONS = ("exact", "fast", "half")

# How far beyond its range a picture may go, in widths of the range: filters ring at edges.
OVERSHOOT = 0.5

# By precision, the distance (relative to the energy of the reference's features where the metric has no
# scale of its own) below which it would cost more than 2 % of it, and what such a pair is computed in
# instead. Measured at 96 and 128 pixels a side on graded distortions of photos, docs/log.md: above these,
# bf16 costs at most 2 % of any of the four distances, and Winograd's float32 at most 0.1 %.
FINER = {"half": (0.1, "fast"), "fast": (3e-3, "exact")}

# engines that compute in float32 without Winograd's shortcuts though less was asked for: nothing finer
DIRECT = {"half": ("onnxruntime",), "fast": ("onnxruntime", "openvino", "torch")}

Array = np.ndarray


class Perceptual:
    """A metric on a model, with the engines that it has opened, for as many images as one likes.

    metric: "lpips", "dists", "content" or "style". model: as for `verydeep.load`; LPIPS and DISTS need a
    VGG-16 of full width without batch norm. layers: one paper name or several, for content and style only.
    engine, precision, threads, device: as for `verydeep.load`. The precision is that of the distance: a
    pair so alike that it would cost more than 2 % is computed again in a finer one.

    It may be called from several threads, and pickled: the copy opens the model's file anew.
    """

    def __init__(
        self,
        metric: str = "lpips",
        *,
        model: str | os.PathLike[str] | ModelFile = "builtin",
        layers: str | Sequence[str] | None = None,
        engine: str = "auto",
        precision: str = "fast",
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        require("metric", metric, METRICS, DataError)
        require("precision", precision, PRECISIONS, EngineError)
        check(engine, precision, device, threads)
        self.name, self.metric, self.precision = metric, METRICS[metric], precision
        self.model = model if isinstance(model, ModelFile) else read(find_model(model))
        network = self.model.record.network
        if network.in_channels != 3:
            raise NetworkError(
                f"{self.model.path} takes images of {network.in_channels} channels; expected 3"
            )
        if self.metric.fitted:
            if layers is not None:
                raise NetworkError(
                    f"{metric} reads its own layers; layers are for content and style"
                )
            if not is_fitted(network):
                raise NetworkError(
                    f"{self.model.path} is {network.name} of {network.widths}; {metric} was "
                    "fitted to the features of vgg16 and needs that"
                )
        self.layers = chosen(layers, self.metric.layers, network)
        self._told: dict[str, Any] = {"engine": engine, "threads": threads, "device": device}
        pool: Any = self.metric.pool or network.pool
        self._trunk = replace(network, head=Head(classes=0), pool=pool).cut(self.layers)
        self._read = (IMAGE, *self.layers) if metric == "dists" else self.layers
        # written by setdefault alone, which threads may do at once: it needs no lock that a fork could
        # leave closed
        self._choices: dict[tuple[Any, ...], Choice] = {}

    def __repr__(self) -> str:
        return f"<Perceptual {self.metric.name}, {self.precision}, {self.model.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        layers = None if self.metric.fitted else self.layers
        told = {"precision": self.precision, "layers": layers, **self._told}
        return partial(Perceptual, self.name, model=self.model, **told), ()

    def __call__(
        self, a: Any, b: Any, *, range: Range = None, spatial: bool = False
    ) -> Distance | Distances:
        """The distance between `a` and `b`.

        Each is one image, or several: a list or tuple, (images, height, width, channels) or a tensor
        (images, channels, height, width). One image is a path, the bytes of a file, a PIL image, an array
        (height, width[, channels]) or a tensor (channels, height, width). Several are compared one by one
        with as many, or all with one, whose features are then computed once for several.

        range: "0..255", "0..1", "-1..1" or (black, white), of floats, which are never rounded; 8 and
        16-bit images know their own. spatial: maps in place of numbers.

        Returns a Distance for two images, else an array (images,) float64; where spatial, (height, width)
        or (images, height, width) float32. ImageError for images that cannot be used or differ in size.
        """
        first, many_first = several(a)
        second, many_second = several(b)
        if not many_first and many_second:
            first = first * len(second)
        elif many_first and not many_second:
            # every distance here is symmetric: the single one becomes the reference
            first, second = second * len(first), first
        if len(first) != len(second):
            raise DataError(
                f"{len(first)} images were given to compare with {len(second)}; expected as many, or one"
            )
        pairs = list(zip(first, second, strict=True))
        distances = []
        for answer in self.stream(pairs, range=range, spatial=spatial):
            if isinstance(answer, Failure):
                raise ImageError(answer.error)
            distances.append(answer)
        if not (many_first or many_second or spatial):
            return distances[0]
        return _array(distances, spatial=spatial, many=many_first or many_second)

    def stream(
        self,
        pairs: Iterable[tuple[ImageLike, ImageLike]],
        *,
        range: Range = None,
        spatial: bool = False,
        batch: int | None = None,
    ) -> Iterator[Distance | Failure]:
        """Distances of pairs of images, in order, as they come; memory stays flat however many there are.

        A pair that cannot be compared gives a `Failure` and stops nothing. Neighbours that have their
        first image in common share its computation. batch: how many pairs are read at most before their
        distances are given; None: as many as go through the network together. Other arguments as for a
        call.
        """
        if spatial and not self.metric.spatial:
            raise DataError(
                f"{self.name} has no map: it compares statistics of whole images; lpips and content have"
            )
        require_whole(DataError, batch=1 if batch is None else batch)
        return self._streamed(pairs, _Decoder(range, self._trunk.minimum_size), spatial, batch)

    def _streamed(
        self, pairs: Iterable[tuple[ImageLike, ImageLike]], decoder: _Decoder, spatial: bool,
        batch: int | None,
    ) -> Iterator[Distance | Failure]:  # fmt: skip
        told: str | None = None
        left = len(pairs) if isinstance(pairs, Sized) else 0
        waiting: list[Pair | Failure] = []
        good: list[Pair] = []  # those among them that can be compared

        def answers() -> Iterator[Distance | Failure]:
            rows = iter(self._distances(good, told, spatial, left, self.precision) if good else ())
            yield from [item if isinstance(item, Failure) else next(rows) for item in waiting]
            waiting.clear()
            good.clear()

        for first, second in pairs:
            item = decoder.pair(first, second)
            if not isinstance(item, Failure):
                if good and (told != decoder.told or not tiles.go_together(good, item)):
                    yield from answers()
                told = decoder.told
                good.append(item)
            left = max(0, left - 1)
            waiting.append(item)
            most = tiles.at_once(good) if good else 1
            if len(waiting) >= min(most, batch or most):
                yield from answers()
        yield from answers()

    def _distances(
        self, pairs: list[Pair], range: str | None, spatial: bool, to_come: int, precision: str
    ) -> list[Distance]:
        """Of pairs of one size and dtype; those that the precision would cost too much, in a finer one.

        range: by which some of them were read, if any. to_come: how many pairs are known to follow.
        """
        height, width = pairs[0][0].shape[:2]
        about = About(
            metric=self.metric.name,
            network=self.model.record.network.name,
            weights=self.model.sha256[:12],
            heads=heads_sha256()[:12] if self.metric.fitted else "",
            layers=self.layers,
            engine="",
            engine_version="",
            precision=precision,
            height=height,
            width=width,
            range="0..255" if pairs[0][0].dtype == np.uint8 else range or "0..65535",
            version=__version__,
        )
        least, finer = FINER.get(precision, (0.0, ""))
        read = {"dists": self._dists, "style": self._styles}.get(self.name, self._maps)
        distances: list[Distance | None] = []
        # a group that was filled up has more answers than there are pairs
        for _, (distance, scale) in zip(pairs, read(pairs, about, to_come, spatial), strict=False):
            small = not distance >= least * scale
            if finer and small and distance.about.engine not in DIRECT[precision]:
                distances.append(None)
            elif np.isfinite(distance):
                distances.append(distance)
            else:
                raise EngineError(
                    f"the distance is {distance}, not a finite number; the weights in "
                    f"{self.model.path} may be damaged ({distance.about})"
                )
        again = [pair for pair, one in zip(pairs, distances, strict=True) if one is None]
        redone = iter(self._distances(again, range, spatial, 0, finer) if again else ())
        return [next(redone) if one is None else one for one in distances]

    # Of LPIPS and content the mean of a map for each layer, of DISTS moments, of style Gram matrices: a
    # distance and what a small one is small against

    def _maps(
        self, pairs: list[Pair], about: About, to_come: int, spatial: bool
    ) -> Iterator[tuple[Distance, float]]:
        sizes = tiles.shapes(self._trunk, self._read, about.height, about.width)
        for groups, others, made, passes in self._passes(tiles.grouped(pairs), about, to_come):
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
                whole = None
                if spatial:
                    own = [m[group, other] for m in maps.values()]
                    whole = tiles.enlarged_sum(own, about.height, about.width)
                yield Distance(sum(layers.values()), made, layers, whole), float(scales[group])

    def _dists(
        self, pairs: list[Pair], about: About, to_come: int, _spatial: bool
    ) -> Iterator[tuple[Distance, float]]:
        sizes = tiles.shapes(self._trunk, self._read, about.height, about.width)
        for groups, others, made, passes in self._passes(tiles.grouped(pairs), about, to_come):
            moments, shares = [], []
            for (down, across), outputs in passes:
                parts = [
                    outputs[f"{layer}_moments"].reshape(groups * others, 5, -1) for layer in sizes
                ]
                moments.append(np.concatenate(parts, 2).astype(np.float64))
                share = [down.share(s, h) * across.share(s, w) for s, h, w in sizes.values()]
                shares.append(np.repeat(share, [part.shape[2] for part in parts]))
            whole = tiles.merged(np.stack(moments), np.stack(shares))
            for value in dists_of(whole, heads("dists")):
                yield Distance(float(value), made), 1.0

    def _styles(
        self, pairs: list[Pair], about: About, to_come: int, _spatial: bool
    ) -> Iterator[tuple[Distance, float]]:
        sizes = tiles.shapes(self._trunk, self._read, about.height, about.width)
        # a Gram matrix is an image's own: each goes through the trunk once
        images = {id(image): image for pair in pairs for image in pair}
        grams: list[dict[str, Array]] = []
        alone = [[image] for image in images.values()]
        for count, _, made, passes in self._passes(alone, about, 2 * to_come):  # noqa: B007
            total: dict[str, Any] = dict.fromkeys(self.layers, 0)
            for _, outputs in passes:
                for layer, (_, height, width) in sizes.items():
                    # arXiv:1603.08155, equation 3
                    numbers = self._trunk.layer(layer).outputs * height * width
                    gram = outputs[f"{layer}_gram"].astype(np.float64) / numbers
                    total[layer] = total[layer] + gram
            grams += [{layer: total[layer][i] for layer in self.layers} for i in range(count)]
        known = dict(zip(images, grams, strict=True))
        for pair in pairs:
            one, other = (known[id(image)] for image in pair)
            layers = {x: float(((one[x] - other[x]) ** 2).sum()) for x in self.layers}
            scale = sum(float((gram**2).sum()) for gram in one.values())
            yield Distance(sum(layers.values()), made, layers), scale

    def _passes(
        self, groups: list[list[Array]], about: About, to_come: int
    ) -> Iterator[tuple[int, int, About, Iterator[tuple[tiles.Tile, dict[str, Array]]]]]:
        """How many groups of how many others, by which engine, and for each tile what the graph gives.

        groups: of a reference and what is compared with it. to_come: how many others follow.
        """
        images = len(groups[0])
        at_once = max(1, tiles.LARGEST // (images * about.height * about.width))
        grid = tiles.grid(self._trunk, about.height, about.width, min(images, 2))
        masked = len(grid) > 1 and self.name in ("dists", "style")
        for start in range(0, len(groups), at_once):
            part = groups[start : start + at_once]
            ahead = (len(part) + to_come // max(images - 1, 1)) * images - len(part)
            first = tiles.window(part, grid[0], masked)
            # what a race is held on: images that differ much, so that its check is of the engine, and not
            # of how alike the images are; it is worth it for so many images, and a group is several
            probe = np.concatenate([first[..., :3], first[:, ::-1, :, 3:]], axis=3)
            choice = self._choice(about.precision, images - 1, masked, first.dtype.name)
            engine = choice.engine(probe, batch=min(at_once, len(groups)), to_come=ahead)
            outputs = ((tile, engine.run(tiles.window(part, tile, masked))) for tile in grid)
            made = replace(about, engine=engine.name, engine_version=engine.kind.version)
            yield len(part), images - 1, made, outputs

    def _choice(self, precision: str, others: int, masked: bool, pixels: str) -> Choice:
        key = (precision, others, masked, pixels)
        if key not in self._choices:
            told = dict(self._told)
            kind = ENGINES.get(told["engine"])
            if kind and precision != self.precision and precision not in kind.precisions:
                told["engine"] = REFERENCE  # for pairs that the engine asked for is too coarse for
            source = self._source(others, masked, pixels)
            self._choices.setdefault(key, Choice(source, precision=precision, **told))
        return self._choices[key]

    def _source(self, others: int, masked: bool, pixels: Any) -> Source:
        def build() -> Graph:
            from ..graphs import distance as graph

            tensors = self.model.tensors(tuple(self._trunk.tensors))
            return graph.build(
                self.name, self._trunk, tensors, self.model.record.preprocess, layers=self.layers,
                heads=heads(self.name), others=others, pixels=pixels, masked=masked,
            )  # fmt: skip

        parts = {"content": ("map", "energy"), "dists": ("moments",), "style": ("gram",)}
        outputs = [f"{x}_{part}" for x in self._read for part in parts.get(self.name, ("map",))]
        facts = [heads_sha256(), self.name, self._trunk.pool, " ".join(self.layers)]
        facts += [str(others), pixels, "masked" * masked]
        channels = 3 * (1 + others) + masked
        key = partial(graph_key, self.model, facts, ["graphs/distance.py"])
        return Source(
            pixels, channels, self._trunk.minimum_size, tuple(outputs), build, find_key=key
        )


class _Decoder:
    """Images to pixels. The pixels of a first image that comes again are those that came before, so that
    who shares its computation can ask with `is`.

    range: of floats; images of 8 and 16 bits know theirs. smallest: side in pixels. told: the range's name,
    where one of the last two images was read by it.
    """

    def __init__(self, range: Range, smallest: int) -> None:
        if range is not None:
            limits(range)
        self.range, self.smallest = range, smallest
        self.told: str | None = None
        self._known: object = None
        self._pixels: Array | None = None
        self._its_told: str | None = None  # of the first image

    def pair(self, first: ImageLike, second: ImageLike) -> Pair | Failure:
        """Two (height, width, 3) arrays of one size and dtype, uint8 or float32 from 0 to 255."""
        try:
            self.told = None
            a = self._reference(first)
            self.told = self._its_told
            b = self.pixels(second)
            size, other = (f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (a, b))
            if a.shape != b.shape:
                raise ImageError(
                    f"{_called(first) or 'the first image'} is {size} and "
                    f"{_called(second) or 'the second'} {other} pixels; a distance needs images of one "
                    "size: crop or resize one of them"
                )
            if min(a.shape[:2]) < self.smallest:
                raise ImageError(
                    f"{_called(first) or 'the images'}: {size} pixels are too few; this distance needs "
                    f"at least {self.smallest} a side"
                )
        except ImageError as error:
            return Failure(_called(second), str(error))
        if a.dtype != b.dtype:
            a, b = a.astype(np.float32), b.astype(np.float32)
        return a, b

    def pixels(self, image: Any) -> Array:
        """A new array."""
        try:
            return decoded(image)
        except ImageError:  # a scale that is not known, unless it was told
            if self.range is None:
                raise
        pixels = decoded(image, range=self.range, overshoot=OVERSHOOT)
        low, high = limits(self.range)
        least, most = (low + float(v) * (high - low) / 255 for v in (pixels.min(), pixels.max()))
        warn_if_suspicious("an image", least, most, self.range)
        self.told = range_name(self.range)
        return pixels

    def _reference(self, image: Any) -> Array:
        """The pixels of the first image: known by its file as it is now, else by what is in it."""
        known: object = image if isinstance(image, bytes) else None
        if isinstance(image, str | os.PathLike) and os.path.exists(image):
            known = image, hashes.stamp(os.stat(image))
        if known is not None and known == self._known and self._pixels is not None:
            return self._pixels
        pixels, old = self.pixels(image), self._pixels
        # an array may be a buffer that was filled anew
        if old is not None and old.dtype == pixels.dtype and np.array_equal(old, pixels):
            pixels = old
        self._known, self._pixels, self._its_told = known, pixels, self.told
        return pixels


def is_fitted(network: Network) -> bool:
    """Whether it is what LPIPS and DISTS were fitted to, but for the channels of its input."""
    return (network.name, network.width, network.channels) == ("vgg16", 1, ())


def _called(image: object) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _array(distances: list[Distance], *, spatial: bool, many: bool) -> Distances:
    values: Any = [d.map for d in distances] if spatial else [float(d) for d in distances]
    if spatial and len({value.shape for value in values}) > 1:
        raise ImageError(
            "the maps differ in size, so they are no array; compare images of one size at a time"
        )
    array = np.asarray(values, np.float32 if spatial else np.float64)
    answer = (array if many else array[0]).view(Distances)
    answer.abouts = tuple(d.about for d in distances)
    return answer


def warn_if_suspicious(what: str, least: float, most: float, range: Range) -> None:
    """Of values that look like 0..1 where another range was said."""
    span = limits(range)
    if 0 < most <= 1 and (span == (0, 255) or (span == (-1, 1) and least >= 0)):
        warn(
            f"{what} goes from {least:.4g} to {most:.4g} and its range was said to be "
            f"{range_name(range)}: if it is 0..1, say so"
        )


def range_name(range: Range) -> str:
    """As a person writes it: "0..1"."""
    return range if isinstance(range, str) else "{:g}..{:g}".format(*limits(range))
