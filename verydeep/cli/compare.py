"""`verydeep distance`, `features`, `similar` and `duplicates`: photos compared by what a network sees."""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import log
from ..files import photo_paths
from ..files.atomic import require_other, require_writable
from ..files.progress import Progress
from ..files.wording import counted, plain
from . import options
from .output import Listing, exit_status, photo_events, show


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="A [B...]")
@click.option(
    "--metric", default="lpips", show_default=True, metavar="NAME",
    help="lpips, dists, content or style.",
)  # fmt: skip
@click.option(
    "--layer", "layers", multiple=True, callback=options.some, metavar="NAME",
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
def distance(paths: tuple[str, ...], map_path: Path | None, as_json: bool, **choices: Any) -> int:
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
    from ..pictures import require_picture, save

    pairing = pair(paths)
    if map_path is not None:
        if len(pairing.pairs) != 1:
            raise DataError(f"--map draws two photos; {len(pairing.pairs)} pairs were given")
        require_picture(map_path)
        require_writable(map_path, *pairing.pairs[0])
    total = len(pairing.pairs)
    good: list[float] = []
    ways: Counter[str] = Counter()
    with Progress("comparing", "pair", total) as bar, Listing(as_json) as listing:
        from ..distances import Distance, Perceptual
        from ..pictures.layout import as_rgb
        from ..preprocess import decode

        measure = Perceptual(**choices)
        if pairing.reference is not None and total > 1:
            decode(pairing.reference)  # one word about it, not one for each of the others
        for path in pairing.unmatched:
            log.error(f"{path}: no photo of that name in the other folder")
        items = measure.stream(pairing.pairs, spatial=map_path is not None)
        for (a, b), item in zip(pairing.pairs, items, strict=True):
            bar.advance()
            if not isinstance(item, Distance):
                listing({"a": a, "b": b, "error": item.error})
                continue
            value = float(item)
            record = {"distance": value, "layers": item.layers, "about": asdict(item.about)}
            listing(
                {"a": a, "b": b, **record, "line": str(item.about)},
                f"{value:.6g}\t{plain(a)}\t{plain(b)}",
            )
            good.append(value)
            finer = item.about.precision != measure.precision
            ways[f"{item.about}{' (so alike that it takes this precision)' if finer else ''}"] += 1
            if map_path is not None:
                from ..distances.records import draw

                photos = as_rgb(decode(a)), as_rgb(decode(b))
                save(draw(*photos, item, photo_paths.told_apart(a, b)), map_path)
    for way, count in ways.most_common():
        log.info(f"{counted(count, 'pair') + ': ' if len(good) > 1 else ''}{way}")
    if len(good) > 1:
        log.info(
            f"mean {statistics.fmean(good):.4g}, median {statistics.median(good):.4g}, "
            f"from {min(good):.4g} to {max(good):.4g}"
        )
    status = exit_status(listing.failed, total, "pair", "could not be compared")
    return status or int(bool(pairing.unmatched))


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@options.path("--out", required=True, help="A .npz or .parquet file; with --ray a folder.")
@click.option(
    "--layer", "layers", multiple=True, callback=options.some, metavar="NAME",
    help="A layer by its paper name (conv4_2 is before ReLU, relu4_2 after it); may be repeated. "
    "[default: the last ReLU of the convolutions, relu5_3 of VGG-16]",
)  # fmt: skip
@click.option(
    "--pool", type=click.Choice(["avg", "max", "gem", "none"]), default="avg", show_default=True,
    metavar="HOW", callback=lambda _, __, pool: None if pool == "none" else pool,
    help="avg, max or gem make one number of each channel's map; none keeps whole maps.",
)  # fmt: skip
@click.option(
    "--size", callback=options.pixels, metavar="N|HxW|own",
    help="Pixels a side that photos are cropped to, height and width that they are stretched to, or own "
    "for photos as they are. [default: the model's own]",
)  # fmt: skip
@options.model
@options.batch
@options.cluster
@options.compute
def features(
    paths: tuple[str, ...], out: Path, ray: str | None, part: int | None, column: str | None,
    prices: tuple[float, ...], **choices: Any,
) -> int:  # fmt: skip
    """Write the features of photos to a file, one row per photo.

    PATH is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on stdin.
    Stopped, it keeps what it has in FILE.partial, and the same command goes on. A photo that cannot be
    read has a row with its error: the exit status is then 1, and 2 where not one could be read.

    With --ray a PATH is a WebDataset shard (.tar) or a Parquet table (.parquet), too, or the URL of
    anything of this (s3://, gs://, hdfs://); --out is a folder, and stopped, the same command goes on.
    """
    if ray is not None:
        from .cluster import compute

        return compute(
            "features", paths, out, prices, address=ray, part=part, column=column, **choices
        )
    require_writable(out, *paths)
    try:
        with photo_events("computing features", photo_paths.counter(paths)) as on_event:
            from .. import retrieval

            file = retrieval.features(paths, out, on_event=on_event, **choices)
    except KeyboardInterrupt:
        if os.path.isdir(f"{out}.partial"):
            log.info(f"what was done is in {out}.partial; the same command goes on")
        raise
    click.echo(str(file))
    return exit_status(sum(map(bool, file.errors)), len(file))


@click.command()
@click.argument("index", metavar="INDEX")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@options.number("--top", default=10, metavar="K", help="How many photos to name for each query.")
@click.option("--layer", metavar="NAME", help="The layer to compare by, where INDEX has several.")
@options.path("--sheet", help="Also draw the queries and their matches: a .png or .jpg file.")
@click.option(
    "--model", metavar="NAME|FILE",
    help="Where the model that made INDEX is now. [default: where it was then]",
)  # fmt: skip
@options.exact
@options.engine
@options.device
@options.threads
@options.json_list
def similar(
    index: str, queries: tuple[str, ...], sheet: Path | None, as_json: bool, **choices: Any
) -> int:
    """Find the photos most similar to others, in a file of features.

    INDEX is a file that `verydeep features` wrote. QUERY is a photo, a folder, or a glob in quotes: its
    features are computed as they were for INDEX, and compared by cosine with every row. A query that
    cannot be read is reported: the exit status is then 1, and 2 where not one could be read.

    Of more than 100,000 photos an index is built once, in INDEX.nearest, where verydeep[nearest] is
    installed: it misses some of the nearest, and how many is measured and said.
    """
    from ..pictures import require_picture

    photos = list(photo_paths.find_some(queries)[0])
    if sheet is not None:
        require_picture(sheet)
        require_writable(sheet, *photos)
    with Progress("searching", "", None):
        from .. import retrieval

        rows = retrieval.similar(retrieval.open_features(index), photos, **choices)
    with Listing(as_json) as listing:
        for row in rows:
            listing(row.to_dict(), f"\n{row}" if listing.count > listing.failed else str(row))
    answers = [row for row in rows if not row.error]
    if sheet is not None and answers:
        for match in (one for row in answers for one in row.matches):
            require_other(sheet, match.photo)
        retrieval.contact_sheet(answers, sheet)
    return exit_status(listing.failed, listing.count)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--threshold", default=0.96, show_default=True, metavar="COSINE",
    help="How similar duplicates are at least; 1 finds equal pictures only.",
)  # fmt: skip
@click.option(
    "--layer", metavar="NAME", help="The layer to compare by. [default: relu4_1, averaged]"
)
@click.option(
    "--keep", metavar="WHICH",
    help="Print only the photos to keep, a line each: of each group the first, largest or oldest one, and "
    "all that links lead to.",
)  # fmt: skip
@options.exact
@options.model
@options.batch
@options.compute
@options.json_object
def duplicates(paths: tuple[str, ...], as_json: bool, **choices: Any) -> int:
    """List duplicate photos, even resized or compressed again.

    FOLDER is a folder (searched recursively), a photo, a glob in quotes, or - for a list of paths on
    stdin; or one file that `verydeep features` wrote. Duplicates have the same bytes, or features whose
    cosine is at least the threshold and pixels that lie over each other: other sizes and qualities of one
    photo, slight crops and edits. Links to a file are that file, and no duplicates of it.

    Of more than 100,000 photos the pairs are proposed by an index, as for `similar`, which misses some.
    """
    with photo_events("looking for duplicates") as on_event:
        from .. import retrieval

        result = retrieval.duplicates(paths, on_event=on_event, **choices)
    if result.keep and not as_json and sys.stdout.isatty():  # for people, not for the next program
        click.echo("\n".join(map(plain, result.keep)))
    else:
        show(result, as_json)
    return exit_status(len(result.errors), result.photos)
