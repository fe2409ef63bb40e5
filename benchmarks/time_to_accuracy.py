"""Time to an accuracy on CIFAR-10: a finished `small-images` run against the common public recipe.

    python benchmarks/time_to_accuracy.py RUN cifar10.npz [--accuracy 0.93] [--rounds 3] [--out FILE.json]

RUN is the folder of a run on the file that `tools/cifar10.py` writes. The common recipe is a plain loop:
the same network on 32x32 in float32 and torch's own layout, batch 128, crops and mirrors in a DataLoader,
SGD with momentum, its rate divided by ten twice, 160 epochs (He et al. 2015, arXiv:1512.03385, section 4.2,
in the form most repositories have it). It needs its last third to reach what it reaches, so it counts
whole. Both are timed here, in turns, each in its own process: an epoch of the common recipe, and one of
ours at each side that images had in the run, up to the first epoch that validated at the accuracy,
validation included. Parity first: the same weights give the same loss in float32, to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path

from machine import report
from training import Child

from verydeep.training.record.folder import logged

EPOCHS, SIDE = 160, 32  # of the common recipe
IMAGES, JUDGED = 50_000, 10_000

PROGRAM = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
import torch.nn.functional as F
entrant, folder, path = sys.argv[1:4]
from verydeep.models import build
from verydeep.training.recipes import Config
config = Config.from_dict(json.load(open(folder + "/config.json"))["config"])
with np.load(path) as arrays:
    images, labels = arrays["train_images"][:8192], arrays["train_labels"][:8192]
torch.manual_seed(0)
from verydeep.training.start import network_of
model = build(network_of(config, 10), init=config.start, dropout=config.dropout)
mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
x = torch.from_numpy(images[:256]).permute(0, 3, 1, 2) / 255
x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

if entrant == "common":
    from torchvision import transforms as T
    class Images(torch.utils.data.Dataset):
        ready = T.Compose([T.ToPILImage(), T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(),
                           T.ToTensor(), T.Normalize(mean, std)])
        def __len__(self):
            return len(labels)
        def __getitem__(self, index):
            return self.ready(images[index]), int(labels[index])
    batch = 128
    loader = torch.utils.data.DataLoader(Images(), batch, shuffle=True, num_workers=2,
                                         persistent_workers=True, drop_last=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    def forever():
        while True:
            yield from loader
    batches = forever()
    def step(side):
        image, target = next(batches)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(image), target)
        loss.backward()
        optimiser.step()
        loss.item()
    def judge(side):
        with torch.no_grad():
            model(x)
else:
    from contextlib import ExitStack
    from dataclasses import replace
    from verydeep.preprocess import Preprocess
    from paced import paced
    from verydeep.training.speed import memory_kept
    from verydeep.datasets import labelled
    from verydeep.training.data.colours import statistics
    from verydeep.training.data.feed import Feed
    from verydeep.training.data.source import Source
    from verydeep.training.learner import Learner
    from verydeep.training.data.views import pictures
    ExitStack().enter_context(memory_kept())
    batch = config.batch
    samples = [labelled.Sample(i, int(k)) for i, k in zip(images, labels)]
    held = pictures(samples, config.size)
    source = Source(held.samples, config, statistics([held.images]), held=held.images)
    feed = Feed(source, config)
    learner = Learner(model, config, Preprocess(mean=mean, std=std), torch.device("cpu"))
    at = {}  # a pace for each side that images are shown at
    def step(side):
        if side not in at:
            learner.config = replace(learner.config, grow=(side / config.size,))
            at[side] = paced(learner, feed)
        at[side]()
    def judge(side):
        learner.scores(held.images[:256], side)

model.eval()
with torch.inference_mode():
    parity = float(F.cross_entropy(model(x), torch.from_numpy(labels[:256])))
model.train()
step(config.size)
print(json.dumps({"loss": parity}), flush=True)
for asked in sys.stdin:
    # an image to learn from at each side, and one to judge, in seconds
    seconds = {}
    for side in json.loads(asked):
        step(side)
        began = time.perf_counter()
        for _ in range(-(-1024 // batch)):
            step(side)
        learnt = (time.perf_counter() - began) / (-(-1024 // batch) * batch)
        began = time.perf_counter()
        judge(side)
        seconds[side] = learnt, (time.perf_counter() - began) / 256
        model.train()
    print(json.dumps(seconds), flush=True)
"""


def epoch(learnt: float, judged: float) -> float:
    """Seconds, of those that an image takes."""
    return IMAGES * learnt + JUDGED * judged


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to an accuracy on CIFAR-10.")
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--accuracy", type=float, default=0.93)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    epochs = [line for line in logged(args.run / "log.jsonl") if line["event"] == "epoch"]
    reached = next((i for i, e in enumerate(epochs) if e["top1"] >= args.accuracy), None)
    if reached is None:
        best = max(e["top1"] for e in epochs)
        raise SystemExit(
            f"{args.run} never validated at {args.accuracy:.1%}; its best is {best:.2%}"
        )
    sides = Counter(e["side"] for e in epochs[: reached + 1])
    children = {
        name: Child(name, args.run, args.data, program=PROGRAM) for name in ("common", "ours")
    }
    losses = [child.about["loss"] for child in children.values()]
    if abs(losses[0] - losses[1]) > 1e-4 * max(losses):
        raise SystemExit(f"the losses of the same weights differ: {losses}")
    rounds = []
    for number in range(args.rounds):
        asked = {"common": [SIDE], "ours": sorted(sides)}
        order = ("common", "ours") if number % 2 else ("ours", "common")
        found = {name: children[name].asked(json.dumps(asked[name])) for name in order}
        common = EPOCHS * epoch(*found["common"][str(SIDE)])
        ours = sum(count * epoch(*found["ours"][str(side)]) for side, count in sides.items())
        rounds.append((common, ours))
    for child in children.values():
        child.close()
    result = {
        "accuracy": args.accuracy,
        "epochs": {
            "common": EPOCHS,
            "ours": {f"at {side} pixels": count for side, count in sorted(sides.items())},
        },
        "seconds_in_the_run": round(epochs[reached]["seconds"]),
        "seconds": {
            "common": round(statistics.median(c for c, _ in rounds)),
            "ours": round(statistics.median(o for _, o in rounds)),
        },
        "times_faster": round(statistics.median(c / o for c, o in rounds), 2),
    }
    report("time to accuracy", result, args.out, "torch", "torchvision")


if __name__ == "__main__":
    main()
