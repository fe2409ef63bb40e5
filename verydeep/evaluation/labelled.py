"""Labelled photos: a folder or a tar of class folders, matched to a model's classes by name or id."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ..errors import DataError, nearest
from ..files.photo_paths import composed, inside, is_photo


def labelled_photos(data: str | os.PathLike[str]) -> Iterator[tuple[str, str | bytes]]:
    """(path inside `data`, the photo as a path or as the bytes of the tar's member), sorted for a folder.

    Only names with an image's suffix count; hidden ones do not. Raises DataError where `data` is neither
    a folder nor a tar.
    """
    path = Path(data)
    if path.is_dir():
        for photo in inside(path):
            yield Path(photo).relative_to(path).as_posix(), photo
        return
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; expected a folder or tar of class folders"
        )
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and is_photo(PurePosixPath(member.name).name):
                    content = tar.extractfile(member)
                    assert content is not None  # it is for a regular file
                    yield PurePosixPath(member.name).as_posix(), content.read()
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: neither a folder nor a tar that can be read; expected one of class folders"
        ) from error


def class_of(path: str, classes: dict[str, int]) -> int | None:
    """The class of a photo: the first folder on its way down that bears a class's name or id.

    classes: as `class_table` makes it.
    """
    for folder in PurePosixPath(path).parts[:-1]:
        index = classes.get(_plain(folder))
        if index is not None:
            return index
    return None


def class_table(names: Iterable[str], ids: Iterable[str]) -> dict[str, int]:
    """Class number by name and by id, without regard to case, "_" or "-" for a space. Ids win."""
    table = {_plain(name): index for index, name in enumerate(names)}
    table.update({_plain(name): index for index, name in enumerate(ids)})
    return table


def no_class(data: str, path: str, classes: dict[str, int]) -> DataError:
    """The error for a photo that lies in no class folder."""
    parts = PurePosixPath(path).parts
    if len(parts) == 1:
        return DataError(f"{data}: {path} lies in no folder; expected one folder for each class")
    folder = parts[0]
    return DataError(
        f"{data}: folder {folder!r} is no class of the model{nearest(_plain(folder), classes)}"
    )


def _plain(name: str) -> str:
    return composed(name).strip().lower().replace("_", " ").replace("-", " ")
