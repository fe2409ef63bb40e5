"""What threads share, through a fork: locks that are free in the child, engines that are opened anew there.

A fork copies the memory of a process and none of its threads. A lock that another thread holds at that
moment would stay locked in the child for ever, and an engine would wait for threads that it does not have.
"""

from __future__ import annotations

import ctypes
import os
from threading import RLock
from typing import Protocol
from weakref import WeakSet


class _Watched(Protocol):
    def in_child(self) -> None:
        """Called in a forked child, before anything else runs there."""


_WATCHED: WeakSet[_Watched] = WeakSet()


def watch(thing: _Watched) -> None:
    """Call its `in_child` in every child that is forked from now on, for as long as it lives."""
    _WATCHED.add(thing)


class Turns:
    """A lock for use in `with`, which its holder may take again; in a forked child it is free."""

    def __init__(self) -> None:
        self._lock = RLock()
        watch(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def in_child(self) -> None:
        self._lock = RLock()


def never_destroy(thing: object) -> None:
    """Keep it until the process ends, and then as well: its destructor would wait for lost threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    for thing in list(_WATCHED):
        thing.in_child()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
