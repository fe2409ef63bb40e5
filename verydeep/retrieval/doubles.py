"""Duplicate photos: files of the same bytes, or of nearly the same picture.

The cosine of features finds what is alike, and a second look at the pixels (`pixels.py`) keeps what is
the same: pages of other text have a cosine of 0.998. Groups are what hangs together by such pairs, so a
photo may be close to one member of its group and not to another. A link to a file is that file and never
its duplicate: somebody might delete the file for the link.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import DataError
from ..files import photo_paths
from ..files.progress import expect, stage
from ..files.wording import counted
from .extraction import features
from .featurefile import FeatureFile, is_feature_file, open_features
from .nearest import unit_rows
from .pixels import same_picture

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling

# Measured on flowers, 900 photos of 227x227 and copies of 80 of them: six of the 404,550 pairs lie above,
# all of one scene, the first that is not at 0.959. Of the copies it finds all of half and double size,
# JPEG quality 50, crops of 95 and 90 % and richer colours, 96 to 99 % of quality 20, crops of 80 %, 1.25
# times as bright and turned by 3 degrees, and 85 % of mirrored ones, before the second look.
# Deeper layers see what is on a photo rather than the photo: relu5_3 takes two daisies for one.
LAYER = "relu4_1"
POOL: Pooling = "avg"
THRESHOLD = 0.96
# Equal pictures differ by rounding, and by what an engine's precision allows: in "fast" by 1e-3 of their
# length, which is half of that squared in their cosine.
ROUNDING = 1e-6
BLOCK_ROWS = 2048
LOOKS = 8  # of a photo's nearest before it, that it is laid over


@dataclass(frozen=True)
class Member:
    """A photo of a group. of: the photo of the group that it is a duplicate of, None for the first.

    cosine: with that one. identical: the same bytes. linked: a link leads to it, and to nothing without it.
    """

    path: str
    of: str | None = None
    cosine: float = 1.0
    identical: bool = False
    linked: bool = False


@dataclass(frozen=True)
class Group:
    """Photos that are duplicates of each other, in the order in which they were listed."""

    members: tuple[Member, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"path": self.members[0].path}]
        rows += [
            {"path": m.path, "of": m.of, "cosine": round(m.cosine, 6), "identical": m.identical}
            for m in self.members[1:]
        ]
        for row, m in zip(rows, self.members, strict=True):
            row |= {"linked": True} if m.linked else {}
        return rows

    def __str__(self) -> str:
        first, *others = self.members
        lines = [first.path]
        for m in others:
            how = "identical" if m.identical else f"{m.cosine:.4f}"
            lines.append(f"{how:>11}  {m.path}{'' if m.of == first.path else f'  (of {m.of})'}")
        said = ("  (a link leads to it: keep it)" if m.linked else "" for m in self.members)
        return "\n".join(line + more for line, more in zip(lines, said, strict=True))


@dataclass(frozen=True)
class Duplicates:
    """Groups of duplicates, and how they were found.

    photos: how many files were compared, links left out. errors: those that could not be read, and why.
    keep: of each group, what was asked to be kept, and what links lead to; None where nothing was asked.
    """

    groups: tuple[Group, ...]
    photos: int
    threshold: float
    errors: dict[str, str]
    keep: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, object]:
        asked = {"keep": list(self.keep)} if self.keep is not None else {}
        groups = [group.to_dict() for group in self.groups]
        return {
            "groups": groups, "photos": self.photos, "threshold": self.threshold, "errors": self.errors,
            **asked,
        }  # fmt: skip

    def __str__(self) -> str:
        count = sum(len(group.members) - 1 for group in self.groups)
        are = "is a duplicate" if count == 1 else "are duplicates"
        photos, groups = counted(self.photos, "photo"), counted(len(self.groups), "group")
        some, none = f"{count:,} of {photos} {are}, in {groups}", f"no duplicates among {photos}"
        how = f"(cosine at least {self.threshold:g} and the same pixels, or the same bytes)"
        if self.keep is not None:
            return "\n".join(self.keep)
        return "\n\n".join([*map(str, self.groups), f"{some if count else none} {how}"])


def duplicates(
    photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    threshold: float = THRESHOLD,
    *,
    layer: str | None = None,
    keep: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
    batch: int = 8,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Duplicates:
    """The photos of which there are two or more.

    photos: files, folders and globs; or one file of features, whose photos are then compared by it (and
    by their bytes where they are still there). threshold: the least cosine of duplicates, above 0, at most
    1. layer: of the file, where it has several. keep: "first", "largest" (in pixels) or "oldest", what
    `Duplicates.keep` names of each group. on_event: as for `features`, with "total" as well. The rest is as
    for `features`. Raises DataError where there are no photos.
    """
    if keep not in (None, *KEEP):
        raise DataError(f"keep is {keep!r}; expected {', '.join(KEEP)}")
    if not 0 < threshold <= 1:
        raise DataError(f"threshold is {threshold}; expected a cosine above 0, at most 1")
    given = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
    if len(given) == 1 and is_feature_file(given[0]):
        file = open_features(given[0])
        places = {
            p: file.photo(p) for p, bad in zip(file.paths, file.errors, strict=True) if not bad
        }
        return _grouped(file, file.about.layer(layer), threshold, keep, places, *_on_disk(places))
    paths, _ = photo_paths.find_some([os.fspath(name) for name in given])
    places = {path: path for path in paths}
    distinct, copies, linked = _on_disk(places)
    different = [path for path in distinct if path not in copies]

    expect(len(different))

    def counting(event: Mapping[str, Any]) -> None:
        if on_event:
            on_event({**event, "total": len(different)})

    with tempfile.TemporaryDirectory(prefix="verydeep-", ignore_cleanup_errors=True) as folder:
        file = features(
            different, Path(folder) / "features.npz", layer or LAYER, POOL, model=model, engine=engine,
            precision=precision, threads=threads, device=device, batch=batch, on_event=counting,
        )  # fmt: skip
        return _grouped(file, layer or LAYER, threshold, keep, places, distinct, copies, linked)


def _on_disk(places: Mapping[str, str]) -> tuple[list[str], dict[str, str], set[str]]:
    """(distinct, copies, linked): what the disk says of photos. places: of each path, where the photo is.

    distinct: the paths without links: of several that lead to one file its own path, or the first.
    copies: of these, each file whose bytes an earlier one has, and that one. linked: those to which another
    path is a link.
    """
    chosen: dict[tuple[object, object, int], str] = {}
    by_link = set()
    for path, place in places.items():
        key = _identity(place)
        if _is_link(place):
            by_link.add(key)
        first = chosen.setdefault(key, path)
        if first != path and _is_link(places[first]) and not _is_link(place):
            chosen[key] = path
    by_size: dict[int, list[str]] = {}
    for (_, _, size), path in chosen.items():
        by_size.setdefault(size, []).append(path)
    copies: dict[str, str] = {}
    for alike in stage(by_size.values(), "comparing files", "size"):
        first_of: dict[bytes, str] = {}
        for path in alike if len(alike) > 1 else ():
            with suppress(OSError), open(places[path], "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
                if first_of.setdefault(digest, path) != path:
                    copies[path] = first_of[digest]
    linked = {path for key, path in chosen.items() if key in by_link}
    return list(chosen.values()), copies, linked


def _identity(place: str) -> tuple[object, object, int]:
    """What only this file has, its size in bytes at the end, which is -1 where it cannot be seen."""
    try:
        status = os.stat(place)
    except OSError:
        return place, None, -1  # reported by whoever decodes it
    return status.st_dev, status.st_ino or os.path.realpath(place), status.st_size


def _is_link(place: str) -> bool:
    """Whether it, or a folder on its way, is a symbolic link."""
    return os.path.realpath(place) != os.path.abspath(place)


def _grouped(
    file: FeatureFile, layer: str, threshold: float, keep: str | None, places: Mapping[str, str],
    distinct: list[str], copies: dict[str, str], linked: set[str],
) -> Duplicates:  # fmt: skip
    """Groups of the file's rows by their links, with the copies that may have no row of their own."""
    paths, kept = file.paths, set(distinct)
    rows: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path in kept:
            rows.setdefault(path, row)
    left_out = np.ones(len(paths), bool)
    left_out[list(rows.values())] = False
    links = _links(file, layer, threshold, left_out)
    _look(links, file, layer, [places.get(path, path) for path in paths])
    for path, first in copies.items():
        if path in rows:
            links.join(np.array([rows[path], rows[first]]))
    members: dict[int, list[Member]] = {}
    for path in distinct:
        row = rows[path if path in rows else copies[path]]
        group = members.setdefault(int(links.groups[row]), [])
        if path in copies:
            member = Member(path, copies[path], identical=True)
        elif group:
            # without a link of its own it hangs on a copy that the first has
            other, cosine = links.partner.get(row, (int(links.groups[row]), 1.0))
            member = Member(path, paths[other], cosine)
        else:
            member = Member(path)
        group.append(replace(member, linked=path in linked))
    groups = tuple(Group(tuple(group)) for group in members.values() if len(group) > 1)
    failed = {path: error for path, error in zip(paths, file.errors, strict=True) if error}
    best = KEEP[keep] if keep else None
    chosen = {max(g.members, key=lambda m: best(places[m.path])).path for g in groups if best}
    to_keep = tuple(m.path for g in groups for m in g.members if m.linked or m.path in chosen)
    count = len(kept | failed.keys())
    return Duplicates(groups, count, threshold, failed, to_keep if best else None)


