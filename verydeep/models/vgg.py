"""The door that readers of torchvision know: `vgg16(weights=...)`, its ten siblings, their weight enums.

`from verydeep.models.vgg import ...` has the names of `torchvision.models.vgg`. Addresses, accuracy,
licence and class names come from `verydeep.published.catalog`, parameters and operations from the table:
nothing is written down twice. What torchvision refuses (other classes or channels with trained weights)
is done here, and said by one warning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from inspect import Signature, signature
from math import nan
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import errors, nets
from ..errors import ArgumentError, NetworkError, UnknownWeightsError, WeightsError, nearest
from ..nets import NETWORKS, Network
from ..preprocess import PRESETS, TORCHVISION, ImageLike, Preprocess, margins
from ..published import builtin_models, catalog, supply
from . import loading
from .adapting import adapt
from .layers import cfgs, initialise, make_layers
from .module import VGG

__all__ = [
    "VGG", "VGG11_BN_Weights", "VGG11_Weights", "VGG13_BN_Weights", "VGG13_Weights", "VGG16_BN_Weights",
    "VGG16_Weights", "VGG19_BN_Weights", "VGG19_Weights", "Weights", "WeightsEnum", "cfgs",
    "get_model", "get_model_builder", "get_model_weights", "get_weight", "list_models",
    "load_state_dict_from_url", "make_layers", "model_urls",
    "vgg11", "vgg11_bn", "vgg11_lrn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg16c", "vgg16c_bn",
    "vgg19", "vgg19_bn",
]  # fmt: skip

_RECIPE = "https://github.com/pytorch/vision/tree/main/references/classification#alexnet-and-vgg"
_SSD_RECIPE = "https://github.com/amdegroot/ssd.pytorch#training-ssd"


_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
# torchvision's names of the filters that resize, for where it is not imported
InterpolationMode = Enum("InterpolationMode", {m.upper().replace("-", "_"): m for m in _MODES})  # type: ignore[misc]


class ImageClassification(nn.Module):
    """An image as the network takes it: resized, cropped and normalised, to torchvision's very values.

    Takes tensors (3, height, width) or (n, 3, height, width), floats or integers of any range, which torch
    resizes; and PIL images, files, their bytes and arrays, which PIL does, a level or so away. Gives
    float32 with sides of crop_size. Grey becomes three channels. EXIF turns files, but no PIL images.

    crop_size, resize_size: in pixels, resize_size of the shorter side. mean, std: of values in 0..1.
    interpolation: an InterpolationMode, torchvision's or this one, or its value. antialias: of tensors,
    bilinear and bicubic; None is False. PreprocessError or ImageError for what makes no sense.
    """

    __jit_unused_properties__ = ("interpolation",)

    def __init__(
        self,
        *,
        crop_size: int,
        resize_size: int = 256,
        mean: Sequence[float] = TORCHVISION.mean,
        std: Sequence[float] = TORCHVISION.std,
        interpolation: Enum | str = "bilinear",
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        self.crop_size, self.resize_size = [crop_size], [resize_size]
        self.mean, self.std = list(mean), list(std)
        self.interpolation = interpolation
        self.antialias = antialias
        self._record()  # refuses what makes no sense

    @property
    def interpolation(self) -> Enum:
        """torchvision's own InterpolationMode where that is imported: its functions take no other."""
        theirs = getattr(sys.modules.get("torchvision.transforms"), "InterpolationMode", None)
        return (theirs or InterpolationMode)(self._mode)

    @interpolation.setter
    def interpolation(self, mode: Enum | str) -> None:
        self._mode = str(getattr(mode, "value", mode))

    def _record(self) -> Preprocess:
        mode: Any = self._mode.replace("nearest-exact", "nearest")  # which PIL's is
        sizes = self.resize_size[0], self.crop_size[0]
        return Preprocess("shorter", *sizes, mode, mean=tuple(self.mean), std=tuple(self.std))

    def forward(self, img: Tensor) -> Tensor:
        if not isinstance(img, Tensor):
            return self._of_picture(img)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check(img)
        height, width, side = img.shape[-2], img.shape[-1], self.resize_size[0]
        longer = int(side * max(height, width) / min(height, width))
        size = [side, longer] if height < width else [longer, side]
        x = img if img.dim() == 4 else img[None]
        if size != [height, width]:
            x = self._resized(x, size)
        crop = self.crop_size[0]
        x = F.pad(x, margins(size[1], crop) + margins(size[0], crop))  # negative: cut off
        bits = 0 if img.is_floating_point() else 8 * img.element_size() - int(img.is_signed())
        x = x.to(torch.float32) / max(1.0, 2.0**bits - 1)
        scale = torch.tensor([self.mean, self.std], dtype=torch.float32, device=img.device)
        x = (x - scale[0, :, None, None]) / scale[1, :, None, None]
        return x if img.dim() == 4 else x[0]

    def _of_picture(self, image: ImageLike) -> Tensor:
        if self.antialias is False:
            errors.warn(
                "antialias=False is of tensors alone: PIL's filter always grows with the scale"
            )
        # an array knows nothing of EXIF
        image = np.asarray(image) if getattr(image, "mode", "") == "RGB" else image
        record = self._record()
        return torch.from_numpy(record.normalise(record.pixels(image))[0])

    def _check(self, img: Tensor) -> None:
        if img.dim() not in (3, 4) or img.shape[-3] not in (1, 3) or not img.numel():
            raise errors.ImageError(
                f"a tensor {tuple(img.shape)}; expected (3, height, width) or (n, 3, height, width)"
            )

    def _resized(self, x: Tensor, size: list[int]) -> Tensor:
        smooth = self._mode in ("bilinear", "bicubic")
        values = F.interpolate(
            x if x.dtype == torch.float64 else x.to(torch.float32), size, mode=self._mode,
            align_corners=False if smooth else None,
            antialias=smooth and (False if self.antialias is None else self.antialias),
        )  # fmt: skip
        if x.dtype == torch.uint8:
            values = values.clamp(0, 255)  # bicubic overshoots
        return (values if x.is_floating_point() else values.round()).to(x.dtype)

    def __repr__(self) -> str:
        shown = ("crop_size", "resize_size", "mean", "std", "interpolation")
        fields = "".join(f"\n    {name}={getattr(self, name)}" for name in shown)
        return f"{type(self).__name__}({fields}\n)"


