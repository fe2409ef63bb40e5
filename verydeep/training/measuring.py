"""What is measured before a run, by steps of its own loop: which rate suits, and what sets the pace.

A rate range test, Smith 2015, arXiv:1506.01186, section 3.3: the loss while the rate rises from next to
nothing until training breaks. The rate that is suggested is the one at which the smoothed loss falls most
steeply; the highest rate of a one-cycle schedule may be a few times it.

A profile: how fast images are made ready, and how fast the network learns from them; the slower sets the
pace. A learner is spoilt by either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np

from ..files.progress import expect, stage
from ..pictures import page as html
from ..pictures.charts import Line, lines
from .data.feed import Feed
from .data.source import Batch
from .learner import Learner
from .loop import Diverged, Position, Stopped, fit

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 100
SMOOTHING = 0.9  # of the running mean
BROKEN = 3.0  # times the least loss
FIRST, SPAN = 10, 10  # steps
SECONDS, LEAST_STEPS, WARM_UP = 5.0, 3, 2  # of a profile


@dataclass(frozen=True)
class RateTest:
    """rates, losses: of each step; smoothed: the losses' running mean. suggested: the rate to take."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggested: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"rate {self.suggested:.2g}: there the loss falls most steeply, over {len(self.rates)} steps "
            f"from {self.rates[0]:.0e} to {self.rates[-1]:.2g}"
        )

    def page(self) -> str:
        """The curve as a page that stands alone; what lies far above its beginning is cut off."""
        powers, top = np.log10(self.rates).tolist(), 1.15 * self.smoothed[0]
        each, mean = ([min(loss, top) for loss in some] for some in (self.losses, self.smoothed))
        best = self.rates.index(self.suggested)
        curves = [
            Line("smoothed", powers, mean), Line("suggested", [powers[best]], [mean[best]]),
            Line("each step", powers, each),
        ]  # fmt: skip
        drawn = lines(curves, x="rate, as a power of ten", y="loss")
        return html.page("Learning rates", [html.section("Learning rates", str(self), drawn)])


def rate_test(learner: Learner, feed: Feed, steps: int = STEPS) -> RateTest:
    """Train for up to `steps` steps, each at a higher rate.

    Diverged where training breaks before there is a curve to read a rate from.
    """
    rates = np.geomspace(LOWEST, HIGHEST, steps).tolist()
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0

    def event(line: Mapping[str, Any]) -> None:
        nonlocal mean
        if line["event"] != "step":
            return
        next(told, None)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * line["loss"]
        value = mean / (1 - SMOOTHING ** (len(losses) + 1))  # it began at 0
        if len(losses) > FIRST and value > BROKEN * min(smoothed):
            raise Stopped
        losses.append(line["loss"])
        smoothed.append(value)
        if len(losses) == steps:
            raise Stopped

    told = stage(rates, "trying learning rates", "step", steps)
    learner.config = replace(learner.config, epochs=steps, hold=0.0, schedule="constant")
    next(told)
    with suppress(Stopped, Diverged):  # a loss that is no number ends the curve, too
        fit(learner, feed, Position(), event=event, rate_of=rates.__getitem__, every=1)
    tried = len(losses)
    if tried <= FIRST + SPAN:
        drawn = learner.config.start != "probe"
        other = "draw other weights, as with --set start=glorot, or " if drawn else ""
        raise Diverged(
            f"the loss broke in step {tried + 1}, at a rate of {rates[tried]:.1e}, before it "
            f"could fall: no rate suits; {other}look whether labels and images belong together"
        )
    rates = rates[:tried]
    return RateTest(tuple(rates), tuple(losses), tuple(smoothed), _steepest(rates, smoothed))


def _steepest(rates: list[float], smoothed: list[float]) -> float:
    """The middle of the ten steps over which the loss falls most; the first tell of noise alone."""
    falls = np.array(smoothed[SPAN + FIRST :]) - np.array(smoothed[FIRST:-SPAN])
    return rates[FIRST + SPAN // 2 + int(falls.argmin())] if len(falls) else rates[-1]


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
    """Measure each alone, for some seconds; the network at the side at which it asks for most."""
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
