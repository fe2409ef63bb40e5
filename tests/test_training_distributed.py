"""Two processes under torchrun learn what one does, and go on when one of them is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from verydeep import modelfile

from .labelled import arrays, trained

# Batches of 12 over two processes, with batch norm over both; no dropout, whose draws are each one's own.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.labelled import trained
from verydeep.training.loop import Learner

die_at = int(sys.argv[3])
learn = Learner.learn
def dying(self, batch, rate, step, side=None):
    if step == die_at and self.group.rank == 1 and not self.group.restarted:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, batch, rate, step, side)
Learner.learn = dying
resume = sys.argv[4] == "resume"
# as on machines that share no disk
out = Path(sys.argv[2] if os.environ["RANK"] == "0" else sys.argv[2] + " elsewhere")
result = trained(sys.argv[1], out, resume=resume, sync_norm=True, dropout=0.0)
assert result.config["config"]["epochs"] == 3
"""
NEVER = -1


def torchrun(
    folder: Path,
    data: Path,
    out: Path,
    *,
    die_at: int = NEVER,
    resume: bool = False,
    restarts: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Two processes; the second one is killed at that step. restarts: that torchrun makes by itself."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(restarts),
    ]
    words += [str(program), str(data), str(out), str(die_at), "resume" if resume else "begin"]
    return subprocess.run(
        [sys.executable, *words],
        check=False, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in events(out) if line["event"] == "step"]


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_torchrun_restarts_what_was_killed(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz")
    done = torchrun(tmp_path, data, tmp_path / "run", die_at=6, restarts=1)
    assert done.returncode == 0, done.stderr
    lines = events(tmp_path / "run")
    # it goes on from the end of the first epoch: one interval lost
    assert [line["step"] for line in lines if line["event"] == "resume"] == [4]
    assert lines[-1]["event"] == "end"
    assert len(losses(tmp_path / "run")) == 12


def test_two_processes_learn_what_one_does_even_when_one_is_killed(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz")
    trained(data, tmp_path / "one", sync_norm=True, dropout=0.0)
    killed = torchrun(tmp_path, data, tmp_path / "two", die_at=6)
    assert killed.returncode != 0
    assert not (tmp_path / "two" / "model.safetensors").exists()
    again = torchrun(tmp_path, data, tmp_path / "two", resume=True)
    assert again.returncode == 0, again.stderr
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(alone) == 12
    np.testing.assert_allclose(together, alone, rtol=1e-3)

    lines = events(tmp_path / "two")
    resumed = [line for line in lines if line["event"] == "resume"]
    assert [line["step"] for line in resumed] == [
        4
    ]  # the end of the first epoch: one interval lost
    assert resumed[0]["processes"] == 2
    assert lines[-1]["event"] == "end"
    assert not (tmp_path / "two elsewhere").exists()
    finished = torchrun(tmp_path, data, tmp_path / "two", resume=True)
    assert finished.returncode == 0, finished.stderr
    first, second = (
        modelfile.read(tmp_path / name / "model.safetensors").tensors() for name in ("one", "two")
    )
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, rtol=0.05, atol=2e-3, err_msg=key)
