"""The block figure: every layer there, every size to the scale that it states, no word over another."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from verydeep.cli.summary import describe
from verydeep.errors import NetworkError
from verydeep.nets import NETWORKS, Network, network
from verydeep.pictures.block_figure import block_figure

from .conftest import Run
from .tiny import tiny

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]

CASES: dict[str, tuple[Network, int, int]] = {name: (network(name), 224, 224) for name in NETWORKS}
CASES |= {
    "small head": (network("vgg16_bn", head="small", classes=10), 32, 32),
    "gap head": (network("vgg16", head="gap", layers=("relu4_3", "relu5_3"), classes=200), 224, 224),
    "gap head on all": (
        network("vgg19_bn", head="gap", layers=network("vgg19").taps[:37]),
        224,
        224,
    ),
    "trunk": (network("vgg19", classes=0), 64, 64),
    "cut": (network("vgg16").cut(("conv3_2",)), 224, 224),
    "one layer": (network("vgg16").cut(("conv1_1",)), 3, 3),
    "wide": (network("vgg16"), 224, 448),
    "tall": (network("vgg13"), 4096, 32),
    "long strip": (network("vgg19", width=2, head="small"), 32, 65536),
    "strip": (network("vgg13", classes=100_000), 32, 4096),
    "sixteenth": (tiny("vgg19_bn", pool="l2", in_channels=1), 48, 64),
    "sixteen times": (network("vgg19_bn", width=16, in_channels=4096), 2048, 2048),
    "two classes": (tiny("vgg11", head="small", classes=2, pool="avg"), 32, 32),
}  # fmt: skip


def drawn(name: str, narrow: bool = False) -> ElementTree.Element:
    net, height, width = CASES[name]
    text = block_figure(net, height, width, title=describe(net), narrow=narrow)
    return ElementTree.fromstring(text)


def corners(polygon: ElementTree.Element) -> list[Point]:
    numbers = [float(number) for number in polygon.attrib["points"].split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def extent(polygon: ElementTree.Element) -> Point:
    xs, ys = zip(*corners(polygon), strict=True)
    return max(xs) - min(xs), max(ys) - min(ys)


def faces(root: ElementTree.Element, layer: str, attribute: str = "data-layer") -> dict[str, Point]:
    """The extents of the faces of one part, by name: front, top and, for the last part, side."""
    groups = root.findall(f".//{SVG}g[@{attribute}='{layer}']")
    assert len(groups) == 1, layer
    return {face.attrib["class"]: extent(face) for face in groups[0].findall(f"{SVG}polygon")}


def scales(root: ElementTree.Element) -> tuple[float, float]:
    """What the two scale bars say: pixels of the figure for one pixel of a map, for one channel."""
    bars = [
        float(re.findall(r"h([\d.]+)", bar.attrib["d"])[0])
        for bar in root.findall(f"{SVG}path[@class='scale']")
    ]
    counts = [
        int(found[1].replace(",", ""))
        for text in root.findall(f"{SVG}text")
        if (found := re.fullmatch(r"([\d,]+) (?:pixel|channel)s?", text.text or ""))
    ]
    pixel, channel = (bar / count for bar, count in zip(bars, counts, strict=True))
    return pixel, channel


@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_the_table_is_there(name: str) -> None:
    net, height, width = CASES[name]
    root = drawn(name)
    groups = [g.attrib["data-layer"] for g in root.iter(f"{SVG}g") if "data-layer" in g.attrib]
    assert groups == ["input", *net.taps]
    norms = [g.attrib["data-norm"] for g in root.iter(f"{SVG}g") if "data-norm" in g.attrib]
    assert norms == [layer.name for layer in net.layers if layer.norm_key]
    words = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert f"input {height} × {width} × {net.in_channels}" in words
    for row in net.rows(height, width):
        if row.layer.kind != "relu":  # a ReLU stands in the box of its convolution
            shape = " × ".join(map(str, (*row.shape[1:], row.shape[0])))
            assert f"{row.layer.name} {shape}" in words
    assert " ".join(words).startswith(describe(net))


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_to_the_scale_that_is_stated(name: str) -> None:
    net, height, width = CASES[name]
    root = drawn(name)
    pixel, channel = scales(root)
    rounding = 0.11 * 3  # coordinates have one decimal, and a block up to three parts

    def size(count: int, scale: float) -> float:
        return max(2.0, count * scale)  # nothing is thinner, as the caption says

    rows = [*net.rows(height, width)]
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        if row.layer.kind == "relu":
            continue
        parts = [faces(root, row.layer.name)]
        if row.layer.norm_key:
            parts.append(faces(root, row.layer.name, "data-norm"))
        if after and after.layer.kind == "relu":
            parts.append(faces(root, after.layer.name))
        thickness = sum(part["front"][0] for part in parts)
        side_x, side_y = parts[-1]["side"]
        if len(row.shape) == 1:
            for part in parts:
                length = size(row.shape[0], channel)
                assert part["front"][1] == pytest.approx(length, abs=rounding)
            continue
        assert thickness == pytest.approx(size(row.shape[0], channel), abs=rounding)
        high, wide = size(row.shape[1], pixel), size(row.shape[2], pixel)
        for part in parts:
            assert part["front"][1] == pytest.approx(high, abs=rounding)
        assert side_x == pytest.approx(0.4 * wide, abs=rounding)
        assert side_y - high == pytest.approx(0.3 * wide, abs=rounding)
        assert math.hypot(side_x, side_y - high) == pytest.approx(wide / 2, abs=rounding)  # "half"


# Advance widths of DejaVu Sans in ems, the widest of the common sans-serif fonts; bold is wider.
EMS = {" ": 0.32, ",": 0.32, ".": 0.32, "×": 0.84, "_": 0.5, "m": 0.98, "w": 0.82, "=": 0.84}
EMS |= dict.fromkeys("il", 0.28) | dict.fromkeys("tfr", 0.42) | dict.fromkeys("0123456789", 0.64)


def box(text: ElementTree.Element) -> list[Point]:
    """The four corners of the rectangle around a text, by its characters' widths."""
    size = float(text.attrib["font-size"])
    bold = 1.13 if "font-weight" in text.attrib else 1.0
    length = bold * size * sum(EMS.get(letter, 0.62) for letter in "".join(text.itertext()))
    x, y, angle = float(text.get("x", "0")), float(text.get("y", "0")), 0.0
    origin = (0.0, 0.0)
    if "transform" in text.attrib:
        found = re.fullmatch(
            r"translate\(([\d.]+) ([\d.]+)\) rotate\((\d+)\)", text.attrib["transform"]
        )
        assert found
        origin, angle = (float(found[1]), float(found[2])), math.radians(float(found[3]))
    flat = [(x, y - 0.76 * size), (x + length, y - 0.76 * size)]
    flat += [(x + length, y + 0.24 * size), (x, y + 0.24 * size)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(origin[0] + cos * a - sin * b, origin[1] + sin * a + cos * b) for a, b in flat]


