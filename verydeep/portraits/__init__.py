"""What is inside a network: its first filters, its strongest maps of a photo, and how far a unit sees.

>>> import verydeep
>>> seen = verydeep.show("builtin", "examples/photos/bee.jpg")
>>> seen.save("bee.png")  # doctest: +SKIP
>>> seen.write_page("bee.html")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .. import predictor as predictors
from ..errors import DataError, OutputError, require_whole
from ..nets import Network, Row
from ..pictures import require_picture, save, write
from ..pictures.layout import Box, as_rgb, coloured
from ..predictor import Answer, Predictor
from ..preprocess import ImageLike, Preprocess, Range, Size, decode, sized
from . import views

__all__ = ["Block", "Channel", "Portrait", "show"]

SIZE = 224  # the paper's, at which receptive fields and photo go well together
STRONGEST = 8
NO_PHOTO = "this portrait was made without a photo; give one to show()"


@dataclass(frozen=True, eq=False)
class Channel:
    """One map of a layer. index: of the channel. mean: over the map's units. map: (h, w) float32."""

    index: int
    mean: float
    map: np.ndarray = field(repr=False)

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of its strongest unit."""
        row, column = np.unravel_index(int(self.map.argmax()), self.map.shape)
        return int(row), int(column)

    @property
    def picture(self) -> Image.Image:
        """The map, a pixel a unit: 0 is black, its largest value pale yellow."""
        return Image.fromarray(coloured(self.map / max(float(self.map.max()), 1e-30)))


@dataclass(frozen=True, eq=False)
class Block:
    """The last ReLU of a block. row: its line of the table. channels: the strongest, by their mean."""

    row: Row
    channels: tuple[Channel, ...]

    @property
    def layer(self) -> str:
        return self.row.layer.name

    def field(self, centre: tuple[float, float]) -> Box:
        """What the unit nearest to a pixel (x, y) sees: left, top, right, bottom, in input pixels."""
        row, half = self.row, self.row.receptive_field / 2
        # the first pixel's centre is 0, and its left edge, as a box has it, as well
        nearest = (max(0, round((at - row.position) / row.stride)) for at in centre)
        x, y = (row.position + row.stride * unit + 0.5 for unit in nearest)
        return x - half, y - half, x + half, y + half


@dataclass(frozen=True, eq=False)
class Portrait:
    """A network from inside, on one photo or on none.

    network, model: what it is, and the name of its file. filters: of the first convolution with batch norm
    folded in, (filters, channels, height, width) float32, in RGB order and per step of a pixel.
    blocks: one for each block; their channels are empty where there is no photo.
    path, pixels, answer: of the photo, what the network looked at (height, width, channels), and what it
    says of it; None where there is no photo, or no head.
    """

    network: Network
    model: str
    filters: np.ndarray = field(repr=False)
    blocks: tuple[Block, ...]
    path: str | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    answer: Answer | None = None

    def __str__(self) -> str:
        text = f"{self.network.name} ({self.model})"
        if self.pixels is not None:
            height, width = self.pixels.shape[:2]
            text += f", {self.path or 'an image'} at {width}x{height} pixels"
        if self.answer is not None:
            text += f": {self.answer.label} {self.answer.probability:.1%}"
        return text

    __repr__ = __str__

    @property
    def strengths(self) -> list[float]:
        """Of the filters, as shares of the strongest one's: lengths of their weights."""
        lengths = np.sqrt((self.filters**2).sum((1, 2, 3)))
        shares: list[float] = (lengths / max(float(lengths.max()), 1e-30)).tolist()
        return shares

    @property
    def photo(self) -> Image.Image:
        """What the network looked at, as RGB. DataError where there is no photo."""
        if self.pixels is None:
            raise DataError(NO_PHOTO)
        return as_rgb(self.pixels)

    @property
    def fields(self) -> list[Box]:
        """What a unit of each block sees, in pixels of the photo: left, top, right, bottom.

        The units lie one behind the other: all have their field's centre where the last block's strongest
        channel has its strongest unit, as nearly as their grids allow. DataError where there is no photo.
        """
        if self.pixels is None:
            raise DataError(NO_PHOTO)
        last = self.blocks[-1]
        y, x = (last.row.position + last.row.stride * unit for unit in last.channels[0].peak)
        return [block.field((x, y)) for block in self.blocks]

    def picture(self) -> Image.Image:
        """The photo with what units see, the filters, and each block's strongest maps, as RGB."""
        return views.picture(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `picture` to a .png or .jpg file, or as portrait.png into a folder; returns where.

        Raises OutputError where that cannot be.
        """
        target = picture_place(path)
        save(self.picture(), target)
        return target

    def page(self) -> str:
        """One HTML page with all of it, images inside, so that it opens without a network."""
        return views.page(self)

    def write_page(self, path: str | os.PathLike[str]) -> None:
        """Write `page` to a .html file. Raises OutputError where that cannot be."""
        write(self.page(), path)


def picture_place(path: str | os.PathLike[str]) -> Path:
    """The file that a portrait's picture is written to: as named, or in the folder, which is made."""
    target = Path(path)
    if target.suffix and not target.is_dir():
        require_picture(target)
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be made a folder: {error.strerror}; name another, or a .png file"
        ) from error
    return target / "portrait.png"


