"""Shards that lie elsewhere, streamed by `webdataset`: each is read through once, to list what it holds.

That listing is kept in verydeep's cache, a file a shard, so that a later run, or one that was broken off
while it listed, streams no shard for it again. A shard is known again by its URL, and by ETag, length and
date over HTTP, or length and time of a file; of a pipe nothing is known without running it, so that its own
text must do, and a listing that proves wrong is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ...errors import DataError, MissingExtraError, VerydeepError, log
from ...files.atomic import locked, replacing
from ...files.folders import cache_folder
from ...files.photo_paths import IMAGE_SUFFIXES

ELSEWHERE = (
    "http://", "https://", "s3://", "gs://", "hf://", "ais://", "htgs://", "sftp://", "ftps://",
    "scp://", "file:", "pipe:",
)  # fmt: skip
AT_ONCE = 8  # shards that are listed at the same time
QUIET_SECONDS, HEAD_SECONDS = 10.0, 30.0
ERRORS = (OSError, ValueError, EOFError, ImportError, tarfile.TarError, zlib.error)
CLOSED_EARLY = (0, 23, 141, -13, -15)  # curl's, a shell's and a signal's way to say that we hung up


@dataclass(frozen=True)
class Entry:
    """An image in a shard. name: of its file there; label: what the .cls or .txt beside it says."""

    name: str
    label: str
    size_bytes: int


def is_stream(data: object) -> bool:
    """Whether these are shards to be streamed: a URL, or a pipe."""
    return isinstance(data, str) and data.startswith(ELSEWHERE)


def expanded(data: str) -> list[str]:
    """The URL of each shard: "http://host/train-{000..099}.tar" are a hundred."""
    _library()
    import braceexpand

    try:
        found = list(braceexpand.braceexpand(data))
    except ValueError as error:
        raise DataError(f"{data}: {error}; expected braces as in train-{{000..099}}.tar") from error
    if len(set(found)) < len(found):
        raise DataError(f"{data}: names a shard twice; expected each once")
    return found


def listings(urls: Sequence[str]) -> list[list[Entry]]:
    """What each shard holds, in its order; DataError where one cannot be read."""
    _library()
    # processes of one machine begin at different shards, and so share the work through the cache
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first = rank * len(urls) // world
    turned = [*urls[first:], *urls[:first]]
    stop = threading.Event()
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards")
    due = time.monotonic() + QUIET_SECONDS
    found: list[list[Entry]] = []
    try:
        for one in pool.map(lambda url: _listing(url, stop), turned):
            found.append(one)
            if rank == 0 and time.monotonic() > due:
                due = time.monotonic() + QUIET_SECONDS
                log.info(
                    f"listing shards, once: {len(found)} of {len(urls)}, {sum(map(len, found))} images"
                )
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    back = len(urls) - first
    return [*found[back:], *found[:back]]


def entries(url: str) -> Generator[tuple[Entry, bytes], None, None]:
    """Each image of a shard with the bytes of its file, as they come; DataError where it cannot be read."""
    gopen, tars = _library()
    stream: Any = None
    try:
        stream = gopen(f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3://") else url)
        watched = _Watched(stream)
        for sample in tars.group_by_keys(tars.tar_file_expander([{"url": url, "stream": watched}])):
            label = next((sample[key] for key in ("cls", "txt") if key in sample), None)
            for suffix in [key for key in sample if f".{key}" in IMAGE_SUFFIXES]:
                name = f"{sample['__key__']}.{suffix}"
                if label is None:
                    raise DataError(
                        f"{url}: {name} has no {sample['__key__']}.cls beside it, which is its label"
                    )
                yield Entry(name, label.decode().strip(), len(sample[suffix])), sample[suffix]
        while watched.read(2**16):  # what pads the end
            pass
        stream.close()  # says where the command failed
        if watched.cut_short:
            raise ValueError("it ends before its end")
    except DataError:
        raise
    except ERRORS as error:
        why = _why(error, stream)
        raise DataError(f"{url}: cannot be read as a shard, a tar: {why}") from error
    finally:
        if stream is not None:
            if hasattr(stream, "proc"):
                stream.proc.terminate()
            with suppress(OSError):
                stream.close()


class _Watched:
    """A stream that is read on. cut_short: a tar without its end, which is read as if it were shorter."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._head, self._tail = stream, b"", b""

    def read(self, size: int) -> bytes:
        found: bytes = self._stream.read(size)
        self._head += found[: max(0, 512 - len(self._head))]
        self._tail = (self._tail + found)[-512:]
        return found

    @property
    def cut_short(self) -> bool:
        return self._head[257:262] == b"ustar" and any(self._tail)


def _why(error: Exception, stream: Any) -> str:
    if hasattr(stream, "proc"):
        stream.stream.close()
        status = stream.proc.wait()
        if status not in CLOSED_EARLY:
            return f"the command that fetches it ended with status {status}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    text = str(error.args[0] if error.args else error)  # webdataset adds to the arguments
    return " ".join(text.partition(" @ ")[0].split()) or type(error).__name__


def _listing(url: str, stop: threading.Event) -> list[Entry]:
    """From the cache, else from the shard itself."""
    identity, path = _identity(url), _path(url)
    with ExitStack() as held:
        with suppress(OSError):  # without a cache it is listed each time
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path.with_suffix(".lock"), lambda: None))
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if (kept["url"], kept["identity"]) == (url, identity):
                return [Entry(*one) for one in kept["images"]]
        found = []
        with closing(entries(url)) as coming:
            for entry, _ in coming:
                found.append(entry)
                if stop.is_set():
                    raise DataError(f"{url}: was not listed to its end")
        if len({entry.name for entry in found}) < len(found):
            raise DataError(
                f"{url}: holds two files of one name; expected each name once in a shard"
            )
        about = {"url": url, "identity": identity, "images": [astuple(entry) for entry in found]}
        with suppress(OSError, VerydeepError), replacing(path, "w", encoding="utf-8") as file:
            json.dump(about, file)
        return found


def forget(url: str) -> None:
    """List that shard anew when it is asked for again."""
    with suppress(OSError):
        _path(url).unlink(missing_ok=True)


def _path(url: str) -> Path:
    return cache_folder() / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"


def _identity(url: str) -> str:
    """What changes with the content, as far as it costs next to nothing to ask; "" where it does not."""
    with suppress(OSError, ValueError):
        if re.match("https?://", url):
            asked = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(asked, timeout=HEAD_SECONDS) as answer:
                names = ("ETag", "Content-Length", "Last-Modified")
                return " ".join(str(answer.headers.get(name, "")) for name in names)
        if url.startswith("file:"):
            status = os.stat(urllib.request.url2pathname(urlparse(url).path))
            return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def _library() -> tuple[Any, Any]:
    try:
        from webdataset import tariterators
        from webdataset.gopen import gopen
    except ImportError as error:
        raise MissingExtraError("training from shards that are streamed", "webdataset") from error
    return gopen, tariterators