def overlap(one: list[Point], other: list[Point]) -> bool:
    """Whether two convex polygons share an area: no line along an edge of either separates them."""
    for polygon in (one, other):
        for (ax, ay), (bx, by) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            across = (ay - by, bx - ax)
            first = [across[0] * x + across[1] * y for x, y in one]
            second = [across[0] * x + across[1] * y for x, y in other]
            if max(first) <= min(second) or max(second) <= min(first):
                return False
    return True


def obstacles(root: ElementTree.Element) -> Iterator[list[Point]]:
    """Everything that a text must not lie on: faces, legend swatches, scale bars, a gap head's lines."""
    for polygon in root.iter(f"{SVG}polygon"):
        yield corners(polygon)
    for rect in root.findall(f"{SVG}rect")[1:]:  # the first is the paper
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        yield [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    for line in root.findall(f"{SVG}g[@class='reads']/{SVG}path")[:-1]:
        found = re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)V([\d.]+)", line.attrib["d"])
        assert found
        x, y, level, goal, end = map(float, found.groups())
        yield [
            (x, y),
            (x, level),
            (goal, level),
            (goal, end),
        ]  # as if the area under it were filled
    for bar in root.findall(f"{SVG}path[@class='scale']"):
        found = re.fullmatch(r"M([\d.]+) ([\d.]+)v8m0 -4h([\d.]+)m0 -4v8", bar.attrib["d"])
        assert found
        x, y, w = map(float, found.groups())
        yield [(x, y), (x + w, y), (x + w, y + 8), (x, y + 8)]


