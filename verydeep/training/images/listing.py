"""List the labelled images that a folder, an archive, a table or an array holds, without decoding one.

Every form gives the same `Item`s, whose sources are read later, by any thread and in any order: what lies
in a tar is read at its offset, so that nothing is ever unpacked.
"""

from __future__ import annotations

import csv
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, nearest
from ...files.photo_paths import IMAGE_SUFFIXES
from . import shards as remote

# What people call the parts of a data set, and what we call them. "test" validates where "val" is not.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
PATH_COLUMNS = ("path", "file", "filename", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "target", "category")
PART_COLUMNS = ("split", "part", "set", "subset")


@dataclass(frozen=True)
class Member:
    """A file inside an archive. offset: of its bytes in a plain tar; -1 where the archive unpacks it."""

    archive: str
    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Streamed:
    """A file in a shard that lies elsewhere. shard: its URL, which is read from its beginning on."""

    shard: str
    name: str
    size_bytes: int


Source: TypeAlias = str | bytes | Member | Streamed | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Item:
    """One labelled image. part: "train", "val", "test", or "" where the data is not divided."""

    part: str
    label: str
    name: str
    source: Source
    size_bytes: int


@dataclass
class Listing:
    """What a data set holds. classes: in the set's own order, empty where it has none.

    empty: class folders without an image, as (part, label). loose: images that lie in no class folder.
    """

    items: list[Item] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    empty: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)


def listed(data: object) -> Listing:
    """The listing of a folder, tar, zip, CSV, .npz, WebDataset shards (files or URLs), torchvision's sets.

    Raises DataError where it is none of these, or cannot be read.
    """
    if not isinstance(data, str | os.PathLike):
        return _torchvision(data)
    if remote.is_stream(data):
        return _streamed(remote.expanded(os.fspath(data)))
    shards = _shards(os.fspath(data))
    if shards:
        return _webdataset(shards)
    path = Path(data)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; expected a folder, tar or zip of class folders, a CSV "
            "of paths and labels, an .npz of images, or WebDataset shards"
        )
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return _table(path)
        if path.suffix.lower() == ".npz":
            return _arrays(path)
        if zipfile.is_zipfile(path):
            return _zip(path)
        if tarfile.is_tarfile(path):
            return _tar(path)
    except (
        OSError,
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        LZMAError,
    ) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(
        f"{path}: not a data set that is known; expected a folder, tar or zip of class folders, a CSV "
        "of paths and labels, an .npz of images, or WebDataset shards"
    )


# Folders and archives


def _folder(path: Path) -> Listing:
    files: list[tuple[str, Source, int]] = []
    folders: list[str] = []
    for parent, inside, names in os.walk(path, followlinks=True):
        inside[:] = sorted(n for n in inside if not n.startswith(".") and not _is_loop(parent, n))
        relative = Path(parent).relative_to(path)
        folders += [(relative / name).as_posix() for name in inside]
        for name in sorted(filter(_counts, names)):
            full = os.path.join(parent, name)
            try:
                size = os.stat(full).st_size
            except OSError:
                size = 0  # a broken link: reading it says so
            files.append(((relative / name).as_posix(), full, size))
    return _arranged(files, folders)


