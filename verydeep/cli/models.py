"""`verydeep models`: what can be named where a command asks for a model or a network."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(as_json: bool) -> None:
    """List the networks, the built-in models and the published weights."""
    from ..modelfile import read
    from ..nets import NETWORKS, network
    from ..published import catalog
    from ..published.finding import builtin_models

    networks: list[dict[str, Any]] = [
        {
            "name": name,
            "column": column,
            "batch_norm": batch_norm,
            "parameters": network(name).parameters,
            "multiply_adds": sum(row.multiply_adds for row in network(name).rows()),
        }
        for name, (column, batch_norm) in NETWORKS.items()
    ]
    builtin: list[dict[str, Any]] = []
    for name, path in builtin_models().items():
        record = read(path).record
        builtin.append(
            {
                "name": name,
                "network": record.network.name,
                "classes": record.network.head.classes,
                "size_bytes": path.stat().st_size,
                "licence": record.licence,
            }
        )
    published: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "network": entry.network,
            "file": entry.file,
            "top1": entry.accuracy.top1 if entry.accuracy else None,
            "top5": entry.accuracy.top5 if entry.accuracy else None,
        }
        for entry in catalog.ENTRIES.values()
    ]
    if as_json:
        click.echo(json.dumps({"networks": networks, "builtin": builtin, "published": published}))
        return
    click.echo("Built in, no download:")
    for model in builtin:
        size = model["size_bytes"] / 1e6
        click.echo(
            f"  {model['name']:<16} {model['network']}, {model['classes']} classes, {size:.1f} MB"
        )
    click.echo("\nPublished weights (fetched once; `verydeep weights list` says more):")
    for entry in published:
        accuracy = (
            "" if entry["top1"] is None else f"top-1 {entry['top1']:.2%}, top-5 {entry['top5']:.2%}"
        )
        click.echo(f"  {entry['name']:<16} {entry['file']:<44} {accuracy}")
    click.echo(
        "\nNetworks of the paper's table 1 (parameters with 1000 classes; multiply-adds at 224):"
    )
    for row in networks:
        click.echo(
            f"  {row['name']:<16} column {row['column']:<6} {row['parameters']:>12,} "
            f"{row['multiply_adds'] / 1e9:>6.2f} G"
        )
