"""Whether a signal asks anew: who stops a program may send one twice, to it and to its group.

`timeout` does.
"""

from __future__ import annotations

import math
import signal
import time

SAME_SECONDS = 1.0  # between the two; a person, or whoever has lost patience, takes longer


class Repeat:
    """Called with each signal: whether it is the SIGTERM before, sent twice. Ctrl-C is always meant."""

    def __init__(self) -> None:
        self._first = -math.inf

    def __call__(self, number: int) -> bool:
        if number != signal.SIGTERM:
            return False
        now = time.monotonic()
        again = now - self._first < SAME_SECONDS
        self._first = self._first if again else now
        return again