def test_the_overlap_is_an_overlap() -> None:
    square: list[Point] = [(0, 0), (2, 0), (2, 2), (0, 2)]
    diamond: list[Point] = [(3, 1), (4, 2), (3, 3), (2, 2)]
    assert not overlap(square, diamond)
    assert overlap(square, [(x - 0.8, y - 0.8) for x, y in diamond])
    assert overlap(square, [(0.5, 0.5), (1, 0.5), (1, 1)])


@pytest.mark.parametrize("name", CASES)
def test_no_text_lies_on_another_or_on_a_box(name: str) -> None:
    root = drawn(name)
    texts = [("".join(text.itertext()), box(text)) for text in root.iter(f"{SVG}text")]
    for (words, one), (others, other) in combinations(texts, 2):
        assert not overlap(one, other), (words, others)
    for words, one in texts:
        assert not any(overlap(one, obstacle) for obstacle in obstacles(root)), words
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width == 1200
    for words, one in texts:
        assert all(0 <= x <= width and 0 <= y <= height for x, y in one), words
    for obstacle in obstacles(root):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in obstacle)


@pytest.mark.parametrize("name", CASES)
def test_the_narrow_figure_is_readable_on_a_phone(name: str) -> None:
    net, height, width = CASES[name]
    root = drawn(name, narrow=True)
    groups = [g.attrib["data-layer"] for g in root.iter(f"{SVG}g") if "data-layer" in g.attrib]
    assert sorted(groups) == sorted(["input", *net.taps])
    names = [t for t in root.iter(f"{SVG}text") if t.find(f"{SVG}tspan") is not None]
    rows = [row for row in net.rows(height, width) if row.layer.kind != "relu"]
    assert [(t.text or "").strip() for t in names] == ["input", *(row.layer.name for row in rows)]
    _, _, page, tall = map(float, root.attrib["viewBox"].split())
    assert page == 340
    texts = [("".join(text.itertext()), box(text)) for text in root.iter(f"{SVG}text")]
    for (words, one), (others, other) in combinations(texts, 2):
        assert not overlap(one, other), (words, others)
    for words, one in texts:
        assert all(0 <= x <= page and 0 <= y <= tall for x, y in one), words
        for face in root.iter(f"{SVG}polygon"):
            assert not overlap(one, corners(face)), words
    assert all(float(text.attrib["font-size"]) >= 12 for text in root.iter(f"{SVG}text"))
    pixel, channel = scales(root)
    for row in rows:
        wide, deep = faces(root, row.layer.name)["front"]
        if len(row.shape) == 3:
            assert wide == pytest.approx(max(2, row.shape[2] * pixel), abs=0.3)
            assert deep <= max(2, row.shape[0] * channel) + 0.3


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16c_bn", "vgg19", "small head", "gap head"])
def test_the_legend_has_what_the_figure_has(name: str) -> None:
    root = drawn(name)
    swatches = {rect.attrib["fill"] for rect in root.findall(f"{SVG}rect")[1:]}
    fronts = {p.attrib["fill"] for p in root.iter(f"{SVG}polygon") if p.attrib["class"] == "front"}
    assert swatches == fronts
    words = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    net = CASES[name][0]
    assert ("batch norm" in words.replace(describe(net), "")) == net.batch_norm
    assert ("convolution 1 × 1" in words) == (net.column == "C")
    assert ("response" in words) == (net.column == "A-LRN")
    assert f"{net.parameters:,} parameters" in words


def test_blocks_follow_one_another_and_the_later_lies_in_front() -> None:
    root = drawn("vgg16")
    fronts = [corners(p) for p in root.iter(f"{SVG}polygon") if p.attrib["class"] == "front"]
    starts = [min(x for x, _ in front) for front in fronts]
    assert starts == sorted(starts)
    middles = {
        round((min(y for _, y in side) + max(y for _, y in side)) / 2)
        for side in (corners(p) for p in root.iter(f"{SVG}polygon") if p.attrib["class"] == "side")
    }
    assert len(middles) == 1  # all on one axis


