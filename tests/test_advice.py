"""What messages advise: all of it is followed in a test, and each word that it names is there.

By machine, from the source itself, so that a message that comes later is held to the same. The tests that
follow are in `tests/advice/`, by area, and say which words they follow (`advice.following.follows`).
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from verydeep.cli import cli
from verydeep.training import recipes

from .advice import following

ROOT = Path(__file__).resolve().parent.parent

# What no test can follow, by words of the message, and why.
NOT_FOLLOWED = {
    'install them with: pip install "onnxruntime-gpu[cuda,cudnn]"': "NVIDIA's libraries, and a GPU",
    "upgrade with: pip install --upgrade verydeep": "pip's own command, of a version that is yet to come",
    "whose values are others, or use lpips": "another package, with weights to fetch",
    "Look at these first: some of them may be wrong labels.{}": "said of photos in a report, to people",
    # of today, and to be followed in tests/advice/test_training.py
    "was begun by another version of verydeep; go on with that one, or choose another folder": "new",
    "mend or delete them, or hold none out by --set hold=0": "new",
    "goes on from weights of width {}, and width is {}; leave width out": "new",
    "look for one that takes all memory, and take it out of the source": "ten processes that are killed",
    "run `git lfs pull`": "git's own command, on a repository's server",
}

# Whole texts that advise nothing, though they look it.
NO_ADVICE = {
    "load s": "a column's title",
    "check train": "names of verbs",
    "export quantize compress serve models weights cache doctor": "names of verbs",
    "it says {}; expected {} with at least {}": "what is wrong with an engine's answer",
    "verydeep serve": "what needs an extra",
    "name network file url size_bytes licence preprocess classes": "names of fields",
    "verydeep weights convert": "what made a file",
    "{}: {}; range={}": "how a loss shows itself",
    "check with": "what photos are for",
    "train on": "what images are for",
    "verydeep train": "what made a file",
    "say the same classes of": "what two models do",
    "give the same first answer on": "what two models do",
    "expected a str, got {}": "a TypeError by which click tells streams of text from those of bytes",
}


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
MESSAGES = sorted(
    (where, text)
    for where, text in set(following.texts())
    if " " in text and not following.NO_WORDS.search(text) and "/pictures/" not in where
)


def advised(pattern: str) -> list[tuple[str, str]]:
    return [(where, found) for where, text in MESSAGES for found in re.findall(pattern, text)]


def words_followed() -> dict[str, str]:
    """The words that tests follow, and which test it is."""
    words = {}
    areas = sorted((ROOT / "tests" / "advice").glob("test_*.py"))
    for place in (f"tests.advice.{file.stem}" for file in areas):
        module = importlib.import_module(place)
        for name, test in vars(module).items():
            for one in getattr(test, "words", ()):
                assert name.startswith("test_"), name
                words[one] = f"{place}::{name}"
    return words


FOLLOWED = words_followed()


def unfollowed() -> Iterator[tuple[str, str, str]]:
    """(where, what is advised, the message) of all advice that nothing follows."""
    known = (*FOLLOWED, *NOT_FOLLOWED)
    for where, text, spans in following.messages():
        if text in NO_ADVICE:
            continue
        # words as short as "name another" are of that text alone
        own = [words for words in known if len(words.split()) > 2 or words == text]
        covered = [m.span() for words in own for m in re.finditer(re.escape(words), text)]
        for start, end in spans:
            if not any(first <= start and end <= last for first, last in covered):
                yield where, text[start:end], text


def test_every_advice_is_followed() -> None:
    """What is listed here needs a test in tests/advice/, or a reason above why it can have none."""
    assert not list(unfollowed())


@pytest.mark.parametrize(
    "text",
    ["{} is full; free some space", "no {} here: use another", "{} is {}; expected 3", "say --so",
     "see `verydeep show`", "write range=(0, 1)", "unset VERYDEEP_CACHE", "no {}; did you mean {}?"],
)  # fmt: skip
def test_advice_is_known_by_its_words(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inventory can fail: what nothing follows is found, and what gives no advice is not."""
    here = ("verydeep/new.py:1", text), ("verydeep/new.py:2", "the use of {} is over, says {}")
    monkeypatch.setattr(following, "texts", lambda: here)
    assert {where for where, _, _ in unfollowed()} <= {"verydeep/new.py:1"}
    assert [message.where for message in following.messages()] == ["verydeep/new.py:1"]


def test_what_is_followed_is_said() -> None:
    """No test follows, and no reason excuses, what no message says any more."""
    texts = [text for _, text in following.texts()]
    for words in (*FOLLOWED, *NOT_FOLLOWED, *NO_ADVICE):
        assert any(words in text for text in texts), words


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


# which training's messages advise and its recipes do not have yet: to be empty when it is rebuilt
YET_TO_COME: set[str] = set()


def test_settings_that_are_advised_are_there() -> None:
    known = {field.name for name in recipes.RECIPES for field in fields(recipes.recipe(name))}
    found = advised(r"--set ([a-z_0-9]+)=")
    assert len(found) > 5
    for where, key in found:
        assert key in known | YET_TO_COME, (where, key)


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
        | YET_TO_COME
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