def _is_loop(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in, which would be walked through for ever."""
    full = os.path.join(parent, name)
    return os.path.islink(full) and Path(os.path.realpath(parent)).is_relative_to(
        os.path.realpath(full)
    )


def _zip(path: Path) -> Listing:
    files: list[tuple[str, Source, int]] = []
    folders = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                folders.append(info.filename.rstrip("/"))
            elif _counts(info.filename):
                member = Member(str(path), info.filename, -1, info.file_size)
                files.append((info.filename, member, info.file_size))
    return _arranged(sorted(files, key=_name), folders)


def _tar(path: Path) -> Listing:
    files: list[tuple[str, Source, int]] = []
    folders = []
    with tarfile.open(path) as archive:
        plain = _is_plain(path)
        for info in archive:
            name = PurePosixPath(info.name).as_posix()
            if info.isdir():
                folders.append(name)
            elif info.isfile() and _counts(name):
                source: Source = Member(str(path), info.name, info.offset_data, info.size)
                if not plain:  # there is no jumping about in a compressed stream
                    content = archive.extractfile(info)
                    assert content is not None  # it is for a regular file
                    source = content.read()
                files.append((name, source, info.size))
    return _arranged(sorted(files, key=_name), folders)


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _name(file: tuple[str, Source, int]) -> str:
    return file[0]


def _counts(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _arranged(files: list[tuple[str, Source, int]], folders: Iterable[str]) -> Listing:
    """Files named [part/]class/.../file to items; folders above all of them are ignored."""
    files = [(_as_text(name), source, size) for name, source, size in files]
    folders = map(_as_text, folders)
    paths = [PurePosixPath(name).parts for name, _, _ in files]
    directories = {PurePosixPath(name).parts for name in folders}
    directories |= {parts[:depth] for parts in paths for depth in range(1, len(parts))}
    top: tuple[str, ...] = ()
    while True:  # down through folders that hold nothing but one folder of folders
        below = {d[: len(top) + 1] for d in directories if len(d) > len(top) and _in(d, top)}
        loose = any(len(parts) == len(top) + 1 and _in(parts, top) for parts in paths)
        only = next(iter(below)) if len(below) == 1 and not loose else None
        if only is None or not any(len(d) > len(only) and _in(d, only) for d in directories):
            break
        if only[-1].lower() in PARTS:
            break
        top = only
    here = {d[len(top)] for d in directories if len(d) > len(top) and _in(d, top)}
    divided = bool(here) and all(name.lower() in PARTS for name in here)
    listing = Listing()
    seen = set()
    for (name, source, size), parts in zip(files, paths, strict=True):
        inner = parts[len(top) :]
        part = PARTS[inner[0].lower()] if divided and len(inner) > 1 else ""
        inner = inner[1:] if part else inner
        if len(inner) < 2:
            listing.loose.append(name)
            continue
        seen.add((part, inner[0]))
        listing.items.append(Item(part, inner[0], name, source, size))
    depth = len(top) + (2 if divided else 1)
    for folder in sorted(d for d in directories if len(d) == depth and _in(d, top)):
        part = PARTS[folder[len(top)].lower()] if divided else ""
        if (part, folder[-1]) not in seen:
            listing.empty.append((part, folder[-1]))
    return listing


def _as_text(name: str) -> str:
    """A name as every file can hold it: bytes that are no UTF-8, as old archives have, are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _in(parts: tuple[str, ...], top: tuple[str, ...]) -> bool:
    return parts[: len(top)] == top


# Tables


def _table(path: Path) -> Listing:
    """Rows of path, label and perhaps split; the first row may name them. Paths are the table's own."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    if not rows:
        raise DataError(f"{path}: is empty; expected rows of a path and a label")
    at: list[int | None] = [0, 1, None]
    named = [cell.strip().lower() for cell in rows[0]]
    columns = [_column(named, known) for known in (PATH_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)]
    if columns[0] is not None:
        if columns[1] is None:
            raise DataError(
                f"{path}: no column of labels among {', '.join(named)}; expected one named "
                f"{' or '.join(LABEL_COLUMNS)}"
            )
        at, rows = columns, rows[1:]
    listing = Listing()
    for number, row in enumerate(rows, 1 + (at is columns)):
        cells = [row[i].strip() if i is not None and i < len(row) else "" for i in at]
        file, label, part = cells
        if not file or not label:
            raise DataError(f"{path}, line {number}: {row!r}; expected a path and a label")
        if part and part.lower() not in PARTS:
            raise DataError(
                f"{path}, line {number}: split {part!r}{nearest(part.lower(), ('train', 'val', 'test'))}"
            )
        full = os.path.join(path.parent, file)
        size = os.stat(full).st_size if os.path.exists(full) else 0
        listing.items.append(Item(PARTS.get(part.lower(), ""), label, file, full, size))
    return listing


def _column(named: list[str], known: Iterable[str]) -> int | None:
    return next((named.index(name) for name in known if name in named), None)


# Arrays


def _arrays(path: Path) -> Listing:
    """An .npz of train_images (n, h, w, c) uint8, train_labels, val_ or test_ ones, and classes."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: not an .npz, or one that was cut short; expected what numpy.savez writes"
        )
    with np.load(path, allow_pickle=False) as file:
        try:
            held = {name: file[name] for name in file.files}
        except ValueError as error:
            raise DataError(f"{path}: {error}; expected plain arrays, no objects") from error
    if "images" in held and "labels" in held:
        held |= {"all_images": held["images"], "all_labels": held["labels"]}
    listing = Listing()
    if "classes" in held:
        listing.classes = tuple(str(name) for name in held["classes"])
    for prefix, part in (("all", ""), *PARTS.items()):
        images, labels = held.get(f"{prefix}_images"), held.get(f"{prefix}_labels")
        if images is None and labels is None:
            continue
        if images is None or labels is None or len(images) != len(labels):
            raise DataError(
                f"{path}: {prefix}_images and {prefix}_labels; expected both, one label an image"
            )
        if labels.ndim != 1:
            raise DataError(
                f"{path}: {prefix}_labels is {labels.shape}; expected ({len(labels)},), a label an image"
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                f"{path}: {prefix}_images is {images.dtype} {images.shape}; expected uint8 "
                "(n, height, width, 3 or 1)"
            )
        _add_array(listing, str(path), part, images, labels)
    if not listing.items:
        raise DataError(
            f"{path}: holds {', '.join(held) or 'nothing'}; expected train_images (n, height, width, "
            "3) uint8, train_labels (n,), and perhaps val_images, val_labels and classes"
        )
    return listing


