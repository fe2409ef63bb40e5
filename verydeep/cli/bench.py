"""`verydeep bench`: race the installed engines on a model, on this machine."""

from __future__ import annotations

import click

from . import options
from .output import print_json


def _batches(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} are not batch sizes; write 1,8")
    return tuple(map(int, parts))


@click.command()
@click.argument("model", metavar="[MODEL]", default="builtin")
@click.option(
    "--batch", "batches", callback=_batches, default="1,8", show_default=True, metavar="N,N",
    help="Images in one pass, one or several numbers.",
)  # fmt: skip
@click.option(
    "--engines", default="all", show_default=True, metavar="NAMES",
    help="Engines to race, such as auto,openvino; torch-compiled races only if named.",
)  # fmt: skip
@click.option(
    "--precision", "precisions", default="all", show_default=True, metavar="CLASSES",
    help="exact, fast, half, int8 (of a model of `verydeep quantize`), or several of them.",
)  # fmt: skip
@options.number("--rounds", default=7, help="Turns that each one has.")
@options.number("--size", help="Pixels a side of the images. [default: the model's own]")
@options.threads
@options.json_list
def bench(
    model: str,
    batches: tuple[int, ...],
    engines: str,
    precisions: str,
    rounds: int,
    size: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Race the installed engines on a model, on this machine.

    MODEL is a built-in model (builtin), a model file, or a network of the table such as vgg16, which gets
    random weights where no published ones are at hand.

    Rows named "plain" are the engines as their own documentation runs the network; "x torch" compares
    with torch eager, "x plain" with the best plain row of that precision. Errors are against float64.
    """
    from .. import benching

    rows = benching.bench(
        model, batches=batches, engines=engines, precisions=precisions, rounds=rounds, size=size,
        threads=threads,
    )  # fmt: skip
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        click.echo(benching.table(rows))
