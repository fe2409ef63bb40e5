"""Models whose photos may be of several classes, or of none: everything that reads one reads it so."""

from __future__ import annotations

from pathlib import Path

import pytest

from verydeep.modelfile import read
from verydeep.published import conversion

from .tiny import model_file

THRESHOLDS = (0.5, 0.2, 0.9, 0.4, 0.6, 0.3, 0.7)


@pytest.mark.parametrize(
    "said", [{"thresholds": THRESHOLDS}, {"threshold": 0.25, "least_mean": 0.125}]
)
def test_a_converted_model_keeps_what_its_record_says_of_answers(
    said: dict[str, object], tmp_path: Path
) -> None:
    model = model_file(tmp_path / "own.safetensors", **said)
    conversion.convert(model, tmp_path / "again.safetensors")
    record = read(tmp_path / "again.safetensors").record
    assert {key: getattr(record, key) for key in said} == said
