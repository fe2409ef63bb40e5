"""Which layers compute in integers, and which values are rounded for them: read off the table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..errors import LayerError, nearest
from ..nets import Network


@dataclass(frozen=True)
class Plan:
    """What `plan` found, all by paper names and in the order of the table.

    layers: the convolutions and FC layers that compute in integers. sources: for each of them the value
    that is rounded for it, "input" or a layer; max pools hand a rounded value on, so that it is one from
    before them. places: all values that are rounded. ONNX Runtime computes a layer that a ReLU follows in
    integers only where what comes out is rounded too, so the ReLUs after `layers` are among them.
    """

    layers: tuple[str, ...]
    sources: dict[str, str]
    places: tuple[str, ...]


def plan(network: Network, floats: Collection[str] = ()) -> Plan:
    """All layers with weights in integers, but for `floats`; LayerError where one of them has none."""
    weighted = [layer.name for layer in network.layers if layer.key]
    for name in floats:
        if name not in weighted:
            raise LayerError(
                f"{network.name} has no layer {name!r} with weights{nearest(name, weighted)}"
            )
    sources: dict[str, str] = {}
    rounded = set()
    value, last = "input", ""  # what the next layer reads, and the last layer with weights
    for layer in network.layers:
        if layer.key:
            last = layer.name
            if last not in floats:
                sources[last] = value
                rounded.add(value)
        elif layer.kind == "relu" and last in sources:
            rounded.add(layer.name)
        if not (layer.kind == "pool" and network.pool == "max"):
            value = layer.name
    order = ["input", *(layer.name for layer in network.layers)]
    places = tuple(name for name in order if name in rounded)
    return Plan(tuple(sources), sources, places)
