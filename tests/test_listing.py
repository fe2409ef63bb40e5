"""Data sets as people have them: told apart from what lies beside them, or refused; nothing unsaid."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verydeep import errors
from verydeep.datasets import labelled
from verydeep.datasets.check import check
from verydeep.datasets.items import read
from verydeep.datasets.layout import part_of
from verydeep.datasets.listing import listed
from verydeep.errors import DataError
from verydeep.files import photo_paths
from verydeep.preprocess import decoding

from .conftest import Run
from .tiny import photo

NO_UTF8 = pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")


def jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def folder(root: Path, names: Sequence[str]) -> Path:
    """Those files, each an image of its own; a name that ends in "/" is a folder."""
    for number, name in enumerate(names):
        path = root / "set" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(jpeg(number) if path.suffix in (".jpg", "") else b"words")
    return root / "set"


def zipped(root: Path, names: Sequence[str]) -> Path:
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename = name  # as given: zipfile turns nothing round
            image = not name.endswith("/") and os.path.splitext(name)[1] in (".jpg", "")
            archive.writestr(info, jpeg(number) if image else b"")
    return root / "set.zip"


def tarred(root: Path, names: Sequence[str]) -> Path:
    with tarfile.open(root / "set.tar", "w") as archive:
        archive.add(folder(root, names), ".")
    return root / "set.tar"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def both(*tops: str) -> list[str]:
    """Two photos of a cat and two of a dog in each."""
    return [f"{top}/{label}/{i}.jpg" for top in tops for label in ("cat", "dog") for i in (1, 2)]


LAYOUTS = {
    "an empty folder beside": [*both("train", "valid"), "models/"],
    "a Mac's": [*both("train", "valid"), "__MACOSX/train/cat/1.jpg", "__MACOSX/"],
    "a NAS's": [*both("train", "valid"), "@eaDir/train/cat/1.jpg", "train/cat/@eaDir/1.jpg"],
    "hidden": [*both("train", "valid"), ".thumbs/cat/1.jpg", "train/.ipynb_checkpoints/1.jpg"],
    "labels": [*both("train", "valid"), "labels/train/1.txt", "labels/valid/1.txt"],
    "YOLO's": [*both("images/train", "images/val"), "labels/train/1.txt"],
    "a run": [*both("train", "val"), "run/model.safetensors", "run/seen/1-cam.png.txt"],
    "dev": both("train", "dev"),
    "eval": both("Training", "EVAL"),
    "Kaggle's": both("training_set/training_set", "test_set/test_set"),
    "suffixes": both("asl_alphabet_train", "asl-alphabet-Test"),
    "one word": both("TrainImages", "valset"),
    "to predict": [*both("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/1.jpg"],
    "loose": [*both("train", "valid"), "images to predict/1.jpg"],
}


@pytest.mark.parametrize("pack", [folder, zipped, tarred])
@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_parts_are_known_whatever_lies_beside_them(
    names: list[str], pack: Callable[[Path, Sequence[str]], Path], tmp_path: Path
) -> None:
    found = labelled.find(pack(tmp_path, names))
    assert (found.classes, len(found.train), len(found.val)) == (("cat", "dog"), 4, 4)
    loose = [name for name in names if "predict" in name or "pred" in name]
    told = [line.partition("are not used: ")[2] for line in found.warnings if "no class" in line]
    assert told == loose


REFUSED = {
    "years": (both("2019", "2020"), "2019, 2020 cannot be classes, since each holds the folders cat, dog"),
    "a third": ([*both("train", "val", "more")], "train, val may be a part of the set, and more beside"),
    "a stranger": ([*both("train"), "bus/1.jpg"], "train may be a part of the set, and bus beside"),
    "by year": (both("train/2019", "train/2020", "val/2019"), "2019, 2020 cannot be classes"),
    "unlabelled": (["train/1.jpg", "test/2.jpg"], "in no class folder; expected one folder for each"),
    "vehicles": (["train/1.jpg", "test/2.jpg", "bus/3.jpg"],
                 "test, train may be parts of the set, or classes as bus is"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "line"), REFUSED.values(), ids=REFUSED)
def test_what_may_be_two_things_is_refused(names: list[str], line: str, tmp_path: Path) -> None:
    for pack in (folder, zipped):
        with pytest.raises(DataError) as caught:
            labelled.find(pack(tmp_path, names))
        assert line in str(caught.value)


def test_what_the_refusals_advise_works(tmp_path: Path) -> None:
    root = folder(tmp_path, both("2019", "2020"))
    assert len(labelled.find(root / "2019", root / "2020").val) == 4
    files = sorted(root.rglob("*.jpg"))
    table = tmp_path / "set.csv"
    table.write_text(
        "\n".join(f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files)
    )
    assert len(labelled.find(table, val_fraction=0).train) == 8


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train/1.jpg", "car/1.jpg", "bus/1.jpg"], ("bus", "car", "train")),
        (["bullet train/1.jpg", "test tube/1.jpg", "car/1.jpg"], ("bullet train", "car", "test tube")),
        (["n01/images/1.jpg", "n02/images/1.jpg"], ("n01", "n02")),
        ([*both("a"), "train/", "val/"], ("cat", "dog")),
    ],
)  # fmt: skip
def test_classes_stay_classes(names: list[str], classes: tuple[str, ...], tmp_path: Path) -> None:
    assert labelled.find(folder(tmp_path, names)).classes == classes


def test_a_part_that_is_not_labelled_is_told(tmp_path: Path) -> None:
    found = labelled.find(folder(tmp_path, [*both("train"), "test/9.jpg"]))
    assert (len(found.train), len(found.val)) == (2, 2)
    assert "images in no class folder are not used: test/9.jpg" in found.warnings[0]


def test_an_empty_name_is_not_the_folder_one_is_in(
    tmp_path: Path, verydeep: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder(tmp_path, both(".")))
    assert len(listed(".").items) == 4
    with pytest.raises(DataError, match="the name of a data set is empty; expected a folder, tar"):
        labelled.find(".", "")
    for words in (("check", ""), ("evaluate", model, ""), ("train", "", "--recipe", "probe")):
        done = verydeep(*words)
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert "the name of a data set is empty; expected a folder" in done.err


def test_words_of_parts() -> None:
    words = {
        "train": "TRAIN seg_train trainset", "val": "ValidationSet val-256 eval", "test": "Test testing",
        "": "strain models trainval latest train_test",
    }  # fmt: skip
    for part, names in words.items():
        assert {part_of(name) for name in names.split()} == {part}


# Archives


def test_archives_of_other_systems(tmp_path: Path) -> None:
    windows = ["set\\", *(name.replace("/", "\\") for name in both("set"))]
    mac = ["__MACOSX/", "set/", *both("set"), "__MACOSX/set/cat/._1.jpg", "set/.DS_Store"]
    for names in (windows, mac):
        assert labelled.find(zipped(tmp_path, names)).classes == ("cat", "dog")
    path = zipped(tmp_path, [name.replace("cat", "cafXY") for name in both("set")])
    path.write_bytes(path.read_bytes().replace(b"cafXY", "café".encode()))  # not said to be UTF-8
    assert labelled.find(path).classes == ("café", "dog")
    sample = labelled.find(zipped(tmp_path, windows), val_fraction=0).train[0]
    assert isinstance(labelled.open(sample), bytes)


def zipped_in(root: Path, encoding: str, classes: Sequence[str], *, claims_utf8: bool) -> Path:
    """Names in that encoding, and a zip that does not say so, or says that they are UTF-8."""
    names = [f"{label}/{n}.jpg".encode(encoding) for label in classes for n in range(2)]
    path = zipped(root, [f"{n:_<{len(name) - 4}}.jpg" for n, name in enumerate(names)])
    content = path.read_bytes()
    for n, name in enumerate(names):
        content = content.replace(f"{n:_<{len(name) - 4}}.jpg".encode(), name)
    for mark, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)) if claims_utf8 else ():
        for entry in re.finditer(re.escape(mark), content):
            at = entry.start() + flags
            content = content[:at] + bytes([content[at] | 8]) + content[at + 1 :]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("encoding", "classes", "shown"),
    [
        ("gbk", ["猫", "狗"], ["├¿", "╣╖"]),  # the first by itself would be an "è" in UTF-8
        ("cp437", ["clé", "été"], ["clé", "été"]),
        # the first letter of both has a backslash as its second byte
        ("shift-jis", ["ソファ", "ソース"], ["â\\âtâ@", "â\\ü[âX"]),
    ],
)
def test_names_of_old_zips(
    encoding: str, classes: list[str], shown: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each class stays one, under the same name each time; what is done is said."""
    path = zipped_in(tmp_path, encoding, classes, claims_utf8=False)
    found = labelled.find(path, val_fraction=0)
    assert found.classes == labelled.find(path).classes == tuple(sorted(shown))
    assert len(found.train) == 4
    assert all(isinstance(labelled.open(sample), bytes) for sample in found.train)
    line = f"does not say how its names are encoded, such as {shown[0]}/0.jpg; "
    assert capsys.readouterr().err.count(line) == 1


