"""Engines run a graph: one small file an engine, behind one protocol.

An engine is opened on a graph that `verydeep.graphs` built, is always told its precision, and gives named
outputs for pixels:

exact   relative error of at most 1e-5 against the reference (ONNX Runtime in float32)
fast    at most 1e-3: the same float32, by Winograd's shorter multiplications
half    at most 3e-2: bfloat16 where the processor computes in it, float32 elsewhere
int8    graphs that were quantised; see `verydeep.quantisation`

A precision is a promise: an engine that does better keeps it. "auto" chooses by measurement: see
`verydeep.engines.choice`. A number that is not finite is an error.

An engine may be called from any thread. Calls take turns, but for those of ONNX Runtime and ncnn, which
run several at once. After a fork the child opens its engines anew; where that cannot work it gets one
EngineError that says so (`verydeep.engines.forks`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError, ImageError, require, require_whole
from ..graphs import Source
from .forks import OPENING, WATCHED, Turns, never_destroy
from .processor import cores, require_memory

if TYPE_CHECKING:
    from ..graphs.writer import Graph

__all__ = [
    "DEVICES", "ENGINES", "REFERENCE", "TOLERANCES", "Engine", "Kind", "check", "installed",
    "relative_error",
]  # fmt: skip

# Read as onnxruntime is imported, which would leave a number of this machine in the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# precision -> largest relative error against the reference
TOLERANCES: dict[str, float] = {"exact": 1e-5, "fast": 1e-3, "half": 3e-2}
REFERENCE = "onnxruntime"  # whose float32 the others are compared with
MOST_THREADS = 1024
DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE_NAMES = {"cuda": "CUDA device", "mps": "Apple GPU (mps)"}

Settings = Mapping[str, str | int]
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Kind:
    """What is known of an engine before anything of it is imported.

    name: of its module here, and of the extra that installs it. package: what Python imports.
    distributions: what pip may call it, the usual name first. precisions: the promises it can keep.
    devices: where it can run. takes_turns: whether two threads must not run one graph of it at once.
    alone: how many times the usual memory an image takes, where it has as many at once as `streams` says.
    """

    name: str
    package: str
    distributions: tuple[str, ...]
    precisions: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    takes_turns: bool = True
    alone: int = 0

    @property
    def available(self) -> bool:
        """Whether it is installed; looks without importing it."""
        try:
            return importlib.util.find_spec(self.package) is not None
        except (ImportError, ValueError):  # half-removed, or put into sys.modules by hand
            return False

    @property
    def version(self) -> str:
        """Of the installed package, "" where there is none."""
        import importlib.metadata  # takes longer than all else here, and is seldom needed

        for name in self.distributions:
            with suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(name)
        return ""

    @property
    def install(self) -> str:
        """The line that installs it; the reference comes with verydeep itself."""
        return "pip install " + (
            "verydeep" if self.name == REFERENCE else f'"verydeep[{self.name}]"'
        )

    def broken(self, error: ImportError) -> EngineError:
        """What to raise where it is installed, and Python cannot import it."""
        return EngineError(f"{self.package} is installed and cannot be imported: {_line(error)}")

    def imported(self, module: str) -> Any:
        """A module of ours that imports its package. EngineError where that cannot be imported."""
        try:
            return import_module(module)
        except ImportError as error:
            raise self.broken(error) from error

    def load(self) -> Any:
        """Its module here: prepare(engine), devices() beside the CPU; settings worth a race: variants() on
        the CPU, device_variants() elsewhere. EngineError where its package cannot be imported.
        """
        return self.imported(f"{__name__}.{self.name}")

    def found(self) -> tuple[str, ...]:
        """Where it can run here, the quickest first. EngineError where its package cannot be imported."""
        if self.devices == ("cpu",):
            return self.devices
        module = self.load()
        try:
            return tuple(module.devices())
        except ImportError as error:  # torch itself is imported only when asked for
            raise self.broken(error) from error

    def variants(
        self, source: Source, precision: str, threads: int, batch: int, device: str = "cpu"
    ) -> tuple[Settings, ...]:
        """The settings worth a race; mostly an engine's own choices serve every batch."""
        if device != "cpu":
            variants = getattr(self.load(), "device_variants", None)
            return variants(device, precision) if variants else ({},)
        variants = getattr(self.load(), "variants", None)
        return variants(source, precision, threads, batch) if variants else ({},)


