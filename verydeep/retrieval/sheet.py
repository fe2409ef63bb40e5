"""A contact sheet: each query and the photos nearest to it in a row, so that a person sees if they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DataError, ImageError, log
from ..files.wording import counted
from ..pictures.saving import require_picture, save
from ..preprocess import decode
from .nearest import Neighbours

if TYPE_CHECKING:
    from PIL import Image

    from ..pictures.layout import Colour

TILE, GAP = 160, 12  # pixels
ACCENT = (200, 71, 44)
MOST_PIXELS = 100_000_000


def contact_sheet(rows: Sequence[Neighbours], out: str | os.PathLike[str]) -> None:
    """Draw queries and what is nearest to them, a row each, to a .png or .jpg file.

    The query stands on the left, framed; below each photo its cosine and its name. A photo that cannot be
    read any more is an empty frame. Raises DataError where there is nothing to draw, or too much, and
    OutputError where the file cannot be written.
    """
    from ..pictures import layout

    require_picture(out)
    if not rows:
        raise DataError("there are no queries to draw; give at least one")
    columns = 1 + max(len(row.matches) for row in rows)
    if columns * len(rows) * (TILE + GAP) * (TILE + 3 * GAP) > MOST_PIXELS:
        raise DataError(
            f"a sheet of {len(rows)} rows of {columns} photos is too large; give fewer queries, or a "
            "smaller --top"
        )
    missing: list[str] = []
    lines = [
        layout.row(
            _tile(row.query, "query", missing, ACCENT),
            *(_tile(m.photo or m.path, f"{m.cosine:.4f}", missing) for m in row.matches),
            gap=GAP,
        )
        for row in rows
    ]
    if missing:
        log.warning(
            f"{counted(len(missing), 'photo')} on the sheet cannot be read, such as {missing[0]}; if they "
            "were moved, make the features again"
        )
    save(layout.column(*lines, gap=GAP, margin=layout.MARGIN), out)


def _tile(
    path: str | None, words: str, missing: list[str], accent: Colour | None = None
) -> Image.Image:
    """A photo in the middle of its place, its words and its name; framed where it has an accent.

    missing: takes the path where it cannot be read.
    """
    from PIL import Image, ImageDraw

    from ..pictures import layout
    from ..pictures.layout import shortened

    place = Image.new("RGB", (TILE, TILE), layout.PAPER)
    pen = ImageDraw.Draw(place)
    try:
        photo = layout.as_rgb(decode(path or ""))
        photo = layout.fitted(photo, min(max(photo.size), TILE - 6 if accent else TILE))
    except ImageError:
        missing += [path] if path else []
        pen.rectangle((0, 0, TILE - 1, TILE - 1), outline=accent or layout.FAINT)
    else:
        left, top = (TILE - photo.width) // 2, (TILE - photo.height) // 2
        place.paste(photo, (left, top))
        if accent:
            edge = (left - 3, top - 3, left + photo.width + 2, top + photo.height + 2)
            pen.rectangle(edge, outline=accent, width=3)
    # names differ at their ends
    name = shortened(os.path.basename(path or ""), layout.SMALL, TILE, end=True)
    colours = (accent or layout.INK, layout.FAINT, layout.FAINT)
    return layout.column(
        place, 4, layout.caption(TILE, words, size=layout.SMALL, colours=colours),
        layout.caption(TILE, name, size=layout.SMALL, colours=(layout.FAINT,) * 3),
    )  # fmt: skip
