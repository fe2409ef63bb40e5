"""The folder of a run: found a number, made, and refused where it holds another run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import DataError, OutputError

RUNS = Path("runs")  # where runs go that are given no folder
WITHOUT_EFFECT = ("threads", "checkpoint_minutes")  # settings that change no weight


def refuse_another_run(folder: Path) -> None:
    """OutputError for a folder that a run was begun in."""
    if (folder / "config.json").exists():
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


def refuse_difference(
    folder: Path, was: Mapping[str, Any], now: Mapping[str, Any], usual: Mapping[str, Any]
) -> None:
    """DataError where the run in the folder, which was begun as `was` says, is not this one.

    was, now: what config.json says of each. usual: the settings' defaults.
    """
    # a setting that is younger than the run had its default
    old, new = {**usual, **was["config"]}, now["config"]
    differ = [
        f"{k} was {old.get(k)}, is {v}"
        for k, v in new.items()
        if old.get(k) != v and k not in WITHOUT_EFFECT
    ]
    if differ:
        raise DataError(
            f"{folder} is a run of another configuration: {'; '.join(differ)}; resume it with its own, or "
            "choose another folder"
        )
    before, after = was["data"], now["data"]
    if before["digest"] != after["digest"]:
        raise DataError(
            f"the data has changed since the run in {folder} was begun: {before['train']} images to train "
            f"on and {before['val']} to validate then, {after['train']} and {after['val']} now, not all of "
            "them the same; choose another folder for a new run"
        )


def made(folder: Path) -> None:
    """The folder is there afterwards, or OutputError says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}; choose a folder you may write to"
        ) from error


def following() -> Path:
    """The first of runs/1, runs/2, ... that is not there yet."""
    return next(path for number in count(1) if not (path := RUNS / str(number)).exists())


def writable(folder: Path) -> None:
    """OutputError where nothing can be written into `folder`, which need not be there yet."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; expected a folder to write into")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: cannot be written into; choose a folder you may write to")
