"""What is odd about a data set is found and named; so are the rate that suits and what sets the pace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from verydeep import train
from verydeep.datasets import check, labelled
from verydeep.errors import DataError, MissingExtraError

from .conftest import Run
from .labelled import SETTINGS, arrays, trained
from .tiny import photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("val", 3)):
        for k, label in enumerate(("ant", "bee")):
            for i in range(count):
                seed = 100 * k + 10 * (part == "val") + i
                photo(tmp_path / "set" / part / label / f"{i}.png", 48, 64, seed=seed)
    return tmp_path / "set"


def kinds(folder: Path, size: int = 40) -> dict[str, tuple[str, ...]]:
    return {f.what: f.names for f in check.check(folder, size=size).findings}


def test_what_pillow_refuses_in_its_own_way_is_unreadable(folder: Path) -> None:
    """A DDS file with flags that it does not know is a NotImplementedError."""
    header = bytearray(b"DDS " + (124).to_bytes(4, "little") + bytes(120))
    header[12:20] = (8).to_bytes(4, "little") * 2
    (folder / "train" / "ant" / "x.jpg").write_bytes(bytes(header))
    found = labelled.find(str(folder))
    (line,) = (line for line in check.looked_over(found, 40) if "x.jpg" in line)
    assert "1 image that cannot be read" in line


def test_nothing_is_wrong(folder: Path) -> None:
    found = check.check(folder, size=40)
    assert str(found) == "2 classes, 12 images to train on, 6 to validate: nothing is wrong"
    assert check.looked_over(labelled.find(folder), 40) == ()


def test_doubles_near_doubles_and_labels_at_odds(folder: Path) -> None:
    shutil.copy(folder / "train/ant/0.png", folder / "val/ant/same.png")
    shutil.copy(folder / "train/ant/1.png", folder / "train/ant/again.png")
    shutil.copy(folder / "train/ant/2.png", folder / "train/bee/other.png")
    Image.open(folder / "train/bee/3.png").save(folder / "val/bee/near.jpg", quality=60)
    found = kinds(folder)
    assert found["doubles across"] == ("train/ant/0.png = val/ant/same.png",)
    assert len(found["doubles within"]) == 2
    assert found["labels at odds"] == ("train/ant/2.png = train/bee/other.png",)
    assert found["near-doubles across"] == ("val/bee/near.jpg ~ train/bee/3.png",)
    quick = check.looked_over(labelled.find(folder), 40)
    assert any(
        "so that accuracy is flattered: train/ant/0.png = val/ant/same.png" in q for q in quick
    )


def test_broken_small_and_rare(folder: Path) -> None:
    (folder / "train/ant/broken.jpg").write_text("words")
    photo(folder / "train/ant/small.png", 20, 64)
    for i in range(200):
        Image.fromarray(np.full((48, 48, 3), i, np.uint8)).save(folder / f"train/bee/more {i}.png")
    found = kinds(folder)
    assert found["unreadable"] == ("train/ant/broken.jpg",)
    assert found["small"] == ("train/ant/small.png (64x20)",)
    assert kinds(folder)["imbalance"] == ("bee", "ant")


def test_a_png_with_much_text_is_no_broken_one(folder: Path) -> None:
    info = PngInfo()
    info.add_text("workflow", "a" * (2 << 20), zip=True)
    Image.open(folder / "train/ant/0.png").save(folder / "train/ant/0.png", pnginfo=info)
    assert check.looked_over(labelled.find(folder), 40) == ()


def test_strict_is_an_error(folder: Path) -> None:
    (folder / "train/cat").mkdir()
    with pytest.raises(DataError, match="classes without images: train/cat"):
        check.check(folder, size=40, strict=True)
    with pytest.raises(DataError, match="classes without images: train/cat"):
        train("small-images", folder, out=folder / "run", strict=True, settings=SETTINGS)
    assert not (folder / "run").exists()


def test_strict_looks_closely(folder: Path) -> None:
    Image.open(folder / "train/bee/3.png").save(folder / "val/bee/near.jpg", quality=60)
    with pytest.raises(
        DataError, match="1 image to validate or test with, much like one to train on"
    ):
        train("small-images", folder, out=folder / "run", strict=True, settings=SETTINGS)


def test_the_command(folder: Path, verydeep: Run) -> None:
    done = verydeep("check", folder, "--size", 40)
    assert (done.status, done.out.splitlines()[-1][-16:]) == (0, "nothing is wrong")
    (folder / "train/ant/broken.jpg").write_text("words")
    done = verydeep("check", folder, "--size", 40, "--json")
    assert done.status == 1
    assert [f["what"] for f in json.loads(done.out)["findings"]] == ["unreadable"]
    assert verydeep("check", folder, "--size", 40, "--strict").status == 2
    done = verydeep("check", folder / "nowhere")
    assert done.status == 2
    assert "no such file or folder" in done.err


def test_warnings_reach_log_and_result(tmp_path: Path) -> None:
    data_file = arrays(tmp_path / "set.npz")
    with np.load(data_file) as held:
        values = dict(held)
    values["val_images"][0] = values["train_images"][0]
    np.savez(data_file, **values)
    result = trained(data_file, tmp_path / "run", epochs=1)
    assert any("train 0 = val 0" in line for line in result.warnings)
    assert any(line["event"] == "warning" for line in result.log)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_which_rate_suits_and_what_sets_the_pace(
    tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verydeep.training.measuring.SECONDS", 0.3)
    words = [
        "train",
        arrays(tmp_path / "set.npz"),
        "--recipe",
        "small-images",
        "--model",
        "vgg11_bn",
    ]
    words += ["--width", 1 / 16, "--set", "precision=fp32", "--set", "layout=default"]
    words += ["--set", "batch=24"]
    done = verydeep(*words, "--find-lr", "--json", "--out", tmp_path / "rates")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert 1e-4 < found["suggested"] < 1
    assert found["rates"] == sorted(found["rates"])
    page = (tmp_path / "rates" / "rates.html").read_text()
    curves = re.findall(r'class="curve \w" d="([^"]*)"', page)
    assert len(re.findall("[ML]", curves[2])) == len(found["rates"])
    assert f"rate {found['suggested']:.2g}: there the loss falls most steeply" in page

    done = verydeep(*words, "--profile")
    assert done.status == 0, done.err
    assert "input alone" in done.out
    assert "images/s" in done.out
    done = verydeep("train", words[1], "--recipe", "probe", "--find-lr")
    assert done.status == 2
    assert "recipe probe solves its head at once: it has no rate" in done.err


def test_tensorboard_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, value, step))

        def flush(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    settings = {**SETTINGS, "epochs": 1}
    result = train(
        "small-images", arrays(tmp_path / "set.npz"), out=tmp_path / "run", model="vgg11_bn",
        width=1 / 16, settings=settings, device="cpu", tensorboard=True,
    )  # fmt: skip
    epoch = next(line for line in result.log if line["event"] == "epoch")
    assert ("accuracy/top-1", epoch["top1"], 4) in written
    assert [step for tag, _, step in written if tag == "loss/training"] == [1, 2, 3, 4]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "verydeep\[tensorboard\]"'):
        train("small-images", tmp_path / "set.npz", out=tmp_path / "no", tensorboard=True)
