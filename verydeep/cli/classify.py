"""`verydeep classify`: name what is on photos."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import photo_paths as photos
from ..files.progress import progress
from .engine_options import engine_options

if TYPE_CHECKING:
    from ..predictor import Answer, Failure, Predictor

BAR_CELLS = 24


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    default="builtin",
    metavar="NAME|FILE",
    show_default=True,
    help="A built-in model, a published one by its name, or a model file.",
)
@click.option(
    "--top",
    default=5,
    type=click.IntRange(1),
    show_default=True,
    metavar="K",
    help="How many classes to name for each photo.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Also write a table: path, rank, label, probability, sure, error.")  # fmt: skip
@click.option(
    "--profile", is_flag=True, help="Say at the end how fast it was, and what took how long."
)
def command(
    paths: tuple[str, ...],
    model: str,
    top: int,
    size: int | None,
    batch: int,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    as_json: bool,
    csv_path: Path | None,
    profile: bool,
) -> int:
    """Name what is on photos.

    PATH is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on stdin.
    Files that cannot be read are reported and skipped: the exit status is then 1, and 2 where not one
    could be read.
    """
    files, several = photos.find_some(paths)
    from .. import predictor

    loaded = predictor.load(
        model, size=size, engine=engine, precision=precision, device=device, threads=threads
    )
    began = time.perf_counter()
    answers = loaded.stream(files, top=top, batch=batch)
    if several:
        answers = progress(answers)
    show = _Json() if as_json else _Text()
    good = bad = 0
    with _table(csv_path) as write:
        try:
            for answer in answers:
                if isinstance(answer, predictor.Failure):
                    bad += 1
                    click.echo(f"verydeep: {answer.error}", err=True)
                else:
                    good += 1
                show(answer)
                write(answer)
        finally:
            show.close()
    if profile:
        click.echo(_profile(loaded, good + bad, time.perf_counter() - began), err=True)
    if bad:
        click.echo(f"verydeep: {bad} of {good + bad} files could not be read", err=True)
    return 0 if not bad else 1 if good else 2


def _profile(predictor: Predictor, count: int, seconds: float) -> str:
    """Photos a second, and each stage's share of the time; stages overlap, so shares may pass 100 %."""
    from ..predictor import DECODING_THREADS

    spent = predictor.stopwatch.seconds
    return (
        f"verydeep: {count} photos in {seconds:.2f} s, {count / seconds:.1f} a second; "
        f"decoding {spent['decode']:.2f} s ({spent['decode'] / seconds:.0%}, in {DECODING_THREADS} threads "
        f"beside the engine), engine {predictor.engine} {predictor.precision} {spent['engine']:.2f} s "
        f"({spent['engine'] / seconds:.0%}, opening and choosing it included)"
    )


class _Json:
    """One list on stdout, written as it grows, so that a million photos need no memory."""

    def __init__(self) -> None:
        self.opening = "["

    def __call__(self, answer: Answer | Failure) -> None:
        click.echo(f"{self.opening}{json.dumps(_record(answer), ensure_ascii=False)}", nl=False)
        self.opening = ",\n "

    def close(self) -> None:
        click.echo("[]" if self.opening == "[" else "]")


class _Text:
    """A block a photo: its path, then a bar for each class."""

    def __init__(self) -> None:
        encoding = sys.stdout.encoding or "ascii"
        try:
            "█░".encode(encoding)
            self.full, self.empty = "█", "░"
        except UnicodeEncodeError:
            self.full, self.empty = "#", "."

    def __call__(self, answer: Answer | Failure) -> None:
        from ..predictor import Failure

        if isinstance(answer, Failure):
            return
        doubt = "" if answer.sure else click.style("  not sure", fg="yellow")
        click.echo(click.style(answer.path or "", bold=True) + doubt)
        width = max(len(p.label) for p in answer.predictions)
        for rank, guess in enumerate(answer.predictions):
            cells = round(guess.probability * BAR_CELLS)
            bar = click.style(
                self.full * cells, fg="green" if rank == 0 and answer.sure else "cyan"
            )
            bar += click.style(self.empty * (BAR_CELLS - cells), dim=True)
            click.echo(f"  {guess.label:<{width}}  {bar} {guess.probability:6.1%}")

    def close(self) -> None:
        pass


@contextmanager
def _table(path: Path | None) -> Iterator[Callable[[Answer | Failure], None]]:
    """Write answers as CSV, one row a guess. Stopped by Ctrl-C, the rows so far are kept."""
    if path is None:
        yield lambda _: None
        return
    from ..files.atomic import replacing

    stopped = False
    with replacing(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "rank", "label", "probability", "sure", "error"])

        def write(answer: Answer | Failure) -> None:
            record = _record(answer)
            if "error" in record:
                writer.writerow([answer.path, "", "", "", "", record["error"]])
                return
            for rank, guess in enumerate(record["predictions"], 1):
                cells = [guess["label"], guess["probability"], record["sure"], ""]
                writer.writerow([answer.path, rank, *cells])

        try:
            yield write
        except KeyboardInterrupt:
            stopped = True
    if stopped:
        raise KeyboardInterrupt


def _record(answer: Answer | Failure) -> dict[str, Any]:
    from ..predictor import Failure

    if isinstance(answer, Failure):
        return {"path": answer.path, "error": answer.error}
    guesses = [
        {"label": p.label, "probability": round(p.probability, 6)} for p in answer.predictions
    ]
    return {
        "path": answer.path,
        "predictions": guesses,
        "sure": answer.sure,
        "engine": answer.engine,
        "precision": answer.precision,
    }
