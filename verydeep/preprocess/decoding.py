"""One image, in whatever form it comes, as RGB: files, PIL images, arrays and tensors.

JPEG files are decoded in full where nobody asks for less (`spare`). libjpeg's draft mode decodes a large
photo at a half or a quarter of its size, and sooner, but its reduction is not the resize that a record
names: the pixels, and so the scores, depend on the size and the format of the file.
"""

from __future__ import annotations

import builtins
import io
import math
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..files.photo_paths import reads_heif, sniff
from ..files.wording import plain
from . import jpeg

if TYPE_CHECKING:  # PIL takes 20 ms to load and torch a second
    from PIL import Image
    from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor"
Pixels: TypeAlias = NDArray[Any]  # uint8, or float32 on the same scale, 0 to 255
Range: TypeAlias = "str | Sequence[float] | None"  # a name of RANGES, or (black, white)
Spare: TypeAlias = "Callable[[int, int], float]"

# the values of black and white, by the names that people give them
RANGES: dict[str, tuple[float, float]] = {"0..255": (0, 255), "0..1": (0, 1), "-1..1": (-1, 1)}

ROUNDING = 1e-6  # of the range: what arithmetic in float32 may leave outside, which is cut off

# EXIF 2.3, tag 0x0112: orientation to PIL.Image.Transpose, as PIL.ImageOps.exif_transpose has it.
_ORIENTATION = 0x0112
_TRANSPOSES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

# PIL's formats by whose decoders an image never comes: EPS runs Ghostscript, the others are stubs.
_NOT_FOR_US = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")  # what PIL loads at once; the rest costs 20 ms more

# what to do with a file that is no image; else it is exported as one
_ADVICE = {
    "a zip archive": "unpack it",
    "a NumPy array": "give the array that numpy.load makes of it, or export it as PNG",
}


def decode(
    source: ImageLike, *, range: Range = None, spare: Spare | None = None
) -> Image.Image | NDArray[np.float32]:
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

    spare, given width and height of a JPEG file, says how many of its pixels a side make one that is
    needed: from 2 on it is decoded at a half of its size, from 4 at a quarter, from 8 at an eighth.

    The source is not changed. A PIL image that is RGB and upright is returned as it is.
    Raises ImageError, one line that begins with the file's name, for anything that is not an image:
    missing, a folder, not permitted, empty, another format, cut short, damaged, too large.
    """
    from PIL import Image

    found = _decode(source, range, spare)
    if isinstance(found, np.ndarray) and found.dtype == np.uint8:
        return Image.fromarray(found)
    return found


def _decode(
    source: ImageLike, range: Range, spare: Spare | None = None, *, array: bool = False
) -> Image.Image | Pixels:
    """An image from a file or of PIL's, else an array. array: of a JPEG file too, where it can be."""
    from PIL import Image

    try:
        if isinstance(source, Image.Image):
            with _quiet():
                return _upright_rgb(source, range)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _decode_file(io.BytesIO(source), range, spare, array)
        if isinstance(source, (str, os.PathLike)):
            with _open(source) as file:
                return _decode_file(file, range, spare, array)
        return _array_pixels(source, range)
    except ImageError as error:
        raise ImageError(f"{name_of(source)}: {error}") from error.__cause__


