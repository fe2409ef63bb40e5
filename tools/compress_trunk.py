"""Compress VGG-16's published convolutions to 8 bits a weight, each layer's rounding corrected.

Method: GPTQ (Frantar et al. 2022, arXiv:2210.17323) on each convolution unrolled to a matrix, with two
additions. Before rounding, the weights are moved by ridge regression so that, on the inputs that the
already compressed layers below really give, they answer as the published layer answers on the published
inputs (so errors do not pile up from layer to layer). After rounding, the bias takes up the mean that
is left. The layer's function is what is kept; nothing is trained on labels.

    python tools/compress_trunk.py --photos DIR --check DIR --out trunk.safetensors

`--photos` are calibration photos, `--check` others, on which the error is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from sources import published_vgg16

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)  # torchvision's, for these weights
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
NAMES = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
POOL_BEFORE = {"conv2_1", "conv3_1", "conv4_1", "conv5_1"}


def photos(folders: list[Path], count: int, seed: int) -> list[Path]:
    """`count` photos in all, the same number from each folder, drawn with `seed`."""
    chosen: list[Path] = []
    for folder in folders:
        found = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"}
        )
        random.Random(seed).shuffle(found)
        chosen += found[: count // len(folders)]
    return chosen


def load(path: Path, size: int) -> torch.Tensor:
    image = Image.open(path).convert("RGB")
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return (pixels - MEAN) / STD


def rows(x: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """The 3x3 patches of `x` (n, c, h, w) at the picked positions: (positions, c * 9)."""
    h, w = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    n, y, z = picks // (h * w), picks // w % h, picks % w
    patches = [padded[n, y + dy, z + dz] for dy in range(3) for dz in range(3)]
    return torch.stack(patches, 2).flatten(1)


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, top: int
) -> torch.Tensor:
    """Round `weight` (out, columns) to integers, each column's error spread over those not yet done."""
    columns = weight.shape[1]
    order = torch.argsort(torch.diagonal(hessian), descending=True)
    weight = weight[:, order].double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(weight)
    step = scale.double()
    block = 128
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part = weight[:, start:stop].clone()
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            q = (part[:, j] / step).round().clamp(-top, top)
            rounded[:, start + j] = q
            errors[:, j] = (part[:, j] - q * step) / upper[start + j, start + j]
            part[:, j:] -= errors[:, j : j + 1] * upper[start + j, start + j : stop]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    back = torch.empty_like(order)
    back[order] = torch.arange(columns)
    return rounded[:, back]


def best_scale(weight: torch.Tensor, importance: torch.Tensor, top: int) -> torch.Tensor:
    """One step an output channel: of several clippings, the one with the least weighted error."""
    largest = weight.abs().amax(1)
    best = torch.full_like(largest, float("inf"))
    chosen = largest / top
    for fraction in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6):
        step = (largest * fraction / top).clamp_min(1e-12)
        error = weight - (weight / step[:, None]).round().clamp(-top, top) * step[:, None]
        cost = (error.square() * importance).sum(1)
        better = cost < best
        best = torch.where(better, cost, best)
        chosen = torch.where(better, step, chosen)
    return chosen


