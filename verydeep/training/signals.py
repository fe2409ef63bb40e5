"""Ctrl-C and SIGTERM ask a run to stop after its step; a second one does not wait for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Request:
    """signal: the number of the first that came, 0 before."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        return self.signal != 0

    def raise_(self) -> None:
        """What the signal does to a program that does not watch for it."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)


@contextmanager
def watched() -> Iterator[Request]:
    """The request that signals are noted in while the block runs; outside the main thread, none are."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal gives it
        request.signal = number
        for each in SIGNALS:
            signal.signal(each, before[each] or signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number] or signal.SIG_DFL)
