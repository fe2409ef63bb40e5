"""A portrait as one HTML page: its pictures lie inside it as data, so that it opens without a network."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..pictures.block_figure import block_figure
from ..pictures.layout import FIELDS, photo
from . import channels, fields, filters

if TYPE_CHECKING:
    from PIL import Image

    from . import Block, Portrait

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1f2530; --faint: #5d6675;
  --line: #e3e4e8; --mark: #c9513f }
@media (prefers-color-scheme: dark) { :root { --paper: #15171c; --card: #1d2027; --ink: #e9eaee;
  --faint: #a3abb8; --line: #2d313a; --mark: #ee8a6f } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 64px }
h1 { font-size: 2.4rem; line-height: 1.1; margin: 0 0 .2rem; letter-spacing: -.02em }
h2 { font-size: 1.45rem; margin: 3.2rem 0 .3rem; letter-spacing: -.01em }
p { max-width: 44rem; margin: .3rem 0 1.2rem; color: var(--faint) }
figure { margin: 0 }
img, svg { display: block; max-width: 100%; height: auto }
.pixels { image-rendering: pixelated }
.top { display: grid; grid-template-columns: minmax(0, 300px) 1fr; gap: 32px; align-items: center;
  margin-top: 1.6rem }
.top > img { width: 100%; border-radius: 10px }
.said { display: grid; grid-template-columns: auto 1fr auto; gap: .45rem .9rem; align-items: center;
  margin: 0 }
.said dt { font-weight: 600 }
.said dd { margin: 0; color: var(--faint); font-variant-numeric: tabular-nums }
.bar { height: 10px; border-radius: 5px; background: var(--line); overflow: hidden }
.bar i { display: block; height: 100%; background: var(--mark) }
.card { background: #fbfaf7; border: 1px solid var(--line); border-radius: 10px; padding: 8px;
  overflow-x: auto }
.card svg { min-width: 760px; width: 100%; height: auto }
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); gap: 14px 12px }
.filters img { width: 100%; aspect-ratio: 1; border-radius: 4px }
.filters .bar { height: 4px; margin-top: 4px }
.filters .bar i { background: var(--ink) }
figcaption { font-size: .8rem; color: var(--faint); display: flex; justify-content: space-between;
  font-variant-numeric: tabular-nums }
.block { display: grid; grid-template-columns: 150px 1fr; gap: 18px; padding: 16px 0;
  border-top: 1px solid var(--line) }
.block h3 { margin: 0; font-size: 1.1rem }
.block p { margin: 0; font-size: .85rem }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 10px }
.maps img { width: 100%; border-radius: 4px }
.sees { display: grid; grid-template-columns: minmax(0, 1.2fr) 1fr; gap: 28px }
.sees > svg { width: 100%; height: auto; border-radius: 10px }
.fields { display: grid; gap: 14px; align-content: start }
.field { display: grid; grid-template-columns: 104px 1fr; gap: 16px; align-items: center }
.field svg { width: 104px; height: 104px; border-radius: 6px; border: 4px solid; background: var(--line) }
.field h3 { margin: 0; font-size: 1.05rem }
.field p { margin: 0; font-size: .9rem }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--faint);
  font-size: .85rem }
@media (max-width: 720px) { .top, .sees, .block { grid-template-columns: 1fr } main { padding: 28px 16px } }
"""


def page(portrait: Portrait) -> str:
    """The text of the page, about as many kilobytes as its pictures."""
    network = portrait.network
    heading = escape(network.name)
    parts = [_top(portrait), _figure(portrait), _filters(portrait)]
    if portrait.pixels is not None:
        parts += [_channels(portrait), _fields(portrait)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading} from inside</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n<footer>Made by verydeep {__version__}. The networks are those of Simonyan and Zisserman, "
        "arXiv:1409.1556. Nothing on this page is fetched.</footer>\n</main>\n</body>\n</html>\n"
    )


def _top(portrait: Portrait) -> str:
    network = portrait.network
    count = f"{network.parameters / 1e6:.1f} million weights"
    text = (
        f"<h1>{escape(network.name)} from inside</h1>\n<p>{escape(portrait.model)}: "
        f"{network.weight_layers} layers with {count}.</p>"
    )
    if portrait.pixels is None:
        return text
    height, width = portrait.pixels.shape[:2]
    name = escape(Path(portrait.path).name if portrait.path else "the image")
    answer = ""
    if portrait.answer is not None:
        answer = "".join(
            f"<dt>{escape(guess.label)}</dt><div class=bar><i style='width:{guess.probability:.1%}'></i>"
            f"</div><dd>{guess.probability:.1%}</dd>"
            for guess in portrait.answer.predictions
        )
        doubt = "" if portrait.answer.sure else " It is not sure."
        answer = (
            f"<p>What it says of the photo at its own size.{doubt}</p><dl class=said>{answer}</dl>"
        )
    return (
        f"{text}\n<div class=top>{_image(photo(portrait), name)}<div><p>{name}, which the network looks at "
        f"with {width} x {height} pixels here.</p>{answer}</div></div>"
    )


