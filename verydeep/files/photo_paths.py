"""From what a person typed (files, folders, globs, a list on stdin) to the photos that are meant.

And what a file is by its first bytes, where its name does not say it, or not rightly.
"""

from __future__ import annotations

import glob
import importlib.util
import io
import os
import re
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

from ..errors import DataError, warn_once

# What a folder is searched for. A file that is named is tried whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))  # photos too, where `reads_heif`
HEIF_HINT = 'pip install "verydeep[heif]" to read HEIC'
# Folders that systems put beside photos: macOS in its zips, Synology, Windows.
HIDDEN = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN"))
PICTURES = frozenset(  # that are not read, and may be meant
    ".jp2 .jxl .psd .raw .dng .cr2 .cr3 .nef .arw .jpeg_original .jpg_original".split()
)
ENDINGS = 5  # of files that are not used, named in a line


def find(given: Iterable[str], also: Collection[str] = ()) -> Iterator[str]:
    """Paths in the order given; folders recursively, sorted, without hidden entries.

    also: suffixes of what else is taken from folders, in small letters.
    "-" reads one path a line from stdin. A path that does not exist but matches as a glob ("**"
    included) gives its matches; one that matches nothing is passed on, to be reported when it is opened.
    """
    for name in given:
        if name == "-":
            yield from find(filter(None, _listed()), also)
        elif os.path.isdir(name):
            yield from inside(name, also)
        elif not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(set(_matches(name)))
            # "**" gives folders and what is in them: no path twice
            photos = (inside(m, also) if os.path.isdir(m) else [m] for m in matches)
            yield from dict.fromkeys(chain.from_iterable(photos)) if matches else [name]
        else:
            yield name


def _matches(pattern: str) -> Iterator[str]:
    """As `glob.glob`, "**" included; through links as `walked`, since they may lead round and round."""
    seps = re.escape(os.sep + (os.altsep or ""))
    deep = re.search(rf"(?<![^{seps}])\*\*(?:[{seps}]+|\Z)", pattern)
    if not deep:
        yield from glob.glob(pattern)
        return
    before, after = pattern[: deep.start()], pattern[deep.end() :]
    everything = after == "*" or (not after and pattern.endswith("**"))
    for top in glob.glob(before) if glob.has_magic(before) else [before]:
        for parent, _, files in walked(top or os.curdir):
            way = parent if top else parent[2:]  # without "./"
            if everything:  # each folder has its turn
                yield from (os.path.join(way, name) for name in files)
            else:
                yield from _matches(os.path.join(glob.escape(way), after))


def _listed() -> Iterator[str]:
    """The lines of stdin as names: any bytes, blanks at an end taken off where that finds more."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        name, plain = line.rstrip("\r\n"), line.strip()
        better = os.path.lexists(plain) or glob.has_magic(plain)
        yield plain if not plain or (better and not os.path.lexists(name)) else name


def names(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """What somebody calls photos, one or several, as text; DataError where that is no path."""
    several = [given] if isinstance(given, str | os.PathLike) else list(given)
    for one in several:
        if not isinstance(one, str | os.PathLike):
            raise DataError(
                f"photos are given as {type(one).__name__}; expected paths of photos and folders"
            )
    return [os.fspath(one) for one in several]


def find_some(given: Sequence[str]) -> tuple[Iterable[str], bool]:
    """What `find` gives, and whether it is more than one; DataError where it is none."""
    paths = find(given)
    first = list(islice(paths, 2))
    if not first:
        where = f"in {', '.join(given)}" if given else "are given"
        raise DataError(f"no photos {where}; expected photos or folders that hold some")
    return (chain(first, paths), True) if len(first) > 1 else (first, False)


def counter(given: Sequence[str]) -> Callable[[], int] | None:
    """What counts the photos that `find` gives; None where they come on stdin, and can be read but once."""
    return None if "-" in given else lambda: sum(1 for _ in find(given))


def told_apart(first: str, second: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ: names, or with the folders that tell them apart."""
    ways = [Path(os.path.abspath(path)).parts for path in (first, second)]
    for count in range(1, max(map(len, ways))):
        ends = tuple(str(Path(*way[-count:])) for way in ways)
        if ends[0] != ends[1]:
            return ends[0], ends[1]
    return first, second


def inside(folder: str | os.PathLike[str], also: Collection[str] = ()) -> Iterator[str]:
    """The photos in a folder and those below it, sorted; at the end it is said what else was there.

    also: as for `find`.
    """
    others: Counter[str] = Counter()
    for parent, _, files in walked(folder):
        for file in files:
            path = os.path.join(parent, file)
            if file.lower().endswith(tuple(also)) or is_photo(file, partial(head, path)):
                yield path
            else:
                others[ending(file)] += 1
    if others:  # once, though it may be walked through again to count
        warn_once(f"{os.fspath(folder)}: {unused(others)}")


