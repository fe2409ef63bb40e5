"""Choose an engine for a model: the remembered winner, else a race, else ONNX Runtime.

A race costs a second or two, so it is held only when enough images are there to win that back, and its
result is remembered for this model, processor, engine versions, precision, threads and batch. Opening an
engine costs as well: for a few images the one that is done first is not always the quickest one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import EngineError, NetworkError, log, nearest
from ..files import hashes
from . import (
    DEVICES,
    ENGINES,
    REFERENCE,
    TOLERANCES,
    Engine,
    Kind,
    Signature,
    Source,
    installed,
    open_engine,
)
from .processor import busy, cores, processor
from .remembered import Memory, Standing

if TYPE_CHECKING:
    from ..files.cache import Cache
    from ..graphs.network import Graph
    from ..modelfile import ModelFile

WORTH_A_RACE = 32  # images, seen or known to come


class Choice:
    """The engines of one graph, opened as they are needed.

    engine: "auto" or a name. The other arguments are those of `open_engine`.
    """

    def __init__(
        self,
        source: Source,
        *,
        engine: str = "auto",
        precision: str = "fast",
        threads: int | None = None,
        device: str = "auto",
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> None:
        if engine != "auto" and engine not in ENGINES:
            raise EngineError(f"engine {engine!r} is unknown{nearest(engine, ['auto', *ENGINES])}")
        if precision not in (*TOLERANCES, "int8"):
            raise EngineError(
                f"precision {precision!r} is unknown{nearest(precision, [*TOLERANCES, 'int8'])}"
            )
        if device not in DEVICES:
            raise EngineError(f"device {device!r} is unknown{nearest(device, DEVICES)}")
        self.source = source
        self.name = engine
        self.precision = precision
        self.threads = threads
        self.device = device
        self._cache = cache
        self._memory = memory
        self._open: dict[tuple[object, ...], Engine] = {}
        self._settled: dict[int, Engine] = {}
        self._seen = 0

    def engine(self, pixels: np.ndarray, *, batch: int | None = None, to_come: int = 0) -> Engine:
        """The engine to run those pixels with.

        pixels: (images, height, width, channels). batch: the size of most batches, where these are the
        last ones of a stream. to_come: images that are known to follow.
        """
        images = len(pixels)
        batch = batch or images
        self._seen += images
        if self.name != "auto":
            return self._opened(self.name, self.device, {})
        if batch in self._settled:
            return self._settled[batch]
        kinds = self._kinds()
        if len(kinds) < 2:
            chosen = self._opened(*self._default(kinds))
            self._settled[batch] = chosen
            return chosen
        # who has seen many will probably see as many again
        ahead = max(images + to_come, self._seen)
        if self.source.has_key:
            handful = ahead < WORTH_A_RACE
            raced = self._remembered().batches(self.source.key)
            for other in sorted(raced, key=lambda size: size != batch):
                # for a few images another batch's race tells enough
                if other == batch or handful:
                    standings = self._recall(self._about(kinds, pixels, other))
                    if standings:
                        return self._first_done(standings, ahead, batch)
        if ahead >= WORTH_A_RACE and images:
            return self._race(kinds, pixels, batch)
        return self._opened(*self._default(kinds))

    def _kinds(self) -> list[Kind]:
        if self.precision == "int8":
            from .integers import adds_up
        return [
            kind
            for kind in installed()
            if self.precision in kind.precisions
            and (self.precision != "int8" or adds_up(kind.name))
            and set(kind.devices) & set(self._devices())
            and (kind.module != "torch" or self._with_torch())
        ]

    def _devices(self) -> tuple[str, ...]:
        if self.device != "auto":
            return (self.device,)
        if Path("/dev/nvidiactl").exists():
            return ("cpu", "cuda")
        return ("cpu", "mps") if sys.platform == "darwin" else ("cpu",)

    def _with_torch(self) -> bool:
        """On a GPU, or where it is loaded already: importing it takes longer than a race brings."""
        return "torch" in sys.modules or self._devices() != ("cpu",)

    def _default(self, kinds: list[Kind]) -> tuple[str, str, Mapping[str, Any]]:
        device = self._devices()[0]
        for kind in kinds:  # ONNX Runtime is first: always there, and quick to start
            if device in kind.devices and not (kind.name == REFERENCE and device == "cuda"):
                return kind.name, device, {}
        if device == "cpu":
            return REFERENCE, device, {}
        return "torch", device, {}

    def _opened(self, name: str, device: str, settings: Mapping[str, Any]) -> Engine:
        key = _key(name, device, settings)
        if key not in self._open:
            self._open[key] = open_engine(
                name,
                self.source,
                precision=self.precision,
                threads=self.threads,
                device=device,
                settings=settings,
                cache=self._cache,
            )
        return self._open[key]

    def _about(self, kinds: list[Kind], pixels: np.ndarray, batch: int) -> dict[str, Any]:
        """What the result of a race depends on."""
        _, height, width, _ = pixels.shape
        return {
            "graph": self.source.key,
            "processor": processor(),
            "engines": {kind.name: kind.version for kind in kinds},
            "precision": self.precision,
            "devices": list(self._devices()),
            "threads": self.threads or cores(),
            "batch": batch,
            "height": height,
            "width": width,
        }

    def _remembered(self) -> Memory:
        if self._memory is None:
            self._memory = Memory()
        return self._memory

    def _recall(self, about: Mapping[str, Any]) -> tuple[Standing, ...]:
        """What is remembered of that race; nothing where it was disturbed and would not be now."""
        standings = self._remembered().standings(about)
        if self._remembered().disturbed(about) and not busy():
            return ()
        return standings if all(row.engine in about["engines"] for row in standings) else ()

    def _first_done(self, standings: tuple[Standing, ...], images: int, batch: int) -> Engine:
        """The engine that is done first with so many images, opening it included."""

        def seconds(row: Standing) -> float:
            key = _key(row.engine, row.device, row.settings)
            return row.seconds * images + (0 if key in self._open else row.open_seconds)

        for row in sorted(standings, key=seconds):
            try:
                chosen = self._opened(row.engine, row.device, row.settings)
                if row is standings[0]:  # it will stay the best: the others' weights can go
                    self._open = {_key(row.engine, row.device, row.settings): chosen}
                    self._settled[batch] = chosen
                return chosen
            except EngineError as error:
                log.info(f"engine {row.engine} is left out: {error}")
        raise EngineError("no engine that was remembered can be opened; try --engine onnxruntime")

    def _race(self, kinds: list[Kind], pixels: np.ndarray, batch: int) -> Engine:
        from .race import race, racers

        about = self._about(kinds, pixels, batch)
        log.info(
            f"measuring {', '.join(about['engines'])} on this model, {batch} images of "
            f"{about['height']}x{about['width']} at once; this is done once"
        )
        entrants = racers(
            self.source,
            kinds,
            precision=self.precision,
            threads=about["threads"],
            devices=about["devices"],
            batch=len(pixels),
        )
        winner, standings = race(
            self.source,
            pixels,
            entrants,
            precision=self.precision,
            threads=about["threads"],
            cache=self._cache,
        )
        disturbed = busy()
        self._remembered().remember(about, standings, disturbed=disturbed)
        self._open = {_key(winner.name, winner.device, winner.settings): winner}
        self._settled = {batch: winner}
        times = ", ".join(f"{row.engine} {row.seconds * 1e3:.1f}" for row in standings)
        later = "; the machine is busy, so this is measured again another time" if disturbed else ""
        log.info(f"chose {winner.name} (milliseconds an image: {times}){later}")
        return winner


def source_of(
    model: ModelFile,
    pixels: Literal["uint8", "float32"],
    taps: tuple[str, ...] = (),
    scores: bool = True,
    *,
    pool: str | None = None,
    int8: bool = False,
) -> Source:
    """A model file's graph, cut after the last layer asked for, built when an engine wants it.

    taps: paper names, each an output of that name. scores: whether the head's logits are an output, last,
    "scores". pool: what `verydeep.graphs.pooling` does to the taps that are maps; None leaves them whole.
    int8: the graph that computes in integers, of a file that `verydeep quantize` made.
    Its key is the file's SHA-256 with what else the graph depends on, the code that builds it included.
    A file that was hashed before and has not changed since is not read again.
    Raises LayerError for a tap that the network does not have, NetworkError where nothing is asked for,
    or scores of a trunk without a head.
    """
    network = model.record.network
    taps = tuple(dict.fromkeys(taps))
    if scores and not network.head.classes:
        raise NetworkError(
            f"{network.name} has no head here, so no scores; ask for taps and scores=False"
        )
    wanted = (*taps, *(("fc8",) if scores else ()))
    if not wanted:
        raise NetworkError("a graph needs an output: ask for scores or for taps")
    size = network.cut(wanted).minimum_size

    def build() -> Graph:
        from ..graphs import int8 as qdq
        from ..graphs import network as graph
        from ..graphs.pooling import pooled

        if int8:
            built = qdq.build(model, taps=taps, scores=scores, pixels=pixels)
        else:
            built = graph.build(
                network,
                model.tensors(network.cut(wanted).tensors),
                model.record.preprocess,
                taps=taps,
                scores=scores,
                pixels=pixels,
            )
        return built if pool is None else pooled(built, pool)

    code = ["graphs/network.py", "nets.py", *(["graphs/pooling.py"] if pool else [])]
    code += ["graphs/int8.py"] if int8 else []
    facts = [pixels, *taps, *(["scores"] if scores else []), f"pool {pool}"]
    outputs = (*taps, *(("scores",) if scores else ()))
    signature = Signature(pixels, network.in_channels, size, outputs)
    return Source(build, graph_key(model, facts, code), signature)


def graph_key(
    model: ModelFile, facts: Sequence[str], code: Sequence[str]
) -> str | Callable[[], str]:
    """The key of a graph made of that file, or, where its bytes must be hashed for it, what finds the key.

    facts: what else the graph depends on. code: the modules that build it, by their path in the package.
    """

    def key() -> str:
        here = Path(__file__).parent.parent
        texts = [(here / name).read_text(encoding="utf-8") for name in code]
        return hashlib.sha256("\0".join([model.sha256, *facts, *texts]).encode()).hexdigest()

    return key if hashes.remembered(model.stamp) is None else key()


def _key(name: str, device: str, settings: Mapping[str, Any]) -> tuple[object, ...]:
    return (name, device, *sorted(settings.items()))
