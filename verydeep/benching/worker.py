"""A process of its own for each entrant of the race: the end that asks, and the end that computes."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..engines import ENGINES
from ..errors import EngineError, VerydeepError
from ..modelfile import ModelFile, Record, read
from .plain import PLAIN

CHECKED = 1  # images that are also computed in float64
TURN_SECONDS = 0.25  # of one turn, about: a long run is one turn, of short ones a few are averaged
MANY = 10**6  # images to come, so that "auto" measures
SERVE = f"from {__name__} import serve; serve()"


@dataclass(frozen=True)
class Entrant:
    """A key of ENGINES, "auto" or a key of PLAIN, and the precision in which it takes part."""

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


def pixels_of(record: Record, side: int, count: int) -> np.ndarray:
    """(count, side, side, channels) uint8, the first ones the same whatever the count."""
    from ..exporting import synthetic_photos

    few = synthetic_photos(side, side, CHECKED, len(record.preprocess.mean))
    return np.resize(few, (count, *few.shape[1:]))


class Worker:
    """A process that runs one entrant; asked and answering in lines of JSON."""

    def __init__(self, entrant: Entrant, task: dict[str, Any], environment: dict[str, str]) -> None:
        self.entrant = entrant
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps({**task, **asdict(entrant)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> Worker:
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


def serve() -> None:
    """The other end of `Worker`: open the entrant when asked, and run it when asked."""
    task = json.loads(sys.argv[1])
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
    pixels = pixels_of(model.record, task["side"], batch)
    opened = entry(pixels)
    scores = opened.run()
    seconds = time.perf_counter() - began
    runs[batch] = opened.run
    return {
        "load_seconds": seconds,
        "chosen": opened.chosen,
        "settings": opened.settings,
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
    from ..engines.choice import Choice
    from ..engines.source import source_of

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
