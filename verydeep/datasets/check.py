"""Look through a data set before anything learns from it: what is broken, doubled, missing or lopsided.

An image is known again by its content, whatever its name; nearly so by a difference hash of 64 bits, a
bit for whether a cell of 9 x 8 is brighter than the one to its left, and then by its thumbnail.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engines.processor import cores
from ..errors import DataError, ImageError
from ..files.progress import stage
from ..files.wording import counted, some
from ..preprocess import decode
from ..preprocess.decoding import opened
from . import labelled
from .items import Brought, Streamed, size_bytes
from .labelled import Labelled, Sample
from .shards import is_stream

IMBALANCE = 20.0  # times as many images in the largest class as in the smallest
NEAR_BITS, NEAR_LEVELS = 6, 6.0  # of the hash; mean difference of thumbnails, of 255
MOST_PAIRS = 20_000_000_000  # beyond that, near-doubles are not looked for
QUICK_BYTES = 2 * 2**30  # a set that is larger is not read through unasked
THUMB = 16


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. what: a word; text: a line for people; names: of all it is about."""

    what: str
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Check:
    """What was found. images: how many were looked at; test: of a test/ that is reported apart."""

    classes: tuple[str, ...]
    train: int
    val: int
    findings: tuple[Finding, ...]
    test: int = 0

    @property
    def images(self) -> int:
        return self.train + self.val + self.test

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{len(self.classes)} classes, {self.train} images to train on, {self.val} to validate"
        )
        head += f", {self.test} to test" if self.test else ""
        if not self.findings:
            return f"{head}: nothing is wrong"
        return "\n".join((head, *(finding.text for finding in self.findings)))


def check(
    source: object,
    val: object = None,
    *,
    size: int = 224,
    strict: bool = False,
    multi: bool | None = None,
) -> Check:
    """Every image is decoded and compared; source, val and multi as for `datasets.labelled.find`.

    size: pixels a side of the network's input; smaller images are told of. strict: what is found is an
    error.
    Raises DataError as `find` does, and where `strict` finds anything.
    """
    if is_stream(source) or is_stream(val):
        raise DataError(
            "a check compares images in any order, which a stream cannot give; fetch some shards, and give "
            "their path"
        )
    found = labelled.find(source, val, multi=multi)
    told = (Finding("classes", line) for line in found.warnings)
    findings = (*told, *_findings(found, size, thorough=True))
    if strict and findings:
        raise DataError("; ".join(f.text for f in findings))
    return Check(found.classes, len(found.train), len(found.val), findings, len(found.test))


