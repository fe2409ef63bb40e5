"""Read a weights file whole, and judge whether it is what it claims to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import modelfile
from ..errors import ModelFileError, WeightsError, nearest
from ..files.folders import download_folders
from ..files.hashes import beside, digests_of, matches, sealed
from . import catalog, supply


@dataclass(frozen=True)
class Verdict:
    """Of one file. ok: it proved to be what it claims. what: the reason, for people.

    sha256: of the whole file, "" where it could not be read.
    """

    file: Path
    ok: bool
    what: str
    sha256: str = ""


def verdicts(name: str | os.PathLike[str]) -> tuple[Verdict, ...]:
    """The verdicts on a file, or on all that this machine has of a catalogue name.

    Published files are compared with their published digest and with the whole SHA-256 that was learned
    when they first proved right; model files with the table, and with what they were when made.
    Raises WeightsError where there is nothing of that name.
    """
    entry = catalog.ENTRIES.get(os.fspath(name))
    if entry is not None:
        paths = tuple(_at_hand(entry))
        if not paths:
            raise WeightsError(
                f"nothing of {entry.name} is on this machine; get it with: "
                f"verydeep weights fetch {entry.name}"
            )
        return tuple(_verdict(path) for path in paths)
    path = Path(name)
    if not path.is_file():
        raise WeightsError(
            f"{os.fspath(name)!r} is neither a file nor in the catalogue"
            f"{nearest(os.fspath(name), catalog.ENTRIES)}"
        )
    return (_verdict(path),)


def _at_hand(entry: catalog.Entry) -> Iterator[Path]:
    folders = (supply.weights_folder(), *download_folders())
    candidates = [folder / one.file for one in entry.published for folder in folders]
    yield from (path for path in [*candidates, supply.model_path(entry)] if path.is_file())


def _verdict(path: Path) -> Verdict:
    try:
        record = modelfile.read(path).record
    except ModelFileError as error:
        if path.suffix == ".safetensors":
            return Verdict(path, False, str(error).removeprefix(f"{path}: "))
        return _published(path)
    head = f"{record.network.head.classes} classes" if record.network.head.classes else "no head"
    what = f"model file of {record.network.name}, {head}"
    sha256 = digests_of(path)[1]["sha256"]
    before = sealed(beside(path))
    if before is None:
        return Verdict(path, True, f"{what}; it agrees with its record", sha256)
    same = before.sha256 == sha256
    return Verdict(path, same, f"{what}; {'un' if same else ''}changed since it was made", sha256)


def _published(path: Path) -> Verdict:
    algorithms = {
        one.digest.partition(":")[0]
        for entry in catalog.ENTRIES.values()
        for one in entry.published
        if Path(one.file).suffix == path.suffix
    }
    _, found = digests_of(path, ("sha256", *sorted(algorithms)))
    sha256 = found["sha256"]
    for entry in catalog.ENTRIES.values():
        for one in entry.published:
            if matches(one.digest, found):
                before = sealed(beside(supply.weights_folder() / one.file))
                if before is not None and before.sha256 != sha256:
                    what = f"begins as {entry.name} should, but not as it was when it first proved right"
                    return Verdict(path, False, what, sha256)
                what = f"{entry.name} ({entry.weights}) as published, {one.digest}"
                return Verdict(path, True, what, sha256)
            if one.file == path.name:
                algorithm, _, head = one.digest.partition(":")
                what = f"not {entry.name}: its {algorithm} is {found[algorithm]}, expected {head}"
                return Verdict(path, False, what, sha256)
    return Verdict(path, False, "neither a model file nor one of the catalogue's", sha256)
