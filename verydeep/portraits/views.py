"""A portrait as one HTML page, and as one contact picture of what is on it, in the same words."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..files.wording import counted
from ..pictures import layout
from ..pictures import page as html
from ..pictures.block_figure import block_figure
from ..pictures.layout import FAINT, INK, SMALL, TITLE, caption

if TYPE_CHECKING:
    from . import Block, Portrait

# Of the units' fields, one a block, from the first: inferno's steps that show on light and dark photos.
FIELDS = ((252, 255, 164), (251, 165, 10), (238, 85, 50), (201, 60, 140), (120, 70, 220))
WIDTH = 1180  # of the picture
PHOTO, SIDE, GAP = 360, 150, 12  # the photo's longer side, room for a row's words, between tiles
FILTER, BAR = 60, (228, 230, 234)

CHANNELS = (
    "The strongest channels of each block",
    "The maps with the largest mean after the block's last ReLU, strongest first, with their number and "
    "mean. Black is 0, pale yellow the map's own largest value. From block to block they answer to larger "
    "and rarer things.",
)


def _title(portrait: Portrait) -> str:
    return f"{portrait.network.name} from inside"


def _network(portrait: Portrait) -> str:
    layers = counted(portrait.network.weight_layers, "layer")
    millions = portrait.network.parameters / 1e6
    return f"{portrait.model}: {layers} with {millions:.1f} million weights."


def _name(portrait: Portrait) -> str:
    return Path(portrait.path).name if portrait.path else "the image"


def _photo(portrait: Portrait) -> str:
    width, height = portrait.photo.size
    return f"{_name(portrait)}, which the network looks at with {width} x {height} pixels here."


def _answer(portrait: Portrait) -> str:
    doubt = "" if portrait.answer is None or portrait.answer.sure else " It is not sure."
    return f"What it says of the photo at its own size.{doubt}"


def _filters(portrait: Portrait) -> tuple[str, str]:
    """The heading, and what their tiles show."""
    first = portrait.network.trunk[0]
    return (
        f"The {counted(len(portrait.filters), 'filter')} of the first layer",
        f"Each filter of {first.name} weighs {first.kernel} x {first.kernel} pixels. Grey is a weight of "
        "nothing; lighter and darker are what it adds and takes away in each colour. Each tile has its own "
        "contrast, and the bar is the filter's strength beside the strongest one's.",
    )


def _units(block: Block) -> tuple[str, str, str]:
    channels, height, width = block.row.shape
    return (
        counted(channels, "map"),
        f"of {width} x {height} units",
        f"each sees {counted(block.row.receptive_field, 'pixel')}",
    )


def _place(portrait: Portrait) -> str:
    """Where the units are that a portrait shows."""
    last = portrait.blocks[-1]
    return f"where channel {last.channels[0].index} of {last.layer} is strongest"


def filter_picture(weights: np.ndarray) -> Image.Image:
    """A filter (channels, height, width) as a picture of as many pixels: zero is middle grey."""
    shown = 0.5 + weights / (2 * max(float(np.abs(weights).max()), 1e-30))
    if len(shown) != 3:
        shown = np.repeat(shown.mean(0, keepdims=True), 3, 0)
    return Image.fromarray(np.rint(shown.transpose(1, 2, 0) * 255).astype(np.uint8))


# The picture


def picture(portrait: Portrait) -> Image.Image:
    """An RGB picture; without a photo only the filters are there."""
    parts = [_head(portrait), _filter_tiles(portrait)]
    if portrait.pixels is not None:
        parts.append(_block_rows(portrait))
    return layout.column(*parts, gap=44, margin=layout.MARGIN)


def _text(width: int, heading: str, text: str) -> Image.Image:
    title = caption(width, heading, size=TITLE)
    return layout.column(title, layout.paragraph(text, width), gap=4)


def _head(portrait: Portrait) -> Image.Image:
    if portrait.pixels is None:
        return _text(WIDTH, _title(portrait), _network(portrait))
    photo = _outlined(portrait)
    width = WIDTH - photo.width - 2 * GAP
    parts = [
        _text(width, _title(portrait), _network(portrait)),
        layout.paragraph(
            f"{_photo(portrait)} The squares are what a unit of each block sees.", width
        ),
    ]
    if portrait.answer is not None:
        guesses = (
            f"{guess.label} {guess.probability:.1%}" for guess in portrait.answer.predictions
        )
        parts += [layout.paragraph(line, width) for line in (_answer(portrait), ", ".join(guesses))]
    return layout.row(photo, layout.column(*parts, gap=10), gap=2 * GAP)


def _outlined(portrait: Portrait) -> Image.Image:
    """The photo with the fields as squares."""
    photo = layout.fitted(portrait.photo, PHOTO)
    factor = photo.width / portrait.photo.width
    pen = ImageDraw.Draw(photo)
    for box, colour in reversed(list(zip(portrait.fields, FIELDS, strict=False))):
        left, top, right, bottom = (round(value * factor) for value in box)
        for grown, line, width in ((2, INK, 4), (1, colour, 2)):
            outline = (left - grown, top - grown, right + grown - 1, bottom + grown - 1)
            pen.rectangle(outline, outline=line, width=width)
    return photo


def _filter_tiles(portrait: Portrait) -> Image.Image:
    columns = math.ceil(len(portrait.filters) / math.ceil(len(portrait.filters) / 16))
    tiles = [
        layout.column(
            filter_picture(one).resize((FILTER, FILTER), Image.Resampling.NEAREST),
            3, layout.bar(strength, FILTER, 4, INK, BAR), 3,
            caption(FILTER, middle=str(index), size=13),
        )
        for index, (one, strength) in enumerate(
            zip(portrait.filters, portrait.strengths, strict=True)
        )
    ]  # fmt: skip
    return layout.column(_text(WIDTH, *_filters(portrait)), layout.grid(tiles, columns, 14), gap=18)


def _block_rows(portrait: Portrait) -> Image.Image:
    """The strongest maps of each block, each in the colours of its own range."""
    count = max(4, *(len(block.channels) for block in portrait.blocks))
    tile = layout.fitted(portrait.photo, (WIDTH - SIDE - (count - 1) * GAP) // count).size
    rows = []
    for block, colour in zip(portrait.blocks, FIELDS, strict=False):
        said = [caption(SIDE, block.layer, size=21), layout.bar(1, 60, 4, colour, BAR)]
        said += [layout.paragraph(line, SIDE, SMALL) for line in _units(block)]
        maps = [
            layout.column(
                one.picture.resize(tile, Image.Resampling.NEAREST), 4,
                caption(tile[0], str(one.index), right=f"{one.mean:.3g}", size=SMALL,
                               colours=(INK, FAINT, FAINT)),
            )
            for one in block.channels
        ]  # fmt: skip
        rows.append(layout.row(layout.column(*said), layout.row(*maps, gap=GAP)))
    return layout.column(_text(WIDTH, *CHANNELS), 8, *rows, gap=GAP)


# The page


def page(portrait: Portrait) -> str:
    """The text of the page, about as many kilobytes as its pictures."""
    parts = [_page_head(portrait), _figure(portrait), _filter_figures(portrait)]
    if portrait.pixels is not None:
        parts += [html.section(*CHANNELS, *map(_block, portrait.blocks)), _fields(portrait)]
    return html.page(_title(portrait), parts)


def _page_head(portrait: Portrait) -> str:
    text = f"<h1>{escape(_title(portrait))}</h1>\n<p>{escape(_network(portrait))}</p>"
    if portrait.pixels is None:
        return text
    answer = ""
    if portrait.answer is not None:
        rows = "".join(
            f"<dt>{escape(guess.label)}</dt>{html.bar(guess.probability)}<dd>{guess.probability:.1%}</dd>"
            for guess in portrait.answer.predictions
        )
        answer = f'<p>{_answer(portrait)}</p><dl class="said">{rows}</dl>'
    return (
        f'{text}\n<div class="top">{html.image(portrait.photo, _name(portrait))}<div>'
        f"<p>{escape(_photo(portrait))}</p>{answer}</div></div>"
    )


def _figure(portrait: Portrait) -> str:
    _, height, width = portrait.blocks[0].row.shape
    return html.section(
        "The network",
        "Boxes are its maps, to scale: their sides are the image's, halved by each pool; their thickness "
        "is the number of channels.",
        *(
            f'<div class="figure {kind}">'
            f"{block_figure(portrait.network, height, width, narrow=kind == 'narrow')}</div>"
            for kind in ("broad", "narrow")  # the style shows the one for which there is room
        ),
    )


def _filter_figures(portrait: Portrait) -> str:
    tiles = "".join(
        f"<figure>{html.image(filter_picture(one), f'filter {index}', 'pixels')}{html.bar(strength)}"
        f"<figcaption>{index}</figcaption></figure>"
        for index, (one, strength) in enumerate(
            zip(portrait.filters, portrait.strengths, strict=True)
        )
    )
    return html.section(*_filters(portrait), f'<div class="filters">{tiles}</div>')


def _block(block: Block) -> str:
    maps = "".join(
        f"<figure>{html.image(one.picture, f'channel {one.index} of {block.layer}', 'pixels')}"
        f"<figcaption><b>{one.index}</b><span>{one.mean:.3g}</span></figcaption></figure>"
        for one in block.channels
    )
    return (
        f'<div class="block"><div><h3>{block.layer}</h3><p>{"<br>".join(_units(block))}</p></div>'
        f'<div class="maps">{maps}</div></div>'
    )


def _fields(portrait: Portrait) -> str:
    width, height = portrait.photo.size
    squares, rows = [], []
    for block, box, rgb in zip(portrait.blocks, portrait.fields, FIELDS, strict=False):
        left, top, right, bottom = box
        colour = f"rgb{rgb}"
        square = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="none"'
        squares.append(
            f'<rect {square} stroke="#181a1e" stroke-width="2.2"/>'
            f'<rect {square} stroke="{colour}" stroke-width="1.1"><title>{block.layer}</title></rect>'
        )
        row = block.row
        rows.append(
            f'<div class="field"><svg viewBox="{left} {top} {right - left} {bottom - top}" '
            f'style="border-color:{colour}" role="img" aria-label="what a unit of {block.layer} sees">'
            f'<use href="#photo"/></svg><div><h3>{block.layer}</h3><p>sees {row.receptive_field} x '
            f"{row.receptive_field} pixels<br>{row.shape[2]} x {row.shape[1]} units, "
            f"{counted(row.stride, 'pixel')} apart</p></div></div>"
        )
    return html.section(
        "What a unit sees",
        f"One unit of each block, all {_place(portrait)}. Each convolution widens what a unit "
        "sees by two steps of its grid; each pool doubles the step. What lies beyond the photo is read as "
        "zero.",
        f'<div class="sees"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="the photo with receptive fields"><image id="photo" width="{width}" '
        f'height="{height}" href="{html.data(portrait.photo)}"/>{"".join(reversed(squares))}</svg>'
        f'<div class="fields">{"".join(rows)}</div></div>',
    )
