"""What is made of each image, told so that any process of any machine can do it, and the one that does.

A part becomes one Parquet file, written aside and renamed. The same part gives the same bytes wherever it
is computed.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DataError, OutputError, VerydeepError
from ..files import strict_json
from ..files.atomic import replacing
from ..predictor import Answer, Failure, Features, Predictor, load
from ..retrieval.extraction import Journal
from ..retrieval.featurefile import About
from ..retrieval.tables import Parquet, pyarrow
from .source import Image, Part

KEY = b"verydeep_part"  # of a part's digest in its file's metadata
LABELS_KEY = b"verydeep_labels"  # of the record where it holds no features
MANIFEST = "_manifest.json"
ASIDE = "_"  # what an unfinished file's name begins with, so that readers of the folder pass it by


def part_name(number: int) -> str:
    return f"part-{number:07}.parquet"


@dataclass(frozen=True)
class Work:
    """about: of the features; of labels, without layers. top: how many labels; 0 for features."""

    about: About
    top: int
    threads: int
    device: str
    batch: int

    def load(self) -> Predictor:
        about, size = self.about, self.about.size if self.top else None
        return load(
            about.model, size=size, engine=about.engine, precision=about.precision,  # type: ignore[arg-type]
            threads=self.threads, device=self.device,
        )  # fmt: skip

    def stream(
        self, predictor: Predictor, images: Iterable[Any]
    ) -> Iterator[Features | Answer | Failure]:
        """What is made of each image, in order."""
        about, pool = self.about, self.about.pool
        if self.top:
            return predictor.stream(images, top=self.top, batch=self.batch)
        return predictor.features_stream(
            images, tuple(about.layers), pool, size=about.size, batch=self.batch  # type: ignore[arg-type]
        )  # fmt: skip

    def results(
        self, predictor: Predictor, images: Iterable[Image]
    ) -> Iterator[tuple[str, Any, str]]:
        """The name of each image, what was made of it, or None and why not."""
        taken: deque[tuple[str, bool, str]] = deque()

        def given() -> Iterator[Any]:
            for name, image, problem in images:
                taken.append((name, isinstance(image, str), problem))
                yield image

        for one in self.stream(predictor, given()):
            name, is_path, problem = taken.popleft()
            if isinstance(one, Failure):  # content has no name of its own
                why = problem or one.error.partition(": ")[2]
                yield name, None, one.error if is_path else f"{name}: {why}"
            else:
                yield name, one, ""


@dataclass(frozen=True)
class Report:
    """A part that is done; or why it cannot be, and which error that is."""

    node: str
    rows: int = 0
    errors: int = 0
    refusal: str = ""
    kind: type[VerydeepError] = DataError


class Worker:
    """One engine, which computes part after part."""

    def __init__(self, work: Work, out: str, job: str) -> None:
        self.work, self.out, self.job = work, Path(out), job
        self.node = platform.node()
        self.predictor: Predictor | None = None

    def ready(self) -> Report:
        """Whether this process can work: has this version, sees the folders, has the model and engine."""
        about = self.work.about
        if __version__ != about.version:
            return self._refused(f"has verydeep {__version__}, and {about.version} is asked for")
        try:
            os.chdir(about.folder or ".")
            manifest: Any = strict_json.loads((self.out / MANIFEST).read_bytes())
            if manifest["id"] != self.job:
                raise ValueError
        except (OSError, ValueError):
            return self._refused(
                f"does not see {about.folder} and {self.out} as they are here; every node needs them"
            )
        try:
            self.predictor = self.work.load()
            if self.predictor.sha256 != about.sha256:
                return self._refused(f"has another model at {about.model}")
        except VerydeepError as error:
            return self._refused(str(error))
        return Report(self.node)

    def compute(self, number: int, part: Part) -> Report:
        """Make the file of a part."""
        path, facts, errors = self.out / part_name(number), {KEY: part.digest.encode()}, 0
        write = _labels if self.work.top else _features
        assert self.predictor is not None  # it was ready
        try:
            errors = write(
                path, self.work.about, self.work.results(self.predictor, part.images()), facts
            )
        except OutputError as error:
            return self._refused(str(error), OutputError)
        except VerydeepError as error:
            return self._refused(str(error))
        except OSError as error:
            why = f"{path}: cannot be written: {error.strerror or error}"
            return self._refused(why, OutputError)
        return Report(self.node, part.count, errors)

    def _refused(self, why: str, kind: type[VerydeepError] = DataError) -> Report:
        return Report(self.node, refusal=why, kind=kind)


def _features(path: Path, about: About, results: Any, facts: dict[bytes, bytes]) -> int:
    """By way of a journal on this machine, since whole maps are large. How many have an error."""
    errors = 0
    with tempfile.TemporaryDirectory(prefix="verydeep-") as folder, ExitStack() as opened:
        rows = Journal(Path(folder), about, opened)
        for name, made, error in results:
            rows.add(name, made and made.values, error)
            errors += bool(error)
        with replacing(path, aside=ASIDE) as file:
            Parquet.write(file, rows, facts)
    return errors


def labels_of(one: Answer | Failure) -> dict[str, Any]:
    """A row's labels, their probabilities, best first, and whether they are sure; of a failure none."""
    several = () if isinstance(one, Failure) else one.predictions
    return {
        "labels": [each.label for each in several],
        "probabilities": [each.probability for each in several],
        "sure": not isinstance(one, Failure) and one.sure,
    }


def _labels(path: Path, about: About, results: Any, facts: dict[bytes, bytes]) -> int:
    """Rows of path, error and `labels_of`, which are null beside an error. How many have one."""
    pa = pyarrow()
    kinds = {
        "path": pa.string(), "error": pa.string(), "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()), "sure": pa.bool_(),
    }  # fmt: skip
    schema = pa.schema(kinds, metadata={**facts, LABELS_KEY: about.to_json().encode()})
    rows: list[dict[str, Any]] = []
    for name, made, error in results:
        row = {"path": name.encode("utf-8", "backslashreplace").decode(), "error": error or None}
        rows.append(row if made is None else {**row, **labels_of(made)})
    with replacing(path, aside=ASIDE) as file:
        pa.parquet.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd")
    return sum(row["error"] is not None for row in rows)
