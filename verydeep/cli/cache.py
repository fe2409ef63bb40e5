"""`verydeep cache`: list and clear what was prepared and measured on this machine."""

from __future__ import annotations

import time

import click

from ..files.wording import counted
from . import CONTEXT, options
from .output import print_json


@click.group(context_settings=CONTEXT)
def cache() -> None:
    """List and clear prepared graphs and remembered engine choices.

    Both are made again when they are needed. VERYDEEP_CACHE names the folder, VERYDEEP_CACHE_LIMIT the
    most that prepared graphs may take (2GB); those used longest ago go first. Published weights are kept
    apart: see `verydeep weights list`.
    """


@cache.command("list")
@options.json_object
def list_cache(as_json: bool) -> None:
    """List the prepared graphs and the engines that were chosen."""
    from ..engines.remembered import Memory
    from ..files.cache import Cache

    graphs, memory = Cache(), Memory()
    entries, choices = graphs.entries(), memory.choices()
    total = sum(entry.size_bytes for entry in entries)
    folder = graphs.folder.parent
    if as_json:
        listed = [
            {"name": e.name, "size_bytes": e.size_bytes, "used": e.used, **e.about} for e in entries
        ]
        print_json({
            "folder": str(folder), "limit_bytes": graphs.limit_bytes, "size_bytes": total,
            "graphs": listed, "choices": choices,
        })  # fmt: skip
        return
    click.echo(
        f"{folder}: {counted(len(entries), 'prepared graph')}, {total / 1e6:.0f} of "
        f"{graphs.limit_bytes / 1e6:.0f} MB; {counted(len(choices), 'engine choice')}"
    )
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"  {entry.size_bytes / 1e6:>7.1f} MB  used {used}  {entry.name}")
    for choice in choices:
        race, standings = choice["race"], choice["standings"]
        times = ", ".join(f"{row['engine']} {row['seconds'] * 1e3:.1f}" for row in standings)
        click.echo(
            f"  graph {race['graph'][:12]}, {race['precision']}, {race['batch']} of "
            f"{race['height']}x{race['width']}, {counted(race['threads'], 'thread')}: {times} ms an image"
        )


@cache.command()
def clear() -> None:
    """Remove the prepared graphs and forget the engines that were chosen."""
    from ..engines.remembered import Memory
    from ..files import hashes
    from ..files.cache import Cache

    freed = Cache().clear()
    Memory().clear()
    hashes.forget()
    click.echo(f"{freed / 1e6:.0f} MB freed; engines are measured again when needed")
