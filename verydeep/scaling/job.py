"""A folder of Parquet files, made by a cluster part by part, and gone on with where it stopped.

The folder says itself what is done: a part is there whole or not at all, with a digest of what it was made
of. `_manifest.json` says what is being made, so that no other job is mixed into it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.items import as_text
from ..engines.choice import WORTH_A_RACE
from ..errors import DataError, OutputError, log, require_whole
from ..files import strict_json
from ..files.atomic import locked, replacing
from ..files.photo_paths import names
from ..files.wording import clock, counted
from ..predictor import load
from ..retrieval.extraction import described
from ..retrieval.tables import pyarrow
from .cluster import Numbered, Workers, connected, require_ray
from .source import Part, parts
from .work import ASIDE, KEY, MANIFEST, Work, part_name

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..preprocess import Size
    from ..retrieval.featurefile import About

PART = 500  # images
FREE = ("id", "engine", "version", "network", "model")  # of a manifest: may differ when one goes on


@dataclass(frozen=True)
class Scaled:
    """What a job made. images, errors: in the folder. computed: images of this run, in so many seconds,
    from when the cluster answered. nodes, workers: how many computed. engine: which one."""

    folder: Path
    images: int
    errors: int
    computed: int
    seconds: float
    nodes: int
    workers: int
    engine: str

    def cost(self, price: float) -> float:
        """Of a million images, where a node costs that much an hour; 0 where nothing was computed."""
        hours = self.nodes * self.seconds / 3600
        return price * hours / max(1, self.computed) * 1_000_000

    def __str__(self) -> str:
        whole = f"{self.folder}: {counted(self.images, 'image')}"
        if not self.computed:
            return f"{whole}, all done before"
        rate = self.computed / self.seconds
        return (
            f"{whole}; {self.computed:,} in {self.seconds:.1f} s, {rate:.1f} a second by "
            f"{counted(self.workers, 'worker')} on {counted(self.nodes, 'node')} ({self.engine}); a "
            f"million takes {clock(1_000_000 / rate)}"
        )


def features(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    pool: Pooling | None = "avg",
    *,
    size: Size = None,
    **how: Any,
) -> Scaled:
    """Features of images, by a Ray cluster: a folder of Parquet files, each one as of `verydeep.features`.

    source: photos, folders, globs, WebDataset shards (.tar), Parquet tables (.parquet) of bytes or paths;
    paths, or URLs as s3://, gs://, hdfs://. out: a folder; stopped or killed, the same call goes on.
    layers, pool, size: as for `verydeep.features`. how: model, engine, precision, device, batch as there;
    threads (cores of a worker), address of the cluster ("local": this machine), part (images in a file),
    column (of tables, which one holds images), on_event (called for each part that is there with
    {"event": "part", "done": images, "error": ""}).

    Rows are in the order of the source, whichever node made them; of an image that cannot be read there
    is a row with its error. Raises DataError where there is nothing to do, the folder holds another job,
    or no cluster answers; OutputError where the disk is full: what is done is kept.
    """
    return _run(source, out, layers, pool, size, top=0, **how)


def classify(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    top: int = 5,
    size: int | None = None,
    **how: Any,
) -> Scaled:
    """Labels of images in the same way: path, error, labels and probabilities, best first, and sure.

    top: how many labels. size: pixels a side that images are cropped to. The rest as for `features`.
    """
    require_whole(DataError, top=top)
    return _run(source, out, None, "avg", size, top=top, **how)


def _run(
    source: Any, out: str | os.PathLike[str], layers: Any, pool: Pooling | None, size: Any, *, top: int,
    model: str | os.PathLike[str] = "builtin", address: str = "local", part: int = PART,
    column: str | None = None, engine: str = "auto", precision: str = "fast",
    threads: int | None = None, device: str = "auto", batch: int = 8,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Scaled:  # fmt: skip
    threads = 1 if threads is None else threads
    require_whole(DataError, part=part, batch=batch, threads=threads)
    require_ray()
    given, folder = names(source), Path(os.path.abspath(out))
    predictor = load(model, engine=engine, precision=precision, device=device)
    about = replace(described(predictor, model, layers, pool, size), engine=engine)
    if top:
        predictor.stream([])  # refuses a model without a head
        about = replace(about, layers={}, pool=None)
    listed = parts(given, part, column)
    if (first := next(listed, None)) is None:
        raise DataError(
            f"no images in {', '.join(given)}; expected photos, shards (.tar), tables (.parquet), or "
            "folders that hold some"
        )
    with _held(folder):
        said = {"source": list(map(as_text, given)), "part": part, "column": column, "top": top}
        manifest = _manifest(folder, about, said)
        total = {"images": 0, "errors": 0}

        def count(images: int, errors: int) -> None:
            total["images"], total["errors"] = total["images"] + images, total["errors"] + errors
            if on_event:
                on_event({"event": "part", "done": total["images"], "error": ""})

        missing = _missing(folder, chain([first], listed), count)
        if (one := next(missing, None)) is None:
            return Scaled(folder, **total, computed=0, seconds=0, nodes=0, workers=0, engine="")
        with connected(address) as ray:
            began, computed = time.monotonic(), 0
            if device == "auto":
                device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
            work = Work(about, top, threads, device, batch)
            if manifest["engine"] == "auto":
                manifest["engine"] = _quickest(work, one[1])
                _write(folder, manifest)
            work = replace(work, about=replace(about, engine=manifest["engine"]))
            with closing(Workers(ray, work, str(folder), manifest["id"])) as workers:
                for report in workers.reports(chain([one], missing)):
                    computed += report.rows
                    count(report.rows, report.errors)
            seconds = time.monotonic() - began
    return Scaled(
        folder, **total, computed=computed, seconds=seconds, nodes=len(workers.nodes),
        workers=workers.most, engine=manifest["engine"],
    )  # fmt: skip


def _quickest(work: Work, part: Part) -> str:
    """The engine for all workers, by a race here on the first images, so that all give the same numbers;
    on a GPU torch."""
    if work.device == "cuda":
        return "torch"
    images = [image for _, image, _ in islice(part.images(), WORTH_A_RACE)]
    with work.load() as predictor:
        next(work.stream(predictor, images), None)
        return "onnxruntime" if predictor.engine == "auto" else predictor.engine


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, made where there is none, and ours alone; OutputError where the disk refuses."""

    def refuse() -> None:
        raise DataError(f"another process is writing {folder}; wait for it, or give another --out")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{ASIDE}lock", refuse):
            for path in folder.glob(f"{ASIDE}part-*"):  # unfinished
                path.unlink(missing_ok=True)
            yield
    except OutputError:
        raise
    except OSError as error:
        why = f"{folder}: cannot be written: {error.strerror or error}; name another folder"
        raise OutputError(why) from error