@dataclass(frozen=True)
class Weights:
    """The value of an enum member. url: of the published file. transforms: makes the transform.

    meta: torchvision's keys num_params, min_size, categories, recipe, license (also read as "licence"),
    _metrics (in percent, NaN where nothing was published), _ops (thousand million multiply-adds for one
    image of 224x224), _file_size (of the published file, in MiB) and _docs.
    """

    url: str
    transforms: Callable[..., ImageClassification] = field(compare=False)
    meta: dict[str, Any] = field(compare=False)
    entry: str  # the catalogue's name


class _Meta(dict[str, Any]):
    """torchvision's keys and no other, as its schema has it; "licence" is read as "license"."""

    def __missing__(self, key: str) -> Any:
        return {"licence": self["license"]}[key]


def _published(name: str) -> Weights:
    """The enum value of a catalogue entry."""
    entry = catalog.entry(name)
    net, how = nets.network(entry.network), PRESETS[entry.preprocess]
    trunk_only = not entry.classes
    top1, top5 = (entry.accuracy.top1, entry.accuracy.top5) if entry.accuracy else (nan, nan)
    sizes: dict[str, Any] = {"crop_size": how.crop_size, "resize_size": how.resize_size}
    return Weights(
        entry.url,
        partial(ImageClassification, **sizes, mean=how.mean, std=how.std),
        _Meta(
            num_params=net.parameters,
            min_size=(net.minimum_size, net.minimum_size),
            categories=None if trunk_only else list(catalog.class_names()),
            recipe=_SSD_RECIPE if trunk_only else _RECIPE,
            license=entry.licence,
            _metrics={
                "ImageNet-1K": {"acc@1": round(100 * top1, 3), "acc@5": round(100 * top5, 3)}
            },
            _ops=round(sum(row.multiply_adds for row in net.rows(224)) / 1e9, 3),
            _file_size=entry.file_mebibytes,
            _docs=(
                "The convolutions alone, with the paper's pre-processing: the published file's "
                "classifier is not a number."
                if trunk_only
                else "Trained from scratch by torchvision, by a simplified recipe."
            ),
        ),
        entry.name,
    )