def _add_array(
    listing: Listing, what: str, part: str, images: NDArray[Any], labels: Iterable[Any]
) -> None:
    size = int(images[0].nbytes) if len(images) else 0
    for index, label in enumerate(labels):
        text = str(label)
        if listing.classes and isinstance(label, int | np.integer):
            if not 0 <= label < len(listing.classes):
                raise DataError(
                    f"{what}: label {label} of image {index}; expected 0 to {len(listing.classes) - 1}"
                )
            text = listing.classes[label]
        name = f"{part or 'image'} {index}"
        listing.items.append(Item(part, text, name, images[index], size))


def _torchvision(data: Any) -> Listing:
    """A data set of torchvision: CIFAR10 and CIFAR100 (arrays), ImageFolder and ImageNet (paths)."""
    names = getattr(data, "classes", None)
    if names is None:
        raise DataError(
            f"{type(data).__name__} is no data set that is known; expected a path, or torchvision's "
            "CIFAR10, CIFAR100, ImageFolder or ImageNet"
        )
    # ImageNet gives each class several names: ("tench", "Tinca tinca")
    classes = tuple(name if isinstance(name, str) else str(name[0]) for name in names)
    classes = tuple(map(_as_text, classes))
    if len(set(classes)) != len(classes):  # ImageNet has two cranes and two maillots
        classes = tuple(f"{name} {i}" for i, name in enumerate(classes))
    listing = Listing(classes=classes)
    if hasattr(data, "samples"):
        for path, label in data.samples:
            size = os.stat(path).st_size if os.path.exists(path) else 0
            listing.items.append(Item("", classes[label], _as_text(str(path)), str(path), size))
    elif hasattr(data, "data") and hasattr(data, "targets"):
        images = np.asarray(data.data)
        images = images[..., None] if images.ndim == 3 else images
        _add_array(listing, type(data).__name__, "", images, [int(t) for t in data.targets])
    else:
        raise DataError(
            f"{type(data).__name__} has neither samples nor data and targets; expected torchvision's "
            "CIFAR10, CIFAR100, ImageFolder or ImageNet"
        )
    return listing


# WebDataset shards: a sample is the members of one stem, "0001.jpg" with "0001.cls"


def _shards(data: str) -> list[str]:
    """The files of "train-{000000..000099}.tar"; empty where the name has no such braces."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", data)
    if not found:
        return []
    before, first, last, after = found.groups()
    names = [
        f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)
    ]
    missing = [name for name in names if not os.path.exists(name)]
    if missing:
        raise DataError(f"{data}: {len(missing)} of {len(names)} shards are missing: {missing[0]}")
    return names


def _webdataset(shards: list[str]) -> Listing:
    listing = Listing()
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:
                listing.items += _samples(shard, archive)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard}: cannot be read as a shard, a plain tar: {error}") from error
    return _numbered(listing)


def _streamed(urls: list[str]) -> Listing:
    listing = Listing()
    for url, held in zip(urls, remote.listings(urls), strict=True):
        for entry in held:
            source = Streamed(url, entry.name, entry.size_bytes)
            name = f"{os.path.basename(url)}/{entry.name}"
            listing.items.append(Item("", entry.label, name, source, entry.size_bytes))
    return _numbered(listing)


def _numbered(listing: Listing) -> Listing:
    """Labels that are numbers, so that they are sorted as numbers."""
    if all(item.label.isdecimal() for item in listing.items):
        width = max((len(item.label) for item in listing.items), default=0)
        listing.items = [replace(item, label=item.label.zfill(width)) for item in listing.items]
    return listing


def _samples(shard: str, archive: tarfile.TarFile) -> Iterator[Item]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    for info in archive:
        folder, _, file = info.name.rpartition("/")
        stem, dot, suffix = file.partition(".")  # the folders may have dots of their own
        stem = f"{folder}/{stem}" if folder else stem
        if not info.isfile() or not dot:
            continue
        if suffix.lower() == "cls" or (suffix.lower() == "txt" and stem not in labels):
            content = archive.extractfile(info)
            assert content is not None  # it is for a regular file
            try:
                labels[stem] = content.read().decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{shard}: {info.name} is no text in UTF-8; expected a label"
                ) from error
        elif f".{suffix.lower()}" in IMAGE_SUFFIXES:
            images[stem] = info
    for stem, info in images.items():
        if stem not in labels:
            raise DataError(f"{shard}: {info.name} has no {stem}.cls beside it, which is its label")
        member = Member(shard, info.name, info.offset_data, info.size)
        yield Item("", labels[stem], f"{os.path.basename(shard)}/{info.name}", member, info.size)
