"""Which photos a person means to compare: two, one with many, two folders by name, all of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ..errors import DataError
from ..files import photo_paths as photos


@dataclass(frozen=True)
class Pairing:
    """pairs: of paths, those that share a first one beside each other. reference: the photo that all are
    compared with, where there is one. unmatched: paths in two folders without a partner in the other.
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
        paths = list(photos.find(given))
        if len(paths) < 2:
            raise DataError(
                f"{given[0]}: {len(paths) or 'no'} photo{'s' * (len(paths) != 1)}; expected two or more in "
                "a folder, or two paths to compare"
            )
        return Pairing(list(combinations(paths, 2)))
    if os.path.isdir(given[0]):
        # distances are symmetric: a folder and one photo are that photo and a folder
        if len(given) != 2:
            raise DataError(
                f"{given[0]} is a folder and {len(given) - 1} more paths were given; expected a photo "
                "first, which all others are compared with, or two folders"
            )
        given = given[::-1]
    reference, *rest = given
    paths = list(photos.find(rest))
    if not paths:
        raise DataError(
            f"no photos in {', '.join(rest)}; expected some to compare with {reference}"
        )
    return Pairing([(reference, other) for other in paths], reference)


def _by_name(first: str, second: str) -> Pairing:
    one, other = _named(first), _named(second)
    for folder, names in ((first, one), (second, other)):
        if not names:
            raise DataError(f"{folder}: a folder without photos; expected some to compare by name")
    pairs = [(path, other[name]) for name, path in one.items() if name in other]
    if not pairs:
        raise DataError(
            f"no photo in {first} has a partner of its name in {second} (the first names: "
            f"{next(iter(one))}, {next(iter(other))}); expected the same names in both, whatever the suffix"
        )
    alone = [path for name, path in one.items() if name not in other]
    alone += [path for name, path in other.items() if name not in one]
    return Pairing(pairs, unmatched=tuple(alone))


def _named(folder: str) -> dict[str, str]:
    """Photos by their place below the folder, without suffix where that leaves no two alike.

    Places are in NFC, since a name that was written on another system may be in NFD.
    """
    paths = list(photos.find([folder]))
    places = [photos.composed(os.path.relpath(path, folder)) for path in paths]
    stems = [os.path.splitext(place)[0] for place in places]
    count = Counter(stems)
    return {
        (stem if count[stem] == 1 else place): path
        for stem, place, path in zip(stems, places, paths, strict=True)
    }
