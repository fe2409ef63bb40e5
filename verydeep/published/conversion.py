"""Make a model file of weights that somebody else saved, and the other way round.

`foreign` reads the tensors, `layouts` says what they are, and this decides what they may be called:
which pre-processing belongs to them is never guessed. It is known where the file is a published one, by
its digest or its values; everywhere else the person says it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import modelfile
from ..errors import MissingExtraError, ModelFileError, WeightsError, log, nearest
from ..files.atomic import replacing
from ..modelfile import Record
from ..nets import Head, Network
from ..preprocess import PRESETS, Preprocess
from . import catalog
from .catalog import Entry
from .foreign import read_tensors
from .layouts import arrange, to_timm
from .recognition import by_digest, by_name, by_values, expects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..files.strict_json import JSON


@dataclass(frozen=True)
class Imported:
    """Weights by our keys, float32 or float16, and what is known of them.

    layout: a key of layouts.LAYOUTS. sha256: of the file they came from.
    published: the catalogue's entry where the file is one byte for byte, else None.
    """

    network: Network
    tensors: Mapping[str, NDArray[Any]]
    layout: str
    sha256: str
    published: Entry | None


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    preprocess: Preprocess | str | None = None,
    claim: str | None = None,
    network: str | None = None,
    layout: str | None = None,
    trunk: bool = False,
    averages: tuple[str, ...] = (),
    labels: Iterable[tuple[str, str]] | None = None,
    licence: str = "",
) -> Record:
    """Make the model file `target` of the weights in `source`, and return its record.

    preprocess: what the weights expect, a record or a key of preprocess.PRESETS; may be left out only
    where the catalogue knows the file. claim: the catalogue name that the file must prove to be.
    network, layout, trunk, averages: as for `layouts.arrange`. labels: (id, name) of each class, in order;
    ImageNet's for published weights that have them. licence: of the weights, where the catalogue does
    not know it. What a person should know is logged.

    Raises WeightsError where the file cannot be read, is no network of the table, is not what its name
    or `claim` says, contradicts `preprocess`, or where nothing says what its pre-processing is;
    MissingExtraError where reading it needs torch or h5py.
    """
    source, target = Path(source), Path(target)
    given = _preset(preprocess)
    weights = load_weights(
        source, claim=claim, network=network, layout=layout, trunk=trunk, averages=averages
    )
    right = _preprocess(source, weights, given)
    known = weights.published
    classes = weights.network.head.classes
    if labels is None and known is not None and classes == known.classes == 1000:
        labels = zip(catalog.class_ids(), catalog.class_names(), strict=True)
    ids, names = zip(*labels, strict=True) if labels is not None else ((), ())
    provenance: dict[str, JSON] = {
        "file": source.name,
        "sha256": weights.sha256,
        "layout": weights.layout,
        "made_by": "verydeep weights convert",
    }
    if known is not None:
        provenance |= {"catalogue": known.name, "weights": known.release, "url": known.url}
    try:
        record = Record(
            weights.network,
            right,
            ids,
            names,
            licence=licence or (known.licence if known else ""),
            provenance=provenance,
            measured=_measured(known) if known and classes else (),
        )
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
    """Read weights of any layout; arguments and errors as for `convert`.

    A head whose weights are NaN (torchvision's features-only file of vgg16) is left out.
    """
    source = Path(source)
    named = by_name(source)
    claimed = catalog.entry(claim) if claim is not None else named and named[0]
    if not source.is_file():
        raise WeightsError(f"{source}: there is no such file")
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
        raise WeightsError(_contradiction(source, claimed, net, ours, sha256))
    heads = [array for key, array in ours.items() if key.startswith("classifier")]
    if net.head.classes and any(
        array.dtype.kind == "f" and np.isnan(array).any() for array in heads
    ):
        net = replace(net, head=Head("classic", 0))
        ours = {key: ours[key] for key in net.tensors}
        log.info("its classifier is NaN and was left out: a trunk that gives features")
    for key, array in ours.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WeightsError(f"{source}: {key} holds NaN or infinity; the file is of no use")
        if array.dtype.kind != "f" and not key.endswith("num_batches_tracked"):
            raise WeightsError(f"{source}: {key} is {array.dtype}; expected floating point")
    if published is not None and net.name != published.network:
        raise WeightsError(
            f"{source} is {published.name} by its digest, but a {net.name} by its shapes"
        )
    return Imported(net, ours, rules, sha256, published)


def export(
    source: str | os.PathLike[str], target: str | os.PathLike[str], to: str, **choices: Any
) -> Network:
    """Write the weights in `source` as a state dict: `to` is "torchvision" or "timm".

    source: a model file, or anything that `load_weights` takes with `choices`. target: .safetensors, or
    .pth (which needs torch). Tensors of a quantised model file are dequantised to float32.

    Raises WeightsError, MissingExtraError as `load_weights`, OutputError where it cannot be written.
    """
    source, target = Path(source), Path(target)
    if to not in ("torchvision", "timm"):
        raise WeightsError(f"cannot write layout {to!r}{nearest(to, ('torchvision', 'timm'))}")
    try:
        file = modelfile.read(source)
        net, tensors = file.record.network, file.tensors()
    except ModelFileError:
        weights = load_weights(source, **choices)
        net, tensors = weights.network, dict(weights.tensors)
    named = to_timm(net, tensors) if to == "timm" else {key: tensors[key] for key in net.tensors}
    state = {name: np.asarray(array, order="C") for name, array in named.items()}
    if target.suffix == ".safetensors":
        from safetensors.numpy import save

        with replacing(target) as out:
            out.write(save(state, {"format": "pt"}))  # readers ask whose tensors they are
    elif target.suffix in (".pth", ".pt"):
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError(f"writing {target.name}", "torch") from error
        # mapped arrays are read-only: torch warns of those, so it gets copies
        tensors_of = {name: torch.tensor(array) for name, array in state.items()}
        with replacing(target) as out:
            torch.save(tensors_of, out)
    else:
        raise WeightsError(f"{target}: a state dict is written as .safetensors or .pth")
    return net


def _preset(preprocess: Preprocess | str | None) -> Preprocess | None:
    if not isinstance(preprocess, str):
        return preprocess
    if preprocess not in PRESETS:
        raise WeightsError(
            f"pre-processing {preprocess!r} is unknown{nearest(preprocess, PRESETS)}"
        )
    return PRESETS[preprocess]


def _preprocess(source: Path, weights: Imported, given: Preprocess | None) -> Preprocess:
    """What these weights expect; the reason is logged where nobody said it."""
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
    famous = by_values(weights.network.name, weights.tensors)
    if weights.network.head.classes not in (0, 1000):
        # trained further by somebody, perhaps on other input with the first filters left as they were
        famous = None
    if given is not None:
        wrong = expects(*famous, given) if famous else ""
        if famous and wrong:
            raise WeightsError(
                f"{source} holds {famous[0].whose}, by the values of its first filters, and that "
                f"contradicts the pre-processing given: {wrong}"
            )
        return given
    if famous and not famous[1]:
        log.info(
            f"these are {famous[0].whose}, by the values of their first filters: pre-processing "
            f"{famous[0].preprocess}"
        )
        return PRESETS[famous[0].preprocess]
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
    return (
        f"{source} claims to be {claimed.name} and is not: {reason}; if you know what it is, give it "
        "another name, and its pre-processing with --preprocess"
    )


def _measured(known: Entry) -> tuple[dict[str, JSON], ...]:
    if known.accuracy is None:
        return ()
    figures = (("top1", known.accuracy.top1), ("top5", known.accuracy.top5))
    return tuple(
        {"what": what, "value": value, "protocol": known.accuracy.protocol}
        for what, value in figures
    )
