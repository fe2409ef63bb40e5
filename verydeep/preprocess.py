"""The road from an image, in whatever form it comes, to the pixels that a network was trained on.

Each set of weights goes with one `Preprocess` record; the record belongs to the weights, not to the
network. `Preprocess.pixels` gives the same pixels for a file, a PIL image, an array and a tensor of
one image, and for 8-bit images they are those of torchvision's ``weights.transforms()`` on a PIL
image, to the last bit.

JPEG files are always decoded in full. libjpeg's draft mode would decode a large photo at a half or
a quarter of its size, and sooner, but its reduction is not the resize that the record names: the
pixels, and so the scores, would depend on the size and the format of the file.
"""

from __future__ import annotations

import builtins
import io
import math
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, PreprocessError, nearest

if (
    TYPE_CHECKING
):  # PIL takes 20 ms to load and torch a second: neither is needed for the record alone
    from PIL import Image
    from torch import Tensor

__all__ = [
    "CAFFE",
    "FEATURES",
    "LPIPS",
    "PRESETS",
    "RANGES",
    "TORCHVISION",
    "ImageLike",
    "Preprocess",
    "Range",
    "Size",
    "decode",
    "decoded",
    "limits",
    "parse_size",
    "several",
    "sized",
]

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor"
Pixels: TypeAlias = NDArray[Any]  # uint8, or float32 on the same scale, 0 to 255
Range: TypeAlias = "str | Sequence[float] | None"  # a name of RANGES, or (black, white)

# the values of black and white, by the names that people give them
RANGES: dict[str, tuple[float, float]] = {"0..255": (0, 255), "0..1": (0, 1), "-1..1": (-1, 1)}

# how far beyond its range a value may lie by rounding alone, in widths of the range
ROUNDING = 1e-5

RESIZES = ("shorter", "exact", "none")
INTERPOLATIONS = (
    "nearest",
    "bilinear",
    "bicubic",
    "lanczos",
)  # PIL's numbers for them: `_PIL_FILTERS`
CHANNEL_ORDERS = {"RGB": 3, "BGR": 3, "L": 1}

# PIL.Image.Resampling, by number so that the record does not need PIL.
_PIL_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}

# EXIF 2.3, tag 0x0112: orientation to PIL.Image.Transpose, as PIL.ImageOps.exif_transpose has it.
_ORIENTATION = 0x0112
_TRANSPOSES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

# Rec. 601 luma, the weights of PIL's convert("L").
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_BICUBIC_A = -0.75  # torch's and OpenCV's; PIL, which filters, has -0.5

# PIL's formats by whose decoders an image never comes: EPS runs Ghostscript, the others are stubs.
_NOT_FOR_US = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")  # what PIL loads at once; the rest costs 20 ms more

