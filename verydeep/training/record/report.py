"""One HTML page about what a run was measured to do: figures, charts, mistakes, and how it came about.

Sections without content are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...datasets import labelled
from ...errors import DataError, VerydeepError
from ...evaluation import figures
from ...files.wording import clock, counted
from ...pictures import charts
from ...pictures import page as html
from ...pictures import write as write_text
from .result import TrainResult

if TYPE_CHECKING:
    from PIL import Image

    from ...datasets.labelled import Sample
    from ...explanations import Explainer

MISTAKES = 12  # shown with their pictures
CONFUSIONS = 12  # pairs of classes that are listed
SMALL = 300  # pixels of a picture's longer side
SHOWN_MATRIX = 200  # classes, above which the confusion matrix is left out
LISTED = 50  # bad images, and classes of the table before it is folded
_NAMES = {"top1": "top-1", "mean_average_precision": "mean average precision"}
# a sentence for the head of the page, cards of (name, value, what is said beneath), and sections
Measured = tuple[str, list[tuple[str, str, str]], list[str]]


def write(result: TrainResult) -> Path:
    """Write the page of a run as report.html in its folder, and return where."""
    path = result.folder / "report.html"
    write_text(page(result), path)
    return path


def page(result: TrainResult) -> str:
    """The text of the page. DataError where probabilities are no finite numbers."""
    if not np.isfinite(result.probabilities).all():
        raise DataError(
            "the report's probabilities are no finite numbers; the model's weights are damaged"
        )
    begun = next((line for line in result.log if line.get("event") == "start"), result.config)
    recipe, count = str(begun.get("config", {}).get("recipe", "training")), len(result.classes)
    title = f"{recipe}: {f'{count} classes' if count > 6 else ', '.join(result.classes)}"
    lead, cards, sections = _measured(result)
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


def _measured(result: TrainResult) -> Measured:
    if not len(result.labels):
        return "There were no images to validate with, so nothing was measured.", [], []
    return _of_several(result) if result.labels.ndim == 2 else _of_one(result)


def _of_one(result: TrainResult) -> Measured:
    """Of images that are of one class each."""
    names, chances = result.classes, result.probabilities
    first, right = chances.max(axis=1), chances.argmax(axis=1) == result.labels
    table = figures.confusion(chances, result.labels)
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    pairs = sorted(np.argwhere(wrong).tolist(), key=lambda at: -wrong[*at])
    confused = [(names[r], names[c], f"{wrong[r, c]} of {table[r].sum()}") for r, c in pairs]
    were = "was" if len(right) == 1 else "were"
    lead = f"{right.sum()} of {counted(len(right), 'image')} {were} named right."
    for is_, taken, count in confused[:1]:
        lead += f" The most frequent mistake: {is_} taken for {taken}, {count}."
    spread = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
    cards = [("top-1", f"{right.mean():.2%}", f"± {spread:.2%} standard error")]
    if len(names) > 5:
        cards.append(("top-5", f"{result.top5:.2%}", ""))
    error = figures.calibration_error(first, right)
    cards.append(("calibration error", f"{error:.2%}", "15 bins"))
    precision, recall, f1, support = figures.class_figures(table)
    rows = (
        (names[at], support[at], *((each[at] if support[at] else "") for each in (precision, recall, f1)))
        for at in np.lexsort((f1, support == 0)).tolist()  # last those with nothing to measure by
    )  # fmt: skip
    classes = _by_class(
        "Precision: how often an answer is right. Recall: how many of a class are found. The weakest class "
        "comes first.", ("precision", "recall", "F1"), rows,
    )  # fmt: skip
    listed = "<p>No image was taken for another class.</p>"
    if confused:
        cells = [tuple(map(escape, row)) for row in confused[:CONFUSIONS]]
        listed = html.table(("is", "was taken for", ""), cells, numbers=(2,))
    drawn = ""
    if len(names) <= SHOWN_MATRIX:
        drawn = f'<div class="wide">{charts.confusion(table, names)}</div>'
    matrix = html.section(
        "What is taken for what",
        "Each row is a class, each column an answer. Right answers lie on the diagonal.",
        f'<div class="two">{drawn}<div>{listed}</div></div>',
    )
    return lead, cards, [matrix, classes, _calibration(first, right), _mistakes(result)]


def _of_several(result: TrainResult) -> Measured:
    """Of images that may be of several classes."""
    least = np.broadcast_to(np.array(result.thresholds or 0.5), len(result.classes))
    true, said = result.labels > 0, result.probabilities >= least
    hits, answered, support = (true & said).sum(0), said.sum(0), true.sum(0)
    precise = figures.average_precision(result.probabilities, result.labels)
    rows = (
        (result.classes[at], support[at], precise[at] if support[at] else "", f"{least[at]:.3f}",
         hits[at] / max(answered[at], 1), hits[at] / max(support[at], 1))
        for at in np.argsort(precise, kind="stable").tolist()
    )  # fmt: skip
    classes = _by_class(
        "An image is said to be of every class whose probability reaches its threshold, which has the "
        "largest F1 on held-out training images. The weakest class comes first.",
        ("average precision", "threshold", "precision", "recall"), rows,
    )  # fmt: skip
    mean = result.mean_average_precision
    return f"Mean average precision {mean:.2%} of {counted(len(true), 'image')}.", [], [classes]


def _by_class(says: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A row for each class: its name, its images, and then fractions as bars, and what is text already."""
    cells = [
        (escape(name), str(images), *(one if isinstance(one, str) else _bar(one) for one in rest))
        for name, images, *rest in rows
    ]
    head = ("class", "images", *columns)
    numbers = [at for at, name in enumerate(head) if name in ("images", "threshold")]
    whole = html.table(head, cells, numbers=numbers, kind="classes")
    if len(cells) > LISTED:
        whole = f"<details><summary>All {len(cells)} classes</summary>{whole}</details>"
    return html.section("Class by class", says, whole)


