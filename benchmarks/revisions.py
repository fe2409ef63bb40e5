"""Is verydeep as fast as it was? Two checkouts, the same jobs, in turns.

    git worktree add ../before v0.1.0
    python benchmarks/revisions.py ../before . [--rounds 9] [--only lpips,classify] [--out FILE.json]

Each job runs in a process of its own for each checkout, with `PYTHONPATH` alone telling them apart, in
turns; what is printed is the median over the rounds of seconds before / seconds after, above 1 where the
second one is the faster. Parity first: both must give the same answer, to the tolerance beside the job.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import ENGINES, report

HERE = Path(__file__).parent.parent
PHOTOS = sorted((HERE / "examples" / "photos").glob("*.jpg"))

# job -> relative tolerance of its answer, how often it runs in one turn, preparation, and what is timed,
# which gives numbers. Only what was public in both checkouts may stand here.
JOBS: dict[str, tuple[float, int, str, str]] = {
    "import verydeep": (0, 1, "", "process:-c|import verydeep; print('[]')"),
    "classify one photo": (1e-3, 1, "", f"process:-m|verydeep|classify|{PHOTOS[0]}|--json"),
    "explain one photo": (
        0,
        1,
        "",
        f"process:-m|verydeep|explain|{PHOTOS[0]}|--out|{{tmp}}|--json",
    ),
    "load and one photo": (
        1e-3,
        1,
        "import verydeep",
        f"verydeep.load().scores([{str(PHOTOS[0])!r}]).ravel().tolist()",
    ),
    "vgg16(weights='builtin')": (
        1e-6,
        1,
        "from verydeep import models",
        "[float(p.detach().double().sum()) for p in models.vgg16(weights='builtin').parameters()]",
    ),
    "scores, batch 1": (
        1e-3,
        8,
        "p = verydeep.load(); x = photos[:1]",
        "p.scores(x).ravel().tolist()",
    ),
    "scores, batch 8": (
        1e-3,
        2,
        "p = verydeep.load(); x = photos[:8]",
        "p.scores(x).ravel().tolist()",
    ),
    "scores, batch 8, exact": (
        1e-4,
        2,
        "p = verydeep.load(precision='exact'); x = photos[:8]",
        "p.scores(x).ravel().tolist()",
    ),
    "a stream of 64 photos": (
        1e-3,
        1,
        "p = verydeep.load(); x = paths * 8",
        "[a.probability for a in p.stream(x[:64])]",
    ),
    "features of 64 photos": (
        1e-3,
        1,
        "p = verydeep.load(); x = (paths * 8)[:64]",
        "p.features(x, ['relu5_3'], pool='avg')['relu5_3'].mean(1).tolist()",
    ),
    "lpips of a pair, 224": (
        1e-3,
        4,
        "a, b = photos[0], photos[1]",
        "[float(verydeep.lpips(a, b))]",
    ),
    "lpips of a pair, 224, exact": (
        1e-4,
        3,
        "a, b = photos[0], photos[1]",
        "[float(verydeep.lpips(a, b, precision='exact'))]",
    ),
    "lpips of 8 pairs": (
        1e-3,
        1,
        "a, b = photos[:8], photos[:8][::-1]",
        "verydeep.lpips(a, b).tolist()",
    ),
    "dists of a pair": (1e-3, 3, "a, b = photos[0], photos[1]", "[float(verydeep.dists(a, b))]"),
    "torch LPIPS, forward and backward, batch 1": (
        1e-3,
        2,
        "import torch; from verydeep.losses import LPIPS; loss = LPIPS(net='vgg', range='0..1');"
        "a, b = (torch.tensor(x).permute(2, 0, 1)[None] / 255 for x in photos[:2]); a.requires_grad_(True)",
        "(lambda d: (d.backward(), [float(d.detach())])[1])(loss(a, b).sum())",
    ),
    "torch LPIPS, forward and backward, batch 4": (
        1e-3,
        1,
        "import torch; from verydeep.losses import LPIPS; loss = LPIPS(net='vgg', range='0..1');"
        "a, b = (torch.stack([torch.tensor(x).permute(2, 0, 1) for x in g]) / 255 for g in"
        " (photos[:4], photos[4:8])); a.requires_grad_(True)",
        "(lambda d: (d.backward(), [float(d.detach())])[1])(loss(a, b).sum())",
    ),
}

WORKER = """
import json, sys, time
import numpy as np
from PIL import Image
import verydeep
paths = {paths!r}
photos = [np.asarray(Image.open(p).convert("RGB").resize((224, 224))) for p in paths]
{prepare}
def run():
    return {run}