# What a file that PIL cannot identify begins with, and what that tells the person.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "a damaged JPEG; fetch or export it again"),
    (0, b"\x89PNG", "a damaged PNG; fetch or export it again"),
    (0, b"GIF8", "a damaged GIF; fetch or export it again"),
    (8, b"WEBP", "a damaged WebP; fetch or export it again"),
    (4, b"ftyphe", "HEIC; convert it to JPEG or PNG"),
    (4, b"ftypmif1", "HEIC; convert it to JPEG or PNG"),
    (4, b"ftyp", "a video; export a frame as JPEG or PNG"),
    (0, b"%PDF", "a PDF; export the page as PNG"),
    (0, b"%!PS", "PostScript; export it as PNG"),
    (0, b"<svg", "SVG; export it as PNG"),
    (0, b"<?xml", "XML or SVG; export it as PNG"),
    (0, b"<!doctype html", "a web page, perhaps a failed download; fetch the image again"),
    (0, b"<html", "a web page, perhaps a failed download; fetch the image again"),
    (0, b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it"),
    (0, b"\x93NUMPY", "a NumPy array; load it with numpy.load and give the array"),
)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input: resize, centre crop, channels, range, mean, std.

    The defaults are those of torchvision's ImageNet weights (``torchvision.models.VGG16_Weights``).

    resize: "shorter" makes the shorter side `resize_size` and the longer ``int(resize_size * longer
        / shorter)``, torchvision's truncation; "exact" makes both sides `resize_size`; "none"
        resizes nothing, and then `resize_size` is None.
    crop_size: side of the centre crop, with torchvision's rounding. Where the image is smaller, it
        is padded with black. None: no crop.
    interpolation: PIL's filter of that name.
    antialias: False takes the two (bilinear) or four (bicubic) nearest pixels only, whatever the
        scale, within 1 of 255 of what torchvision does to a tensor with ``antialias=False``. On a
        PIL image torchvision ignores its ``antialias`` and always filters; this record does as it
        says, on every kind of image. It makes no difference to "nearest"; "lanczos" has no such
        form.
    channel_order: the order in which the network takes the channels; "L" is one grey channel (Rec.
        601 luma, as PIL has it).
    range: what 0 and 255 are mapped onto before `mean` is subtracted and the result divided by
        `std`, both in `channel_order`.
    detail: of a network that has seen nothing but small images made larger: an image whose shorter
        side has more pixels is first made that small, since it would show details that mean nothing
        to such a network. None for all the details there are.

    Raises PreprocessError where values do not make sense.
    """

    resize: Literal["shorter", "exact", "none"] = "shorter"
    resize_size: int | None = 256
    crop_size: int | None = 224
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    channel_order: Literal["RGB", "BGR", "L"] = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    detail: int | None = None

    def __post_init__(self) -> None:
        _one_of("resize", self.resize, RESIZES)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("channel_order", self.channel_order, CHANNEL_ORDERS)
        if not isinstance(self.antialias, bool):
            raise PreprocessError(f"antialias is {self.antialias!r}; expected true or false")
        if self.interpolation == "lanczos" and not self.antialias:
            raise PreprocessError(
                "antialias is false with interpolation 'lanczos', which always filters; "
                "set antialias to true, or interpolation to 'bicubic'"
            )
        _size("crop_size", self.crop_size)
        _size("resize_size", self.resize_size)
        _size("detail", self.detail)
        if (self.resize == "none") != (self.resize_size is None):
            raise PreprocessError(
                f"resize is {self.resize!r} with resize_size {self.resize_size!r}; "
                "expected a size in pixels, or resize 'none' with resize_size None"
            )
        channels = CHANNEL_ORDERS[self.channel_order]
        for name, count in (("range", 2), ("mean", channels), ("std", channels)):
            # A frozen record that came from JSON has lists; equality and hashing want tuples.
            object.__setattr__(self, name, _numbers(name, getattr(self, name), count))
        if self.range[0] >= self.range[1]:
            raise PreprocessError(
                f"range is {self.range}; expected (what 0 becomes, what 255 becomes)"
            )
        if min(self.std) <= 0:
            raise PreprocessError(f"std is {self.std}; expected numbers above 0, one a channel")

    def to_dict(self) -> dict[str, object]:
        """The record as JSON has it: every field, lists for tuples; `detail` only where it is set."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if (key, value) != ("detail", None)
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> Preprocess:
        """The inverse of `to_dict`. PreprocessError for unknown or missing keys, wrong values."""
        if not isinstance(record, Mapping):
            raise PreprocessError(
                f"the pre-processing record is a {type(record).__name__}; expected an object with "
                "the keys that Preprocess.to_dict() writes"
            )
        names = [field.name for field in fields(cls)]
        for key in record:
            if key not in names:
                raise PreprocessError(
                    f"unknown key {key!r} in the pre-processing record{nearest(str(key), names)}"
                )
        missing = [name for name in names if name not in record and name != "detail"]
        if missing:
            raise PreprocessError(
                f"the pre-processing record lacks {', '.join(missing)}; "
                "write it with Preprocess.to_dict(), which gives every key"
            )
        return cls(**record)  # type: ignore[arg-type]  # __post_init__ checks them

    def with_size(self, size: int) -> Preprocess:
        """The record for inputs of `size` pixels: `crop_size`, with `resize_size` in proportion.

        256 and 224 with size 448 become 512 and 448. Without a crop, `resize_size` becomes `size`.
        PreprocessError where the record has neither.
        """
        _size("size", size)
        if size is None or (self.resize_size is None and self.crop_size is None):
            raise PreprocessError(
                f"size {size!r} for a record that neither resizes nor crops; "
                "resize the images, or give a record that does"
            )
        if self.crop_size is None:
            return replace(self, resize_size=size)
        if self.resize_size is None:
            return replace(self, crop_size=size)
        resize_size = max(1, round(self.resize_size * size / self.crop_size))
        return replace(self, resize_size=resize_size, crop_size=size)

    def pixels(self, image: ImageLike, *, range: Range = None) -> Pixels:
        """One image, decoded (see `decode` for what is taken), resized and cropped.

        Returns a new array (height, width, 3) in RGB order, whatever `channel_order` says, or
        (height, width, 1) for "L": uint8, or float32 on the same scale, 0 to 255, for images of
        more than 8 bits.
        range: the values that mean black and white, as in `decode`.
        ImageError where the image cannot be used.
        """
        source = decode(image, range=range)
        if self.channel_order == "L":
            source = (
                source @ _LUMA[:, None] if isinstance(source, np.ndarray) else source.convert("L")
            )
        try:
            resized = self._resize(source, _name(image))
        except MemoryError as error:
            raise ImageError(
                f"{_name(image)}: not enough memory to resize it; scale it down first"
            ) from error
        cropped = _centre_crop(resized, self.crop_size)
        return np.array(cropped)  # a copy: what comes from PIL is read-only

    def _resize(self, source: Image.Image | Pixels, name: str) -> Pixels:
        """(height, width, channels), resized by PIL, or by `_gather` where nothing is filtered."""
        if isinstance(source, np.ndarray):
            height, width = source.shape[:2]
        else:
            width, height = source.size
        new = self._resized_size(height, width)
        if new[0] * new[1] > _pixel_limit():
            raise ImageError(
                f"{name}: {width} x {height} pixels would be resized to {new[1]} x {new[0]}, more "
                f"than {_pixel_limit()} pixels; crop it first"
            )
        if self.detail is not None and self.detail < min(height, width):
            scale = self.detail / min(height, width)
            small = max(1, round(scale * height)), max(1, round(scale * width))
            return self._scaled(self._scaled(source, small), new)
        return _as_array(source) if new == (height, width) else self._scaled(source, new)

    def _scaled(self, source: Image.Image | Pixels, new: tuple[int, int]) -> Pixels:
        if not self.antialias and self.interpolation != "nearest":
            return _gather(_as_array(source), new, self.interpolation)
        how = _PIL_FILTERS[self.interpolation]
        if not isinstance(source, np.ndarray):
            return _as_array(source.resize(new[::-1], how))
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
        if size is None:
            return height, width
        if self.resize == "exact":
            return size, size
        longer = int(size * max(height, width) / min(height, width))  # torchvision truncates
        return (size, longer) if height < width else (longer, size)

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