def _pixels(place: str) -> int:
    with suppress(OSError, ValueError), Image.open(place) as photo:
        return photo.width * photo.height
    return 0


def _age(place: str) -> float:
    return -os.stat(place).st_mtime if os.path.exists(place) else -math.inf


# by what the best of a group is chosen; of equals the first
KEEP: dict[str, Callable[[str], float]] = {
    "first": lambda _: 0, "largest": _pixels, "oldest": _age,
}  # fmt: skip


def _look(links: _Links, file: FeatureFile, layer: str, places: list[str]) -> None:
    """Part what is alike and not the same, as far as the photos are still there to be looked at."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(links.groups.tolist()):
        groups.setdefault(group, []).append(row)
    together = [np.array(rows) for rows in groups.values() if len(rows) > 1]
    wanted = np.sort(np.concatenate([*together, np.zeros(0, np.int64)]).astype(np.int64))
    values: dict[int, np.ndarray] = {}
    for start, block in file.blocks(layer, BLOCK_ROWS) if len(wanted) else ():
        here = wanted[(wanted >= start) & (wanted < start + len(block))]
        values.update(zip(here.tolist(), unit_rows(block[here - start]), strict=True))
    there, joined = {row for row in values if os.path.exists(places[row])}, set[int]()
    for rows in stage(together, "comparing pixels", "group"):
        links.groups[rows] = rows
        stacked = np.stack([values[row] for row in rows.tolist()])
        for number, row in enumerate(rows.tolist()):
            cosines, looks = stacked[:number] @ stacked[number], LOOKS
            near = np.flatnonzero(cosines >= links.least)
            near = near[np.argsort(-cosines[near], kind="stable")]
            while len(near) and looks:
                other, cosine = int(rows[near[0]]), min(float(cosines[near[0]]), 1.0)
                gone = {row, other} - there
                if not gone:
                    looks -= 1
                    same = same_picture(places[row], places[other]) is not False
                else:  # what is gone joins the nearest that is there, lest it join what is not the same
                    same = len(gone) == 2 or not gone <= joined
                    joined |= gone if len(gone) == 1 else set()
                if same:
                    links.join(np.array([row, other]))
                    links.partner.setdefault(row, (other, cosine))
                    links.partner.setdefault(other, (row, cosine))
                near = near[1:]
                near = near[links.groups[rows[near]] != links.groups[row]]


class _Links:
    """What hangs together, from one block of cosines to the next.

    least: cosine of a link. groups: of each row, the first row of its group. partner: of a row, the one
    that it is linked to, the nearest of those before it where there is one, and their cosine.
    """

    def __init__(self, rows: int, threshold: float) -> None:
        self.least = max(threshold - ROUNDING, ROUNDING)  # more than rows of zeros have
        self.groups = np.arange(rows)
        self.partner: dict[int, tuple[int, float]] = {}

    def add(self, later: int, earlier: int, cosines: np.ndarray) -> None:
        """Cosines of the rows from `later` on, down, with those from `earlier` on, across."""
        # Not pair by pair: 6,000 alike photos are 18 million pairs, but only 5,999 times do groups join.
        height, width = cosines.shape
        ours, theirs = self.groups[later : later + height], self.groups[earlier : earlier + width]
        apart = (cosines >= self.least) & (ours[:, None] != theirs)
        for row in np.flatnonzero(apart.any(1)).tolist():
            self.join(np.append(earlier + np.flatnonzero(apart[row]), later + row))

    def join(self, rows: np.ndarray) -> None:
        """Make one group of the groups of these rows."""
        joined = np.zeros(len(self.groups), bool)
        joined[self.groups[rows]] = True
        self.groups[joined[self.groups]] = joined.argmax()


def _links(file: FeatureFile, layer: str, threshold: float, left_out: np.ndarray) -> _Links:
    """Every pair of rows, block by block. left_out: (rows,) bool, those that are linked to none."""

    def units(start: int, block: np.ndarray) -> np.ndarray:
        rows = unit_rows(block)
        rows[left_out[start : start + len(rows)]] = 0
        return rows

    links = _Links(len(file), threshold)
    blocks = file.blocks(layer, BLOCK_ROWS)
    for later, block in stage(blocks, "comparing photos", "block", -(-len(file) // BLOCK_ROWS)):
        ours = units(later, block)
        for earlier, other in file.blocks(layer, BLOCK_ROWS):
            if earlier > later:
                break
            cosines = ours @ units(earlier, other).T
            # no row with itself, no pair twice; zero is below every threshold
            links.add(later, earlier, np.tril(cosines, -1) if earlier == later else cosines)
    return links
