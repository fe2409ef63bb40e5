"""`verydeep show`: look inside a network."""

from __future__ import annotations

from pathlib import Path

import click

from ..preprocess import parse_size
from .engine_options import compute_options
from .output_folder import output_file, output_folder


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("photo", required=False, metavar="[PHOTO]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER|FILE.png",
    help="Write the pictures: into a folder, or one below the other into a PNG file.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write one page with all of it, which opens offline.",
)
@click.option(
    "--strongest",
    default=8,
    type=click.IntRange(1, 32),
    show_default=True,
    metavar="N",
    help="How many channels of each block to show.",
)
@click.option(
    "--size",
    default="224",
    show_default=True,
    metavar="N",
    help="Pixels a side that the photo is looked at with; or HEIGHTxWIDTH, or own.",
)
@compute_options
def command(
    model: str,
    photo: str | None,
    out: Path | None,
    html: Path | None,
    strongest: int,
    size: str,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
) -> int:
    """Look inside a network: filters, strongest maps, receptive fields.

    MODEL is a built-in model ("builtin"), a published one by its name, or a model file. Without --out and
    --html the strongest channels are listed.
    """
    wanted = parse_size(size)
    if html is not None:
        output_file(html)
    if out is not None:
        (output_file if out.suffix.lower() == ".png" and not out.is_dir() else output_folder)(out)
    from .. import predictor
    from ..portraits import show

    loaded = predictor.load(
        model, engine=engine, precision=precision, device=device, threads=threads
    )
    found = show(loaded, photo, size=wanted, strongest=strongest)
    click.echo(str(found))
    if out is not None:
        for file in found.save(out):
            click.echo(f"wrote {file}", err=True)
    if html is not None:
        found.write_page(html)
        click.echo(f"wrote {html}", err=True)
    return 0
