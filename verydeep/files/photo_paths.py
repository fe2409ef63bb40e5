"""From what a person typed (files, folders, globs, a list on stdin) to the photos that are meant.

And what a file is that turns out to be none, by its first bytes.
"""

from __future__ import annotations

import glob
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from ..errors import DataError

# What a folder is searched for. A file that is named is tried whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def find(given: Iterable[str]) -> Iterator[str]:
    """Paths in the order given; folders recursively, sorted, without hidden entries.

    "-" reads one path a line from stdin. A path that does not exist but matches as a glob ("**"
    included) gives its matches; one that matches nothing is passed on, to be reported when it is opened.
    """
    for name in given:
        if name == "-":
            yield from find(filter(None, _listed()))
        elif os.path.isdir(name):
            yield from inside(name)
        elif not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            # "**" gives folders and what is in them: no path twice
            photos = (inside(m) if os.path.isdir(m) else [m] for m in matches)
            yield from dict.fromkeys(chain.from_iterable(photos)) if matches else [name]
        else:
            yield name


def _listed() -> Iterator[str]:
    """The lines of stdin as names: any bytes, and blanks at an end where there is a file of such a name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        name = line.rstrip("\r\n")
        yield name if os.path.lexists(name) else name.strip()


def find_some(given: Sequence[str]) -> tuple[Iterable[str], bool]:
    """What `find` gives, and whether it is more than one; DataError where it is none."""
    paths = find(given)
    first = list(islice(paths, 2))
    if not first:
        raise DataError(
            f"no photos in {', '.join(given)}; expected photos or folders that hold some"
        )
    return (chain(first, paths), True) if len(first) > 1 else (first, False)


def counter(given: Sequence[str]) -> Callable[[], int] | None:
    """What counts the photos that `find` gives; None where they come on stdin, and can be read but once."""
    return None if "-" in given else lambda: sum(1 for _ in find(given))


def inside(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The photos in a folder and those below it, sorted, without hidden entries."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in filter(is_photo, sorted(files)):
            yield os.path.join(parent, file)


def is_photo(name: str) -> bool:
    """Whether a file of that name, without its folder, counts as a photo: not hidden, an image's suffix."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


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
    (rb"....ftyp(he|mif1)", "HEIC", ""),
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
