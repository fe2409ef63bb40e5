"""Freed memory stays with the process while it trains, and only then."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from verydeep.training.speed import memory_kept


def _held_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_freed_is_kept_until_the_end() -> None:
    size = 200 * 2**20
    before = _held_bytes()
    with memory_kept():
        array = np.ones(size, np.uint8)
        del array
        inside = _held_bytes()
    after = _held_bytes()
    if inside - before < size // 2:
        pytest.skip("not glibc's malloc")
    assert after - before < size // 2
