"""Answers: numbers and arrays that know where they come from, and the picture of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image


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
    map: np.ndarray | None

    def __new__(
        cls,
        value: float,
        about: About,
        layers: Mapping[str, float] | None = None,
        map: np.ndarray | None = None,  # noqa: A002
    ) -> Distance:
        distance = super().__new__(cls, value)
        distance.about, distance.layers, distance.map = about, dict(layers or {}), map
        return distance

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

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = np.ndarray.__reduce__(self)  # type: ignore[str-unpack]
        return make, arguments, (state, self.abouts)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.abouts = state[1]

    # numpy's own of these two go by no __reduce__, and both copy the numbers

    def __copy__(self) -> Distances:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Distances:
        copied: Distances = super().__deepcopy__(memo).view(Distances)
        copied.abouts = self.abouts
        return copied

    @property
    def about(self) -> str:
        """The lines of all of them, each once."""
        return "; ".join(dict.fromkeys(map(str, self.abouts)))


def draw(
    first: Image.Image, second: Image.Image, distance: Distance, names: tuple[str, str]
) -> Image.Image:
    """An RGB picture: the two photos, where they differ in perceptually uniform colours with the scale, and
    the line that makes it reproducible.

    distance: with its map, of the photos' size. DataError where it has none.
    """
    from PIL import Image

    from ..pictures import layout

    if distance.map is None:
        raise DataError("the distance has no map; expected one that was computed with spatial=True")
    photos = [layout.fitted(photo) for photo in (first, second)]
    top = float(distance.map.max())
    heat = Image.fromarray(distance.map / top if top > 0 else distance.map)
    # enlarged, a pixel stays a pixel: what the map does not know should not look smooth
    larger = photos[0].width > first.width
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    colours = Image.fromarray(layout.coloured(np.asarray(heat.resize(photos[0].size, how))))
    name = distance.about.metric.split()[0]
    scale = layout.scale(max(layout.NARROWEST, colours.width), f"{top:.3g}", f"{name} at a pixel")
    parts: list[layout.Panel] = [
        (one, "", photo, ()) for one, photo in zip(names, photos, strict=True)
    ]
    parts.append((f"{name} {float(distance):.4g}", "", colours, (12, scale)))
    return layout.sheet(parts, 3, str(distance.about))
