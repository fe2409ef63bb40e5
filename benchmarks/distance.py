"""LPIPS of photos: `verydeep.Perceptual` against `lpips` 0.1.4, with the same weights.

    python benchmarks/distance.py [--rounds 7] [--batches 1 8] [--many 100] [--size 256] [--out FILE.json]

Parity first: `exact` within 1e-5 d + 1e-7 of lpips, `half` (`fast` where the processor lacks bfloat16)
within 2 %; else no figures. One process an entrant, in turns; lpips gets its tensors ready made, verydeep
decoded photos as they are. "many" is one reference against that many photos: a call of `Perceptual`, whose
reference goes through the network once for several, against as many calls of lpips. Engines are chosen and
prepared before, as on a person's machine from the second time on. The photos are those of
examples/photos, with graded noise.
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
from machine import ENGINES, report
from PIL import Image

from verydeep.engines.openvino import computes_bf16

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
WORTH_A_RACE = 33  # passes after which every engine of verydeep has been chosen

CHILD = """
import json, sys, time, warnings
from types import SimpleNamespace
import numpy as np
warnings.simplefilter("ignore")
entrant, photos, threads = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
first, second = photos["first"], photos["second"]
if entrant == "lpips":
    import torch
    if threads:
        torch.set_num_threads(threads)
    import lpips, torchvision
    from verydeep import modelfile
    from verydeep.published import find_model
    tensors = modelfile.read(find_model("builtin")).tensors()
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    layers.load_state_dict({
        name.removeprefix("features."): torch.from_numpy(value.copy())
        for name, value in tensors.items() if name.startswith("features.")
    })
    torchvision.models.vgg16 = lambda **_: SimpleNamespace(features=layers)
    net = lpips.LPIPS(net="vgg", verbose=False).eval()
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (first, second))
    def pairs(n):
        with torch.inference_mode():
            return net(a[:n], b[:n]).flatten().tolist()
    def many(n):
        with torch.inference_mode():
            return [net(a[:1], b[i:i + 1]).item() for i in range(n)]
    settle = 0
else:
    from verydeep import Perceptual
    metric = Perceptual("lpips", precision=entrant, threads=threads or None)
    told = []
    def pairs(n):
        found = metric(list(first[:n]), list(second[:n]))
        told[:] = sorted({f"{about.engine} {about.precision}" for about in found.abouts})
        return found.tolist()
    def many(n):
        found = metric(first[0], list(second[:n]))
        told[:] = sorted({f"{about.engine} {about.precision}" for about in found.abouts})
        return found.tolist()
    settle = int(sys.argv[4])
work = {"pairs": pairs, "many": many}
for line in sys.stdin:
    what, count, warm = line.split()
    call, count = work[what], int(count)
    if warm == "warm":
        for _ in range(1 + -(-settle // count)):
            found = call(count)
        answer = {"found": found, "by": [] if entrant == "lpips" else told}
    else:
        began = time.perf_counter()
        call(count)
        answer = {"seconds": time.perf_counter() - began}
    print(json.dumps(answer), flush=True)
"""


class Child:
    """An entrant in its own process, which computes whenever it is asked."""

    def __init__(self, entrant: str, photos: Path, threads: int) -> None:
        # -P: this folder has modules of its own, none of which a child should find
        words = [entrant, str(photos), str(threads), str(WORTH_A_RACE)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", CHILD, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def warm(self, what: str, count: int) -> tuple[np.ndarray, list[str]]:
        """Distances, and what computed them, when everything is open and chosen."""
        answer = self._ask(f"{what} {count} warm")
        return np.array(answer["found"]), answer["by"]

    def seconds(self, what: str, count: int) -> float:
        return float(self._ask(f"{what} {count} timed")["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a child ended early; its message stands above")
        return dict(json.loads(answer))


def make_photos(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (count, size, size, 3) uint8: photos, and the first ones with more and more noise."""
    files = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".jpg", ".png"))
    first = []
    for path in files:
        photo = Image.open(path).convert("RGB")
        side = min(photo.size)
        first.append(np.asarray(photo.crop((0, 0, side, side)).resize((size, size))))
    whole = np.stack([first[index % len(first)] for index in range(count)])
    draw = np.random.default_rng(0)
    deviations = np.linspace(8, 60, count).reshape(-1, 1, 1, 1)
    noisy = whole + draw.normal(0, 1, whole.shape) * deviations
    return whole, noisy.clip(0, 255).astype(np.uint8)


def race(
    children: dict[str, Child], what: str, count: int, rounds: int, size: int
) -> dict[str, Any]:
    """Milliseconds a distance, and how often faster than lpips."""
    expected, _ = children["lpips"].warm(what, count)
    found: dict[str, Any] = {"what": what, "count": count, "size": size}
    for name, child in children.items():
        if name == "lpips":
            continue
        values, by = child.warm(what, count)
        apart = np.abs(values - expected)
        allowed = 1e-5 * expected + 1e-7 if name == "exact" else 0.02 * expected
        if not (apart <= allowed).all():
            raise SystemExit(f"{name}, {what} {count}: {values} where lpips says {expected}")
        found[name] = {"by": by, "largest relative difference": float((apart / expected).max())}
    times: dict[str, list[float]] = {name: [] for name in children}
    names = list(children)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(children[name].seconds(what, count))
    for name in names:
        pairs = zip(times["lpips"], times[name], strict=True)
        found.setdefault(name, {}).update(
            {
                "ms a distance": round(1e3 * statistics.median(times[name]) / count, 2),
                "times as fast": round(statistics.median(t / own for t, own in pairs), 3),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--many", type=int, default=100, help="photos against one; 0: not")
    parser.add_argument("--many-rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: the entrants' own choice")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    first, second = make_photos(max(1, args.many, *args.batches), args.size)
    coarse = "half" if computes_bf16() else "fast"
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos.npz"
        children = {}
        # the last photos have the most noise: pairs that differ by enough for every precision
        np.savez(photos, first=first[::-1], second=second[::-1])
        for name in ("lpips", "exact", coarse):
            children[name] = Child(name, photos, args.threads)
        results = [race(children, "pairs", batch, args.rounds, args.size) for batch in args.batches]
        if args.many:
            results.append(race(children, "many", args.many, args.many_rounds, args.size))
        for child in children.values():
            child.close()
    result = {
        "rounds": args.rounds,
        "results": results,
    }
    report("distance", result, args.out, *ENGINES, "torchvision", "lpips")


if __name__ == "__main__":
    main()
