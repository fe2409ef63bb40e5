"""MNN on the CPU: convolutions by Winograd's shorter multiplications; small tiles for `exact`.

Tiles of 2x2 outputs round no worse than plain convolutions and still take fewer multiplications; larger
tiles are quicker, and `fast`.

MNN reads a file of its own, which its converter makes from an ONNX file; both are made in the cache. The
converter is called as the library function it is: the package's own command for it tries to install a
logger and report to its vendor.

What MNN does holds Python's lock: meanwhile no thread decodes, no progress moves, and Ctrl-C is not heard.
So the converter has a process of its own, and a batch is computed a few images at a time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from .forks import Turns, require_own_threads, silenced

if TYPE_CHECKING:
    from ..graphs import Source
    from . import Engine, Run

FILE = "graph.mnn"
# MNN's hint of that name: 1 allows the smallest Winograd tiles alone, 3, its default, the largest
WINOGRAD_MEMORY_LEVEL, SMALL_TILES, ITS_OWN_TILES = 3, 1, 3
SPARE_BYTES = 1 << 20  # beside the weights: the graph itself
PIECE_PIXELS = 4 * 224 * 224  # of three channels: a third of a second on two cores
# it has no other name
CONVERTER = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv[1:]))"

_EXECUTOR = Turns()  # all graphs share what evaluates MNN's expressions


def prepare(engine: Engine) -> Run:
    from ..files.cache import Cache

    if engine.threads > 1:
        require_own_threads("mnn")
    source, version = engine.source, engine.kind.version
    about = {"engine": "mnn", "version": version, "graph": source.key}
    return Cache().open(
        f"mnn-{version}-{source.key[:24]}",
        about,
        make=lambda folder: _convert(source, folder),
        load=lambda folder, _: _load(folder / FILE, engine),
        # the ONNX file and MNN's, side by side for a moment
        needs_bytes=lambda: 2 * source.graph.size_bytes + SPARE_BYTES,
    )


def _convert(source: Source, folder: Path) -> None:
    # not where the file is there already: onnx takes a while to load
    from ..graphs.writer import write_onnx

    graph = folder / "graph.onnx"
    write_onnx(source.graph, graph)
    options: tuple[str, ...] = ()
    products = {n.output[0] for n in source.graph.model.graph.node if n.op_type == "Gemm"}
    if products & set(source.outputs):
        # made a convolution, an FC layer swallows the ReLU behind it, though its own value is asked for
        options = ("--convertMatmulToConv", "0")
    convert(graph, folder / FILE, "verydeep", source.graph.size_bytes, *options)
    for file in (graph, graph.with_name(graph.name + ".data")):
        file.unlink()


def convert(onnx: Path, file: Path, text: str, least_bytes: int, *options: str) -> None:
    """An ONNX file to MNN's. text: what the file says about itself. least_bytes: that it must have."""
    words = ["verydeep", "-f", "ONNX", "--modelFile", str(onnx.resolve())]
    words += ["--MNNModel", str(file.resolve())]
    # a program that holds a Python may know of none that it could start, or be what it names
    python = "" if getattr(sys, "frozen", False) else sys.executable or ""
    # it writes weights to a file of one name where it runs: two in one folder would mix theirs up
    with TemporaryDirectory(dir=file.parent) as place:
        try:
            done = subprocess.run(
                [python, "-P", "-c", CONVERTER, *words, "--bizCode", text, *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                cwd=place,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(
                f"mnn needs a Python to convert in, and {python!r} is none"
            ) from error
    size = file.stat().st_size if file.exists() else 0
    if done.returncode or size < least_bytes:  # the converter does not notice that a disk is full
        reason = _complaint(done.stdout.decode("utf-8", "replace").splitlines())
        if done.returncode < 0:
            reason = f"signal {-done.returncode} ended it"
        raise EngineError(
            f"mnn did not take the graph: its converter wrote {size} bytes of at least {least_bytes}; "
            f"{reason}"
        )


def _load(file: Path, engine: Engine) -> Run:
    outputs = engine.source.outputs
    with _EXECUTOR.lock, silenced() as lines:
        import MNN.expr
        import MNN.nn

        config = {"backend": "CPU", "numThread": engine.threads, "precision": "high"}
        try:
            manager = MNN.nn.create_runtime_manager((config,))
            module = MNN.nn.load_module_from_file(
                str(file), ["pixels"], list(outputs), runtime_manager=manager
            )
        except Exception as error:
            raise EngineError(f"mnn cannot read {file}: {error}") from error
    if module is None:
        raise EngineError(f"mnn cannot read {file}: {_complaint(lines)}")
    expr: Any = MNN.expr
    tiles = SMALL_TILES if engine.precision == "exact" else ITS_OWN_TILES

    def forward(piece: Any) -> Any:
        # What one manager is told holds for all of the process, and is read when a module first runs: so
        # it is told anew each time, by whoever holds the lock, and taken back for who has no lock of ours
        manager.set_hint(WINOGRAD_MEMORY_LEVEL, tiles)
        try:
            return module.forward([piece])
        finally:
            manager.set_hint(WINOGRAD_MEMORY_LEVEL, ITS_OWN_TILES)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        # "NCHW" here only means: these dimensions, in this order
        kind = expr.uint8 if pixels.dtype == np.uint8 else expr.float
        count = max(1, 3 * PIECE_PIXELS // pixels[0].size)
        rows = []
        for start in range(0, len(pixels), count):
            piece = pixels[start : start + count]
            with _EXECUTOR.lock:
                values = forward(expr.const(piece, list(piece.shape), expr.NCHW, kind))
                # read() gives a view of memory that MNN uses again
                rows.append([np.array(expr.convert(v, expr.NCHW).read()) for v in values])
        whole = rows[0] if len(rows) == 1 else map(np.concatenate, zip(*rows, strict=True))
        return dict(zip(outputs, whole, strict=True))

    return run


def _complaint(lines: list[str]) -> str:
    words = [line.strip() for line in lines if "rror" in line or "fail" in line.lower()]
    return words[-1] if words else "it gave no reason"
