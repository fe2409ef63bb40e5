"""The folder of a run: given a number, made, and refused where it holds another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import OutputError

RUNS = Path("runs")  # where runs go that are given no folder


def refuse_another_run(folder: Path) -> None:
    """OutputError for a folder that a run was begun in."""
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise OutputError(
            f"{folder} holds a run already; go on with it by --resume, or choose another folder"
        )


def begun(folder: Path) -> dict[str, Any]:
    """What config.json says of the run that was begun in the folder; empty where it says nothing."""
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return found if {"config", "data"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def made(folder: Path) -> None:
    """The folder is there afterwards, or OutputError says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}; choose a folder you may write to"
        ) from error


@contextmanager
def taken(
    folder: str | os.PathLike[str] | None, *, writes: bool, resume: bool = False
) -> Iterator[Path]:
    """A run's folder, while the block lasts; None for the first of runs/1, runs/2, ... that is not there.

    That one is made at once, so that no other run takes it, and is gone afterwards where it is empty.
    writes: whether this process writes into it. OutputError where it cannot, or, but to resume, where the
    folder has a run.
    """
    place = RUNS if folder is None else Path(folder)
    if writes:
        writable(place)
        if folder is not None and not resume:
            refuse_another_run(place)
    if writes and folder is None:
        made(RUNS)
        for number in count(1):
            place = RUNS / str(number)
            with suppress(FileExistsError):
                place.mkdir()
                break
    try:
        yield place
    finally:
        if writes and folder is None:
            with suppress(OSError):  # they hold something
                place.rmdir()
                RUNS.rmdir()


def writable(folder: Path) -> None:
    """OutputError where nothing can be written into `folder`, which need not be there yet."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; expected a folder to write into")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: cannot be written into; choose a folder you may write to")
