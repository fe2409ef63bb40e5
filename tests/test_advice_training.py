"""Advice of training's messages, followed; begun while training is being rebuilt.

The tests know messages by what they say, wherever they stand. When they are all here, set
`TRAINING_TOO = True` in `tests/advice/following.py`: `tests/test_advice.py` then asks for every one that is
followed by no test, as it does of the rest of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verydeep.errors import VerydeepError
from verydeep.nets import network
from verydeep.training import recipes
from verydeep.training.data import objects

from .advice.following import Row, all_followed, follows, refused, said, taken
from .labelled import CLASSES, SETTINGS, arrays, images, trained
from .tiny import model_file, photo

PIXELS, LABELS = images(12, 0)
CONFIG: Any = recipes.recipe("small-images")


def setting(text: str) -> Any:
    """The configuration with "key=value" as --set takes it."""
    return recipes.changed(CONFIG, [text])


def npz(path: Path, **held: Any) -> object:
    """What an .npz of these arrays is read as."""
    np.savez(path, **held)
    return objects.arrays(path)


@follows(
    "expected key=value, as in epochs=30", "{} is {}; expected {}", "{} is {}; expected {} or more, {}",
    "; set nesterov=false or momentum=0.9",
)  # fmt: skip
def test_settings() -> None:
    def both(advice: str) -> None:
        for one in advice.split(" or "):
            recipes.changed(CONFIG, ["nesterov=true", "momentum=0", one])

    text = refused(lambda: setting("epochs"))
    said("expected key=value, as in epochs=30", text)
    setting(taken("as in (.*)", text))
    rows: list[Row] = [
        ("{} is {}; expected {}", lambda: setting("epochs=many"),
         lambda key, _, what: setting(f"{key}={ {'a whole number': 3}[what] }")),
        ("{} is {}; expected {}", lambda: setting("nesterov=perhaps"),
         lambda key, _, what: [setting(f"{key}={one}") for one in what.split(" or ")]),
        ("{} is {}; expected {} or more, {}", lambda: setting("batch=0"),
         lambda key, _, least, __: setting(f"{key}={least}")),
    ]  # fmt: skip
    all_followed(rows)
    text = refused(lambda: recipes.changed(CONFIG, ["nesterov=true", "momentum=0"]))
    said("; set nesterov=false or momentum=0.9", text)
    both(taken("set (.*)", text))


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
    "go on with it by --resume, or choose another folder", "; set size={} or more", "; set grow=1",
    "; leave --model out to train the network that the weights are of",
    "; lower the rate, as with --set rate={}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_runs(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "data.npz"), tmp_path / "out"
    trained(data, out, epochs=1)
    text = refused(lambda: trained(data, out, epochs=1))
    said("go on with it by --resume, or choose another folder", text)
    trained(data, out, epochs=1, resume=True)
    text = refused(lambda: trained(data, tmp_path / "another", epochs=1, size=8))
    said("; set size={} or more", text)
    trained(data, tmp_path / "another", epochs=1, size=int(taken(r"size=(\d+)", text)))
    text = refused(lambda: trained(data, tmp_path / "small", epochs=1, grow="0.25,1"))
    said("; set grow=1", text)
    trained(data, tmp_path / "small", epochs=1, grow=taken("grow=(.*)", text))
    other = model_file(
        tmp_path / "a.safetensors", network("vgg13_bn", head="small", width=1 / 16, classes=3)
    )
    text = refused(lambda: trained(data, tmp_path / "other", epochs=1, init=other))
    said("; leave --model out to train the network that the weights are of", text)
    from verydeep import train

    train(
        "small-images", data, out=tmp_path / "other", init=other, device="cpu",
        settings={**SETTINGS, "epochs": 1},
    )  # fmt: skip

    rate, tries = "1e3", 0
    while True:  # a third each time: what is far too high takes several
        tries += 1
        try:
            trained(data, tmp_path / f"rate{tries}", epochs=1, warmup=0.0, rate=rate)
            break
        except VerydeepError as error:
            said("; lower the rate, as with --set rate={}", error)
            lower = taken(r"rate=(\S+?)[;.]?$", str(error).partition("; the last")[0])
            assert float(lower) < float(rate)
            rate = lower
    assert 1 < tries < 20


@follows(
    "in no class folder; expected one folder for each class",
    "expected a folder for each of two classes or more",
)  # fmt: skip
def test_folders_of_classes(tmp_path: Path) -> None:
    from verydeep import train

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
    said("expected a folder for each of two classes or more", refused(lambda: learn(one)))
    for seed in range(6):
        photo(one / "b" / f"{seed}.png", seed=seed + 6)
    learn(one)
