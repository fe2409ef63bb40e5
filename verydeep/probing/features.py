"""Averages of a network's layers over many photos, computed once and kept on disk.

A photo is known by its content, so a file that is renamed, or moved from one set to another, is not
computed again. What is kept belongs to a space: the weights, the layers, the resize and crop, the precision
and the code that builds the graph. Each run adds what was new as shards of some hundred photos, so that one
which is stopped loses little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import labelled
from ..errors import EngineError, ImageError
from ..files.cache import Cache
from ..files.folders import cache_folder
from ..files.progress import stage
from ..graphs import source_of
from ..predictor import DECODING_THREADS, Failure, Predictor
from ..preprocess import decoded, sized

if TYPE_CHECKING:
    from ..preprocess import ImageLike, Size

SHARD = 512  # photos, about 4 MB at 2048 channels


@dataclass(frozen=True, eq=False)
class Averages:
    """values: (photos, channels) float32, the layers' channels one after another; NaN where `faults` has
    the photo. digests: of each photo's content, hexadecimal; "" where it could not be read.
    faults: photo number -> why it has no features. computed: how many of them now. by: the engine and
    precision of those, "" where none was.
    """

    values: NDArray[np.float32]
    digests: tuple[str, ...]
    faults: Mapping[int, str]
    computed: int
    by: str = ""


def averages(
    predictor: Predictor,
    photos: Sequence[labelled.Sample],
    layers: Sequence[str],
    *,
    size: Size = None,
    batch: int = 16,
    mirrored: bool = False,
    passed: Callable[[int], None] = lambda _: None,
) -> Averages:
    """The average of each layer over each photo.

    layers: paper names. size: see `preprocess.Size`. mirrored: of each photo's mirror image. passed: told
    how many were computed so far, after each. Photos that cannot be read are in `faults`. What is computed
    is kept in "features" in `folders.cache_folder()`, of $VERYDEEP_CACHE_LIMIT at most.
    """
    cache = Cache(cache_folder() / "features")
    layers = tuple(layers)
    faults: dict[int, str] = {}
    digests = digests_of(photos, faults)
    space = _space(predictor, layers, size, mirrored)
    known = _kept(cache, space, set(digests))
    # digest -> the first photo that has it
    new = {d: at for at, d in reversed([*enumerate(digests)]) if d and d not in known}
    by = ""
    bad: dict[str, str] = {}
    fresh: dict[str, NDArray[np.float32]] = {}
    stream = predictor.features_stream(
        _Files([photos[at] for at in new.values()], mirrored), layers, "avg", size=size, batch=batch
    )
    try:
        pairs = zip(new, stream, strict=True)
        told = stage(pairs, "computing features", "photo", len(new))
        for done, (digest, item) in enumerate(told, 1):
            passed(done)
            if isinstance(item, Failure):
                bad[digest] = item.error
                continue
            fresh[digest] = np.concatenate([item[layer] for layer in layers])
            by = f"{item.engine} {item.precision}"
            if len(fresh) >= SHARD:
                _keep(cache, space, fresh)
                known.update(fresh)
                fresh = {}
    finally:
        _keep(cache, space, fresh)  # what is there is kept, Ctrl-C or not
    known.update(fresh)
    channels = sum(predictor.record.network.layer(layer).outputs for layer in layers)
    values = np.full((len(photos), channels), np.nan, np.float32)
    for at, digest in enumerate(digests):
        if digest in known:
            values[at] = known[digest]
        elif digest:
            faults[at] = bad[digest].partition(": ")[2] or bad[digest]
    return Averages(values, tuple(digests), dict(sorted(faults.items())), len(new) - len(bad), by)


class _Files:
    """Photos that are opened when they are needed; how many there are is known before."""

    def __init__(self, photos: Sequence[labelled.Sample], mirrored: bool) -> None:
        self.photos, self.mirrored = photos, mirrored

    def __len__(self) -> int:
        return len(self.photos)

    def __iter__(self) -> Iterator[ImageLike]:
        # one that is gone since it was hashed is reported as an empty file
        for image in labelled.opened(self.photos, {}):
            if self.mirrored:
                with suppress(ImageError):  # which is reported when it is decoded once more
                    image = np.rint(decoded(image)[:, ::-1]).astype(np.uint8)
            yield image


def digests_of(photos: Sequence[labelled.Sample], faults: dict[int, str]) -> list[str]:
    """SHA-256 of each photo's content; "" where it cannot be read, and then `faults` says why."""

    def digest(photo: labelled.Sample) -> str | OSError:
        try:
            return labelled.digest(photo)
        except OSError as error:
            return error

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        found = [*stage(pool.map(digest, photos), "reading photos", "photo", len(photos))]
    faults |= {at: e.strerror or str(e) for at, e in enumerate(found) if isinstance(e, OSError)}
    return ["" if isinstance(one, OSError) else one for one in found]


def _space(
    predictor: Predictor, layers: tuple[str, ...], size: Size, mirrored: bool
) -> dict[str, Any]:
    """What the averages depend on beside the photo."""
    preprocess = predictor.preprocess
    if size is not None:
        preprocess = sized(predictor.record.preprocess, size)
    graph = source_of(predictor.model, "uint8", layers, False, pool="avg").key
    facts = {
        "graph": graph,
        "preprocess": {**preprocess.to_dict(), "size": repr(size)},
        "precision": predictor.precision,
        **({"mirrored": True} if mirrored else {}),
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return {"space": name, "layers": list(layers), **facts}


def _kept(
    cache: Cache, space: Mapping[str, Any], wanted: set[str]
) -> dict[str, NDArray[np.float32]]:
    """What the shards of that space have of the photos that are wanted."""

    def make(_: Path) -> None:  # only where the shard was damaged a moment ago
        raise EngineError("the shard is gone")

    found: dict[str, NDArray[np.float32]] = {}
    for entry in cache.entries():
        if entry.about.get("space") == space["space"]:
            about = {key: value for key, value in entry.about.items() if key != "format"}
            with suppress(EngineError):
                shard = cache.open(entry.name, about, make, _load, needs_bytes=lambda: 0)
                found.update((d, row) for d, row in shard.items() if d in wanted)
    return found


def _keep(cache: Cache, space: Mapping[str, Any], fresh: Mapping[str, NDArray[np.float32]]) -> None:
    if not fresh:
        return
    photos, values = np.array(list(fresh), "S64"), np.stack(list(fresh.values()))

    def make(folder: Path) -> None:
        np.save(folder / "averages.npy", values)
        np.save(folder / "photos.npy", photos)

    name = f"averages-{space['space'][:16]}-{hashlib.sha256(photos.tobytes()).hexdigest()[:16]}"
    with suppress(EngineError):  # no room: then they are computed again another time
        cache.open(
            name, {**space, "photos": len(fresh)}, make, _load,
            needs_bytes=lambda: values.nbytes + photos.nbytes,
        )  # fmt: skip


def _load(folder: Path, _: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """A shard's rows by their photos' digests; the cache has seen that its files are whole."""
    values = np.load(folder / "averages.npy", allow_pickle=False)
    photos = np.load(folder / "photos.npy", allow_pickle=False).astype(str)
    return dict(zip(photos.tolist(), values, strict=True))
