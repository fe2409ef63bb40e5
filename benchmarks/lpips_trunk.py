"""What the built-in's compressed convolutions cost LPIPS: against the published ones in float32.

    python benchmarks/lpips_trunk.py [--photos FOLDER] [--pairs 200] [--sources DIR] [--out FILE.json]

Photos, a side of 256, each paired with itself under one of five distortions (noise, blur, JPEG, fewer
pixels, less contrast) in one of ten strengths, from hardly visible to ugly. Both trunks compute in `exact`.
What counts: the median relative difference, and whether the two rank the pairs alike (Spearman).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import report
from PIL import Image, ImageEnhance, ImageFilter

from verydeep import Perceptual, modelfile
from verydeep.files.photo_paths import find
from verydeep.nets import Head, network
from verydeep.published import find_model

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from sources import published_vgg16  # noqa: E402  # tools/ is no package

SIZE = 256
STRENGTHS = 10


def square(path: str) -> Image.Image:
    """The middle of a photo."""
    photo = Image.open(path).convert("RGB")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))


def distorted(photo: Image.Image, kind: int, strength: int, seed: int) -> np.ndarray:
    """strength: 1 (hardly visible) to STRENGTHS (ugly)."""
    share = strength / STRENGTHS
    if kind == 0:
        grain = np.random.default_rng(seed).normal(0, 60 * share**2, (SIZE, SIZE, 3))
        return (np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)
    if kind == 1:
        return np.asarray(photo.filter(ImageFilter.GaussianBlur(0.3 + 4 * share)))
    if kind == 2:
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=round(95 - 90 * share))
        return np.asarray(Image.open(file).convert("RGB"))
    if kind == 3:
        side = round(SIZE / (1 + 7 * share))
        return np.asarray(photo.resize((side, side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.asarray(ImageEnhance.Contrast(photo).enhance(1 - 0.8 * share))


def published(folder: Path, sources: Path) -> Path:
    """A model file of the published convolutions, float32, for the preprocessing of the built-in."""
    record = modelfile.read(find_model("builtin")).record
    net = replace(network("vgg16"), head=Head(classes=0))
    path = folder / "published.safetensors"
    by_paper = published_vgg16(sources)
    tensors = {}
    for layer in net.trunk:
        if layer.kind == "conv":
            for part in ("weight", "bias"):
                tensors[f"{layer.key}.{part}"] = by_paper[f"{layer.name}.{part}"]
    modelfile.write(path, modelfile.Record(network=net, preprocess=record.preprocess), tensors)
    return path


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(len(values))
    order[values.argsort(kind="stable")] = np.arange(len(values))
    return order


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", default=str(ROOT / "examples" / "photos"))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--sources", type=Path, default=ROOT / "build" / "sources")
    parser.add_argument("--metric", default="lpips", choices=("lpips", "dists"))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    paths = list(find([args.photos]))
    if not paths:
        raise SystemExit(f"no photos in {args.photos}")
    # photos that are far apart in the list, so that every class has its part
    chosen = [paths[index * len(paths) // args.pairs] for index in range(args.pairs)]
    pairs = []
    for index, path in enumerate(chosen):
        photo = square(path)
        strength = index // 5 % STRENGTHS + 1
        pairs.append((np.asarray(photo), distorted(photo, index % 5, strength, index)))
    told = {"engine": args.engine, "precision": "exact"}
    with tempfile.TemporaryDirectory() as folder:
        file = published(Path(folder), args.sources)
        found = [
            np.array(
                [float(row) for row in Perceptual(args.metric, model=model, **told).stream(pairs)]
            )
            for model in (file, "builtin")
        ]
    theirs, ours = found
    apart = np.abs(ours - theirs) / theirs
    correlation = float(np.corrcoef(ranks(ours), ranks(theirs))[0, 1])
    result = {
        "metric": args.metric,
        "pairs": len(pairs),
        "photos": len(set(chosen)),
        "distances": [round(float(np.quantile(theirs, q)), 4) for q in (0, 0.25, 0.5, 0.75, 1)],
        "median relative difference": round(float(np.median(apart)), 6),
        "95th percentile": round(float(np.quantile(apart, 0.95)), 6),
        "largest": round(float(apart.max()), 6),
        "rank correlation": round(correlation, 7),
    }
    report("lpips_trunk", result, args.out, "onnxruntime", "Pillow")


if __name__ == "__main__":
    main()
