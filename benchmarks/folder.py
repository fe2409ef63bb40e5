"""A folder of 1,000 JPEGs of 500x375 through `verydeep classify`, against a plain torchvision script.

    python benchmarks/folder.py [--photos N] [--rounds N] [--size N] [--precision fast] [--out FILE.json]

Whole processes from start to exit, in turns, the built-in model at one size. The script is what
torchvision's examples do: Dataset, DataLoader, a worker a core, batches of 32, channels-last; its net is
torchvision's with the built-in's weights and head, so that both must give the same answers: that is
checked first. The photos are pieces of those in `examples/photos`, no two alike. `classify` has chosen and
prepared its engine before, as it has on a person's machine from the second folder on.
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
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
WIDTH, HEIGHT, QUALITY = 500, 375, 90
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
    draw = np.random.default_rng(0)
    sources = [Image.open(p).convert("RGB") for p in sorted(PHOTOS.iterdir()) if p.suffix != ".md"]
    for number in range(count):
        source = sources[number % len(sources)]
        scale = draw.uniform(0.6, 1) * min(source.width / WIDTH, source.height / HEIGHT)
        width, height = scale * WIDTH, scale * HEIGHT
        left, top = draw.uniform(0, source.width - width), draw.uniform(0, source.height - height)
        box = (left, top, left + width, top + height)
        piece = source.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
        if draw.random() < 0.5:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        piece.save(folder / f"{number:05}.jpg", quality=QUALITY)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from verydeep import load

    labels = load().labels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("photos", args.photos), ("few", 48)):
            (folder / part).mkdir()
            make_photos(folder / part, count)
        script = write_script(folder, args.size)
        classify = [sys.executable, "-m", "verydeep", "classify", "--json"]
        classify += ["--size", str(args.size), "--precision", args.precision, "--top", "1"]
        timed([*classify, str(folder / "few")])  # chooses and prepares its engine
        seconds: dict[str, list[float]] = {"script": [], "classify": []}
        agree = 0.0
        for number in range(args.rounds):
            took, out = timed([*script, str(folder / "photos"), str(folder / "weights.pth")])
            seconds["script"].append(took)
            theirs = {path: labels[index] for path, index in json.loads(out).items()}
            took, out = timed([*classify, str(folder / "photos")])
            seconds["classify"].append(took)
            answers = json.loads(out)
            ours = {answer["path"]: answer["predictions"][0]["label"] for answer in answers}
            agree = sum(ours[path] == label for path, label in theirs.items()) / len(theirs)
            if agree < AGREE:
                raise SystemExit(f"only {agree:.1%} of the answers agree: no figure for wrong ones")
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    pairs = zip(seconds["script"], seconds["classify"], strict=True)
    result = {
        "photos": args.photos,
        "size": args.size,
        "precision": args.precision,
        "engine": answers[0]["engine"],
        "rounds": args.rounds,
        "agree": round(agree, 4),
        "script_seconds": round(statistics.median(seconds["script"]), 2),
        "classify_seconds": round(statistics.median(seconds["classify"]), 2),
        "times_as_fast": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
    }
    report("folder", result, args.out, *ENGINES, "torchvision", "pillow")


if __name__ == "__main__":
    main()
