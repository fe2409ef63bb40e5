"""`verydeep weights`: the published weights listed, fetched, verified and converted."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import VerydeepError, WeightsError, log
from . import CONTEXT

if TYPE_CHECKING:
    from ..published.catalog import Entry


@click.group(context_settings=CONTEXT)
def command() -> None:
    """List, fetch, verify and convert published weights."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def list_weights(as_json: bool) -> None:
    """List the catalogue: published weights, their accuracy, and what is on this machine."""
    from ..published import catalog

    rows = [_row(entry) for entry in catalog.ENTRIES.values()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(
        f"{'name':<21} {'MB':>6} {'top-1':>7} {'top-5':>7}  {'pre-processing':<15} here  file"
    )
    for row in rows:
        top1, top5 = (f"{row[k]:.2%}" if row[k] is not None else "" for k in ("top1", "top5"))
        click.echo(
            f"{row['name']:<21} {row['size_bytes'] / 1e6:>6.0f} {top1:>7} {top5:>7}  "
            f"{row['preprocess']:<15} {'yes' if row['model_file'] else '':<4}  {row['file']}"
        )


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--quiet", is_flag=True, help="Say nothing on stderr but errors.")
def fetch(names: tuple[str, ...], quiet: bool) -> int:
    """Fetch published weights, convert them once, and print the paths of the model files.

    NAME is a name of `verydeep weights list`, or the path of a published file. VERYDEEP_CACHE says
    where files are kept, VERYDEEP_MIRROR an address or folder to take them from, VERYDEEP_OFFLINE=1
    that nothing is to be fetched.
    """
    from ..published import supply

    if quiet:
        log.setLevel(logging.ERROR)
    failures = 0
    for name in names:
        try:
            click.echo(str(supply.obtain(name, progress=not quiet)))
        except VerydeepError as error:
            click.echo(f"verydeep: {error}", err=True)
            failures += 1
    return _status(failures, len(names))


@command.command()
@click.argument("files", metavar="FILE|NAME...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def verify(files: tuple[str, ...], as_json: bool) -> int:
    """Read files whole and say whether they are what they claim to be.

    A published file is compared with its published digest, a model file with the table and with what
    was learned when it was made. NAME verifies what the cache has of it.
    """
    from ..published.recognition import Verdict, verdicts

    found: list[Verdict] = []
    for name in files:
        try:
            found += verdicts(name)
        except VerydeepError as error:
            found.append(Verdict(Path(name), False, str(error)))
    if as_json:
        click.echo(json.dumps([{**asdict(one), "file": str(one.file)} for one in found]))
    for one in [] if as_json else found:
        click.echo(f"{'ok' if one.ok else 'BAD':<3} {one.file}: {one.what}")
    return _status(sum(not one.ok for one in found), len(found))


@command.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--preprocess",
    metavar="PRESET",
    help="What the weights expect: torchvision, features, caffe, lpips. Needed for unknown files.",
)
@click.option("--network", metavar="NAME", help="Where shapes do not say it: vgg11_lrn, ...")
@click.option("--from", "layout", metavar="LAYOUT", help="The layout of IN, where names mislead.")
@click.option(
    "--to",
    type=click.Choice(["verydeep", "torchvision", "timm"]),
    default="verydeep",
    show_default=True,
    help="A model file, or a state dict for the other two (.safetensors or .pth).",
)
@click.option(
    "--as", "claim", metavar="NAME", help="The published weights that IN must prove to be."
)
@click.option("--trunk", is_flag=True, help="Leave the classifier out.")
@click.option(
    "--averages",
    metavar="LAYER,...",
    default="",
    help="The layers that a head of one FC layer averages: pool5, or relu4_3,relu5_3.",
)
@click.option(
    "--labels",
    metavar="imagenet|FILE",
    help="Names of the classes: ImageNet's, or a file with one a line, an id and a tab first or not.",
)
@click.option("--licence", default="", help="The licence of the weights, for the record.")
def convert(
    source: Path,
    target: Path,
    preprocess: str | None,
    network: str | None,
    layout: str | None,
    to: str,
    claim: str | None,
    trunk: bool,
    averages: str,
    labels: str | None,
    licence: str,
) -> None:
    """Convert weights that others saved into a model file, or a model file for torchvision or timm.

    IN is .pth, .safetensors, .h5, .weights.h5, .npz, .npy, .pkl or .caffemodel, in the layout of
    torchvision (of any year), timm, Keras, Caffe or Flax, recognised by its names and shapes.
    """
    from ..published import conversion as converters

    layers = tuple(name.strip() for name in averages.split(",") if name.strip())
    if to != "verydeep":
        if preprocess or labels or licence:
            raise click.UsageError(f"a state dict for {to} has no place for what it expects")
        net = converters.export(
            source,
            target,
            to,
            claim=claim,
            network=network,
            layout=layout,
            trunk=trunk,
            averages=layers,
        )
        _note(f"{target}: {net.name} for {to}; a state dict does not say its pre-processing")
    else:
        record = converters.convert(
            source,
            target,
            preprocess=preprocess,
            claim=claim,
            network=network,
            layout=layout,
            trunk=trunk,
            averages=layers,
            labels=_labels(labels),
            licence=licence,
        )
        net = record.network
        head = f"{net.head.classes} classes" if net.head.classes else "no head"
        _note(f"{target}: {net.name}, {head}, {net.parameters:,} parameters")
    click.echo(str(target))


def _row(entry: Entry) -> dict[str, Any]:
    from ..published import supply

    path = supply.model_path(entry)
    accuracy = entry.accuracy
    return {
        "name": entry.name,
        "network": entry.network,
        "weights": entry.weights,
        "file": entry.file,
        "url": entry.url,
        "digest": entry.published[0].digest,
        "size_bytes": entry.size_bytes,
        "licence": entry.licence,
        "preprocess": entry.preprocess,
        "classes": entry.classes,
        "top1": accuracy.top1 if accuracy else None,
        "top5": accuracy.top5 if accuracy else None,
        "protocol": accuracy.protocol if accuracy else None,
        "model_file": str(path) if path.is_file() else None,
    }


def _labels(choice: str | None) -> list[tuple[str, str]] | None:
    """(id, name) of each class: from ImageNet, or from the lines of a file."""
    from ..published import catalog

    if choice is None:
        return None
    if choice == "imagenet":
        return list(zip(catalog.class_ids(), catalog.class_names(), strict=True))
    try:
        lines = Path(choice).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read the labels in {choice}: {error}") from error
    return [(line.partition("\t")[0], line.rpartition("\t")[2]) for line in lines if line.strip()]


def _note(text: str) -> None:
    click.echo(f"verydeep: {text}", err=True)


def _status(failures: int, total: int) -> int:
    """0 done, 1 some failed, 2 all failed."""
    return 0 if not failures else 1 if failures < total else 2
