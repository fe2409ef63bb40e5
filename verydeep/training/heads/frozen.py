"""What the frozen blocks of a network make of photos: computed once by the fastest engine, kept on disk.

Fine-tuning the upper blocks reads the same maps epoch after epoch; for VGG-16 on 224 pixels with block 5
trained they take 200 kB a photo and view, and save nine tenths of every step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, ImageError
from ...files.cache import Cache
from ...files.progress import stage
from ...graphs import source_of
from ...predictor import DECODING_THREADS, Failure, Predictor
from ...preprocess import decode
from ..data import labelled
from .features import digests_of, features_cache

if TYPE_CHECKING:
    from PIL import Image

LEAST_AREA = 0.5  # of a photo, in views that are cropped


@dataclass(frozen=True, eq=False)
class Frozen:
    """maps: (photos, channels, height, width) float16 on disk, the output of the last frozen layer, or
    the network's input where no layer is frozen.
    averages: (photos, channels) float32 of the head's layers, one after another. good: (photos,), False
    for those that could not be read. faults: photo number -> why."""

    maps: NDArray[np.float16]
    averages: NDArray[np.float32]
    good: NDArray[np.bool_]
    faults: Mapping[int, str]


def frozen(
    predictor: Predictor,
    photos: Sequence[labelled.Sample],
    cut: str,
    layers: Sequence[str],
    size: int,
    *,
    view: int = 0,
    seed: int = 0,
    batch: int = 16,
    cache: Cache | None = None,
    passed: Callable[[int], None] = lambda _: None,
) -> Frozen:
    """The maps of layer `cut` and the averages of `layers`, of photos stretched to `size` a side.

    cut: "" for the input itself, which keeps the views of photos together for all who read them.
    view: 0 is the photo itself, 1 its mirror image, those from 2 on are drawn by (seed, view, number):
    a part of it, mirrored or not. passed: told 1 for each photo that is computed.
    """
    cache = features_cache() if cache is None else cache
    layers = tuple(layers)
    network = predictor.record.network
    exact = replace(predictor.record.preprocess, resize="exact", resize_size=size, crop_size=None)
    shape: tuple[int, ...] = (network.in_channels, size, size)
    if cut:
        rows = network.cut((cut,)).rows(size)
        shape = next(row.shape for row in rows if row.layer.name == cut)
    taps = (*layers, cut) if cut else layers
    channels = sum(network.layer(name).outputs for name in layers)
    count = len(photos)
    names = digests_of(photos, {})
    facts = {
        "graph": source_of(predictor.model, "uint8", taps, False).key, "cut": cut,
        "preprocess": predictor.record.preprocess.to_dict(), "size": size, "view": view,
        "seed": seed if view > 1 else 0, "precision": predictor.precision,
        "photos": hashlib.sha256("".join(names).encode()).hexdigest(),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def make(folder: Path) -> None:
        maps = np.lib.format.open_memmap(folder / "maps.npy", "w+", np.float16, (count, *shape))
        averages = np.zeros((count, channels), np.float32)
        faults: dict[int, str] = {}
        images = _Images(photos, view, seed)
        stream = predictor.features_stream(images, taps, size=(size, size), batch=batch)
        most = np.finfo(np.float16).max
        for number, item in enumerate(stage(stream, "computing features", "photo", count)):
            passed(1)
            if isinstance(item, Failure):
                faults[number] = item.error
                continue
            found = item[cut] if cut else exact.normalise(exact.pixels(images[number]))[0]
            maps[number] = found.clip(-most, most)
            averages[number] = np.concatenate([item[name].mean(axis=(1, 2)) for name in layers])
        maps.flush()
        np.save(folder / "averages.npy", averages)
        (folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")

    needs = count * (2 * int(np.prod(shape)) + 4 * channels + 16)
    return cache.open(f"maps-{key}", facts, make, _load, needs_bytes=lambda: needs)


def _load(folder: Path, _: Mapping[str, Any]) -> Frozen:
    try:
        maps = np.load(folder / "maps.npy", mmap_mode="r")
        averages = np.load(folder / "averages.npy")
        faults = {int(k): v for k, v in json.loads((folder / "faults.json").read_text()).items()}
    except (OSError, ValueError) as error:
        raise EngineError(f"kept maps cannot be read: {error}") from error
    good = np.ones(len(maps), bool)
    good[list(faults)] = False
    return Frozen(maps, averages, good, faults)


class _Images(Sequence[Any]):
    """A view of each photo, decoded in threads a little ahead."""

    def __init__(self, photos: Sequence[labelled.Sample], view: int, seed: int) -> None:
        self.photos, self.view, self.seed = photos, view, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, at: Any) -> Any:
        return self._seen(at)

    def __iter__(self) -> Iterator[Any]:
        step = 8 * DECODING_THREADS
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            for begin in range(0, len(self), step):
                yield from pool.map(self._seen, range(begin, min(begin + step, len(self))))

    def _seen(self, number: int) -> Any:
        try:
            image = labelled.open(self.photos[number])
            return image if self.view == 0 else _viewed(image, self.view, self.seed, number)
        except (OSError, ImageError):
            return b""  # reported as an empty file


def _viewed(image: Any, view: int, seed: int, number: int) -> Image.Image:
    from PIL import Image

    photo = decode(image)
    if isinstance(photo, np.ndarray):
        photo = Image.fromarray(np.rint(photo).astype(np.uint8))
    mirrored = view == 1
    if view > 1:
        draw = np.random.default_rng([seed, view, number])
        mirrored = bool(draw.integers(2))
        area, ratio = draw.uniform(LEAST_AREA, 1), np.exp(draw.uniform(-0.2, 0.2))
        width = max(1, round(photo.width * min(1.0, np.sqrt(area * ratio))))
        height = max(1, round(photo.height * min(1.0, np.sqrt(area / ratio))))
        left = int(draw.integers(photo.width - width + 1))
        top = int(draw.integers(photo.height - height + 1))
        photo = photo.crop((left, top, left + width, top + height))
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else photo
