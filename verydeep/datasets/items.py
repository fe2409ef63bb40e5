"""What a data set is listed as: labelled images, and where each lies until it is read."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from lzma import LZMAError
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engines.forks import Turns
from ..errors import DataError
from ..files.hashes import Stamp, stamp
from ..files.photo_paths import composed, head
from ..preprocess import decoded
from .shards import entries

ASKING = Turns()  # objects of other people, which mostly do not expect several threads
# RuntimeError: it wants a password, or is packed in a way that is not known; KeyError: it is there no more
UNPACKING = (zipfile.BadZipFile, zlib.error, LZMAError, RuntimeError, EOFError, KeyError)
Content: TypeAlias = str | bytes | NDArray[Any]  # what `verydeep.preprocess.decode` takes


@dataclass(frozen=True)
class Member:
    """A file inside an archive. offset: of its bytes in a plain tar; -1 where the archive unpacks it."""

    archive: str
    name: str
    offset: int
    size_bytes: int

    def read(self, most: int = -1) -> bytes:
        """Its bytes, all or the first; OSError where they cannot be unpacked."""
        if self.offset >= 0:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size_bytes if most < 0 else min(most, self.size_bytes))
        try:
            archive = _zip_file(self.archive, os.getpid(), stamp(os.stat(self.archive)))
            with archive.open(self.name) as file:
                return file.read(most)
        except UNPACKING as error:
            raise OSError(f"{self.name}: cannot be unpacked: {error}") from error


@dataclass(frozen=True)
class Streamed:
    """A file in a shard that lies elsewhere. shard: its URL, which is read from its beginning on."""

    shard: str
    name: str
    size_bytes: int
    label: str

    def read(self) -> bytes:
        """For one now and then: its shard is read up to there."""
        with closing(entries(self.shard)) as coming:
            found = next((content for name, _, content in coming if name == self.name), None)
        if found is None:
            raise DataError(f"{self.shard}: holds no {self.name} any more")
        return found


@dataclass(frozen=True, eq=False)
class Brought:
    """An image that a Python object brings: `holder[index][key]`. One thread at a time asks."""

    holder: Any
    index: int
    key: int | str
    size_bytes: int = 0  # which is not known

    def read(self) -> Content:
        """Its file's path or bytes, or (h, w, 3) uint8; OSError where the object fails."""
        try:
            with ASKING.lock:
                image = self.holder[self.index][self.key]
            if isinstance(image, dict):  # of Hugging Face, as stored
                stored: str | bytes = image["bytes"] or image["path"]
                return stored
            floats = "float" in str(getattr(image, "dtype", ""))
            return np.rint(decoded(image, range=(0, 1) if floats else None)).astype(np.uint8)
        except Exception as error:  # the object's own code may raise anything
            text = str(error) or type(error).__name__
            hint = "; leave Normalize out of its transform" if "outside 0 to 1" in text else ""
            raise OSError(f"image {self.index}: {text}{hint}") from error


Source: TypeAlias = Content | Member | Streamed | Brought


def read(source: Source) -> Content:
    """The image that lies there; OSError where it cannot be had."""
    return source.read() if isinstance(source, Member | Streamed | Brought) else source


def beginning(source: Source, most: int) -> bytes:
    """The first bytes of a file or an array; none where they cannot be had."""
    if isinstance(source, Member):
        with suppress(OSError):
            return source.read(most)
    if isinstance(source, np.ndarray):
        return source.reshape(-1)[:most].tobytes()
    if isinstance(source, str):
        return head(source, most)
    return source[:most] if isinstance(source, bytes) else b""


def size_bytes(source: Source) -> int:
    """Of its file or array; 0 where that is not there, or known only when it is read."""
    if isinstance(source, str):
        return os.path.getsize(source) if os.path.exists(source) else 0
    if isinstance(source, bytes):
        return len(source)
    return source.nbytes if isinstance(source, np.ndarray) else source.size_bytes


@lru_cache(8)
def _zip_file(path: str, process: int, written: Stamp) -> zipfile.ZipFile:  # noqa: ARG001
    """process, written: after a fork two would seek in one, and another archive may come to its place."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True, eq=False)
class Item:
    """One labelled image. part: "train", "val", "test", or "" where the data is not divided.

    labels: the names of its classes, one but in a listing that is `multi`.
    """

    part: str
    labels: tuple[str, ...]
    name: str
    source: Source


@dataclass
class Listing:
    """What a data set holds. classes: in the set's own order, empty where it has none.

    multi: whether an image may be of several classes, or of none. empty: class folders, or columns
    of a table, without an image, as (part, label). loose: images that have no class.
    unused: of the files that are no images, how many have each ending. table: one of them that may say
    classes, or "". name: what to call it, where that is known.
    """

    items: list[Item] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    multi: bool = False
    empty: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    table: str = ""
    name: str = ""

    def add(self, part: str, labels: tuple[str, ...], name: str, source: Source) -> None:
        """An image."""
        self.items.append(Item(part, tuple(map(spelt, labels)), as_text(name), source))


def as_text(name: str) -> str:
    """A name as every file can hold it: bytes that are no UTF-8, as old archives have, are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()


def spelt(label: str) -> str:
    """A class's name as text in NFC, whichever way a disk spells it."""
    return composed(as_text(label))
