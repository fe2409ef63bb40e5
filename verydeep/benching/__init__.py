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
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import indent
from typing import IO, Any

import numpy as np

from ..engines import ENGINES, TOLERANCES, check, installed, relative_error
from ..engines.choice import Choice
from ..engines.processor import computes_bf16, cores, require_memory
from ..errors import EngineError, OutputError, VerydeepError, log, require
from ..files import wording
from ..files.progress import stage
from ..graphs import source_of
from ..graphs.int8 import require_quantised
from ..modelfile import ModelFile, Record, read, write
from ..nets import NETWORKS, Network, network
from . import float64
from .plain import BASELINE, COMPILED, PLAIN

__all__ = ["Row", "bench", "random_model", "table"]

ROUNDS = 7
CLEARLY = 1.05  # times as fast: less is chance
PAUSE_SECONDS = 0.05  # in which the threads of the one before stop waiting for more
TURN_SECONDS = 0.25  # of one turn, about: a long run is one turn, of short ones a few are averaged
MANY = 10**6  # images to come, so that "auto" measures
SIDES = 224, 224  # height and width, where the model says nothing
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
    wanted = _listed(precisions, ALLOWED)
    able = [kind.name for kind in installed() if not set(wanted).isdisjoint(kind.precisions)]
    entrants = _entrants(_listed(engines, [*able, "auto"]), wanted)
    with tempfile.TemporaryDirectory(prefix="verydeep-bench-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        path, environment = _model(model, place)
        opened = read(path)
        if "int8" in wanted and not opened.record.activations:
            if precisions != "all":
                require_quantised(opened)
            entrants = [entrant for entrant in entrants if entrant[1] != "int8"]
        smallest = opened.record.network.cut((), scores=True).minimum_size
        sides = (size, size) if size else opened.record.preprocess.sides or SIDES
        if min(sides) < smallest:
            raise EngineError(
                f"size {min(sides)} is too small for this model; it needs at least {smallest}"
            )
        require_memory((batches[-1], *sides), opened.record.network.trunk[0].outputs)
        graph = place / "model.onnx"
        if any(name in PLAIN for name, _ in entrants):
            _write_onnx(opened, graph)
        truth = float64.scores(
            opened.record.network, opened.tensors(), opened.record.preprocess,
            _pixels(opened.record, sides, 1),
        )  # fmt: skip
        task = {
            "model": str(path),
            "onnx": str(graph),
            "sides": sides,
            "threads": threads or cores(),
            "batches": batches,
            "environment": environment,
        }
        with ExitStack() as stack:
            workers = _workers(entrants, task, truth, stack)
            if not workers:
                raise EngineError("no engine could run this model; the reasons are above")
            rows: list[Row] = []
            for batch in batches:
                _rounds(workers, batch, rounds)
                rows += _rows(workers, batch)
    order = {"exact": 0, "fast": 1, "half": 2, "int8": 3}
    return sorted(rows, key=lambda row: (row.batch, order[row.precision], row.ms_per_image))


@contextmanager
def against(
    model: Path, *, threads: int | None = None, batch: int = 1, rounds: int = ROUNDS
) -> Iterator[tuple[str, Callable[[Path], float]]]:
    """Measure other models against one, all in the engine that is the quickest for it, by turns with it.

    Gives that engine's name, and what says of another model file how many times as fast it is: the median
    over the rounds. Images are `batch` at once, of the size that the model is for.
    """
    sides = read(model).record.preprocess.sides or SIDES
    task = {
        "sides": sides, "threads": threads or cores(), "batches": [batch], "environment": {}
    }  # fmt: skip
    with ExitStack() as stack:

        def opened(path: Path, engine: str) -> Worker:
            worker = Worker(engine, "fast", {**task, "model": str(path), "onnx": ""})
            stack.callback(worker.close)
            worker.open()
            return worker

        auto = opened(model, "auto")
        engine = auto.told[batch]["chosen"]
        auto.close()  # so that neither its memory nor its threads are beside what is timed
        first = opened(model, engine)

        def ratio(path: Path) -> float:
            first.seconds.clear()
            other = opened(path, engine)
            _rounds([first, other], batch, rounds)
            other.close()
            return other.ratio(first, batch)

        yield engine, ratio


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
            # weights of one axis are those of a batch norm
            value = 1 if key.endswith(("running_var", ".weight")) else 0
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
    return "\n".join([*lines, *_notes(rows)]).rstrip()


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What a reader of the table asks: why "auto" did not take the quickest, and where the others are."""
    for auto in rows:
        if auto.chosen is None:
            continue
        rivals = [row for row in rows if not row.chosen and row.batch == auto.batch
                  and _covers(row.precision, auto.precision)]  # fmt: skip
        best = min(rivals, key=lambda row: row.ms_per_image, default=auto)
        # the very engine that auto took was not quicker than itself
        if best.engine != auto.chosen and best.ms_per_image * CLEARLY < auto.ms_per_image:
            why = (
                "torch takes longer to load than it would win back, so auto takes it only where a program "
                "has loaded it" if best.engine.endswith("torch")
                else "auto chose in a race of its own, which `verydeep cache clear` makes it hold again"
            )  # fmt: skip
            yield (
                f"batch {auto.batch}, {auto.precision}: {best.engine} was "
                f"{auto.ms_per_image / best.ms_per_image:.2f} times as fast as auto; {why}"
            )
    if not any(kind.name not in ("onnxruntime", "torch") for kind in installed()):
        yield 'more engines: pip install "verydeep[fast]" adds OpenVINO, ncnn and MNN'


class Worker:
    """An entrant's process, asked and answering in lines of JSON, and what it told.

    entrant: a key of ENGINES, "auto" or a key of PLAIN. precisions: those for which it does the very same.
    """

    def __init__(self, entrant: str, precision: str, task: dict[str, Any]) -> None:
        self.entrant, self.precisions = entrant, [precision]
        self.told: dict[int, dict[str, Any]] = {}  # by batch size
        self.error = 0.0
        self.seconds: dict[int, list[float]] = {}  # of one batch, by batch size
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()",
             json.dumps({**task, "name": entrant, "precision": precision})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **task["environment"]},
        )  # fmt: skip

    def open(self) -> None:
        """Open the engine, and keep what it tells; EngineError as of `ask`."""
        self.told = {int(batch): facts for batch, facts in self.ask("open").items()}

    def ratio(self, other: Worker, batch: int) -> float:
        """How many times as fast as the other: the median over the rounds."""
        pairs = zip(other.seconds[batch], self.seconds[batch], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def ask(self, question: str, batch: int = 0) -> Any:
        """Its answer. EngineError where it has a reason not to, or died."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([question, batch]) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode("utf-8", "replace").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            raise EngineError(f"{self.entrant} died with status {status}{last}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """Let it go, and wait until its memory is free."""
        with suppress(OSError), self.process:  # closes its pipes, and waits
            self.process.kill()
        self.errors.close()


def serve() -> None:
    """The other end of `Worker`: open the entrant when asked, and run it when asked."""
    began = time.perf_counter()
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints to stdout goes to stderr
    runs: dict[int, Callable[[], np.ndarray]] = {}

    def opened() -> dict[int, Any]:
        model = read(task["model"])
        opener = _opener(task, model)
        told = {}
        for batch in task["batches"]:
            runs[batch], chosen, settings = opener(_pixels(model.record, task["sides"], batch))
            scores = runs[batch]()
            told[batch] = {
                "load_seconds": time.perf_counter() - began,
                "chosen": chosen,
                "settings": settings,
                "scores": scores[:1].tolist(),
                "digest": hashlib.sha256(np.ascontiguousarray(scores).data).hexdigest(),
            }
        return told

    for line in sys.stdin:
        question, batch = json.loads(line)
        try:
            asked = {"open": opened, "turn": lambda: _turn(runs[batch]), "peak": _peak_bytes}  # noqa: B023
            reply = {"answer": asked[question]()}
        except (VerydeepError, OSError, RuntimeError, ValueError, ImportError) as error:
            reply = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _opener(
    task: dict[str, Any], model: ModelFile
) -> Callable[[np.ndarray], tuple[Callable[[], np.ndarray], str | None, str]]:
    """What opens the entrant for pixels: how to run them, what "auto" chose, what the engine was told."""
    name, precision = task["name"], task["precision"]
    if name in PLAIN:
        plain = PLAIN[name].open(model, Path(task["onnx"]), task["threads"])
        return lambda pixels: (lambda: plain(pixels), None, "")
    source = source_of(model, "uint8", int8=precision == "int8")
    choice = Choice(source, engine=name, precision=precision, threads=task["threads"], device="cpu")

    def opened(pixels: np.ndarray) -> tuple[Callable[[], np.ndarray], str | None, str]:
        engine = choice.engine(pixels, to_come=MANY)
        chosen = engine.name if name == "auto" else None
        settings = json.dumps(dict(engine.settings), sort_keys=True)
        return lambda: engine.run(pixels)["scores"], chosen, settings

    return opened


def _pixels(record: Record, sides: Sequence[int], count: int) -> np.ndarray:
    """(count, height, width, channels) uint8, one photo again and again."""
    from ..exporting import synthetic_photos

    height, width = sides
    return synthetic_photos(height, width, 1, len(record.preprocess.mean)).repeat(count, axis=0)


def _turn(run: Callable[[], np.ndarray]) -> float:
    """Seconds of one run: the first if it is long, else the median of a few after it."""
    seconds: list[float] = []
    while sum(seconds) < TURN_SECONDS:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:] or seconds)


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


