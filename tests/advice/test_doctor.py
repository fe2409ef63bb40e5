"""Advice of `verydeep doctor`, followed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from verydeep.cli import doctor
from verydeep.engines import ENGINES

from ..conftest import Run
from .following import follows, said

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@follows(": pip install 'verydeep[{}]'")
def test_every_extra_that_it_names_is_there(verydeep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing of any extra were installed."""
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    monkeypatch.setattr(doctor, "_versions", lambda extra: [f"what {extra} brings missing"])
    monkeypatch.setattr(doctor, "ENGINES", {"onnxruntime": ENGINES["onnxruntime"]})
    done = verydeep("doctor")
    assert done.status == 0
    lines = [line for line in done.out.splitlines() if "pip install" in line]
    assert lines
    for line in lines:
        said(": pip install 'verydeep[{}]'", line)
        assert line.rpartition("[")[2].rstrip("]'") in extras
