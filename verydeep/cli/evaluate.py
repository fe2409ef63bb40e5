"""`verydeep evaluate`: measure a model's accuracy on labelled photos."""

from __future__ import annotations

import json

import click

from .engine_options import engine_options


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")  # fmt: skip
def command(
    model: str,
    data: str,
    size: int | None,
    batch: int,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure a model's accuracy on labelled photos.

    MODEL is a built-in model (builtin), a published one by its name, or a model file. DATA is a folder or
    a tar of class folders, each named as a class of the model or by its id. One centre crop a photo.
    """
    from .. import evaluation, predictor

    loaded = predictor.load(
        model, size=size, engine=engine, precision=precision, device=device, threads=threads
    )
    result = evaluation.evaluate(loaded, data, batch=batch)
    click.echo(json.dumps(result.to_dict()) if as_json else str(result))
    return 1 if result.errors else 0
