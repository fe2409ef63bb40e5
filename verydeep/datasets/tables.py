"""Tables of photos and labels, as Kaggle, Excel, pandas and people write them: one label, or several."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ..errors import DataError, log, nearest
from ..files.photo_paths import composed, is_photo, is_read, walked
from ..files.wording import some
from .items import Item, Listing
from .layout import part_of
from .objects import LABEL_COLUMNS

# What people call the columns of a table; one of another name is found by what stands in it.
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name",
    "image_id", "img", "photo",
)  # fmt: skip
PART_COLUMNS = ("split", "part", "set", "subset", "is_valid")
IS_VALID = {"true": "val", "1": "val", "false": "train", "0": "train"}  # as fastai writes it
INDEX_COLUMNS = ("", "index", "unnamed: 0")  # as pandas writes them
DELIMITERS = ",;\t|"
LOOKED_AT = 1000  # rows, for the column in which photos are
SEPARATORS = "|;, "  # between the labels of one photo, the surest first
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")  # in a column that is a class
CHOOSE = (
    "say which: --set multi=true for several, multi=false for one (of check: --multi true, false)"
)

Rows: TypeAlias = list[tuple[int, list[str]]]  # number of the line, cells
Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class _Columns:
    """Where what stands. classes: columns of 0 and 1, and their names; headed: the first row is names."""

    path: int
    label: int | None
    part: int | None = None
    classes: tuple[tuple[int, str], ...] = ()
    headed: bool = True


def table(
    path: Path, multi: bool | None = None, is_class: Callable[[str], bool] = lambda _: False
) -> Listing:
    """Rows of path, label and perhaps split; the first row may name them. Paths are the table's own.

    Several labels of a photo stand in one cell with ";", "|", "," or blanks between them, in a column of 0
    and 1 for each class, or in a row for each. multi: whether there may be several; None: as it looks, and
    a DataError where it may be either. is_class: of a cell, where a model says which classes there are;
    it is one label, whatever stands in it.
    """
    rows = _rows(path)
    photos = _Photos(path.parent)
    at = _columns(path, rows, photos) if rows else _Columns(0, 1)
    head = rows[0][1] if rows else []
    width, rows = len(head), rows[at.headed :]
    marks = IS_VALID if at.headed and _cell(head, at.part).strip().lower() == "is_valid" else {}
    if not rows:
        raise DataError(f"{path}: is empty; expected rows of a path and a label")
    if at.classes:
        labels, several = _flagged(path, rows, at, multi)
    else:
        labels, several = _written(path, rows, at, multi, is_class)
    listing, missing = Listing(multi=several), []
    there = {name for names in labels for name in names}
    listing.empty = [("", name) for _, name in at.classes if name not in there]
    for (number, row), names in zip(rows, labels, strict=True):
        file, part = _cell(row, at.path), _cell(row, at.part).strip()
        part = marks.get(part.lower(), part)
        if not file or not (names or several):
            raise DataError(f"{path}, line {number}: {row!r}; expected a path and a label")
        if any(map(str.strip, row[width:])):  # more labels, it may be
            raise DataError(
                f"{path}, line {number}: {row!r}; expected {width} cells, as in the first row; put what "
                "has a comma in it between quotes"
            )
        if part and not part_of(part):
            raise DataError(
                f"{path}, line {number}: split {part!r}{nearest(part.lower(), ('train', 'val', 'test'))}"
            )
        full = photos.find(file)
        if full is None:
            missing.append(f"line {number}: {file}")
            full = os.path.join(path.parent, file)
        listing.add(part_of(part), names, file, full)
    if len(missing) == len(listing.items):
        raise DataError(
            f"{path}: not one of {len(missing)} photos is there ({', '.join(missing[:1])}); expected paths "
            f"as seen from {path.parent}, or names that only one photo in it has"
        )
    return _joined(path, listing, multi)


def _cell(row: list[str], at: int | None) -> str:
    return row[at] if at is not None and at < len(row) else ""


def _rows(path: Path) -> Rows:
    """Line numbers and cells, cut where that makes all rows alike, or else most of them as the first.

    Rows without any text are left out.
    """
    content = path.read_bytes()
    try:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Excel writes Unicode text
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        if "\0" in text:
            raise UnicodeError("zero bytes, as UTF-16 has")
    except UnicodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    said = re.match(r'"?sep=([^\r\n"])"?(?=\r?\n)', text)  # Excel's own first line
    text = text[said.end() :] if said else text
    delimiters = sorted(DELIMITERS, key=lambda d: (d == "\t") != (path.suffix.lower() == ".tsv"))
    ways = []
    for delimiter in said[1] if said else delimiters:
        try:
            # a blank before what is in quotes is of neither; another one may be of a photo's name
            spaced = delimiter != " " and bool(
                re.search(rf'(^|{re.escape(delimiter)}) +"', text, re.MULTILINE)
            )
            reader = csv.reader(
                io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced
            )
            ways.append([(reader.line_num, row) for row in reader if any(map(str.strip, row))])
        except csv.Error as error:
            raise DataError(
                f"{path}: no table: {error}; expected rows of a path and a label"
            ) from error

    def alike(rows: Rows) -> tuple[bool, int]:
        """Whether all are as wide as the first, and how many are, where that is cut at all."""
        width = len(rows[0][1]) if rows else 0
        count = sum(len(row) == width for _, row in rows) if width > 1 else 0
        return count == len(rows), count

    return max(ways, key=alike)


def _columns(path: Path, rows: Rows, photos: _Photos) -> _Columns:
    """Where path, labels and part stand, and whether the first row names them."""
    first = rows[0][1]
    named = [cell.strip().lower() for cell in first]
    file, label, part = (
        next((named.index(name) for name in known if name in named), None)
        for known in (PATH_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)
    )
    if file is None:  # no usual name: the column in which photos are
        columns = [[_cell(row, i) for _, row in rows[1 : LOOKED_AT + 1]] for i in range(len(first))]
        there, named_so = (
            [i for i, cells in enumerate(columns) if any(map(way, cells))]
            for way in (photos.find, _has_ending)
        )
        # a class "1" may find "1.jpg", too, and comes again
        file = max(there or named_so, key=lambda i: len(set(columns[i])), default=None)
        if file is None or _has_ending(first[file]) or photos.find(first[file]):
            return _headless(path, rows, file or 0)
    of_labels = (
        [name for name in named if re.sub(r"[ _.]*\d+$", "", name) == named[label]]
        if label is not None
        else []
    )
    if len(of_labels) > 1:
        raise DataError(
            f"{path}: several columns of labels: {', '.join(of_labels)}; put those of a "
            "photo into one, with ; between them"
        )
    rest = [
        i
        for i, name in enumerate(named)
        if i not in (file, label, part) and name not in INDEX_COLUMNS
    ]
    if label is None and len(rest) > 1:
        values = {_cell(row, i).strip().lower() for _, row in rows[1:] for i in rest}
        if rows[1:] and values <= {*YES, *NO}:
            return _Columns(file, None, part, tuple((i, first[i].strip()) for i in rest))
    if label is None and len(rest) == 1:
        label = rest[0]
    if label is None:
        raise DataError(
            f"{path}: no column of labels among {', '.join(named)}; expected one named "
            f"{' or '.join(LABEL_COLUMNS)}, or a column of 0 and 1 for each class"
        )
    return _Columns(file, label, part)


def _headless(path: Path, rows: Rows, file: int) -> _Columns:
    """Of rows that nothing names: a path and a label, and perhaps a part."""
    rest = [i for i in range(len(rows[0][1])) if i != file and any(_cell(r, i) for _, r in rows)]
    parts = [i for i in rest if all(part_of(_cell(row, i)) for _, row in rows)]
    labels = [i for i in rest if i not in parts] if len(rest) > 1 else rest
    if len(labels) > 1 or len(rest) - len(labels) > 1:
        raise DataError(
            f"{path}: a first row that names nothing, {rows[0][1]!r}; expected path and label, and "
            "perhaps train, val or test, or a first row of names, such as path,label,split"
        )
    label = labels[0] if labels else int(not file)
    return _Columns(file, label, parts[0] if len(rest) > 1 else None, headed=False)


# One label, or several


def _flagged(path: Path, rows: Rows, at: _Columns, multi: bool | None) -> tuple[list[Labels], bool]:
    """The labels of each row that has a column of 0 and 1 for each class, and whether there are several."""
    labels = [
        tuple(name for i, name in at.classes if _cell(row, i).strip().lower() in YES)
        for _, row in rows
    ]
    odd = any(len(names) != 1 for names in labels)
    if multi is None:
        how = "may be of several" if odd else "is of one; with multi=true of several"
        log.info(f"{path}: {some([name for _, name in at.classes])} are classes, and a photo {how}")
    return labels, multi or odd


def _written(
    path: Path, rows: Rows, at: _Columns, multi: bool | None, is_class: Callable[[str], bool]
) -> tuple[list[Labels], bool]:
    """The labels of each row that has them in one cell, and whether there are several."""
    texts = [_cell(row, at.label).strip() for _, row in rows]
    whole = set(filter(is_class, texts))
    joined = [text for text in texts if text not in whole]
    separator = next((one for one in SEPARATORS if any(one in text for text in joined)), "")
    if separator == " " and len({_cell(row, at.path) for _, row in rows}) < len(rows):
        separator = ""  # a row for each label: blanks are of their names
    if separator and {part for text in joined for part in _parts(text, separator)} <= {"0", "1"}:
        raise DataError(
            f"{path}: {joined[0]!r} may be 0 and 1 for each class; give each class a column "
            "of 0 and 1, with its name in the first row"
        )
    if _are_several(path, texts, separator) if multi is None else multi:
        return [(text,) if text in whole else _parts(text, separator) for text in texts], True
    return [(text,) if text else () for text in texts], False


def _parts(text: str, separator: str) -> Labels:
    """Labels in a cell, each once; of a list of Python too: "['cat', 'dog']"."""
    pieces = text.split(separator) if separator else [text]
    return tuple(filter(None, dict.fromkeys(piece.strip(" []'\"") for piece in pieces)))


def _are_several(path: Path, texts: list[str], separator: str) -> bool:
    """Whether texts with a separator are several labels each; DataError where they may be either.

    They are where splitting leaves fewer labels than there are texts, not always as many in each: "cat",
    "dog", "cat|dog". They are not where each text comes again, and no part of it in another: "New York,
    NY", "Boston". Blanks stand within names, so they never separate labels unless that is said.
    """
    parts = {text: _parts(text, separator) for text in texts if text}
    often, spread = Counter(texts), Counter(part for split in parts.values() for part in split)
    joined = [text for text, split in parts.items() if len(split) > 1]
    fewer, blank = len(spread) < len(parts), separator == " "
    if not joined or (blank and not fewer):
        return False
    several = fewer and len(set(map(len, parts.values()))) > 1
    apart = all(often[text] > 1 and {spread[p] for p in parts[text]} == {1} for text in joined)
    if blank or several == apart:
        raise DataError(
            f"{path}: {joined[0]!r} may be one class, or {len(parts[joined[0]])} of a photo; {CHOOSE}"
        )
    how = f"{len(spread)} classes, of which a photo may have several" if several else "one class"
    other = f"; multi={str(apart).lower()} reads the other way"
    # a photo without a label would be refused, the other way
    log.info(f"{path}: {joined[0]!r} is read as of {how}{other if all(texts) else ''}")
    return several


def _joined(path: Path, listing: Listing, multi: bool | None) -> Listing:
    """A photo that has several rows has the labels of all of them; DataError where that is not said."""
    rows: dict[tuple[str, str], Item] = {}
    for item in listing.items:
        own = item.part, os.path.normpath(str(item.source))  # "./1.jpg" is "1.jpg"
        first = rows.setdefault(own, item)
        if first.labels != item.labels and multi is None and not listing.multi:
            raise DataError(
                f"{path}: {item.name} is of class {first.labels[0]}, and of {item.labels[0]} in another "
                f"row; {CHOOSE}"
            )
        labels = tuple(dict.fromkeys((*first.labels, *item.labels)))
        rows[own] = replace(first, labels=labels)
    return replace(listing, items=list(rows.values())) if listing.multi else listing


def _has_ending(cell: str) -> bool:
    """Whether a cell ends as a photo's name does."""
    return is_read(posixpath.splitext(cell.strip())[1].lower())


class _Photos:
    """The photos that a table means: as written, or with backslashes, or without their ending or folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, str | None] | None = None  # None for what several have

    def find(self, cell: str = "") -> str | None:
        """The path of a photo; None where there is none, or several."""
        plain = cell.strip()
        for name in (cell, plain, plain.replace("\\", "/")):
            full = os.path.join(self.folder, name)
            if name and os.path.isfile(full):
                return full
        if self._names is None:
            short: dict[str, str | None] = {}
            whole: dict[str, str | None] = {}  # a disk may spell them in another way than the table
            for parent, _, files in walked(self.folder):
                for full in (os.path.join(parent, file) for file in files):
                    if is_photo(full, lambda: b""):
                        self._know(full, short, whole)
            self._names = short | whole
        return self._names.get(composed(plain.replace("\\", "/")))

    def _know(self, full: str, short: dict[str, str | None], whole: dict[str, str | None]) -> None:
        way = composed(Path(full).relative_to(self.folder).as_posix())
        file = posixpath.basename(way)
        for name in {posixpath.splitext(way)[0], file, posixpath.splitext(file)[0]} - {way}:
            short[name] = None if name in short else full
        whole[way] = None if way in whole else full
