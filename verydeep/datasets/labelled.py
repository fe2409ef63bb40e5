"""Labelled images to train on and to validate with: found, split if need be, and told apart by a digest.

>>> from verydeep.datasets import labelled
>>> found = labelled.find("photos/", seed=0)  # doctest: +SKIP
>>> found.classes, len(found.train), len(found.val)  # doctest: +SKIP
(('daisy', 'rose'), 900, 100)
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from ..engines.processor import cores
from ..errors import DataError
from ..files.photo_paths import unused
from ..files.progress import stage
from ..files.wording import counted, some
from .items import Content, Item, Listing, Source, beginning, read, size_bytes, spelt
from .listing import listed
from .shards import of_shards

VAL_FRACTION = 0.1
BEGINNING = 2**14  # bytes by which files of one size are told apart, before all is read
LONGEST_NAME = 1000  # of a class, in a model file
NO_LINE = frozenset(
    ("Cc", "Cs", "Zl", "Zp")
)  # Unicode's categories of what ends a line, or is no text


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image: where it lies, its class's number, and its name for people.

    labels: where an image may be of several classes, the numbers of its own; `label` is then the first of
    them, or -1 where it has none.
    """

    source: Source
    label: int
    name: str = ""
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a network learns from.

    classes: names, in the order of the labels. train, val: samples. warnings: lines for people.
    digest: of names, labels and sizes (and of the pixels of arrays); another data set has another one.
    split: how the validation samples were chosen, in words. test: samples of the set's own test/, where
    others validate: to be measured at the end, and reported apart. multi: whether an image may be of
    several classes, or of none.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    warnings: tuple[str, ...]
    digest: str
    split: str
    test: tuple[Sample, ...] = ()
    multi: bool = False

    def counts(self) -> NDArray[np.int64]:
        """Training samples of each class, (classes,)."""
        return _tally(self.train, len(self.classes))

    def described(self) -> dict[str, Any]:
        """How many images and classes, and the digest by which a data set is known again."""
        return {
            "digest": self.digest, "classes": len(self.classes), "train": len(self.train),
            "val": len(self.val), "split": self.split,
        }  # fmt: skip


def targets(samples: Sequence[Sample], classes: int | Sequence[str]) -> NDArray[Any]:
    """The class of each sample, (n,) int64; where there may be several, (n, classes) float32 of 0 and 1."""
    if not any(sample.labels or sample.label < 0 for sample in samples):
        return np.array([sample.label for sample in samples], np.int64)
    found = np.zeros((len(samples), classes if isinstance(classes, int) else len(classes)), "f4")
    for row, sample in zip(found, samples, strict=True):
        row[list(sample.labels)] = 1
    return found


