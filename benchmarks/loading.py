"""Build VGG-16 and load its 528 MB: `verydeep.models.vgg16(weights=path)` against torchvision's way.

    python benchmarks/loading.py [--rounds 7] [--out FILE.json]

One process a measurement, in turns. Time from after the imports to a module that is ready; peak memory of
the whole process beyond what it had after the imports, up to there and up to the first answer. Parity
first: the same logits from the same file. The weights are random: their values do not matter here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import report

COMMON = """
import json, resource, sys, time
import torch
torch.manual_seed(0)
image = torch.randn(1, 3, 224, 224)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
IMPORTS
before, began = peak(), time.perf_counter()
BUILD
seconds, loaded = time.perf_counter() - began, peak()
with torch.inference_mode():
    scores = net.eval()(image)[0, :8].tolist()
answered = peak()
memory = {"loaded": loaded - before, "answered": answered - before}
print(json.dumps({"seconds": seconds, "scores": scores, **memory}))
"""
WAYS = {
    "torchvision": (
        "from torchvision.models import vgg16",
        "net = vgg16(); net.load_state_dict(torch.load(sys.argv[1], weights_only=True))",
    ),
    "verydeep, .pth": ("from verydeep.models import vgg16", "net = vgg16(weights=sys.argv[1])"),
    "verydeep, model file": (
        "from verydeep.models import vgg16",
        "net = vgg16(weights=sys.argv[2])",
    ),
}
MAKE = """
import sys, torch, torchvision
from verydeep.published.conversion import convert
torch.manual_seed(0)
torch.save(torchvision.models.vgg16().state_dict(), sys.argv[1])
convert(sys.argv[1], sys.argv[2], preprocess="torchvision")
"""


def measure(way: str, files: list[str]) -> dict[str, object]:
    imports, build = WAYS[way]
    program = COMMON.replace("IMPORTS", imports).replace("BUILD", build)
    command = [sys.executable, "-W", "ignore", "-c", program, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/vgg16.pth", f"{folder}/vgg16.safetensors"]
        subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, *files], check=True)
        runs: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                runs[way].append(measure(way, files))
                ours, theirs = (
                    np.array(r["scores"]) for r in (runs[way][-1], runs["torchvision"][0])
                )
                if np.abs(ours - theirs).max() > 1e-5 * np.abs(theirs).max():
                    raise SystemExit(f"{way}: {ours}, torchvision: {theirs}")

    def ratio(way: str, what: str) -> float:
        pairs = zip(runs[way], runs["torchvision"], strict=True)
        return round(
            statistics.median(float(str(a[what])) / float(str(b[what])) for a, b in pairs), 4
        )

    result = {
        "rounds": args.rounds,
        "torchvision": {
            what: round(statistics.median(float(str(r[what])) for r in runs["torchvision"]), 3)
            for what in ("seconds", "loaded", "answered")
        },
        "ratios": {
            way: {what: ratio(way, what) for what in ("seconds", "loaded", "answered")}
            for way in WAYS
            if way != "torchvision"
        },
        "units": "seconds; MiB beyond the imports: loaded, and after the first answer",
    }
    report("loading", result, args.out, "torch", "torchvision")


if __name__ == "__main__":
    main()
