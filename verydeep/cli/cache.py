"""`verydeep cache`: list and clear what was prepared and measured on this machine."""

from __future__ import annotations

import json
import time

import click

from . import CONTEXT


@click.group(context_settings=CONTEXT)
def command() -> None:
    """List and clear prepared graphs and remembered engine choices.

    Both are made again when they are needed. VERYDEEP_CACHE names the folder, VERYDEEP_CACHE_LIMIT the
    most that prepared graphs may take (2GB); those used longest ago go first. Published weights are kept
    apart: see `verydeep weights list`.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def list_cache(as_json: bool) -> None:
    """List the prepared graphs and the engines that were chosen."""
    from ..engines.remembered import Memory
    from ..files.cache import Cache

    cache, memory = Cache(), Memory()
    entries, choices = cache.entries(), memory.choices()
    total = sum(entry.size_bytes for entry in entries)
    if as_json:
        value = {
            "folder": str(cache.folder.parent),
            "limit_bytes": cache.limit_bytes,
            "size_bytes": total,
            "graphs": [
                {"name": e.name, "size_bytes": e.size_bytes, "used": e.used, **e.about}
                for e in entries
            ],
            "choices": choices,
        }
        click.echo(json.dumps(value))
        return
    click.echo(
        f"{cache.folder.parent}: {_counted(len(entries), 'prepared graph')}, {total / 1e6:.0f} of "
        f"{cache.limit_bytes / 1e6:.0f} MB; {_counted(len(choices), 'engine choice')}"
    )
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"  {entry.size_bytes / 1e6:>7.1f} MB  used {used}  {entry.name}")
    for choice in choices:
        race, standings = choice["race"], choice["standings"]
        times = ", ".join(f"{row['engine']} {row['seconds'] * 1e3:.1f}" for row in standings)
        click.echo(
            f"  graph {race['graph'][:12]}, {race['precision']}, {race['batch']} of "
            f"{race['height']}x{race['width']}, {race['threads']} threads: {times} ms an image"
        )


@command.command()
def clear() -> None:
    """Remove the prepared graphs and forget the engines that were chosen."""
    from ..engines.remembered import Memory
    from ..files.cache import Cache

    freed = Cache().clear()
    Memory().clear()
    click.echo(f"{freed / 1e6:.0f} MB given back; engines are measured again when needed")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
