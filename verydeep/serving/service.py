"""What is served: one model behind a queue that batches, and beside it what takes longer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..distances import Distance, Perceptual
from ..distances.perceptual import is_fitted
from ..distances.records import draw
from ..engines import ENGINES
from ..errors import DataError, Failure, ImageError
from ..explanations import Explainer
from ..explanations.picture import over_photo
from ..modelfile import ModelFile
from ..pictures import page
from ..pictures.layout import as_rgb, coloured, fitted
from ..portraits import strongest_channels
from ..predictor import DECODING_THREADS, Answer, Features, Predictor
from ..preprocess import decode, decoded
from ..preprocess.decoding import Pixels, header
from ..retrieval import FeatureFile
from ..retrieval.approximate import graph_of
from ..retrieval.nearest import maker, nearest_to
from .batching import Batcher
from .guard import Limits, refused

# whose decoders are given what strangers send; those of the rest of PIL's formats are seldom used
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
T = TypeVar("T")
R = TypeVar("R")

MOST = 8  # images in a batch
TO_WARM = 40  # images: enough for the engines' race
SLOW_ROOM = 16  # of what takes longer
THUMBNAIL = 320  # pixels of the longer side
DISTANCE_SHARE = 10  # a photo to be compared has at most that part of the pixels


class Service:
    """A model, and a file of features to be searched, for any number of requests at once.

    options: as `verydeep.load` takes them. layer: by which the index is searched, where it has several.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        index: FeatureFile | None = None,
        layer: str | None = None,
        limits: Limits | None = None,
        sizes: Callable[[int], object] = lambda _: None,
        **options: Any,
    ) -> None:
        self.limits, self.index, self.options = limits or Limits(), index, options
        self.predictor = Predictor(model, **options)
        self.layer = None if index is None else index.about.layer(layer)
        if index is not None:
            maker(index, model.path)  # another model is refused now
        room = self.limits.waiting
        self.quick = Batcher(MOST, room, DECODING_THREADS, sizes)
        self.slow = Batcher(1, SLOW_ROOM, 1)
        self.drawing = Batcher(1, room, 1)  # photos of the index: one at a time is in memory
        self.ready = False
        self.on_ready: Callable[[], object] = lambda: None
        self._distances: dict[str, Perceptual] = {}
        self._explainer: Explainer | None = None

    async def warm(self) -> None:
        """Choose the engine and open it; all that is asked for before that is refused."""
        await self.quick("warm", lambda: None, self._warm)
        self.ready = True
        self.on_ready()

    def _warm(self, _: object) -> list[None]:
        predictor = self.predictor
        auto = predictor.engine == "auto"
        height, width = predictor.preprocess.sides or (224, 224)
        channels = predictor.record.network.in_channels
        noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
        classes = predictor.record.network.head.classes
        layers = () if classes else None
        for images in (
            [noise] * (TO_WARM if auto else MOST),
            [noise],
        ):  # full batches, and one alone
            for item in self._stream(predictor, images, layers, int(classes > 0)):
                if isinstance(item, Exception):
                    raise item
        # for all other graphs: the engine that won, and no race of their own while somebody waits
        options = {**self.options, "engine": predictor.engine}
        self.single = Predictor(predictor.model, **options)
        if self.index is not None:
            chosen = {
                key: options[key] for key in ("engine", "threads", "device") if key in options
            }
            self.maker = maker(self.index, predictor.model.path, **chosen)
            self.graph = graph_of(self.index, self.index.about.layer(self.layer))
        return [None]

    @property
    def explains_by(self) -> str | None:
        """The best way to explain that is there; None for a model that has nothing to explain."""
        if not self.predictor.record.network.head.classes:
            return None
        if self.predictor.record.network.head.kind == "gap":
            return "cam"
        return "gradcam" if ENGINES["torch"].available else "occlusion"

    async def close(self) -> None:
        for batcher in (self.quick, self.slow, self.drawing):
            await batcher.close()

    def about(self) -> dict[str, Any]:
        """What there is, for whoever begins."""
        record, limits = self.predictor.record, self.limits
        return {
            "model": self.predictor.model.path.stem,
            "network": record.network.name,
            "classes": record.network.head.classes,
            "several": bool(record.thresholds),
            "layers": list(record.network.taps),
            "engine": self.predictor.engine,
            "precision": self.predictor.precision,
            "explains_by": self.explains_by,
            "index": None if self.index is None else len(self.index),
            "limits": {"size_bytes": limits.size_bytes, "pixels": limits.pixels},
        }

    # What is asked for

    async def classify(self, photo: bytes, top: int) -> Answer:
        run = partial(self._stream, self.predictor, layers=(), top=top)
        item: Features = await self.quick(("classify", top), partial(self._pixels, photo), run)
        assert item.answer is not None
        return item.answer

    async def features(self, photo: bytes, layers: tuple[str, ...], pool: str) -> Features:
        run = partial(self._stream, self.single, layers=layers or None, pool=pool)
        return await self.quick(("features", layers, pool), partial(self._pixels, photo), run)

    async def explain(self, photo: bytes, label: str | None, top: int, form: str) -> Any:
        """JSON, the bytes of a PNG, or for the page JSON with pictures."""
        method = self.explains_by
        if method is None:
            raise DataError("this model has no classes to explain")

        def explained(image: Any) -> Any:
            self._explainer = self._explainer or Explainer(self.single, method)
            explanation = self._explainer(image, label=label, top=top, range=(0, 255))
            if form == "png":
                return _png(explanation.picture())
            said = explanation.to_dict()
            if form == "page":
                for picture, one in zip(over_photo(explanation), said["maps"], strict=True):
                    one["picture"] = page.data(picture, 88)
            else:
                for heat, one in zip(explanation.maps, said["maps"], strict=True):
                    one["values"] = heat.map.tolist()
            return said

        return await self._alone(partial(self._decoded, photo), explained)

    async def distance(self, a: bytes, b: bytes, metric: str, form: str) -> Any:
        """As `explain`."""

        def compared(photos: tuple[Pixels, Pixels]) -> Any:
            measure = self._perceptual(metric)
            # a page does without a map; where there can be no picture, `stream` says so
            spatial = form == "png" or (form == "page" and measure.metric.spatial)
            (distance,) = measure.stream([photos], range=(0, 255), spatial=spatial)
            if not isinstance(distance, Distance):
                raise ImageError(distance.error)
            if form == "png":
                first, second = map(as_rgb, photos)
                return _png(draw(first, second, distance, ("a", "b")))
            said = {
                "distance": float(distance), "layers": distance.layers,
                "about": asdict(distance.about), "line": str(distance.about),
            }  # fmt: skip
            if distance.map is not None:
                most = float(distance.map.max())
                said["highest"] = most
                said["picture"] = page.data(as_rgb(coloured(distance.map / (most or 1))), 88)
            return said

        def prepared() -> tuple[Pixels, Pixels]:
            first, second = (self._checked(photo, DISTANCE_SHARE) for photo in (a, b))
            return _unread(decoded, first), _unread(decoded, second)

        return await self._alone(prepared, compared)

    async def channels(self, photo: bytes, layers: Sequence[str], strongest: int) -> Any:
        def seen(image: Any) -> list[dict[str, Any]]:
            return [
                {
                    "layer": block.layer,
                    "shape": list(block.row.shape),
                    "sees": block.row.receptive_field,
                    "channels": [
                        {"index": one.index, "mean": one.mean, "picture": page.data(one.picture)}
                        for one in block.channels
                    ],
                }
                for block in strongest_channels(self.single, image, layers, strongest, (0, 255))
            ]

        return await self._alone(partial(self._decoded, photo), seen)

    async def search(self, photo: bytes, top: int) -> dict[str, Any]:
        index = self._searched()

        def found(image: bytes) -> dict[str, Any]:
            (answer,) = nearest_to(index, self.maker, [image], top, self.layer, self.graph)
            if answer.error:
                raise ImageError(answer.error)
            return {"matches": answer.to_dict()["matches"]}

        return await self._alone(partial(self._checked, photo), found)

    async def thumbnail(self, row: int) -> bytes:
        """A small JPEG of a photo of the index, by its row: nothing else on the disk can be asked for."""
        index = self._searched()
        if not 0 <= row < len(index):
            raise refused(404, f"the index has no row {row}")

        def spare(width: int, height: int) -> float:
            self._require_few(width, height)
            return max(width, height) / THUMBNAIL

        def drawn(_: object) -> list[bytes]:
            try:
                photo = as_rgb(decode(index.photo(index.paths[row]), spare=spare))
            except ImageError:
                raise refused(404, f"the photo of row {row} cannot be read any more") from None
            file = io.BytesIO()
            fitted(photo, THUMBNAIL).save(file, "JPEG", quality=85)
            return [file.getvalue()]

        return await self.drawing(object(), lambda: None, drawn)

    # How

    def _searched(self) -> FeatureFile:
        if self.index is None:
            raise refused(404, "there is no index to search; start the server with --index")
        if not self.index.unchanged:
            raise refused(503, "the index has changed since the server started; start it again")
        return self.index

    async def _alone(self, prepare: Callable[[], T], run: Callable[[T], R]) -> R:
        return await self.slow(object(), prepare, lambda items: [run(one) for one in items])

    def _stream(
        self, predictor: Predictor, photos: list[Pixels], layers: Any = (), top: int = 0, pool: Any = None
    ) -> list[Features | Exception]:  # fmt: skip
        """Through the engine that won with full batches, however many these are, or with one image.

        A list would say how many there are, and each number would have a race of its own.
        """
        given = photos if len(photos) == 1 else iter(photos)
        stream = predictor.features_stream(
            given, layers, pool, size="own", range=(0, 255), top=top, batch=MOST
        )
        return [ImageError(one.error) if isinstance(one, Failure) else one for one in stream]

    def _perceptual(self, metric: str) -> Perceptual:
        """On this model where it is the network that LPIPS and DISTS were fitted to."""
        if metric not in self._distances:
            network = self.single.record.network
            own = is_fitted(network) and network.in_channels == 3
            told: Mapping[str, Any] = self.single._told
            precision = "fast" if self.single.precision == "int8" else self.single.precision
            model = self.single.model if own else "builtin"
            self._distances[metric] = Perceptual(
                metric, model=model, **{**told, "precision": precision}
            )
        return self._distances[metric]

    def _checked(self, photo: bytes, share: int = 1) -> bytes:
        """The bytes of a photo that may be decoded."""
        kind, width, height = _unread(header, photo)
        if kind not in FORMATS:
            raise refused(415, f"a {kind} file; expected JPEG, PNG, WebP, TIFF or the like")
        self._require_few(width, height, share)
        return photo

    def _require_few(self, width: int, height: int, share: int = 1) -> None:
        """Before anything is decoded."""
        most = self.limits.pixels // share
        if width * height > most:
            words = f"{width} x {height} pixels; at most {most / 1e6:g} million are taken; scale it down"
            raise refused(413, words)

    def _decoded(self, photo: bytes) -> Any:
        """For what draws on the photo."""
        return _unread(decode, self._checked(photo))

    def _pixels(self, photo: bytes) -> Pixels:
        return _unread(self.predictor.preprocess.pixels, self._checked(photo))


def _unread(read: Callable[[bytes], T], photo: bytes) -> T:
    """What cannot be read as an image is one for which 415 is right; other ImageErrors are not."""
    try:
        return read(photo)
    except ImageError as error:
        raise refused(415, str(error)) from None


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