@torch.no_grad()
def compress(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    source = published_vgg16(args.cache)
    groups = []  # activations by image size: [published, compressed], half precision to fit in memory
    paths = photos(args.photos, args.count, args.seed)
    for size in args.sizes:
        mine = paths[args.sizes.index(size) :: len(args.sizes)]
        batch = torch.cat([load(p, size) for p in mine])
        groups.append([batch.half(), batch.half()])
    tensors: dict[str, np.ndarray] = {}
    for name in NAMES:
        began = time.time()
        weight = torch.from_numpy(source[f"{name}.weight"])
        bias = torch.from_numpy(source[f"{name}.bias"])
        if name in POOL_BEFORE:
            groups = [[F.max_pool2d(x.float(), 2).half() for x in pair] for pair in groups]
        flat = weight.flatten(1)
        width = flat.shape[1]
        own = torch.zeros(width, width, dtype=torch.float64)
        cross = torch.zeros(width, width, dtype=torch.float64)
        mean_true = torch.zeros(width, dtype=torch.float64)
        mean_ours = torch.zeros(width, dtype=torch.float64)
        total = 0
        for true, ours in groups:
            for start in range(0, len(true), 16):
                t, o = true[start : start + 16].float(), ours[start : start + 16].float()
                positions = len(t) * t.shape[2] * t.shape[3]
                count = min(positions, args.positions * 16 // args.count)
                picks = torch.randperm(positions)[:count]
                a, b = rows(t, picks), rows(o, picks)
                own += (b.T @ b).double()
                cross += (a.T @ b).double()
                mean_true += a.sum(0).double()
                mean_ours += b.sum(0).double()
                total += count
        mean_true /= total
        mean_ours /= total
        own = own / total - torch.outer(mean_ours, mean_ours)
        cross = cross / total - torch.outer(mean_true, mean_ours)
        damp = args.damp * torch.diagonal(own).mean()
        own += damp * torch.eye(width, dtype=torch.float64)
        cross += damp * torch.eye(width, dtype=torch.float64)
        # ridge: the weights that give the published answer on our inputs, drawn towards the published
        moved = torch.linalg.solve(own, (flat.double() @ cross).T).T
        bits = 16 if name[4] <= str(args.wide_blocks) else 8
        top = 2 ** (bits - 1) - 1
        # the factor of GPTQ holds for any Hessian; the importance is its diagonal
        scale = best_scale(moved, torch.diagonal(own), top).float()
        q = gptq(moved, own, scale, top)
        value = (q.float() * scale[:, None]).view_as(weight)
        shift = flat.double() @ mean_true - value.flatten(1).double() @ mean_ours
        new_bias = (bias.double() + shift).float()
        tensors[f"{name}.weight.q"] = (
            q.numpy().astype(np.int16 if bits == 16 else np.int8).reshape(weight.shape)
        )
        tensors[f"{name}.weight.scale"] = scale.numpy().reshape(-1, 1, 1, 1)
        tensors[f"{name}.bias"] = new_bias.numpy()
        squared, reference = 0.0, 0.0
        for pair in groups:
            for i, (w, b) in enumerate(((weight, bias), (value, new_bias))):
                parts = [
                    F.relu(F.conv2d(c.float(), w, b, padding=1)).half()
                    for c in torch.split(pair[i], 8)
                ]
                pair[i] = torch.cat(parts)
            for a, c in zip(torch.split(pair[0], 8), torch.split(pair[1], 8), strict=True):
                squared += float((a.float() - c.float()).square().sum())
                reference += float(a.float().square().sum())
        print(
            f"{name}: {bits} bits, L2 error after ReLU {100 * (squared / reference) ** 0.5:.3f} % on "
            f"calibration photos, {time.time() - began:.0f} s",
            flush=True,
        )
    errors = check(args, source, tensors)
    print("L2 error on other photos, %:", json.dumps(errors), flush=True)
    used = ("count", "sizes", "positions", "wide_blocks", "damp", "seed")
    words = [
        f"--{name.replace('_', '-')} {getattr(args, name)}" for name in used if name != "sizes"
    ]
    words.append(f"--sizes {' '.join(map(str, args.sizes))}")
    metadata = {"errors": json.dumps(errors), "command": " ".join(words)}
    save_file(tensors, args.out, metadata=metadata)


def check(
    args: argparse.Namespace, source: dict[str, np.ndarray], tensors: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """||ours - published|| / ||published|| after each ReLU, over photos that calibration never saw."""
    result = {}
    for folder in args.check:
        squared = dict.fromkeys(NAMES, 0.0)
        reference = dict.fromkeys(NAMES, 0.0)
        paths = photos([folder], args.check_count, args.seed + 1)
        for start in range(0, len(paths), 8):
            x = y = torch.cat([load(p, args.check_size) for p in paths[start : start + 8]])
            for name in NAMES:
                if name in POOL_BEFORE:
                    x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
                x = F.relu(
                    F.conv2d(
                        x,
                        torch.from_numpy(source[f"{name}.weight"]),
                        torch.from_numpy(source[f"{name}.bias"]),
                        padding=1,
                    )
                )
                weight = tensors.get(name)  # as tools/code_trunk.py has it
                if weight is None:
                    q, scale = (tensors[f"{name}.weight.{part}"] for part in ("q", "scale"))
                    weight = q.astype(np.float32) * scale
                y = F.relu(
                    F.conv2d(
                        y,
                        torch.from_numpy(weight),
                        torch.from_numpy(tensors[f"{name}.bias"]),
                        padding=1,
                    )
                )
                squared[name] += float((x - y).double().square().sum())
                reference[name] += float(x.double().square().sum())
        result[f"{folder.parent.name}/{folder.name}"] = {
            f"relu{n[4:]}": round(100 * (squared[n] / reference[n]) ** 0.5, 4) for n in NAMES
        }
    return result


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
    parser.add_argument("--wide-blocks", type=int, default=2)
    parser.add_argument("--damp", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    compress(parser.parse_args())


if __name__ == "__main__":
    main()
