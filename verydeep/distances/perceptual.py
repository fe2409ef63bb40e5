"""A metric on a model, for as many images as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..engines import DEVICES, ENGINES
from ..errors import DataError, EngineError, ImageError, NetworkError, nearest
from ..modelfile import ModelFile, read
from ..predictor import Failure
from ..preprocess import several
from ..published.finding import find_model
from .inputs import Decoder, range_name
from .measuring import WORTH_A_GROUP, Measure, one_reference
from .metrics import METRICS, chosen, heads_sha256
from .records import About, Distance, Distances

if TYPE_CHECKING:
    from ..preprocess import ImageLike, Range
    from .inputs import Pair

PRECISIONS = ("exact", "fast", "half")

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
        if metric not in METRICS:
            raise DataError(f"metric {metric!r} is unknown{nearest(metric, METRICS)}")
        if precision not in PRECISIONS:
            raise EngineError(
                f"precision {precision!r} is unknown for distances{nearest(precision, PRECISIONS)}"
            )
        if engine not in ("auto", *ENGINES):
            raise EngineError(f"engine {engine!r} is unknown{nearest(engine, ['auto', *ENGINES])}")
        if device not in DEVICES:
            raise EngineError(f"device {device!r} is unknown{nearest(device, DEVICES)}")
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}; expected 1 or more")
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
            if (network.name, network.width) != ("vgg16", 1):
                raise NetworkError(
                    f"{self.model.path} is {network.name} of width {network.width:g}; {metric} was "
                    "fitted to the features of vgg16 and needs that"
                )
        self.layers = chosen(layers, self.metric.layers, network)
        told = {"engine": engine, "threads": threads, "device": device}
        self._measure = Measure(metric, self.metric, self.model, self.layers, precision, told)

    def __repr__(self) -> str:
        return f"<Perceptual {self.metric.name}, {self.precision}, {self.model.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        told: dict[str, Any] = {"precision": self.precision, **self._measure.told}
        told["layers"] = None if self.metric.fitted else self.layers
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
        if batch is not None and batch < 1:
            raise DataError(f"batch is {batch}; expected 1 or more")
        return self._streamed(pairs, Decoder(range, self._measure.smallest), spatial, batch)

    def _streamed(
        self, pairs: Iterable[tuple[ImageLike, ImageLike]], decoder: Decoder, spatial: bool,
        batch: int | None,
    ) -> Iterator[Distance | Failure]:  # fmt: skip
        told = None if decoder.range is None else range_name(decoder.range)
        left = len(pairs) if isinstance(pairs, Sized) else 0
        waiting: list[Pair | Failure] = []
        good: list[Pair] = []  # those among them that can be compared

        def answers() -> Iterator[Distance | Failure]:
            rows = iter(self._measured(good, self.precision, told, spatial, left) if good else ())
            for item in waiting:
                yield item if isinstance(item, Failure) else next(rows)

        for first, second in pairs:
            item = decoder.pair(first, second)
            if not isinstance(item, Failure):
                ends = good and (
                    _kind(good[0][0]) != _kind(item[0])
                    or (
                        one_reference(good)
                        and len(good) >= WORTH_A_GROUP
                        and item[0] is not good[0][0]
                    )
                )
                if ends:
                    yield from answers()
                    waiting, good = [], []
                good.append(item)
            left = max(0, left - 1)
            waiting.append(item)
            if not good or len(waiting) >= min(
                self._measure.pairs_at_once(good), batch or len(waiting) + 1
            ):
                yield from answers()
                waiting, good = [], []
        yield from answers()

    def _measured(
        self, pairs: list[Pair], precision: str, told: str | None, spatial: bool, to_come: int = 0
    ) -> list[Distance]:
        """The pairs in that precision; those that it would cost too much, in a finer one."""
        height, width = pairs[0][0].shape[:2]
        least, finer = FINER.get(precision, (0.0, ""))
        distances: list[Distance | None] = []
        for reading in self._measure.read(pairs, precision, to_come):
            engine = reading.engine
            small = not reading.value >= least * reading.scale
            if finer and small and engine.name not in DIRECT[precision]:
                distances.append(None)
                continue
            about = About(
                metric=self.metric.name,
                network=self.model.record.network.name,
                weights=self.model.sha256[:12],
                heads=heads_sha256()[:12] if self.metric.fitted else "",
                layers=self.layers,
                engine=engine.name,
                engine_version=engine.version,
                precision=precision,
                height=height,
                width=width,
                range="0..255" if pairs[0][0].dtype == np.uint8 else told or "0..65535",
                version=__version__,
            )
            if not np.isfinite(reading.value):
                raise EngineError(
                    f"the distance is {reading.value}, not a finite number; the weights in "
                    f"{self.model.path} may be damaged ({about})"
                )
            whole = _enlarged_sum(reading.maps, height, width) if spatial else None
            distances.append(Distance(reading.value, about, reading.layers, whole))
        again = [pair for pair, one in zip(pairs, distances, strict=True) if one is None]
        redone = iter(self._measured(again, finer, told, spatial) if again else ())
        return [next(redone) if one is None else one for one in distances]


def _kind(pixels: Array) -> tuple[object, ...]:
    return pixels.shape, pixels.dtype


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


def _enlarged_sum(maps: tuple[Array, ...], height: int, width: int) -> Array:
    """The sum of maps (h, w) at (height, width): bilinear, the centres of pixels aligned, edges repeated,
    as torch's ``Upsample(mode="bilinear", align_corners=False)``.
    """
    total = np.zeros((height, width), np.float32)
    for part in maps:
        for axis, size in ((0, height), (1, width)):
            old = part.shape[axis]
            if old == size:
                continue
            centre = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
            low = centre.astype(np.intp)
            after = (centre - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
            high = np.minimum(low + 1, old - 1)
            part = part.take(low, axis) * (1 - after) + part.take(high, axis) * after
        total += part
    return total
