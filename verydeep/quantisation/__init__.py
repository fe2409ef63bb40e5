"""Make an int8 model of a float one, from photos alone, and measure how often the two agree.

Static quantisation: weights get a step for each output channel, values a range for each layer, both
before any photo is classified (see `verydeep.graphs.int8` for what is computed then). Three things make it
better than taking the largest number seen for a range's end:

- ranges are chosen by the error that rounding leaves, and weights are rounded on the photos' own
  statistics (GPTQ, arXiv:2210.17323);
- what rounding does to the mean of each channel is taken off its bias, layer after layer (Nagel et al.
  2019, arXiv:1906.04721, section 4.2);
- the first and the last layer stay in float32 where measurement says that they cost too much otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from ..datasets import items, unlabelled
from ..datasets.unlabelled import Photo
from ..engines import Engine
from ..errors import (
    ArgumentError,
    DataError,
    ImageError,
    ModelFileError,
    NetworkError,
    log,
    require_whole,
)
from ..files.atomic import require_writable
from ..files.progress import reached, stage
from ..files.strict_json import JSON
from ..graphs import Source
from ..graphs import network as float_graph
from ..graphs.int8 import Plan, plan, rounded, weight_scales
from ..graphs.writer import Graph
from ..modelfile import Activation, ModelFile, Record, dequantised, read, write
from ..nets import Layer, Network, named
from ..predictor import probabilities
from ..preprocess import Preprocess
from ..published import find_model
from .rounding import LEVELS, Tally, error_names, probed, round_weights, second_moments, steps

__all__ = ["FEWEST", "Quantised", "quantize"]

FEWEST = 16  # images to calibrate on, and as many to check with
PROBED = 16  # images at least, and fewer than twice as many, on which candidates for a range are compared
CHECKED = 64  # images on which the first and the last layer are tried in float32
WORTH_A_FLOAT = 0.1  # share of the squared error that a layer must take off to stay in float32
_LEAST_SHARE = 0.05  # of numbers above 0: a channel that hardly answers tells little of its bias
PATCHES = 16_384  # on which a convolution's weights are rounded, at least
PATCHES_EACH = 8  # and for each of its inputs
BATCH = 8  # images in one run

Array = np.ndarray
T = TypeVar("T")


@dataclass(frozen=True)
class Quantised:
    """An int8 model, and what was measured of it.

    agreement: the fraction of `checked` images on which its first answer is that of the float model, or
    all that it says, where the record has thresholds. score_error: `score_error` of the scores on them.
    floats: layers that stayed in float32, by paper name. unreadable: photos that could not be read.
    """

    record: Record
    tensors: dict[str, Array]
    agreement: float
    score_error: float
    calibrated: int
    checked: int
    floats: tuple[str, ...]
    unreadable: int = 0

    def to_dict(self) -> dict[str, object]:
        """What `verydeep quantize --json` prints."""
        values = {**vars(self), "floats": list(self.floats)}
        del values["record"], values["tensors"]
        return values

    def __str__(self) -> str:
        kept = f"; {', '.join(self.floats)} in float32" if self.floats else ""
        what = (
            "say the same classes of" if self.record.thresholds else "give the same first answer on"
        )
        return (
            f"int8 and float32 {what} {self.agreement:.1%} of {self.checked} photos "
            f"that were not used for calibration; score error {self.score_error:.1%}{kept}"
        )


def quantize(
    model: str | os.PathLike[str] | ModelFile,
    calibrate: object,
    out: str | os.PathLike[str],
    *,
    check: object = (),
    count: int = 512,
    floats: str | Collection[str] | None = None,
    threads: int | None = None,
) -> Quantised:
    """Make an int8 model of a float one, and write it to `out`.

    model: a name or path, as `verydeep.load` takes it, or an open model file.
    calibrate, check: photos, folders and globs, as people type them, or data sets as `train` takes them,
    whose labels are not asked; where `check` is empty, every other photo of `calibrate` is held back for
    it. count: how many photos of each are taken, evenly spread; of both together where `check` is empty.
    floats: layers to keep in float32, by paper name; None is by measurement.

    Raises what `quantise_pixels` does, and OutputError where `out` cannot be written.
    """
    require_whole(ArgumentError, count=count)
    opened = model if isinstance(model, ModelFile) else read(find_model(model))
    _refuse(opened)
    require_writable(out, opened.path)
    *images, unreadable = photos(
        opened.record.preprocess, unlabelled.photos(calibrate), unlabelled.photos(check), count
    )
    result = quantise_pixels(opened, *images, floats=floats, threads=threads)
    write(out, result.record, result.tensors)
    return replace(result, unreadable=unreadable)


def photos(
    preprocess: Preprocess, calibrate: Sequence[Photo], check: Sequence[Photo], count: int
) -> tuple[list[Array], list[Array], int]:
    """Pixels to calibrate on and to check with, and how many photos could not be read.

    calibrate, check: as `unlabelled.photos` gives them; count: as `quantize` takes it.
    """
    if not check:
        calibrate = spread(calibrate, count)
        calibrate, check = calibrate[::2], calibrate[1::2]
    unreadable = 0
    images: tuple[list[Array], list[Array]] = [], []
    for some, pixels in zip((calibrate, check), images, strict=True):
        for name, source in stage(spread(some, count), "reading photos", "photo"):
            try:
                pixels.append(preprocess.pixels(items.read(source)))
            except (ImageError, OSError) as error:
                unreadable += 1
                log.warning(error if isinstance(source, str) else f"{name}: {error}")
    return *images, unreadable


def spread(several: Sequence[T], count: int) -> Sequence[T]:
    """At most `count` of them, evenly spread, so that every folder has its share."""
    if len(several) <= count:
        return several
    return [several[i * len(several) // count] for i in range(count)]


def quantise_pixels(
    model: ModelFile,
    calibrate: Sequence[Array],
    check: Sequence[Array],
    *,
    floats: str | Collection[str] | None = None,
    threads: int | None = None,
) -> Quantised:
    """The int8 model of a float one.

    calibrate, check: pixels as `model.record.preprocess.pixels` makes them, (height, width, channels) each,
    of different photos. floats: layers to keep in float32, by paper name; None is by measurement. Layers
    that no score needs, such as those after the last one that a gap head reads, stay in float32, too.

    Raises ModelFileError where the model was quantised already, NetworkError where it has no head,
    LayerError where one of `floats` is no layer with weights, DataError where there are too few photos,
    EngineError where the model's values are not finite on them.
    """
    _refuse(model)
    for images, purpose in ((calibrate, "calibrate on"), (check, "check with")):
        if len(images) < FEWEST:
            raise DataError(
                f"{len(images)} photos to {purpose}; expected {FEWEST} or more to calibrate on and as many "
                "to check with, and a few hundred are better"
            )
    floats = None if floats is None else named(floats)
    network = model.record.network.cut(("prob",))  # all that scores need, and no more
    several = bool(model.record.thresholds)
    reference = Draft(network, model.record.preprocess, model.decoded(), threads=threads)
    plan(network, floats or ())  # refuses what is no layer, before minutes of work
    reached(1, 5, "counting values")
    tallies = _tallies(reference, plan(network), calibrate)
    reached(2, 5, "choosing ranges")
    activations = _ranges(reference, tallies, calibrate)
    reached(3, 5, "looking for layers to keep in float32")
    if floats is None:
        floats = _sensitive(reference, activations, tallies, calibrate, several)
    draft = _draft(reference, activations, floats)
    reached(4, 5, "rounding weights")
    _walk(draft, reference, tallies, floats, calibrate)
    reached(5, 5, "comparing answers")
    ours, theirs = draft.scores(check), reference.scores(check, int8=False)
    agreement = float((said(model.record, ours) == said(model.record, theirs)).all(1).mean())
    error = score_error(ours, theirs, several)
    figures = {"int8_agreement": agreement, "int8_score_error": error}
    record = replace(
        model.record,
        activations=draft.activations,
        measured=tuple(  # those of the float model are not this one's
            {"what": what, "value": value, "n": len(check), "protocol": _PROTOCOL}
            for what, value in figures.items()
        ),
        provenance={**model.record.provenance, "quantised_from": made_from(model)},
    )
    kept = tuple(layer.name for layer in network.layers if layer.name in floats)
    return Quantised(record, draft.stored, agreement, error, len(calibrate), len(check), kept)


_PROTOCOL = (
    "int8 against float32 of the same model, ONNX Runtime on a CPU, photos not used for calibration"
)


def _refuse(model: ModelFile) -> None:
    if model.record.activations:
        raise ModelFileError(
            f"{model.path}: it was quantised already; expected the float model that it was made from"
        )
    if not model.record.network.head.classes:
        raise NetworkError(
            f"{model.path}: it is a trunk without a head, so there are no answers to agree on; "
            "quantise a model that classifies"
        )


def _tallies(reference: Draft, wanted: Plan, images: Sequence[Array]) -> dict[str, Tally]:
    """How large each value gets on the photos, by place; the input's range needs none."""
    names = tuple(name for name in wanted.places if name != "input")
    tallies = {name: Tally() for name in names}
    outputs = reference.run(reference.graph(names), images)
    for values in stage(outputs, "counting values", "batch", -(-len(images) // BATCH)):
        for name, tally in tallies.items():
            tally.add(values[name])
    return tallies


def _ranges(
    reference: Draft, tallies: dict[str, Tally], images: Sequence[Array]
) -> dict[str, Activation]:
    """The range of each value: of a few candidates for its end, the one that changes the scores least."""
    chosen = {"input": input_range(reference.preprocess)}
    graph = reference.graph(scores=True)
    some = images[:: len(images) // PROBED]
    for name, tally in stage(tallies.items(), "choosing ranges", "layer"):
        candidates = [tally.activation(end) for end in tally.ends()]
        outputs = error_names(name, candidates)
        probe = probed(graph, name, "scores", candidates)
        errors = [
            [batch[output].sum(dtype=np.float64) for output in outputs]
            for batch in reference.run(probe, some)
        ]
        chosen[name] = candidates[int(np.argmin(np.sum(errors, axis=0)))]
    return chosen


def input_range(preprocess: Preprocess) -> Activation:
    """The range of the normalised image: what black and white become in any channel."""
    channels = list(zip(preprocess.mean, preprocess.std, strict=True))
    ends = [(end - mean) / std for end in preprocess.range for mean, std in channels]
    least, most = min(0.0, *ends), max(0.0, *ends)
    scale = (most - least) / LEVELS
    return Activation(scale, round(-least / scale))


def _draft(reference: Draft, activations: dict[str, Activation], floats: Collection[str]) -> Draft:
    """The reference with the ranges that all layers but `floats` need; no weight is rounded yet."""
    network = reference.network
    wanted, sources = plan(network, floats), plan(network).sources
    draft = replace(
        reference,
        stored=dict(reference.stored),
        activations={name: activations[name] for name in wanted.places},
    )
    for name in floats:
        key = f"{network.layer(name).key}.weight.q"
        q = draft.stored.get(key)
        if q is not None and q.dtype == np.int8 and sources[name] in draft.activations:
            draft.stored[key] = q.astype(np.int16)  # in 8 bits, it would compute in them
    return draft


def _round(draft: Draft, name: str, tally: Tally | None, moments: Array | None = None) -> None:
    """Put 8-bit weights in place of a layer's, unless they are: then whoever made the file chose them.

    tally: of what the layer reads. moments: of the same, as `round_weights` takes them.
    """
    key = f"{draft.network.layer(name).key}.weight"
    if _has_integers(draft, name):
        return
    weight = dequantised(draft.stored, key)
    flat = weight.reshape(len(weight), -1)
    if moments is not None:
        importance = np.diagonal(moments)
    else:
        squares = np.ones(1) if tally is None else tally.squares / tally.positions
        importance = np.repeat(squares, flat.shape[1] // len(squares))
    step = steps(flat, importance)
    draft.stored.pop(key, None)
    draft.stored[f"{key}.q"] = round_weights(flat, step, moments).reshape(weight.shape)
    draft.stored[f"{key}.scale"] = step.reshape(-1, *(1 for _ in weight.shape[1:]))


def _has_integers(draft: Draft, name: str) -> bool:
    q = draft.stored.get(f"{draft.network.layer(name).key}.weight.q")
    return q is not None and q.dtype == np.int8


def _sensitive(
    reference: Draft,
    activations: dict[str, Activation],
    tallies: dict[str, Tally],
    images: Sequence[Array],
    several: bool,
) -> tuple[str, ...]:
    """The first and the last layer, where keeping it in float32 takes a tenth off the squared error."""
    weighted = [layer.name for layer in reference.network.layers if layer.key]
    theirs = reference.scores(images[:CHECKED], int8=False)

    def error(floats: tuple[str, ...]) -> float:
        draft = _draft(reference, activations, floats)
        wanted = plan(draft.network, floats)
        for name in wanted.sources:
            _round(draft, name, tallies.get(wanted.sources[name]))
        return score_error(draft.scores(images[:CHECKED]), theirs, several)

    whole = error(())
    return tuple(
        name
        for name in (weighted[0], weighted[-1])
        if error((name,)) ** 2 < (1 - WORTH_A_FLOAT) * whole**2
    )


def _walk(
    draft: Draft,
    reference: Draft,
    tallies: dict[str, Tally],
    floats: Collection[str],
    images: Sequence[Array],
) -> None:
    """Round each layer's weights, then correct its bias, from the first layer to the last.

    Both look at what the layers before it, which are done, make of the photos.
    """
    network = draft.network
    wanted = plan(network, floats)
    names = {}  # the value whose mean is compared, by layer
    for layer, following in pairwise(network.layers):
        if layer.key:
            names[layer.name] = following.name if following.kind == "relu" else layer.name
    theirs = reference.means(tuple(names.values()), images, int8=False)
    before = {after.name: layer.name for layer, after in pairwise(network.layers)}
    for name, value in stage(names.items(), "rounding weights", "layer"):
        layer = network.layer(name)
        if name in wanted.sources and not _has_integers(draft, name):
            moments = None
            if layer.kind == "conv" and name in before:
                source = before[name]
                maps = (values[source] for values in draft.run(draft.graph((source,)), images))
                moments = second_moments(
                    maps, layer.kernel, layer.padding, patches=patches_each(layer, len(images))
                )
            _round(draft, name, tallies.get(wanted.sources[name]), moments)
        _correct(draft, layer, value, theirs[value][0], images)


def _correct(
    draft: Draft, layer: Layer, value: str, target: Array, images: Sequence[Array]
) -> None:
    """Move a layer's bias so that its mean on the photos is the float model's.

    value: the layer itself, or the ReLU after it. Before a ReLU, what lies far below 0 would count, which
    the next layer never sees: cutting off large inputs moves that most, and a bias that made up for it
    moved all small answers.
    """
    mean, above = draft.means((value,), images)[value]
    # a change of the bias moves a ReLU's mean by the share that is above 0
    share = np.maximum(above, _LEAST_SHARE) if value != layer.name else 1.0
    key = f"{layer.norm_key or layer.key}.bias"
    draft.stored[key] = (draft.stored[key] + (target - mean) / share).astype(np.float32)


def said(record: Record, scores: Array) -> Array:
    """What is the answer of each image: a first class, (images, 1), or whether each class is said."""
    if not record.thresholds:
        return np.asarray(scores.argmax(1)[:, None])
    return np.asarray(probabilities(record, scores) >= np.array(record.thresholds))


def score_error(ours: Array, theirs: Array, several: bool = False) -> float:
    """||a - b|| / ||b|| of scores, (images, classes), after the mean of each image is taken off.

    What is added to all scores of an image changes no probability, but where an image may be of several
    classes: then nothing is taken off.
    """
    a, b = (np.asarray(s, np.float64) for s in (ours, theirs))
    if not several:
        a, b = (s - s.mean(1, keepdims=True) for s in (a, b))
    return output_error(a, b)


def output_error(ours: Array, theirs: Array) -> float:
    """||a - b|| / ||b||."""
    size, off = float(np.linalg.norm(theirs)), float(np.linalg.norm(ours - theirs))
    return off / size if size else 0.0 if not off else float("inf")


def made_from(model: ModelFile) -> dict[str, JSON]:
    """What a record keeps of the model that its own was made of."""
    return {"sha256": model.sha256, "measured": [dict(figure) for figure in model.record.measured]}


def patches_each(layer: Layer, images: int) -> int:
    """Of how many patches of each image a convolution's weights are rounded."""
    return -(-max(PATCHES, PATCHES_EACH * layer.inputs * layer.kernel**2) // images)


@dataclass
class Draft:
    """A model on its way to int8: its tensors and ranges as they stand, and what its graphs give on photos.

    stored: as a model file holds them, floats or `.q` with `.scale`. activations: rounded so far.
    """

    network: Network
    preprocess: Preprocess
    stored: dict[str, Array]
    activations: dict[str, Activation] = field(default_factory=dict)
    threads: int | None = None

    def graph(
        self, taps: tuple[str, ...] = (), *, scores: bool = False, int8: bool = True
    ) -> Graph:
        """The graph as it stands, for float32 pixels; without `int8`, nothing in it is rounded."""
        tensors = {key: dequantised(self.stored, key) for key in self.network.tensors}
        built = float_graph.build(
            self.network, tensors, self.preprocess, taps=taps, scores=scores, pixels="float32"
        )
        if not int8:
            return built
        return rounded(built, self.activations, weight_scales(self.network, self.stored))

    def run(self, graph: Graph, images: Sequence[Array]) -> Iterator[dict[str, Array]]:
        """The outputs of each batch; images: as `batches`."""
        # said here, since a graph with branches is not what it would be read from
        source = replace(Source.of(graph), minimum_size=1)
        engine = Engine("onnxruntime", source, precision="int8", threads=self.threads)
        for batch in batches(images):
            yield engine.run(batch)

    def scores(self, images: Sequence[Array], *, int8: bool = True) -> Array:
        """(images, classes)."""
        outputs = self.run(self.graph(scores=True, int8=int8), images)
        watched = stage(outputs, "comparing answers", "batch", -(-len(images) // BATCH))
        return np.concatenate([batch["scores"] for batch in watched])

    def means(
        self, names: tuple[str, ...], images: Sequence[Array], *, int8: bool = True
    ) -> dict[str, tuple[Array, Array]]:
        """Each layer's mean over images and positions, and the share of it above 0, by its name.

        Both are (outputs,) float64.
        """
        sums: dict[str, Array] = {name: np.zeros(()) for name in names}
        above: dict[str, Array] = {name: np.zeros(()) for name in names}
        count = dict.fromkeys(names, 0)
        for outputs in self.run(self.graph(names, int8=int8), images):
            for name in names:
                value = outputs[name]
                axes = (0, *range(2, value.ndim))
                sums[name] = sums[name] + value.sum(axes, dtype=np.float64)
                above[name] = above[name] + (value > 0).sum(axes)
                count[name] += value.size // value.shape[1]
        return {name: (sums[name] / count[name], above[name] / count[name]) for name in names}


def batches(images: Sequence[Array]) -> Iterator[Array]:
    """(batch, height, width, channels) float32; neighbours of one size share a batch.

    images: (height, width, channels) each, uint8 or float32 from 0 to 255.
    """
    start = 0
    for end in range(1, len(images) + 1):
        full = end - start == BATCH
        if end == len(images) or full or images[end].shape != images[start].shape:
            yield np.stack(images[start:end]).astype(np.float32)
            start = end
