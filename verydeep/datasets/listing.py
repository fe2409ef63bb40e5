"""List the labelled images that a folder, an archive or a table holds, without decoding one.

Every form gives the same `Item`s, whose sources are read later, by any thread and in any order: what lies
in a tar is read at its offset, so that nothing is ever unpacked.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from lzma import LZMAError
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ..errors import DataError, warn_once
from ..files.photo_paths import (
    HEIF_SUFFIXES,
    PICTURES,
    composed,
    ending,
    is_hidden,
    is_photo,
    is_read,
    walked,
)
from . import shards as remote
from .items import Item, Listing, Member, Source, Streamed, as_text, beginning
from .layout import Place, tops
from .objects import arrays, held_by
from .tables import table

__all__ = ["Item", "Listing", "Member", "Source", "Streamed", "listed"]

UNREADABLE = (  # a UnicodeError: of a zip that says that its names are UTF-8
    OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, UnicodeError,
)  # fmt: skip
EXPECTED = (
    "expected a folder, tar or zip of class folders, a CSV of paths and labels, an .npz of images, or "
    "WebDataset shards"
)
TABLES = (".csv", ".tsv")
IsClass: TypeAlias = Callable[[str], bool]


def listed(
    data: object, is_class: IsClass = lambda _: False, *, multi: bool | None = None
) -> Listing:
    """The listing of a folder, tar, zip, CSV, .npz, WebDataset shards (files or URLs), or a Python object.

    is_class: of a folder's name, or a label of a CSV, where a model says which classes there are. multi: of
    a CSV, whether a photo may have several labels; None: as it looks. Raises DataError where it is none of
    these, cannot be read, or may mean two things.
    """
    if not isinstance(data, str | os.PathLike):
        return held_by(data)
    if not os.fspath(data):  # pathlib's would be the folder one is in
        raise DataError(f"the name of a data set is empty; {EXPECTED}")
    if remote.is_stream(data):
        return _streamed(remote.expanded(os.fspath(data)))
    if files := shards(os.fspath(data)):
        return _webdataset(files)
    path = Path(data)
    if not os.path.exists(path):  # pathlib's raises for names that no disk takes
        raise DataError(f"{path}: no such file or folder; {EXPECTED}")
    held = _held(path)
    if held is not None:
        return held.arranged(is_class)
    try:
        if path.suffix.lower() in TABLES:
            return table(path, multi, is_class)
        if path.suffix.lower() == ".npz":
            return arrays(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(f"{path}: not a data set that is known; {EXPECTED}")


def files_of(path: str) -> list[tuple[str, Source]]:
    """The images of a folder, an archive or shards, whatever their classes; none of another form."""
    held = [_held(Path(one)) for one in shards(path) or [path]]
    return [file for one in held if one for file in one.files]


# Folders and archives


class _Held:
    """What lies in a folder or an archive, by names with "/"; what is hidden is left out.

    entries: names, each with its source, or without one a folder.
    """

    def __init__(self, what: Path, entries: Iterable[tuple[str, Source | None]]) -> None:
        self.what = str(what)
        self.files: list[tuple[str, Source]] = []
        self.others: list[str] = []  # no images
        self.folders: list[str] = []
        ways = [(PurePosixPath(name).parts, name, source) for name, source in entries]
        # the folders on the way to all of them, which may be hidden: those of `tar -P`
        above = len(
            os.path.commonprefix(  # noqa: RUF071  # of tuples
                [way[:-1] for way, _, source in ways if source is not None]
            )
        )
        for way, name, source in ways:
            if any(map(is_hidden, way[above:])):
                continue
            if source is None:
                self.folders.append(name)
            elif is_photo(name, partial(beginning, source, 64)):
                self.files.append((name, source))
            else:
                self.others.append(name)

    def arranged(self, is_class: IsClass) -> Listing:
        """Files named [part/]class/.../file to items; folders above all of them are ignored."""
        ways = [_way(name) for name, _ in self.files]
        found = tops(self.what, ways, is_class)

        def placed(way: Place) -> tuple[str, str] | None:
            """Part and class."""
            for part, top in found.values():
                if way[: len(top)] == top and len(way) > len(top) + 1:
                    return part, way[len(top)]
            return None

        listing, seen = Listing(), set()
        for (name, source), way in zip(self.files, ways, strict=True):
            if place := placed(way):
                seen.add(place)
                listing.add(place[0], place[1:], name, source)
            else:
                listing.loose.append(as_text(name))
        others = [_way(name) for name in self.others]
        places = {placed(way) for way in (*others, *(_way(f"{n}/file") for n in self.folders))}
        listing.empty = sorted(place for place in places if place and place not in seen)
        listing.unused = Counter(ending(way[-1]) for way in others)
        tables = (
            os.path.join(self.what, name) for name in self.others if name.lower().endswith(TABLES)
        )
        listing.table = next(filter(os.path.isfile, tables), "")  # none of an archive
        return listing


def _way(name: str) -> Place:
    return PurePosixPath(composed(as_text(name))).parts


def _held(path: Path) -> _Held | None:
    """What lies in a folder or an archive; None of what is neither. DataError where it cannot be read."""
    try:
        if os.path.isdir(path):
            return _Held(path, _folder(path))
        if path.suffix.lower() in (*TABLES, ".npz") or not os.path.isfile(path):
            return None
        if zipfile.is_zipfile(path):
            return _Held(path, sorted(_zip(path), key=itemgetter(0)))
        if tarfile.is_tarfile(path):
            return _Held(path, sorted(_tar(path), key=itemgetter(0)))
        return None
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _folder(path: Path) -> Iterator[tuple[str, Source | None]]:
    for parent, folders, names in walked(path):
        relative = Path(parent).relative_to(path)
        for name in folders:
            yield (relative / name).as_posix(), None
        for name in names:
            yield (relative / name).as_posix(), os.path.join(parent, name)


def _zip(path: Path) -> Iterator[tuple[str, Source | None]]:
    """Names that are not said to be UTF-8 are so where all can be, as macOS writes them, else cp437.

    Older programs wrote them in the encoding of their country, which nothing tells: the classes have odd
    names then, the same ones each time.
    """
    with zipfile.ZipFile(path) as archive:
        old = [info.filename for info in archive.infolist() if not info.flag_bits & 0x800]
        texts: dict[str, str] = {}
        try:
            texts |= zip(old, "\0".join(old).encode("cp437").decode().split("\0"), strict=True)
        except UnicodeEncodeError:
            pass  # an entry says its name beside it
        except UnicodeDecodeError:
            odd = next((name for name in old if not posixpath.dirname(name).isascii()), "")
            if odd:
                warn_once(
                    f"{path}: does not say how its names are encoded, such as {odd}; if this one is wrong, "
                    "unpack it with a program that knows, and give the folder"
                )
        # of two with one name the last, as where it is unpacked
        for info in {info.filename: info for info in archive.infolist()}.values():
            name = texts.get(info.filename, info.filename)
            if "/" not in name:  # or it may be half a letter, as in Shift-JIS
                name = name.replace("\\", "/")  # from Windows
            member = Member(str(path), info.filename, -1, info.file_size)
            yield name, None if name.endswith("/") else member


def _tar(path: Path) -> Iterator[tuple[str, Source | None]]:
    """Links, hard or symbolic, are the file that they name; one that leads nowhere has no bytes."""
    files: dict[str, Source] = {}
    links: dict[str, str] = {}
    with tarfile.open(path) as archive:
        plain = isinstance(archive.fileobj, io.BufferedReader)
        for info in archive:
            name = posixpath.normpath(info.name)
            if info.isdir():
                yield name, None
            elif info.islnk():
                links[name] = posixpath.normpath(info.linkname)
            elif info.issym():
                links[name] = posixpath.normpath(f"{posixpath.dirname(name)}/{info.linkname}")
            elif info.isfile():
                files[name] = Member(str(path), info.name, info.offset_data, info.size)
                if not plain and is_photo(name, lambda: b"GIF8"):
                    # it may be an image, and there is no jumping about in a compressed stream
                    files[name] = _content(archive, info)
    for name in (*files, *links):
        target, steps = name, len(links)
        while target not in files and target in links and steps:
            target, steps = links[target], steps - 1
        yield name, files.get(target, b"")


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    assert file is not None  # it is for a regular file
    return file.read()


# WebDataset shards: a sample is the members of one stem, "0001.jpg" with "0001.cls"


def numbered(data: str) -> list[str]:
    """The names of "train-{000000..000099}.tar"; empty where it has no such braces."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", data)
    if not found:
        return []
    before, first, last, after = found.groups()
    return [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]


