"""The folder of a run: given a number, made, refused where it holds another run; and its log.

log.jsonl has one JSON object a line for whatever happens in a run, there as soon as it happens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import OutputError
from ...files.atomic import locked, replacing

RUNS = Path("runs")  # where runs go that are given no folder


def is_first() -> bool:
    """Whether this is the only process of a run, or the first of those that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


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


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off by a crash is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


class Log:
    """The log of a run. step: where a run that is resumed goes on; what was told after it is dropped.

    While it is open its folder is this process's alone. OutputError where another trains in it.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        def refuse() -> None:
            raise OutputError(
                f"{path.parent}: another process is training in it; wait for it, or choose another folder"
            )

        self._held = ExitStack()
        self._held.enter_context(locked(path.with_name(".lock"), refuse))
        self.lines = [
            line
            for line in (logged(path) if step else [])
            if line.get("step", 0) <= step and line["event"] != "end"
        ]
        with replacing(path, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self.lines)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        try:
            self._file.write(f"{json.dumps(line)}\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        with suppress(OSError):  # what a full disk refuses was told of when it was written
            self._file.close()
        self._held.close()