def show(
    model: Predictor | str | os.PathLike[str] = "builtin",
    photo: ImageLike | None = None,
    *,
    size: Size = SIZE,
    strongest: int = STRONGEST,
    range: Range = None,
) -> Portrait:
    """Look inside a model, on a photo or on none.

    model: a Predictor, or what `verydeep.load` takes; it need not have a head. photo: whatever a predictor
    takes. size: pixels at which it is looked at; see `preprocess.Size`. strongest: channels of each
    block. range: what black and white are in a photo of floats, such as (0, 1). Raises DataError where
    strongest is less than 1 or maps are no finite numbers, ImageError where the photo cannot be read.
    """
    require_whole(DataError, strongest=strongest)
    predictor = model if isinstance(model, Predictor) else predictors.load(model)
    network = predictor.record.network
    last = network.last_relus
    pixels = answer = None
    maps: dict[str, np.ndarray] = {}
    if photo is None:
        sides = sized(Preprocess(), size).sides or (SIZE, SIZE)
        height, width = (max(side, network.minimum_size) for side in sides)
    else:
        pixels, maps = _seen(predictor, photo, last, size, range)
        height, width = pixels.shape[:2]
        if network.head.classes:
            answer = predictor(photo, range=range)
    rows = {row.layer.name: row for row in network.rows(height, width)}
    blocks = tuple(
        Block(rows[name], _strongest(maps[name], strongest) if maps else ()) for name in last
    )
    path = os.fspath(photo) if isinstance(photo, str | os.PathLike) else None
    filters = _filters(predictor)
    for name, values in (("filters", filters), *maps.items()):
        if not np.isfinite(values).all():
            raise DataError(
                f"{predictor.model.path}: {name} has values that are no finite numbers; its weights are "
                "damaged, or this image is beyond them"
            )
    return Portrait(network, predictor.model.path.name, filters, blocks, path, pixels, answer)


def strongest_channels(
    predictor: Predictor, photo: ImageLike, layers: Sequence[str] = (), strongest: int = STRONGEST,
    range: Range = None,
) -> tuple[Block, ...]:  # fmt: skip
    """The strongest channels of each of these layers, by paper name; of none, of each block's last ReLU.

    A channel of an FC layer has a map of one unit. Raises as `show` does, and LayerError.
    """
    network = predictor.record.network
    pixels, maps = _seen(predictor, photo, tuple(layers) or network.last_relus, SIZE, range)
    rows = {row.layer.name: row for row in network.rows(*pixels.shape[:2])}
    return tuple(Block(rows[name], _strongest(one, strongest)) for name, one in maps.items())


def _seen(
    predictor: Predictor, photo: ImageLike, layers: Sequence[str], size: Size, range: Range
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the network looks at, (height, width, channels), and each layer's maps of it."""
    source = decode(photo, range=range)
    deep = (0.0, 255.0) if isinstance(source, np.ndarray) else None  # more than 8 bits
    own = predictor.preprocess
    if size == SIZE and own.resize_size is None and own.crop_size is None:
        size = "own"  # it takes images as they are, and nobody asked for another size
    pixels = sized(own, size).pixels(source, range=deep)
    maps = predictor.features(pixels, layers, size="own", range=deep)
    return pixels, {name: values[0] for name, values in maps.items()}


def _strongest(maps: np.ndarray, count: int) -> tuple[Channel, ...]:
    maps = maps.reshape(len(maps), -1, 1) if maps.ndim == 1 else maps
    means = maps.mean((1, 2))
    best = np.argsort(-means, kind="stable")[:count]
    return tuple(Channel(int(i), float(means[i]), maps[i]) for i in best)


def _filters(predictor: Predictor) -> np.ndarray:
    from ..graphs.network import fold_batch_norm  # onnx

    record = predictor.record
    first = record.network.trunk[0]
    cut = record.network.cut(first.name)
    tensors = predictor.model.tensors(cut.tensors)
    weight = fold_batch_norm(cut, tensors)[f"{first.name}.weight"]
    weight = weight / np.asarray(record.preprocess.std, np.float32)[:, None, None]
    return weight[:, ::-1] if record.preprocess.channel_order == "BGR" else weight
