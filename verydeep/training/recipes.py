"""Recipes: each a function that returns a frozen config, of which `--set key=value` changes what it names.

>>> changed(small_images(), ["epochs=10", "rate=0.1"]).epochs
10
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from textwrap import fill, indent
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import DataError, nearest

C = TypeVar("C")
COLUMNS = 98  # of what `described` gives


_ROOM = __name__.rpartition(".")[0]

# recipe -> the module with the function that makes its config, and the one whose `learnt` follows that;
# loaded when one is asked for, as not all of them need torch
RECIPES: dict[str, tuple[str, str]] = {
    "probe": (f"{_ROOM}.probe", f"{_ROOM}.probe"),
    "finetune": (__name__, f"{_ROOM}.learn"),
    "small-images": (__name__, f"{_ROOM}.learn"),
    "paper": (__name__, f"{_ROOM}.learn"),
}


@dataclass(frozen=True)
class Config:
    """What a run is made of; the model file and config.json record it. DataError for what makes no sense.

    model, width, channels, head, layers, pool: the network, in the table's words; `layers` of the head
    "gap", none for the last ReLU. Of finetune, `model` is the weights to start from, with their channels.
    size: pixels a side that it sees. start: how weights are drawn: "torchvision", "paper", "glorot", "he";
    "probe" takes the head that the recipe probe solves, on trained weights.
    epochs, batch, seed: an epoch goes once through the images; `batch` of them make a step, in all
    processes together. To a small set, batch and rates are fitted unless they are set.
    accumulate: parts of a batch that are computed one after the other, for memory.
    blocks: how many of the five learn, from the top; 0 for all. keep_norm: batch norms keep the statistics
    that they came with.

    grow: at which parts of `size` images are shown, each for an equal part of the epochs: what is coarse is
    learnt in a fraction of the time. None for `size` all the time.

    optimiser: "sgd", "adamw", or "muon", which moves convolutions by steps made orthogonal, at
    kernel_rate, and all else as SGD does. rate: of learning, the highest; of the head head_rate, 0 for the
    same; each convolution below the top one has `fall` times the rate of the one above it.
    schedule: "linear" and "cosine" rise over `warmup`
    epochs and fall to 0; "plateau" is divided by 10 when validation accuracy stops rising, `drops` times,
    and then the run ends; "constant". patience: epochs without a rise that make a plateau, or, with hold,
    without a smaller loss that end the run. hold: fraction of the training images held out, by which the
    best epoch is taken, and mixed with a start from "probe", or that is kept, where training is no better.
    momentum, nesterov, decay: SGD's; `decay` pulls on weights, not on biases and batch norms unless
    decay_all, and under Muon not on convolutions with a batch norm, whose length stays. clip: largest norm
    of the gradient, 0 for any. average: decay of the running mean of the weights, which is what is
    validated and kept; 0 for none.

    teacher: a model file of the same classes, whose answers are half of what is learned; none for labels
    alone. code_bytes: where the weights to start from are coded, as `verydeep compress` makes them: how
    many bytes their streams may take. They are learnt as multiples of the same steps. 0 for floats.
    smoothing: of the labels. dropout: after the hidden FC layers, and of the averages that a head from
    "probe" reads. balance: "weights" weighs the loss of rare classes up, "sampling" shows them more often.
    memory: small images are kept decoded in memory and shifted by up to `padding`, a part of `size`; photos
    are read again each epoch, rescaled so that the shorter side is drawn from `scales`, and cropped;
    without scales the crop is of `area` or more of the photo. stretch: photos are measured stretched to
    the square, so that nothing is cut away.
    flip, cover (side of a covered square, a part of `size`; 0 for none), jitter (of brightness, contrast
    and saturation, a part of each), colour (deviation of the paper's colour shift), mixup, cutmix (alpha, 0
    for none; with both, each batch gets the one or the other).
    strength: of all that changes photos: 0 for none of it, 1 as said, 2 for twice as much.

    precision: "fp32", "bf16", "fp16" with its loss scaled, or "auto": bf16 where the device multiplies it.
    layout: "default", "channels-last", or "auto": channels-last, but on a Mac's GPU.
    compile: by torch.compile. threads: that prepare images, 0 for as many as cores.
    checkpoint_minutes: between two checkpoints within an epoch.
    val_fraction: of each class, set aside to validate with where the data has nothing for it.
    multi: whether a photo of a CSV may have several labels: "auto" for as it looks, or a DataError.
    """

    recipe: str = "small-images"
    model: str = "vgg16_bn"
    width: float = 1.0
    channels: tuple[int, ...] = ()
    head: Literal["classic", "small", "gap"] = "small"
    layers: tuple[str, ...] = ()
    pool: Literal["max", "avg", "l2"] = "max"
    size: int = 32
    start: Literal["torchvision", "paper", "glorot", "he", "probe"] = "glorot"
    epochs: int = 60
    batch: int = 256
    seed: int = 0
    accumulate: int = 1
    blocks: int = 0
    keep_norm: bool = False
    grow: tuple[float, ...] = ()
    optimiser: Literal["sgd", "adamw", "muon"] = "sgd"
    rate: float = 0.2
    kernel_rate: float = 0.05
    head_rate: float = 0.0
    fall: float = 1.0
    schedule: Literal["linear", "cosine", "plateau", "constant"] = "cosine"
    warmup: float = 5.0
    patience: int = 3
    drops: int = 3
    hold: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    decay: float = 5e-4
    decay_all: bool = False
    clip: float = 0.0
    average: float = 0.999
    teacher: str = ""
    code_bytes: int = 0
    smoothing: float = 0.1
    dropout: float = 0.3
    balance: Literal["none", "weights", "sampling"] = "none"
    memory: bool = True
    padding: float = 0.125
    scales: tuple[int, ...] = ()
    area: float = 0.35
    stretch: bool = False
    flip: bool = True
    cover: float = 0.25
    jitter: float = 0.0
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    strength: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    layout: Literal["auto", "default", "channels-last"] = "auto"
    compile: bool = False
    threads: int = 0
    checkpoint_minutes: float = 10.0
    val_fraction: float = 0.1
    multi: Literal["auto", "true", "false"] = "auto"

    def __post_init__(self) -> None:
        hold_to(self, {
            "size": (1, None), "epochs": (1, None), "batch": (1, None), "seed": (0, 2**63 - 1),
            "width": (0.01, 16), "accumulate": (1, self.batch), "blocks": (0, 5),
            "rate": (0, None), "kernel_rate": (0, 1), "head_rate": (0, None), "fall": (0, 1),
            "warmup": (0, None), "patience": (1, None), "drops": (0, None), "hold": (0, 0.5),
            "momentum": (0, 0.9999), "decay": (0, None), "clip": (0, None), "average": (0, 1),
            "code_bytes": (0, None), "smoothing": (0, 1), "dropout": (0, 0.95), "padding": (0, 0.9),
            "cover": (0, 1),
            "jitter": (0, 1), "colour": (0, None), "area": (0.01, 1), "mixup": (0, None),
            "cutmix": (0, None), "strength": (0, 5), "threads": (0, None),
            "checkpoint_minutes": (0, None), "val_fraction": (0, 0.9),
        })  # fmt: skip
        if self.scales and (len(self.scales) > 2 or min(self.scales) < self.size):
            raise DataError(
                f"scales is {self.scales}; expected one shorter side, or the least and the greatest, "
                f"none below the {self.size} pixels of a crop"
            )
        if self.grow and not 0 < min(self.grow) <= max(self.grow) <= 1:
            raise DataError(
                f"grow is {self.grow}; expected parts of the size, above 0 and at most 1"
            )
        if self.start == "probe" and (self.head != "gap" or self.code_bytes):
            other = f"head is {self.head}" if self.head != "gap" else "code_bytes is set"
            raise DataError(
                f"start=probe solves a head gap, in floats, and {other}; leave it out, or take small-images"
            )
        if self.code_bytes and self.hold:
            raise DataError(
                "hold takes the best epoch, which with code_bytes may be one of more bytes; set hold=0"
            )
        if self.nesterov and not self.momentum:
            raise DataError("nesterov needs momentum above 0; set nesterov=false or momentum=0.9")

    def shown(self) -> Config:
        """The same with all that changes images times `strength`, which is 1 then."""
        k = self.strength
        return replace(
            self, strength=1.0, padding=min(0.9, k * self.padding), cover=min(1.0, k * self.cover),
            jitter=min(1.0, k * self.jitter), colour=k * self.colour, mixup=k * self.mixup,
            cutmix=k * self.cutmix, area=max(0.01, 1 - k * (1 - self.area)), flip=self.flip and k > 0,
        )  # fmt: skip

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels a side that images are shown at, one after another."""
        return tuple(max(1, round(part * self.size)) for part in self.grow) or (self.size,)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Config:
        """What `to_dict` gave. DataError for a key that is none, or a value of another kind."""
        others = {key: value for key, value in held.items() if key != "recipe"}
        return changed(cls(recipe=held["recipe"]), others)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def small_images() -> Config:
    """VGG with batch norm for images of 32x32, such as CIFAR-10's, enlarged to 64.

    Five poolings leave a single unit of 32 pixels, and 2x2 of 64.

    Command: verydeep train cifar10.npz --recipe small-images --model vgg16_bn --width 0.5 --out run
    Expected: 94.5 % of CIFAR-10's 10,000 test images; with --set size=32 --set epochs=72, a network
    four times as fast, 93.2 %.
    Duration: 30 epochs of 50,000 images take 90 minutes on two cores with bf16, a few on a GPU.
    """
    return Config(
        head="gap", size=64, start="he", epochs=30, batch=512, grow=(0.5, 0.75, 1.0), optimiser="muon",
        rate=0.2, kernel_rate=0.04, schedule="linear", warmup=1.0, average=0.995, smoothing=0.1,
    )  # fmt: skip


