"""Which photos a person means to compare: two, one with many, two folders by name, all of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..errors import DataError
from ..files import photo_paths as photos


@dataclass(frozen=True)
class Pairing:
    """pairs: of paths, those that share a first one beside each other. reference: the photo that all are
    compared with, where there is one. unmatched: paths in two folders whose names have no fellow.
    """

    pairs: list[tuple[str, str]]
    reference: str | None = None
    unmatched: tuple[str, ...] = ()


def pair(given: Sequence[str]) -> Pairing:
    """Pairs of the paths as they were typed.

    A folder alone: each of its photos with each other. Two folders: photos of one name, whatever the
    suffix, at the same place in both. Else the first photo with every other one; folders and globs stand
    for the photos in them. DataError where nothing is left to compare.
    """
    if len(given) == 2 and all(map(os.path.isdir, given)):
        return _by_name(*given)
    if len(given) == 1:
        found = list(photos.find(given))
        if len(found) < 2:
            raise DataError(
                f"{given[0]}: {len(found) or 'no'} photo{'s' * (len(found) != 1)}; expected two or more in "
                "a folder, or two paths to compare"
            )
        return Pairing(list(combinations(found, 2)))
    if os.path.isdir(given[0]):
        # distances are symmetric: a folder and one photo are that photo and a folder
        if len(given) != 2:
            raise DataError(
                f"{given[0]} is a folder and {len(given) - 1} more paths were given; expected a photo "
                "first, which all others are compared with, or two folders"
            )
        given = given[::-1]
    reference, *rest = given
    found = list(photos.find(rest))
    if not found:
        raise DataError(
            f"no photos in {', '.join(rest)}; expected some to compare with {reference}"
        )
    return Pairing([(reference, other) for other in found], reference)


def _by_name(first: str, second: str) -> Pairing:
    sides = [_named(first), _named(second)]
    for folder, names in zip((first, second), sides, strict=True):
        if not names:
            raise DataError(f"{folder}: a folder without photos; expected some to compare by name")
    common = [name for name in sides[0] if name in sides[1]]
    unmatched = [
        path for i in (0, 1) for name, path in sides[i].items() if name not in sides[1 - i]
    ]
    if not common:
        examples = ", ".join(next(iter(names)) for names in sides)
        raise DataError(
            f"no photo in {first} has a fellow of its name in {second} (the first names: {examples}); "
            "expected the same names in both, whatever the suffix"
        )
    return Pairing([(sides[0][n], sides[1][n]) for n in common], unmatched=tuple(unmatched))


def _named(folder: str) -> dict[str, str]:
    """Photos by their place below the folder, without suffix where that leaves no two alike."""
    paths = {os.path.relpath(path, folder): path for path in photos.find([folder])}
    stems = [str(Path(place).with_suffix("")) for place in paths]
    return {
        (stem if stems.count(stem) == 1 else place): path
        for stem, (place, path) in zip(stems, paths.items(), strict=True)
    }
