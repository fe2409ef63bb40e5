"""One HTML page about what a model was measured to do: figures, charts, mistakes, and how it came about.

Sections without content are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, VerydeepError
from ...files.wording import clock, counted
from ...pictures import charts
from ...pictures import page as html
from ...pictures import write as write_text
from . import figures
from .figures import calibration_error, class_figures, confusion, reliability, top

if TYPE_CHECKING:
    from PIL import Image

    from ...explanations import Explainer
    from ...preprocess import ImageLike
    from .result import TrainResult

MISTAKES = 12  # shown with their pictures
CONFUSIONS = 12  # pairs of classes that are listed
SMALL = 300  # pixels of a picture's longer side
SHOWN_MATRIX = 200  # classes, above which the confusion matrix is left out
_NAMES = {"top1": "top-1", "mean_average_precision": "mean average precision"}
LISTED = 50  # bad images, and classes of the table before it is folded


@dataclass(frozen=True, eq=False)
class Report:
    """What a page is made of.

    title: what was done. classes: names, in the order of the scores. probabilities: (n, classes);
    labels: (n,), or (n, classes) of 0 and 1 beside the classes' thresholds; names: n, of the images.
    image: gives the picture of number i, for the mistakes; None for a page without pictures. model: the
    model file, for heat maps.
    facts: (name, value) for the head of the page. log: lines of log.jsonl. warnings: of the data.
    bad: (name, why) of images that could not be read.
    details: (name, text) at the end, such as the command, versions and settings.
    """

    title: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.floating]
    labels: NDArray[Any]
    thresholds: tuple[float, ...] = ()
    names: Sequence[str] = ()
    image: Callable[[int], ImageLike] | None = None
    model: Path | None = None
    facts: tuple[tuple[str, str], ...] = ()
    log: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    details: tuple[tuple[str, str], ...] = ()


def of_training(result: TrainResult) -> Report:
    """What a training run has to say."""
    from ..data import labelled

    start: Mapping[str, Any] = next(
        (line for line in result.log if line.get("event") == "start"), result.config
    )
    config = dict(start.get("config", {}))
    about: Mapping[str, Any] = start.get("data", {})
    facts = [("recipe", str(config.get("recipe", "")))]
    if result.model.exists():
        facts.append(("model file", f"{result.model.stat().st_size / 1e6:.1f} MB"))
    facts.append(("time", clock(result.seconds)))
    end = result.log[-1] if result.log else {}
    facts += [
        (key, f"{value:.2%} of test/") for key, value in end.items() if key.endswith(", test")
    ]
    details = [
        ("Command", str(start.get("command", ""))),
        ("Data", _pairs({k: v for k, v in about.items() if k != "digest"} | {
            "digest": str(about.get("digest", ""))[:16]})),
        ("Settings", _pairs(config)),
        ("Versions", _pairs(start.get("versions", {}))),
        ("Device", str(start.get("device", ""))),
        ("Model", str(result.model)),
    ]  # fmt: skip
    warned = [str(li["text"]) for li in result.log if li.get("event") == "warning"]
    count = len(result.classes)
    what = f"{count} classes" if count > 6 else ", ".join(result.classes)
    return Report(
        title=f"{config.get('recipe', 'training')}: {what}",
        classes=result.classes, probabilities=result.probabilities, labels=result.labels,
        thresholds=result.thresholds,
        names=[sample.name for sample in result.val],
        image=lambda number: labelled.open(result.val[number]), model=result.model, facts=tuple(facts),
        log=result.log, warnings=tuple(dict.fromkeys((*result.warnings, *warned))), bad=result.bad,
        details=tuple((name, text) for name, text in details if text),
    )  # fmt: skip


def write(result: TrainResult) -> Path:
    """Write the page of a training run as report.html in its folder, and return where."""
    path = result.folder / "report.html"
    write_text(page(of_training(result)), path)
    return path


def page(report: Report) -> str:
    """The text of the page. DataError where probabilities are no finite numbers."""
    if not np.isfinite(report.probabilities).all():
        raise DataError(
            "the report's probabilities are no finite numbers; the model's weights are damaged"
        )
    rest = [_curves(report), _tried(report), _data_set(report), _details(report)]
    if report.labels.ndim == 2:
        return html.page(report.title, [_several(report), *rest])
    probabilities = report.probabilities.astype(np.float32)
    first, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == report.labels
    table = confusion(probabilities, report.labels)
    confused = _confused(report, table)
    parts = [_head(report, first, right, confused)]
    if len(report.labels):
        parts += [
            _confusion(report, table, confused), _classes(report, table),
            _calibration(first, right), _mistakes(report),
        ]  # fmt: skip
    return html.page(report.title, [*parts, *rest])


def _confused(report: Report, table: NDArray[np.int64]) -> list[tuple[str, str, str]]:
    """(class, taken for, count of all) of the mistakes, most frequent first."""
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    rows = sorted(np.argwhere(wrong).tolist(), key=lambda at: -wrong[*at])
    names, all_of = report.classes, table.sum(1)
    return [(names[r], names[c], f"{wrong[r, c]} of {all_of[r]}") for r, c in rows]


def _head(
    report: Report,
    first: NDArray[np.float32],
    right: NDArray[np.bool_],
    confused: list[tuple[str, str, str]],
) -> str:
    cards = []
    sentence = "There were no images to validate with, so nothing was measured."
    if len(right):
        spread = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
        cards.append(("top-1", f"{right.mean():.2%}", f"± {spread:.2%} standard error"))
        if len(report.classes) > 5:
            top5 = top(report.probabilities.astype(np.float32), report.labels, 5)
            cards.append(("top-5", f"{top5:.2%}", ""))
        cards.append(("calibration error", f"{calibration_error(first, right):.2%}", "15 bins"))
        were = "was" if len(right) == 1 else "were"
        sentence = f"{right.sum()} of {counted(len(right), 'image')} {were} named right."
        for is_, taken, count in confused[:1]:
            sentence += f" The most frequent mistake: {is_} taken for {taken}, {count}."
    cards += [(name, value, "") for name, value in report.facts if value]
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f"<small>{escape(more)}</small>" if more else "")
        + "</div>"
        for name, value, more in cards
    )
    return (
        f'<h1>{escape(report.title)}</h1>\n<p class="lead">{escape(sentence)}</p>\n'
        f'<dl class="cards">{shown}</dl>'
    )


def _confusion(
    report: Report, table: NDArray[np.int64], confused: list[tuple[str, str, str]]
) -> str:
    rows = [tuple(map(escape, row)) for row in confused[:CONFUSIONS]]
    listed = "<p>No image was taken for another class.</p>"
    if rows:
        listed = html.table(("is", "was taken for", ""), rows, numbers=(2,))
    drawn = ""
    if len(report.classes) <= SHOWN_MATRIX:
        drawn = f'<div class="wide">{charts.confusion(table, report.classes)}</div>'
    return html.section(
        "What is taken for what",
        "Each row is a class, each column an answer. Right answers lie on the diagonal.",
        f'<div class="two">{drawn}<div>{listed}</div></div>',
    )


def _classes(report: Report, table: NDArray[np.int64]) -> str:
    precision, recall, f1, support = class_figures(table)
    rows = [
        (
            escape(report.classes[index]),
            f"{support[index]}",
            *(_bar(values[index]) if support[index] else "" for values in (precision, recall, f1)),
        )
        for index in np.lexsort(
            (f1, support == 0)
        ).tolist()  # last those with nothing to measure by
    ]
    head = ("class", "images", "precision", "recall", "F1")
    whole = html.table(head, rows, numbers=(1,), kind="classes")
    if len(rows) > LISTED:
        whole = f"<details><summary>All {len(rows)} classes</summary>{whole}</details>"
    return html.section(
        "Class by class",
        "Precision: how often an answer is right. Recall: how many of a class are found. The weakest class "
        "comes first.",
        whole,
    )


def _several(report: Report) -> str:
    """The head of the page and its classes, where an image may be of several."""
    true = report.labels > 0
    said = report.probabilities >= np.array(report.thresholds or 0.5)
    hits, answered, support = (true & said).sum(0), said.sum(0), true.sum(0)
    precise = figures.average_precision(report.probabilities, report.labels)
    rows = [
        (
            escape(report.classes[at]), f"{support[at]}",
            _bar(precise[at]) if support[at] else "",
            f"{np.broadcast_to(report.thresholds or 0.5, len(precise))[at]:.3f}",
            _bar(hits[at] / max(answered[at], 1)), _bar(hits[at] / max(support[at], 1)),
        )
        for at in np.argsort(precise, kind="stable").tolist()
    ]  # fmt: skip
    lead = "There were no images to validate with, so nothing was measured."
    if len(true):
        mean = figures.mean_average_precision(report.probabilities, report.labels)
        lead = f"Mean average precision {mean:.2%} of {counted(len(true), 'image')}."
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.facts
    )
    head = ("class", "images", "average precision", "threshold", "precision", "recall")
    section = html.section(
        "Class by class",
        "An image is said to be of every class whose probability reaches its threshold, which has the "
        "largest F1 on held-out training images. The weakest class comes first.",
        html.table(head, rows, numbers=(1, 3), kind="classes"),
    )  # fmt: skip
    title = f'<h1>{escape(report.title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
    return title + f'<dl class="cards">{facts}</dl>' + (section if len(true) else "")


def _bar(value: float) -> str:
    return f'{html.bar(value)}<span class="value">{value:.1%}</span>'


def _calibration(first: NDArray[np.float32], right: NDArray[np.bool_]) -> str:
    gap = float(first.mean() - right.mean())
    verdict = "it is too sure of itself" if gap > 0 else "it is right more often than it says"
    if abs(gap) < 0.02:
        verdict = "its probabilities mean what they say"
    diagram = charts.reliability_diagram(*reliability(first, right))
    return html.section(
        "Can its probabilities be believed?",
        f"On average the first answer was {first.mean():.1%} sure and {right.mean():.1%} right: {verdict}. "
        "On the dashed line they would be exactly right; whiskers are one standard error.",
        f'<div class="chart">{diagram}</div>',
    )


def _mistakes(report: Report) -> str:
    """The most confident wrong answers, with what the network saw."""
    probabilities = report.probabilities
    first, answer = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(answer != report.labels)
    wrong = wrong[np.argsort(-first[wrong], kind="stable")][:MISTAKES]
    if not len(wrong) or report.image is None:
        return ""
    explainer = _explainer(report)
    cards = []
    for number in wrong.tolist():
        said, true = int(answer[number]), int(report.labels[number])
        name = Path(report.names[number]).name if len(report.names) else f"image {number}"
        pictures = _pictures(report, number, said, true, explainer)
        row = f'<div class="row">{pictures}</div>' if pictures else ""
        cards.append(
            f'<figure class="mistake">{row}<figcaption><b>{escape(report.classes[said])}</b> '
            f"{first[number]:.1%}, is <b>{escape(report.classes[true])}</b> "
            f"{probabilities[number, true]:.1%}<small>{escape(name)}</small></figcaption></figure>"
        )
    note, kind = "", "mistakes plain"
    if explainer is not None and any("<img" in card for card in cards):
        how = "class activation maps, exact" if explainer.method == "cam" else "Grad-CAM"
        note = f" The maps show what spoke for the answer, then for the true class ({how})."
        kind = "mistakes"
    return html.section(
        "The most confident mistakes",
        f"Look at these first: some of them may be wrong labels.{note}",
        f'<div class="{kind}">{"".join(cards)}</div>',
    )


def _explainer(report: Report) -> Explainer | None:
    """What explains the model's answers, where anything can."""
    if report.model is None or not report.model.exists():
        return None
    from ...explanations import Explainer
    from ...predictor import load

    try:
        predictor = load(report.model)
        gap = predictor.record.network.head.kind == "gap"
        return Explainer(predictor, "cam" if gap else "gradcam")
    except VerydeepError:  # a trunk, another head, or no torch
        return None


