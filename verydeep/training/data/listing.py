"""List the labelled images that a folder, an archive, a table or an array holds, without decoding one.

Every form gives the same `Item`s, whose sources are read later, by any thread and in any order: what lies
in a tar is read at its offset, so that nothing is ever unpacked.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, nearest
from ...files import photo_paths
from ...files.photo_paths import IMAGE_SUFFIXES, composed, is_hidden, is_photo, walked
from . import shards as remote
from .layout import PARTS, Place, part_of, tops

# What people call the columns of a table; one of another name is found by what stands in it.
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name",
    "image_id", "img", "photo",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
PART_COLUMNS = ("split", "part", "set", "subset")
INDEX_COLUMNS = ("", "index", "unnamed: 0")  # as pandas writes them
DELIMITERS = ",;\t|"
UNREADABLE = (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError)
IsClass: TypeAlias = Callable[[str], bool]


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
    """One labelled image. part: "train", "val", "test", or "" where the data is not divided.

    label: as one line of text in NFC, whichever way a disk spells it.
    """

    part: str
    label: str
    name: str
    source: Source
    size_bytes: int


@dataclass
class Listing:
    """What a data set holds. classes: in the set's own order, empty where it has none.

    empty: class folders without an image, as (part, label). loose: images that lie in no class folder.
    unused: of the files in class folders that are no images, how many have each ending.
    """

    items: list[Item] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    empty: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


def listed(data: object, is_class: IsClass = lambda _: False) -> Listing:
    """The listing of a folder, tar, zip, CSV, .npz, WebDataset shards (files or URLs), torchvision's sets.

    is_class: of a folder's name, where a model says which classes there are. Raises DataError where it is
    none of these, cannot be read, or may mean two things.
    """
    if not isinstance(data, str | os.PathLike):
        return _torchvision(data)
    if remote.is_stream(data):
        return _streamed(remote.expanded(os.fspath(data)))
    shards = _shards(os.fspath(data))
    if shards:
        return _webdataset(shards)
    path = Path(data)
    if os.path.isdir(path):  # pathlib's raises for names that no disk takes
        return _folder(path, is_class)
    if not os.path.exists(path):
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
            return _zip(path, is_class)
        if tarfile.is_tarfile(path):
            return _tar(path, is_class)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(
        f"{path}: not a data set that is known; expected a folder, tar or zip of class folders, a CSV "
        "of paths and labels, an .npz of images, or WebDataset shards"
    )


# Folders and archives


class _Held:
    """What lies in a folder or an archive, by names with "/"; what is hidden is left out."""

    def __init__(self, what: Path) -> None:
        self.what = str(what)
        self.files: list[tuple[str, Source, int]] = []
        self.others: list[str] = []  # no images
        self.folders: list[str] = []

    def add(self, name: str, source: Source, size: int, first: Callable[[], bytes]) -> None:
        """A file. first: reads its first bytes."""
        if any(map(is_hidden, PurePosixPath(name).parts)):
            return
        if is_photo(name, first):
            self.files.append((name, source, size))
        else:
            self.others.append(name)

    def add_folder(self, name: str) -> None:
        if not any(map(is_hidden, PurePosixPath(name).parts)):
            self.folders.append(name)

    def arranged(self, is_class: IsClass) -> Listing:
        """Files named [part/]class/.../file to items; folders above all of them are ignored."""
        ways = [_way(name) for name, _, _ in self.files]
        found = tops(self.what, ways, is_class)

        def placed(way: Place) -> tuple[str, str] | None:
            """Part and class."""
            for part, top in found.values():
                if way[: len(top)] == top and len(way) > len(top) + 1:
                    return part, way[len(top)]
            return None

        listing = Listing()
        seen = set()
        for (name, source, size), way in zip(self.files, ways, strict=True):
            place = placed(way)
            if place is None:
                listing.loose.append(_as_text(name))
            else:
                seen.add(place)
                listing.items.append(Item(*place, _as_text(name), source, size))
        others = [_way(name) for name in self.others]
        folders = {placed((*_way(name), "file")) for name in self.folders} | set(
            map(placed, others)
        )
        listing.empty = sorted(place for place in folders if place and place not in seen)
        listing.unused = Counter(
            photo_paths.ending(way[-1])
            for way in others
            if not listing.items or placed(way) is not None
        )
        return listing


def _way(name: str) -> Place:
    return PurePosixPath(composed(_as_text(name))).parts


def _folder(path: Path, is_class: IsClass) -> Listing:
    held = _Held(path)
    for parent, folders, names in walked(path):
        relative = Path(parent).relative_to(path)
        for name in folders:
            held.add_folder((relative / name).as_posix())
        for name in names:
            full = os.path.join(parent, name)
            held.add(
                (relative / name).as_posix(), full, _size(full), partial(photo_paths.head, full)
            )
    return held.arranged(is_class)


def _size(path: str) -> int:
    """In bytes; 0 of a broken link, which whoever reads it says."""
    return os.stat(path).st_size if os.path.exists(path) else 0


def _zip(path: Path, is_class: IsClass) -> Listing:
    held = _Held(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if not info.flag_bits & 0x800:  # nothing says that it is UTF-8, which macOS writes
                with suppress(UnicodeError):
                    name = name.encode("cp437").decode()
            name = name.replace("\\", "/")  # from Windows
            if name.endswith("/"):
                held.add_folder(name)
            else:
                member = Member(str(path), info.filename, -1, info.file_size)
                held.add(name, member, info.file_size, partial(_zip_head, archive, info))
    held.files.sort(key=_name)
    return held.arranged(is_class)


def _zip_head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with suppress(*UNREADABLE, RuntimeError), archive.open(info) as file:  # it may want a password
        return file.read(64)
    return b""


def _tar(path: Path, is_class: IsClass) -> Listing:
    """Links, hard or symbolic, are the file that they name; one that leads nowhere has no bytes."""
    held = _Held(path)
    plain = _is_plain(path)
    files: dict[str, tuple[Source, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for info in archive:
            name = posixpath.normpath(info.name)
            if info.isdir():
                held.add_folder(name)
            elif info.islnk():
                links[name] = posixpath.normpath(info.linkname)
            elif info.issym():
                links[name] = posixpath.normpath(f"{posixpath.dirname(name)}/{info.linkname}")
            elif info.isfile():
                source: Source = Member(str(path), info.name, info.offset_data, info.size)
                if not plain and is_photo(name, lambda: b"GIF8"):
                    # it may be an image, and there is no jumping about in a compressed stream
                    content = archive.extractfile(info)
                    assert content is not None  # it is for a regular file
                    source = content.read()
                files[name] = source, info.size
    for name in (*files, *links):
        target, steps = name, len(links)
        while target not in files and target in links and steps:
            target, steps = links[target], steps - 1
        source, size = files.get(target, (b"", 0))
        held.add(name, source, size, partial(_tar_head, source))
    held.files.sort(key=_name)
    return held.arranged(is_class)


def _tar_head(source: Source) -> bytes:
    if not isinstance(source, Member):
        assert isinstance(source, bytes)
        return source[:64]
    with open(source.archive, "rb") as file:
        file.seek(source.offset)
        return file.read(min(64, source.size_bytes))


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _name(file: tuple[str, Source, int]) -> str:
    return file[0]


def _as_text(name: str) -> str:
    """A name as every file can hold it: bytes that are no UTF-8, as old archives have, are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()


