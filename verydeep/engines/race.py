"""Race the engines on one model, on real pixels, check each against the reference, remember who won.

The reference, ONNX Runtime in float32, starts as champion. Each challenger answers the same pixels first:
one that strays further than the precision allows is left out, said why. Then the two take turns, so that
whatever else the machine does meets both, and the quicker one stays. Two engines at most are open at a
time, since each may hold half a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import EngineError, log
from ..files.atomic import locked
from ..files.folders import Notebook, cache_folder
from ..files.progress import stage
from . import REFERENCE, TOLERANCES, Engine, Kind, Settings, relative_error

if TYPE_CHECKING:
    from ..graphs import Source

MOST_PAIRS = 7
CLEAR = 1.5  # a lead of this much is not chance, nor made up for by other settings
PAUSE_SECONDS = 0.01  # in which the threads of the one before stop waiting for more
INT8_TOLERANCE = 3e-2  # between two engines that round at the same places: 4e-3 was seen
RUN_SECONDS = 0.8  # of the reference's run, about: larger batches are cut down to it


@dataclass(frozen=True)
class Standing:
    """How one engine did in a race.

    seconds: of one image, its share of the batch. images: how many it ran at once, which is the whole batch
    or, of a large one, as many as there was time for. error: against the reference, as `relative_error`
    has it.
    """

    engine: str
    device: str
    settings: Mapping[str, str | int]
    seconds: float
    images: int
    error: float


def told(standings: Sequence[Standing]) -> str:
    """Who won a race and by how much, for people; each engine once, at its best.

    "mnn: 75.1 ms an image, 2.2 times as fast as onnxruntime (164.0), 3.4 as openvino (256.1)"
    """
    winner, *others = standings
    seconds: dict[str, float] = {}
    for row in others:
        if row.engine != winner.engine:
            seconds[row.engine] = min(row.seconds, seconds.get(row.engine, row.seconds))
    text = f"{winner.engine}: {winner.seconds * 1e3:.1f} ms an image"
    for number, (name, its) in enumerate(sorted(seconds.items(), key=lambda one: one[1])):
        times = f"{its / winner.seconds:.1f}{'' if number else ' times as fast'}"
        text += f", {times} as {name} ({its * 1e3:.1f})"
    return text


@contextmanager
def alone() -> Iterator[None]:
    """One race at a time on this machine: two would spoil each other's times, or measure the same twice.

    So look again, inside, for what others remembered. Without a cache that can be written, processes do not
    wait for each other; threads do in any case, since engines are opened under `forks.OPENING`.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # said where the result is not remembered
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            waiting = "another process is measuring engines; waiting for it"
            stack.enter_context(locked(folder / "race.lock", lambda: log.info(waiting)))
        yield


class Memory:
    """Results of races, in verydeep's cache; in this process alone where that cannot be written."""

    _here: ClassVar[dict[tuple[Path, str], Any]] = {}

    def __init__(self) -> None:
        self._notebook = Notebook("choices.json")

    def standings(self, race: Mapping[str, Any]) -> tuple[Standing, ...]:
        """The result of that race, quickest first; empty where it was not held yet."""
        key, path = _digest(race), self._notebook.path
        row: Any = self._notebook.rows().get(key) or (
            not path.exists() and self._here.get((path, key))
        )
        try:
            standings = tuple(Standing(**one) for one in row["standings"])
            good = all(
                isinstance(one.engine, str)
                and isinstance(one.device, str)
                and isinstance(one.settings, dict)
                and one.seconds > 0
                for one in standings
            )
        except (KeyError, TypeError):
            return ()
        return standings if good else ()

    def remember(self, race: Mapping[str, Any], standings: Iterable[Standing]) -> None:
        """Keep the result of a race. What it was about is kept beside it, for people."""
        row = {"race": dict(race), "standings": [asdict(one) for one in standings]}
        self._here[self._notebook.path, _digest(race)] = row
        self._notebook.write(_digest(race), row)

    def choices(self) -> list[dict[str, Any]]:
        """Every result, as {"race": ..., "standings": [...]}."""
        rows = self._notebook.rows().values()
        return [
            row for row in rows if isinstance(row, dict) and row.keys() >= {"race", "standings"}
        ]

    def clear(self) -> None:
        """Forget everything."""
        self._here.clear()
        self._notebook.clear()


