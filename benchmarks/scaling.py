"""What does a Ray cluster of one machine cost, and what is lost when it dies?

    python benchmarks/scaling.py [--photos 2000] [--rounds 1] [--out FILE]
    python benchmarks/scaling.py --kills 10 [--seed 0] [--out FILE]

The first: relu5_3's averages of JPEGs of 500x375 at 224 as whole processes: `verydeep features` to a
Parquet file, the same with --ray, that in `half`, and plain Ray Data with an actor of torchvision's VGG-16
as Ray's documentation writes it (`read_images`, `map`, `map_batches`, `write_parquet`; random weights,
which cost the same).
`--photos 64` takes three minutes on two cores.

The second, on Linux: a cluster of two nodes on this machine, a small network; a node, a worker and the
driver are killed by SIGKILL, each at so many random moments. Counts images lost and doubled, parts that
were there and were made again, and parts that a kill left unfinished; each run's files are compared byte
for byte with those of one node that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from machine import ENGINES, report
from PIL import Image

from verydeep.benching import random_model
from verydeep.nets import network

WORKERS = 2
SIZE = 224  # of torchvision's transforms
PART = 16  # images, of the runs that are killed
PLAIN = """
import sys
import numpy as np, ray, torch, torchvision
from PIL import Image

weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
transform = weights.transforms()

def preprocess(row):
    row["image"] = transform(Image.fromarray(row["image"])).numpy()
    return row

class Features:
    def __init__(self):
        self.model = torchvision.models.vgg16(weights=None).features[:30].eval()

    def __call__(self, batch):
        with torch.inference_mode():
            maps = self.model(torch.as_tensor(np.stack(batch["image"])))
        return {"path": batch["path"], "relu5_3": maps.mean((2, 3)).numpy()}

if __name__ == "__main__":
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    photos = ray.data.read_images(sys.argv[1], mode="RGB", include_paths=True)
    features = photos.map(preprocess).map_batches(
        Features, concurrency=int(sys.argv[3]), batch_size=8, num_cpus=0.5  # leaves one to read with
    )
    features.write_parquet(sys.argv[2])
"""


def jpegs(folder: Path, count: int, width: int = 500, height: int = 375) -> Path:
    """Photos of smooth noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg")
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "verydeep", "features", *map(str, words)]


def whole(words: Sequence[str]) -> float:
    """Seconds of a process."""
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    print(
        f"{time.perf_counter() - began:8.1f} s  {' '.join(words[1:4])}",
        done.stdout,
        file=sys.stderr,
    )
    return time.perf_counter() - began


def race(place: Path, photos: int, rounds: int) -> dict[str, object]:
    folder = jpegs(place / "photos", photos)
    (place / "plain.py").write_text(PLAIN)
    few = jpegs(place / "few", 40)  # the engines race once, before

    def ways(folder: Path, out: Path) -> dict[str, list[str]]:
        ours = command(folder, "--size", SIZE, "--out")
        half = ["--ray", "--precision", "half"]
        return {
            "features": [*ours, f"{out}.parquet"],
            "ray": [*ours, f"{out}.r", "--ray"],
            "ray, half": [*ours, f"{out}.h", *half],
            "plain": [sys.executable, str(place / "plain.py"), str(folder), f"{out}.plain", str(WORKERS)],
        }  # fmt: skip

    for words in ways(few, place / "few").values():
        whole(words)
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name, words in ways(folder, place / f"{turn}").items():
            seconds.setdefault(name, []).append(whole(words))
    best = {name: min(some) for name, some in seconds.items()}
    return {
        "photos": photos, "size": SIZE, "seconds": seconds,
        "against features": round(best["features"] / best["ray"], 3),
        "against plain": round(best["plain"] / best["ray"], 3),
        "half against plain": round(best["plain"] / best["ray, half"], 3),
    }  # fmt: skip


class Cluster:
    """Two nodes of a core each on this machine."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = {
            **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"
        }  # fmt: skip
        port = self.address.rpartition(":")[2]
        self._start("--head", "--port", port, "--include-dashboard", "false")
        self.place = place
        self.second()

    def _start(self, *words: str) -> None:
        ray = Path(sys.executable).with_name("ray")
        told = (str(ray), "start", *words, "--num-cpus", "1", "--object-store-memory", "100000000")
        done = subprocess.run(
            told, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    def second(self) -> None:
        """Start the second node, and remember which process it is."""
        before = set(processes("raylet/raylet"))
        self._start("--address", self.address)
        (self.raylet,) = set(processes("raylet/raylet")) - before

    def stop(self) -> None:
        for name in ("raylet/raylet", "gcs_server", "ray::", "ray/_private", "ray/dashboard"):
            for process in processes(name):
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)


def processes(name: str) -> list[int]:
    """Of this session's environment, whose command line has that in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = MARK.encode() in (entry / "environ").read_bytes()
            if ours and name.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


MARK = f"VERYDEEP_SCALING={os.getpid()}"


def killed(place: Path, kills: int, seed: int) -> dict[str, object]:
    os.environ.update([MARK.split("=")])
    photos = jpegs(place / "photos", 640, 64, 48)
    model = random_model(network("vgg11", width=1 / 4), place / "model.safetensors")
    told = ("--model", model, "--part", PART, "--engine", "onnxruntime")
    calm = place / "calm"
    whole(command(photos, "--ray", "--out", calm, *told))
    right = {path.name: path.read_bytes() for path in calm.glob("part-*")}
    draw, count, cluster = random.Random(seed), Counter[str](), Cluster(place)
    try:
        for number in range(kills):
            for what in ("worker", "node", "driver"):
                out = place / f"{what}-{number}"
                words = command(photos, "--ray", cluster.address, "--out", out, *told)
                run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                enough = draw.randrange(1, len(right) - 4)
                while len(list(out.glob("part-*"))) < enough and run.poll() is None:
                    time.sleep(0.01)
                time.sleep(draw.random() * 0.3)
                there = {path.name: path.stat().st_ino for path in out.glob("part-*")}
                workers = processes("ray::Worker")
                victims = {
                    "worker": workers[: draw.randrange(1, 3)], "node": [cluster.raylet], "driver": [run.pid]
                }  # fmt: skip
                for victim in victims[what]:
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        count[f"{what}s killed"] += 1
                _, said = run.communicate(timeout=300)
                if run.returncode:
                    if what != "driver":
                        raise SystemExit(said.decode()[-2000:])
                    count["runs begun again"] += 1
                    there = {path.name: path.stat().st_ino for path in out.glob("part-*")}
                    left = len(list(out.glob("_part-*")))
                    count["most parts unfinished"] = max(count["most parts unfinished"], left)
                    whole(words)
                made = {path.name: path.read_bytes() for path in out.glob("part-*")}
                count["images lost"] += PART * len(right.keys() - made.keys())
                count["images doubled"] += PART * len(made.keys() - right.keys())
                count["parts that differ"] += sum(made[name] != right[name] for name in made)
                count["parts that were there and were made again"] += sum(
                    (out / name).stat().st_ino != inode for name, inode in there.items()
                )
                count["runs"] += 1
                print(number, what, dict(count), file=sys.stderr)
                if what == "node":
                    cluster.second()
    finally:
        cluster.stop()
    return {"images": 640, "part": PART, "moments each": kills, **count}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")  # on loopback
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        if asked.kills:
            result = killed(place, asked.kills, asked.seed)
        else:
            result = race(place, asked.photos, asked.rounds)
    report("scaling", result, asked.out, "ray", *ENGINES)


if __name__ == "__main__":
    main()
