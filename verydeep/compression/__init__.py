"""Make a model file small: its weights rounded and coded, as coarsely as a goal allows.

Each layer's weights become multiples of steps (`rounding`), its bias takes up what that does to the mean,
and the multiples go through the codec of the model file. One number says how coarse all of it is: what a
rounded weight may cost the network's answers. A layer's share of it is measured, by rounding that layer
alone. Trials look for the number that meets the goal; the last one walks through the layers once more, each
fitted to what the rounded layers before it make of the photos.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..datasets import labelled, unlabelled
from ..datasets.items import Listing
from ..datasets.items import read as read_photo
from ..datasets.unlabelled import Photo
from ..errors import ArgumentError, DataError, ModelFileError, log
from ..evaluation import Evaluation, evaluate, found_for
from ..evaluation.figures import paired_interval, share_interval
from ..files.atomic import replacing, require_writable
from ..files.cache import nothing_kept
from ..files.progress import stage, within
from ..files.strict_json import JSON
from ..files.wording import counted
from ..graphs.network import norm_factor
from ..modelfile import ModelFile, Record, dequantised, provenance, read, write
from ..modelfile.codec import Coded, encode
from ..nets import Layer, Network
from ..predictor import Predictor
from ..published import find_model
from ..quantisation import (
    BATCH,
    FEWEST,
    Draft,
    made_from,
    output_error,
    patches_each,
    photos,
    said,
    spread,
)
from ..quantisation.rounding import patches_of
from . import report
from .carried import Carried
from .fitting import Inputs, drifted
from .goal import Goal, whole
from .kept import Kept, kept
from .result import Compressed
from .rounding import round_coded

__all__ = ["Compressed", "compress"]

EFFORTS = {"quick": 64, "normal": 256, "max": 1024}  # photos
TRIALS = 7  # at most, beside the one that measures the layers
REFITTED, _COARSER = 3, 1.25  # trials that are fitted, at most, and by how much one is coarser
_APART, _FAR = 0.01, 4.0  # octaves between two trials that say how sizes go, and between any two
_DIGITS = 64  # bytes by which two files of the same weights may differ
_BEGIN = 2.0**-3  # of the first trial: the share of a layer's own deviation that a step is
_NEAR, _AIMED = 0.975, 0.985  # of the size asked for: near enough, and what is aimed at
_WIDEST = 5000  # inputs of which all moments are kept
_PROTOCOL = (
    "against the model it was made of, ONNX Runtime on a CPU, photos that no weight was fitted to"
)
_ACCURACIES = ("top1", "mean average precision")
_MEASURED = 32  # photos on which one layer's part is measured
_SPARE = 4  # photos of a small set, since some may not be readable

Array = np.ndarray


def compress(
    model: str | os.PathLike[str] | ModelFile,
    out: str | os.PathLike[str],
    *,
    calibrate: object = (),
    data: object = None,
    size: int | None = None,
    max_drop: float | None = None,
    multiply_adds: int | None = None,
    speedup: float | None = None,
    effort: str = "normal",
    count: int | None = None,
    again: bool = False,
    resume: bool = False,
    threads: int | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Compressed:
    """Make a small model file of a float one, and write it to `out`.

    model: a name or path, as `verydeep.load` takes it, or an open model file.
    calibrate: photos, folders and globs, without labels; every other one is held back, to measure.
    They may be a data set, as `train` takes it. count: how many are taken; None for 64, 256 or 1024.
    effort: "quick" rounds each weight by how large its input is alone; "normal" and "max" make up for it by
    the others, and max takes more photos. data: labelled photos, as `verydeep.evaluate` takes them; without
    calibrate, some of them calibrate.
    size: bytes that the file may have. max_drop: percentage points of accuracy on `data` that may be lost;
    without it, of photos of `calibrate` whose first answer may change. Without either goal steps are an
    eighth of each layer's deviation, weighed by what was measured.
    multiply_adds, speedup: channels are taken away first: until an image costs at most so many, or until
    the network is measured to be so many times as fast, in the engine that is the quickest for the whole
    one. Weights are then rounded only where size or max_drop is given, too; else they stay float32.
    again: also take a file that this made. resume: go on with what was stopped, which is kept in
    `<out>.work`. on_event: called with {"event": "start"}, {"event": "trial"} and a trial's figures, or
    {"event": "pruned"} with "multiply_adds", "before" and, where it was measured, "speedup".
    Beside `out` a page is written, `<out>.report.html`.

    Raises ModelFileError where the model was compressed or quantised before, NetworkError where a trunk
    cannot have such a goal, ArgumentError where a goal needs what was not given, DataError where there are
    too few photos, OutputError where `out` cannot be written.
    """
    opened = model if isinstance(model, ModelFile) else read(find_model(model))
    _require_numbers(opened)
    size, multiply_adds = whole("size", size), whole("multiply_adds", multiply_adds)
    out, goal = Path(out), Goal(size, max_drop, multiply_adds, speedup)
    if effort not in EFFORTS:
        raise ArgumentError(f"effort is {effort!r}; expected quick, normal or max")
    count, threads = whole("count", count) or EFFORTS[effort], whole("threads", threads)
    given = unlabelled.photos(calibrate)
    there = {"photos": bool(given) or data is not None, "data": data is not None}
    goal.require(opened, _multiply_adds(opened.record), **there, again=again)
    require_writable(out, opened.path)
    found = None if data is None else found_for(Predictor(opened), data)
    calibrate_too = bool(given)
    if found and not given:
        given, found = _apart(found, count, pruned=goal.prunes)
    items = labelled.judged(found)[0] if found else []
    judged = [(f"{one.name} {one.labels}", one.source) for one in items]
    fitted, measured = _digests(spread(given, count)), _digests(judged)
    same = {content for _, content in fitted[::2]} & {content for _, content in measured} - {b""}
    if calibrate_too and same:
        log.warning(
            f"photos to calibrate on that are among the labelled ones, too: {len(same)}; what is lost "
            "there says less of other photos, so give others"
        )
    asked: dict[str, JSON] = {
        "version": __version__, "model": opened.sha256, **vars(goal), "effort": effort, "count": count,
        "threads": threads, "calibrate": _digest(fitted), "data": _digest(measured),
    }  # fmt: skip
    with kept(out, asked, provenance.asked(), resume) as steps:
        if on_event:
            told = {"model": str(opened.path), "size": opened.size_bytes, "goal": str(goal)}
            on_event({"event": "start", **told})
        *images, unreadable = photos(opened.record.preprocess, given, (), count)
        if (given or goal.prunes) and len(images[1]) < FEWEST:
            raise _too_few(sum(map(len, images)))
        result = _compressed(_Work(opened, images, found, threads), goal, effort, steps, on_event)
        page = (
            None if out.exists() and not out.is_file() else out.with_name(f"{out.name}.report.html")
        )
        with replacing(out) as file:
            file.write(result.path.read_bytes())
        unreadable += result.unreadable  # labelled ones
        result = replace(
            result, path=out, report=page, unreadable=unreadable, goal=str(goal), made=steps.about
        )
        if page is not None:
            report.write(result, page)
    return result


def _too_few(photos: int) -> DataError:
    return DataError(
        f"{photos} photos to calibrate on; expected {2 * FEWEST} or more, and a few hundred are better"
    )


def _require_numbers(model: ModelFile) -> None:
    """ModelFileError where a weight is infinite or none, which has no nearest multiple."""
    for key, array in model.stored.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelFileError(
                f"{model.path}: {key} has numbers that are not finite, so it cannot be rounded; take a "
                "model whose weights are all numbers"
            )


def _apart(found: Listing, count: int, pruned: bool) -> tuple[list[Photo], Listing]:
    """Of a labelled set photos to calibrate on, labels not asked, and the set that is left to measure on.

    Those to train on where it is divided, else a quarter of them, or half where that is too few; none, and
    a word about it, where even these are. DataError where channels are to go, which takes some.
    """
    items, part = labelled.judged(found)
    learned = [item for item in found.items if item.part == "train" != part]
    enough = 2 * FEWEST + _SPARE
    quarter = min(count, max(len(items) // 4, min(enough, len(items) // 2)))
    some = spread(learned or items, count if learned else quarter)
    if len(some) < 2 * FEWEST:
        if pruned or len(some) == count:
            raise _too_few(len(some))
        log.warning(
            f"{counted(len(some), 'labelled photo')} are too few to calibrate on, so each weight is "
            f"rounded by itself; name {2 * FEWEST} photos or more, without labels, with --calibrate "
            "(calibrate= in Python)"
        )
        some = []
    taken = set(map(id, some))
    left = [item for item in found.items if id(item) not in taken]
    return [(item.name, item.source) for item in some], replace(found, items=left)


def _digests(photos: Sequence[Photo]) -> list[tuple[str, bytes]]:
    """Each photo's name, and its content's digest; none of one that cannot be read, as is told later."""
    found = []
    for name, source in stage(photos, "looking at photos", "photo"):
        content = b""
        with suppress(OSError):
            held = read_photo(source)
            whole = Path(held).read_bytes() if isinstance(held, str) else bytes(held)
            content = hashlib.sha256(whole).digest()
        found.append((name, content))
    return found


def _digest(photos: Sequence[tuple[str, bytes]]) -> str:
    """By which the same photos are known again: of their names and content."""
    digest = hashlib.sha256()
    for name, content in photos:
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + content)
    return f"{counted(len(photos), 'photo')} of digest {digest.hexdigest()[:16]}"


def _compressed(
    work: _Work, goal: Goal, effort: str, steps: Kept,
    on_event: Callable[[Mapping[str, Any]], None] | None,
) -> Compressed:  # fmt: skip
    """The file of the best trial, in the folder of the steps."""
    if work.data is not None:
        work.before = steps("accuracy", lambda: work.accuracy(work.model))
    pruned: dict[str, Any] = {"speedup": None, "met": True}
    if goal.prunes:
        pruned = steps("pruned", lambda: _pruned(work, goal, steps.folder, on_event))
        small = read(steps.folder / "pruned.safetensors")
        vars(work).pop("known", None)  # the moments of the whole network, a gigabyte of VGG-16's
        work = _Work(small, (work.images, work.check), work.data, work.threads, original=work)
    work.quick = effort == "quick"
    trials: list[_Trial] = []

    def tried(coarseness: float, fitted: bool = False) -> _Trial:
        path = steps.folder / f"trial-{len(trials)}.safetensors"

        def made() -> dict[str, Any]:
            return work.written(work.trial(coarseness, fitted), path, steps.about)

        one = _Trial(**steps(path.stem, made), tensors={}, path=path)
        trials.append(one)
        if on_event:
            on_event({"event": "trial", **one.told(), "speedup": pruned["speedup"]})
        return one

    def met(one: _Trial) -> bool:
        return goal.met(one.size, one.drop)

    if goal.rounds and work.check:
        # layers that no score reads have no share, and keep their own
        work.steps |= steps("steps", work.share)
    best = tried(1.0 if goal.rounds else 0.0)
    if goal.searches:
        best = _search(best, tried, goal.size, met)
    if goal.rounds and work.images and not work.quick:
        best = _fitted(best, tuple(trials), tried, goal, met)
    return work.result(best, trials, met(best) and pruned["met"], pruned["speedup"])


def _pruned(
    work: _Work, goal: Goal, folder: Path, on_event: Callable[[Mapping[str, Any]], None] | None
) -> dict[str, Any]:
    """Write pruned.safetensors into the folder; the speed here, and whether the goal was met."""
    from ..benching import against
    from .pruning import prune

    small, speed, met = prune(work, folder, goal.multiply_adds, goal.speedup, on_event)
    if speed is None and small.record.network.head.classes:
        with against(work.model.path, threads=work.threads) as (_, times):
            speed = times(small.path)
    return {"speedup": speed, "met": met}


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
        if size and _alike(trials):
            break  # no step can be finer, or no number smaller
        move = (one.size - _AIMED * size) / _octave(trials) if size else 1.0 if met(one) else -1.0
        coarseness = one.coarseness * 2 ** _bounded(move)
        if not fine < coarseness < coarse:
            coarseness = math.sqrt(fine * coarse)
        one = tried(coarseness)
        trials.append(one)
    good = [one for one in trials if met(one)]
    if not good:
        return min(trials, key=lambda one: one.size if size else one.drop)
    return (min if size else max)(good, key=lambda one: one.coarseness)


def _bounded(octaves: float) -> float:
    return min(max(octaves, -_FAR), _FAR)


def _alike(trials: Sequence[_Trial]) -> bool:
    """Whether the last two have the same weights, by their sizes; the record's digits differ."""
    return len(trials) > 1 and abs(trials[-1].size - trials[-2].size) < _DIGITS


