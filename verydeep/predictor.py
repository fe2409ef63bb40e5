"""`load()` a model and get a `Predictor`: pixels to scores, labels and features, in one pass.

>>> import verydeep
>>> predictor = verydeep.load()
>>> predictor("examples/photos/espresso.jpg").label  # doctest: +SKIP
'espresso'
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from .engines.choice import Choice, source_of
from .errors import (
    DataError,
    EngineError,
    ImageError,
    NetworkError,
    warn_once,
)
from .graphs import pooling
from .modelfile import ModelFile, Record, read
from .preprocess import sized
from .published.finding import builtin_models, find_model

if TYPE_CHECKING:
    from .graphs.pooling import Pooling
    from .preprocess import ImageLike, Preprocess, Range, Size

__all__ = [
    "Answer",
    "Failure",
    "Features",
    "Prediction",
    "Predictor",
    "Stopwatch",
    "builtin_models",
    "load",
]

DEFAULT_BATCH = 8
DECODING_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Prediction:
    """One class and its probability, 0 to 1. `id` is the model's own class id (a WordNet id, say)."""

    label: str
    id: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a model says of one image, best first.

    path: the file, or None where the image was none. sure: False where the first probability lies below
    the model's recorded threshold, which says that probably none of its classes is there.
    """

    path: str | None
    predictions: tuple[Prediction, ...]
    sure: bool
    engine: str
    precision: str

    @property
    def label(self) -> str:
        return self.predictions[0].label

    @property
    def probability(self) -> float:
        return self.predictions[0].probability

    def __str__(self) -> str:
        guesses = ", ".join(f"{p.label} {p.probability:.1%}" for p in self.predictions)
        doubt = "" if self.sure else "not sure: "
        return f"{self.path + ': ' if self.path else ''}{doubt}{guesses}"


class Stopwatch:
    """Seconds spent so far in each stage of a predictor: "decode", all threads together, and "engine"."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "engine": 0.0}
        self._lock = Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:  # decoding threads add to one sum
                self.seconds[name] += time.perf_counter() - began


@dataclass(frozen=True)
class Failure:
    """An image of a stream that could not be read: its path, and the one line that says why."""

    path: str | None
    error: str


@dataclass(frozen=True, eq=False)
class Features:
    """What the layers of a network make of one image.

    path: the file, or None where the image was none. values: by layer, in the order asked for, float32
    (channels, height, width), or (channels,) where pooled or of FC layers. answer: the labels of the same
    pass, where `top` asked for them.
    """

    path: str | None
    values: Mapping[str, np.ndarray]
    answer: Answer | None
    engine: str
    precision: str

    def __getitem__(self, layer: str) -> np.ndarray:
        return self.values[layer]

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{layer} {'x'.join(map(str, value.shape))}" for layer, value in self.values.items()
        )
        return f"{self.path + ': ' if self.path else ''}{shapes} ({self.engine} {self.precision})"

    __repr__ = __str__


@dataclass(frozen=True)
class _Pass:
    """What one pass over images gives, and how they are prepared for it."""

    taps: tuple[str, ...]
    scores: bool
    pool: str | None
    preprocess: Preprocess
    minimum: int  # pixels a side
    what: str  # needs that minimum
    range: Range = None


def load(
    name_or_path: str | os.PathLike[str] = "builtin",
    *,
    size: int | None = None,
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
) -> Predictor:
    """A predictor for the built-in model, a published one by its catalogue name, or a model file.

    size: pixels a side that images are cropped to, in place of the model's own; the resize keeps its
    proportion to it. engine: a name of `verydeep.engines.ENGINES`; "auto" measures, once there are enough
    images to be worth it, which is the quickest here. precision: "exact", "fast" or "half", what
    `verydeep.engines` promises of each. threads: None for one a core. device: "auto", "cpu", "cuda", "mps".
    Raises ModelFileError where there is no such model or its file is damaged.
    """
    return Predictor(
        read(find_model(name_or_path)),
        size=size,
        engine=engine,
        precision=precision,
        threads=threads,
        device=device,
    )


