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
PROCESS = """
import os, signal, sys
from pathlib import Path
from tests.labelled import trained
from verydeep.training.loop import Learner

def process(data, out, die_at, resume):
    learn = Learner.learn
    def dying(self, batch, rate, step, side=None):
        if step == die_at and self.group.rank == 1 and not self.group.restarted:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, batch, rate, step, side)
    Learner.learn = dying
    # as on machines that share no disk
    out = Path(out if os.environ["RANK"] == "0" else out + " elsewhere")
    result = trained(data, out, resume=resume, sync_norm=True, dropout=0.0)
    assert result.config["config"]["epochs"] == 3
"""
UNDER_TORCHRUN = f"""{PROCESS}
process(sys.argv[1], sys.argv[2], die_at=6, resume=False)
"""
# The same environment without torchrun, and one import of torch for all: both processes are forked.
PAIRS = f"""{PROCESS}
import json, socket, traceback
import torch._dynamo, verydeep.training.run  # an optimiser loads the first
def pair(die_at, resume):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in "01":
        children.append(os.fork())
        if not children[-1]:
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                process(sys.argv[1], sys.argv[2], die_at, resume)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
model = Path(sys.argv[2], "model.safetensors")
for die_at, resume in ((6, False), (-1, True), (-1, True)):
    print(json.dumps([pair(die_at, resume), model.exists()]), flush=True)
"""


def run(folder: Path, code: str, data: Path, out: Path, *launcher: str) -> str:
    program = folder / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, *launcher, str(program), str(data), str(out)],
        check=False, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in events(out) if line["event"] == "step"]


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def resumed_at(out: Path) -> list[tuple[int, int]]:
    """(step, processes) of each time that it went on."""
    return [(e["step"], e["processes"]) for e in events(out) if e["event"] == "resume"]


def test_torchrun_restarts_what_was_killed(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "set.npz"), tmp_path / "run"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1"
    run(tmp_path, UNDER_TORCHRUN, data, out, *torchrun.split())
    # it goes on from the end of the first epoch: one interval lost
    assert resumed_at(out) == [(4, 2)]
    assert events(out)[-1]["event"] == "end"
    assert len(losses(out)) == 12


def test_two_processes_learn_what_one_does_even_when_one_is_killed(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "set.npz"), tmp_path / "two"
    trained(data, tmp_path / "one", sync_norm=True, dropout=0.0)
    launches = run(tmp_path, PAIRS, data, out).splitlines()
    killed, again, finished = (json.loads(line) for line in launches)
    assert killed == [[1, -9], False]
    assert again == finished == [[0, 0], True]
    alone, together = losses(tmp_path / "one"), losses(out)
    assert len(alone) == 12
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert resumed_at(out) == [(4, 2)]
    assert events(out)[-1]["event"] == "end"
    assert not (tmp_path / "two elsewhere").exists()
    first, second = (
        modelfile.read(tmp_path / name / "model.safetensors").tensors() for name in ("one", "two")
    )
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, rtol=0.05, atol=2e-3, err_msg=key)