def _octave(trials: Sequence[_Trial]) -> float:
    """How many bytes fewer the last trial would have, were its steps twice as large.

    A bit less for each weight, as long as numbers are not small; where there were two trials already, as
    much as these say.
    """
    one = trials[-1]
    each = one.weights / 8
    for other in trials[-2::-1]:
        octaves = math.log2(one.coarseness / other.coarseness)
        if abs(octaves) > _APART:
            return min(max((other.size - one.size) / octaves, each / 64), 2 * each)
    return each


def _fitted(
    best: _Trial, trials: Sequence[_Trial], tried: Callable[[float, bool], _Trial], goal: Goal,
    met: Callable[[_Trial], bool],
) -> _Trial:  # fmt: skip
    """The best of trials whose layers are fitted to those before them, and of the one without.

    trials: those without. The first is as coarse as that one; as it answers better, a drop allows it to be
    coarser. Its size is a bit another one, so that of a size, too, there may be more.
    """

    def better(one: _Trial) -> bool:
        if met(one) != met(best):
            return met(one)
        if not met(one):
            return one.size < best.size if goal.size else one.drop < best.drop
        nearer = (one.error or 0) <= (best.error or 0)
        return nearer or (goal.max_drop is not None and one.size < best.size)

    coarseness, fits = best.coarseness, list[_Trial]()
    for _ in range(REFITTED):
        one = tried(coarseness, True)
        fits.append(one)
        best = one if better(one) else best
        if goal.size is not None:
            if _NEAR * goal.size <= one.size <= goal.size or _alike(fits):
                break
            octave = _octave(fits if len(fits) > 1 else trials)
            coarseness *= 2 ** _bounded((one.size - _AIMED * goal.size) / octave)
        elif goal.max_drop is not None and met(one):
            coarseness *= _COARSER
        else:
            break
    return best


