"""`load()` a model and get a `Predictor`: pixels to scores, labels and probabilities, in one pass.

>>> import verydeep
>>> predictor = verydeep.load()
>>> predictor("examples/photos/espresso.jpg").label  # doctest: +SKIP
'espresso'
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from .engines.choice import Choice, source_of
from .errors import DataError, ImageError, ModelFileError, NetworkError, nearest
from .modelfile import ModelFile, Record, read

if TYPE_CHECKING:
    from .preprocess import ImageLike

__all__ = ["Answer", "Failure", "Prediction", "Predictor", "Stopwatch", "builtin_models", "load"]

BUILTIN = Path(__file__).parent / "builtin"
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


def builtin_models() -> dict[str, Path]:
    """The models that ship in the package, by the name `load` takes: "builtin" is the VGG-16."""
    files = sorted(BUILTIN.glob("*.safetensors"))
    return {"builtin" if f.stem == "vgg16" else f"builtin/{f.stem}": f for f in files}


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The model file of a built-in's name, a catalogue name, or a path. ModelFileError where none is."""
    name = os.fspath(name_or_path)
    known = builtin_models()
    if name in known:
        return known[name]
    path = Path(name)
    if path.exists() or path.suffix or os.sep in name:
        return path  # reading it says what is wrong with it
    from .weights import catalog, supply

    if name in catalog.ENTRIES:
        return supply.obtain(name)
    raise ModelFileError(
        f"no model {name!r}: neither a file, nor a built-in, nor in the catalogue"
        f"{nearest(name, [*known, *catalog.ENTRIES])}"
    )


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
        self.model = model
        self.preprocess = record.preprocess if size is None else record.preprocess.with_size(size)
        self.engine, self.precision = engine, precision
        self._told = {
            "engine": engine, "precision": precision, "threads": threads, "device": device,
        }  # fmt: skip
        self.stopwatch = Stopwatch()
        self._choices: dict[str, Choice] = {}
        self._minimum = 0
        if record.network.head.classes:
            needed = record.network.cut(("fc8",))
            self._minimum = needed.minimum_size
            side = self.preprocess.crop_size
            if side is not None and side < self._minimum:
                raise NetworkError(
                    f"size {side} is too small: {record.network.name} with this head needs at least "
                    f"{self._minimum} pixels a side"
                )

    @property
    def record(self) -> Record:
        return self.model.record

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
        for _, value in self._score(images, DEFAULT_BATCH):
            if isinstance(value, ImageError):
                raise value
            rows.append(value)
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

    def _stream(
        self, images: Iterable[ImageLike], *, top: int, batch: int
    ) -> Iterator[Answer | ImageError]:
        if not self.record.network.head.classes:
            raise DataError(f"{self.model.path} is a trunk without a head: it cannot classify")
        if top < 1 or batch < 1:
            raise DataError(f"top is {top} and batch is {batch}; expected 1 or more of each")
        labels, ids = self.labels, self.record.class_ids or self.labels
        for image, value in self._score(images, batch):
            if isinstance(value, ImageError):
                yield value
                continue
            probabilities = softmax(value)
            best = np.argsort(-probabilities, kind="stable")[:top]
            predictions = tuple(
                Prediction(labels[i], ids[i], float(probabilities[i])) for i in best
            )
            threshold = self.record.threshold
            sure = threshold is None or predictions[0].probability >= threshold
            yield Answer(_path(image), predictions, sure, self.engine, self.precision)

    def _score(
        self, images: Iterable[ImageLike], batch: int
    ) -> Iterator[tuple[ImageLike, np.ndarray | ImageError]]:
        """(image, logits or the reason why there are none), in order.

        Decoding runs in threads ahead of the engine. Neighbours of one shape share a batch; images whose
        shapes differ (a record without a crop) go one by one.
        """
        total = len(images) if isinstance(images, Sized) else None
        batch = min(batch, total) if total else batch
        done = 0
        for group in _groups(self._decoded(images, batch), batch):
            good = [pixels for _, pixels in group if not isinstance(pixels, ImageError)]
            if not good:
                yield from group
                continue
            stacked = np.stack(good)
            done += len(good)
            with self.stopwatch.stage("engine"):
                choice = self._choice("uint8" if stacked.dtype == np.uint8 else "float32")
                engine = choice.engine(stacked, batch=batch, to_come=max(0, (total or 0) - done))
                self.engine = engine.name
                rows = iter(engine.run(stacked)["scores"])
            for image, pixels in group:
                yield image, pixels if isinstance(pixels, ImageError) else next(rows)

    def _decoded(
        self, images: Iterable[ImageLike], batch: int
    ) -> Iterator[tuple[ImageLike, np.ndarray | ImageError]]:
        source = iter(images)
        first = list(islice(source, 2))
        if len(first) < 2:  # one image is not worth a thread
            yield from ((image, self._pixels(image)) for image in first)
            return
        source = _chain(first, source)
        waiting: deque[tuple[ImageLike, Future[np.ndarray | ImageError]]] = deque()
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            try:
                for image in source:
                    waiting.append((image, pool.submit(self._pixels, image)))
                    if len(waiting) > 2 * batch + DECODING_THREADS:
                        done, future = waiting.popleft()
                        yield done, future.result()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _pixels(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            with self.stopwatch.stage("decode"):
                pixels = self.preprocess.pixels(image)
            if min(pixels.shape[:2]) < self._minimum:
                raise ImageError(
                    f"{_path(image) or 'image'}: {pixels.shape[1]}x{pixels.shape[0]} pixels is too "
                    f"small for this model; it needs at least {self._minimum} a side"
                )
            return pixels
        except ImageError as error:
            return error

    def _choice(self, dtype: str) -> Choice:
        """What picks the engine for pixels of that dtype, which have a graph of their own."""
        if dtype not in self._choices:
            source = source_of(self.model, dtype)  # type: ignore[arg-type]
            self._choices[dtype] = Choice(source, **self._told)  # type: ignore[arg-type]
        return self._choices[dtype]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, in float64, so that they sum to 1 to the last digit."""
    shifted = np.asarray(scores, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _path(image: ImageLike) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


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
