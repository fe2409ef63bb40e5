"""Perceptual distances between images, on any engine, without torch.

>>> import verydeep
>>> verydeep.lpips("photo.png", "photo-compressed.jpg")  # doctest: +SKIP
<lpips 0.0931: lpips 0.1, vgg16 ..., onnxruntime 1.22.0 fast, 640x480, 0..255, verydeep 0.1.0>

LPIPS: Zhang et al. 2018, arXiv:1801.03924. DISTS: Ding et al. 2020, arXiv:2004.07728. Content and style:
Johnson et al. 2016, arXiv:1603.08155, who took VGG-16 and the layers that are the defaults here. Images are
neither resized nor cropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import __version__
from ..engines import ENGINES, REFERENCE, Signature, Source
from ..engines.choice import Choice, graph_key
from ..errors import DataError, EngineError, ImageError, NetworkError, nearest
from ..modelfile import ModelFile, read
from ..predictor import Failure
from ..preprocess import RANGES, Preprocess, decode
from ..published.finding import BUILTIN, find_model

if TYPE_CHECKING:
    from ..engines import Engine
    from ..graphs.network import Graph
    from ..preprocess import ImageLike

__all__ = [
    "METRICS",
    "RANGES",
    "About",
    "Distance",
    "Distances",
    "Metric",
    "Perceptual",
    "content_distance",
    "dists",
    "lpips",
    "style_distance",
]

HEADS = BUILTIN / "heads" / "perceptual.safetensors"

LARGEST = 1 << 20  # pixels in one pass, all images together: 16 of 256x256
MOST_OTHERS = 8  # images that share one computation of their reference
WORTH_A_GROUP = 5  # images against one reference

# arXiv:2004.07728, equations 6 and 7: what keeps the quotients finite; values of DISTS-pytorch
DISTS_C1 = DISTS_C2 = 1e-6

# engines that compute in float32 without Winograd's shortcuts though less was asked for: nothing finer
DIRECT = {
    "half": ("onnxruntime",),
    "fast": ("onnxruntime", "openvino", "torch", "torch-eager", "torch-compiled"),
}

Array = np.ndarray
Pair = tuple[Array, Array]
Pixels = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Metric:
    """A distance and what belongs to it.

    name: what people call it. layers: that it reads, by paper name. pool: of the trunk.
    spatial: whether it has a map.
    finer: by precision, the distance (relative to the energy of the reference's features where the metric
    has no scale of its own) below which the precision would cost more than 2 % of it, and what such a pair
    is computed in instead.
    """

    name: str
    layers: tuple[str, ...]
    pool: str
    spatial: bool
    finer: Mapping[str, tuple[float, str]]


_FIVE = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

# measured at 96 and 128 pixels a side on graded distortions of photos, docs/log.md: above these, bf16 costs
# at most 2 % of any of the four distances, and Winograd's float32 at most 0.1 %
_FINER = {"half": (0.1, "fast"), "fast": (3e-3, "exact")}

METRICS: dict[str, Metric] = {
    "lpips": Metric("lpips 0.1", _FIVE, "max", True, _FINER),
    "dists": Metric("dists", _FIVE, "l2", False, _FINER),
    # arXiv:1603.08155, section 4.1
    "content": Metric("content", ("relu3_3",), "max", True, _FINER),
    "style": Metric("style", _FIVE[:4], "max", False, _FINER),
}


@dataclass(frozen=True)
class About:
    """What makes a distance reproducible; as text, one line.

    weights, heads: the first twelve digits of the files' SHA-256 ("" where a metric has no heads).
    """

    metric: str
    network: str
    weights: str
    heads: str
    layers: tuple[str, ...]
    engine: str
    engine_version: str
    precision: str
    height: int
    width: int
    range: str
    version: str

    def __str__(self) -> str:
        heads = f" heads {self.heads}" if self.heads else ""
        layers = "" if self.heads else f" at {' '.join(self.layers)}"
        return (
            f"{self.metric}{layers}, {self.network} {self.weights}{heads}, "
            f"{self.engine} {self.engine_version} {self.precision}, {self.width}x{self.height}, "
            f"{self.range}, verydeep {self.version}"
        )


class Distance(float):
    """A distance: a float that knows where it comes from.

    about: what makes it reproducible. layers: the part of each layer, where the distance is their sum.
    map: (height, width) float32, the distance at each pixel, where it was asked for.
    """

    about: About
    layers: dict[str, float]
    map: Array | None

    def __new__(
        cls,
        value: float,
        about: About,
        layers: Mapping[str, float] | None = None,
        map: Array | None = None,  # noqa: A002
    ) -> Distance:
        made = super().__new__(cls, value)
        made.about, made.layers, made.map = about, dict(layers or {}), map
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.about, self.layers, self.map

    def __repr__(self) -> str:
        return f"<{self.about.metric.split()[0]} {float(self):.4g}: {self.about}>"

    def __str__(self) -> str:
        return float.__repr__(self)


class Distances(np.ndarray):
    """An array of distances or of maps, with `abouts`: one `About` for each along the first axis, or the
    one of a single map. Arrays that are computed from it have none.
    """

    abouts: tuple[About, ...]

    def __array_finalize__(self, obj: object) -> None:  # numpy calls it for every view and result
        self.abouts = ()

    @property
    def about(self) -> str:
        """The lines of all of them, each once."""
        return "; ".join(dict.fromkeys(map(str, self.abouts)))


@dataclass(frozen=True)
class _Row:
    """One pair as it came from an engine. scale: what small distances are small against."""

    value: float
    scale: float
    layers: dict[str, float]
    maps: tuple[Array, ...]
    engine: str
    engine_version: str
    precision: str


class Perceptual:
    """A metric on a model, with the engines that it has opened, for as many images as one likes.

    metric: "lpips", "dists", "content" or "style". model: as for `verydeep.load`; LPIPS and DISTS need a
    VGG-16 of full width without batch norm. layers: paper names, for content and style only.
    engine, precision, threads, device: as for `verydeep.load`. The precision is that of the distance: a
    pair so alike that it would cost more than 2 % is computed again in a finer one.
    """

    def __init__(
        self,
        metric: str = "lpips",
        *,
        model: str | os.PathLike[str] | ModelFile = "builtin",
        layers: Sequence[str] | None = None,
        engine: str = "auto",
        precision: str = "fast",
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        from ..graphs import distance as distance_graph

        if metric not in METRICS:
            raise DataError(f"metric {metric!r} is unknown{nearest(metric, METRICS)}")
        if precision not in ("exact", "fast", "half"):
            raise EngineError(
                f"precision {precision!r} is unknown for distances"
                f"{nearest(precision, ['exact', 'fast', 'half'])}"
            )
        self.name, self.metric, self.precision = metric, METRICS[metric], precision
        self.model = model if isinstance(model, ModelFile) else read(find_model(model))
        network = self.model.record.network
        self.heads: dict[str, Array] = {}
        if metric in ("lpips", "dists"):
            if layers is not None:
                raise NetworkError(
                    f"{metric} reads its own layers; layers are for content and style"
                )
            self.layers = self.metric.layers
            self.heads = _heads(metric)
            if (network.name, network.width, network.in_channels) != ("vgg16", 1, 3):
                raise NetworkError(
                    f"{self.model.path} is {network.name} of width {network.width:g}; {metric} was "
                    "fitted to the features of vgg16 and needs that"
                )
        else:
            self.layers = tuple(self.metric.layers if layers is None else layers)
            if not self.layers:
                raise NetworkError(f"{metric} needs a layer, such as relu3_3")
            if len(set(self.layers)) < len(self.layers):
                raise NetworkError(f"a layer is named twice: {', '.join(self.layers)}")
            if network.in_channels != 3:
                raise NetworkError(
                    f"{self.model.path} takes images of {network.in_channels} channels; expected 3"
                )
        self.network = distance_graph.trunk(
            network, self.metric.pool if metric == "dists" else network.pool
        )
        cut = self.network.cut(self.layers)
        self.minimum_size = cut.minimum_size
        self._keys = tuple(cut.tensors)
        self._told = {"engine": engine, "threads": threads, "device": device}
        self._choices: dict[tuple[str, int, str], Choice] = {}

    def __repr__(self) -> str:
        return f"<Perceptual {self.metric.name}, {self.precision}, {self.model.path}>"

    def __call__(
        self,
        a: Any,
        b: Any,
        *,
        range: str | None = None,
        spatial: bool = False,
    ) -> Distance | Distances:
        """The distance between `a` and `b`.

        Each is one image, or several: a list or tuple, (images, height, width, channels) or a tensor
        (images, channels, height, width). One image is a path, the bytes of a file, a PIL image, an array
        (height, width[, channels]) or a tensor (channels, height, width). Several are compared one by one
        with as many, or all with one, whose features are then computed once for several.

        range: "0..255", "0..1" or "-1..1", of floats, which are never rounded; 8 and 16-bit images know
        their own. spatial: maps in place of numbers.

        Returns a Distance for two images, else an array (images,) float64; where spatial, (height, width)
        or (images, height, width) float32. ImageError for images that cannot be used or differ in size.
        """
        first, many_first = _listed(a)
        second, many_second = _listed(b)
        if not many_first and many_second:
            first = first * len(second)
        elif many_first and not many_second:
            # every distance here is symmetric: the single one becomes the reference
            first, second = second * len(first), first
        if len(first) != len(second):
            raise DataError(
                f"{len(first)} images were given to compare with {len(second)}; expected as many, or one"
            )
        found = []
        for item in self.stream(
            list(zip(first, second, strict=True)), range=range, spatial=spatial
        ):
            if isinstance(item, Failure):
                raise ImageError(item.error)
            found.append(item)
        if not (many_first or many_second) and not spatial:
            return found[0]
        return _array(found, spatial=spatial, many=many_first or many_second)

    def stream(
        self,
        pairs: Iterable[tuple[ImageLike, ImageLike]],
        *,
        range: str | None = None,
        spatial: bool = False,
    ) -> Iterator[Distance | Failure]:
        """Distances of pairs of images, in order, as they come; memory stays flat however many there are.

        A pair that cannot be compared gives a `Failure` and stops nothing. Neighbours that have their
        first image in common share its computation. Arguments as for a call.
        """
        if range is not None and range not in RANGES:
            raise ImageError(f"range {range!r} is unknown{nearest(range, RANGES)}")
        if spatial and not self.metric.spatial:
            raise DataError(
                f"{self.name} has no map: it compares statistics of whole images; lpips and content have"
            )
        left = len(pairs) if isinstance(pairs, Sized) else 0
        decoder = _Decoder(range, self.minimum_size)
        waiting: list[Pair | Failure] = []
        for first, second in pairs:
            item = decoder.pair(first, second)
            good = [pair for pair in waiting if not isinstance(pair, Failure)]
            if good and not isinstance(item, Failure):
                last = good[-1][0]
                if _kind(last) != _kind(item[0]) or len(good) == self._at_once(good):
                    left -= len(waiting)
                    yield from self._flush(waiting, range, spatial, left)
                    waiting = []
            waiting.append(item)
        yield from self._flush(waiting, range, spatial, 0)

    def _at_once(self, pairs: list[Pair]) -> int:
        """How many of such pairs go together."""
        height, width = map(int, pairs[0][0].shape[:2])
        if len(pairs) > 1 and pairs[0][0] is pairs[-1][0]:
            return max(WORTH_A_GROUP, self._others(height, width))
        return max(1, LARGEST // (2 * height * width))

    def _others(self, height: int, width: int) -> int:
        """How many images share one computation of their reference."""
        return max(1, min(MOST_OTHERS, LARGEST // (height * width)))

    def _flush(
        self, items: list[Pair | Failure], told: str | None, spatial: bool, to_come: int
    ) -> Iterator[Distance | Failure]:
        good = [item for item in items if not isinstance(item, Failure)]
        rows = iter(self._measured(good, self.precision, to_come) if good else ())
        for item in items:
            if isinstance(item, Failure):
                yield item
                continue
            row, (height, width) = next(rows), item[0].shape[:2]
            about = About(
                metric=self.metric.name,
                network=self.network.name,
                weights=self.model.sha256[:12],
                heads=_heads_sha256()[:12] if self.heads else "",
                layers=self.layers,
                engine=row.engine,
                engine_version=row.engine_version,
                precision=row.precision,
                height=height,
                width=width,
                range="0..255" if item[0].dtype == np.uint8 else told or "0..65535",
                version=__version__,
            )
            whole = None
            if spatial:
                whole = sum(
                    (_enlarged(part, height, width) for part in row.maps), np.zeros((), np.float32)
                )
            yield Distance(row.value, about, row.layers, whole)

    def _measured(self, pairs: list[Pair], precision: str, to_come: int = 0) -> list[_Row]:
        """The pairs in that precision; those that it would cost too much, in a finer one."""
        rows = self._rows(pairs, precision, to_come)
        if precision in self.metric.finer:
            least, finer = self.metric.finer[precision]
            again = [
                index
                for index, row in enumerate(rows)
                if not row.value >= least * row.scale and row.engine not in DIRECT[precision]
            ]
            if again:
                redone = self._measured([pairs[index] for index in again], finer)
                for index, row in zip(again, redone, strict=True):
                    rows[index] = row
        return rows

    def _rows(self, pairs: list[Pair], precision: str, to_come: int) -> list[_Row]:
        if self.name == "style":
            return self._style_rows(pairs, precision, to_come)
        height, width = pairs[0][0].shape[:2]
        alike = all(first is pairs[0][0] for first, _ in pairs)
        others = self._others(height, width) if alike and len(pairs) >= WORTH_A_GROUP else 1
        groups = _groups(pairs, others)
        at_once = max(1, LARGEST // ((1 + others) * height * width))
        rows: list[_Row] = []
        for start in _steps(0, len(groups), at_once):
            part = groups[start : start + at_once]
            engine = self._engine(
                part, precision, others, min(at_once, len(groups)), to_come // others
            )
            outputs = engine.run(part)
            rows += self._read(outputs, len(part) * others, precision, engine)
        return rows[: len(pairs)]

    def _engine(
        self, groups: Array, precision: str, others: int, batch: int, to_come: int
    ) -> Engine:
        choice = self._choice(precision, others, groups.dtype.name)
        # what a race is held on: images that differ much, so that its check is of the engine, and not of
        # how alike the images are
        probe = groups
        if others:
            probe = np.concatenate([groups[..., :3], groups[:, ::-1, :, 3:]], axis=3)
        # a race is worth it for so many images; a group is several
        passes = (len(groups) + to_come) * (1 + others)
        return choice.engine(probe, batch=batch, to_come=passes - len(groups))

    def _read(
        self, outputs: Mapping[str, Array], count: int, precision: str, engine: Engine
    ) -> list[_Row]:
        """Distances from what an engine gave for `count` pairs."""
        told = (engine.name, engine.version, precision)
        if self.name == "dists":
            values = _dists(outputs, self.heads, count)
            return [_Row(float(value), 1.0, {}, (), *told) for value in values]
        maps = {
            layer: outputs[f"{layer}_map"].reshape(count, *outputs[f"{layer}_map"].shape[2:])
            for layer in self.layers
        }
        parts = {layer: part.mean((1, 2), dtype=np.float64) for layer, part in maps.items()}
        scales = np.ones(count)
        if self.name == "content":
            energies = sum(outputs[f"{layer}_energy"].mean((1, 2, 3)) for layer in self.layers)
            scales = np.repeat(energies, count // len(energies))
        rows = []
        for index in range(count):
            layers = {layer: float(part[index]) for layer, part in parts.items()}
            own = tuple(part[index] for part in maps.values())
            rows.append(_Row(sum(layers.values()), float(scales[index]), layers, own, *told))
        return rows

    def _style_rows(self, pairs: list[Pair], precision: str, to_come: int) -> list[_Row]:
        """Grams are an image's own: each image of the pairs goes through the trunk once."""
        images = list({id(image): image for pair in pairs for image in pair}.values())
        place = {id(image): index for index, image in enumerate(images)}
        height, width = images[0].shape[:2]
        at_once = max(1, LARGEST // (height * width))
        found: dict[str, list[Array]] = {layer: [] for layer in self.layers}
        for start in _steps(0, len(images), at_once):
            part = np.stack(images[start : start + at_once])
            engine = self._engine(part, precision, 0, min(at_once, len(images)), 2 * to_come)
            outputs = engine.run(part)
            for layer in self.layers:
                found[layer].append(outputs[f"{layer}_gram"])
        shapes = {
            row.layer.name: row.shape for row in self.network.cut(self.layers).rows(height, width)
        }
        grams = {
            # arXiv:1603.08155, equation 3
            layer: np.concatenate(parts).astype(np.float64) / np.prod(shapes[layer])
            for layer, parts in found.items()
        }
        rows = []
        for first, second in pairs:
            i, j = place[id(first)], place[id(second)]
            layers = {layer: float(((g[i] - g[j]) ** 2).sum()) for layer, g in grams.items()}
            scale = sum(float((g[i] ** 2).sum()) for g in grams.values())
            told = (engine.name, engine.version, precision)
            rows.append(_Row(sum(layers.values()), scale, layers, (), *told))
        return rows

    def _choice(self, precision: str, others: int, pixels: str) -> Choice:
        """What picks the engine for a graph of that many others (0: single images)."""
        key = (precision, others, pixels)
        if key not in self._choices:
            source = self._source(others, pixels)  # type: ignore[arg-type]
            told = dict(self._told)
            kind = ENGINES.get(str(told["engine"]))
            if kind and precision != self.precision and precision not in kind.precisions:
                told["engine"] = REFERENCE  # for pairs that the engine asked for is too coarse for
            self._choices[key] = Choice(source, precision=precision, **told)  # type: ignore[arg-type]
        return self._choices[key]

    def _source(self, others: int, pixels: Pixels) -> Source:
        suffix = {"style": "gram", "dists": "moments"}.get(self.name, "map")
        names = [f"{layer}_{suffix}" for layer in self.layers]
        if self.name == "dists":
            names.insert(0, f"image_{suffix}")
        if self.name == "content":
            names = [f"{layer}_{what}" for layer in self.layers for what in (suffix, "energy")]

        def build() -> Graph:
            from ..graphs import distance as distance_graph

            tensors = self.model.tensors(self._keys)
            record: Preprocess = self.model.record.preprocess
            if self.name == "lpips":
                return distance_graph.lpips(
                    self.network, tensors, record, self.heads, others=others, pixels=pixels
                )
            if self.name == "style":
                return distance_graph.grams(
                    self.network, tensors, record, self.layers, pixels=pixels
                )
            make = distance_graph.dists if self.name == "dists" else distance_graph.content
            return make(self.network, tensors, record, self.layers, others=others, pixels=pixels)

        facts = [_heads_sha256(), self.name, " ".join(self.layers), str(others), pixels]
        code = ("graphs/network.py", "nets.py", "graphs/distance.py")
        key = graph_key(self.model, facts, code)
        signature = Signature(pixels, 3 * (1 + others), self.minimum_size, tuple(names))
        return Source(build, key, signature)


def lpips(
    a: Any,
    b: Any,
    *,
    spatial: bool = False,
    range: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
) -> Distance | Distances:
    """LPIPS 0.1 with VGG-16: what `lpips.LPIPS(net="vgg")` gives for the same weights.

    Two images give a number, several an array, `spatial` maps: see `Perceptual`, of which the last few
    that were asked for are kept.
    """
    told = _told(model, engine, precision, threads, device)
    return _prepared("lpips", None, *told)(a, b, range=range, spatial=spatial)


def dists(
    a: Any,
    b: Any,
    *,
    range: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
) -> Distance | Distances:
    """DISTS: 0 for images of one texture and structure, near 1 for strangers. Arguments as for `lpips`."""
    told = _told(model, engine, precision, threads, device)
    return _prepared("dists", None, *told)(a, b, range=range)


def content_distance(
    a: Any,
    b: Any,
    *,
    layers: Sequence[str] = METRICS["content"].layers,
    spatial: bool = False,
    range: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
) -> Distance | Distances:
    """Mean squared difference of the features of each layer, summed over `layers` (paper names).

    arXiv:1603.08155, equation 2. Arguments as for `lpips`.
    """
    told = _told(model, engine, precision, threads, device)
    return _prepared("content", tuple(layers), *told)(a, b, range=range, spatial=spatial)


def style_distance(
    a: Any,
    b: Any,
    *,
    layers: Sequence[str] = METRICS["style"].layers,
    range: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
) -> Distance | Distances:
    """Squared Frobenius norm of the difference of Gram matrices, summed over `layers` (paper names).

    A Gram matrix is divided by channels * height * width: arXiv:1603.08155, equations 3 and 4. Arguments as
    for `lpips`.
    """
    told = _told(model, engine, precision, threads, device)
    return _prepared("style", tuple(layers), *told)(a, b, range=range)


def _told(
    model: str | os.PathLike[str], engine: str, precision: str, threads: int | None, device: str
) -> tuple[Any, ...]:
    path = find_model(model)
    stamp = path.stat().st_mtime_ns if path.exists() else 0  # a file that changed is another model
    return path, stamp, engine, precision, threads, device


@lru_cache(maxsize=4)
def _prepared(
    metric: str,
    layers: tuple[str, ...] | None,
    path: Path,
    stamp: int,  # noqa: ARG001
    engine: str,
    precision: str,
    threads: int | None,
    device: str,
) -> Perceptual:
    return Perceptual(
        metric, model=path, layers=layers, engine=engine, precision=precision, threads=threads,
        device=device,
    )  # fmt: skip


@cache
def _heads(metric: str) -> dict[str, Array]:
    """The published heads: LPIPS' weights by layer, DISTS' "alpha" and "beta"; float32."""
    from safetensors.numpy import load_file

    stored = load_file(HEADS)
    return {
        name.partition(".")[2]: values
        for name, values in sorted(stored.items())
        if name.startswith(f"{metric}.")
    }


@cache
def _heads_sha256() -> str:
    return hashlib.sha256(HEADS.read_bytes()).hexdigest()


def _dists(outputs: Mapping[str, Array], heads: Mapping[str, Array], count: int) -> Array:
    """arXiv:2004.07728, equations 6 to 8, in float64 from the moments of `count` pairs."""
    alpha, beta = heads["alpha"].astype(np.float64), heads["beta"].astype(np.float64)
    parts = [value.reshape(count, 5, -1).astype(np.float64) for value in outputs.values()]
    mean, variance, other_mean, other_variance, covariance = np.concatenate(parts, 2).swapaxes(0, 1)
    texture = (2 * mean * other_mean + DISTS_C1) / (mean**2 + other_mean**2 + DISTS_C1)
    structure = (2 * covariance + DISTS_C2) / (variance + other_variance + DISTS_C2)
    # 1 - sum of weighted likenesses, as a sum of unlikenesses: nothing cancels
    unlike = (alpha * (1 - texture) + beta * (1 - structure)).sum(1)
    return np.asarray(unlike / (alpha.sum() + beta.sum()))


class _Decoder:
    """Images to pixels; a reference that many pairs share is decoded once."""

    def __init__(self, told: str | None, minimum_size: int) -> None:
        self.told = told
        self.minimum_size = minimum_size
        self._last: tuple[ImageLike, Array] | None = None
        self._converted: tuple[Array, Array] | None = None

    def pair(self, first: ImageLike, second: ImageLike) -> Pair | Failure:
        """Two (height, width, 3) arrays of one size and dtype."""
        try:
            a, b = self._reference(first), self._pixels(second)
            if a.shape != b.shape:
                raise ImageError(
                    f"{_called(first, 'the first image')} is {_size(a)} and "
                    f"{_called(second, 'the second')} {_size(b)} pixels; a distance needs images of one "
                    "size: crop or resize one of them"
                )
            if min(a.shape[:2]) < self.minimum_size:
                raise ImageError(
                    f"{_called(first, 'the images')}: {_size(a)} pixels are too few; this distance needs "
                    f"at least {self.minimum_size} a side"
                )
            if self.told not in (None, "0..255") and a.dtype == b.dtype == np.uint8:
                raise ImageError(
                    f"range is {self.told}, but {_called(first, 'both images')} and its fellow have 8 "
                    "bits, 0 to 255; leave range out, or give the floats"
                )
        except ImageError as error:
            path = second if isinstance(second, str | os.PathLike) else None
            return Failure(None if path is None else os.fspath(path), str(error))
        if a.dtype != b.dtype:
            return self._as_float(a), b.astype(np.float32)
        return a, b

    def _reference(self, image: ImageLike) -> Array:
        if self._last is None or self._last[0] is not image:
            self._last = (image, self._pixels(image))
        return self._last[1]

    def _as_float(self, pixels: Array) -> Array:
        if self._converted is None or self._converted[0] is not pixels:
            self._converted = (pixels, pixels.astype(np.float32))
        return self._converted[1]

    def _pixels(self, image: Any) -> Array:
        if (
            not hasattr(image, "dtype")
            and not hasattr(image, "mode")
            and hasattr(image, "__dlpack__")
        ):
            image = np.from_dlpack(image)
        limits = None
        if "float" in str(getattr(image, "dtype", "")) or getattr(image, "mode", "") == "F":
            limits = self._limits(image)
        found = decode(image, range=limits)
        return found if isinstance(found, np.ndarray) else np.asarray(found)

    def _limits(self, image: Any) -> tuple[float, float]:
        """The range of a float image, checked against what it holds."""
        name = f"a float image {tuple(getattr(image, 'shape', getattr(image, 'size', ())))}"
        if self.told is None:
            raise ImageError(
                f"{name}: the range of its numbers is not known; give range='0..1', '-1..1' or '0..255'"
            )
        low, high = RANGES[self.told]
        values = image if hasattr(image, "min") else np.asarray(image)
        least, most = float(values.min()), float(values.max())
        if not np.isfinite([least, most]).all():
            raise ImageError(f"{name}: it has pixels that are not finite (NaN or infinite)")
        if least < low or most > high:
            raise ImageError(
                f"{name}: its values go from {least:g} to {most:g}, outside the range {self.told} that was "
                "told; tell the one that it has, or clip it"
            )
        if self.told == "0..255" and 0 < most <= 1:
            raise ImageError(
                f"{name}: its values go from {least:g} to {most:g}, which is black in the range 0..255; "
                "it looks like range='0..1'"
            )
        return low, high


def _called(image: object, otherwise: str) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise


def _size(pixels: Array) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _kind(pixels: Array) -> tuple[object, ...]:
    return pixels.shape, pixels.dtype


def _listed(images: Any) -> tuple[list[Any], bool]:
    """The images in a list, and whether there were several."""
    if isinstance(images, list | tuple):
        return list(images), True
    if len(getattr(images, "shape", ())) == 4:
        return [images[index] for index in _steps(0, len(images), 1)], True
    return [images], False


_steps = range  # `range` is a word of this module's functions, too


def _groups(pairs: list[Pair], others: int) -> Array:
    """(groups, height, width, 3 * (1 + others)); the last image fills up the last group."""
    if others == 1:
        first = np.stack([pair[0] for pair in pairs])
        return np.concatenate([first, np.stack([pair[1] for pair in pairs])], axis=3)
    reference, rest = pairs[0][0], [pair[1] for pair in pairs]
    rest += rest[-1:] * (-len(rest) % others)
    groups = [[reference, *rest[i : i + others]] for i in _steps(0, len(rest), others)]
    return np.stack([np.concatenate(group, axis=2) for group in groups])


def _array(found: list[Distance], *, spatial: bool, many: bool) -> Distances:
    values: Any = [item.map for item in found] if spatial else [float(item) for item in found]
    if spatial and len({value.shape for value in values}) > 1:
        raise ImageError(
            "the maps differ in size, so they are no array; compare images of one size at a time"
        )
    array = np.asarray(values, np.float32 if spatial else np.float64)
    made = (array if many else array[0]).view(Distances)
    made.abouts = tuple(item.about for item in found)
    return made


def _enlarged(part: Array, height: int, width: int) -> Array:
    """A map (h, w) at (height, width): bilinear, the centres of pixels aligned, edges repeated, as torch's
    ``Upsample(mode="bilinear", align_corners=False)``.
    """
    for axis, size in ((0, height), (1, width)):
        old = part.shape[axis]
        if old == size:
            continue
        centre = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
        low = centre.astype(np.intp)
        after = (centre - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.minimum(low + 1, old - 1)
        part = part.take(low, axis) * (1 - after) + part.take(high, axis) * after
    return part