def finetune() -> Config:
    """A solved head, and then the trunk trained with it, at rates that fall towards the input.

    A head that is solved first keeps features from being torn apart by one that knows nothing (Kumar et
    al., arXiv:2202.10054). A part of the training photos is held out: it takes the best epoch, mixes its
    weights with those of the start (Wortsman et al., arXiv:2109.01903), and keeps the head alone where
    that is not surely better. The validation photos only measure.

    Command: verydeep train photos/ --recipe finetune --out run
    Expected: at least what a probe of photos of that size reaches.
    Duration: 20 minutes for 3,000 photos on two cores with AMX, an hour with bf16 by AVX-512 alone.
    """
    return Config(
        recipe="finetune", model="builtin", head="gap", size=160, start="probe", epochs=20, batch=32,
        blocks=3, keep_norm=True, optimiser="adamw", rate=1e-4, head_rate=3e-4, fall=0.9, warmup=0.5,
        patience=6, hold=0.15, decay=0.05, average=0.99, smoothing=0.1, dropout=0.3, memory=False, area=0.4,
        stretch=True, cover=0.0, jitter=0.3, cutmix=1.0,
    )  # fmt: skip


def paper() -> Config:
    """Section 3.1 of arXiv:1409.1556, to the letter; S jittered in [256, 512] by --set scales=256,512.

    Weights are drawn as the section's last word has it, by Glorot and Bengio's rule. Its first word,
    N(0, variance 1e-2), is --set start=paper; with it the loss overflows within a few steps at this rate.

    Command: verydeep train imagenet/ --recipe paper --model vgg11 --out A, and then
    verydeep train imagenet/ --recipe paper --model vgg16 --init A/model.safetensors --out D;
    --set scales=384 --set rate=0.001 --init D/model.safetensors goes on at S = 384.
    Expected: the errors of the paper's table 3 on ImageNet: 29.6 % top-1 of A, 27.0 % of D.
    Duration: 74 epochs; weeks on the four GPUs of the paper, days on one of today.
    """
    return Config(
        recipe="paper", model="vgg11", head="classic", size=224, start="glorot", epochs=74, batch=256,
        rate=1e-2, schedule="plateau", warmup=0.0, momentum=0.9, nesterov=False, decay=5e-4,
        decay_all=True, average=0.0, smoothing=0.0, dropout=0.5, memory=False, scales=(256,),
        cover=0, colour=0.1,
    )  # fmt: skip


