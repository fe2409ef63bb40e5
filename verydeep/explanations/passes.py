"""Passes of pixels through a predictor's graph that give its taps, on the predictor's engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from ..engines import REFERENCE, Engine, Source, open_engine
from ..predictor import DEFAULT_BATCH, Predictor


class Passes:
    """The graph of a predictor's model with some taps and the scores.

    tensors: other weights than the model's, by torchvision's keys; these run in the reference engine, and
    nothing of them is kept. engine, precision: what computed the last pass.
    """

    def __init__(
        self,
        predictor: Predictor,
        taps: tuple[str, ...] = (),
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.engine, self.precision = predictor.engine, predictor.precision
        self._predictor = predictor
        self._taps = taps
        self._tensors = tensors
        self._others: dict[str, Engine] = {}

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Taps by name and "scores", for pixels (n, height, width, channels), uint8 or float32."""
        return self._run(pixels, len(pixels), 0)

    def scores(self, images: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
        """Scores (classes,) of each of `count` images of one size, in batches; memory stays flat."""
        source, done = iter(images), 0
        while batch := list(islice(source, DEFAULT_BATCH)):
            done += len(batch)
            yield from self._run(np.stack(batch), DEFAULT_BATCH, count - done)["scores"]

    def _run(self, pixels: np.ndarray, batch: int, to_come: int) -> dict[str, np.ndarray]:
        engine = self._opened(pixels, batch, to_come)
        self.engine, self.precision = engine.name, engine.precision
        return engine.run(pixels)

    def _opened(self, pixels: np.ndarray, batch: int, to_come: int) -> Engine:
        dtype = pixels.dtype.name
        if self._tensors is not None:
            if dtype not in self._others:
                self._others[dtype] = self._other(dtype)
            return self._others[dtype]
        wanted = replace(self._predictor._scores, taps=self._taps)
        choice = self._predictor._choice(dtype, wanted)  # kept there, so shared with the predictor
        return choice.engine(pixels, batch=batch, to_come=to_come)

    def _other(self, dtype: str) -> Engine:
        from ..graphs import network as graph

        record = self._predictor.record
        assert self._tensors is not None
        built = graph.build(
            record.network, self._tensors, record.preprocess,
            taps=self._taps, pixels=dtype,  # type: ignore[arg-type]
        )  # fmt: skip
        return open_engine(REFERENCE, Source(built))
