"""What a method of explaining is: pixels of one image in, a map for each class out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# method -> the module and the function in it that prepares one, for a predictor, Options and perhaps other
# weights than the predictor's
METHODS: dict[str, tuple[str, str]] = {
    "cam": ("cam", "prepare"),
    "gradcam": ("gradcam", "prepare"),
    "gradcam++": ("gradcam", "prepare_plus"),
    "occlusion": ("occlusion", "prepare"),
    "ig": ("ig", "prepare"),
}


@dataclass(frozen=True)
class Options:
    """What a person may choose; None is the method's own choice. See `Explainer`."""

    layer: str | None = None
    steps: int = 50
    window: int | None = None
    stride: int | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What a method says of one image.

    scores: (classes,) float32, of the whole image. classes: those that were picked. maps: one a picked
    class, (h, w) float32. ys, xs: where the maps' rows and columns lie, in pixels of the image; the
    first pixel's centre is 0. layers: those that were read.
    """

    scores: np.ndarray
    classes: list[int]
    maps: list[np.ndarray]
    ys: np.ndarray
    xs: np.ndarray
    layers: tuple[str, ...]
    engine: str
    precision: str


Pick = Callable[[np.ndarray], list[int]]  # scores of the image -> numbers of classes
Method = Callable[[np.ndarray, Pick], Found]  # of pixels (height, width, channels)