def _entrants(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Who takes part, each in which precision. EngineError for what there is not, or not here."""
    for precision in precisions:
        require("precision", precision, ["all", *ALLOWED], EngineError)
    for name in names:
        require("engine", name, ["auto", *ENGINES, COMPILED], EngineError)
        engine = "torch" if name == COMPILED else name
        its = ENGINES[engine].precisions if engine in ENGINES else precisions
        check(engine, next((p for p in precisions if p in its), precisions[0]))
    entrants = [
        (name, plain.precision)
        for name, plain in PLAIN.items()
        if ENGINES[plain.engine].available
        and (name == BASELINE or plain.called in names or (not plain.apart and "auto" in names))
        and any(_covers(plain.precision, precision) for precision in precisions)
        and (not plain.bf16 or computes_bf16())
    ]
    for precision in precisions:
        entrants += [
            (name, precision)
            for name in names
            if name == "auto" or (name in ENGINES and precision in ENGINES[name].precisions)
        ]
    return entrants


def _covers(strict: str, loose: str) -> bool:
    """Whether what keeps `strict` keeps `loose`."""
    return ALLOWED[strict] <= ALLOWED[loose]


def _listed(given: str | Sequence[str], every: Iterable[str]) -> tuple[str, ...]:
    """The words of a list with commas, each once; `every` where it is "all"."""
    names = given.split(",") if isinstance(given, str) else given
    some = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not some:
        raise EngineError(f"nothing is named; expected all, or some of: {', '.join(every)}")
    return tuple(every) if given == "all" else some


def _model(given: str | os.PathLike[str], place: Path) -> tuple[Path, dict[str, str]]:
    """The model file, and the environment for processes that run it."""
    from ..published import catalog, find_model, supply

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


def _require_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size:
        raise OutputError(
            f"{place.parent}: has {free / 1e6:.0f} MB free, and the race needs {size / 1e6:.0f} for a "
            "while; free some space, or name another folder with TMPDIR"
        )


def _write_onnx(model: ModelFile, path: Path) -> None:
    from ..graphs.writer import write_onnx

    graph = source_of(model, "uint8").graph
    # ncnn's and MNN's files, and for a moment what that is made from, stand beside it
    _require_room(path.parent, 4 * graph.size_bytes)
    write_onnx(graph, path, beside=False)


def _workers(
    entrants: Sequence[tuple[str, str]], task: dict[str, Any], truth: np.ndarray, stack: ExitStack
) -> list[Worker]:
    """Open each entrant. One that computes the very same as its own in another precision joins that."""
    known: dict[tuple[object, ...], Worker] = {}
    filers = ("auto", "mnn", "plain mnn", "plain ncnn")  # make files that later openings find
    for name, precision in stage(entrants, "opening engines", "engine"):
        try:
            if name in filers:
                with closing(Worker(name, precision, task)) as first:
                    first.ask("open")
            worker = Worker(name, precision, task)
            stack.callback(worker.close)
            worker.open()
        except EngineError as error:
            log.info(f"{name} {precision} is left out: {error}")
            continue
        told = worker.told.values()
        same = (name, *((facts["chosen"], facts["settings"], facts["digest"]) for facts in told))
        if same in known:
            worker.close()
            known[same].precisions.append(precision)
            continue
        known[same] = worker
        errors = [relative_error(np.array(facts["scores"]), truth) for facts in told]
        worker.error = float(np.max(errors))
        if not worker.error <= ALLOWED[precision]:
            log.info(
                f"{name} does not keep {precision} here: "
                f"its relative error against float64 is {worker.error:.1e}"
            )
    return list(known.values())


def _rounds(workers: Sequence[Worker], batch: int, rounds: int) -> None:
    for number in stage(
        range(rounds), f"racing {wording.counted(batch, 'image')} at once", "round"
    ):
        first = number % len(workers)
        for worker in (*workers[first:], *workers[:first]):
            time.sleep(PAUSE_SECONDS)
            worker.seconds.setdefault(batch, []).append(worker.ask("turn", batch))


def _rows(workers: Sequence[Worker], batch: int) -> Iterator[Row]:
    base = next((worker for worker in workers if worker.entrant == BASELINE), None)
    plain = [worker for worker in workers if worker.entrant in PLAIN]
    for worker in workers:
        peak = worker.ask("peak")
        for precision in worker.precisions:
            rivals = [one for one in plain if _covers(one.precisions[0], precision)]
            best = min(rivals, key=lambda one: statistics.median(one.seconds[batch]), default=None)
            yield Row(
                engine=worker.entrant,
                precision=precision,
                batch=batch,
                ms_per_image=statistics.median(worker.seconds[batch]) / batch * 1e3,
                speedup_vs_torch=None if base is None else worker.ratio(base, batch),
                speedup_vs_best_plain=None if best is None else worker.ratio(best, batch),
                error=worker.error,
                chosen=worker.told[batch]["chosen"],
                load_seconds=worker.told[min(worker.told)]["load_seconds"],
                peak_bytes=peak,
            )