def test_a_zip_whose_names_are_not_what_it_says(tmp_path: Path) -> None:
    path = zipped_in(tmp_path, "gbk", ["猫", "狗"], claims_utf8=True)
    with pytest.raises(DataError, match=r"set\.zip: cannot be read: 'utf-8' codec can't decode"):
        labelled.find(path)


def test_archives_made_from_above_or_below(tmp_path: Path) -> None:
    """Names as `tar ../photos` and `tar -P` have them: the way to the set hides nothing of it."""
    for top in ("..", "../..", "./../x", "/home/x/.data/photos", ".photos", "."):
        names = [*both(top), f"{top}/cat/.thumbs/1.jpg", f"{top}/cat/notes.txt"]
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            info = tarfile.TarInfo(top)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
            for name in names:
                add(tar, name, jpeg())
        for path in (tmp_path / "set.tar", zipped(tmp_path, names)):
            found = listed(path)
            assert [item.labels for item in found.items] == [("cat",)] * 2 + [("dog",)] * 2, top
            assert found.unused == {".txt": 1}


def test_photos_without_an_ending_in_archives(tmp_path: Path) -> None:
    names = ["cat/1f3a", "cat/2e", "dog/9c", "dog/LICENCE.txt"]
    for pack in (folder, zipped, tarred):
        found = labelled.find(pack(tmp_path, names))
        assert found.classes == ("cat", "dog")
        assert len(found.train) + len(found.val) == 3
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    assert len(labelled.find(tmp_path / "set.tgz", val_fraction=0).train) == 3