def _manifest(folder: Path, about: About, said: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder is being filled with, written there or found; DataError where that is another job."""
    path, facts = folder / MANIFEST, strict_json.loads(about.to_json())
    now: Any = strict_json.checked({**facts, **said, "id": os.urandom(16).hex()})  # type: ignore[dict-item]
    if not path.exists():
        if any(not name.startswith((ASIDE, ".")) for name in os.listdir(folder)):
            raise DataError(f"{folder}: holds files of something else; name another folder")
        _write(folder, now)
        return dict(now)
    try:
        before: Any = strict_json.loads(path.read_bytes())
        if before.keys() != now.keys() or before["format"] != now["format"]:
            raise ValueError("written by another version of verydeep")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be gone on with: {error}; name another folder") from error
    differ = [key for key in sorted(now.keys() - FREE) if before[key] != now[key]]
    if now["engine"] not in ("auto", before["engine"]):
        differ.append("engine")
    if differ:
        what = "; ".join(f"{key} {before[key]}, now {now[key]}" for key in differ)
        raise DataError(
            f"{folder} holds another job ({what}); give that command again to go on with it, or another "
            "--out"
        )
    return dict(before)


def _write(folder: Path, manifest: Mapping[str, Any]) -> None:
    with replacing(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(strict_json.dumps(manifest))


def _missing(
    folder: Path, listed: Iterable[Part], count: Callable[[int, int], None]
) -> Iterator[Numbered]:
    """The parts, by their numbers, that are not there yet; of the others count is told images, errors."""
    there = {path.name for path in folder.glob("part-*.parquet")}
    for number, part in enumerate(listed):
        name = part_name(number)
        errors = _errors(folder / name, part) if name in there else None
        there.discard(name)
        if errors is None:
            yield number, part
        else:
            count(part.count, errors)
    if there:
        raise DataError(
            f"{folder}: holds {min(there)}, of which the source has nothing any more; give another --out"
        )


def _errors(path: Path, part: Part) -> int | None:
    """How many images of a part that is there have an error; None where it must be made again."""
    try:
        with pyarrow().parquet.ParquetFile(path) as file:
            about = file.metadata
        groups = [about.row_group(number).column(1) for number in range(about.num_row_groups)]
    except (OSError, ValueError):
        log.info(f"{path}: damaged, and made again")
        return None
    if (about.metadata or {}).get(KEY, b"").decode() != part.digest:
        raise DataError(f"{path}: the source has changed since it was made; give another --out")
    return int(sum(group.num_values - group.statistics.null_count for group in groups))
