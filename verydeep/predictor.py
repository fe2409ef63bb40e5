"""`load()` a model and get a `Predictor`: pixels to scores, labels and features, in one pass.

>>> import verydeep
>>> predictor = verydeep.load()
>>> predictor("examples/photos/espresso.jpg").label  # doctest: +SKIP
'espresso'
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np

from .engines import check, installed
from .engines.choice import Choice
from .engines.forks import Turns
from .engines.processor import require_memory
from .errors import (
    DataError,
    EngineError,
    Failure,
    ImageError,
    NetworkError,
    require,
    require_whole,
    warn_once,
)
from .graphs import POOLINGS, source_of
from .modelfile import ModelFile, Record, read
from .nets import named
from .preprocess import several, sized
from .published import builtin_models, find_model

if TYPE_CHECKING:
    from .graphs.pooling import Pooling
    from .preprocess import ImageLike, Preprocess, Range, Size

__all__ = ["Answer", "Failure", "Features", "Prediction", "Predictor", "builtin_models", "load"]

T = TypeVar("T")
Values: TypeAlias = "dict[str, np.ndarray]"  # of one image, by output
Give: TypeAlias = "Callable[[str | None, Values, str], T]"  # of path, values, the engine's name
# path, and pixels or why there are none
Prepared: TypeAlias = "tuple[str | None, np.ndarray | Failure]"

DEFAULT_BATCH = 8
DECODING_THREADS = min(4, os.cpu_count() or 1)
OPEN_GRAPHS = 3  # of a predictor, each with its engine: labels, features, an explanation


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
    the model's recorded threshold, or the mean of all scores below its recorded least, which says that
    probably none of its classes is there. Of a model with thresholds, one a class, the predictions are all
    classes that reach theirs, however many; where none does, they are guesses, and not sure.
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
    Raises ModelFileError where there is no such model or its file is damaged, EngineError where the engine,
    precision, device or number of threads cannot be had.
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
    """A model file, the graphs made from it, and the engines that run them.

    It may be used from any thread: engines are opened and measured once, and calls to one engine take turns
    where it has one set of buffers. In a process made by fork it opens its engines anew; an engine that
    cannot work there raises an EngineError that says so. Pickled, it opens its file again in the other
    process, and refuses one that has changed.

    seconds: spent so far in "decode", all threads together, and in "engine".

    The few graphs used last are kept open. `close()`, or the end of a `with`, lets all of them go, with
    their memory; a predictor that is used again opens what it needs again.
    """

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
        self._size = size
        self._told: dict[str, Any] = {
            "engine": engine, "precision": precision, "threads": threads, "device": device,
        }  # fmt: skip
        check(engine, precision, device, threads)
        self.record: Record = model.record
        record = self.record
        if precision == "int8":
            precision = _int8_or_better(model, engine)
        self.model = model
        self.preprocess = sized(record.preprocess, size)
        self.engine, self.precision = engine, precision
        self.seconds = {"decode": 0.0, "engine": 0.0}
        self._turns = Turns()
        self._choices: dict[tuple[object, ...], Choice] = {}  # the one used last is last
        self.held: dict[str, Any] = {}  # what other rooms made of it, which goes with its engines
        if record.network.head.classes:  # a trunk alone gives features and no labels
            self._pass((), scores=True)  # what could not be prepared or held is refused now

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Predictor, size=self._size, **self._told), (self.model,)

    def like(self, name_or_path: str | os.PathLike[str]) -> Predictor:
        """Another model, as `load` takes it, with the size, engine, threads and so on of this one."""
        return Predictor(read(find_model(name_or_path)), size=self._size, **self._told)

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let all open engines go. What is running ends as it would; the next call opens anew."""
        with self._turns.lock:
            self._choices.clear()
            self.held.clear()

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
    def __call__(self, images: ImageLike, *, top: int = 5, range: Range = None) -> Answer: ...
    @overload
    def __call__(
        self, images: list[Any] | tuple[ImageLike, ...], *, top: int = 5, range: Range = None
    ) -> list[Answer]: ...
    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[ImageLike, ...],
        *,
        top: int = 5,
        range: Range = None,
    ) -> Answer | list[Answer]:
        """The `top` most probable classes of one image, or of each of several: see `Answer`.

        An image is a path, the bytes of a file, a PIL image, a (height, width[, channels]) array or a
        (channels, height, width) tensor. Several are a list, a tuple, or an array or tensor with one axis
        more. range: what black and white are in images of floats, such as (0, 1). Raises
        ImageError where one cannot be read, EngineError where scores are not finite.
        """
        given, many = several(images)
        answers = list(_good(self.stream(given, top=top, range=range)))
        return answers if many else answers[0]

    def scores(self, images: ImageLike | Sequence[ImageLike], *, range: Range = None) -> np.ndarray:
        """Logits, (images, classes) float32, of one image or of several, as a call takes them."""
        asked = self._pass((), range=range, scores=True)
        given, _ = several(images)
        run = self._run(given, asked, DEFAULT_BATCH, lambda _, values, __: values["scores"])
        rows = list(_good(run))
        classes = self.record.network.head.classes
        return np.stack(rows) if rows else np.zeros((0, classes), np.float32)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        top: int = 5,
        batch: int = DEFAULT_BATCH,
        range: Range = None,
    ) -> Iterator[Answer | Failure]:
        """Answers in order, as they come; memory stays flat however many images there are.

        An answer is given as soon as its batch of images is complete. Images are taken, in a thread of
        their own, at most one batch ahead of that; a generator may fill one array or tensor again and
        again. An image that cannot be read gives a `Failure` and stops nothing.
        """
        require_whole(DataError, top=top, batch=batch)
        asked = self._pass((), range=range, scores=True)
        return self._run(_each(images), asked, batch, partial(self._answer, top))

    def features(
        self,
        images: ImageLike | Sequence[ImageLike],
        layers: str | Sequence[str] | None = None,
        pool: Pooling | None = None,
        *,
        size: Size = None,
        range: Range = None,
    ) -> dict[str, np.ndarray]:
        """The values of layers, by paper name: float32 (images, channels, height, width) each.

        images: one or several, as a call takes them. layers: "conv3_2" is the value before ReLU, "relu3_2"
        after it; pools, FC layers ("fc6", "relu6") and "prob" as well; None for the last ReLU before the
        head, "relu5_3" in VGG-16. Nothing after the last one is computed.
        pool: "avg", "max" or "gem" (the generalised mean) make of each map one number a channel:
        (images, channels), as FC layers are anyway. size: see `preprocess.Size`; None is the model's own
        resize and crop, "own" takes images as they are. range: what black and white are in images
        of floats, such as (0, 1). For labels of the same pass name "prob" or use `features_stream`.

        Raises LayerError for a layer that the network does not have, ImageError for an image that cannot
        be read or is too small for the layers, DataError where images differ in size and pool is None,
        EngineError where a value is not finite.
        """
        given, _ = several(images)
        asked = self._pass(layers, pool, size, range)
        values: dict[str, np.ndarray] = {}
        run = self._run(given, asked, DEFAULT_BATCH, lambda _, taps, __: taps)
        for at, taps in enumerate(_good(run)):
            for name, value in taps.items():
                if name not in values:
                    values[name] = np.empty((len(given), *value.shape), np.float32)
                if values[name].shape[1:] != value.shape:
                    shapes = values[name].shape, value.shape
                    sizes = " and ".join("x".join(map(str, shape[-2:])) for shape in shapes)
                    raise DataError(
                        f"the images differ in size, so their maps of {name} do, {sizes}; give "
                        'a pool such as "avg", or one size for all'
                    )
                values[name][at] = value
        return values or self._no_features(asked)

    def features_stream(
        self,
        images: Iterable[ImageLike],
        layers: str | Sequence[str] | None = None,
        pool: Pooling | None = None,
        *,
        size: Size = None,
        range: Range = None,
        top: int = 0,
        batch: int = DEFAULT_BATCH,
    ) -> Iterator[Features | Failure]:
        """Features in order, as they come, as `stream` gives answers; memory stays flat.

        Each image may have a size of its own. An image that cannot be read gives a `Failure` and stops
        nothing. top: more than 0 gives the labels of the same pass, as `Features.answer`. The rest is as
        for `features`.
        """
        require_whole(DataError, 0, top=top)
        require_whole(DataError, batch=batch)
        asked = self._pass(layers, pool, size, range, scores=top > 0)

        def features(path: str | None, values: Values, engine: str) -> Features:
            answer = self._answer(top, path, values, engine) if top else None
            taps = {name: values[name] for name in asked.taps}
            return Features(path, taps, answer, engine, self.precision)

        return self._run(_each(images), asked, batch, features)

    def _pass(
        self,
        layers: str | Sequence[str] | None,
        pool: str | None = None,
        size: Size = None,
        range: Range = None,
        *,
        scores: bool = False,
    ) -> _Pass:
        """What is asked for, checked before anything is read."""
        network = self.record.network
        taps = tuple(dict.fromkeys(named(network.last_relus[-1] if layers is None else layers)))
        if scores and not network.head.classes:
            raise DataError(f"{self.model.path} is a trunk without a head: it cannot classify")
        if pool is not None:
            require("pool", pool, POOLINGS, DataError)
        preprocess = self.preprocess if size is None else sized(self.record.preprocess, size)
        cut = network.cut(taps, scores=scores)
        what = cut.layers[-1].name if taps else "this model"
        sides = preprocess.sides
        if sides is not None and min(sides) < cut.minimum_size:
            height, width = sides
            raise NetworkError(
                f"size {height}{'' if height == width else f'x{width}'} is too small for {what}; it needs "
                f"at least {cut.minimum_size} pixels a side"
            )
        if sides is not None:
            require_memory((1, *sides), network.trunk[0].outputs, str(self._told["device"]))
        return _Pass(taps, scores, pool, preprocess, cut.minimum_size, what, range)

    def _no_features(self, asked: _Pass) -> dict[str, np.ndarray]:
        """The features of no images, in the shape that those of some would have."""
        sides = asked.preprocess.sides
        cut = self.record.network.cut(asked.taps)
        values = {}
        for row in cut.rows(*(sides or (224, 224))):
            channels, *rest = row.shape
            own = sides or row.layer not in cut.trunk  # else each image has its own
            rest = [] if asked.pool else rest if own else [0] * len(rest)
            values[row.layer.name] = np.zeros((0, channels, *rest), np.float32)
        return {name: values[name] for name in asked.taps}

    def _answer(self, top: int, path: str | None, values: Values, engine: str) -> Answer:
        labels, ids = self.labels, self.record.class_ids or self.labels
        chances = probabilities(self.record, values["scores"])
        order = np.argsort(-chances, kind="stable")
        each, least = self.record.thresholds, self.record.least_mean
        reached = chances[order] >= (np.array(each)[order] if each else self.record.threshold or 0)
        sure = bool(reached.any()) and (least is None or float(values["scores"].mean()) >= least)
        order = order[reached] if each and sure else order[:top]
        predictions = [Prediction(labels[at], ids[at], float(chances[at])) for at in order]
        return Answer(path, tuple(predictions), sure, engine, self.precision)

    def _run(
        self, images: Iterable[ImageLike], asked: _Pass, batch: int, give: Give[T]
    ) -> Iterator[T | Failure]:
        """What `give` makes of each image's path, outputs and engine, in order, batch after batch."""
        total = len(images) if isinstance(images, Sized) else None
        batch = min(int(batch), total) if total else int(batch)  # one of numpy's may overflow
        # one image is not worth a thread
        one = total == 1
        prepared = (
            map(self._prepared, images, [asked]) if one else self._ahead(images, asked, batch)
        )
        done = 0
        for group, whole in _batches(prepared, batch):
            done += len(group)
            pixels = [image for _, image in group if not isinstance(image, Failure)]
            if pixels:
                began = time.perf_counter()
                stacked = np.stack(pixels)
                choice = self._choice(stacked.dtype.name, asked)
                # only a batch that is as large as most tells which engine suits most
                engine = choice.engine(
                    stacked, batch=batch, usual=whole, to_come=max(0, (total or 0) - done)
                )
                outputs = engine.run(stacked)
                self.engine = engine.name
                rows = zip(*outputs.values(), strict=True)
                with self._turns.lock:
                    self.seconds["engine"] += time.perf_counter() - began
            for path, image in group:
                if isinstance(image, Failure):
                    yield image
                else:
                    yield give(path, dict(zip(outputs, next(rows), strict=True)), engine.name)

    def _ahead(self, images: Iterable[ImageLike], asked: _Pass, batch: int) -> Iterator[Prepared]:
        """The images prepared, in order, beside the engine and at most one batch ahead of it.

        One thread takes them as they come, since the next one may be long in coming; others decode.
        """
        # of those that are there already, as many as keep the threads busy
        listed = isinstance(images, Sized)
        room = Semaphore(batch + (DECODING_THREADS if listed else 0))
        taken: SimpleQueue[Future[Prepared] | BaseException | None] = SimpleQueue()
        stopped = Event()
        pool = ThreadPoolExecutor(DECODING_THREADS)

        def take() -> None:
            try:
                source = iter(images)
                while room.acquire() and not stopped.is_set():
                    image = next(source)
                    taken.put(pool.submit(self._prepared, image if listed else _kept(image), asked))
            except StopIteration:
                taken.put(None)
            except BaseException as error:
                taken.put(error)  # of the caller's generator: raised where it is waited for

        Thread(target=take, daemon=True).start()
        try:
            while (item := taken.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                prepared = item.result()
                room.release()
                yield prepared
        finally:
            stopped.set()
            room.release()
            pool.shutdown(cancel_futures=True)

    def _prepared(self, image: ImageLike, asked: _Pass) -> Prepared:
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        began = time.perf_counter()
        try:
            pixels = asked.preprocess.pixels(image, range=asked.range, precision=self.precision)
            if min(pixels.shape[:2]) < asked.minimum:
                raise ImageError(
                    f"{path or 'image'}: {pixels.shape[1]}x{pixels.shape[0]} pixels is too "
                    f"small for {asked.what}; it needs at least {asked.minimum} a side"
                )
            return path, pixels
        except ImageError as error:
            return path, Failure(path, str(error))
        finally:
            with self._turns.lock:  # decoding threads add to one sum
                self.seconds["decode"] += time.perf_counter() - began

    def _choice(self, dtype: str, asked: _Pass) -> Choice:
        """What picks the engine for pixels of that dtype and for those outputs: a graph of their own."""
        key = (dtype, asked.taps, asked.scores, asked.pool)
        with self._turns.lock:
            choice = self._choices.pop(key, None)
            if choice is None:
                source = source_of(
                    self.model, dtype, asked.taps, asked.scores,  # type: ignore[arg-type]
                    pool=asked.pool, int8=self.precision == "int8",
                )  # fmt: skip
                choice = Choice(source, **{**self._told, "precision": self.precision})
            self._choices[key] = choice
            while len(self._choices) > OPEN_GRAPHS:
                del self._choices[next(iter(self._choices))]
        return choice


def _batches(prepared: Iterator[Prepared], batch: int) -> Iterator[tuple[list[Prepared], bool]]:
    """Neighbours of one shape and dtype, each group as soon as it is complete; Failures join any.

    With each whether it is as large as most will be, or the last one: not cut short by another shape.
    """
    group: list[Prepared] = []
    kind = None  # shape and dtype of the group's pixels
    try:
        for item in prepared:
            image = item[1]
            its = None if isinstance(image, Failure) else (image.shape, image.dtype)
            if kind and its and its != kind:
                yield group, False
                group, kind = [], None
            group.append(item)
            kind = kind or its
            if len(group) == batch:
                yield group, True
                group, kind = [], None
    except Exception:  # of the caller's generator: what it gave before is answered first
        if group:
            yield group, True
        raise
    if group:
        yield group, True


def _good(run: Iterator[T | Failure]) -> Iterator[T]:
    """What was computed; the first image that cannot be read is an ImageError."""
    for one in run:
        if isinstance(one, Failure):
            raise ImageError(one.error)
        yield one


def _each(images: Iterable[ImageLike]) -> Iterable[ImageLike]:
    """An iterable of images; one image alone, which may look like an iterable, is a list of one."""
    image = isinstance(images, str | bytes | bytearray | os.PathLike) or hasattr(images, "ndim")
    return images if hasattr(images, "__iter__") and not image else several(images)[0]


def _kept(image: ImageLike) -> ImageLike:
    """An image that stays as it is when a generator fills its array or tensor again."""
    if isinstance(image, np.ndarray | bytearray):
        return image.copy()
    return image.clone() if hasattr(image, "clone") else image


def _int8_or_better(model: ModelFile, engine: str) -> str:
    """The precision to compute in where int8 was asked for: "fast" where integers bring nothing here.

    Raises ModelFileError for a model that was not quantised, EngineError for an engine that was asked for
    and whose sums overflow on this processor.
    """
    from .engines.processor import adds_up, multiplies_fast
    from .graphs.int8 import require_quantised

    require_quantised(model)
    if engine == "auto" and (
        multiplies_fast() is False
        or not any(adds_up(kind.name) for kind in installed() if "int8" in kind.precisions)
    ):
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


def probabilities(record: Record, scores: np.ndarray) -> np.ndarray:
    """Of logits (..., classes), float64: their soft-max; where there are thresholds, a sigmoid each."""
    return sigmoid(scores) if record.thresholds else softmax(scores)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Of each logit by itself, where an image may be of several classes, in float64."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(scores, np.float64))))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, in float64, so that they sum to 1 to the last digit."""
    shifted = np.asarray(scores, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
