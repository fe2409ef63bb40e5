"""What changes as a run goes on: the learning rate, step by step, and the size that images are shown at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .recipes import Config


def rate_at(config: Config, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """The rate of step `step`, counted from 0; after so many drops where the schedule has plateaus."""
    warmup = min(config.warmup, config.epochs / 2) * steps_per_epoch
    if step < warmup:
        return config.rate * (step + 1) / warmup if warmup >= 1 else config.rate
    if config.schedule == "plateau":
        return float(config.rate * 0.1**drops)
    if config.schedule == "constant":
        return config.rate
    total = config.epochs * steps_per_epoch
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return config.rate * (1 - done)
    # SGDR without restarts, arXiv:1608.03983
    return config.rate * (1 + math.cos(math.pi * done)) / 2


def side_at(config: Config, epoch: int) -> int:
    """How many pixels a side images have in that epoch, counted from 0."""
    return config.sides[min(epoch, config.epochs - 1) * len(config.sides) // config.epochs]


def still_to_do(config: Config, done: float) -> float:
    """What is left after `done` epochs, in parts of the arithmetic done so far, which grows with pixels."""
    pixels = [side_at(config, epoch) ** 2 for epoch in range(config.epochs)]
    whole = int(done)
    behind = sum(pixels[:whole]) + (pixels[whole] * (done - whole) if whole < config.epochs else 0)
    return (sum(pixels) - behind) / behind


def drops_after(accuracies: Sequence[float], patience: int) -> int:
    """How often the accuracy after each epoch has stopped rising: `patience` epochs without a new best.

    After a drop the count of epochs begins anew; the best stays.
    """
    drops, best, waited = 0, -math.inf, 0
    for accuracy in accuracies:
        if accuracy > best:
            best, waited = accuracy, 0
        else:
            waited += 1
        if waited >= patience:
            drops, waited = drops + 1, 0
    return drops
