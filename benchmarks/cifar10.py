"""How few bytes and multiply-adds a CIFAR-10 classifier takes, rounded without any more training.

    python benchmarks/cifar10.py cifar10.npz MODEL [--sizes 200000 150000] --folder F [--out FILE]

MODEL: a network with batch norms, as `small-images` makes it. They go into its weights first, which
changes no answer. Then `verydeep compress` to each size: training images, without their labels, say how
weights are rounded, and all test images are measured. No timing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import ENGINES, report

import verydeep
from verydeep import modelfile
from verydeep.compression.learning import unnormed
from verydeep.evaluation import evaluate

COUNT = 1024  # images: half of them say how to round, the others measure that


def rounded(data: Path, model: Path, folder: Path, sizes: list[int]) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    bare = folder / "bare.safetensors"
    modelfile.write(bare, *unnormed(modelfile.read(model)))
    before, without = evaluate(model, data), evaluate(bare, data)
    if abs(before.top1 - without.top1) > 1e-3:  # type: ignore[union-attr]
        raise SystemExit(f"without batch norms {without}; expected {before}")
    rows = []
    for size in sizes:
        small = folder / f"{size}.safetensors"
        result = verydeep.compress(
            bare, small, data=data, size=size, count=COUNT, resume=Path(f"{small}.work").exists(),
            on_event=lambda event: print(event, file=sys.stderr, flush=True),
        )  # fmt: skip
        rows.append({
            "bytes": small.stat().st_size, "top1": result.figure("top1")["value"], "drop": result.drop,
            "drop_row": dict(result.figure("drop")), "multiply_adds": result.multiply_adds,
        })  # fmt: skip
    count = sum(array.size for array in modelfile.read(bare).tensors().values())
    return {
        "top1": before.top1, "images": before.n, "protocol": before.protocol, "parameters": count,
        "rounded": rows,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 150_000])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    report(
        "cifar10", rounded(words.data, words.model, words.folder, words.sizes), words.out, *ENGINES
    )
