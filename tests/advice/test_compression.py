"""Advice of `verydeep compress` and on coded weights, followed."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import verydeep as package
from verydeep import compression, modelfile
from verydeep.compression.learning import learnt
from verydeep.training.coding import coding_of
from verydeep.training.recipes import changed, paper, small_images
from verydeep.training.start import started, teacher_of

from ..conftest import Run
from ..labelled import CLASSES, SETTINGS, arrays
from ..tiny import NAMES, model_file, photo, tiny
from .following import follows, refused, said


@follows(
    "{} is not a size; write 300KB, 8.5MB or bytes",
    "it was compressed already, and would lose twice; take the model that it was made from, or add "
    "--again (again=True in Python)",
    "size and max_drop are two goals; give one of them",
    "max_drop needs photos to measure it on: give data or calibrate",
    "a trunk has no answers to drop; give size instead, and no data",
    "{} photos to calibrate on; expected {} or more, and a few hundred are better",
    "{}: no photos in it; expected some",
    "effort is {}; expected quick, normal or max",
    "{} is {}; expected a whole number, {} or more",
    "max_drop is {}; expected 0 to 100",
)  # fmt: skip
def test_what_can_be_compressed(model: Path, tmp_path: Path, verydeep: Run) -> None:
    out, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"

    def compress(*words: object, given: Path = model, to: Path = out) -> str:
        done = verydeep("compress", given, "--out", to, *words)
        assert (done.status == 2) == (not done.out), done.err
        return done.err

    said("{} is not a size; write 300KB, 8.5MB or bytes", compress("--size", "much"))
    for size in ("300KB", "8.5MB", 50_000):
        assert "trial 1: " in compress("--size", size)
    words = (
        "it was compressed already, and would lose twice; take the model that it was made from, or "
        "add --again (again=True in Python)"
    )
    said(words, compress(given=out, to=other))
    assert "trial 1: " in compress("--again", given=out, to=other)
    assert "trial 1: " in compress(to=other)
    package.compress(out, other, again=True)

    images = photo(tmp_path / "photos" / "0.png").parent
    words = "{} photos to calibrate on; expected {} or more, and a few hundred are better"
    _, number = said(words, compress("--calibrate", images))
    for seed in range(int(number)):
        photo(images / f"{seed}.png", seed=seed)
    assert "trial 1: " in compress("--calibrate", images)
    both = ("--size", "50KB", "--max-drop", 100, "--calibrate", images)
    said("size and max_drop are two goals; give one of them", compress(*both))
    assert "trial 1: " in compress(*both[:2])
    words = "effort is {}; expected quick, normal or max"
    said(words, refused(lambda: package.compress(model, out, effort="much")))
    for effort in ("quick", "normal", "max"):
        package.compress(model, out, effort=effort)
    words = "{} is {}; expected a whole number, {} or more"
    *_, least = said(words, refused(lambda: package.compress(model, out, threads="all")))  # type: ignore[arg-type]
    package.compress(model, out, threads=int(least))
    share = "max_drop is {}; expected 0 to 100"
    said(share, refused(lambda: package.compress(model, out, max_drop=-1, calibrate=images)))
    package.compress(model, out, max_drop=100, calibrate=images)
    words = "max_drop needs photos to measure it on: give data or calibrate"
    said(words, compress("--max-drop", 100))
    assert "trial 1: " in compress(*both[2:])
    label = package.load(model)(images / "0.png").label
    shutil.copytree(images, tmp_path / "data" / label)
    assert "trial 1: " in compress("--max-drop", 100, "--data", tmp_path / "data")
    trunk = model_file(tmp_path / "trunk", tiny(head="classic", classes=0))
    words = "a trunk has no answers to drop; give size instead, and no data"
    said(words, compress(*both[2:], given=trunk))
    assert "trial 1: " in compress(*both[:2], given=trunk)

    empty = tmp_path / "empty.tar"
    tarfile.open(empty, "w").close()
    words = "{}: no photos in it; expected some"
    said(words, compress("--calibrate", empty))
    with tarfile.open(empty, "w") as archive:
        archive.add(images, "any")
    assert "trial 1: " in compress("--calibrate", empty)
    words = "{}: shards that are streamed; fetch them, and give their path"
    said(words, compress("--calibrate", "https://localhost/photos.tar"))


@follows("{}: cannot be made: {}; name another file")
def test_names_that_leave_no_room(model: Path, tmp_path: Path) -> None:
    """For what is beside the file until it is done."""
    words = "{}: cannot be made: {}; name another file"
    said(words, refused(lambda: package.compress(model, tmp_path / ("n" * 252))))
    package.compress(model, tmp_path / "n")


@follows("size is {}; no file of this network has fewer than {} bytes, so ask for more")
def test_sizes_of_what_is_learnt(tmp_path: Path) -> None:
    net = package.network("vgg11", head="gap", layers="relu5_2", classes=3, width=1 / 16)
    model = modelfile.read(model_file(tmp_path / "model", net, class_names=CLASSES))
    data, epoch = arrays(tmp_path / "set.npz"), {**SETTINGS, "head": "gap", "epochs": 1}

    def learn(size: int) -> Path:
        return learnt(model, data, tmp_path / "out", size=size, calibrate=[], settings=epoch)

    words = "size is {}; no file of this network has fewer than {} bytes, so ask for more"
    _, least = said(words, refused(lambda: learn(900)))
    assert learn(int(least)).exists()


@follows(
    "{}: holds a compression that was stopped; go on with it by --resume (resume=True in Python), or "
    "delete the folder",
    "what is done is in {}; the same command with --resume goes on from there",
    "{}: was begun with {} {}, which is now {}; ask for the same, or delete the folder",
    "{}: another process makes it now; name another file, or wait for it",
    "{}: holds something else, and is needed until all is done; move it away, or name another file",
)
def test_what_was_stopped(
    model: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, second = tmp_path / "out", tmp_path / "second"

    def compress(*words: object) -> str:
        return verydeep("compress", model, "--out", out, *words).err

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def stopped() -> str:
        with monkeypatch.context() as patched:
            patched.setattr(compression, "_search", stop)
            return compress("--size", "50KB", "--resume")

    told = "what is done is in {}; the same command with --resume goes on from there"
    (folder,) = said(told, stopped())
    words = (
        "{}: holds a compression that was stopped; go on with it by --resume (resume=True in Python), or "
        "delete the folder"
    )
    said(words, compress("--size", "50KB"))
    differs = "{}: was begun with {} {}, which is now {}; ask for the same, or delete the folder"
    _, what, before, _ = said(differs, compress("--size", "60KB", "--resume"))
    assert what == "size"
    compress("--size", before, "--resume")
    assert out.exists()
    stopped()
    shutil.rmtree(folder)
    compress("--size", "60KB")
    busy = "{}: another process makes it now; name another file, or wait for it"

    def meanwhile(_: object) -> None:
        said(busy, refused(lambda: package.compress(model, out)))
        package.compress(model, second)

    package.compress(model, out, on_event=meanwhile)
    package.compress(model, out)
    assert second.exists()

    theirs = tmp_path / "out.work"
    theirs.mkdir()
    (theirs / "note").touch()
    words = (
        "{}: holds something else, and is needed until all is done; move it away, or name another "
        "file"
    )
    said(words, refused(lambda: package.compress(model, out)))
    package.compress(model, tmp_path / "third")
    theirs.rename(tmp_path / "away")
    package.compress(model, out)
    assert (tmp_path / "away" / "note").exists()


@follows(
    "{} is not a number of multiply-adds; write 80M or 5.2G",
    "multiply_adds and speedup are two goals; give one of them",
    "which channels can go is measured on photos: name some with --calibrate (calibrate= in Python)",
    "speedup is {}; expected more than 1, and at most 100",
    "multiply_adds is {}; {} needs {}, so expected less",
    "a speed is measured of scores, which a trunk does not have; give --multiply-adds instead "
    "(multiply_adds= in Python)",
)
def test_what_can_be_pruned(model: Path, tmp_path: Path, verydeep: Run) -> None:
    out = tmp_path / "out.safetensors"
    for seed in range(40):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)

    def compress(*words: object, photos: bool = True, given: Path = model) -> str:
        words += ("--calibrate", tmp_path / "photos") if photos else ()
        done = verydeep("compress", given, "--out", out, *words, "--threads", 1)
        assert (done.status == 2) == (not done.out), done.err
        return done.err

    said(
        "{} is not a number of multiply-adds; write 80M or 5.2G", compress("--multiply-adds", "few")
    )
    words = "multiply_adds is {}; {} needs {}, so expected less"
    for much in ("80M", "5.2G"):  # a number, but more than this one needs
        *_, needed = said(words, compress("--multiply-adds", much))
    less = int(needed.replace(",", "")) - 1
    words = "which channels can go is measured on photos: name some with --calibrate (calibrate= in Python)"
    said(words, compress("--multiply-adds", less, photos=False))
    assert "pruned: " in compress("--multiply-adds", less)
    words = "multiply_adds and speedup are two goals; give one of them"
    said(words, compress("--multiply-adds", less, "--speedup", 1.001))
    words = "speedup is {}; expected more than 1, and at most 100"
    for wrong in (1, 101):
        said(words, compress("--speedup", wrong))
    assert "pruned: " in compress("--speedup", 1.001)
    trunk = model_file(tmp_path / "trunk", tiny(head="classic", classes=0))
    words = (
        "a speed is measured of scores, which a trunk does not have; give --multiply-adds instead "
        "(multiply_adds= in Python)"
    )
    said(words, compress("--speedup", 1.5, given=trunk))
    assert "pruned: " in compress("--multiply-adds", less // 2, given=trunk)


@follows(
    "channels are {}; expected {} whole numbers, 1 to {}, one for each convolution of column {}, and "
    "perhaps two for the hidden FC layers",
    "--init {} has {}; leave channels out",
)
def test_channels_of_its_own(tmp_path: Path) -> None:
    words = (
        "channels are {}; expected {} whole numbers, 1 to {}, one for each convolution of column {}, "
        "and perhaps two for the hidden FC layers"
    )
    _, count, most, _ = said(words, refused(lambda: package.network("vgg11", channels=[1])))
    assert package.network("vgg11", channels=[int(most)] * int(count)).channels
    assert package.network("vgg11", channels=[2] * (int(count) + 2)).channels
    path = model_file(tmp_path / "own", package.network("vgg11", classes=2, channels=[2] * 10))
    config = changed(paper(), {"model": "vgg11", "channels": (3,) * 8, "size": 32})

    def start(named: tuple[str, ...]) -> object:
        return started(config, 2, path, named=named)

    said("--init {} has {}; leave channels out", refused(lambda: start(("model", "channels"))))
    model, *_ = start(("model",))  # type: ignore[misc]
    assert model.table.channels == (2,) * 10


@follows(
    "does not know the data's {} classes, in their order, and no others; leave teacher out",
    "teacher {} takes pixels with {} {}, and this network with {}; begin with what was pruned from the "
    "teacher, or leave teacher out",
)
def test_teachers(model: Path) -> None:
    how = modelfile.read(model).record.preprocess
    words = "does not know the data's {} classes, in their order, and no others; leave teacher out"
    said(words, refused(lambda: teacher_of(str(model), how, ("cat", "dog"))))
    assert teacher_of("", how, ("cat", "dog")) is None
    words = (
        "teacher {} takes pixels with {} {}, and this network with {}; begin with what was pruned from "
        "the teacher, or leave teacher out"
    )
    other = replace(how, mean=(0.5, 0.5, 0.5))
    said(words, refused(lambda: teacher_of(str(model), other, NAMES)))
    assert teacher_of(str(model), how, NAMES)  # what was pruned has its pre-processing
    assert teacher_of("", other, NAMES) is None


@follows(
    "code_bytes={} needs the same network to start from with its weights coded; make one with `verydeep "
    "compress MODEL --size SIZE --out FILE`, of a bit more bytes, and name it with --init"
)
def test_where_coded_weights_come_from(tmp_path: Path, verydeep: Run) -> None:
    net = tiny("vgg11", "classic", classes=3)
    model = model_file(tmp_path / "model.safetensors", net, class_names=CLASSES)
    words = (
        "code_bytes={} needs the same network to start from with its weights coded; make one with "
        "`verydeep compress MODEL --size SIZE --out FILE`, of a bit more bytes, and name it with --init"
    )
    cpu = torch.device("cpu")
    said(words, refused(lambda: coding_of(str(model), net, 50_000, cpu)))
    small = tmp_path / "small.safetensors"
    done = verydeep("compress", model, "--size", 60_000, "--out", small)
    assert done.status == 0, done.err
    assert coding_of(str(small), net, 50_000, cpu)


@follows(
    "are too few to calibrate on, so each weight is rounded by itself; name {} photos or more, without "
    "labels, with --calibrate (calibrate= in Python)",
    "photos to calibrate on that are among the labelled ones, too: {}; what is lost there says less of "
    "other photos, so give others",
)
def test_photos_to_calibrate_on(
    model: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(30):
        photo(tmp_path / "data" / NAMES[seed % 7] / f"{seed}.png", seed=100 + seed)

    def compressed(**choices: Any) -> str:
        caplog.clear()
        package.compress(model, tmp_path / "o", data=tmp_path / "data", **choices)
        return "\n".join(caplog.messages)

    words = (
        "are too few to calibrate on, so each weight is rounded by itself; name {} photos or more, "
        "without labels, with --calibrate (calibrate= in Python)"
    )
    (count,) = said(words, compressed())
    assert len(list(photos.iterdir())) >= int(count)
    assert not compressed(calibrate=photos)
    words = (
        "photos to calibrate on that are among the labelled ones, too: {}; what is lost there says less "
        "of other photos, so give others"
    )
    shutil.copy(next((tmp_path / "data" / NAMES[0]).iterdir()), photos / "+.png")
    assert said(words, compressed(calibrate=photos)) == ("1",)
    (photos / "+.png").unlink()
    assert not compressed(calibrate=photos)


@follows(
    "{}: {} has numbers that are not finite, so it cannot be rounded; take a model whose weights are all "
    "numbers"
)
def test_weights_that_are_no_numbers(model: Path, tmp_path: Path) -> None:
    opened = modelfile.read(model)
    tensors = {key: np.array(value) for key, value in opened.stored.items()}
    tensors["features.0.weight"].flat[3] = np.nan
    modelfile.write(tmp_path / "wrong", opened.record, tensors)
    words = (
        "{}: {} has numbers that are not finite, so it cannot be rounded; take a model whose weights "
        "are all numbers"
    )
    _, key = said(words, refused(lambda: package.compress(tmp_path / "wrong", tmp_path / "o")))
    assert key == "features.0.weight"
    assert package.compress(model, tmp_path / "o").path.exists()


@follows("hold takes the best epoch, which with code_bytes may be one of more bytes; set hold=0")
def test_no_epoch_of_more_bytes_is_kept() -> None:
    asked = {"code_bytes": 5000, "hold": 0.1}
    words = "hold takes the best epoch, which with code_bytes may be one of more bytes; set hold=0"
    said(words, refused(lambda: changed(small_images(), asked)))
    assert changed(small_images(), {**asked, "hold": 0}).code_bytes == 5000


@follows("its streams take {} bytes of {}{}", "; more epochs make it less")
def test_more_epochs_take_fewer_bytes(tmp_path: Path) -> None:
    net = package.network("vgg11", head="gap", layers="relu5_2", classes=3, width=1 / 16)
    model = modelfile.read(model_file(tmp_path / "model", net, class_names=CLASSES))
    coded = tmp_path / "coded"
    package.compress(model, coded, size=20_000)
    aim = (
        sum(a.nbytes for key, a in modelfile.read(coded).stored.items() if key.endswith(".code"))
        // 2
    )

    def taken(epochs: int) -> tuple[int, str]:
        own = {
            "head": "gap",
            "code_bytes": aim,
            "optimiser": "adamw",
            "rate": 3e-3,
            "epochs": epochs,
        }
        result = package.train(
            "small-images", arrays(tmp_path / "set.npz"), out=tmp_path / f"of-{epochs}", init=coded,
            settings={**SETTINGS, **own, "average": 0.0},
        )  # fmt: skip
        (note,) = [line["text"] for line in result.log if "streams take" in str(line.get("text"))]
        size, *_ = said("its streams take {} bytes of {}{}", f"{note} ")
        return int(size.replace(",", "")), note

    few, note = taken(2)
    said("; more epochs make it less", note)
    assert taken(30)[0] < few


@follows(
    "the tensor {} has the shape {}; expected one dimension, and for {} weights {} bytes at least"
)
def test_streams_that_are_too_short(model: Path, tmp_path: Path) -> None:
    package.compress(model, tmp_path / "coded")
    opened = modelfile.read(tmp_path / "coded")
    name = "features.0.weight.code"

    def write(stream: np.ndarray) -> None:
        modelfile.write(tmp_path / "m", opened.record, {**opened.stored, name: stream})

    words = "the tensor {} has the shape {}; expected one dimension, and for {} weights {} bytes at least"
    for wrong in (np.zeros((2, 60), np.uint8), np.zeros(1, np.uint8)):
        *_, least = said(words, refused(lambda wrong=wrong: write(wrong)))  # type: ignore[misc]
        write(np.zeros(int(least), np.uint8))
