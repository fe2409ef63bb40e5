"""LPIPS as a loss: the call of the `lpips` package, half its time and a fraction of its memory.

Zhang et al. 2018, arXiv:1801.03924; values are those of lpips 0.1.4, version 0.1, net="vgg".

The distance at one layer is fused: unit vectors are made, compared and dropped in cache. Written with
torch's own operations it stores several arrays as large as the features, and its gradient is not a number
where an image's features are all zero, since a root has no slope there (PerceptualSimilarity#69, #121).
Here only the features themselves are kept, and where they are all zero the gradient is zero, as that of
the ReLU before it is.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..distances.metrics import HEADS_FILE, METRICS
from ..errors import NetworkError, WeightsError, log, warn
from ..models.module import hooked
from ..models.vgg import WeightsLike
from ..preprocess import Range
from ..published.foreign import read_tensors
from .trunk import Looking, Reference, constant, precise, transformed, wide

EPSILON = 1e-10  # added to the norm, outside the root, as lpips 0.1.4 has it
# of a squared norm; keeps the root's slope finite and no value from being what it is. A normal number of
# float32, since some processors are told to take less for 0.
SMALLEST = 2e-38
CHUNK = 1 << 17  # numbers in one piece, so that a few of them stay in cache
MOST_CHANNELS = 1024  # of which one row fits the registers of a kernel


def named(argument: str, net: str | None) -> None:
    """NetworkError for another net than VGG, and a warning where none was named."""
    if net is None:
        warn(
            f"{argument} was not named: this is LPIPS of VGG, where lpips and torchmetrics mean AlexNet "
            f'and give other values; write {argument}="vgg"'
        )
    elif net not in ("vgg", "vgg16"):
        raise NetworkError(
            f"Argument `{argument}` must be one of ('vgg', 'vgg16'), but got {net}: other nets have other "
            "values; for those use lpips"
        )


class LPIPS(Looking):
    """The learned perceptual distance between images, differentiable.

    The first eleven arguments are those of `lpips.LPIPS`, and mean the same, but that there is net="vgg"
    alone, in version "0.1"; that it is frozen and stays in evaluation mode whatever holds it, unless
    `pnet_tune` (trunk and heads learn) or eval_mode=False (the heads learn, with dropout) is asked for; and
    that nothing is printed. lpips' default is another net: one warning says so where `net` is not named.
    Parameters, buffers and keys of `state_dict` are those of `lpips.LPIPS`.

    lpips: False leaves the learned heads out: every channel weighs one. pretrained: False draws them.
    spatial: a map in place of a number. pnet_rand: a trunk of random weights. model_path: a file of heads
    as lpips has them, or of the whole. model: weights of VGG-16, as for `verydeep.models.backbone`. heads:
    weights by layer, (c,) each, in place of the published.
    options: network. range: of float images: "-1..1", the default, which is what lpips takes, "0..1",
    "0..255" or (black, white); uint8 images know theirs. checkpointing: compute feature maps again in
    the backward pass instead of keeping them: True all, False none, None, the default, where they are
    large. check: refuse float images that contradict their range, by default True.
    """

    of_each = True

    def __init__(
        self,
        pretrained: bool = True,
        net: str | None = None,
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | os.PathLike[str] | None = None,
        eval_mode: bool = True,
        verbose: bool = True,  # noqa: ARG002
        *,
        model: WeightsLike | None = "builtin",
        range: Range = "-1..1",
        heads: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        named("net", net)
        if version != "0.1":
            raise NetworkError(
                f'version {version!r} is not here; expected "0.1", whose values are others, or use lpips'
            )
        layers = tuple(heads or METRICS["lpips"].layers)
        super().__init__(layers, model=None if pnet_rand else model, range=range, **options)
        self.lpips, self.spatial, self.eval_mode = lpips, spatial, eval_mode
        # as lpips names them; its programs ask for them
        self.pnet_type, self.pnet_tune, self.pnet_rand = net or "vgg", pnet_tune, pnet_rand
        self.version, self.chns, self.L = version, list(self.channels.values()), len(layers)
        self.net.requires_grad_(pnet_tune)
        if lpips:
            if heads is None and pretrained and model_path is None:
                stored = load_file(HEADS_FILE)
                heads = {layer: stored[f"lpips.{layer}"] for layer in layers}
            lins = [
                _lin(layer, self.channels[layer], heads[layer] if heads else None, use_dropout)
                for layer in layers
            ]
            for number, lin in enumerate(lins):
                self.add_module(f"lin{number}", lin.requires_grad_(pnet_tune or not eval_mode))
            self.lins = nn.ModuleList(lins)  # as in lpips, by both names
        if model_path is not None:
            self._load(Path(model_path))
        self.train(not eval_mode)

    def _load(self, path: Path) -> None:
        """Heads from a file, and the trunk where it is there."""
        own = self.state_dict()
        state = {key: torch.from_numpy(values) for key, values in read_tensors(path).items()}
        needed = [key for key in own if key.startswith("lin") and not key.startswith("lins.")]
        known = [k for k, value in state.items() if k in own and own[k].shape == value.shape]
        if len(known) < len(state) or not set(needed) <= set(known):
            raise WeightsError(
                f"{path} does not hold heads of vgg as lpips has them: {', '.join(needed)}"
            )
        self.load_state_dict(state, strict=False)

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
        x, y = self._pair(in0, in1, ("in0", "in1"), name)
        whole = self.lpips and hooked(self.lins)  # a hook sees what it would in lpips
        maps = self.look(x, y, self._differences, None if whole else "rows")
        if self.spatial:
            size = x.shape[2:]
            parts = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
        else:
            parts = [m.mean((2, 3), keepdim=True) for m in maps]
        total = sum(parts[1:], parts[0])
        return (total, parts) if retPerLayer else total

    def remember(self, target: Tensor, normalize: bool = False) -> Reference:
        """The features of `target`, to be given as `in1`: computed once, without a graph."""
        return self._remembered(target, "0..1" if normalize else None)

    def _differences(self, layer: str, f0: Tensor, f1: Tensor) -> Tensor:
        if not self.lpips:
            return unit_differences(f0, f1, f0.new_ones(f0.shape[1]))
        lin: Any = self.lins[self.layers.index(layer)]
        weight: Tensor = lin.model[-1].weight
        if not (weight.requires_grad or self.training or hooked(lin)):
            return unit_differences(f0, f1, weight.flatten())
        with precise(f0):
            return cast(Tensor, lin((_unit(wide(f0)) - _unit(wide(f1))).square()))


def _lin(layer: str, channels: int, weights: Tensor | None, use_dropout: bool) -> nn.Module:
    """A head, under the names that it has in lpips."""
    with torch.inference_mode(False):
        convolution = nn.Conv2d(channels, 1, 1, bias=False, device="meta")
        convolution.to_empty(device=torch.get_default_device())
    if weights is None:
        convolution.reset_parameters()
    elif weights.shape == (channels,):
        convolution.weight.data = constant(weights).view(1, -1, 1, 1)
    else:
        raise NetworkError(
            f"the head of {layer} has shape {tuple(weights.shape)}; expected ({channels},), a "
            f"weight for each of its channels"
        )
    dropout = [nn.Dropout()] if use_dropout else []
    return nn.Sequential(OrderedDict(model=nn.Sequential(*dropout, convolution)))


def unit_differences(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
    """The weighted squared difference of unit vectors at each position, (n, 1, h, w), at least float32.

    f0: features (n, c, h, w). f1: the same, or (1, c, h, w) for all. weights: (c,).
    """
    with precise(f0):
        # a compiler fuses it by itself, torch.func knows the plain operations alone
        plain = transformed()
        if plain or not _kernels(f0):
            f0, f1 = wide(f0), wide(f1)
        weights = weights.to(f0.device, torch.promote_types(f0.dtype, torch.float32)).contiguous()
        if plain:
            weights = weights[:, None, None]
            return ((_unit(f0) - _unit(f1)).square() * weights).sum(1, keepdim=True)
        differences: Tensor = _Differences.apply(f0, f1.expand_as(f0), weights)
        return differences


def _unit(f: Tensor) -> Tensor:
    norm = f.square().sum(1, keepdim=True).clamp_min(SMALLEST).sqrt()
    return f / (norm + EPSILON)


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(f0: Tensor, f1: Tensor, weights: Tensor) -> Tensor:
        n, _, height, width = f0.shape
        if kernels := _kernels(f0):
            return cast(Tensor, kernels.differences(f0, f1, weights))
        differences = f0.new_empty(n * height * width)
        for a, b, out in _chunks(f0, f1, differences):
            torch.mv((_unit(a) - _unit(b)).square_(), weights, out=out)
        return differences.view(n, 1, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f0, f1, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # to be differentiated once more
            g, w, a, b = gradient, weights[:, None, None], wide(f0), wide(f1)
            both = (_slope(a, b, w, g).to(f0.dtype), _slope(b, a, w, g).to(f1.dtype))
            return (*(d if need else None for d, need in zip(both, needed, strict=True)), None)
        if kernels := _kernels(f0):
            return (*kernels.slopes(f0, f1, weights, gradient, needed), None)
        n, channels, height, width = f0.shape
        slopes = [f0.new_empty(n * height * width, channels) if need else None for need in needed]
        outs = [f0 if rows is None else rows for rows in slopes]
        for a, b, g, out0, out1 in _chunks(f0, f1, gradient.reshape(-1), *outs):
            g = g[:, None]
            if needed[0]:
                out0.copy_(_slope(a, b, weights, g))
            if needed[1]:
                out1.copy_(_slope(b, a, weights, g))
        maps = [
            None if rows is None else rows.view(n, height, width, channels).permute(0, 3, 1, 2)
            for rows in slopes
        ]
        return (*maps, None)


def _kernels(f: Tensor) -> ModuleType | None:
    """What compares features such as these in one pass, where a GPU and Triton are there."""
    known = f.device.type == "cuda" and f.dtype != torch.float64 and f.numel() > 0
    return _triton(f.device) if known and f.shape[1] <= MOST_CHANNELS else None


@cache
def _triton(device: torch.device) -> ModuleType | None:
    """The kernels, tried there once; None where Triton is not there, or has no compiler to work with."""
    try:
        from . import fused

        tried = torch.zeros(1, 4, 1, 1, device=device)
        fused.differences(tried, tried, tried.flatten())
    except torch.OutOfMemoryError:  # says nothing of Triton
        raise
    except Exception as error:  # of Triton, of the compiler, of the driver
        log.info(f"LPIPS is computed without Triton's kernels: {str(error).partition(chr(10))[0]}")
        return None
    return fused


def _slope(a: Tensor, b: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """d/da of gradient * sum of weights * (unit(a) - unit(b))^2; zero where a is."""
    squared = a.square().sum(1, keepdim=True)
    norm = squared.clamp_min(SMALLEST).sqrt()
    unit = a / (norm + EPSILON)
    outer = (unit - _unit(b)) * weights
    along = (outer * a).sum(1, keepdim=True) / norm
    scale = torch.where(squared > 0, 2 * gradient / (norm + EPSILON), 0)
    return (outer - unit * along) * scale


def _chunks(*arrays: Tensor) -> Any:
    """Feature maps as rows of channels, and other arrays beside them, in pieces."""
    rows = [f.permute(0, 2, 3, 1).flatten(0, 2) if f.ndim == 4 else f for f in arrays]
    if rows[0].device.type != "cpu":  # there is no such cache, and each operation costs its launch
        return [rows]
    size = max(1, CHUNK // rows[0].shape[1])
    return zip(*(torch.split(r, size) for r in rows), strict=True)