def _bar(value: float) -> str:
    return f'{html.bar(value)}<span class="value">{value:.1%}</span>'


def _calibration(first: NDArray[np.float32], right: NDArray[np.bool_]) -> str:
    gap = float(first.mean() - right.mean())
    verdict = "it is too sure of itself" if gap > 0 else "it is right more often than it says"
    if abs(gap) < 0.02:
        verdict = "its probabilities mean what they say"
    diagram = charts.reliability_diagram(*figures.reliability(first, right))
    return html.section(
        "Can its probabilities be believed?",
        f"On average the first answer was {first.mean():.1%} sure and {right.mean():.1%} right: {verdict}. "
        "On the dashed line they would be exactly right; whiskers are one standard error.",
        f'<div class="chart">{diagram}</div>',
    )


def _mistakes(result: TrainResult) -> str:
    """The most confident wrong answers, with what the network saw."""
    chances, labels, names = result.probabilities, result.labels, result.classes
    first, answer = chances.max(axis=1), chances.argmax(axis=1)
    wrong = np.flatnonzero(answer != labels)
    wrong = wrong[np.argsort(-first[wrong], kind="stable")][:MISTAKES]
    if not len(wrong):
        return ""
    explainer = _explainer(result)
    cards = []
    for number in wrong.tolist():
        said, true, sample = int(answer[number]), int(labels[number]), result.val[number]
        pictures = _pictures(sample, names[true], [said, true], explainer)
        row = f'<div class="row">{pictures}</div>' if pictures else ""
        cards.append(
            f'<figure class="mistake">{row}<figcaption><b>{escape(names[said])}</b> '
            f"{first[number]:.1%}, is <b>{escape(names[true])}</b> {chances[number, true]:.1%}"
            f"<small>{escape(Path(sample.name).name)}</small></figcaption></figure>"
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


def _explainer(result: TrainResult) -> Explainer | None:
    """What explains the model's answers, where anything can."""
    from ...explanations import Explainer
    from ...predictor import load

    with suppress(VerydeepError):  # no model, a trunk, another head, or no torch
        predictor = load(result.model)
        gap = predictor.record.network.head.kind == "gap"
        return Explainer(predictor, "cam" if gap else "gradcam")
    return None


def _pictures(sample: Sample, true: str, classes: list[int], explainer: Explainer | None) -> str:
    """The image, and where the network saw these classes. true: what it is."""
    from ...explanations.picture import over_photo
    from ...pictures.layout import as_rgb
    from ...preprocess import decode

    try:
        image = labelled.open(sample)
        shown = [(as_rgb(decode(image)), true)]
    except (VerydeepError, OSError):
        return ""
    seen = None
    with suppress(VerydeepError):
        seen = explainer(image, label=classes) if explainer else None
    if seen is not None:
        names = [f"{heat.label}: where" for heat in seen.maps]
        shown += zip(over_photo(seen), names, strict=True)  # on one scale, as `verydeep explain`
    return "".join(f'<img src="{_data(picture)}" alt="{escape(alt)}">' for picture, alt in shown)


def _data(picture: Image.Image) -> str:
    """A picture as a data URL, at most SMALL pixels; tiny ones stay sharp."""
    times = max(1, SMALL // max(picture.size))
    picture = picture.resize((picture.width * times, picture.height * times), 0)  # nearest
    picture.thumbnail((SMALL, SMALL))
    return html.data(picture, quality=82)


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
