"""LPIPS, `verydeep.Perceptual` against `lpips` 0.1.4 (VGG): pairs one by one, eight at a time, and one
reference against a hundred photos.

    python benchmarks/lpips.py [--rounds 7] [--size 256] [--precision exact half] [--out FILE.json]

One process an entrant, in turns, both with the built-in convolutions and the published heads, medians of
the ratios within the rounds. `lpips` gets tensors, ours the same pixels as uint8: what each takes. Its
engine is chosen beforehand (`auto`), as it is from the second use on. Parity first: whoever strays further
than its precision allows fails the run. Against a hundred, `lpips` is called a hundred times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
ALLOWED = {"exact": 1e-5, "fast": 1e-3, "half": 3e-2}  # of the distance
TASKS = {"batch 1": 1, "batch 8": 8, "one against 100": 100}

CHILD = """
import io, json, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from PIL import Image
warnings.simplefilter("ignore")
entrant, size, count, threads = sys.argv[1], *map(int, sys.argv[2:5])
against = count > 8
photos = sorted(Path(sys.argv[5]).glob("*.jpg"))
def photo(i):
    image = Image.open(photos[i % len(photos)]).convert("RGB")
    return image.resize((size, size), Image.Resampling.BICUBIC, (0, 0, *[min(image.size)] * 2))
def compressed(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
first = [photo(0 if against else i) for i in range(count)]
second = [compressed(photo(i), 8 + i % 40) for i in range(count)]
first, second = (np.stack([np.asarray(x) for x in images]) for images in (first, second))
if entrant == "lpips":
    import torch, torchvision
    if threads:
        torch.set_num_threads(threads)
    from torchvision.models.vgg import cfgs, make_layers
    from verydeep.modelfile import read
    from verydeep.predictor import find_model
    tensors = read(find_model("builtin")).tensors()
    features = make_layers(cfgs["D"])
    state = {k: torch.from_numpy(tensors["features." + k].copy()) for k in features.state_dict()}
    features.load_state_dict(state)
    torchvision.models.vgg16 = lambda **_: SimpleNamespace(features=features)
    import lpips
    net = lpips.LPIPS(net="vgg", verbose=False).eval()
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (first, second))
    def call():
        with torch.inference_mode():
            if against:
                return [net(x[:1], y[i : i + 1]).item() for i in range(count)]
            return net(x, y).flatten().tolist()
else:
    from verydeep import Perceptual
    measure = Perceptual("lpips", precision=entrant, threads=threads or None)
    def call():
        if against:
            return measure(first[0], second).tolist()
        if count == 1:
            return [float(measure(first[0], second[0]))]
        return measure(first, second).tolist()
    for _ in range(1 if against else 40 // count + 1):
        call()  # until `auto` has chosen
values = call()
engine = ""
if entrant != "lpips":
    found = measure(first[0], second[0]) if count == 1 else measure(first[0] if against else first, second)
    engine = str(found.about)
print(json.dumps({"values": values, "engine": engine}), flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    call()
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
"""


class Child:
    """An entrant in its own process, which computes once whenever it is asked."""

    def __init__(self, entrant: str, size: int, count: int, threads: int) -> None:
        words = [entrant, *map(str, (size, count, threads, PHOTOS))]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = self._line()
        self.values: list[float] = told["values"]
        self.engine: str = told["engine"]

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line()["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an entrant failed: no figures")
        found: dict[str, Any] = json.loads(line)
        return found


def measured(task: str, precisions: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One task: milliseconds a pair of each, and the ratios to lpips within the rounds."""
    count = TASKS[task]
    children = {
        name: Child(name, args.size, count, args.threads) for name in ("lpips", *precisions)
    }
    theirs = children["lpips"].values
    for name in precisions:
        for ours, expected in zip(children[name].values, theirs, strict=True):
            if not abs(ours - expected) <= ALLOWED[name] * expected + 1e-7:
                raise SystemExit(f"{name}: {ours} is not {expected}: no figure for a wrong answer")
    rounds = args.rounds if count <= 8 else max(1, args.rounds // 3)
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for number in range(rounds):
        for name, child in children.items():
            seconds[name].append(child.seconds())
        print(f"{task}: round {number + 1} of {rounds}", file=sys.stderr)
    for child in children.values():
        child.close()
    return {
        name: {
            "ms_per_pair": round(1000 * statistics.median(seconds[name]) / count, 1),
            "times as fast as lpips": round(
                statistics.median(a / b for a, b in zip(seconds["lpips"], seconds[name], strict=True)), 2
            ),
            "engine": children[name].engine,
        }
        for name in children
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--precision", nargs="+", default=["exact", "fast", "half"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = {
        "benchmark": "lpips",
        "machine": machine("lpips", "torch", "onnxruntime", "openvino", "MNN"),
        "size": args.size,
        "rounds": args.rounds,
        **{task: measured(task, args.precision, args) for task in args.tasks},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
