"""Files written whole or not at all, and by one process at a time.

Whole: a temporary file beside it, fsync, rename. One at a time: the operating system holds a lock on an
open file, and a killed process gives it up, so that none is ever left behind. The empty file stays, until
`remove_lock`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import OutputError

if sys.platform == "win32":
    import msvcrt

    def _try(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _free(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _free(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


POLL_SECONDS = 0.1
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # what writing meets, in a caller's block, too
ADVICE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EFBIG: "choose a disk that takes larger files",
    errno.ENOENT: "make the folder first",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
}

OPEN = re.compile(r"/dev/(std(out|err)$|fd/)|/proc/[^/]+/fd/")  # names of what a process has open


@contextmanager
def replacing(
    path: str | os.PathLike[str], mode: str = "wb", *, aside: str = ".", **options: Any
) -> Iterator[IO[Any]]:
    """A file to write that takes `path`'s place when the block ends well, and vanishes when it does not.

    mode, options: as for `open`. aside: what its name begins with until then. The file that was at
    `path` before stays until the new one is on disk, and lends it its permissions. Of a link, the file
    behind it is replaced. What is no file, such as /dev/null or a named pipe, is written to and never
    replaced.
    Raises OutputError, naming `path`, where it cannot be made, finished or put in place, or the disk fills
    up; whatever else the block raises goes on as it is.
    """
    path, written = Path(path), False
    try:
        before = path.stat() if path.exists() else None
        whole = is_replaced(path)
        target = Path(os.path.realpath(path))
        # no longer than a file system takes
        name = f"{aside}{target.name[:50]}.{os.urandom(4).hex()}.part"
        part = target.with_name(name) if whole else path
        # what is written to already, as /dev/stdout may be a file, keeps what it has
        file = open(part, mode.replace("w", "x" if whole else "a"), **options)  # noqa: SIM115
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with file:
            yield file
            written = True
            file.flush()
            if whole:
                os.fsync(file.fileno())
        if not whole:
            return
        if before is not None:
            os.chmod(part, stat.S_IMODE(before.st_mode))
        os.replace(part, target)
    except BaseException as error:
        if whole:
            with suppress(OSError):
                os.unlink(part)
        # EPIPE: a pipe's reader went away, as `| head` does, and there is nothing to mend
        if isinstance(error, OSError) and (
            error.errno in FULL or (written and error.errno != errno.EPIPE)
        ):
            raise _refused(path, error) from error
        raise
    with suppress(OSError):  # some file systems refuse to sync a folder; the file itself is safe
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def is_replaced(path: Path) -> bool:
    """Whether `replacing` puts a new file there; a device or pipe, or what is held open, is written to."""
    # behind these names even a file is one that somebody holds open: the shell's, as /dev/stdout
    # os.path's, since Path's own raise an error in a folder that may not be looked into
    return not os.path.exists(path) or (
        os.path.isfile(path) and not OPEN.match(os.path.abspath(path))
    )


def require_other(path: Path, source: str | os.PathLike[str]) -> None:
    """OutputError where `path` leads to the file that what is written there is made of."""
    if os.path.isfile(path) and os.path.exists(source) and path.samefile(source):
        raise OutputError(f"{path}: leads to the file that it is made of; name another file")


class _TriedError(Exception):
    """Takes away again what was opened to see whether it can be."""


def require_writable(out: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> None:
    """OutputError where `replacing` could not write there: said before minutes of work.

    sources: what is made into it, which it must not be.
    """
    path = Path(out)
    for source in sources:
        require_other(path, source)
    if os.path.isdir(path):
        raise OutputError(f"{out}: cannot be written: it is a folder; name a file in it")
    if os.path.isfile(path) or not os.path.exists(path):
        with suppress(_TriedError), replacing(path):
            raise _TriedError
    elif not os.access(path, os.W_OK):  # a device or pipe: opened only when there is what to write
        raise OutputError(f"{out}: cannot be written: {os.strerror(errno.EACCES)}")


def _refused(path: Path, error: OSError) -> OutputError:
    advice = ADVICE.get(error.errno or 0)
    # of two names: the new file was made, and could not take the old one's place
    if sys.platform == "win32" and isinstance(error, PermissionError) and error.filename2:
        advice = "a program may have it open; close it there"
    reason = "; ".join(filter(None, (error.strerror, advice)))
    return OutputError(f"{path}: cannot be written: {reason}")


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; call `waiting` once if another process holds it, then wait.

    On a file system without locks nothing is held: writers there must be safe by themselves, as an
    atomic rename is. A child that is forked meanwhile does not hold it. Raises OSError where the file
    cannot be made.
    """
    handle, process = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), os.getpid()
    _handles.add(handle)
    try:
        if not _taken(handle):
            waiting()
            while not _taken(handle):
                time.sleep(POLL_SECONDS)
        # removed before it was held, so that others hold the new one of that name
        gone = not os.fstat(handle).st_nlink
        with locked(path, waiting) if gone else nullcontext():
            yield
    finally:
        if os.getpid() == process:  # a child that was forked inside has closed its copy
            _handles.discard(handle)
            with suppress(OSError):  # not held
                _free(handle)  # by closing alone a child's copy would keep it
            os.close(handle)


def remove_lock(path: Path) -> None:
    """Remove a lock file, unless somebody holds it. Who has opened it meanwhile makes a new one."""

    def held() -> None:
        raise BlockingIOError

    # Windows removes no file that anybody has open, us included
    with suppress(OSError), nullcontext() if sys.platform == "win32" else locked(path, held):
        os.unlink(path)


_handles: set[int] = set()  # of lock files that are held or waited for


def _in_child() -> None:
    """A fork copies the handles, and the locks stay the parent's: to close them takes none away."""
    while _handles:
        with suppress(OSError):
            os.close(_handles.pop())


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)


def _taken(handle: int) -> bool:
    try:
        _try(handle)
    except OSError as error:
        # held by another process: EWOULDBLOCK from flock, EACCES or EDEADLOCK from Windows
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
