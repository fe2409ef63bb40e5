"""What befalls a run from outside: stopped at any step, torn files, odd names, another in its folder."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from verydeep import modelfile

from .labelled import arrays, trained
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
