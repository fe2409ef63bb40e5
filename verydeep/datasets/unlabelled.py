"""Photos without a question for their classes: named as people name photos, or held by a data set."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..files.photo_paths import find_some, is_read
from .items import Source
from .listing import TABLES, files_of, listed, shards
from .shards import is_stream

Photo = tuple[str, Source]  # its name for people, and where it lies


def photos(given: object) -> list[Photo]:
    """All photos of what is given: none of nothing.

    given: photos, folders and globs, as people type them, or "-" for a list on stdin; data sets, in any
    form that `listed` takes but streams, of which no label is asked; or several of these.
    DataError where there is no photo in one of them.
    """
    one = isinstance(given, str) or not isinstance(given, Iterable)
    one = one or (
        hasattr(given, "__getitem__") and not isinstance(given, list | tuple)
    )  # a Dataset
    found: list[Photo] = []
    for each in [given] if one else given:  # type: ignore[attr-defined]  # an Iterable
        path = os.fspath(each) if isinstance(each, str | os.PathLike) else None
        if is_stream(path):
            raise DataError(f"{path}: shards that are streamed; fetch them, and give their path")
        if path is not None and not _is_set(path):
            found += [(photo, photo) for photo in find_some([path])[0]]
            continue
        held = files_of(path) if path else []
        held = held or [(item.name, item.source) for item in listed(each).items]
        if not held:
            raise DataError(f"{path or type(each).__name__}: no photos in it; expected some")
        found += held
    return found


def _is_set(path: str) -> bool:
    """Whether a name is a data set's: no photo's, folder's or glob's."""
    ending = Path(path).suffix.lower()
    if shards(path) or ending in (*TABLES, ".npz"):
        return True
    archive = os.path.isfile(path) and not is_read(ending)
    return archive and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
