"""What files hash to: read once, and not again until the file changes.

A file is known by its stamp, which is what the system said of it when it was opened. A later file of the
same name, size and date has another stamp, so that nothing is remembered of the wrong one.

A published digest is written "algorithm:hex"; the hex may be the head of the whole, as in the names of
torchvision's files ("sha256:397923af"). So a published file is sealed when it first proves right, and from
then on all of its SHA-256 counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from ..errors import WeightsError
from .atomic import replacing
from .folders import Notebook

MEMORY = "hashes.json"
BLOCK_BYTES = 4 << 20  # large enough that Python's share of the time vanishes
TICK_SECONDS = 0.01  # file systems date changes by a clock that ticks so often, or more often

Stamp: TypeAlias = tuple[int, ...]  # device, inode, ctime_ns, size, mtime_ns


def stamp(status: os.stat_result) -> Stamp:
    """Of an open file, by what `os.fstat` says of it."""
    return (
        status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size, status.st_mtime_ns,
    )  # fmt: skip


def digests_of(path: Path, algorithms: Iterable[str] = ("sha256",)) -> dict[str, str]:
    """The file's hex digests by algorithm; its SHA-256 is remembered. WeightsError if unreadable."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in dict.fromkeys(algorithms)}
    block = memoryview(bytearray(BLOCK_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            known = stamp(os.fstat(file.fileno()))
            _settle(known)
            while count := file.readinto(block):
                for one in hashes.values():
                    one.update(block[:count])
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    digests = {name: one.hexdigest() for name, one in hashes.items()}
    if "sha256" in digests:
        Notebook(MEMORY).write(str(known), digests["sha256"])
    return digests


def _settle(known: Stamp) -> None:
    """Wait until the clock has ticked since the last change, so that the next one makes another stamp."""
    if 0 <= time.time_ns() - max(known[2], known[4]) < TICK_SECONDS * 1e9:
        time.sleep(TICK_SECONDS)


def matches(digest: str, digests: dict[str, str]) -> bool:
    """Whether the published `digest` ("sha256:397923af") agrees with what `digests_of` read."""
    algorithm, _, head = digest.partition(":")
    return bool(head) and digests.get(algorithm, "").startswith(head)


# The memory of what was read


def remembered(known: Stamp) -> str | None:
    """The SHA-256 of the file with that stamp, if it was read before: 64 hexadecimal digits."""
    digest = Notebook(MEMORY).rows().get(str(known))
    return digest if isinstance(digest, str) else None


def sha256_of(known: Stamp, path: Path, read: Callable[[], str]) -> str:
    """The SHA-256 of the file that had that stamp when it was opened as `path`.

    read: hashes the open file, where that was not done before.
    """
    with suppress(OSError):
        now = stamp(path.stat())
        if now[:2] == known[:2] and now[3:] != known[3:]:
            return read()  # written over in place: what is open is no longer what had the stamp
    digest = remembered(known)
    if digest is None:
        _settle(known)
        digest = read()
        Notebook(MEMORY).write(str(known), digest)
    return digest


def forget() -> None:
    """Forget the hashes of all files; each is read again when it is next asked for."""
    Notebook(MEMORY).clear()


# Seals: what a file must be


def seal(path: Path, sha256: str) -> None:
    """Keep beside a file what it hashed to when it was right. OSError where that cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(_note(path), "w", encoding="utf-8") as file:
        json.dump({"sha256": sha256}, file)


def sealed(path: Path) -> str | None:
    """The SHA-256 that a file must have; None where it has no seal, or that cannot be read."""
    try:
        note = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    digest = note.get("sha256") if isinstance(note, dict) else None
    return digest if isinstance(digest, str) else None


def unbroken(path: Path, copy: Path | None = None) -> bool:
    """Whether a file, or its copy elsewhere, is what its seal says. WeightsError if it cannot be read."""
    right = sealed(path)
    return right is not None and agrees(copy or path, right)


def digest_of(path: Path) -> str:
    """A file's SHA-256; read only where it is not remembered. WeightsError if unreadable."""
    known = None
    with suppress(OSError):
        known = remembered(stamp(path.stat()))
    return known or digests_of(path)["sha256"]


def agrees(path: Path, sha256: str) -> bool:
    """Whether a file has that SHA-256. WeightsError if unreadable."""
    return digest_of(path) == sha256


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
