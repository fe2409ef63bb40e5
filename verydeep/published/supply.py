"""From a catalogue name to a model file: found or fetched once, converted once, then kept.

A catalogue name is used wherever a model file is. The published file is verified before it is used; the
model file made of it needs neither torch nor the network again.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import MissingExtraError, OutputError, WeightsError, nearest
from ..files.folders import cache_folder, download_folders
from ..files.hashes import Learned, beside, file_digests, learn, learned, matches
from ..files.lock import locked
from .catalog import ENTRIES, Entry, Published

# what `foreign` needs to read a file of that kind: the package, and the extra that brings it
_READERS = {".pth": ("torch", "torch"), ".h5": ("h5py", "keras")}


def weights_folder() -> Path:
    """Where published files and the model files made of them are kept."""
    return cache_folder() / "weights"


def obtain(name: str | os.PathLike[str], progress: bool = True) -> Path:
    """The path of a model file with these weights, fetched and converted first where that is needed.

    name: a catalogue name, or a path: a model file is returned as it is, any other weights are
    converted if they prove to be published ones (`convert.convert` takes the rest).
    progress: a bar, and notes on stderr.

    Reads $VERYDEEP_CACHE, $VERYDEEP_MIRROR (an address or a folder that holds the files under their
    own names), $VERYDEEP_OFFLINE. Raises WeightsError for an unknown name, weights that cannot be had
    or are not what they claim to be; MissingExtraError where converting needs torch or h5py.
    """
    known = ENTRIES.get(os.fspath(name))
    if known is None:
        path = Path(name)
        if not path.exists():
            raise WeightsError(
                f"no weights {os.fspath(name)!r}: neither in the catalogue nor a file"
                f"{nearest(os.fspath(name), ENTRIES)}"
            )
        return path if _is_model_file(path) else _converted(path, None, progress)
    target = model_path(known)
    if _unchanged(target, progress):
        return target
    package, extra = _READERS.get(Path(known.file).suffix, ("", ""))
    if package and not find_spec(package):  # said before 500 MB are fetched, not after
        raise MissingExtraError(f"converting {known.file}", extra)
    return _converted(find_source(known, progress), known, progress)


def model_path(known: Entry) -> Path:
    """Where the model file of an entry is kept, whether or not it is there."""
    return weights_folder() / f"{known.file.rsplit('.', 1)[0]}.safetensors"


def find_source(known: Entry, progress: bool = True) -> Path:
    """The published file of an entry, verified: from a folder where it already is, or fetched."""
    mirror = os.environ.get("VERYDEEP_MIRROR", "")
    mirror_folder = _local(mirror)
    for published in known.published:
        for folder in filter(None, (weights_folder(), mirror_folder, *download_folders())):
            path = folder / published.file
            if path.is_file():
                if _verified(path, published):
                    return path
                _note(f"{path} is not {published.digest}, so it is left alone", progress)
    if mirror_folder is not None:
        raise WeightsError(
            f"VERYDEEP_MIRROR is the folder {mirror_folder}, which has no {known.file} "
            f"that agrees with {known.published[0].digest}; put it there, or unset the variable"
        )
    place = weights_folder() / known.file
    if os.environ.get("VERYDEEP_OFFLINE", "0") not in ("", "0"):
        raise WeightsError(
            f"{known.name} is not on this machine and VERYDEEP_OFFLINE is set; put {known.file} at "
            f"{place}, or unset the variable"
        )
    return _fetched(known, mirror, progress)


def _fetched(known: Entry, mirror: str, progress: bool) -> Path:
    from . import fetching as fetch  # http and ssl take a while to load: most calls never come here

    gone: fetch.GoneError | None = None
    for published in known.published:
        url = f"{mirror.rstrip('/')}/{published.file}" if mirror else published.url
        place = weights_folder() / published.file
        advice = (
            "set VERYDEEP_MIRROR to an address or folder that has it, "
            f"or put the file at {place}, or give the path of one that you have"
        )
        try:
            return fetch.fetch(
                url, place, digest=published.digest, progress=progress, advice=advice
            )
        except fetch.GoneError as error:
            gone = gone or error
    raise WeightsError(f"{gone}; {advice}")


def _converted(source: Path, known: Entry | None, progress: bool) -> Path:
    from . import conversion as convert

    if known is None:
        known = convert.identify(source)
        if known is None:
            raise WeightsError(
                f"{source} is neither a model file nor one of the catalogue's; make a model file of "
                f"it with: verydeep weights convert {source} OUT --preprocess NAME"
            )
    target = model_path(known)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock")
        waiting = f"another process is converting {target.name}; waiting for it"
        with locked(lock, lambda: _note(waiting, progress)):
            if _unchanged(target, progress):  # made by another process while we waited
                return target
            _note(f"converting {source.name} to {target}, once", progress)
            convert.convert(source, target, claim=known.name)
            learn(target, file_digests(target)["sha256"], str(source))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise WeightsError(
            f"cannot write {target}: {error.strerror or error}; set VERYDEEP_CACHE to a folder that "
            "you may write to"
        ) from error
    return target


def _verified(path: Path, published: Published) -> bool:
    """Whether a file is what was published: whole if that was learned before, else by its digest."""
    note = beside(weights_folder() / path.name)
    before = learned(path, at=note)
    if before is None:
        found = file_digests(path, ("sha256", published.digest.partition(":")[0]))
        if not matches(published.digest, found):
            return False
        _remember(path, found["sha256"], published.url, note)
        return True
    if _same(path, before):
        return True
    found = file_digests(path, ("sha256", published.digest.partition(":")[0]))
    right = found["sha256"] == before.sha256 and matches(published.digest, found)
    if right:
        _remember(path, found["sha256"], before.source, note)
    return right


def _unchanged(path: Path, progress: bool) -> bool:
    """Whether a model file that we made is there and still what it was."""
    before = learned(path)
    if before is None or not path.is_file():
        return False
    if _same(path, before):
        return True
    if file_digests(path)["sha256"] == before.sha256:
        _remember(path, before.sha256, before.source, beside(path))
        return True
    _note(f"{path} has changed since it was made; making it again", progress)
    return False


def _same(path: Path, before: Learned) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (before.size_bytes, before.modified_ns)


def _remember(path: Path, sha256: str, source: str, at: Path) -> None:
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        learn(path, sha256, source, at)
    except OSError:
        pass  # a read-only cache still works: what was learned is learned again next time


def _is_model_file(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    from .. import modelfile
    from ..errors import ModelFileError

    try:
        modelfile.read(path)
    except ModelFileError:
        return False
    return True


def _local(mirror: str) -> Path | None:
    """The folder that $VERYDEEP_MIRROR names, None where it is an address or unset."""
    if mirror.startswith("file:"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(mirror).path))
    if not mirror or "://" in mirror:
        return None
    return Path(mirror).expanduser()


def _note(text: str, progress: bool) -> None:
    if progress:
        print(f"verydeep: {text}", file=sys.stderr, flush=True)