@dataclass(frozen=True)
class _Trial:
    """A model rounded so coarsely: its tensors as a file holds them, and what was measured.

    size: in bytes, of the tensors, and of the file once it is written. path: of that file. measured: as its
    record has it.
    """

    coarseness: float
    tensors: dict[str, Array]
    size: int
    weights: int
    drop: float
    agreement: float | None
    error: float | None
    measured: Sequence[dict[str, JSON]] = ()
    path: Path = Path()

    def told(self) -> dict[str, Any]:
        """What a person sees; "drop" is of the accuracy, or of the answers that are the same."""
        keys = ("coarseness", "size", "drop", "agreement", "error")
        told = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        right = [row["value"] for row in self.measured if row["what"] in _ACCURACIES]
        return {**told, **({"accuracy": right[0]} if right else {})}


class _Work:
    """A model that is compressed: what is known of its layers, and what a trial makes of it.

    images: to calibrate on, and to measure with; may be empty. data: labelled, or None. original: of the
    model that this one was pruned from, whose answers it is to give. before: that one's `accuracy`, where
    there is data.
    """

    def __init__(
        self, model: ModelFile, images: Sequence[Sequence[Array]], data: Listing | None,
        threads: int | None, original: _Work | None = None,
    ) -> None:  # fmt: skip
        self.model, self.data, self.threads = model, data, threads
        self.original, self.quick = original or self, False  # quick: without second moments
        self.before: dict[str, Any] | None = original.before if original else None
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
        self.theirs: Array | None = None
        if original:
            self.theirs = original.theirs
        elif self.check:
            self.theirs = self._outputs(self.reference, self.check)

    @property
    def alone(self) -> bool:
        """Whether each photo is a batch, as those of sizes of their own are."""
        return self.model.record.preprocess.sides is None

    @cached_property
    def known(self) -> dict[str, Inputs]:
        return self._inputs() if self.images else {}

    def _weight(self, layer: Layer) -> Array:
        return dequantised(self.reference.stored, f"{layer.key}.weight")

    def flat(self, layer: Layer) -> Array:
        """The layer's weights, (outputs, inputs) float64."""
        weight = np.asarray(self._weight(layer), np.float64)
        return weight.reshape(len(weight), -1)

    def _deviation(self, layer: Layer) -> float:
        return float(self._weight(layer).std(dtype=np.float64)) or 1.0

    def _inputs(self) -> dict[str, Inputs]:
        """Of each layer that reads another one: the moments of what it reads on the photos."""
        network = self.reference.network
        known = {
            name: Inputs(_paired(network.layer(name)) and not self.quick) for name in self.sources
        }
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

    def read_by(self, layer: Layer, before: Carried, now: Carried) -> Iterator[tuple[Array, Array]]:
        """What the layer reads in two drafts, as `_patches` gives it."""
        source = self.sources[layer.name]
        was, is_now = (self._patches(layer, one.maps(source)) for one in (before, now))
        return zip(was, is_now, strict=True)

    def share(self) -> dict[str, float]:
        """Steps, by layer, of which each one's lose equally much for what they save.

        The squared error at the end goes with the square of a layer's step, and the bits of every weight
        with its logarithm: so the squared errors are to go with the numbers of weights.
        """
        layers = [layer for layer in self.reference.network.layers if layer.key]
        ratios, counts = {}, np.array([self._weight(layer).size for layer in layers])
        for layer, count in stage(
            list(zip(layers, counts, strict=True)), "measuring layers", "layer"
        ):
            draft = replace(self.reference, stored=dict(self.reference.stored))
            coarse = 8 * self.steps[layer.name]
            self._round(layer, coarse, draft.stored, self.known.get(layer.name))
            ratios[layer.name] = coarse / self.error_of(draft) * math.sqrt(count)
        logs = np.log([ratio / self.steps[name] for name, ratio in ratios.items()])
        middle = math.exp(float((logs * counts).sum() / counts.sum()))
        return {name: float(ratio / middle) for name, ratio in ratios.items()}

    @cached_property
    def _few(self) -> tuple[Sequence[Array], Array]:
        """Of the photos to check with some of all folders, and the original's answers there."""
        some = spread(self.check, _MEASURED)
        return some, self.original._outputs(self.original.reference, some)

    def error_of(self, draft: Draft) -> float:
        """What is wrong with its answers on a few photos; a millionth at least."""
        some, theirs = self.original._few
        return max(output_error(self._outputs(draft, some), theirs), 1e-6)

    def _round(
        self, layer: Layer, step: float, stored: dict[str, Array], known: Inputs | None,
        weight: Array | None = None, answered: Array | None = None,
    ) -> Coded:  # fmt: skip
        """Put rounded weights in place of a layer's, and on its bias what that does to the mean.

        known: of what it reads now. weight: what it would best be there, and answered: what it gave before
        in the mean, both as `drifted` has them.
        """
        own = self._weight(layer)
        weight = own if weight is None else weight.reshape(own.shape)
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
            if answered is None:
                answered = own.reshape(len(own), -1) @ known.mean
            rounded = coded.weight.reshape(len(own), -1)
            bias = stored[f"{layer.key}.bias"]
            stored[f"{layer.key}.bias"] = (bias + answered - rounded @ known.mean).astype(
                np.float32
            )
        key = f"{layer.key}.weight"
        for name in (f"{key}.q", f"{key}.scale"):
            stored.pop(name, None)
        stored[key] = coded.weight
        return coded

    def trial(self, coarseness: float, drifting: bool = False) -> _Trial:
        """drifting: each layer is fitted to what the rounded ones before it give. 0 rounds nothing."""
        draft = replace(self.reference, stored=dict(self.reference.stored))
        tensors: dict[str, Array] = {}
        before, now = (Carried(one, self.images) for one in (self.reference, draft))
        for layer in stage(self.layers if coarseness else [], "rounding weights", "layer"):
            step = coarseness * self.steps[layer.name]
            if drifting and _paired(layer) and layer.name in self.sources:
                read = self.read_by(layer, before, now)
                fitted = drifted(self.flat(layer), read, alone=self.alone)
                coded = self._round(layer, step, draft.stored, *fitted)
            else:
                coded = self._round(layer, step, draft.stored, self.known.get(layer.name))
            tensors[f"{layer.key}.weight.code"] = np.frombuffer(encode(coded), np.uint8)
        for name, array in draft.stored.items():
            if f"{name}.code" not in tensors:
                tensors[name] = array
        size = sum(array.nbytes for array in tensors.values())
        agreement, error, drop = None, None, 0.0
        if self.theirs is not None:
            ours = self._outputs(draft, self.check)
            error = output_error(ours, self.theirs)
            if self.model.record.network.head.classes:
                answers = (said(self.model.record, scores) for scores in (ours, self.theirs))
                agreement = float(np.equal(*answers).all(1).mean())
                drop = 100 * (1 - agreement)
        weights = sum(self._weight(layer).size for layer in self.layers)
        return _Trial(coarseness, tensors, size, weights, drop, agreement, error)

    def accuracy(self, model: ModelFile) -> dict[str, Any]:
        """How right a model is on the labelled photos: a "figure", and what is "right", of one answer each.

        Each model is measured in the engine that was the quickest for the first.
        """
        right: list[bool | None] = []
        engine = self.before["engine"] if self.before else "auto"

        def told(event: Mapping[str, Any]) -> None:
            bar.advance()
            right.append(event.get("right"))
            if (error := event["error"]) and not self.before:  # the same ones in every trial
                log.warning(error if event["path"] in error else f"{event['path']}: {error}")

        # what is prepared of a trial is no use to anybody else
        with (
            nothing_kept() if self.before else nullcontext(),
            Predictor(model, engine=engine, threads=self.threads) as predictor,
            within("measuring accuracy") as bar,
        ):
            measured = evaluate(predictor, self.data, on_event=told)
        facts = {
            "engine": measured.engine, "protocol": measured.protocol, "n": measured.n,
            "unreadable": measured.errors,
        }  # fmt: skip
        if isinstance(measured, Evaluation):
            return {"figure": measured.top1, "right": right, **facts}
        return {"figure": measured.mean_average_precision, "right": [], **facts}

    def written(self, one: _Trial, path: Path, made: Mapping[str, JSON]) -> dict[str, Any]:
        """Write the trial as a model file, and measure it on the labelled photos.

        made: what its record says of how it was made, too. Gives what a `_Trial` has, but tensors.
        """
        rows: list[dict[str, JSON]] = []
        told = {**vars(one), "measured": rows}
        if self.original is not self:  # of one that was pruned, how fast it is
            rows += map(dict, self.model.record.measured)
        if self.before:
            write(path, self.model.record, one.tensors)
            rows += self._lost(self.accuracy(read(path)))
            told["drop"] = rows[-1]["value"]
        count = len(self.check)
        if one.agreement is not None:
            interval = share_interval(round(one.agreement * count), count)
            rows.append(_figure("agreement", one.agreement, interval, count, _PROTOCOL))
        if one.error is not None:
            rows.append(_figure("output_error", one.error, None, count, _PROTOCOL))
        source: dict[str, JSON] = {
            **made_from(self.original.model), "photos": len(self.images), "coarseness": one.coarseness,
            **{key: value for key, value in made.items() if key != "folder"},  # which is somebody's own
        }  # fmt: skip
        record = replace(
            self.model.record,
            measured=tuple(rows),
            provenance={
                **self.model.record.provenance,
                **({"compressed_from": source} if one.coarseness else {}),
            },
        )
        write(path, record, one.tensors)
        del told["tensors"], told["path"]
        return {**told, "size": path.stat().st_size}

    def _lost(self, now: Mapping[str, Any]) -> list[dict[str, JSON]]:
        """Figures of how right it still is, and of the points that it lost."""
        assert self.before is not None
        what = _ACCURACIES[not now["right"]]
        protocol = f"{now['protocol']}, {now['engine']}"
        pairs = Counter(zip(self.before["right"], now["right"], strict=True))
        better, worse = pairs[False, True], pairs[True, False]
        count = sum(number for pair, number in pairs.items() if None not in pair)
        shares = paired_interval(better, worse, count) if count else None
        interval = shares and (100 * shares[0], 100 * shares[1])
        drop = 100 * (self.before["figure"] - now["figure"])
        return [
            _figure(what, now["figure"], None, now["n"], protocol),
            _figure(
                "drop",
                drop,
                interval,
                now["n"],
                f"points of {what} below the model it was made of, {protocol}",
            ),
        ]

    def _outputs(self, draft: Draft, images: Sequence[Array]) -> Array:
        """What is to stay as it is, (images, numbers): scores, or the last maps of a trunk."""
        if self.model.record.network.head.classes:
            scores = draft.scores(images, int8=False)
            off = 0.0 if self.model.record.thresholds else scores.mean(1, keepdims=True)
            return np.asarray(scores - off)
        batches = draft.run(draft.graph((self.last,), int8=False), images)
        return np.concatenate([batch[self.last].ravel() for batch in batches])

    def result(
        self, best: _Trial, trials: Sequence[_Trial], met: bool, speedup: float | None
    ) -> Compressed:
        stored, layers = read(best.path).stored, []
        for one in self.layers:
            key, count = f"{one.key}.weight", self._weight(one).size
            size = stored[f"{key}.code" if best.coarseness else key].nbytes
            layers.append({
                "name": one.name, "weights": count, "bits": 8 * size / count, "share": size / best.size,
            })  # fmt: skip
        whole = self.original.model
        told = tuple({**one.told(), "chosen": one is best} for one in trials)
        return Compressed(
            best.path, best.size, whole.size_bytes, told, tuple(layers), best.agreement,
            best.error, best.drop if self.before else None, len(self.check), met,
            multiply_adds=_multiply_adds(self.model.record),
            before_multiply_adds=_multiply_adds(whole.record), speedup=speedup,
            unreadable=self.before["unreadable"] if self.before else 0,
            several=bool(self.model.record.thresholds),
            measured=read(best.path).record.measured,
        )  # fmt: skip


def _figure(
    what: str, value: float, interval: Sequence[float] | None, count: int, protocol: str
) -> dict[str, JSON]:
    """A row of what is measured; interval: where the value lies in 95 of 100 samples of photos."""
    row: dict[str, JSON] = {"what": what, "value": value, "n": count, "protocol": protocol}
    return row if interval is None else {**row, "interval": list(interval)}


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
