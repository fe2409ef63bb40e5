"""Where files that can be had or made again are kept: verydeep's own cache, and other people's.

Nothing here creates a folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import warn_once

# Stands for the cache of somebody without a home: nothing is ever found there, and nothing can be written.
NOWHERE = Path(os.devnull, "verydeep")


def cache_folder() -> Path:
    """verydeep's cache: $VERYDEEP_CACHE, else the platform's place for caches, plus "verydeep".

    That place is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on
    Windows. Without a home folder it is `NOWHERE`, which is said once.
    """
    own = os.environ.get("VERYDEEP_CACHE")
    if own:
        return Path(os.path.expanduser(own))
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
    cache = _xdg_cache()
    torch = Path(os.path.expanduser(torch_home)) if torch_home else cache and cache / "torch"
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
