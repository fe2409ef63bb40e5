"""`benchmarks/gpu.py` runs, rehearsed on the processor: nobody is to find out at a GPU that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_rehearsal(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    rows = {
        "answers, exact and fast, float32, batch 1", "lpips, forward and backward, batch 1",
        "features of JPEGs", "training step, vgg16_bn at 64, fp32",
    }  # fmt: skip
    out = tmp_path / "gpu.json"
    done = run(
        "--device", "cpu", "--quick", "--rounds", "1", "--workers", "0", "--out", str(out),
        "--only", "float32, batch 1,", "and backward, batch 1,", "features", "vgg16_bn at 64, fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert json.loads(done.stdout) == result
    assert result["rehearsal"]
    assert {row["row"] for row in result["rows"]} == rows
    for row in result["rows"]:
        theirs = set.union(*(set(ratios) for ratios in row["times as fast"].values()))
        assert theirs | set(row["times as fast"]) == set(row["ms an image"]), row
        assert all(value > 0 for value in row["ms an image"].values())


def test_time_that_is_up_and_rows_that_fail(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    told = ("--device", "cpu", "--quick", "--out", str(out), "--only")
    assert run(*told, "half", "--seconds", "-1").returncode == 0
    assert {row["skipped"] for row in json.loads(out.read_text())["rows"]} == {"time was up"}
    done = run(*told, "features", "--workers", "-1")
    assert done.returncode == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["failed"].startswith("ValueError: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device() -> None:
    done = run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("no cuda device here; rehearse with --device cpu --quick")
