"""What befalls a run from outside: stopped at any step, torn files, odd names, another in its folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verydeep import modelfile
from verydeep.errors import DataError
from verydeep.training.data import find

from .labelled import arrays, images, trained
from .test_training_run import At, one_thread

__all__ = ["one_thread"]  # a fixture that each test here uses


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("data") / "set.npz")


def lines(out: Path, event: str) -> list[dict[str, object]]:
    every = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in every if line["event"] == event]


@pytest.mark.parametrize("last", [4, 12])
def test_stopped_in_the_last_step_of_an_epoch(last: int, data: Path, tmp_path: Path) -> None:
    """Its checkpoint is of an epoch without steps to do that has not been validated."""
    whole = trained(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(
            data, tmp_path / "cut",
            event=At(last - 1, lambda: signal.raise_signal(signal.SIGINT)),
        )  # fmt: skip
    assert list((tmp_path / "cut" / "checkpoints").glob(f"step-{last:09}.*"))
    assert len(lines(tmp_path / "cut", "epoch")) == last // 4 - 1
    resumed = trained(data, tmp_path / "cut", resume=True)
    first, second = modelfile.read(whole.model).tensors(), modelfile.read(resumed.model).tensors()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)
    epochs = [lines(tmp_path / name, "epoch") for name in ("whole", "cut")]
    assert [line["rate"] for line in epochs[0]] == [line["rate"] for line in epochs[1]]
    assert [line["step"] for line in epochs[1]] == [4, 8, 12]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_names_that_are_no_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.fsencode(tmp_path / "set")
    pixels, _ = images(8, seed=0)
    for label in (b"caf\xe8", b"caf\xe9"):
        os.makedirs(os.path.join(root, label))
        for number, image in enumerate(pixels):
            with open(os.path.join(root, label, b"\xe9%d.png" % number), "wb") as file:
                Image.fromarray(image).save(file, "PNG")
    monkeypatch.setattr(sys, "argv", ["verydeep", "train", os.fsdecode(b"\xe9")])
    result = trained(tmp_path / "set", tmp_path / "run", epochs=1)
    assert result.classes == ("caf\\udce8", "caf\\udce9")
    assert result.bad == ()
    assert modelfile.read(result.model).record.class_names == result.classes
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
    assert find(tmp_path / "set.tar").classes == result.classes


@pytest.mark.parametrize("label", ["two\nlines", "x" * 1001])
def test_a_class_name_that_no_model_file_takes(label: str, tmp_path: Path) -> None:
    pixels, _ = images(4, seed=0)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1, 0, 1], classes=["ant", label])
    with pytest.raises(DataError, match="expected a name on one line, of 1000 at most"):
        find(tmp_path / "a.npz")
