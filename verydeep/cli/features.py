"""`verydeep features`: write what a network sees in photos to a file, a row a photo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..files.progress import progress
from .engine_options import batch_option, compute_options

if TYPE_CHECKING:
    from ..predictor import Failure, Features


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A .npz, .safetensors or .parquet file.",
)  # fmt: skip
@click.option(
    "--layer", "layers", multiple=True, default=("relu5_3",), show_default=True, metavar="NAME",
    help="A layer by its paper name (conv4_2 is before ReLU, relu4_2 after it); may be given again.",
)  # fmt: skip
@click.option(
    "--pool", default="avg", show_default=True, metavar="HOW",
    help="avg, max or gem make one number of each channel's map; none keeps whole maps.",
)  # fmt: skip
@click.option(
    "--size", metavar="N|HxW|own",
    help="Pixels a side that photos are cropped to, height and width that they are stretched to, or own "
    "for photos as they are. [default: the model's own]",
)  # fmt: skip
@click.option(
    "--model", default="builtin", metavar="NAME|FILE", show_default=True,
    help="A built-in model, a published one by its name, or a model file.",
)  # fmt: skip
@batch_option
@compute_options
def command(
    paths: tuple[str, ...],
    out: Path,
    layers: tuple[str, ...],
    pool: str,
    size: str | None,
    model: str,
    batch: int,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
) -> int:
    """Write what a network sees in photos to a file, a row a photo.

    PATH is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on stdin.
    Stopped, it keeps what it has in FILE.partial, and the same command goes on. A photo that cannot be
    read has a row with its error: the exit status is then 1, and 2 where not one could be read.
    """
    from .. import retrieval
    from ..preprocess import parse_size

    failed: list[int] = []
    try:
        file = retrieval.features(
            paths, out, layers, None if pool == "none" else pool,  # type: ignore[arg-type]
            size=parse_size(size), model=model, engine=engine, precision=precision, threads=threads,
            device=device, batch=batch, watch=watched,
        )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(
            f"verydeep: what was done is in {out}.partial; the same command goes on", err=True
        )
        raise
    failed = [row for row, error in enumerate(file.errors) if error]
    click.echo(str(file))
    if failed:
        click.echo(f"verydeep: {len(failed)} of {len(file)} files could not be read", err=True)
    return 0 if not failed else 1 if len(failed) < len(file) else 2


def watched(items: Iterator[Features | Failure]) -> Iterator[Features | Failure]:
    """Pass results on, with progress and the errors among them on stderr."""
    from ..predictor import Failure

    for item in progress(items):
        if isinstance(item, Failure):
            click.echo(f"verydeep: {item.error}", err=True)
        yield item
