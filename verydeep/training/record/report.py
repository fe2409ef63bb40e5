"""One HTML page about what a run was measured to do: figures, charts, mistakes, and how it came about.

Sections without content are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.page import Answers, fraction, measured
from ...files.wording import clock, counted
from ...pictures import charts
from ...pictures import page as html
from ...pictures import write as write_text
from .result import TrainResult

LISTED = 50  # bad images
_NAMES = {"top1": "top-1", "mean_average_precision": "mean average precision"}


def write(result: TrainResult) -> Path:
    """Write the page of a run as report.html in its folder, and return where."""
    path = result.folder / "report.html"
    write_text(page(result), path)
    return path


def page(result: TrainResult) -> str:
    """The text of the page. DataError where probabilities are no finite numbers."""
    begun = next((line for line in result.log if line.get("event") == "start"), result.config)
    recipe, count = str(begun.get("config", {}).get("recipe", "training")), len(result.classes)
    title = f"{recipe}: {f'{count} classes' if count > 6 else ', '.join(result.classes)}"
    lead, cards, sections = measured(Answers(
        result.model, result.classes, result.val, result.probabilities, result.labels, result.thresholds,
    ))  # fmt: skip
    cards += [("recipe", recipe, "")]
    if result.model.exists():
        cards += [("model file", f"{result.model.stat().st_size / 1e6:.1f} MB", "")]
    cards += [("time", clock(result.seconds), "")]
    end = result.log[-1] if result.log else {}
    tested = (key for key in end if key.endswith(", test"))
    cards += [(key, f"{end[key]:.2%} of test/", "") for key in tested]
    head = html.head(title, lead, cards)
    rest = [_curves(result), _tried(result), _data_set(result), _details(result, begun)]
    return html.page(title, [head, *sections, *rest])


def _curves(result: TrainResult) -> str:
    epochs = [line for line in result.log if line.get("event") == "epoch"]
    if not epochs:
        return ""
    judged = str(epochs[0].get("judged", "validation"))  # or images held out of the training set
    steps = [
        line for line in result.log if line.get("event") == "step" and "images_per_second" in line
    ]
    xs = [float(line["epoch"]) for line in epochs]
    minutes = [line["seconds"] / 60 for line in steps]

    def chart(heading: str, keys: Mapping[str, str], x: str = "epoch", **options: Any) -> str:
        at, lines = (xs, epochs) if x == "epoch" else (minutes, steps)
        drawn = [
            charts.Line(name, at, [line.get(key, np.nan) for line in lines])
            for name, key in keys.items()
        ]
        svg = charts.lines([one for one in drawn if np.isfinite(one.ys).any()], x=x, **options)
        return f'<div class="chart"><h3>{heading}</h3>{svg}</div>' if svg else ""

    speed = {"images a second": "images_per_second"} if len(steps) > 1 else {}
    drawn = [
        chart("Accuracy", {judged: "top1", "training": "train_top1"}, y="top-1", percent=True),
        chart("Loss", {judged: "loss", "training": "train_loss"}, y="cross-entropy"),
        chart("Learning rate", {"rate": "rate"}, y="rate", low=0.0),
        chart("Speed", speed, x="minutes", y="images a second", low=0.0),
    ]
    best = max(epochs, key=lambda line: line.get("top1", -1.0))
    says = ""
    kept = result.log[-1].get("best_epoch")
    if kept is not None:
        share = result.log[-1].get("mixed", 1.0)
        part = "" if share == 1 else f", {share:.0%} of it, the rest as the run began"
        says = (
            f"Epoch {kept} was kept{part}. " if kept else "The head alone was kept, and no epoch. "
        )
    if "top1" in best:
        says += (
            f"{counted(int(xs[-1]), 'epoch')}; the best {judged} accuracy, {best['top1']:.2%}, came after "
            f"epoch {best['epoch']}. Training figures are those of augmented images, while weights changed."
        )
    return html.section("How it learnt", says, f'<div class="grid-of">{"".join(drawn)}</div>')


def _tried(result: TrainResult) -> str:
    """What a probe compared before it chose."""
    tried = [line for line in result.log if line.get("event") == "tried"]
    chosen = next((line for line in result.log if line.get("event") == "chosen"), None)
    if not tried or chosen is None:
        return ""
    figure = "top1" if "top1" in chosen else "mean_average_precision"
    rows = [
        (escape(", ".join(line["layers"])), str(line["size"]), f"{line['l2']:g}", f"{line['loss']:.4f}",
         fraction(float(line[figure])))
        for line in tried
    ]  # fmt: skip
    same = [all(line[key] == chosen[key] for key in ("size", "layers", "l2")) for line in tried]
    head = ("layers", "pixels", "penalty", "held-out loss", f"held-out {_NAMES[figure]}")
    return html.section(
        "How it was chosen",
        "Averages of the trunk's layers were computed once, and a linear head was solved on them; the "
        "trunk is as it came. Layers and penalty are those with the least loss on training images that "
        "were held out.",
        html.table(
            head, rows, numbers=(1, 2, 3), kind="classes",
            chosen=same.index(True) if True in same else -1,
        ),
    )  # fmt: skip


def _data_set(result: TrainResult) -> str:
    told = (str(line["text"]) for line in result.log if line.get("event") == "warning")
    warnings = [escape(line) for line in dict.fromkeys((*result.warnings, *told))]
    bad = [f"<code>{escape(name)}</code> {escape(why)}" for name, why in result.bad]
    parts = [f'<ul class="warn"><li>{"</li><li>".join(warnings)}</li></ul>'] if warnings else []
    if bad:
        more = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        parts.append(
            f"<p>{counted(len(bad), 'image')} could not be read, and {'was' if len(bad) == 1 else 'were'} "
            f"left out:</p><ul><li>{'</li><li>'.join(bad[:LISTED] + more)}</li></ul>"
        )
    return html.section("About the data", "", *parts) if parts else ""


def _details(result: TrainResult, begun: Mapping[str, Any]) -> str:
    """The command, versions and settings. begun: what the run said of itself when it began."""
    data = dict(begun.get("data", {}))
    digest = str(data.pop("digest", ""))[:16]
    return html.details({
        "Command": str(begun.get("command", "")), "Data": html.pairs(data | {"digest": digest}),
        "Settings": html.pairs(begun.get("config", {})), "Versions": html.pairs(begun.get("versions", {})),
        "Device": str(begun.get("device", "")), "Model": str(result.model),
    })  # fmt: skip
