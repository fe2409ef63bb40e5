"""Advice of the command itself, followed: options, verbs, where files go, what to type next."""

from __future__ import annotations

import re

import pytest

from ..conftest import Run
from .following import command, follows, said, taken


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--foo", None), ("--gpu", None), ("--confidence", None), ("--topk", "--top"), ("--bath", "--batch")],
)  # fmt: skip
def test_options_that_are_near(given: str, meant: str | None, verydeep: Run) -> None:
    """click compares the two dashes as well, and found --top near --foo."""
    text = verydeep("classify", "photo.jpg", given).err
    assert re.findall(r"Did you mean '(--\w+)'", text) == ([meant] if meant else [])


@follows("; see {} --help")
def test_help_is_where_it_is_said(verydeep: Run) -> None:
    for words in (("classify", "--foo"), ("weights", "fetch"), ("--foo",), ("cache", "--foo")):
        text = verydeep(*words).err
        said("; see {} --help", text)
        helped = verydeep(*command(taken("see (.* --help)", text)))
        assert helped.status == 0
        assert "Usage:" in helped.out
