"""One HTML page about a compression: how small, what was lost, what was tried, and how it came about."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ..pictures import charts
from ..pictures import page as html
from ..pictures import write as write_text
from .result import Compressed

_FIGURES = (
    "accuracy",
    "agreement",
    "error",
)  # what may be measured of a trial, first what says most


def write(result: Compressed, path: Path) -> None:
    """Write the page."""
    write_text(page(result), path)


def page(result: Compressed) -> str:
    """The text of the page."""
    title = f"{result.path.name}: {_size(result.before_bytes)} became {_size(result.size_bytes)}"
    cards = [("file", _size(result.size_bytes), f"before: {_size(result.before_bytes)}")]
    if result.drop is not None:
        row, lost = result.figure("drop"), f"{result.drop:.2f} points"
        cards.append(("accuracy lost", lost, _interval(row, "{:.2f} to {:.2f}", "labelled photos")))
    if result.agreement is not None:
        row, same = result.figure("agreement"), f"{result.agreement:.1%}"
        cards.append((_same(result), same, _interval(row, "{:.1%} to {:.1%}", "photos")))
    if result.error is not None:
        cards.append(("error", f"{result.error:.2%}", "of the scores, or the last maps"))
    if result.speedup is not None:
        fewer = result.before_multiply_adds / result.multiply_adds
        more = f"{fewer:.2f}x fewer multiply-adds: {result.multiply_adds:,}"
        cards.append(("speed here", f"{result.speedup:.2f}x", more))
    cards.append(("goal", "met" if result.met else "not met", result.goal))
    made = result.made
    details = {
        "Command": str(made.get("command", "")), "Goal": result.goal, "Folder": str(made.get("folder", "")),
        "Versions": html.pairs(made.get("versions", {})), "Model": str(result.path),
    }  # fmt: skip
    parts = [
        html.head(title, f"{result.said}.", cards),
        _curve(result),
        _tried(result),
        _layers(result),
    ]
    return html.page(title, [*parts, html.details(details)])


def _curve(result: Compressed) -> str:
    """Size against what was measured, with the point that was chosen."""
    key = next((key for key in _FIGURES if key in result.trials[0]), None)
    if key is None:
        return ""
    unit, name = (1e6, "MB") if result.before_bytes >= 1e6 else (1e3, "KB")
    points = sorted((one["size"] / unit, one[key]) for one in result.trials)
    xs, ys = zip(*points, strict=True)
    chosen = _chosen(result)
    drawn = [
        charts.Line("trials", xs, ys, dots=True),
        charts.Line("this file", [chosen["size"] / unit], [chosen[key]]),
    ]
    says = "Each dot is a trial: a file, and what it was measured to do."
    if key == "accuracy":
        before = chosen[key] + chosen["drop"] / 100
        drawn.append(charts.Line("before", (xs[0], xs[-1]), (before, before)))
        says += " The level line is the model that it was made of."
    low = 0.0 if key == "error" else None
    what = _same(result) if key == "agreement" else key
    svg = charts.lines(drawn, x=f"size, {name}", y=what, percent=True, low=low)
    heading = f"Size and {what}"
    return html.section(heading, says, f'<div class="chart">{svg}</div>')


def _same(result: Compressed) -> str:
    return "same classes" if result.several else "same first answer"


def _chosen(result: Compressed) -> dict[str, Any]:
    """The trial that the file is."""
    return next(one for one in result.trials if one["chosen"])


def _tried(result: Compressed) -> str:
    """A row for each trial, the chosen one marked."""
    columns = {
        "bytes": ("size", "{:,}"),
        "accuracy": ("accuracy", "{:.2%}"), "points lost": ("drop", "{:.2f}"),
        _same(result): ("agreement", "{:.1%}"),
        "error": ("error", "{:.2%}"),
    }  # fmt: skip
    if result.drop is None:  # what it says of a trial is then that answers changed
        del columns["points lost"]
    there = {name: how for name, how in columns.items() if how[0] in result.trials[0]}
    rows = [[how.format(one[key]) for key, how in there.values()] for one in result.trials]
    return html.section(
        "What was tried",
        "Trials in their order; the marked one is the file.",
        html.table(
            list(there), rows, numbers=range(len(there)), kind="classes",
            chosen=[one["chosen"] for one in result.trials].index(True),
        ),
    )  # fmt: skip


def _layers(result: Compressed) -> str:
    rows = [
        (escape(one["name"]), f"{one['weights']:,}", f"{one['bits']:.2f}",
         f'{html.bar(one["share"])}<span class="value">{one["share"]:.1%}</span>')
        for one in result.layers
    ]  # fmt: skip
    head = ("layer", "weights", "bits a weight", "of the file")
    says = "Bits go to where rounding was measured to cost the answers most."
    return html.section(
        "Layer by layer", says, html.table(head, rows, numbers=(1, 2), kind="classes")
    )


def _interval(row: Any, how: str, what: str) -> str:
    """What is said beneath a figure: where it lies in 95 of 100 samples of so many photos."""
    told = f"95%: {how.format(*row['interval'])}; " if "interval" in row else ""
    return f"{told}{row['n']:,} {what}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"
