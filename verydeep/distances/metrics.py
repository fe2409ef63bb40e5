"""What the four distances are: the layers that they read, their published weights, DISTS' formula.

LPIPS: Zhang et al. 2018, arXiv:1801.03924. DISTS: Ding et al. 2020, arXiv:2004.07728. Content and style:
Johnson et al. 2016, arXiv:1603.08155, who took VGG-16 and the layers that are the defaults here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import NetworkError
from ..nets import Network, named
from ..published import BUILTIN

HEADS_FILE = BUILTIN / "heads" / "perceptual.safetensors"

# arXiv:2004.07728, equations 6 and 7: what keeps the quotients finite; values of DISTS-pytorch
DISTS_C1 = DISTS_C2 = 1e-6

IMAGE = "image"  # DISTS' first layer: the image itself, 0 to 1

Array = np.ndarray


@dataclass(frozen=True)
class Metric:
    """A distance and what belongs to it.

    name: what people call it. layers: that it reads, by paper name. fitted: whether it has published
    heads, so that these layers of vgg16 are the only ones. pool: of the trunk, None for the network's own.
    spatial: whether it has a map.
    """

    name: str
    layers: tuple[str, ...]
    fitted: bool = False
    pool: str | None = None
    spatial: bool = False


_FIVE = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

METRICS: dict[str, Metric] = {
    "lpips": Metric("lpips 0.1", _FIVE, fitted=True, spatial=True),
    "dists": Metric("dists", _FIVE, fitted=True, pool="l2"),
    # arXiv:1603.08155, section 4.1
    "content": Metric("content", ("relu3_3",), spatial=True),
    "style": Metric("style", _FIVE[:4]),
}


def chosen(
    layers: str | Sequence[str] | None, default: Sequence[str], network: Network
) -> tuple[str, ...]:
    """The layers that were named, one or several; else the default ones.

    Where the network lacks a default ReLU, as vgg11 and vgg13 lack relu3_3, the last of its block or,
    in a shorter network, the last of all. NetworkError where none or one twice is named.
    """
    if layers is not None:
        layers = named(layers)
        if not layers:
            raise NetworkError("no layer is named; expected one, such as relu3_3")
        if len(set(layers)) < len(layers):
            raise NetworkError(f"a layer is named twice: {', '.join(layers)}")
        return layers
    return network.own(default)


@cache
def heads(metric: str) -> dict[str, Array]:
    """The published heads: LPIPS' weights by layer, DISTS' "alpha" and "beta"; float32."""
    from safetensors.numpy import load_file

    stored = load_file(HEADS_FILE)
    return {
        name.partition(".")[2]: values
        for name, values in sorted(stored.items())
        if name.startswith(f"{metric}.")
    }


@cache
def heads_sha256() -> str:
    return hashlib.sha256(HEADS_FILE.read_bytes()).hexdigest()


def dists_of(moments: Array, weights: Mapping[str, Array]) -> Array:
    """arXiv:2004.07728, equations 6 to 8, in float64, one number a pair.

    moments: (pairs, 5, channels): mean and variance of the one, of the other, their covariance; channels
    are the image's and those of the layers.
    """
    alpha, beta = weights["alpha"].astype(np.float64), weights["beta"].astype(np.float64)
    mean, variance, other_mean, other_variance, covariance = moments.swapaxes(0, 1)
    texture = (2 * mean * other_mean + DISTS_C1) / (mean**2 + other_mean**2 + DISTS_C1)
    structure = (2 * covariance + DISTS_C2) / (variance + other_variance + DISTS_C2)
    # 1 - sum of weighted likenesses, as a sum of unlikenesses: nothing cancels
    unlike = (alpha * (1 - texture) + beta * (1 - structure)).sum(1)
    return np.asarray(unlike / (alpha.sum() + beta.sum()))
