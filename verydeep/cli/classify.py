"""`verydeep classify` names what is on photos; `verydeep evaluate` counts how often it is right."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OutputError, log
from ..files import photo_paths
from ..files.wording import column, counted, plain
from . import options

if TYPE_CHECKING:
    from ..predictor import Answer, Predictor

BAR_CELLS = 24


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@options.model
@options.number(
    "--top", default=5, metavar="K", help="How many classes to name, where one is right."
)
@options.size
@options.batch
@options.compute
@options.json_list
@options.path(
    "--csv", "table", help="Also write a table: path, rank, label, probability, sure, error."
)
@options.cluster
@options.path("--out", metavar="FOLDER", help="With --ray: the folder of Parquet files.")
@click.option(
    "--profile", is_flag=True, help="Say at the end how fast it was, and what took how long."
)
def classify(
    paths: tuple[str, ...],
    model: str,
    top: int,
    batch: int,
    as_json: bool,
    table: Path | None,
    profile: bool,
    ray: str | None,
    out: Path | None,
    part: int | None,
    column: str | None,
    prices: tuple[float, ...],
    **compute: Any,
) -> int:
    """Name what is on photos.

    PATH is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on stdin.
    Files that cannot be read are reported and skipped: the exit status is then 1, and 2 where not one
    could be read.

    With --ray sources and --out are as for `verydeep features`: a row an image, of its path, error, labels
    and their probabilities, best first, and whether it is sure.
    """
    if (ray is None) != (out is None) or (ray and (as_json or table or profile)):
        raise click.UsageError(
            "--ray and --out FOLDER go together, without --json, --csv or --profile"
        )
    if out is not None:
        from . import cluster

        how = {"address": ray, "part": part, "column": column, "model": model, "top": top}
        return cluster.compute("classify", paths, out, prices, batch=batch, **how, **compute)
    files, several = photo_paths.find_some(paths)
    with ExitStack() as opened:
        bar = None
        if several:
            from ..files.progress import Progress

            bar = opened.enter_context(Progress("classifying", total=photo_paths.counter(paths)))
        from ..files.atomic import is_replaced, require_other, require_writable
        from ..predictor import Failure, load
        from .output import Listing, exit_status

        if table is not None:
            require_writable(table, *paths)
            # it may be a photo of a folder that is given
            what, _ = photo_paths.sniff(photo_paths.head(str(table)))
            if what not in ("", "text") and is_replaced(table):
                raise OutputError(f"{table}: is {what}, and no table; name another file")
        loaded = load(model, **compute)
        if table is not None:
            require_other(table, loaded.model.path)
        began = time.perf_counter()
        listing = opened.enter_context(Listing(as_json))
        each = bool(loaded.record.thresholds)  # class has a probability of its own
        write = None if table is None else opened.enter_context(_table(table, each))
        for answer in loaded.stream(files, top=top, batch=batch):
            if bar is not None:
                bar.advance()
            if isinstance(answer, Failure):
                record = {"path": answer.path, "error": answer.error}
                listing(record)
            else:
                record = _record(answer)
                listing(record, _bars(answer, each))
            if write is not None:
                write(record)
    if profile:
        log.info(_profile(loaded, listing.count, time.perf_counter() - began))
    return exit_status(listing.failed, listing.count)


def _bars(answer: Answer, several: bool) -> str:
    """A block of lines: the path, then a bar for each class. several: whether all of them may be right."""
    from .output import is_utf8

    full, empty = "█░" if is_utf8() else "#."
    doubt = "" if answer.sure else click.style("  not sure", fg="yellow")
    lines = [click.style(plain(answer.path or ""), bold=True) + doubt]
    labels = column(guess.label for guess in answer.predictions)
    for rank, (label, guess) in enumerate(zip(labels, answer.predictions, strict=True)):
        cells = round(guess.probability * BAR_CELLS)
        right = answer.sure and (several or rank == 0)
        bar = click.style(full * cells, fg="green" if right else "cyan")
        bar += click.style(empty * (BAR_CELLS - cells), dim=True)
        lines.append(f"  {label}  {bar} {guess.probability:6.1%}")
    return "\n".join(lines)


@contextmanager
def _table(path: Path, several: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write records as CSV, one row a guess. Stopped by Ctrl-C, the rows so far are kept.

    Where there are none, so is what was there before.
    several: whether a photo that is of none may be: its row has no label, so that it is read back as such.
    """
    from ..files.atomic import replacing

    written, stopped = 0, None
    with replacing(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        columns = ("path", "rank", "label", "probability", "sure", "error")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()

        def write(record: Mapping[str, Any]) -> None:
            nonlocal written
            written += 1
            if "error" in record:
                writer.writerow(record)
            else:
                none = several and not record["sure"]
                for rank, guess in enumerate([{}] if none else record["predictions"], 1):
                    writer.writerow({**record, "rank": "" if none else rank, **guess})

        try:
            yield write
        except KeyboardInterrupt as error:
            if not written:
                raise
            stopped = error
    if stopped is not None:
        raise stopped


def _record(answer: Answer) -> dict[str, Any]:
    guesses = [
        {"label": p.label, "probability": round(p.probability, 6)} for p in answer.predictions
    ]
    return {
        "path": answer.path, "predictions": guesses, "sure": answer.sure, "engine": answer.engine,
        "precision": answer.precision,
    }  # fmt: skip


def _profile(predictor: Predictor, count: int, seconds: float) -> str:
    """Photos a second, and each stage's share of the time; stages overlap, so shares may pass 100 %."""
    from ..predictor import DECODING_THREADS

    spent = predictor.seconds
    return (
        f"{counted(count, 'photo')} in {seconds:.2f} s, {count / seconds:.1f} a second; "
        f"decoding {spent['decode']:.2f} s ({spent['decode'] / seconds:.0%}, in {DECODING_THREADS} threads "
        f"beside the engine), engine {predictor.engine} {predictor.precision} {spent['engine']:.2f} s "
        f"({spent['engine'] / seconds:.0%}, opening and choosing it included)"
    )


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option(
    "--views", default="centre", metavar="WAY", show_default=True,
    help="How a photo is looked at: centre, the model's own crop; dense, crops or both, as in the paper.",
)  # fmt: skip
@click.option(
    "--scales", default="", callback=options.whole_numbers, metavar="LIST",
    help="Pixels of the shorter side for these, such as 256,384,512; the model's own where none are given.",
)  # fmt: skip
@click.option(
    "--fuse", multiple=True, metavar="MODEL",
    help="Take the mean with another model of the same classes; may be repeated.",
)  # fmt: skip
@options.size
@options.batch
@options.compute
@options.json_object
def evaluate(
    model: str, data: str, batch: int, views: Any, scales: tuple[int, ...], fuse: tuple[str, ...],
    as_json: bool, **compute: Any,
) -> int:  # fmt: skip
    """Measure a model's accuracy on labelled photos.

    MODEL is a built-in model (builtin), a published one by its name, or a model file. DATA is what
    `verydeep train` takes, with folders named as a class of the model or by its id; of a divided set
    val/ is measured, else test/. Where photos have several labels: mean average precision.

    One centre crop a photo, or the evaluation of the paper, section 3.2. Its dense way (--views dense) has
    the network look at the whole photo and its mirror image, crops takes 50 crops of it, both the mean of
    these; probabilities are averaged over the scales, and over the models that are fused.
    """
    from .output import photo_events, show

    with photo_events("evaluating") as on_event:
        from .. import evaluation, predictor

        loaded = predictor.load(model, **compute)
        result = evaluation.evaluate(
            loaded, data, batch=batch, views=views, scales=scales, fuse=fuse, on_event=on_event
        )
    show(result, as_json)
    return 1 if result.errors else 0
