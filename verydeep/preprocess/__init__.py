"""The road from an image, in whatever form it comes, to the pixels that a network was trained on.

Each set of weights goes with one `Preprocess` record; the record belongs to the weights, not to the
network. `Preprocess.pixels` gives the same pixels for a file, a PIL image, an array and a tensor of
one image, and for 8-bit images they are those of torchvision's ``weights.transforms()`` on a PIL
image, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, PreprocessError, is_number, is_whole, require
from ..files.strict_json import members
from .decoding import (
    RANGES,
    ImageLike,
    Pixels,
    Range,
    decode,
    decoded,
    limits,
    name_of,
    pixel_limit,
    several,
)

if TYPE_CHECKING:  # PIL takes 20 ms to load: it is not needed for the record alone
    from PIL import Image

__all__ = [
    "CAFFE", "FEATURES", "LPIPS", "PRESETS", "RANGES", "TORCHVISION", "ImageLike", "Preprocess",
    "Range", "Size", "decode", "decoded", "limits", "several", "sized",
]  # fmt: skip

RESIZES = ("shorter", "exact", "none")
# PIL.Image.Resampling
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
CHANNEL_ORDERS = {"RGB": 3, "BGR": 3, "L": 1}

# How many times as large as what it is resized to, a side, a photo must be to be decoded smaller in int8.
LARGE = 4

# Rec. 601 luma, the weights of PIL's convert("L").
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input: resize, centre crop, channels, range, mean, std.

    The defaults are those of torchvision's ImageNet weights (`torchvision.models.VGG16_Weights`).

    - resize: "shorter" makes the shorter side `resize_size` and the longer torchvision's truncation,
      `int(resize_size * longer / shorter)`; "exact" makes both sides `resize_size`, or height and
      width where it is two numbers; "none" resizes nothing, and then `resize_size` is None.
    - crop_size: side of the centre crop, with torchvision's rounding. Where the image is smaller, it
      is padded with black. None: no crop.
    - interpolation: PIL's filter of that name.
    - channel_order: the order in which the network takes the channels; "L" is one grey channel (Rec.
      601 luma, as PIL has it).
    - range: what 0 and 255 are mapped onto before `mean` is subtracted and the result divided by
      `std`, both in `channel_order`.
    - detail: of a network that has seen nothing but small images made larger: an image whose shorter
      side has more pixels is first made that small, since it would show details that mean nothing
      to such a network. None for all the details there are.

    Raises PreprocessError where values do not make sense.
    """

    resize: Literal["shorter", "exact", "none"] = "shorter"
    resize_size: int | tuple[int, int] | None = 256
    crop_size: int | None = 224
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = (
        "bilinear"
    )
    channel_order: Literal["RGB", "BGR", "L"] = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    detail: int | None = None

    def __post_init__(self) -> None:
        require("resize", self.resize, RESIZES, PreprocessError)
        require("interpolation", self.interpolation, INTERPOLATIONS, PreprocessError)
        require("channel_order", self.channel_order, CHANNEL_ORDERS, PreprocessError)
        stretched = self.resize == "exact" and self.crop_size is None
        for name in ("crop_size", "resize_size", "detail"):
            value = getattr(self, name)
            if name == "resize_size" and stretched and _is_pair(value):
                object.__setattr__(self, name, tuple(map(int, value)))
            elif is_whole(value, 1):
                object.__setattr__(self, name, int(value))  # it may be numpy's
            elif value is not None:
                raise PreprocessError(
                    f"{name} is {value!r}; expected a whole number of pixels, at least 1"
                )
        if (self.resize == "none") != (self.resize_size is None):
            raise PreprocessError(
                f"resize is {self.resize!r} with resize_size {self.resize_size!r}; "
                "expected a size in pixels, or resize 'none' with resize_size None"
            )
        channels = CHANNEL_ORDERS[self.channel_order]
        for name, count in (("range", 2), ("mean", channels), ("std", channels)):
            values = getattr(self, name)
            if (
                not isinstance(values, tuple | list)
                or len(values) != count
                or not all(map(is_number, values))
            ):
                raise PreprocessError(
                    f"{name} is {values!r}; expected {count} finite number{'s'[: count - 1]}"
                )
            # A frozen record that came from JSON has lists; equality and hashing want tuples.
            object.__setattr__(self, name, tuple(map(float, values)))
        if self.range[0] >= self.range[1]:
            raise PreprocessError(
                f"range is {self.range}; expected (what 0 becomes, what 255 becomes)"
            )
        if min(self.std) <= 0:
            raise PreprocessError(f"std is {self.std}; expected numbers above 0, one a channel")

    def to_dict(self) -> dict[str, object]:
        """The record as JSON has it: every field, lists for tuples; `detail` only where it is set.

        "antialias" is always true: the filter grows with the scale. Old records had a choice.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.detail is None:
            del values["detail"]
        return {**values, "antialias": True}

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> Preprocess:
        """The inverse of `to_dict`. PreprocessError for unknown or missing keys, wrong values."""
        keys = (*cls.__dataclass_fields__, "antialias")
        values = members(record, keys, "pre-processing record", PreprocessError, ("detail",))
        if values.pop("antialias") is not True:
            raise PreprocessError(
                f"antialias is {record['antialias']!r}; expected true, since the filter always grows "
                "with the scale: this verydeep has no resize without"
            )
        return cls(**values)

    def pixels(self, image: ImageLike, *, range: Range = None, precision: str = "exact") -> Pixels:
        """One image, decoded (see `decode` for what is taken), resized and cropped.

        Returns a new array (height, width, 3) in RGB order, whatever `channel_order` says, or
        (height, width, 1) for "L": uint8, or float32 on the same scale, 0 to 255, for images of
        more than 8 bits.
        range: the values that mean black and white, as in `decode`.
        precision: what the scores are to keep. In "exact" and "fast" all pixels are Pillow's: one in ten
        thousand that is rounded otherwise moves features by 1e-3. In "half" and "int8" nothing is resized
        that the crop cuts off, which does that. In "int8" a large JPEG file is decoded at a half, a quarter
        or an eighth of its size, too, which moves them by up to 8e-2.
        ImageError where the image cannot be used.
        """
        spare = self._spare if precision == "int8" else None
        as_it_is = self.resize == "none" and self.detail is None and self.channel_order != "L"
        source = (
            decoded(image, range=range) if as_it_is else decode(image, range=range, spare=spare)
        )
        if self.channel_order == "L":
            source = (
                source @ _LUMA[:, None] if isinstance(source, np.ndarray) else source.convert("L")
            )
        height, width = (
            source.shape[:2] if isinstance(source, np.ndarray) else (source.height, source.width)
        )
        new = self._resized_size(height, width)
        if new[0] * new[1] > pixel_limit():
            raise ImageError(
                f"{name_of(image)}: {width} x {height} pixels would be resized to {new[1]} x "
                f"{new[0]}, more than {pixel_limit()} pixels; crop it first, or ask for a smaller size"
            )
        try:
            if self.detail is not None and self.detail < min(height, width):
                scale = self.detail / min(height, width)
                small = max(1, round(scale * height)), max(1, round(scale * width))
                source = self._scaled(source, small)
            elif precision in ("half", "int8") and self._is_cut(source, new):
                return np.array(self._middle(source, new))
            # an array of its own, since PIL's is read-only
            return np.array(_centre_crop(self._scaled(source, new), self.crop_size))
        except MemoryError as error:
            raise ImageError(
                f"{name_of(image)}: not enough memory to resize it; ask for a smaller size"
            ) from error

    def _spare(self, width: int, height: int) -> int:
        """By how much a JPEG file of that size may be decoded smaller: 8, 4, 2, or 1 for not at all.

        It then is still `LARGE`, and no part of a pixel is lost at its edges.
        """
        if self.detail is not None or isinstance(self.resize_size, tuple):
            return 1
        most = min(width, height) / min(self._resized_size(height, width)) / LARGE
        return next((n for n in (8, 4, 2) if n <= most and width % n == height % n == 0), 1)

    def _is_cut(self, source: Image.Image | Pixels, new: tuple[int, int]) -> TypeGuard[Image.Image]:
        """Whether its crop can be resized alone: it is made smaller, and something is cut off.

        Of what is much taller than wide Pillow 13 resizes the height first, but the width of its middle,
        which rounds otherwise everywhere.
        """
        if self.crop_size is None or isinstance(source, np.ndarray):
            return False
        width, height = source.size
        smaller = min(height / new[0], width / new[1]) >= 2 and self.interpolation != "nearest"
        return smaller and height <= 1.5 * width and max(new) > self.crop_size <= min(new)

    def _middle(self, source: Image.Image, new: tuple[int, int]) -> Pixels:
        """The centre crop of the image resized to `new`, of which nothing else is computed."""
        size, ends = self.crop_size or 0, []
        for length, whole in (source.width, new[1]), (source.height, new[0]):
            first = -margins(whole, size)[0]
            ends.append((first * length / whole, min(length, (first + size) * length / whole)))
        (left, right), (top, bottom) = ends
        return self._scaled(source, (size, size), (left, top, right, bottom))

    def _scaled(
        self,
        source: Image.Image | Pixels,
        new: tuple[int, int],
        box: tuple[float, float, float, float] | None = None,
    ) -> Pixels:
        """(height, width, channels) of that size; read-only where it comes from PIL.

        box: left, top, right and bottom of the part of a PIL image that is meant; None for all of it.
        """
        how = INTERPOLATIONS[self.interpolation]
        if not isinstance(source, np.ndarray):
            as_it_is = box is None and source.size == new[::-1]
            array = np.asarray(source if as_it_is else source.resize(new[::-1], how, box))
            return array if array.ndim == 3 else array[..., None]
        if source.shape[:2] == new:
            return source
        from PIL import Image

        # PIL resizes floats one channel at a time. In 8 bits it resizes the width, clips, and then
        # the height; clipping here too keeps bicubic and Lanczos, which overshoot, within 2 of 255
        # of that. (In images much taller than wide Pillow 13 does the height first.)
        for size in (new[1], source.shape[0]), (new[1], new[0]):
            planes = [Image.fromarray(np.ascontiguousarray(p)) for p in np.moveaxis(source, -1, 0)]
            resized = [np.asarray(plane.resize(size, how)) for plane in planes]
            source = np.stack(resized, axis=-1).clip(0, 255)
        return source

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        size = self.resize_size
        if size is None or isinstance(size, tuple):
            return size or (height, width)
        if self.resize == "exact":
            return size, size
        longer = int(size * max(height, width) / min(height, width))  # torchvision truncates
        return (size, longer) if height < width else (longer, size)

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of every image that this prepares; None where images keep their own."""
        if self.crop_size is not None:
            return self.crop_size, self.crop_size
        return self._resized_size(1, 1) if self.resize == "exact" else None

    def normalise(self, pixels: Pixels) -> NDArray[np.float32]:
        """Pixels (n, h, w, c) or (h, w, c) to the network's input (n, c, h, w), float32.

        The pixels are uint8, or float32 on the same scale, in RGB order (c = 3) or grey (c = 1, for
        "L"). A single image becomes a batch of one. This is the reference for what the graph does
        inside. ImageError for another shape or dtype.
        """
        channels = CHANNEL_ORDERS[self.channel_order]
        if pixels.ndim not in (3, 4) or pixels.shape[-1] != channels:
            raise ImageError(
                f"pixels of shape {pixels.shape}; expected (n, height, width, {channels}) or "
                f"(height, width, {channels}), as Preprocess.pixels gives"
            )
        if pixels.dtype not in (np.uint8, np.float32):
            raise ImageError(
                f"pixels of {pixels.dtype}; expected uint8, or float32 from 0 to 255, "
                "as Preprocess.pixels gives"
            )
        batch = pixels if pixels.ndim == 4 else pixels[None]
        if self.channel_order == "BGR":
            batch = batch[..., ::-1]
        low, high = self.range
        # In this order, (0, 1) is torchvision's x / 255 to the last bit, and (0, 255) changes
        # nothing.
        values = batch.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        values *= np.float32(high - low)
        values /= np.float32(255)
        values += np.float32(low)
        values -= np.array(self.mean, np.float32)[:, None, None]
        values /= np.array(self.std, np.float32)[:, None, None]
        return values