def recipe(name: str) -> Any:
    """The config of that recipe; DataError, with the nearest name, where there is none."""
    if name not in RECIPES:
        raise DataError(f"no recipe {name!r}{nearest(name, RECIPES)}")
    return _maker(name)()


def _maker(name: str) -> Callable[[], Any]:
    made: Callable[[], Any] = getattr(import_module(RECIPES[name][0]), name.replace("-", "_"))
    return made


def described(name: str) -> str:
    """For people: what a recipe is, its command, how long it takes, and its settings for --set.

    ModuleNotFoundError where what it needs is not installed.
    """
    made = recipe(name)
    import_module(RECIPES[name][1])  # so that whoever looks for a recipe knows what it lacks
    text = inspect.getdoc(_maker(name)) or ""
    meaning = (inspect.getdoc(type(made)) or "").partition("\n\n")[2]
    values = []
    for key, value in made.to_dict().items():
        if isinstance(value, list):
            value = ",".join(map(str, value))
        elif isinstance(value, bool):
            value = json.dumps(value)
        values.append(f"{key}={value}")
    shown = fill(f"Settings: {', '.join(values[1:])}", COLUMNS)  # the first is the recipe itself
    return f"{name}\n" + indent(f"{text}\n\n{meaning}\n\n{shown}", "  ")


