"""The nearest photos of a file of features, by cosine.

Each photo is looked at, and the answer is exact; of more than 100,000 a graph proposes those to look at,
where usearch is installed. A contact sheet shows a person whether they are alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, Failure, ImageError, ModelFileError, log, require_whole
from ..files.wording import counted, plain
from ..pictures import layout, require_picture, save
from ..pictures.layout import FAINT, INK, SMALL, Colour
from ..preprocess import decode, several
from .approximate import Graph, graph_of
from .cosines import nearest_rows, unit_rows
from .featurefile import FeatureFile, open_features

if TYPE_CHECKING:
    from ..graphs.pooling import Pooling
    from ..predictor import Predictor
    from ..preprocess import ImageLike

TILE, GAP = 160, 12  # pixels of a contact sheet
PER_LINE = 6  # matches of one query; more go on below
ACCENT = (200, 71, 44)
MOST_PIXELS = 100_000_000


@dataclass(frozen=True)
class Match:
    """A photo of the file, of its path there and its row.

    cosine: of its features' angle to the query's, 1 where they point alike. photo: where it is now.
    """

    path: str
    cosine: float
    row: int
    photo: str = ""


@dataclass(frozen=True)
class Neighbours:
    """The photos nearest to one query, nearest first.

    query: its path, or None where it had none. error: why it could not be read, and has no matches; or "".
    """

    query: str | None
    matches: tuple[Match, ...]
    error: str = ""

    def to_dict(self) -> dict[str, object]:
        """What `verydeep similar --json` prints."""
        if self.error:
            return {"query": self.query, "error": self.error}
        return {
            "query": self.query,
            "matches": [
                {"path": m.path, "cosine": round(m.cosine, 6), "row": m.row} for m in self.matches
            ],
        }

    def __str__(self) -> str:
        lines = [f"{m.cosine:9.4f}  {plain(m.path)}" for m in self.matches]
        return "\n".join([plain(self.query or "image"), *lines, *filter(None, [self.error])])


@overload
def similar(
    index: str | os.PathLike[str] | FeatureFile, queries: ImageLike, top: int = 10,
    *, layer: str | None = None, model: str | os.PathLike[str] | None = None, exact: bool = False,
    engine: str = "auto", threads: int | None = None, device: str = "auto",
) -> Neighbours: ...  # fmt: skip
@overload
def similar(
    index: str | os.PathLike[str] | FeatureFile, queries: list[ImageLike] | list[str], top: int = 10,
    *, layer: str | None = None, model: str | os.PathLike[str] | None = None, exact: bool = False,
    engine: str = "auto", threads: int | None = None, device: str = "auto",
) -> list[Neighbours]: ...  # fmt: skip
def similar(
    index: str | os.PathLike[str] | FeatureFile,
    queries: ImageLike | list[ImageLike] | list[str],
    top: int = 10,
    *,
    layer: str | None = None,
    model: str | os.PathLike[str] | None = None,
    exact: bool = False,
    engine: str = "auto",
    threads: int | None = None,
    device: str = "auto",
) -> Neighbours | list[Neighbours]:
    """The `top` photos of a file of features that are nearest to a query, or to each of several.

    index: a file that `features` wrote, or an open one. Queries are computed as it was: by the same
    model, layer, pool, size and precision. layer: which one, where the file has several. model: where its
    model file lies now, if it was moved. exact: look at each photo, where there are more than 100,000 too.
    Otherwise, where usearch is installed, an index of these is built once, beside the file in FILE.nearest;
    it misses some of the nearest, and the log says how many. Cosines are exact in any case.

    Of several queries, one that cannot be read has its error in place of matches; alone it is an
    ImageError. Raises DataError for a file that is none or has numbers that are not finite, ModelFileError
    where the model is not the one that made the file.
    """
    opened = index if isinstance(index, FeatureFile) else open_features(index)
    require_whole(DataError, top=top)
    name = opened.about.layer(layer)
    asked, many = several(queries)
    predictor = maker(opened, model, engine=engine, threads=threads, device=device)
    graph = graph_of(opened, name, exact=exact, threads=threads)
    answers = nearest_to(opened, predictor, asked, top, name, graph)
    if not many and answers[0].error:
        raise ImageError(answers[0].error)
    return answers if many else answers[0]


def maker(
    index: FeatureFile, model: str | os.PathLike[str] | None = None, **choices: Any
) -> Predictor:
    """What computed a file of features, to compute those of queries. Raises ModelFileError as `similar`."""
    from ..predictor import load

    about = index.about
    try:
        predictor = load(
            about.model if model is None else model, precision=about.precision, **choices
        )
    except ModelFileError as error:
        raise ModelFileError(
            f"{index.path} was made with {error}; if it was moved, name its place with --model"
        ) from error
    if predictor.sha256 != about.sha256:
        raise ModelFileError(
            f"{index.path} was made with another model than {predictor.model.path} (SHA-256 "
            f"{about.sha256[:12]}..., not {predictor.sha256[:12]}...); give that model, or make the file "
            "again"
        )
    return predictor


def nearest_to(
    index: FeatureFile, predictor: Predictor, queries: list[Any], top: int, layer: str | None = None,
    graph: Graph | None = None,
) -> list[Neighbours]:  # fmt: skip
    """What `similar` says of each query. predictor: the file's `maker`. graph: None, to be exact."""
    name, pool = index.about.layer(layer), cast("Pooling | None", index.about.pool)
    items = list(predictor.features_stream(queries, name, pool, size=index.about.size))
    values = [item[name] for item in items if not isinstance(item, Failure)]
    matches = iter(_search(index, np.stack(values), top, name, graph) if values else ())
    return [
        Neighbours(item.path, (), item.error)
        if isinstance(item, Failure)
        else Neighbours(item.path, next(matches))
        for item in items
    ]