def _pictures(
    report: Report, number: int, said: int, true: int, explainer: Explainer | None
) -> str:
    """The image, and where the network saw its answer and the true class."""
    from ...explanations.picture import overlaid
    from ...pictures.layout import as_rgb, fitted
    from ...preprocess import decode

    assert report.image is not None
    try:
        image = report.image(number)
        shown = [(as_rgb(decode(image)), report.classes[true])]
    except (VerydeepError, OSError):
        return ""
    seen = None
    with suppress(VerydeepError):
        seen = explainer(image, label=[said, true]) if explainer else None
    if seen is not None:
        photo = fitted(seen.photo, SMALL)
        left, top, right, bottom = (side * photo.width / seen.photo.width for side in seen.box)
        for heat in seen.maps:  # on one scale, as in the pictures of `verydeep explain`
            strongest = float(heat.upscaled.max()) / max(heat.probability, 1e-9)
            picture = overlaid(photo, (left, top, right, bottom), heat.upscaled, strongest)
            shown.append((picture, f"{heat.label}: where"))
    return "".join(f'<img src="{_data(picture)}" alt="{escape(alt)}">' for picture, alt in shown)


def _data(picture: Image.Image) -> str:
    """A picture as a data URL, at most SMALL pixels; tiny ones stay sharp."""
    from ...pictures.layout import fitted

    side = max(picture.size)
    if 2 * side <= SMALL:
        times = SMALL // side
        picture = picture.resize((picture.width * times, picture.height * times), 0)  # nearest
    return html.data(fitted(picture, min(SMALL, max(picture.size))), quality=82)


