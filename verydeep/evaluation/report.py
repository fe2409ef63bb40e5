"""One HTML page about what a model was measured to do: figures, charts, mistakes, and how it came about.

The page is one file that opens without a network, in light and dark, on a phone: pictures lie inside it as
data, charts are SVG, and there is no script. Whatever trains or measures a model makes a `Report` of it;
sections without content are left out.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import VerydeepError
from ..files.atomic import replacing
from ..files.wording import counted
from ..pictures import charts as plots
from ..pictures.charts import Line
from ..training.record import measures
from . import calibration_error

if TYPE_CHECKING:
    from PIL import Image

    from ..preprocess import ImageLike
    from ..training.record.result import TrainResult

MISTAKES = 12  # shown with their pictures
CONFUSIONS = 12  # pairs of classes that are listed
SMALL = 300  # pixels of a picture's longer side
SHOWN_MATRIX = 200  # classes, above which the confusion matrix is left out
LISTED = 50  # bad images, and classes of the table before it is folded


@dataclass(frozen=True, eq=False)
class Report:
    """What a page is made of.

    title: what was done. classes: names, in the order of the scores. probabilities: (n, classes);
    labels: (n,); names: n, of the images. image: gives the picture of number i, for the mistakes; None
    for a page without pictures. model: the model file, for heat maps.
    facts: (name, value) for the head of the page. log: lines of log.jsonl. warnings: of the data.
    bad: (name, why) of images that could not be read. counts: training images of each class.
    details: (name, text) at the end, such as the command, versions and settings.
    """

    title: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.floating]
    labels: NDArray[np.int64]
    names: Sequence[str] = ()
    image: Callable[[int], ImageLike] | None = None
    model: Path | None = None
    facts: tuple[tuple[str, str], ...] = ()
    log: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    counts: Sequence[int] = ()
    details: tuple[tuple[str, str], ...] = field(default=())


def of_training(result: TrainResult) -> Report:
    """What a training run has to say."""
    from ..training.images import data

    start: Mapping[str, Any] = next(
        (line for line in result.log if line.get("event") == "start"), result.config
    )
    config = dict(start.get("config", {}))
    about: Mapping[str, Any] = start.get("data", {})
    facts = [("recipe", str(config.get("recipe", "")))]
    if result.model.exists():
        facts.append(("model file", f"{result.model.stat().st_size / 1e6:.1f} MB"))
    facts.append(("time", _duration(result.seconds)))
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
    return Report(
        title=f"{config.get('recipe', 'training')}: {_listed(result.classes)}",
        classes=result.classes, probabilities=result.probabilities, labels=result.labels,
        names=[sample.name for sample in result.val],
        image=lambda number: data.open(result.val[number]), model=result.model, facts=tuple(facts),
        log=result.log, warnings=tuple(dict.fromkeys((*result.warnings, *warned))), bad=result.bad,
        details=tuple((name, text) for name, text in details if text),
    )  # fmt: skip


def write(what: Report | TrainResult, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the page and return where: at `path`, or as report.html in a training run's folder."""
    report = what if isinstance(what, Report) else of_training(what)
    if path is None:
        if isinstance(what, Report):
            raise TypeError("a Report needs a path")
        path = what.folder / "report.html"
    text = page(report)
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def page(report: Report) -> str:
    """The text of the page."""
    parts = [_head(report)]
    if len(report.labels):
        table = measures.confusion(report.probabilities.astype(np.float32), report.labels)
        parts += [_confusion(report, table), _classes(report, table), _calibration(report)]
        parts.append(_mistakes(report))
    parts += [_curves(report), _tried(report), _data(report), _details(report)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>verydeep {escape(__version__)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    probabilities, labels = report.probabilities, report.labels
    cards = []
    sentence = "There were no images to validate with, so nothing was measured."
    if len(labels):
        found = probabilities.astype(np.float32)
        first, right = found.max(axis=1), found.argmax(axis=1) == labels
        spread = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
        cards.append(
            ("top-1", f"{measures.top(found, labels):.2%}", f"± {spread:.2%} standard error")
        )
        if len(report.classes) > 5:
            cards.append(("top-5", f"{measures.top(found, labels, 5):.2%}", ""))
        error = calibration_error(first, right)
        cards.append(("calibration error", f"{error:.2%}", "15 bins"))
        sentence = f"{int(right.sum())} of {counted(len(right), 'image')} were named right."
        table = measures.confusion(found, labels)
        pairs = _pairs_of(table)
        if pairs:
            count, row, column = pairs[0]
            sentence += (
                f" The most frequent mistake: {report.classes[row]} taken for {report.classes[column]}, "
                f"{count} of {table[row].sum()}."
            )
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


def _confusion(report: Report, table: NDArray[np.int64]) -> str:
    names = report.classes
    pairs = _pairs_of(table)[:CONFUSIONS]
    rows = "".join(
        f"<tr><td>{escape(names[row])}</td><td>{escape(names[column])}</td>"
        f'<td class="n">{count} of {table[row].sum()}</td></tr>'
        for count, row, column in pairs
    )
    listed = (
        f"<table><thead><tr><th>is</th><th>was taken for</th><th></th></tr></thead>{rows}</table>"
        if rows
        else "<p>No image was taken for another class.</p>"
    )
    drawn = ""
    if len(names) <= SHOWN_MATRIX:
        drawn = f'<div class="wide">{plots.confusion(table, names)}</div>'
    return (
        "<section><h2>What is taken for what</h2>"
        "<p>Each row is a class, each column an answer. Right answers lie on the diagonal.</p>"
        f'<div class="two">{drawn}<div>{listed}</div></div></section>'
    )


def _classes(report: Report, table: NDArray[np.int64]) -> str:
    figures = measures.class_figures(table)
    order = np.argsort(figures.f1, kind="stable")
    counts = list(report.counts)
    rows = []
    for index in order.tolist():
        trained = f'<td class="n">{counts[index]}</td>' if counts else ""
        rows.append(
            f"<tr><td>{escape(report.classes[index])}</td>{trained}"
            f'<td class="n">{int(figures.support[index])}</td>'
            + "".join(
                _bar(float(v[index])) for v in (figures.precision, figures.recall, figures.f1)
            )
            + "</tr>"
        )
    head = "<th>class</th>" + ('<th class="n">trained on</th>' if counts else "")
    head += '<th class="n">images</th><th>precision</th><th>recall</th><th>F1</th>'
    whole = f'<table class="classes"><thead><tr>{head}</tr></thead>{"".join(rows)}</table>'
    whole = f'<div class="wide">{whole}</div>'
    if len(rows) > LISTED:
        whole = f"<details><summary>All {len(rows)} classes</summary>{whole}</details>"
    return (
        "<section><h2>Class by class</h2><p>Precision: how often an answer is right. Recall: how many of a "
        f"class are found. The weakest class comes first.</p>{whole}</section>"
    )


def _bar(value: float) -> str:
    return (
        f'<td><div class="bar"><i style="width:{value:.1%}"></i></div>'
        f'<span class="value">{value:.1%}</span></td>'
    )


def _calibration(report: Report) -> str:
    found = report.probabilities.astype(np.float32)
    first, right = found.max(axis=1), found.argmax(axis=1) == report.labels
    gap = float(first.mean() - right.mean())
    says = (
        f"On average the first answer was {first.mean():.1%} sure and {right.mean():.1%} right: "
        + (
            "its probabilities mean what they say."
            if abs(gap) < 0.02
            else "it is too sure of itself."
            if gap > 0
            else "it is right more often than it says."
        )
    )
    return (
        f"<section><h2>Can its probabilities be believed?</h2><p>{says} On the dashed line they would be "
        f'exactly right; whiskers are one standard error.</p><div class="chart">'
        f"{plots.reliability_diagram(plots.reliability(first, right))}</div></section>"
    )


def _mistakes(report: Report) -> str:
    """The most confident wrong answers, with what the network saw."""
    found = report.probabilities
    first, answer = found.max(axis=1), found.argmax(axis=1)
    wrong = np.flatnonzero(answer != report.labels)
    wrong = wrong[np.argsort(-first[wrong], kind="stable")][:MISTAKES]
    if not len(wrong) or report.image is None:
        return ""
    heat, how = _heat_maps(report)
    cards = []
    for number in wrong.tolist():
        said, true = int(answer[number]), int(report.labels[number])
        pictures = _pictures(report, number, said, true, heat)
        name = Path(report.names[number]).name if len(report.names) else f"image {number}"
        cards.append(
            f'<figure class="mistake"><div class="row">{pictures}</div><figcaption>'
            f"<b>{escape(report.classes[said])}</b> {first[number]:.1%}, is "
            f"<b>{escape(report.classes[true])}</b> {found[number, true]:.1%}"
            f"<small>{escape(name)}</small></figcaption></figure>"
        )
    note = (
        f" The maps show what spoke for the answer, then for the true class ({how})." if how else ""
    )
    return (
        f"<section><h2>The most confident mistakes</h2><p>Look at these first: some of them may be wrong "
        f'labels.{escape(note)}</p><div class="mistakes{"" if how else " plain"}">{"".join(cards)}</div>'
        "</section>"
    )


def _heat_maps(report: Report) -> tuple[Any, str]:
    """What explains an answer of the model, and its method in words; nothing where none can."""
    if report.model is None or not report.model.exists():
        return None, ""
    import importlib.util

    from ..explanations import Explainer
    from ..predictor import load

    try:
        predictor = load(report.model)
        gap = predictor.record.network.head.kind == "gap"
        if not gap and importlib.util.find_spec("torch") is None:
            return None, ""
        made = Explainer(predictor, "cam" if gap else "gradcam")
    except VerydeepError:
        return None, ""
    return made, "class activation maps, exact" if gap else "Grad-CAM"


def _pictures(report: Report, number: int, said: int, true: int, heat: Any) -> str:
    from PIL import Image

    from ..explanations.picture import overlaid
    from ..preprocess import decode

    assert report.image is not None
    try:
        image = report.image(number)
        photo = decode(image)
    except (VerydeepError, OSError):
        return ""
    if isinstance(photo, np.ndarray):
        photo = Image.fromarray(np.rint(photo).astype(np.uint8))
    shown = [(photo, report.classes[true])]
    if heat is not None:
        try:
            seen = heat(image, label=[said, true])
        except VerydeepError:
            seen = None
        for one in seen.maps if seen is not None else ():
            photo, box, values = seen.photo, seen.box, one.upscaled
            scale = max(1.0, SMALL / 2 / max(photo.size))  # room for the map over a tiny image
            if scale > 1:
                photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), 0)
                box = tuple(side * scale for side in box)
            strongest = max(float(m.upscaled.max()) for m in seen.maps)
            shown.append((overlaid(photo, box, values, strongest), f"{one.label}: where"))
    return "".join(f'<img src="{_inline(picture)}" alt="{escape(alt)}">' for picture, alt in shown)