def _search(
    index: FeatureFile, asked: np.ndarray, top: int, layer: str, graph: Graph | None = None
) -> list[tuple[Match, ...]]:
    """For each query, its nearest rows, best first; equal ones in the order of the file."""
    queries = unit_rows(asked)
    if graph is None:
        best = nearest_rows(index, layer, queries, top)
    else:
        best = graph.nearest_rows(index, layer, queries, top)
    rows = best[1][np.isfinite(best[0])]
    paths = index.paths_of(rows.tolist())
    photos = {path: index.photo(path) for path in paths.values()}
    return [
        tuple(
            Match(paths[row], float(min(1, max(-1, cosine))), row, photos[paths[row]])
            for cosine, row in zip(cosines.tolist(), places.tolist(), strict=True)
            if np.isfinite(cosine)
        )
        for cosines, places in zip(*best, strict=True)
    ]


def contact_sheet(rows: Sequence[Neighbours], out: str | os.PathLike[str]) -> None:
    """Draw queries and what is nearest to them, a row each, to a .png or .jpg file.

    The query stands on the left, framed; below each photo its cosine and its name. A photo that cannot be
    read any more is an empty frame. Raises DataError where there is nothing to draw, or too much, and
    OutputError where the file cannot be written.
    """
    require_picture(out)
    if not rows:
        raise DataError("there are no queries to draw; give at least one")
    columns = 1 + min(PER_LINE, max(len(row.matches) for row in rows))
    count = sum(max(1, -(-len(row.matches) // PER_LINE)) for row in rows)
    most = MOST_PIXELS // ((TILE + GAP) * (TILE + 3 * GAP))
    if columns * count > most:
        smaller = ", or a smaller --top" if 2 * len(rows) <= most else ""
        raise DataError(
            f"a sheet of {count} rows of {columns} photos is too large; give fewer queries{smaller}"
        )
    missing: list[str] = []
    lines = [
        layout.row(
            TILE if at else _tile(row.query, "query", missing, ACCENT),
            *(
                _tile(m.photo or m.path, f"{m.cosine:.4f}", missing)
                for m in row.matches[at : at + PER_LINE]
            ),
            gap=GAP,
        )
        for row in rows
        for at in range(0, max(1, len(row.matches)), PER_LINE)
    ]
    if missing:
        log.warning(
            f"{counted(len(missing), 'photo')} on the sheet cannot be read, such as {missing[0]}; if they "
            "were moved, make the features again"
        )
    save(layout.column(*lines, gap=GAP, margin=layout.MARGIN), out)


def _tile(
    path: str | None, words: str, missing: list[str], accent: Colour | None = None
) -> Image.Image:
    """A photo in the middle of its place, its words and its name; framed where it has an accent.

    missing: takes the path where it cannot be read.
    """
    try:
        photo = layout.as_rgb(decode(path or ""))
        photo = layout.fitted(photo, min(max(photo.size), TILE - 6 if accent else TILE))
    except ImageError:
        missing += [path] if path else []
        photo = Image.new("RGB", (TILE - 2, TILE - 2), layout.PAPER)
        photo = ImageOps.expand(photo, 1, accent or FAINT)
    else:
        photo = ImageOps.expand(photo, 3, accent) if accent else photo
    # names differ at their ends
    name = layout.shortened(os.path.basename(path or ""), SMALL, TILE, end=True)
    colours = (accent or INK, FAINT, FAINT)
    return layout.column(
        layout.centred(photo, (TILE, TILE)), 4, layout.caption(TILE, words, size=SMALL, colours=colours),
        layout.caption(TILE, name, size=SMALL, colours=(FAINT,) * 3),
    )  # fmt: skip
