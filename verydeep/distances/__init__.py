"""Perceptual distances between images, on any engine, without torch.

>>> import verydeep
>>> verydeep.lpips("photo.png", "photo-compressed.jpg")  # doctest: +SKIP
<lpips 0.0931: lpips 0.1, vgg16 ..., onnxruntime 1.22.0 fast, 640x480, 0..255, verydeep 1.0.0rc1>

Images are neither resized nor cropped. What the four distances are, and their sources: `metrics`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..engines.forks import Turns
from ..files import hashes
from ..preprocess import RANGES, Range
from ..published import find_model
from .metrics import METRICS, Metric
from .perceptual import Perceptual
from .records import About, Distance, Distances

__all__ = [
    "METRICS", "RANGES", "About", "Distance", "Distances", "Metric", "Perceptual",
    "content_distance", "distance", "dists", "lpips", "style_distance",
]  # fmt: skip

KEPT = 4  # of the metrics that were asked for last, with their engines
_kept: dict[str, Perceptual] = {}  # the one used last is last
_turns = Turns()


def distance(
    a: Any,
    b: Any,
    metric: str = "lpips",
    *,
    range: Range = None,
    spatial: bool = False,
    model: str | os.PathLike[str] = "builtin",
    layers: str | Sequence[str] | None = None,
    **options: Any,
) -> Distance | Distances:
    """How far `a` is from `b`: "lpips", "dists", "content" or "style".

    Two images give a number, several an array, `spatial` maps: see `Perceptual`, of which the last few
    that were asked for are kept. range: of floats; images of 8 and 16 bits know theirs, whatever it says.
    options: engine, precision, threads and device, as for `Perceptual`.
    """
    path = find_model(model)
    # a file that changed is another model
    stamp = hashes.stamp(os.stat(path)) if os.path.exists(path) else None
    key = repr((metric, path, stamp, layers, sorted(options.items())))
    with _turns.lock:  # threads that ask at once share one
        measure = _kept.pop(key, None) or Perceptual(metric, model=path, layers=layers, **options)
        _kept[key] = measure
        for oldest in list(_kept)[:-KEPT]:
            del _kept[oldest]
    return measure(a, b, range=range, spatial=spatial)


def lpips(a: Any, b: Any, **options: Any) -> Distance | Distances:
    """LPIPS 0.1 with VGG-16: what `lpips.LPIPS(net="vgg")` gives for the same weights.

    Options as for `distance`, without layers.
    """
    return distance(a, b, "lpips", **options)


def dists(a: Any, b: Any, **options: Any) -> Distance | Distances:
    """DISTS: 0 for images of one texture and structure, near 1 for strangers. Options as for `distance`,
    without layers and spatial.
    """
    return distance(a, b, "dists", **options)


def content_distance(a: Any, b: Any, **options: Any) -> Distance | Distances:
    """Mean squared difference of the features of each layer, summed over `layers` (paper names).

    arXiv:1603.08155, equation 2. Options as for `distance`.
    """
    return distance(a, b, "content", **options)


def style_distance(a: Any, b: Any, **options: Any) -> Distance | Distances:
    """Squared Frobenius norm of the difference of Gram matrices, summed over `layers` (paper names).

    A Gram matrix is divided by channels * height * width: arXiv:1603.08155, equations 3 and 4. Options as
    for `distance`, without spatial.
    """
    return distance(a, b, "style", **options)