def settings(given: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Settings by key, from "key=value" each, or from a mapping. DataError where one has no "="."""
    if isinstance(given, Mapping):
        return dict(given)
    found = {}
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals:
            raise DataError(f"--set {setting}: expected key=value, as in epochs=30")
        found[key.strip()] = text.strip()
    return found


def changed(config: C, given: Iterable[str] | Mapping[str, Any]) -> C:
    """The config with other values, given as `settings` takes them.

    DataError for a key that the config does not have, with the nearest, and for a value of another kind.
    """
    made: Any = config  # a frozen dataclass; each recipe has its own
    hints = get_type_hints(type(config))
    known = [field.name for field in fields(made) if field.name != "recipe"]
    values = {}
    for key, value in settings(given).items():
        if key not in known:
            raise DataError(f"recipe {made.recipe} has no setting {key!r}{nearest(key, known)}")
        values[key] = _parsed(key, value, hints[key])
    changed_: C = replace(made, **values)
    return changed_


def _parsed(key: str, value: Any, kind: Any) -> Any:
    """The value, from text where it is text, as the field's type has it."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise DataError(f"{key} is {value!r}; expected one of: {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        held = value if hasattr(value, "__iter__") else (value,)
        parts = held.split(",") if isinstance(held, str) else list(held)
        return tuple(_parsed(key, part, item) for part in parts if part != "")
    if kind is str:
        return str(value)
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    found = value.item() if hasattr(value, "item") else value  # of numpy
    if kind is float and type(found) is int:
        found = float(found)
    elif isinstance(found, str):
        with suppress(ValueError):
            found = float(found) if kind is float else json.loads(found.lower())
    if type(found) is not kind or (kind is float and not math.isfinite(found)):
        raise DataError(f"{key} is {value!r}; expected {words[kind]}")
    return found


def hold_to(config: Any, limits: Mapping[str, tuple[float, float | None]]) -> None:
    """DataError where a setting is outside its limits, both allowed; None for no upper end."""
    for key, (low, high) in limits.items():
        value = getattr(config, key)
        if value < low or (high is not None and value > high):
            top = f"at most {high}" if high is not None else "with no upper end"
            raise DataError(f"{key} is {value}; expected {low} or more, {top}")