class WeightsEnum(Enum):
    """The parent of the weight enums; its members' values are `Weights`."""

    _value_: Weights

    @classmethod
    def verify(cls, obj: object) -> Self | None:
        """The member that `obj` is or names; None for None.

        Raises UnknownWeightsError for another name, ArgumentError for anything else.
        """
        if obj is None or isinstance(obj, cls):
            return obj
        name = str(obj).removeprefix(f"{cls.__name__}.")
        # torchvision's own member of the same name means the same file
        if name in cls.__members__ and (isinstance(obj, str) or type(obj).__name__ == cls.__name__):
            return cls[name]
        error = UnknownWeightsError if isinstance(obj, str) else ArgumentError
        raise error(f"{obj!s} is not of {cls.__name__}{nearest(name, cls.__members__)}")

    def get_state_dict(self, progress: bool = True, check_hash: bool = True) -> dict[str, Tensor]:
        """The tensors by key, float32, fetched first where they are not here yet.

        check_hash: accepted for torchvision's sake; the hash is always checked.
        """
        del check_hash
        return loading.read(supply.obtain(self.value.entry, progress)).tensors

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __str__ = __repr__

    @property
    def url(self) -> str:
        return self.value.url

    @property
    def transforms(self) -> Callable[..., ImageClassification]:
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        return self.value.meta


def _enums() -> Iterator[tuple[str, type[WeightsEnum]]]:
    """For each network that torchvision published weights of, the enum of them, the default first."""
    for network in NETWORKS:
        members = [
            (one.release, _published(name))
            for name, one in catalog.ENTRIES.items()
            if one.network == network and one.release.startswith("IMAGENET1K_")
        ]
        if members:
            members.append(("DEFAULT", members[0][1]))
            made: Any = WeightsEnum  # mypy knows no enum that is made by a call of its parent
            enum = made(f"{network.upper()}_Weights", members, module=__name__)
            enum.__doc__ = (
                f"The weights of {network} that torchvision published, the default first."
            )
            yield network, enum


ENUMS = dict(_enums())

# The addresses by name, which torchvision had here until its 0.13.
model_urls = {name: enum["DEFAULT"].url for name, enum in ENUMS.items()}

WeightsLike = WeightsEnum | str | os.PathLike[str]


class Around(TypedDict, total=False):
    """What can be chosen around a named network; the defaults are the weights' own, if any.

    num_classes (1000), in_channels (3), head ("classic"), layers (of head "gap"), width (1.0), pool
    ("max"): see `verydeep.nets.network`. dropout (0.5): after the hidden FC layers. init_weights
    (True): torchvision's initialisation, else torch's own for each layer; for a network without
    weights.
    """

    num_classes: int
    in_channels: int
    head: str
    layers: str | Iterable[str]
    width: float
    pool: str
    dropout: float
    init_weights: bool


class Builder:
    """The function of the door that builds the network `name`.

    It has what torchvision's functions have: a name, a docstring, a signature; and is pickled by name.
    """

    def __init__(self, name: str) -> None:
        column, batch_norm = NETWORKS[name]
        enum = ENUMS.get(name)
        published = f"a member of {enum.__name__} or its name, " if enum else ""
        builtin = '"builtin" (the real convolutions, with a "gap" head of its own classes), '
        self.__name__ = self.__qualname__ = name
        about = f"column {column}{' with batch norm' * batch_norm}"
        self.__doc__ = f"""The paper's {about} (arXiv:1409.1556, table 1).

    weights: {published}the path of a model file or of weights in any layout that verydeep reads,
    {builtin * (name == "vgg16")}or None for random ones.
    progress: a bar on stderr while weights are fetched.
    pretrained: the old spelling of weights="DEFAULT"; deprecated.
    choices: see `verydeep.models.vgg.Around`. With weights, other `num_classes`, `in_channels` or
    `head` than theirs make new FC layers or adapt the first filters, and a warning says so.

    Returns the module in training mode, as torchvision does: call `.eval()` before inference.
    Raises NetworkError for what the table does not have, WeightsError for weights that are not this
    network's, ArgumentError for a keyword that is none of these.
    """

    def __call__(
        self,
        weights: WeightsLike | bool | None = None,
        progress: bool = True,
        *,
        pretrained: bool | None = None,
        **choices: Unpack[Around],
    ) -> VGG:
        name = self.__name__
        if isinstance(weights, bool):  # torchvision's old first argument
            weights, pretrained = None, weights
        if pretrained is not None:
            if weights is not None:
                raise WeightsError(
                    f"{name}: weights and pretrained were both given; give weights alone"
                )
            instead = 'weights="DEFAULT"' if pretrained else "weights=None"
            errors.warn(f"{name}: pretrained={pretrained} is deprecated; write {instead}")
            weights = "DEFAULT" if pretrained else None
        wanted, dropout = partial(_chosen, name, choices), choices.get("dropout", 0.5)
        if weights is not None:
            dtype = torch.get_default_dtype()  # as torchvision's
            return trained(name, weights, wanted, progress=progress, dropout=dropout, dtype=dtype)
        model = VGG.of(wanted(nets.network(name)), dropout=dropout)
        if choices.get("init_weights", True):
            initialise(model)
        return model

    def __repr__(self) -> str:
        return f"<function {self.__name__}>"

    def __reduce__(self) -> str:
        return self.__name__

    @property
    def __signature__(self) -> Signature:
        """That of a call. Its weights are torchvision's own enum where torchvision is imported, because its
        `get_model_weights` looks there and takes no other."""
        name = getattr(ENUMS.get(self.__name__), "__name__", "")
        enum = getattr(sys.modules.get("torchvision.models"), name, ENUMS.get(self.__name__))
        call = signature(self.__call__)
        one = call.parameters["weights"].replace(annotation=enum | str | os.PathLike | bool | None)
        return call.replace(parameters=[one, *[*call.parameters.values()][1:]])


