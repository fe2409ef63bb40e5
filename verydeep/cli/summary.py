"""`verydeep summary`: the layer table of a network or of a model file."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..nets import Network

COLUMNS = ("layer", "output", "parameters", "multiply-adds", "bytes", "field", "stride", "position")


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on, not before
    name = "N|HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(value))
        if not match:
            self.fail(
                f"{value!r} is not a size; write 224, or 480x640 for height x width", param, ctx
            )
        height = int(match[1])
        return height, int(match[2] or height)


@click.command()
@click.argument("name", metavar="NAME|FILE")
@click.option(
    "--input",
    "size",
    type=_Size(),
    default="224",
    show_default=True,
    metavar="N|HxW",
    help="Pixels a side of the image, or height x width.",
)
@click.option(
    "--svg",
    "figure",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also draw the network as VGG's block figure, to scale.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")  # fmt: skip
def command(name: str, size: tuple[int, int], figure: str | None, as_json: bool) -> None:
    """Print the layer table of a network or a model file.

    NAME is a network (vgg16_bn), a built-in model (builtin) or a model file. Fields of view, strides and
    positions are in input pixels; multiply-adds are those of convolutions and FC layers, for one image.
    """
    net = _network(name)
    rows = net.rows(*size)
    if figure is not None:
        _draw(net, size, figure)
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
                "kind": row.layer.kind,
                "shape": list(row.shape),
                "parameters": row.parameters,
                "multiply_adds": row.multiply_adds,
                "size_bytes": row.size_bytes,
                "receptive_field": row.receptive_field,
                "stride": row.stride,
                "position": row.position,
            }
            for row in rows
        ]
        value = {"network": net.name, "input": list(size), "layers": layers, "totals": totals}
        click.echo(json.dumps(value))
        return
    click.echo(f"{describe(net)}, input {net.in_channels} x {size[0]} x {size[1]}\n")
    lines = [COLUMNS] + [
        (
            row.layer.name,
            " x ".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.multiply_adds:,}" if row.multiply_adds else "",
            f"{row.size_bytes:,}" if row.size_bytes else "",
            str(row.receptive_field),
            str(row.stride),
            f"{row.position:g}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        click.echo(click.style("  ".join(cells), bold=number == 0))
    click.echo(
        f"\n{totals['parameters']:,} parameters ({totals['features_parameters']:,} in the "
        f"convolutions), {totals['size_bytes'] / 2**20:,.0f} MiB in float32, "
        f"{totals['multiply_adds']:,} multiply-adds an image"
    )


def describe(net: Network) -> str:
    """One line: the network, and every choice that is not the usual."""
    parts = [f"{net.name} (column {net.column}{', batch norm' if net.batch_norm else ''})"]
    if net.width != 1:
        parts.append(f"width {net.width:g}")
    if net.pool != "max":
        parts.append(f"{net.pool} pooling")
    head = net.head
    if not head.classes:
        parts.append("no head")
    else:
        layers = f" on {', '.join(head.layers)}" if head.layers else ""
        parts.append(f"{head.kind} head{layers}, {head.classes} classes")
    return ", ".join(parts)


def _draw(net: Network, size: tuple[int, int], path: str) -> None:
    from ..errors import OutputError
    from ..files.atomic import replacing
    from ..pictures.block_figure import block_figure

    if not path.lower().endswith(".svg"):  # the next file named here could be the model itself
        raise OutputError(f"{path}: is not the name of a figure; expected one that ends in .svg")
    text = block_figure(net, *size, title=describe(net))
    with replacing(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _network(name: str) -> Network:
    from ..nets import NETWORKS, network

    if name in NETWORKS and not os.path.exists(name):
        return network(name)
    from ..modelfile import read
    from ..published.finding import find_model

    return read(find_model(name)).record.network
