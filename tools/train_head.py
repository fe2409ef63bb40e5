"""Train the built-in model's linear head on averaged features, calibrate it, and write the head.

    python tools/train_head.py --train train_128 train_144_flip --val val_128 --layers relu4_3 ... \
        --out head.npz

Each --train and --val is what extract_features.py wrote; every epoch draws each photo's features from one
of the training views. Features are standardised, and that is folded into the weights at the end. Soft-max
regression by AdamW under a cosine; hyper-parameters are judged on the first half of the validation photos,
the temperature is fitted on that half too, and the calibration error is measured on the other half.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compress_trunk import best_scale, gptq
from torch import Tensor

from verydeep.evaluation.figures import calibration_error
from verydeep.nets import network


def read(path: Path, layers: list[str]) -> tuple[Tensor, list[str]]:
    """Features of the named layers, (photos, channels) float16, and the photos' class ids."""
    state = json.loads(path.with_suffix(".json").read_text())
    data = np.load(path.with_suffix(".npy"), mmap_mode="r")
    if state["done"] != len(state["labels"]):
        raise SystemExit(f"{path} is not finished: {state['done']} of {len(state['labels'])}")
    net, at = network("vgg16"), 0
    columns: list[int] = []
    for layer in state["layers"]:
        channels = net.layer(layer).outputs
        if layer in layers:
            columns += range(at, at + channels)
        at += channels
    return torch.from_numpy(np.ascontiguousarray(data[:, columns])), state["labels"]


def accuracy(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    best = scores.topk(5).indices == labels[:, None]
    return float(best[:, 0].float().mean()), float(best.any(1).float().mean())


def fit(
    args: argparse.Namespace, views: list[Tensor], labels: Tensor, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, biases on standardised features, and the standardisation's mean and deviation."""
    torch.manual_seed(args.seed)
    sample = torch.cat([view[::5].float() for view in views])
    mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-4)
    layer = torch.nn.Linear(len(mean), classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [
        {"params": [layer.weight], "weight_decay": args.decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.99))
    photos, steps = len(labels), (len(labels) + args.batch - 1) // args.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.epochs * steps)
    for epoch in range(args.epochs):
        began, total = time.time(), 0.0
        order = torch.randperm(photos)
        choice = torch.randint(len(views), (photos,))
        for picks in torch.split(order, args.batch):
            parts = [(view, picks[choice[picks] == v]) for v, view in enumerate(views)]
            x = torch.cat([view[p] for view, p in parts]).float()
            y = labels[torch.cat([p for _, p in parts])]
            x = (x - mean) / deviation
            x = F.dropout(x, args.dropout)
            loss = F.cross_entropy(layer(x), y, label_smoothing=args.smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(y)
        if epoch % 5 == 4 or epoch + 1 == args.epochs:
            print(
                f"epoch {epoch + 1}/{args.epochs}: loss {total / photos:.4f}, {time.time() - began:.1f} s",
                flush=True,
            )
    return layer.weight.detach(), layer.bias.detach(), mean, deviation


def temperature(scores: Tensor, labels: Tensor) -> float:
    """The one number that scores are divided by, for the least cross-entropy (Guo et al. 2017)."""
    log = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([log], max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(scores / log.exp(), labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(log.exp().detach())


def round_to_8_bits(
    weight: Tensor, bias: Tensor, views: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, one step a class, and biases: rounded by GPTQ on the features, as the trunk is."""
    sample = torch.cat([view[::4].float() for view in views]).double()
    mean = sample.mean(0)
    covariance = torch.cov(sample.T)
    covariance += 1e-6 * torch.diagonal(covariance).mean() * torch.eye(len(mean))
    scale = best_scale(weight.double(), torch.diagonal(covariance), 127).float()
    rounded = gptq(weight, covariance, scale, 127)
    lost = weight.double() - rounded * scale.double()[:, None]
    return rounded, scale, (bias.double() + lost @ mean).float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--val", type=Path, nargs="+", required=True)
    parser.add_argument("--layers", nargs="+", default=["relu4_3", "relu5_1", "relu5_2", "relu5_3"])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    loaded = [read(path, args.layers) for path in args.train]
    names = loaded[0][1]
    if any(other != names for _, other in loaded):
        raise SystemExit("the training views list different photos")
    ids = sorted(set(names))
    number = {name: index for index, name in enumerate(ids)}
    labels = torch.tensor([number[name] for name in names])
    weight, bias, mean, deviation = fit(args, [view for view, _ in loaded], labels, len(ids))
    weight = weight / deviation
    bias = bias - weight @ mean
    rounded, scale, rounded_bias = round_to_8_bits(weight, bias, [view for view, _ in loaded])
    words = [
        f"--train {' '.join(p.name for p in args.train)} --val {' '.join(p.name for p in args.val)}"
    ]
    words.append(f"--layers {' '.join(args.layers)}")
    used = ("epochs", "batch", "rate", "decay", "dropout", "smoothing", "seed")
    words += [f"--{name} {getattr(args, name)}" for name in used]
    result: dict[str, object] = {"command": " ".join(words)}
    fitted = None
    for path in args.val:
        features, val_names = read(path, args.layers)
        truth = torch.tensor([number[name] for name in val_names])
        whole = F.linear(features.float(), weight, bias)
        print(f"{path.name}, before rounding: top-1, top-5 {accuracy(whole, truth)}", flush=True)
        scores = F.linear(features.float(), (rounded * scale[:, None]).float(), rounded_bias)
        half = len(truth) // 2
        fitted = fitted or temperature(scores[:half], truth[:half])
        probability, first = (scores / fitted).softmax(1).max(1)
        error = calibration_error(probability[half:].numpy(), (first == truth)[half:].numpy())
        figures = {
            "first_half": accuracy(scores[:half], truth[:half]),
            "second_half": accuracy(scores[half:], truth[half:]),
            "all": accuracy(scores, truth),
            "temperature": fitted,
            "calibration_error_second_half": error,
        }
        result[path.name] = figures
        print(path.name, json.dumps(figures), flush=True)
    if args.out:
        assert fitted is not None
        result["temperature"] = fitted
        np.savez(
            args.out,
            q=rounded.numpy().astype(np.int8),
            scale=(scale / fitted).numpy()[:, None],
            bias=(rounded_bias / fitted).numpy(),
            ids=ids,
            layers=args.layers,
            result=json.dumps(result),
        )


if __name__ == "__main__":
    main()
