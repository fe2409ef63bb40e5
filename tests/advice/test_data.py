"""Advice on data to train on, followed: folders, tables, archives, shards, arrays and Datasets."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verydeep import train
from verydeep.datasets import labelled, objects
from verydeep.datasets.check import check
from verydeep.evaluation import evaluate
from verydeep.training.data.feed import Feed
from verydeep.training.data.views import pictures
from verydeep.training.recipes import Config

from .. import test_listing as lists
from .. import test_training_data as forms
from .. import test_training_streams as streams
from ..conftest import Run
from ..labelled import CLASSES, FIT, arrays, images, in_memory, trained
from ..tiny import NAMES, model_file, photo
from .following import Row, all_followed, evaluated, follows, refused, said, taken

PIXELS, LABELS = images(12, 0)


def npz(path: Path, **held: Any) -> object:
    """What an .npz of these arrays is read as."""
    np.savez(path, **held)
    return objects.arrays(path)


def read(data: object, val: object = None, **how: Any) -> labelled.Labelled:
    return labelled.find(data, val, **{"val_fraction": 0, **how})


@follows(
    "{}: {} may be a part of the set, and {} beside it another part or a class; move away what does not "
    "belong to it, or list paths and labels in a CSV",
    "{}: {} cannot be classes, since each holds the folders {}; give one of them as the data set and "
    "another one to --val, or list paths and labels in a CSV",
    ": all of them are to validate with; expected train/ too, or no division at all",
    "{}; expected one folder of images for each class",
    "{}: no images; expected a data set to validate with",
    "{}: {} may be parts of the set, or classes as {} is; put folders of classes into parts, or list paths "
    "and labels in a CSV",
)  # fmt: skip
def test_folders(tmp_path: Path, verydeep: Run) -> None:
    def table(root: Path) -> None:
        rows = [f"{f.relative_to(root)},{f.parent.name}" for f in sorted(root.rglob("*.jpg"))]
        (root / "set.csv").write_text("\n".join(rows))
        read(root / "set.csv")

    def stranger(place: str, _: str, beside: str) -> None:
        table(Path(place))
        shutil.move(Path(place) / beside, tmp_path / "away")
        read(place)

    def vehicles(place: str, parts: str, stranger: str) -> None:
        table(Path(place))
        (Path(place) / stranger).rename(tmp_path / stranger)
        for label in "ab":
            for part in parts.split(", "):
                photo(Path(place) / part / label / "1.jpg")
        assert read(place).classes == ("a", "b")

    def years(place: str, _: str, __: str) -> None:
        words = (Path(place) / "2019", "--val", Path(place) / "2020", "--set", "sizes=32")
        assert "cannot be classes" not in verydeep("check", *words[:3]).err
        read(words[0], words[2])
        table(Path(place))

    def undivided(_: str = "") -> None:
        read(lists.folder(tmp_path / "v", lists.both("train")))
        read(lists.folder(tmp_path / "w", lists.both(".")))

    a, b = (
        lists.folder(tmp_path / name, [*lists.both(*tops), *more])
        for name, tops, more in (("a", ["train"], ["bus/1.jpg"]), ("b", ["2019", "2020"], []))
    )  # fmt: skip
    c = lists.folder(tmp_path / "c", ["train/1.jpg", "test/2.jpg", "bus/3.jpg"])
    v = lists.folder(tmp_path / "v", lists.both("val"))
    nothing = lists.folder(tmp_path / "n", ["cat/1.txt", "dog/2.txt"])
    good = lists.folder(tmp_path / "good", lists.both("."))
    rows: list[Row] = [
        ("{}: {} may be a part of the set, and {} beside it another part or a class; move away what does "
         "not belong to it, or list paths and labels in a CSV", lambda: read(a), stranger),
        ("{}: {} cannot be classes, since each holds the folders {}; give one of them as the data set and "
         "another one to --val, or list paths and labels in a CSV", lambda: read(b), years),
        ("{}: {} may be parts of the set, or classes as {} is; put folders of classes into parts, or list "
         "paths and labels in a CSV", lambda: read(c), vehicles),
        (": all of them are to validate with; expected train/ too, or no division at all",
         lambda: read(v), undivided),
        ("{}; expected one folder of images for each class", lambda: read(nothing), lambda _: read(good)),
        ("{}: no images; expected a data set to validate with", lambda: read(good, nothing),
         lambda _: read(good, good)),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "expected a folder, tar or zip of class folders, a CSV of paths and labels, an .npz of images, or "
    "WebDataset shards",
    "{}: a class is named {}, of {} characters; expected a name on one line, of {} at most",
    "val_fraction is {}; expected 0 or more and less than 1",
    "{}: {} is no text in UTF-8; expected a label", "{}: classes names one twice; expected each once",
)  # fmt: skip
def test_forms(tmp_path: Path) -> None:
    def named(label: str) -> object:
        pixels, _ = images(4, seed=0)
        np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1, 0, 1], classes=["ant", label])
        return read(tmp_path / "a.npz")

    def every() -> None:
        root = lists.folder(tmp_path / "x", lists.both("."))
        for label in ("cat", "dog"):  # the forms want .png
            for file in (root / label).glob("*.jpg"):
                file.rename(file.with_suffix(".png"))
        for form in ("folder", "tar", "zip", "csv", "shards"):
            assert len(read(forms.FORMS[form](root)).classes) == 2, form
        read(arrays(tmp_path / "b.npz"))

    def label(content: bytes) -> object:
        import tarfile

        with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
            for at, text in enumerate((content, b"dog")):
                lists.add(tar, f"{at}.jpg", lists.jpeg(at))
                lists.add(tar, f"{at}.cls", text)
        return read(str(tmp_path / "s-{0..0}.tar"))

    rows: list[Row] = [
        ("expected a folder, tar or zip of class folders, a CSV of paths and labels, an .npz of images, or "
         "WebDataset shards", lambda: read(tmp_path / "none"), every),
        ("{}: a class is named {}, of {} characters; expected a name on one line, of {} at most",
         lambda: named("x" * 1001), lambda _, __, ___, most: named("x" * int(most))),
        ("{}: classes names one twice; expected each once", lambda: named("ant"), lambda _: named("bee")),
        ("val_fraction is {}; expected 0 or more and less than 1",
         lambda: read(arrays(tmp_path / "c.npz"), val_fraction=1),
         lambda _: [read(arrays(tmp_path / "c.npz"), val_fraction=f) for f in (0, 0.99)]),
        ("{}: {} is no text in UTF-8; expected a label", lambda: label(b"\xff\xfe"),
         lambda _, __: label(b"cat")),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "expected what numpy.savez writes", "expected plain arrays, no objects",
    "expected both, one label an image",
    "expected uint8 (n, height, width, 3 or 1)",
    "expected train_images (n, height, width, 3) uint8, train_labels (n,), and perhaps val_images, "
    "val_labels and classes",
)  # fmt: skip
def test_arrays_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"

    def text() -> object:
        file.write_text("no arrays")
        return objects.arrays(file)

    good = {"train_images": PIXELS, "train_labels": LABELS}
    rows: list[Row] = [
        ("expected what numpy.savez writes", text, lambda: npz(file, **good)),
        ("expected plain arrays, no objects",
         lambda: npz(file, **good, classes=np.array(["a", 3, None], object)),
         lambda: npz(file, **good)),
        ("expected both, one label an image", lambda: npz(file, train_images=PIXELS),
         lambda: npz(file, **good)),
        ("expected uint8 (n, height, width, 3 or 1)",
         lambda: npz(file, **{**good, "train_images": PIXELS / 255}),
         lambda: [npz(file, **{**good, "train_images": PIXELS[..., :c]}) for c in (3, 1)]),
        ("expected train_images (n, height, width, 3) uint8, train_labels (n,), and perhaps val_images, "
         "val_labels and classes", lambda: npz(file, x=PIXELS),
         lambda: npz(file, **good, val_images=PIXELS, val_labels=LABELS, classes=np.array(CLASSES))),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "in no class folder; expected one folder for each class",
    "expected images of two classes or more",
)  # fmt: skip
def test_folders_of_classes(tmp_path: Path) -> None:
    def learn(folder: Path) -> object:
        settings = {"epochs": 1, "batch": 4, "head": "small", "size": 32, "grow": "1", "warmup": 1}
        return train("small-images", folder, out=tmp_path / f"out {folder.name}", model="vgg11_bn",
                     width=1 / 16, device="cpu", settings=settings)  # fmt: skip

    flat, one = tmp_path / "flat", tmp_path / "one"
    for seed in range(6):
        photo(flat / f"{seed}.png", seed=seed)
        photo(one / "a" / f"{seed}.png", seed=seed)
    said("in no class folder; expected one folder for each class", refused(lambda: learn(flat)))
    for seed in range(6):
        folder = flat / ("a", "b")[seed % 2]
        folder.mkdir(exist_ok=True)
        (flat / f"{seed}.png").rename(folder / f"{seed}.png")
    learn(flat)
    said("expected images of two classes or more", refused(lambda: learn(one)))
    for seed in range(6):
        photo(one / "b" / f"{seed}.png", seed=seed + 6)
    learn(one)


@follows("{} may hold labels: to use them, give it as the data set")
def test_a_table_that_lies_beside(tmp_path: Path) -> None:
    words = "{} may hold labels: to use them, give it as the data set"
    flat = lists.folder(tmp_path, ["1.jpg", "2.jpg", "labels.csv"])
    (flat / "labels.csv").write_text("1.jpg,a\n2.jpg,b\n")
    (table,) = said(words, refused(lambda: read(flat)).partition("for each class; ")[2])
    assert read(table).classes == ("a", "b")


@follows("; expected names, such as {}")
def test_labels_that_are_numbers(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.npz"
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(path, images=pixels, labels=[0, 1])
    (name,) = said("; expected names, such as {}", refused(lambda: evaluate(model, path)))
    np.savez(path, images=pixels, labels=[evaluated(name)] * 2)
    assert evaluate(model, path).n == 2


@follows(
    "{}: does not say how its names are encoded, such as {}; if this one is wrong, unpack it with a "
    "program that knows, and give the folder"
)
def test_names_of_old_zips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(lists.zipped_in(tmp_path, "gbk", ["猫", "狗"], claims_utf8=False))
    said(
        "{}: does not say how its names are encoded, such as {}; if this one is wrong, unpack it with a "
        "program that knows, and give the folder", caplog.text,
    )  # fmt: skip
    names = [f"{label}/{n}.jpg" for label in ("猫", "狗") for n in range(2)]
    assert set(read(lists.folder(tmp_path, names)).classes) == {"猫", "狗"}


@follows(
    "say which: --set multi=true for several, multi=false for one (of check: --multi true, false)",
    "{}: is empty; expected rows of a path and a label", "{}, line {}: {}; expected a path and a label",
    "{}, line {}: {}; expected {} cells, as in the first row; put what has a comma in it between quotes",
    "{}: not one of {} photos is there ({}); expected paths as seen from {}, or names that only one "
    "photo in it has",
    "{}: not text in UTF-8 ({}); save it as UTF-8", "{}: no table: {}; expected rows of a path and a label",
    "{}: no column of labels among {}; expected one named {}, or a column of 0 and 1 for each class",
    "{}, line {}: split {}{}",
    "{}: several columns of labels: {}; put those of a photo into one, with ; between them",
    "{}: a first row that names nothing, {}; expected path and label, and perhaps train, val or test, or a "
    "first row of names, such as path,label,split",
    "{}: {} may be 0 and 1 for each class; give each class a column of 0 and 1, with its name in the first "
    "row",
)  # fmt: skip
def test_tables(tmp_path: Path, verydeep: Run) -> None:
    def table(
        *lines: str, header: str = "image,label", encoding: str = "utf-8"
    ) -> labelled.Labelled:
        path = lists.table_of(tmp_path, lines, header)
        path.write_bytes(path.read_text().encode(encoding))
        return read(path)

    def said_which() -> None:
        path = lists.table_of(tmp_path, lists.EITHER["pairs"], "image,label")
        for choice in ("true", "false"):
            done = verydeep("check", path, "--size", 8, "--multi", choice)
            assert done.status in (0, 1), done.err
            words = ("--out", tmp_path / choice, "--set", f"multi={choice}", "--set", "epochs=x")
            done = verydeep("train", path, "--recipe", "small-images", *words)
            assert "epochs is 'x'" in done.err
            assert read(path, multi=choice == "true").multi == (choice == "true")

    def column(_: str, __: str, names: str) -> None:
        for name in names.split(" or "):
            table("1,x,cat,u", "2,y,dog,v", header=f"image,size,{name},more")
        table("1,1,0", "2,0,1", header="image,cat,dog")

    def paths(_: str, __: str, ___: str, folder: str) -> None:
        assert folder == str(tmp_path / "set")
        table("1.jpg,cat", "2.jpg,dog")
        table("1,cat", "2,dog")

    def flawed(text: str) -> object:
        path = tmp_path / "flawed.csv"
        path.write_text(text)
        return read(path)

    def good(*_: str) -> object:
        return table("1,cat", "2,dog")

    rows: list[Row] = [
        ("say which: --set multi=true for several, multi=false for one (of check: --multi true, false)",
         lambda: table(*lists.EITHER["pairs"]), said_which),
        ("{}: is empty; expected rows of a path and a label", lambda: flawed(""), good),
        ("{}, line {}: {}; expected a path and a label", lambda: table("1,cat", "2,"), good),
        ("{}, line {}: {}; expected {} cells, as in the first row; put what has a comma "
         "in it between quotes",
         lambda: table("1,New York, NY", "2,dog"),
         lambda *_: table('1,"New York, NY"', "2,dog", '3,"New York, NY"')),
        ("{}: not one of {} photos is there ({}); expected paths as seen from {}, or names that only one "
         "photo in it has", lambda: table("there/a.png,cat", "there/b.png,dog"), paths),
        ("{}: not text in UTF-8 ({}); save it as UTF-8",
         lambda: table("1,été", "2,dog", encoding="latin-1"), lambda *_: table("1,été", "2,dog")),
        ("{}: no table: {}; expected rows of a path and a label",
         lambda: flawed(f"1,{'x' * 200_000}"), good),
        ("{}: no column of labels among {}; expected one named {}, or a column of 0 and 1 for each class",
         lambda: table("1,x,cat", "2,y,dog", header="image,size,kind"), column),
        ("{}: several columns of labels: {}; put those of a photo into one, with ; between them",
         lambda: table("1,cat,dog", "2,dog,", "3,cat,", header="image,label,label2"),
         lambda *_: table("1,cat;dog", "2,dog", "3,cat")),
        ("{}: a first row that names nothing, {}; expected path and label, and perhaps train, val or test, "
         "or a first row of names, such as path,label,split",
         lambda: table("2.jpg,dog,bird", header="1.jpg,cat,dog"),
         lambda *_: [table("2.jpg,dog", header="1.jpg,cat"),
                     table("2.jpg,dog,train", "3.jpg,cat,val", header="1.jpg,cat,train"),
                     table("1,cat,train", "2,dog,train", header="path,label,split")]),
        ("{}: {} may be 0 and 1 for each class; give each class a column of 0 and 1, with its name in the "
         "first row", lambda: table('1,"[1, 0]"', '2,"[0, 1]"'),
         lambda *_: table("1,1,0", "2,0,1", header="image,cat,dog")),
        ("{}, line {}: split {}{}", lambda: table("1,cat,trian", "2,dog,val", header="image,label,split"),
         lambda _, __, ___, near: table(
             f"1,cat,{taken('did you mean (.*)[?]', near)}", "2,dog,train", header="image,label,split")),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "; multi={} reads the other way", "is of one; with multi=true of several",
    "{}: images of several classes, or of none; expected one class of each image, or multi=true",
    "{}: no photo is of any class; expected some that are",
)  # fmt: skip
def test_several_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = lists.table_of(tmp_path, lists.SEVERAL["bars"])
    assert read(path).multi
    assert "multi=" not in caplog.text  # one photo has no label, and cannot be of one class
    bars = [row for row in lists.SEVERAL["bars"] if row != "3,"]
    for rows in (bars, lists.ONE["a city"]):
        path = lists.table_of(tmp_path, rows)
        several = read(path).multi
        (other,) = said("; multi={} reads the other way", caplog.messages[-1])
        assert read(path, multi=other == "true").multi == (other == "true") != several
    path = lists.table_of(tmp_path, ["1,0,1", "2,1,0", "3,0,1"], "image,cat,dog")
    assert not read(path).multi
    said("is of one; with multi=true of several", caplog.messages[-1])
    assert read(path, multi=True).multi
    one = [(lists.jpeg(0), "a"), (lists.jpeg(1), "b")]
    several = [(lists.jpeg(0), [1, 1]), (lists.jpeg(1), [0, 1])]
    words = (
        "{}: images of several classes, or of none; expected one class of each image, or multi=true"
    )
    named = [
        (image, [n for n, there in zip("ab", flags, strict=True) if there])
        for image, flags in several
    ]
    for data, val, how in ((one, named, {}), (named, None, {"multi": False})):
        said(words, refused(lambda d=data, v=val, h=how: read(d, v, **h)))  # type: ignore[misc]
        assert read(data, val, multi=True).multi
    read(one, one)

    model = model_file(tmp_path / "several.safetensors", thresholds=(0.5,) * len(NAMES))
    photo(tmp_path / "0.png")
    table = tmp_path / "data.csv"
    table.write_text("path,label\n0.png,\n")
    words = "{}: no photo is of any class; expected some that are"
    said(words, refused(lambda: evaluate(model, table)))
    table.write_text(f"path,label\n0.png,{NAMES[0]}\n")
    assert evaluate(model, table).n == 1


@follows(
    "; leave Normalize out of its transform",
    "expected a path, or torchvision's CIFAR10, ImageFolder and the like, any object whose [index] is "
    "(image, label), or a Hugging Face dataset with an Image column",
    "{} is no part of a data set; expected train, validation and test",
    "{}: the label of image {} is {}; expected a class, or 0 and 1 for each",
    "{}: label {} of image {}; expected 0 to {}", "{}[0] is {}; expected (image, label)",
    "a data set of the columns {}; expected one of the kind Image, and one of the kind ClassLabel or named "
    "label; choose two with select_columns",
)  # fmt: skip
def test_objects(tmp_path: Path) -> None:
    pairs = [(forms.picture(at), at % 3) for at in range(6)]

    def normalised(image: Any) -> np.ndarray:
        return (np.asarray(image) / np.float32(255) - 0.5) / 0.25

    def known() -> None:
        read(str(arrays(tmp_path / "a.npz")))
        read(forms.Pairs())
        read(rows_of(["image", "label"]))
        forms.test_torchvisions_cifar_without_its_files()
        read(forms.FORMS["ImageFolder"](lists.folder(tmp_path, lists.both("."))))

    def rows_of(columns: list[str]) -> forms.Rows:
        kinds = {"image": forms.ImageKind(), "label": forms.ClassLabel(), "mask": forms.ImageKind(),
                 "kind": forms.ClassLabel()}  # fmt: skip
        return forms.Rows([0, 1, 2] * 2, {name: kinds[name] for name in columns})

    def labels(*held: Any) -> list[Any]:
        return [(forms.picture(at), label) for at, label in enumerate(held)]

    class Named(list):  # type: ignore[type-arg]
        classes = ("a", "b", "c")

    rows: list[Row] = [
        ("; leave Normalize out of its transform", lambda: read(forms.Pairs(normalised)),
         lambda: read(forms.Pairs(lambda image: np.asarray(image) / np.float32(255)))),
        ("expected a path, or torchvision's CIFAR10, ImageFolder and the like, any object whose [index] is "
         "(image, label), or a Hugging Face dataset with an Image column", lambda: read(3), known),
        ("{} is no part of a data set; expected train, validation and test",
         lambda: read({"train": pairs, "more": pairs}),
         lambda _: read({"train": pairs, "validation": pairs, "test": pairs})),
        ("{}: the label of image {} is {}; expected a class, or 0 and 1 for each",
         lambda: read(labels([1, 2], [0, 1])),
         lambda *_: [read(labels(1, 2)), read(labels([1, 1], [0, 1]))]),
        ("{}: label {} of image {}; expected 0 to {}", lambda: read(Named(labels(3, 1))),
         lambda _, __, ___, last: read(Named(labels(0, int(last))))),
        ("{}[0] is {}; expected (image, label)", lambda: read([forms.picture(0)]), lambda *_: read(pairs)),
        ("a data set of the columns {}; expected one of the kind Image, and one of the kind ClassLabel or "
         "named label; choose two with select_columns",
         lambda: read(rows_of(["image", "mask", "label", "kind"])),
         lambda _: read(rows_of(["image", "label"]))),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "{}: {}; expected braces as in train-{000..099}.tar", "{}: names a shard twice; expected each once",
    "a single shard is not split; to validate, give a second data set",
    "a check compares images in any order, which a stream cannot give; fetch some shards, and give their "
    "path",
    "{}: recipe {} reads images in any order, which a stream cannot give; fetch the shards and give their "
    "path, or take paper or small-images",
    "{}: {}={} needs all images at hand, and these are streamed; --set {}={}, or fetch the shards and give "
    "their path",
)  # fmt: skip
def test_shards(tmp_path: Path, model: Path) -> None:
    for stem, count in (("a", 2), ("v", 1)):
        streams.write(tmp_path, stem, count, seed=count)
    url, one = streams.piped(tmp_path, "a", 1), streams.piped(tmp_path, "v", 0)
    path = str(tmp_path / "a-{00..01}.tar")

    def learn(recipe: str, data: str, number: list[int] = [], **more: Any) -> None:  # noqa: B006
        number.append(0)
        given = {"epochs": 1, "batch": 12, "head": "small", "size": 32, "precision": "fp32", **more}
        if recipe == "probe":
            given, more = {"sizes": 32, "model": str(model), "engine": "onnxruntime"}, {}
        else:
            more = {"model": "vgg11_bn", "width": 1 / 16}
            given |= {"scales": "32"} if recipe == "paper" else {"grow": "1"}
        train(recipe, data, out=tmp_path / str(len(number)), settings=given, device="cpu", **more)

    def kept_out(_: str, __: str) -> None:
        learn("probe", path)
        learn("paper", url)
        learn("small-images", url, memory=False)

    rows: list[Row] = [
        ("{}: {}; expected braces as in train-{000..099}.tar", lambda: read("pipe:cat {00..1"),
         lambda *_: read(url)),
        ("{}: names a shard twice; expected each once", lambda: read(one.replace("{00..00}", "{00,00}")),
         lambda _: read(url)),
        ("a check compares images in any order, which a stream cannot give; fetch some shards, and give "
         "their path", lambda: check(url), lambda: check(path, size=32)),
        ("{} {} to train on, and {} processes; take fewer processes, or more {}",
         lambda: streams.feed_of(read(url), 0, 3),
         lambda shards, *_: [streams.feed_of(read(url), 0, int(shards)),
                            streams.write(tmp_path, "b", 3),
                            streams.feed_of(read(streams.piped(tmp_path, "b", 2)), 0, 3)]),
        ("{}: recipe {} reads images in any order, which a stream cannot give; fetch the shards and give "
         "their path, or take paper or small-images", lambda: learn("probe", url), kept_out),
        ("{}: {}={} needs all images at hand, and these are streamed; --set {}={}, or fetch the shards and "
         "give their path", lambda: learn("small-images", url),
         lambda _, __, ___, key, value: [learn("small-images", url, **{key: value}),
                                         learn("small-images", path)]),
    ]  # fmt: skip
    all_followed(rows)
    words = "a single shard is not split; to validate, give a second data set"
    said(words, "; ".join(labelled.find(one).warnings))
    assert not labelled.find(one, url).warnings


@follows(
    "{} {} to train on, and {} processes; take fewer processes, or more {}",
    "{} images of {}x{} need {} GiB of memory; set memory=false to read them again each epoch",
    "{} images of {}, and {} of {}; the recipes with a loop make up for it with --set balance=weights",
)  # fmt: skip
def test_too_many_and_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = images(3, 0)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    samples, config = read(tmp_path / "a.npz").train, Config(batch=8)
    source = in_memory(pictures(samples, FIT), config)
    words = "{} {} to train on, and {} processes; take fewer processes, or more {}"
    _, _, world, _ = said(words, refused(lambda: Feed(source, config, 0, 4)))
    Feed(source, config, 0, int(taken("(4)", f"4{world}")) - 1)

    data = arrays(tmp_path / "data.npz")
    with monkeypatch.context() as small:
        small.setattr("verydeep.training.data.views.MOST_BYTES", 1)
        text = refused(lambda: trained(data, tmp_path / "out", epochs=1))
        said(
            "{} images of {}x{} need {} GiB of memory; set memory=false to read them again each epoch",
            text,
        )
        key, value = taken("set (memory=false)", text).split("=")
        trained(data, tmp_path / "out", epochs=1, **{key: value})

    pixels, labels = images(100, 0)
    labels = np.where(np.arange(100) < 96, 0, labels)
    np.savez(tmp_path / "b.npz", images=pixels, labels=labels)
    result = trained(tmp_path / "b.npz", tmp_path / "odd", epochs=1)
    text = next(line for line in result.warnings if "--set" in line)
    said(
        "{} images of {}, and {} of {}; the recipes with a loop make up for it with --set balance=weights",
        text,
    )
    key, value = taken("--set (balance=weights)", text).split("=")
    trained(tmp_path / "b.npz", tmp_path / "even", epochs=1, **{key: value})


@follows(
    "{}: images have {}, and no other; expected two classes or more; give the images without one a class, "
    "such as 'none'",
)  # fmt: skip
def test_one_class_that_an_image_may_have(tmp_path: Path) -> None:
    path = lists.table_of(tmp_path, ["1,cat", "2,"])
    text = refused(lambda: read(path, multi=True))
    said(
        "{}: images have {}, and no other; expected two classes or more; give the images without one a "
        "class, such as 'none'", text,
    )  # fmt: skip
    other = taken("such as '(.*)'", text)
    lists.table_of(tmp_path, ["1,cat", f"2,{other}"])
    assert read(path).classes == ("cat", "none")


@follows("{}: holds {} twice; expected a name of its own for each")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    def shard(*names: str) -> labelled.Labelled:
        with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(name[:1].encode()))
        return read(str(tmp_path / "a-{0..0}.tar"))

    said(
        "{}: holds {} twice; expected a name of its own for each",
        refused(lambda: shard("0.png", "0.cls", "1.png", "1.cls", "0.png")),
    )
    assert len(shard("0.png", "0.cls", "1.png", "1.cls", "2.png", "2.cls").train) == 3