def _inline(image: Image.Image) -> str:
    """A picture as a data URL, at most SMALL pixels; tiny ones stay sharp."""
    image = image.convert("RGB")
    scale = SMALL / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, 1, reducing_gap=3.0)  # Lanczos
    elif scale > 2:
        times = int(scale / 2)
        image = image.resize((image.width * times, image.height * times), 0)  # nearest
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _curves(report: Report) -> str:
    epochs = [line for line in report.log if line.get("event") == "epoch"]
    if not epochs:
        return ""
    xs = [float(line["epoch"]) for line in epochs]
    judged = str(epochs[0].get("judged", "validation"))  # or images held out of the training set

    def of(key: str) -> list[float]:
        return [_finite(line.get(key)) for line in epochs]

    def chart(heading: str, given: Sequence[Line], **options: Any) -> str:
        kept = [line for line in given if np.isfinite(line.ys).any()]
        if not kept:
            return ""
        return (
            f'<div class="chart"><h3>{heading}</h3>{plots.lines(kept, x="epoch", **options)}</div>'
        )

    charts = [
        chart("Accuracy", [Line(judged, xs, of("top1")), Line("training", xs, of("train_top1"))],
              y="top-1", percent=True),
        chart("Loss", [Line(judged, xs, of("loss")), Line("training", xs, of("train_loss"))],
              y="cross-entropy"),
        chart("Learning rate", [Line("rate", xs, of("rate"))], y="rate", low=0.0),
    ]  # fmt: skip
    steps = [
        line for line in report.log if line.get("event") == "step" and "images_per_second" in line
    ]
    if len(steps) > 1:
        minutes = [_finite(line.get("seconds")) / 60 for line in steps]
        speed = [Line("images a second", minutes, [_finite(s["images_per_second"]) for s in steps])]
        charts.append(
            f'<div class="chart"><h3>Speed</h3>'
            f"{plots.lines(speed, x='minutes', y='images a second', low=0.0)}</div>"
        )
    best = max(epochs, key=lambda line: _finite(line.get("top1"), -1.0))
    says = ""
    if "top1" in best:
        says = (
            f"<p>{int(xs[-1])} epochs; the best {judged} accuracy, {best['top1']:.2%}, came after epoch "
            f"{best['epoch']}. Training figures are those of augmented images, while weights changed.</p>"
        )
    return f'<section><h2>How it learnt</h2>{says}<div class="grid-of">{"".join(charts)}</div></section>'


