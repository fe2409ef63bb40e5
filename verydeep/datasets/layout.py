"""How a data set is laid out: which folders are its parts, and which its classes.

Parts are known by a word in their name (train, valid, test and the like), classes are the folders of
photos in them. Folders that hold no photo say nothing, so they are dropped first. Where both readings are
possible, a DataError names the folders: nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from ..errors import DataError
from ..files.wording import some

Place: TypeAlias = tuple[str, ...]  # a folder, by the names on the way to it

# What people call the parts of a data set, and what we call them. "test" validates where "val" is not.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "validate": "val", "dev": "val", "eval": "val", "evaluation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_PLAIN = "set|sets|data|dataset|images?|imgs?|photos?|pictures?|folder|split"  # says nothing beside
_WORD = re.compile(rf"({'|'.join(PARTS)})(?:{_PLAIN})?")


def part_of(name: str) -> str:
    """The part that a name stands for, whatever its case, prefix or suffix: "train", "val", "test", or "".

    >>> part_of("seg_train"), part_of("ValidationSet"), part_of("Test-256"), part_of("strain")
    ('train', 'val', 'test', '')
    """
    found = {PARTS[match[1]] for word in _words(name) if (match := _WORD.fullmatch(word))}
    return found.pop() if len(found) == 1 else ""


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _says_nothing_else(name: str) -> bool:
    """Whether a part's name has no other word, so that no class bears it."""
    return all(_WORD.fullmatch(word) or re.fullmatch(_PLAIN, word) for word in _words(name))


def tops(
    what: str, photos: Iterable[Place], is_class: Callable[[str], bool]
) -> Mapping[Place, tuple[str, Place]]:
    """Where the class folders lie: below which folder -> (its part, the folder that holds the classes).

    A set that is not divided has one of these, with the part "". photos: the way to each, its name last.
    is_class: of a folder's name, where the classes are known. what: the set's name, for messages.
    """
    below: dict[Place, set[str]] = defaultdict(set)  # only folders that hold a photo somewhere
    direct: set[Place] = set()
    for way in photos:
        direct.add(way[:-1])
        for depth in range(1, len(way)):
            below[way[: depth - 1]].add(way[depth - 1])

    def down(top: Place, stop: Callable[[str], object]) -> Place:
        """Through folders that hold nothing but one folder of folders."""
        while len(below[top]) == 1 and top not in direct:
            (only,) = below[top]
            if stop(only) or is_class(only) or not below[*top, only]:
                break
            top = (*top, only)
        return top

    top = down((), part_of)
    here = sorted(below[top])

    def place(name: str) -> Place:
        """Where the classes of a part lie: in it, or in a folder that is all it holds."""
        others = [below[*top, other] for other in here if other != name]
        return down((*top, name), lambda only: any(only in other for other in others))

    inside = {name: below[place(name)] for name in here}
    parts = _parts(what, inside, is_class)
    found = {(*top, name): (part, place(name)) for name, part in parts.items()}
    found = found or {top: ("", top)}
    for _, classes in found.values():
        _refuse_parts_as_classes(what, classes, below, direct, is_class)
    return found


def _parts(
    what: str, inside: Mapping[str, set[str]], is_class: Callable[[str], bool]
) -> dict[str, str]:
    """Which of these folders are parts. inside: of each folder, the folders in it that hold photos."""
    parts = {name: part for name in inside if (part := part_of(name))}
    strangers = [name for name in inside if name not in parts]
    kinds, usual = set(parts.values()), {parts[n] for n in parts if _says_nothing_else(n)}
    if all(map(is_class, inside)) or not parts:
        return {}
    nested = any(inside[name] for name in parts)
    if not nested and (len(kinds) < 2 or (strangers and len(usual) < 2)):
        return {}  # photos lie right in them, as in a class: a bullet train, a test tube
    if not nested and strangers:
        raise DataError(
            f"{what}: {some(sorted(parts))} may be parts of the set, or classes as {some(strangers)} is; "
            "put folders of classes into parts, or list paths and labels in a CSV"
        )
    labels = Counter(label for kind in kinds for label in set().union(
        *(inside[name] for name in parts if parts[name] == kind)
    ))  # fmt: skip
    sure = len(usual) > 1 or any(count > 1 for count in labels.values())
    odd = [name for name in strangers if not sure or inside[name] & labels.keys()]
    if odd:
        raise DataError(
            f"{what}: {some(parts)} may be a part of the set, and {some(odd)} beside it another part or "
            "a class; move away what does not belong to it, or list paths and labels in a CSV"
        )
    return parts


def _refuse_parts_as_classes(
    what: str,
    top: Place,
    below: Mapping[Place, set[str]],
    direct: set[Place],
    is_class: Callable[[str], bool],
) -> None:
    """DataError where what would be classes have the same folders in them, two or more."""
    classes = [n for n in sorted(below[top]) if (*top, n) not in direct and not is_class(n)]
    count = Counter(name for label in classes for name in below[*top, label])
    same = sorted(name for name, n in count.items() if n > 1)
    alike = [label for label in classes if below[*top, label].intersection(same)]
    if len(same) > 1:
        raise DataError(
            f"{what}: {some(alike)} cannot be classes, since each holds the folders {some(same)}; give "
            f"one of them as the data set and another one to --val, or list paths and labels in a CSV"
        )