def shards(data: str) -> list[str]:
    """The files of "train-{000000..000099}.tar"; empty where the name has no such braces."""
    names = numbered(data)
    missing = [name for name in names if not os.path.exists(name)]
    if missing:
        raise DataError(f"{data}: {len(missing)} of {len(names)} shards are missing: {missing[0]}")
    return names


def _webdataset(files: list[str]) -> Listing:
    listing = Listing()
    for shard in files:
        try:
            with tarfile.open(shard, "r:") as archive:
                _add_samples(listing, shard, archive)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard}: cannot be read as a shard, a plain tar: {error}") from error
    return listing


def _streamed(urls: list[str]) -> Listing:
    listing = Listing()
    for url, held in zip(urls, remote.listings(urls), strict=True):
        for name, label, size_bytes in held:
            source = Streamed(url, name, size_bytes, label)
            listing.add("", (label,), f"{os.path.basename(url)}/{name}", source)
    return listing


def _add_samples(listing: Listing, shard: str, archive: tarfile.TarFile) -> None:
    images: list[tuple[str, tarfile.TarInfo]] = []
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for info in archive:
        remote.refuse_twice(shard, info.name, seen)
        folder, _, file = info.name.rpartition("/")
        stem, dot, suffix = file.partition(".")  # the folders may have dots of their own
        stem = f"{folder}/{stem}" if folder else stem
        if not info.isfile() or not dot:
            continue
        if suffix.lower() == "cls" or (suffix.lower() == "txt" and stem not in labels):
            try:
                labels[stem] = _content(archive, info).decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{shard}: {info.name} is no text in UTF-8; expected a label"
                ) from error
        elif is_read(f".{suffix.lower()}"):
            images.append((stem, info))
        elif f".{suffix.lower()}" in PICTURES | HEIF_SUFFIXES:
            listing.unused[f".{suffix.lower()}"] += 1
    for stem, info in images:
        if stem not in labels:
            raise DataError(f"{shard}: {info.name} has no {stem}.cls beside it, which is its label")
        member = Member(shard, info.name, info.offset_data, info.size)
        listing.add("", (labels[stem],), f"{os.path.basename(shard)}/{info.name}", member)