def decode(source: ImageLike, *, range: Range = None) -> Image.Image | NDArray[np.float32]:
    """One image in RGB: a PIL image, or float32 (h, w, 3) from 0 to 255 where 8 bits are too few.

    source is one of:

    - a path, or the bytes of an image file. The first frame of an animation.
    - a PIL image of any mode. The frame it is at.
    - an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or whatever offers
      ``__array_interface__``, ``__array__`` or ``__dlpack__``.
    - a torch tensor, channels first as torch has them: (h, w), (1, h, w), (3, h, w) or (4, h, w).

    range is (black, white), the values that 0 and 255 stand for. Without it uint8 goes from 0
    to 255 and uint16 and 16-bit grey files from 0 to 65535 (each value divided by 257); floats have
    no scale that can be known, so arrays and files of floats are refused without it, as are other
    integers. Values that are not finite or outside the range are refused.

    EXIF orientation is applied, to files and PIL images. Alpha is dropped, not blended: what the
    file stores under the transparent pixels shows, as with PIL's ``convert("RGB")``, which
    torchvision's users write, and often it is black. Grey becomes three equal channels. Palette,
    CMYK, YCbCr, HSV and LAB are converted; colour profiles are not applied. PIL reads 16-bit colour
    files as 8-bit.

    The source is not changed. A PIL image that is RGB and upright is returned as it is.
    Raises ImageError, one line that begins with the file's name, for anything that is not an image:
    missing, a folder, not permitted, empty, another format, cut short, damaged, too large.
    """
    from PIL import Image

    name = _name(source)
    if isinstance(source, Image.Image):
        with _quiet():
            return _upright_rgb(source, range, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode_file(io.BytesIO(source), range, name)
    if isinstance(source, (str, os.PathLike)):
        with _open(source, name) as file:
            return _decode_file(file, range, name)
    pixels = _array_pixels(_to_array(source, name), range, name)
    return pixels if pixels.dtype != np.uint8 else Image.fromarray(pixels)


def decoded(source: ImageLike, *, range: Range = None, overshoot: float = ROUNDING) -> Pixels:
    """As `decode`, but a new array (height, width, 3) in any case: uint8, or float32 from 0 to 255.

    overshoot: how far values may lie outside their range, in widths of it.
    """
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return np.array(decode(source, range=range))
    if type(source).__module__.startswith("PIL."):
        return np.array(decode(source, range=range))
    name = _name(source)
    return _array_pixels(_to_array(source, name), range, name, overshoot)


# Files


def _name(source: object) -> str:
    """What to call the image in a message, on one line that any terminal can print."""
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        return _printable(os.fsdecode(source)) or "''"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image bytes ({len(source)} bytes)"
    if isinstance(source, Image.Image):
        return (
            _printable(os.fsdecode(getattr(source, "filename", ""))) or f"PIL image ({source.mode})"
        )
    shape = getattr(source, "shape", None)
    if shape is not None:
        return f"{type(source).__name__} {tuple(shape)} {getattr(source, 'dtype', '')}".rstrip()
    return type(source).__name__


def _printable(text: str) -> str:
    """Newlines, control characters and undecodable bytes of a file name, escaped."""
    return text if text.isprintable() else repr(text)


def _open(path: str | os.PathLike[str], name: str) -> BinaryIO:
    """The file, open for reading and seeking; ImageError where that cannot be."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode):  # a shell's <(command): PIL needs to seek
            with open(path, "rb") as pipe:
                return io.BytesIO(pipe.read())
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name}: a device or socket, not a file; give an image file")
        return open(path, "rb")
    except FileNotFoundError as error:
        advice = "download it first" if "://" in name else "check the path"
        raise ImageError(f"{name}: no such file; {advice}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not an image; give the files in it") from error
    except PermissionError as error:
        raise ImageError(
            f"{name}: no permission to read it; change its permissions, or give a copy"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{name}: cannot be opened ({_reason(error)}); check the path") from error


def _decode_file(file: BinaryIO, range: Range, name: str) -> Image.Image | NDArray[np.float32]:
    """The image in an open file. Whatever PIL's decoders raise on it is an ImageError."""
    from PIL import Image, UnidentifiedImageError

    with _quiet():
        try:
            start = file.read(64)
            if not start:
                raise ImageError(f"{name}: the file is empty; fetch or export it again")
            try:
                image: Image.Image = Image.open(file, formats=_COMMON)
            except UnidentifiedImageError:
                Image.init()
                formats = [known for known in Image.ID if known not in _NOT_FOR_US]
                image = Image.open(file, formats=formats)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name}: not an image that can be read; {_looks_like(start)}"
            ) from error
        except Exception as error:
            raise _failed(error, name) from error
        return _upright_rgb(image, range, name)


