"""A contact sheet: each query and the photos nearest to it in a row, so that a person sees if they are."""

from __future__ import annotations

import os
from collections.abc import Sequence

from PIL import Image, ImageOps

from ..errors import DataError, ImageError, log
from ..files.wording import counted
from ..pictures import layout, require_picture, save
from ..pictures.layout import FAINT, INK, SMALL, Colour
from ..preprocess import decode
from .nearest import Neighbours

TILE, GAP = 160, 12  # pixels
ACCENT = (200, 71, 44)
MOST_PIXELS = 100_000_000


def contact_sheet(rows: Sequence[Neighbours], out: str | os.PathLike[str]) -> None:
    """Draw queries and what is nearest to them, a row each, to a .png or .jpg file.

    The query stands on the left, framed; below each photo its cosine and its name. A photo that cannot be
    read any more is an empty frame. Raises DataError where there is nothing to draw, or too much, and
    OutputError where the file cannot be written.
    """
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
    from ..pictures import layout

    try:
        photo = layout.as_rgb(decode(path or ""))
        photo = layout.fitted(photo, min(max(photo.size), TILE - 6 if accent else TILE))
    except ImageError:
        missing += [path] if path else []
        photo = Image.new("RGB", (TILE - 2, TILE - 2), layout.PAPER)
        photo = ImageOps.expand(photo, 1, accent or FAINT)
    else:
        photo = ImageOps.expand(photo, 3, accent) if accent else photo
    # names differ at their ends
    name = layout.shortened(os.path.basename(path or ""), SMALL, TILE, end=True)
    colours = (accent or INK, FAINT, FAINT)
    return layout.column(
        layout.centred(photo, (TILE, TILE)), 4, layout.caption(TILE, words, size=SMALL, colours=colours),
        layout.caption(TILE, name, size=SMALL, colours=(FAINT,) * 3),
    )  # fmt: skip
