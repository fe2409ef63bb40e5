"""`verydeep duplicates`: list photos that are there twice, or nearly so."""

from __future__ import annotations

import json

import click

from ..retrieval.doubles import LAYER, POOL, THRESHOLD
from .engine_options import batch_option, compute_options
from .features import watched


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--threshold", default=THRESHOLD, show_default=True, type=float, metavar="COSINE",
    help="How alike doubles are at least: 1 finds the same pictures only.",
)  # fmt: skip
@click.option(
    "--layer", metavar="NAME", help=f"The layer to compare by. [default: {LAYER}, {POOL}-pooled]"
)
@click.option(
    "--model", default="builtin", metavar="NAME|FILE", show_default=True,
    help="A built-in model, a published one by its name, or a model file.",
)  # fmt: skip
@batch_option
@compute_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(
    paths: tuple[str, ...],
    threshold: float,
    layer: str | None,
    model: str,
    batch: int,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """List photos that are there twice, or nearly so.

    FOLDER is a folder (searched recursively), a photo, a glob in quotes, or - for a list of paths on
    stdin; or one file that `verydeep features` wrote. Doubles have the same bytes, or features whose
    cosine is at least the threshold: other sizes and qualities of one photo, small crops and edits.
    """
    from .. import retrieval

    result = retrieval.duplicates(
        paths, threshold, layer=layer, model=model, engine=engine, precision=precision,
        threads=threads, device=device, batch=batch, watch=watched,
    )  # fmt: skip
    click.echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else str(result))
    if result.errors:
        count = f"{len(result.errors)} of {result.photos} files could not be read"
        click.echo(f"verydeep: {count}", err=True)
    return 0 if not result.errors else 1 if len(result.errors) < result.photos else 2