def _centre_crop(pixels: Pixels, size: int | None) -> Pixels:
    """The middle size x size of (h, w, c), or the whole amid zeros where it is smaller."""
    if size is None:
        return pixels
    height, width, _ = pixels.shape
    (top, bottom), (left, right) = margins(height, size), margins(width, size)
    pixels = pixels[max(0, -top) : height + min(0, bottom), max(0, -left) : width + min(0, right)]
    around = [(max(0, top), max(0, bottom)), (max(0, left), max(0, right)), (0, 0)]
    return np.pad(pixels, around) if max(bottom, right) > 0 else pixels


def margins(length: int, size: int) -> list[int]:
    """What is to be added before and after `length` to be `size`; below zero, cut off.

    Rounding as torchvision's ``transforms.functional.center_crop``: half to even when it cuts, and
    the odd row or column of padding at the end. torch.jit can script it.
    """
    spare = size - length
    before = spare // 2 if spare > 0 else -int(round(-spare / 2))  # noqa: RUF046  (script's is a float)
    return [before, spare - before]


# At what size an image is looked at, in one word

# None          as the model's record says: its resize, its crop
# 224           the same for another size, the resize in proportion to the crop
# (480, 640)    height and width; the image is stretched to them, nothing is cut away
# "own"         the image as it is, neither resized nor cropped
Size: TypeAlias = "int | tuple[int, int] | Literal['own'] | None"


