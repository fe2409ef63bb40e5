"""What a model was measured to do, as parts of a page: figures, charts, classes, mistakes with maps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import labelled
from ..errors import DataError, VerydeepError
from ..files.wording import counted
from ..pictures import charts
from ..pictures import page as html
from . import figures

if TYPE_CHECKING:
    from PIL import Image

    from ..datasets.labelled import Sample
    from ..explanations import Explainer

MISTAKES = 12  # shown with their pictures
CONFUSIONS = 12  # pairs of classes that are listed
SMALL = 300  # pixels of a picture's longer side
SHOWN_MATRIX = 200  # classes, above which the confusion matrix is left out
LISTED = 50  # classes of the table before it is folded
# a sentence for the head of the page, cards of (name, value, what is said beneath), and sections
Measured = tuple[str, list[tuple[str, str, str]], list[str]]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered to labelled images.

    model: its file, which explains mistakes where it is there. classes: names. samples: the n images.
    probabilities: (n, classes) float32. labels: (n,) int64; where an image may be of several classes,
    (n, classes) of 0 and 1, and then thresholds has a probability for each class.
    """

    model: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    probabilities: NDArray[np.float32]
    labels: NDArray[Any]
    thresholds: tuple[float, ...] = ()


def measured(answers: Answers) -> Measured:
    """What there is to say of them; DataError where probabilities are no finite numbers."""
    if not np.isfinite(answers.probabilities).all():
        raise DataError(
            "the report's probabilities are no finite numbers; the model's weights are damaged"
        )
    if not len(answers.labels):
        return "There were no images to validate with, so nothing was measured.", [], []
    return _of_several(answers) if answers.labels.ndim == 2 else _of_one(answers)


def _of_one(answers: Answers) -> Measured:
    """Of images that are of one class each."""
    names, chances = answers.classes, answers.probabilities
    first, right = chances.max(axis=1), chances.argmax(axis=1) == answers.labels
    table = figures.confusion(chances, answers.labels)
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
        cards.append(("top-5", f"{figures.accuracy(chances, answers.labels)['top5']:.2%}", ""))
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
    return lead, cards, [matrix, classes, _calibration(first, right), _mistakes(answers)]


def _of_several(answers: Answers) -> Measured:
    """Of images that may be of several classes."""
    least = np.broadcast_to(np.array(answers.thresholds or 0.5), len(answers.classes))
    true, said = answers.labels > 0, answers.probabilities >= least
    hits, answered, support = (true & said).sum(0), said.sum(0), true.sum(0)
    precise = figures.average_precision(answers.probabilities, answers.labels)
    rows = (
        (answers.classes[at], support[at], precise[at] if support[at] else "", f"{least[at]:.3f}",
         hits[at] / max(answered[at], 1), hits[at] / max(support[at], 1))
        for at in np.argsort(precise, kind="stable").tolist()
    )  # fmt: skip
    classes = _by_class(
        "An image is said to be of every class whose probability reaches its threshold, which has the "
        "largest F1 on held-out training images. The weakest class comes first.",
        ("average precision", "threshold", "precision", "recall"), rows,
    )  # fmt: skip
    mean = figures.mean_average_precision(answers.probabilities, answers.labels)
    return f"Mean average precision {mean:.2%} of {counted(len(true), 'image')}.", [], [classes]


def _by_class(says: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A row for each class: its name, its images, and then fractions as bars, and what is text already."""
    cells = [
        (
            escape(name),
            str(images),
            *(one if isinstance(one, str) else fraction(one) for one in rest),
        )
        for name, images, *rest in rows
    ]
    head = ("class", "images", *columns)
    numbers = [at for at, name in enumerate(head) if name in ("images", "threshold")]
    whole = html.table(head, cells, numbers=numbers, kind="classes")
    if len(cells) > LISTED:
        whole = f"<details><summary>All {len(cells)} classes</summary>{whole}</details>"
    return html.section("Class by class", says, whole)


def fraction(value: float) -> str:
    """A cell with a bar, and the number beside it."""
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


def _mistakes(answers: Answers) -> str:
    """The most confident wrong answers, with what the network saw."""
    chances, labels, names = answers.probabilities, answers.labels, answers.classes
    first, answer = chances.max(axis=1), chances.argmax(axis=1)
    wrong = np.flatnonzero(answer != labels)
    wrong = wrong[np.argsort(-first[wrong], kind="stable")][:MISTAKES]
    if not len(wrong):
        return ""
    explainer = _explainer(answers)
    cards = []
    for number in wrong.tolist():
        said, true, sample = int(answer[number]), int(labels[number]), answers.samples[number]
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


def _explainer(answers: Answers) -> Explainer | None:
    """What explains the model's answers, where anything can."""
    from ..explanations import Explainer
    from ..predictor import load

    with suppress(VerydeepError):  # no model, a trunk, another head, or no torch
        predictor = load(answers.model)
        gap = predictor.record.network.head.kind == "gap"
        return Explainer(predictor, "cam" if gap else "gradcam")
    return None


def _pictures(sample: Sample, true: str, classes: list[int], explainer: Explainer | None) -> str:
    """The image, and where the network saw these classes. true: what it is."""
    from ..explanations.picture import over_photo
    from ..pictures.layout import as_rgb
    from ..preprocess import decode

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
