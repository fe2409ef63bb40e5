"""Keep what an engine prepared from a graph, so that it is prepared once.

Each entry is a folder: the engine's files, and `entry.json`, which says what they are and how long. A
folder appears whole or not at all, by a rename. What does not fit under the limit makes room for what was
used last. Every entry can be made again, so nothing here is ever worth an error: a cache that cannot be
used is said once, and done without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EngineError, OutputError, log, warn_once
from .folders import cache_folder
from .lock import locked

LIMIT_BYTES = 2_000_000_000
FORMAT = 1
MANIFEST = "entry.json"
ABANDONED_SECONDS = 24 * 3600  # after which a half-made folder is nobody's any more

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One prepared graph. used: seconds since 1970 when it was last opened."""

    name: str
    path: Path
    about: Mapping[str, Any]
    size_bytes: int
    used: float


class Cache:
    """The prepared graphs in one folder.

    folder: None is verydeep's own, "prepared" in `folders.cache_folder()`.
    limit_bytes: None is $VERYDEEP_CACHE_LIMIT ("500MB", "4GB", or bytes), else 2 GB.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder() / "prepared"
        self.limit_bytes = _limit() if limit_bytes is None else limit_bytes
        self.making_seconds = 0.0  # spent on making what was not there yet

    def open(
        self,
        name: str,
        about: Mapping[str, Any],
        make: Callable[[Path], None],
        load: Callable[[Path, Mapping[str, Any]], T],
        *,
        needs_bytes: Callable[[], int],
    ) -> T:
        """What `load` makes of the entry's folder; `make` fills the folder where there is none yet.

        about: what must be true of an entry to be used, such as the engine's version; `make` may leave
        more facts for `load` in a file of its own. needs_bytes: room on the disk that `make` takes.
        `load` raises EngineError where the files are of no use: they are made again, once.
        Raises EngineError where there is room nowhere.
        """
        about = {"format": FORMAT, **about}
        path = self.folder / name
        found = self._load(path, about, load)
        if found is not None:
            return found[0]
        size = needs_bytes()
        make = self._timed(make)
        try:
            if size > self.limit_bytes:
                raise _UnusableError(
                    f"{name} needs {_megabytes(size)}, more than the cache's limit of "
                    f"{_megabytes(self.limit_bytes)}; it is prepared anew every time "
                    "(VERYDEEP_CACHE_LIMIT=4GB raises the limit)"
                )
            self._prepare_folder(size)
            return self._locked_open(path, about, make, load)
        except _UnusableError as reason:
            warn_once(str(reason))
        with tempfile.TemporaryDirectory(prefix="verydeep-", ignore_cleanup_errors=True) as place:
            _require_room(Path(place), size)
            with _disk_errors(Path(place)):
                make(Path(place))
            return load(Path(place), about)

    def _timed(self, make: Callable[[Path], None]) -> Callable[[Path], None]:
        def timed(folder: Path) -> None:
            began = time.perf_counter()
            try:
                make(folder)
            finally:
                self.making_seconds += time.perf_counter() - began

        return timed

    def entries(self) -> list[Entry]:
        """What is there, used last first. Folders that are no entries are left out."""
        found = []
        for path in self._folders():
            manifest = None if path.name.endswith(".part") else _manifest(path)
            if manifest is not None:
                used = (path / MANIFEST).stat().st_mtime
                found.append(Entry(path.name, path, manifest["about"], _size_bytes(path), used))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Remove every entry and half-made one; the bytes that this gave back."""
        total = 0
        for path in list(self._folders()):
            total += _size_bytes(path)
            shutil.rmtree(path, ignore_errors=True)
        return total

    def _folders(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from sorted(path for path in self.folder.iterdir() if path.is_dir())

    def _load(
        self, path: Path, about: Mapping[str, Any], load: Callable[[Path, Mapping[str, Any]], T]
    ) -> tuple[T] | None:
        """What `load` makes of an entry that is there and right, in a tuple; else None."""
        try:
            if not path.exists():
                return None
            wrong = _fault(path, about)
            if wrong is None:
                value = load(path, about)
                with suppress(OSError):
                    os.utime(path / MANIFEST)  # used now
                return (value,)
        except (EngineError, OSError) as error:
            wrong = str(error)
        log.info(
            f"the prepared graph {path.name} in the cache cannot be used: {wrong}; rebuilding it"
        )
        return None

    def _prepare_folder(self, size: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # only whether it can be made
            probe.close()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise _UnusableError(
                f"the cache folder {self.folder} cannot be written ({error.strerror}); going on without "
                "it, which starts more slowly; VERYDEEP_CACHE names another"
            ) from error
        if free < size:
            raise _UnusableError(
                f"the cache folder {self.folder} has {_megabytes(free)} free, and "
                f"{_megabytes(size)} are needed; going on without it; free some space, or name "
                "another with VERYDEEP_CACHE"
            )

    def _locked_open(
        self,
        path: Path,
        about: Mapping[str, Any],
        make: Callable[[Path], None],
        load: Callable[[Path, Mapping[str, Any]], T],
    ) -> T:
        def waiting() -> None:
            log.info(f"another process is preparing {path.name}; waiting for it")

        try:
            with locked(self.folder / f"{path.name}.lock", waiting):
                if path.exists():
                    if _fault(path, about) is None:
                        with suppress(EngineError):  # then it is made again
                            return load(path, about)
                    shutil.rmtree(path, ignore_errors=True)
                part = Path(
                    tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=self.folder)
                )
                try:
                    make(part)
                    _write_manifest(part, about)
                    self._make_room(_size_bytes(part))
                    os.replace(part, path)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                return load(path, about)
        except OSError as error:
            raise _UnusableError(
                f"{path.name} cannot be kept in the cache ({error.strerror or error}); going on without it"
            ) from error

    def _make_room(self, size: int) -> None:
        """Let the entries go that were used longest ago, until `size` more bytes fit."""
        for path in self._folders():
            if path.name.endswith(".part"):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
        entries = self.entries()
        total = size + sum(entry.size_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit_bytes:
                return
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.size_bytes


class _UnusableError(Exception):
    """The cache cannot hold this entry; the text says why."""


class _disk_errors:  # noqa: N801  # reads as the verb it is
    """Turn what the disk refuses inside the block into an EngineError."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | OutputError):
            raise EngineError(
                f"{self.place}: preparing the graph failed: {error.strerror or error}; free some space, "
                "or name a folder on another disk with VERYDEEP_CACHE or TMPDIR"
            ) from error


def _require_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size:
        raise EngineError(
            f"preparing the graph needs {_megabytes(size)} on a disk, and {place.parent} has "
            f"{_megabytes(free)} free; free some space, or name a folder on another disk with "
            "VERYDEEP_CACHE or TMPDIR"
        )


def _fault(path: Path, about: Mapping[str, Any]) -> str | None:
    """Why the folder is not the entry that `about` describes, or None where it is.

    A file whose length and time of change are as they were is taken to be as it was; any other is read.
    """
    manifest = _manifest(path)
    if manifest is None:
        return f"its {MANIFEST} is missing or damaged"
    if manifest["about"] != about:
        return "it was made for something else"
    restamp = False
    for name, known in manifest["files"].items():
        try:
            status = (path / name).stat()
        except OSError:
            return f"its {name} is missing"
        if status.st_size != known["size"]:
            return f"its {name} has {status.st_size} bytes instead of {known['size']}"
        if status.st_mtime_ns != known["mtime_ns"]:
            if _sha256(path / name) != known["sha256"]:
                return f"its {name} is damaged"
            restamp = True
    if restamp:  # a copied cache: right, but with other times
        with suppress(OSError):
            _write_manifest(path, about)
    return None


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        good = isinstance(value["about"], dict) and all(
            isinstance(known["size"], int)
            and isinstance(known["mtime_ns"], int)
            and isinstance(known["sha256"], str)
            and Path(name).name == name
            for name, known in value["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return value if good else None


def _write_manifest(path: Path, about: Mapping[str, Any]) -> None:
    files = {}
    for file in sorted(path.iterdir()):
        if file.name != MANIFEST:
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
            status = file.stat()
            files[file.name] = {
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "sha256": _sha256(file),
            }
    text = json.dumps({"about": about, "files": files}, indent=1, sort_keys=True)
    with open(path / MANIFEST, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _size_bytes(path: Path) -> int:
    total = 0
    for file in path.iterdir() if path.is_dir() else ():
        with suppress(OSError):
            total += file.stat().st_size
    return total


def _limit() -> int:
    text = os.environ.get("VERYDEEP_CACHE_LIMIT", "")
    if not text.strip():
        return LIMIT_BYTES
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise EngineError(
            f"VERYDEEP_CACHE_LIMIT is {text!r}; expected bytes, or a size such as 500MB or 4GB"
        )
    unit = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[match[2].lower()]
    return int(float(match[1]) * 1000**unit)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
