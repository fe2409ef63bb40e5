"""Advice of `verydeep compress` and on coded weights, followed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

import verydeep as package
from verydeep import modelfile

from ..conftest import Run
from ..tiny import model_file, photo, tiny
from .following import follows, refused, said


@follows(
    "{} is not a size; write 300KB, 8.5MB or bytes",
    "it was compressed already, and would lose twice; take the model that it was made from, or add "
    "--again (again=True in Python)",
    "size and max_drop are two goals; give one of them",
    "max_drop needs photos to measure it on: give data or calibrate",
    "a trunk has no answers to drop; give size instead",
    "{} photos to calibrate on; expected {} or more, and a few hundred are better",
)  # fmt: skip
def test_what_can_be_compressed(model: Path, tmp_path: Path, verydeep: Run) -> None:
    out, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"

    def compress(*words: object, given: Path = model, to: Path = out) -> str:
        done = verydeep("compress", given, "--out", to, *words)
        assert (done.status == 2) == (not done.out), done.err
        return done.err

    said("{} is not a size; write 300KB, 8.5MB or bytes", compress("--size", "much"))
    for size in ("300KB", "8.5MB", 50_000):
        assert "trial: " in compress("--size", size)
    words = (
        "it was compressed already, and would lose twice; take the model that it was made from, or "
        "add --again (again=True in Python)"
    )
    said(words, compress(given=out, to=other))
    assert "trial: " in compress("--again", given=out, to=other)
    assert "trial: " in compress(to=other)
    package.compress(out, other, again=True)

    images = photo(tmp_path / "photos" / "0.png").parent
    words = "{} photos to calibrate on; expected {} or more, and a few hundred are better"
    _, number = said(words, compress("--calibrate", images))
    for seed in range(int(number)):
        photo(images / f"{seed}.png", seed=seed)
    assert "trial: " in compress("--calibrate", images)
    both = ("--size", "50KB", "--max-drop", 100, "--calibrate", images)
    said("size and max_drop are two goals; give one of them", compress(*both))
    assert "trial: " in compress(*both[:2])
    words = "max_drop needs photos to measure it on: give data or calibrate"
    said(words, compress("--max-drop", 100))
    assert "trial: " in compress(*both[2:])
    label = package.load(model)(images / "0.png").label
    shutil.copytree(images, tmp_path / "data" / label)
    assert "trial: " in compress("--max-drop", 100, "--data", tmp_path / "data")
    trunk = model_file(tmp_path / "trunk", tiny(head="classic", classes=0))
    words = "a trunk has no answers to drop; give size instead"
    said(words, compress(*both[2:], given=trunk))
    assert "trial: " in compress(*both[:2], given=trunk)


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
