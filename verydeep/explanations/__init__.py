"""Where a network looks: heat maps of what speaks for a class, by one of five methods.

cam          the class's weights times the maps that the head averages; exact (Zhou et al.,
             arXiv:1512.04150)
gradcam      maps weighted by their mean gradient (Selvaraju et al., arXiv:1610.02391)
gradcam++    the same with weights for each position (Chattopadhay et al., arXiv:1710.11063)
occlusion    how far the score falls when a patch is covered (Zeiler and Fergus, arXiv:1311.2901)
ig           gradients summed on the way from a plain image (Sundararajan et al., arXiv:1703.01365)

cam and occlusion run on any engine, without torch; the others need torch.

>>> import verydeep
>>> seen = verydeep.explain("builtin", "examples/photos/goldfish.jpg")
>>> seen.label, seen.map.shape
('goldfish', (32, 32))
>>> seen.save("goldfish.png")  # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from .. import predictor as predictors
from ..errors import DataError, ImageError, nearest, require, require_whole
from ..files.photo_paths import composed
from ..pictures import save
from ..pictures.layout import Box, as_rgb, fitted
from ..predictor import Predictor, probabilities
from ..preprocess import ImageLike, Preprocess, Range, decode, margins
from ..preprocess.decoding import name_of
from ..published.catalog import of_kind
from . import methods, picture
from .subject import Subject, require_gradients

if TYPE_CHECKING:
    from .fidelity import Fidelity

__all__ = ["METHODS", "Explainer", "Explanation", "HeatMap", "explain"]

METHODS = {
    "cam": methods.cam,
    "gradcam": methods.gradcam,
    "gradcam++": methods.gradcam_plus,
    "occlusion": methods.occlusion,
    "ig": methods.ig,
}
Label: TypeAlias = "str | int | np.integer[Any]"
LONGEST_SIDE = 1600  # pixels of the photo that are kept to draw on
FORMS = "the name of a class, its id, or its number"


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What speaks for one class, and where.

    label, id, index: the class. score: its logit. probability: 0 to 1.
    map: (h, w) float32, as the method gives it, before any up-scaling. For cam the values are shares of
    the score (their mean is the score less the bias); for occlusion what the score loses; for ig what a
    pixel adds to it; for gradcam and gradcam++ no unit, 0 or more.
    upscaled: (height, width) float32, the same for every pixel that the network saw.
    """

    label: str
    id: str
    index: int
    score: float
    probability: float
    map: np.ndarray = field(repr=False)
    upscaled: np.ndarray = field(repr=False)

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the largest value of `upscaled`."""
        row, column = np.unravel_index(int(self.upscaled.argmax()), self.upscaled.shape)
        return int(row), int(column)


@dataclass(frozen=True, eq=False)
class Explanation:
    """The heat maps of one image: those of its first answers, or of the classes that were asked for.

    path: the file, or None where the image was none. model: the network's name and file.
    method: one of METHODS. layers: those whose maps were read; empty where the method reads the image.
    engine, precision: what computed it. seconds: how long, from the decoded image.
    pixels: (height, width, channels), what the network saw. photo: the image itself, for drawing, at most
    LONGEST_SIDE pixels. box: the part of `photo` that `pixels` shows, (left, top, right, bottom).
    """

    path: str | None
    model: str
    method: str
    layers: tuple[str, ...]
    maps: tuple[HeatMap, ...]
    engine: str
    precision: str
    seconds: float
    pixels: np.ndarray = field(repr=False)
    photo: Image.Image = field(repr=False)
    box: Box

    @property
    def label(self) -> str:
        """Of the first heat map, as the next three are."""
        return self.maps[0].label

    @property
    def probability(self) -> float:
        return self.maps[0].probability

    @property
    def map(self) -> np.ndarray:
        return self.maps[0].map

    @property
    def upscaled(self) -> np.ndarray:
        return self.maps[0].upscaled

    def __str__(self) -> str:
        classes = ", ".join(f"{heat.label} {heat.probability:.1%}" for heat in self.maps)
        return f"{self.path + ': ' if self.path else ''}{classes} ({self.how})"

    @property
    def how(self) -> str:
        """One line: method, layers, engine, precision."""
        layers = ", ".join(self.layers)
        return f"{self.method}{' of ' + layers if layers else ''}; {self.engine} {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON, without the maps' values. "peak": where it lies in the photo, as shares of its
        width and height."""
        return {
            "path": self.path,
            "method": self.method,
            "layers": list(self.layers),
            "engine": self.engine,
            "precision": self.precision,
            "seconds": round(self.seconds, 4),
            "maps": [
                {
                    "label": heat.label,
                    "id": heat.id,
                    "probability": round(heat.probability, 6),
                    "score": round(heat.score, 5),
                    "shape": list(heat.map.shape),
                    "lowest": float(heat.map.min()),
                    "highest": float(heat.map.max()),
                    "peak": self._place(heat.peak),
                }
                for heat in self.maps
            ],
        }

    def _place(self, pixel: tuple[int, int]) -> list[float]:
        left, top, right, bottom = self.box
        height, width = self.pixels.shape[:2]
        x = left + (pixel[1] + 0.5) / width * (right - left)
        y = top + (pixel[0] + 0.5) / height * (bottom - top)
        return [round(x / self.photo.width, 4), round(y / self.photo.height, 4)]

    def picture(self) -> Image.Image:
        """The photo, and each heat map over it with its scale, class and probability."""
        return picture.draw(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture` to a .png or .jpg file, whole or not at all. OutputError where that cannot be."""
        save(self.picture(), path)


class Explainer:
    """A predictor and a method, for many images, from any thread; it can be pickled.

    predictor: or what `verydeep.load` takes. layer: for cam one of the layers that the head averages, None
    for all of them; for gradcam and gradcam++ any layer of the trunk, None for the last ReLU that the
    scores depend on. steps: of ig's way. window, stride: of occlusion's patch, in pixels; None is a
    quarter of the image's shorter side, and a quarter of that.

    Gradients are torch's, in float32, on the predictor's device; "auto" is the CPU.

    Raises DataError for an unknown method or a model without a head, LayerError for an unknown layer or
    one that the method cannot use, NetworkError for cam of a head that has none, MissingExtraError where
    the method needs torch and there is none, EngineError where torch finds no such device.
    """

    def __init__(
        self,
        predictor: Predictor | str | os.PathLike[str] = "builtin",
        method: str = "cam",
        *,
        layer: str | None = None,
        steps: int = 50,
        window: int | None = None,
        stride: int | None = None,
    ) -> None:
        require("method", method, METHODS, DataError)
        given = {"steps": steps, "window": window, "stride": stride}
        require_whole(DataError, **{name: n for name, n in given.items() if n is not None})
        if not isinstance(predictor, Predictor):
            predictor = predictors.load(predictor)
        network = predictor.record.network
        if not network.head.classes:
            raise DataError(
                f"{predictor.model.path} is a trunk without a head: it has no classes to explain; "
                "give a model that classifies, or look inside with verydeep show"
            )
        self.predictor = predictor
        self.method = method
        self.run = METHODS[method]
        self.layers = methods.layers_read(network, method, layer)
        self.steps, self.window, self.stride = steps, window, stride
        self.model = f"{network.name} ({predictor.model.path.name})"
        self._minimum = network.cut(("fc8",)).minimum_size
        if method not in ("cam", "occlusion"):
            require_gradients(predictor)

    def __call__(
        self,
        image: ImageLike,
        *,
        label: Label | Sequence[Label] | None = None,
        top: int = 1,
        range: Range = None,
    ) -> Explanation:
        """The heat maps of one image, as `explain` says."""
        require_whole(DataError, top=top)
        wanted = None if label is None else self.classes(label)
        photo, pixels, box = self._read(image, range)
        began = time.perf_counter()

        def pick(scores: np.ndarray) -> list[int]:
            if not np.isfinite(scores).all():
                raise DataError(
                    f"{self.model} gives scores that are no finite numbers; its weights are damaged, or "
                    "this image is beyond them"
                )
            best = np.argsort(-scores, kind="stable")[:top]
            return [int(i) for i in best] if wanted is None else wanted

        answer = self.run(Subject(self.predictor), self, pixels, pick)
        chances = probabilities(self.predictor.record, answer.scores)
        labels = self.predictor.labels
        ids = self.predictor.record.class_ids or labels
        heat = tuple(
            HeatMap(
                labels[i], ids[i], i, float(answer.scores[i]), float(chances[i]), values,
                answer.upscaled(values, *pixels.shape[:2]),
            )
            for i, values in zip(answer.classes, answer.maps, strict=True)
        )  # fmt: skip
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        return Explanation(
            path, self.model, self.method, self.layers, heat, answer.engine, answer.precision,
            time.perf_counter() - began, pixels, photo, box,
        )  # fmt: skip

    def classes(self, label: Label | Sequence[Label]) -> list[int]:
        """The numbers of classes that are given by name, id or number. DataError for unknown ones."""
        if isinstance(label, np.ndarray):
            label = label.tolist()
        given = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
        if not given:
            raise DataError(f"no class was given; expected {FORMS}")
        return list(dict.fromkeys(self._class(one) for one in given))

    def _class(self, given: Label) -> int:
        names, ids = self.predictor.labels, self.predictor.record.class_ids
        count = len(names)
        if isinstance(given, int | np.integer) and not isinstance(given, bool):
            if not 0 <= given < count:
                raise DataError(f"class {given} does not exist; expected 0 to {count - 1}")
            return int(given)
        if not isinstance(given, str):
            raise DataError(f"class {given!r} is no class; expected {FORMS}")
        asked = composed(given)
        known_names = [composed(name) for name in names]
        folded = [name.casefold() for name in known_names]
        for known, name in ((known_names, asked), (ids, given), (folded, asked.casefold())):
            places = [i for i, one in enumerate(known) if one == name]
            if len(places) > 1:
                which = ", ".join(f"{i} ({ids[i]})" if ids else str(i) for i in places)
                raise DataError(f"class {given!r} is the name of several: {which}; give the number")
            if places:
                return places[0]
        if given.isdecimal() and len(given) < 10:  # Python reads no number of thousands of digits
            return self._class(int(given))
        hint = (of_kind(given, ids, names) if ids else "") or nearest(given, [*names, *ids])
        raise DataError(
            f"the model knows no class {given!r}{hint or f'; it knows {count}, such as {names[0]!r}'}"
        )

    def check(self, explanation: Explanation, **choices: Any) -> Fidelity:
        """How far the first heat map can be believed; see `verydeep.explanations.fidelity`."""
        from .fidelity import check

        return check(self, explanation, **choices)

    def _read(self, image: ImageLike, range: Range) -> tuple[Image.Image, np.ndarray, Box]:
        """The photo for drawing, the network's pixels, and which part of the photo they show."""
        preprocess = self.predictor.preprocess
        source = decode(image, range=range)
        deep = isinstance(source, np.ndarray)
        pixels = preprocess.pixels(source, range=(0, 255) if deep else None)
        height, width = pixels.shape[:2]
        if min(height, width) < self._minimum:
            raise ImageError(
                f"{name_of(image)}: {width}x{height} pixels is too small for this model; "
                f"it needs at least {self._minimum} a side"
            )
        photo = as_rgb(source)
        drawn = photo if max(photo.size) <= LONGEST_SIDE else fitted(photo, LONGEST_SIDE)
        return drawn, pixels, _seen_box(preprocess, photo.size, drawn.size, (width, height))


def explain(
    predictor: Predictor | str | os.PathLike[str],
    image: ImageLike,
    *,
    method: str = "cam",
    label: Label | Sequence[Label] | None = None,
    top: int = 1,
    layer: str | None = None,
    steps: int = 50,
    window: int | None = None,
    stride: int | None = None,
    range: Range = None,
) -> Explanation:
    """Where the network sees a class in one image.

    predictor: a Predictor, which says engine and precision, or what `verydeep.load` takes.
    image: whatever a predictor takes. method: one of METHODS; "cam" is exact and quick, but only for a
    head that averages its maps. label: a class by name, id or number, or several of them; None takes the
    `top` most probable. layer, steps, window, stride: see `Explainer`, which raises what it says there.
    range: what black and white are in an image of floats, such as (0, 1).
    DataError for a class that the model does not know, ImageError for an image that cannot be read.
    """
    explainer = Explainer(predictor, method, layer=layer, steps=steps, window=window, stride=stride)
    return explainer(image, label=label, top=top, range=range)


def _seen_box(
    preprocess: Preprocess, size: tuple[int, int], drawn: tuple[int, int], seen: tuple[int, int]
) -> Box:
    """The part of a photo that the network's pixels show, in pixels of the photo as it is drawn.

    size: the photo's width and height. drawn: those of the copy that is drawn on. seen: those of the
    network's pixels. The box lies partly outside the photo where the crop was padded.
    """
    width, height = size
    resized_height, resized_width = preprocess._resized_size(height, width)
    scale_x, scale_y = drawn[0] / resized_width, drawn[1] / resized_height
    left, top = -margins(resized_width, seen[0])[0], -margins(resized_height, seen[1])[0]
    return left * scale_x, top * scale_y, (left + seen[0]) * scale_x, (top + seen[1]) * scale_y
