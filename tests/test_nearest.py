"""The graph that proposes the nearest of very many photos: what it finds, kept, made anew, done without."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import verydeep
from verydeep.errors import DataError
from verydeep.retrieval import FeatureFile, approximate, nearest, open_features
from verydeep.retrieval.approximate import Graph, graph_of
from verydeep.retrieval.cosines import nearest_rows, unit_rows

from .conftest import Run
from .test_retrieval import planted
from .tiny import photo

pytest.importorskip("usearch")
LAYER, ROWS, WIDTH = "relu5_3", 1500, 48


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Graphs of more than 1,000 photos, in parts of 512."""
    monkeypatch.setattr(approximate, "LEAST_ROWS", 1000)
    monkeypatch.setattr(approximate, "ADD_ROWS", 256)
    monkeypatch.setattr(approximate, "PART_BYTES", 512 * 2 * WIDTH)
    caplog.set_level(logging.INFO, logger="verydeep")


def walks(count: int = ROWS, seed: int = 0) -> np.ndarray:
    """(count, WIDTH) float32: random walks, whose numbers depend on each other as features do."""
    draw = np.random.default_rng(seed)
    return np.cumsum(draw.normal(size=(count, WIDTH)), axis=1).astype(np.float32)


def made(file: FeatureFile) -> Graph:
    graph = graph_of(file, LAYER, threads=1)
    assert graph is not None
    return graph


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_most_of_the_nearest_are_found_and_cosines_are_exact(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = walks()
    rows[::50] = np.nan
    rows[7] = 0
    file = open_features(planted(tmp_path / f"f.{suffix}", rows))
    queries = unit_rows(walks(40, seed=1))
    graph = made(file)
    assert 0.9 < graph.recall <= 1
    assert (
        f"approximate: {100 * graph.recall:.1f} % of the ten nearest, measured on 200 photos"
        in (caplog.text)
    )
    exact, right = nearest_rows(file, LAYER, queries, 10)
    cosines, places = graph.nearest_rows(file, LAYER, queries, 10)
    found = [len({*a} & {*b}) for a, b in zip(places.tolist(), right.tolist(), strict=True)]
    assert np.mean(found) > 9
    units = unit_rows(np.nan_to_num(rows)).astype(np.float64)
    assert_allclose(cosines, np.einsum("qn,qkn->qk", queries, units[places]), atol=1e-6)
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert not np.isnan(rows[places, 0]).any()
    one = nearest._search(file, queries[:1], 10, LAYER, graph)  # usearch answers it in another form
    assert [match.row for match in one[0]] == places[0].tolist()
    all_of_them = nearest._search(file, queries[:2], ROWS, LAYER, graph)
    assert 0.95 * (ROWS - 30) < len(all_of_them[1]) <= ROWS - 30
    graph.expand(1)
    assert (exact[:, 0] + 1e-6 >= graph.nearest_rows(file, LAYER, queries, 1)[0][:, 0]).all()


def test_few_photos_are_all_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = open_features(planted(tmp_path / "few.npz", walks(1000)))
    many = open_features(planted(tmp_path / "many.npz", walks(1001)))
    none = open_features(planted(tmp_path / "none.npz", np.full((1001, WIDTH), np.nan)))
    assert (
        graph_of(few, LAYER) is graph_of(many, LAYER, exact=True) is graph_of(none, LAYER) is None
    )
    assert not list(tmp_path.glob("*.nearest"))
    assert not caplog.text


def test_it_is_kept_and_made_anew_where_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planted(tmp_path / "f.npz", walks())
    first = made(open_features(path))
    folder = tmp_path / "f.npz.nearest"
    names = {one.name: one.stat().st_mtime_ns for one in folder.iterdir()}
    assert sum(name.endswith(".usearch") for name in names) == 3
    monkeypatch.setattr(approximate, "_built", None)  # nothing is built again
    assert made(open_features(path)).recall == first.recall
    shutil.copytree(folder, tmp_path / "copy.npz.nearest")
    shutil.copy(path, tmp_path / "copy.npz")  # by its content
    assert made(open_features(tmp_path / "copy.npz")).recall == first.recall
    assert {one.name: one.stat().st_mtime_ns for one in folder.iterdir()} == names
    monkeypatch.undo()
    monkeypatch.setattr(approximate, "LEAST_ROWS", 1000)
    other = open_features(planted(path, walks(seed=2)))
    query = unit_rows(walks(seed=2)[3:4])
    assert made(other).nearest_rows(other, LAYER, query, 1)[1] == [[3]]
    left = {one.name for one in folder.iterdir()} & names.keys()
    assert left == {f"{LAYER}.lock"}


@pytest.mark.parametrize("damage", ["part cut", "part of another kind", "record", "newer"])
def test_a_damaged_one_is_made_anew(damage: str, tmp_path: Path) -> None:
    file = open_features(planted(tmp_path / "f.npz", walks()))
    recall = made(file).recall
    (record,) = (tmp_path / "f.npz.nearest").glob("*.json")
    (part,) = (tmp_path / "f.npz.nearest").glob("*-1.usearch")
    if damage == "part cut":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "part of another kind":
        part.write_bytes(b"x" * part.stat().st_size)
    elif damage == "newer":
        record.write_text(json.dumps({**json.loads(record.read_text()), "format": 2}))
    else:
        record.write_text('{"format": 1, "par')
    graph = made(file)
    assert json.loads(record.read_text())["format"] == 1
    assert abs(graph.recall - recall) < 0.05
    assert graph.nearest_rows(file, LAYER, unit_rows(walks()[700:701]), 1)[1] == [[700]]


def test_stopped_it_goes_on_with_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_features(planted(tmp_path / "f.npz", walks()))
    passed: list[int] = []

    def stage(blocks: Iterable[Any], _doing: str, _unit: str, total: int) -> Iterator[Any]:
        assert total == 6
        for start, block in blocks:
            if start == 1024 and not passed:
                passed.append(start)
                raise KeyboardInterrupt
            yield start, block

    monkeypatch.setattr(approximate, "stage", stage)
    with pytest.raises(KeyboardInterrupt):
        made(file)
    folder = tmp_path / "f.npz.nearest"
    before = {one.name: one.stat().st_mtime_ns for one in folder.glob("*.usearch")}
    assert len(before) == 2
    assert not list(folder.glob(".*"))
    (folder / f".{LAYER}-0.abcd.part").write_text("what a kill left half written")
    graph = made(file)
    assert not list(folder.glob(".*"))
    after = {one.name: one.stat().st_mtime_ns for one in folder.glob("*.usearch")}
    assert len(after) == 3
    assert before.items() <= after.items()
    for row in (0, 600, 1499):
        assert graph.nearest_rows(file, LAYER, unit_rows(walks()[row : row + 1]), 1)[1] == [[row]]


def test_without_place_or_library_each_photo_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = planted(tmp_path / "f.npz", walks())
    (tmp_path / "f.npz.nearest").write_text("a file of somebody's")
    assert graph_of(open_features(path), LAYER) is None
    assert "there can be no index" in caplog.text
    assert "f.npz.nearest" in caplog.text
    assert "so each photo is looked at" in caplog.text
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    assert graph_of(open_features(path), LAYER) is None
    assert "each of 1,500 photos is looked at; an index makes this quick" in caplog.text


def test_numbers_that_are_not_finite_are_still_an_error(tmp_path: Path) -> None:
    path = planted(tmp_path / "f.npz", walks())
    with np.load(path) as archive:
        columns = dict(archive)
    columns[LAYER][9, 9] = np.inf
    np.savez(path, **columns)
    with pytest.raises(DataError, match=r"9\.jpg \(row 9\) has numbers that are not finite"):
        graph_of(open_features(path), LAYER)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_duplicates_that_it_proposes(suffix: str, tmp_path: Path) -> None:
    """Independent directions, and copies of some: nothing else has a cosine above 0.9."""
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(1400, WIDTH))
    rows[900:1000] = 3 * rows[100:200] + 0.01 * draw.normal(size=(100, WIDTH))
    rows[1300:1400] = rows[100:200] + 0.3 * draw.normal(size=(100, WIDTH))
    rows[150] = np.nan
    path = planted(tmp_path / f"f.{suffix}", rows.astype(np.float32))
    found, right = (
        verydeep.duplicates(path, 0.9, exact=exact, threads=1) for exact in (False, True)
    )
    assert (tmp_path / f"f.{suffix}.nearest").is_dir()
    assert 95 <= len(right.groups) <= 100
    known = {str(group): group for group in right.groups}
    same = [group for group in found.groups if str(group) in known]
    assert len(same) >= 0.95 * len(right.groups)  # in practice all
    cosines = {(m.path, m.of): m.cosine for group in right.groups for m in group.members}
    for group in same:
        for member in group.members:
            assert member.cosine == pytest.approx(cosines[member.path, member.of], abs=1e-6)


def test_equal_photos_are_duplicates_at_a_threshold_of_1(tmp_path: Path) -> None:
    rows = walks()
    rows[1000:1100] = 2 * rows[:100]
    found = verydeep.duplicates(planted(tmp_path / "f.npz", rows), 1, threads=1)
    assert len(found.groups) >= 95
    for group in found.groups:
        first, second = (int(Path(member.path).stem) for member in group.members)
        assert second == first + 1000


def test_from_the_command_line(
    verydeep: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    out, query = tmp_path / "f.npz", tmp_path / "photos" / "3.png"
    assert verydeep("features", tmp_path / "photos", "--model", model, "--out", out).status == 0
    monkeypatch.setattr(approximate, "LEAST_ROWS", 5)
    for words in (("similar", out, query, "--top", 2), ("duplicates", out)):
        first, again, exact = (verydeep(*words, *more) for more in ((), (), ("--exact",)))
        assert (first.status, again.status, exact.status) == (0, 0, 0)
        assert first.out == again.out == exact.out
        assert "approximate: 100.0 % of the ten nearest" in first.err
        assert ("building an index of" in first.err) == (words[0] == "similar")
        assert "building" not in again.err
        assert exact.err == ""
