"""Ctrl-C and SIGTERM ask a run to stop after its step; another one does not wait for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..files.stopping import Repeat

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
        raise SystemExit(128 + (self.signal or signal.SIGTERM))  # or another process was told


@contextmanager
def watched() -> Iterator[Request]:
    """The request that signals are noted in while the block runs; outside the main thread, none are."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    now = {number: signal.getsignal(number) for number in SIGNALS}
    # who began this process may have it ignore one, as shells do for what runs in their background
    before = {number: handler for number, handler in now.items() if handler is not signal.SIG_IGN}

    repeated = Repeat()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal gives it
        if repeated(number):
            return
        if request.signal:
            restore()
            signal.raise_signal(number)
        request.signal = request.signal or number

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