def walked(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, sorted, without hidden entries; links are followed, but to no folder on the way there.

    So what two ways lead to is there twice, under two names. Of files those alone that can be read to an
    end: no pipes, sockets and devices. A folder that cannot be read is said once, and left out.
    """
    # of folders to come: those on the way, themselves last
    ways: dict[str, tuple[object, ...]] = {os.fspath(folder): (_identity(folder),)}
    for parent, folders, files in os.walk(folder, onerror=_left_out, followlinks=True):
        way, kept = ways.pop(parent), []
        for name in sorted(folders):
            full = os.path.join(parent, name)
            if not is_hidden(name) and (own := _identity(full)) not in way:
                ways[full] = (*way, own)
                kept.append(name)
        folders[:] = kept
        yield parent, folders, sorted(f for f in files if not is_hidden(f) and _ends(parent, f))


def _left_out(error: OSError) -> None:
    # of what is no folder, as a pattern may begin, nothing is left out
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        warn_once(f"{error.filename}: cannot be read ({error.strerror}); what is in it is left out")


def _identity(folder: str | os.PathLike[str]) -> object:
    """What only this folder has, whatever leads to it."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _ends(parent: str, name: str) -> bool:
    """Whether it is a file; so is what cannot be looked at, which is said when it is opened."""
    try:
        return stat.S_ISREG(os.stat(os.path.join(parent, name)).st_mode)
    except OSError:
        return True


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is no business of ours."""
    return (name.startswith(".") and name not in (".", "..")) or name in HIDDEN


def is_photo(name: str, first: Callable[[], bytes]) -> bool:
    """Whether a file counts as a photo: by its suffix, or without one by its first bytes."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix:
        return is_read(suffix)
    what, _ = sniff(first())
    return what.endswith(" image") or (what == "HEIC" and reads_heif())


def is_read(suffix: str) -> bool:
    """Whether files with that suffix, in small letters, are read as photos."""
    return suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())


@cache
def reads_heif() -> bool:
    """Whether the package is installed that reads HEIC, which PIL itself does not."""
    return importlib.util.find_spec("pillow_heif") is not None


def head(path: str, most: int = 64) -> bytes:
    """The first bytes of a file; none of what is no file, or cannot be read."""
    try:
        if os.path.isfile(path):  # a pipe would be waited for
            with open(path, "rb") as file:
                return file.read(most)
    except OSError:
        pass
    return b""


def ending(name: str) -> str:
    """By what files that are not used are counted."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def unused(endings: Counter[str]) -> str:
    """A line on files that are not used, by their endings."""
    from .wording import counted

    some = [f"{count:,} {name}" for name, count in endings.most_common(ENDINGS)]
    more = ["others"] if len(endings) > ENDINGS else []
    are = "is" if endings.total() == 1 else "are"
    hint = "" if HEIF_SUFFIXES.isdisjoint(endings) else f"; {HEIF_HINT}"
    hint += "" if PICTURES.isdisjoint(endings) else "; convert pictures to JPEG or PNG"
    return f"{counted(endings.total(), 'file')} {are} not used: {', '.join(some + more)}{hint}"


def composed(name: str) -> str:
    """The spelling by which names are compared: "é" is one letter, whichever way a disk stores it.

    Linux and Windows keep what was typed, mostly NFC; macOS hands out NFD.
    """
    return unicodedata.normalize("NFC", name)


# what it begins with, what it is, and what to do where that is the same for all who wanted another file
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\xff\xd8\xff", "a JPEG image", ""),
    (rb"\x89PNG", "a PNG image", ""),
    (rb"GIF8", "a GIF image", ""),
    (rb"RIFF....WEBP", "a WebP image", ""),
    (rb"II\*\x00|MM\x00\*", "a TIFF image", ""),
    (rb"BM....\x00{4}", "a BMP image", ""),
    (rb"....ftypavi[fs]", "an AVIF image", ""),
    (rb"....ftyp(he|mif1)", "HEIC", HEIF_HINT),
    (rb"....ftyp", "a video", ""),
    (rb"%PDF", "a PDF", ""),
    (rb"%!PS", "PostScript", ""),
    (rb"<(!doctype html|html)", "a web page, probably of a failed download", "fetch it again"),
    (rb"<(\?xml|svg)", "XML or SVG", ""),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (rb"PK\x03\x04", "a zip archive", ""),
    (rb"\x80[\x02-\x05]", "a Python pickle", ""),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", "unpack it first"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes them", ""),
    (rb"\x93NUMPY", "a NumPy array", ""),
    (rb"GGUF", "a GGUF file", ""),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a]", "an ONNX graph", ""),
    (rb"[\t\n\r -~]{8}|[\t\n\r -~]{3,7}\Z", "text", ""),
)


def sniff(head: bytes) -> tuple[str, str]:
    """What the file looks like, and what to do, of its first 64 bytes or more; empty where unknown."""
    for pattern, what, advice in _KINDS:
        if re.match(rb"(\xef\xbb\xbf)?\s*(?:%s)" % pattern, head, re.IGNORECASE | re.DOTALL):
            return what, advice
    return "", ""