def _figure(portrait: Portrait) -> str:
    _, height, width = portrait.blocks[0].row.shape
    return (
        "<h2>The network</h2>\n<p>Boxes are its maps, to scale: their sides are the image's, halved by "
        "each pool; their thickness is the number of channels.</p>\n<div class=card>"
        f"{block_figure(portrait.network, height, width)}</div>"
    )


def _filters(portrait: Portrait) -> str:
    weights = portrait.filters
    strength = (weights**2).sum((1, 2, 3)) ** 0.5
    strength = strength / max(float(strength.max()), 1e-30)
    first = portrait.network.trunk[0]
    tiles = "".join(
        f"<figure>{_image(filters.tile(one), f'filter {index}', 'pixels')}<div class=bar>"
        f"<i style='width:{strength[index]:.0%}'></i></div><figcaption>{index}</figcaption></figure>"
        for index, one in enumerate(weights)
    )
    return (
        f"<h2>The {len(weights)} filters of the first layer</h2>\n<p>Each filter of {first.name} weighs "
        f"{first.kernel} x {first.kernel} pixels. Grey is a weight of nothing; lighter and darker are what "
        "it adds and takes away in each colour. Each tile has its own contrast, and the bar is the "
        f"filter's strength beside the strongest one's.</p>\n<div class=filters>{tiles}</div>"
    )


def _channels(portrait: Portrait) -> str:
    return (
        "<h2>The strongest channels of each block</h2>\n<p>The maps with the largest mean after the "
        "block's last ReLU, strongest first, with their number and mean. Black is 0, pale yellow the map's "
        "own largest value. From block to block they answer to larger and rarer things.</p>\n"
        + "\n".join(_block(block) for block in portrait.blocks)
    )


def _block(block: Block) -> str:
    count, height, width = block.row.shape
    maps = "".join(
        f"<figure>{_image(channels.tile(one.map), f'channel {one.index} of {block.layer}', 'pixels')}"
        f"<figcaption><b>{one.index}</b><span>{one.mean:.3g}</span></figcaption></figure>"
        for one in block.channels
    )
    return (
        f"<div class=block><div><h3>{block.layer}</h3><p>{count} maps<br>of {width} x {height} units<br>"
        f"each sees {block.row.receptive_field} pixels</p></div><div class=maps>{maps}</div></div>"
    )


def _fields(portrait: Portrait) -> str:
    image = photo(portrait)
    width, height = image.size
    boxes = fields.fields(portrait)
    squares, rows = [], []
    for block, box, rgb in zip(portrait.blocks, boxes, FIELDS, strict=False):
        left, top, right, bottom = box
        colour = f"rgb{rgb}"
        square = f"x='{left}' y='{top}' width='{right - left}' height='{bottom - top}' fill='none'"
        squares.append(
            f"<rect {square} stroke='#181a1e' stroke-width='2.2'/>"
            f"<rect {square} stroke='{colour}' stroke-width='1.1'><title>{block.layer}</title></rect>"
        )
        first, second = fields.facts(block)
        rows.append(
            f"<div class=field><svg viewBox='{left} {top} {right - left} {bottom - top}' "
            f"style='border-color:{colour}' role=img aria-label='what a unit of {block.layer} sees'>"
            f"<use href='#photo'/></svg><div><h3>{block.layer}</h3><p>{first}<br>{second}</p></div></div>"
        )
    return (
        f"<h2>What a unit sees</h2>\n<p>{escape(fields.said(portrait))}</p>\n<div class=sees>"
        f"<svg viewBox='0 0 {width} {height}' role=img aria-label='the photo with receptive fields'>"
        f"<image id=photo width='{width}' height='{height}' href='{_data(image)}'/>"
        f"{''.join(reversed(squares))}</svg><div class=fields>{''.join(rows)}</div></div>"
    )


def _image(image: Image.Image, alt: str, kind: str = "") -> str:
    shown = f" class={kind}" if kind else ""
    return f'<img{shown} width="{image.width}" height="{image.height}" alt="{alt}" src="{_data(image)}">'


def _data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
