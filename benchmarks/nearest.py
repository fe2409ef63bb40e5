"""The nearest of a million features by an index, and by looking at each: what is found, how long it takes.

    python benchmarks/nearest.py [--rows 1000000] [--numbers 512] [--queries 200] [--folder F] [--out FILE]

Random walks, which depend on each other as features do, in a .npz as `verydeep features` writes it. Both
ways are those of `similar`, from features that are computed to rows and cosines. The exact one is told two
times: for one query, and for all in one go, which reads the file once. Its answers judge the index's:
recall@10. The queries are walks that are not in the file. In F there must be room for the file and its
index: 3.5 kB a row of 512.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from machine import report

from verydeep.retrieval import About, FeatureFile, featurefile, open_features
from verydeep.retrieval.approximate import graph_of
from verydeep.retrieval.cosines import nearest_rows, unit_rows

LAYER, TOP, BLOCK_ROWS = "relu5_3", 10, 8192


class Walks:
    """Rows as a file is written from them. about, rows: as a journal has them."""

    def __init__(self, rows: int, numbers: int) -> None:
        self.rows, self._numbers = rows, numbers
        self.about = About(
            "builtin", "0" * 64, "vgg16", {LAYER: (numbers,)}, "avg", None, "fast", "0"
        )

    def texts(self, column: str) -> list[str] | map[str]:
        return (
            map("photos/{:07}.jpg".format, range(self.rows))
            if column == "path"
            else (map(str, [""] * self.rows))
        )

    def numbers(self, _layer: str, rows: int) -> Iterator[np.ndarray]:
        draw = np.random.default_rng(0)
        for start in range(0, self.rows, rows):
            yield walks(draw, min(rows, self.rows - start), self._numbers)


def walks(draw: np.random.Generator, rows: int, numbers: int) -> np.ndarray:
    return np.cumsum(draw.standard_normal((rows, numbers), np.float32), axis=1)


def seconds(run: Callable[[], object], times: int = 1) -> float:
    """The median of so many runs."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def measured(file: FeatureFile, queries: np.ndarray) -> dict[str, object]:
    start = time.perf_counter()
    graph = graph_of(file, LAYER)
    assert graph is not None, "no index: too few rows, or no usearch"
    built = time.perf_counter() - start
    opening = seconds(lambda: graph_of(open_features(file.path), LAYER), 3)
    right = nearest_rows(file, LAYER, queries, TOP)[1]
    found = graph.nearest_rows(file, LAYER, queries, TOP)[1]
    recall = np.mean(
        [len({*a} & {*b}) / TOP for a, b in zip(found.tolist(), right.tolist(), strict=True)]
    )
    one, few = queries[:1], max(3, min(20, len(queries)))
    exact_one = seconds(lambda: nearest_rows(file, LAYER, one, TOP), 3)
    exact_all = seconds(lambda: nearest_rows(file, LAYER, queries, TOP)) / len(queries)
    each = iter(queries[:few])
    index_one = seconds(lambda: graph.nearest_rows(file, LAYER, next(each)[None], TOP), few)
    index_all = seconds(lambda: graph.nearest_rows(file, LAYER, queries, TOP), 3) / len(queries)
    folder = file.path.with_name(f"{file.path.name}.nearest")
    return {
        "recall_at_10": round(float(recall), 4),
        "recall_said": graph.recall,
        "built_and_measured_s": round(built, 1),
        "opened_s": round(opening, 4),
        "index_bytes": sum(one.stat().st_size for one in folder.iterdir()),
        "milliseconds_a_query": {
            "one query": {"exact": 1e3 * exact_one, "index": 1e3 * index_one},
            "all in one go": {"exact": 1e3 * exact_all, "index": 1e3 * index_all},
        },
        "times_as_fast": {
            "one query": round(exact_one / index_one, 1),
            "one query, opening included": round(exact_one / (opening + index_one), 1),
            "all in one go": round(exact_all / index_all, 1),
        },
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--numbers", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.folder) as place:
        path = Path(place) / "f.npz"
        featurefile.write(path, Walks(words.rows, words.numbers))  # type: ignore[arg-type]
        asked = unit_rows(walks(np.random.default_rng(1), words.queries, words.numbers))
        size = {"rows": words.rows, "numbers": words.numbers, "queries": words.queries}
        result = {**size, **measured(open_features(path), asked)}
    report("nearest", result, words.out, "usearch")