def _looks_like(start: bytes) -> str:
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, signature, what in _SIGNATURES:
        found = (start if offset else head)[offset : offset + len(signature)]
        if found.lower() == signature.lower():
            return f"it looks like {what}"
    return "expected JPEG, PNG, WebP, TIFF or the like; convert it to one of these"


def _failed(error: Exception, name: str) -> ImageError:
    """PIL's exception as ours. Its decoders raise nearly everything on damaged files."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            f"{name}: larger than {_pixel_limit()} pixels, perhaps a decompression bomb; scale it "
            "down first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    if isinstance(error, MemoryError):
        return ImageError(f"{name}: not enough memory to decode it; scale it down first")
    return ImageError(
        f"{name}: damaged, cut short or of a kind that cannot be decoded ({_reason(error)}); "
        "fetch it again, or convert it to PNG"
    )


def _reason(error: Exception) -> str:
    """An exception's text on one line, short."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _printable(" ".join(str(text).split()))[:120]


def _pixel_limit() -> float:
    """The most pixels an image may have: where PIL stops, twice the size at which it warns."""
    from PIL import Image

    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


_quiet_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit it locked
    os.register_at_fork(
        before=_quiet_lock.acquire,
        after_in_parent=_quiet_lock.release,
        after_in_child=_quiet_lock.release,
    )