def _chosen(name: str, choices: Around, of: Network) -> Network:
    """The network that was asked for: what was not chosen is as in `of`, or as in the paper."""
    unknown = set(choices) - set(Around.__annotations__)
    if unknown:
        known = ", ".join(Around.__annotations__)
        raise ArgumentError(f"{name} takes no {', '.join(sorted(unknown))}; expected: {known}")
    head = of.head if of.head.classes else nets.Head()
    kind: Any = choices.get("head", head.kind)
    pool: Any = choices.get("pool", of.pool)
    layers: Any = choices.get("layers", head.layers if kind == head.kind else ())
    return replace(
        of,
        width=choices.get("width", of.width),
        channels=() if "width" in choices else of.channels,
        in_channels=choices.get("in_channels", of.in_channels),
        pool=pool,
        head=nets.Head(kind, choices.get("num_classes", head.classes), layers),
    )


def trained(
    name: str,
    weights: WeightsLike,
    network: Callable[[Network], Network],
    *,
    taps: tuple[str, ...] = (),
    progress: bool = True,
    dropout: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> VGG:
    """The module of these weights, which are fetched where that is needed.

    network: makes of the weights' network the one that is wanted; one warning says what is new in it.
    taps: where given, only what these layers need is read.
    Raises WeightsError where the weights are not those of the network `name`.
    """
    builtin = builtin_models().get(weights) if isinstance(weights, str) else None
    path = builtin or _located(name, weights, progress)
    given = loading.read(path, name, taps=taps)
    if given.network.name != name:
        raise WeightsError(f"{name}: weights {weights!s} are those of {given.network.name}")
    wanted = network(given.network)
    if wanted != given.network:
        given, notes = adapt(given, wanted)
        if notes:
            errors.warn(f"{name}: {'; '.join(notes)}")
    return loading.assemble(given, dropout=dropout, dtype=dtype)


def _located(name: str, weights: WeightsLike, progress: bool) -> Path:
    """The file of these weights for the network `name`, fetched where that is needed; none built in."""
    enum = ENUMS.get(name)
    if not isinstance(weights, str | os.PathLike):
        member = enum.verify(weights) if enum else None
        if member is None:
            raise UnknownWeightsError(f"no weights of {name} were published; give a path, or None")
        return supply.obtain(member.value.entry, progress)
    text = os.fspath(weights)
    known = {key: one.value.entry for key, one in enum.__members__.items()} if enum else {}
    known |= {one.name: one.name for one in catalog.ENTRIES.values() if one.network == name}
    entry = known.get(text.removeprefix(f"{enum.__name__}.") if enum else text)
    if entry is not None:
        return supply.obtain(entry, progress)
    if text in catalog.ENTRIES:  # said before half a gigabyte is fetched
        raise WeightsError(f"{name}: weights {text} are those of {catalog.ENTRIES[text].network}")
    if os.path.exists(text):
        return Path(text)
    raise UnknownWeightsError(
        f"{name}: there are no weights {text!r}; expected the path of a file"
        + (f", or one of: {', '.join(known)}" if known else "; none of this network were published")
    )


def load_state_dict_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    *words: Any,
    **choices: Any,
) -> dict[str, Tensor]:
    """The tensors of the file at an address, float32 by torchvision's key.

    A file of the catalogue is known by its name; it is fetched, verified and kept as all of them are,
    wherever `model_dir` is, and `map_location` is a device or its name. Any other address is left to
    torch.hub's function of this name, with all arguments.
    """
    for one in catalog.ENTRIES.values():
        if url.rpartition("/")[2] in [published.file for published in one.published]:
            tensors = loading.read(supply.obtain(one.name, progress)).tensors
            device = map_location if isinstance(map_location, str | torch.device) else None
            return {key: tensor.to(device) for key, tensor in tensors.items()}
    state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        url, model_dir, map_location, progress, *words, **choices
    )
    return state


