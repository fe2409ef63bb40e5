"""What of a compression is done is kept in a folder beside its file until all is: so it may be stopped.

Each step is a file that is there whole or not at all, and what it gives is what was read from that file, so
that a compression that was stopped, by whatever and whenever, ends with the same bytes as one that was not.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArgumentError, OutputError, log
from ..files.atomic import locked, remove_lock, replacing
from ..files.strict_json import JSON

T = TypeVar("T")
ASKED, LOCK = "asked", ".lock"


class Kept:
    """Steps in a folder, by name. about: what is asked for, and how it is said to have been made."""

    def __init__(self, folder: Path, about: Mapping[str, JSON]) -> None:
        self.folder, self.about = folder, about

    def __call__(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, or gave before."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            with replacing(path, "w", encoding="utf-8") as file:
                json.dump(make(), file)
        value: T = json.loads(path.read_text(encoding="utf-8"))
        return value


@contextmanager
def kept(
    out: Path, asked: Mapping[str, JSON], about: Mapping[str, JSON], resume: bool
) -> Iterator[Kept]:
    """The steps of making `out`, while the block lasts; its folder is gone when all went well.

    asked: what decides on the bytes. about: what else is told of how it was made, as when it was begun.
    OutputError where another process makes it, or one was stopped and this is not to go on with it, or what
    has the folder's name is somebody's own; ArgumentError where that one was asked for something else.
    """
    folder, begun, known = out.with_name(f"{out.name}.work"), True, False
    device = out.exists() and not out.is_file()
    if device:  # has nothing beside it
        folder = Path(tempfile.mkdtemp())
    try:
        if not (others := _of_others(folder)):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        why = f"{folder}: cannot be made: {error.strerror}; name another file"
        raise OutputError(why) from error
    if others:  # would be gone when all went well
        raise OutputError(
            f"{folder}: holds something else, and is needed until all is done; move it away, or name "
            "another file"
        )

    def refuse() -> None:
        raise OutputError(f"{out}: another process makes it now; name another file, or wait for it")

    try:
        with locked(folder / LOCK, refuse):
            begun = (folder / f"{ASKED}.json").exists()
            if begun and not resume:
                raise OutputError(
                    f"{folder}: holds a compression that was stopped; go on with it by --resume "
                    "(resume=True in Python), or delete the folder"
                )
            steps = Kept(folder, about)
            was: dict[str, Any] = steps(ASKED, lambda: {"asked": dict(asked), "about": dict(about)})
            for what, value in asked.items():
                if value != (before := was["asked"].get(what)):
                    raise ArgumentError(
                        f"{folder}: was begun with {what} {before}, which is now {value}; ask for the "
                        "same, or delete the folder"
                    )
            steps.about, known = was["about"], True
            yield steps
            # what it was asked for last: should this be stopped, it is still known whose folder it is
            names = sorted(
                set(os.listdir(folder)) - {LOCK}, key=lambda name: name == f"{ASKED}.json"
            )
            for name in names:
                with suppress(OSError):
                    (folder / name).unlink()
    except BaseException:
        if device or (not begun and not set(os.listdir(folder)) - {f"{ASKED}.json", LOCK}):
            shutil.rmtree(folder, ignore_errors=True)
        elif known:
            log.info(
                f"what is done is in {folder}; the same command with --resume goes on from there"
            )
        raise
    remove_lock(folder / LOCK)
    with suppress(OSError):  # another one has begun there
        folder.rmdir()


def _of_others(folder: Path) -> bool:
    """Whether something has this name that is no folder of steps."""
    if not folder.is_dir():
        return folder.exists()
    names = os.listdir(folder)
    ours = all(name == LOCK or (name[0] == "." and name.endswith(".part")) for name in names)
    return not ours and f"{ASKED}.json" not in names
