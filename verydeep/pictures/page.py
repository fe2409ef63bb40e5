"""The frame of every HTML page, with the style of page.css, and what pages are made of.

A page is one file that opens without a network, in light and dark, on a phone: pictures lie inside it as
data, charts are SVG, and there is no script.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__

STYLE = Path(__file__).with_name("page.css")
# of the two pages that have scripts, since they take a photo: the served one, and the exported one
PHOTO_STYLE = Path(__file__).with_name("photo.css")
PHOTO_SCRIPT = Path(__file__).with_name("photo.js")


def page(title: str, parts: Iterable[str]) -> str:
    """The text of a page: its parts, empty ones left out, in the frame that all pages have."""
    body = "\n".join(part for part in parts if part)
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>Made by verydeep {escape(__version__)}. The networks are those of Simonyan and "
        "Zisserman, arXiv:1409.1556. Nothing on this page is fetched.</footer>\n</main>\n</body>\n</html>\n"
    )


def head(title: str, lead: str, cards: Iterable[tuple[str, str, str]]) -> str:
    """How a page begins: title, a sentence, and cards of (name, value, what is said beneath), all text."""
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f"<small>{escape(more)}</small>" if more else "")
        + "</div>"
        for name, value, more in cards
    )
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<dl class="cards">{shown}</dl>'


def details(values: Mapping[str, str]) -> str:
    """How a page ends: by which command and with what it was made; what is empty is left out."""
    rows = "".join(
        f"<dt>{name}</dt><dd><pre>{escape(text)}</pre></dd>"
        for name, text in values.items()
        if text
    )
    return section("To do it again", "", f'<dl class="details">{rows}</dl>')


def pairs(values: Mapping[str, Any]) -> str:
    """Settings as text, a line each."""
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return "\n".join(f"{key} = {value}" for key, value in shown.items())


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
