"""Advice on what people do with a model, followed: explanations, features, distances, figures."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import verydeep as package
from verydeep import modelfile, retrieval
from verydeep.distances import Perceptual
from verydeep.distances.records import draw
from verydeep.errors import nearest, require
from verydeep.evaluation import evaluate
from verydeep.explanations import Explainer, methods, subject
from verydeep.files.atomic import locked
from verydeep.nets import HEADS
from verydeep.preprocess import Preprocess, decode
from verydeep.retrieval import approximate, featurefile, open_features
from verydeep.retrieval import nearest as around

from ..conftest import Run
from ..tiny import NAMES, model_file, photo, pixels, tiny
from .following import Row, all_followed, brought, command, follows, refused, said, taken

IMAGE = pixels(40, 44)[0]
GAP, CLASSIC, TRUNK = tiny(), tiny(head="classic"), tiny(head="classic", classes=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(4):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


# Explanations and portraits


@follows(
    "; give a model that classifies, or look inside with verydeep show", ". Use method gradcam",
    ". Use method gradcam for it", "; leave it out, or take gradcam", "or take cam or occlusion",
    "start it with method spawn",
)  # fmt: skip
def test_ways_to_explain(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    image, out = photos / "0.png", tmp_path / "out"
    gap, classic, trunk = (
        model_file(tmp_path / f"{name}.safetensors", net)
        for name, net in (("gap", GAP), ("classic", CLASSIC), ("trunk", TRUNK))
    )

    def explain(model: Path, *words: object) -> str:
        done = verydeep("explain", image, "--model", model, "--out", out, *words)
        return done.err if done.status else ""

    text = explain(trunk)
    said("; give a model that classifies, or look inside with verydeep show", text)
    assert not explain(gap)
    assert verydeep(*command(taken("with (verydeep show)", text)), trunk, image).status == 0
    for model, words, advice in (
        (classic, ("--method", "cam"), ". Use method gradcam"),
        (gap, ("--method", "cam", "--layer", "relu1_1"), ". Use method gradcam for it"),
        (gap, ("--method", "ig", "--layer", "relu1_1"), "; leave it out, or take gradcam"),
    ):
        text = explain(model, *words)
        said(advice, text)
        assert not explain(model, *words, "--method", taken(r"(?:method|take) (gradcam)", text))
    assert not explain(gap, "--method", "ig")

    def forked(*_: object) -> None:
        raise RuntimeError("cannot handle autograd's threading with fork-based multiprocessing")

    with monkeypatch.context() as child:
        child.setattr(subject.Subject, "_module", forked)
        text = explain(gap, "--method", "gradcam")
        said("or take cam or occlusion", text)
        said("start it with method spawn", text)
        for method in taken("or take (.*)", text).split(" or "):
            assert not explain(gap, "--method", method)
    assert not explain(gap, "--method", "gradcam")  # a spawned child is a process like any other


@follows(
    "no class was given; expected {}", "class {} does not exist; expected 0 to {}",
    "class {} is no class; expected {}", "class {} is the name of several: {}; give the number",
    "; check it with the one that made it", "expected 1 to {}",
    "its head reads {}; expected {} or a layer before it",
    "expected a layer of the trunk, such as {}{}",
)  # fmt: skip
def test_classes_and_layers_to_explain(tmp_path: Path) -> None:
    file = model_file(tmp_path / "m.safetensors", class_names=(NAMES[1], *NAMES[1:]))
    explainer = Explainer(package.load(file))
    ids = explainer.predictor.record.class_ids

    def each(forms: str) -> None:
        for form, label in (("name", "daisy"), ("id", ids[3]), ("number", 3)):
            assert form in forms
            assert explainer(IMAGE, label=label).maps[0].index == 3

    def numbers(which: str) -> None:
        for number in (int(one.split()[0]) for one in which.split(", ")):
            assert explainer(IMAGE, label=number).maps[0].index == number

    def by_the_maker() -> None:
        other.check(made, steps=1, draws=1)

    other = Explainer(explainer.predictor, "occlusion", window=8, stride=8)
    made = other(IMAGE)
    small = modelfile.read(file).record.network
    all_followed([
        ("no class was given; expected {}", lambda: explainer(IMAGE, label=[]), each),
        ("class {} is no class; expected {}", lambda: explainer(IMAGE, label=True),
         lambda _, forms: each(forms)),
        ("class {} does not exist; expected 0 to {}", lambda: explainer(IMAGE, label=7),
         lambda _, last: [explainer(IMAGE, label=0), explainer(IMAGE, label=int(last))]),
        ("class {} is the name of several: {}; give the number", lambda: explainer(IMAGE, label="bee"),
         lambda _, which: numbers(which)),
        ("; check it with the one that made it", lambda: explainer.check(made), by_the_maker),
        ("expected 1 to {}", lambda: Explainer(explainer.predictor, "occlusion", window=99)(IMAGE),
         lambda most: Explainer(explainer.predictor, "occlusion", window=int(most))(IMAGE)),
        ("its head reads {}; expected {} or a layer before it",
         lambda: methods.layers_read(small, "gradcam", "pool5"),
         lambda _, last: [methods.layers_read(small, "gradcam", one) for one in (last, "relu1_1")]),
        ("expected a layer of the trunk, such as {}{}",
         lambda: methods.layers_read(small, "gradcam", "fc8"),
         lambda name, rest: methods.layers_read(small, "gradcam", (name + rest).split(";")[0])),
    ])  # fmt: skip


@follows("give one to show()", "; name another, or a .png file")
def test_portraits(tmp_path: Path, model: Path, verydeep: Run) -> None:
    bare = package.show(model)
    text = refused(lambda: bare.photo)
    said("give one to show()", text)
    assert package.show(model, IMAGE).photo
    (tmp_path / "file").touch()
    words = ("show", model, photo(tmp_path / "a.png"), "--out")
    said("; name another, or a .png file", verydeep(*words, tmp_path / "file" / "in").err)
    for name in ("another", "a-portrait.png"):
        assert verydeep(*words, tmp_path / name).status == 0


# Features and what is found by them


@follows(
    'give a pool such as "avg", or one size for all', 'give a pool such as "avg", or a size',
    "{}; expected one of {}",
    "`verydeep features` makes one of photos", "; make it again",
    "expected a file that `verydeep features` wrote", "make the file again with `verydeep features`",
    "delete it, and give the command that made it again",
)  # fmt: skip
def test_files_of_features(tmp_path: Path, photos: Path, model: Path, verydeep: Run) -> None:
    predictor = package.load(model)
    several = [pixels(40, 44)[0], pixels(50, 60)[0]]
    words = 'give a pool such as "avg", or one size for all'
    text = refused(lambda: predictor.features(several, "relu1_1", size="own"))
    said(words, text)
    pool: Any = taken('such as "(.*)",', text)
    predictor.features(several, "relu1_1", pool, size="own")
    predictor.features(several, "relu1_1", size=40)

    out = tmp_path / "out.npz"

    def features(*words: object, target: Path = out) -> str:
        done = verydeep("features", photos, "--out", target, "--model", model, *words)
        return done.err if done.status else ""

    text = features("--size", "own", "--pool", "none")
    said('give a pool such as "avg", or a size', text)
    assert not features("--size", "own", "--pool", taken('such as "(.*)",', text))
    assert not features("--size", 40, "--pool", "none")

    def similar(*words: object) -> str:
        done = verydeep("similar", out, photos / "0.png", "--model", model, *words)
        return done.err if done.status else ""

    assert not features("--layer", "relu1_1", "--layer", "relu2_1")
    _, layers = said("{}; expected one of {}", similar())
    for layer in layers.split(", "):
        assert not similar("--layer", layer)
    out.unlink()
    text = similar()
    said("`verydeep features` makes one of photos", text)
    verb = command(taken("`(.*)`", text))
    assert verydeep(*verb, photos, "--out", out, "--model", model).status == 0
    assert not similar()
    text = features(target=tmp_path / "old.safetensors")
    said("; make it again", text)
    for suffix in taken("ends in (.*), no longer", text).split(" or "):
        assert not features(target=tmp_path / f"new{suffix}")

    np.savez(out, path=np.zeros(3))
    said("expected a file that `verydeep features` wrote", similar())
    assert not features()
    with np.load(out) as file:
        rows = dict(file)
    layer = open_features(out).about.layer()
    np.savez(out, **{**rows, layer: rows[layer] * np.nan})
    said("make the file again with `verydeep features`", similar())
    assert not features()
    np.savez(out, **{**rows, "about": np.array("{}")})
    said("delete it, and give the command that made it again", similar())
    out.unlink()
    assert not features()
    assert not similar()


@follows(
    'an index makes this quick, install it with: pip install "verydeep[nearest]"',
    "; --exact for all of them", "once; --exact goes without it",
)  # fmt: skip
def test_an_index_of_features(
    photos: Path, tmp_path: Path, model: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("usearch")
    out = tmp_path / "f.npz"
    assert verydeep("features", photos, "--out", out, "--model", model).status == 0
    monkeypatch.setattr(approximate, "LEAST_ROWS", 3)

    def similar(*words: object) -> str:
        done = verydeep("similar", out, photos / "0.png", "--model", model, *words)
        assert done.status == 0
        return done.err

    with monkeypatch.context() as gone:
        gone.setitem(__import__("sys").modules, "usearch.index", None)
        text = similar()
        said('an index makes this quick, install it with: pip install "verydeep[nearest]"', text)
        assert "usearch" in brought(taken("with: (.*)", text))
    text = similar()
    for words in ("once; --exact goes without it", "; --exact for all of them"):
        said(words, text)
    assert not similar("--exact")


@follows(
    "; delete the folder to begin again",
    "; wait for it, or give another --out",
    "; give that command again to go on with it, another --out, or delete the folder",
)
def test_features_that_were_stopped(
    tmp_path: Path, photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    out, other = tmp_path / "out.npz", tmp_path / "other.npz"
    folder = tmp_path / "out.npz.partial"

    def features(*words: object, target: Path = out, layer: str = "relu1_1") -> str:
        done = verydeep(
            "features", photos, "--out", target, "--model", model, "--layer", layer, *words
        )
        return done.err if done.status else ""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    def begin() -> None:
        out.unlink(missing_ok=True)
        with monkeypatch.context() as stop:
            stop.setattr("verydeep.retrieval.extraction.write", stopped)
            features()
        assert folder.exists()

    begin()
    photo(photos / "00.png", seed=9)
    said("; delete the folder to begin again", features())
    shutil.rmtree(folder)
    assert not features()
    begin()
    words = "; give that command again to go on with it, another --out, or delete the folder"
    said(words, features(layer="relu2_1"))
    assert not features(layer="relu2_1", target=other)
    assert not features()
    begin()
    said(words, features(layer="relu2_1"))
    shutil.rmtree(folder)
    assert not features(layer="relu2_1")
    folder.mkdir()
    with locked(folder / "lock", lambda: None):
        said("; wait for it, or give another --out", features())
        assert not features(target=other)
    assert not features()


@follows(
    "; if it was moved, name its place with --model", "; give that model, or make the file again",
    "; give at least one", "; give fewer queries{}", ", or a smaller --top",
    "; if they were moved, make the features again", ": keep it)",
    "expected photos or folders that hold some", "expected paths of photos and folders",
    "keep is {}; expected {}", "threshold is {}; expected a cosine above 0, at most 1",
)  # fmt: skip
def test_what_is_found_by_features(
    tmp_path: Path, photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    out, sheet, moved = tmp_path / "out.npz", tmp_path / "sheet.png", tmp_path / "moved.safetensors"

    def features() -> None:
        assert verydeep("features", photos, "--out", out, "--model", model).status == 0

    def similar(*words: object) -> str:
        queries = words[:1] if words and isinstance(words[0], Path) else (photos / "0.png",)
        done = verydeep(
            "similar", out, *queries, *words[len(queries) if queries == words[:1] else 0 :]
        )
        return done.err if done.status else ""

    features()
    shutil.move(model, moved)
    text = similar()
    said("; if it was moved, name its place with --model", text)
    assert not similar(taken("(--model)", text), moved)
    model_file(model, tiny("vgg13"))
    said("; give that model, or make the file again", similar())
    assert not similar("--model", moved)
    features()
    assert not similar()

    words = "; give at least one"
    said(words, refused(lambda: retrieval.contact_sheet([], sheet)))
    retrieval.contact_sheet(retrieval.similar(out, [photos / "0.png"]), sheet)
    with monkeypatch.context() as small:
        tile = (around.TILE + around.GAP) * (around.TILE + 3 * around.GAP)
        small.setattr(around, "MOST_PIXELS", 7 * tile)
        (more,) = said("; give fewer queries{}", similar(photos, "--sheet", sheet, "--top", 2))
        assert not more  # the fewest matches are too many
        assert not similar("--sheet", sheet, "--top", 2)
        small.setattr(around, "MOST_PIXELS", 10 * tile)
        text = similar(photos, "--sheet", sheet, "--top", 2)
        said(", or a smaller --top", text)
        assert not similar("--sheet", sheet, "--top", 2)
        assert not similar(photos, "--sheet", sheet, taken("smaller (--top)", text), 1)
    kept = photo(tmp_path / "query.png")
    shutil.move(photos / "1.png", photos / "5.png")
    done = verydeep("similar", out, kept, "--sheet", sheet)
    said("; if they were moved, make the features again", done.err)
    features()
    assert "cannot be read" not in verydeep("similar", out, kept, "--sheet", sheet).err

    if hasattr(os, "symlink"):
        shutil.copy(photos / "5.png", photos / "6.png")
        (photos / "a-link.png").symlink_to(photos / "5.png")
        text = verydeep("duplicates", photos, "--model", model, "--layer", "relu1_1").out
        said(": keep it)", text)
        group = [
            line.split("  (")[0].split()[-1] for line in text.partition("\n\n")[0].splitlines()
        ]
        keep = [line for line in text.splitlines() if "keep it" in line]
        for path in group:
            if not any(path in line for line in keep):
                os.unlink(path)
        assert decode(photos / "a-link.png")

    empty = tmp_path / "empty"
    empty.mkdir()
    said(
        "expected photos or folders that hold some",
        verydeep("classify", empty, "--model", model).err,
    )
    assert verydeep("classify", photos, "--model", model).status == 0
    assert verydeep("classify", photos / "0.png", "--model", model).status == 0
    text = refused(lambda: retrieval.duplicates([3]))  # type: ignore[list-item]
    said("expected paths of photos and folders", text)
    retrieval.duplicates([photos, kept], model=model, layer="relu1_1")

    def duplicates(**told: Any) -> Callable[..., object]:
        return lambda *_: retrieval.duplicates(photos, model=model, layer="relu1_1", **told)

    all_followed([
        ("keep is {}; expected {}", duplicates(keep="best"),
         lambda _, names: [duplicates(keep=name)() for name in names.split(", ")]),
        ("threshold is {}; expected a cosine above 0, at most 1", duplicates(threshold=0),
         lambda _: [duplicates(threshold=0.1)(), duplicates(threshold=1)()]),
    ])  # fmt: skip


# Distances


@follows(
    "expected two or more in a folder, or two paths to compare",
    "expected a photo first, which all others are compared with, or two folders",
    "no photos in {}; expected some to compare with {}", "expected some to compare by name",
    "expected the same names in both, whatever the suffix", "{} takes images of {} channels; expected 3",
    ": crop or resize one of them",
)  # fmt: skip
def test_which_photos_are_compared(tmp_path: Path, photos: Path, verydeep: Run) -> None:
    model = model_file(tmp_path / "m.safetensors", TRUNK)
    other, empty, odd = tmp_path / "other", tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    photo(odd / "x.png")
    for seed in range(4):
        photo(other / f"{seed}.jpg", seed=seed + 4)

    def distance(*paths: object, given: Path = model) -> str:
        done = verydeep(
            "distance", *paths, "--metric", "content", "--layer", "relu2_1", "--model", given
        )
        return done.err if done.status else ""

    first, second = photos / "0.png", photos / "1.png"
    said("expected two or more in a folder, or two paths to compare", distance(first))
    assert not distance(photos)
    assert not distance(first, second)
    words = "expected a photo first, which all others are compared with, or two folders"
    said(words, distance(photos, first, second))
    assert not distance(first, second, other)
    assert not distance(photos, other)
    said("no photos in {}; expected some to compare with {}", distance(first, empty, empty))
    assert not distance(first, photos, empty)
    said("expected some to compare by name", distance(photos, empty))
    said("expected the same names in both, whatever the suffix", distance(photos, odd))
    assert not distance(photos, other)
    small = photo(tmp_path / "small.png", 40, 50)
    said(": crop or resize one of them", distance(first, small))
    Image.open(first).resize((50, 40)).save(tmp_path / "resized.png")
    assert not distance(tmp_path / "resized.png", small)
    Image.open(first).crop((0, 0, 50, 40)).save(tmp_path / "cropped.png")
    assert not distance(tmp_path / "cropped.png", small)
    grey = model_file(
        tmp_path / "grey.safetensors", replace(TRUNK, in_channels=1),
        preprocess=Preprocess(channel_order="L", mean=(0.5,), std=(0.5,)),
    )  # fmt: skip
    (_, _) = said("{} takes images of {} channels; expected 3", distance(first, second, given=grey))
    assert not distance(first, second)


@follows(
    "expected as many, or one", "; compare images of one size at a time",
    "expected one that was computed with spatial=True", "expected one, such as relu3_3",
    ": if it is 0..1, say so",
)  # fmt: skip
def test_distances_in_a_program(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.safetensors", TRUNK)
    content = Perceptual("content", model=model, layers="relu1_1", threads=1)
    a, b, c = pixels(40, 44, 3)
    sizes = [a, pixels(50, 60)[0]]
    pictures = Image.fromarray(a), Image.fromarray(b)
    names = ("a", "b")
    dark = a / np.float32(255)
    all_followed([
        ("expected as many, or one", lambda: content([a, b], [a, b, c]),
         lambda: [content([a, b], [b, c]), content([a, b], c)]),
        ("; compare images of one size at a time", lambda: content(sizes, sizes, spatial=True),
         lambda: [content([one], [one], spatial=True) for one in sizes]),
        ("expected one that was computed with spatial=True",
         lambda: draw(*pictures, only(content.stream([(a, b)])), names),
         lambda: draw(*pictures, only(content.stream([(a, b)], spatial=True)), names)),
        ("expected one, such as relu3_3", lambda: Perceptual("content", model="builtin", layers=()),
         lambda: Perceptual("content", model="builtin", layers="relu3_3")),
    ])  # fmt: skip
    with pytest.warns(UserWarning, match="say so") as warned:
        content(dark, dark, range=(0, 255))
    said(": if it is 0..1, say so", warned[0].message)
    content(dark, dark, range=taken(r"if it is (0\.\.1)", str(warned[0].message)))


def only(answers: Any) -> Any:
    (answer,) = answers
    return answer


# Figures


@follows(
    "; fetch them, and give their path", "expected one class a photo",
    "; expected one folder for a class, so put them into one, or leave one out",
)  # fmt: skip
def test_what_is_evaluated(tmp_path: Path, photos: Path, model: Path) -> None:
    (photos / "bee").mkdir()
    shutil.move(photos / "0.png", photos / "bee" / "0.png")
    for name in ("1.png", "2.png", "3.png"):
        (photos / name).unlink()
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        tar.add(photos / "bee", arcname="bee")
    text = refused(lambda: evaluate(model, "https://127.0.0.1:9/shard-0.tar"))
    said("; fetch them, and give their path", text)
    assert evaluate(model, tmp_path / Path(taken(r"(\S+tar):", text)).name).n == 1
    photo(photos / "Bee" / "1.png") if os.name == "posix" else photo(photos / "n00000001" / "1.png")
    words = "; expected one folder for a class, so put them into one, or leave one out"
    said(words, refused(lambda: evaluate(model, photos)))
    (second,) = (one for one in photos.iterdir() if one.name != "bee")
    shutil.copy(second / "1.png", photos / "bee")
    shutil.rmtree(second)
    assert evaluate(model, photos).n == 2
    (photos / "bee" / "1.png").unlink()
    assert evaluate(model, photos).n == 1

    class Pictures:
        """A data set as torch has them. labels: 0 or 1 for each class, or the class."""

        classes = NAMES

        def __init__(self, *labels: Any) -> None:
            self.labels = labels

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> Any:
            return Image.fromarray(IMAGE), self.labels[index]

    both = np.array([1, 1, 0, 0, 0, 0, 0])
    said("expected one class a photo", refused(lambda: evaluate(model, Pictures(both, both))))
    assert evaluate(model, Pictures(0, 1)).n == 2


# What is said of names and numbers everywhere


@follows(
    "{} is {}; expected a whole number, {} or more", "; expected one of: {}", "; did you mean {}?"
)
def test_names_and_numbers(tmp_path: Path, model: Path, verydeep: Run) -> None:
    predictor = package.load(model)
    image = photo(tmp_path / "a.png")
    calls: list[Callable[[int], object]] = [
        lambda n: predictor(IMAGE, top=n), lambda n: list(predictor.stream([IMAGE], batch=n)),
        lambda n: package.load(model, threads=n), lambda n: package.show(model, strongest=n),
        lambda n: retrieval.features(image, tmp_path / "a.npz", model=model, batch=n),
    ]  # fmt: skip
    words = "{} is {}; expected a whole number, {} or more"
    for call in calls:
        _, _, least = said(words, refused(lambda call=call: call(0)))  # type: ignore[misc]
        call(int(least))
    rows: list[Row] = [
        ("; expected one of: {}", lambda: predictor.features(IMAGE, pool="sum"),  # type: ignore[arg-type]
         lambda names: [predictor.features(IMAGE, pool=name) for name in names.split(", ")]),
        ("; expected one of: {}", lambda: Perceptual("psnr"),
         lambda names: [Perceptual(name) for name in names.split(", ")]),
        ("; did you mean {}?", lambda: package.load(model, precision="exat"),
         lambda name: package.load(model, precision=name)),
        ("; did you mean {}?", lambda: predictor.features(IMAGE, "relu1_9"),
         lambda names: [predictor.features(IMAGE, name) for name in names.split(" or ")]),
        ("; expected one of: {}", lambda: require("head", "sum", HEADS, package.VerydeepError),
         lambda names: [tiny(head=name) for name in names.split(", ")]),
    ]  # fmt: skip
    all_followed(rows)
    done = verydeep("clasify", image)
    (verb,) = said("; did you mean {}?", done.err)
    assert verydeep(verb, image, "--model", model).status == 0
    assert nearest("x", ["a"]) == "; expected one of: a"
    assert featurefile.FORMATS


# The paper's evaluation


@follows(
    "; expected pixels of the shorter side, {} or more", "; take views dense",
    "; give scales, such as 256,384", "; fuse networks of the same classes, in the same order",
)  # fmt: skip
def test_ways_to_look(tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        photo(tmp_path / "data" / name / "0.png", seed=seed)
    own = model_file(tmp_path / "own.safetensors")
    whole = Preprocess(resize="none", resize_size=None, crop_size=None)
    as_it_is = model_file(tmp_path / "whole.safetensors", preprocess=whole)
    other = model_file(tmp_path / "other.safetensors", class_names=NAMES[::-1], class_ids=())

    def look(model: Path, **how: Any) -> Any:
        return evaluate(model, tmp_path / "data", **how)

    error = refused(lambda: look(own, views="crops", scales=20))
    [least] = said("; expected pixels of the shorter side, {} or more", error)
    look(own, views="crops", scales=int(least))
    error = refused(lambda: look(as_it_is, views="crops", scales=64))
    said("; take views dense", error)
    error = refused(lambda: look(as_it_is, views="dense"))
    said("; give scales, such as 256,384", error)
    look(as_it_is, views="dense", scales=(256, 384))
    error = refused(lambda: look(own, fuse=other))
    said("; fuse networks of the same classes, in the same order", error)
    look(own, fuse=model_file(tmp_path / "same.safetensors", tiny("vgg13")))
