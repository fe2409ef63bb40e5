"""Code VGG-16's published convolutions without training: multiples of steps, in a range coder's words.

Each convolution is rounded by `verydeep.compression.rounding`, on the moments of what it reads. Before
that, its weights are moved by ridge regression so that, on the inputs that the already compressed layers
below really give, they answer as the published layer answers on the published inputs (so errors do not pile
up from layer to layer). After it, the bias takes up the mean that is left. Steps are such that a rounding
costs relu5_3 the same wherever it is, by gradients there; the first blocks, which LPIPS and the head read
too, are finer. Nothing is trained, and no label is looked at.

    python tools/code_trunk.py --photos DIR --check DIR --out trunk.safetensors

`--photos` are calibration photos, `--check` others, on which the error is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compress_trunk import NAMES, POOL_BEFORE, check, load, photos, rows
from safetensors.numpy import save_file
from sources import published_vgg16

from verydeep.compression.rounding import curved_by, round_coded
from verydeep.modelfile.codec import encode


def conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A convolution and its ReLU, in bfloat16 both ways: 8 photos at a time, so that little is copied."""
    args = weight.bfloat16(), bias.bfloat16()
    parts = [F.relu(F.conv2d(part, *args, padding=1)) for part in torch.split(x, 8)]
    return torch.cat(parts)


def sensitivity(
    source: Mapping[str, np.ndarray], paths: list[Path]
) -> tuple[dict[str, np.ndarray], float]:
    """By layer, what a squared error of each of its outputs costs of relu5_3's, (outputs,).

    The mean over photos, with random signs at relu5_3, of squared gradients summed over positions.
    And the size of relu5_3, ||x|| of a photo.
    """
    weights = {key: torch.from_numpy(value) for key, value in source.items()}
    total: dict[str, np.ndarray] = {}
    size = 0.0
    for start in range(0, len(paths), 4):
        x = torch.cat([load(path, 160) for path in paths[start : start + 4]])
        before = {}
        for name in NAMES:
            x = F.max_pool2d(x, 2) if name in POOL_BEFORE else x
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
            x.requires_grad_()
            x.retain_grad()
            before[name] = x
            x = F.relu(x)
        size += float(x.detach().square().sum()) / len(paths)
        torch.autograd.backward([x], [torch.randint(0, 2, x.shape) * 2.0 - 1])
        for name, value in before.items():
            assert value.grad is not None
            squares = value.grad.square().sum((0, 2, 3)).double().numpy()
            total[name] = total.get(name, 0) + squares / len(paths)
    return total, size**0.5