def test_a_gap_head_shows_what_it_reads() -> None:
    root = drawn("gap head")
    lines = root.findall(f"{SVG}g[@class='reads']/{SVG}path")
    starts = [tuple(map(float, re.findall(r"[\d.]+", line.attrib["d"])[:2])) for line in lines[:-1]]
    tops = []
    for layer in ("conv4_3", "conv5_3"):
        top = root.find(f".//{SVG}g[@data-layer='{layer}']/{SVG}polygon[@class='top']")
        assert top is not None
        tops.append(corners(top))
    assert len(starts) == 2
    for (x, y), top in zip(starts, tops, strict=True):
        assert min(a for a, _ in top) < x < max(a for a, _ in top)
        assert min(b for _, b in top) < y < max(b for _, b in top)
    assert drawn("vgg16").find(f"{SVG}g[@class='reads']") is None


def test_the_file_stands_alone() -> None:
    net = network("vgg16")
    text = block_figure(net, title='a < b & "c"')
    root = ElementTree.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        "svg", "title", "rect", "text", "tspan", "g", "polygon", "path",
    }  # fmt: skip
    assert not re.search(r"href|url\(|@import|<!|<\?", text)
    assert len(re.findall("http", text)) == 1  # the name space
    assert 'a < b & "c"' in "".join(root.itertext())
    assert len(text) < 40_000
    assert block_figure(net, title='a < b & "c"') == text


def test_the_golden_figure() -> None:
    maker = Path(__file__).parent / "golden" / "figure_make.py"
    golden = maker.with_name("figure.svg").read_text(encoding="utf-8")
    assert runpy.run_path(str(maker))["figure"]() == golden, f"see {maker.name}"


def test_an_image_too_small_is_refused() -> None:
    with pytest.raises(NetworkError, match="needs at least 32x32"):
        block_figure(network("vgg16"), 31)


def test_the_command_writes_the_figure(verydeep: Run, model: Path, tmp_path: Path) -> None:
    plain = verydeep("summary", "vgg16c_bn", "--input", "64x96")
    figure = tmp_path / "figure.svg"
    outcome = verydeep("summary", "vgg16c_bn", "--input", "64x96", "--svg", figure)
    assert outcome == plain  # the table is printed as ever
    net = network("vgg16c_bn")
    assert figure.read_bytes().decode() == block_figure(net, 64, 96, title=describe(net))
    assert verydeep("summary", model, "--svg", figure, "--json").status == 0
    assert "relu5_2, 7 classes</title>" not in figure.read_text(encoding="utf-8")
    assert "gap head on relu4_2, relu5_2, 7 classes" in figure.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.svg", "tiny.safetensors"]


def test_the_command_refuses_what_it_cannot_write(
    verydeep: Run, model: Path, tmp_path: Path
) -> None:
    before = model.read_bytes()
    outcome = verydeep("summary", model, "--svg", model)
    assert (outcome.status, outcome.out) == (2, "")
    assert "expected a name that ends in .svg" in outcome.err
    assert model.read_bytes() == before
    outcome = verydeep("summary", "vgg11", "--svg", tmp_path / "none" / "figure.svg")
    assert (outcome.status, outcome.out) == (2, "")
    assert "make the folder first" in outcome.err
    outcome = verydeep("summary", "vgg11", "--input", "31", "--svg", tmp_path / "figure.svg")
    assert outcome.status == 2
    assert not (tmp_path / "figure.svg").exists()


def test_no_letter_of_a_title_is_cut_off() -> None:
    from verydeep.pictures import layout

    for room in (layout.NARROWEST, 60):
        rows = layout.lines("tall-with-a-long-file-name.png of it", layout.TITLE, room)
        assert "".join(rows).replace(" ", "") == "tall-with-a-long-file-name.pngofit"
        assert all(layout.length(row, layout.TITLE) <= room for row in rows)
