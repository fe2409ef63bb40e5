"""Write a file whole or not at all: a temporary file beside it, fsync, rename."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import OutputError

ADVICE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.ENOENT: "make the folder first",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
}


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that takes `path`'s place when the block ends well, and vanishes when it does not.

    mode, options: as for `open`. The file that was at `path` before stays until the new one is on disk.
    Raises OutputError, naming `path`, where it cannot be made or the disk fills up.
    """
    target = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part"
        )
    except OSError as error:
        raise _refused(target, error) from error
    try:
        with open(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would surprise whoever shares the folder
        os.replace(name, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EISDIR):
            raise _refused(target, error) from error
        raise
    with suppress(OSError):  # some file systems refuse to sync a folder; the file itself is safe
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def _refused(target: Path, error: OSError) -> OutputError:
    advice = ADVICE.get(error.errno or 0, "")
    return OutputError(
        f"{target}: cannot be written: {error.strerror}{'; ' + advice if advice else ''}"
    )


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
