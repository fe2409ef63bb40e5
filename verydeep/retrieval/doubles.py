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
from functools import lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, is_number, log
from ..files import photo_paths
from ..files.progress import expect, stage
from ..files.wording import counted, plain, some
from ..preprocess.decoding import opened
from .approximate import Graph, graph_of
from .cosines import closest, unit_rows
from .extraction import features
from .featurefile import FeatureFile, is_feature_file, open_features
from .pixels import is_blank, same_picture, small

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
ROUNDED = 1e-3  # by which a graph's cosines, of float16, are off at most
BLOCK_ROWS = 2048
SMALL = 2000  # pictures are kept to be compared, 77 kB each
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

    def to_dict(self) -> dict[str, Any]:
        values = {"of": self.of, "cosine": round(self.cosine, 6), "identical": self.identical}
        linked = {"linked": True} if self.linked else {}
        return {"path": self.path, **(values if self.of else {}), **linked}


@dataclass(frozen=True)
class Group:
    """Photos that are duplicates of each other, in the order in which they were listed."""

    members: tuple[Member, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        return [member.to_dict() for member in self.members]

    def __str__(self) -> str:
        first, *others = self.members
        lines = [plain(first.path)]
        for m in others:
            how = "identical" if m.identical else f"{m.cosine:.4f}"
            of = "" if m.of == first.path else f"  (of {plain(str(m.of))})"
            lines.append(f"{how:>11}  {plain(m.path)}{of}")
        said = ("  (a link leads to it: keep it)" if m.linked else "" for m in self.members)
        return "\n".join(line + more for line, more in zip(lines, said, strict=True))


@dataclass(frozen=True)
class Duplicates:
    """Groups of duplicates, and how they were found.

    photos: how many files were compared, links left out. errors: those that could not be read, and why.
    keep: of each group, what was asked to be kept, and what links lead to; None where nothing was asked.
    blank: pictures of nothing but one colour that are alike; of other bytes, they are no duplicates.
    gone: duplicates by features alone, since there is no photo any more to look at.
    """

    groups: tuple[Group, ...]
    photos: int
    threshold: float
    errors: dict[str, str]
    keep: tuple[str, ...] | None = None
    blank: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """What `verydeep duplicates --json` prints."""
        more = {"keep": list(self.keep)} if self.keep is not None else {}
        more |= {"blank": list(self.blank)} if self.blank else {}
        more |= {"gone": list(self.gone)} if self.gone else {}
        groups = [group.to_dict() for group in self.groups]
        return {
            "groups": groups, "photos": self.photos, "threshold": self.threshold, "errors": self.errors,
            **more,
        }  # fmt: skip

    def __str__(self) -> str:
        count = sum(len(group.members) - 1 for group in self.groups)
        are = "is a duplicate" if count == 1 else "are duplicates"
        photos, groups = counted(self.photos, "photo"), counted(len(self.groups), "group")
        found, none = f"{count:,} of {photos} {are}, in {groups}", f"no duplicates among {photos}"
        how = f"(cosine at least {self.threshold:g} and the same pixels, or the same bytes)"
        if 0 < len(self.errors) == self.photos:
            return f"none of {photos} could be read"
        if self.keep is not None:
            return "\n".join(self.keep)
        last = f"{found if count else none} {how}"
        if self.gone:
            last += f"\nno more there, and so joined by features alone: {some(self.gone)}"
        if self.blank:
            last += f"\nblank, of one colour and so alike, but no duplicates: {some(self.blank)}"
        return "\n\n".join([*map(str, self.groups), last])


def duplicates(
    photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    threshold: float = THRESHOLD,
    *,
    layer: str | None = None,
    keep: str | None = None,
    exact: bool = False,
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
    `Duplicates.keep` names of each group. exact: compare every two photos, where there are more than
    100,000 too; otherwise an index proposes the pairs, as for `similar`, and misses some. on_event: as for
    `features`, with "total" as well. The rest is as for `features`. Raises DataError where there are no
    photos.
    """
    if keep not in (None, *KEEP):
        raise DataError(f"keep is {keep!r}; expected {', '.join(KEEP)}")
    if not is_number(threshold, 0, 1) or not threshold:
        raise DataError(f"threshold is {threshold!r}; expected a cosine above 0, at most 1")
    threshold = float(threshold)
    given = photo_paths.names(photos)
    if len(given) == 1 and is_feature_file(given[0]):
        file = open_features(given[0])
        places = {
            p: file.photo(p) for p, bad in zip(file.paths, file.errors, strict=True) if not bad
        }
        if failed := [(p, bad) for p, bad in zip(file.paths, file.errors, strict=True) if bad]:
            path, why = failed[0]
            log.warning(
                f"{file.path}: {counted(len(failed), 'photo')} {'has' if len(failed) == 1 else 'have'} no "
                f"features in it, such as {why if path in why else f'{path}: {why}'}"
            )
        name = file.about.layer(layer)
        graph = graph_of(file, name, exact=exact, threads=threads)
        return _grouped(file, name, graph, threshold, keep, places, *_on_disk(places))
    paths, _ = photo_paths.find_some(given)
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
        graph = graph_of(file, layer or LAYER, exact=exact, threads=threads)
        return _grouped(
            file, layer or LAYER, graph, threshold, keep, places, distinct, copies, linked
        )


def _on_disk(places: Mapping[str, str]) -> tuple[list[str], dict[str, str], set[str]]:
    """(distinct, copies, linked): what the disk says of photos. places: of each path, where the photo is.

    distinct: the paths without links: of several that lead to one file its own path, or the first.
    copies: of these, each file whose bytes an earlier one has, and that one. linked: those to which another
    path is a link.
    """
    chosen: dict[tuple[object, object, int], str] = {}
    links: list[tuple[tuple[object, object, int], str]] = []
    for path, place in places.items():
        key = _identity(place)
        if _is_link(place):
            links.append((key, path))
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
    linked = {chosen[key] for key, path in links if chosen[key] != path}
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
    real, plain = (os.path.normcase(way(place)) for way in (os.path.realpath, os.path.abspath))
    return real != plain


def _grouped(
    file: FeatureFile, layer: str, graph: Graph | None, threshold: float, keep: str | None,
    places: Mapping[str, str], distinct: list[str], copies: dict[str, str], linked: set[str],
) -> Duplicates:  # fmt: skip
    """Groups of the file's rows by their links; a copy stands with the first of its bytes, row or not."""
    paths, kept = file.paths, set(distinct) - copies.keys()
    rows: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path in kept:
            rows.setdefault(path, row)
    left_out = np.ones(len(paths), bool)
    left_out[list(rows.values())] = False
    where = [places.get(path, path) for path in paths]
    groups_of, partner, blank, gone = _linked(file, layer, graph, threshold, left_out, where)
    members: dict[int, list[Member]] = {}
    for path in distinct:
        row = rows[copies.get(path, path)]
        group = members.setdefault(groups_of[row][0], [])
        if path in copies:
            member = Member(path, copies[path], identical=True)
        elif group:
            other, cosine = partner[row]
            member = Member(path, paths[other], cosine)
        else:
            member = Member(path)
        group.append(replace(member, linked=path in linked))
    groups = tuple(Group(tuple(group)) for group in members.values() if len(group) > 1)
    failed = {path: error for path, error in zip(paths, file.errors, strict=True) if error}
    best = KEEP[keep] if keep else None
    chosen = {max(g.members, key=lambda m: best(places[m.path])).path for g in groups if best}
    to_keep = tuple(m.path for g in groups for m in g.members if m.linked or m.path in chosen)
    count = len(failed.keys() | distinct)
    blanks, lost = (tuple(paths[row] for row in sorted(found)) for found in (blank, gone))
    return Duplicates(groups, count, threshold, failed, to_keep if best else None, blanks, lost)


def _pixels(place: str) -> int:
    with suppress(Exception), opened(place) as photo:  # PIL raises nearly everything
        return photo.width * photo.height
    return 0


def _age(place: str) -> float:
    return -os.stat(place).st_mtime if os.path.exists(place) else -math.inf


# by what the best of a group is chosen; of equals the first
KEEP: dict[str, Callable[[str], float]] = {"first": lambda _: 0, "largest": _pixels, "oldest": _age}


def _linked(
    file: FeatureFile, layer: str, graph: Graph | None, threshold: float, left_out: np.ndarray,
    places: list[str],
) -> tuple[list[list[int]], dict[int, tuple[int, float]], set[int], set[int]]:  # fmt: skip
    """Rows joined with the nearest of those before them, unless their photos show other pictures.

    left_out: (rows,) bool, those that are joined with none. places: where the photo of each row is.
    Returns the group of each row, a list that its rows share; and of joined rows another one, the nearest
    before it where there is one, and their cosine; those whose photos are blank, which are not joined; and
    those whose photos are gone, and which are joined.
    """
    least = max(threshold - ROUNDING, ROUNDING)  # more than rows of zeros have
    before = _nearest_before if graph is None else partial(_proposed_before, graph)
    cosines, rows = before(file, layer, least, left_out)
    groups = [[row] for row in range(len(file))]
    partner: dict[int, tuple[int, float]] = {}
    picture = lru_cache(SMALL)(small)  # as the files are now
    blank: set[int] = set()
    unseen: set[int] = set()
    settled = set()  # of photos that are gone, those that have joined one that is there
    alike = np.flatnonzero(cosines[:, 0] >= least).tolist()
    for row in stage(alike, "comparing pixels", "photo", len(alike)):
        for other, cosine in zip(rows[row].tolist(), cosines[row].tolist(), strict=True):
            ours, theirs = groups[row], groups[other]
            if cosine < least or ours is theirs:
                continue
            gone = [one for one in (row, other) if not os.path.exists(places[one])]
            if len(gone) == 1:
                # it joins the nearest that is there, lest it join what is not the same
                same = gone[0] not in settled
                settled.add(gone[0])
            else:
                pictures = [picture(places[at]) for at in (row, other)]
                empty = [p is not None and is_blank(p) for p in pictures]
                blank.update(compress((row, other), empty))
                same = not any(empty) and same_picture(*pictures) is not False
            if same:
                unseen.update(gone)
                theirs += ours
                for one in ours:
                    groups[one] = theirs
                partner.setdefault(row, (other, min(cosine, 1.0)))
                partner.setdefault(other, (row, min(cosine, 1.0)))
    return groups, partner, blank, unseen


def _nearest_before(
    file: FeatureFile, layer: str, least: float, left_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the nearest before it that have a cosine of `least`: (rows, LOOKS) cosines and rows."""

    def units(start: int, block: np.ndarray) -> np.ndarray:
        rows = unit_rows(block)
        rows[left_out[start : start + len(rows)]] = 0
        return rows

    cosines = np.full((len(file), LOOKS), -1, np.float32)
    rows = np.zeros((len(file), LOOKS), np.int64)
    blocks = file.blocks(layer, BLOCK_ROWS)
    for later, block in stage(blocks, "comparing photos", "block", -(-len(file) // BLOCK_ROWS)):
        ours = units(later, block)
        for earlier, other in file.blocks(layer, BLOCK_ROWS):
            if earlier > later:
                break
            found = ours @ units(earlier, other).T
            # no row with itself, no pair twice; zero is below every threshold
            found = np.tril(found, -1) if earlier == later else found
            close = np.flatnonzero((found >= least).any(1))
            here = later + close
            cosines[here], rows[here] = closest(
                (cosines[here], rows[here]), found[close], earlier, LOOKS
            )
    return cosines, rows


def _proposed_before(
    graph: Graph, file: FeatureFile, layer: str, least: float, left_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same, of the pairs that a graph proposes: from either of the two, so that later ones count."""
    pairs = [np.zeros((2, 0), np.int64)]
    blocks = file.blocks(layer, BLOCK_ROWS)
    for start, block in stage(blocks, "comparing photos", "block", -(-len(file) // BLOCK_ROWS)):
        near, other = graph.candidates(unit_rows(block), 2 * LOOKS + 1)
        row = start + np.arange(len(block))[:, None]
        close = (near >= least - ROUNDED) & (other != row) & ~left_out[row] & ~left_out[other]
        both = np.minimum(row, other)[close], np.maximum(row, other)[close]
        pairs.append(np.stack(both))
    before, after = np.unique(np.concatenate(pairs, axis=1), axis=1)
    cosine = np.zeros(len(before), np.float32)
    step = file.about.step(layer)
    for start in range(0, len(before), step):
        part = slice(start, start + step)
        wanted, where = np.unique([before[part], after[part]], return_inverse=True)
        one, other = unit_rows(file.rows_of(layer, wanted))[where.reshape(2, -1)]
        cosine[part] = np.einsum("pn,pn->p", one, other)
    order = np.lexsort((before, -cosine, after))
    order = order[cosine[order] >= least]
    before, after, cosine = before[order], after[order], cosine[order]
    place = np.arange(len(after)) - np.searchsorted(after, after)  # among those of the same row
    few = place < LOOKS
    cosines = np.full((len(file), LOOKS), -1, np.float32)
    rows = np.zeros((len(file), LOOKS), np.int64)
    cosines[after[few], place[few]], rows[after[few], place[few]] = cosine[few], before[few]
    return cosines, rows
