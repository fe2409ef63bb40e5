"""What is inside a network: its first filters, its strongest maps of a photo, and how far a unit sees.

>>> import verydeep
>>> seen = verydeep.show("builtin", "examples/photos/bee.jpg")
>>> seen.save("pictures")  # doctest: +SKIP
>>> seen.write_page("bee.html")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import predictor as predictors
from ..errors import DataError, OutputError
from ..files.atomic import replacing
from ..nets import Network, Row
from ..predictor import Predictor
from ..preprocess import decode, sized

if TYPE_CHECKING:
    from PIL import Image

    from ..predictor import Answer
    from ..preprocess import ImageLike, Size

__all__ = ["Block", "Channel", "Portrait", "show"]

SIZE = 224  # the paper's, at which receptive fields and photo go well together
STRONGEST = 8


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


@dataclass(frozen=True, eq=False)
class Block:
    """The last ReLU of a block. row: its line of the table. channels: the strongest, by their mean."""

    row: Row
    channels: tuple[Channel, ...]

    @property
    def layer(self) -> str:
        return self.row.layer.name


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
        head = f"{self.network.name} ({self.model})"
        if self.pixels is not None:
            height, width = self.pixels.shape[:2]
            head += f", {self.path or 'an image'} at {width}x{height} pixels"
        rows: list[tuple[str, ...]] = [
            ("layer", "maps", "of units", "a unit sees", "strongest channels")
        ]
        for block in self.blocks:
            channels, height, width = block.row.shape
            side = block.row.receptive_field
            strongest = " ".join(str(channel.index) for channel in block.channels)
            rows.append(
                (block.layer, str(channels), f"{width}x{height}", f"{side}x{side}", strongest)
            )
        if self.pixels is None:
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([head, *(line.rstrip() for line in table)])

    @cached_property
    def filters_picture(self) -> Image.Image:
        """The first layer's filters, each in its own colours."""
        from .filters import draw

        return draw(self)

    @cached_property
    def channels_picture(self) -> Image.Image | None:
        """A contact sheet: the strongest maps of each block; None without a photo."""
        from .channels import draw

        return None if self.pixels is None else draw(self)

    @cached_property
    def fields_picture(self) -> Image.Image | None:
        """How far a unit of each block sees, drawn on the photo; None without one."""
        from .fields import draw

        return None if self.pixels is None else draw(self)

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """Those that there are, by name."""
        named = {
            "filters": self.filters_picture,
            "channels": self.channels_picture,
            "fields": self.fields_picture,
        }
        return {name: picture for name, picture in named.items() if picture is not None}

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures: into a folder, or one below the other into a .png file.

        Returns what was written. Raises OutputError where that cannot be.
        """
        target = Path(path)
        if target.suffix.lower() == ".png" and not target.is_dir():
            _write(target, _stacked(list(self.pictures.values())))
            return [target]
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{target}: cannot be made a folder: {error.strerror}; name another, or a .png file"
            ) from error
        written = [target / f"{name}.png" for name in self.pictures]
        for file, picture in zip(written, self.pictures.values(), strict=True):
            _write(file, picture)
        return written

    def page(self) -> str:
        """One HTML page with all of it, images inside, so that it opens without a network."""
        from .page import page

        return page(self)

    def write_page(self, path: str | os.PathLike[str]) -> None:
        """Write `page` to a file. Raises OutputError where that cannot be."""
        with replacing(path, "w", encoding="utf-8") as file:
            file.write(self.page())


def show(
    model: Predictor | str | os.PathLike[str] = "builtin",
    photo: ImageLike | None = None,
    *,
    size: Size = SIZE,
    strongest: int = STRONGEST,
) -> Portrait:
    """Look inside a model, on a photo or on none.

    model: a Predictor, or what `verydeep.load` takes; it need not have a head. photo: whatever a predictor
    takes. size: pixels at which it is looked at; see `preprocess.Size`. strongest: channels of each
    block. Raises DataError where strongest is less than 1, ImageError where the photo cannot be read.
    """
    if strongest < 1:
        raise DataError(f"strongest is {strongest}; expected 1 or more")
    predictor = model if isinstance(model, Predictor) else predictors.load(model)
    network = predictor.record.network
    last = _last_relus(network)
    pixels = answer = None
    maps: dict[str, np.ndarray] = {}
    if photo is None:
        side = size if isinstance(size, int) else SIZE
        height = width = max(side, network.minimum_size)
    else:
        source = decode(photo)
        deep = (0.0, 255.0) if isinstance(source, np.ndarray) else None  # more than 8 bits
        pixels = sized(predictor.preprocess, size).pixels(source, range=deep)
        maps = predictor.features(pixels, last, size="own", range=deep)
        height, width = pixels.shape[:2]
        if network.head.classes:
            answer = predictor(photo)
    rows = {row.layer.name: row for row in network.rows(height, width)}
    blocks = tuple(
        Block(rows[name], tuple(_strongest(maps[name][0], strongest)) if maps else ())
        for name in last
    )
    path = os.fspath(photo) if isinstance(photo, str | os.PathLike) else None
    return Portrait(
        network, predictor.model.path.name, _filters(predictor), blocks, path, pixels, answer
    )


def _last_relus(network: Network) -> list[str]:
    """Of each block, its last ReLU: what its pool reads."""
    found: dict[str, str] = {}
    for layer in network.trunk:
        if layer.kind == "relu":
            found[layer.name.split("_")[0]] = layer.name
    return list(found.values())


def _strongest(maps: np.ndarray, count: int) -> list[Channel]:
    means = maps.mean((1, 2))
    return [
        Channel(int(i), float(means[i]), maps[i]) for i in np.argsort(-means, kind="stable")[:count]
    ]


def _filters(predictor: Predictor) -> np.ndarray:
    from ..graphs.network import fold_batch_norm

    record = predictor.record
    first = record.network.trunk[0]
    tensors = predictor.model.tensors(record.network.cut((first.name,)).tensors)
    weight = fold_batch_norm(record.network, tensors, (first.name,))[f"{first.name}.weight"]
    weight = weight / np.asarray(record.preprocess.std, np.float32)[:, None, None]
    return weight[:, ::-1] if record.preprocess.channel_order == "BGR" else weight


def _write(path: Path, picture: Image.Image) -> None:
    with replacing(path) as file:
        picture.save(file, "PNG", compress_level=3)


def _stacked(pictures: list[Image.Image]) -> Image.Image:
    from PIL import Image

    whole = Image.new(
        "RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), (255, 255, 255)
    )
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole
