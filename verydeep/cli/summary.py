"""`verydeep models`, `summary` and `show`: the networks that there are, their layers, and a look inside."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click

from ..errors import log
from ..files.atomic import require_other, require_writable
from ..files.wording import counted, table
from . import options
from .output import json_text

if TYPE_CHECKING:
    from ..nets import Network
    from ..portraits import Portrait
    from ..preprocess import Size

COLUMNS = ("layer", "output", "parameters", "multiply-adds", "bytes", "field", "stride", "position")
FIELDS = ("parameters", "multiply_adds", "size_bytes", "receptive_field", "stride", "position")


def _pixels(_: click.Context, __: click.Parameter, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if not match:
        raise click.BadParameter(
            f"{text!r} is not a size; write 224, or 480x640 for height x width"
        )
    return int(match[1]), int(match[2] or match[1])


@click.command()
@click.argument("name", metavar="NAME|FILE")
@click.option(
    "--input", "size", callback=_pixels, default="224", show_default=True, metavar="N|HxW",
    help="Pixels a side of the image, or height x width.",
)  # fmt: skip
@options.path("--svg", "figure", help="Also draw the network as VGG's block figure, to scale.")
@options.json_object
def summary(name: str, size: tuple[int, int], figure: Path | None, as_json: bool) -> None:
    """Print the layer table of a network or a model file.

    NAME is a network (vgg16_bn), a built-in model (builtin) or a model file. Fields of view, strides and
    positions are in input pixels; multiply-adds are those of convolutions and FC layers, for one image.
    """
    net, several = _network(name)
    rows = net.rows(*size)
    if figure is not None:
        from ..pictures import FIGURES, require_ending, write
        from ..pictures.block_figure import block_figure

        require_ending(figure, FIGURES)  # the next file named here could be the model itself
        require_other(figure, name)
        title = describe(net, several)
        write(block_figure(net, *size, title=title, several=several), figure, FIGURES)
    totals = {
        "parameters": sum(row.parameters for row in rows),
        "features_parameters": sum(layer.parameters for layer in net.trunk),
        "multiply_adds": sum(row.multiply_adds for row in rows),
        "size_bytes": sum(row.size_bytes for row in rows),
    }
    if as_json:
        layers = [
            {
                "name": row.layer.name,
                "kind": "sigmoid" if several and row.layer.kind == "softmax" else row.layer.kind,
                "shape": list(row.shape),
                **{field: getattr(row, field) for field in FIELDS},
            }
            for row in rows
        ]
        click.echo(
            json_text({"network": net.name, "input": size, "layers": layers, "totals": totals})
        )
        return
    click.echo(f"{describe(net, several)}, input {net.in_channels} x {size[0]} x {size[1]}\n")
    lines = [COLUMNS] + [
        (
            row.layer.name,
            " x ".join(map(str, row.shape)),
            *(f"{n:,}" if n else "" for n in (row.parameters, row.multiply_adds, row.size_bytes)),
            str(row.receptive_field),
            str(row.stride),
            f"{row.position:g}",
        )
        for row in rows
    ]
    titles, _, below = table(lines, "<<>").partition("\n")
    click.echo(f"{click.style(titles, bold=True)}\n{below}")
    click.echo(
        f"\n{totals['parameters']:,} parameters ({totals['features_parameters']:,} in the "
        f"convolutions), {totals['size_bytes'] / 2**20:,.0f} MiB in float32, "
        f"{totals['multiply_adds']:,} multiply-adds an image"
    )


def describe(net: Network, several: bool = False) -> str:
    """One line: the network, and every choice that is not the usual. several: classes of one image."""
    parts = [f"{net.name} (column {net.column}{', batch norm' if net.batch_norm else ''})"]
    if (net.width, net.channels) != (1, ()):
        parts.append(net.widths)
    if net.pool != "max":
        parts.append(f"{net.pool} pooling")
    head = net.head
    if not head.classes:
        parts.append("no head")
    else:
        layers = f" on {', '.join(head.layers)}" if head.layers else ""
        parts.append(f"{head.kind} head{layers}, {counted(head.classes, 'class')}")
        parts += ["several an image"] if several else []
    return ", ".join(parts)


def _network(name: str) -> tuple[Network, bool]:
    """And whether an image may be of several classes."""
    from ..nets import NETWORKS, network

    if name in NETWORKS and not os.path.isfile(name):
        return network(name), False
    from ..modelfile import read
    from ..published import find_model

    record = read(find_model(name)).record
    return record.network, bool(record.thresholds)


@click.command()
@options.json_object
def models(as_json: bool) -> None:
    """List the networks, the built-in models and the published weights."""
    from ..modelfile import read
    from ..nets import NETWORKS, network
    from ..published import builtin_models
    from .weights import published_weights

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
    records = [(name, path, read(path).record) for name, path in builtin_models().items()]
    builtin: list[dict[str, Any]] = [
        {
            "name": name,
            "network": record.network.name,
            "classes": record.network.head.classes,
            "size_bytes": path.stat().st_size,
            "licence": record.licence,
        }
        for name, path, record in records
    ]
    published = [
        {key: row[key] for key in ("name", "network", "file", "top1", "top5")}
        for row in published_weights()
    ]
    if as_json:
        click.echo(json_text({"networks": networks, "builtin": builtin, "published": published}))
        return
    click.echo("Built in, no download:")
    click.echo(_indented([
        (m["name"], m["network"], f"{m['classes']:,} classes", f"{m['size_bytes'] / 1e6:.1f} MB")
        for m in builtin
    ], "<<>"))  # fmt: skip
    click.echo("\nPublished weights (fetched once; `verydeep weights list` says more):")
    click.echo(_indented([
        (e["name"], e["file"], *(f"{n} {e[k]:.2%}" if e[k] is not None else ""
                                 for n, k in (("top-1", "top1"), ("top-5", "top5"))))
        for e in published
    ]))  # fmt: skip
    click.echo(
        "\nNetworks of the paper's table 1 (parameters with 1000 classes; multiply-adds at 224):"
    )
    click.echo(_indented([
        (n["name"], f"column {n['column']}", f"{n['parameters']:,}", f"{n['multiply_adds'] / 1e9:.2f} G")
        for n in networks
    ], "<<>"))  # fmt: skip


def _indented(rows: list[tuple[str, ...]], align: str = "<") -> str:
    return indent(table(rows, align), "  ")


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("photo", required=False, metavar="[PHOTO]")
@options.path(
    "--out", metavar="FILE|FOLDER",
    help="Draw it: a .png or .jpg file, or a folder for portrait.png.",
)  # fmt: skip
@options.path("--html", help="Write a page with all of it, which opens offline: a .html file.")
@options.number("--strongest", default=8, most=32, help="How many channels of each block to show.")
@click.option(
    "--size", default="224", callback=options.pixels, show_default=True, metavar="N",
    help="Pixels a side at which the network sees the photo; or HEIGHTxWIDTH, or own.",
)  # fmt: skip
@options.compute
def show(
    model: str,
    photo: str | None,
    out: Path | None,
    html: Path | None,
    strongest: int,
    size: Size,
    **compute: Any,
) -> None:
    """Look inside a network: filters, strongest maps, receptive fields.

    MODEL is a built-in model ("builtin"), a published one by its name, or a model file. Without --out and
    --html the strongest channels are listed.
    """
    from .. import portraits, predictor
    from ..pictures import PAGES, require_ending

    loaded = predictor.load(model, **compute)
    inputs: list[str | Path] = [loaded.model.path, *([photo] if photo else [])]
    if html is not None:
        require_writable(html, *inputs)
        require_ending(html, PAGES)
    place = None if out is None else portraits.picture_place(out)
    if place is not None:
        require_writable(place, *inputs)
    portrait = portraits.show(loaded, photo, size=size, strongest=strongest)
    click.echo(f"{portrait}\n{table(_rows(portrait))}")
    if place is not None:
        portrait.save(place)
        log.info(f"wrote {place}")
    if html is not None:
        portrait.write_page(html)
        log.info(f"wrote {html}")


def _rows(portrait: Portrait) -> list[tuple[str, ...]]:
    """A line for each block: its maps and units, and the strongest channels where there was a photo."""
    rows: list[tuple[str, ...]] = [
        ("layer", "maps", "of units", "a unit sees", "strongest channels")
    ]
    for block in portrait.blocks:
        channels, height, width = block.row.shape
        side = block.row.receptive_field
        strongest = " ".join(str(channel.index) for channel in block.channels)
        rows.append((block.layer, str(channels), f"{width}x{height}", f"{side}x{side}", strongest))
    return rows if portrait.pixels is not None else [row[:-1] for row in rows]
