"""`verydeep check`: look through a data set before training on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

from ..files.progress import progress


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--val", metavar="DATA", help="A second data set to validate with.")
@click.option(
    "--size", default=224, show_default=True, type=click.IntRange(1), metavar="N",
    help="Pixels a side of the network's input; smaller images are told of.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with status 2 where anything is found.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(data: str, val: str | None, size: int, strict: bool, as_json: bool) -> int:
    """Look through a data set before training on it.

    DATA is what `verydeep train` takes. Told of are images that cannot be read, images to validate with
    that are there to train on as well, or nearly so, classes that are empty, rare or not in both parts,
    and images smaller than the network's input. The exit status is 1 where anything was found.
    """
    from ..training.images import check

    def watch(items: Iterable[Any], total: int) -> Iterator[Any]:
        return progress(items, "image", total)

    result = check.check(data, val, size=size, watch=watch)
    click.echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else str(result))
    return 0 if not result.findings else 2 if strict else 1
