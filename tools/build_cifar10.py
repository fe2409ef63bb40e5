"""Make the built-in cifar10 model of a run of `verydeep train`: in float16, measured as it ships.

    python tools/build_cifar10.py RUN cifar10.npz

RUN is the folder of a finished run on the file that `tools/cifar10.py` writes. The weights are kept in
float16, the accuracy of the record is measured again on that file through `verydeep.load`, and the run's
report, log and settings go to docs/runs/cifar10/: the report without its pictures, since data sets stay out
of this repository.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import verydeep
from verydeep.files.strict_json import JSON
from verydeep.modelfile import read, write

ROOT = Path(__file__).parent.parent
OUT = ROOT / "verydeep" / "builtin" / "cifar10.safetensors"
RUNS = ROOT / "docs" / "runs" / "cifar10"
LARGEST_BYTES = 8_000_000


def plain(text: str, data: Path, run: Path) -> str:
    """The text without the folders of the machine that it was written on."""
    return text.replace(str(data), data.name).replace(str(run), "run")


def without_pictures(page: str) -> str:
    """The report's mistakes in words alone."""
    bare = re.sub(r'<div class="row">(?:<img [^>]*>)*</div>', "", page)
    assert "data:image" not in bare, "a picture is left"
    return bare


def halved(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.dtype == np.float32 else np.array(array)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    trained = read(args.run / "model.safetensors")
    # statistics of batch norm span more than float16 holds well, and are few
    tensors = {
        key: np.array(value) if "running_" in key else halved(value)
        for key, value in trained.stored.items()
    }
    provenance = json.loads(plain(json.dumps(dict(trained.record.provenance)), args.data, args.run))
    record = replace(
        trained.record,
        preprocess=replace(trained.record.preprocess, detail=32),  # of CIFAR-10's images
        licence="BSD-3-Clause",
        provenance={**provenance, "stored": "float16, made by tools/build_cifar10.py"},
        measured=(),
    )
    write(OUT, record, tensors)
    with np.load(args.data) as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    scores = verydeep.load(OUT, engine="onnxruntime", precision="exact").scores(list(images))
    right = scores.argsort(1)[:, ::-1] == labels[:, None]
    side = record.preprocess.crop_size
    protocol = (
        f"CIFAR-10's 10,000 test images, one view of {side} pixels, float16, onnxruntime exact"
    )
    measured: tuple[Mapping[str, JSON], ...] = tuple(
        {
            "what": f"top{k}",
            "value": round(float(right[:, :k].any(1).mean()), 4),
            "protocol": protocol,
        }
        for k in (1, 5)
    )
    write(OUT, replace(record, measured=measured), tensors)
    if OUT.stat().st_size > LARGEST_BYTES:
        raise SystemExit(f"{OUT} has {OUT.stat().st_size} bytes, more than {LARGEST_BYTES}")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "log.jsonl", "config.json"):
        text = plain((args.run / name).read_text(encoding="utf-8"), args.data, args.run)
        text = without_pictures(text) if name == "report.html" else text
        (RUNS / name).write_text(text, encoding="utf-8")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, {measured}")


if __name__ == "__main__":
    main()
