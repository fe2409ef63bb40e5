"""At what size an image is looked at, in one word: a number, height and width, its own, or the model's.

None          as the model's record says: its resize, its crop
224           the same for another size, the resize in proportion to the crop
(480, 640)    height and width; the image is stretched to them, nothing is cut away
"own"         the image as it is, neither resized nor cropped
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .errors import PreprocessError
from .preprocess import Preprocess

__all__ = ["Size", "parse", "sized"]

Size: TypeAlias = "int | tuple[int, int] | Literal['own'] | None"

EXPECTED = 'expected pixels a side, (height, width), "own", or None for the model\'s own resize'


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
        raise PreprocessError(f"size is {size!r}; {EXPECTED}")
    assert isinstance(size, int)
    return preprocess.with_size(size)


def parse(text: str | None) -> Size:
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
