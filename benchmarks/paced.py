"""The training loop's steps one at a call, for what times them: `fit` itself, waiting between two steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Batch
from verydeep.training.learner import Learner
from verydeep.training.loop import Position, fit


def paced(learner: Learner, feed: Feed, rate: float = 0.01) -> Callable[[], float]:
    """A function that takes a step, waits for the device, and returns the mean loss.

    The learner's own modes (train, eval) are left as they are from the second step on.
    """
    asked: queue.Queue[bool] = queue.Queue()
    made: queue.Queue[Any] = queue.Queue()
    ready = threading.Event()
    learner.config = replace(
        learner.config, epochs=10**6, hold=0.0, schedule="constant", warmup=0.0
    )

    class Waiting(Feed):
        steps = feed.steps

        def __init__(self) -> None: ...

        def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
            ready.set()  # the learner is in its mode by now
            for batch in feed.epoch(epoch, first):
                asked.get()
                yield batch

    def event(line: dict[str, Any]) -> None:
        if line["event"] == "step":
            made.put(line["loss"])

    def work() -> None:
        try:
            fit(learner, Waiting(), Position(), event=event, rate_of=lambda _: rate, every=1)
        except BaseException as error:  # for whoever asked
            made.put(error)

    threading.Thread(target=work, daemon=True).start()
    ready.wait()

    def step() -> float:
        asked.put(True)
        found = made.get()
        if isinstance(found, BaseException):
            raise found
        return float(found)

    return step
