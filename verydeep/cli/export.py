"""`verydeep export`, `quantize` and `bench`: a model made fit for where it is to run, and raced there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files.atomic import require_writable
from ..files.progress import Progress
from ..files.wording import quoted
from . import options
from .output import show, show_list


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--to", required=True, type=click.Choice(["onnx", "openvino", "ncnn", "mnn", "torch", "web"]),
    help="The format: .onnx, .xml with .bin, .param with .bin, .mnn, .pt2; web is a page, in a folder.",
)  # fmt: skip
@options.path(
    "--out", required=True, metavar="PATH",
    help="The file to write; a program that runs it is written to PATH.py. The folder, for web.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["exact", "fast", "half", "int8"]), default="fast",
    show_default=True,
    help="How close it must come to the model; half stores 16 bits a weight, int8 needs a model of "
    "`verydeep quantize`.",
)  # fmt: skip
@click.option(
    "--taps", default="", callback=options.names, metavar="NAMES",
    help="Layers to give out as well, by paper name: relu4_3,relu5_3.",
)  # fmt: skip
@click.option(
    "--check", "photos", multiple=True, metavar="PHOTO",
    help="Also compare on this photo; may be repeated.",
)  # fmt: skip
@options.path(
    "--runtime", metavar="FOLDER",
    help="For web: npm's package onnxruntime-web, unpacked. [default: fetched once, by npm]",
)  # fmt: skip
@options.json_object
def export(model: str, to: str, out: Path, as_json: bool, **choices: Any) -> None:
    """Export a model for another runtime, and check it there.

    MODEL is a built-in model (builtin), a published one by its name, or a model file. The file takes
    pixels, any number of images of any size that the network takes; normalisation and labels are inside.
    It is run in its real engine before it is handed over, and must agree with the model.

    With --to web it becomes a page that classifies photos in the browser; any web server will do for it.
    """
    with Progress("exporting", ""):
        from .. import exporting

        done = exporting.export(model, to, out, **choices)
    if as_json:
        show(done, as_json)
        return
    names = ", ".join(str(file) for file in done.files)
    click.echo(f"{names}: {done.size_bytes / 1e6:.1f} MB")
    click.echo(f"relative error in {done.engine} {done.version}, {done.precision}:")
    for name, error in done.errors.items():
        click.echo(f"  {error:.1e}  {name}")
    if to == "web":
        click.echo(
            f"look at it: python -m http.server -d {quoted(done.path)} 8000, and http://localhost:8000/"
        )
        click.echo("its README.md tells which headers give it more than one thread")
    else:
        click.echo(f"run it: python {quoted(done.program)} photo.jpg")


@click.command()
@click.argument("model", metavar="MODEL")
@options.calibrate(required=True)
@click.option(
    "--check", multiple=True, metavar="IMAGES",
    help="Photos to measure the agreement on. [default: every other one of --calibrate]",
)  # fmt: skip
@options.model_file
@options.number(
    "--count", default=512,
    help="At most so many photos of --calibrate, and of --check, evenly spread over the folders; without "
    "--check half of them are held back to check on.",
)  # fmt: skip
@click.option(
    "--float", "floats", multiple=True, callback=options.some, metavar="LAYER",
    help="A layer to keep in float32 (conv1_1, fc8); may be repeated. [default: by measurement]",
)  # fmt: skip
@options.threads
@options.json_object
def quantize(
    model: str, calibrate: tuple[str, ...], out: Path, as_json: bool, **choices: Any
) -> int:
    """Make an int8 model from a float one, and measure how often they agree.

    MODEL is a built-in model (builtin), a published one by its name, or a model file; it is not changed.
    The int8 model is as small as weights of 8 bits are, and with `--precision int8` about twice as quick
    as in `fast` where the processor multiplies such numbers (x86 with VNNI, ARM with dot product). Takes
    minutes.
    """
    require_writable(out, *calibrate, *choices["check"])
    with Progress("quantising", ""):
        from .. import quantisation

        result = quantisation.quantize(model, calibrate, out, **choices)
    show(result, as_json)
    return 1 if result.unreadable else 0


def _batches(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} are not batch sizes; write 1,8")
    return tuple(map(int, parts))


@click.command()
@click.argument("model", metavar="[MODEL]", default="builtin")
@click.option(
    "--batch", "batches", callback=_batches, default="1,8", show_default=True, metavar="N,N",
    help="Images in one pass, one or several numbers.",
)  # fmt: skip
@click.option(
    "--engines", default="all", show_default=True, metavar="NAMES",
    help="Engines to race, such as auto,openvino; torch-compiled races only if named.",
)  # fmt: skip
@click.option(
    "--precision", "precisions", default="all", show_default=True, metavar="CLASSES",
    help="exact, fast, half, int8 (of a model of `verydeep quantize`), or several of them.",
)  # fmt: skip
@options.number("--rounds", default=7, help="Turns that each one has.")
@options.number("--size", help="Pixels a side of the images. [default: the model's own]")
@options.threads
@options.json_list
def bench(model: str, as_json: bool, **choices: Any) -> None:
    """Race the installed engines on a model, on this machine.

    MODEL is a built-in model (builtin), a model file, or a network of the table such as vgg16, which gets
    random weights where no published ones are at hand.

    Rows named "plain" are the engines as their own documentation runs the network; "x torch" compares
    with torch eager, "x plain" with the best plain row of that precision. Errors are against float64.
    """
    with Progress("racing the engines", ""):
        from .. import benching

        rows = benching.bench(model, **choices)
    if as_json:
        show_list([row.to_dict() for row in rows])
    else:
        click.echo(benching.table(rows))
