"""The model that ships: small enough, its record whole, and right on the photos that ship beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import verydeep
from verydeep.modelfile import ModelFile, read
from verydeep.predictor import builtin_models

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def builtin() -> ModelFile:
    return read(builtin_models()["builtin"])


def expected() -> list[tuple[str, str]]:
    """(file, class) from the table in the photos' README."""
    rows = re.findall(
        r"^\| `([^`]+)` \|[^|]*\| ([^(|]+) \(n\d{8}\) \|", (PHOTOS / "README.md").read_text(), re.M
    )
    return [(file, names.split(",")[0].strip()) for file, names in rows]


def test_sizes() -> None:
    for path in builtin_models().values():
        assert path.stat().st_size <= 16_000_000


def test_every_photo_has_a_row() -> None:
    files = {p.name for p in PHOTOS.iterdir() if p.suffix in (".jpg", ".png")}
    assert {file for file, _ in expected()} == files
    assert len(files) >= 4
    assert sum(file.endswith(".jpg") for file in files) >= 2


@pytest.mark.parametrize(("file", "label"), expected())
def test_photos_are_named_rightly(file: str, label: str) -> None:
    assert verydeep.load()(PHOTOS / file).label == label


def test_record_is_whole(builtin: ModelFile) -> None:
    record = builtin.record
    assert (record.network.name, record.network.head.kind) == ("vgg16", "gap")
    assert len(set(record.class_names)) == len(set(record.class_ids)) == 200
    assert all(re.fullmatch(r"n\d{8}", key) for key in record.class_ids)
    assert not [name for name in record.class_names if "," in name]
    assert dict(zip(record.class_ids, record.class_names, strict=True))["n04146614"] == "school bus"
    assert record.licence == "BSD-3-Clause"
    assert {"trunk", "head"} <= set(record.provenance)
    assert record.threshold is not None
    assert 0 < record.threshold < 1
    assert all({"what", "value", "protocol"} == set(figure) for figure in record.measured)


def test_measured_figures_meet_what_was_promised(builtin: ModelFile) -> None:
    """Measured anew by `tools/build_builtin.py check`; here: the record says what docs/models.md says."""
    figures: dict[str, float] = {}
    for figure in builtin.record.measured:
        figures.setdefault(str(figure["what"]), float(str(figure["value"])))
    assert figures["top1"] >= 0.60
    assert figures["top5"] >= 0.82
    assert figures["expected_calibration_error"] <= 0.03
    assert figures["relative L2 error of relu5_3 against float32"] <= 0.025
    page = (ROOT / "docs" / "models.md").read_text()
    for what in ("top1", "top5", "expected_calibration_error"):
        assert f"{figures[what]:.1%}".replace("%", " %") in page, what
    assert f"{builtin.path.stat().st_size / 1e6:.1f} MB" in page


def test_first_filters_are_the_published_ones(builtin: ModelFile) -> None:
    """torchvision IMAGENET1K_V1: features.0.weight[0, 0, 0, 0] is -0.5537; 16 bits keep it."""
    first = builtin.tensors(["features.0.weight"])["features.0.weight"]
    assert first[0, 0, 0, 0] == pytest.approx(-0.5537, abs=2e-4)
    assert first.shape == (64, 3, 3, 3)


def test_probabilities_sum_to_one(builtin: ModelFile) -> None:
    answer = verydeep.load()(PHOTOS / "bee.jpg", top=200)
    assert np.sum([p.probability for p in answer.predictions]) == pytest.approx(1)
    assert len(answer.predictions) == len(builtin.record.class_names)
