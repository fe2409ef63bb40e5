"""A wider network that begins as a narrow one: the same answers, then more room."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import WeightsError
from ..nets import Network
from .loading import Trained

CPU = torch.device("cpu")  # where the weights of a file are, whatever torch's default
LEAST_SHARE = 0.25  # of the largest, before the shares of a repeated channel are made to sum to one


def widened(trained: Trained, width: float) -> Trained:
    """The weights for the same network with a greater `width`, whose scores are the same.

    Chen, Goodfellow and Shlens 2015, "Net2Net: Accelerating Learning via Knowledge Transfer",
    arXiv:1511.05641, section 2.2: channels are repeated, and what reads a repeated channel shares its
    weight out among the copies. Shares are drawn from torch's generator, so that copies, equal at
    first, learn different things. WeightsError where `width` is smaller, or there is an LRN.
    """
    old, network = trained.network, replace(trained.network, width=width)
    # response normalisation sums over neighbours, whom repeating channels changes
    fixed = width != old.width and any(layer.kind == "lrn" for layer in old.trunk)
    if fixed or old.channels or width < old.width:
        raise WeightsError(
            f"{old.name} of {old.widths} cannot become one of width {width:g}; expected a greater width, "
            "and a network without LRN or channels of its own"
        )
    tensors: dict[str, Tensor] = {}
    source = torch.arange(old.in_channels, device=CPU)  # the narrow channel that each is a copy of
    sources: dict[str, Tensor] = {}  # the same by layer, for the head
    for narrow, wide in zip(old.layers, network.layers, strict=True):
        if narrow.kind == "average":
            source = _averaged(old, sources, narrow.kernel)
        if narrow.kind in ("conv", "fc"):
            copies = torch.arange(wide.outputs, device=CPU) % narrow.outputs
            weight = trained.tensors[f"{narrow.key}.weight"][copies][:, source]
            shares = _shares(source, len(copies))
            weight = weight * shares.reshape(weight.shape[:2] + (1,) * (weight.dim() - 2))
            tensors[f"{narrow.key}.weight"] = weight.contiguous()
            for key in list(narrow.tensors)[1:]:  # all but the weight
                value = trained.tensors[key]
                tensors[key] = (value[copies] if value.dim() else value).clone()
            source = copies
        sources[wide.name] = source
    record = trained.record
    if record is not None:
        record = replace(record, network=network, measured=())
    return Trained(network, {key: tensors[key] for key in network.tensors}, record)


def _shares(source: Tensor, outputs: int) -> Tensor:
    """(outputs, inputs): of each output's weight on a narrow channel, what each of its copies gets."""
    drawn = torch.rand(outputs, len(source), device=CPU, dtype=torch.float32)
    drawn = LEAST_SHARE + (1 - LEAST_SHARE) * drawn
    sums = drawn.new_zeros(outputs, int(source.max()) + 1).index_add_(1, source, drawn)
    return drawn / sums[:, source]


def _averaged(network: Network, sources: dict[str, Tensor], grid: int) -> Tensor:
    """For what the first FC layer reads: a grid of each channel of the layers that the head reads."""
    parts, offset = [], 0
    for name in network.head_inputs:
        parts.append(sources[name] + offset)
        offset += network.layer(name).outputs
    joined = torch.cat(parts)
    places = torch.arange(grid * grid, device=CPU)
    return (joined[:, None] * grid * grid + places).reshape(-1)
