"""`verydeep weights` and `verydeep cache`: published weights, and what was prepared on this machine."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import VerydeepError, WeightsError, log
from ..files.wording import counted, plain, table
from . import CONTEXT, options
from .output import Listing, exit_status, json_text, show_list

FIELDS = "name network file url size_bytes licence preprocess classes".split()  # of an entry


@click.group(context_settings=CONTEXT)
def weights() -> None:
    """List, fetch, verify and convert published weights."""


@weights.command("list")
@options.json_list
def list_weights(as_json: bool) -> None:
    """List the catalogue: published weights, their accuracy, and what is on this machine."""
    rows = published_weights()
    if as_json:
        show_list(rows)
        return
    lines = [("name", "MB", "top-1", "top-5", "pre-processing", "here", "file")]
    lines += [
        (
            row["name"], f"{row['size_bytes'] / 1e6:.0f}",
            *("" if row[top] is None else f"{row[top]:.2%}" for top in ("top1", "top5")),
            row["preprocess"], "yes" if row["model_file"] else "", row["file"],
        )
        for row in rows
    ]  # fmt: skip
    click.echo(table(lines, "<>>><"))


@weights.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--quiet", is_flag=True, help="Say nothing on stderr but errors.")
def fetch(names: tuple[str, ...], quiet: bool) -> int:
    """Fetch published weights, convert them once, and print the paths of the model files.

    The model file is kept, and what was fetched is removed, since it has the same weights.
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
            log.error(error)
            failures += 1
    return exit_status(failures, len(names), "name", "could not be fetched")


@weights.command()
@click.argument("files", metavar="FILE|NAME...", nargs=-1, required=True)
@options.json_list
def verify(files: tuple[str, ...], as_json: bool) -> int:
    """Read files whole and say whether they are what they claim to be.

    A published file is compared with its published digest, a model file with the table and with what
    was learned when it was made. NAME verifies what the cache has of it.
    """
    from ..published.recognition import Verdict, verdicts

    bad = 0
    with Listing(as_json) as listing:
        for name in files:
            try:
                answers = verdicts(name)
            except VerydeepError as error:
                answers = (Verdict(Path(name), False, str(error)),)
            for one in answers:
                bad += not one.ok
                text = f"{'ok' if one.ok else 'BAD':<3} {plain(str(one.file))}: {one.what}"
                listing({**asdict(one), "file": str(one.file)}, text)
    return exit_status(bad, listing.count, "file", "not as expected")


def _labels(
    _: click.Context, __: click.Parameter, choice: str | None
) -> list[tuple[str, str]] | None:
    """(id, name) of each class: from ImageNet, or from the lines of a file."""
    from ..published import catalog

    if choice is None:
        return None
    if choice == "imagenet":
        return list(zip(catalog.class_ids(), catalog.class_names(), strict=True))
    try:
        lines = Path(choice).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read the labels in {choice}: {error}") from error
    return [(line.partition("\t")[0], line.rpartition("\t")[2]) for line in lines if line.strip()]


