"""`verydeep show`: look inside a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import log
from ..files.wording import table
from ..preprocess import parse_size
from . import options
from .output import output_file

if TYPE_CHECKING:
    from ..portraits import Portrait


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("photo", required=False, metavar="[PHOTO]")
@options.path(
    "--out", metavar="FILE|FOLDER",
    help="Draw it: a .png or .jpg file, or a folder for portrait.png.",
)  # fmt: skip
@options.path("--html", help="Write a page with all of it, which opens offline: a .html file.")
@options.number("--strongest", default=8, most=32, help="How many channels of each block to show.")
@click.option(
    "--size", default="224", show_default=True, metavar="N",
    help="Pixels a side at which the network sees the photo; or HEIGHTxWIDTH, or own.",
)  # fmt: skip
@options.compute
def show(
    model: str,
    photo: str | None,
    out: Path | None,
    html: Path | None,
    strongest: int,
    size: str,
    **compute: Any,
) -> None:
    """Look inside a network: filters, strongest maps, receptive fields.

    MODEL is a built-in model ("builtin"), a published one by its name, or a model file. Without --out and
    --html the strongest channels are listed.
    """
    wanted = parse_size(size)
    from ..pictures.saving import PAGES, require_ending

    if html is not None:
        require_ending(output_file(html), PAGES)
    from .. import portraits, predictor

    place = None if out is None else output_file(portraits.picture_place(out))

    portrait = portraits.show(
        predictor.load(model, **compute), photo, size=wanted, strongest=strongest
    )
    click.echo(f"{portrait}\n{table(_rows(portrait))}")
    if place is not None:
        portrait.save(place)
        log.info(f"wrote {place}")
    if html is not None:
        portrait.write_page(html)
        log.info(f"wrote {html}")


def _rows(portrait: Portrait) -> list[tuple[str, ...]]:
    """A line for each block: its maps and units, and the strongest channels where there was a photo."""
    rows: list[tuple[str, ...]] = [
        ("layer", "maps", "of units", "a unit sees", "strongest channels")
    ]
    for block in portrait.blocks:
        channels, height, width = block.row.shape
        side = block.row.receptive_field
        strongest = " ".join(str(channel.index) for channel in block.channels)
        rows.append((block.layer, str(channels), f"{width}x{height}", f"{side}x{side}", strongest))
    return rows if portrait.pixels is not None else [row[:-1] for row in rows]
