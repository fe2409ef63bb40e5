"""The built-in, compressed convolutions against the published float32 ones: what rounding costs a distance.

    python benchmarks/lpips_trunk.py [--sources DIR] [--photos DIR] [--pairs 200] [--out FILE.json]

Photos with graded distortions (noise, blur, JPEG, shift, brightness, contrast, mosaic), from hardly visible
to gross. Both in `exact`. Stated: the median and the largest relative difference, and Spearman's rank
correlation. The published weights come through `tools/sources.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from PIL import Image, ImageEnhance, ImageFilter

from verydeep import Perceptual, modelfile
from verydeep.nets import network
from verydeep.photos import find

ROOT = Path(__file__).resolve().parent.parent
SIZE = 256


def published(sources: Path, path: Path) -> Path:
    """The float32 convolutions as a model file."""
    sys.path.insert(0, str(ROOT / "tools"))
    from sources import published_vgg16

    net = network("vgg16", classes=0)
    tensors = published_vgg16(sources)
    stored = {
        f"{layer.key}.{part}": tensors[f"{layer.name}.{part}"]
        for layer in net.trunk
        if layer.key
        for part in ("weight", "bias")
    }
    modelfile.write(path, modelfile.Record(network=net), stored)
    return path


def distorted(image: Image.Image, draw: np.random.Generator) -> Iterator[Image.Image]:
    """The image, worse and worse, in each of seven ways; the weakest of all ways first."""
    values = np.asarray(image, np.float32)
    for step in range(4):
        grain = draw.normal(0, (2, 6, 15, 40)[step], values.shape)
        yield Image.fromarray((values + grain).clip(0, 255).astype(np.uint8))
        yield image.filter(ImageFilter.GaussianBlur((0.5, 1, 2, 4)[step]))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=(90, 60, 30, 10)[step])
        yield Image.open(file).convert("RGB")
        yield Image.fromarray(np.roll(np.asarray(image), (1, 2, 4, 8)[step], axis=(0, 1)))
        yield ImageEnhance.Brightness(image).enhance((0.97, 0.9, 0.75, 0.5)[step])
        yield ImageEnhance.Contrast(image).enhance((0.95, 0.85, 0.7, 0.4)[step])
        side = (192, 128, 64, 32)[step]
        yield image.resize((side, side)).resize(image.size, Image.Resampling.NEAREST)


def pairs(folder: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    found = list(find([str(folder)]))
    each = -(-count // len(found))
    result = []
    for number, path in enumerate(found):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (0, 0, side, side))
        worse = list(distorted(image, np.random.default_rng(number)))
        # evenly from the weakest to the grossest, another selection for each photo
        chosen = [
            (number + round(i * len(worse) / each)) % len(worse) for i in range(min(each, 28))
        ]
        result += [(np.asarray(image), np.asarray(worse[i])) for i in dict.fromkeys(chosen)]
        if len(result) >= count:
            break
    return list(islice(result, count))


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(np.float64)


def compared(
    metric: str, model: Path, given: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    found = [
        np.array([float(d) for d in Perceptual(metric, model=m, precision="exact").stream(given)])
        for m in ("builtin", model)
    ]
    ours, theirs = found
    relative = np.abs(ours - theirs) / theirs
    correlation = np.corrcoef(ranks(ours), ranks(theirs))[0, 1]
    return {
        "median relative difference": float(f"{np.median(relative):.3g}"),
        "90th percentile": float(f"{np.quantile(relative, 0.9):.3g}"),
        "largest": float(f"{relative.max():.3g}"),
        "rank correlation": round(float(correlation), 6),
        "distances from, to": [float(f"{f(theirs):.3g}") for f in (np.min, np.max)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, default=Path("build/sources"))
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--metrics", nargs="+", default=["lpips", "dists"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    given = pairs(args.photos, args.pairs)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model = published(args.sources, Path(folder) / "published.safetensors")
        figures = {metric: compared(metric, model, given) for metric in args.metrics}
    result = {
        "benchmark": "lpips trunk",
        "machine": machine("onnxruntime", "openvino"),
        "pairs": len(given),
        "size": SIZE,
        **figures,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