@weights.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=options.Place(), callback=options.no_photo)
@click.option(
    "--preprocess", metavar="PRESET",
    help="What the weights expect: torchvision, features, caffe, lpips. Needed for unknown files.",
)  # fmt: skip
@click.option(
    "--network", metavar="NAME", help="The network, where shapes do not say it: vgg11_lrn, ..."
)
@click.option(
    "--from", "layout", metavar="LAYOUT", help="The layout of IN, where its names mislead."
)
@click.option(
    "--to", type=click.Choice(["verydeep", "torchvision", "timm"]),
    help="A model file, or a state dict for the other two (.safetensors or .pth). [default: verydeep, but "
    "torchvision for a .pth]",
)  # fmt: skip
@click.option(
    "--as", "claim", metavar="NAME", help="The published weights that IN must prove to be."
)
@click.option("--trunk", is_flag=True, help="Leave the classifier out.")
@click.option(
    "--averages", callback=options.names, metavar="LAYER,...", default="",
    help="The layers that a head of one FC layer averages: pool5, or relu4_3,relu5_3.",
)  # fmt: skip
@click.option(
    "--labels", callback=_labels, metavar="imagenet|FILE",
    help="Names of the classes: ImageNet's, or a file with a line for each, an id and a tab before the "
    "name or not.",
)  # fmt: skip
@click.option("--licence", default="", help="The licence of the weights, for the record.")
def convert(source: str, target: Path, to: str | None, **told: Any) -> None:
    """Convert weights that others saved into a model file, or a model file for torchvision or timm.

    IN is a model file, a name of `verydeep weights list`, or .pth, .safetensors, .keras, .h5, .weights.h5,
    .npz, .npy, .pkl or .caffemodel, in the layout of torchvision (of any year), timm, Keras, Caffe or Flax,
    recognised by its names and shapes.
    """
    from ..published import conversion as converters

    to = to or ("torchvision" if target.suffix in converters.STATE_DICTS else "verydeep")
    if to != "verydeep":
        if any(told.pop(key) for key in ("preprocess", "labels", "licence")):
            raise click.UsageError(f"a state dict for {to} has no place for what it expects")
        net = converters.export(source, target, to, **told).network
        log.info(f"{target}: {net.name} for {to}; a state dict does not say its pre-processing")
    else:
        net = converters.convert(source, target, **told).network
        head = counted(net.head.classes, "class") if net.head.classes else "no head"
        log.info(f"{target}: {net.name}, {head}, {net.parameters:,} parameters")
    click.echo(str(target))


def published_weights() -> list[dict[str, Any]]:
    """What `list` prints of each: its entry of the catalogue, and its model file, if it is here."""
    from ..published import catalog, supply

    rows = []
    for entry in catalog.ENTRIES.values():
        path = supply.model_path(entry)
        accuracy = {top: getattr(entry.accuracy, top, None) for top in ("top1", "top5", "protocol")}
        rows.append({
            **{field: getattr(entry, field) for field in FIELDS},
            "weights": entry.release, "digest": entry.published[0].digest, **accuracy,
            "model_file": str(path) if path.is_file() else None,
        })  # fmt: skip
    return rows


@click.group(context_settings=CONTEXT)
def cache() -> None:
    """List and clear prepared models and remembered engine choices.

    A model is prepared as an engine's own file, or as weights that were decoded. Both are made again when
    they are needed. VERYDEEP_CACHE names the folder, VERYDEEP_CACHE_LIMIT the most that prepared models
    may take (2GB); those used longest ago go first. Published weights are kept apart: see `verydeep
    weights list`.
    """


@cache.command("list")
@options.json_object
def list_cache(as_json: bool) -> None:
    """List the prepared models and the engines that were chosen."""
    from ..engines.race import Memory, told
    from ..files.cache import Cache

    graphs, memory = Cache(), Memory()
    entries, choices = graphs.entries(), memory.choices()
    total = sum(entry.size_bytes for entry in entries)
    folder = graphs.folder.parent
    if as_json:
        listed = [
            {"name": e.name, "size_bytes": e.size_bytes, "used": e.used, **e.about} for e in entries
        ]
        click.echo(json_text({
            "folder": str(folder), "limit_bytes": graphs.limit_bytes, "size_bytes": total,
            "graphs": listed, "choices": choices,
        }))  # fmt: skip
        return
    click.echo(
        f"{folder}: {counted(len(entries), 'prepared model')}, {total / 1e6:.0f} of "
        f"{graphs.limit_bytes / 1e6:.0f} MB; {counted(len(choices), 'engine choice')}"
    )
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"  {entry.size_bytes / 1e6:>7.1f} MB  used {used}  {entry.name}")
    for choice in choices:
        race = choice["race"]
        standings = memory.standings(race)
        click.echo(
            f"  graph {race['graph'][:12]}, {race['precision']}, {race['batch']} of "
            f"{race['height']}x{race['width']}, {counted(race['threads'], 'thread')}: "
            f"{told(standings) if standings else 'damaged'}"
        )


@cache.command()
def clear() -> None:
    """Remove the prepared models and forget the engines that were chosen."""
    from ..engines.race import Memory
    from ..files import hashes
    from ..files.cache import Cache

    freed = Cache().clear()
    Memory().clear()
    hashes.forget()
    click.echo(f"{freed / 1e6:.0f} MB freed; engines are measured again when needed")
