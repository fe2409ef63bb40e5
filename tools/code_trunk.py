"""Code VGG-16's published convolutions without training: multiples of steps, in a range coder's words.

Each convolution is rounded by `verydeep.compression.rounding`, on the moments of what it reads. Before
that, its weights are moved by ridge regression so that, on the inputs that the already compressed layers
below really give, they answer as the published layer answers on the published inputs (so errors do not pile
up from layer to layer). How far they may move is tried: fitted to half of the photos, judged by the other
half. After it, the bias takes up the mean that is left. Steps are such that a rounding
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
    """A convolution and its ReLU, 8 photos at a time, so that little is copied.

    In float32: weights in bfloat16 are off by more than what is measured here.
    """
    parts = [F.relu(F.conv2d(part, weight, bias, padding=1)) for part in torch.split(x, 8)]
    return torch.cat(parts)


class Half:
    """What a layer reads on half of the photos: sums over positions, of the compressed network.

    own: of x x'. cross: of (published x - x) x'. sums: of both networks' x. count: of positions.
    """

    def __init__(self, inputs: int) -> None:
        self.own, self.cross = np.zeros((2, inputs, inputs))
        self.sums = np.zeros((2, inputs))
        self.count = 0

    def add(self, published: torch.Tensor, ours: torch.Tensor) -> None:
        """(positions, inputs), of which `medium` rounds the factors of products to bfloat16."""
        off = published - ours  # what is missing, small beside the rest
        self.own += (ours.T @ ours).numpy()
        self.cross += (off.T @ ours).numpy()
        both = (published, ours)
        self.sums += np.stack([part.sum(0, dtype=torch.float64).numpy() for part in both])
        self.count += len(ours)

    def __add__(self, other: Half) -> Half:
        both = Half(len(self.own))
        for key in ("own", "cross", "sums", "count"):
            setattr(both, key, getattr(self, key) + getattr(other, key))
        return both

    def about_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariances: of x, and of what is missing with x."""
        theirs, ours = self.sums / self.count
        own = self.own / self.count - np.outer(ours, ours)
        return own, self.cross / self.count - np.outer(theirs - ours, ours)


def moves(flat: np.ndarray, own: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    """What is added to the weights, (outputs, inputs), so that they make up for what is missing."""
    damped = own + ridge * np.diagonal(own).mean() * np.eye(len(own))
    return np.asarray(np.linalg.solve(damped, (flat @ cross).T).T)


def best_ridge(flat: np.ndarray, halves: list[Half], tried: list[float]) -> float:
    """The one whose moves on one half of the photos lose least on the other."""
    if len(tried) == 1 or not all(half.count for half in halves):
        return tried[len(tried) // 2]
    known = [half.about_means() for half in halves]
    lost = []
    for ridge in tried:
        total = 0.0
        for fitted, judge in (known, known[::-1]):
            own, cross = judge
            d = moves(flat, *fitted, ridge)
            total += float(((d @ own) * d).sum() - 2 * ((flat @ cross) * d).sum())
        lost.append(total)
    return tried[int(np.argmin(lost))]


def through(
    tensors: Mapping[str, np.ndarray],
    names: list[str],
    paths: list[Path],
    size: int,
    chunk: int = 8,
) -> torch.Tensor:
    """What those layers make of the photos, one after the other."""
    done = []
    for start in range(0, len(paths), chunk):
        x = torch.cat([load(path, size) for path in paths[start : start + chunk]])
        for name in names:
            x = F.max_pool2d(x, 2) if name in POOL_BEFORE else x
            weight, bias = (
                torch.from_numpy(tensors[f"{name}.{part}"]) for part in ("weight", "bias")
            )
            x = conv(x, weight, bias)
        done.append(x)
    return torch.cat(done)


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
        for name in ("count", "few", "positions", "error", "seed")
    ]
    words += [
        f"--{name} {' '.join(map(str, getattr(args, name)))}"
        for name in ("sizes", "finer", "ridge")
    ]
    metadata = {"errors": json.dumps(errors), "command": " ".join(words)}
    save_file({k: v for k, v in tensors.items() if "." in k}, args.out, metadata=metadata)


def walk(
    args: argparse.Namespace, source: dict[str, np.ndarray], paths: list[Path],
    sensitive: dict[str, np.ndarray], each: float,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Streams (.code) and biases by layer, and under the layer's bare name the weights they stand for."""

    def pairs(mine: list[Path], done: list[str]) -> list[list[torch.Tensor]]:
        """By image size, what those layers give: the published ones', and the compressed ones'."""
        ours = {f"{one}.weight": tensors[one] for one in done}
        ours |= {f"{one}.bias": tensors[f"{one}.bias"] for one in done}
        several = []
        for number, size in enumerate(args.sizes):
            some = mine[number :: len(args.sizes)]
            several.append([through(each, done, some, size) for each in (source, ours)])
        return several

    tensors: dict[str, np.ndarray] = {}
    total_bytes = 0
    mine = paths[:: -(-len(paths) // args.few)]
    groups = pairs(mine, [])
    for name in NAMES:
        began = time.time()
        weight, bias = source[f"{name}.weight"], source[f"{name}.bias"]
        if name == "conv4_1" and len(mine) < len(
            paths
        ):  # layers have more inputs from here on, and less to hold of a photo
            mine = paths
            groups = pairs(mine, NAMES[: NAMES.index(name)])
        if name in POOL_BEFORE:
            groups = [[F.max_pool2d(x, 2) for x in pair] for pair in groups]
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        halves = [Half(flat.shape[1]) for _ in range(2)]
        for pair in groups:
            for start in range(0, len(pair[0]), 16):
                shape = pair[0][start : start + 16].shape
                positions = shape[0] * shape[2] * shape[3]
                picks = torch.randperm(positions)[: args.positions * 16 // len(mine)]
                half = halves[start // 16 % 2]
                half.add(*(rows(x[start : start + 16], picks) for x in pair))
        whole = halves[0] + halves[1]
        ridge = best_ridge(flat, halves, args.ridge)
        own, cross = whole.about_means()
        theirs, ours = whole.sums / whole.count
        moved = flat + moves(flat, own, cross, ridge)
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
            f"{whole.count} positions, ridge {ridge:g}, {time.time() - began:.0f} s",
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
    parser.add_argument("--few", type=int, default=512, help="photos for the first three blocks")
    parser.add_argument(
        "--ridge", type=float, nargs="+", default=[5e-4, 2e-3, 8e-3, 3e-2, 0.1, 0.5]
    )
    parser.add_argument("--seed", type=int, default=0)
    torch.set_float32_matmul_precision("medium")  # enough for moments
    compress(parser.parse_args())


if __name__ == "__main__":
    main()
