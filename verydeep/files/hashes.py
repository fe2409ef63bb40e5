"""Hash files of any size, compare them with what was published, and remember what was learned.

A published digest is written "algorithm:hex"; the hex may be the head of the whole, as in the names of
torchvision's files ("sha256:397923af"). What a file's whole SHA-256 was when it first proved right is
kept in a small JSON file beside it, so that it can be checked whole from then on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import WeightsError
from .atomic import replacing

BLOCK_BYTES = 4 << 20  # large enough that Python's share of the time vanishes


@dataclass(frozen=True)
class Learned:
    """What is known of a file that proved right once.

    sha256: whole, hex. size_bytes, modified_ns: to notice cheaply that the file has changed.
    source: the address it came from, or what made it.
    """

    sha256: str
    size_bytes: int
    modified_ns: int
    source: str


def file_digests(path: Path, algorithms: Iterable[str] = ("sha256",)) -> dict[str, str]:
    """Hex digests of the file, by algorithm, read once in large blocks. WeightsError if unreadable."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in dict.fromkeys(algorithms)}
    block = memoryview(bytearray(BLOCK_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                for one in hashes.values():
                    one.update(block[:count])
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    return {name: one.hexdigest() for name, one in hashes.items()}


def matches(digest: str, found: dict[str, str]) -> bool:
    """Whether the published `digest` ("sha256:397923af") agrees with what `file_digests` found."""
    algorithm, _, head = digest.partition(":")
    return bool(head) and found.get(algorithm, "").startswith(head)


def learn(path: Path, sha256: str, source: str, at: Path | None = None) -> None:
    """Remember that `path` is right as it is now. `at`: the JSON file, beside `path` by default.

    Raises OutputError where that cannot be written.
    """
    status = path.stat()
    facts = Learned(sha256, status.st_size, status.st_mtime_ns, source)
    with replacing(at or beside(path), "w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(facts), indent=1) + "\n")


def learned(path: Path, at: Path | None = None) -> Learned | None:
    """What was learned of `path`; None where nothing was, or the note itself cannot be read."""
    try:
        facts = json.loads((at or beside(path)).read_text(encoding="utf-8"))
        return Learned(**facts)
    except (OSError, ValueError, TypeError):
        return None


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")
