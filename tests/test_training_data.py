"""Labelled images in every form: found alike, split alike, and refused with a line that helps."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from verydeep.datasets import check, labelled
from verydeep.datasets.listing import listed
from verydeep.errors import DataError
from verydeep.preprocess import decode

from .tiny import photo

LABELS = ("ant", "bee", "cat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of ten photos each, divided in nothing."""
    for k, label in enumerate(LABELS):
        for i in range(10):
            photo(tmp_path / "set" / label / f"{i}.png", 20, 24, seed=10 * k + i)
    return tmp_path / "set"


def _tar(mode: str, suffix: str) -> Callable[[Path], Path]:
    def pack(folder: Path) -> Path:
        path = folder.with_name(f"set{suffix}")
        with tarfile.open(path, mode) as tar:
            tar.add(folder, "somewhere/set")
        return path

    return pack


def _zip(folder: Path) -> Path:
    path = folder.with_name("set.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        archive.writestr("__MACOSX/set/ant/._0.png", b"resource fork")
    return path


def _csv(folder: Path) -> Path:
    rows = ["image,label"]
    rows += [
        f"{p.relative_to(folder.parent)},{p.parent.name}" for p in sorted(folder.rglob("*.png"))
    ]
    path = folder.with_name("set.csv")
    path.write_text("\n".join(rows))
    return path


def _shards(folder: Path) -> str:
    files = sorted(folder.rglob("*.png"))
    for shard in range(3):
        with tarfile.open(folder.with_name(f"set-{shard:03}.tar"), "w") as tar:
            for index in range(shard, len(files), 3):
                for suffix, content in (
                    ("png", files[index].read_bytes()), ("cls", files[index].parent.name.encode()),
                ):  # fmt: skip
                    info = tarfile.TarInfo(f"{index:04}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder.with_name("set-{000..002}.tar"))


def _image_folder(folder: Path) -> object:
    return torchvision.datasets.ImageFolder(str(folder))


FORMS: dict[str, Callable[[Path], object]] = {
    "folder": lambda folder: folder, "tar": _tar("w", ".tar"), "tar.gz": _tar("w:gz", ".tgz"),
    "zip": _zip, "csv": _csv, "shards": _shards, "ImageFolder": _image_folder,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(form: str, folder: Path) -> None:
    found = labelled.find(FORMS[form](folder), val_fraction=0.2)
    assert found.classes == LABELS
    assert found.counts().tolist() == [8, 8, 8]
    assert Counter(s.label for s in found.val) == {0: 2, 1: 2, 2: 2}
    assert found.warnings == ()
    assert found.split == "20% of each class, seed 0"
    content = {
        np.asarray(decode(labelled.open(s))).tobytes(): s.label for s in (*found.train, *found.val)
    }
    for k, label in enumerate(LABELS):
        for file in (folder / label).iterdir():
            assert content[np.asarray(Image.open(file)).tobytes()] == k
    assert len(content) == 30


def test_the_split_is_seeded(folder: Path) -> None:
    def names(**choices: object) -> set[str]:
        return {s.name for s in labelled.find(folder, val_fraction=0.3, **choices).val}

    assert names() == names(seed=0)
    assert names(seed=1) != names()


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Validation"), ("train", "test")])
def test_parts_of_a_folder(names: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    for label in LABELS:
        for i, file in enumerate(sorted((folder / label).iterdir())):
            target = tmp_path / "parts" / names[i >= 7] / label / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    found = labelled.find(tmp_path / "parts")
    assert found.counts().tolist() == [7, 7, 7]
    assert len(found.val) == 9
    assert found.split == f"the set's own {'test' if names[1] == 'test' else 'val'}"
    both = labelled.find(tmp_path / "parts" / names[0], tmp_path / "parts" / names[1])
    assert [s.label for s in both.val] == [s.label for s in found.val]
    assert both.split == "as given"


def test_what_is_odd_is_told(folder: Path) -> None:
    (folder / "dog").mkdir()
    photo(folder / "lost.png")
    for file in sorted((folder / "bee").iterdir())[1:]:
        file.unlink()
    found = labelled.find(folder)
    assert found.classes == LABELS
    assert [line.removeprefix(f"{folder}: ") for line in found.warnings] == [
        "images in no class folder are not used: lost.png",
        "classes without images: dog",
        "a single image to train on of: bee",
    ]
    assert all(s.label != 1 for s in found.val)  # it is needed to learn from


def test_classes_that_are_validated_but_not_trained(folder: Path, tmp_path: Path) -> None:
    for label in ("ant", "dog"):
        photo(tmp_path / "val" / label / "1.png")
    found = labelled.find(folder, tmp_path / "val")
    assert len(found.val) == 1
    assert found.warnings == (
        "images to validate of classes that are not trained are left out, 1 in all: dog",
        "no images to validate of: bee, cat",
    )


def test_the_digest_tells_sets_apart(folder: Path, tmp_path: Path) -> None:
    before = labelled.find(folder).digest
    assert labelled.find(folder).digest == before
    assert labelled.find(folder.rename(tmp_path / "moved")).digest == before
    photo(tmp_path / "moved" / "ant" / "1.png", 21, 25)
    assert labelled.find(tmp_path / "moved").digest != before
    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    for seen in (0, 1):
        pixels[0, 0, 0, 0] = seen
        np.savez(tmp_path / f"{seen}.npz", train_images=pixels, train_labels=[0, 1] * 3)
    assert labelled.find(tmp_path / "0.npz").digest != labelled.find(tmp_path / "1.npz").digest


def test_torchvisions_cifar_without_its_files() -> None:
    cifar = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    cifar.data = np.arange(12, dtype=np.uint8).repeat(32 * 32 * 3).reshape(12, 32, 32, 3)
    cifar.targets, cifar.classes = [2, 1, 0] * 4, ["ant", "bee", "cat"]
    found = labelled.find(cifar, cifar)
    assert found.classes == LABELS
    assert [s.label for s in found.train] == [2, 1, 0] * 4
    assert [int(s.source[0, 0, 0]) for s in found.val] == list(range(12))


def test_a_split_keeps_doubles_together(tmp_path: Path) -> None:
    """Forty pictures that are held twice: eight of eight validation images lay in train too."""
    for k, label in enumerate(("ant", "bee")):
        for i in range(20):
            photo(tmp_path / label / f"{i}.png", 20, 24, seed=100 * k + i)
            shutil.copy(tmp_path / label / f"{i}.png", tmp_path / label / f"copy of {i}.png")
    for seed in range(3):
        found = labelled.find(tmp_path, seed=seed)
        assert Counter(s.label for s in found.val) == {0: 4, 1: 4}
        learned, judged = (
            {Path(str(s.source)).read_bytes() for s in part} for part in (found.train, found.val)
        )
        assert (len(learned), len(judged), learned & judged) == (36, 4, set())
        assert found.split == f"10% of each class, seed {seed}, 40 doubles beside the first"
    assert not any("flattered" in line for line in check.looked_over(found, 20))


def test_a_class_of_doubles_alone_is_trained_on(tmp_path: Path) -> None:
    for i in range(6):
        photo(tmp_path / "ant" / f"{i}.png", seed=1)
        photo(tmp_path / "bee" / f"{i}.png", seed=2 + i // 3)
    found = labelled.find(tmp_path)
    assert found.counts().tolist() == [6, 3]
    assert [s.label for s in found.val] == [1, 1, 1]
    assert found.warnings == ("no images to validate of: ant",)
    shutil.copy(tmp_path / "bee" / "0.png", tmp_path / "ant" / "a bee.png")  # of two classes
    found = labelled.find(tmp_path)
    assert Counter(s.label for s in found.val) == {0: 1, 1: 3}


def test_the_split_of_a_set_without_doubles_is_as_it_was(folder: Path) -> None:
    names = [s.name for s in labelled.find(folder, val_fraction=0.2, seed=3).val]
    assert names == ["ant/6.png", "ant/9.png", "bee/1.png", "bee/4.png", "cat/4.png", "cat/7.png"]
    assert len(labelled.find(folder, val_fraction=0.99).train) == 3


def test_images_of_the_test_part_are_kept_apart(tmp_path: Path) -> None:
    """What is validated with chooses an epoch, a penalty, a threshold; test/ measures what came of it."""
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for k, label in enumerate(("ant", "bee")):
            for i in range(count):
                photo(tmp_path / "set" / part / label / f"{i}.png", seed=100 * count + 10 * k + i)
    photo(tmp_path / "set" / "test" / "cat" / "1.png")
    found = labelled.find(tmp_path / "set")
    assert [len(part) for part in (found.train, found.val, found.test)] == [8, 4, 6]
    assert found.split == "the set's own val"
    assert found.warnings == (
        "images to test of classes that are not trained are left out, 1 in all: cat",
    )
    other = labelled.find(tmp_path / "set", tmp_path / "set" / "val")
    assert [s.name for s in other.test] == [s.name for s in found.test]
    assert "its own val/ is not used, since another set is given" in other.warnings[0]
    for i in range(2):  # as of competitions, which label none
        photo(tmp_path / "more" / "test" / "unknown" / f"{i}.png", seed=i)
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "set" / part, tmp_path / "more" / part)
    assert labelled.find(tmp_path / "more").test == ()
    shutil.copy(tmp_path / "set/train/ant/0.png", tmp_path / "set/test/ant/0.png")
    assert "1 image to validate or test with, there to train on" in str(
        check.check(tmp_path / "set")
    )
    photo(tmp_path / "set" / "test" / "bee" / "9.png", 30, 31)
    assert labelled.find(tmp_path / "set").digest != found.digest
    shutil.rmtree(tmp_path / "set" / "val")
    alone = labelled.find(tmp_path / "set")
    assert (len(alone.val), alone.test, alone.split) == (7, (), "the set's own test")


# Objects of Python


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8))


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A Dataset as people write it: photos through a transform, and a number."""

    def __init__(self, change: Callable[[Image.Image], Any] = lambda image: image) -> None:
        self.change, self.classes = change, list(LABELS)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, at: int) -> tuple[Any, int]:
        return self.change(picture(at)), at % 3


@pytest.mark.parametrize(
    "change", [None, np.asarray, transforms.ToTensor(), transforms.PILToTensor()]
)
def test_a_dataset_of_torch(change: Any) -> None:
    found = labelled.find(Pairs(change) if change else Pairs())
    assert (found.classes, found.counts().tolist(), len(found.val)) == (LABELS, [3, 3, 3], 3)
    assert check.looked_over(found, 20) == ()
    for sample in found.train:
        number = int(sample.name.split()[1])
        assert sample.label == number % 3
        np.testing.assert_array_equal(labelled.open(sample), picture(number))
    assert str(check.check(Pairs(), size=20)).endswith("nothing is wrong")


def test_parts_of_datasets_of_torch() -> None:
    learn, judge = torch.utils.data.random_split(Pairs(), [8, 4])
    found = labelled.find(learn, judge)
    assert [s.name for s in found.val] == [f"image {at}" for at in judge.indices]
    found = labelled.find([(picture(i), "ab"[i % 2]) for i in range(4)], val_fraction=0)
    assert found.classes == ("a", "b")
    flags = [(picture(i), torch.tensor([1, i % 2, 0])) for i in range(4)]
    several = labelled.find(flags, val_fraction=0)
    assert [s.labels for s in several.train] == [(0,), (0, 1), (0,), (0, 1)]
    found = labelled.find({"train": Pairs(), "test": Pairs()})
    assert (len(found.val), found.split) == (12, "the set's own test")


def test_arrays_with_labels_of_every_shape(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4, 3), np.uint8)
    forms: list[tuple[Any, list[tuple[int, ...]]]] = [
        ([0, 1, 1, 0], [(), (), (), ()]),
        ([[0], [1], [1], [0]], [(), (), (), ()]),  # as MedMNIST has them
        ([[1, 0], [0, 1], [0, 1], [1, 0]], [(), (), (), ()]),
        ([[1, 0], [1, 1], [0, 0], [1, 0]], [(0,), (0, 1), (), (0,)]),
        ([-1, 1, 1, -1], [(), (), (), ()]),
    ]
    for labels, several in forms:
        np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
        found = labelled.find(tmp_path / "a.npz", val_fraction=0)
        assert [s.labels for s in found.train] == several
        assert found.multi == any(several)
        assert found.train[0].label == 0
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1, 1, -1], classes=["a", "b"])
    assert len(labelled.find(tmp_path / "a.npz", val_fraction=0).train) == 3
    np.savez(tmp_path / "a.npz", images=pixels, labels=[[1, 2]] * 4)
    with pytest.raises(
        DataError, match=r"the label of image 0 is \[1 2\]; expected a class, or 0 and 1"
    ):
        labelled.find(tmp_path / "a.npz")


def test_datasets_that_cannot_be_used() -> None:
    normal = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.1)])
    with pytest.raises(DataError, match=r"Pairs: image 0: .* leave Normalize out of its transform"):
        labelled.find(Pairs(normal))
    with pytest.raises(DataError, match=r"list\[0\] is int; expected \(image, label\)"):
        labelled.find([1, 2])
    with pytest.raises(DataError, match="label 7 of image 0; expected 0 to 2"):
        labelled.find(torch.utils.data.Subset(_Odd(), [0]))
    with pytest.raises(DataError, match="'more' is no part of a data set"):
        labelled.find({"train": Pairs(), "more": Pairs()})
    broken = Pairs(_broken_later)
    with pytest.raises(DataError, match="Pairs: image 5: the disk is gone; no label is known"):
        labelled.find(broken)
    broken.targets = [at % 3 for at in range(12)]  # type: ignore[attr-defined]
    found = labelled.find(broken)
    with pytest.raises(OSError, match="image 5: the disk is gone"):
        [labelled.open(s) for s in (*found.train, *found.val)]


class _Odd(Pairs):
    def __getitem__(self, at: int) -> tuple[Any, int]:
        return picture(at), 7


def _broken_later(image: Image.Image) -> Image.Image:
    if np.array_equal(image, picture(5)):
        raise RuntimeError("the disk is gone")
    return image


class ImageKind:
    """What `datasets` calls Image, as far as it is asked."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    names = ("ant", "bee", "cat")


class ListKind:
    feature = ClassLabel()


class Rows:
    """A `Dataset` of Hugging Face, as far as it is asked; the real one was tried by hand."""

    def __init__(self, labels: list[Any], features: dict[str, Any]) -> None:
        self.labels, self.features = labels, features

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: Any) -> Any:
        if at == "label":
            return self.labels
        file = io.BytesIO()
        picture(at).save(file, "PNG")
        assert not self.features["image"].decode
        return {"image": {"bytes": file.getvalue(), "path": None}}

    def cast_column(self, name: str, feature: Any) -> Rows:
        return Rows(self.labels, {**self.features, name: feature})


ImageKind.__name__ = "Image"


def test_datasets_of_hugging_face() -> None:
    def rows(labels: list[Any], kind: Any) -> Rows:
        return Rows(labels, {"image": ImageKind(), "label": kind()})

    found = labelled.find(
        {"train": rows([0, 1, 2] * 4, ClassLabel), "validation": rows([2, 1], ClassLabel),
         "test": rows([-1, 0], ClassLabel)}
    )  # fmt: skip
    assert (found.classes, len(found.train), len(found.test)) == (LABELS, 12, 1)
    assert [(s.label, s.name) for s in found.val] == [(2, "val image 0"), (1, "val image 1")]
    np.testing.assert_array_equal(decode(labelled.open(found.train[4])), picture(4))
    found = labelled.find(rows([[0], [], [1, 2]], ListKind), val_fraction=0)
    assert [(s.label, s.labels) for s in found.train] == [(0, (0,)), (-1, ()), (1, (1, 2))]
    assert labelled.find(rows(["a", "b"], str), val_fraction=0).classes == ("a", "b")
    with pytest.raises(
        DataError, match="of the columns image, note; expected one of the kind Image"
    ):
        labelled.find(Rows([1], {"image": ImageKind(), "note": 1}))


class Table:
    """What `Dataset.data` is: numpy would take it for a sequence, and read all images of it."""

    def __len__(self) -> int:
        raise AssertionError("the whole set was read")

    __getitem__ = __array__ = __len__


def test_the_table_of_a_dataset_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "data", Table(), raising=False)
    rows = Rows([0, 1, 2] * 4, {"image": ImageKind(), "label": ClassLabel()})
    assert len(labelled.find({"train": rows, "validation": rows}).train) == 12


