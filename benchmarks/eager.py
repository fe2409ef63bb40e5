"""The module itself in eager torch, VGG-16: a forward pass and a training step against torchvision's.

    python benchmarks/eager.py [--network vgg16] [--batches 1,8,32] [--size 224] [--rounds 3]
        [--threads 0] [--out FILE.json]

One process an entrant, in turns. A forward pass is `model(x)` in eval under `no_grad`; a training step is
zero_grad, forward, cross-entropy, backward and SGD with momentum, as PyTorch's ImageNet example takes it.
Peak memory is the process's highest resident set while it does the job (Linux). Parity first: the same seed
gives the same scores and the same loss after a step, to 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from machine import report
from training import Child

CHILD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
import torch.nn.functional as F
entrant, network, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if threads:
    torch.set_num_threads(threads)
if entrant == "torchvision":
    from torchvision.models import get_model
else:
    from verydeep.models import get_model

def images(batch):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, size, size, generator=generator)
    return x, torch.randint(0, 1000, (batch,), generator=generator)

torch.manual_seed(0)
model = get_model(network)
optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

def forward(x, y):
    model.eval()
    with torch.no_grad():
        return model(x)

def train(x, y):
    model.train()
    optimiser.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimiser.step()
    return loss

def peak(reset):
    if not Path("/proc/self/clear_refs").exists():
        return None
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) / 1024

x, y = images(2)
scores = forward(x, y)[0, :8].tolist()
torch.manual_seed(1)  # of dropout
losses = [train(x, y).item() for _ in range(2)]
print(json.dumps({"scores": scores, "losses": losses}), flush=True)
for line in sys.stdin:
    name, batch, times = line.split()
    x, y = images(int(batch))
    job = {"forward": forward, "train": train}[name]
    peak(reset=True)
    began = time.perf_counter()
    for _ in range(int(times)):
        job(x, y)
    seconds = (time.perf_counter() - began) / int(times)
    print(json.dumps({"seconds": seconds, "mib": peak(reset=False)}), flush=True)
"""
ENTRANTS = ("torchvision", "verydeep")
JOBS = ("forward", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description="Race the eager module against torchvision's.")
    parser.add_argument("--network", default="vgg16")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of each entrant; 0 for torch's own")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = (args.network, args.size, args.threads)
    children = {name: Child(name, *words, program=CHILD) for name in ENTRANTS}
    for what in ("scores", "losses"):
        theirs, ours = (children[name].about[what] for name in ENTRANTS)
        worst = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
        if worst > 1e-5 * max(map(abs, theirs)):
            raise SystemExit(f"the {what} of the same seed differ: {theirs} and {ours}")
    jobs = [f"{job} {batch}" for batch in args.batches.split(",") for job in JOBS]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        job: {name: [] for name in ENTRANTS} for job in jobs
    }
    for number in range(args.rounds):
        for job, found in results.items():
            times = max(1, 4 // int(job.split()[1]))  # small batches are over in a moment
            for name in ENTRANTS if number % 2 else ENTRANTS[::-1]:
                found[name].append(children[name].asked(f"{job} {times}"))
    for child in children.values():
        child.close()

    def middle(job: str, name: str, key: str) -> float | None:
        values = [one[key] for one in results[job][name]]
        return None if None in values else round(statistics.median(values), 4)

    def ratio(job: str) -> float:
        pairs = zip(*(results[job][name] for name in ENTRANTS), strict=True)
        return round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 3)

    report(
        "eager",
        {
            "network": f"{args.network}, {args.size}x{args.size}",
            "rounds": args.rounds,
            "seconds": {j: {n: middle(j, n, "seconds") for n in ENTRANTS} for j in jobs},
            "peak_mib": {j: {n: middle(j, n, "mib") for n in ENTRANTS} for j in jobs},
            "times_as_fast": {job: ratio(job) for job in jobs},
        },
        args.out,
        "torch",
        "torchvision",
    )


if __name__ == "__main__":
    main()
