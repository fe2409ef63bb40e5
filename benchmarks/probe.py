"""Time to a classifier of one's own: `verydeep train --recipe probe` against the usual torchvision script.

    python benchmarks/probe.py TRAIN VAL [--epochs 10] [--batches N] [--out FILE.json]

TRAIN and VAL are folders of class folders. The script is PyTorch's transfer-learning tutorial with a
VGG-16: frozen features, a new linear head on the 7x7 pool, random crops and mirrors, SGD at 0.001 with
momentum 0.9, a tenth of that after seven epochs, validation after each. Its convolutions are those of the
built-in model, so both start from the same network. Whole processes; the probe has nothing cached, then
everything. The script's figure is its time up to the epoch that first reaches what it ends with, to half a
point; with --batches only so many steps of an epoch are run, all times are extrapolated, and there is no
accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import ENGINES, report

NEAR = 0.005  # of the script's last accuracy counts as reached

SCRIPT = """
import json, os, sys, time
began = time.perf_counter()
import torch, torchvision
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

def main():
    train, val, weights, epochs, batches = sys.argv[1:4] + [int(n) for n in sys.argv[4:6]]
    cores = os.cpu_count()
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    shown = {
        train: transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
                                   transforms.ToTensor(), normalise]),
        val: transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224),
                                 transforms.ToTensor(), normalise]),
    }
    sets = {name: ImageFolder(name, how) for name, how in shown.items()}
    loaders = {name: torch.utils.data.DataLoader(one, 32, shuffle=name == train, num_workers=cores)
               for name, one in sets.items()}
    model = torchvision.models.vgg16()
    model.features.load_state_dict(torch.load(weights, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier = nn.Linear(512 * 7 * 7, len(sets[train].classes))
    optimiser = torch.optim.SGD(model.classifier.parameters(), 0.001, 0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 7, 0.1)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        steps = {}
        for name in (train, val):
            model.train(name == train)
            right = done = 0
            start = time.perf_counter()
            for images, labels in loaders[name]:
                optimiser.zero_grad()
                with torch.set_grad_enabled(name == train):
                    scores = model(images)
                    loss = loss_of(scores, labels)
                if name == train:
                    loss.backward()
                    optimiser.step()
                right += int((scores.argmax(1) == labels).sum())
                done += len(labels)
                if batches and done >= batches * 32:
                    break
            steps[name] = (time.perf_counter() - start) * len(sets[name]) / done
        schedule.step()
        print(json.dumps({"epoch": epoch + 1, "top1": None if batches else right / done,
                          "seconds": sum(steps.values()), "since": time.perf_counter() - began}),
              flush=True)
        if batches:
            break

if __name__ == "__main__":
    main()
"""


def usual(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The script's run, as seconds and accuracy."""
    import torch

    from verydeep import models
    from verydeep.published import find_model

    torch.save(models.load(find_model("builtin")).features.state_dict(), folder / "weights.pth")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(folder / "script.py"), args.train, args.val]
    command += [str(folder / "weights.pth"), str(args.epochs), str(args.batches)]
    began = time.perf_counter()
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall = time.perf_counter() - began
    epochs = [json.loads(line) for line in out.splitlines()]
    if args.batches:
        each = epochs[0]["seconds"]
        return {
            "extrapolated_from_batches": args.batches, "epoch_seconds": round(each, 1),
            "seconds": round(args.epochs * each, 1), "top1": None,
        }  # fmt: skip
    last = epochs[-1]["top1"]
    reached = next(one for one in epochs if one["top1"] >= last - NEAR)
    return {
        "epochs": args.epochs, "whole_seconds": round(wall, 1), "reached_in_epoch": reached["epoch"],
        "seconds": round(reached["since"], 1), "top1": round(last, 4),
        "curve": [round(one["top1"], 4) for one in epochs],
    }  # fmt: skip


def probed(args: argparse.Namespace, folder: Path, name: str) -> dict[str, object]:
    out = folder / name
    command = [sys.executable, "-m", "verydeep", "train", args.train, "--val", args.val]
    command += ["--recipe", "probe", "--out", str(out), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "VERYDEEP_CACHE": str(folder / "cache")},
    )  # fmt: skip
    return {
        "seconds": round(time.perf_counter() - began, 1), "top1": round(json.loads(done.stdout)["top1"], 4)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = probed(args, folder, "first")
        again = probed(args, folder, "again")
        script = usual(args, folder)
    result = {
        "photos": {
            k: sum(1 for _ in Path(p).glob("*/*"))
            for k, p in (("train", args.train), ("val", args.val))
        },
        "usual_script": script,
        "probe": first,
        "probe_again": again,
        "times_as_fast": round(float(str(script["seconds"])) / float(str(first["seconds"])), 2),
    }
    report("probe", result, args.out, *ENGINES, "torchvision", "pillow")


if __name__ == "__main__":
    main()
