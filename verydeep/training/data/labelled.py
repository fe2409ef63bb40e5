"""Labelled images to train on and to validate with: found, split if need be, and told apart by a digest.

>>> from verydeep.training import data
>>> found = labelled.find("photos/", seed=0)  # doctest: +SKIP
>>> found.classes, len(found.train), len(found.val)  # doctest: +SKIP
(('daisy', 'rose'), 900, 100)
"""

from __future__ import annotations

import builtins
import hashlib
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from lzma import LZMAError
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...files.photo_paths import unused
from ...files.wording import some
from .listing import Item, Listing, Member, Source, Streamed, listed
from .shards import entries

VAL_FRACTION = 0.1
LONGEST_NAME = 1000  # of a class, in a model file
NO_LINE = frozenset(
    ("Cc", "Cs", "Zl", "Zp")
)  # Unicode's categories of what ends a line, or is no text


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image: where it lies, its class's number, and its name for people."""

    source: Source
    label: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Data:
    """What a network learns from.

    classes: names, in the order of the labels. train, val: samples. warnings: lines for people.
    digest: of names, labels and sizes (and of the pixels of arrays); another data set has another one.
    split: how the validation samples were chosen, in words.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    warnings: tuple[str, ...]
    digest: str
    split: str

    def counts(self) -> NDArray[np.int64]:
        """Training samples of each class, (classes,)."""
        return np.bincount([s.label for s in self.train], minlength=len(self.classes))


def find(
    data: object,
    val: object = None,
    *,
    seed: int = 0,
    val_fraction: float = VAL_FRACTION,
) -> Data:
    """The samples of a data set, in any form that `verydeep.training.data.listing` knows.

    val: a second data set to validate with. Without one, the set's own val/ (or test/) is taken; without
    that either, `val_fraction` of each class, drawn by `seed`: the same images on every machine; of shards
    that are streamed, `val_fraction` of the shards.
    What was found before is given back. Raises DataError for no images, a single class, or two sets that
    share no class.
    """
    if isinstance(data, Data):
        return data
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction!r}; expected 0 or more and less than 1")
    found = listed(data)
    name = called(data)
    warnings = oddities(name, found)
    parts = {item.part for item in found.items}
    train = [i for i in found.items if i.part in ("", "train")]
    given: list[Item] = []
    split = ""
    if val is not None:
        other = listed(val)
        label = called(val)
        warnings += oddities(label, other)
        given, _ = judged(other)
        split = "as given"
        if not given:
            raise DataError(f"{label}: no images; expected a data set to validate with")
    elif not parts.isdisjoint(("val", "test")):
        given, part = judged(found)
        split = f"the set's own {part}"
    if not train:
        raise DataError(f"{name}: no images to train on{without_images(found)}")
    classes = _classes(found, train)
    if len(classes) < 2:
        raise DataError(
            f"{name}: all images ({len(train)}) are of one class, {classes[0]!r}; expected a folder for "
            "each of two classes or more"
        )
    for label in classes:  # or the model file would refuse it after the training
        if len(label) > LONGEST_NAME or not label or NO_LINE.intersection(map(category, label)):
            raise DataError(
                f"{name}: a class is named {label[:40]!r}, of {len(label)} characters; expected a name on "
                f"one line, of {LONGEST_NAME} at most"
            )
    number = {label: index for index, label in enumerate(classes)}
    unknown = Counter(item.label for item in given if item.label not in number)
    if given and not any(item.label in number for item in given):
        raise DataError(
            f"no class to validate is one to train on: {some(sorted(unknown))} against "
            f"{some(classes)}"
        )
    if unknown:
        warnings.append(
            f"images to validate of classes that are not trained are left out, "
            f"{sum(unknown.values())} in all: {some(sorted(unknown))}"
        )
    learn = [Sample(i.source, number[i.label], i.name) for i in train]
    judge = [Sample(i.source, number[i.label], i.name) for i in given if i.label in number]
    if not given and val_fraction:
        if isinstance(learn[0].source, Streamed):
            learn, judge, split = _split_shards(learn, seed, val_fraction)
            untaught = sorted(set(range(len(classes))) - {s.label for s in learn})
            if untaught:
                warnings.append(
                    f"no images to train on of: {some([classes[label] for label in untaught])}"
                )
            if not judge:
                warnings.append("a single shard is not split; to validate, give a second data set")
            given = train if judge else []
        else:
            learn, judge = _split(learn, seed, val_fraction)
            split = f"{val_fraction:.0%} of each class, seed {seed}"
    if given:
        unseen = sorted(set(range(len(classes))) - {s.label for s in judge})
        if unseen:
            warnings.append(
                f"no images to validate of: {some([classes[label] for label in unseen])}"
            )
    lonely = [classes[k] for k, n in Counter(s.label for s in learn).items() if n == 1]
    if lonely:
        warnings.append(f"a single image to train on of: {some(sorted(lonely))}")
    sizes = {id(item.source): item.size_bytes for item in (*train, *given)}
    digest = _digest(classes, learn, judge, sizes)
    return Data(classes, tuple(learn), tuple(judge), tuple(warnings), digest, split)


def open(sample: Sample | Item) -> str | bytes | NDArray[Any]:  # noqa: A001  # labelled.open reads well
    """What `verydeep.preprocess.decode` takes: a path, the bytes of a file, or (h, w, c) uint8.

    OSError where it cannot be had, as from an archive that is damaged there.
    """
    source = sample.source
    if isinstance(source, Streamed):  # for one now and then: its shard is read up to there
        with closing(entries(source.shard)) as coming:
            found = next((content for entry, content in coming if entry.name == source.name), None)
        if found is None:
            raise DataError(f"{source.shard}: holds no {source.name} any more")
        return found
    if not isinstance(source, Member):
        return source
    if source.offset < 0:
        try:
            return _zip_file(source.archive).read(source.name)
        except (zipfile.BadZipFile, zlib.error, LZMAError, RuntimeError, EOFError) as error:
            # RuntimeError: it wants a password, or is packed in a way that is not known here
            raise OSError(f"{source.name}: cannot be unpacked: {error}") from error
    with builtins.open(source.archive, "rb") as file:
        file.seek(source.offset)
        return file.read(source.size_bytes)


def stacked(samples: Sequence[Sample]) -> NDArray[np.uint8] | None:
    """Images (n, h, w, c) uint8 in one array, where they are arrays of one shape; else None."""
    if not samples:
        return None
    shapes = {s.source.shape if isinstance(s.source, np.ndarray) else None for s in samples}
    if len(shapes) != 1 or None in shapes:
        return None
    return np.stack([s.source for s in samples])  # type: ignore[misc]  # arrays, all of them


@lru_cache(8)
def _zip_file(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def called(data: object) -> str:
    """What to call a data set in a message."""
    path = isinstance(data, str) or hasattr(data, "__fspath__")
    return str(data) if path else type(data).__name__


def _classes(found: Listing, train: list[Item]) -> tuple[str, ...]:
    """In the set's own order, else sorted, numbers as numbers; a class without an image is kept out."""
    seen = {item.label for item in train}
    if found.classes:
        return tuple(c for c in found.classes if c in seen)
    numbers = all(map(str.isdecimal, seen))
    return tuple(sorted(seen, key=lambda label: (int(label) if numbers else 0, label)))


