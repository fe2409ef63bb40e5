"""What a file is by its first bytes, for the message to whoever gave it in place of another kind."""

from __future__ import annotations

import re

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