answer = run()
for _ in range({times}):  # engines are chosen and warm
    run()
print(json.dumps(answer), flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    for _ in range({times}):
        run()
    print((time.perf_counter() - began) / {times}, flush=True)
"""


class Worker:
    """One job of one checkout: a process that waits for its turns, or a command that is one turn."""

    def __init__(self, checkout: Path, job: str, scratch: Path) -> None:
        _, times, prepare, run = JOBS[job]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(checkout.resolve()),
            "VERYDEEP_CACHE": str(scratch / f"cache-{checkout.resolve().name}"),
            "PYTHONWARNINGS": "ignore",
        }
        self.words: list[str] = []
        if run.startswith("process:"):
            folder = scratch / f"out-{checkout.resolve().name}"
            self.words = [
                w.replace("{tmp}", str(folder)) for w in run.removeprefix("process:").split("|")
            ]
            self.turn()  # compiles, and fills the cache
            self.answer = numbers(json.loads(self.output or "[]"))
            return
        code = WORKER.format(paths=[str(p) for p in PHOTOS], prepare=prepare, run=run, times=times)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=self.environment, cwd=scratch,
        )  # fmt: skip
        self.answer = numbers(json.loads(self._line()))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker died; its error is above")
        return line

    def turn(self) -> float:
        """Seconds of one turn."""
        if self.words:
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *self.words],
                env=self.environment,
                capture_output=True,
                text=True,
                check=True,
            )
            self.output = done.stdout
            return time.perf_counter() - began
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        if not self.words:
            self.process.communicate()


def numbers(value: object) -> list[float]:
    """Every number in a JSON value, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def alike(a: list[float], b: list[float], tolerance: float) -> bool:
    """Whether the answers agree, relative to their largest number; a tolerance of 0 does not compare."""
    if not tolerance:
        return True
    largest = max(map(abs, b), default=0.0)
    return len(a) == len(b) and all(
        abs(x - y) <= tolerance * largest for x, y in zip(a, b, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="jobs whose name holds one of these words")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = [word for word in args.only.split(",") if word]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for job in JOBS:
            if words and not any(word in job for word in words):
                continue
            workers = [Worker(checkout, job, Path(name)) for checkout in (args.before, args.after)]
            if not alike(workers[0].answer, workers[1].answer, JOBS[job][0]):
                raise SystemExit(f"{job}: the answers differ, so there is no figure")
            pairs = []
            for number in range(args.rounds):
                order = workers if number % 2 == 0 else workers[::-1]
                turns = {id(worker): worker.turn() for worker in order}
                pairs.append([turns[id(worker)] for worker in workers])
            for worker in workers:
                worker.close()
            ratios = sorted(before / after for before, after in pairs)
            row = {
                "job": job,
                "before_ms": round(1e3 * statistics.median(before for before, _ in pairs), 2),
                "after_ms": round(1e3 * statistics.median(after for _, after in pairs), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    ratios = [float(row["ratio"]) for row in rows]
    result = {
        "rounds": args.rounds,
        "geometric_mean": round(math.exp(statistics.mean(map(math.log, ratios))), 3),
        "jobs": rows,
    }
    report("revisions", result, args.out, *ENGINES)


if __name__ == "__main__":
    main()
