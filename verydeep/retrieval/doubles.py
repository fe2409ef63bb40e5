"""Photos that are there twice: the same bytes, or nearly the same picture by the cosine of its features.

Groups are what hangs together by such links, so a photo may be linked to its group by one member and not be
close to another.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..files import photo_paths as found_photos
from .extraction import features
from .featurefile import FeatureFile, is_feature_file, open_features
from .nearest import unit_rows

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..predictor import Failure, Features

# Measured on flowers, 900 photos of 227x227 and copies of 80 of them: six of the 404,550 pairs lie above,
# all of one scene, the first that is not at 0.959. Of the copies it finds all of half and double size,
# JPEG quality 50, crops of 95 and 90 % and richer colours, 96 to 99 % of quality 20, crops of 80 %, 1.25
# times as bright and turned by 3 degrees, 85 % of mirrored ones, 54 % with a white label; grey ones, 5 %.
# Deeper layers see what is on a photo rather than the photo: relu5_3 takes two daisies for one.
LAYER = "relu4_1"
POOL: Pooling = "avg"
THRESHOLD = 0.96
BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Member:
    """A photo of a group. of: the photo of it that it is a double of, None for the first.

    cosine: with that one. identical: the same bytes.
    """

    path: str
    of: str | None = None
    cosine: float = 1.0
    identical: bool = False


@dataclass(frozen=True)
class Group:
    """Photos that hang together, in the order in which they were found."""

    members: tuple[Member, ...]

    def to_dict(self) -> list[dict[str, object]]:
        return [
            {"path": m.path}
            if m.of is None
            else {
                "path": m.path, "of": m.of, "cosine": round(m.cosine, 6), "identical": m.identical,
            }
            for m in self.members
        ]  # fmt: skip

    def __str__(self) -> str:
        first, *others = self.members
        lines = [first.path]
        for m in others:
            how = "identical" if m.identical else f"{m.cosine:.4f}"
            lines.append(f"{how:>11}  {m.path}{'' if m.of == first.path else f'  (of {m.of})'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Duplicates:
    """Groups of photos that are doubles of each other, and how they were found.

    photos: how many were compared. errors: those that could not be read, path to reason.
    """

    groups: tuple[Group, ...]
    photos: int
    threshold: float
    errors: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        return {
            "groups": [group.to_dict() for group in self.groups],
            "photos": self.photos,
            "threshold": self.threshold,
            "errors": self.errors,
        }

    def __str__(self) -> str:
        doubles = sum(len(group.members) - 1 for group in self.groups)
        summary = (
            f"{doubles} of {self.photos} photos are doubles, in {len(self.groups)} groups "
            f"(cosine of at least {self.threshold:g}, or the same bytes)"
        )
        return "\n\n".join([*map(str, self.groups), summary])


def duplicates(
    photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    threshold: float = THRESHOLD,
    *,
    layer: str | None = None,
    model: str | os.PathLike[str] = "builtin",
    engine: str = "auto",
    precision: str = "fast",
    threads: int | None = None,
    device: str = "auto",
    batch: int = 8,
    watch: Callable[[Iterator[Features | Failure]], Iterator[Features | Failure]] = iter,
) -> Duplicates:
    """The photos that are there twice or more.

    photos: files, folders and globs; or one file of features, whose photos are then compared by it (and
    by their bytes where they are still there). threshold: the least cosine of a double, above 0, at most
    1. layer: of the file, where it has several. The rest is as for `features`.
    Raises DataError where there are no photos.
    """
    if not 0 < threshold <= 1:
        raise DataError(f"threshold is {threshold}; expected a cosine above 0, at most 1")
    given = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
    if len(given) == 1 and is_feature_file(given[0]):
        return _of_file(open_features(given[0]), layer, threshold)
    named = [os.fspath(name) for name in given]
    found = list(dict.fromkeys(found_photos.find_some(named)[0]))
    copies = _copies(found)
    distinct = [path for path in found if path not in copies]
    with tempfile.TemporaryDirectory(prefix="verydeep-", ignore_cleanup_errors=True) as folder:
        file = features(
            distinct, Path(folder) / "features.safetensors", layer or LAYER, POOL, model=model,
            engine=engine, precision=precision, threads=threads, device=device, batch=batch,
            watch=watch,
        )  # fmt: skip
        return _grouped(file, layer or LAYER, threshold, copies, len(found))


def _of_file(file: FeatureFile, layer: str | None, threshold: float) -> Duplicates:
    name = file.about.layer(layer)
    copies = _copies(path for path, error in zip(file.paths, file.errors, strict=True) if not error)
    return _grouped(file, name, threshold, copies, len(file))


def _copies(paths: Iterable[str]) -> dict[str, str]:
    """Each file whose bytes an earlier one has, and that one. Only files of one length are read."""
    by_size: dict[int, list[str]] = {}
    for path in paths:
        try:
            by_size.setdefault(os.stat(path).st_size, []).append(path)
        except OSError:
            continue  # what cannot be read is reported by whoever decodes it
    copies: dict[str, str] = {}
    for alike in by_size.values():
        first: dict[bytes, str] = {}
        for path in alike if len(alike) > 1 else ():
            try:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                continue
            if digest in first:
                copies[path] = first[digest]
            first.setdefault(digest, path)
    return copies


def _grouped(
    file: FeatureFile, layer: str, threshold: float, copies: dict[str, str], photos: int
) -> Duplicates:
    """Groups of the file's rows by their links, with the copies that may have no row of their own."""
    links = _links(file, layer, threshold)
    paths, members = file.paths, dict[str, list[Member]]()
    first_row = {path: row for row, path in reversed(list(enumerate(paths)))}
    for row, path in enumerate(paths):
        if first_row[path] != row:  # the same file given twice is no double
            continue
        group = members.setdefault(paths[links.root(row)], [])
        other, cosine = links.nearest(row)
        if path in copies:
            group.append(Member(path, copies[path], 1.0, identical=True))
        elif group:
            group.append(Member(path, paths[other], cosine))
        else:
            group.append(Member(path))
    for path, first in copies.items():
        if path not in first_row:
            group = members[paths[links.root(first_row[first])]]
            group.append(Member(path, first, 1.0, identical=True))
    groups = tuple(Group(tuple(group)) for group in members.values() if len(group) > 1)
    failed = {path: error for path, error in zip(paths, file.errors, strict=True) if error}
    return Duplicates(groups, photos, threshold, failed)