_quiet_depth = 0
_quiet_saved: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings from PIL: what it warns of is either handled here or refused by an error.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap: the first
    thread to enter sets the filter, and the last to leave takes it away.
    """
    global _quiet_depth, _quiet_saved
    if getattr(
        sys.flags, "context_aware_warnings", False
    ):  # Python 3.14: filters belong to the thread
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
        return
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_saved is not None:
                _quiet_saved.__exit__(None, None, None)
                _quiet_saved = None


# PIL images


def _upright_rgb(image: Image.Image, range: Range, name: str) -> Image.Image | NDArray[np.float32]:
    """A PIL image, perhaps not loaded yet, turned as EXIF says; RGB, or float32 from 0 to 255."""
    try:
        image.load()
        if 0 in image.size:
            raise ImageError(
                f"{name}: {image.width} x {image.height} pixels; expected at least 1 x 1"
            )
        transpose = _TRANSPOSES.get(_orientation(image))
        if transpose is not None:
            image = image.transpose(transpose)  # type: ignore[arg-type]  # the enum's numbers
            image.info = {}  # it still says "turn me", which a second decode() would obey
        if image.mode == "F" or image.mode.startswith("I"):
            scale = None if image.mode == "F" else (0, 65535)
            grey = np.asarray(image)[..., None]
            return _on_255(grey, _range(range, scale, name), name)
        if image.mode != "RGB":
            straight = image.convert("LA") if image.mode == "La" else image  # PIL needs the step
            image = straight.convert("RGB")
        if range is None or _range(range, None, name) == (0, 255):
            return image
        return _on_255(np.asarray(image), _range(range, None, name), name)
    except ImageError:
        raise
    except Exception as error:
        raise _failed(error, name) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or EXIF is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) else 1


# Arrays


def _to_array(source: object, name: str) -> NDArray[Any]:
    """(h, w) or (h, w, c) from an array, a tensor (channels first) or what can become one."""
    if isinstance(source, np.ndarray):
        return source
    torch = sys.modules.get("torch")  # a tensor can exist only where torch was imported already
    try:
        if torch is not None and isinstance(source, torch.Tensor):
            tensor = source.detach().cpu()
            if tensor.dtype == torch.bfloat16:  # which numpy does not have
                tensor = tensor.float()
            if (
                tensor.ndim == 3
                and tensor.shape[0] not in (1, 3, 4)
                and tensor.shape[2] in (1, 3, 4)
            ):
                raise ImageError(
                    f"{name}: a tensor with its channels last; expected (channels, height, width), "
                    "write image.permute(2, 0, 1)"
                )
            array: NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy()
            return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
        if hasattr(source, "__array_interface__") or hasattr(source, "__array__"):
            return np.asarray(source)
        if hasattr(source, "__dlpack__"):
            return np.from_dlpack(source)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: cannot become an array ({_reason(error)}); give numpy's"
        ) from error
    raise ImageError(
        f"{name}: not an image; expected a path, the bytes of an image file, a PIL image, an array "
        "or a tensor"
    )


def _array_pixels(
    array: NDArray[Any], range: Range, name: str, overshoot: float = ROUNDING
) -> Pixels:
    """An array (h, w) or (h, w, 1, 3 or 4) as a new one (h, w, 3): uint8, or float32 from 0 to 255."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        advice = "give one image, with at least one pixel"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            advice = "its channels come first, write image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            advice = "give the images of a batch one by one"
        raise ImageError(
            f"{name}: expected (height, width) or (height, width, 1, 3 or 4), for tensors "
            f"(1, 3 or 4, height, width); {advice}"
        )
    if array.dtype.kind not in "uif":
        advice = "write image.astype('uint8') * 255" if array.dtype.kind == "b" else "give uint8"
        raise ImageError(f"{name}: expected numbers, uint8, uint16 or float; {advice}")
    array = array[..., :3]
    scale = {"u1": (0, 255), "u2": (0, 65535)}.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    limits = _range(range, scale, name)
    if array.dtype != np.uint8 or limits != (0, 255):
        return _on_255(array, limits, name, overshoot)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array, order="C")