def sized(preprocess: Preprocess, size: Size) -> Preprocess:
    """The record for images of that size; PreprocessError where it is none, or nothing to be resized.

    A number becomes `crop_size`, with `resize_size` in proportion: 256 and 224 with size 448 become 512 and
    448. Without a crop it becomes `resize_size`.
    """
    if size is None:
        return preprocess
    if size == "own":
        return replace(preprocess, resize="none", resize_size=None, crop_size=None, detail=None)
    if _is_pair(size):
        return replace(preprocess, resize="exact", resize_size=size, crop_size=None)
    if not is_whole(size, 1):
        raise PreprocessError(
            f'size is {size!r}; expected pixels a side, (height, width), "own", or None for the '
            "model's own resize"
        )
    size = int(size)  # numpy's of 8 bits would overflow below
    resize, crop = preprocess.resize_size, preprocess.crop_size
    if resize is None and crop is None:
        raise PreprocessError(
            f"size {size!r} for a record that neither resizes nor crops; "
            "resize the images, or give a record that does"
        )
    if crop is None or isinstance(resize, tuple):
        return replace(preprocess, resize_size=size)
    in_proportion = resize and max(1, round(resize * size / crop))
    return replace(preprocess, resize_size=in_proportion, crop_size=size)


def _is_pair(value: object) -> TypeGuard[tuple[int, int]]:
    """Whether it is a height and a width."""
    return (
        isinstance(value, tuple | list) and len(value) == 2 and all(is_whole(v, 1) for v in value)
    )


# Records of published weights, below the checks that they pass through

# torchvision 0.29, models/vgg.py: VGG*_Weights.IMAGENET1K_V1
TORCHVISION = Preprocess()

# torchvision 0.29, models/vgg.py: VGG16_Weights.IMAGENET1K_FEATURES, the paper's own convolutions
FEATURES = Preprocess(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))

# The Oxford release's deploy files: BGR means, nothing divided. Keras's mode "caffe" has the same.
CAFFE = Preprocess(
    channel_order="BGR", range=(0.0, 255.0), mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
)

# LPIPS, lpips/lpips.py, ScalingLayer (arXiv:1801.03924): the images as they are
LPIPS = Preprocess(
    resize="none",
    resize_size=None,
    crop_size=None,
    range=(-1.0, 1.0),
    mean=(-0.030, -0.088, -0.188),
    std=(0.458, 0.448, 0.450),
)

PRESETS: dict[str, Preprocess] = {
    "torchvision": TORCHVISION,
    "features": FEATURES,
    "caffe": CAFFE,
    "lpips": LPIPS,
}
