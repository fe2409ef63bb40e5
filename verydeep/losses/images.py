"""The images of a loss: their shape, and a range that is said, never guessed.

LPIPS takes -1 to 1, nearly everything else 0 to 1, and a network takes both without a word; published work
was computed on the wrong one (nerfstudio#1424, pixelsplat#19).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distances.inputs import OVERSHOOT, range_name, warn_if_suspicious
from ..errors import ImageError
from ..preprocess import RANGES, Range, limits

Span = tuple[float, float]  # black and white

# How far beyond its range an image may go, in widths of the range: what is optimised, or comes out of a
# network that still learns, overshoots by more than a picture does.
OVERSHOOT_LEARNING = 8.0


def checked(
    image: object, what: str, range: Range, *, channels: int, smallest: int, values: bool
) -> tuple[Tensor, Span]:
    """The image as floats, with its black and white; ImageError where it cannot be used.

    image: (n, channels, h, w), of floats in that range, or uint8, which is 0..255 whatever `range`.
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
    span = limits(range)
    if values and not transformed():
        _look(image, what, span, range)
    return image, span


def in_torch_func() -> bool:
    """Whether one of torch.func's transforms looks on, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether torch.compile or torch.func looks on, to whom values are unknown."""
    return torch.compiler.is_compiling() or in_torch_func()


def _look(image: Tensor, what: str, span: Span, range: Range) -> None:
    low, high = span
    learning = image.requires_grad
    margin = (high - low) * (OVERSHOOT_LEARNING if learning else OVERSHOOT)
    least, most = (float(value) for value in image.detach().aminmax())
    if least != least or most != most:
        if learning:
            return  # a step that went wrong: its NaN belongs to the optimiser, or the loss scaler
        raise ImageError(f"{what} has values that are not numbers (NaN)")
    if least < low - margin or most > high + margin:
        raise ImageError(
            f"{what} goes from {least:.4g} to {most:.4g}, and its range was said to be "
            f"{range_name(range)}; scale it, or say which of {', '.join(RANGES)} or (black, white) it is"
        )
    warn_if_suspicious(what, least, most, range, stacklevel=6)


def size_free(values: object, layers: tuple[str, ...], styles: int, images: int) -> None:
    """ImageError where remembered values are of other layers, or not of one style or as many."""
    if values is not None and set(values) != set(layers):  # type: ignore[call-overload]
        raise ImageError(
            "the style was remembered by another loss, of other layers; expected those of "
            f"{', '.join(layers)}"
        )
    if styles not in (1, images):
        raise ImageError(f"{styles} styles were given for {images} images; expected one or as many")
