"""What a model file and a run say of how they were made: the command, the versions, the time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "ncnn", "MNN")


def command() -> str:
    """As it was typed, quoted for a shell; of a program that is not ours its name alone.

    What others are given may be nobody's business, and model files are passed on.
    """
    program = Path(sys.argv[0])
    name = program.name.removesuffix(".exe")
    name = "python" if name in ("", "-", "-c") else name
    if (program.parent.name, name) == ("verydeep", "__main__.py"):  # python -m verydeep
        name = "verydeep"
    typed = shlex.join([name, *(sys.argv[1:] if name == "verydeep" else ())])
    return typed.encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes


def asked() -> dict[str, Any]:
    """What began a run, and where, for whoever goes on with it; and with what."""
    return {"command": command(), "folder": os.getcwd(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of verydeep, of what is installed that computes, of Python and of the system."""
    found = {"verydeep": __version__}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found | {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }


def now() -> str:
    """Local time with its offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
