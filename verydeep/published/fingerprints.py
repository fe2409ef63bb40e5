"""Know famous weights by their values, whatever their file is called.

Weights say nothing about the images they expect: torchvision's and Oxford's VGG-16 have the same names
and shapes, and either gives nonsense with the other's pre-processing. A few values of the first filters
tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..preprocess import Preprocess

# Of the largest value: float16 and printed digits pass, weights trained further may not.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Fingerprint:
    """Some values of a network's first convolution, "features.0.weight", in torch's order of axes.

    weights: whose they are, in words. network: a key of nets.NETWORKS. preprocess: the preset that goes
    with them. corners: the top left value of filters 0, 1, ... for each channel, in the order that the
    preset gives the channels.
    """

    weights: str
    network: str
    preprocess: str
    corners: tuple[tuple[float, float, float], ...]


FINGERPRINTS = (
    # read from the weights themselves
    Fingerprint(
        "torchvision's vgg16, IMAGENET1K_V1", "vgg16", "torchvision",
        ((-0.5537306, 0.1754839, 0.3130256), (0.2325372, -0.1407622, -0.3143240)),
    ),
    # as printed by people who loaded torchvision.models.vgg19(pretrained=True)
    Fingerprint(
        "torchvision's vgg19, IMAGENET1K_V1", "vgg19", "torchvision",
        ((-5.3474e-02, 1.7015e-02, -4.4885e-02),),
    ),
    # as printed by people who loaded keras.applications.VGG16(weights="imagenet")
    Fingerprint(
        "Oxford's VGG-16 of 2014, which Caffe and Keras have", "vgg16", "caffe",
        (
            (0.429470569, 0.550379455, 0.480015397),
            (0.117273867, 0.0208774377, -0.172696680),
            (0.0340129584, 0.0988311544, 0.0375577137),
        ),
    ),
)  # fmt: skip


def recognise(network: str, tensors: Mapping[str, NDArray[Any]]) -> tuple[Fingerprint, bool] | None:
    """Whose weights these are, and whether their input channels are turned round; None if unknown."""
    first = tensors.get("features.0.weight")
    if first is None or first.shape[1] != 3:
        return None
    for one in FINGERPRINTS:
        corners = np.array(one.corners)
        if one.network != network or len(first) < len(corners):
            continue
        found = np.asarray(first[: len(corners), :, 0, 0], np.float64)
        for turned in (False, True):
            error = np.abs((found[:, ::-1] if turned else found) - corners).max()
            if error <= TOLERANCE * np.abs(corners).max():
                return one, turned
    return None


def expects(one: Fingerprint, turned: bool, given: Preprocess) -> str:
    """What is wrong with `given` for these weights, in words; "" where it agrees.

    Only what makes the answer nonsense is compared: the order of the channels, and the scale.
    """
    from ..preprocess import PRESETS

    right = PRESETS[one.preprocess]
    order = right.channel_order[::-1] if turned else right.channel_order
    if given.channel_order != order:
        return f"they take channels in the order {order}, not {given.channel_order}"
    if not 0.5 < _gain(given) / _gain(right) < 2:
        return f"they take values {_gain(right) / _gain(given):.3g} times as large"
    return ""


def _gain(preprocess: Preprocess) -> float:
    """How much the network's input grows where a pixel goes from 0 to 255."""
    low, high = preprocess.range
    return (high - low) / (sum(preprocess.std) / len(preprocess.std))
