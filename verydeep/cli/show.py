"""`verydeep show`: look inside a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import log
from ..preprocess import parse_size
from . import options
from .output import output_file, output_folder


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("photo", required=False, metavar="[PHOTO]")
@options.path(
    "--out", metavar="FOLDER|FILE.png",
    help="Write the pictures: into a folder, or one below the other into a PNG file.",
)  # fmt: skip
@options.path("--html", help="Write one page with all of it, which opens offline.")
@options.number("--strongest", default=8, most=32, help="How many channels of each block to show.")
@click.option(
    "--size", default="224", show_default=True, metavar="N",
    help="Pixels a side that the photo is looked at with; or HEIGHTxWIDTH, or own.",
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
    if html is not None:
        output_file(html)
    if out is not None:
        (output_file if out.suffix.lower() == ".png" and not out.is_dir() else output_folder)(out)
    from .. import portraits, predictor

    portrait = portraits.show(
        predictor.load(model, **compute), photo, size=wanted, strongest=strongest
    )
    click.echo(str(portrait))
    for file in portrait.save(out) if out is not None else ():
        log.info(f"wrote {file}")
    if html is not None:
        portrait.write_page(html)
        log.info(f"wrote {html}")
