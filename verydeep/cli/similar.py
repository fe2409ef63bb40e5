"""`verydeep similar`: find the photos of a file of features that are nearest to others."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("index", metavar="INDEX")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@click.option(
    "--top", default=10, type=click.IntRange(1), show_default=True, metavar="K",
    help="How many photos to name for each query.",
)  # fmt: skip
@click.option("--layer", metavar="NAME", help="The layer to compare by, where INDEX has several.")
@click.option(
    "--sheet", type=click.Path(path_type=Path), metavar="FILE",
    help="Also draw the queries and what was found: a .png or .jpg file.",
)  # fmt: skip
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="Where the model that made INDEX is now. [default: as then]",
)
@click.option(
    "--engine", default="auto", show_default=True, metavar="NAME", help="As for features."
)
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="As for features."
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads. [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def command(
    index: str,
    queries: tuple[str, ...],
    top: int,
    layer: str | None,
    sheet: Path | None,
    model: str | None,
    engine: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Find the photos of a file of features that are nearest to others.

    INDEX is a file that `verydeep features` wrote. QUERY is a photo, a folder, or a glob in quotes: what a
    network sees in it is computed as it was for INDEX, and compared by cosine with every row.
    """
    from .. import retrieval
    from ..errors import DataError
    from ..files import photo_paths as photos

    opened = retrieval.open_features(index)
    if sheet is not None:
        retrieval.require_picture(sheet)
    found = list(photos.find(queries))
    if not found:
        raise DataError(f"no photos in {', '.join(queries)}; expected photos to compare with")
    nearest = retrieval.similar(
        opened, found, top, layer=layer, model=model, engine=engine, threads=threads, device=device
    )
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in nearest], ensure_ascii=False))
    else:
        click.echo("\n\n".join(map(str, nearest)))
    if sheet is not None:
        retrieval.contact_sheet(nearest, sheet)
    return 0
