"""docs/why-3x3.md says nothing that is not computed: its code runs, its numbers are recomputed here."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections import Counter
from pathlib import Path

import doc_figures
import pytest

from verydeep import nets
from verydeep.nets import COLUMNS, HEADS, network

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"en": ROOT / "docs" / "why-3x3.md", "zh": ROOT / "docs" / "why-3x3.zh.md"}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d[\d,.]*\d|\d")


def text(language: str) -> str:
    return PAGES[language].read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """(kind, content) of each fenced block, in order."""
    return _BLOCK.findall(text(language))


def prose(language: str) -> str:
    """The page without its code, its links' targets, and inline code, which names things."""
    found = _BLOCK.sub("", text(language))
    found = re.sub(r"\]\([^)]*\)", "]", found)
    return re.sub(r"`[^`]*`", "`", found)


def test_the_code_prints_what_the_page_shows() -> None:
    found = blocks("en")
    assert [kind for kind, _ in found] == ["python", "text"] * (len(found) // 2)
    names: dict[str, object] = {}
    for (_, code), (_, shown) in zip(found[::2], found[1::2], strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, PAGES["en"].name, "exec"), names)
        assert printed.getvalue() == shown, code


DEVIATION = 0.01  # of the FC layers' first weights; measured below


def computed() -> set[str]:
    """Every number that the prose may state, each from the table or the code that it describes."""
    vgg11, vgg16, vgg19 = (network(name) for name in ("vgg11", "vgg16", "vgg19"))
    work = [sum(row.multiply_adds for row in net.rows()) for net in (vgg11, vgg19)]
    conv, pool = vgg16.layer("conv1_1"), vgg16.layer("pool1")
    grid, hidden = HEADS["classic"]
    fields = {row.layer.name: row.receptive_field for row in vgg19.rows()}
    reaches = {1 + depth * (conv.kernel - 1) for depth in (1, 2, 3)}  # 3, 5, 7
    assert reaches == {fields["conv1_1"], fields["conv1_2"], 7}
    [one_by_one] = {entry.split(":")[1] for entry in COLUMNS["C"].split() if ":" in entry}
    numbers = {
        *reaches,
        conv.kernel**2,  # 9C^2
        vgg11.weight_layers, vgg16.weight_layers, vgg19.weight_layers,
        round(100 * (vgg19.parameters / vgg11.parameters - 1)),
        round(100 * (work[1] / work[0] - 1)),
        vgg16.minimum_size, 224, grid, grid**2, hidden, vgg16.head.classes,
        pool.kernel, pool.stride, one_by_one,
        round(4 * vgg16.parameters / 2**20),  # MiB
        0,  # padding of a 1x1 kernel
        DEVIATION,
    }  # fmt: skip
    assert vgg16.minimum_size < 224
    assert next(layer.padding for layer in network("vgg16c").trunk if layer.name == "conv3_3") == 0
    average = {row.layer.name: row.shape for row in vgg16.rows(224)}
    assert average["pool5"] == average["avgpool"]  # "changes nothing at 224 pixels"
    return {str(number) for number in numbers}


# Not figures but names: of sections and tables of the paper, and of what is 32 bits wide.
NAMES = re.compile(r"VGG-16|float32|section 2\.3|第 2\.3 节|table 3|表 3")


@pytest.mark.parametrize("language", PAGES)
def test_every_number_in_the_prose_is_computed(language: str) -> None:
    stated = set(_NUMBER.findall(NAMES.sub("", prose(language))))
    assert stated - computed() == set()
    assert {"9", "49", "158", "528", "4096"} <= stated  # the pattern finds what there is


def test_what_the_page_says_in_words() -> None:
    torch = pytest.importorskip("torch")
    from verydeep.models.layers import RECIPES

    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 256)
    RECIPES["torchvision"][1](layer.weight)
    assert layer.weight.std().item() == pytest.approx(DEVIATION, rel=0.05)
    assert len(COLUMNS) == 6  # "all six columns"
    assert set(HEADS) == {"classic", "small", "gap"}  # "three heads"


def test_numbers_that_are_not_computed_are_found() -> None:
    assert set(_NUMBER.findall("grow by 9.1 %, or 1,234")) == {"9.1", "1,234"}
    assert "9.1" not in computed()


def rows(language: str) -> list[list[str]]:
    """The cells of the table of the classic source, without its head."""
    lines = [line for line in text(language).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {4}
    return cells[1:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_what_the_table_names_exists() -> None:
    source = inspect.getsource(pytest.importorskip("torchvision.models.vgg"))
    for theirs, does, here, differs in rows("en"):
        assert all(name in source for name in names(theirs)), theirs
        assert names(here), here
        for name in names(here):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(f"verydeep.{module}"), attribute), name
        for name in names(does) + names(differs):
            if name.endswith(".py"):
                assert (ROOT / "verydeep" / name).is_file(), name
            elif name.startswith("pool="):
                assert name.split('"')[1] in nets.POOLS
            elif name.startswith("head="):
                assert name.split('"')[1] in HEADS


def test_every_part_of_the_classic_source_is_in_the_table() -> None:
    vgg = pytest.importorskip("torchvision.models.vgg")
    mine = {
        name
        for name, value in vars(vgg).items()
        if getattr(value, "__module__", None) == vgg.__name__ or name == "cfgs"
    }
    listed = " ".join(row[0] for row in rows("en"))
    for name in mine:
        by_pattern = re.fullmatch(r"vgg\d+(_bn)?|VGG\d+(_BN)?_Weights|VGG", name)
        assert by_pattern or name in listed, name


def test_the_pictures_are_what_the_table_says_now() -> None:
    drawn = doc_figures.figures()
    assert {path.name for path in doc_figures.IMAGES.iterdir()} >= drawn.keys()
    for name, content in drawn.items():
        path = doc_figures.IMAGES / name
        assert path.read_text(encoding="utf-8") == content, "run tools/doc_figures.py --write"
        assert f"(images/{name})" in text("en")
        assert path.stat().st_size < 40_000


def test_both_languages_say_the_same() -> None:
    assert [line.split()[0] for line in text("en").splitlines() if line.startswith("#")] == [
        line.split()[0] for line in text("zh").splitlines() if line.startswith("#")
    ]
    assert blocks("en") == blocks("zh")
    assert Counter(_NUMBER.findall(prose("en"))) == Counter(_NUMBER.findall(prose("zh")))
    link = re.compile(r"\]\((?!why-3x3)([^)]*)\)")
    assert link.findall(text("en")) == link.findall(text("zh"))
    inline = [names(_BLOCK.sub("", text(language))) for language in PAGES]
    assert Counter(inline[0]) == Counter(inline[1])
    assert [(a[0], names(a[2])) for a in rows("en")] == [(a[0], names(a[2])) for a in rows("zh")]
    assert len(re.findall(r"[\u4e00-\u9fff]", text("zh"))) > 1000
