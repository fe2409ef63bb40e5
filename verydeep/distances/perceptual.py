"""A metric on a model, for as many images as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np

from ..engines import check
from ..errors import DataError, EngineError, ImageError, NetworkError, nearest
from ..modelfile import ModelFile, read
from ..predictor import Failure
from ..preprocess import ImageLike, Range, several
from ..published import find_model
from .inputs import Decoder, Pair, range_name
from .measuring import WORTH_A_GROUP, Measure, one_reference
from .metrics import METRICS, chosen
from .records import Distance, Distances

PRECISIONS = ("exact", "fast", "half")


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
            if (network.name, network.width) != ("vgg16", 1):
                raise NetworkError(
                    f"{self.model.path} is {network.name} of width {network.width:g}; {metric} was "
                    "fitted to the features of vgg16 and needs that"
                )
        self.layers = chosen(layers, self.metric.layers, network)
        told = {"engine": engine, "threads": threads, "device": device}
        self._measure = Measure(metric, self.model, self.layers, precision, told)

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
        return self._streamed(
            pairs, Decoder(range, self._measure.trunk.minimum_size), spatial, batch
        )

    def _streamed(
        self, pairs: Iterable[tuple[ImageLike, ImageLike]], decoder: Decoder, spatial: bool,
        batch: int | None,
    ) -> Iterator[Distance | Failure]:  # fmt: skip
        told = None if decoder.range is None else range_name(decoder.range)
        left = len(pairs) if isinstance(pairs, Sized) else 0
        waiting: list[Pair | Failure] = []
        good: list[Pair] = []  # those among them that can be compared

        def answers() -> Iterator[Distance | Failure]:
            rows: Iterator[Distance] = iter(())
            if good:
                measured = self._measure.distances(good, told, spatial=spatial, to_come=left)
                rows = iter(measured)
            yield from [item if isinstance(item, Failure) else next(rows) for item in waiting]
            waiting.clear()
            good.clear()

        for first, second in pairs:
            item = decoder.pair(first, second)
            if not isinstance(item, Failure):
                if good and not _go_together(good, item):
                    yield from answers()
                good.append(item)
            left = max(0, left - 1)
            waiting.append(item)
            most = self._measure.pairs_at_once(good) if good else 1
            if len(waiting) >= min(most, batch or most):
                yield from answers()
        yield from answers()


def _go_together(good: list[Pair], pair: Pair) -> bool:
    """Whether the pair may join these: one size and type, and no other reference after a group of one."""
    (known, _), reference = good[0], pair[0]
    if (known.shape, known.dtype) != (reference.shape, reference.dtype):
        return False
    return reference is known or len(good) < WORTH_A_GROUP or not one_reference(good)


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
