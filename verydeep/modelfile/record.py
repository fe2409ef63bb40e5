"""The record of a model file: what its tensors are, checked wherever a record comes from.

`Record.__post_init__` is the one check of values; reading JSON checks the members of objects alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ModelFileError, NetworkError, PreprocessError, is_number, is_whole, nearest
from ..files import strict_json
from ..files.strict_json import JSON, members, shown
from ..nets import Head, Network
from ..preprocess import TORCHVISION, Preprocess

# the newest that is read; 1 is a file without coded tensors, 2 one without a network of its own channels
FORMAT_VERSION = 3

_RECORD_KEYS = (
    "format_version", "network", "preprocess", "class_ids", "class_names", "threshold", "licence",
    "provenance", "measured",
)  # fmt: skip
_OPTIONAL = ("least_mean", "thresholds", "activations")  # only where they say something
_ROUNDED_KINDS = ("relu", "lrn", "pool", "average")  # what a convolution or FC layer may read
_ACTIVATION_KEYS = ("scale", "zero_point")
_NETWORK_KEYS = ("column", "batch_norm", "width", "in_channels", "pool", "head")
_HEAD_KEYS = ("kind", "classes", "layers")
_SCALES = (2.0**-100, 2.0**100)  # well within float32, and so are products with a weight's scale
_LONGEST_NAME = 1000  # characters, of a class id or name
# any but Unicode's categories Cc, Cs, Zl and Zp: control characters, lone surrogates, line breaks
_CHARACTER = r"[^\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]"
_NAME, _LINE = re.compile(f"{_CHARACTER}{{1,{_LONGEST_NAME}}}"), re.compile(f"{_CHARACTER}*")


@dataclass(frozen=True)
class Activation:
    """How one value of the int8 graph is rounded: clip(round(value / scale) + zero_point, 0, 255).

    scale: a float32 number above 0, also as its shortest decimal. zero_point: 0 to 255, what stands for 0.
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        scale, zero = self.scale, self.zero_point
        if not is_number(scale, *_SCALES):
            raise ModelFileError(
                f"an activation's scale is {shown(scale)}; expected a number from "
                f"{_SCALES[0]} to {_SCALES[1]}"
            )
        if not is_whole(zero, 0, 255):
            raise ModelFileError(
                f"an activation's zero_point is {shown(zero)}; expected a whole number, 0 to 255"
            )
        object.__setattr__(self, "scale", float(np.float32(scale)))