def _split(samples: list[Sample], seed: int, fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Of each class that fraction to validate, at least one, but for a class that has one image."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_class[sample.label].append(index)
    held = set()
    for label, indices in by_class.items():
        count = max(1, round(len(indices) * fraction)) if len(indices) > 1 else 0
        draw = np.random.default_rng([seed, label])
        held |= {indices[i] for i in draw.permutation(len(indices))[:count]}
    learn = [s for i, s in enumerate(samples) if i not in held]
    return learn, [s for i, s in enumerate(samples) if i in held]


def _split_shards(
    samples: list[Sample], seed: int, fraction: float
) -> tuple[list[Sample], list[Sample], str]:
    """That fraction of the shards to validate, at least one; whole ones, so that none is streamed twice."""
    shards = [s.source.shard for s in samples if isinstance(s.source, Streamed)]
    names = list(dict.fromkeys(shards))
    if len(names) < 2:
        return samples, [], ""
    count = max(1, round(len(names) * fraction))
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    held = {names[at] for at in chosen}
    learn = [s for s, shard in zip(samples, shards, strict=True) if shard not in held]
    judge = [s for s, shard in zip(samples, shards, strict=True) if shard in held]
    return learn, judge, f"{count} of {len(names)} shards, seed {seed}"


def judged(found: Listing) -> tuple[list[Item], str]:
    """What of a set a model is measured on, and its part: val, else test, else train, or "" undivided."""
    for part in ("val", "test", "train"):
        if items := [item for item in found.items if item.part == part]:
            return items, part
    return found.items, ""


def oddities(name: str, found: Listing) -> list[str]:
    """Lines for people on what of a set is not used."""
    lines = []
    if found.loose and found.items:
        lines.append(f"{name}: images in no class folder are not used: {some(found.loose)}")
    if found.empty and found.items:
        labels = sorted({f"{part}/{label}" if part else label for part, label in found.empty})
        lines.append(f"{name}: class folders without images: {some(labels)}")
    if found.unused and found.items:
        lines.append(f"{name}: {unused(found.unused)}")
    return lines


def without_images(found: Listing) -> str:
    """Why a set has no images to use, as the end of a message."""
    if found.loose:
        return f": {some(found.loose)}: in no class folder; expected one folder for each class"
    if found.items:
        return ": all of them are to validate with; expected train/ too, or no division at all"
    told = f": {unused(found.unused)}" if found.unused else ""
    return f"{told}; expected one folder of images for each class"


def _digest(
    classes: Iterable[str], train: list[Sample], val: list[Sample], sizes: dict[int, int]
) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for what, samples in (("train", train), ("val", val)):
        digest.update(f"\n{what}\n".encode())
        for sample in samples:
            digest.update(f"{sample.name}\0{sample.label}\0{sizes[id(sample.source)]}\n".encode())
            if isinstance(sample.source, np.ndarray):
                digest.update(sample.source.tobytes())
    return digest.hexdigest()
