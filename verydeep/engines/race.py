"""Race the engines on one model, on real pixels, check each against the reference, remember who won.

The reference, ONNX Runtime in float32, answers first. Each entrant answers the same pixels: one that strays
further than the precision allows is left out, said why; so is one that is hopelessly slow. Any other takes
turns with the champion, so that whatever else the machine does meets both, and the quicker one stays.
Where a model of the same layers was raced here, its winner alone runs: how quick an engine is does not
depend on the numbers in the weights, but whether it is right may.

Where FC layers hold most of a model, all run what is left without them, and only the winner, with those
that these layers might put before it, is prepared whole. Few engines are open at a time, since each may
hold half a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from ..errors import EngineError, log
from ..files.atomic import locked
from ..files.folders import Notebook, cache_folder
from ..files.progress import stage
from ..graphs.lighter import lighter
from . import REFERENCE, TOLERANCES, Engine, Kind, Settings, relative_error

if TYPE_CHECKING:
    from ..graphs import Source

Where: TypeAlias = "tuple[str, str]"  # an engine and a device, whatever the settings
JUDGE: Where = (REFERENCE, "cpu")
FEWEST = 2  # images of a batch: engines that share them out, or not, do as with more
MOST_PAIRS = 9
CLEAR = 1.5  # a lead of this much is not chance, nor made up for by other settings
HOPELESS, LONG_SECONDS = 10, 10.0  # times the quickest, at least so long: not chance, nor done once
NEAR = 1.15  # less may be chance, so more pairs tell; or be made up for by FC layers, so all run
FC_PART = 0.02  # of the convolutions' arithmetic: VGG-16's FC layers have half as much
PAUSE_SECONDS = 0.01  # in which the threads of the one before stop waiting for more
INT8_TOLERANCE = 3e-2  # between two engines that round at the same places: 4e-3 was seen
RUN_SECONDS = 0.4  # of the reference's run, about: larger batches are cut down to it, or to FEWEST


class Entrant(NamedTuple):
    """An engine as it comes to a race."""

    engine: str
    device: str
    settings: Settings

    @property
    def where(self) -> Where:
        return self.engine, self.device


@dataclass(frozen=True)
class Standing:
    """How one engine did in a race.

    seconds: of one image, its share of the batch; where large FC layers were left out, the winner's with
    them, and others' in proportion. images: how many it ran at once, which is the whole batch or, of a
    large one, as many as there was time for, `fewest` at least. error: against the reference, as
    `relative_error` has it. pairs: of runs by turns with the champion; 0 of whoever was hopeless.
    """

    engine: str
    device: str
    settings: Mapping[str, str | int]
    seconds: float
    images: int
    error: float
    pairs: int = 0

    @property
    def entrant(self) -> Entrant:
        return Entrant(self.engine, self.device, dict(self.settings))


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

    def alike(self, race: Mapping[str, Any], layers: str) -> tuple[Standing, ...]:
        """The result of that race for another graph of the same layers (`layers_of`).

        The one that left the fewest engines out, since these may be right here; of such the latest.
        """
        rows = self._notebook.rows() or {key: row for (_, key), row in self._here.items()}
        wanted = {**race, "graph": ""}
        found = []
        for row in reversed(rows.values()):
            other = row.get("race") if isinstance(row, dict) else None
            if not isinstance(other, dict) or row.get("layers") != layers:
                continue
            if {**other, "graph": ""} == wanted and other.get("graph") != race["graph"]:
                found.append(self.standings(other))
        return max(found, key=lambda rows: len({one.engine for one in rows}), default=())

    def remember(
        self, race: Mapping[str, Any], standings: Iterable[Standing], layers: str = ""
    ) -> bool:
        """Keep the result of a race. What it was about is kept beside it, for people.

        layers: of its graph, by `layers_of`. False where it is kept in this process alone.
        """
        row = {
            "race": dict(race), "layers": layers, "standings": [asdict(one) for one in standings]
        }  # fmt: skip
        self._here[self._notebook.path, _digest(race)] = row
        return self._notebook.write(_digest(race), row)

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


def fewest(batch: int, threads: int) -> int:
    """How many images stand for a batch at least: several, and as many for each thread."""
    share = min(batch, threads)
    return min(batch, share * -(-FEWEST // share))


def race(
    source: Source,
    pixels: np.ndarray,
    kinds: Sequence[Kind],
    *,
    precision: str,
    threads: int,
    devices: Sequence[str] = ("cpu",),
    seconds: float = 2.0,
    known: Sequence[Standing] = (),
) -> tuple[Engine, tuple[Standing, ...]]:
    """The winner, open, and how each did, quickest first. Those that were left out have no standing.

    pixels: a real batch, of the size that will be run. kinds: engines that have that precision.
    devices: where to run them. seconds: for the turns, opening not counted. known: how the same race ended
    for another graph of the same layers: its winner is checked. Where that is right, and not behind the
    reference, there is no race, and others have their seconds of that one, in proportion.
    """
    entrants: list[Entrant] = []
    for kind in reversed(kinds):  # likely winners come last, beside whom the slow are soon out
        try:
            entrants += [
                Entrant(kind.name, device, settings)
                for device in devices
                if device == "cpu" or device in kind.found()
                for settings in kind.variants(source, precision, threads, len(pixels), device)
            ]
        except EngineError as reason:
            log.info(f"engine {kind.name} is left out: {reason}")
    winner = [one for one in entrants if known and one == known[0].entrant]
    entrants, given = winner or entrants, pixels
    allowed = TOLERANCES.get(precision, INT8_TOLERANCE)

    def opened(one: Entrant, graph: Source) -> Engine:
        return Engine(
            one.engine, graph, precision=precision, threads=threads, device=one.device,
            settings=one.settings,
        )  # fmt: skip

    light, judged = (source, source) if winner else lighter(source)
    judge = opened(
        next((one for one in entrants if one.where == JUDGE), Entrant(*JUDGE, {})), judged
    )
    share = min(threads, len(pixels))
    count = int(RUN_SECONDS / timed(judge, pixels[:share]) * share) // share * share
    pixels = pixels[: max(fewest(len(pixels), threads), count)]
    began = time.perf_counter()
    reference = judge.run(pixels)
    judged_seconds = (time.perf_counter() - began) / len(pixels)
    runs_again = judged is source and JUDGE in [one.where for one in entrants]
    ready = {JUDGE: judge} if runs_again else {}  # else its half gigabyte is free again
    del judge

    def contest(
        entrants: Iterable[Entrant], graph: Source, standings: list[Standing]
    ) -> Engine | None:
        """The quickest of those that are right. standings: takes how each of them did, quickest first."""
        champion: Engine | None = None
        out: set[Where] = set()
        for entrant in entrants:
            where = entrant.where
            if where in out:
                continue
            best = standings[0].seconds if standings else judged_seconds
            if where == JUDGE and standings and judged_seconds > CLEAR * best:
                standings.append(Standing(*entrant, judged_seconds, len(pixels), 0.0))
                continue
            try:
                challenger = ready.pop(where, None) or opened(entrant, graph)
                began = time.perf_counter()
                outputs = challenger.run(pixels)
                first = time.perf_counter() - began
                error = worst_error(outputs, {name: reference[name] for name in graph.outputs})
                if not error <= allowed:
                    raise EngineError(
                        f"its relative error on this model is {error:.1e}, and {precision} allows "
                        f"{allowed:.0e}"
                    )
            except EngineError as reason:
                log.info(f"engine {entrant.engine} is left out: {reason}")
                out.add(where)
                continue
            if entrant.device != "cpu":
                challenger.run(pixels)  # on a GPU the first run of a shape prepares all others
                first = 0.0
            # on a busy machine some take a minute for a run: they are not run again
            longest = max(LONG_SECONDS, HOPELESS * best * len(pixels))
            run = first if first > longest else timed(challenger, pixels)
            if champion is not None and CLEAR * best * len(pixels) < run <= longest:
                # once more, lest something else that the machine did just then puts it out
                run = min(run, timed(challenger, pixels))
            took, ratio, pairs = run / len(pixels), 0.0, 0
            if champion is not None and (ratio := took / best) <= CLEAR:
                # by turns with the champion: what each did at another hour would not compare
                ratio, pairs = _duel(champion, challenger, pixels, seconds / 2, ratio)
                took = ratio * best
            if ratio > CLEAR or run > longest:
                out.add(where)  # other settings of it will not win either
            if ratio < 1:
                champion = challenger
            row = Standing(*entrant, took, len(pixels), error, pairs)
            standings.insert(0 if ratio < 1 else len(standings), row)
            del challenger
        standings[1:] = sorted(standings[1:], key=lambda row: row.seconds)
        return champion

    standings: list[Standing] = []
    champion = contest(stage(entrants, "measuring engines", "engine"), light, standings)
    rest = standings if light is not source else []
    while rest:
        champion = None  # its memory is free again
        best = {row.entrant.where: row for row in reversed(rest)}.values()
        close = sorted(best, key=lambda row: row.seconds)
        finals: list[Standing] = []
        ran: list[Standing] = []
        champion = contest(_finalists(close, finals, ran, len(pixels) / len(given)), source, finals)
        longer = finals[0].seconds / rest[0].seconds if finals else 1
        tried = {row.entrant.where for row in ran}
        rest = [row for row in rest if row.entrant.where not in tried]
        if champion is not None:
            standings = [*finals, *(replace(row, seconds=longer * row.seconds) for row in rest)]
            break
    if winner:
        reference_won = winner[0].where == JUDGE
        behind = not reference_won and standings and standings[0].seconds > NEAR * judged_seconds
        if champion is None or behind:
            champion = None  # others may be right for these weights, or quicker after all
            return race(
                source, given, kinds, precision=precision, threads=threads, devices=devices,
                seconds=seconds,
            )  # fmt: skip
        longer = standings[0].seconds / known[0].seconds
        standings += [replace(row, seconds=longer * row.seconds) for row in known[1:]]
    if champion is None:
        raise EngineError(
            f"no engine that is installed keeps {precision} on this model and device; "
            "try another precision or --device cpu"
        )
    return champion, tuple(standings)


def _finalists(
    close: Sequence[Standing], finals: Sequence[Standing], ran: list[Standing], share: float
) -> Iterator[Entrant]:
    """Who might be the quickest on the whole graph, quickest on the lighter one first.

    close: engines on the lighter one, each once on a device. finals: how those that came out of this did.
    ran: takes who came. share: images that are run of those of a batch.
    """
    first = close[0]
    for row in close:
        most = NEAR * first.seconds
        if whole := [one for one in finals if one.entrant.where == first.entrant.where]:
            # no other engine saves more by its FC layers than these take in the first one: mostly the
            # time to read their weights, once a batch; and some arithmetic, for each image
            read = share * (whole[0].seconds - first.seconds)
            most = min(most, (1 + FC_PART) * first.seconds + read)
        if row is first or row.seconds < most:
            ran.append(row)
            yield row.entrant


def _duel(
    champion: Engine, challenger: Engine, pixels: np.ndarray, seconds: float, before: float
) -> tuple[float, int]:
    """The challenger's time relative to the champion's, and from how many pairs of runs.

    The median of the pairs: what else the machine does meets both of a pair, or is one pair's alone.
    before: the same of a run of each that were no pair; where it was behind in it, one pair is enough.
    """
    ratios: list[float] = []
    until = time.perf_counter() + seconds
    while len(ratios) < MOST_PAIRS:
        took = {}
        for engine in (champion, challenger) if len(ratios) % 2 else (challenger, champion):
            took[id(engine)] = timed(engine, pixels)
        ratios.append(took[id(challenger)] / took[id(champion)])
        least = max(min(ratios), 1 / max(ratios))  # by how much one was ahead each time
        late = len(ratios) > 2 and time.perf_counter() > until
        behind = min(before, *ratios) > NEAR
        if least > CLEAR or behind or (least > NEAR and len(ratios) > 1) or late:
            break
    return median(ratios), len(ratios)


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
