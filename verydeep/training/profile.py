"""How fast images are made ready, and how fast the network learns from them: the slower sets the pace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from typing import Any

from ..files.progress import expect, stage
from .data.feed import Feed
from .data.source import Batch
from .learner import Learner
from .loop import Position, Stopped, fit

SECONDS, LEAST_STEPS, WARM_UP = 5.0, 3, 2


@dataclass(frozen=True)
class Profile:
    """Images a second: input, of the pipeline alone; network, of training on one batch again and again."""

    input: float
    network: float
    batch: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = (
            "the input keeps up" if self.input >= self.network else
            "the network waits for its input: more threads, smaller files or a smaller size would help"
        )  # fmt: skip
        return (
            f"input alone {self.input:.0f} images/s, network alone {self.network:.0f} images/s at batch "
            f"{self.batch}: {verdict}"
        )


def profile(learner: Learner, feed: Feed) -> Profile:
    """Measure each alone, for some seconds; the network at the side at which it asks for most.

    The learner is spoilt by it.
    """
    side = min(learner.config.sides)
    batches = chain.from_iterable(map(feed.epoch, count()))
    batch, seen, began = next(batches), 0, time.perf_counter()  # the first starts the threads
    for number, batch in stage(enumerate(batches, 1), "measuring the input", "batch"):
        seen += len(batch.labels)
        seconds = time.perf_counter() - began
        expect(_whole(number, seconds))
        if seconds > SECONDS:
            break
    rate = seen / seconds
    again = Again(batch)
    learner.config = replace(
        learner.config, epochs=10**9, grow=(side / learner.config.size,), hold=0.0
    )
    began, speeds = time.perf_counter(), []
    told = stage(count(), "measuring the network", "step")

    def event(line: Mapping[str, Any]) -> None:
        done, seconds = next(told), time.perf_counter() - began
        if done > WARM_UP:
            speeds.append(line["images_per_second"])
        if len(speeds) >= LEAST_STEPS and seconds > SECONDS:
            raise Stopped
        expect(max(WARM_UP + LEAST_STEPS, _whole(done, seconds)))

    next(told)
    with suppress(Stopped):
        fit(learner, again, Position(), event=event, rate_of=lambda _: 0.0, every=1)
    return Profile(rate, max(speeds), len(batch.labels))


def _whole(done: int, seconds: float) -> int:
    """How many there will be in all, where so many took so long."""
    return max(done, round(done * SECONDS / max(seconds, 1e-9)))


class Again(Feed):
    """One batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self.steps, self._batch = 10**9, batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:  # noqa: ARG002  # all are alike
        while True:
            yield self._batch
