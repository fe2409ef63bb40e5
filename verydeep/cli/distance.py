"""`verydeep distance`: how far photos are from one another, as people see them."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files.progress import progress
from .output_folder import output_file

if TYPE_CHECKING:
    from ..distances import Distance, Perceptual
    from ..predictor import Failure


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="A [B...]")
@click.option(
    "--metric", default="lpips", show_default=True, metavar="NAME",
    help="lpips, dists, content or style.",
)  # fmt: skip
@click.option(
    "--layer", "layers", multiple=True, metavar="NAME",
    help="A layer that content or style compare, by paper name; again for several.",
)  # fmt: skip
@click.option(
    "--map", "map_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Also draw where two photos differ (lpips, content): a .png file.",
)  # fmt: skip
@click.option(
    "--model", default="builtin", show_default=True, metavar="NAME|FILE",
    help="Whose features: a built-in model, a published one by its name, or a model file.",
)  # fmt: skip
@click.option(
    "--engine", default="auto", show_default=True, metavar="NAME", help="As for classify."
)
@click.option(
    "--precision", default="fast", show_default=True, metavar="CLASS",
    help="exact (1e-5 of the distance), fast (1e-3) or half (3e-2). Photos so alike that it would cost "
    "more than 2 % are compared again in a finer one.",
)  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or mps."
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N",
    help="Threads to compute with. [default: one a core]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def command(
    paths: tuple[str, ...],
    metric: str,
    layers: tuple[str, ...],
    map_path: Path | None,
    model: str,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure how far photos are from one another, as people see them.

    A and B are two photos; two folders, compared by name; or a photo and all that it is compared with:
    photos, folders, globs in quotes. A folder alone: each of its photos with each other. Photos are
    neither resized nor cropped, so those of a pair must have one size.

    Prints the distance and the two names, one pair a line; what makes it reproducible goes to stderr, and
    with --json into every record. Pairs that cannot be compared, and names without a fellow, are
    reported: the exit status is then 1, and 2 where nothing could be compared.
    """
    from ..distances.pairing import pair
    from ..errors import DataError

    pairing = pair(paths)
    if map_path is not None:
        if len(pairing.pairs) != 1:
            raise DataError(f"--map draws two photos; {len(pairing.pairs)} pairs were given")
        if map_path.suffix.lower() != ".png":
            raise DataError(f"{map_path}: a map is a .png file; name it so")
        output_file(map_path)
    from ..distances import Distance, Perceptual

    measure = Perceptual(
        metric, model=model, layers=layers or None, engine=engine, precision=precision,
        threads=threads, device=device,
    )  # fmt: skip
    if pairing.reference is not None and len(pairing.pairs) > 1:
        from ..preprocess import decode

        decode(pairing.reference)  # one word about it, not one for each of the others
    for path in pairing.unmatched:
        click.echo(f"verydeep: {path}: no photo of that name in the other folder", err=True)
    found = measure.stream(pairing.pairs, spatial=map_path is not None)
    if len(pairing.pairs) > 1:
        found = progress(found, "pair", len(pairing.pairs))
    good: list[float] = []
    ways: Counter[str] = Counter()
    opening = "["
    for (a, b), item in zip(pairing.pairs, found, strict=True):
        if isinstance(item, Distance):
            good.append(float(item))
            ways[_way(item, measure)] += 1
        else:
            click.echo(f"verydeep: {item.error}", err=True)
        if as_json:
            record = {"a": a, "b": b, **_record(item)}
            click.echo(f"{opening}{json.dumps(record, ensure_ascii=False)}", nl=False)
            opening = ",\n "
        elif isinstance(item, Distance):
            click.echo(f"{float(item):.6g}\t{a}\t{b}")
        if map_path is not None and isinstance(item, Distance):
            _draw(map_path, a, b, item)
    if as_json:
        click.echo("]")
    bad = len(pairing.pairs) - len(good)
    for way, count in ways.most_common():
        click.echo(f"verydeep: {f'{count} pairs: ' if len(good) > 1 else ''}{way}", err=True)
    if len(good) > 1:
        click.echo(
            f"verydeep: mean {statistics.fmean(good):.4g}, median {statistics.median(good):.4g}, "
            f"from {min(good):.4g} to {max(good):.4g}",
            err=True,
        )
    if bad:
        click.echo(f"verydeep: {bad} of {bad + len(good)} pairs could not be compared", err=True)
    return 2 if not good else 1 if bad or pairing.unmatched else 0


def _way(item: Distance, measure: Perceptual) -> str:
    finer = item.about.precision != measure.precision
    return f"{item.about}{' (so alike that it takes this precision)' if finer else ''}"


def _record(item: Distance | Failure) -> dict[str, Any]:
    from ..predictor import Failure

    if isinstance(item, Failure):
        return {"error": item.error}
    return {
        "distance": float(item),
        "layers": item.layers,
        "about": asdict(item.about),
        "line": str(item.about),
    }


def _draw(path: Path, a: str, b: str, distance: Distance) -> None:
    from PIL import Image

    from ..distances.picture import draw
    from ..files.atomic import replacing
    from ..preprocess import decode

    def photo(name: str) -> Image.Image:
        found = decode(name)
        if isinstance(found, Image.Image):
            return found
        return Image.fromarray(found.round().astype("uint8"))

    picture = draw(photo(a), photo(b), distance, (Path(a).name, Path(b).name))
    with replacing(path) as file:
        picture.save(file, "PNG")