class Predictor:
    """A model file, the graph made from it, and the engine that runs it."""

    def __init__(
        self,
        model: ModelFile,
        *,
        size: int | None = None,
        engine: str = "auto",
        precision: str = "fast",
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        record = model.record
        if precision == "int8":
            precision = _int8_or_better(model, engine)
        self.model = model
        self.preprocess = record.preprocess if size is None else record.preprocess.with_size(size)
        self.engine, self.precision = engine, precision
        self._told = {
            "engine": engine, "precision": precision, "threads": threads, "device": device,
        }  # fmt: skip
        self.stopwatch = Stopwatch()
        self._choices: dict[tuple[object, ...], Choice] = {}
        self._scores = _Pass((), True, None, self.preprocess, 0, "this model")
        if record.network.head.classes:
            minimum = record.network.cut(("fc8",)).minimum_size
            self._scores = replace(self._scores, minimum=minimum)
            side = self.preprocess.crop_size
            if side is not None and side < minimum:
                raise NetworkError(
                    f"size {side} is too small: {record.network.name} with this head needs at least "
                    f"{minimum} pixels a side"
                )

    @property
    def record(self) -> Record:
        return self.model.record

    @property
    def sha256(self) -> str:
        """Of the model file, 64 hexadecimal digits. One that was hashed before is not read again."""
        return self.model.sha256

    def __repr__(self) -> str:
        network = self.record.network
        return (
            f"<Predictor {network.name}, {network.head.classes} classes, "
            f"{self.engine} {self.precision}, {self.model.path}>"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """One name a class: the record's names, else its ids, else "class 0", "class 1", ..."""
        record = self.record
        if record.class_names:
            return record.class_names
        if record.class_ids:
            return record.class_ids
        return tuple(f"class {i}" for i in range(record.network.head.classes))

    @overload
    def __call__(self, images: ImageLike, *, top: int = 5) -> Answer: ...
    @overload
    def __call__(
        self, images: list[Any] | tuple[ImageLike, ...], *, top: int = 5
    ) -> list[Answer]: ...
    def __call__(
        self, images: ImageLike | list[Any] | tuple[ImageLike, ...], *, top: int = 5
    ) -> Answer | list[Answer]:
        """The `top` most probable classes of one image, or of each in a list or tuple of images.

        An image is a path, the bytes of a file, a PIL image, a (height, width[, channels]) array or a
        (channels, height, width) tensor. Raises ImageError where one cannot be read.
        """
        many = isinstance(images, list | tuple)
        listed = cast("Sequence[ImageLike]", images if many else [images])
        answers = []
        for item in self._stream(listed, top=top, batch=DEFAULT_BATCH):
            if isinstance(item, ImageError):
                raise item
            answers.append(item)
        return answers if many else answers[0]

    def scores(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Logits, (images, classes) float32."""
        rows = []
        for _, value in self._run(images, self._scores, DEFAULT_BATCH):
            if isinstance(value, ImageError):
                raise value
            rows.append(value["scores"])
        classes = self.record.network.head.classes
        return np.stack(rows) if rows else np.zeros((0, classes), np.float32)

    def stream(
        self, images: Iterable[ImageLike], *, top: int = 5, batch: int = DEFAULT_BATCH
    ) -> Iterator[Answer | Failure]:
        """Answers in order, as they come; memory stays flat however many images there are.

        An image that cannot be read gives a `Failure` and stops nothing.
        """
        paths: deque[str | None] = deque()

        def noted() -> Iterator[ImageLike]:
            for image in images:
                paths.append(_path(image))
                yield image

        for item in self._stream(noted(), top=top, batch=batch):
            path = paths.popleft()
            yield Failure(path, str(item)) if isinstance(item, ImageError) else item

    def features(
        self,
        images: ImageLike | Sequence[ImageLike],
        layers: str | Sequence[str] = ("relu5_3",),
        pool: Pooling | None = None,
        *,
        size: Size = None,
        range: Range = None,
    ) -> dict[str, np.ndarray]:
        """The values of layers, by paper name: float32 (images, channels, height, width) each.

        images: one, or a list of them. layers: "conv3_2" is the value before ReLU, "relu3_2" after it;
        pools, FC layers ("fc6", "relu6") and "prob" as well. Nothing after the last one is computed.
        pool: "avg", "max" or "gem" (the generalised mean) make of each map one number a channel:
        (images, channels), as FC layers are anyway. size: see `preprocess.Size`; None is the model's own
        resize and crop, "own" takes images as they are. range: what black and white are in images
        of floats, such as (0, 1). For labels of the same pass name "prob" or use `features_stream`.

        Raises LayerError for a layer that the network does not have, ImageError for an image that cannot
        be read or is too small for the layers, DataError where images differ in size and pool is None.
        """
        many = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        listed = cast("Sequence[ImageLike]", images if many else [images])
        made = self._pass(layers, pool, size, range)
        found: dict[str, np.ndarray] = {}
        for at, (_, values) in enumerate(self._run(listed, made, DEFAULT_BATCH)):
            if isinstance(values, ImageError):
                raise values
            for name, value in values.items():
                if name not in found:
                    found[name] = np.empty((len(listed), *value.shape), np.float32)
                if found[name].shape[1:] != value.shape:
                    raise _differ(name, found[name].shape[1:], value.shape)
                found[name][at] = value
        return found or self._no_features(made)

    def features_stream(
        self,
        images: Iterable[ImageLike],
        layers: str | Sequence[str] = ("relu5_3",),
        pool: Pooling | None = None,
        *,
        size: Size = None,
        range: Range = None,
        top: int = 0,
        batch: int = DEFAULT_BATCH,
    ) -> Iterator[Features | Failure]:
        """Features in order, as they come; memory stays flat however many images there are.

        Each image may have a size of its own. An image that cannot be read gives a `Failure` and stops
        nothing. top: more than 0 gives the labels of the same pass, as `Features.answer`. The rest is as
        for `features`.
        """
        if top < 0 or batch < 1:
            raise DataError(f"top is {top} and batch is {batch}; expected 0 or more, and 1 or more")
        made = self._pass(layers, pool, size, range, scores=top > 0)

        def stream() -> Iterator[Features | Failure]:
            for image, values in self._run(images, made, batch):
                path = _path(image)
                if isinstance(values, ImageError):
                    yield Failure(path, str(values))
                    continue
                answer = self._answer(image, values["scores"], top) if top else None
                taps = {name: values[name] for name in made.taps}
                yield Features(path, taps, answer, self.engine, self.precision)

        return stream()

    def _pass(
        self,
        layers: str | Sequence[str],
        pool: str | None,
        size: Size,
        range: Range,
        scores: bool = False,
    ) -> _Pass:
        """What `features` is asked for, checked before anything is read."""
        taps = (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))
        network = self.record.network
        if not taps:
            raise DataError(f'no layers were named; expected at least one, as "{network.taps[-1]}"')
        for name in taps:
            network.layer(name)
        if scores:
            self._needs_head()
        pooling.check(pool)
        preprocess = self.preprocess if size is None else sized(self.record.preprocess, size)
        cut = network.cut((*taps, *(("fc8",) if scores else ())))
        needs = cut.layers[-1].name
        height, width = _sides(preprocess)
        if height is not None and width is not None and min(height, width) < cut.minimum_size:
            raise NetworkError(
                f"size {height}{'' if height == width else f'x{width}'} is too small: {needs} of "
                f"{network.name} needs at least {cut.minimum_size} pixels a side"
            )
        return _Pass(taps, scores, pool, preprocess, cut.minimum_size, needs, range)

    def _no_features(self, made: _Pass) -> dict[str, np.ndarray]:
        """The features of no images, in the shape that those of some would have."""
        height, width = _sides(made.preprocess)
        cut = self.record.network.cut(made.taps)
        shapes = {row.layer.name: row.shape for row in cut.rows(height or 224, width or 224)}
        known = height is not None and width is not None
        found = {}
        for name in made.taps:
            channels, *sides = shapes[name]
            sides = [] if made.pool else sides if known else [0] * len(sides)
            found[name] = np.zeros((0, channels, *sides), np.float32)
        return found

    def _stream(
        self, images: Iterable[ImageLike], *, top: int, batch: int
    ) -> Iterator[Answer | ImageError]:
        self._needs_head()
        if top < 1 or batch < 1:
            raise DataError(f"top is {top} and batch is {batch}; expected 1 or more of each")
        for image, value in self._run(images, self._scores, batch):
            if isinstance(value, ImageError):
                yield value
            else:
                yield self._answer(image, value["scores"], top)

    def _needs_head(self) -> None:
        if not self.record.network.head.classes:
            raise DataError(f"{self.model.path} is a trunk without a head: it cannot classify")

    def _answer(self, image: ImageLike, scores: np.ndarray, top: int) -> Answer:
        labels, ids = self.labels, self.record.class_ids or self.labels
        probabilities = softmax(scores)
        best = np.argsort(-probabilities, kind="stable")[:top]
        predictions = tuple(Prediction(labels[i], ids[i], float(probabilities[i])) for i in best)
        threshold = self.record.threshold
        sure = threshold is None or predictions[0].probability >= threshold
        return Answer(_path(image), predictions, sure, self.engine, self.precision)

    def _run(
        self, images: Iterable[ImageLike], made: _Pass, batch: int
    ) -> Iterator[tuple[ImageLike, dict[str, np.ndarray] | ImageError]]:
        """(image, its outputs by name or the reason why there are none), in order.

        Decoding runs in threads ahead of the engine. Neighbours of one shape share a batch; images whose
        shapes differ (a record without a crop) go one by one.
        """
        total = len(images) if isinstance(images, Sized) else None
        batch = min(batch, total) if total else batch
        done = 0
        for group in _groups(self._decoded(images, made, batch), batch):
            good = [pixels for _, pixels in group if not isinstance(pixels, ImageError)]
            outputs: dict[str, np.ndarray] = {}
            if good:
                stacked = np.stack(good)
                done += len(good)
                with self.stopwatch.stage("engine"):
                    choice = self._choice("uint8" if stacked.dtype == np.uint8 else "float32", made)
                    to_come = max(0, (total or 0) - done)
                    engine = choice.engine(stacked, batch=batch, to_come=to_come)
                    self.engine = engine.name
                    outputs = engine.run(stacked)
            row = 0
            for image, pixels in group:
                if isinstance(pixels, ImageError):
                    yield image, pixels
                else:
                    yield image, {name: value[row] for name, value in outputs.items()}
                    row += 1

    def _decoded(
        self, images: Iterable[ImageLike], made: _Pass, batch: int
    ) -> Iterator[tuple[ImageLike, np.ndarray | ImageError]]:
        source = iter(images)
        first = list(islice(source, 2))
        if len(first) < 2:  # one image is not worth a thread
            yield from ((image, self._pixels(image, made)) for image in first)
            return
        source = _chain(first, source)
        waiting: deque[tuple[ImageLike, Future[np.ndarray | ImageError]]] = deque()
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            try:
                for image in source:
                    waiting.append((image, pool.submit(self._pixels, image, made)))
                    if len(waiting) > 2 * batch + DECODING_THREADS:
                        done, future = waiting.popleft()
                        yield done, future.result()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _pixels(self, image: ImageLike, made: _Pass) -> np.ndarray | ImageError:
        try:
            with self.stopwatch.stage("decode"):
                pixels = made.preprocess.pixels(image, range=made.range)
            if min(pixels.shape[:2]) < made.minimum:
                raise ImageError(
                    f"{_path(image) or 'image'}: {pixels.shape[1]}x{pixels.shape[0]} pixels is too "
                    f"small for {made.what}; it needs at least {made.minimum} a side"
                )
            return pixels
        except ImageError as error:
            return error

    def _choice(self, dtype: str, made: _Pass) -> Choice:
        """What picks the engine for pixels of that dtype and for those outputs: a graph of their own."""
        key = (dtype, made.taps, made.scores, made.pool)
        if key not in self._choices:
            source = source_of(
                self.model, dtype, made.taps, made.scores,  # type: ignore[arg-type]
                pool=made.pool, int8=self.precision == "int8",
            )  # fmt: skip
            self._choices[key] = Choice(source, **self._told)  # type: ignore[arg-type]
        return self._choices[key]


def _int8_or_better(model: ModelFile, engine: str) -> str:
    """The precision to compute in where int8 was asked for: "fast" where integers bring nothing here.

    Raises ModelFileError for a model that was not quantised, EngineError for an engine that was asked for
    and whose sums overflow on this processor.
    """
    from .engines.integers import adds_up, multiplies_fast
    from .graphs.int8 import require_quantised

    require_quantised(model)
    if engine == "auto" and multiplies_fast() is False:
        warn_once(
            "this processor has no products of 8-bit integers, so int8 becomes fast: no slower, and closer"
        )
        return "fast"
    if engine != "auto" and not adds_up(engine):
        raise EngineError(
            f"engine {engine} adds up 8-bit products wrongly on this processor (they overflow); "
            "use --precision fast, or another engine"
        )
    return "int8"


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, in float64, so that they sum to 1 to the last digit."""
    shifted = np.asarray(scores, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _path(image: ImageLike) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _sides(preprocess: Preprocess) -> tuple[int | None, int | None]:
    """Height and width of every image that the record prepares, None where images keep their own."""
    if preprocess.crop_size is not None:
        return preprocess.crop_size, preprocess.crop_size
    if preprocess.resize == "exact":
        return preprocess._resized_size(1, 1)
    return None, None


def _differ(name: str, first: tuple[int, ...], other: tuple[int, ...]) -> DataError:
    shown = " and ".join("x".join(map(str, shape[1:])) for shape in (first, other))
    return DataError(
        f"the images differ in size, so their maps of {name} do, {shown}; give a pool such as "
        '"avg", or one size for all'
    )


def _chain(first: list[ImageLike], rest: Iterator[ImageLike]) -> Iterator[ImageLike]:
    yield from first
    yield from rest


def _groups(
    decoded: Iterator[tuple[ImageLike, np.ndarray | ImageError]], batch: int
) -> Iterator[list[tuple[ImageLike, np.ndarray | ImageError]]]:
    """Runs of at most `batch` images whose pixels have one shape and dtype; failures join any run."""
    group: list[tuple[ImageLike, np.ndarray | ImageError]] = []
    kind: tuple[object, ...] | None = None
    for image, pixels in decoded:
        own = None if isinstance(pixels, ImageError) else (pixels.shape, pixels.dtype)
        if len(group) == batch or (own is not None and kind is not None and own != kind):
            yield group
            group, kind = [], None
        group.append((image, pixels))
        kind = own or kind
    if group:
        yield group
