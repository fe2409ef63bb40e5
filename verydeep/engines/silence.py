"""Silence what an engine's C code prints by itself, and keep it for the error message.

C code writes to file descriptors 1 and 2 behind Python's back, so for the length of the block both lead
into a temporary file. What other threads print meanwhile goes there too: keep the block short.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .forks import OPENING


@contextmanager
def silenced() -> Iterator[list[str]]:
    """Nothing reaches stdout or stderr inside; the list holds the lines that tried to, afterwards."""
    lines: list[str] = []
    # one at a time, since two must not restore each other's descriptors, and none during a fork
    with OPENING, tempfile.TemporaryFile() as caught:
        for stream in (sys.stdout, sys.stderr):
            with suppress(
                Exception
            ):  # a stream may be closed, None, or anything a caller put there
                stream.flush()
        kept = {}
        for descriptor in (1, 2):
            with suppress(OSError):  # a daemon may have closed it
                kept[descriptor] = os.dup(descriptor)
                os.dup2(caught.fileno(), descriptor)
        try:
            yield lines
        finally:
            _flush()
            for descriptor, original in kept.items():
                os.dup2(original, descriptor)
                os.close(original)
            caught.seek(0)
            lines += caught.read().decode("utf-8", "replace").splitlines()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a stream may be closed, None, or anything a caller put there
            stream.flush()
