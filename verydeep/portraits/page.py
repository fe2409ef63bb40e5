"""A portrait as one HTML page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..files.wording import counted
from ..pictures import page as html
from ..pictures.block_figure import block_figure
from . import FIELDS, filter_picture, words

if TYPE_CHECKING:
    from . import Block, Portrait


def page(portrait: Portrait) -> str:
    """The text of the page, about as many kilobytes as its pictures."""
    parts = [_top(portrait), _figure(portrait), _filters(portrait)]
    if portrait.pixels is not None:
        parts += [_channels(portrait), _fields(portrait)]
    return html.page(words.title(portrait), parts)


def _top(portrait: Portrait) -> str:
    text = f"<h1>{escape(words.title(portrait))}</h1>\n<p>{escape(words.network(portrait))}</p>"
    if portrait.pixels is None:
        return text
    answer = ""
    if portrait.answer is not None:
        rows = "".join(
            f"<dt>{escape(guess.label)}</dt>{html.bar(guess.probability)}<dd>{guess.probability:.1%}</dd>"
            for guess in portrait.answer.predictions
        )
        answer = f'<p>{words.answer(portrait)}</p><dl class="said">{rows}</dl>'
    return (
        f'{text}\n<div class="top">{html.image(portrait.photo, words.name(portrait))}<div>'
        f"<p>{escape(words.photo(portrait))}</p>{answer}</div></div>"
    )


def _figure(portrait: Portrait) -> str:
    _, height, width = portrait.blocks[0].row.shape
    return html.section(
        "The network",
        "Boxes are its maps, to scale: their sides are the image's, halved by each pool; their thickness "
        "is the number of channels.",
        f'<div class="figure">{block_figure(portrait.network, height, width)}</div>',
    )


def _filters(portrait: Portrait) -> str:
    tiles = "".join(
        f"<figure>{html.image(filter_picture(one), f'filter {index}', 'pixels')}{html.bar(strength)}"
        f"<figcaption>{index}</figcaption></figure>"
        for index, (one, strength) in enumerate(
            zip(portrait.filters, portrait.strengths, strict=True)
        )
    )
    return html.section(*words.filters(portrait), f'<div class="filters">{tiles}</div>')


def _channels(portrait: Portrait) -> str:
    return html.section(*words.CHANNELS, *map(_block, portrait.blocks))


def _block(block: Block) -> str:
    maps = "".join(
        f"<figure>{html.image(one.picture, f'channel {one.index} of {block.layer}', 'pixels')}"
        f"<figcaption><b>{one.index}</b><span>{one.mean:.3g}</span></figcaption></figure>"
        for one in block.channels
    )
    return (
        f'<div class="block"><div><h3>{block.layer}</h3><p>{"<br>".join(words.units(block))}</p></div>'
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
        f"One unit of each block, all {words.place(portrait)}. Each convolution widens what a unit "
        "sees by two steps of its grid; each pool doubles the step. What lies beyond the photo is read as "
        "zero.",
        f'<div class="sees"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="the photo with receptive fields"><image id="photo" width="{width}" '
        f'height="{height}" href="{html.data(portrait.photo)}"/>{"".join(reversed(squares))}</svg>'
        f'<div class="fields">{"".join(rows)}</div></div>',
    )