def _vgg(*words: Any, **choices: Any) -> VGG:
    """torchvision's builder of builders: `_vgg(cfg, batch_norm, weights, progress, **choices)`.

    Until its 0.13 a name stood before these, and `weights` was whether there are any. `cfg` is a key of
    `cfgs`, one's own too.
    """
    order = ("arch", "cfg", "batch_norm", "weights", "pretrained", "progress")
    words += tuple(choices.pop(key) for key in order if key in choices)
    if len(words) not in (4, 5):
        raise ArgumentError(
            "_vgg takes cfg, batch_norm, weights, progress, and perhaps a name first"
        )
    cfg, batch_norm, weights, progress = words[-4:]
    if not weights:
        return VGG(make_layers(cfgs[cfg], batch_norm), **choices)
    names = {key: name for name, key in NETWORKS.items()}
    return get_model(
        names[cfg, batch_norm],
        weights="DEFAULT" if weights is True else weights,
        progress=progress,
        **choices,
    )


BUILDERS = {name: Builder(name) for name in NETWORKS}

# Both tables are names of this module; those of a row that was added too.
_MADE = {**BUILDERS, **{enum.__name__: enum for enum in ENUMS.values()}}
globals().update(_MADE)
__all__ += [name for name in _MADE if name not in __all__]
if TYPE_CHECKING:
    vgg11 = vgg11_bn = vgg11_lrn = vgg13 = vgg13_bn = vgg16c = vgg16c_bn = Builder("")
    vgg16 = vgg16_bn = vgg19 = vgg19_bn = vgg11
    VGG11_Weights = VGG11_BN_Weights = VGG13_Weights = VGG13_BN_Weights = cast("Any", None)
    VGG16_Weights = VGG16_BN_Weights = VGG19_Weights = VGG19_BN_Weights = cast("Any", None)


def list_models(
    module: ModuleType | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[str]:
    """The names of the models, sorted.

    module: verydeep.models or verydeep.models.vgg, which hold all of them; any other holds none.
    include, exclude: shell patterns such as `*_bn`; a name matches where one of them does.
    """
    if module is not None and module.__name__ not in (__package__, __name__):
        return []

    def matches(name: str, patterns: str | Iterable[str] | None) -> bool:
        patterns = [patterns] if isinstance(patterns, str) else patterns or ()
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return sorted(n for n in NETWORKS if matches(n, include or "*") and not matches(n, exclude))


def get_model_builder(name: str) -> Builder:
    """The function that builds the model of that name, in any case."""
    key = str(name).lower()
    if key not in NETWORKS:
        raise NetworkError(f"network {name!r} is unknown{nearest(key, NETWORKS)}")
    return BUILDERS.get(key) or Builder(key)  # a row that was added since


def get_model(name: str, **config: Any) -> VGG:
    """The model of that name; `config` goes to its builder (weights, num_classes, ...)."""
    return get_model_builder(name)(**config)


def get_model_weights(name: str | Builder) -> type[WeightsEnum]:
    """The enum of a model's published weights, by its name or its builder.

    Raises UnknownWeightsError where none were published.
    """
    name = get_model_builder(name if isinstance(name, str) else name.__name__).__name__
    if name not in ENUMS:
        raise UnknownWeightsError(f"no weights of {name} were published")
    return ENUMS[name]


def get_weight(name: str) -> WeightsEnum:
    """The enum member of that full name, such as "VGG16_Weights.IMAGENET1K_V1"."""
    known = {
        f"{enum.__name__}.{key}": member
        for enum in ENUMS.values()
        for key, member in enum.__members__.items()
    }
    if name not in known:
        raise UnknownWeightsError(f"weights {name!r} are unknown{nearest(str(name), known)}")
    return known[name]
