"""`verydeep features --ray` and `classify --ray`: the same for millions, into a folder of Parquet files."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from ..errors import log
from ..files import photo_paths
from .output import exit_status, photo_events


def compute(
    verb: str, paths: tuple[str, ...], out: Path, prices: tuple[float, ...], **how: Any
) -> int:
    """Have a cluster do it, show progress, say how fast it was and what a million costs."""
    how = {name: value for name, value in how.items() if value is not None}
    is_plain = all("://" not in path and not path.endswith((".tar", ".parquet")) for path in paths)
    total = photo_paths.counter(paths) if is_plain else None
    try:
        # Ray prints what dies on stdout, which is for results
        with redirect_stdout(sys.stderr), photo_events("computing", total) as on_event:
            from .. import scaling

            made = getattr(scaling, verb)(paths, out, on_event=on_event, **how)
    except KeyboardInterrupt:
        log.info(f"what was done is in {out}; the same command goes on")
        raise
    click.echo(str(made))
    for price in prices if made.computed else ():
        click.echo(
            f"a million images cost {made.cost(price):,.2f} where a node costs {price:g} an hour"
        )
    return exit_status(made.errors, made.images, "image")
