"""`verydeep distance`: which photos are compared, what is printed, what the map shows."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verydeep.distances import About, Distance, lpips, pairing
from verydeep.distances.records import draw
from verydeep.errors import DataError
from verydeep.pictures.layout import INFERNO

from .conftest import Run
from .tiny import photo

QUICK = ("--engine", "onnxruntime", "--threads", "1", "--precision", "exact")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders that have two names in common."""
    first, second = tmp_path / "x", tmp_path / "y"
    for seed, name in enumerate(("a.png", "deep/b.png", "c.png")):
        photo(first / name, 16, 20, seed)
    for seed, name in enumerate(("a.jpg", "deep/b.webp", "d.png"), 5):
        photo(second / name, 16, 20, seed)
    return first, second


def test_pairs(folders: tuple[Path, Path]) -> None:
    x, y = map(str, folders)
    found = pairing.pair([x, y])
    assert found.pairs == [(f"{x}/a.png", f"{y}/a.jpg"), (f"{x}/deep/b.png", f"{y}/deep/b.webp")]
    assert found.unmatched == (f"{x}/c.png", f"{y}/d.png")
    assert found.reference is None
    found = pairing.pair([x])
    a, c, b = f"{x}/a.png", f"{x}/c.png", f"{x}/deep/b.png"
    assert found.pairs == [(a, c), (a, b), (c, b)]
    for given in ([a, x], [x, a], [a, f"{x}/*.png", b]):
        found = pairing.pair(given)
        assert found.reference == a
        assert found.pairs == [(a, a), (a, c), (a, b)]
    assert pairing.pair([a, "none.png"]).pairs == [(a, "none.png")]


def test_names_that_differ_by_suffix_alone_keep_it(folders: tuple[Path, Path]) -> None:
    x, y = folders
    shutil.copy(x / "a.png", x / "a.gif")
    shutil.copy(x / "a.png", y / "a.png")
    found = pairing.pair([str(x), str(y)])
    assert (str(x / "a.png"), str(y / "a.png")) in found.pairs
    assert set(found.unmatched) >= {str(x / "a.gif"), str(y / "a.jpg")}


def test_names_match_in_either_unicode_form(tmp_path: Path) -> None:
    composed = photo(tmp_path / "x" / "caf\u00e9.png", 16, 16)
    parted = photo(tmp_path / "y" / "cafe\u0301.png", 16, 16)
    pairs = pairing.pair([str(tmp_path / "x"), str(tmp_path / "y")])
    assert pairs.pairs == [(str(composed), str(parted))]
    assert pairs.unmatched == ()