def _tried(report: Report) -> str:
    """What a probe compared before it chose."""
    tried = [line for line in report.log if line.get("event") == "tried"]
    chosen = next((line for line in report.log if line.get("event") == "chosen"), None)
    if not tried or chosen is None:
        return ""
    rows = []
    for line in tried:
        same = all(line[key] == chosen[key] for key in ("size", "layers", "l2"))
        rows.append(
            f'<tr class="{"chosen" if same else "tried"}"><td>{escape(", ".join(line["layers"]))}</td>'
            f'<td class="n">{line["size"]}</td><td class="n">{line["l2"]:g}</td>'
            f'<td class="n">{line["loss"]:.4f}</td>{_bar(float(line["top1"]))}</tr>'
        )
    return (
        "<section><h2>How it was chosen</h2><p>Nothing was trained: averages of the trunk's layers were "
        "computed once, and a linear head was solved on them. Layers and penalty are those with the least "
        "loss on training images that were held out.</p>"
        '<div class="wide"><table class="classes"><thead><tr><th>layers</th><th class="n">pixels</th>'
        '<th class="n">penalty</th><th class="n">held-out loss</th><th>held-out top-1</th></tr></thead>'
        f"{''.join(rows)}</table></div></section>"
    )


def _data(report: Report) -> str:
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
        more = len(report.bad) - LISTED
        items += f"<li>and {more} more</li>" if more > 0 else ""
        count = len(report.bad)
        parts.append(
            f"<p>{count} image{'s' if count > 1 else ''} could not be read, and "
            f"{'were' if count > 1 else 'was'} left out:</p><ul>{items}</ul>"
        )
    return f"<section><h2>About the data</h2>{''.join(parts)}</section>"


