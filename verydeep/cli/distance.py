"""`verydeep distance`: how far photos are from one another, as people see them."""

from __future__ import annotations

import statistics
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import log
from ..files.progress import progress
from ..files.wording import counted
from . import options
from .output import exit_status, json_list, output_file

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
    help="A layer that content or style compare, by paper name; may be repeated.",
)  # fmt: skip
@options.path(
    "--map",
    "map_path",
    help="Also draw where two photos differ (lpips, content): a .png or .jpg file.",
)
@options.model
@options.engine
@click.option(
    "--precision", default="fast", show_default=True, metavar="CLASS",
    help="Largest relative error of the distance: exact (1e-5), fast (1e-3) or half (3e-2). Photos so "
    "alike that the error would pass 2 % are compared again in a finer one.",
)  # fmt: skip
@options.device
@options.threads
@options.json_list
def distance(
    paths: tuple[str, ...],
    metric: str,
    layers: tuple[str, ...],
    map_path: Path | None,
    as_json: bool,
    **compute: Any,
) -> int:
    """Measure how different photos look: LPIPS and other distances.

    A and B are two photos; two folders, compared by file name; or a photo and all that it is compared
    with: photos, folders, globs in quotes. Of one folder alone, every two photos are compared. Photos are
    neither resized nor cropped, so the two of a pair must have one size.

    Prints the distance and the two names, a line for each pair; how it was computed goes to stderr, and
    with --json into every record. Pairs that cannot be compared, and files without a partner, are
    reported: the exit status is then 1, and 2 where nothing could be compared.
    """
    from ..distances.pairing import pair
    from ..errors import DataError
    from ..pictures.saving import require_picture

    pairing = pair(paths)
    if map_path is not None:
        if len(pairing.pairs) != 1:
            raise DataError(f"--map draws two photos; {len(pairing.pairs)} pairs were given")
        require_picture(output_file(map_path))
    from ..distances import Distance, Perceptual

    measure = Perceptual(metric, layers=layers or None, **compute)
    if pairing.reference is not None and len(pairing.pairs) > 1:
        from ..preprocess import decode

        decode(pairing.reference)  # one word about it, not one for each of the others
    for path in pairing.unmatched:
        log.error(f"{path}: no photo of that name in the other folder")
    total = len(pairing.pairs)
    items = measure.stream(pairing.pairs, spatial=map_path is not None)
    if total > 1:
        items = progress(items, "pair", total)
    good: list[float] = []
    ways: Counter[str] = Counter()
    with json_list() if as_json else nullcontext() as add:
        for (a, b), item in zip(pairing.pairs, items, strict=True):
            if add is not None:
                add({"a": a, "b": b, **_record(item)})
            if not isinstance(item, Distance):
                log.error(item.error)
                continue
            good.append(float(item))
            ways[_way(item, measure)] += 1
            if add is None:
                click.echo(f"{float(item):.6g}\t{a}\t{b}")
            if map_path is not None:
                _draw(map_path, a, b, item)
    for way, count in ways.most_common():
        log.info(f"{counted(count, 'pair') + ': ' if len(good) > 1 else ''}{way}")
    if len(good) > 1:
        log.info(
            f"mean {statistics.fmean(good):.4g}, median {statistics.median(good):.4g}, "
            f"from {min(good):.4g} to {max(good):.4g}"
        )
    return exit_status(total - len(good), total, "pair", "could not be compared") or int(
        bool(pairing.unmatched)
    )


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
    from ..distances.picture import draw
    from ..pictures.layout import as_rgb
    from ..pictures.saving import save
    from ..preprocess import decode

    photos = as_rgb(decode(a)), as_rgb(decode(b))
    save(draw(*photos, distance, (Path(a).name, Path(b).name)), path)
