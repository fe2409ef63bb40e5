"""LPIPS as a loss: the call of the `lpips` package, half its time and a fraction of its memory.

Zhang et al. 2018, arXiv:1801.03924; values are those of lpips 0.1.4, version 0.1, net="vgg".

The distance at one layer is fused: unit vectors are made, compared and dropped in cache. Written with
torch's own operations it stores several arrays as large as the features, and its gradient is not a number
where an image's features are all zero, since a root has no slope there (PerceptualSimilarity#69, #121).
Here only the features themselves are kept, and where they are all zero the gradient is zero, as that of
the ReLU before it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..distances.metrics import HEADS_FILE, METRICS
from ..errors import NetworkError
from ..models.vgg import WeightsLike
from ..preprocess import Range
from .trunk import Look, Looking, Reference, Trunk, constant, transformed, wide

EPSILON = 1e-10  # added to the norm, outside the root, as lpips 0.1.4 has it
# of a squared norm; keeps the root's slope finite and no value from being what it is
SMALLEST = 1e-38
CHUNK = 1 << 17  # numbers in one piece, so that a few of them stay in cache

# What to do where an argument of lpips.LPIPS has another than its usual value
_INSTEAD = {
    "pnet_rand": "for a trunk of random weights give model=None",
    "pnet_tune": "the trunk is frozen; verydeep.models.backbone gives one to train",
    "model_path": "give the weights of the heads as tensors by layer, heads={'relu1_2': ...}",
    "eval_mode": "this loss is always in evaluation mode; leave eval_mode out",
}


def named(argument: str, net: str | None) -> None:
    """NetworkError for another net than VGG, and a warning where none was named."""
    if net is None:
        warnings.warn(
            f"{argument} was not named: this is LPIPS of VGG, where lpips and torchmetrics mean AlexNet "
            f'and give other values; write {argument}="vgg"',
            stacklevel=3,
        )
    elif net not in ("vgg", "vgg16"):
        raise NetworkError(
            f'{argument} {net!r} is not a VGG; expected "vgg", whose values are others, or use lpips'
        )


class LPIPS(Looking):
    """The learned perceptual distance between images, differentiable.

    The first eleven arguments are those of `lpips.LPIPS`; there is net="vgg" alone, in version "0.1", and
    always in evaluation mode, so dropout does nothing and there is nothing to print. lpips' default is
    another net: one warning says so where `net` is not named.

    lpips: False leaves the learned heads out: every channel weighs one. spatial: a map in place of a
    number. model: weights of VGG-16, as for `verydeep.models.backbone`. range: of float images: "-1..1",
    which is what lpips takes, "0..1", "0..255" or (black, white); uint8 images know theirs. heads:
    weights by layer, (c,) each, in place of the published. checkpointing: compute feature maps again in
    the backward pass instead of keeping them: True all, False none, None where they are large. check:
    refuse float images that contradict their range.
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str | None = None,
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,  # noqa: ARG002
        model_path: str | None = None,
        eval_mode: bool = True,
        verbose: bool = True,  # noqa: ARG002
        *,
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        range: Range = "-1..1",
        heads: Mapping[str, Tensor] | None = None,
        checkpointing: bool | None = None,
        check: bool = True,
    ) -> None:
        named("net", net)
        for name, (given, usual) in {
            "pnet_rand": (pnet_rand, False), "pnet_tune": (pnet_tune, False),
            "model_path": (model_path, None), "eval_mode": (eval_mode, True),
        }.items():  # fmt: skip
            if given != usual:
                raise NetworkError(f"{name}={given!r}: {_INSTEAD[name]}")
        if version != "0.1" or not pretrained:
            raise NetworkError(
                f"version {version!r}, pretrained={pretrained}: there are the heads of version 0.1 alone"
            )
        if heads is None:
            stored = load_file(HEADS_FILE)
            heads = {tap: stored[f"lpips.{tap}"] for tap in METRICS["lpips"].layers}
        trunk = Trunk(tuple(heads), model, network, checkpointing=checkpointing)
        super().__init__(trunk, range, check=check)
        self.spatial = spatial
        for tap, weights in heads.items():
            channels = trunk.body.channels[tap]
            if weights.shape != (channels,):
                raise NetworkError(
                    f"the head of {tap} has shape {tuple(weights.shape)}; expected ({channels},), a "
                    f"weight for each of its channels"
                )
            head = constant(weights if lpips else torch.ones(channels))
            self.register_buffer(f"head_{tap}", head, persistent=False)

    def forward(
        self,
        in0: Tensor,
        in1: Tensor | Reference,
        retPerLayer: bool = False,  # noqa: N803  # lpips has it so
        normalize: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """The distances, (n, 1, 1, 1), or (n, 1, h, w) where spatial; float32, or float64 as the images.

        in0, in1: images (n, 3, h, w), in1 also one for all or what `remember` gave. retPerLayer: also a
        list of the parts, one a layer. normalize: the images are in 0 to 1, whatever `range` says.
        """
        name = "0..1" if normalize else None
        trunk, x, y = self._pair(in0, in1, ("in0", "in1"), name)
        maps = trunk.look(x, y, Look(self._differences, "rows"))
        if self.spatial:
            size = x.shape[2:]
            parts = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
        else:
            parts = [m.mean((2, 3), keepdim=True) for m in maps]
        total = torch.stack(parts).sum(0)
        return (total, parts) if retPerLayer else total

    def remember(self, target: Tensor, normalize: bool = False) -> Reference:
        """The features of `target`, to be given as `in1`: computed once, without a graph."""
        return self._remembered(target, "0..1" if normalize else None)

    def _differences(self, tap: str, f0: Tensor, f1: Tensor) -> Tensor:
        weights: Tensor = getattr(self, f"head_{tap}")
        return unit_differences(f0, f1, weights)


def unit_differences(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
    """The weighted squared difference of unit vectors at each position, (n, 1, h, w), at least float32.

    f0: features (n, c, h, w). f1: the same, or (1, c, h, w) for all. weights: (c,).
    """
    with torch.autocast(f0.device.type, enabled=False):
        f0, f1 = wide(f0), wide(f1)
        weights = weights.to(f0.device, f0.dtype)
        # a compiler fuses it by itself, torch.func knows the plain operations alone
        if transformed():
            weights = weights[:, None, None]
            return ((_unit(f0, 1) - _unit(f1, 1)).square() * weights).sum(1, keepdim=True)
        differences: Tensor = _Differences.apply(f0, f1.expand_as(f0), weights)
        return differences


def _unit(f: Tensor, dim: int) -> Tensor:
    norm = f.square().sum(dim, keepdim=True).clamp_min(SMALLEST).sqrt()
    return f / (norm + EPSILON)


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
        n, _, height, width = f0.shape
        differences = f0.new_empty(n * height * width)
        for a, b, out in _chunks(f0, f1, differences):
            torch.mv((_unit(a, 1) - _unit(b, 1)).square_(), weights, out=out)
        return differences.view(n, 1, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f0, f1, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # to be differentiated once more
            g, w = gradient, weights[:, None, None]
            both = (_slope(f0, f1, w, g, 1), _slope(f1, f0, w, g, 1))
            return (*(d if need else None for d, need in zip(both, needed, strict=True)), None)
        n, channels, height, width = f0.shape
        slopes = [f0.new_empty(n * height * width, channels) if need else None for need in needed]
        outs = [f0 if rows is None else rows for rows in slopes]
        for a, b, g, out0, out1 in _chunks(f0, f1, gradient.reshape(-1), *outs):
            g = g[:, None]
            if needed[0]:
                out0.copy_(_slope(a, b, weights, g, 1))
            if needed[1]:
                out1.copy_(_slope(b, a, weights, g, 1))
        maps = [
            None if rows is None else rows.view(n, height, width, channels).permute(0, 3, 1, 2)
            for rows in slopes
        ]
        return (*maps, None)


def _slope(a: Tensor, b: Tensor, weights: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """d/da of gradient * sum of weights * (unit(a) - unit(b))^2; zero where a is."""
    squared = a.square().sum(dim, keepdim=True)
    norm = squared.clamp_min(SMALLEST).sqrt()
    unit = a / (norm + EPSILON)
    outer = (unit - _unit(b, dim)) * weights
    along = (outer * a).sum(dim, keepdim=True) / norm
    scale = torch.where(squared > 0, 2 * gradient / (norm + EPSILON), 0)
    return (outer - unit * along) * scale


def _chunks(*arrays: Tensor) -> Any:
    """Feature maps as rows of channels, and other arrays beside them, in pieces."""
    rows = [f.permute(0, 2, 3, 1).flatten(0, 2) if f.ndim == 4 else f for f in arrays]
    size = len(rows[0])
    if rows[0].device.type == "cpu":
        size = max(1, CHUNK // rows[0].shape[1])
    return zip(*(torch.split(r, size) for r in rows), strict=True)
