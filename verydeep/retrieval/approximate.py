"""The nearest of very many features without a look at each: a graph of neighbours (HNSW), by usearch.

arXiv:1603.09320. The graph misses some, and its numbers are float16: it proposes rows, whose cosines are
then computed from the file. It lies beside it, in FILE.nearest, under the hash of what it was made of:
parts that are built in memory one by one, so that a run that was stopped goes on with the next, and mapped
to be searched. A record, NAME.json, says which are there, how many of the nearest are found, and with what.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.forks import Turns
from ..errors import OutputError, WeightsError, log
from ..files.atomic import locked, replacing
from ..files.hashes import digest_of
from ..files.progress import stage
from .cosines import best, nearest_rows, unit_rows
from .featurefile import BLOCK_BYTES, FeatureFile

FORMAT = 1  # of the record and the parts
LEAST_ROWS = 100_000  # photos from which on a graph is made; so many are looked at in a second
# Measured on 40,000 random walks of 512 numbers: 99.5 % of the ten nearest with an expansion of 64.
CONNECTIVITY, EXPANSION_ADD = 16, 128
EXPANSIONS = (64, 128, 256, 512)  # the first that finds so many:
AIM = 0.98
SAMPLE, NEAREST = 200, 10  # photos whose nearest are looked for to measure that
PART_BYTES = 1 << 30  # of numbers, in memory while a part is built
ADD_ROWS = 1024  # in one go: less than a second, after which Ctrl-C is heard
MORE = 2  # candidates for each row that is asked for
# what stands in a graph's way; RuntimeError: usearch's
UNMADE = (OSError, RuntimeError, MemoryError, OutputError, WeightsError)


class Graph:
    """What proposes rows of one layer of a file. recall: the share of the ten nearest that it finds."""

    def __init__(self, parts: list[Any], expansion: int, recall: float, threads: int) -> None:
        self._parts, self._threads, self.recall = parts, threads, recall
        self._turns = Turns()
        self.expand(expansion)

    def expand(self, expansion: int) -> None:
        """Look at so many candidates on the way: more find more, and take longer."""
        for one in self._parts:
            one.expansion_search = expansion

    def candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, n) cosines, to 1e-3, and rows, best first; -inf and -1 where there are no more."""
        found = []
        for one in self._parts:
            if not len(one):  # of a part's photos none could be read
                continue
            with (
                self._turns.lock
            ):  # two calls at once would share what each of its threads writes to
                matches = one.search(queries, min(count, len(one)), threads=self._threads)
            # of a single query usearch gives one row, and all of it is found
            keys, distances = map(np.atleast_2d, (matches.keys, matches.distances))
            counts = np.reshape(np.array(getattr(matches, "counts", keys.shape[1])), (-1, 1))
            there = np.arange(keys.shape[1]) < counts
            keys = np.where(there, keys.astype(np.int64), -1)
            found.append((np.where(there, 1 - distances, -np.inf), keys))
        cosines, rows = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return best(cosines, rows, count)

    def nearest_rows(
        self, file: FeatureFile, layer: str, queries: np.ndarray, top: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `cosines.nearest_rows`, of the rows that the graph proposes."""
        step = max(1, BLOCK_BYTES // (4 * MORE * top * queries.shape[1]))
        found = []
        for start in range(0, len(queries), step):
            asked = queries[start : start + step]
            rows = np.sort(self.candidates(asked, MORE * top)[1], axis=1)
            wanted, where = np.unique(rows, return_inverse=True)
            units = unit_rows(file.rows_of(layer, np.maximum(wanted, 0)))
            cosines = np.einsum("qn,qkn->qk", asked, units[where.reshape(rows.shape)])
            cosines[rows < 0] = -np.inf
            found.append(best(cosines, rows, top))
        cosines, rows = (np.concatenate(each) for each in zip(*found, strict=True))
        return cosines, rows


def graph_of(
    file: FeatureFile, layer: str, *, exact: bool = False, threads: int | None = None
) -> Graph | None:
    """The file's graph, made where there is none yet; None where all photos are to be looked at.

    That is: few photos, `exact`, no usearch, or no place for the graph, which is said.
    """
    if exact or len(file) <= LEAST_ROWS:
        return None
    try:
        importlib.import_module("usearch.index")
    except (ImportError, OSError):  # OSError: a library of its own that does not load here
        log.info(
            f"each of {len(file):,} photos is looked at; an index makes this quick, install it with: "
            'pip install "verydeep[nearest]"'
        )
        return None
    place = file.path.with_name(f"{file.path.name}.nearest")
    try:
        graph = _found(file, layer, place, threads or 0)
    except UNMADE as error:
        log.warning(f"{place}: there can be no index ({error}), so each photo is looked at")
        return None
    if graph is None:
        return None
    log.info(
        f"approximate: {100 * graph.recall:.1f} % of the ten nearest, measured on {SAMPLE} photos; "
        "--exact for all of them"
    )
    return graph


def _found(file: FeatureFile, layer: str, folder: Path, threads: int) -> Graph | None:
    """The graph that lies in the folder, or a new one; None where no photo could be read."""
    known = digest_of(file.path)
    place = folder / f"{layer}-{known[:16]}"
    record, parts = _read(place)
    if "recall" not in record:
        if file.failed.all():
            return None
        folder.mkdir(exist_ok=True)
        wait = f"another process is building {folder}; waiting for it"
        with locked(folder / f"{layer}.lock", lambda: log.info(wait)):
            record, parts = _read(place)
            if "recall" not in record:
                # of what the file was before, and what a kill left half written
                old = {*folder.glob(f"{layer}-*")} - {*folder.glob(f"{place.name}*")}
                for one in (*old, *folder.glob(f".{layer}-*.part")):
                    with suppress(OSError):  # Windows keeps what another process has mapped
                        one.unlink()
                log.info(f"building an index of {file.path}, once; --exact goes without it")
                parts = _built(file, layer, place, record, parts, threads)
                record = _measured(file, layer, record, parts, threads)
                _write(place, record)
    return Graph(parts, record["expansion"], record["recall"], threads)


def _read(place: Path) -> tuple[dict[str, Any], list[Any]]:
    """The record, and the parts that it names, mapped; an empty one where they are not all there."""
    record: dict[str, Any] = {"format": FORMAT, "rows": 0, "parts": []}
    try:
        value = json.loads(place.with_name(f"{place.name}.json").read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            return record, []
        parts = []
        for number, size in enumerate(value["parts"]):
            path = _part(place, number)
            one = _mapped(path) if path.stat().st_size == size else None
            if one is None:
                return record, []
            parts.append(one)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return record, []
    return value, parts


def _mapped(path: Path) -> Any:
    """A part, to be searched where it lies; None, or a RuntimeError, where the file is none."""
    from usearch.index import Index

    return Index.restore(path, view=True, enable_key_lookups=False)


def _write(place: Path, record: dict[str, Any]) -> None:
    with replacing(place.with_name(f"{place.name}.json"), "w", encoding="utf-8") as file:
        json.dump(record, file)


def _part(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}-{number}.usearch")


def _built(
    file: FeatureFile, layer: str, place: Path, record: dict[str, Any], parts: list[Any], threads: int
) -> list[Any]:  # fmt: skip
    """All parts, mapped. record, parts: those that are there already; the record takes the others."""
    from usearch.index import Index

    width = file.about.width(layer)
    step = min(ADD_ROWS, file.about.step(layer))
    most = max(step, PART_BYTES // (2 * width) // step * step)  # whole blocks
    graph, end = None, 0
    for start, block in stage(
        file.blocks(layer, step), "building an index", "block", -(-len(file) // step)
    ):
        end = start + len(block)
        if end <= record["rows"]:
            continue
        if graph is None:
            graph = Index(
                ndim=width, metric="ip", dtype="f16", connectivity=CONNECTIVITY,
                expansion_add=EXPANSION_ADD, enable_key_lookups=False,
            )  # fmt: skip
        good = start + np.flatnonzero(~file.failed[start:end])
        graph.add(good, unit_rows(block[good - start]), threads=threads)
        if end % most and end < len(file):
            continue
        path = _part(place, len(parts))
        with replacing(path) as out:
            graph.save(out.name)
            size = os.fstat(out.fileno()).st_size
            if size != graph.serialized_length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        graph = None  # its memory is given back before the next one is built
        parts.append(_mapped(path))
        record |= {"rows": end, "parts": [*record["parts"], size]}
        _write(place, record)
    return parts


def _measured(
    file: FeatureFile, layer: str, record: dict[str, Any], parts: list[Any], threads: int
) -> dict[str, Any]:
    """The record with the share of the nearest that are found, and with the expansion that takes."""
    good = np.flatnonzero(~file.failed)
    some = np.sort(np.random.default_rng(0).choice(good, min(SAMPLE, len(good)), replace=False))
    queries = unit_rows(file.rows_of(layer, some))

    def others(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """(photos, NEAREST) cosines of the nearest, without the photo itself."""
        cosines = np.where(found[1] == some[:, None], -np.inf, found[0])
        return -np.sort(-cosines, axis=1)[:, :NEAREST]

    least = others(nearest_rows(file, layer, queries, NEAREST + 1)).min(1, keepdims=True) - 1e-6
    graph = Graph(parts, EXPANSIONS[0], 0.0, threads)
    for expansion in EXPANSIONS:
        graph.expand(expansion)
        found = others(graph.nearest_rows(file, layer, queries, NEAREST + 1))
        recall = float((found >= least).mean())  # by cosines: of equal ones it may be another
        if recall >= AIM:
            break
    return {**record, "expansion": expansion, "recall": round(recall, 4)}
