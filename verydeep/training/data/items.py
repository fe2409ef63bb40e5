"""What a data set is listed as: labelled images, and where each lies until it is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

from numpy.typing import NDArray

from ...files.photo_paths import composed


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


@dataclass(frozen=True, eq=False)
class Brought:
    """An image that a Python object brings: `holder[index][key]`. lock: one thread at a time asks it."""

    holder: Any
    index: int
    key: int | str
    lock: Lock


Source: TypeAlias = str | bytes | Member | Streamed | Brought | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Item:
    """One labelled image. part: "train", "val", "test", or "" where the data is not divided.

    labels: the names of its classes, one but in a listing that is `multi`.
    """

    part: str
    labels: tuple[str, ...]
    name: str
    source: Source

    @property
    def label(self) -> str:
        """The first of them, "" where it has none."""
        return self.labels[0] if self.labels else ""


@dataclass
class Listing:
    """What a data set holds. classes: in the set's own order, empty where it has none.

    multi: whether an image may be of several classes, or of none. empty: class folders without an image,
    as (part, label). loose: images that have no class.
    unused: of the files in class folders that are no images, how many have each ending.
    """

    items: list[Item] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    multi: bool = False
    empty: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)

    def add(self, part: str, labels: tuple[str, ...], name: str, source: Source) -> None:
        """An image; its labels in NFC, whichever way a disk spells them."""
        spelt = tuple(composed(as_text(label)) for label in labels)
        self.items.append(Item(part, spelt, as_text(name), source))


def as_text(name: str) -> str:
    """A name as every file can hold it: bytes that are no UTF-8, as old archives have, are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()
