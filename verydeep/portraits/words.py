"""What a portrait says in words, on its page and in its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files.wording import counted

if TYPE_CHECKING:
    from . import Block, Portrait


def title(portrait: Portrait) -> str:
    return f"{portrait.network.name} from inside"


def network(portrait: Portrait) -> str:
    layers = counted(portrait.network.weight_layers, "layer")
    return (
        f"{portrait.model}: {layers} with {portrait.network.parameters / 1e6:.1f} million weights."
    )


def name(portrait: Portrait) -> str:
    return Path(portrait.path).name if portrait.path else "the image"


def photo(portrait: Portrait) -> str:
    width, height = portrait.photo.size
    return f"{name(portrait)}, which the network looks at with {width} x {height} pixels here."


def answer(portrait: Portrait) -> str:
    doubt = "" if portrait.answer is None or portrait.answer.sure else " It is not sure."
    return f"What it says of the photo at its own size.{doubt}"


def filters(portrait: Portrait) -> tuple[str, str]:
    """The heading, and what their tiles show."""
    count, first = len(portrait.filters), portrait.network.trunk[0]
    return (
        f"The {counted(count, 'filter')} of the first layer",
        f"Each filter of {first.name} weighs {first.kernel} x {first.kernel} pixels. Grey is a weight of "
        "nothing; lighter and darker are what it adds and takes away in each colour. Each tile has its own "
        "contrast, and the bar is the filter's strength beside the strongest one's.",
    )


CHANNELS = (
    "The strongest channels of each block",
    "The maps with the largest mean after the block's last ReLU, strongest first, with their number and "
    "mean. Black is 0, pale yellow the map's own largest value. From block to block they answer to larger "
    "and rarer things.",
)


def units(block: Block) -> tuple[str, str, str]:
    channels, height, width = block.row.shape
    return (
        counted(channels, "map"),
        f"of {width} x {height} units",
        f"each sees {counted(block.row.receptive_field, 'pixel')}",
    )


def place(portrait: Portrait) -> str:
    """Where the units are that a portrait shows."""
    last = portrait.blocks[-1]
    return f"where channel {last.channels[0].index} of {last.layer} is strongest"
