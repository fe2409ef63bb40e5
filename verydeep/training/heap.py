"""Memory that a training step frees is kept for the next step, where glibc would hand it back.

Every step asks for the same large arrays again. Handed back, their pages are cleared and mapped anew each
time: 8 to 13 % of a step's processor time. Other systems' allocators are left as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h: parameters of mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1  # mallopt takes an int
# what glibc's own thresholds rise to by themselves: DEFAULT_MMAP_THRESHOLD_MAX of mallopt(3), and twice it
OWN_TRIM, OWN_MMAP = 64 * 2**20, 32 * 2**20


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory while the block runs, and give it back after it."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, OWN_TRIM)
        libc.mallopt(M_MMAP_THRESHOLD, OWN_MMAP)
        libc.malloc_trim(0)
