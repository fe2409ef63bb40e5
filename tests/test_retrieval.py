"""Files of features: two formats of one content, runs that go on, the nearest, duplicates, the sheet."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

import verydeep
from verydeep import retrieval
from verydeep.errors import (
    DataError,
    ImageError,
    LayerError,
    MissingExtraError,
    ModelFileError,
    OutputError,
)
from verydeep.files.atomic import locked
from verydeep.retrieval import About, Neighbours, cosines, doubles, featurefile, nearest
from verydeep.retrieval.extraction import journal
from verydeep.retrieval.pixels import same_picture, small

from .conftest import Run
from .tiny import model_file, photo, pixels, tiny

GOLDEN = Path(__file__).parent / "golden" / "sheet.png"
FORMATS = ("npz", "parquet")
LAYERS = ("relu4_2", "relu5_2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven photos and one file that is none, the fourth."""
    for seed, name in enumerate(("a", "b", "c", "e", "f", "g", "h")):
        photo(tmp_path / "photos" / f"{name}.png", seed=seed)
    (tmp_path / "photos" / "d.jpg").write_text("no photo")
    return tmp_path / "photos"


def planted(path: Path, rows: np.ndarray, names: list[str] | None = None) -> Path:
    """A file with those features, (rows, ...), of photos that nobody took."""
    about = About(
        "builtin", "0" * 64, "vgg16", {"relu5_3": rows.shape[1:]}, "avg", None, "fast", "0"
    )
    names = names or [f"{i}.jpg" for i in range(len(rows))]
    with journal(path, about) as lines:
        for name, row in zip(names, rows, strict=True):
            if np.isnan(row).any():
                lines.add(name, None, "cannot be read")
            else:
                lines.add(name, {"relu5_3": row})
        featurefile.write(path, lines)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_row_a_photo(suffix: str, folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / f"features.{suffix}"
    file = verydeep.features(folder, out, LAYERS, "gem", model=model)
    names = [str(folder / f"{name}.png") for name in "abcefgh"]
    expected = verydeep.load(model).features(names, LAYERS, "gem")
    assert [Path(p).stem for p in file.paths] == list("abcdefgh")
    assert [bool(error) for error in file.errors] == [False] * 3 + [True] + [False] * 4
    assert "d.jpg: not an image" in file.errors[3]
    for layer in LAYERS:
        rows = file.numbers(layer)
        assert (rows.dtype, rows.shape) == (np.float32, (8, 32))
        assert np.isnan(rows[3]).all()
        assert_allclose(np.delete(rows, 3, axis=0), expected[layer], rtol=1e-5, atol=1e-6)
        assert_array_equal(np.concatenate([b for _, b in file.blocks(layer, 3)]), rows)
        assert [start for start, _ in file.blocks(layer, 3)] == [0, 3, 6]
    about = file.about
    assert (about.pool, about.size, about.precision) == ("gem", None, "fast")
    assert (about.model, about.sha256) == (str(model), verydeep.load(model).sha256)
    assert not (tmp_path / f"features.{suffix}.partial").exists()
    assert (
        str(file)
        == f"{out}: 8 photos, relu4_2 gem (32), relu5_2 gem (32), vgg11 (onnxruntime fast)"
    )
    with pytest.raises(
        DataError, match="several layers, and none is named; expected one of relu4_2, relu5_2"
    ):
        file.numbers()


def test_others_read_what_we_write(folder: Path, model: Path, tmp_path: Path) -> None:
    files = {
        suffix: verydeep.features(folder, tmp_path / f"f.{suffix}", "pool4", None, model=model)
        for suffix in FORMATS
    }
    rows = files["npz"].numbers()
    assert rows.shape == (8, 32, 2, 2)
    archive = np.load(tmp_path / "f.npz")
    assert_array_equal(archive["pool4"], rows)
    assert archive["path"].tolist() == files["npz"].paths
    assert archive["error"].tolist() == files["npz"].errors
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["path"] == files["npz"].paths
    assert table["error"] == [error or None for error in files["npz"].errors]
    assert table["pool4"][3] is None
    assert_array_equal(np.array(table["pool4"][4], np.float32), rows[4].ravel())
    for file in files.values():
        assert_array_equal(file.numbers(), rows)
        assert (file.paths, file.errors) == (files["npz"].paths, files["npz"].errors)
    assert isinstance(files["npz"].numbers(), np.memmap)
    turned = {**archive, "pool4": np.asfortranarray(rows)}
    for save in (np.savez_compressed, np.savez):  # by somebody else: still ours
        save(tmp_path / "again.npz", **turned)
        assert_array_equal(retrieval.open_features(tmp_path / "again.npz").numbers(), rows)


def test_odd_names(model: Path, tmp_path: Path) -> None:
    for name in ("na\nme.png", "名.png", "b\udcff.png"):
        photo(tmp_path / "p" / name)
    found = {
        suffix: verydeep.features(tmp_path / "p", tmp_path / f"f.{suffix}", "relu1_1", model=model)
        for suffix in FORMATS
    }
    paths = [str(tmp_path / "p" / name) for name in ("b\udcff.png", "na\nme.png", "名.png")]
    assert sorted(found["npz"].paths) == sorted(paths)
    assert str(tmp_path / "p" / "b\\udcff.png") in found["parquet"].paths


def stopping(after: int, seen: list[str]) -> Callable[[Mapping[str, Any]], None]:
    """An on_event that is stopped by Ctrl-C when that many photos have their rows."""

    def on_event(event: Mapping[str, Any]) -> None:
        assert event["event"] == "photo"
        seen.append(event["path"])
        if len(seen) == after:
            raise KeyboardInterrupt

    return on_event


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_that_was_stopped_goes_on(
    suffix: str, folder: Path, model: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    verydeep.features(folder, whole, LAYERS, model=model, batch=1)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        verydeep.features(folder, out, LAYERS, model=model, batch=1, on_event=stopping(5, seen))
    assert not out.exists()
    assert (tmp_path / f"out.{suffix}.partial").is_dir()
    more: list[str] = []
    verydeep.features(folder, out, LAYERS, model=model, batch=1, on_event=stopping(99, more))
    assert (len(seen), len(more)) == (5, 3)
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"out.{suffix}.partial").exists()


def test_what_a_kill_leaves_is_cut_off(folder: Path, model: Path, tmp_path: Path) -> None:
    """Numbers without their line, a line cut short, lines whose numbers never reached the disk."""
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    verydeep.features(folder, whole, LAYERS, model=model, batch=1)
    partial = tmp_path / "out.npz.partial"
    for damage in ("numbers", "line", "lost"):
        with pytest.raises(KeyboardInterrupt):
            verydeep.features(folder, out, LAYERS, model=model, batch=1, on_event=stopping(5, []))
        lines, numbers = partial / "rows.jsonl", partial / "relu5_2.f32"
        if damage == "numbers":
            numbers.write_bytes(numbers.read_bytes() + b"torn")
        elif damage == "line":
            lines.write_bytes(lines.read_bytes() + b'["half of a pa')
        else:
            numbers.write_bytes(numbers.read_bytes()[: 32 * 4 * 3 + 7])
        more: list[str] = []
        verydeep.features(folder, out, LAYERS, model=model, batch=1, on_event=stopping(99, more))
        assert len(more) == (5 if damage == "lost" else 3)
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()


def test_another_command_does_not_go_on(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        verydeep.features(folder, out, "relu5_2", model=model, on_event=stopping(3, []))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"pool": "max"}, "pool avg, now max"),
        ({"layers": "relu4_2"}, "layers relu5_2, now relu4_2"),
        ({"size": 64}, "size None, now 64"),
        ({"precision": "exact"}, "precision fast, now exact"),
        (
            {"model": model_file(tmp_path / "other.safetensors", tiny("vgg13"))},
            "model .*, now .*other",
        ),
    ]
    for change, words in changes:
        told = {"layers": "relu5_2", "model": model, **change}
        with pytest.raises(DataError, match=f"out.npz.partial holds the rows of another .*{words}"):
            verydeep.features(folder, out, **told)
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"photos have changed since: its row 0 is .*a\.png, where"):
        verydeep.features(folder, out, "relu5_2", model=model)
    with (
        locked(tmp_path / "out.npz.partial" / "lock", lambda: None),
        pytest.raises(DataError, match="another process is writing"),
    ):
        verydeep.features(folder, out, "relu5_2", model=model)
    assert not out.exists()


