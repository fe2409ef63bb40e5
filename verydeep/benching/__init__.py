"""Race the installed engines on one model, on this machine, and say how fast and how right each is.

Every entrant lives in a process of its own: its threads, its memory and the time until its first answer
are its own. One computes at a time. In each round everybody has a turn, so that a machine that slows down
meets all alike, and speeds are compared pair by pair within the rounds.

Entrants are verydeep's engines, "auto" for each precision, and those of `plain`: each engine as its own
documentation runs the network. Errors are against float64 (`verydeep.benching.float64`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..engines import ENGINES, TOLERANCES, installed, kind, relative_error
from ..engines.processor import cores
from ..errors import EngineError, OutputError, VerydeepError, nearest
from ..modelfile import ModelFile, Record, read, write
from ..nets import NETWORKS, Network, network
from .plain import BASELINE, PLAIN, computes_bf16

__all__ = ["Row", "bench", "random_model", "table"]

ROUNDS = 7
CHECKED = 1  # images that are also computed in float64
TURN_SECONDS = 0.25  # of one turn, about: a long run is one turn, of short ones a few are averaged
PAUSE_SECONDS = 0.05  # in which the threads of the one before stop waiting for more
SIDE = 224  # pixels, where the model says nothing
MANY = 10**6  # images to come, so that "auto" measures
# not among "all": the first is a plain row in any case, the second compiles for minutes
BY_NAME = ("torch-eager", "torch-compiled")
# precision -> largest relative error; int8 keeps first answers, and promises nothing about scores
ALLOWED = {**TOLERANCES, "int8": float("inf")}

Note = Callable[[str], None]


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
    note: Note = lambda _: None,
) -> list[Row]:
    """One race; a row for each entrant and batch size, by batch, precision and speed.

    model: a model file, a built-in, or a network of the table, which gets random weights where no
    published ones are at hand. engines: names of `engines.ENGINES`, "auto" among them if wanted, or "all"
    that are installed. precisions: "exact", "fast", "half", "int8", or "all" that
    the model can have. size: pixels a side of the images.
    note: told how far things are.

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
        path, environment = _model(model, place, note)
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
        _warn_of_memory(len(entrants) * 8 * opened.record.network.parameters, note)
        graph = place / "model.onnx"
        if any(entrant.plain for entrant in entrants):
            note("writing the ONNX file for the plain engines")
            _write_onnx(opened, graph)
        note("computing the scores in float64")
        truth = _float64(opened, side)
        task = {
            "model": str(path),
            "onnx": str(graph),
            "side": side,
            "threads": threads or cores(),
            "batches": list(batches),
        }
        with ExitStack() as stack:
            runners = list(_runners(entrants, task, environment, truth, stack, note))
            if not runners:
                raise EngineError("no engine could run this model; the reasons are above")
            rows: list[Row] = []
            for batch in batches:
                _rounds(runners, batch, rounds, note)
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
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines.append(f"batch {batch}")
        for line in cells:
            texts = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
            texts += [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
            lines.append("  " + "  ".join(texts))
        lines.append("")
    return "\n".join(lines).rstrip()


@dataclass(frozen=True)
class _Entrant:
    name: str
    precision: str

    @property
    def plain(self) -> bool:
        return self.name in PLAIN

    @property
    def keeps_files(self) -> bool:
        """Whether its first opening makes what later ones find, so that it is opened once in advance."""
        return self.name in ("auto", "plain mnn") or (
            self.name in ENGINES and ENGINES[self.name].keeps_files
        )


@dataclass
class _Runner:
    """An entrant's process, and what it told. precisions: those for which it does the very same."""

    entrant: _Entrant
    worker: _Worker
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
        for name in names:
            if name not in known:
                raise EngineError(f"precision {name!r} is unknown{nearest(name, ['all', *known])}")
        if "int8" in names and not quantised:
            raise EngineError("int8 needs a model that `verydeep quantize` made; this one is not")
    return names


def _entrants(given: str | Sequence[str], precisions: Sequence[str]) -> list[_Entrant]:
    if given == "all":
        names = [found.name for found in installed() if found.name not in BY_NAME] + ["auto"]
    else:
        names = list(_listed(given))
    for name in names:
        if name == "auto":
            continue
        found = kind(name)
        if not found.available:
            raise EngineError(f"engine {name} is not installed; install it with: {found.install}")
        if not set(precisions) & set(found.precisions):
            raise EngineError(
                f"engine {name} computes in precision {' or '.join(found.precisions)}; "
                f"{' or '.join(precisions)} was asked for"
            )
    entrants = [
        _Entrant(name, plain.precision)
        for name, plain in PLAIN.items()
        if ENGINES[plain.engine].available
        and (name == BASELINE or "auto" in names or plain.engine in names)
        and any(_covers(plain.precision, precision) for precision in precisions)
        and (not plain.bf16 or computes_bf16())
    ]
    for precision in precisions:
        entrants += [
            _Entrant(name, precision)
            for name in names
            if name == "auto" or precision in ENGINES[name].precisions
        ]
    return entrants


def _covers(strict: str, loose: str) -> bool:
    """Whether what keeps `strict` keeps `loose`."""
    return ALLOWED[strict] <= ALLOWED[loose]


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _model(given: str | os.PathLike[str], place: Path, note: Note) -> tuple[Path, dict[str, str]]:
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
    note(f"no weights of {name} are at hand: random ones, which are as fast")
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


def _warn_of_memory(needed_bytes: int, note: Note) -> None:
    """All entrants are open at once; only Linux is asked what is free."""
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
        if free < needed_bytes:
            note(
                f"all entrants together may take {needed_bytes / 1e9:.0f} GB of memory, and "
                f"{free / 1e9:.0f} are free; --engines or --precision names fewer"
            )


def _write_onnx(model: ModelFile, path: Path) -> None:
    from ..exporting.formats import Job
    from ..graphs.writer import write_onnx

    graph = Job(model, "exact").graph
    # MNN's file, and for a moment what it is made from, stand beside it
    _require_room(path.parent, 3 * graph.size_bytes)
    write_onnx(graph, path, beside=False)


def _float64(model: ModelFile, side: int) -> np.ndarray:
    from . import float64

    record = model.record
    pixels = _pixels(record, side, CHECKED)
    return float64.scores(record.network, model.tensors(), record.preprocess, pixels)


def _pixels(record: Record, side: int, count: int) -> np.ndarray:
    """(count, side, side, channels) uint8, the first ones the same whatever the count."""
    from ..exporting import synthetic_photos

    few = synthetic_photos(side, side, CHECKED, len(record.preprocess.mean))
    return np.resize(few, (count, *few.shape[1:]))


def _runners(
    entrants: Sequence[_Entrant],
    task: dict[str, Any],
    environment: dict[str, str],
    truth: np.ndarray,
    stack: ExitStack,
    note: Note,
) -> Iterator[_Runner]:
    """Open each entrant. One that computes the very same as its own in another precision joins that."""
    known: dict[tuple[object, ...], _Runner] = {}
    for number, entrant in enumerate(entrants, 1):
        note(f"opening {entrant.name}, {entrant.precision} ({number} of {len(entrants)})")
        try:
            if entrant.keeps_files:
                with _Worker(entrant, task, environment) as worker:
                    worker.ask("open")
            worker = _Worker(entrant, task, environment)
            try:
                told = {int(batch): facts for batch, facts in worker.ask("open").items()}
            except BaseException:
                worker.close()
                raise
        except EngineError as error:
            note(f"{entrant.name} {entrant.precision} is left out: {error}")
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
            note(
                f"{entrant.name} does not keep {entrant.precision} here: "
                f"its relative error against float64 is {worst:.1e}"
            )
        known[same] = _Runner(entrant, worker, told, [entrant.precision], worst)
        yield known[same]


def _rounds(runners: Sequence[_Runner], batch: int, rounds: int, note: Note) -> None:
    for number in range(rounds):
        note(f"batch {batch}: round {number + 1} of {rounds}")
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


class _Worker:
    """A process that runs one entrant; asked and answering in lines of JSON."""

    def __init__(
        self, entrant: _Entrant, task: dict[str, Any], environment: dict[str, str]
    ) -> None:
        self.entrant = entrant
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({**task, **asdict(entrant)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: str, **what: object) -> Any:
        """Its answer. EngineError where it has a reason not to, or died."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"ask": question, **what}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode("utf-8", "replace").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            raise EngineError(f"{self.entrant.name} died with status {status}{last}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """Let it go, and wait until its memory is free."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def _serve(task: dict[str, Any]) -> None:
    """The other end of `_Worker`: open the entrant when asked, and run it when asked."""
    began = time.perf_counter()
    with _own_stdout() as answers:
        model = read(task["model"])
        runs: dict[int, Callable[[], np.ndarray]] = {}

        def answer(question: dict[str, Any]) -> object:
            if question["ask"] == "open":
                entry = _opener(task, model)
                sizes = task["batches"]
                return {size: _opened(entry, task, model, size, runs, began) for size in sizes}
            if question["ask"] == "turn":
                return _turn(runs[question["batch"]])
            return _peak_bytes()

        for line in sys.stdin:
            try:
                reply: dict[str, object] = {"answer": answer(json.loads(line))}
            except (VerydeepError, OSError, RuntimeError, ValueError, ImportError) as error:
                text = str(error).splitlines() or [type(error).__name__]
                reply = {"error": text[0]}
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


def _opened(
    entry: Callable[[np.ndarray], _Open],
    task: dict[str, Any],
    model: ModelFile,
    batch: int,
    runs: dict[int, Callable[[], np.ndarray]],
    began: float,
) -> dict[str, Any]:
    """Make the entrant ready for batches of that size, and what there is to tell of it."""
    pixels = _pixels(model.record, task["side"], batch)
    found = entry(pixels)
    scores = found.run()
    seconds = time.perf_counter() - began
    runs[batch] = found.run
    return {
        "load_seconds": seconds,
        "chosen": found.chosen,
        "settings": found.settings,
        "scores": scores[:CHECKED].tolist(),
        "digest": hashlib.sha256(np.ascontiguousarray(scores).data).hexdigest(),
    }


@dataclass(frozen=True)
class _Open:
    """run: scores of the pixels. chosen, settings: what "auto" decided, what the engine was told."""

    run: Callable[[], np.ndarray]
    chosen: str | None = None
    settings: str = ""


def _opener(task: dict[str, Any], model: ModelFile) -> Callable[[np.ndarray], _Open]:
    """A function that opens the entrant for a batch of pixels; once only, where batches do not matter."""
    name, threads = task["name"], task["threads"]
    if name in PLAIN:
        plain = PLAIN[name].open(model, Path(task["onnx"]), threads)
        return lambda pixels: _Open(lambda: plain(pixels))
    from ..engines.choice import Choice, source_of

    choice = Choice(
        source_of(model, "uint8", int8=task["precision"] == "int8"),
        engine=name,
        precision=task["precision"],
        threads=threads,
        device="cpu",
    )

    def opened(pixels: np.ndarray) -> _Open:
        engine = choice.engine(pixels, batch=len(pixels), to_come=MANY)
        chosen = engine.name if name == "auto" else None
        settings = json.dumps(dict(engine.settings), sort_keys=True)
        return _Open(lambda: engine.run(pixels)["scores"], chosen, settings)

    return opened


def _turn(run: Callable[[], np.ndarray]) -> float:
    """Seconds of one run: the first if it is long, else the median of a few after it."""
    seconds: list[float] = []
    while sum(seconds) < TURN_SECONDS:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) if len(seconds) > 1 else seconds[0]


def _peak_bytes() -> int:
    """The most memory that this process has held. Linux tells it of this program alone."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such thing
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _own_stdout() -> Iterator[IO[str]]:
    """Where answers go; whatever else prints to stdout goes to stderr meanwhile."""
    mine = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        yield mine
    finally:
        mine.close()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
