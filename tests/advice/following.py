"""What messages advise, found in the source; and which of it a test follows.

A message is any text in the package that is neither a docstring nor help. What it advises is found by its
words: an imperative, what is expected, an option, a command, a variable. A test that follows some of it
names the words, as they stand in the source with {} for what is filled in, and gets what was filled in
from the message itself: what is followed is what was said.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch

from verydeep.cli import VERBS as VERYDEEP_VERBS
from verydeep.errors import VerydeepError

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
C = TypeVar("C", bound=Callable[..., Any])


DO = (
    "add|ask|begin|call|change|check|choose|clip|close|compare|convert|copy|crop|delete|download|export|"
    "fetch|finish|free|get|give|install|keep|leave|load|look|lower|make|move|name|open|pass|pickle|pip|put|"
    "quantise|raise|rename|replace|remove|resize|run|save|say|scale|see|set|show|split|start|take|train|"
    "try|unpack|unset|update|upgrade|use|wait|write"
)
VERBS = "|".join(VERYDEEP_VERBS)
ADVICE = re.compile(
    rf"(?:(?:^|[;:,(.] |\bor |\band |\bso |\bthen )(?=(?P<do>{DO})\b)(?!\w+ (?:is|are|of|has|other)\b))|"
    rf"\bexpected (?!by)|\bdid you mean|(?<![\w-])--[a-z]|verydeep (?:{VERBS})\b|VERYDEEP_[A-Z]|"
    r"(?<![\w.-])[a-z_]{3,}=[\w\"'{(]",
    re.IGNORECASE,
)
# a page, a drawing, a program
NO_WORDS = re.compile(r'^\s*#|<\w+|/>|stroke=|\w+="\{\}" \w+=|__file__|\{\} / min')


class Message(NamedTuple):
    """where: file and line. text: with {} for what is filled in. spans: of `text`, each thing advised."""

    where: str
    text: str
    spans: tuple[tuple[int, int], ...]


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(where, text) of every text in the package that is neither a docstring nor help."""
    found = []
    for file in sorted((ROOT / "verydeep").rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [(f"{where}:{line}", text) for line, text in _texts(tree)]
    return tuple(found)


def messages() -> Iterator[Message]:
    """Those that advise something."""
    for where, text in texts():
        spans = tuple(m.span("do" if m["do"] else 0) for m in ADVICE.finditer(text))
        if (
            " " in text
            and spans
            and not NO_WORDS.search(text)
            and "/pictures/" not in where  # its texts are drawings
        ):
            yield Message(where, text, spans)


def _texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of each text below a node, docstrings and help left out."""
    for child in ast.iter_child_nodes(node):
        docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        docstring |= isinstance(child, ast.Assign) and "__doc__" in ast.dump(child.targets[0])
        help_text = isinstance(child, ast.keyword) and child.arg in (
            "help",
            "metavar",
            "short_help",
        )
        if docstring or help_text:
            continue
        if isinstance(child, ast.Constant):
            if isinstance(child.value, str):
                yield child.lineno, child.value
        elif isinstance(child, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in child.values)
            yield child.lineno, "".join(map(str, parts))
            for part in child.values:
                if isinstance(part, ast.FormattedValue):
                    yield from _texts(part)
        else:
            yield from _texts(child)


_heard: list[set[str]] = []  # by the test that runs


def follows(*words: str) -> Callable[[C], C]:
    """Of a test: it follows these words of messages. Each of them must have been `said` when it ends."""

    def decorate(test: C) -> C:
        @wraps(test)
        def run(*args: Any, **kwargs: Any) -> Any:
            _heard.append(set())
            try:
                test(*args, **kwargs)
                assert _heard[-1] >= set(words), f"never said: {set(words) - _heard[-1]}"
            finally:
                _heard.pop()

        run.words = words  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def said(words: str, text: object) -> tuple[str, ...]:
    """What a message filled in where the words have {}; it must have them, on one line."""
    pattern = "(.*?)".join(map(re.escape, words.split("{}")))
    match = re.search(pattern[:-2] + ")" if pattern.endswith("(.*?)") else pattern, str(text))
    assert match, f"{words!r} is not in {text!s}"
    if _heard:
        _heard[-1].add(words)
    return match.groups()


def refused(call: Callable[[], object]) -> str:
    """What the error says that a call must end in."""
    with pytest.raises(VerydeepError) as caught:
        call()
    return str(caught.value)


def taken(pattern: str, text: str) -> str:
    """The part of a message that the group of a pattern stands for."""
    match = re.search(pattern, text)
    assert match, (pattern, text)
    return match[1]


def brought(install: str) -> set[str]:
    """The packages that an install line of ours brings, in lower case, verydeep's own included."""
    extras = PROJECT["optional-dependencies"]
    lines, packages = [install], set()
    while lines:
        line = lines.pop()
        name, _, named = re.sub(r'^pip install |"', "", line).partition("[")
        if name == "verydeep":
            lines += PROJECT["dependencies"]
            for extra in filter(None, named.rstrip("]").split(",")):
                lines += extras[extra]
        else:
            packages.add(re.split(r"[<>=~ ]", line)[0].lower())
    return packages


def evaluated(advice: str, **names: Any) -> Any:
    """The value of a line of Python that a message says to write."""
    return eval(advice, {"numpy": np, "torch": torch, **names})


def command(advice: str, **placeholders: object) -> list[str]:
    """The words of a command in a message, without `verydeep`; capitals in it stand for what is given."""
    words = shlex.split(advice)
    assert words[0] == "verydeep", advice
    return [str(placeholders.get(word, word)) for word in words[1:]]


# the words of a message; a call that it refuses; a call that follows it, given what the words fill in
Row = tuple[str, Callable[[], object], Callable[..., object]]


def all_followed(rows: Iterable[Row]) -> None:
    """Each row's first call is refused in its words, and its second, which follows them, is not."""
    for words, wrong, right in rows:
        right(*said(words, refused(wrong)))
