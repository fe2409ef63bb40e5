"""Race the engines on one model, on real pixels, and check each against the reference before trusting it.

The reference, ONNX Runtime in float32, starts as champion. Each challenger answers the same pixels first:
one that strays further than the precision allows is left out, said why. Then the two take turns, so that
whatever else the machine does meets both, and the quicker one stays. Two engines at most are open at a
time, since each may hold half a gigabyte.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EngineError, log
from ..files.cache import Cache
from . import (
    ENGINES,
    REFERENCE,
    TOLERANCES,
    Engine,
    Kind,
    Order,
    Settings,
    open_engine,
    relative_error,
)
from .remembered import Standing

if TYPE_CHECKING:
    from . import Source

MOST_PAIRS = 7
CLEAR = 1.5  # a lead of this much is not chance, nor made up for by other settings
PAUSE_SECONDS = 0.01  # in which the threads of the one before stop waiting for more
INT8_TOLERANCE = 3e-2  # between two engines that round at the same places: 4e-3 was seen
RUN_SECONDS = 0.8  # of the reference's run, about: larger batches are cut down to it


@dataclass(frozen=True)
class Racer:
    """An engine with the settings that it is to run with."""

    kind: Kind
    device: str
    settings: Settings


def racers(
    source: Source,
    kinds: Sequence[Kind],
    *,
    precision: str,
    threads: int,
    devices: Sequence[str],
    batch: int,
) -> list[Racer]:
    """Everything that those engines can do in that precision, the reference first."""
    found = []
    for kind in sorted(kinds, key=lambda kind: kind.name != REFERENCE):
        if precision not in kind.precisions or kind.name in ("torch-eager", "torch-compiled"):
            continue
        module = import_module(f"{__package__}.{kind.module}")
        for device in devices:
            if device in kind.devices:
                order = Order(precision, threads, device)
                found += [Racer(kind, device, s) for s in module.variants(source, order, batch)]
    return found


def race(
    source: Source,
    pixels: np.ndarray,
    entrants: Sequence[Racer],
    *,
    precision: str,
    threads: int,
    cache: Cache | None = None,
    seconds: float = 2.0,
) -> tuple[Engine, tuple[Standing, ...]]:
    """The winner, open, and how each did, quickest first. Those that were left out have no standing.

    pixels: a real batch, of the size that will be run. seconds: for the turns, opening not counted.
    """
    started = time.perf_counter()
    _ = source.graph
    build_seconds = time.perf_counter() - started

    cache = Cache() if cache is None else cache

    def opened(racer: Racer) -> tuple[Engine, float]:
        making = cache.making_seconds
        began = time.perf_counter()
        engine = open_engine(
            racer.kind.name, source, precision=precision, threads=threads, device=racer.device,
            settings=racer.settings, cache=cache,
        )  # fmt: skip
        # what was made the first time will be found from now on
        making = cache.making_seconds - making
        return engine, time.perf_counter() - began - making + build_seconds

    reference_racer = next(
        (racer for racer in entrants if (racer.kind.name, racer.device) == (REFERENCE, "cpu")),
        Racer(ENGINES[REFERENCE], "cpu", {}),
    )
    judge, open_seconds = opened(reference_racer)
    judge.run(pixels[:1])
    pixels = pixels[: max(1, min(len(pixels), int(RUN_SECONDS / timed(judge, pixels[:1]))))]
    reference = judge.run(pixels)
    champion = None
    standings: list[Standing] = []
    if reference_racer in entrants:
        champion = judge
        standings.append(_standing(judge, timed(judge, pixels) / len(pixels), open_seconds, 0.0))
    del judge  # where it does not run itself, its half gigabyte is free again
    out: set[str] = set()
    rest = [racer for racer in entrants if racer != reference_racer]
    for racer in rest:
        if racer.kind.name in out:
            continue
        try:
            challenger, open_seconds = opened(racer)
            error = _error(challenger.run(pixels), reference)
            allowed = TOLERANCES.get(precision, INT8_TOLERANCE)
            if not error <= allowed:
                raise EngineError(
                    f"its relative error on this model is {error:.1e}, and {precision} allows "
                    f"{allowed:.0e}"
                )
        except EngineError as reason:
            log.info(f"engine {racer.kind.name} is left out: {reason}")
            out.add(racer.kind.name)
            continue
        if champion is None:
            ratio, theirs = 0.0, timed(challenger, pixels)
        else:
            ratio, theirs = _duel(champion, challenger, pixels, seconds / len(rest))
        row = _standing(challenger, theirs / len(pixels), open_seconds, error)
        if ratio > CLEAR:
            out.add(racer.kind.name)  # other settings of it will not win either
        if ratio < 1:
            champion = challenger
            standings.insert(0, row)
        else:
            standings.append(row)
        del challenger
    if champion is None:
        raise EngineError(
            f"no engine that is installed keeps {precision} on this model and device; "
            "try another precision or --device cpu"
        )
    # the champion is first because it won its turns, whatever single times say
    return champion, (standings[0], *sorted(standings[1:], key=lambda row: row.seconds))


def _duel(
    champion: Engine, challenger: Engine, pixels: np.ndarray, seconds: float
) -> tuple[float, float]:
    """The challenger's time relative to the champion's, and its own best, in seconds."""
    ours: list[float] = []
    theirs: list[float] = []
    until = time.perf_counter() + seconds
    while len(ours) < 2 or (len(ours) < MOST_PAIRS and time.perf_counter() < until):
        ours.append(timed(champion, pixels))
        theirs.append(timed(challenger, pixels))
        ratio = min(theirs) / min(ours)  # the shortest time is the least disturbed one
        if not 1 / CLEAR < ratio < CLEAR:
            break
    return ratio, min(theirs)


def timed(engine: Engine, pixels: np.ndarray) -> float:
    """Seconds that it takes for them."""
    time.sleep(PAUSE_SECONDS)
    began = time.perf_counter()
    engine.run(pixels)
    return time.perf_counter() - began


def _standing(engine: Engine, seconds: float, open_seconds: float, error: float) -> Standing:
    return Standing(engine.name, engine.device, engine.settings, seconds, open_seconds, error)


def _error(outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest relative error of any output; nan where one is missing or not finite."""
    errors = [
        relative_error(outputs[name], value, scores=name == "scores") if name in outputs else np.nan
        for name, value in reference.items()
    ]
    return float(np.max(errors))  # numpy's max hands nan on
