"""Shards that lie elsewhere: listed once, and read by `webdataset` from beginning to end.

A listing is kept in verydeep's cache, a file a shard, and known again by the shard's URL and, over HTTP, by
its ETag, length and date. Of other URLs nothing is known without reading them: where a listing proves
wrong, it is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tarfile
import zlib
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

from ..errors import DataError, MissingExtraError, VerydeepError
from ..files.atomic import locked, replacing
from ..files.folders import cache_folder
from ..files.hashes import stamp
from ..files.photo_paths import IMAGE_SUFFIXES
from ..files.progress import stage

if TYPE_CHECKING:
    from .labelled import Sample

ELSEWHERE = re.compile("(https?|s3|gs|hf|ais|htgs|sftp|ftps|scp)://|file:|pipe:")
AT_ONCE = 8  # shards that are listed at the same time
ERRORS = (OSError, ValueError, EOFError, ImportError, tarfile.TarError, zlib.error)
CLOSED_EARLY = (None, 0, 23, 141, -13, -15)  # how curl and a shell end when we hung up

Entry = tuple[str, str, int]  # an image's name in its shard, its label, the bytes of its file


def is_stream(data: object) -> bool:
    """Whether these are shards to be streamed: a URL, or a pipe."""
    return isinstance(data, str) and ELSEWHERE.match(data) is not None


def expanded(data: str) -> list[str]:
    """The URL of each shard: "http://host/train-{000..099}.tar" are a hundred."""
    try:
        import braceexpand
        import webdataset  # noqa: F401  # the one comes with the other
    except ImportError as error:
        raise MissingExtraError("training from shards that are streamed", "webdataset") from error
    try:
        found = list(braceexpand.braceexpand(data))
    except ValueError as error:
        raise DataError(f"{data}: {error}; expected braces as in train-{{000..099}}.tar") from error
    if len(set(found)) < len(found):
        raise DataError(f"{data}: names a shard twice; expected each once")
    return found


def listings(urls: Sequence[str]) -> list[list[Entry]]:
    """What each shard holds, in its order; DataError where one cannot be read."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards") as pool:
        return list(stage(pool.map(_listing, urls), "listing shards", "shard", len(urls)))


def _listing(url: str) -> list[Entry]:
    """From the cache, else from the shard itself; another process that lists it is waited for."""
    path = _kept(url)
    with ExitStack() as held:
        with suppress(OSError):  # without a cache it is listed each time
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path.with_suffix(".lock"), lambda: None))
        with suppress(OSError, ValueError, TypeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            return [(name, label, size) for name, label, size in kept]  # older ones are a mapping
        found, seen = [], set[str]()
        for name, label, content in entries(url):
            refuse_twice(url, name, seen)
            found.append((name, label, len(content)))
        with suppress(OSError, VerydeepError), replacing(path, "w", encoding="utf-8") as file:
            json.dump(found, file)
        return found


def refuse_twice(shard: str, name: str, seen: set[str]) -> None:
    """Add a member's name to those seen; DataError where it is: which label is whose, nothing would say."""
    if name in seen:
        raise DataError(f"{shard}: holds {name} twice; expected a name of its own for each")
    seen.add(name)


def _kept(url: str) -> Path:
    facts = [url]
    if url.startswith("http"):
        asked = Request(url, method="HEAD")
        with suppress(OSError, ValueError), urlopen(asked, timeout=30) as answer:
            names = ("ETag", "Content-Length", "Last-Modified")
            facts += [str(answer.headers.get(name)) for name in names]
    elif url.startswith("file:"):
        with suppress(OSError, ValueError):
            facts.append(str(stamp(os.stat(url2pathname(urlparse(url).path)))))
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return cache_folder() / "shards" / f"{digest[:32]}.json"


def of_shards(samples: Sequence[Sample]) -> list[list[int]]:
    """The numbers of the samples of each shard, in the shard's order; empty where none is streamed."""
    found: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        if shard := getattr(sample.source, "shard", ""):
            found.setdefault(shard, []).append(number)
    return list(found.values())


def read(
    samples: Sequence[Sample], shards: Iterable[Sequence[int]]
) -> Generator[tuple[int, Sample], None, None]:
    """Those samples, shard after shard, each with its number, and with the bytes of its file as source."""
    for numbers in shards:
        sources: list[Any] = [samples[number].source for number in numbers]
        url = sources[0].shard
        keys = [(source.name, source.label, source.size_bytes) for source in sources]
        wanted = dict(zip(keys, numbers, strict=True))
        with closing(entries(url)) as coming:
            for name, label, content in coming:
                if (number := wanted.pop((name, label, len(content)), None)) is not None:
                    yield number, replace(samples[number], source=content)
                if not wanted:
                    break
        if wanted:
            _kept(url).unlink(missing_ok=True)
            raise DataError(
                f"{url}: {next(iter(wanted))[0]} is not there as it was when the shard was listed; the "
                "next run lists it anew"
            )


def entries(url: str) -> Generator[tuple[str, str, bytes], None, None]:
    """Name and label of each image of a shard, and its bytes, as they come; DataError where that fails."""
    from webdataset import tariterators
    from webdataset.gopen import gopen

    stream: Any = None
    try:
        stream = gopen(f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3://") else url)
        watched = _Watched(stream)
        files = tariterators.tar_file_expander([{"url": url, "stream": watched}])
        for sample in tariterators.group_by_keys(files):
            stem, label = sample["__key__"], sample.get("cls", sample.get("txt"))
            for suffix in [key for key in sample if f".{key}" in IMAGE_SUFFIXES]:
                name = f"{stem}.{suffix}"
                if label is None:
                    raise DataError(
                        f"{url}: {name} has no {stem}.cls beside it, which is its label"
                    )
                yield name, label.decode().strip(), sample[suffix]
        watched.end()
        stream.close()  # says where the command failed
    except DataError:
        raise
    except ERRORS as error:
        text = str(error.args[0] if error.args else error)  # webdataset adds to the arguments
        why = " ".join(text.partition(" @ ")[0].split()) or type(error).__name__
        if hasattr(stream, "proc"):
            stream.stream.close()
            if (status := stream.proc.wait()) not in CLOSED_EARLY:
                why = f"the command that fetches it ended with status {status}"
        elif isinstance(error, OSError) and error.strerror:
            why = f"{error.strerror}: {error.filename}"
        raise DataError(f"{url}: cannot be read as a shard, a tar: {why}") from error
    finally:
        with suppress(OSError, AttributeError):
            stream.proc.terminate()
        with suppress(OSError, AttributeError):
            stream.close()


class _Watched:
    """A stream that knows whether a tar ended: one that is cut short is read as if it were shorter."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._head, self._tail = stream, b"", b""

    def read(self, size: int) -> bytes:
        found: bytes = self._stream.read(size)
        self._head, self._tail = self._head or found[:512], (self._tail + found)[-512:]
        return found

    def end(self) -> None:
        """Read what pads the end; ValueError where there is none."""
        while self.read(2**16):
            pass
        if self._head[257:262] == b"ustar" and any(self._tail):
            raise ValueError("it ends before its end")
