"""Where files that can be had or made again are kept: verydeep's own cache, and other people's.

Nothing here creates a folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """verydeep's cache: $VERYDEEP_CACHE, else the platform's place for caches, plus "verydeep".

    That place is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on
    Windows.
    """
    own = os.environ.get("VERYDEEP_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "verydeep"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "verydeep"
    return _xdg_cache() / "verydeep"


def download_folders() -> tuple[Path, ...]:
    """The folders in which torch hub and Keras keep what they fetched, whether or not they exist."""
    torch_home = os.environ.get("TORCH_HOME")
    torch = Path(torch_home).expanduser() if torch_home else _xdg_cache() / "torch"
    keras_home = os.environ.get("KERAS_HOME")
    keras = Path(keras_home).expanduser() if keras_home else Path.home() / ".keras"
    return torch / "hub" / "checkpoints", keras / "models"


def _xdg_cache() -> Path:
    # an empty or relative XDG_CACHE_HOME is to be ignored (XDG base directory specification)
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path.home() / ".cache"
