"""Training throughput, VGG-16-BN at 32x32: `verydeep train` against torchvision's reference loop.

    python benchmarks/training.py [--rounds 5] [--steps 2] [--width 0.5] [--batch 256] [--out FILE.json]

One process an entrant, in turns; each makes its own batches ready (shift, flip) and takes whole steps.
"torchvision" is the loop of its references/classification/train.py: NCHW in float32, its transforms in a
DataLoader, loss and accuracies read at every step. "fp32" and "verydeep" are `small-images` with SGD as
there, the first held to float32, the second with what its probe chooses here. Parity first: the same
weights give the same loss for the same images, to 1e-4 in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import report

CHILD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
import torch.nn.functional as F
entrant, width, batch, steps, threads = (
    sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
)
if threads:
    torch.set_num_threads(threads)
from verydeep.models import build
draw = np.random.default_rng(0)
images = draw.integers(0, 256, (batch * 8, 32, 32, 3), dtype=np.uint8)
labels = draw.integers(0, 10, batch * 8)
torch.manual_seed(0)
model = build("vgg16_bn", classes=10, head="gap", layers=("relu5_3",), width=width, init="he")
mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

if entrant == "torchvision":
    from torchvision import transforms as T
    class Images(torch.utils.data.Dataset):
        ready = T.Compose([
            T.ToPILImage(), T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.PILToTensor(),
            T.ConvertImageDtype(torch.float), T.Normalize(mean, std),
        ])
        def __len__(self):
            return len(labels)
        def __getitem__(self, index):
            return self.ready(images[index]), int(labels[index])
    loader = torch.utils.data.DataLoader(
        Images(), batch, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    def forever():
        while True:
            yield from loader
    batches = forever()
    def step():
        image, target = next(batches)
        output = model(image)
        loss = criterion(output, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _, guesses = output.topk(5, 1)  # its utils.accuracy
        correct = guesses.t().eq(target[None])
        [correct[:k].flatten().sum(dtype=torch.float32).item() for k in (1, 5)]
        loss.item()
    x = torch.from_numpy(images[:batch]).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    choice = "fp32, default layout"
else:
    from verydeep.preprocess import Preprocess
    from contextlib import ExitStack
    from paced import paced
    from verydeep.datasets import labelled
    from verydeep.training.data.colours import statistics
    from verydeep.training.data.feed import Feed
    from verydeep.training.data.source import Source
    from verydeep.training.learner import Learner
    from verydeep.training.data.views import pictures
    from verydeep.training.speed import decided, memory_kept
    from verydeep.training.recipes import changed, small_images
    config = changed(small_images(), {"batch": batch, "width": width, "optimiser": "sgd", "size": 32})
    config = changed(config, {"precision": "fp32"}) if entrant == "fp32" else config
    config = decided(config, torch.device("cpu"))
    choice = f"{config.precision}, {config.layout} layout"
    ExitStack().enter_context(memory_kept())  # as `train` has it
    samples = [labelled.Sample(i, int(k)) for i, k in zip(images, labels)]
    held = pictures(samples, 32)
    source = Source(held.samples, config, statistics([held.images]), held=held.images)
    feed = Feed(source, config)
    learner = Learner(model, config, Preprocess(mean=mean, std=std), torch.device("cpu"))
    step = paced(learner, feed)
    x = learner.normalise(torch.from_numpy(images[:batch]), None)

model.eval()
with torch.inference_mode():
    parity = float(F.cross_entropy(model(x), torch.from_numpy(labels[:batch])))
model.train()
step()
step()
print(json.dumps({"loss": parity, "choice": choice}), flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
"""
ENTRANTS = ("torchvision", "fp32", "verydeep")


class Child:
    """An entrant in its own process, which takes its steps whenever it is asked."""

    def __init__(self, *words: object, program: str = CHILD) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            },
        )
        self.about = self._line()

    def seconds(self) -> float:
        return float(self.asked("")["seconds"])

    def asked(self, line: str) -> dict[str, Any]:
        """Its answer to that line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a child ended early; its message stands above")
        return dict(json.loads(line))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Race `verydeep train` against the reference loop."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each entrant in a round")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="of each entrant; 0 for torch's own")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = (args.width, args.batch, args.steps, args.threads)
    children = {name: Child(name, *words) for name in ENTRANTS}
    losses = [child.about["loss"] for child in children.values()]
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise SystemExit(f"the losses of the same weights differ: {losses}")
    times: dict[str, list[float]] = {name: [] for name in ENTRANTS}
    for number in range(args.rounds):
        shift = number % len(ENTRANTS)
        for name in ENTRANTS[shift:] + ENTRANTS[:shift]:
            times[name].append(children[name].seconds())
    for child in children.values():
        child.close()
    images = args.batch * args.steps
    result = {
        "network": f"vgg16_bn, width {args.width:g}, 32x32, batch {args.batch}",
        "rounds": args.rounds,
        "images_per_second": {n: round(images / statistics.median(t)) for n, t in times.items()},
        "chosen": {name: child.about["choice"] for name, child in children.items()},
        "times_faster": {
            name: round(
                statistics.median(a / b for a, b in zip(times["torchvision"], times[name], strict=True)), 2
            )
            for name in ENTRANTS[1:]
        },
    }  # fmt: skip
    report("training", result, args.out, "torch", "torchvision")


if __name__ == "__main__":
    main()
