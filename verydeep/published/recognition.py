"""Know published weights: by the digest of their file, its name, or the values in it.

Weights say nothing about the images they expect: torchvision's and Oxford's VGG-16 have the same names
and shapes, and either gives nonsense with the other's pre-processing. A few values of the first filters
tell them apart, whatever their file is called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import modelfile
from ..errors import ModelFileError, WeightsError, nearest
from ..files.folders import download_folders
from ..files.hashes import digests_of, matches, sealed
from ..preprocess import PRESETS, Preprocess
from . import builtin_models, find_model, supply
from .catalog import ENTRIES, Entry, Published

Known = tuple[Entry, Published]


def _files() -> list[Known]:
    return [(entry, one) for entry in ENTRIES.values() for one in entry.published]


def by_name(path: Path) -> Known | None:
    """The published file that has this name."""
    return next((known for known in _files() if known[1].file == path.name), None)


def by_digest(path: Path) -> tuple[dict[str, str], Known | None]:
    """The digests of a file, by algorithm, "sha256" among them, and the published file that has them."""
    # MD5 and SHA-1 only for files of the kinds that were published with those
    alike = [one for _, one in _files() if Path(one.file).suffix == path.suffix]
    digests = digests_of(path, ["sha256", *(one.digest.partition(":")[0] for one in alike)])
    return digests, next((known for known in _files() if matches(known[1].digest, digests)), None)


# Of the largest value: float16 and printed digits pass, weights trained further may not.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Fingerprint:
    """Some values of a network's first convolution, "features.0.weight", in torch's order of axes.

    whose: they are, in words. network: a key of nets.NETWORKS. preprocess: the preset that goes
    with them. corners: the top left value of filters 0, 1, ... for each channel, in the order that the
    preset gives the channels.
    """

    whose: str
    network: str
    preprocess: str
    corners: tuple[tuple[float, float, float], ...]


FINGERPRINTS = (
    # read from the weights themselves
    Fingerprint(
        "torchvision's vgg16, IMAGENET1K_V1", "vgg16", "torchvision",
        ((-0.5537306, 0.1754839, 0.3130256), (0.2325372, -0.1407622, -0.3143240)),
    ),
    # as printed by people who loaded torchvision.models.vgg19(pretrained=True)
    Fingerprint(
        "torchvision's vgg19, IMAGENET1K_V1", "vgg19", "torchvision",
        ((-5.3474e-02, 1.7015e-02, -4.4885e-02),),
    ),
    # as printed by people who loaded keras.applications.VGG16(weights="imagenet")
    Fingerprint(
        "Oxford's VGG-16 of 2014, which Caffe and Keras have", "vgg16", "caffe",
        (
            (0.429470569, 0.550379455, 0.480015397),
            (0.117273867, 0.0208774377, -0.172696680),
            (0.0340129584, 0.0988311544, 0.0375577137),
        ),
    ),
)  # fmt: skip


def by_values(network: str, tensors: Mapping[str, NDArray[Any]]) -> tuple[Fingerprint, bool] | None:
    """Whose weights these are, and whether their input channels are turned round; None if unknown."""
    first = tensors.get("features.0.weight")
    if first is None or first.shape[1] != 3:
        return None
    for one in FINGERPRINTS:
        corners = np.array(one.corners)
        if one.network != network or len(first) < len(corners):
            continue
        values = np.asarray(first[: len(corners), :, 0, 0], np.float64)
        for turned in (False, True):
            error = np.abs((values[:, ::-1] if turned else values) - corners).max()
            if error <= TOLERANCE * np.abs(corners).max():
                return one, turned
    return None


def expects(one: Fingerprint, turned: bool, given: Preprocess) -> str:
    """What is wrong with `given` for these weights, in words; "" where it agrees.

    Only what makes the answer nonsense is compared: the order of the channels, and the scale.
    """
    right = PRESETS[one.preprocess]
    order = right.channel_order[::-1] if turned else right.channel_order
    if given.channel_order != order:
        return f"they take channels in the order {order}, not {given.channel_order}"
    if not 0.5 < _gain(given) / _gain(right) < 2:
        return f"they take values {_gain(right) / _gain(given):.3g} times as large"
    return ""


def _gain(preprocess: Preprocess) -> float:
    """How much the network's input grows where a pixel goes from 0 to 255."""
    low, high = preprocess.range
    return (high - low) / (sum(preprocess.std) / len(preprocess.std))


@dataclass(frozen=True)
class Verdict:
    """Of one file. ok: it proved to be what it claims. what: the reason, for people.

    sha256: of the whole file, "" where it could not be read.
    """

    file: Path
    ok: bool
    what: str
    sha256: str = ""


def verdicts(name: str | os.PathLike[str]) -> tuple[Verdict, ...]:
    """The verdicts on a file, or on all that this machine has of a catalogue name. Reads them whole.

    Published files are compared with their published digest and with the whole SHA-256 that they had when
    they first proved right; model files with the table, and with what they were when made.
    Raises WeightsError where there is nothing of that name.
    """
    name = os.fspath(name)
    # a built-in, or a run's folder; finding a catalogue name would fetch it
    own = name in builtin_models() or (name not in ENTRIES and os.path.isdir(name))
    paths = [find_model(name) if own else Path(name)]
    reason = f"{name!r} is neither a file nor in the catalogue{nearest(name, ENTRIES)}"
    if entry := ENTRIES.get(name):
        folders = (supply.weights_folder(), *download_folders())
        paths = [folder / one.file for one in entry.published for folder in folders]
        paths.append(supply.model_path(entry))
        reason = f"nothing of {name} is on this machine; get it with: verydeep weights fetch {name}"
    judged = tuple(_verdict(path) for path in paths if os.path.isfile(path))
    if not judged:
        raise WeightsError(reason)
    return judged


def _verdict(path: Path) -> Verdict:
    try:
        record = modelfile.read(path).record
    except ModelFileError as error:
        if path.suffix == ".safetensors":
            return Verdict(path, False, str(error).removeprefix(f"{path}: "))
        return _published(path)
    head = f"{record.network.head.classes} classes" if record.network.head.classes else "no head"
    what = f"model file of {record.network.name}, {head}"
    sha256 = digests_of(path)["sha256"]
    right = sealed(path)
    if right is None:
        return Verdict(path, True, f"{what}; it agrees with its record", sha256)
    same = right == sha256
    return Verdict(path, same, f"{what}; {'un' if same else ''}changed since it was made", sha256)


def _published(path: Path) -> Verdict:
    digests, known = by_digest(path)
    sha256 = digests["sha256"]
    if known is not None:
        entry, one = known
        if sealed(supply.weights_folder() / one.file) not in (None, sha256):
            what = f"begins as {entry.name} should, but not as it was when it first proved right"
            return Verdict(path, False, what, sha256)
        return Verdict(
            path, True, f"{entry.name} ({entry.release}) as published, {one.digest}", sha256
        )
    known = by_name(path)
    if known is not None:
        algorithm, _, head = known[1].digest.partition(":")
        what = f"not {known[0].name}: its {algorithm} is {digests[algorithm]}, expected {head}"
        return Verdict(path, False, what, sha256)
    return Verdict(path, False, "neither a model file nor one of the catalogue's", sha256)
