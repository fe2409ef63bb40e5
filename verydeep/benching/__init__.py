"""Race the installed engines on one model, on this machine, and say how fast and how right each is.

Every entrant lives in a process of its own: its threads, its memory and the time until its first answer
are its own. One computes at a time. In each round everybody has a turn, so that a machine that slows down
meets all alike, and speeds are compared pair by pair within the rounds.

Entrants are verydeep's engines, "auto" for each precision, and those of `plain`: each engine as its own
documentation runs the network. Errors are against float64 (`verydeep.benching.float64`).
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from ..engines import ENGINES, TOLERANCES, check, installed, relative_error
from ..engines.processor import cores
from ..errors import EngineError, OutputError, log, nearest
from ..files import wording
from ..modelfile import ModelFile, Record, read, write
from ..nets import NETWORKS, Network, network
from . import float64
from .plain import BASELINE, COMPILED, PLAIN, computes_bf16
from .worker import CHECKED, Entrant, Worker, pixels_of

__all__ = ["Row", "bench", "random_model", "table"]

ROUNDS = 7
PAUSE_SECONDS = 0.05  # in which the threads of the one before stop waiting for more
SIDE = 224  # pixels, where the model says nothing
# precision -> largest relative error; int8 keeps first answers, and promises nothing about scores
ALLOWED = {**TOLERANCES, "int8": float("inf")}


@dataclass(frozen=True)
class Row:
    """How one entrant did at one batch size.

    engine: a key of ENGINES, "auto", or "plain ...". precision: what it promises, or for a plain one the
    class that it belongs to. speedup_vs_torch: against torch eager, None without torch.
    speedup_vs_best_plain: against the quickest plain entrant of this class or a stricter one.
    error: relative error of the scores against float64. chosen: the engine behind "auto".
    load_seconds: from the model file to the first answer, imports included, with its prepared files made
    before. peak_bytes: of memory, of its whole process, up to this batch.
    """

    engine: str
    precision: str
    batch: int
    ms_per_image: float
    speedup_vs_torch: float | None
    speedup_vs_best_plain: float | None
    error: float
    chosen: str | None
    load_seconds: float
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """What `verydeep bench --json` prints of it."""
        kept = asdict(self)
        del kept["load_seconds"], kept["peak_bytes"]
        kept["error"] = self.error if math.isfinite(self.error) else None  # JSON knows no NaN
        return kept


def bench(
    model: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 8),
    engines: str | Sequence[str] = "all",
    precisions: str | Sequence[str] = "all",
    rounds: int = ROUNDS,
    size: int | None = None,
    threads: int | None = None,
) -> list[Row]:
    """One race; a row for each entrant and batch size, by batch, precision and speed.

    model: a model file, a built-in, or a network of the table, which gets random weights where no
    published ones are at hand. engines: names of `engines.ENGINES`, "auto" among them if wanted, or "all"
    that are installed; "torch-compiled", which compiles for minutes, is raced only where it is named.
    precisions: "exact", "fast", "half", "int8", or "all" that the model can have. size: pixels a side of
    the images.

    Raises EngineError for unknown names and engines that are not installed, NetworkError and
    ModelFileError for a model that cannot be had, OutputError where the disk is too full.
    """
    batches = tuple(sorted(set(batches)))
    if not batches or batches[0] < 1 or rounds < 1:
        raise EngineError(
            f"batches are {batches} and rounds {rounds}; expected numbers of 1 or more"
        )
    _entrants(
        engines, _precisions(precisions, quantised=True)
    )  # refuses what it does not know, at once
    with tempfile.TemporaryDirectory(prefix="verydeep-bench-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        path, environment = _model(model, place)
        opened = read(path)
        wanted = _precisions(precisions, quantised=bool(opened.record.activations))
        entrants = _entrants(engines, wanted)
        if not opened.record.network.head.classes:
            raise EngineError(f"{path} is a trunk without a head: there are no scores to compare")
        side = size or opened.record.preprocess.crop_size or SIDE
        smallest = opened.record.network.cut(("fc8",)).minimum_size
        if side < smallest:
            raise EngineError(
                f"size {side} is too small for this model; it needs at least {smallest}"
            )
        # a copy as stored and one as the engine packs it
        _warn_of_memory(len(entrants) * 8 * opened.record.network.parameters)
        graph = place / "model.onnx"
        if any(entrant.plain for entrant in entrants):
            log.info("writing the ONNX file for the plain engines")
            _write_onnx(opened, graph)
        log.info("computing the scores in float64")
        preprocess, tensors = opened.record.preprocess, opened.tensors()
        truth = float64.scores(
            opened.record.network, tensors, preprocess, pixels_of(opened.record, side, CHECKED)
        )
        task = {
            "model": str(path),
            "onnx": str(graph),
            "side": side,
            "threads": threads or cores(),
            "batches": list(batches),
        }
        with ExitStack() as stack:
            runners = list(_runners(entrants, task, environment, truth, stack))
            if not runners:
                raise EngineError("no engine could run this model; the reasons are above")
            rows: list[Row] = []
            for batch in batches:
                _rounds(runners, batch, rounds)
                peaks = [runner.worker.ask("peak") for runner in runners]
                rows += _rows(runners, batch, peaks)
    order = {"exact": 0, "fast": 1, "half": 2, "int8": 3}
    return sorted(rows, key=lambda row: (row.batch, order[row.precision], row.ms_per_image))


def random_model(net: Network, path: Path) -> Path:
    """A model file of that network with random weights, the same every time, scaled as He et al. do."""
    draw = np.random.default_rng(16)
    tensors: dict[str, np.ndarray] = {}
    for key, shape in net.tensors.items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.zeros((), np.int64)
        elif len(shape) > 1:
            tensors[key] = draw.standard_normal(shape, np.float32)
            tensors[key] *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        else:
            value = 1 if key.endswith("running_var") or _is_norm(net, key) else 0
            tensors[key] = np.full(shape, value, np.float32)
    write(path, Record(network=net), tensors)
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""
    lines = []
    for batch in sorted({row.batch for row in rows}):
        cells = [
            ("engine", "precision", "ms/image", "x torch", "x plain", "error", "load s", "peak MB")
        ]
        cells += [
            (
                row.engine + (f": {row.chosen}" if row.chosen else ""),
                row.precision,
                f"{row.ms_per_image:.1f}",
                "-" if row.speedup_vs_torch is None else f"{row.speedup_vs_torch:.2f}",
                "-" if row.speedup_vs_best_plain is None else f"{row.speedup_vs_best_plain:.2f}",
                f"{row.error:.0e}",
                f"{row.load_seconds:.1f}",
                f"{row.peak_bytes / 1e6:.0f}",
            )
            for row in rows
            if row.batch == batch
        ]
        lines += [f"batch {batch}", indent(wording.table(cells, "<<>"), "  ")]
        lines.append("")
    return "\n".join(lines).rstrip()


@dataclass
class _Runner:
    """An entrant's process, and what it told. precisions: those for which it does the very same."""

    entrant: Entrant
    worker: Worker
    told: dict[int, dict[str, Any]]
    precisions: list[str]
    error: float
    seconds: dict[int, list[float]] = field(default_factory=dict)  # of one batch, by batch size

    def ratio(self, other: _Runner, batch: int) -> float:
        """How many times as fast as the other: the median over the rounds."""
        pairs = zip(other.seconds[batch], self.seconds[batch], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def _precisions(given: str | Sequence[str], *, quantised: bool) -> tuple[str, ...]:
    """quantised: whether the model is one that `verydeep quantize` made."""
    names = tuple(TOLERANCES) + (("int8",) if quantised else ())
    if given != "all":
        names, known = _listed(given), ALLOWED
        if not names:
            raise EngineError(f"precisions are {given!r}; expected one of: all, {', '.join(known)}")
        for name in names:
            if name not in known:
                raise EngineError(f"precision {name!r} is unknown{nearest(name, ['all', *known])}")
        if "int8" in names and not quantised:
            raise EngineError("int8 needs a model that `verydeep quantize` made; this one is not")
    return names


def _entrants(given: str | Sequence[str], precisions: Sequence[str]) -> list[Entrant]:
    names = [*(kind.name for kind in installed()), "auto"] if given == "all" else _listed(given)
    for name in names:
        if name not in ("auto", *ENGINES, COMPILED):
            raise EngineError(
                f"engine {name!r} is unknown{nearest(name, ['auto', *ENGINES, COMPILED])}"
            )
        engine = "torch" if name == COMPILED else name
        its = ENGINES[engine].precisions if engine in ENGINES else precisions
        check(engine, next((p for p in precisions if p in its), precisions[0]))
    entrants = [
        Entrant(name, plain.precision)
        for name, plain in PLAIN.items()
        if ENGINES[plain.engine].available
        and (name == BASELINE or plain.called in names or (not plain.apart and "auto" in names))
        and any(_covers(plain.precision, precision) for precision in precisions)
        and (not plain.bf16 or computes_bf16())
    ]
    for precision in precisions:
        entrants += [
            Entrant(name, precision)
            for name in names
            if name == "auto" or (name in ENGINES and precision in ENGINES[name].precisions)
        ]
    return entrants


def _covers(strict: str, loose: str) -> bool:
    """Whether what keeps `strict` keeps `loose`."""
    return ALLOWED[strict] <= ALLOWED[loose]


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _model(given: str | os.PathLike[str], place: Path) -> tuple[Path, dict[str, str]]:
    """The model file, and the environment for processes that run it."""
    from ..published import catalog, supply
    from ..published.finding import find_model

    name = os.fspath(given)
    if name not in NETWORKS or os.path.isfile(name):
        return find_model(name), {}
    if name in catalog.ENTRIES:
        known = supply.model_path(catalog.ENTRIES[name])
        if known.exists():
            return known, {}
    net = network(name)
    log.info(f"no weights of {name} are at hand: random ones, which are as fast")
    _require_room(place, 16 * net.parameters)
    # what is prepared from them is of no use later
    cache = {"VERYDEEP_CACHE": str(place / "cache")}
    return random_model(net, place / f"{name}.safetensors"), cache


def _is_norm(net: Network, key: str) -> bool:
    return key.endswith(".weight") and any(
        key == f"{layer.norm_key}.weight" for layer in net.trunk if layer.norm_key
    )


def _require_room(place: Path, size: int) -> None:
    import shutil

    free = shutil.disk_usage(place).free
    if free < size:
        raise OutputError(
            f"{place.parent}: has {free / 1e6:.0f} MB free, and the race needs {size / 1e6:.0f} for a "
            "while; free some space, or name another folder with TMPDIR"
        )


def _warn_of_memory(needed_bytes: int) -> None:
    """All entrants are open at once; only Linux is asked what is free."""
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
        if free < needed_bytes:
            log.info(
                f"all entrants together may take {needed_bytes / 1e9:.0f} GB of memory, and "
                f"{free / 1e9:.0f} are free; --engines or --precision names fewer"
            )


def _write_onnx(model: ModelFile, path: Path) -> None:
    from ..engines.source import source_of
    from ..graphs.writer import write_onnx

    graph = source_of(model, "uint8").graph
    # MNN's file, and for a moment what it is made from, stand beside it
    _require_room(path.parent, 3 * graph.size_bytes)
    write_onnx(graph, path, beside=False)


def _runners(
    entrants: Sequence[Entrant],
    task: dict[str, Any],
    environment: dict[str, str],
    truth: np.ndarray,
    stack: ExitStack,
) -> Iterator[_Runner]:
    """Open each entrant. One that computes the very same as its own in another precision joins that."""
    known: dict[tuple[object, ...], _Runner] = {}
    for number, entrant in enumerate(entrants, 1):
        log.info(f"opening {entrant.name}, {entrant.precision} ({number} of {len(entrants)})")
        try:
            if entrant.keeps_files:
                with Worker(entrant, task, environment) as worker:
                    worker.ask("open")
            worker = Worker(entrant, task, environment)
            try:
                told = {int(batch): facts for batch, facts in worker.ask("open").items()}
            except BaseException:
                worker.close()
                raise
        except EngineError as error:
            log.info(f"{entrant.name} {entrant.precision} is left out: {error}")
            continue
        same = (
            entrant.name,
            *((facts["chosen"], facts["settings"], facts["digest"]) for facts in told.values()),
        )
        if same in known:
            worker.close()
            known[same].precisions.append(entrant.precision)
            continue
        stack.callback(worker.close)
        errors = [
            relative_error(np.array(facts["scores"]), truth[: len(facts["scores"])])
            for facts in told.values()
        ]
        worst = float(np.max(errors))
        if not worst <= ALLOWED[entrant.precision]:
            log.info(
                f"{entrant.name} does not keep {entrant.precision} here: "
                f"its relative error against float64 is {worst:.1e}"
            )
        known[same] = _Runner(entrant, worker, told, [entrant.precision], worst)
        yield known[same]


def _rounds(runners: Sequence[_Runner], batch: int, rounds: int) -> None:
    for number in range(rounds):
        log.info(f"batch {batch}: round {number + 1} of {rounds}")
        first = number % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            time.sleep(PAUSE_SECONDS)
            runner.seconds.setdefault(batch, []).append(runner.worker.ask("turn", batch=batch))


def _rows(runners: Sequence[_Runner], batch: int, peaks: Sequence[int]) -> Iterator[Row]:
    base = next((runner for runner in runners if runner.entrant.name == BASELINE), None)
    for runner, peak in zip(runners, peaks, strict=True):
        told = runner.told[batch]
        for precision in runner.precisions:
            plain = [
                other
                for other in runners
                if other.entrant.plain and _covers(other.entrant.precision, precision)
            ]
            best = min(plain, key=lambda r: statistics.median(r.seconds[batch]), default=None)
            yield Row(
                engine=runner.entrant.name,
                precision=precision,
                batch=batch,
                ms_per_image=statistics.median(runner.seconds[batch]) / batch * 1e3,
                speedup_vs_torch=None if base is None else runner.ratio(base, batch),
                speedup_vs_best_plain=None if best is None else runner.ratio(best, batch),
                error=runner.error,
                chosen=told["chosen"],
                load_seconds=runner.told[min(runner.told)]["load_seconds"],
                peak_bytes=peak,
            )