def find(
    data: object,
    val: object = None,
    *,
    seed: int = 0,
    val_fraction: float = VAL_FRACTION,
    multi: bool | None = None,
) -> Labelled:
    """The samples of a data set, in any form that `verydeep.datasets.listing` knows.

    val: a second data set to validate with. Without one, the set's own val/ (or test/) is taken; without
    that either, `val_fraction` of each class, drawn by `seed`: the same images on every machine, and of
    files with the same bytes all or none; of shards that are streamed, `val_fraction` of the shards.
    multi: of a CSV, whether a photo may have several labels; None: as it looks, or refused.
    What was found before is given back. Raises DataError for no images, a single class, or two sets that
    share no class.
    """
    if isinstance(data, Labelled):
        return data
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction!r}; expected 0 or more and less than 1")
    found, name = listed(data, multi=multi), called(data)
    warnings = oddities(name, found)
    train = [item for item in found.items if item.part in ("", "train")]
    if not train:
        raise DataError(f"{name}: no images to train on{without_images(found)}")
    given, part = judged(found)
    several, sets = multi or found.multi, {name: found}
    if val is not None:
        other, label = listed(val, multi=several), called(val)
        warnings += oddities(label, other)
        if part == "val":
            warnings.append(f"{name}: its own val/ is not used, since another set is given")
        (given, _), part, sets[label] = judged(other), "as given", other
        if not given:
            raise DataError(f"{label}: no images; expected a data set to validate with")
    for label, one in sets.items():
        if one.multi and (multi is False or not several):
            raise DataError(
                f"{label}: images of several classes, or of none; expected one class of each image, or "
                "multi=true"
            )
    classes = _classes(name, found, train)
    number = {label: index for index, label in enumerate(classes)}

    def numbered(items: Iterable[Item], use: str) -> list[Sample]:
        """The samples of classes that are trained."""
        samples, unknown, count = [], Counter[str](), 0
        for item in items:
            strange = [label for label in item.labels if label not in number]
            unknown.update(strange)
            count += bool(strange)
            if not strange:
                labels = tuple(sorted(number[label] for label in item.labels))
                first = labels[0] if labels else -1
                samples.append(Sample(item.source, first, item.name, labels if several else ()))
        if unknown and not samples and use == "validate":
            raise DataError(
                f"no class to {use} is one to train on: {some(sorted(unknown))} against {some(classes)}"
            )
        if unknown:
            warnings.append(
                f"images to {use} of classes that are not trained are left out, {count} in all: "
                f"{some(sorted(unknown))}"
            )
        return samples

    learn, judge, chosen = numbered(train, "train on"), list[Sample](), ""
    if part not in ("", "train"):
        judge = numbered(given, "validate")
        chosen = part if val is not None else f"the set's own {part}"
    if val is not None:  # what goes by the same name in both sets is not the same image
        both = {sample.name for sample in learn} & {sample.name for sample in judge}
        judge = [replace(s, name=f"{label}: {s.name}") if s.name in both else s for s in judge]
    own = [item for item in found.items if item.part == "test" and part != "test"]
    test = numbered(own, "test")
    if not judge and val_fraction:
        learn, judge, chosen = split(learn, seed, val_fraction)
        if not chosen:
            warnings.append("a single shard is not split; to validate, give a second data set")
    warnings += [*_alike(name, classes), *_thin(classes, learn, judge)]
    digest = _digest(classes, {"train": learn, "val": judge, "test": test})
    return Labelled(
        classes, tuple(learn), tuple(judge), tuple(warnings), digest, chosen, tuple(test), several
    )  # fmt: skip


def find_for(config: Any, data: object, val: object = None) -> Labelled:
    """What a recipe learns from, as its settings `seed`, `val_fraction` and `multi` have it."""
    multi = None if config.multi == "auto" else config.multi == "true"
    return find(data, val, seed=config.seed, val_fraction=config.val_fraction, multi=multi)


def open(sample: Sample | Item) -> Content:  # noqa: A001  # labelled.open reads well
    """What `verydeep.preprocess.decode` takes: a path, the bytes of a file, or (h, w, c) uint8.

    OSError where it cannot be had, as from an archive that is damaged there.
    """
    return read(sample.source)


def opened(samples: Iterable[Sample | Item], faults: MutableMapping[int, str]) -> Iterator[Content]:
    """Each as `open` gives it, when it is asked for; b"" where it cannot be had, and `faults` says why.

    faults: number of the sample -> why.
    """
    for at, sample in enumerate(samples):
        held: Content = b""
        try:
            held = open(sample)
        except OSError as error:
            faults[at] = str(error)
        yield held


def digest(sample: Sample) -> str:
    """SHA-256 of an image as it is stored, hexadecimal; OSError where it cannot be had."""
    held = open(sample)
    if isinstance(held, np.ndarray):
        held = f"{held.shape} {held.dtype}".encode() + held.tobytes()
    return hashlib.sha256(Path(held).read_bytes() if isinstance(held, str) else held).hexdigest()