def test_pairing_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 photos in each folder: a second, where it was minutes."""
    monkeypatch.setattr(pairing.os.path, "isdir", lambda _: True)
    names = [f"{index}.png" for index in range(40_000)]
    monkeypatch.setattr(pairing.photos, "find", lambda given: (f"{given[0]}/{n}" for n in names))
    began = time.perf_counter()
    assert len(pairing.pair(["x", "y"]).pairs) == 40_000
    assert time.perf_counter() - began < 20


def test_nothing_to_compare(folders: tuple[Path, Path], tmp_path: Path) -> None:
    x, y = map(str, folders)
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, message in (
        ([str(empty)], f"{empty}: no photos; expected two or more in a folder"),
        ([f"{x}/a.png"], "a.png: 1 photo; expected two or more"),
        ([str(empty), x], f"{empty}: a folder without photos"),
        (
            [x, f"{y}/deep"],
            r"no photo in .*x has a partner of its name in .*\(the first names: a, b\)",
        ),
        ([f"{x}/a.png", str(empty)], f"no photos in {empty}; expected some to compare with"),
        ([x, y, y], "is a folder and 2 more paths were given; expected a photo first"),
    ):
        with pytest.raises(DataError, match=message):
            pairing.pair(given)


def test_two_photos(verydeep: Run, folders: tuple[Path, Path]) -> None:
    a, b = folders[0] / "a.png", folders[1] / "a.jpg"
    expected = float(lpips(a, b, engine="onnxruntime", precision="exact", threads=1))
    done = verydeep("distance", a, b, *QUICK)
    assert done.status == 0
    assert done.out == f"{expected:.6g}\t{a}\t{b}\n"
    assert "lpips 0.1, vgg16" in done.err
    assert "20x16" in done.err
    done = verydeep("distance", a, b, "--json", *QUICK)
    [record] = json.loads(done.out)
    assert record["distance"] == pytest.approx(expected)
    assert sum(record["layers"].values()) == pytest.approx(expected)
    assert record["about"]["precision"] == "exact"
    assert record["line"] in done.err


def test_two_folders_and_what_goes_wrong(verydeep: Run, folders: tuple[Path, Path]) -> None:
    x, y = folders
    (y / "deep" / "b.webp").write_bytes(b"no image")
    done = verydeep("distance", x, y, "--json", *QUICK)
    assert done.status == 1
    good, bad = json.loads(done.out)
    assert good["distance"] > 0
    assert "not an image" in bad["error"]
    assert f"{x / 'c.png'}: no photo of that name in the other folder" in done.err
    assert f"{y / 'd.png'}: no photo of that name" in done.err
    assert "1 of 2 pairs could not be compared" in done.err


def test_other_metrics(verydeep: Run, folders: tuple[Path, Path]) -> None:
    a, b = folders[0] / "a.png", folders[1] / "a.jpg"
    for words in (("dists",), ("style", "--layer", "relu1_1"), ("content", "--layer", "relu2_1")):
        done = verydeep("distance", a, b, "--metric", *words, *QUICK)
        assert done.status == 0
        assert float(done.out.split("\t")[0]) > 0


def test_usage(verydeep: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    x = folders[0]
    for words, message in (
        ((x, "--map", tmp_path / "m.png"), "--map draws two photos; 3 pairs were given"),
        (
            (x / "a.png", x / "c.png", "--map", tmp_path / "m.gif"),
            "m.gif: expected a name that ends in .png",
        ),
        ((x / "a.png", x / "c.png", "--map", tmp_path / "no" / "m.png"), "make the folder first"),
        ((tmp_path / "none.png", x), "none.png: no such file"),
        ((x / "a.png", tmp_path / "none.png"), "none.png: no such file"),
        ((x, "--metric", "ssim"), "metric 'ssim' is unknown"),
    ):
        done = verydeep("distance", *words, *QUICK)
        assert done.status == 2
        assert message in done.err
        assert done.out == ""


def test_map(verydeep: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, changed = folders[0] / "a.png", tmp_path / "changed.png"
    pixels = np.asarray(Image.open(a).convert("RGB")).copy()
    pixels[2:6, 12:18] = 255 - pixels[2:6, 12:18]
    Image.fromarray(pixels).save(changed)
    done = verydeep("distance", a, changed, "--map", tmp_path / "map.png", *QUICK)
    assert done.status == 0
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    # the brightest colour of the map's panel (the scale below it aside) lies on what was changed
    panel = picture[70 : 70 + 368, -28 - 460 : -28]
    rows, columns = np.nonzero((panel == INFERNO[-1]).all(-1))
    assert 2 * 23 <= rows.mean() <= 6 * 23
    assert 12 * 23 <= columns.mean() <= 18 * 23
    done = verydeep("distance", a, a, "--metric", "dists", "--map", tmp_path / "map.png", *QUICK)
    assert done.status == 2
    assert "dists has no map" in done.err


def test_a_picture_of_photos_that_are_the_same() -> None:
    about = About("lpips 0.1", "vgg16", "0", "0", (), "e", "1", "exact", 16, 300, "0..255", "0")
    image = Image.new("RGB", (300, 16))
    same = Distance(0.0, about, {}, np.zeros((16, 300), np.float32))
    picture = np.asarray(draw(image, image, same, ("a", "b")))
    assert (picture[70 + 5, -28 - 460 : -28] == INFERNO[0]).all()
    with pytest.raises(DataError, match="the distance has no map"):
        draw(image, image, Distance(0.0, about), ("a", "b"))
