"""`verydeep export`: a model as a file that another runtime runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["onnx", "openvino", "mnn", "torch"]),
    help="The format: .onnx, .xml with .bin, .mnn or .pt2.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file to write; how to run it is written to PATH.py.",
)
@click.option(
    "--precision",
    type=click.Choice(["exact", "fast", "half", "int8"]),
    default="fast",
    show_default=True,
    help="How close it must come to the model; half stores 16 bits a weight, int8 needs a model of "
    "`verydeep quantize`.",
)
@click.option(
    "--taps",
    default="",
    metavar="NAMES",
    help="Layers to give out as well, by paper name: relu4_3,relu5_3.",
)
@click.option(
    "--check",
    "photos",
    multiple=True,
    metavar="PHOTO",
    help="Also compare on this photo; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")  # fmt: skip
def command(
    model: str,
    to: str,
    out: Path,
    precision: str,
    taps: str,
    photos: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export a model for another runtime, checked there.

    MODEL is a built-in model (builtin), a published one by its name, or a model file. The file takes
    pixels, any number of images of any size that the network takes; normalisation and labels are inside.
    It is run in its real engine before it is handed over, and must agree with the model.
    """
    from ..exporting import export

    done = export(
        model,
        to,
        out,
        precision=precision,
        taps=tuple(name.strip() for name in taps.split(",") if name.strip()),
        photos=photos,
        note=lambda text: click.echo(f"verydeep: {text}", err=True),
    )
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    names = ", ".join(str(file) for file in done.files)
    click.echo(f"{names}: {done.size_bytes / 1e6:.1f} MB")
    click.echo(f"relative error in {done.engine} {done.version}, {done.precision}:")
    for name, error in done.errors.items():
        click.echo(f"  {error:.1e}  {name}")
    click.echo(f"run it: python {done.program} photo.jpg")
