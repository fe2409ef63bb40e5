"""The report: its figures against scikit-learn's, its structure, and how a real browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from verydeep.datasets.labelled import Sample
from verydeep.errors import DataError
from verydeep.evaluation import figures
from verydeep.evaluation.figures import calibration_error, reliability
from verydeep.evaluation.page import MISTAKES
from verydeep.modelfile import Record, write
from verydeep.pictures import charts as plots
from verydeep.pictures.charts import Line
from verydeep.training.begin import train as run_recipe
from verydeep.training.probe import ProbeConfig
from verydeep.training.record.report import page
from verydeep.training.record.result import TrainResult

from .tiny import model_file, photo, tiny, weights

VOID = {"meta", "img", "br", "link"}
CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Read(HTMLParser):
    """The tables of a page, and a check that every element that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.seen: dict[str, int] = {}
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, _: Sequence[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if any(tag in ("td", "th") for tag in self.open):
            self.tables[-1][-1][-1] += data


def answers(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    scores = draw.normal(size=(count, classes)) + 2.5 * np.eye(classes)[labels]
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return chances.astype(np.float32), labels


def of(
    classes: Sequence[str], probabilities: np.ndarray, labels: np.ndarray, *, image: object = b"",
    names: Sequence[str] | None = None, **more: object,
) -> TrainResult:  # fmt: skip
    """What a run measured; every image is the one that is given."""
    names = [f"image {number}" for number in range(len(labels))] if names is None else names
    val = tuple(Sample(image, 0, name) for name in names)  # type: ignore[arg-type]
    top1, top5 = (figures.top(np.nan_to_num(probabilities), labels, k) for k in (1, 5))
    told: dict[str, object] = {"folder": Path("gone"), "model": Path("gone"), "config": {}, "log": (),
                               "warnings": (), "bad": (), "seconds": 0.0}  # fmt: skip
    return TrainResult(
        classes=tuple(classes), top1=top1, top5=top5, val=val, probabilities=probabilities,
        labels=labels, **told | more,  # type: ignore[arg-type]
    )  # fmt: skip


def made(classes: int = 4, count: int = 200, **more: object) -> TrainResult:
    names = tuple(f"class {number}" for number in range(classes))
    return of(names, *answers(classes, count), **more)  # type: ignore[arg-type]


def test_figures_are_scikit_learns() -> None:
    given = made()
    read = Read(page(given))
    labels, found = given.labels, given.probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, found)
    table = next(t for t in read.tables if t[0][0] == "class")
    assert [row[0] for row in table[1:]] == [given.classes[i] for i in np.argsort(f1)]
    for row in table[1:]:
        index = given.classes.index(row[0])
        assert row[1] == str(support[index])
        for shown, value in zip(row[2:], (precision, recall, f1), strict=True):
            assert shown == f"{value[index]:.1%}"
    confused = confusion_matrix(labels, found)
    pairs = next(t for t in read.tables if t[0][0] == "is")[1:]
    for true, taken, count in pairs:
        row, column = given.classes.index(true), given.classes.index(taken)
        assert count == f"{confused[row, column]} of {confused[row].sum()}"
    counts = [int(count.split()[0]) for *_, count in pairs]
    assert counts == sorted(counts, reverse=True)
    text = " ".join(read.text)
    right = found == labels
    assert f"{right.mean():.2%}" in text
    assert f"{right.sum()} of 200 images were named right" in text
    assert f"{calibration_error(given.probabilities.max(axis=1), right):.2%}" in text


def test_bins_are_scikit_learns() -> None:
    probabilities, labels = answers(3, 500)
    first, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    count, of_bin, right_of_bin = reliability(first, right)
    accuracy, mean = calibration_curve(right, first, n_bins=15)
    there = count > 0
    assert_allclose(right_of_bin[there], accuracy)
    assert_allclose(of_bin[there], mean, rtol=1e-6)
    assert count.sum() == 500


def test_the_matrix_is_drawn_as_counted() -> None:
    table = np.array([[3, 0, 1], [0, 0, 0], [2, 0, 5]])
    drawn = plots.confusion(table, ("a", "b<", "c"))
    assert re.findall(r'class="number[^>]*>(\d+)<', drawn) == ["3", "1", "0", "2", "5"]
    assert "1 of a taken for c (25.0%)" in drawn
    assert "5 of c named right (71.4%)" in drawn
    assert "b&lt;" in drawn
    assert "b<" not in drawn.replace("b&lt;", "")


def test_curves_go_through_their_points() -> None:
    drawn = plots.lines(
        [Line("up", [0, 1, 2], [0.0, 0.5, 1.0]), Line("gap", [0, 1, 2], [0, float("nan"), 1])],
        x="epoch", y="top-1", percent=True, low=0.0,
    )  # fmt: skip
    paths = re.findall(r'class="curve \w" d="([^"]*)"', drawn)
    numbers = [list(map(float, re.findall(r"[\d.]+", path))) for path in paths]
    xs, ys = numbers[0][::2], numbers[0][1::2]
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.1)
    assert ys[0] > ys[2]  # up is up
    assert paths[1].count("M") == 2
    assert "up, last 100.00%" in drawn
    assert plots.lines([Line("none", [1.0], [float("nan")])], x="a", y="b") == ""
    assert "circle" in plots.lines([Line("one", [1.0], [2.0])], x="a", y="b")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.91, 0.94, [0.91, 0.92, 0.93, 0.94]), (3, 3, [3]),
     (0, 60, [0, 20, 40, 60]), (-1, float("nan"), [-1])],
)  # fmt: skip
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    found = plots.ticks(low, high)
    if len(expected) > 1:
        steps = np.diff(found)
        assert_allclose(steps, steps[0])
        assert low <= found[0]
        assert found[-1] <= high
        assert 3 <= len(found) <= 8
    else:
        assert found == expected