def _curves(report: Report) -> str:
    epochs = [line for line in report.log if line.get("event") == "epoch"]
    if not epochs:
        return ""
    judged = str(epochs[0].get("judged", "validation"))  # or images held out of the training set
    steps = [
        line for line in report.log if line.get("event") == "step" and "images_per_second" in line
    ]
    xs = [float(line["epoch"]) for line in epochs]
    minutes = [_finite(line.get("seconds")) / 60 for line in steps]

    def chart(heading: str, keys: Mapping[str, str], x: str = "epoch", **options: Any) -> str:
        at, lines = (xs, epochs) if x == "epoch" else (minutes, steps)
        drawn = [
            charts.Line(name, at, [_finite(line.get(key)) for line in lines])
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
    best = max(epochs, key=lambda line: _finite(line.get("top1"), -1.0))
    says = ""
    kept = report.log[-1].get("best_epoch")
    if kept is not None:
        says = f"Epoch {kept} was kept. " if kept else "The head alone was kept, and no epoch. "
    if "top1" in best:
        says += (
            f"{counted(int(xs[-1]), 'epoch')}; the best {judged} accuracy, {best['top1']:.2%}, came after "
            f"epoch {best['epoch']}. Training figures are those of augmented images, while weights changed."
        )
    return html.section("How it learnt", says, f'<div class="grid-of">{"".join(drawn)}</div>')


def _tried(report: Report) -> str:
    """What a probe compared before it chose."""
    tried = [line for line in report.log if line.get("event") == "tried"]
    chosen = next((line for line in report.log if line.get("event") == "chosen"), None)
    if not tried or chosen is None:
        return ""
    figure = "top1" if "top1" in chosen else "mean_average_precision"
    rows = [
        (escape(", ".join(line["layers"])), str(line["size"]), f"{line['l2']:g}", f"{line['loss']:.4f}",
         _bar(float(line[figure])))
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


def _data_set(report: Report) -> str:
    if not report.warnings and not report.bad:
        return ""
    parts = []
    if report.warnings:
        items = "".join(f"<li>{escape(line)}</li>" for line in report.warnings)
        parts.append(f'<ul class="warn">{items}</ul>')
    if report.bad:
        items = "".join(
            f"<li><code>{escape(name)}</code> {escape(why)}</li>"
            for name, why in report.bad[:LISTED]
        )
        count = len(report.bad)
        items += f"<li>and {count - LISTED} more</li>" if count > LISTED else ""
        parts.append(
            f"<p>{counted(count, 'image')} could not be read, and {'was' if count == 1 else 'were'} left "
            f"out:</p><ul>{items}</ul>"
        )
    return html.section("About the data", "", *parts)


def _details(report: Report) -> str:
    if not report.details:
        return ""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(text)}</pre></dd>"
        for name, text in report.details
    )
    return html.section("To do it again", "", f'<dl class="details">{rows}</dl>')


def _finite(value: Any, otherwise: float = float("nan")) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else otherwise


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return "\n".join(f"{key} = {value}" for key, value in shown.items())
