"""Look through a data set before anything learns from it: what is broken, doubled, missing or lopsided.

An image is known again by its content, whatever its name; nearly so by a difference hash of 64 bits, a
bit for whether a cell of 9 x 8 is brighter than the one to its left, and then by its thumbnail.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...engines.processor import cores
from ...errors import DataError, ImageError
from ...files.progress import stage
from ...files.wording import some
from ...preprocess import decode
from . import labelled
from .labelled import Data, Sample
from .listing import Member, Streamed
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
    """What was found. images: how many were looked at."""

    classes: tuple[str, ...]
    train: int
    val: int
    findings: tuple[Finding, ...]

    @property
    def images(self) -> int:
        return self.train + self.val

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes), "train": self.train, "val": self.val,
            "findings": [
                {"what": f.what, "text": f.text, "names": list(f.names)} for f in self.findings
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        head = (
            f"{len(self.classes)} classes, {self.train} images to train on, {self.val} to validate"
        )
        return "\n".join([head, *(f.text for f in self.findings)] if self.findings else [
            f"{head}: nothing is wrong"
        ])  # fmt: skip


def check(
    source: object,
    val: object = None,
    *,
    size: int = 224,
    strict: bool = False,
) -> Check:
    """Every image is decoded and compared; source and val as for `verydeep.training.data.labelled.find`.

    size: pixels a side of the network's input; smaller images are told of. strict: what is found is an
    error.
    Raises DataError as `find` does, and where `strict` finds anything.
    """
    if is_stream(source) or is_stream(val):
        raise DataError(
            "a check compares images in any order, which a stream cannot give; fetch some shards, and give "
            "their path"
        )
    found = labelled.find(source, val)
    result = Check(
        found.classes, len(found.train), len(found.val),
        (*_warned(found), *_findings(found, size, thorough=True)),
    )  # fmt: skip
    if strict and result.findings:
        raise DataError("; ".join(f.text for f in result.findings))
    return result


def looked_over(found: Data, size: int, *, thorough: bool = False) -> tuple[str, ...]:
    """Lines on what can be seen without decoding: doubles by content, sizes, balance.

    thorough: on everything that `check` finds.
    Nothing of a set that is streamed is read, nor, unless thorough, of one of more than 2 GiB.
    """
    every = (*found.train, *found.val)
    large = not thorough and sum(_size_bytes(s) for s in every) > QUICK_BYTES
    if large or any(isinstance(s.source, Streamed) for s in every):
        return tuple(f.text for f in _lopsided(found))
    return tuple(f.text for f in _findings(found, size, thorough=thorough))


@dataclass(frozen=True, eq=False)
class _Seen:
    digest: bytes
    width: int
    height: int
    bits: int
    thumb: NDArray[np.uint8] | None
    error: str = ""


def _findings(found: Data, size: int, *, thorough: bool) -> Iterator[Finding]:
    samples = (*found.train, *found.val)
    with ThreadPoolExecutor(cores()) as pool:
        results = pool.map(lambda s: _look(s, thorough), samples)
        seen = list(stage(results, "looking at images", "image", len(samples)))
    broken = [(s, one.error) for s, one in zip(samples, seen, strict=True) if one.error]
    if broken:
        yield Finding(
            "unreadable",
            f"{_images(len(broken))} cannot be read: {some([error for _, error in broken])}",
            tuple(s.name for s, _ in broken),
        )
    yield from _lopsided(found)
    train, val = seen[: len(found.train)], seen[len(found.train) :]
    yield from _doubles(found, train, val)
    if thorough:
        yield from _near_doubles(found, train, val)
    small = [
        f"{s.name} ({one.width}x{one.height})"
        for s, one in zip(samples, seen, strict=True)
        if not one.error and min(one.width, one.height) < size
    ]
    if small:
        yield Finding(
            "small",
            f"{_images(len(small))} smaller than the {size} pixels of the network's input: "
            f"{some(small)}",
            tuple(small),
        )


def _look(sample: Sample, thorough: bool) -> _Seen:
    try:
        content = labelled.open(sample)
        if isinstance(content, np.ndarray):
            digest = hashlib.blake2b(content.tobytes(), digest_size=16).digest()
            height, width = content.shape[:2]
            if not thorough:
                return _Seen(digest, width, height, 0, None)
        else:
            content = Path(content).read_bytes() if isinstance(content, str) else content
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if not thorough:
                with suppress(ValueError), Image.open(io.BytesIO(content)) as photo:
                    return _Seen(digest, *photo.size, 0, None)
        picture = decode(content)
    except (ImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        text = str(error).replace("<bytes>", sample.name)
        if isinstance(error, UnidentifiedImageError):
            text = "not an image that can be read"
        return _Seen(b"", 0, 0, 0, None, text if sample.name in text else f"{sample.name}: {text}")
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.rint(picture).astype(np.uint8))
    grey = picture.convert("L")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(int)
    packed = np.packbits(cells[:, 1:] > cells[:, :-1])
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX))
    return _Seen(digest, *picture.size, int.from_bytes(packed.tobytes()), thumb)


def _warned(found: Data) -> Iterator[Finding]:
    for line in found.warnings:
        yield Finding("classes", line)


def _lopsided(found: Data) -> Iterator[Finding]:
    counts = found.counts()
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] > IMBALANCE * counts[least]:
        yield Finding(
            "imbalance",
            f"{counts[most]} images of {found.classes[most]}, and {counts[least]} of "
            f"{found.classes[least]}; the recipes with a loop make up for it with --set balance=weights",
            (found.classes[most], found.classes[least]),
        )


def _doubles(found: Data, train: list[_Seen], val: list[_Seen]) -> Iterator[Finding]:
    groups: dict[bytes, list[tuple[str, Sample]]] = defaultdict(list)
    for part, samples, seen in (("train", found.train, train), ("val", found.val, val)):
        for sample, one in zip(samples, seen, strict=True):
            if not one.error:
                groups[one.digest].append((part, sample))
    across, within, at_odds = [], [], []
    for group in groups.values():
        if len(group) < 2:
            continue
        names = " = ".join(sample.name for _, sample in group[:3])
        if len({part for part, _ in group}) == 2:
            across.append(names)
        else:
            within.append(names)
        if len({sample.label for _, sample in group}) > 1:
            at_odds.append(names)
    if across:
        yield Finding(
            "doubles across",
            f"{_images(len(across))} to validate with {_are(across)} there to train on as well, so that "
            f"accuracy is flattered: {some(across)}",
            tuple(across),
        )
    if within:
        yield Finding(
            "doubles within", f"{_images(len(within))} {_are(within)} there twice or more: {some(within)}",
            tuple(within),
        )  # fmt: skip
    if at_odds:
        yield Finding(
            "labels at odds",
            f"{_images(len(at_odds))} {_are(at_odds)} of two classes at once: {some(at_odds)}",
            tuple(at_odds),
        )


def _near_doubles(found: Data, train: list[_Seen], val: list[_Seen]) -> Iterator[Finding]:
    """Images to validate that look like one to train on, without being the same file."""
    if len(train) * len(val) > MOST_PAIRS or not val:
        return
    bits = np.array([one.bits for one in train], np.uint64)
    near = []
    pairs = zip(found.val, val, strict=True)
    for sample, one in stage(pairs, "comparing images", "image", len(val)):
        if one.thumb is None:
            continue
        close = np.flatnonzero(np.bitwise_count(bits ^ np.uint64(one.bits)) <= NEAR_BITS)
        for at in close:
            other = train[at]
            if other.thumb is None or other.digest == one.digest:
                continue
            gap = np.abs(other.thumb.astype(int) - one.thumb).mean()
            if gap <= NEAR_LEVELS:
                near.append(f"{sample.name} ~ {found.train[at].name}")
                break
    if near:
        yield Finding(
            "near-doubles across",
            f"{_images(len(near))} to validate with {'looks' if len(near) == 1 else 'look'} like one to "
            f"train on: {some(near)}",
            tuple(near),
        )


def _size_bytes(sample: Sample) -> int:
    source = sample.source
    if isinstance(source, Member | Streamed):
        return source.size_bytes
    if isinstance(source, str):
        return os.path.getsize(source) if os.path.exists(source) else 0
    return source.nbytes if isinstance(source, np.ndarray) else len(source)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
