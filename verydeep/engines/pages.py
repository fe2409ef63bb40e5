"""Memory in large pages, of 2 MB on most processors, where Linux gives these to whoever asks for them.

Of weights in pages of 4 KB a processor has to look up where each page lies, so often that FC layers take
twice their time, and Winograd's convolutions a tenth more (docs/log.md). What an engine has taken is moved
into large pages; that takes no more memory. `madvise` of Linux, man 2; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage")
MAPS = Path("/proc/self/maps")
WANTED = 14  # MADV_HUGEPAGE
NOW = 25  # MADV_COLLAPSE, since Linux 6.1: an older one does it in its own time


def mapped() -> dict[int, int]:
    """The process's own memory that is no file's: from which address to which. None where nobody asks."""
    found = {}
    with suppress(OSError):
        if "[madvise]" in (SETTING / "enabled").read_text(encoding="ascii"):
            for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
                where, rights, *rest = line.split()
                if rights == "rw-p" and len(rest) == 3:  # without a name
                    start, end = (int(address, 16) for address in where.split("-"))
                    found[start] = end
    return found


def enlarge(before: Mapping[int, int]) -> None:
    """Move what is mapped now, and was not, as `mapped` said it, into large pages."""
    since = dict(mapped().items() - before.items())
    if not since:
        return
    size = int((SETTING / "hpage_pmd_size").read_text(encoding="ascii"))
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in since.items():
        first, last = -(-start // size) * size, end // size * size
        if first < last:
            for advice in (WANTED, NOW):  # where it is refused all stays as it is
                madvise(first, last - first, advice)
