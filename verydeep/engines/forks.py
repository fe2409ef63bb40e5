"""What is the whole process's: locks that are free after a fork, engines opened anew there, stdout, Ctrl-C.

A fork copies the memory of a process and none of its threads. A lock that another thread holds at that
moment would stay locked in the child for ever, and an engine would wait for threads that it does not have.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakSet

from ..errors import EngineError

T = TypeVar("T")
HEED_SECONDS = 0.1  # after which Ctrl-C is heard at the latest

# their `in_child()` is called in every child that is forked while they live, before all else
WATCHED: WeakSet[Any] = WeakSet()

# Held while an engine is opened, or engines are raced. A fork waits for it: the child would find modules
# half imported, and libraries' own locks locked, for ever.
OPENING = RLock()


class Turns:
    """A lock, for `with turns.lock`, which its holder may take again; in a forked child it is free.

    running: an engine computes while it is held, so a fork waits for it: what the engine's own threads have
    locked would stay so in the child. Who needs OPENING beside a running one takes that first.
    """

    def __init__(self, *, running: bool = False) -> None:
        self.lock, self.running = RLock(), running
        WATCHED.add(self)

    def in_child(self) -> None:
        self.lock = RLock()


BEGUN_IN = os.getpid()  # a process that was forked since has another number

_threads_of: dict[str, int] = {}  # engine -> the process that its library's threads were made in


def require_own_threads(engine: str) -> None:
    """EngineError where they were made before a fork: the library believes that it has them still."""
    if _threads_of.setdefault(engine, os.getpid()) != os.getpid():
        raise EngineError(
            f"{engine} cannot compute with several threads in a process made by fork, since it did so "
            "before the fork; start processes with the method spawn, use the model in the child alone, or "
            "give threads=1"
        )


def never_destroy(thing: object) -> None:
    """Keep it until the process ends, and then as well: its destructor would wait for lost threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def awaited(running: Future[T], stop: Callable[[], object]) -> T:
    """What it comes to. At Ctrl-C it is told to stop, and has stopped before the KeyboardInterrupt goes on.

    So it is with all that a handler of signals may raise. Signals are heard by the main thread alone, and
    only while that runs Python: so long work of an engine runs in another thread.
    """
    try:
        while not wait([running], HEED_SECONDS).done:  # which Windows does not interrupt
            pass
    except BaseException:
        stop()
        wait([running])
        raise
    return running.result()


@contextmanager
def silenced() -> Iterator[list[str]]:
    """Nothing reaches stdout or stderr inside; the list holds the lines that tried to, afterwards.

    C code writes to file descriptors 1 and 2 behind Python's back, so both lead into a temporary file.
    What other threads print meanwhile goes there too: keep the block short.
    """
    lines: list[str] = []
    # one at a time, since two must not restore each other's descriptors, and none during a fork
    with OPENING, tempfile.TemporaryFile() as caught:
        _flush()
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


_waited_for: list[Any] = []  # locks that a fork holds


def _before() -> None:
    OPENING.acquire()
    for thing in list(WATCHED):
        if isinstance(thing, Turns) and thing.running:
            thing.lock.acquire()
            _waited_for.append(thing.lock)


def _in_parent() -> None:
    while _waited_for:
        _waited_for.pop().release()
    OPENING.release()


def _in_child() -> None:
    _in_parent()
    for thing in list(WATCHED):
        thing.in_child()
    if "onnxruntime" in sys.modules:
        # Its destructor waits for threads that a child has not, so that sys.exit would never end. What
        # glibc is told last it calls first: _exit, with the status. Python has flushed and ended by then.
        with suppress(AttributeError):  # other systems have no on_exit
            libc = ctypes.CDLL(None)
            libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
