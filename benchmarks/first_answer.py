"""From a file of weights to the first answer, VGG-16 with the classic head: time, and peak memory.

    python benchmarks/first_answer.py [--rounds 7] [--precision fast] [--out FILE.json]

One process a measurement, in turns: torchvision builds, loads its .pth with `torch.load` and answers; so
does `verydeep.load` with the same weights in a model file, its engine chosen and prepared before, as it is
on a person's machine from the second time on. "seconds" begins after `import torchvision` and `import
verydeep` (what verydeep imports later, its engine among it, counts), "process_seconds" is the whole
process from start to exit. Peak memory is of the whole process. Parity first: the same logits for the same
photo. The weights are random: their values do not matter here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import ENGINES, report

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "bee.jpg"

COMMON = """
import json, sys, time
from PIL import Image
IMPORTS
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before, began = peak(), time.perf_counter()
ANSWER
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak_mib": peak(), "scores": list(map(float, scores))}))
"""
WAYS = {
    "torchvision": (
        "import torch, torchvision",
        "net = torchvision.models.vgg16()\n"
        "net.load_state_dict(torch.load(sys.argv[1], weights_only=True)); net.eval()\n"
        "prepare = torchvision.models.VGG16_Weights.DEFAULT.transforms()\n"
        "with torch.inference_mode():\n"
        "    scores = net(prepare(Image.open(sys.argv[3]).convert('RGB'))[None])[0].tolist()",
    ),
    "verydeep": (
        "import verydeep",
        "scores = verydeep.load(sys.argv[2], precision='PRECISION').scores([sys.argv[3]])[0]",
    ),
}
MAKE = """
import sys, torch, torchvision
from verydeep.published.conversion import convert
torch.manual_seed(0)
torch.save(torchvision.models.vgg16().state_dict(), sys.argv[1])
convert(sys.argv[1], sys.argv[2], preprocess="torchvision")
"""
# what a first folder of photos leaves behind: the race of one photo at a time, and prepared files
WARM = """
import sys, verydeep
predictor = verydeep.load(sys.argv[2], precision='PRECISION')
list(predictor.stream([sys.argv[3]] * 40, batch=1))
"""


def run(program: str, precision: str, files: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program.replace("PRECISION", precision)]
    done = subprocess.run(
        [*command, *files], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return done.stdout


def measure(
    way: str, precision: str, files: list[str], environment: dict[str, str]
) -> dict[str, float | list[float]]:
    imports, answer = WAYS[way]
    program = COMMON.replace("IMPORTS", imports).replace("ANSWER", answer)
    began = time.perf_counter()
    told = json.loads(run(program, precision, files, environment))
    return {**told, "process_seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    allowed = {"exact": 1e-5, "fast": 1e-3, "half": 3e-2}[args.precision]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        files = [f"{folder}/vgg16.pth", f"{folder}/vgg16.safetensors", str(PHOTO)]
        environment = {**os.environ, "VERYDEEP_CACHE": f"{folder}/cache"}
        run(MAKE, args.precision, files, environment)
        run(WARM, args.precision, files, environment)
        runs: dict[str, list[dict[str, float | list[float]]]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for way in WAYS:
                runs[way].append(measure(way, args.precision, files, environment))
            ours, theirs = (np.array(runs[way][number]["scores"]) for way in WAYS)
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            if not error <= allowed:
                raise SystemExit(f"the logits differ by {error:.1e}: no figure for a wrong answer")
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)

    def median(way: str, what: str) -> float:
        return round(statistics.median(float(str(r[what])) for r in runs[way]), 3)

    def ratio(what: str) -> float:
        pairs = zip(runs["verydeep"], runs["torchvision"], strict=True)
        return round(
            statistics.median(float(str(a[what])) / float(str(b[what])) for a, b in pairs), 4
        )

    figures = ("seconds", "process_seconds", "peak_mib")
    result = {
        "precision": args.precision,
        "rounds": args.rounds,
        **{way: {what: median(way, what) for what in figures} for way in WAYS},
        "ratios": {what: ratio(what) for what in figures},
    }
    report("first answer", result, args.out, *ENGINES, "torchvision")


if __name__ == "__main__":
    main()