def limits(range: Range, name: str = "the images") -> tuple[float, float]:
    """The values of black and white of a range; ImageError, naming `name`, where it is none."""
    if isinstance(range, str) and range in RANGES:
        return RANGES[range]
    try:
        if range is None or isinstance(range, str):
            raise ValueError
        low, high = (float(value) for value in range)
        if not (low < high and math.isfinite(high - low)):
            raise ValueError
    except (TypeError, ValueError):
        raise ImageError(
            f"{name}: range is {range!r}; expected (black, white), as in (0, 1), or {' or '.join(RANGES)}"
        ) from None
    return low, high


def several(images: object) -> tuple[list[Any], bool]:
    """The images in a list, and whether there were several: the one rule for what is one image.

    Several are a list, a tuple, an array (n, height, width, channels) or a tensor (n, channels, height,
    width). All else is one image: a path, bytes, a PIL image, an array or tensor of two or three axes.
    """
    if isinstance(images, list | tuple):
        return list(images), True
    if getattr(images, "ndim", 0) == 4:
        return [images[index] for index in builtins.range(len(images))], True  # type: ignore[index, arg-type]
    return [images], False


def _range(range: Range, known: tuple[int, int] | None, name: str) -> tuple[float, float]:
    """The values of black and white: as told, or as known from the type, or ImageError."""
    if range is None:
        if known is None:
            raise ImageError(
                f"{name}: the scale of its numbers is not known; give range=(black, white), "
                "as in range=(0, 1), or convert it to 8 or 16 bits"
            )
        return known
    return limits(range, name)


def _on_255(
    values: NDArray[Any], limits: tuple[float, float], name: str, overshoot: float = ROUNDING
) -> NDArray[np.float32]:
    """(h, w, 1 or 3) of any numbers within `limits` to float32 (h, w, 3) from 0 to 255."""
    low, high = limits
    with np.errstate(invalid="ignore"):
        least, most = values.min(), values.max()
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ImageError(
            f"{name}: has values that are not finite; replace them, as with numpy.nan_to_num"
        )
    slack = overshoot * (high - low)
    if least < low - slack or most > high + slack:
        raise ImageError(
            f"{name}: its values go from {least:g} to {most:g}, outside {low:g} to {high:g}; give "
            "range=(black, white) as they are, or clip them"
        )
    # float64: a value of 32 bits less the black of a narrow range would lose its digits
    scaled = ((values.astype(np.float64) - low) / (high - low) * 255).astype(np.float32)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


# Geometry


def _as_array(source: Image.Image | Pixels) -> Pixels:
    """(height, width, channels), read-only where it comes from PIL."""
    array = np.asarray(source)
    return array if array.ndim == 3 else array[..., None]


def _centre_crop(pixels: Pixels, size: int | None) -> Pixels:
    """The middle size x size of (h, w, c), or the whole amid zeros where it is smaller.

    Rounding as torchvision's ``transforms.functional.center_crop``: half to even when it cuts, and
    the odd row or column of padding at the end.
    """
    if size is None:
        return pixels
    for axis in (0, 1):
        spare = pixels.shape[axis] - size
        if spare >= 0:
            start = round(spare / 2)
            pixels = pixels[start : start + size] if axis == 0 else pixels[:, start : start + size]
        else:
            before = -spare // 2
            widths = [(0, 0)] * 3
            widths[axis] = (before, -spare - before)
            pixels = np.pad(pixels, widths)
    return pixels


