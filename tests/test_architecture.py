"""docs/architecture.md is true: its rooms are the rooms, and each imports only from those above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "verydeep"
PAGE = ROOT / "docs" / "architecture.md"


def rooms() -> list[str]:
    """The rooms of the page's table, from above."""
    table = PAGE.read_text(encoding="utf-8").partition("| room |")[2].partition("\n\n")[0]
    return re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE)


def imported(text: str, place: tuple[str, ...]) -> set[str]:
    """The rooms that a module imports from. place: the folders it lies in, below the package."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = place[: len(place) + 1 - node.level]
            path = (*base, *(node.module.split(".") if node.module else ()))
            found |= {path[0]} if path else {name.name for name in node.names}
    return found


def test_the_rooms_are_those_of_the_page() -> None:
    there = {
        path.stem
        for path in HOUSE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py")))
    }
    assert len(rooms()) == len(set(rooms()))
    assert there - {"__init__", "__main__"} == set(rooms())
    assert sum(path.suffix == ".py" for path in HOUSE.iterdir()) <= 6


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_from_those_above_it(room: str) -> None:
    path = HOUSE / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    above = {*rooms()[: rooms().index(room) + 1], "__version__"}
    for file in files:
        place = file.relative_to(HOUSE).parts[:-1]
        assert imported(file.read_text(encoding="utf-8"), place) <= above, file


def test_the_test_above_can_fail() -> None:
    text = "from ..cli import main\nfrom .forks import Turns\nfrom .. import models, __version__\n"
    assert imported(text, ("engines",)) == {"cli", "engines", "models", "__version__"}
    assert imported("from ...nets import named\n", ("training", "images")) == {"nets"}


def test_what_the_page_names_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (HOUSE / name).is_file() or (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:\w+/)+)`", text):
        assert any((parent / name).is_dir() for parent in (ROOT, HOUSE, HOUSE / "training")), name
    for module, last in re.findall(r"`((?:\w+\.)+)(\w+)`", text):
        path = HOUSE.joinpath(*module.rstrip(".").split("."))
        if (path.is_dir() or path.with_suffix(".py").is_file()) and last != "py":
            source = (
                path.with_suffix(".py")
                if path.with_suffix(".py").is_file()
                else path / "__init__.py"
            )
            there = re.search(rf"\b{last}\b", source.read_text(encoding="utf-8"))
            assert there or (path / f"{last}.py").is_file(), f"{module}{last}"