@dataclass(frozen=True)
class Record:
    """What a model file says about its tensors. ModelFileError where the values do not make sense.

    network: what the tensors are for. preprocess: how an image becomes its input.
    class_ids: unique names for programs ("n04146614"); class_names: for people ("school bus"). Each
    is empty, or as long as network.head.classes.
    threshold: probability of the first answer, 0 to 1, below which the answer is "not sure".
    licence: of the weights, an SPDX expression or one line of text.
    provenance: whatever tells where the weights come from: sources, command, versions.
    measured: figures, each with at least "what", "value" (a number) and "protocol" (how to repeat
    the measurement).
    activations: the values that the int8 graph rounds, by paper name ("input" for the normalised image);
    empty for a model that was not quantised. See docs/format.md.
    least_mean: of all scores, below which the answer is "not sure", too: nothing that the head has learned.
    None where the mean, which soft-max does not see, says nothing.
    thresholds: one a class, where an image may be of several: the probability, 0 to 1, from which on the
    class is said. Each has a probability of its own then, the sigmoid of its score. Empty where one is
    the answer, and probabilities are the soft-max of all scores.
    """

    network: Network
    preprocess: Preprocess = TORCHVISION
    class_ids: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    threshold: float | None = None
    licence: str = ""
    provenance: Mapping[str, JSON] = field(default_factory=dict, hash=False)
    measured: tuple[Mapping[str, JSON], ...] = field(default=(), hash=False)
    activations: Mapping[str, Activation] = field(default_factory=dict, hash=False)
    least_mean: float | None = None
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if replace(self.network) != self.network:
            raise ModelFileError(
                f"the network is {self.network.name} cut short; expected all of it"
            )
        licensed = isinstance(self.licence, str) and _LINE.fullmatch(self.licence)
        each = self.thresholds
        numbers = isinstance(each, list | tuple) and all(is_number(one, 0, 1) for one in each)
        for what, good, expected in (
            ("class_ids", isinstance(self.class_ids, list | tuple), "a list of names"),
            ("class_names", isinstance(self.class_names, list | tuple), "a list of names"),
            (
                "threshold",
                self.threshold is None or is_number(self.threshold, 0, 1),
                "0 to 1, or null",
            ),
            ("least_mean", self.least_mean is None or is_number(self.least_mean), "a number"),
            ("thresholds", numbers, "a list of numbers, 0 to 1"),
            ("licence", licensed, "one line of text"),
            ("provenance", isinstance(self.provenance, Mapping), "a JSON object"),
            ("measured", isinstance(self.measured, list | tuple), "a list"),
        ):
            if not good:
                raise ModelFileError(
                    f"the record's {what} is {shown(getattr(self, what))}; expected {expected}"
                )
        classes = self.network.head.classes
        for what in ("class_ids", "class_names"):
            names = tuple(getattr(self, what))
            for name in names:
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise ModelFileError(
                        f"the record's {what} has {shown(name)}; expected 1 to {_LONGEST_NAME} characters "
                        "of text without control characters"
                    )
            if names and len(names) != classes:
                raise ModelFileError(
                    f"the record has {len(names)} {what}, but the head has {classes} classes"
                )
            object.__setattr__(self, what, names)
        if len(set(self.class_ids)) != len(self.class_ids):
            twice = next(name for name in self.class_ids if self.class_ids.count(name) > 1)
            raise ModelFileError(f"the record has the class id {shown(twice)} twice")
        if self.threshold is not None:
            object.__setattr__(self, "threshold", float(self.threshold))
        if len(each) not in (0, classes):
            raise ModelFileError(
                f"the record has {len(each)} thresholds, but the head has {classes} classes"
            )
        if each and (self.threshold, self.least_mean) != (None, None):
            raise ModelFileError(
                "the record has thresholds, and also threshold or least_mean; expected one or the other"
            )
        object.__setattr__(self, "thresholds", tuple(map(float, each)))
        object.__setattr__(self, "provenance", _copied("provenance", self.provenance))
        object.__setattr__(self, "measured", tuple(_copied("measured", self.measured)))
        for index, figure in enumerate(self.measured):
            _check_figure(f"record's measured[{index}]", figure)
        if self.activations:
            _check_activations(self.activations, self.network)
        object.__setattr__(self, "activations", dict(self.activations or {}))

    def to_json(self, coded: bool = False) -> str:
        """The record as canonical JSON: keys sorted, no spaces. coded: whether any of the tensors is."""
        network = {key: getattr(self.network, key) for key in _NETWORK_KEYS}
        network["width"] = float(self.network.width)
        if self.network.channels:
            network["channels"] = self.network.channels
        network["head"] = {key: getattr(self.network.head, key) for key in _HEAD_KEYS}
        values: dict[str, object] = {
            **{key: getattr(self, key) for key in _RECORD_KEYS if key != "format_version"},
            "format_version": 3 if self.network.channels else 2 if coded else 1,
            "network": network,
            "preprocess": self.preprocess.to_dict(),
        }
        if self.least_mean is not None:
            values["least_mean"] = float(self.least_mean)
        if self.thresholds:
            values["thresholds"] = self.thresholds
        if self.activations:
            values["activations"] = {name: asdict(how) for name, how in self.activations.items()}
        return strict_json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that `to_json` wrote. Unknown and missing keys are refused: ModelFileError."""
        try:
            record = strict_json.loads(text)
        except ValueError as error:
            raise ModelFileError(f"its record cannot be read as JSON: {error}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if is_whole(version, FORMAT_VERSION + 1):
            raise ModelFileError(
                f"written by a newer verydeep: its format version is {version}, and this verydeep "
                f"reads those up to {FORMAT_VERSION}; upgrade with: pip install --upgrade verydeep"
            )
        values = members(
            record, (*_RECORD_KEYS, *_OPTIONAL), "record", ModelFileError, optional=_OPTIONAL
        )
        if not is_whole(version, 1):
            raise ModelFileError(
                f"the record's format_version is {shown(version)}; expected 1 to {FORMAT_VERSION}"
            )
        del values["format_version"]
        own = ("channels",) if version > 2 else ()
        known = (*_NETWORK_KEYS, *own)
        network = members(
            values["network"], known, "record's network", ModelFileError, optional=own
        )
        head = members(network["head"], _HEAD_KEYS, "record's network's head", ModelFileError)
        if not isinstance(head["layers"], list):
            raise ModelFileError(f"the head's layers are {shown(head['layers'])}; expected a list")
        if "activations" in values:
            values["activations"] = _read_activations(values["activations"])
        try:
            values["network"] = Network(**{**network, "head": Head(**head)})
            values["preprocess"] = Preprocess.from_dict(values["preprocess"])
        except (NetworkError, PreprocessError) as error:
            raise ModelFileError(f"its record does not make sense: {error}") from None
        return cls(**values)


def _copied(what: str, value: object) -> Any:
    """What a record holds of free JSON, as a copy of its own."""
    try:
        return strict_json.checked(value, depth=1)  # the record lies around it
    except ValueError as error:
        raise ModelFileError(f"the record's {what} cannot be stored: {error}") from None


def _check_figure(what: str, figure: object) -> None:
    if not isinstance(figure, dict):
        raise ModelFileError(f"the {what} is {shown(figure)}; expected a JSON object")
    for key, expected in (("what", "text"), ("protocol", "text"), ("value", "a number")):
        value = figure.get(key)
        if not (is_number(value) if key == "value" else isinstance(value, str) and value):
            raise ModelFileError(f"the {what} has {shown(value)} as {key!r}; expected {expected}")


def _read_activations(values: JSON) -> dict[str, Activation]:
    if not isinstance(values, dict) or not values:
        raise ModelFileError(
            f"the record's activations are {shown(values)}; expected a JSON object with one member for "
            "each rounded value, or no activations at all"
        )
    return {
        name: Activation(
            **members(value, _ACTIVATION_KEYS, f"record's activation {shown(name)}", ModelFileError)
        )
        for name, value in values.items()
    }


def _check_activations(given: object, network: Network) -> None:
    """Against the table: only layers that have maps or features can be rounded."""
    if not isinstance(given, Mapping):
        raise ModelFileError(f"the record's activations are {shown(given)}; expected a mapping")
    known = ["input", *(layer.name for layer in network.layers if layer.kind in _ROUNDED_KINDS)]
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, known) if isinstance(name, str) else ""
            raise ModelFileError(
                f"the record has an activation {shown(name)}, which {network.name} with the record's "
                f"choices does not round{hint}"
            )
        if not isinstance(value, Activation):
            raise ModelFileError(
                f"the record's activation {shown(name)} is {shown(value)}; expected an Activation"
            )