# Tables


def _table(path: Path) -> Listing:
    """Rows of path, label and perhaps split; the first row may name them. Paths are the table's own."""
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path}: is empty; expected rows of a path and a label")
    photos = _Photos(path.parent)
    at, headed = _columns(path, rows, photos)
    listing = Listing()
    missing = []
    for number, row in rows[headed:]:
        cells = [row[i] if i is not None and i < len(row) else "" for i in at]
        file, label, part = cells[0], *map(str.strip, cells[1:])
        if not file or not label:
            raise DataError(f"{path}, line {number}: {row!r}; expected a path and a label")
        if part and not part_of(part):
            raise DataError(
                f"{path}, line {number}: split {part!r}{nearest(part.lower(), ('train', 'val', 'test'))}"
            )
        full = photos.find(file)
        if full is None:
            missing.append(f"line {number}: {file}")
            full = os.path.join(path.parent, file)
        label = composed(_as_text(label))
        listing.items.append(Item(part_of(part), label, _as_text(file), full, _size(full)))
    if len(missing) == len(listing.items):
        raise DataError(
            f"{path}: not one of {len(missing)} photos is there ({', '.join(missing[:1])}); expected paths "
            f"as seen from {path.parent}, or names that only one photo in it has"
        )
    return listing


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and cells, cut where that makes all rows alike; rows without any text are left out."""
    content = path.read_bytes()
    try:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Excel writes Unicode text
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    ways = []
    for delimiter in sorted(
        DELIMITERS, key=lambda d: (d == "\t") != (path.suffix.lower() == ".tsv")
    ):
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            ways.append([(reader.line_num, row) for row in reader if any(map(str.strip, row))])
        except csv.Error as error:
            raise DataError(
                f"{path}: no table: {error}; expected rows of a path and a label"
            ) from error
    for rows in ways:
        widths = {len(row) for _, row in rows}
        if len(widths) == 1 and widths != {1}:
            return rows
    return ways[0]


def _columns(
    path: Path, rows: list[tuple[int, list[str]]], photos: _Photos
) -> tuple[list[int | None], bool]:
    """Where path, label and part stand, and whether the first row names them."""
    first = rows[0][1]
    named = [cell.strip().lower() for cell in first]
    at = [_column(named, known) for known in (PATH_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)]
    if at[0] is None:  # no usual name: the column in which photos are
        few = [row for _, row in rows[1:4]]
        found = (i for i in range(len(first)) if any(photos.find(*row[i : i + 1]) for row in few))
        at[0] = next(found, None)
        if at[0] is None or photos.find(first[at[0]]):
            return [at[0] or 0, 0 if at[0] else 1, None], False
    rest = [i for i, name in enumerate(named) if i not in at and name not in INDEX_COLUMNS]
    if at[1] is None and len(rest) == 1:
        at[1] = rest[0]
    if at[1] is None:
        raise DataError(
            f"{path}: no column of labels among {', '.join(named)}; expected one named "
            f"{' or '.join(LABEL_COLUMNS)}"
        )
    return at, True


def _column(named: list[str], known: Iterable[str]) -> int | None:
    return next((named.index(name) for name in known if name in named), None)


class _Photos:
    """The photos that a table means: as written, or with backslashes, or without their ending or folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, str | None] | None = None  # None for what several have

    def find(self, cell: str = "") -> str | None:
        """The path of a photo; None where there is none, or several."""
        plain = cell.strip()
        for name in (cell, plain, plain.replace("\\", "/")):
            full = os.path.join(self.folder, name)
            if name and os.path.isfile(full):
                return full
        if self._names is None:
            self._names = {}
            for parent, _, files in walked(self.folder):
                for file in files:
                    self._know(os.path.join(parent, file))
        return self._names.get(composed(plain.replace("\\", "/")))

    def _know(self, full: str) -> None:
        assert self._names is not None
        if is_photo(full, lambda: b""):
            way = composed(Path(full).relative_to(self.folder).as_posix())
            file = posixpath.basename(way)
            for name in {posixpath.splitext(way)[0], file, posixpath.splitext(file)[0]} - {way}:
                self._names[name] = None if name in self._names else full


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
            name = _as_text(str(path))
            listing.items.append(Item("", classes[label], name, str(path), _size(str(path))))
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
    return listing


def _streamed(urls: list[str]) -> Listing:
    listing = Listing()
    for url, held in zip(urls, remote.listings(urls), strict=True):
        for entry in held:
            source = Streamed(url, entry.name, entry.size_bytes)
            name = f"{os.path.basename(url)}/{entry.name}"
            listing.items.append(Item("", entry.label, name, source, entry.size_bytes))
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