class _Links:
    """What hangs together, and each row's nearest: joined pair by pair."""

    def __init__(self, rows: int, threshold: float) -> None:
        self._threshold = threshold
        self._parents = list(range(rows))
        # of each row, the nearest of those before it and of those after it: (cosine, row)
        self._before = np.full(rows, -1, np.float32), np.zeros(rows, np.int64)
        self._after = np.full(rows, -1, np.float32), np.zeros(rows, np.int64)

    def add(self, later: int, earlier: int, cosines: np.ndarray) -> None:
        """Cosines of the rows from `later` on, down, with those from `earlier` on, across."""
        for (best, at), start, axis, other in (
            (self._before, later, 1, earlier),
            (self._after, earlier, 0, later),
        ):
            place = slice(start, start + cosines.shape[1 - axis])
            found = cosines.max(axis)
            better = found > best[place]
            best[place][better] = found[better]
            at[place][better] = cosines.argmax(axis)[better] + other
        for one, two in np.argwhere(cosines >= self._threshold).tolist():
            a, b = self.root(one + later), self.root(two + earlier)
            self._parents[max(a, b)] = min(a, b)

    def root(self, row: int) -> int:
        """The first row of what this one hangs together with."""
        parents = self._parents
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    def nearest(self, row: int) -> tuple[int, float]:
        """The row that it is linked to, an earlier one where there is one, and their cosine."""
        best, at = self._before if self._before[0][row] >= self._threshold else self._after
        return int(at[row]), min(float(best[row]), 1.0)


def _links(file: FeatureFile, layer: str, threshold: float) -> _Links:
    """Every pair of rows, block by block."""
    links = _Links(len(file), threshold)
    for later, block in file.blocks(layer, BLOCK_ROWS):
        ours = unit_rows(block)
        for earlier, other in file.blocks(layer, BLOCK_ROWS):
            if earlier > later:
                break
            cosines = ours @ unit_rows(other).T
            # no row with itself, no pair twice; zero is below every threshold
            links.add(later, earlier, np.tril(cosines, -1) if earlier == later else cosines)
    return links
