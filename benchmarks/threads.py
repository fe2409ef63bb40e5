"""Do eight threads that share one Predictor get what one thread gets, from every engine? (No timing.)

    python benchmarks/threads.py [--threads 8] [--calls 1000] [--builtin-calls 100] [--out FILE.json]

A VGG-16 of width 1/8 at 64 pixels takes `--calls` calls in each thread, the built-in model
`--builtin-calls`, each call with one to four photos that the thread draws from sixteen. A row is wrong
where it differs from one thread's by more than 1e-4 of the largest score: engines may round otherwise for
another batch size, and no two of the photos are as alike as a hundred times that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import ENGINES, report

import verydeep
from verydeep.benching import random_model
from verydeep.engines import installed
from verydeep.nets import network

PHOTOS = 16
TOLERANCE = 1e-4


def count(
    predictor: verydeep.Predictor, side: int, threads: int, calls: int
) -> tuple[int, int, int]:
    """Rows asked for, wrong rows, and calls that raised, of all threads together."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (PHOTOS, 8, 8, 3), dtype=np.uint8)
    photos = list(coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2))
    right = predictor.scores(photos)
    allowed = TOLERANCE * np.abs(right).max()
    apart = np.abs(right[:, None] - right[None]).max(axis=2)[~np.eye(PHOTOS, dtype=bool)].min()
    if apart < 100 * allowed:
        raise SystemExit(
            f"two photos are too alike to tell one's row from the other's: {apart:.3g}"
        )

    def work(seed: int) -> tuple[int, int, int]:
        own = np.random.default_rng(seed)
        rows = wrong = errors = 0
        for _ in range(calls):
            which = own.integers(0, PHOTOS, own.integers(1, 5))
            try:
                scores = predictor.scores([photos[i] for i in which])
            except Exception as error:
                print(f"{predictor!r}: {error}", file=sys.stderr)
                errors += 1
                continue
            rows += len(which)
            wrong += int((np.abs(scores - right[which]).max(axis=1) > allowed).sum())
        return rows, wrong, errors

    with ThreadPoolExecutor(threads) as pool:
        rows, wrong, errors = zip(*pool.map(work, range(threads)), strict=True)
    return sum(rows), sum(wrong), sum(errors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--builtin-calls", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        small = random_model(
            network("vgg16", width=1 / 8, classes=10), Path(name) / "small.safetensors"
        )
        for engine in (kind.name for kind in installed()):
            for model, side, calls in (
                (str(small), 64, args.calls),
                ("builtin", 128, args.builtin_calls),
            ):
                predictor = verydeep.load(model, engine=engine, size=side)
                rows, wrong, errors = count(predictor, side, args.threads, calls)
                results.append(
                    {
                        "engine": engine,
                        "model": "builtin" if model == "builtin" else "vgg16, width 1/8",
                        "calls": args.threads * calls,
                        "rows": rows,
                        "wrong": wrong,
                        "errors": errors,
                    }
                )
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {
        "threads": args.threads,
        "results": results,
    }
    report("threads", result, args.out, *ENGINES)
    sys.exit(any(row["wrong"] or row["errors"] for row in results))


if __name__ == "__main__":
    main()
