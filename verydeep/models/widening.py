"""A wider network that computes what a narrow one does, to train on from there.

Chen, Goodfellow and Shlens 2015, "Net2Net: Accelerating Learning via Knowledge Transfer", arXiv:1511.05641,
section 2.2: channels are repeated, and what reads a repeated channel shares its weight out among the
copies. Shares are drawn at random, so that copies, equal at first, learn different things.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import WeightsError
from ..nets import Network
from .loading import Weights

LEAST_SHARE = 0.25  # of the largest, before shares are made to sum to one


def widened(weights: Weights, network: Network) -> Weights:
    """The weights for `network`, which is theirs with a greater width; its scores are the same.

    Shares are drawn from torch's generator. WeightsError where the networks differ in more than the width,
    or `network` is the narrower one.
    """
    found = weights.network
    pairs = list(zip(found.layers, network.layers, strict=False))
    same = (
        len(found.layers) == len(network.layers)
        and found.head == network.head
        and all((a.name, a.kernel, a.norm_key) == (b.name, b.kernel, b.norm_key) for a, b in pairs)
        and found.in_channels == network.in_channels
    )
    # response normalisation sums over neighbours, whom repeating channels changes
    fixed = any(layer.kind == "lrn" for layer in found.trunk) and network.width != found.width
    if not same or fixed or network.width < found.width:
        raise WeightsError(
            f"{found.name} of width {found.width:g} cannot become {network.name} of width "
            f"{network.width:g}; expected the same network, wider, and none with LRN"
        )
    tensors: dict[str, Tensor] = {}
    source = torch.arange(found.in_channels)  # the narrow channel that each is a copy of
    sources: dict[str, Tensor] = {}  # the same by layer, for the head
    for old, new in pairs:
        if old.kind == "average":
            source = _averaged(found, sources, old.kernel)
        if old.kind in ("conv", "fc"):
            made = torch.arange(new.outputs) % old.outputs
            weight = weights.tensors[f"{old.key}.weight"][made][:, source]
            weight = weight * _shares(source, len(made)).reshape(
                weight.shape[:2] + (1,) * (weight.dim() - 2)
            )
            tensors[f"{new.key}.weight"] = weight.contiguous()
            for key in old.tensors:
                if key != f"{old.key}.weight":
                    value = weights.tensors[key]
                    tensors[key] = value[made].clone() if value.dim() else value.clone()
            source = made
        sources[new.name] = source
    record = weights.record
    if record is not None:
        record = replace(record, network=network, measured=())
    return Weights(network, {key: tensors[key] for key in network.tensors}, record)


def _shares(source: Tensor, outputs: int) -> Tensor:
    """(outputs, inputs): of each output's weight on a narrow channel, what each of its copies gets."""
    drawn = LEAST_SHARE + (1 - LEAST_SHARE) * torch.rand(outputs, len(source))
    sums = torch.zeros(outputs, int(source.max()) + 1).index_add_(1, source, drawn)
    return drawn / sums[:, source]


def _averaged(found: Network, sources: dict[str, Tensor], grid: int) -> Tensor:
    """For what the first FC layer reads: a grid of each channel of the layers that the head reads."""
    parts, offset = [], 0
    for name in found.head_inputs:
        parts.append(sources[name] + offset)
        offset += found.layer(name).outputs
    joined = torch.cat(parts)
    places = torch.arange(grid * grid)
    return (joined[:, None] * grid * grid + places).reshape(-1)