# Tables


def rows(header: str, line: str) -> str:
    """A table of the four photos, of which `line` has {path}, {stem}, {windows} and {label}."""
    lines = [header] if header else []
    for path in both("images")[:2] + both("images")[2:]:
        label = path.split("/")[1]
        values = {
            "path": path,
            "stem": path[:-4],
            "windows": path.replace("/", "\\"),
            "label": label,
        }
        lines.append(line.format(**values))
    return "\n".join(lines) + "\n"


TABLES = {
    "image_id": rows("image_id,label", "{path},{label}"),
    "id": rows("id,breed", "{stem},{label}"),
    "species": rows("img,species", "{path},{label}"),
    "unknown": rows("where,what", "{path},{label}"),
    "text": rows("file_name,text", "{path},{label}"),
    "semicolons": rows("filename;label", "{path};{label}"),
    "tabs": rows("filename\tlabel", "{path}\t{label}"),
    "backslashes": rows("path,label", "{windows},{label}"),
    "BOM": "\ufeff" + rows('"filename","label"', '"{path}","{label}"'),
    "pandas": rows(",filename,label", "0,{path},{label}"),
    "label first": rows("label,image_path", "{label},{path}"),
    "plural": rows("image,labels", "{path},{label}"),
    "Id": rows("Image,Id", "{path},{label}"),
    "no header": rows("", "{path},{label}"),
    "no header, label first": rows("", "{label},{path}"),
    "split": rows("file_name,label,split", "{path},{label},train"),
    "commas": rows("file;label;note", "{path};{label};a, b"),
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_as_programs_write_them(text: str, encoding: str, tmp_path: Path) -> None:
    root = folder(tmp_path, both("images"))
    (root / "set.csv").write_text(text, encoding=encoding)
    found = labelled.find(root / "set.csv", val_fraction=0)
    assert (found.classes, found.warnings) == (("cat", "dog"), ())
    for sample in found.train:
        assert f"{os.sep}{found.classes[sample.label]}{os.sep}" in str(sample.source)
        assert os.path.isfile(str(sample.source))


def test_ids_of_photos_in_a_folder_beside_the_table(tmp_path: Path) -> None:
    root = folder(tmp_path, ["train/0a1.jpg", "train/0b2.jpg", "train/0c3.jpg", "test/0d4.jpg"])
    (root / "labels.csv").write_text("id,breed\n0a1,pug\n0b2,corgi\n0c3,pug\n")
    assert labelled.find(root / "labels.csv").classes == ("corgi", "pug")
    folder(tmp_path, ["test/0a1.jpg", "test/0b2.jpg", "test/0c3.jpg"])
    with pytest.raises(DataError, match=r"not one of 4 photos is there.*names that only one photo"):
        labelled.find(root / "labels.csv")


def test_names_in_a_table_may_be_spelt_in_another_way(tmp_path: Path) -> None:
    """A disk that spells "\u00e9" as two letters, and a table that has one; and the reverse."""
    for name, other in (("caf\u00e9", "cafe\u0301"), ("the\u0301", "th\u00e9")):
        root = folder(tmp_path / name, [f"{name}/1.jpg", "x/1.jpg", f"{name}.jpg", "2.jpg"])
        cells = (f"{other}/1.jpg", f"{other}.jpg", "x/1.jpg", "2.jpg")
        (root / "set.csv").write_text("path,label\n" + "".join(f"{c},{c[0]}\n" for c in cells))
        found = labelled.find(root / "set.csv", val_fraction=0).train
        ways = [os.path.relpath(str(sample.source), root) for sample in found]
        assert ways == [f"{name}/1.jpg", f"{name}.jpg", "x/1.jpg", "2.jpg"]


def test_the_first_row_where_the_first_photos_are_missing(tmp_path: Path) -> None:
    """The row of names was a photo, and one of its names a class."""
    lines = ["gone1,a", "gone2,b", "gone3,a", "1,a", "2,b"]
    for ending in ("", ".jpg"):
        rows = [line.replace(",", f"{ending},") for line in lines]
        found = listed(table_of(tmp_path, rows, "where,what")).items
        assert [item.labels[0] for item in found] == list("abaab")
        found = listed(table_of(tmp_path, rows[1:], rows[0])).items  # without names, 5 photos
        assert [item.labels[0] for item in found] == list("abaab" if ending else "baab")


@pytest.mark.parametrize(
    ("first", "rows"),
    [
        ("source_url,local,label", ["https://x/a.jpg,1.jpg,a", "https://x/b.jpg,2.jpg,b"]),
        ("original,stored,label", ["IMG_1.jpg,1.jpg,a", "IMG_2.jpg,2.jpg,b"]),
        ("picture,species", ["x1,cat.gif", "1,a", "2,b"]),
        ("pic,what", ["19,1", "18,2", "1,3", "2,1"]),
    ],
)
def test_a_photo_that_is_there_tells_more_than_an_ending(
    tmp_path: Path, first: str, rows: list[str]
) -> None:
    found = listed(table_of(tmp_path, rows, first)).items
    there = [item for item in found if os.path.isfile(str(item.source))]
    names = [Path(str(item.source)).name for item in there]
    assert names == ["1.jpg", "2.jpg"]
    assert [item.labels[0] for item in there] == [row.rpartition(",")[2] for row in rows[-2:]]


def test_a_blank_before_what_is_in_quotes(tmp_path: Path) -> None:
    lines = ['1.jpg, "a"', '2.jpg, "a, b"', ' "3.jpg", a', '" 4.jpg", "a"']
    photo(tmp_path / "set" / " 4.jpg")
    found = listed(table_of(tmp_path, lines), multi=False).items
    assert [item.labels[0] for item in found] == ["a", "a, b", "a", "a"]
    assert all(os.path.isfile(str(item.source)) for item in found)


def test_one_photo_in_two_spellings_is_one(tmp_path: Path) -> None:
    for other in ("./1.jpg", "../set/1.jpg", "1", "x/..//1.jpg"):
        (tmp_path / "set" / "x").mkdir(parents=True, exist_ok=True)
        with pytest.raises(DataError, match=r"is of class cat, and of dog in another row"):
            listed(table_of(tmp_path, ["1.jpg,cat", f"{other},dog"]))
        (item,) = listed(table_of(tmp_path, ["1.jpg,cat", f"{other},dog"]), multi=True).items
        assert item.labels == ("cat", "dog")


def test_a_column_of_classes_that_are_numbers_is_not_one_of_photos(tmp_path: Path) -> None:
    rows = [f"{1 + number % 2},{number}.jpg" for number in range(1, 7)]
    for number in range(1, 7):
        photo(tmp_path / "set" / f"{number}.jpg", seed=number)
    found = listed(table_of(tmp_path, rows, "kind,number"), multi=False)
    assert [Path(str(item.source)).name for item in found.items] == [
        f"{n}.jpg" for n in range(1, 7)
    ]
    assert [item.labels for item in found.items] == [(str(1 + n % 2),) for n in range(1, 7)]


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    def packed(names: Sequence[str], seed: int) -> None:
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
            for name in names:
                archive.write(photo(tmp_path / "one.png", seed=seed), name)
        os.replace(tmp_path / "new.zip", tmp_path / "set.zip")

    names = ("cat/1.png", "dog/2.png")
    packed(names, 1)
    before = listed(tmp_path / "set.zip").items
    first = read(before[0].source)
    packed(names, 2)
    assert read(listed(tmp_path / "set.zip").items[0].source) != first
    packed(("cat/3.png", "dog/4.png"), 3)
    with pytest.raises(OSError, match=r"cat/1\.png: cannot be unpacked"):
        read(before[0].source)


def test_tables_cut_as_most_of_their_rows_are(tmp_path: Path) -> None:
    """A row with a cell too many, or too few, does not make a table of semicolons one of commas."""
    for cut in ";\t|,":
        rows = [cut.join(cells) for cells in (("image", "label", "note"), ("1.jpg", "a", "x, y"),
                                              ("2.jpg", "b"), ("3.jpg", "a, c", ""))]  # fmt: skip
        if cut == ",":
            rows[1:] = ['1.jpg,a,"x, y"', "2.jpg,b", '3.jpg,"a, c",']
        path = table_of(tmp_path, rows[1:], rows[0])
        assert [item.labels[0] for item in listed(path, multi=False).items] == ["a", "b", "a, c"]
        table_of(tmp_path, rows, f"sep={cut}")
        assert [item.labels[0] for item in listed(path, multi=False).items] == ["a", "b", "a, c"]
    path = table_of(tmp_path, ["image;label", "1.jpg;a", "2.jpg;"], "sep=;")
    with pytest.raises(DataError, match="line 4: "):
        listed(path)


def test_utf_16_that_does_not_say_so(tmp_path: Path) -> None:
    path = table_of(tmp_path, ["1.jpg,a", "2.jpg,b"])
    path.write_bytes(path.read_text().encode("utf-16-le"))
    with pytest.raises(
        DataError, match=r"set.csv: not text in UTF-8 \(zero bytes.*save it as UTF-8"
    ):
        listed(path)


def test_names_with_blanks_in_a_table(tmp_path: Path) -> None:
    root = folder(tmp_path, [" start.jpg", "plain.jpg"])
    (root / "set.csv").write_text("path,label\n start.jpg,a\n plain.jpg,b\n")
    found = labelled.find(root / "set.csv", val_fraction=0)
    assert all(os.path.isfile(str(sample.source)) for sample in found.train)


# Several labels of a photo

SEVERAL = {
    "bars": ["1,cat|dog", "2,dog", "3,", "4,dog|bus|cat", "5,cat", "6,bus"],
    "semicolons": ["1,cat; dog", "2,dog", "3,", "4,dog; bus; cat", "5,cat", "6,bus"],
    "commas": ['1,"cat, dog"', "2,dog", "3,", '4,"dog, bus, cat"', "5,cat", "6,bus"],
    "lists": ["""1,"['cat', 'dog']\"""", "2,['dog']", "3,[]", """4,"['dog', 'bus', 'cat']\"""", "5,['cat']",
              "6,['bus']"],
}  # fmt: skip
LABELS = ({"cat", "dog"}, {"dog"}, set(), {"dog", "bus", "cat"}, {"cat"}, {"bus"})


def table_of(root: Path, lines: Sequence[str], header: str = "image,labels") -> Path:
    """A table of photos 1.jpg to 9.jpg beside it, which it calls "1" to "9"."""
    folder(root, [f"{i}.jpg" for i in range(1, 10)])
    (root / "set" / "set.csv").write_text("\n".join((header, *lines)))
    return root / "set" / "set.csv"


def several(found: labelled.Labelled) -> list[set[str]]:
    return [{found.classes[label] for label in s.labels} for s in found.train]


@pytest.mark.parametrize("lines", SEVERAL.values(), ids=SEVERAL)
def test_several_labels_in_a_cell(
    lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = labelled.find(table_of(tmp_path, lines), val_fraction=0)
    assert (found.multi, found.classes, found.warnings) == (True, ("bus", "cat", "dog"), ())
    assert several(found) == list(LABELS)
    assert found.counts().tolist() == [2, 3, 3]
    wanted = [[label in some for label in found.classes] for some in LABELS]
    assert labelled.targets(found.train, found.classes).tolist() == wanted
    assert labelled.targets(found.train, 3).dtype == np.float32
    assert " is read as of 3 classes, of which a photo may have several" in caplog.text
    assert ("multi=false reads the other way" in caplog.text) == (lines[2] == "3,[]")
    split = labelled.find(tmp_path / "set" / "set.csv", val_fraction=0.3)
    assert {s.label for s in split.val} <= {-1, 0, 1, 2}
    assert split.counts().min() > 0


def test_several_labels_in_columns_and_in_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wide = ["1,0,1,1", "2,0,0,1", "3,0,0,0", "4,1,1,1", "5,0.0,1.0,0", "6,1,0,0"]
    header = "image,bus,cat,dog"
    found = labelled.find(table_of(tmp_path, wide, header), val_fraction=0)
    assert (found.multi, several(found)) == (True, list(LABELS))
    assert "bus, cat, dog are classes, and a photo may be of several" in caplog.text
    long = ["1,cat", "1,dog", "2,dog", "3,", "4,dog", "4,bus", "4,cat", "5,cat", "6,bus"]
    table = table_of(tmp_path, long)
    assert several(labelled.find(table, val_fraction=0, multi=True)) == list(LABELS)
    with pytest.raises(
        DataError, match=r"1 is of class cat, and of dog in another row; say which: --set m"
    ):
        labelled.find(table_of(tmp_path, [line for line in long if line != "3,"]))
    assert len(labelled.find(table, val_fraction=0, multi=False).train) == 8
    one = ["1,0,1", "2,1,0", "3,0,1"]
    found = labelled.find(table_of(tmp_path, one, "image,cat,dog"), val_fraction=0)
    assert (found.multi, [s.label for s in found.train]) == (False, [1, 0, 1])
    assert "and a photo is of one; with multi=true of several" in caplog.text
    assert labelled.find(table, val_fraction=0, multi=True).multi
    with pytest.raises(
        DataError, match="images of several classes, or of none; expected one class of"
    ):
        labelled.find(table_of(tmp_path, wide, header), multi=False)


ONE = {
    "a city": ['1,"New York, NY"', '2,"New York, NY"', "3,Boston", "4,Chicago"],
    "breeds": ["1,golden retriever", "2,labrador retriever", "3,siamese cat", "4,dog"],
}
EITHER = {
    "cities": ['1,"New York, NY"', '2,"Buffalo, NY"', '3,"New York, NY"', "4,Boston"],
    "pairs": ["1,fresh;apple", "2,old;apple", "3,fresh;pear", "4,old;pear"],
    "once each": ['1,"beach, sunset"', '2,"city, night"'],
    "blanks": ["1,clear primary", "2,haze primary", "3,clear", "4,haze", "5,clear road primary"],
}


@pytest.mark.parametrize("lines", ONE.values(), ids=ONE)
def test_a_separator_in_the_name_of_a_class(
    lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = labelled.find(table_of(tmp_path, lines), val_fraction=0)
    assert (found.multi, len(found.classes)) == (False, 3 if '"' in lines[0] else 4)
    assert (
        "'New York, NY' is read as of one class; multi=true reads the other way" in caplog.text
    ) == ('"' in lines[0])


@pytest.mark.parametrize("lines", EITHER.values(), ids=EITHER)
def test_what_may_be_one_label_or_several_is_refused(lines: list[str], tmp_path: Path) -> None:
    table = table_of(tmp_path, lines)
    with pytest.raises(DataError) as caught:
        labelled.find(table)
    assert "may be one class, or 2 of a photo; say which: --set multi=true" in str(caught.value)
    assert not labelled.find(table, val_fraction=0, multi=False).multi
    assert labelled.find(table, val_fraction=0, multi=True).multi


def test_check_is_told_by_an_option(tmp_path: Path, verydeep: Run) -> None:
    table = table_of(tmp_path, EITHER["pairs"])
    done = verydeep("check", table, "--size", 8)
    assert (done.status, "(of check: --multi true, false)" in done.err) == (2, True)
    for choice, count in (("true", 4), ("false", 4)):
        done = verydeep("check", table, "--size", 8, "--multi", choice)
        assert done.out.startswith(f"{count} classes")


def test_labels_without_quotes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 2: \['1', 'cat', 'dog'\]; expected 2 cells, as in the"
    ):
        labelled.find(table_of(tmp_path, ["1,cat,dog", "2,dog"]))


def test_the_advice_on_labels_is_taken_by_train(tmp_path: Path, verydeep: Run) -> None:
    words = (
        "train",
        table_of(tmp_path, EITHER["pairs"]),
        "--recipe",
        "small-images",
        "--out",
        tmp_path / "o",
    )
    done = verydeep(*words)
    assert (done.status, "--set multi=true for several" in done.err) == (2, True)
    few = ("--set", "epochs=1", "--model", "vgg11_bn", "--width", "0.0625")
    done = verydeep(*words, "--set", "multi=true", *few)
    assert "--set multi=" not in done.err


def test_one_label_where_several_may_be(tmp_path: Path) -> None:
    root = folder(tmp_path, both("."))
    found = labelled.find(root, multi=True)
    assert (found.multi, found.train[0].labels) == (True, (0,))
    several = {"train": [(jpeg(0), [1, 1]), (jpeg(1), [0, 1]), (jpeg(2), [1, 0])]}
    assert labelled.find(several).multi
    for data, val, multi in (
        ([(jpeg(0), "a"), (jpeg(1), "b")], several["train"], None),
        (several, None, False),
    ):
        with pytest.raises(DataError, match="images of several classes, or of none"):
            labelled.find(data, val, multi=multi)


def test_a_second_table_is_read_as_the_first(tmp_path: Path) -> None:
    learn = labelled.listed(table_of(tmp_path / "a", SEVERAL["bars"]))
    judge = table_of(tmp_path / "b", ["1,cat", "2,dog"])
    assert learn.multi
    found = labelled.find(tmp_path / "a" / "set" / "set.csv", judge)
    assert [s.labels for s in found.val] == [(1,), (2,)]


# What is not used


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed that reads HEIC."""
    for module in (photo_paths, decoding):
        monkeypatch.setattr(module, "reads_heif", lambda: False)


@pytest.mark.usefixtures("no_heif")
def test_what_is_not_used_is_told(tmp_path: Path, verydeep: Run, model: Path) -> None:
    root = tmp_path / "set"
    for label in ("ant", "bee"):
        for i in range(3):
            photo(root / label / f"{i}.png", seed=i)
        for name in ("1.HEIC", "2.heic", "1.JPEG_original", "3"):
            (root / label / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (root / "bee" / "4").write_bytes(jpeg())
    line = (
        "8 files are not used: 4 .heic, 2 .jpeg_original, 2 without an ending; pip install "
        '"verydeep[heif]" to read HEIC; convert pictures to JPEG or PNG'
    )
    found = check(root, size=20)
    assert found.images == 7
    assert line in found.findings[0].text
    words = ("--model", model, "--engine", "onnxruntime")
    for verb in (("classify", root), ("features", root, "--out", tmp_path / "f.npz")):
        errors._said.clear()  # once a process, which each command is
        done = verydeep(*verb, *words)
        assert (done.status, line in done.err) == (0, True)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(root, "set")
    assert line in labelled.find(tmp_path / "set.tar").warnings[0]
    done = verydeep("evaluate", model, root, "--engine", "onnxruntime")
    assert line in done.err
    for file in root.rglob("*"):
        if file.is_file() and file.suffix.lower() != ".heic":
            file.unlink()
    with pytest.raises(DataError, match=r"no images to train on: 4 files are not used: 4 \.heic"):
        labelled.find(root)


def test_what_lies_beside_classes_is_told_too(tmp_path: Path) -> None:
    more = ["train/metadata.csv", "labels/1.txt", "labels/2.txt", "notes.txt", ".git/config"]
    names = [*both("train", "val"), *more]
    for pack in (folder, zipped, tarred):
        path = pack(tmp_path, names)
        line = f"{path}: 4 files are not used: 3 .txt, 1 .csv"
        if pack is folder:
            line += (
                f"; {path}/train/metadata.csv may hold labels: to use them, give it as the data set"
            )
        assert labelled.find(path).warnings == (line,)
    flat = folder(tmp_path / "flat", ["1.jpg", "2.jpg", "labels.csv"])
    with pytest.raises(
        DataError, match=r"expected one folder for each class; .*/set/labels.csv may"
    ):
        labelled.find(flat)


@pytest.mark.usefixtures("no_heif")
def test_pictures_of_a_shard_that_are_not_read_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        for number, suffix in enumerate(("jpg", "HEIC", "jpg", "jp2", "jpg")):
            add(tar, f"{number}.{suffix}", jpeg(number))
            add(tar, f"{number}.cls", str(number % 2).encode())
            add(tar, f"{number}.json", b"{}")
        add(tar, "5.jpg", jpeg(5))
        add(tar, "5.cls", b"1")
    found = labelled.find(f"{tmp_path}/a-{{0..0}}.tar", val_fraction=0)
    assert len(found.train) == 4
    assert (
        '2 files are not used: 1 .heic, 1 .jp2; pip install "verydeep[heif]"' in found.warnings[0]
    )


@pytest.mark.usefixtures("no_heif")
def test_heic_that_is_named_says_what_reads_it(tmp_path: Path, verydeep: Run, model: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    done = verydeep("classify", tmp_path / "a.heic", "--model", model)
    assert done.status != 0
    assert 'it looks like HEIC; pip install "verydeep[heif]" to read HEIC' in done.err + done.out


def test_heic_is_a_photo_where_it_can_be_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    for label in ("ant", "bee"):
        for name in ("1.heic", "2.HIF", "3"):
            (tmp_path / label).mkdir(exist_ok=True)
            picture = Image.open(io.BytesIO(jpeg(len(list(tmp_path.rglob("*"))))))
            heif.from_pillow(picture).save(tmp_path / label / "new.heic")
            (tmp_path / label / "new.heic").rename(tmp_path / label / name)
    found = labelled.find(tmp_path, val_fraction=0)
    assert (len(found.train), found.warnings) == (6, ())
    assert "nothing is wrong" in str(check(tmp_path, size=20))


# Names


def test_one_class_in_two_spellings(tmp_path: Path) -> None:
    names = ["caf\u00e9/1.jpg", "cafe\u0301/2.jpg", "pub/3.jpg"]
    for pack in (folder, zipped):
        found = labelled.find(pack(tmp_path, names), val_fraction=0)
        assert found.classes == ("caf\u00e9", "pub")
        assert found.counts().tolist() == [2, 1]
    labels = [name.split("/")[0] for name in names]
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "b.npz", images=pixels, labels=[0, 0, 1], classes=labels[1:])
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        for number, label in enumerate(labels):
            add(tar, f"{number}.jpg", jpeg(number))
            add(tar, f"{number}.cls", label.encode())
    for source in (tmp_path / "a.npz", tmp_path / "b.npz", f"{tmp_path}/a-{{0..0}}.tar"):
        assert labelled.find(source, val_fraction=0).classes == ("caf\u00e9", "pub")


def test_classes_that_differ_by_case_or_blanks_alone_are_told(tmp_path: Path) -> None:
    """Folders of two people: they stay two classes, which may be meant, but not without a word."""
    names = [f"{label}/{n}.jpg" for label in ("Cat", "cat", "a", "a ", "dog") for n in "12"]
    root = folder(tmp_path, names)
    line = "classes whose names differ by case or blanks alone: 'Cat' and 'cat', 'a' and 'a '"
    found = labelled.find(root, val_fraction=0)
    assert (len(found.classes), found.warnings) == (5, (f"{root}: {line}",))
    assert line in str(check(root, size=20))
    (root / "set.csv").write_text("".join(f"{name},{name[0]}\n" for name in names))
    line = "classes whose names differ by case or blanks alone: 'C' and 'c'"
    assert line in labelled.find(root / "set.csv", val_fraction=0).warnings[0]


def test_labels_that_are_numbers_sort_as_numbers(tmp_path: Path) -> None:
    pixels, labels = np.zeros((12, 4, 4, 3), np.uint8), np.arange(12)
    np.savez(
        tmp_path / "a.npz",
        train_images=pixels,
        train_labels=labels,
        val_images=pixels,
        val_labels=labels,
    )
    found = labelled.find(tmp_path / "a.npz")
    assert found.classes == tuple(map(str, range(12)))
    for part, count in (("train", 12), ("val", 3)):  # as many digits as each needs
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as tar:
            for number in range(count):
                add(tar, f"{number:03}.jpg", jpeg(number))
                add(tar, f"{number:03}.cls", str(number).encode())
    found = labelled.find(f"{tmp_path}/train-{{0..0}}.tar", f"{tmp_path}/val-{{0..0}}.tar")
    assert found.classes == tuple(map(str, range(12)))
    assert [sample.label for sample in found.val] == [0, 1, 2]


def test_links_in_a_tar(tmp_path: Path) -> None:
    root = folder(tmp_path, ["cat/1.jpg", "dog/2.jpg"])
    (root / "dog" / "hard.jpg").hardlink_to(root / "cat" / "1.jpg")
    (root / "dog" / "soft.jpg").symlink_to("../cat/1.jpg")
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "set.tar", mode) as archive:  # type: ignore[call-overload]
            archive.add(root, "set")
        found = listed(tmp_path / "set.tar").items
        assert [(*item.labels, labelled.open(item) == jpeg(0)) for item in found] == [
            ("cat", True), ("dog", False), ("dog", True), ("dog", True)
        ]  # fmt: skip


@NO_UTF8
def test_names_of_any_bytes_are_escaped_in_tables(
    tmp_path: Path, verydeep: Run, model: Path
) -> None:
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b" start.jpg", b"a, b.jpg"]
    (tmp_path / "flat").mkdir()
    for number, name in enumerate(names):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "flat"), name))).write_bytes(
            jpeg(number)
        )
    words = ("--model", model, "--engine", "onnxruntime", "--top", 1)
    table = tmp_path / "a.csv"
    done = verydeep("classify", tmp_path / "flat", *words, "--csv", table, "--json")
    assert done.status == 0
    with open(table, encoding="utf-8", newline="") as file:  # which is all UTF-8
        paths = {os.path.basename(row["path"]) for row in csv.DictReader(file)}
    assert paths == {"caf\\udce9.jpg", "new\nline.jpg", " start.jpg", "a, b.jpg"}
    listed_paths = {
        os.path.basename(os.fsencode(record["path"])) for record in json.loads(done.out)
    }
    assert listed_paths == set(names)


# Tables that could be read wrongly without a word


def read_table(root: Path, text: str, *, multi: bool | None = None) -> list[tuple[str, ...]]:
    """Part and labels of each row of a table about a.png to d.png."""
    for at, name in enumerate("abcd"):
        photo(root / f"{name}.png", seed=at)
    (root / "table.csv").write_text(text, "utf-8")
    return [(item.part, *item.labels) for item in listed(root / "table.csv", multi=multi).items]


def test_a_table_without_names_of_columns_may_divide_the_set(tmp_path: Path) -> None:
    text = "a.png,cat,train\nb.png,dog,Validation\nc.png,cat,test\n"
    assert read_table(tmp_path, text) == [("train", "cat"), ("val", "dog"), ("test", "cat")]
    assert read_table(tmp_path, "cat,a.png,\ndog,b.png,\n") == [("", "cat"), ("", "dog")]


def test_is_valid_says_what_validates(tmp_path: Path) -> None:
    text = "fname,labels,is_valid\na.png,cat,True\nb.png,dog,False\nc.png,cat,False\n"
    assert read_table(tmp_path, text) == [("val", "cat"), ("train", "dog"), ("train", "cat")]


@pytest.mark.parametrize(
    ("text", "multi", "says"),
    [
        ("a.png,cat,dog\nb.png,dog,bird\n", None, "names nothing"),
        ("0,a.png,cat\n1,b.png,dog\n", None, "names nothing"),
        ("image,label,label2\na.png,cat,dog\nb.png,dog,\n", None, "columns of labels: label, label2"),
        ("image,label,label\na.png,cat,dog\nb.png,dog,\n", None, "columns of labels: label, label"),
        ("image,labels,labels.1\na.png,cat,dog\nb.png,dog,\n", None, "columns of labels"),
        ('image,labels\na.png,"[1, 0, 1]"\nb.png,"[0, 0, 1]"\n', None, "a column of 0 and 1"),
        ("image,labels\na.png,1 0 1\nb.png,0 0 1\n", True, "a column of 0 and 1"),
        ("image,label\n", None, "is empty"),
    ],
)  # fmt: skip
def test_tables_that_would_lose_labels_are_refused(
    text: str, multi: bool | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says):
        read_table(tmp_path, text, multi=multi)
