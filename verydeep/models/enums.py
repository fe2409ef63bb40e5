"""torchvision's weight enums, from the catalogue: `VGG16_Weights.IMAGENET1K_V1` and its kin.

Addresses, accuracy, licence and class names come from `verydeep.published.catalog`, parameters and
operations from the table: nothing is written down twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .. import nets
from ..errors import WeightsError, nearest
from ..preprocess import PRESETS, Preprocess
from ..published import catalog, supply
from . import loading

if TYPE_CHECKING:
    from ..preprocess import ImageLike

_RECIPE = "https://github.com/pytorch/vision/tree/main/references/classification#alexnet-and-vgg"
_SSD_RECIPE = "https://github.com/amdegroot/ssd.pytorch#training-ssd"


@dataclass(frozen=True)
class ImageTransform:
    """What torchvision calls `ImageClassification`: an image to a normalised tensor.

    Calling it on a file, PIL image, array or tensor (channels, height, width) gives float32
    (channels, crop_size, crop_size); on a batch of tensors (n, channels, height, width), a batch.
    Float tensors are taken to lie in 0..1, as torchvision takes them. Images are resized by the
    same code as everywhere in verydeep, which is PIL's.
    """

    preprocess: Preprocess

    def __call__(self, image: ImageLike) -> Tensor:
        if isinstance(image, Tensor) and image.dim() == 4:
            return torch.stack([self(one) for one in image])
        device, limits = None, None
        if isinstance(image, Tensor):
            device, limits = image.device, "0..1" if image.is_floating_point() else None
            image = image.detach().cpu()
        pixels = self.preprocess.pixels(image, range=limits)
        return torch.from_numpy(self.preprocess.normalise(pixels)[0]).to(device=device)

    # the attributes that code written for torchvision reads
    @property
    def mean(self) -> list[float]:
        return list(self.preprocess.mean)

    @property
    def std(self) -> list[float]:
        return list(self.preprocess.std)

    @property
    def crop_size(self) -> list[int | None]:
        return [self.preprocess.crop_size]

    @property
    def resize_size(self) -> list[int | None]:
        return [self.preprocess.resize_size]

    @property
    def interpolation(self) -> str:
        return self.preprocess.interpolation

    @property
    def antialias(self) -> bool:
        return True


def _transform(preset: str, **changes: Any) -> ImageTransform:
    """The transform of a preset; `changes` are fields of Preprocess, such as crop_size=448."""
    return ImageTransform(replace(PRESETS[preset], **changes))


@dataclass(frozen=True)
class Weights:
    """The value of an enum member. url: of the published file. transforms: makes the transform.

    meta: num_params, min_size, categories, recipe, licence, _metrics, _ops (thousand million
    multiply-adds for one image of 224x224), _file_size (MiB), _docs: torchvision's keys, and
    licence.
    """

    url: str
    transforms: Callable[..., ImageTransform]
    meta: dict[str, Any]
    entry: str  # the catalogue's name

    def __eq__(self, other: object) -> bool:
        return self.entry == other.entry if isinstance(other, Weights) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.entry)


def _published(name: str) -> Weights:
    """The enum value of a catalogue entry."""
    entry = catalog.entry(name)
    net = nets.network(entry.network)
    trunk_only = not entry.classes
    metrics = {}
    if entry.accuracy is not None:
        metrics["acc@1"] = round(100 * entry.accuracy.top1, 3)
        metrics["acc@5"] = round(100 * entry.accuracy.top5, 3)
    return Weights(
        entry.url,
        partial(_transform, entry.preprocess),
        {
            "num_params": net.parameters,
            "min_size": (net.minimum_size, net.minimum_size),
            "categories": None if trunk_only else list(catalog.class_names()),
            "recipe": _SSD_RECIPE if trunk_only else _RECIPE,
            "licence": entry.licence,
            "_metrics": {"ImageNet-1K": metrics},
            "_ops": round(sum(row.multiply_adds for row in net.rows(224)) / 1e9, 3),
            "_file_size": round(4 * net.parameters / 2**20, 3),
            "_docs": (
                "The convolutions alone, with the paper's pre-processing: the published file's "
                "classifier is not a number."
                if trunk_only
                else "Trained from scratch by torchvision, by a simplified recipe."
            ),
        },
        entry.name,
    )


class WeightsEnum(Enum):
    """The parent of the weight enums; its members' values are `Weights`."""

    @classmethod
    def verify(cls, obj: object) -> Self | None:
        """The member that `obj` is or names; None for None. Raises WeightsError for anything else."""
        if obj is None or isinstance(obj, cls):
            return obj
        name = str(obj).removeprefix(f"{cls.__name__}.")
        # torchvision's own member of the same name means the same file
        if name in cls.__members__ and (isinstance(obj, str) or type(obj).__name__ == cls.__name__):
            return cls[name]
        raise WeightsError(f"{obj!s} is not of {cls.__name__}{nearest(name, cls.__members__)}")

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
        return str(self.value.url)

    @property
    def transforms(self) -> Callable[..., ImageTransform]:
        transforms: Callable[..., ImageTransform] = self.value.transforms
        return transforms

    @property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = self.value.meta
        return meta


class VGG11_Weights(WeightsEnum):  # noqa: N801  (torchvision's names)
    IMAGENET1K_V1 = _published("vgg11")
    DEFAULT = IMAGENET1K_V1


class VGG11_BN_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg11_bn")
    DEFAULT = IMAGENET1K_V1


class VGG13_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg13")
    DEFAULT = IMAGENET1K_V1


class VGG13_BN_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg13_bn")
    DEFAULT = IMAGENET1K_V1


class VGG16_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg16")
    IMAGENET1K_FEATURES = _published("vgg16_features")
    DEFAULT = IMAGENET1K_V1


class VGG16_BN_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg16_bn")
    DEFAULT = IMAGENET1K_V1


class VGG19_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg19")
    DEFAULT = IMAGENET1K_V1


class VGG19_BN_Weights(WeightsEnum):  # noqa: N801
    IMAGENET1K_V1 = _published("vgg19_bn")
    DEFAULT = IMAGENET1K_V1


# The networks that somebody published weights of, with their enums.
ENUMS: dict[str, type[WeightsEnum]] = {
    enum["DEFAULT"].value.entry: enum for enum in WeightsEnum.__subclasses__()
}
