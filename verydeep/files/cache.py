"""Keep what was prepared of a model, an engine's own file or decoded weights, so that it is prepared once.

Each entry is a folder: its files, and `entry.json`, which says what they are and how long. A
folder appears whole or not at all, by a rename. What does not fit under the limit makes room for what was
used last. Every entry can be made again, so nothing here is ever worth an error: a cache that cannot be
used is said once, and done without.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EngineError, VerydeepError, log, warn_once
from .atomic import locked, remove_lock, replacing
from .folders import cache_folder, going_without
from .hashes import agrees, digests_of

LIMIT_BYTES = 2_000_000_000
FORMAT = 1
MANIFEST = "entry.json"
ABANDONED_SECONDS = 24 * 3600  # after which a half-made folder is nobody's any more
_WAITING = "another process is preparing %s; waiting for it"
_ELSEWHERE = "free some space, or name a folder on another disk with VERYDEEP_CACHE or TMPDIR"

_KEEPING = ContextVar("keeping", default=True)

T = TypeVar("T")


@contextmanager
def nothing_kept() -> Iterator[None]:
    """What this thread prepares within is of a model that is used once, and makes no room for itself."""
    before = _KEEPING.set(False)
    try:
        yield
    finally:
        _KEEPING.reset(before)


@dataclass(frozen=True)
class Entry:
    """One prepared model. used: seconds since 1970 when it was last opened."""

    name: str
    path: Path
    about: Mapping[str, Any]
    size_bytes: int
    used: float


class Cache:
    """The prepared models in one folder.

    folder: None is verydeep's own, "prepared" in `folders.cache_folder()`.
    limit_bytes: None is $VERYDEEP_CACHE_LIMIT ("500MB", "4GB", or bytes), else 2 GB.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder() / "prepared"
        self.limit_bytes = _limit() if limit_bytes is None else limit_bytes

    def open(
        self,
        name: str,
        about: Mapping[str, Any],
        make: Callable[[Path], None],
        load: Callable[[Path, Mapping[str, Any]], T],
        *,
        needs_bytes: Callable[[], int],
        aside: bool = True,
    ) -> T:
        """What `load` makes of the entry's folder; `make` fills the folder where there is none yet.

        about: what must be true of an entry to be used, such as the engine's version; `make` may leave
        more facts for `load` in a file of its own. needs_bytes: room on the disk that `make` takes.
        aside: whether, where it cannot be kept, it is made in a temporary folder, gone after `load`.
        `load` raises EngineError where the files are of no use: they are made again, once.
        Raises EngineError where there is room nowhere.
        """
        about = {"format": FORMAT, **about}
        path = self.folder / name
        with suppress(_UnusableError):  # looked at once more below, with the lock
            return _load(path, about, load)
        size = needs_bytes()
        beside, room = None, self._has_room(name, size)
        if room and not _KEEPING.get():
            beside = self.folder  # for a moment
        elif room:
            try:
                with locked(self.folder / f"{name}.lock", partial(log.info, _WAITING, name)):
                    try:
                        return _load(path, about, load)
                    except _UnusableError as error:
                        self._make(path, about, make, error)
                    return load(path, about)
            except OSError as error:
                going_without(self.folder.parent, error)
        if not aside:
            raise EngineError(f"there is no room for {name} in {self.folder}")
        with tempfile.TemporaryDirectory(
            prefix=".verydeep-", suffix=".part", dir=beside, ignore_cleanup_errors=True
        ) as place:
            free = shutil.disk_usage(place).free
            if free < size:
                raise EngineError(
                    f"preparing the model needs {_megabytes(size)} on a disk, and "
                    f"{tempfile.gettempdir()} has {_megabytes(free)} free; {_ELSEWHERE}"
                )
            try:
                make(Path(place))
            except OSError as error:
                reason = error.strerror or error
                raise EngineError(f"preparing the model failed: {reason}; {_ELSEWHERE}") from error
            return load(Path(place), about)

    def _make(
        self, path: Path, about: Mapping[str, Any], make: Callable[[Path], None], why: Exception
    ) -> None:
        """Put a new entry in the place of one that cannot be used."""
        if path.exists():
            log.info(
                f"the prepared model {path.name} in the cache cannot be used: {why}; rebuilding it"
            )
            _removed(path)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=self.folder))
        try:
            make(part)
            files = {p.name: {"sha256": _kept(p)} for p in sorted(part.iterdir())}
            with replacing(part / MANIFEST, "w", encoding="utf-8") as file:
                json.dump({"about": about, "files": files}, file, indent=1, sort_keys=True)
            self._make_room(_size_bytes(part))
            os.replace(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _has_room(self, name: str, size: int) -> bool:
        """Whether so much can be kept here; said once where it cannot."""
        if size > self.limit_bytes:
            warn_once(
                f"{name} needs {_megabytes(size)}, more than the cache's limit of "
                f"{_megabytes(self.limit_bytes)}; it is prepared anew every time; "
                f"VERYDEEP_CACHE_LIMIT={size // 1_000_000 + 1}MB is enough for it"
            )
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            going_without(self.folder.parent, error)
            return False
        if free < size:
            warn_once(
                f"the cache folder {self.folder} has {_megabytes(free)} free, and "
                f"{_megabytes(size)} are needed; going on without it; free some space, or name "
                "another with VERYDEEP_CACHE"
            )
        return free >= size

    def entries(self) -> list[Entry]:
        """What is there, used last first. Folders that are no entries are left out."""
        entries = []
        for path in self._folders():
            with suppress(OSError, _UnusableError):
                about, _ = _read_manifest(path)
                used = (path / MANIFEST).stat().st_mtime
                entries.append(Entry(path.name, path, about, _size_bytes(path), used))
        return sorted(entries, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Remove every entry and half-made one, and locks that nobody holds; the bytes given back."""
        freed = sum(map(_removed, [*self._folders(), *self._folders(halves=True)]))
        with suppress(OSError):
            for path in list(self.folder.glob("*.lock")):
                remove_lock(path)
        return freed

    def _folders(self, halves: bool = False) -> list[Path]:
        """Those of entries, or of half-made ones."""
        with suppress(OSError):
            folders = [path for path in self.folder.iterdir() if path.is_dir()]
            return sorted(path for path in folders if (path.suffix == ".part") == halves)
        return []

    def _make_room(self, size: int) -> None:
        """Let the entries go that were used longest ago, until `size` more bytes fit."""
        for path in self._folders(halves=True):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    _removed(path)
        entries = self.entries()
        total = size + sum(entry.size_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit_bytes:
                return
            total -= _removed(entry.path)


class _UnusableError(Exception):
    """There is no such entry, or it cannot be used; the text says why."""


def _load(path: Path, about: Mapping[str, Any], load: Callable[[Path, Mapping[str, Any]], T]) -> T:
    """What `load` makes of an entry that is there and right; _UnusableError where it is not."""
    made_for, files = _read_manifest(path)
    if made_for != about:
        raise _UnusableError("it was made for something else")
    try:
        for name, sha256 in files.items():
            if not agrees(path / name, sha256):
                raise _UnusableError(f"its {name} is damaged")
        value = load(path, about)
    except (VerydeepError, OSError) as error:
        raise _UnusableError(str(error)) from error
    with suppress(OSError):
        os.utime(path / MANIFEST)  # used now
    return value


def _read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an entry is about, and the SHA-256 of its files by their names."""
    try:
        value = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        about, files = dict(value["about"]), dict(value["files"])
        if files and all(Path(name).name == name for name in files):
            return about, {name: str(file["sha256"]) for name, file in files.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise _UnusableError(f"its {MANIFEST} is missing or damaged")


def _kept(file: Path) -> str:
    """The SHA-256 of a file that was just made, once it is safely on the disk."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    return digests_of(file)["sha256"]


def _removed(path: Path) -> int:
    """The bytes that were given back: none where files are open and cannot go, as on Windows."""
    size, gone = _size_bytes(path), path
    if path.suffix != ".part":
        gone = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.part")
        try:
            os.replace(path, gone)  # whole or not at all
        except OSError:
            return 0
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        gone.unlink()  # a file or link in an entry's place
    return size


def _size_bytes(path: Path) -> int:
    total = 0
    for file in path.iterdir() if path.is_dir() else ():
        with suppress(OSError):
            total += file.stat().st_size
    return total


def _limit() -> int:
    text = os.environ.get("VERYDEEP_CACHE_LIMIT", "").strip()
    if not text:
        return LIMIT_BYTES
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise EngineError(
            f"VERYDEEP_CACHE_LIMIT is {text!r}; expected bytes, or a size such as 500MB or 4GB"
        )
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
