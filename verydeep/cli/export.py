"""`verydeep export` and `verydeep quantize`: a model made fit for where it is to run."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .output import print_json

COUNT = 512  # photos to calibrate and to check with, unless told otherwise


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--to", required=True, type=click.Choice(["onnx", "openvino", "mnn", "torch"]),
    help="The format: .onnx, .xml with .bin, .mnn or .pt2.",
)  # fmt: skip
@options.path(
    "--out", required=True, metavar="PATH",
    help="The file to write; a program that runs it is written to PATH.py.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["exact", "fast", "half", "int8"]), default="fast",
    show_default=True,
    help="How close it must come to the model; half stores 16 bits a weight, int8 needs a model of "
    "`verydeep quantize`.",
)  # fmt: skip
@click.option(
    "--taps", default="", metavar="NAMES",
    help="Layers to give out as well, by paper name: relu4_3,relu5_3.",
)  # fmt: skip
@click.option(
    "--check", "photos", multiple=True, metavar="PHOTO",
    help="Also compare on this photo; may be repeated.",
)  # fmt: skip
@options.json_object
def export(
    model: str,
    to: str,
    out: Path,
    precision: str,
    taps: str,
    photos: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export a model for another runtime, and check it there.

    MODEL is a built-in model (builtin), a published one by its name, or a model file. The file takes
    pixels, any number of images of any size that the network takes; normalisation and labels are inside.
    It is run in its real engine before it is handed over, and must agree with the model.
    """
    from .. import exporting

    done = exporting.export(
        model, to, out, precision=precision, photos=photos,
        taps=tuple(name.strip() for name in taps.split(",") if name.strip()),
    )  # fmt: skip
    if as_json:
        print_json(done.to_dict())
        return
    names = ", ".join(str(file) for file in done.files)
    click.echo(f"{names}: {done.size_bytes / 1e6:.1f} MB")
    click.echo(f"relative error in {done.engine} {done.version}, {done.precision}:")
    for name, error in done.errors.items():
        click.echo(f"  {error:.1e}  {name}")
    click.echo(f"run it: python {done.program} photo.jpg")


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--calibrate", "given", required=True, multiple=True, metavar="IMAGES",
    help="A photo, a folder, or a glob in quotes; may be repeated. Labels are not needed.",
)  # fmt: skip
@click.option(
    "--check", "held_out", multiple=True, metavar="IMAGES",
    help="Photos to measure the agreement on. [default: every other one of --calibrate]",
)  # fmt: skip
@options.path("--out", required=True, help="The model file to write.")
@options.number(
    "--count", default=COUNT,
    help="At most so many photos of --calibrate, and of --check, evenly spread over the folders.",
)  # fmt: skip
@click.option(
    "--float", "floats", multiple=True, metavar="LAYER",
    help="A layer to keep in float32 (conv1_1, fc8); may be repeated. [default: by measurement]",
)  # fmt: skip
@options.threads
@options.json_object
def quantize(
    model: str,
    given: tuple[str, ...],
    held_out: tuple[str, ...],
    out: Path,
    count: int,
    floats: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> int:
    """Make an int8 model from a float one, and measure how often they agree.

    MODEL is a built-in model (builtin), a published one by its name, or a model file; it is not changed.
    The int8 model is as small as weights of 8 bits are, and several times as quick with `--precision
    int8` where the processor multiplies such numbers (x86 with VNNI, ARM with dot product). Takes minutes.
    """
    from .. import quantisation

    result = quantisation.quantize(
        model, given, out, check=held_out, count=count, floats=floats or None, threads=threads
    )
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(str(result))
    return 1 if result.unreadable else 0
