"""Choose an engine for a graph: ONNX Runtime for a handful of images, else the winner of a race.

Others start more slowly, and a race costs a second or two, so both wait until enough images are there to
win that back. A race's result is remembered for this graph, processor, engine versions, precision, threads
and batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import EngineError, log
from ..graphs import Source
from . import ENGINES, REFERENCE, Engine, Kind, Settings, check, installed
from .forks import BEGUN_IN, OPENING, WATCHED, Turns
from .processor import adds_up, cores, processor

if TYPE_CHECKING:
    from .race import Standing

# images, seen or known to come: from the one on a winner is remembered, from the other on there is a race
HANDFUL, WORTH_A_RACE = 8, 32


class Choice:
    """The engines of one graph, opened as they are needed; for any thread: each is opened, and raced, once.

    engine: "auto" or a name. The other arguments are those of `Engine`.
    """

    def __init__(
        self,
        source: Source,
        *,
        engine: str = "auto",
        precision: str = "fast",
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        check(engine, precision, device, threads)
        self.source = source
        self.name = engine
        self.precision = precision
        self.threads = None if threads is None else index(threads)  # JSON takes no numpy's
        self.device = device
        self._devices: tuple[str, ...] = (device,)  # where to race, the first one for a handful
        if device == "auto":
            there = {"cuda": Path("/dev/nvidiactl").exists(), "mps": sys.platform == "darwin"}
            self._devices = ("cpu", *filter(there.get, there))
        self._open: dict[tuple[object, ...], Engine] = {}
        self._settled: dict[int, Engine] = {}
        self._seen = 0
        self._turns = Turns()
        WATCHED.add(self)

    def in_child(self) -> None:
        """Choose anew after a fork, since the best engine may be one that does not live through it."""
        self._open, self._settled = {}, {}

    def engine(
        self, pixels: np.ndarray, *, batch: int | None = None, to_come: int = 0, usual: bool = True
    ) -> Engine:
        """The engine to run those pixels with.

        pixels: (images, height, width, channels). batch: the size of most batches, where these are the
        last ones of a stream. to_come: images that are known to follow. usual: whether most batches are
        like this one; where not, no race is held on it.
        """
        batch = index(batch or len(pixels))
        with self._turns.lock:
            self._seen += len(pixels)
            if self.name != "auto":
                return self._named(pixels, batch)
            if batch in self._settled:
                with suppress(EngineError):  # of larger images it may take too much memory
                    self._settled[batch].require_memory(pixels.shape)
                    return self._settled[batch]
                return self._default()
            # who has seen many will probably see as many again
            images = max(len(pixels) + to_come, self._seen)
            if images < HANDFUL:  # whatever is open, since opening takes longer than they do
                return next(iter(self._open.values()), None) or self._default()
            with OPENING:  # nor may a child inherit locks of the files of what is remembered
                return self._remembered(pixels, batch, images if usual else 0)

    def _named(self, pixels: np.ndarray, batch: int) -> Engine:
        """The engine that was asked for. One that has an image a thread gets so many of a batch at once."""
        streams = min(batch, self.threads or cores()) if ENGINES[self.name].alone else 1
        engine = self._opened(self.name, self.device, {"streams": streams} if streams > 1 else {})
        with suppress(EngineError):
            engine.require_memory(pixels.shape)
            return engine
        return self._opened(self.name, self.device, {})

    def _remembered(self, pixels: np.ndarray, batch: int, images: int) -> Engine:
        """The winner of a race, held now or earlier; the default where there was none."""
        from .race import Memory, alone

        # on the batch that its result is kept for
        race = images >= WORTH_A_RACE and 0 < len(pixels) == batch
        kinds = self._kinds()
        winner = None
        if len(kinds) > 1:
            about = self._about(kinds, pixels, batch)
            known = Memory().standings(about)
            winner = self._winner(known)
            if winner is None and race:
                with alone():
                    meanwhile = Memory().standings(about)
                    winner = self._winner(meanwhile) if meanwhile != known else None
                    # what cannot be opened in a forked child may well be the quickest elsewhere
                    remember = not known or os.getpid() == BEGUN_IN
                    winner = winner or self._race(kinds, pixels, about, remember=remember)
        if winner is None:
            winner = self._default()
            if not race:
                return winner
        self._settled[batch] = winner
        kept = {id(engine) for engine in self._settled.values()}
        # the others will not be needed: their weights can go
        self._open = {key: one for key, one in self._open.items() if id(one) in kept}
        return winner

    def _kinds(self) -> list[Kind]:
        return [
            kind
            for kind in installed()
            if self.precision in kind.precisions
            and (self.precision != "int8" or adds_up(kind.name))
            and set(kind.devices) & set(self._devices)
            # torch on the CPU only where it is loaded: importing it takes longer than a race brings
            and (kind.name != "torch" or "torch" in sys.modules or self._devices != ("cpu",))
        ]

    def _default(self) -> Engine:
        """ONNX Runtime: always there, and quick to start. On a GPU that is asked for by name, torch."""
        device = self._devices[0]
        name = REFERENCE
        if self.precision == "int8":  # whose sums may overflow in some
            name = next((kind.name for kind in self._kinds()), REFERENCE)
        elif device != "cpu" and ENGINES["torch"].available:
            name = "torch"
        return self._opened(name, device, {})

    def _opened(self, name: str, device: str, settings: Settings) -> Engine:
        key = (name, device, *sorted(settings.items()))
        if key not in self._open:
            self._open[key] = Engine(
                name, self.source, precision=self.precision, threads=self.threads, device=device,
                settings=settings,
            )  # fmt: skip
        return self._open[key]

    def _about(self, kinds: list[Kind], pixels: np.ndarray, batch: int) -> dict[str, Any]:
        """What the result of a race depends on. images: those that were run at once, at least."""
        from .race import fewest

        _, height, width, _ = pixels.shape
        threads = self.threads or cores()
        return {
            "graph": self.source.key,
            "processor": processor(),
            "engines": {kind.name: kind.version for kind in kinds},
            "verydeep": __version__,  # which may ask more of an engine than the one before
            "precision": self.precision,
            "devices": list(self._devices),
            "threads": threads,
            "batch": batch,
            "images": fewest(batch, threads),
            "height": height,
            "width": width,
        }

    def _winner(self, standings: Iterable[Standing]) -> Engine | None:
        """The quickest engine of a race that can still be opened; None where it was not held."""
        for row in standings:
            try:
                return self._opened(row.engine, row.device, row.settings)
            except EngineError as error:
                log.info(f"engine {row.engine} is left out: {error}")
        return None

    def _race(
        self, kinds: list[Kind], pixels: np.ndarray, about: Mapping[str, Any], *, remember: bool
    ) -> Engine:
        from ..files.wording import counted
        from ..graphs.lighter import layers_of
        from .race import Memory, race, told

        layers = layers_of(self.source)
        known = Memory().alike(about, layers)
        images = f"{counted(len(pixels), 'image')} of {about['height']}x{about['width']}"
        names = ", ".join(about["engines"])
        log.info(
            f"checking {known[0].engine}, the quickest for another model of the same layers, on {images}"
            if known
            else f"measuring which engine is the quickest here: {names} on {images}"
        )
        winner, standings = race(
            self.source,
            pixels,
            kinds,
            precision=self.precision,
            threads=about["threads"],
            devices=about["devices"],
            known=known,
        )
        until = "an engine or verydeep is updated or `verydeep cache clear`"
        kept = remember and Memory().remember(about, standings, layers)
        log.info(
            f"chose {told(standings)}{f'; remembered for this model until {until}' if kept else ''}"
        )
        return winner