def _digest(race: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(race, sort_keys=True).encode()).hexdigest()[:32]


def race(
    source: Source,
    pixels: np.ndarray,
    kinds: Sequence[Kind],
    *,
    precision: str,
    threads: int,
    devices: Sequence[str] = ("cpu",),
    seconds: float = 2.0,
) -> tuple[Engine, tuple[Standing, ...]]:
    """The winner, open, and how each did, quickest first. Those that were left out have no standing.

    pixels: a real batch, of the size that will be run. kinds: engines that have that precision.
    devices: where to run them. seconds: for the turns, opening not counted.
    """

    def opened(name: str, device: str, settings: Settings) -> Engine:
        return Engine(
            name, source, precision=precision, threads=threads, device=device, settings=settings
        )

    entrants = [
        (kind.name, device, settings)
        for kind in kinds
        for device in devices
        if device == "cpu" or (device in kind.devices and device in kind.load().devices())
        for settings in kind.variants(source, precision, threads, len(pixels), device)
    ]
    ours = [entrant for entrant in entrants if entrant[:2] == (REFERENCE, "cpu")][:1]
    judge = opened(*(ours or [(REFERENCE, "cpu", {})])[0])
    judge.run(pixels[:1])
    pixels = pixels[: max(1, min(len(pixels), int(RUN_SECONDS / timed(judge, pixels[:1]))))]
    reference = judge.run(pixels)

    def standing(engine: Engine, seconds: float, error: float) -> Standing:
        count = len(pixels)
        return Standing(engine.name, engine.device, engine.settings, seconds / count, count, error)

    champion = judge if ours else None
    standings = [standing(judge, timed(judge, pixels), 0.0)] if ours else []
    del judge  # where it does not run itself, its half gigabyte is free again
    out: set[tuple[str, str]] = set()  # engines, each on a device
    rest = [entrant for entrant in entrants if entrant not in ours]
    for name, device, settings in stage(rest, "measuring engines", "engine"):
        if (name, device) in out:
            continue
        try:
            challenger = opened(name, device, settings)
            error = worst_error(challenger.run(pixels), reference)
            allowed = TOLERANCES.get(precision, INT8_TOLERANCE)
            if not error <= allowed:
                raise EngineError(
                    f"its relative error on this model is {error:.1e}, and {precision} allows "
                    f"{allowed:.0e}"
                )
        except EngineError as reason:
            log.info(f"engine {name} is left out: {reason}")
            out.add((name, device))
            continue
        if champion is None:
            ratio, took = 0.0, timed(challenger, pixels)
        else:  # by turns with the champion: what each did at another hour would not compare
            ratio = _duel(champion, challenger, pixels, seconds / len(rest))
            took = ratio * standings[0].seconds * len(pixels)
        if ratio > CLEAR:
            out.add((name, device))  # other settings of it will not win either
        if ratio < 1:
            champion = challenger
        standings.insert(0 if ratio < 1 else len(standings), standing(challenger, took, error))
        del challenger
    if champion is None:
        raise EngineError(
            f"no engine that is installed keeps {precision} on this model and device; "
            "try another precision or --device cpu"
        )
    return champion, (standings[0], *sorted(standings[1:], key=lambda row: row.seconds))


def _duel(champion: Engine, challenger: Engine, pixels: np.ndarray, seconds: float) -> float:
    """The challenger's time relative to the champion's."""
    ours: list[float] = []
    theirs: list[float] = []
    until = time.perf_counter() + seconds
    while len(ours) < 2 or (len(ours) < MOST_PAIRS and time.perf_counter() < until):
        ours.append(timed(champion, pixels))
        theirs.append(timed(challenger, pixels))
        ratio = min(theirs) / min(ours)  # the shortest time is the least disturbed one
        if not 1 / CLEAR < ratio < CLEAR:
            break
    return ratio


def timed(engine: Engine, pixels: np.ndarray) -> float:
    """Seconds that it takes for them."""
    time.sleep(PAUSE_SECONDS)
    began = time.perf_counter()
    engine.run(pixels)
    return time.perf_counter() - began


def worst_error(outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest relative error of any output; nan where one is missing or not finite."""
    errors = [
        relative_error(outputs[name], value, scores=name == "scores") if name in outputs else np.nan
        for name, value in reference.items()
    ]
    return float(np.max(errors))  # numpy's max hands nan on