def _details(report: Report) -> str:
    if not report.details:
        return ""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(text)}</pre></dd>"
        for name, text in report.details
    )
    return f'<section><h2>To do it again</h2><dl class="details">{rows}</dl></section>'


def _pairs_of(table: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(count, class, taken for) of the mistakes, most frequent first."""
    rows, columns = np.nonzero(table)
    found = [
        (int(table[r, c]), int(r), int(c)) for r, c in zip(rows, columns, strict=True) if r != c
    ]
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))


def _finite(value: Any, otherwise: float = float("nan")) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else otherwise


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return "\n".join(f"{key} = {value}" for key, value in shown.items())


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes" if len(names) > 6 else ", ".join(names)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{seconds / 60:.1f} min"


STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1f2530; --faint: #5d6675;
  --line: #e3e4e8; --a: #2b6cb0; --b: #cf5a30; --c: #8a93a2; --warn: #fdf1e3 }
@media (prefers-color-scheme: dark) { :root { --paper: #15171c; --card: #1d2027; --ink: #e9eaee;
  --faint: #a3abb8; --line: #2d313a; --a: #74aee6; --b: #f0935f; --c: #7b8494; --warn: #33281c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 44px 24px 56px }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .4rem; letter-spacing: -.02em;
  overflow-wrap: anywhere }
h2 { font-size: 1.4rem; margin: 3rem 0 .3rem; letter-spacing: -.01em }
h3 { font-size: 1rem; margin: 0 0 .2rem }
p { max-width: 44rem; margin: .3rem 0 1.1rem; color: var(--faint) }
p.lead { font-size: 1.15rem; color: var(--ink) }
small { color: var(--faint); font-size: .8rem; font-weight: 400 }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 1.4rem 0 0 }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px }
.cards dt { color: var(--faint); font-size: .85rem }
.cards dd { margin: 0; font-size: 1.55rem; font-weight: 650; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.two { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 44px;
  align-items: center }
.wide { overflow-x: auto }
.wide svg { min-width: min(300px, 100%) }
.grid-of { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr));
  gap: 28px 36px }
.chart { max-width: 520px }
svg { display: block; width: 100%; height: auto }
svg text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  fill: var(--faint) }
svg .number { fill: var(--ink); font-size: 13px } svg .number.strong { fill: var(--paper);
  font-weight: 600 }
.grid { stroke: var(--line); fill: none } .axis { stroke: var(--faint); fill: none }
.frame { fill: var(--card); stroke: var(--line) }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round }
.curve.a { stroke: var(--a) } .curve.b { stroke: var(--b) } .curve.c { stroke: var(--c) }
.dot.a, .cell.a { fill: var(--a) } .dot.b, .cell.b { fill: var(--b) } .dot.c, .cell.c { fill: var(--c) }
.whisker { stroke: var(--ink); stroke-width: 1.3; opacity: .55 }
.ideal { stroke: var(--b); stroke-width: 1.6; stroke-dasharray: 5 5; fill: none }
.legend { display: flex; gap: 18px; font-size: .85rem; color: var(--faint) }
.key::before { content: ""; display: inline-block; width: 18px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; background: var(--c) }
.key.a::before { background: var(--a) } .key.b::before { background: var(--b) }
table { border-collapse: collapse; font-size: .92rem; width: 100% }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: .82rem }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.classes { min-width: 560px } .classes tr.chosen td { font-weight: 650;
  background: color-mix(in srgb, var(--a) 12%, transparent) }
.bar { display: inline-block; vertical-align: middle; width: 90px; height: 8px; border-radius: 4px;
  background: var(--line); overflow: hidden; margin-right: 9px }
.bar i { display: block; height: 100%; background: var(--a) }
.value { font-variant-numeric: tabular-nums; font-size: .88rem }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
  gap: 20px }
.mistakes.plain { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)) }
.mistake { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px }
.row { display: flex; gap: 6px } .row img { flex: 1 1 0; min-width: 0; width: 0; aspect-ratio: 1;
  object-fit: cover;
  border-radius: 6px }
figcaption { margin-top: 8px; font-size: .92rem } figcaption small { display: block;
  overflow-wrap: anywhere }
.warn { background: var(--warn); border-radius: 10px; padding: 12px 16px 12px 34px;
  margin: .4rem 0 1.2rem }
.details { display: grid; grid-template-columns: 110px minmax(0, 1fr); gap: 6px 18px; font-size: .9rem }
.details dt { color: var(--faint) } .details dd { margin: 0 }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace }
code { font: .85rem ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--faint) }
footer { margin-top: 3.2rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--faint); font-size: .85rem }
@media (max-width: 760px) { .two { grid-template-columns: minmax(0, 1fr); gap: 18px }
  main { padding: 26px 16px 40px }
  h1 { font-size: 1.6rem } .details { grid-template-columns: 1fr } .details dt { margin-top: 8px } }
"""