ENGINES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "onnxruntime", "onnxruntime",
            ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
            ("exact", "fast", "half", "int8"), ("cpu", "cuda"), takes_turns=False,
        ),
        Kind("openvino", "openvino", ("openvino",), ("exact", "fast", "half", "int8")),
        # all of a layer's tiles before and after its multiplications: 36 numbers each, for 16 of its maps
        Kind("ncnn", "ncnn", ("ncnn",), ("exact", "fast", "half"), takes_turns=False, alone=3),
        Kind("mnn", "MNN", ("MNN",), ("exact", "fast", "half")),
        Kind("torch", "torch", ("torch",), ("exact", "fast", "half"), ("cpu", "cuda", "mps")),
    )
}  # fmt: skip


class Engine:
    """One graph, prepared in the engine of that name, for any thread.

    Calls take turns where the engine has one set of buffers. In a forked child it is opened anew when it is
    first used there; where it cannot be used in a child at all, an EngineError has the word fork in it.

    precision: exact, fast, half, or int8 for a graph that was quantised. threads: how many the engine may
    use; None means one for each physical core that this process may use. device: cpu, cuda or mps; auto
    is the cpu, except for torch where there is a GPU. settings: choices of the engine's own, one of those
    that its module's `variants` names.

    Raises EngineError where the engine is unknown, not installed, or does not take the graph, the
    precision or the device.
    """

    def __init__(
        self,
        name: str,
        graph: Graph | Source,
        *,
        precision: str = "exact",
        threads: int | None = None,
        device: str = "auto",
        settings: Settings | None = None,
    ) -> None:
        require("engine", name, ENGINES, EngineError)
        self.kind, self.name = ENGINES[name], name
        self.precision, self.threads = precision, threads or cores()
        self.settings: Settings = dict(settings or {})
        self._turns = Turns(running=True)
        with OPENING:
            check(name, precision, device, threads)
            self.source = graph if isinstance(graph, Source) else Source.of(graph)
            if device == "auto":  # the quickest of torch's devices; others have their GPUs by name
                device = self.kind.found()[0] if name == "torch" else "cpu"
            self.device = device
            self._run: Run | None = self._prepared()
        WATCHED.add(self)

    def __repr__(self) -> str:
        chosen = "".join(f", {key} {value}" for key, value in self.settings.items())
        return f"<Engine {self.name} {self.precision} on {self.device}, {self.threads} threads{chosen}>"

    def _prepared(self) -> Run:
        try:
            run: Run = self.kind.load().prepare(self)
        except (EngineError, OSError):
            raise
        except ImportError as error:
            raise self.kind.broken(error) from error
        except Exception as error:
            # each engine raises what it likes, with the reason in many lines
            raise EngineError(f"{self.name} did not take the graph: {_line(error)}") from error
        return run

    def in_child(self) -> None:
        never_destroy(self._run)
        self._run = None

    def require_memory(self, shape: tuple[int, ...]) -> None:
        """EngineError where what it has at once of such a batch cannot be held here."""
        count = shape[0]
        if self.kind.alone:
            count = min(count, int(self.settings.get("streams", 1)))
        maps = (self.kind.alone or 1) * self.source.maps
        require_memory((count, *shape[1:]), maps, self.device)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32, for a batch of pixels; arrays of the caller's own.

        pixels: (batch, height, width, channels), of the dtype that the graph was built for, uint8 or
        float32 on the 0..255 scale. A batch of none gives outputs of none.
        Raises ImageError for images that cannot be used, EngineError where the engine fails or an output is
        not finite.
        """
        pixels = _checked(pixels, self.source)
        self.require_memory(pixels.shape)
        # of none the engine itself says what the other dimensions are
        given = pixels if len(pixels) else np.zeros((1, *pixels.shape[1:]), pixels.dtype)
        if self._run is None:  # in a child
            with OPENING:
                self._run = self._run or self._prepared()
        with self._turns.lock if self.kind.takes_turns else nullcontext():
            try:
                outputs = self._run(given)
            except Exception as error:
                shape = "x".join(map(str, given.shape))
                raise EngineError(
                    f"{self.name} failed on {shape} pixels: {_line(error)}"
                ) from error
        if not len(pixels):
            return {name: value[:0] for name, value in outputs.items()}
        for name, value in outputs.items():
            with np.errstate(all="ignore"):
                # a sum that is finite is of finite numbers, and quicker than looking at each
                if not np.isfinite(value.sum()) and not np.isfinite(value).all():
                    raise EngineError(
                        f"{self.name} {self.precision} gave {name} that are not finite (NaN or infinite): "
                        "the model's weights are damaged, or too large for this precision"
                    )
        return outputs


def installed() -> tuple[Kind, ...]:
    """The engines that are installed, in the order of ENGINES."""
    return tuple(kind for kind in ENGINES.values() if kind.available)


def check(engine: str, precision: str, device: str = "auto", threads: int | None = None) -> None:
    """EngineError where that cannot be had here: an unknown word, or more than the engine has.

    engine: "auto" or a key of ENGINES. A GPU is looked for only where one is asked for by name.
    """
    require("engine", engine, ["auto", *ENGINES], EngineError)
    require("precision", precision, [*TOLERANCES, "int8"], EngineError)
    require("device", device, DEVICES, EngineError)
    require_whole(EngineError, threads=1 if threads is None else threads)
    if threads is not None and threads > MOST_THREADS:  # which some engines start, one and all
        raise EngineError(f"threads is {threads}; expected {MOST_THREADS} or fewer, one a core")
    if engine != "auto":
        kind = ENGINES[engine]
        if precision not in kind.precisions:
            raise EngineError(
                f"engine {engine} computes in precision {' or '.join(kind.precisions)}; "
                f"{precision!r} was asked for"
            )
        if device != "auto" and device not in kind.devices:
            raise EngineError(
                f"engine {engine} runs on {' or '.join(kind.devices)}; {device!r} was asked for"
            )
        if not kind.available:
            raise EngineError(f"engine {engine} is not installed; install it with: {kind.install}")
    if device in ("cuda", "mps"):
        kinds = [k for k in installed() if engine in ("auto", k.name) and device in k.devices]
        able = [kind for kind in kinds if precision in kind.precisions]
        if not able:
            raise EngineError(
                f"no engine that is installed computes {precision} on {device}; use --device cpu"
            )
        if not any(device in kind.found() for kind in able):
            who = " or ".join(kind.name for kind in able)
            raise EngineError(
                f"{who} finds no {DEVICE_NAMES[device]} here; expected one, or --device cpu"
            )


def relative_error(output: np.ndarray, reference: np.ndarray, *, scores: bool = True) -> float:
    """How far an output lies from the reference, of the same shape; nan where either is not finite.

    For scores max |a - b| / max |b| over the batch, for features the L2 ratio ||a - b|| / ||b||.
    """
    if output.shape != reference.shape:
        return float("nan")
    a, b = np.asarray(output, np.float64), np.asarray(reference, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    size = np.abs(b).max(initial=0) if scores else np.sqrt((b * b).sum())
    off = np.abs(a - b).max(initial=0) if scores else np.sqrt(((a - b) ** 2).sum())
    if size == 0:
        return 0.0 if off == 0 else float("inf")
    return float(off / size)


def _line(error: Exception) -> str:
    """The reason: the last line of those that OpenVINO gives, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith("Exception from src/") else lines[0]


def _checked(pixels: np.ndarray, source: Source) -> np.ndarray:
    """The batch as one C-contiguous array that the engine can take as it is."""
    shape = "x".join(map(str, pixels.shape))
    if pixels.ndim != 4 or pixels.shape[3] != source.channels:
        raise ImageError(
            f"pixels have the shape {shape or 'of one number'}; expected (batch, height, width, "
            f"{source.channels})"
        )
    if pixels.dtype != source.dtype:
        raise ImageError(
            f"pixels are {pixels.dtype}; this graph was built for {source.dtype} on the 0..255 scale"
        )
    if min(pixels.shape[1:3]) < source.minimum_size:
        raise ImageError(
            f"images of {pixels.shape[1]}x{pixels.shape[2]} pixels (height x width) are too small: this "
            f"graph needs at least {source.minimum_size} a side"
        )
    if pixels.dtype != np.uint8 and not np.isfinite(pixels).all():
        bad = np.flatnonzero(~np.isfinite(pixels).reshape(len(pixels), -1).all(axis=1))
        raise ImageError(
            f"pixels are not finite (NaN or infinite) in image {bad[0]} of the batch"
            f"{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}; expected numbers from 0 to 255"
        )
    return np.ascontiguousarray(pixels)
