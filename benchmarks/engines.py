"""Every engine, and `auto`, against each engine as its own documentation runs VGG-16.

    python benchmarks/engines.py [--model vgg16] [--engines auto] [--rounds 7] [--out FILE.json]

The race of `verydeep bench`: a process an entrant, in turns, medians of the ratios within the rounds; peak
memory and the time to the first answer come with it. Parity first: whoever is further from float64 than
its precision allows fails the run. Without weights at hand they are random: their values do not matter
here. `--engines all` also races each engine alone, in twice the time.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from machine import ENGINES, report

from verydeep.benching import ALLOWED, Row, bench, table


def auto(rows: list[Row]) -> dict[str, dict[str, object]]:
    """How `auto` did, by precision and batch size."""
    return {
        f"{row.precision}, batch {row.batch}": {
            "chosen": row.chosen,
            "ms_per_image": round(row.ms_per_image, 2),
            "against the best plain": row.speedup_vs_best_plain
            and round(row.speedup_vs_best_plain, 3),
            "against torch eager": row.speedup_vs_torch and round(row.speedup_vs_torch, 3),
        }
        for row in rows
        if row.engine == "auto"
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--engines", default="auto")
    parser.add_argument("--precision", default="all")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = bench(
        args.model,
        batches=[int(n) for n in args.batch.split(",")],
        engines=args.engines,
        precisions=args.precision,
        rounds=args.rounds,
    )
    for row in rows:
        if not row.error <= ALLOWED[row.precision]:
            raise SystemExit(f"{row.engine} is not {row.precision}: {row.error}; no figures for it")
    print(table(rows), file=sys.stderr)
    result = {
        "model": args.model,
        "rounds": args.rounds,
        "auto": auto(rows),
        "rows": [asdict(row) for row in rows],
    }
    report("engines", result, args.out, *ENGINES, "torchvision")


if __name__ == "__main__":
    main()
