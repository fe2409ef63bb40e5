"""What messages advise is there: each command, option, setting, extra, keyword and variable that one names.

By machine, from the source itself: a message that comes later is held to the same. That the advice also
helps is tested where its error is; `range=` is followed here.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest

import verydeep
from verydeep.cli import cli
from verydeep.errors import ImageError
from verydeep.training import recipes

from .tiny import model_file

ROOT = Path(__file__).resolve().parent.parent
SAID = {"info", "warning", "error", "warn_once", "echo", "MissingExtraError", "say", "told"}


def messages() -> Iterator[tuple[str, str]]:
    """(where, text) of what is raised, warned of or said; what is filled in stands as {}."""
    for file in sorted((ROOT / "verydeep").rglob("*.py")):
        if file.parent.name == "pictures":  # whose texts are drawings
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            said: list[ast.expr] = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                said = [*node.exc.args]
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if (
                    name in SAID
                    or name.endswith("Error")
                    or name in ("Finding", "Verdict", "append")
                ):
                    said = [*node.args]
            for one in said:
                text = "".join(_text(one))
                if text and not text.startswith("<"):  # which is a drawing
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def _text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield node.value if isinstance(node.value, str) else ""
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _text(part) if isinstance(part, ast.Constant) else ("{}",)
    elif isinstance(node, ast.BinOp | ast.IfExp):
        for part in ast.iter_child_nodes(node):
            yield from _text(part)


def commands(group: click.Group, way: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{way}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{way}{name} ")


COMMANDS = dict(commands(cli))
OPTIONS = {option for one in (cli, *COMMANDS.values()) for p in one.params for option in p.opts}
OPTIONS |= {"--help", "--nproc-per-node", "--upgrade"}  # of every command, of torchrun, of pip
MESSAGES = sorted(set(messages()))


def advised(pattern: str) -> list[tuple[str, str]]:
    return [(where, found) for where, text in MESSAGES for found in re.findall(pattern, text)]


def test_commands_that_are_advised_are_there() -> None:
    marked = advised(r"(?:`|: )verydeep ([a-z]+(?: [a-z]+)?)")
    assert len(marked) > 5
    for where, words in marked:
        first = words.split()[0]
        assert first in COMMANDS, (where, words)
        if isinstance(COMMANDS[first], click.Group):
            assert words in COMMANDS, (where, words)


def test_options_that_are_advised_are_there() -> None:
    found = advised(r"(?<![\w-])(--[a-z][a-z-]+)")
    assert len(found) > 20
    for where, option in found:
        assert option in OPTIONS, (where, option)


def test_settings_that_are_advised_are_there() -> None:
    known = {field.name for name in recipes.RECIPES for field in fields(recipes.recipe(name))}
    found = advised(r"--set ([a-z_0-9]+)=")
    assert len(found) > 5
    for where, key in found:
        assert key in known, (where, key)


def test_extras_that_are_advised_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = [(w, e) for w, names in advised(r"verydeep\[([a-z,]+)\]") for e in names.split(",")]
    needed = {
        node.args[1].value
        for file in (ROOT / "verydeep").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtraError"
        and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
    }  # fmt: skip
    assert needed
    for where, extra in [*found, *(("MissingExtraError", extra) for extra in needed)]:
        assert extra in extras, (where, extra)


def test_variables_that_are_advised_are_read() -> None:
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "verydeep").rglob("*.py"))
    found = advised(r"\b(VERYDEEP_[A-Z]+)")
    assert found
    for where, name in found:
        assert re.search(rf'(environ|getenv)[^\n]*"{name}"|"{name}"[^\n]*environ|= "{name}"', source), (
            where, name,
        )  # fmt: skip


def test_keywords_that_are_advised_are_taken() -> None:
    """A word with "=" that is no setting of a recipe is a parameter of some function."""
    settings = {field.name for name in recipes.RECIPES for field in fields(recipes.recipe(name))}
    taken = (
        settings
        | {"include_top"}
        | {  # the one is Keras' own
            node.arg
            for file in (ROOT / "verydeep").rglob("*.py")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.arg)
        }
    )
    found = advised(r"(?<![\w.-])([a-z_]{3,})=[\w\"'{]")
    assert len(found) > 5
    for where, keyword in found:
        assert keyword in taken, (where, keyword)


def test_range_is_taken_as_it_is_advised(tmp_path: Path) -> None:
    predictor = verydeep.load(model_file(tmp_path / "m.safetensors"))
    image = np.random.default_rng(0).random((40, 40, 3), np.float32)
    with pytest.raises(ImageError) as refused:
        predictor(image)
    advice = re.search(r"range=(\([\d, ]+\))", str(refused.value))
    assert advice
    black_white = ast.literal_eval(advice[1])
    answer = predictor(image, range=black_white)
    assert predictor((image * 255).round().astype(np.uint8)).label == answer.label
    for verb in (predictor.scores, predictor.features, partial(verydeep.explain, predictor),
                 partial(verydeep.show, predictor, size=40)):  # fmt: skip
        with pytest.raises(ImageError, match="range="):
            verb(image)
        verb(image, range=black_white)
    assert verydeep.explain(predictor, image, range="0..1").label == answer.label
    shown = verydeep.show(predictor, image, size=40, range=(0, 1)).answer
    assert shown
    assert shown.label == answer.label
