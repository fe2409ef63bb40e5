"""How an image is looked at to be judged: the paper's dense and multi-crop evaluation.

Simonyan and Zisserman, arXiv:1409.1556, section 3.2. The image is rescaled so that its shorter side has Q
pixels, of one scale or of several. Then

- "dense": the whole network over all of it, the first FC layer a convolution of 7x7 and the others of 1x1;
  the scores of all places are averaged, and so for the image flipped;
- "crops": a regular grid of 5x5 crops, as large as the network's own, each flipped, too: 50 a scale;
- "both": the mean of the two.

Soft-max outputs are averaged, over flips, crops and scales, and over networks where several are fused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..errors import DataError, EngineError, Failure, ImageError, is_whole, require
from ..predictor import probabilities

if TYPE_CHECKING:
    from ..predictor import Predictor
    from ..preprocess import ImageLike, Preprocess

Array = np.ndarray
Views: TypeAlias = Literal["centre", "dense", "crops", "both"]
GRID = 5  # crops a side


@dataclass(frozen=True)
class Viewer:
    """One network, and how it looks at an image: called with one, it gives probabilities, (classes,).

    views: "dense", "crops", "both", or "centre" for the model's own resize and crop. scales: pixels of the
    shorter side; none of them for "centre". crop: pixels a side of a crop.
    """

    predictor: Predictor
    views: Views
    scales: tuple[int, ...]
    crop: int

    @classmethod
    def of(cls, predictor: Predictor, views: Views, scales: Sequence[int]) -> Viewer:
        """scales: none for the one at which the model itself looks. DataError where it cannot look so."""
        require("views", views, get_args(Views), DataError)
        own = predictor.preprocess
        crop = min(own.sides) if own.sides else 0
        if views == "centre":
            if scales:
                raise DataError(
                    "scales are for views dense, crops and both; centre has the model's own resize"
                )
            return cls(predictor, views, (), crop)
        path, size = predictor.model.path, own.resize_size
        if views != "dense" and not crop:
            raise DataError(
                f"{path} has no size of its own that a crop could have; take views dense"
            )
        scales = tuple(scales) or ((size if isinstance(size, int) else crop),)
        if scales == (0,):
            raise DataError(f"{path} takes images as they are; give scales, such as 256,384")
        least = max(crop if views != "dense" else 1, _least(predictor) if views != "crops" else 1)
        for scale in scales:
            if not is_whole(scale, least):
                raise DataError(
                    f"views {views} at {scale!r}: too small; expected pixels of the shorter side, "
                    f"{least} or more"
                )
        return cls(predictor, views, tuple(map(int, scales)), crop)

    def __str__(self) -> str:
        """The protocol, as a phrase."""
        if self.views == "centre":
            return (
                f"one centre crop of {self.crop}"
                if self.predictor.preprocess.crop_size
                else "whole image"
            )
        crops = f"{GRID}x{GRID} crops of {self.crop}"
        how = {"dense": "dense", "crops": crops, "both": f"dense and {crops}"}[self.views]
        return f"{how} at {', '.join(map(str, self.scales))} pixels, flipped too"

    def __call__(self, image: ImageLike) -> Array:
        """ImageError where the image cannot be used."""
        predictor = self.predictor
        if self.views == "centre":
            return np.asarray(probabilities(predictor.record, predictor.scores(image))[0])
        ways = {"dense": (self.dense,), "crops": (self.crops,), "both": (self.dense, self.crops)}
        looks = []
        for scale in self.scales:
            pixels = self.whole(scale).pixels(image, precision=predictor.precision)
            looks += [way(pixels) for way in ways[self.views]]
        return np.asarray(np.mean(looks, axis=0))

    def whole(self, scale: int) -> Preprocess:
        """The model's pre-processing, but for the whole image, its shorter side so many pixels."""
        own = self.predictor.preprocess
        return replace(own, resize="shorter", resize_size=scale, crop_size=None)

    def crops(self, pixels: Array) -> Array:
        """Probabilities, (classes,), the mean over the grid and flips.

        pixels: (height, width, channels), no side smaller than a crop.
        """
        size = self.crop
        tops, lefts = (
            np.rint(np.linspace(0, length - size, GRID)).astype(int) for length in pixels.shape[:2]
        )
        crops = [pixels[y : y + size, x : x + size] for y in tops for x in lefts]
        return self._mean(self._outputs([view for crop in crops for view in _flips(crop)], "fc8"))

    def dense(self, pixels: Array) -> Array:
        """Probabilities, (classes,), the mean over flips, of scores that are the mean over all places."""
        network = self.predictor.record.network
        if network.head.kind != "classic":  # its first layer reads the average of the whole map
            return self._mean(self._outputs(_flips(pixels), "fc8"))
        maps = self._outputs(_flips(pixels), network.head_inputs[0])
        return self._mean(np.stack([self._everywhere(one).mean(0) for one in maps]))

    def _everywhere(self, map_: Array) -> Array:
        """The classic head at all places of a map (channels, height, width): (places, classes)."""
        grid = self.predictor.record.network.top[0].kernel
        windows = sliding_window_view(map_, (grid, grid), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
        values = windows.reshape(-1, map_.shape[0] * grid**2)
        for at, (weight, bias) in enumerate(self._head):
            values = (np.maximum(values, 0) if at else values) @ weight.T + bias
        if not np.isfinite(values).all():
            raise EngineError(
                f"{self.predictor.model.path}: scores that are not finite; fetch it again"
            )
        return np.asarray(values)

    @cached_property
    def _head(self) -> list[tuple[Array, Array]]:
        """Weights and biases of the FC layers, between which are ReLUs."""
        model = self.predictor.model
        keys = [layer.key for layer in model.record.network.top if layer.key]
        held = model.tensors([f"{key}.{part}" for key in keys for part in ("weight", "bias")])
        return [(held[f"{key}.weight"], held[f"{key}.bias"]) for key in keys]

    def _outputs(self, images: Sequence[Array], layer: str) -> Array:
        """Of pixels as the pre-processing gives them, all of one size."""
        scale = (0, 255) if images[0].dtype == np.float32 else None
        return self.predictor.features(list(images), layer, size="own", range=scale)[layer]

    def _mean(self, scores: Array) -> Array:
        return np.asarray(probabilities(self.predictor.record, scores).mean(0))


def seen(viewers: Sequence[Viewer], images: Iterable[ImageLike]) -> Iterator[Array | Failure]:
    """What all viewers together say of each image: the mean of their probabilities, (classes,) float64."""
    for image in images:
        try:
            yield np.asarray(np.mean([viewer(image) for viewer in viewers], axis=0))
        except ImageError as error:
            yield Failure(image if isinstance(image, str) else None, str(error))


def fusable(one: Predictor, other: Predictor) -> None:
    """DataError where the two do not tell the same classes apart, in the same way."""
    ours, theirs = (p.record.class_ids or p.labels for p in (one, other))
    if ours != theirs or bool(one.record.thresholds) != bool(other.record.thresholds):
        raise DataError(
            f"{other.model.path} has other classes than {one.model.path}; fuse networks of the same "
            "classes, in the same order"
        )


def _least(predictor: Predictor) -> int:
    """Pixels of the shorter side that the dense way needs: for one place of the first FC layer."""
    network = predictor.record.network
    return network.size_for(network.top[0].kernel if network.head.kind == "classic" else 1)


def _flips(pixels: Array) -> list[Array]:
    """The image, and as a mirror shows it."""
    return [pixels, np.ascontiguousarray(pixels[:, ::-1])]