def decoded(source: ImageLike, *, range: Range = None, overshoot: float = 0) -> Pixels:
    """As `decode`, but a new array (height, width, 3) in any case: uint8, or float32 from 0 to 255.

    overshoot: how far the floats of an array may lie outside their range, in widths of it; they are
    then left there.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        found = _decode(source, range, array=True)
        return found if isinstance(found, np.ndarray) else np.array(found)
    try:
        return _array_pixels(source, range, overshoot)
    except ImageError as error:
        raise ImageError(f"{name_of(source)}: {error}") from error.__cause__


# Files


def name_of(source: object) -> str:
    """What to call the image in a message, on one line that any terminal can print."""
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        return _printable(os.fsdecode(source)) or "''"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image bytes ({len(source)} bytes)"
    if isinstance(source, Image.Image):
        file = os.fsdecode(getattr(source, "filename", ""))
        return _printable(file) or f"PIL image ({source.mode})"
    shape = getattr(source, "shape", None)
    if shape is not None:
        return f"{type(source).__name__} {tuple(shape)} {getattr(source, 'dtype', '')}".rstrip()
    return type(source).__name__


def _printable(text: str) -> str:
    """Newlines, control characters and undecodable bytes of a file name, escaped."""
    return plain(text).encode("utf-8", "backslashreplace").decode()


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading and seeking; ImageError where that cannot be."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode):  # a shell's <(command): PIL needs to seek
            with open(path, "rb") as pipe:
                return io.BytesIO(pipe.read())
        if stat.S_ISDIR(mode):
            raise ImageError("a folder, not an image; give the files in it")
        if not stat.S_ISREG(mode):
            raise ImageError("a device or socket, not a file; give an image file")
        return open(path, "rb")
    except ImageError:  # which is a ValueError, too
        raise
    except FileNotFoundError as error:
        advice = "download it first" if "://" in os.fsdecode(path) else "check the path"
        raise ImageError(f"no such file; {advice}") from error
    except PermissionError as error:
        raise ImageError(
            "no permission to read it; change its permissions, or give a copy"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"cannot be opened ({_reason(error)}); check the path") from error


def _decode_file(
    file: BinaryIO, range: Range, spare: Spare | None = None, array: bool = False
) -> Image.Image | Pixels:
    """The image in an open file. Whatever PIL's decoders raise on it is an ImageError."""
    with _quiet():
        image = _recognised(file)
        if spare is not None and (times := int(spare(*image.size))) > 1:
            image.draft(None, (image.width // times, image.height // times))
        if array and range is None and (pixels := jpeg.array(image, file)) is not None:
            return _turned(pixels, _orientation(image))
        try:
            return _upright_rgb(image, range)
        except ImageError as error:
            if "MAX_TEXT" not in str(error.__cause__) or (plain := _without_text(file)) is None:
                raise
            return _upright_rgb(_recognised(plain), range)


def header(content: bytes) -> tuple[str, int, int]:
    """Format, width and height of an image file's bytes, without decoding it; ImageError as of `decode`."""
    with _quiet(), _recognised(io.BytesIO(content)) as image:
        return image.format or "", image.width, image.height


def _recognised(file: BinaryIO) -> Image.Image:
    """The same as `opened`, without text that PIL does not read; ImageError for whatever PIL raises."""
    from PIL import UnidentifiedImageError

    try:
        start = file.read(64)
        if not start:
            raise ImageError("the file is empty; fetch or export it again")
        return opened(file)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image that can be read; {_looks_like(start)}") from error
    except Exception as error:
        if "MAX_TEXT" in str(error) and (plain := _without_text(file)) is not None:
            return _recognised(plain)
        raise _failed(error) from error


def opened(file: str | BinaryIO) -> Image.Image:
    """A file as PIL opens it, by its header alone; what PIL raises is not caught."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=_COMMON)
    except UnidentifiedImageError:
        if reads_heif():
            import pillow_heif

            pillow_heif.register_heif_opener()
        Image.init()
        return Image.open(file, formats=[known for known in Image.ID if known not in _NOT_FOR_US])


def _without_text(file: BinaryIO) -> BinaryIO | None:
    """A PNG with more text, XMP or colour profile than PIL reads, without these: none is used.

    None where it is no PNG, as one within an icon, or has nothing of these.
    """
    file.seek(0)
    content = file.read()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[at:end])
        at = end
    plain = b"".join(kept)
    return io.BytesIO(plain) if len(plain) < len(content) else None


def _looks_like(start: bytes) -> str:
    from PIL import features

    what, advice = sniff(start)
    if what == "HEIC" and reads_heif():
        what = "a HEIC image"
    if what == "an AVIF image" and not features.check("avif"):
        return "it looks like AVIF, which Pillow 11.3 or later reads; pip install -U pillow"
    if what in ("", "text"):
        return "expected JPEG, PNG, WebP, TIFF or the like; convert it to one of these"
    if what.endswith(" image"):
        what, advice = f"{what}, but damaged", "fetch or export it again"
    return f"it looks like {what}; {advice or _ADVICE.get(what, 'export it as JPEG or PNG')}"


def _failed(error: Exception) -> ImageError:
    """PIL's exception as ours. Its decoders raise nearly everything on damaged files."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            f"larger than {pixel_limit()} pixels, perhaps a decompression bomb; scale it "
            "down first; a program that trusts it may raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    if isinstance(error, MemoryError):
        return ImageError("not enough memory to decode it; scale it down first")
    return ImageError(
        f"damaged, cut short or of a kind that cannot be decoded ({_reason(error)}); "
        "fetch it again, or convert it to PNG"
    )


def _reason(error: Exception) -> str:
    """An exception's text on one line, short."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _printable(" ".join(str(text).split()))[:120]


def pixel_limit() -> float:
    """The most pixels an image may have: where PIL stops, twice the size at which it warns."""
    from PIL import Image

    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


class _Here(threading.local):
    """What stands for a module in a filter of warnings: any of PIL's, in a thread that is decoding."""

    decoding = False
    pattern = r"PIL\."  # some print their filters

    def match(self, module: str) -> bool:
        return self.decoding and module.startswith("PIL.")

    def __reduce__(self) -> str:  # some send their filters to other processes
        return "_here"


_here = _Here()
_SILENCE = ("ignore", None, Warning, _here, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings from PIL: what it warns of is either handled here or refused by an error.

    Filters are the whole process's, so none is taken back: `warnings.catch_warnings` restores the wrong
    ones when threads overlap. The one that stays here matches nothing but in a thread that is inside.
    """
    if getattr(
        sys.flags, "context_aware_warnings", False
    ):  # Python 3.14: filters belong to the thread
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
        return
    filters: Any = warnings.filters
    if filters[:1] != [_SILENCE]:  # somebody's own came before it
        with suppress(ValueError):
            filters.remove(_SILENCE)
        filters.insert(0, _SILENCE)
    before, _here.decoding = _here.decoding, True
    try:
        yield
    finally:
        _here.decoding = before


# PIL images


def _upright_rgb(image: Image.Image, range: Range) -> Image.Image | NDArray[np.float32]:
    """A PIL image, perhaps not loaded yet, turned as EXIF says; RGB, or float32 from 0 to 255."""
    try:
        image.load()
        if 0 in image.size:
            raise ImageError(f"{image.width} x {image.height} pixels; expected at least 1 x 1")
        transpose = _TRANSPOSES.get(_orientation(image))
        if transpose is not None:
            image = image.transpose(transpose)  # type: ignore[arg-type]  # the enum's numbers
            image.info = {}  # it still says "turn me", which a second decode() would obey
        if image.mode == "F" or image.mode.startswith("I"):
            scale = None if image.mode == "F" else (0, 65535)
            grey = np.asarray(image)[..., None]
            return _on_255(grey, limits(range, scale))
        if image.mode != "RGB":
            straight = image.convert("LA") if image.mode == "La" else image  # PIL needs the step
            image = straight.convert("RGB")
        ends = limits(range, (0, 255))
        return image if ends == (0, 255) else _on_255(np.asarray(image), ends)
    except ImageError:
        raise
    except Exception as error:
        raise _failed(error) from error


def _orientation(image: Image.Image) -> Any:
    """What EXIF says of it: 1 to 8, or what else stands there."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing
        return 1


def _turned(pixels: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    """(h, w, 3) turned as EXIF says, as `_TRANSPOSES` turns images."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# Arrays


def _torch_of(source: object) -> Any:
    """The module torch, where this is a tensor of its; None else."""
    torch = sys.modules.get("torch")  # a tensor can exist only where torch was imported already
    return torch if torch is not None and isinstance(source, torch.Tensor) else None


def _to_array(source: Any) -> NDArray[Any]:
    """(h, w) or (h, w, c) from an array, a tensor (channels first) or what can become one."""
    if isinstance(source, np.ndarray):
        if np.ma.is_masked(source):
            raise ImageError("some of it is masked; give it a colour, as image.filled(0) does")
        return source
    torch = _torch_of(source)
    try:
        if torch is not None:
            tensor = source.detach().cpu()
            if tensor.dtype == torch.bfloat16:  # which numpy does not have
                tensor = tensor.float()
            if (
                tensor.ndim == 3
                and tensor.shape[0] not in (1, 3, 4)
                and tensor.shape[2] in (1, 3, 4)
            ):
                raise ImageError(
                    "a tensor with its channels last; expected (channels, height, width), "
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
        raise ImageError(f"cannot become an array ({_reason(error)}); give numpy's") from error
    raise ImageError(
        "not an image; expected a path, the bytes of an image file, a PIL image, an array "
        "or a tensor"
    )


def _array_pixels(source: object, range: Range, overshoot: float = 0) -> Pixels:
    """What becomes an array (h, w) or (h, w, 1, 3 or 4), as (h, w, 3): uint8, or float32 from 0 to 255."""
    array, tensor = _to_array(source), _torch_of(source) is not None
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        advice = "give one image, with at least one pixel"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and not tensor:
            advice = "its channels come first, write image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            advice = "give the images of a batch one by one"
        raise ImageError(
            f"expected (height, width) or (height, width, 1, 3 or 4), for tensors "
            f"(1, 3 or 4, height, width); {advice}"
        )
    if array.dtype.kind not in "uif":
        advice = "give uint8"
        if array.dtype.kind == "b":
            advice = "write image.astype('uint8') * 255"
            advice = "write image.byte() * 255" if tensor else advice
        raise ImageError(f"expected numbers, uint8, uint16 or float; {advice}")
    array = array[..., :3]
    scale = {"u1": (0, 255), "u2": (0, 65535)}.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    ends = limits(range, scale)
    if array.dtype != np.uint8 or ends != (0, 255):
        return _on_255(array, ends, overshoot)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array, order="C")


def limits(range: Range, known: tuple[int, int] | None = None) -> tuple[float, float]:
    """The values of black and white of a range; ImageError where it is none.

    known: what they are where no range was given, as the type of the numbers says.
    """
    if range is None and known is not None:
        return known
    if range is None:
        raise ImageError(
            "the scale of its numbers is not known; convert it to 8 or 16 bits, or name "
            "black and white to what takes a range, as in range=(0, 1)"
        )
    if isinstance(range, str) and range in RANGES:
        return RANGES[range]
    try:
        if isinstance(range, str):
            raise ValueError
        low, high = (float(value) for value in range)
        if not (low < high and math.isfinite(high - low)):
            raise ValueError
    except (TypeError, ValueError):
        raise ImageError(
            f"range is {range!r}; expected (black, white), as in (0, 1), or {' or '.join(RANGES)}"
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


def _on_255(
    values: NDArray[Any], ends: tuple[float, float], overshoot: float = 0
) -> NDArray[np.float32]:
    """(h, w, 1 or 3) of any numbers from `ends` (black, white) to float32 (h, w, 3) from 0 to 255."""
    low, high = ends
    with np.errstate(invalid="ignore"):
        least, most = values.min(), values.max()
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ImageError(
            "has values that are not finite; replace them, as with numpy.nan_to_num or torch.nan_to_num"
        )
    spare = (high - low) * max(ROUNDING, overshoot) if values.dtype.kind == "f" else 0
    if least < low - spare or most > high + spare:
        raise ImageError(
            f"its values go from {least:g} to {most:g}, outside {low:g} to {high:g}; "
            "clip them, or name the black and white that they have to what takes a range"
        )
    # float64: a value of 32 bits less the black of a narrow range would lose its digits
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    if not overshoot:
        scaled = scaled.clip(0, 255)
    narrow = scaled.astype(np.float32)
    return np.repeat(narrow, 3, axis=2) if narrow.shape[2] == 1 else narrow