def doubles(samples: Sequence[Sample]) -> list[int]:
    """Of each sample the number of the first one with the same bytes, mostly its own.

    Told by size, then by the beginning, then by all, so that little is read. What a Python object brings,
    or cannot be read, is like no other.
    """

    def content(at: int) -> str:
        with suppress(OSError):
            return digest(samples[at])
        return ""

    ways: tuple[Callable[[int], int | str], ...] = (
        lambda at: size_bytes(samples[at].source),
        lambda at: hash(beginning(samples[at].source, BEGINNING)),
        content,
    )
    first = list(range(len(samples)))
    groups = [first.copy()]
    with ThreadPoolExecutor(cores()) as pool:
        for way in ways:
            numbers = [at for group in groups for at in group]
            told = stage(pool.map(way, numbers), "comparing files", "file", len(numbers))
            answers = dict(zip(numbers, told, strict=True))
            apart: dict[tuple[int, int | str], list[int]] = defaultdict(list)
            for group in groups:
                for at in group:
                    apart[group[0], answers[at] or -at].append(at)
            groups = [alike for alike in apart.values() if len(alike) > 1]
    for group in groups:
        for at in group:
            first[at] = group[0]
    return first


def called(data: object) -> str:
    """What to call a data set in a message."""
    path = isinstance(data, str) or hasattr(data, "__fspath__")
    return str(data) if path else type(data).__name__


def _tally(samples: Iterable[Sample], classes: int) -> NDArray[np.int64]:
    labels = [label for s in samples for label in (s.labels or (s.label,)) if label >= 0]
    return np.bincount(np.array(labels, np.int64), minlength=classes)


def _classes(name: str, found: Listing, train: list[Item]) -> tuple[str, ...]:
    """In the set's own order, else sorted, numbers as numbers; a class without an image is kept out."""
    seen = {label for item in train for label in item.labels}
    numbers = all(map(str.isdecimal, seen))
    order = sorted(seen, key=lambda label: (int(label) if numbers else 0, label))
    classes = tuple(label for label in map(spelt, found.classes or order) if label in seen)
    if len(classes) < 2 and found.multi:
        raise DataError(
            f"{name}: images have {' '.join(map(repr, classes)) or 'no class'}, and no other; expected two "
            "classes or more; give the images without one a class, such as 'none'"
        )
    if len(classes) < 2:
        raise DataError(
            f"{name}: all images ({len(train)}) are of one class, {', '.join(classes)!r}; expected images "
            "of two classes or more"
        )
    for label in classes:  # or the model file would refuse it after the training
        if len(label) > LONGEST_NAME or not label or NO_LINE.intersection(map(category, label)):
            raise DataError(
                f"{name}: a class is named {label[:40]!r}, of {len(label)} characters; expected a name on "
                f"one line, of {LONGEST_NAME} at most"
            )
    return classes


# Some to validate with


def split(
    samples: Sequence[Sample], seed: int, fraction: float
) -> tuple[list[Sample], list[Sample], str]:
    """Samples to train on and to judge by, and how they were chosen, in words.

    Of each class that fraction judges, at least one, but for a class that has one image; an image of
    several classes counts for the rarest. Of shards that are streamed whole ones do, so that none is
    streamed twice.
    """
    if shards := of_shards(samples):
        drawn = _drawn(range(len(shards)), [0] * len(shards), seed, fraction)
        held = {at for number in drawn for at in shards[number]}
        how = f"{len(drawn)} of {len(shards)} shards, seed {seed}" if drawn else ""
    else:
        same = doubles(samples)
        often = Counter(label for s in samples for label in s.labels)
        strata = [min(s.labels, key=lambda k: (often[k], k), default=s.label) for s in samples]
        held = _drawn(same, strata, seed, fraction)
        how = f"{100 * fraction:g}% of each class, seed {seed}"
        twice = sum(at != first for at, first in enumerate(same))
        how += f", {counted(twice, 'double')} beside the first" if twice else ""
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for at, sample in enumerate(samples):
        parts[at in held].append(sample)
    return *parts, how