def looked_over(found: Labelled, size: int, *, thorough: bool = False) -> tuple[str, ...]:
    """Lines on what can be seen without decoding: doubles by content, sizes, balance.

    thorough: on everything that `check` finds.
    Nothing of a set that is streamed is read, nor, unless thorough, of one that a Python object brings or
    of more than 2 GiB.
    """
    every = (*found.train, *found.val, *found.test)
    unread = Streamed if thorough else (Streamed, Brought)
    large = not thorough and sum(size_bytes(s.source) for s in every) > QUICK_BYTES
    if large or any(isinstance(s.source, unread) for s in every):
        return tuple(f.text for f in _lopsided(found))
    return tuple(f.text for f in _findings(found, size, thorough=thorough))


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image: its sides, and where it was decoded its hash and thumbnail; or why it cannot be read."""

    width: int = 0
    height: int = 0
    bits: int = 0
    thumb: NDArray[np.uint8] | None = None
    error: str = ""


def _findings(found: Labelled, size: int, *, thorough: bool) -> Iterator[Finding]:
    samples, train = (*found.train, *found.val, *found.test), len(found.train)
    with ThreadPoolExecutor(cores()) as pool:
        results = pool.map(lambda s: _look(s, thorough), samples)
        seen = list(stage(results, "looking at images", "image", len(samples)))
    both = list(zip(samples, seen, strict=True))
    broken = [sample.name for sample, one in both if one.error]
    why = [one.error for one in seen if one.error]
    yield from _told("unreadable", "that cannot be read", broken, why)
    yield from _lopsided(found)
    same = labelled.doubles(samples)
    yield from _doubles(samples, same, train)
    if thorough:
        near = _near_doubles(samples, same, seen, train)
        about = "to validate or test with, much like one to train on"
        yield from _told("near-doubles across", about, near)
    small = [
        f"{sample.name} ({one.width}x{one.height})"
        for sample, one in both
        if not one.error and min(one.width, one.height) < size
    ]
    yield from _told("small", f"smaller than the {size} pixels of the network's input", small)


def _told(
    what: str, text: str, names: Sequence[str], shown: Iterable[str] = ()
) -> Iterator[Finding]:
    """The finding on those images, where there are any. shown: what is said of each, where not its name."""
    if names:
        line = f"{counted(len(names), 'image')} {text}: {some(shown or names)}"
        yield Finding(what, line, tuple(names))


def _look(sample: Sample, thorough: bool) -> _Seen:
    try:
        content = labelled.open(sample)
        if thorough:
            pass
        elif isinstance(content, np.ndarray):
            return _Seen(content.shape[1], content.shape[0])
        else:  # what cannot be opened is decoded, which says why
            file = io.BytesIO(content) if isinstance(content, bytes) else content
            with suppress(Exception), opened(file) as photo:
                return _Seen(*photo.size)
        picture = decode(content)
    except (ImageError, OSError) as error:
        text = str(error)
        return _Seen(error=text if sample.name in text else f"{sample.name}: {text}")
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.rint(picture).astype(np.uint8))
    grey = picture.convert("L")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(int)
    packed = np.packbits(cells[:, 1:] > cells[:, :-1])
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX))
    return _Seen(*picture.size, int.from_bytes(packed.tobytes()), thumb)


def _lopsided(found: Labelled) -> Iterator[Finding]:
    counts = found.counts()
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] > IMBALANCE * counts[least]:
        yield Finding(
            "imbalance",
            f"{counts[most]} images of {found.classes[most]}, and {counts[least]} of "
            f"{found.classes[least]}; the recipes with a loop make up for it with --set balance=weights",
            (found.classes[most], found.classes[least]),
        )


def _doubles(samples: Sequence[Sample], same: Sequence[int], train: int) -> Iterator[Finding]:
    """Images that are one file twice. same: as of `labelled.doubles`; train: how many are to train on."""
    groups: dict[int, list[int]] = defaultdict(list)
    for at, first in enumerate(same):
        groups[first].append(at)
    twice = [group for group in groups.values() if len(group) > 1]

    def named(wrong: Callable[[list[int]], bool]) -> list[str]:
        return [" = ".join(samples[at].name for at in group[:3]) for group in twice if wrong(group)]

    across = "to validate or test with, there to train on as well, so that accuracy is flattered"
    yield from _told("doubles across", across, named(lambda group: group[0] < train <= group[-1]))
    within = named(lambda group: not group[0] < train <= group[-1])
    yield from _told("doubles within", "found twice or more", within)
    at_odds = named(lambda group: len({(samples[g].label, samples[g].labels) for g in group}) > 1)
    yield from _told("labels at odds", "of two classes at once", at_odds)


def _near_doubles(
    samples: Sequence[Sample], same: Sequence[int], seen: Sequence[_Seen], train: int
) -> list[str]:
    """Images to validate or test with that look like one to train on, without being the same file."""
    near: list[str] = []
    count = len(samples) - train
    if train * count > MOST_PAIRS:
        return near
    bits = np.array([one.bits for one in seen[:train]], np.uint64)
    for at in stage(range(train, len(samples)), "comparing images", "image", count):
        thumb = seen[at].thumb
        if thumb is None:
            continue
        close = np.bitwise_count(bits ^ np.uint64(seen[at].bits)) <= NEAR_BITS
        for other in map(int, np.flatnonzero(close)):
            its = seen[other].thumb
            if its is None or same[other] == same[at]:
                continue
            if np.abs(its.astype(int) - thumb).mean() <= NEAR_LEVELS:
                near.append(f"{samples[at].name} ~ {samples[other].name}")
                break
    return near
