"""Make a model file small: its weights rounded and coded, as coarsely as a goal allows.

Each layer's weights become multiples of steps (`rounding`), its bias takes up what that does to the mean,
and the multiples go through the codec of the model file. One number says how coarse all of it is: what a
rounded weight may cost the network's answers. A layer's share of it is measured, by rounding that layer
alone. Trials look for the number that meets the goal; the last one walks through the layers once more, each
fitted to what the rounded layers before it make of the photos.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError, ModelFileError, NetworkError
from ..files.photo_paths import names
from ..files.progress import stage
from ..files.strict_json import JSON
from ..files.wording import table
from ..graphs.network import norm_factor
from ..modelfile import ModelFile, Record, dequantised, read, write
from ..modelfile.codec import Coded, encode
from ..nets import Layer, Network
from ..published import find_model
from ..quantisation import (
    BATCH,
    FEWEST,
    Draft,
    made_from,
    output_error,
    patches_each,
    photos,
    require_writable,
    said,
)
from ..quantisation.rounding import patches_of
from .carried import Carried
from .rounding import Curved, curved_by, round_coded

__all__ = ["Compressed", "compress"]

TRIALS = 7  # at most, beside the one that measures the layers
_BEGIN = 2.0**-3  # of the first trial: the share of a layer's own deviation that a step is
_NEAR, _AIMED = 0.975, 0.985  # of the size asked for: near enough, and what is aimed at
_TENSOR_BYTES, _RECORD_BYTES = (
    100,
    1000,
)  # what a tensor and the new record take of the header, about
_RIDGE = 2e-3  # of the mean moment: how strongly fitted weights are drawn to the published ones
_WIDEST = 5000  # inputs of which all moments are kept
_PROTOCOL = (
    "against the model it was made of, ONNX Runtime on a CPU, photos not used for calibration"
)
_MEASURED = 32  # photos on which a layer's share is measured

Array = np.ndarray


@dataclass(frozen=True)
class Compressed:
    """A small model file, and what was measured of it.

    size_bytes, before_bytes: of both files. trials: of each its "coarseness", "size" and what was measured.
    layers: of each layer with weights its "name", "weights", "bits" a weight, and "share" of the bytes.
    agreement: the fraction of `checked` photos with the first answer of the model that it was made of; None
    without photos or head. error: of the scores there, or of the last layer's maps (||a - b|| / ||b||).
    drop: of the accuracy on `data`, in percentage points; None without it. met: whether the goal was.
    multiply_adds, before_multiply_adds: of one image. speedup: how many times as fast it was measured to
    be; None where that was not asked for.
    """

    record: Record
    tensors: dict[str, Array] = field(repr=False)
    size_bytes: int
    before_bytes: int
    trials: tuple[dict[str, Any], ...]
    layers: tuple[dict[str, Any], ...]
    agreement: float | None
    error: float | None
    drop: float | None
    checked: int
    met: bool
    unreadable: int = 0
    multiply_adds: int = 0
    before_multiply_adds: int = 0
    speedup: float | None = None

    def to_dict(self) -> dict[str, object]:
        """What `verydeep compress --json` prints."""
        values = dict(vars(self))
        del values["record"], values["tensors"]
        return {**values, "trials": list(self.trials), "layers": list(self.layers)}

    def __str__(self) -> str:
        rows = [("layer", "weights", "bits", "of the file")]
        rows += [
            (one["name"], f"{one['weights']:,}", f"{one['bits']:.2f}", f"{one['share']:.1%}")
            for one in self.layers
        ]
        text = f"{table(rows, '<>')}\n{self.before_bytes:,} bytes became {self.size_bytes:,}"
        if (
            self.size_bytes < self.before_bytes
        ):  # float32 weights may take more than rounded ones did
            text += f" ({self.before_bytes / self.size_bytes:.1f}x smaller)"
        if self.multiply_adds < self.before_multiply_adds:
            fewer = self.before_multiply_adds / self.multiply_adds
            text += f"; {self.multiply_adds:,} multiply-adds an image ({fewer:.1f}x fewer)"
        if self.speedup is not None:
            text += f"; {self.speedup:.2f} times as fast here"
        if self.drop is not None:
            text += f"; {self.drop:.2f} points less accurate"
        elif self.agreement is not None:
            text += "; without labelled photos its accuracy was not measured"
        if self.agreement is not None:
            text += f"; the same first answer on {self.agreement:.1%} of {self.checked} photos"
            text += " that it was not fitted to"
        if self.error is not None:
            text += f"; error {self.error:.2%}"
        else:
            text += "; without photos nothing was measured, and nothing of its answers is promised"
        return text + ("" if self.met else "; the goal was not met: this is the nearest")


def compress(
    model: str | os.PathLike[str] | ModelFile,
    out: str | os.PathLike[str],
    *,
    calibrate: Iterable[str] = (),
    data: object = None,
    size: int | None = None,
    max_drop: float | None = None,
    multiply_adds: int | None = None,
    speedup: float | None = None,
    count: int = 256,
    again: bool = False,
    threads: int | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Compressed:
    """Make a small model file of a float one, and write it to `out`.

    model: a name or path, as `verydeep.load` takes it, or an open model file.
    calibrate: photos, folders and globs, without labels; every other one is held back, to measure.
    count: how many of them are taken. data: labelled photos, as `verydeep.evaluate` takes them.
    size: bytes that the file may have. max_drop: percentage points of accuracy on `data` that may be lost;
    without it, of photos of `calibrate` whose first answer may change. Without either goal steps are an
    eighth of each layer's deviation, weighed by what was measured.
    multiply_adds, speedup: channels are taken away first: until an image costs at most so many, or until
    the network is measured to be so many times as fast, in the engine that is the quickest for the whole
    one. Weights are then rounded only where size or max_drop is given, too; else they stay float32.
    again: also take a file that this made. on_event: called with {"event": "trial"} and a trial's figures,
    or {"event": "pruned"} with "multiply_adds", "before" and, where it was measured, "speedup".

    Raises ModelFileError where the model was compressed or quantised before, ArgumentError where a goal
    needs what was not given, DataError where there are too few photos, OutputError where `out` cannot be
    written.
    """
    opened = model if isinstance(model, ModelFile) else read(find_model(model))
    prunes = multiply_adds is not None or speedup is not None
    _refuse(opened, again, prunes)
    if size is not None and max_drop is not None:
        raise ArgumentError("size and max_drop are two goals; give one of them")
    if multiply_adds is not None and speedup is not None:
        raise ArgumentError("multiply_adds and speedup are two goals; give one of them")
    if prunes and not calibrate:
        raise ArgumentError(
            "which channels can go is measured on photos: name some with --calibrate (calibrate= in Python)"
        )
    if speedup is not None and not 1 < speedup <= 100:
        raise ArgumentError(f"speedup is {speedup!r}; expected more than 1, and at most 100")
    if max_drop is not None and data is None and not calibrate:
        raise ArgumentError("max_drop needs photos to measure it on: give data or calibrate")
    if max_drop is not None and not opened.record.network.head.classes:
        raise NetworkError(f"{opened.path}: a trunk has no answers to drop; give size instead")
    require_writable(out, opened)
    calibrate = names(calibrate)
    *images, unreadable = photos(opened.record.preprocess, calibrate, (), count)
    if calibrate and len(images[1]) < FEWEST:
        raise DataError(
            f"{sum(map(len, images))} photos to calibrate on; expected {2 * FEWEST} or more, and a few "
            "hundred are better"
        )
    work = _Work(opened, images, data, threads)
    trials: list[_Trial] = []
    speed, suffices = None, True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if prunes:
            from .pruning import prune

            small, speed, suffices = prune(work, Path(folder), multiply_adds, speedup, on_event)
            work = _Work(small, images, data, threads, original=work)

    def tried(coarseness: float, fitted: bool = False) -> _Trial:
        one = work.trial(coarseness, fitted)
        trials.append(one)
        if on_event:
            on_event({"event": "trial", **one.told()})
        return one

    def met(one: _Trial) -> bool:
        return one.size <= size if size else max_drop is None or one.drop <= max_drop

    rounds = size is not None or max_drop is not None or not prunes
    if rounds and work.check:
        work.share()
    best = tried(1.0 if rounds else 0.0)
    if size or max_drop is not None:
        best = _search(best, tried, size, met)
    if rounds and images[0]:
        fitted = tried(best.coarseness, fitted=True)
        if met(fitted) and (fitted.error or 0) <= (best.error or 0):
            best = fitted
    result = work.result(best, trials, met(best) and suffices)
    write(out, result.record, result.tensors)
    made = os.path.getsize(out)
    return replace(
        result, unreadable=unreadable, size_bytes=made, before_bytes=opened.path.stat().st_size,
        met=result.met and (not size or made <= size), speedup=speed,
    )  # fmt: skip


def _refuse(model: ModelFile, again: bool, prunes: bool) -> None:
    if model.record.activations:
        raise ModelFileError(
            f"{model.path}: it was quantised; expected the float model that it was made from"
        )
    made = model.record.provenance
    if ("compressed_from" in made or (prunes and "pruned_from" in made)) and not again:
        raise ModelFileError(
            f"{model.path}: it was compressed already, and would lose twice; take the model that it was "
            "made from, or add --again (again=True in Python)"
        )


def _search(
    one: _Trial, tried: Callable[[float], _Trial], size: int | None, met: Callable[[_Trial], bool]
) -> _Trial:
    """The trial that just meets the goal; where none does, the smallest file, or the one that drops least.

    A file is small enough from some coarseness on, and good enough up to some.
    """
    fine, coarse, trials = 0.0, math.inf, [one]
    for _ in range(TRIALS):
        if met(one) == bool(size):
            coarse = min(coarse, one.coarseness)
        else:
            fine = max(fine, one.coarseness)
        if size and _NEAR * size <= one.size <= size:
            break
        # steps twice as large take a bit less for each weight, as long as numbers are not small
        move = 8 * (one.size - _AIMED * size) / one.weights if size else 1.0 if met(one) else -1.0
        coarseness = one.coarseness * 2 ** min(max(move, -4), 4)
        if not fine < coarseness < coarse:
            coarseness = math.sqrt(fine * coarse)
        one = tried(coarseness)
        trials.append(one)
    good = [one for one in trials if met(one)]
    if not good:
        return min(trials, key=lambda one: one.size if size else one.drop)
    return (min if size else max)(good, key=lambda one: one.coarseness)


@dataclass(frozen=True)
class _Trial:
    """A model rounded so coarsely: its tensors as a file holds them, and what was measured."""

    coarseness: float
    tensors: dict[str, Array]
    size: int
    weights: int
    drop: float
    agreement: float | None
    error: float | None

    def told(self) -> dict[str, Any]:
        keys = ("coarseness", "size", "drop", "agreement", "error")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


class _Work:
    """A model that is compressed: what is known of its layers, and what a trial makes of it.

    images: to calibrate on, and to measure with; may be empty. data: labelled, or None. original: of the
    model that this one was pruned from, whose answers it is to give.
    """

    def __init__(
        self, model: ModelFile, images: Sequence[Sequence[Array]], data: object, threads: int | None,
        original: _Work | None = None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.original = model, data, original or self
        self.images, self.check = images
        network = model.record.network
        self.layers = [layer for layer in network.layers if layer.key]
        used = _as_used(network)
        self.sources = {
            after.name: layer.name for layer, after in pairwise(used.layers) if after.key
        }
        self.last = used.layers[-1].name
        self.reference = Draft(used, model.record.preprocess, model.decoded(), threads=threads)
        self.steps = {layer.name: self._deviation(layer) * _BEGIN for layer in self.layers}
        self.accuracy: float | None = None
        self.theirs: Array | None = None
        if original:
            self.accuracy, self.theirs = original.accuracy, original.theirs
        else:
            self.accuracy = self._accuracy(model.path) if data is not None else None
            self.theirs = self._outputs(self.reference, self.check) if self.check else None

    @cached_property
    def known(self) -> dict[str, _Inputs]:
        return self._inputs() if self.images else {}

    def _weight(self, layer: Layer) -> Array:
        return dequantised(self.reference.stored, f"{layer.key}.weight")

    def _deviation(self, layer: Layer) -> float:
        return float(self._weight(layer).std(dtype=np.float64)) or 1.0

    def _inputs(self) -> dict[str, _Inputs]:
        """Of each layer that reads another one: the moments of what it reads on the photos."""
        network = self.reference.network
        known = {name: _Inputs(_paired(network.layer(name))) for name in self.sources}
        taps = tuple(dict.fromkeys(self.sources.values()))
        batches = self.reference.run(self.reference.graph(taps, int8=False), self.images)
        for batch in stage(batches, "calibrating", "batch", -(-len(self.images) // BATCH)):
            for name, source in self.sources.items():
                known[name].add(self._patches(network.layer(name), [batch[source]]))
        return known

    def _patches(self, layer: Layer, maps: Iterable[Array]) -> Iterator[Array]:
        """What the layer multiplies its weights by, (places, inputs) for each batch."""
        if layer.kind != "conv":
            return (batch.reshape(len(batch), -1) for batch in maps)
        each = patches_each(layer, len(self.images))
        return patches_of(maps, layer.kernel, layer.padding, patches=each)

    def read_by(self, layer: Layer, carried: Carried) -> Iterator[Array]:
        """What the layer reads in a draft, as `_patches` gives it."""
        return self._patches(layer, carried.maps(self.sources[layer.name]))

    def share(self) -> None:
        """Steps of which each layer's lose equally much for what they save.

        The squared error at the end goes with the square of a layer's step, and the bits of every weight
        with its logarithm: so the squared errors are to go with the numbers of weights.
        """
        assert self.theirs is not None
        some = slice(0, _MEASURED)
        layers = [layer for layer in self.reference.network.layers if layer.key]
        ratios, counts = {}, np.array([self._weight(layer).size for layer in layers])
        for layer, count in stage(
            list(zip(layers, counts, strict=True)), "measuring layers", "layer"
        ):
            draft = replace(self.reference, stored=dict(self.reference.stored))
            coarse = 8 * self.steps[layer.name]
            self._round(layer, coarse, draft.stored, self.known.get(layer.name))
            error = output_error(self._outputs(draft, self.check[some]), self.theirs[some])
            ratios[layer.name] = coarse / max(error, 1e-6) * math.sqrt(count)
        logs = np.log([ratio / self.steps[name] for name, ratio in ratios.items()])
        middle = math.exp(float((logs * counts).sum() / counts.sum()))
        for name, ratio in ratios.items():
            self.steps[name] = ratio / middle

    def _round(
        self, layer: Layer, step: float, stored: dict[str, Array], known: _Inputs | None,
        weight: Array | None = None, mean: Array | None = None,
    ) -> Coded:  # fmt: skip
        """Put rounded weights in place of a layer's, and on its bias what that does to the mean.

        known: of what it reads now. weight, mean: what it would best be there, and the mean it read before.
        """
        own = self._weight(layer)
        weight = own if weight is None else weight
        rows = None
        if layer.norm_key:  # what a batch norm makes small may be coarse
            factor = np.abs(norm_factor(layer, self.reference.stored))
            logs = np.log2(np.maximum(factor, 1e-6 * factor.max() + 1e-30))
            rows = np.clip(np.rint(-4 * (logs - np.median(logs))), -40, 40).astype(np.int16)
        if known is None:
            coded = round_coded(weight, step, rows=rows)
        elif known.paired:
            coded = round_coded(weight, step, known.curved(layer.kernel**2), rows=rows)
        else:
            coded = round_coded(weight, step, importance=known.squares, rows=rows)
        if known is not None:
            before = known.mean if mean is None else mean
            flat, rounded = (part.reshape(len(part), -1) for part in (own, coded.weight))
            bias = stored[f"{layer.key}.bias"]
            stored[f"{layer.key}.bias"] = (bias + flat @ before - rounded @ known.mean).astype(
                np.float32
            )
        key = f"{layer.key}.weight"
        for name in (f"{key}.q", f"{key}.scale"):
            stored.pop(name, None)
        stored[key] = coded.weight
        return coded

    def _drifted(self, drafts: Sequence[Carried], layer: Layer) -> tuple[_Inputs, Array, Array]:
        """What a layer reads by now, the weights that do best there, and the mean that it read before.

        drafts: as it stands, and the reference.
        """
        now, before = (self.read_by(layer, one) for one in drafts)
        known, cross, mean = _Inputs(paired=True), np.zeros(()), np.zeros(())
        for ours, theirs in zip(now, before, strict=True):
            known.add([ours])
            cross = cross + (theirs.T @ ours).astype(np.float64)
            mean = mean + theirs.sum(0, dtype=np.float64)
        mean = mean / known.count
        cross = cross / known.count - np.outer(mean, known.mean)
        own = known.moments
        damped = _RIDGE * np.diagonal(own).mean() * np.eye(len(own))
        weight = self._weight(layer)
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        moved = np.linalg.solve(own + damped, (flat @ (cross + damped)).T).T
        return known, moved.reshape(weight.shape), mean

    def trial(self, coarseness: float, drifting: bool = False) -> _Trial:
        """drifting: each layer is fitted to what the rounded ones before it give. 0 rounds nothing."""
        draft = replace(self.reference, stored=dict(self.reference.stored))
        tensors: dict[str, Array] = {}
        drafts = [Carried(one, self.images) for one in (draft, self.reference)]
        for layer in stage(self.layers if coarseness else [], "rounding weights", "layer"):
            step = coarseness * self.steps[layer.name]
            if drifting and _paired(layer) and layer.name in self.sources:
                coded = self._round(layer, step, draft.stored, *self._drifted(drafts, layer))
            else:
                coded = self._round(layer, step, draft.stored, self.known.get(layer.name))
            tensors[f"{layer.key}.weight.code"] = np.frombuffer(encode(coded), np.uint8)
        for name, array in draft.stored.items():
            if f"{name}.code" not in tensors:
                tensors[name] = array
        size = sum(array.nbytes for array in tensors.values()) + _TENSOR_BYTES * len(tensors)
        size += len(self.model.record.to_json()) + _RECORD_BYTES
        agreement, error, drop = None, None, 0.0
        if self.theirs is not None:
            ours = self._outputs(draft, self.check)
            error = output_error(ours, self.theirs)
            if self.model.record.network.head.classes:
                answers = (said(self.model.record, scores) for scores in (ours, self.theirs))
                agreement = float(np.equal(*answers).all(1).mean())
                drop = 100 * (1 - agreement)
        if self.accuracy is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trial.safetensors"
                write(path, self.model.record, tensors)
                drop = 100 * (self.accuracy - self._accuracy(path))
        weights = sum(self._weight(layer).size for layer in self.layers)
        return _Trial(coarseness, tensors, size, weights, drop, agreement, error)

    def _accuracy(self, path: Path) -> float:
        from ..evaluation import Evaluation, evaluate

        measured = evaluate(path, self.data)
        return (
            measured.top1 if isinstance(measured, Evaluation) else measured.mean_average_precision
        )

    def _outputs(self, draft: Draft, images: Sequence[Array]) -> Array:
        """What is to stay as it is, (images, numbers): scores, or the last maps of a trunk."""
        if self.model.record.network.head.classes:
            scores = draft.scores(images, int8=False)
            off = 0.0 if self.model.record.thresholds else scores.mean(1, keepdims=True)
            return np.asarray(scores - off)
        batches = draft.run(draft.graph((self.last,), int8=False), images)
        return np.concatenate(
            [batch[self.last].reshape(len(batch[self.last]), -1) for batch in batches]
        )

    def result(self, best: _Trial, trials: Sequence[_Trial], met: bool) -> Compressed:
        record = self.model.record
        source: dict[str, JSON] = {
            **made_from(self.original.model), "photos": len(self.images), "coarseness": best.coarseness,
        }  # fmt: skip
        # of one that was pruned, how fast it is
        figures = [dict(figure) for figure in record.measured] if self.original is not self else []
        for what, value in (("agreement", best.agreement), ("output_error", best.error)):
            if value is not None:
                figures.append(
                    {"what": what, "value": value, "n": len(self.check), "protocol": _PROTOCOL}
                )
        if self.accuracy is not None:
            figures.append(
                {"what": "drop", "value": best.drop, "protocol": "points on the same data"}
            )
        small = replace(
            record,
            measured=tuple(figures),
            provenance={
                **record.provenance, **({"compressed_from": source} if best.coarseness else {})
            },
        )  # fmt: skip
        layers = []
        for one in self.layers:
            key, count = f"{one.key}.weight", self._weight(one).size
            size = best.tensors[f"{key}.code" if best.coarseness else key].nbytes
            layers.append({
                "name": one.name, "weights": count, "bits": 8 * size / count, "share": size / best.size,
            })  # fmt: skip
        drop = best.drop if self.accuracy is not None else None
        return Compressed(
            small, best.tensors, best.size, 0, tuple(one.told() for one in trials), tuple(layers),
            best.agreement, best.error, drop, len(self.check), met,
            multiply_adds=_multiply_adds(record),
            before_multiply_adds=_multiply_adds(self.original.model.record),
        )  # fmt: skip


def _multiply_adds(record: Record) -> int:
    """Of one image of the size that the model is for, as it is run."""
    sides = record.preprocess.sides or (224, 224)
    return sum(row.multiply_adds for row in _as_used(record.network).rows(*sides))


def _as_used(network: Network) -> Network:
    """Without what no answer needs."""
    return network.cut(("prob",)) if network.head.classes else network


def _paired(layer: Layer) -> bool:
    """Whether all moments of what a layer reads are kept: of convolutions, but the widest."""
    return layer.kind == "conv" and layer.inputs * layer.kernel**2 <= _WIDEST


class _Inputs:
    """What a layer reads: sums over places on photos, of (places, inputs) at a time.

    paired: whether moments of each input with each other are kept, too.
    """

    def __init__(self, paired: bool) -> None:
        self.paired, self.count = paired, 0
        self._curved: Curved | None = None
        self._products, self._sums, self._squares = (np.zeros((), np.float32) for _ in range(3))

    def add(self, batches: Iterable[Array]) -> None:
        for flat in batches:
            if self.paired:
                self._products = self._products + flat.T @ flat
            self._sums = self._sums + flat.sum(0, dtype=np.float64)
            self._squares = self._squares + np.square(flat, dtype=np.float64).sum(0)
            self.count += len(flat)

    @property
    def mean(self) -> Array:
        return np.asarray(self._sums / self.count)

    @property
    def moments(self) -> Array:
        """About the mean, which the bias takes care of."""
        mean = self.mean
        return np.asarray(self._products / self.count - np.outer(mean, mean))

    def curved(self, cells: int) -> Curved:
        """Made once: it takes longer than all else of a trial."""
        if self._curved is None:
            self._curved = curved_by(self.moments, cells)
        return self._curved

    @property
    def squares(self) -> Array:
        return np.asarray(self._squares / self.count)