def _gather(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """(h, w, c) resized from the nearest pixels only, as torch's ``interpolate(antialias=False)``.

    Centres of pixels are aligned (``align_corners=False``); edges repeat.
    """
    result = pixels.astype(np.float32)
    for axis in (0, 1):
        indices, weights = _taps(pixels.shape[axis], size[axis], interpolation)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        total = np.zeros((), np.float32)
        for index, weight in zip(indices, weights, strict=True):
            total = total + result.take(index, axis) * weight.reshape(shape)
        result = total
    result = result.clip(0, 255)
    return np.rint(result).astype(np.uint8) if pixels.dtype == np.uint8 else result


def _taps(
    old: int, new: int, interpolation: str
) -> tuple[list[NDArray[np.intp]], list[NDArray[np.float32]]]:
    """The old pixels that each of `new` positions along an axis is made of, and their weights."""
    half = np.float32(0.5)
    centre = (np.arange(new, dtype=np.float32) + half) * np.float32(old / new) - half  # as torch
    first = np.floor(centre).astype(np.intp)
    t = centre - np.floor(centre)
    taps = {0: 1 - t, 1: t}
    if (
        interpolation == "bicubic"
    ):  # Keys 1981, cubic convolution, at distances 1 + t, t, 1 - t, 2 - t
        taps = {-1: _outer(1 + t), 0: _inner(t), 1: _inner(1 - t), 2: _outer(2 - t)}
    indices = [(first + offset).clip(0, old - 1) for offset in taps]
    return indices, list(taps.values())


def _inner(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys's kernel at distances from 0 to 1."""
    a = _BICUBIC_A
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _outer(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys's kernel at distances from 1 to 2."""
    a = _BICUBIC_A
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


# Checks of the record


def _one_of(name: str, value: object, known: Sequence[str] | Mapping[str, int]) -> None:
    if not isinstance(value, str) or value not in known:
        raise PreprocessError(f"{name} is {value!r}; expected one of: {', '.join(known)}")


def _size(name: str, value: object) -> None:
    if value is None and name != "size":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PreprocessError(f"{name} is {value!r}; expected a whole number of pixels, at least 1")


def _numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    problem = PreprocessError(
        f"{name} is {values!r}; expected {count} finite number{'s'[: count - 1]}"
    )
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise problem
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise problem
    return tuple(float(value) for value in values)


# At what size an image is looked at, in one word

# None          as the model's record says: its resize, its crop
# 224           the same for another size, the resize in proportion to the crop
# (480, 640)    height and width; the image is stretched to them, nothing is cut away
# "own"         the image as it is, neither resized nor cropped
Size: TypeAlias = "int | tuple[int, int] | Literal['own'] | None"

_SIZE_EXPECTED = (
    'expected pixels a side, (height, width), "own", or None for the model\'s own resize'
)


@dataclass(frozen=True)
class _Stretched(Preprocess):
    """A record that makes every image `target` pixels, (height, width)."""

    target: tuple[int, int] = (1, 1)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:  # noqa: ARG002
        return self.target


def sized(preprocess: Preprocess, size: Size) -> Preprocess:
    """The record for images of that size; PreprocessError where it is none."""
    if size is None:
        return preprocess
    if size == "own":
        return replace(preprocess, resize="none", resize_size=None, crop_size=None, detail=None)
    if isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_side, size)):
        values = {**vars(preprocess), "resize": "exact", "resize_size": max(size)}
        return _Stretched(**{**values, "crop_size": None, "target": (size[0], size[1])})
    if not _is_side(size):
        raise PreprocessError(f"size is {size!r}; {_SIZE_EXPECTED}")
    assert isinstance(size, int)
    return preprocess.with_size(size)


def parse_size(text: str | None) -> Size:
    """What a person types: "224", "480x640" (height x width) or "own"."""
    if text is None or text == "own":
        return text  # type: ignore[return-value]  # narrowed by the comparison
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise PreprocessError(
            f'size is {text!r}; expected "224", "480x640" (height x width) or "own"'
        )
    height, _, width = text.partition("x")
    return (int(height), int(width)) if width else int(height)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