def _drawn(same: Sequence[int], labels: Sequence[int], seed: int, fraction: float) -> set[int]:
    """Numbers of that fraction of each label, in at least one where that leaves one.

    same: what has the same number is drawn together, or not at all.
    """
    together: dict[int, list[int]] = defaultdict(list)
    members: dict[int, list[int]] = defaultdict(list)
    for at, (group, label) in enumerate(zip(same, labels, strict=True)):
        together[group].append(at)
        members[label].append(at)
    total, taken, held = Counter(labels), Counter[int](), set[int]()
    for label, numbers in members.items():
        count = max(1, round(len(numbers) * fraction))
        order = np.random.default_rng([seed, label % 2**32]).permutation(len(numbers))
        groups = dict.fromkeys(same[numbers[at]] for at in order)
        # a group of more than are wanted comes last, for where there is nothing else
        for group in sorted(groups, key=lambda one: max(count, len(together[one]))):
            if taken[label] >= count:
                break
            more = Counter(labels[at] for at in together[group])
            fits = taken[label] + more[label] <= count or not taken[label]
            leaves = all(total[one] - taken[one] > n for one, n in more.items())
            if fits and leaves and held.isdisjoint(together[group]):
                held.update(together[group])
                taken += more
    return held


def _alike(name: str, classes: Sequence[str]) -> list[str]:
    """A line on classes that may be one, as two people spell it."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        spellings[label.strip().casefold()].append(label)
    twice = [" and ".join(map(repr, same)) for same in spellings.values() if len(same) > 1]
    what = "classes whose names differ by case or blanks alone"
    return [f"{name}: {what}: {some(twice)}"] if twice else []


def _thin(classes: Sequence[str], learn: list[Sample], judge: list[Sample]) -> list[str]:
    """Lines on classes that have too few images to train on, or none to validate."""
    learned, seen = _tally(learn, len(classes)), _tally(judge, len(classes))
    few = (
        ("no images to train on of", learned == 0),
        ("no images to validate of", (seen == 0) & (learned != 1) & bool(judge)),
        ("a single image to train on of", learned == 1),
    )
    return [
        f"{what}: {some(classes[at] for at in np.flatnonzero(which).tolist())}"
        for what, which in few
        if which.any()
    ]


def judged(found: Listing) -> tuple[list[Item], str]:
    """What of a set a model is measured on, and its part: val, else test, else train, or "" undivided.

    What is of no part in a set that has some is trained on, and so goes with train.
    """
    for part in ("val", "test"):
        if items := [item for item in found.items if item.part == part]:
            return items, part
    return found.items, max((item.part for item in found.items), default="")


def oddities(name: str, found: Listing) -> list[str]:
    """Lines for people on what of a set is not used."""
    lines = []
    if found.loose and found.items:
        lines.append(f"{name}: images in no class folder are not used: {some(found.loose)}")
    if found.empty and found.items:
        labels = sorted({f"{part}/{label}" if part else label for part, label in found.empty})
        lines.append(f"{name}: classes without images: {some(labels)}")
    if found.unused and found.items:
        lines.append(f"{name}: {unused(found.unused)}{_of_table(found)}")
    return lines


def _of_table(found: Listing) -> str:
    if not found.table:
        return ""
    return f"; {found.table} may hold labels: to use them, give it as the data set"


def without_images(found: Listing) -> str:
    """Why a set has no images to use, as the end of a message."""
    if found.loose:
        loose = f": {some(found.loose)}: in no class folder; expected one folder for each class"
        return loose + _of_table(found)
    if found.items:
        return ": all of them are to validate with; expected train/ too, or no division at all"
    told = f": {unused(found.unused)}" if found.unused else ""
    return f"{told}; expected one folder of images for each class"


def _digest(classes: Iterable[str], parts: dict[str, list[Sample]]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for what, samples in parts.items():
        if what == "test" and not samples:  # as it was before a test/ was looked at
            continue
        digest.update(f"\n{what}\n".encode())
        for sample in samples:
            labels = ",".join(map(str, sample.labels)) or sample.label
            digest.update(f"{sample.name}\0{labels}\0{size_bytes(sample.source)}\n".encode())
            if isinstance(sample.source, np.ndarray):
                digest.update(sample.source.tobytes())
    return digest.hexdigest()
