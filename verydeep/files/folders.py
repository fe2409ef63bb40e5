"""Where files that can be had or made again are kept: verydeep's own cache, and other people's.

A `Notebook` keeps facts that took time to find. One that cannot be read is as good as none, and one that
cannot be written is done without.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import warn_once
from .atomic import locked, replacing

FORMAT = 2  # 1 held races and hashes in one file
MOST = 500  # rows are kept

# Stands for the cache of somebody without a home: nothing is ever found there, and nothing can be written.
NOWHERE = Path(os.devnull, "verydeep")


def cache_folder() -> Path:
    """verydeep's cache: $VERYDEEP_CACHE, else the platform's place for caches, plus "verydeep".

    That place is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on
    Windows. Without a home folder it is `NOWHERE`, which is said once.
    """
    own = os.environ.get("VERYDEEP_CACHE")
    if own:
        return _settled(os.path.expanduser(own))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        place = Path(local) if local else _home("AppData", "Local")
    elif sys.platform == "darwin":
        place = _home("Library", "Caches")
    else:
        place = _xdg_cache()
    if place is None:
        warn_once(
            "there is no home folder, so nothing is kept for the next time; VERYDEEP_CACHE names a folder "
            "for it"
        )
        return NOWHERE
    return place / "verydeep"


@cache
def _settled(folder: str) -> Path:
    """Where a relative one led at first: a program that goes to another folder keeps its cache."""
    return Path(folder).absolute()


def going_without(folder: Path, error: OSError) -> None:
    """Say, once, that the cache folder cannot be written."""
    if folder != NOWHERE:  # that was said
        warn_once(
            f"the cache folder {folder} cannot be written ({error.strerror or error}); going on without "
            "it, which starts more slowly; VERYDEEP_CACHE names another"
        )


def download_folders() -> list[Path]:
    """The folders in which torch hub and Keras keep what they fetched, whether or not they exist."""
    torch_home, keras_home = os.environ.get("TORCH_HOME"), os.environ.get("KERAS_HOME")
    place = _xdg_cache()
    torch = Path(os.path.expanduser(torch_home)) if torch_home else place and place / "torch"
    keras = Path(os.path.expanduser(keras_home)) if keras_home else _home(".keras")
    return [
        *([torch / "hub" / "checkpoints"] if torch else []),
        *([keras / "models"] if keras else []),
    ]


def _xdg_cache() -> Path | None:
    # an empty or relative XDG_CACHE_HOME is to be ignored (XDG base directory specification)
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else _home(".cache")


def _home(*parts: str) -> Path | None:
    """A folder in the home of whoever runs this; None where neither HOME nor the system knows one."""
    try:
        return Path.home().joinpath(*parts)
    except RuntimeError:
        return None


class Notebook:
    """Rows of JSON values by key, the latest MOST. file: a name in the cache folder, or a whole path."""

    def __init__(self, file: str | Path) -> None:
        self.path = cache_folder() / file  # a whole path stays as it is
        self._rows: dict[str, Any] | None = None

    def rows(self) -> dict[str, Any]:
        """All of them, the latest last, as they were when first asked for."""
        if self._rows is None:
            rows: dict[str, Any] = {}
            try:
                value = json.loads(self.path.read_text(encoding="utf-8"))
                if value["format"] == FORMAT:  # of another version's nothing need be said
                    rows = dict(value["rows"])
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                warn_once(f"{self.path} cannot be read; what it remembered will be found anew")
            self._rows = rows  # whole, whichever thread looks
        return self._rows

    def write(self, key: str, value: Any) -> bool:
        """Add a row, or put it in the place of the one with that key; False where it cannot be kept."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock"), lambda: None):
                rows = Notebook(self.path).rows()  # another process may have written meanwhile
                rows.pop(key, None)
                latest = [*rows.items(), (key, value)][-MOST:]
                self._rows = dict(latest)
                with replacing(self.path, "w", encoding="utf-8") as file:
                    json.dump({"format": FORMAT, "rows": self._rows}, file, indent=1)
        except OSError as error:
            if os.path.isdir(self.path):  # Path's own may raise an error, too
                warn_once(f"{self.path} is a folder, so nothing is remembered; remove it")
            else:
                going_without(self.path.parent, error)
            return False
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._rows = None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
