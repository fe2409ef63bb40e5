"""`verydeep quantize`: make an int8 model of a float one, and measure how often the two agree."""

from __future__ import annotations

import json
from pathlib import Path

import click

DEFAULT_COUNT = 512


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--calibrate",
    "given",
    required=True,
    multiple=True,
    metavar="IMAGES",
    help="A photo, a folder, or a glob in quotes; may be given more than once. Labels are not needed.",
)
@click.option(
    "--check",
    "held_out",
    multiple=True,
    metavar="IMAGES",
    help="Photos to measure the agreement on. [default: every other one of --calibrate]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The model file to write.",
)
@click.option(
    "--count",
    default=DEFAULT_COUNT,
    type=click.IntRange(1),
    show_default=True,
    metavar="N",
    help="At most so many photos of --calibrate, and of --check, evenly spread over the folders.",
)
@click.option(
    "--float",
    "floats",
    multiple=True,
    metavar="LAYER",
    help="A layer to keep in float32 (conv1_1, fc8). [default: by measurement]",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads. [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(
    model: str,
    given: tuple[str, ...],
    held_out: tuple[str, ...],
    out: Path,
    count: int,
    floats: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> int:
    """Make an int8 model of a float one, and measure how often the two agree.

    MODEL is a built-in model (builtin), a published one by its name, or a model file; it is not changed.
    The int8 model is as small as weights of 8 bits are, and several times as quick with `--precision
    int8` where the processor multiplies such numbers (x86 with VNNI, ARM with dot product). Takes minutes.
    """
    from .. import quantisation as quantize
    from ..published.finding import find_model

    result = quantize.quantize_file(
        find_model(model),
        given,
        held_out,
        out,
        count=count,
        floats=floats or None,
        threads=threads,
        say=lambda line: click.echo(line, err=True),
    )
    click.echo(json.dumps(result.to_dict()) if as_json else str(result))
    return 1 if result.unreadable else 0
