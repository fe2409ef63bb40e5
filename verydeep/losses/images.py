"""The images of a loss: their shape, and a range that is said, never guessed.

LPIPS takes -1 to 1, nearly everything else 0 to 1, and a network takes both without a word; published work
was computed on the wrong one (nerfstudio#1424, pixelsplat#19).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import ImageError, nearest
from ..preprocess import RANGES

Span = tuple[float, float]  # black and white

# How far beyond its range an image may go, in widths of the range: what is optimised, or comes out of a
# network that still learns, overshoots; pictures overshoot by a filter's ringing alone.
TOLERANCE, TOLERANCE_LEARNING = 0.5, 8.0


def span(name: str) -> Span:
    """Black and white of the range of that name; ImageError where there is none."""
    if name not in RANGES:
        raise ImageError(f"range {name!r} is unknown{nearest(name, RANGES)}")
    return RANGES[name]


def checked(
    image: object, what: str, name: str, *, channels: int, smallest: int, values: bool
) -> tuple[Tensor, Span]:
    """The image as floats, with its black and white; ImageError where it cannot be used.

    image: (n, channels, h, w), of floats in the range `name`, or uint8, which is 0..255 whatever `name`.
    what: for the message. smallest: side in pixels. values: look at the values too; a contradiction to
    the range is refused, and what only looks like another range is warned of.
    """
    if not isinstance(image, Tensor):
        raise ImageError(f"{what} is a {type(image).__name__}; expected a tensor (n, c, h, w)")
    shape = tuple(image.shape)
    if image.ndim != 4 or shape[1] != channels or shape[0] == 0:
        hint = "; add a batch axis: image[None]" if image.ndim == 3 else ""
        raise ImageError(f"{what} has shape {shape}; expected (n, {channels}, height, width){hint}")
    if min(shape[2:]) < smallest:
        raise ImageError(
            f"{what} is {shape[2]}x{shape[3]} pixels, too small for the layers that are read: "
            f"expected at least {smallest}x{smallest}"
        )
    if image.dtype == torch.uint8:
        return image.float(), RANGES["0..255"]
    if not image.is_floating_point():
        raise ImageError(f"{what} is of {image.dtype}; expected floats, or uint8")
    if values and not torch.compiler.is_compiling():
        _look(image, what, name)
    return image, span(name)


def _look(image: Tensor, what: str, name: str) -> None:
    low, high = span(name)
    learning = image.requires_grad
    margin = (high - low) * (TOLERANCE_LEARNING if learning else TOLERANCE)
    least, most = (float(value) for value in image.detach().aminmax())
    if least != least or most != most:
        if learning:
            return  # a step that went wrong: its NaN belongs to the optimiser, or the loss scaler
        raise ImageError(f"{what} has values that are not numbers (NaN)")
    if least < low - margin or most > high + margin:
        raise ImageError(
            f"{what} goes from {least:.4g} to {most:.4g}, and its range was said to be {name}; "
            f"scale it, or say which of {', '.join(RANGES)} it is"
        )
    if (name == "-1..1" and least >= 0 and most <= 1) or (name == "0..255" and 0 < most <= 1):
        warnings.warn(
            f"{what} goes from {least:.4g} to {most:.4g} and its range was said to be {name}: "
            "if it is 0..1, say so",
            stacklevel=5,
        )


def size_free(values: object, layers: tuple[str, ...], styles: int, images: int) -> None:
    """ImageError where remembered values are of other layers, or not of one style or as many."""
    if values is not None and set(values) != set(layers):  # type: ignore[call-overload]
        raise ImageError(
            "the style was remembered by another loss, of other layers; expected those of "
            f"{', '.join(layers)}"
        )
    if styles not in (1, images):
        raise ImageError(f"{styles} styles were given for {images} images; expected one or as many")
