"""A contact sheet: each query and the photos nearest to it in a row, so that a person sees if they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, ImageError, log
from ..files.atomic import replacing
from ..files.wording import counted
from ..preprocess import decode
from .nearest import Neighbours

if TYPE_CHECKING:
    from PIL import Image

TILE, GAP, CAPTION = 160, 12, 34  # pixels
MARGIN = 20
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
PAPER, INK, FAINT, ACCENT = "#ffffff", "#1b1b1b", "#6a6a6a", "#c8472c"
FONT = 12
MOST_PIXELS = 100_000_000


def require_picture(path: str | os.PathLike[str]) -> str:
    """The format of a picture by its suffix; DataError where it is none that is drawn."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{os.fspath(path)}: a sheet ends in {', '.join(FORMATS)}")
    return FORMATS[suffix]


def contact_sheet(found: Sequence[Neighbours], out: str | os.PathLike[str]) -> None:
    """Draw queries and what is nearest to them, a row each, to a .png or .jpg file.

    The query stands on the left, framed; below each photo its cosine and its name. A photo that cannot be
    read any more is an empty frame. Raises DataError where there is nothing to draw, or too much.
    """
    from PIL import Image, ImageDraw, ImageFont

    kind = require_picture(out)
    if not found:
        raise DataError("there are no queries to draw; give at least one")
    columns = 1 + max(len(row.matches) for row in found)
    width = 2 * MARGIN + columns * (TILE + GAP) + GAP
    height = 2 * MARGIN + len(found) * (TILE + CAPTION + GAP) - GAP
    if width * height > MOST_PIXELS:
        raise DataError(
            f"a sheet of {len(found)} rows of {columns} photos is too large; give fewer queries, or a "
            "smaller --top"
        )
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)

    def fitted(text: str) -> str:
        """As much of its end as fits under a photo: names differ there."""
        if draw.textlength(text, font) <= TILE:
            return text
        while text and draw.textlength("..." + text, font) > TILE:
            text = text[1:]
        return "..." + text

    missing: list[str] = []
    for line, row in enumerate(found):
        y = MARGIN + line * (TILE + CAPTION + GAP)
        tiles = [(row.query, "query", ACCENT)]
        tiles += [(m.photo or m.path, f"{m.cosine:.4f}", INK) for m in row.matches]
        for column, (path, words, colour) in enumerate(tiles):
            x = MARGIN + column * (TILE + GAP) + (GAP if column else 0)
            photo = _tile(path)
            if photo is None:
                missing += [] if path is None else [path]
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=FAINT)
            else:
                left, top = x + (TILE - photo.width) // 2, y + (TILE - photo.height) // 2
                sheet.paste(photo, (left, top))
                if not column:
                    edge = (left - 3, top - 3, left + photo.width + 2, top + photo.height + 2)
                    draw.rectangle(edge, outline=ACCENT, width=3)
            draw.text((x, y + TILE + 4), words, fill=colour, font=font)
            name = fitted(_drawable(os.path.basename(path or "")))
            draw.text((x, y + TILE + 18), name, fill=FAINT, font=font)
    if missing:
        log.warning(
            f"{counted(len(missing), 'photo')} on the sheet cannot be read, such as {missing[0]}; if they "
            "were moved, make the features again"
        )
    with replacing(out) as file:
        sheet.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}))


def _tile(path: str | None) -> Image.Image | None:
    """The photo, fitted into a tile, or None where it cannot be read."""
    from PIL import Image

    if path is None:
        return None
    try:
        photo = decode(path)
    except ImageError:
        return None
    if not isinstance(photo, Image.Image):  # more than 8 bits
        photo = Image.fromarray(photo.round().astype("uint8"))
    photo = photo.copy()
    photo.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return photo


def _drawable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
