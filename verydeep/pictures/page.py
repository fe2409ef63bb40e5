"""The frame and the style sheet of every HTML page, and what pages are made of.

A page is one file that opens without a network, in light and dark, on a phone: pictures lie inside it as
data, charts are SVG, and there is no script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from PIL import Image

# --a, --b and --c are the colours of charts, whose marks name them by their classes
STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1f2530; --faint: #5d6675;
  --line: #e3e4e8; --a: #2b6cb0; --b: #cf5a30; --c: #8a93a2; --warn: #fdf1e3 }
@media (prefers-color-scheme: dark) { :root { --paper: #15171c; --card: #1d2027; --ink: #e9eaee;
  --faint: #a3abb8; --line: #2d313a; --a: #74aee6; --b: #f0935f; --c: #7b8494; --warn: #33281c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 46px 24px 60px }
h1 { font-size: 2.2rem; line-height: 1.15; margin: 0 0 .4rem; letter-spacing: -.02em;
  overflow-wrap: anywhere }
h2 { font-size: 1.4rem; margin: 3.1rem 0 .3rem; letter-spacing: -.01em }
h3 { font-size: 1rem; margin: 0 0 .2rem }
p { max-width: 44rem; margin: .3rem 0 1.1rem; color: var(--faint) }
p.lead { font-size: 1.15rem; color: var(--ink) }
small { color: var(--faint); font-size: .8rem; font-weight: 400 }
figure { margin: 0 }
img, svg { display: block; max-width: 100%; height: auto } svg { width: 100% }
.pixels { image-rendering: pixelated }
figcaption { font-size: .8rem; color: var(--faint); font-variant-numeric: tabular-nums }
.bar { height: 8px; border-radius: 4px; background: var(--line); overflow: hidden }
.bar i { display: block; height: 100%; background: var(--a) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 1.4rem 0 0 }
.cards div, .mistake { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px }
.cards dt { color: var(--faint); font-size: .85rem }
.cards dd { margin: 0; font-size: 1.55rem; font-weight: 650; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.two { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 44px;
  align-items: center }
.wide { overflow-x: auto } .wide svg { min-width: min(300px, 100%) }
.grid-of { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr));
  gap: 28px 36px }
.chart { max-width: 520px }
.plot text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  fill: var(--faint) }
.plot .number { fill: var(--ink); font-size: 13px }
.plot .number.strong { fill: var(--paper); font-weight: 600 }
.grid { stroke: var(--line); fill: none } .axis { stroke: var(--faint); fill: none }
.frame { fill: var(--card); stroke: var(--line) }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round }
.curve.a { stroke: var(--a) } .curve.b { stroke: var(--b) } .curve.c { stroke: var(--c) }
.dot.a, .cell.a { fill: var(--a) } .dot.b, .cell.b { fill: var(--b) } .dot.c, .cell.c { fill: var(--c) }
.whisker { stroke: var(--ink); stroke-width: 1.3; opacity: .55 }
.ideal { stroke: var(--b); stroke-width: 1.6; stroke-dasharray: 5 5; fill: none }
.legend { display: flex; gap: 18px; font-size: .85rem; color: var(--faint) }
.key::before { content: ""; display: inline-block; width: 18px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; background: var(--c) }
.key.a::before { background: var(--a) } .key.b::before { background: var(--b) }
table { border-collapse: collapse; font-size: .92rem; width: 100% }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: .82rem }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.classes { min-width: 560px } .classes tr.chosen td { font-weight: 650;
  background: color-mix(in srgb, var(--a) 12%, transparent) }
td .bar { display: inline-block; vertical-align: middle; width: 90px; margin-right: 9px }
.value { font-variant-numeric: tabular-nums; font-size: .88rem }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
  gap: 20px }
.mistakes.plain { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)) }
.mistake { padding: 10px } .mistake figcaption { margin-top: 8px; font-size: .92rem; color: var(--ink) }
.mistake small { display: block; overflow-wrap: anywhere }
.row { display: flex; gap: 6px } .row img { flex: 1 1 0; min-width: 0; width: 0; aspect-ratio: 1;
  object-fit: cover; border-radius: 6px }
.warn { background: var(--warn); border-radius: 10px; padding: 12px 16px 12px 34px;
  margin: .4rem 0 1.2rem }
.details { display: grid; grid-template-columns: 110px minmax(0, 1fr); gap: 6px 18px; font-size: .9rem }
.details dt { color: var(--faint) } .details dd { margin: 0 }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace }
code { font: .85rem ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--faint) }
.top { display: grid; grid-template-columns: minmax(0, 300px) 1fr; gap: 32px; align-items: center;
  margin-top: 1.6rem }
.top > img { width: 100%; border-radius: 10px }
.said { display: grid; grid-template-columns: auto 1fr auto; gap: .45rem .9rem; align-items: center;
  margin: 0 }
.said dt { font-weight: 600 } .said .bar { height: 10px } .said .bar i { background: var(--b) }
.said dd { margin: 0; color: var(--faint); font-variant-numeric: tabular-nums }
.figure { background: #fbfaf7; border: 1px solid var(--line); border-radius: 10px; padding: 8px;
  overflow-x: auto }
.figure svg { min-width: 760px }
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); gap: 14px 12px }
.filters img { width: 100%; aspect-ratio: 1; border-radius: 4px }
.filters .bar { height: 4px; margin-top: 4px } .filters .bar i { background: var(--ink) }
.block { display: grid; grid-template-columns: 150px 1fr; gap: 18px; padding: 16px 0;
  border-top: 1px solid var(--line) }
.block h3, .field h3 { margin: 0; font-size: 1.1rem }
.block p, .field p { margin: 0; font-size: .87rem }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 10px }
.maps img { width: 100%; border-radius: 4px }
.maps figcaption { display: flex; justify-content: space-between }
.sees { display: grid; grid-template-columns: minmax(0, 1.2fr) 1fr; gap: 28px }
.sees > svg { border-radius: 10px }
.fields { display: grid; gap: 14px; align-content: start }
.field { display: grid; grid-template-columns: 104px 1fr; gap: 16px; align-items: center }
.field svg { width: 104px; height: 104px; border-radius: 6px; border: 4px solid; background: var(--line) }
footer { margin-top: 3.3rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--faint); font-size: .85rem }
@media (max-width: 760px) { .two, .top, .sees, .block { grid-template-columns: minmax(0, 1fr); gap: 18px }
  main { padding: 26px 16px 40px }
  h1 { font-size: 1.6rem } .details { grid-template-columns: 1fr } .details dt { margin-top: 8px } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The text of a page: its parts, empty ones left out, in the frame that all pages have."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>Made by verydeep {escape(__version__)}. The networks are those of Simonyan and "
        "Zisserman, arXiv:1409.1556. Nothing on this page is fetched.</footer>\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, words: str, *parts: str) -> str:
    """A part of a page: its heading and what it says are text, the rest is HTML."""
    said = f"<p>{escape(words)}</p>" if words else ""
    return f"<section><h2>{escape(heading)}</h2>{said}\n{''.join(parts)}</section>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[int] = (),
    kind: str = "",
    chosen: int = -1,
) -> str:
    """A table; its cells are HTML. numbers: columns of them. kind: its class. chosen: the row to mark."""

    def line(tag: str, cells: Sequence[str], mark: bool = False) -> str:
        classes = [' class="n"' if at in numbers else "" for at in range(len(cells))]
        inner = (f"<{tag}{c}>{cell}</{tag}>" for c, cell in zip(classes, cells, strict=True))
        return f'<tr class="chosen">{"".join(inner)}</tr>' if mark else f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", cells, at == chosen) for at, cells in enumerate(rows))
    named = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{named}><thead>{line("th", head)}</thead>{body}</table></div>'


def bar(share: float) -> str:
    """A bar that is filled as far as a share, 0 to 1."""
    return f'<div class="bar"><i style="width:{share:.1%}"></i></div>'


def image(picture: Image.Image, alt: str, kind: str = "") -> str:
    """A picture inside the page."""
    named = f' class="{kind}"' if kind else ""
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{named} {size} alt="{escape(alt)}" src="{data(picture)}">'


def data(picture: Image.Image, quality: int | None = None) -> str:
    """A picture as the address of its own content: a PNG, or a JPEG of that quality."""
    file = io.BytesIO()
    if quality is None:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(file, "JPEG", quality=quality)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
