"""Folders of JPEGs through `verydeep classify`, against a plain torchvision script.

    python benchmarks/folder.py [--photos N] [--large N] [--rounds N] [--size N] [--precision fast]
        [--out FILE.json]

1,000 photos of 500x375, and 300 of 12 megapixels; 0 leaves a folder out. Whole processes from start to
exit, in turns, the built-in model at one size. The script is what torchvision's examples do: Dataset,
DataLoader, a worker a core, batches of 32, channels-last; its net is torchvision's with the built-in's
weights and head, so that both must give the same answers: that is checked before anything is timed, and in
each round. The photos are pieces of those in `examples/photos`, no two alike; the large ones have camera
grain, and six of them are one file. `classify` has chosen and prepared its engine before, as it has on a
person's machine from the second folder on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from machine import ENGINES, report
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
WIDTH, HEIGHT, QUALITY = 500, 375, 90
LARGE = 4000, 3000
GRAIN, COPIES = 4, 6  # levels at most, and of each large photo: making one takes a second
AGREE = 0.99  # of the first answers, between both

SCRIPT = """
import json, os, sys
import torch, torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Photos(Dataset):
    def __init__(self, folder):
        self.paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        self.prepare = torchvision.transforms.Compose([
            torchvision.transforms.Resize(RESIZE), torchvision.transforms.CenterCrop(CROP),
            torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD),
        ])
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        return self.prepare(Image.open(self.paths[i]).convert("RGB"))

class Net(nn.Module):
    def __init__(self, saved):
        super().__init__()
        self.features = torchvision.models.vgg16().features
        self.features.load_state_dict(saved["features"])
        self.classifier = nn.Linear(*reversed(saved["weight"].shape))
        self.classifier.weight.data, self.classifier.bias.data = saved["weight"], saved["bias"]
        self.reads = saved["reads"]
    def forward(self, x):
        means = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.reads:
                means.append(x.mean((2, 3)))
        return self.classifier(torch.cat(means, 1))

if __name__ == "__main__":
    torch.set_num_threads(CORES)
    data = Photos(sys.argv[1])
    net = Net(torch.load(sys.argv[2], weights_only=True)).eval().to(memory_format=torch.channels_last)
    answers = []
    with torch.inference_mode():
        for batch in DataLoader(data, batch_size=32, num_workers=CORES):
            answers += net(batch.to(memory_format=torch.channels_last)).argmax(1).tolist()
    print(json.dumps(dict(zip(data.paths, answers))))
"""


def make_photos(folder: Path, count: int) -> None:
    """Pieces of the example photos, at different places and scales, some mirrored."""
    for number, piece in enumerate(pieces(count, WIDTH, HEIGHT)):
        piece.save(folder / f"{number:05}.jpg", quality=QUALITY)


def make_large_photos(folder: Path, count: int) -> None:
    draw = np.random.default_rng(1)
    for number, piece in enumerate(pieces(-(-count // COPIES), *LARGE)):
        grain = draw.integers(-GRAIN, GRAIN + 1, (*LARGE[::-1], 1), dtype=np.int16)
        grainy = (np.asarray(piece) + grain).clip(0, 255).astype(np.uint8)
        first = folder / f"{number * COPIES:05}.jpg"
        Image.fromarray(grainy).save(first, quality=QUALITY)
        for copy in range(number * COPIES + 1, min(count, (number + 1) * COPIES)):
            shutil.copy(first, folder / f"{copy:05}.jpg")


def pieces(count: int, wide: int, high: int) -> Iterator[Image.Image]:
    draw = np.random.default_rng(0)
    sources = [Image.open(p).convert("RGB") for p in sorted(PHOTOS.iterdir()) if p.suffix != ".md"]
    for number in range(count):
        source = sources[number % len(sources)]
        scale = draw.uniform(0.6, 1) * min(source.width / wide, source.height / high)
        width, height = scale * wide, scale * high
        left, top = draw.uniform(0, source.width - width), draw.uniform(0, source.height - height)
        box = (left, top, left + width, top + height)
        piece = source.resize((wide, high), Image.Resampling.BICUBIC, box)
        yield piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else piece


def write_script(folder: Path, size: int) -> list[str]:
    """The script with the built-in's weights beside it, as a command that lacks the photos' folder."""
    import torch

    from verydeep import models
    from verydeep.preprocess import sized
    from verydeep.published import find_model

    net = models.load(find_model("builtin"))
    assert net.record is not None
    names = net.module_names
    saved = {
        "features": net.features.state_dict(),
        "weight": net.state_dict()["classifier.weight"],
        "bias": net.state_dict()["classifier.bias"],
        "reads": [int(names[n].split(".")[1]) for n in net.table.head_inputs],
    }
    torch.save(saved, folder / "weights.pth")
    record = sized(net.record.preprocess, size)
    text = SCRIPT
    for word, value in (
        ("RESIZE", record.resize_size), ("CROP", record.crop_size), ("MEAN", record.mean),
        ("STD", record.std), ("CORES", os.cpu_count()),
    ):  # fmt: skip
        text = text.replace(word, repr(value))
    (folder / "script.py").write_text(text)
    return [sys.executable, "-W", "ignore", str(folder / "script.py")]


def timed(command: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def race(
    script: list[str], classify: list[str], photos: Path, rounds: int, labels: Sequence[str]
) -> dict[str, object]:
    """Both in turns; SystemExit where their answers differ. Without rounds, the answers alone."""
    seconds: dict[str, list[float]] = {"script": [], "classify": []}
    for number in range(max(1, rounds)):
        took, out = timed([*script, str(photos), str(photos.parent / "weights.pth")])
        seconds["script"].append(took)
        theirs = {path: labels[index] for path, index in json.loads(out).items()}
        took, out = timed([*classify, str(photos)])
        seconds["classify"].append(took)
        answers = json.loads(out)
        ours = {answer["path"]: answer["predictions"][0]["label"] for answer in answers}
        agree = sum(ours[path] == label for path, label in theirs.items()) / len(theirs)
        if agree < AGREE:
            raise SystemExit(f"only {agree:.1%} of the answers agree: no figure for wrong ones")
        print(f"{photos.name}: round {number + 1} of {max(1, rounds)}", file=sys.stderr)
    pairs = zip(seconds["script"], seconds["classify"], strict=True)
    return {
        "photos": len(theirs),
        "engine": answers[0]["engine"],
        "rounds": rounds,
        "agree": round(agree, 4),
        "script_seconds": round(statistics.median(seconds["script"]), 2),
        "classify_seconds": round(statistics.median(seconds["classify"]), 2),
        "times_as_fast": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--large", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from verydeep import load

    labels = load().labels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = write_script(folder, args.size)
        classify = [sys.executable, "-m", "verydeep", "classify", "--json"]
        classify += ["--size", str(args.size), "--precision", args.precision, "--top", "1"]
        rows = {}
        for kind, make, count in (
            ("500x375", make_photos, args.photos),
            ("12 megapixels", make_large_photos, args.large),
        ):
            if not count:
                continue
            for part, some in ((f"few of {kind}", min(count, 48)), (kind, count)):
                (folder / part).mkdir()
                make(folder / part, some)
            # chooses and prepares the engine, and must agree
            race(script, classify, folder / f"few of {kind}", 0, labels)
            rows[kind] = race(script, classify, folder / kind, args.rounds, labels)
    result = {"size": args.size, "precision": args.precision, "folders": rows}
    report("folder", result, args.out, *ENGINES, "torchvision", "pillow")


if __name__ == "__main__":
    main()
