"""`verydeep compress`: a model made small."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import log
from ..files.atomic import require_writable
from ..files.progress import Progress
from . import options
from .output import show

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1_000_000, "GB": 1_000_000_000}
_COUNTS = {"": 1, "K": 1000, "M": 10**6, "G": 10**9}


def _bytes(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    return _whole(text, _UNITS, f"{text!r} is not a size; write 300KB, 8.5MB or bytes")


def _count(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    return _whole(text, _COUNTS, f"{text!r} is not a number of multiply-adds; write 80M or 5.2G")


def _whole(text: str | None, units: Mapping[str, int], otherwise: str) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Z]*)", text.upper())
    number = round(float(found[1]) * units.get(found[2], 0)) if found else 0
    if not number:
        raise click.BadParameter(otherwise)
    return number


@click.command()
@click.argument("model", metavar="MODEL")
@options.model_file
@options.calibrate(required=False)
@click.option(
    "--data", metavar="DATA",
    help="Labelled photos to measure the accuracy on, as `evaluate` takes them. Without --calibrate some "
    "of them say how weights may be rounded.",
)  # fmt: skip
@click.option(
    "--size", callback=_bytes, metavar="SIZE", help="What the file may take: 300KB, 8.5MB or bytes."
)
@click.option(
    "--max-drop", type=click.FloatRange(0, 100), metavar="POINTS",
    help="How many percentage points of accuracy may be lost on --data, or, without it, how many of 100 "
    "photos of --calibrate may get another first answer.",
)  # fmt: skip
@click.option(
    "--speedup", type=float, metavar="X",
    help="Take channels away until the network is X times as fast, measured here in the engine that is the "
    "quickest for the whole one. Needs photos.",
)  # fmt: skip
@click.option(
    "--multiply-adds", callback=_count, metavar="N",
    help="Take channels away until an image costs at most N multiply-adds: 80M, 5.2G. Needs photos.",
)  # fmt: skip
@click.option(
    "--effort", type=click.Choice(["quick", "normal", "max"]), default="normal", show_default=True,
    help="quick: each weight is rounded by itself. normal: others make up for it, by second moments of "
    "what they read. max: by those of four times as many photos. Training makes it smaller still: "
    "`verydeep train --set code_bytes=N`.",
)  # fmt: skip
@options.number(
    "--count",
    help="At most so many photos of --calibrate, evenly spread over the folders. [default: 64, 256 or "
    "1024, by the effort]",
)
@click.option("--again", is_flag=True, help="Also take a model that was compressed already.")
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@options.threads
@options.json_object
def compress(
    model: str, calibrate: tuple[str, ...], out: Path, as_json: bool, **choices: Any
) -> int:
    """Make a model file small: its weights rounded as coarsely as the goal allows, and coded.

    MODEL is a built-in model (builtin), a published one by its name, or a model file; it is not changed.
    Every verb takes the small file as any other: the network and its speed are the same. Half of the photos
    of --calibrate say how each weight may be rounded, the other half measure it. Without any, nothing of
    the answers is promised. Takes minutes; a page about it is written to FILE.report.html. The exit status
    is 1 where the goal was not met, and FILE is then the nearest, and where a photo could not be read.

    With --speedup or --multiply-adds the network itself becomes smaller and faster: those channels go that
    the others can best make up for. Weights are then rounded only with --size or --max-drop. Accuracy that
    is lost can be won back by `verydeep train --recipe finetune --set blocks=0 --init`.
    """
    require_writable(out, *calibrate, *filter(None, [choices["data"]]))
    trials = 0

    def told(event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            log.info(f"{event['model']}: {event['size']:,} bytes; goal: {event['goal']}")
            return
        if event["event"] == "pruned":
            few = event["before"] / event["multiply_adds"]
            quick = f", {event['speedup']:.2f} times as fast" if "speedup" in event else ""
            log.info(f"pruned: {event['multiply_adds']:,} multiply-adds, {few:.2f}x fewer{quick}")
            return
        nonlocal trials
        trials += 1
        parts = [f"{event['size']:,} bytes"]
        if "accuracy" in event:
            parts.append(f"accuracy {event['accuracy']:.2%}, {event['drop']:.2f} points lower")
        if "agreement" in event:
            parts.append(f"same answers {event['agreement']:.1%}")
        if "error" in event:
            parts.append(f"error {event['error']:.2%}")
        if event["speedup"] is not None:
            parts.append(f"{event['speedup']:.2f} times as fast here")
        elif choices["multiply_adds"] is None:  # a pruned trunk is not measured
            parts.append("as fast as before")
        log.info(f"trial {trials}: {', '.join(parts)}")

    with Progress("compressing", ""):
        from .. import compression

        result = compression.compress(model, out, calibrate=calibrate, on_event=told, **choices)
    show(result, as_json)
    if not as_json and result.report is not None:
        click.echo(f"report: {result.report}")
    return 1 if result.unreadable or not result.met else 0
