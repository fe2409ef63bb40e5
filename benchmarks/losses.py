"""Train through LPIPS: forward and backward to the image, `verydeep.losses.LPIPS` against `lpips` 0.1.4.

    python benchmarks/losses.py [--rounds 7] [--batches 1 8] [--size 256] [--large 1024] [--out FILE.json]

One process an entrant, in turns, both with the built-in convolutions and the published heads. Parity first:
values within 1e-5, gradients within 1e-2 (single positions lie on the edge of a ReLU). Peak memory is that
of the whole process beyond what it had before the call, in a process of its own. "remembered": the target's
features computed once, as in a fit to one photo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import report

CHILD = """
import json, resource, sys, time, warnings
from types import SimpleNamespace
import numpy as np
import torch
warnings.simplefilter("ignore")
entrant, batch, size, threads, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
if threads:
    torch.set_num_threads(threads)
from verydeep.losses import LPIPS
loss = LPIPS(net="vgg")
if entrant == "lpips":
    import lpips, torchvision
    features = torch.nn.Sequential(*(layer for part in loss.net.values() for layer in part))
    features.to(memory_format=torch.contiguous_format)
    for module in features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True  # as torchvision has it
    torchvision.models.vgg16 = lambda **_: SimpleNamespace(features=features)
    loss = lpips.LPIPS(net="vgg", verbose=False)
torch.manual_seed(0)
y = torch.rand(batch, 3, size // 8, size // 8) * 2 - 1
y = torch.nn.functional.interpolate(y, (size, size), mode="bilinear")
x = (y + 0.1 * torch.randn_like(y)).clamp(-1, 1).requires_grad_()
target = loss.remember(y) if entrant == "remembered" else y
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def call():
    x.grad = None
    value = loss(x, target)
    value.sum().backward()
    return value
before = peak()
value = call()
after = peak()
np.savez(out, value=value.detach().numpy(), gradient=x.grad.numpy())
print(json.dumps({"mib": after - before}), flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    call()
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
"""
ENTRANTS = ("lpips", "verydeep", "remembered")


class Child:
    """An entrant in its own process, which computes once whenever it is asked."""

    def __init__(self, entrant: str, batch: int, size: int, threads: int, folder: str) -> None:
        self.out = f"{folder}/{entrant}.npz"
        words = [entrant, *map(str, (batch, size, threads)), self.out]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mib = self._line()["mib"]
        with np.load(self.out) as arrays:
            self.value, self.gradient = arrays["value"], arrays["gradient"]

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a child ended early; its message stands above")
        return dict(json.loads(line))


def alike(ours: Child, theirs: Child) -> None:
    if np.abs(ours.value - theirs.value).max() > 1e-5 * np.abs(theirs.value).max() + 1e-7:
        raise SystemExit(f"values differ: {ours.value.ravel()}, {theirs.value.ravel()}")
    apart = np.linalg.norm(ours.gradient - theirs.gradient) / np.linalg.norm(theirs.gradient)
    if apart > 1e-2:
        raise SystemExit(f"gradients differ by {apart:.2g}")


def race(batch: int, size: int, rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds a pair, how often faster than lpips, and peak MiB of one call."""
    with tempfile.TemporaryDirectory() as folder:
        children = {name: Child(name, batch, size, threads, folder) for name in ENTRANTS}
        for name in ENTRANTS[1:]:
            alike(children[name], children["lpips"])
        times: dict[str, list[float]] = {name: [] for name in ENTRANTS}
        for number in range(rounds):
            order = ENTRANTS[number % 3 :] + ENTRANTS[: number % 3]
            for name in order:
                times[name].append(children[name].seconds())
        for child in children.values():
            child.close()

    def ratio(name: str) -> float:
        pairs = zip(times["lpips"], times[name], strict=True)
        return round(statistics.median(theirs / ours for theirs, ours in pairs), 3)

    found = {
        name: {
            "ms a pair": round(1e3 * statistics.median(times[name]) / batch, 1),
            "times as fast": ratio(name),
            "peak MiB": round(child.mib),
            "of lpips' memory": round(child.mib / children["lpips"].mib, 3),
        }
        for name, child in children.items()
    }
    return {"batch": batch, "size": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--large", type=int, default=1024, help="side for the memory; 0: not")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = [race(batch, args.size, args.rounds, args.threads) for batch in args.batches]
    if args.large:
        results.append(race(1, args.large, 1, args.threads))
    result = {
        "rounds": args.rounds,
        "results": results,
    }
    report("losses", result, args.out, "torch", "torchvision", "lpips")


if __name__ == "__main__":
    main()