def compress(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    source = published_vgg16(args.cache)
    paths = photos(args.photos, args.count, args.seed)
    sensitive, size = sensitivity(source, paths[:: max(1, len(paths) // 48)])
    numbers = sum(source[f"{name}.weight"].size for name in NAMES)
    # a weight rounded to multiples of a step is off by its square / 12
    each = args.error * size * (12 / numbers) ** 0.5
    with torch.no_grad():
        tensors = walk(args, source, paths, sensitive, each)
        errors = check(args, source, tensors)
    print("L2 error on other photos, %:", json.dumps(errors), flush=True)
    words = [
        f"--{name.replace('_', '-')} {getattr(args, name)}"
        for name in ("count", "positions", "error", "ridge", "seed")
    ]
    words += [f"--{name} {' '.join(map(str, getattr(args, name)))}" for name in ("sizes", "finer")]
    metadata = {"errors": json.dumps(errors), "command": " ".join(words)}
    save_file({k: v for k, v in tensors.items() if "." in k}, args.out, metadata=metadata)


def walk(
    args: argparse.Namespace, source: dict[str, np.ndarray], paths: list[Path],
    sensitive: dict[str, np.ndarray], each: float,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Streams (.code) and biases by layer, and under the layer's bare name the weights they stand for."""
    groups = []  # activations by image size: [published, compressed]
    for size in args.sizes:
        mine = paths[args.sizes.index(size) :: len(args.sizes)]
        batch = torch.cat([load(p, size) for p in mine]).bfloat16()
        groups.append([batch, batch])
    tensors: dict[str, np.ndarray] = {}
    total_bytes = 0
    for name in NAMES:
        began = time.time()
        weight, bias = source[f"{name}.weight"], source[f"{name}.bias"]
        if name in POOL_BEFORE:
            groups = [[F.max_pool2d(x, 2) for x in pair] for pair in groups]
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        wide = (flat.shape[1],) * 2
        own, cross, total = np.zeros(wide), np.zeros(wide), 0
        means = [np.zeros(wide[0]), np.zeros(wide[0])]
        for pair in groups:
            for start in range(0, len(pair[0]), 16):
                shape = pair[0][start : start + 16].shape
                positions = shape[0] * shape[2] * shape[3]
                picks = torch.randperm(positions)[: args.positions * 16 // args.count]
                a, b = (rows(x[start : start + 16], picks) for x in pair)
                off = (a - b).T @ b  # what is missing, small beside the rest: bfloat16 will do
                b32 = b.float().numpy()
                own = own + b32.T @ b32
                cross = cross + off.float().numpy()
                for i, part in enumerate((a.float().numpy(), b32)):
                    means[i] = means[i] + part.sum(0, dtype=np.float64)
                total += len(picks)
        theirs, ours = (mean / total for mean in means)
        own = own / total - np.outer(ours, ours)
        cross = cross / total - np.outer(theirs - ours, ours)
        damp = args.ridge * np.diagonal(own).mean()
        damped = own + damp * np.eye(len(own))
        # ridge: the weights that give the published answer on our inputs, drawn towards the published
        moved = flat + np.linalg.solve(damped, (flat @ cross).T).T
        curved = curved_by(own, weight[0, 0].size)
        middle = float(np.exp(-np.log(np.diagonal(curved.upper)).mean()))
        share = sensitive[name] + 0.05 * sensitive[name].mean()
        step = each / middle / share.mean() ** 0.5 / args.finer[int(name[4]) - 1]
        exponents = np.rint(-2 * np.log2(share / np.exp(np.log(share).mean())))
        step *= float(np.exp(0.5 * (np.log(share.mean()) - np.log(share).mean())))
        coded = round_coded(
            moved.reshape(weight.shape).astype(np.float32),
            step,
            curved,
            rows=exponents.astype(np.int16),
        )
        code = encode(coded)
        value = coded.weight
        new_bias = (bias + flat @ theirs - value.reshape(flat.shape) @ ours).astype(np.float32)
        tensors[f"{name}.code"] = np.frombuffer(code, np.uint8)
        tensors[f"{name}.bias"] = new_bias
        tensors[name] = value
        squared, reference = 0.0, 0.0
        for pair in groups:
            for i, (w, add) in enumerate(((weight, bias), (value, new_bias))):
                pair[i] = conv(pair[i], torch.from_numpy(w), torch.from_numpy(add))
            for a, c in zip(torch.split(pair[0], 8), torch.split(pair[1], 8), strict=True):
                squared += float((a.float() - c.float()).square().sum())
                reference += float(a.float().square().sum())
        total_bytes += len(code)
        print(
            f"{name}: {8 * len(code) / weight.size:.2f} bits, {total_bytes} bytes in all, L2 error after "
            f"ReLU {100 * (squared / reference) ** 0.5:.3f} % on calibration photos, "
            f"{total} positions, {time.time() - began:.0f} s",
            flush=True,
        )
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--check", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/sources"))
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192])
    parser.add_argument("--positions", type=int, default=131072)
    parser.add_argument("--check-count", type=int, default=100)
    parser.add_argument("--check-size", type=int, default=224)
    parser.add_argument("--error", type=float, default=0.023, help="of relu5_3, as it is foretold")
    parser.add_argument("--finer", type=float, nargs=5, default=[4, 2, 1.4, 1, 1], help="a block")
    parser.add_argument("--ridge", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    compress(parser.parse_args())


if __name__ == "__main__":
    main()