def _one_class(folder: Path) -> Path:
    photo(folder / "one" / "ant" / "1.png")
    return folder / "one"


def _empty(folder: Path) -> Path:
    (folder / "none").mkdir()
    return folder / "none"


def _loose(folder: Path) -> Path:
    photo(folder / "loose" / "1.png")
    return folder / "loose"


def _only_val(folder: Path) -> Path:
    photo(folder / "part" / "val" / "ant" / "1.png")
    return folder / "part"


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


def _saved(**held: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **held)  # type: ignore[arg-type]
        return folder / "a.npz"

    return write


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (_empty, "no images to train on; expected one folder of images for each class"),
        (_loose, "no images to train on: 1.png: in no class folder; expected one folder for"),
        (_one_class, "all images (1) are of one class, 'ant'; expected images of two classes"),
        (_only_val, "all of them are to validate with; expected train/ too"),
        (lambda f: f / "nowhere", "nowhere: no such file or folder; expected a folder, tar or zip"),
        (lambda f: f"{f}/a-{{000..002}}.tar", "3 of 3 shards are missing"),
        (lambda _: 3, "int is no data set that is known; expected a path, or torchvision's"),
        (_text("a.txt", "words"), "a.txt: not a data set that is known; expected a folder"),
        (_text("a.csv", ""), "a.csv: is empty; expected rows of a path and a label"),
        (
            _text("a.csv", "path,colour,size\na,b,c"),
            "no column of labels among path, colour, size; expected one named label or labels or",
        ),
        (
            _text("a.csv", "path,label\na.png,b"),
            "not one of 1 photos is there (line 2: a.png); exp",
        ),
        (_text("a.csv", "a.png"), "a.csv, line 1: ['a.png']; expected a path and a label"),
        (_text("a.csv", "path,label,split\na,b,tain"), "line 2: split 'tain'; did you mean train?"),
        (_saved(x=[1]), "a.npz: holds x; expected train_images (n, height, width, 3) uint8"),
        (
            _saved(train_images=np.zeros((2, 4, 4, 3)), train_labels=[0, 1]),
            "train_images is float64",
        ),
        (
            _saved(train_images=np.zeros((2, 4, 4, 3), np.uint8), train_labels=[0]),
            "train_images and train_labels; expected both, one label an image",
        ),
        (
            _saved(
                train_images=np.zeros((2, 4, 4, 3), np.uint8), train_labels=[0, 7], classes=["a"]
            ),
            "label 7 of image 1; expected 0 to 0",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(
    make: Callable[[Path], object], line: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        labelled.find(make(tmp_path))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sets_that_share_no_class(folder: Path, tmp_path: Path) -> None:
    photo(tmp_path / "val" / "dog" / "1.png")
    with pytest.raises(DataError, match="no class to validate is one to train on: dog against ant"):
        labelled.find(folder, tmp_path / "val")


def test_names_in_a_shard_are_split_as_webdataset_does(tmp_path: Path) -> None:
    """At the first dot of the file's own name; .cls is the label, .txt only where there is no .cls."""
    files = {
        "./0001.png": b"p", "./0001.cls": b"7", "./0001.txt": b"a caption",
        "v1.0/0001.png": b"p", "v1.0/0001.txt": b"8",
    }  # fmt: skip
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = labelled.find(str(tmp_path / "a-{0..0}.tar"), val_fraction=0)
    assert found.classes == ("7", "8")
    assert [sample.name for sample in found.train] == [
        "a-0.tar/./0001.png",
        "a-0.tar/v1.0/0001.png",
    ]


def test_a_shard_whose_label_is_no_text(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        info = tarfile.TarInfo("0001.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"\xff"))
    with pytest.raises(DataError, match=r"0001\.cls is no text in UTF-8"):
        labelled.find(str(tmp_path / "a-{0..0}.tar"))


def test_a_shard_without_labels(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0001.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"0001\.png has no 0001\.cls beside it"):
        labelled.find(str(tmp_path / "a-{0..0}.tar"))


# Labels of objects and arrays that could be read wrongly without a word


class Labels(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Photos with these labels, and what else such an object has."""

    def __init__(self, labels: Any, **more: Any) -> None:
        self.labels = labels
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        change = getattr(self, "target_transform", None) or (lambda label: label)
        return picture(at), change(self.labels[at])


def test_a_subset_of_a_set_with_photos_without_label() -> None:
    whole = Labels([-1, 1, 0, 1, -1, 0], classes=["a", "b"])
    some = torch.utils.data.Subset(torch.utils.data.Subset(whole, [5, 4, 3, 2, 1]), [0, 1, 3])
    found = listed(some)
    assert [(item.name, item.labels) for item in found.items] == [
        ("image 5", ("a",)), ("image 2", ("a",)),
    ]  # fmt: skip
    assert found.loose == ["image 4"]


def test_a_target_transform_is_heeded(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(picture(at)) for at in range(4)])
    path = tmp_path / "a.png"
    picture(0).save(path)
    more: dict[str, Any]
    for more in ({}, {"data": pixels}, {"samples": [(str(path), at // 2) for at in range(4)]}):
        held = Labels([0, 0, 1, 1], targets=[0, 0, 1, 1], classes=["a", "b"], **more)
        assert [item.labels[0] for item in listed(held).items] == list("aabb"), more
        held.target_transform = lambda label: 1 - label  # type: ignore[attr-defined]
        assert [item.labels[0] for item in listed(held).items] == list("bbaa"), more


def test_pixels_with_channels_first_are_not_taken_as_they_lie() -> None:
    pixels = np.stack([np.asarray(picture(at)) for at in range(4)]).transpose(0, 3, 1, 2)
    held = Labels([0, 0, 1, 1], targets=[0, 0, 1, 1], classes=["a", "b"], data=pixels)
    sample = labelled.find(held, val_fraction=0).train[1]
    assert np.array_equal(labelled.open(sample), np.asarray(picture(1)))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([[0, 1], [1], [0], [1]], None), ([[0, 1], [1, 0], [0, 1]], ["a", "b", "c"]),
        ([[0, 1, 1], [1, 0]], None), ([{"boxes": 1}, {"boxes": 2}], None), ([0.5, 1.5], None),
        ([float("nan"), 1.0], None),
    ],
)  # fmt: skip
def test_labels_that_mean_nothing_certain_are_refused(labels: Any, classes: Any) -> None:
    with pytest.raises(DataError, match="expected a class, or 0 and 1 for each"):
        listed(Labels(labels, classes=classes))


def test_classes_of_any_kind_of_name() -> None:
    for classes in (["7", "8"], [7, 8], np.array(["7", "8"]), np.array([b"7", b"8"])):
        found = listed(Labels([0, 1, 1.0, torch.tensor(0.0)], classes=classes))
        assert [item.labels[0] for item in found.items] == list("7887")
    for other in (2, lambda: 2, None):
        found = listed(Labels([b"x", "y", "x"], classes=other))
        assert [item.labels[0] for item in found.items] == list("xyx")


def test_a_first_image_that_cannot_be_read_is_one_of_them() -> None:
    """In any other place it was one failure; as the first it refused the whole set."""

    def held(good: int) -> list[tuple[Any, int]]:
        return [(picture(at) if at >= 12 - good else object(), at % 3) for at in range(12)]

    found = labelled.find(held(11), val_fraction=0)
    assert len(found.train) == 12
    with pytest.raises(OSError, match="image 0"):
        labelled.open(found.train[0])
    with pytest.raises(DataError, match="list: image 0: "):  # of another type, all of them
        labelled.find(held(2))


def test_a_first_image_that_raises() -> None:
    with pytest.raises(DataError, match="Pairs: image 0: gone; no label is known"):
        listed(Pairs(lambda _: exec("raise RuntimeError('gone')")))


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"train_labels": np.array(3)}, "one label an image"),
        ({"train_images": np.array(3)}, "one label an image"),
        ({"train_images": np.zeros((2, 0, 4, 3), np.uint8)}, "expected uint8"),
        ({"classes": np.array(["a", "a"])}, "classes names one twice"),
    ],
)
def test_arrays_of_odd_shapes(held: dict[str, Any], says: str, tmp_path: Path) -> None:
    good = {"train_images": np.zeros((2, 4, 4, 3), np.uint8), "train_labels": np.arange(2)}
    np.savez(tmp_path / "a.npz", **{**good, **held})
    with pytest.raises(DataError, match=says):
        listed(tmp_path / "a.npz")


def test_arrays_without_an_image_are_empty(tmp_path: Path) -> None:
    for count, label in ((0, 0), (2, -1)):
        images, labels = np.zeros((count, 4, 4, 3), np.uint8), np.full(count, label)
        np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=["a", "b"])
        with pytest.raises(
            DataError, match=r"a\.npz: holds no image with a label; expected train_im"
        ):
            listed(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=images, labels=labels[1:])
    with pytest.raises(DataError, match="npz: images and labels; expected both"):
        listed(tmp_path / "a.npz")


def test_two_images_of_one_sample_are_both_there(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-00.tar", "w") as tar:
        for name in ("0.png", "0.jpg", "0.cls", "1.png", "1.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(name[:1].encode()))
    found = listed(str(tmp_path / "a-{00..00}.tar"))
    assert [item.name for item in found.items] == [
        "a-00.tar/0.png",
        "a-00.tar/0.jpg",
        "a-00.tar/1.png",
    ]


def test_samples_go_to_other_processes() -> None:
    found = labelled.find([(picture(at), at % 2) for at in range(8)], val_fraction=0)
    again = pickle.loads(pickle.dumps(found))
    assert again.digest == found.digest
    for one, other in zip(again.train, found.train, strict=True):
        assert np.array_equal(labelled.open(one), labelled.open(other))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests have left threads
def test_a_zip_is_read_in_a_child_and_its_parent(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        for at in range(2):
            for label in "ab":
                archive.writestr(f"{label}/{at}.png", os.urandom(4_000_000))
    found = labelled.find(tmp_path / "a.zip", val_fraction=0)
    known = [labelled.digest(sample) for sample in found.train]
    child = os.fork()
    if not child:
        wrong = 1
        with contextlib.suppress(OSError):
            wrong = int([labelled.digest(sample) for sample in found.train * 9] != known * 9)
        os._exit(wrong)
    assert [labelled.digest(sample) for sample in found.train * 9] == known * 9
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_column_that_no_photo_has_is_told(tmp_path: Path) -> None:
    for at in range(4):
        photo(tmp_path / f"{at}.png", seed=at)
    rows = ["image,cat,dog,bird", "0.png,1,0,0", "1.png,1,1,0", "2.png,0,1,0", "3.png,0,0,0"]
    (tmp_path / "a.csv").write_text("\n".join(rows), "utf-8")
    found = labelled.find(tmp_path / "a.csv", val_fraction=0)
    assert found.classes == ("cat", "dog")
    assert any(line.endswith("classes without images: bird") for line in found.warnings)


def test_one_class_that_a_photo_may_have_is_refused(tmp_path: Path) -> None:
    for at in range(2):
        photo(tmp_path / f"{at}.png", seed=at)
    table = tmp_path / "a.csv"
    table.write_text("image,labels\n0.png,cat\n1.png,\n", "utf-8")
    with pytest.raises(DataError, match="have 'cat', and no other; expected two") as caught:
        labelled.find(table, multi=True)
    (advice,) = re.findall("such as '(.*)'", str(caught.value))
    table.write_text(f"image,labels\n0.png,cat\n1.png,{advice}\n", "utf-8")
    assert labelled.find(table, val_fraction=0).classes == ("cat", advice)
