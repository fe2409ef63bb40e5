"""Which learning rate suits: the loss while the rate rises from next to nothing until training breaks.

Smith 2015, arXiv:1506.01186, section 3.3: a rate range test. The rate that is suggested is the one at
which the smoothed loss falls most steeply; the highest rate of a one-cycle schedule may be a few times it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..files.progress import stage
from .data.feed import Feed
from .learner import Learner
from .loop import Diverged, Position, Stopped, fit

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 100
SMOOTHING = 0.9  # of the running mean
BROKEN = 3.0  # times the least loss
FIRST, SPAN = 10, 10  # steps


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

    def svg(self, width: int = 640, height: int = 360) -> str:
        """The curve, over a logarithmic axis of rates: one SVG that stands alone."""
        left, right, top, bottom = 56, 16, 28, 44
        x0, x1 = math.log10(self.rates[0]), math.log10(HIGHEST)
        y0, y1 = 0.0, 1.15 * max(self.smoothed[0], *self.smoothed[: max(2, len(self.smoothed) - 5)])

        def at(rate: float, loss: float) -> str:
            x = left + (math.log10(rate) - x0) / (x1 - x0) * (width - left - right)
            y = height - bottom - (min(loss, y1) - y0) / (y1 - y0) * (height - top - bottom)
            return f"{x:.1f},{y:.1f}"

        def line(values: tuple[float, ...], style: str) -> str:
            points = " ".join(at(r, v) for r, v in zip(self.rates, values, strict=True))
            return f'<polyline points="{points}" fill="none" {style}/>'

        marks = []
        for power in range(math.ceil(x0), math.floor(x1) + 1):
            x, _ = at(10.0**power, 0).split(",")
            marks.append(
                f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>'
            )
            marks.append(
                f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">1e{power}</text>'
            )
        for part in range(5):
            value = y1 * part / 4
            _, y = at(self.rates[0], value).split(",")
            marks.append(
                f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#eee"/>'
            )
            marks.append(
                f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
            )
        x, _ = at(self.suggested, 0).split(",")
        middle = (left + width - right) / 2
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#333">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>', *marks,
            line(self.losses, 'stroke="#bcd" stroke-width="1"'),
            line(self.smoothed, 'stroke="#1f5fa8" stroke-width="2"'),
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - bottom}" stroke="#c33" '
            'stroke-dasharray="4 3"/>',
            f'<text x="{x}" y="{top - 10}" text-anchor="middle" fill="#c33">{self.suggested:.2g}</text>',
            f'<text x="{middle}" y="{height - 8}" text-anchor="middle">learning rate</text>',
            f'<text x="14" y="{height / 2}" text-anchor="middle" '
            f'transform="rotate(-90 14 {height / 2})">loss</text>',
            "</svg>",
        ])  # fmt: skip


def rate_test(learner: Learner, feed: Feed, steps: int = STEPS) -> RateTest:
    """Train for up to `steps` steps, each at a higher rate. The learner is spoilt by it.

    Diverged where training breaks before there is a curve to read a rate from.
    """
    losses: list[float] = []
    smoothed: list[float] = []

    def rate_of(step: int) -> float:
        return float(LOWEST * (HIGHEST / LOWEST) ** (step / max(1, steps - 1)))

    def event(line: Mapping[str, Any]) -> None:
        if line["event"] != "step":
            return
        step, loss = len(losses), line["loss"]
        next(told, None)
        mean = (
            SMOOTHING * (smoothed[-1] * (1 - SMOOTHING**step) if step else 0.0)
            + (1 - SMOOTHING) * loss
        )
        value = mean / (1 - SMOOTHING ** (step + 1))
        if step > 10 and value > BROKEN * min(smoothed):
            raise Stopped
        losses.append(loss)
        smoothed.append(value)
        if len(losses) == steps:
            raise Stopped

    told = stage(range(steps), "trying learning rates", "step", steps)
    learner.config = replace(learner.config, epochs=steps, hold=0.0, schedule="constant")
    next(told)
    with suppress(Stopped, Diverged):  # a loss that is no number ends the curve, too
        fit(learner, feed, Position(), event=event, rate_of=rate_of, every=1)
    rates = [rate_of(step) for step in range(len(losses))]
    if len(rates) <= FIRST + SPAN:
        raise Diverged(
            f"the loss broke in step {len(rates) + 1}, at a rate of {rate_of(len(rates)):.1e}, before it "
            "could fall: no rate suits; draw other weights, as with --set start=glorot, or look whether "
            "labels and images belong together"
        )
    return RateTest(tuple(rates), tuple(losses), tuple(smoothed), _steepest(rates, smoothed))


def _steepest(rates: list[float], smoothed: list[float]) -> float:
    """The middle of the ten steps over which the loss falls most; the first tell of noise alone."""
    falls = np.array(smoothed[SPAN + FIRST :]) - np.array(smoothed[FIRST:-SPAN])
    return rates[FIRST + SPAN // 2 + int(falls.argmin())] if len(falls) else rates[-1]
