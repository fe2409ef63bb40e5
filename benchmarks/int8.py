"""How often an int8 model gives the float model's first answer, and what it costs in accuracy.

    python benchmarks/int8.py FLOAT.safetensors INT8.safetensors PHOTOS [--labels FILE] [--out FILE.json]

PHOTOS is a folder of class folders, or any folder with --labels, lines of "file name<tab>class id"
(Tiny-ImageNet's val_annotations.txt). The float model runs in `exact`, the int8 one in integers; none of
the photos may have been used for calibration.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from machine import report

import verydeep
from verydeep.evaluation import class_of, class_table
from verydeep.files.photo_paths import find
from verydeep.modelfile import Record


def labels(paths: list[str], record: Record, table: Path | None) -> np.ndarray:
    """The class of each photo; -1 where it has none."""
    classes = class_table(record.class_names, record.class_ids)
    if table is None:
        found = [class_of(Path(path).parent.name, classes) for path in paths]
    else:
        rows = (line.split("\t") for line in table.read_text().splitlines() if line)
        by_name = {row[0]: class_of(row[1], classes) for row in rows}
        found = [by_name.get(Path(path).name) for path in paths]
    return np.array([-1 if label is None else label for label in found])


def answers(model: str, precision: str, paths: list[str]) -> tuple[np.ndarray, str, float]:
    """First answers, the engine, and photos a second."""
    predictor = verydeep.load(model, precision=precision)
    index = {label: i for i, label in enumerate(predictor.labels)}
    began = time.perf_counter()
    found = []
    for count, answer in enumerate(predictor.stream(paths, top=1), 1):
        if isinstance(answer, verydeep.Failure):
            raise SystemExit(answer.error)
        found.append(index[answer.label])
        if count % 1000 == 0:
            print(f"{precision}: {count} of {len(paths)}", file=sys.stderr)
    rate = len(paths) / (time.perf_counter() - began)
    return np.array(found), f"{predictor.engine} {predictor.precision}", rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("float_model")
    parser.add_argument("int8_model")
    parser.add_argument("photos")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    paths = list(find([args.photos]))
    truth = labels(paths, verydeep.load(args.float_model).record, args.labels)
    if (truth < 0).any():
        raise SystemExit(f"{(truth < 0).sum()} of {len(paths)} photos have no class of the model")
    theirs, _, slow = answers(args.float_model, "exact", paths)
    ours, engine, quick = answers(args.int8_model, "int8", paths)
    result = {
        "photos": len(paths),
        "engine": engine,
        "agreement": round(float((ours == theirs).mean()), 5),
        "top1, float": round(float((theirs == truth).mean()), 5),
        "top1, int8": round(float((ours == truth).mean()), 5),
        "photos a second, exact": round(slow, 1),
        "photos a second, int8": round(quick, 1),
    }
    report("int8", result, args.out, "onnxruntime", "openvino")


if __name__ == "__main__":
    main()