def test_names_from_outside_stay_text() -> None:
    nasty = '<script>alert("x")</script>'
    probabilities, labels = answers(2, 30)
    text = page(
        of(
            (nasty, "b & c"), probabilities, labels, names=[nasty] * 30, warnings=(nasty,),
            bad=((nasty, nasty),), config={"config": {"recipe": nasty}, "command": nasty, "device": nasty},
            log=({"event": "epoch", "epoch": 1, "top1": 0.5, "loss": 1.0, "rate": 0.1},),
        )
    )  # fmt: skip
    read = Read(text)
    assert "script" not in read.seen
    assert nasty in " ".join(read.text)


def test_the_page_needs_nothing_from_outside() -> None:
    draw = np.random.default_rng(0)
    text = page(made(image=draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
    read = Read(text)
    assert read.seen["img"] == MISTAKES
    assert read.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.addresses)
    assert "script" not in read.seen
    assert "link" not in read.seen
    outside = re.findall(
        r"(?:https?:)?//[\w.]+|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text)
    )
    assert outside == []


def test_a_mistake_without_a_picture_is_its_words() -> None:
    text = page(made(count=20, image="no such photo.png"))
    assert '<figure class="mistake"><figcaption>' in text
    assert '<div class="row">' not in text
    assert "The maps show" not in text


def test_the_most_confident_mistakes_come_first() -> None:
    given = made(names=[f"{number}.png" for number in range(200)],
                 image=np.zeros((8, 8, 3), np.uint8))  # fmt: skip
    text = page(given)
    first, answer = given.probabilities.max(axis=1), given.probabilities.argmax(axis=1)
    wrong = sorted(np.flatnonzero(answer != given.labels), key=lambda i: -first[i])
    assert re.findall(r"<small>(\d+).png", text) == [str(i) for i in wrong[:MISTAKES]]


def test_one_image_is_one_image() -> None:
    log = ({"event": "epoch", "epoch": 1, "top1": 1.0},)
    chances = np.array([[0.9, 0.1]], np.float32)
    one = of(("a", "b"), chances, np.array([0]), bad=(("x.jpg", "damaged"),), log=log)
    text = page(one)
    assert "1 of 1 image was named right" in text
    assert "1 image could not be read, and was left out" in text
    assert "1 epoch; the best" in text


def test_odd_runs() -> None:
    none = of(("a", "b"), np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert "nothing was measured" in page(none)
    perfect = of(("a", "b"), np.eye(2, dtype=np.float32), np.arange(2))
    text = page(perfect)
    assert "No image was taken for another class" in text
    assert "mistake" not in re.sub(r"<style>.*</style>", "", text, flags=re.S)
    many = page(made(classes=300, count=400))
    Read(many)
    assert "<details><summary>All 300 classes" in many
    assert "confusion matrix" not in many
    assert "confusion matrix" in page(made(classes=60, count=400))
    unseen = of(("a", "b", "c"), np.eye(3, dtype=np.float32)[:2], np.arange(2))
    Read(page(unseen))
    wrong = of(("a", "unseen", "c"), np.eye(3, dtype=np.float32)[[0, 2, 2]], np.array([0, 2, 0]))
    table = next(t for t in Read(page(wrong)).tables if t[0][0] == "class")
    # what was not measured is not weak
    assert [row[0] for row in table[1:]] == ["a", "c", "unseen"]
    assert table[-1][1:] == ["0", "", "", ""]
    broken = of(("a", "b"), np.full((2, 2), np.nan, np.float32), np.arange(2))
    with pytest.raises(DataError, match="no finite numbers"):
        page(broken)


def test_a_run_with_epochs_shows_its_curves() -> None:
    log = tuple(
        {"event": "epoch", "epoch": e, "step": e, "rate": 0.1 / e, "train_loss": 2 / e,
         "train_top1": 0.5, "loss": 3 / e, "top1": 1 - 1 / (e + 1), "seconds": e}
        for e in range(1, 6)
    )  # fmt: skip
    text = page(made(log=log, warnings=("few images",)))
    read = Read(text)
    assert read.seen["h3"] == 3
    assert "5 epochs; the best validation accuracy, 83.33%, came after epoch 5" in " ".join(
        read.text
    )
    assert "few images" in text
    for best, says in (
        (0, "The head alone was kept, and no epoch. 5"),
        (3, "Epoch 3 was kept. 5 epochs"),
    ):
        end = ({"event": "end", "best_epoch": best},)
        assert says in " ".join(Read(page(made(log=log + end))).text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a probe of noise, so that there are mistakes."""
    folder = tmp_path_factory.mktemp("run")
    for part, count in (("train", 6), ("val", 8)):
        for label in range(3):
            for number in range(count):
                seed = number + 100 * label + (1000 if part == "val" else 0)
                photo(folder / part / "abc"[label] / f"{number}.png", seed=seed)
    trunk = model_file(folder / "trunk.safetensors")
    config = ProbeConfig(model=str(trunk), sizes=(32,), engine="onnxruntime", precision="exact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERYDEEP_CACHE", str(folder / "cache"))
        run_recipe(config, folder / "train", folder / "val", out=folder / "out")
    return folder / "out" / "report.html"


def test_a_probe_tells_all(run: Path) -> None:
    text = run.read_text(encoding="utf-8")
    read = Read(text)
    words = " ".join(read.text)
    assert read.seen["img"] == 3 * MISTAKES  # photo, answer's map, truth's map
    assert "class activation maps, exact" in words
    assert "How it was chosen" in words
    assert 'class="chosen"' in text
    assert "sizes = [32]" in words
    for name in ("Command", "Settings", "Versions"):
        assert name in words


def test_heat_maps_are_left_out_where_there_can_be_none(tmp_path: Path) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors", tiny(classes=0, head="classic"))
    given = made(image=np.zeros((8, 8, 3), np.uint8), model=trunk)
    assert Read(page(given)).seen["img"] == MISTAKES
    gone = made(model=tmp_path / "gone.safetensors")
    assert "img" not in Read(page(gone)).seen
    net = tiny("vgg11", head="small", classes=4)
    write(tmp_path / "small.safetensors", Record(network=net), weights(net))
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    text = page(made(count=12, image=image, model=tmp_path / "small.safetensors",
                     classes=4))  # fmt: skip
    assert "img" not in Read(text).seen or "Grad-CAM" in text


def shown(page: Path, width: int, height: int, to: Path) -> np.ndarray:
    """What a browser without a network makes of the page."""
    assert CHROME is not None
    profile = to.parent / "profile"
    subprocess.run(
        [CHROME, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
         f"--window-size={width},{height}", f"--screenshot={to}", page.as_uri()],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    return np.asarray(Image.open(to).convert("RGB"))


@pytest.mark.skipif(CHROME is None, reason="no Chromium is installed here")
def test_in_a_real_browser(run: Path, tmp_path: Path) -> None:
    wide = shown(run, 1100, 1600, tmp_path / "wide.png")
    assert wide.shape == (1600, 1100, 3)
    paper = wide[2, 2]
    drawn = (np.abs(wide.astype(int) - paper).sum(axis=2) > 30).mean(axis=1)
    assert (drawn > 0).mean() > 0.4  # most rows of the window show something
    phone = shown(run, 500, 1600, tmp_path / "phone.png")
    edge = np.abs(phone[:, -6:].astype(int) - phone[2, -3]).sum(axis=2) > 30
    assert edge.mean() < 0.02  # nothing runs out of the page to the right
    dom = subprocess.run(
        [str(CHROME), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'other'}", run.as_uri()],
        check=True, timeout=120, capture_output=True, text=True,
    ).stdout  # fmt: skip
    # the browser's own parser finds what was written, no more and no less
    for tag in ("section", "figure", "svg", "table", "img"):
        assert dom.count(f"<{tag}") == run.read_text(encoding="utf-8").count(f"<{tag}"), tag
