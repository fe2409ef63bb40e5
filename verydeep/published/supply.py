"""From a catalogue name to a model file: found or fetched once, converted once, then kept.

A catalogue name is used wherever a model file is. The published file is verified before it is used; the
model file made of it needs neither torch nor the network again, so that it alone is kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

from ..errors import MissingExtraError, OutputError, WeightsError, log, nearest
from ..files.atomic import locked
from ..files.folders import cache_folder, download_folders
from ..files.hashes import digests_of, matches, seal, sealed, unbroken
from ..files.wording import quoted
from .catalog import ENTRIES, Entry, Published

# what `foreign` needs to read a file of that kind: the package, and the extra that brings it
_READERS = {".pth": ("torch", "torch"), ".h5": ("h5py", "keras")}


def weights_folder() -> Path:
    """Where published files and the model files made of them are kept."""
    return cache_folder() / "weights"


def obtain(name: str | os.PathLike[str], progress: bool = True) -> Path:
    """The path of a model file with these weights, fetched and converted first where that is needed.

    name: a catalogue name, or a path: a model file is returned as it is, any other weights are
    converted if they prove to be published ones (`conversion.convert` takes the rest).
    progress: a bar on stderr, while something is fetched.

    Reads $VERYDEEP_CACHE, $VERYDEEP_MIRROR (an address or a folder that holds the files under their
    own names), $VERYDEEP_OFFLINE. Raises WeightsError for an unknown name, weights that cannot be had
    or are not what they claim to be; ModelFileError for a damaged model file; MissingExtraError where
    converting needs torch or h5py.
    """
    name = os.fspath(name)
    known = ENTRIES.get(name)
    if known is None:
        path = Path(name)
        if not os.path.exists(path):
            raise WeightsError(
                f"no weights {name!r}: neither in the catalogue nor a file{nearest(name, ENTRIES)}"
            )
        from .. import modelfile

        if modelfile.is_model_file(path):
            return modelfile.read(path).path
        from .recognition import by_digest

        _, published = by_digest(path)
        if published is None:
            raise WeightsError(
                f"{path} is neither a model file nor one of the catalogue's; make a model file of "
                f"it with: verydeep weights convert {quoted(name)} OUT --preprocess NAME"
            )
        return _made(published[0], path)
    target = model_path(known)
    if os.path.isfile(target) and sealed(target) is not None:
        if unbroken(target):
            _keep_one(known)
            return target
        log.info(f"{target} has changed since it was made; making it again")
    package, extra = _READERS.get(Path(known.file).suffix, ("", ""))
    if package and not find_spec(package):  # said before 500 MB are fetched, not after
        raise MissingExtraError(f"converting {known.file}", extra)
    return _made(known, progress=progress)


def model_path(known: Entry) -> Path:
    """Where the model file of an entry is kept, whether or not it is there."""
    return weights_folder() / f"{known.file.rsplit('.', 1)[0]}.safetensors"


class Wanted(Protocol):
    """What is to be had: an entry of the catalogue, or another file that somebody published.

    published: where it is, and older files that do as well. file: the name of the first. otherwise: what to
    do where it cannot be had.
    """

    otherwise: ClassVar[str]

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def published(self) -> tuple[Published, ...]: ...


def find_source(known: Wanted, progress: bool = True) -> Path:
    """The published file, verified: from a folder where it already is, or fetched."""
    mirror = os.environ.get("VERYDEEP_MIRROR", "")
    mirror_folder = _local(mirror)
    for published in known.published:
        for folder in filter(None, (weights_folder(), mirror_folder, *download_folders())):
            path = folder / published.file
            if os.path.isfile(path):  # not Path's, which raises where a folder is forbidden
                if _verified(path, published):
                    return path
                log.info(f"{path} is not {published.digest}, so it is left alone")
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


def _fetched(known: Wanted, mirror: str, progress: bool) -> Path:
    from . import fetching  # http and ssl take a while to load: most calls never come here

    first: fetching.UnreachableError | None = None
    for published in known.published:
        url = f"{mirror.rstrip('/')}/{published.file}" if mirror else published.url
        place = weights_folder() / published.file
        try:
            return fetching.fetch(url, place, published.digest, progress=progress)
        except fetching.UnreachableError as error:
            first = first or error
            if not isinstance(error, fetching.GoneError):
                break
    raise WeightsError(
        f"{first}; set VERYDEEP_MIRROR to an address or folder that has it, or put the file at "
        f"{weights_folder() / known.file}, or {known.otherwise}"
    ) from first


def _made(known: Entry, source: Path | None = None, progress: bool = True) -> Path:
    """The model file of an entry, of `source` or of the published file, which is found or fetched."""
    from . import conversion  # and NumPy, only where there is something to do

    target = model_path(known)
    with held(target, "making"):
        if not (os.path.isfile(target) and unbroken(target)):  # else made while we waited
            source = source or find_source(known, progress)
            log.info(f"converting {source.name} to {target}, once")
            conversion.convert(source, target, claim=known.name)
            seal(target, digests_of(target)["sha256"])
    _keep_one(known)
    return target


def _keep_one(known: Entry) -> None:
    """Remove the published file from our own folder, once its model file is whole and on the disk.

    Done whenever it is found, so that a crash in between leaves both for a while, and never neither.
    """
    for published in known.published:
        file = weights_folder() / published.file
        # what never proved right is somebody's own
        if os.path.isfile(file) and not os.path.islink(file) and sealed(file) and unbroken(file):
            size = file.stat().st_size
            with suppress(OSError):  # Windows keeps a file that somebody reads
                file.unlink()
                log.info(
                    f"removed {file} ({size / 1e6:,.0f} MB): {model_path(known).name} beside it has the "
                    f"same weights; `verydeep weights convert {known.name} OUT.pth` makes a .pth again"
                )


@contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """Make the file `path`, which no other process makes meanwhile: what it is `doing` is said.

    What the disk refuses becomes a WeightsError, one line that says what to do.
    """
    waiting = f"another process is {doing} {path.name}; waiting for it"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock"), lambda: log.info(waiting)):
            yield
    except OutputError:
        raise
    except OSError as error:
        what = f"{error.strerror or error}; set VERYDEEP_CACHE to a folder that you may write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full; make room and start again: it goes on where it stopped"
        raise WeightsError(f"cannot write {path}: {what}") from error


def _verified(path: Path, published: Published) -> bool:
    """Whether a file is what was published: by its seal, where it has one, else by its digest."""
    kept = weights_folder() / path.name
    try:
        if sealed(kept) is not None:
            return unbroken(kept, path)
        digests = digests_of(path, ("sha256", published.digest.partition(":")[0]))
    except WeightsError as error:  # it cannot be read: no reason not to look elsewhere
        log.info(str(error))
        return False
    right = matches(published.digest, digests)
    if right:
        with suppress(OSError):  # a cache that cannot be written: it is read again next time
            seal(kept, digests["sha256"])
    return right


def _local(mirror: str) -> Path | None:
    """The folder that $VERYDEEP_MIRROR names, None where it is an address or unset."""
    if mirror.startswith("file:"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(mirror).path))
    if not mirror or "://" in mirror:
        return None
    return Path(os.path.expanduser(mirror))
