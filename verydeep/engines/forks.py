"""What threads share, through a fork: locks that are free in the child, engines that are opened anew there.

A fork copies the memory of a process and none of its threads. A lock that another thread holds at that
moment would stay locked in the child for ever, and an engine would wait for threads that it does not have.
"""

from __future__ import annotations

import ctypes
import os
from threading import RLock
from typing import Any
from weakref import WeakSet

# their `in_child()` is called in every child that is forked while they live, before all else
WATCHED: WeakSet[Any] = WeakSet()


# Held while an engine is opened, or engines are raced. A fork waits for it: the child would find modules
# half imported, and libraries' own locks locked, for ever.
OPENING = RLock()


class Turns:
    """A lock, for `with turns.lock`, which its holder may take again; in a forked child it is free."""

    def __init__(self) -> None:
        self.lock = RLock()
        WATCHED.add(self)

    def in_child(self) -> None:
        self.lock = RLock()


def never_destroy(thing: object) -> None:
    """Keep it until the process ends, and then as well: its destructor would wait for lost threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    OPENING.release()
    for thing in list(WATCHED):
        thing.in_child()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=OPENING.acquire, after_in_parent=OPENING.release, after_in_child=_in_child
    )
