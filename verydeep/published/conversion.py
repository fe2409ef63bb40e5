"""Make a model file of weights that somebody else saved, and the other way round.

`foreign` reads the tensors, `layouts` says what they are, and this decides what they may be called:
which pre-processing belongs to them is never guessed. It is known where the file is a published one, by
its digest or its values; everywhere else the person says it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import modelfile
from ..errors import ModelFileError, WeightsError, log, require
from ..files.atomic import replacing, require_other
from ..files.strict_json import JSON, shown
from ..modelfile import Record
from ..nets import Head, Network
from ..preprocess import PRESETS, Preprocess
from . import catalog, find_model
from .catalog import Entry
from .foreign import needed, read_tensors
from .layouts import arrange, to_timm
from .recognition import by_digest, by_name, by_values, expects


@dataclass(frozen=True)
class Imported:
    """Weights by our keys, float32 or float16, and what is known of them.

    layout: a key of layouts.LAYOUTS, or "verydeep". sha256: of the file they came from.
    published: the catalogue's entry where the file is one byte for byte, else None. record: a model file's.
    """

    network: Network
    tensors: Mapping[str, NDArray[Any]]
    layout: str
    sha256: str
    published: Entry | None
    record: Record | None = None


# endings of files that torch.save writes
STATE_DICTS = (".pth", ".pt")


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    preprocess: Preprocess | str | None = None,
    labels: Iterable[tuple[str, str]] | None = None,
    licence: str = "",
    **choices: Any,
) -> Record:
    """Make the model file `target` of the weights in `source`, and return its record.

    preprocess: what the weights expect, a record or a key of preprocess.PRESETS; may be left out only
    where the catalogue knows the file, or it is a model file: then its record holds, but for what is said
    here. labels: (id, name) of each class, in order; ImageNet's for published weights that have them.
    licence: of the weights, where the catalogue does not know it. choices: as for `load_weights`. What a
    person should know is logged.

    Raises WeightsError where the file cannot be read, is no network of the table, is not what its name
    or `claim` says, contradicts `preprocess`, or where nothing says what its pre-processing is;
    MissingExtraError where reading it needs torch or h5py.
    """
    # load_weights gets the text: a Path drops "./", which tells a path from a catalogue name
    given, source, target = source, Path(source), Path(target)
    require_other(target, source)
    if target.suffix in STATE_DICTS:
        raise WeightsError(
            f"{target}: a model file ends in .safetensors; for torch's own format leave --to out"
        )
    if isinstance(preprocess, str):
        require("pre-processing", preprocess, PRESETS, WeightsError)
        preprocess = PRESETS[preprocess]
    weights = load_weights(given, **choices)
    right = _preprocess(source, weights, preprocess)
    known, own = weights.published, weights.record
    classes = weights.network.head.classes
    if own and classes and right != own.preprocess:
        own = _unmeasured(own)
    if labels is None and known is not None and classes == known.classes == 1000:
        labels = zip(catalog.class_ids(), catalog.class_names(), strict=True)
    named = list(labels or ())
    if labels is not None and not named:
        raise WeightsError(
            f"{source}: there are no labels; expected one for each of {classes} classes"
        )
    ids, names = tuple(one for one, _ in named), tuple(name for _, name in named)
    if own and classes and not named:
        ids, names = own.class_ids, own.class_names
    provenance: dict[str, JSON] = {
        **(own.provenance if own else {}),
        "file": source.name,
        "sha256": weights.sha256,
        "layout": weights.layout,
        "made_by": "verydeep weights convert",
    }
    licence = licence or (own.licence if own else "")
    measured: list[dict[str, JSON]] = [dict(one) for one in own.measured] if own and classes else []
    if known is not None:
        provenance |= {"catalogue": known.name, "weights": known.release, "url": known.url}
        licence = licence or known.licence
        if known.accuracy is not None and classes:
            figures = asdict(known.accuracy)
            protocol = figures.pop("protocol")
            measured = [{"what": k, "value": v, "protocol": protocol} for k, v in figures.items()]
    try:
        record = Record(
            weights.network, right, ids, names, own.threshold if own and classes else None, licence,
            provenance, tuple(measured), least_mean=own.least_mean if own and classes else None,
            thresholds=own.thresholds if own and classes else (),
        )  # fmt: skip
    except ModelFileError as error:  # labels that do not fit the head
        raise WeightsError(f"{source}: {error}") from error
    modelfile.write(target, record, dict(weights.tensors))
    return record


def load_weights(
    source: str | os.PathLike[str],
    *,
    claim: str | None = None,
    network: str | None = None,
    layout: str | None = None,
    trunk: bool = False,
    averages: tuple[str, ...] = (),
) -> Imported:
    """Read weights of any layout; errors as for `convert`.

    source: a name of the catalogue, or a file; a model file says all by itself, and what is said here must
    agree. claim: the catalogue name that the file must prove to be; its own name claims one too. network,
    layout, trunk, averages: as for `layouts.arrange`.
    A head whose weights are NaN (torchvision's features-only file of vgg16) is left out.
    """
    source = find_model(source)
    named = by_name(source)
    claimed = catalog.entry(claim) if claim is not None else named and named[0]
    try:
        file = modelfile.read(source)
        _agree(file, claim, network, layout, averages)
        return _of_model_file(file, trunk)
    except ModelFileError as error:
        if not os.path.isfile(source) or _is_ours(source):
            raise WeightsError(str(error)) from error
    digests, known = by_digest(source)
    sha256, published = digests["sha256"], known and known[0]
    tensors = read_tensors(source)
    try:
        net, ours, rules = arrange(
            tensors, network=network, layout=layout, trunk=trunk, averages=averages
        )
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    if claimed is not None and claimed != published:
        way = "give it another name" if claim is None else "leave --as out"
        raise WeightsError(
            f"{_contradiction(source, claimed, net, ours, sha256)}; if you know what it is, {way}, and say "
            "its pre-processing with --preprocess"
        )
    for key, array in ours.items():
        if array.dtype.kind != "f" and not key.endswith("num_batches_tracked"):
            raise WeightsError(f"{source}: {key} is {array.dtype}; expected floating point")
    if any(key.startswith("classifier") and np.isnan(ours[key]).any() for key in ours):
        net = replace(net, head=Head("classic", 0))
        ours = {key: ours[key] for key in net.tensors}
        log.info("its classifier is NaN and was left out: a trunk that gives features")
    for key, array in ours.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{source}: {key} holds NaN or infinity; the file is of no use")
    if published is not None and net.name != published.network:
        raise WeightsError(
            f"{source} is {published.name} by its digest, but a {net.name} by its shapes"
        )
    return Imported(net, ours, rules, sha256, published)


def export(
    source: str | os.PathLike[str], target: str | os.PathLike[str], to: str, **choices: Any
) -> Imported:
    """Write the weights in `source` as a state dict: `to` is "torchvision" or "timm".

    source: a model file, or anything that `load_weights` takes with `choices`. target: .safetensors, or
    .pth (which needs torch). Weights that a model file stores in 8 bits become float32.

    Raises WeightsError, MissingExtraError as `load_weights`, OutputError where it cannot be written.
    """
    target = Path(target)
    require_other(target, Path(source))
    require("layout", to, ("torchvision", "timm"), WeightsError)
    if target.suffix not in (".safetensors", *STATE_DICTS):
        raise WeightsError(f"{target}: a state dict is written as .safetensors or .pth")
    weights = load_weights(source, **choices)
    net, tensors = weights.network, weights.tensors
    named = to_timm(net, tensors) if to == "timm" else {key: tensors[key] for key in net.tensors}
    if target.suffix == ".safetensors":
        from safetensors.numpy import save

        state = {name: np.asarray(array, order="C") for name, array in named.items()}
        with replacing(target) as out:
            out.write(save(state, {"format": "pt"}))  # readers ask whose tensors they are
        return weights
    torch = needed("torch", f"writing {target.name}", "torch")
    # mapped arrays are read-only: torch warns of those, so it gets copies
    copies = {name: torch.tensor(array) for name, array in named.items()}
    with replacing(target) as out:
        try:
            torch.save(copies, out)
        except RuntimeError as error:  # torch's own, of a disk that was full before
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    return weights


def _is_ours(path: Path) -> bool:
    """Whether what cannot be read as a model file is one all the same: other kinds may have its ending."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(9)[8:] == b"{" and modelfile.is_model_file(path)
    return False


def _agree(
    file: modelfile.ModelFile,
    claim: str | None,
    network: str | None,
    layout: str | None,
    averages: tuple[str, ...],
) -> None:
    """WeightsError where a model file is not what was said of it."""
    record = file.record
    for option, what, said, own in (
        ("--as", "catalogue name", claim, record.provenance.get("catalogue")),
        ("--network", "network", network, record.network.name),
        ("--from", "layout", layout, "verydeep"),
        (
            "--averages",
            "averages",
            ",".join(averages) or None,
            ",".join(record.network.head.layers),
        ),
    ):
        if said not in (None, own):
            raise WeightsError(
                f"{file.path} is a model file, whose record says that its {what} is "
                f"{shown(own) if own else 'none'}, not {said}; leave {option} out"
            )


def _unmeasured(record: Record) -> Record:
    """The record without what was measured with its own pre-processing, where there is another now.

    Thresholds stay: without them it would be a model of one label, whose probabilities are a soft-max.
    """
    if record.measured or (record.threshold, record.least_mean) != (None, None):
        log.info(
            "left out what was measured with its own pre-processing: figures, and when it is not sure"
        )
    if record.thresholds:
        log.info(
            "its thresholds were measured with its own pre-processing; kept, since they say that it is of "
            "several labels"
        )
    return replace(record, measured=(), threshold=None, least_mean=None)


def _of_model_file(file: modelfile.ModelFile, trunk: bool) -> Imported:
    record = file.record
    if record.activations:
        raise WeightsError(
            f"{file.path}: it was quantised, and its weights are of no use without 8-bit arithmetic; "
            "convert the float model that it was made from"
        )
    net = replace(record.network, head=Head("classic", 0)) if trunk else record.network
    return Imported(net, file.tensors(net.tensors), "verydeep", file.sha256, None, record)


def _preprocess(source: Path, weights: Imported, given: Preprocess | None) -> Preprocess:
    """What these weights expect; the reason is logged where nobody said it."""
    if weights.record is not None:
        return given or weights.record.preprocess
    known = weights.published
    if known is not None:
        right = PRESETS[known.preprocess]
        if given is not None and given != right:
            raise WeightsError(
                f"{source} is {known.name}, whose pre-processing is {known.preprocess}, not what "
                "was given; leave --preprocess out"
            )
        log.info(f"this is {known.name} by its digest: pre-processing {known.preprocess}")
        return right
    # with other classes, trained further by somebody, perhaps on other input with the first filters kept
    untouched = weights.network.head.classes in (0, 1000)
    famous = by_values(weights.network.name, weights.tensors) if untouched else None
    if given is not None:
        if famous and (wrong := expects(*famous, given)):
            raise WeightsError(
                f"{source} holds {famous[0].whose}, by the values of its first filters, and that "
                f"contradicts the pre-processing given: {wrong}"
            )
        return given
    if famous and not famous[1]:
        one = famous[0]
        log.info(
            f"these are {one.whose}, by the values of their first filters: pre-processing "
            f"{one.preprocess}"
        )
        return PRESETS[one.preprocess]
    raise WeightsError(
        f"{source} does not say which pre-processing its weights expect, and a wrong one gives wrong "
        f"answers in silence; say it with --preprocess {'|'.join(PRESETS)}"
    )


def _contradiction(
    source: Path, claimed: Entry, net: Network, tensors: Mapping[str, NDArray[Any]], sha256: str
) -> str:
    famous = by_values(net.name, tensors)
    if net.name != claimed.network:
        reason = f"its shapes are those of {net.name}"
    elif famous and famous[0].preprocess != claimed.preprocess:
        reason = (
            f"its values are {famous[0].whose}, which expects pre-processing "
            f"{famous[0].preprocess}, where {claimed.name} expects {claimed.preprocess}"
        )
    else:
        digest = claimed.published[0].digest
        reason = f"its SHA-256 is {sha256[:16]}..., where the published file has {digest}"
    return f"{source} claims to be {claimed.name} and is not: {reason}"