def test_bad_requests(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with pytest.raises(DataError, match=r"x\.csv: a file of features ends in \.npz or \.parquet$"):
        verydeep.features(folder, tmp_path / "x.csv", model=model)
    for old in (lambda f: verydeep.features(folder, f, model=model), verydeep.duplicates):
        with pytest.raises(
            DataError, match=r"ends in \.npz or \.parquet, no longer in \.safetensors"
        ):
            old(tmp_path / "x.safetensors")
    for wanting in (lambda p: verydeep.features(p, out, model=model), verydeep.duplicates):
        with pytest.raises(DataError, match="photos are given as ndarray; expected paths"):
            wanting([pixels(40, 40, 1)[0]])
    with pytest.raises(LayerError, match="did you mean relu5_2"):
        verydeep.features(folder, out, "relu5_4", model=model)
    with pytest.raises(DataError, match=r"maps of relu5_2 of many sizes, which no table holds"):
        verydeep.features(folder, out, "relu5_2", None, size="own", model=model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no photos in .*empty; expected photos or folders"):
        verydeep.features(tmp_path / "empty", out, model=model)
    with pytest.raises(OutputError, match=r"nowhere.* cannot be written: No such file"):
        verydeep.features(folder, tmp_path / "nowhere" / "x.npz", "relu5_2", model=model)
    (tmp_path / "d.npz").mkdir()  # said when all was computed
    with pytest.raises(
        OutputError, match=r"d\.npz: cannot be written: it is a folder; name a file in it"
    ):
        verydeep.features(folder, tmp_path / "d.npz", "relu5_2", model=model)
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "out.npz.partial").write_text("a file of somebody's")
    with pytest.raises(OutputError, match=r"out\.npz\.partial: cannot be written: File exists$"):
        verydeep.features(folder, out, "relu5_2", model=model)


def test_a_damaged_record_of_a_run_is_named(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        verydeep.features(folder, out, "relu5_2", model=model, batch=1, on_event=stopping(3, []))
    (tmp_path / "out.npz.partial" / "about.json").write_text('{"format": 2, "half')
    with pytest.raises(DataError, match=r"out\.npz\.partial: its record is damaged; delete it"):
        verydeep.features(folder, out, "relu5_2", model=model)


def test_parquet_is_an_extra(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "verydeep\[parquet\]"'):
        verydeep.features(folder, tmp_path / "x.parquet", "relu5_2", model=model)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_and_foreign_files(suffix: str, tmp_path: Path) -> None:
    good = planted(tmp_path / f"good.{suffix}", np.eye(5, dtype=np.float32))
    bad = tmp_path / f"bad.{suffix}"
    for content in (b"", b"text that is none", good.read_bytes()[:-40], good.read_bytes()[:30]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=rf"bad\.{suffix}: .*(no \.{suffix}|damaged)"):
            retrieval.open_features(bad)
    foreign = {
        "npz": lambda: np.savez(bad, x=np.eye(2)),
        "parquet": lambda: save_table(bad),
    }
    foreign[suffix]()
    with pytest.raises(
        DataError, match="no record; expected a file that `verydeep features` wrote"
    ):
        retrieval.open_features(bad)
    with pytest.raises(DataError, match="there is no such file"):
        retrieval.open_features(tmp_path / f"gone.{suffix}")


def test_what_others_saved_is_checked_as_it_is_read(tmp_path: Path) -> None:
    good, bad = planted(tmp_path / "good.npz", np.eye(5, dtype=np.float32)), tmp_path / "bad.npz"
    with np.load(good) as archive:
        columns = dict(archive)
    layer = columns.pop("relu5_3")
    for change, words in (
        ({}, "it has no relu5_3"),
        ({"relu5_3": layer[:3]}, r"relu5_3 is float32 \(3, 5\), not floats \(5, 5\)"),
        ({"relu5_3": layer[:, :4]}, r"relu5_3 is float32 \(5, 4\), not floats \(5, 5\)"),
        ({"relu5_3": layer, "path": columns["path"].astype("S")}, r"path is .S5 \(5,\), not texts"),
        (
            {"relu5_3": layer, "path": columns["path"][:3], "error": columns["error"][:3]},
            "not floats",
        ),
        (
            {"relu5_3": layer, "error": columns["error"][:3]},
            r"error is <U1 \(3,\), not texts \(5,\)",
        ),
    ):
        np.savez(bad, **{**columns, **change})
        with pytest.raises(
            DataError, match=rf"bad\.npz: no \.npz file, or a damaged one .*{words}"
        ):
            verydeep.duplicates(bad)
    content = bytearray(good.read_bytes())
    content[content.index(b"path.npy") + 60] ^= 255  # in what is deflated
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz: no \.npz file, or a damaged one"):
        verydeep.duplicates(bad)


def test_tables_that_others_saved_again(tmp_path: Path) -> None:
    """pyarrow, polars and others keep the record, and may leave out or change what it tells of."""
    import pyarrow as pa
    import pyarrow.parquet

    good = planted(tmp_path / "good.parquet", np.eye(3, dtype=np.float32))
    table = pa.parquet.read_table(good)
    flat = table.set_column(2, "relu5_3", pa.array([1.0, 2.0, 3.0]))
    lists = table.set_column(2, "relu5_3", pa.array(np.eye(3).tolist()))
    nulls = table.set_column(1, "error", pa.nulls(3))
    for changed, words in (
        (table.drop_columns(["error"]), "it has no column error"),
        (table.drop_columns(["relu5_3"]), "it has no column relu5_3"),
        (flat, "relu5_3 is of double, not of lists of 3 floats"),
        (table.set_column(0, "path", pa.array([1, 2, 3])), "path is of int64, not of texts"),
    ):
        pa.parquet.write_table(changed, tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=rf"bad\.parquet: no \.parquet file, .*{words}"):
            retrieval.open_features(tmp_path / "bad.parquet")
    for changed in (lists, nulls):
        pa.parquet.write_table(changed, tmp_path / "fine.parquet")
        file = retrieval.open_features(tmp_path / "fine.parquet")
        assert (file.numbers().tolist(), file.failed.any()) == (np.eye(3).tolist(), False)


def test_archives_that_cannot_be_unpacked(tmp_path: Path) -> None:
    good = planted(tmp_path / "good.npz", np.eye(3, dtype=np.float32))
    content = good.read_bytes()
    for at, value in ((6, 1), (8, 99)):  # it wants a password; is compressed in an unknown way
        changed = bytearray(content)
        for mark, more in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
            start = -1
            while (start := content.find(mark, start + 1)) >= 0:
                changed[start + at + more] = value
        (tmp_path / "bad.npz").write_bytes(changed)
        with pytest.raises(DataError, match=r"bad\.npz: no \.npz file, or a damaged one \("):
            retrieval.open_features(tmp_path / "bad.npz")


def save_table(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), path)


def test_the_record() -> None:
    about = About(
        "m", "ab", "vgg16", {"relu5_3": (512, 2, 3), "fc6": (8,)}, None, (4, 6), "half", "1"
    )
    assert About.from_json(about.to_json()) == about
    assert list(About.from_json(about.to_json()).layers) == ["relu5_3", "fc6"]
    newer = json.dumps({**json.loads(about.to_json()), "format": 3})
    with pytest.raises(DataError, match=r"newer verydeep: its format is 3, .* reads 2; upgrade"):
        About.from_json(newer)
    for damage in ("{}", "[]", "nonsense", '{"format": 1}', about.to_json()[:-1]):
        with pytest.raises(DataError, match="its record is damaged"):
            About.from_json(damage)
    extra = json.dumps({**json.loads(about.to_json()), "colour": "red"})
    with pytest.raises(DataError, match="its record is damaged"):
        About.from_json(extra)


@pytest.mark.parametrize("suffix", FORMATS)
def test_nearest_as_scikit_learn_has_it(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(500, 24)).astype(np.float32)
    queries = draw.normal(size=(7, 24)).astype(np.float32)
    broken = rows.copy()
    broken[::50] = np.nan
    readable = np.flatnonzero(~np.isnan(broken[:, 0]))
    index = retrieval.open_features(planted(tmp_path / f"index.{suffix}", broken))
    distances, places = (
        NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute")
        .fit(rows[readable])
        .kneighbors(queries)
    )
    for block_bytes in (24 * 4 * 37, 1 << 20):
        monkeypatch.setattr(featurefile, "BLOCK_BYTES", block_bytes)
        # and some queries at a time
        monkeypatch.setattr(cosines, "BLOCK_BYTES", block_bytes // 12)
        found = nearest._search(index, queries, 9, "relu5_3")
        assert_array_equal([[m.row for m in row] for row in found], readable[places])
        assert_allclose([[m.cosine for m in row] for row in found], 1 - distances, atol=1e-6)
        assert [m.path for m in found[0]] == [f"{row}.jpg" for row in readable[places[0]]]
    assert len(nearest._search(index, queries, 1000, "relu5_3")[0]) == len(readable)


def test_similar_computes_queries_as_the_file_was(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index.npz"
    told: dict[str, Any] = {"size": (48, 40), "precision": "exact"}
    file = verydeep.features(folder, out, LAYERS, "max", model=model, **told)
    query = str(folder / "f.png")
    for index in (out, file):
        found = verydeep.similar(index, query, 3, layer="relu5_2")
        assert isinstance(found, Neighbours)
        assert (found.query, len(found.matches)) == (query, 3)
        assert found.matches[0].path == query
        assert found.matches[0].cosine == pytest.approx(1, abs=1e-6)
        rows = file.numbers("relu5_2")
        for match in found.matches:
            a, b = rows[5].astype(float), rows[match.row].astype(float)
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert match.cosine == pytest.approx(expected, abs=1e-5)
    several = verydeep.similar(out, [query, str(folder / "b.png")], 2, layer="relu4_2")
    assert [row.matches[0].path for row in several] == [query, str(folder / "b.png")]
    assert str(several[1]).splitlines()[1] == f"   1.0000  {folder / 'b.png'}"
    pixel_query = verydeep.similar(out, np.asarray(Image.open(query)), 1, layer="relu5_2")
    assert (pixel_query.query, pixel_query.matches[0].path) == (None, query)
    with pytest.raises(
        DataError, match="several layers, and none is named; expected one of relu4_2, relu5_2"
    ):
        verydeep.similar(out, query)
    with pytest.raises(DataError, match="no layer 'relu1_1'; expected one of"):
        verydeep.similar(out, query, layer="relu1_1")
    with pytest.raises(DataError, match="top is 0"):
        verydeep.similar(out, query, 0, layer="relu5_2")
    with pytest.raises(ImageError, match=r"d\.jpg: not an image"):
        verydeep.similar(out, str(folder / "d.jpg"), layer="relu5_2")


def test_similar_wants_the_model_of_the_file(folder: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.safetensors")
    out = tmp_path / "index.npz"
    verydeep.features(folder, out, "relu5_2", model=model)
    moved = tmp_path / "moved.safetensors"
    shutil.move(model, moved)
    query = str(folder / "a.png")
    with pytest.raises(ModelFileError, match=r"index\.npz was made with .*model\.safetensors"):
        verydeep.similar(out, query)
    assert verydeep.similar(out, query, model=moved).matches[0].path == query
    other = model_file(tmp_path / "other.safetensors", threshold=0.5)
    with pytest.raises(ModelFileError, match=r"made with another model than .*; give that model"):
        verydeep.similar(out, query, model=other)


def test_duplicates_hang_together_as_scipy_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(8)
    centres = draw.normal(size=(40, 12))
    rows = centres[draw.integers(0, 40, 160)] + draw.normal(0, 0.35, size=(160, 12))
    rows = rows.astype(np.float32)
    rows[[7, 90]] = np.nan
    unit = np.nan_to_num(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64)
    near = unit @ unit.T >= 0.93
    count, labels = connected_components(csr_matrix(near), directed=False)
    expected = [np.flatnonzero(labels == i).tolist() for i in range(count)]
    for block_rows in (23, 1000):
        monkeypatch.setattr(doubles, "BLOCK_ROWS", block_rows)
        found = verydeep.duplicates(planted(tmp_path / "f.npz", rows), 0.93)
        groups = [[int(Path(m.path).stem) for m in group.members] for group in found.groups]
        assert groups == sorted(group for group in expected if len(group) > 1)
        assert max(map(len, groups)) > 4
        for group in found.groups:
            assert group.members[0].of is None
            for m in group.members[1:]:
                assert m.of is not None
                one, other = int(Path(m.path).stem), int(Path(m.of).stem)
                assert m.cosine == pytest.approx(unit[one] @ unit[other], abs=1e-6)
                earlier = unit[one] @ unit[:one].T
                assert m.cosine >= 0.93
                if earlier.max() >= 0.93:  # the nearest of those before it
                    assert other == earlier.argmax()
        assert set(found.errors) == {"7.jpg", "90.jpg"}


def test_duplicates_of_real_photos(tmp_path: Path) -> None:
    """The built-in model and the default threshold: other sizes and qualities, and nothing else."""
    source = Path(__file__).parent.parent / "examples" / "photos"
    names = ("bee", "espresso", "tabby")
    pictures = [p for p in sorted(source.iterdir()) if p.suffix in (".jpg", ".png")][:4]
    assert len(pictures) == 4, names
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        shutil.copy(picture, folder / f"{number}-original.jpg")
    image = Image.open(pictures[0]).convert("RGB")
    image.save(folder / "0-quality.jpg", quality=40)
    image.resize((image.width // 2, image.height // 2)).save(folder / "0-small.png")
    shutil.copy(pictures[1], folder / "1-copy.jpg")
    (folder / "broken.jpg").write_text("no photo")
    found = verydeep.duplicates(folder)
    groups = [[Path(m.path).name for m in group.members] for group in found.groups]
    assert groups == [
        ["0-original.jpg", "0-quality.jpg", "0-small.png"], ["1-copy.jpg", "1-original.jpg"],
    ]  # fmt: skip
    assert found.groups[1].members[1].identical
    assert not any(m.identical for m in found.groups[0].members)
    assert (found.photos, list(found.errors)) == (8, [str(folder / "broken.jpg")])
    assert "  identical  " in str(found)
    assert "3 of 8 photos are duplicates, in 2 groups" in str(found)
    with pytest.raises(DataError, match="threshold is 2; expected a cosine"):
        verydeep.duplicates(folder, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no photos in"):
        verydeep.duplicates(tmp_path / "empty")


def test_links_are_no_duplicates(verydeep: Run, model: Path, tmp_path: Path) -> None:
    """Whoever deletes what is listed must never lose the photo that a link leads to."""
    folder = tmp_path / "album"
    real = photo(folder / "m.png")
    (folder / "a.png").symlink_to("m.png")  # listed before the file itself
    os.link(real, folder / "z.png")
    (tmp_path / "other").symlink_to(folder)
    words = ("--model", model, "--json", "--layer", "relu4_2")
    for given in ([folder], [folder, tmp_path / "other" / "m.png"], [real, f"{folder}/./m.png"]):
        done = verydeep("duplicates", *given, *words)
        assert (done.status, json.loads(done.out)["groups"]) == (0, [])
        assert json.loads(done.out)["photos"] == 1
    shutil.copy(real, folder / "copy.png")
    out = tmp_path / "f.npz"
    assert verydeep("features", folder, "--model", model, "--out", out).status == 0
    for given in ([folder, tmp_path / "other"], [out]):
        words = words if given != [out] else ("--json",)
        value = json.loads(verydeep("duplicates", *given, *words).out)
        (group,) = value["groups"]
        assert [row["path"] for row in group] == [str(real), str(folder / "copy.png")]
        assert (group[1]["identical"], value["photos"]) == (True, 2)


def test_a_folder_that_is_a_link_makes_no_photo_one(model: Path, tmp_path: Path) -> None:
    first = photo(tmp_path / "real" / "a.png")
    shutil.copy(first, tmp_path / "real" / "b.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for folder in ("real", "link"):
        found = verydeep.duplicates([tmp_path / folder], model=model, keep="first")
        assert found.keep == (str(tmp_path / folder / "a.png"),)
        assert not any(member.linked for group in found.groups for member in group.members)


def test_the_largest_of_what_cannot_be_opened(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = photo(tmp_path / "set" / "a.png")
    shutil.copy(first, tmp_path / "set" / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL takes them for bombs
    found = verydeep.duplicates([tmp_path / "set"], model=model, keep="largest")
    assert found.keep == (str(first),)


def alike(folder: Path) -> dict[str, list[Path]]:
    """Pictures that are alike and not the same: pages of text, products, plain colours, nights."""
    draw = np.random.default_rng(23)
    for n in range(3):
        page, product = Image.new("RGB", (310, 438), "white"), Image.new("RGB", (300, 300), "white")
        pen = ImageDraw.Draw(page)
        for line in range(24):
            pen.text(
                (30, 30 + 16 * line), "".join(draw.choice(list("abc defgh ijkl"), 40)), "black"
            )
        colour = [(200, 40, 40), (40, 160, 60), (60, 60, 190)][n]
        ImageDraw.Draw(product).rectangle((100, 100, 200, 200), colour)
        night = draw.integers(0, 6, (150, 200, 3)).astype(np.uint8)
        night[draw.integers(0, 150, 5), draw.integers(0, 200, 5)] = 255
        pictures = {
            "page": page, "product": product, "night": Image.fromarray(night),
            "plain": Image.new("RGB", (99, 99), (60 * n + 40, 80, 90)),
        }  # fmt: skip
        for name, picture in pictures.items():
            picture.save(folder / f"{name}{n}.png")
    return {name: sorted(folder.glob(f"{name}*")) for name in pictures}


def test_what_is_alike_is_not_the_same(tmp_path: Path) -> None:
    """Pages, products and nights have cosines up to 0.998; whoever trusts that deletes them."""
    kinds = alike(tmp_path)
    rows = [path for paths in kinds.values() for path in paths]
    index = planted(tmp_path / "f.npz", np.ones((12, 8), np.float32), list(map(str, rows)))
    assert verydeep.duplicates(index).groups == ()
    pages = [*map(str, kinds["page"]), "gone.png"]  # of which nothing but its features is known
    index = planted(tmp_path / "f.npz", np.ones((4, 8), np.float32), pages)
    assert [len(group.members) for group in verydeep.duplicates(index).groups] == [2]
    for name, paths in kinds.items():
        copy = tmp_path / f"small {name}.png"
        with Image.open(paths[1]) as image:
            image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(copy)
        if name == "night":
            continue  # nothing but noise, which is another one at another size
        names = [*map(str, paths), str(copy)]
        index = planted(tmp_path / "f.npz", np.ones((4, 8), np.float32), names)
        result = verydeep.duplicates(index)
        if (
            name == "plain"
        ):  # they may be two of anything: told, and never to be deleted for another
            assert (result.groups, result.blank) == ((), tuple(names))
            assert result.to_dict()["blank"] == names
            assert f"no duplicates: {names[0]}, " in str(result)
            continue
        assert result.blank == ()
        (group,) = result.groups
        assert [m.path for m in group.members] == [str(paths[1]), str(copy)]


def test_copies_lie_over_each_other(tmp_path: Path) -> None:
    photos = Path(__file__).parent.parent / "examples" / "photos"
    bee, koala = (Image.open(photos / f"{name}.jpg").convert("RGB") for name in ("bee", "koala"))
    width, height = bee.size
    copies = {
        "small": bee.resize((width // 3, height // 3)), "mirrored": ImageOps.mirror(bee),
        "cropped": bee.crop((width // 20, height // 30, width * 19 // 20, height)),
        "turned": bee.rotate(3, Image.Resampling.BICUBIC),
        "darker": ImageEnhance.Brightness(bee).enhance(0.7),
        "richer": ImageEnhance.Color(bee).enhance(1.4),
    }  # fmt: skip
    for name, copy in {**copies, "koala": koala}.items():
        copy.save(tmp_path / "copy.jpg", quality=50)
        same = same_picture(small(str(photos / "bee.jpg")), small(str(tmp_path / "copy.jpg")))
        assert same == (name != "koala"), name
    assert same_picture(small(str(photos / "bee.jpg")), small(str(tmp_path / "gone.jpg"))) is None


def test_pixels_are_those_of_the_files_as_they_are(tmp_path: Path) -> None:
    """The same program asks again, after a photo was replaced."""
    photos = Path(__file__).parent.parent / "examples" / "photos"
    names = ["a.jpg", "b.jpg"]
    for name in names:
        shutil.copy(photos / "bee.jpg", tmp_path / name)
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"more")  # the same picture, other bytes
    index = planted(
        tmp_path / "f.npz", np.ones((2, 8), np.float32), [str(tmp_path / name) for name in names]
    )
    assert len(verydeep.duplicates(index).groups) == 1
    shutil.copy(photos / "koala.jpg", tmp_path / "b.jpg")
    assert not verydeep.duplicates(index).groups


def test_what_is_gone_is_joined_by_features_alone_and_that_is_said(
    verydeep: Run, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    one = photo(folder / "a.png", seed=1)
    (folder / "b.png").write_bytes(one.read_bytes())
    photo(folder / "c.png", seed=2)
    index = tmp_path / "f.npz"
    assert verydeep("features", folder, "--model", model, "--out", index).status == 0
    whole = retrieval.duplicates(index, 0.5)
    assert whole.gone == ()
    assert "gone" not in whole.to_dict()
    (folder / "c.png").unlink()
    near = retrieval.duplicates(index, 1e-6)
    assert [Path(path).name for path in near.gone] == ["c.png"]
    assert "no more there, and so joined by features alone: " in str(near)
    assert near.to_dict()["gone"] == list(near.gone)


def test_thresholds_that_are_none(tmp_path: Path) -> None:
    for wrong in ("0.9", float("nan"), 0, 1.5, None):
        with pytest.raises(DataError, match="expected a cosine above 0, at most 1"):
            retrieval.duplicates(tmp_path, wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(folder: Path, model: Path, tmp_path: Path) -> None:
    """Taken as Python's are, and of Python's kinds in what comes out; True and False are none."""
    planted(tmp_path / "f.npz", np.eye(3, dtype=np.float32))
    for threshold in (np.float32(0.5), np.float64(0.5), np.array(0.5)[()], 0.5, np.int64(1), 1):
        found = verydeep.duplicates(tmp_path / "f.npz", threshold)
        assert (type(found.threshold), found.threshold) == (float, float(threshold))
    for bad in (True, np.True_, np.float32("nan"), np.float32(1.5), "0.5", np.array([0.5])):
        with pytest.raises(DataError, match="expected a cosine above 0"):
            verydeep.duplicates(tmp_path / "f.npz", bad)  # type: ignore[arg-type]
    for top in (
        True,
        np.True_,
        1.0,
        np.float32(1),
        "1",
        np.array(3),
    ):
        with pytest.raises(DataError, match=r"top is .*; expected a whole number"):
            verydeep.similar(tmp_path / "f.npz", [], top)  # type: ignore[arg-type]
    for size in (np.int32(32), np.array([32, 40]), (np.int64(32), 40)):
        size = tuple(size) if isinstance(size, np.ndarray) else size
        loaded = verydeep.load(model, size=size)  # type: ignore[arg-type]
        sides = loaded.preprocess.sides
        assert sides in ((32, 32), (32, 40))
        assert {*map(type, sides)} == {int}
        file = verydeep.features(folder, tmp_path / "s.npz", "relu1_1", model=model, size=size)  # type: ignore[arg-type]
        again = retrieval.open_features(file.path)
        assert again.about.size in (32, (32, 40))
        assert len(verydeep.similar(again, folder / "a.png", np.int32(1)).matches) == 1
        file.path.unlink()
    record = verydeep.preprocess.Preprocess(crop_size=np.int64(8), resize_size=np.uint8(9))
    assert (type(record.crop_size), type(record.resize_size)) == (int, int)


def test_what_to_keep(verydeep: Run, tmp_path: Path) -> None:
    folder = tmp_path / "album"
    small, large = photo(folder / "a.png", 48, 40), folder / "b.png"
    with Image.open(small) as image:
        image.resize((96, 80), Image.Resampling.NEAREST).save(large)
    shutil.copy(small, folder / "c.png")
    os.utime(large, (1e9, 1e9))
    os.utime(folder / "c.png", (1e8, 1e8))
    (tmp_path / "link.png").symlink_to(folder / "c.png")
    rows = np.ones((3, 8), np.float32)
    paths = [str(folder / name) for name in ("a.png", "b.png", "c.png")]
    index = planted(tmp_path / "f.npz", rows, paths)
    for how, name in (("first", "a.png"), ("largest", "b.png"), ("oldest", "c.png")):
        done = verydeep("duplicates", index, "--keep", how)
        assert (done.status, done.out) == (0, f"{folder / name}\n")
    done = verydeep("duplicates", index, "--keep", "best")
    assert (done.status, "keep is 'best'; expected first, largest, oldest" in done.err) == (2, True)
    paths.append(str(tmp_path / "link.png"))
    index = planted(tmp_path / "f.npz", np.ones((4, 8), np.float32), paths)
    done = verydeep("duplicates", index, "--keep", "first")
    assert done.out.splitlines() == [paths[0], paths[2]]  # without it the link leads nowhere
    assert (
        f"identical  {paths[2]}  (a link leads to it: keep it)" in verydeep("duplicates", index).out
    )
    done = verydeep("duplicates", index, "--keep", "first", "--json")
    assert json.loads(done.out)["keep"] == [paths[0], paths[2]]


def test_alike_photos_are_not_listed_pair_by_pair(tmp_path: Path) -> None:
    rows = np.ones((1000, 8), np.float32) + np.random.default_rng(0).normal(0, 1e-3, (1000, 8))
    index = planted(tmp_path / "f.npz", rows.astype(np.float32))
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        found = verydeep.duplicates(index)
    finally:
        sys.setprofile(None)
    assert [len(group.members) for group in found.groups] == [1000]
    assert calls < 200 * 1000  # of 499,500 pairs


def test_threshold_1_finds_equal_pictures(model: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    row = draw.normal(size=(30, 96))
    rows = np.concatenate([row, 3 * row, row + 1e-4 * draw.normal(size=row.shape), row + 0.1])
    found = verydeep.duplicates(planted(tmp_path / "f.npz", rows.astype(np.float32)), 1)
    assert [[m.path for m in group.members] for group in found.groups] == [
        [f"{i}.jpg", f"{i + 30}.jpg", f"{i + 60}.jpg"] for i in range(30)
    ]
    for seed in range(9):
        path = photo(tmp_path / "p" / f"{seed}.png", 48, 40, seed=seed)
        with Image.open(path) as image:
            image.save(tmp_path / "p" / f"{seed}.bmp")
    found = verydeep.duplicates(tmp_path / "p", 1, model=model, layer="relu5_2", batch=2)
    assert [len(group.members) for group in found.groups] == [2] * 9
    assert not any(m.identical for group in found.groups for m in group.members)


def test_what_has_no_features_in_a_file_is_named(verydeep: Run, tmp_path: Path) -> None:
    rows = np.eye(4, dtype=np.float32)
    rows[1:3] = np.nan
    planted(tmp_path / "f.npz", rows)
    done = verydeep("duplicates", tmp_path / "f.npz")
    assert done.status == 1
    assert "2 photos have no features in it, such as 1.jpg: cannot be read" in done.err


def test_a_run_removes_its_rows_before_another_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that took the lock in between lost the rows it had just begun with."""
    held: list[str] = []

    def removed(folder: Path, **how: Any) -> None:
        def refuse() -> None:
            held.append("held")
            raise InterruptedError

        with suppress(InterruptedError), locked(folder / "lock", refuse):
            held.append("free")
        rmtree(folder, **how)

    rmtree = shutil.rmtree
    monkeypatch.setattr("verydeep.retrieval.extraction.shutil.rmtree", removed)
    planted(tmp_path / "f.npz", np.eye(2, dtype=np.float32))
    assert held == ["held"]
    assert [one.name for one in tmp_path.iterdir() if "f.npz" in one.name] == ["f.npz"]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    about = About("builtin", "0" * 64, "vgg16", {"relu5_3": (3,)}, "avg", None, "fast", "0")
    out = tmp_path / "f.npz"
    with journal(out, about) as lines:
        for name, value in (("a.jpg", 1.0), ("b.jpg", np.nan)):
            lines.add(name, {"relu5_3": np.array([1.0, value, 1.0], np.float32)})
        featurefile.write(out, lines)
    with pytest.raises(DataError, match=r"f\.npz: relu5_3 of b\.jpg \(row 1\) has .* not finite"):
        verydeep.duplicates(out)
    with pytest.raises(DataError, match="not finite"):
        nearest._search(retrieval.open_features(out), np.ones((1, 3), np.float32), 1, "relu5_3")


def test_one_bad_query_stops_nothing(
    verydeep: Run, folder: Path, model: Path, tmp_path: Path
) -> None:
    out, sheet = tmp_path / "f.npz", tmp_path / "sheet.png"
    assert verydeep("features", folder, "--model", model, "--out", out).status == 1
    bad, queries = folder / "d.jpg", (folder / "a.png", folder / "d.jpg", folder / "b.png")
    done = verydeep("similar", out, *queries, "--top", 1, "--json", "--sheet", sheet)
    assert done.status == 1
    rows = json.loads(done.out)
    assert [row["query"] for row in rows] == [str(query) for query in queries]
    assert [len(row.get("matches", [])) for row in rows] == [1, 0, 1]
    assert "not an image" in rows[1]["error"]
    assert sheet.exists()
    done = verydeep("similar", out, *queries)
    assert (done.status, str(bad) in done.out) == (1, False)
    assert "d.jpg: not an image" in done.err
    assert "1 of 3 files could not be read" in done.err
    assert verydeep("similar", out, bad).status == 2


def test_photos_are_found_from_elsewhere(
    verydeep: Run, folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are kept as they were given; the record says from where they were seen."""
    sheet, elsewhere = tmp_path / "sheet.png", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    verydeep("features", "photos", "--model", model, "--out", "f.npz")
    monkeypatch.chdir(elsewhere)
    query = folder / "a.png"
    words = ("similar", "../f.npz", query, "--top", 2, "--sheet", sheet)
    done = verydeep(*words)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1] == "   1.0000  photos/a.png"
    first = retrieval.similar("../f.npz", str(query), 1).matches[0]
    assert (first.path, first.photo) == ("photos/a.png", str(query))
    (tmp_path / "photos").rename(tmp_path / "moved")
    words = ("similar", "../f.npz", tmp_path / "moved" / "a.png", "--top", 2, "--sheet", sheet)
    done = verydeep(*words)
    assert done.status == 0
    assert f"2 photos on the sheet cannot be read, such as {query}; if they were moved" in done.err
    (elsewhere / "photos").symlink_to(tmp_path / "moved")  # here they are
    assert verydeep(*words).err == ""


def test_a_file_of_the_first_format_is_read(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    verydeep.features(folder, out, "relu5_2", model=model)
    with np.load(out) as archive:
        columns = dict(archive)
    record = json.loads(str(columns["about"]))
    assert (record.pop("folder"), record["format"]) == (os.getcwd(), 2)
    columns["about"] = np.array(json.dumps({**record, "format": 1}))
    np.savez(out, **columns)
    first = verydeep.similar(out, str(folder / "a.png"), 1).matches[0]
    assert first.photo == first.path == str(folder / "a.png")


@pytest.mark.parametrize("column", ["vgg11", "vgg13"])
def test_the_default_layer_is_the_last_relu(
    verydeep: Run, column: str, folder: Path, tmp_path: Path
) -> None:
    model, out = model_file(tmp_path / "m.safetensors", tiny(column)), tmp_path / "f.npz"
    done = verydeep("features", folder, "--model", model, "--out", out)
    assert ", relu5_2 avg (32), " in done.out
    assert verydeep("similar", out, folder / "a.png", "--top", 1).status == 0
    assert verydeep("duplicates", folder, "--model", model).status == 1  # one cannot be read


def test_the_sheet(tmp_path: Path) -> None:
    """Against a golden that was looked at; tests/golden/sheet_make.py makes it again."""
    from .golden.sheet_make import neighbours, picture

    drawn = np.asarray(picture(tmp_path), np.int16)
    with Image.open(GOLDEN) as golden:
        expected = np.asarray(golden.convert("RGB"), np.int16)
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).mean() < 2
    out, rows = tmp_path / "sheet.jpg", neighbours(tmp_path)
    retrieval.contact_sheet(rows, out)
    with Image.open(out) as image:
        assert image.format == "JPEG"
    with pytest.raises(
        OutputError, match=r"sheet\.gif: expected a name that ends in \.png or \.jpg"
    ):
        retrieval.contact_sheet(rows, tmp_path / "sheet.gif")
    with pytest.raises(DataError, match="no queries to draw"):
        retrieval.contact_sheet([], out)


def test_a_sheet_goes_on_below_where_there_are_many(tmp_path: Path) -> None:
    def sheet(count: int) -> tuple[int, int]:
        file = str(photo(tmp_path / "a.png"))
        row = retrieval.Neighbours(
            file, tuple(retrieval.Match(file, 1.0, i, file) for i in range(count))
        )
        retrieval.contact_sheet([row], tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            return image.size

    (six, one), (ten, two) = sheet(6), sheet(10)
    assert six == ten
    assert two > 1.8 * one


def test_commands(verydeep: Run, folder: Path, model: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "f.npz", tmp_path / "sheet.png"
    done = verydeep(
        "features", folder, "--model", model, "--layer", "relu5_2", "--size", "40x48",
        "--pool", "gem", "--out", out,
    )  # fmt: skip
    assert (done.status, done.out) == (
        1,
        f"{out}: 8 photos, relu5_2 gem (32), vgg11 (onnxruntime fast)\n",
    )
    assert "d.jpg: not an image" in done.err
    assert "1 of 8 files could not be read" in done.err
    done = verydeep("similar", out, folder / "a.png", folder / "b.png", "--top", 2, "--json",
                    "--sheet", sheet)  # fmt: skip
    assert done.status == 0
    rows = json.loads(done.out)
    assert [row["matches"][0]["path"] for row in rows] == [row["query"] for row in rows]
    assert rows[0]["matches"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    with Image.open(sheet) as image:
        assert image.width > 400
    done = verydeep("similar", out, folder / "a.png", "--top", 2)
    assert done.out.splitlines()[:2] == [str(folder / "a.png"), f"   1.0000  {folder / 'a.png'}"]
    shutil.copy(folder / "a.png", folder / "z.png")
    done = verydeep("duplicates", folder, "--model", model, "--layer", "relu4_2",
                    "--threshold", 1, "--json")  # fmt: skip
    assert done.status == 1
    (group,) = json.loads(done.out)["groups"]
    assert group[1] == {
        "path": str(folder / "z.png"), "of": str(folder / "a.png"), "cosine": 1.0,
        "identical": True,
    }  # fmt: skip
    done = verydeep("features", folder / "d.jpg", "--model", model, "--layer", "relu5_2",
                    "--out", tmp_path / "none.npz")  # fmt: skip
    assert done.status == 2
    done = verydeep("features", folder, "--out", tmp_path / "x.npz", "--size", "big")
    assert (done.status, done.out) == (2, "")
    assert "size is 'big'" in done.err
    done = verydeep("similar", out, tmp_path / "*.gif")
    assert done.status == 2
    assert "no such file" in done.err


def test_ctrl_c_says_how_to_go_on(
    verydeep: Run, folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verydeep.files.progress import Progress

    count = 0

    def interrupted(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    out = tmp_path / "f.npz"
    words = ("features", folder, "--model", model, "--layer", "relu5_2", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__enter__", interrupted)  # before anything is done
        patch.setattr(Progress, "__exit__", lambda *_: None)
        count = 2
        assert "verydeep: stopped" in (early := verydeep(*words)).err
        assert "what was done" not in early.err
        count = 0
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", interrupted)
        done = verydeep(*words)
    assert (done.status, done.out) == (130, "")
    assert f"what was done is in {out}.partial; the same command goes on" in done.err
    assert len((tmp_path / "f.npz.partial" / "rows.jsonl").read_text().splitlines()) == 3
    assert verydeep(*words).status == 1
    assert len(retrieval.open_features(out)) == 8


def test_pixels_are_not_touched(folder: Path, model: Path, tmp_path: Path) -> None:
    verydeep.features(folder, tmp_path / "f.npz", "relu5_2", model=model)
    image = pixels(40, 40, 1)[0]
    before = image.copy()
    verydeep.similar(tmp_path / "f.npz", image)
    assert_array_equal(image, before)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_open_file_is_never_another(suffix: str, tmp_path: Path) -> None:
    """Another one of as many rows comes to its place, one of fewer, and none."""
    path = planted(tmp_path / f"f.{suffix}", np.eye(5, dtype=np.float32))
    file = retrieval.open_features(path)
    assert file.paths[3] == "3.jpg"
    assert_array_equal(pickle.loads(pickle.dumps(file)).numbers(), np.eye(5))
    whole = file.numbers()
    for rows in (5, 3):
        planted(tmp_path / f"new.{suffix}", 2 * np.eye(rows, dtype=np.float32)).replace(path)
        assert not file.unchanged
        words = r"f\.\w+: it has changed since it was opened; open it again$"
        for read in (file.numbers, lambda: file.errors, lambda: file.paths_of([0])):
            with pytest.raises(DataError, match=words):
                read()
    assert_array_equal(whole, np.eye(5))
    assert len(retrieval.open_features(path).numbers()) == 3
    path.unlink()
    assert not file.unchanged
