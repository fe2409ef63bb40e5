"""Millions of images as parts: photos, WebDataset shards and Parquet tables, here or in an object store.

The same source gives the same parts in the same order, so that a part's number says what is in it. A part
says where its images are; they are read where it is computed.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import groupby, islice
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..datasets.listing import numbered
from ..datasets.tables import PATH_COLUMNS
from ..errors import DataError, nearest
from ..files import photo_paths

SHARD, TABLE = ".tar", ".parquet"
BUFFER_BYTES = 4 << 20  # of a shard or table that is read on
AT_ONCE = 16  # photos that are fetched from elsewhere at the same time
ROWS = 64  # of a table, in one go

Image: TypeAlias = "tuple[str, str | bytes, str]"  # name; path or content; why there is none, or ""


@dataclass(frozen=True)
class Part:
    """Images that stand one after the other.

    names: of photos; or the one shard or table, and then start: where in it, in bytes or rows. stamp: the
    size and date of that file. problem: why it cannot be read, which is the last image's error.
    """

    names: tuple[str, ...]
    count: int
    start: int = 0
    column: str = ""
    stamp: str = ""
    problem: str = ""

    @property
    def digest(self) -> str:
        """What tells it from what another source has in its place."""
        return hashlib.sha256(repr(self).encode("utf-8", "backslashreplace")).hexdigest()

    def images(self) -> Iterator[Image]:
        """As many as it has, whatever happens: those that cannot be had have an error."""
        file, given, why = self.names[0], 0, "it is not there any more"
        read = {SHARD: _members, TABLE: _rows}.get(_suffix(file))
        try:
            good = self.count - bool(self.problem)
            for image in islice(read(self) if read else fetched(self.names), good):
                given += 1
                yield image
        except _errors() as error:
            why = reason(error)
        for number in range(given, self.count):
            yield f"{file}#{self.start + number}", b"", self.problem or why


def parts(given: Sequence[str], size: int, column: str | None = None) -> Iterator[Part]:
    """The parts of a source, of `size` images at most, listed while they are asked for.

    given: photos, folders, globs, shards (.tar, with braces too) and tables (.parquet); paths or URLs.
    column: of tables, which one holds images; None: the one that does. DataError where none does.
    """
    for suffix, names in groupby(_files(given), _suffix):
        if suffix == SHARD:
            yield from (part for name in names for part in _shard(name, size))
        elif suffix == TABLE:
            yield from (part for name in names for part in _table(name, size, column))
        else:
            while some := tuple(islice(names, size)):
                yield Part(some, len(some))


@cache
def _errors() -> tuple[type[Exception], ...]:
    """What reading a source may raise; pyarrow's own are not all among Python's."""
    from pyarrow import ArrowException

    return OSError, ValueError, EOFError, tarfile.TarError, ArrowException


def reason(error: BaseException) -> str:
    """The first line of what an exception says."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]


# Files: which are meant, and where they lie


def _suffix(name: str) -> str:
    return next((one for one in (SHARD, TABLE) if name.lower().endswith(one)), "")


def _files(given: Iterable[str]) -> Iterator[str]:
    for name in (one for each in given for one in numbered(each) or [each]):
        if "://" in name:
            yield from _elsewhere(name)
        else:
            yield from photo_paths.find([name], also=(SHARD, TABLE))


def _elsewhere(url: str) -> Iterator[str]:
    """A file's URL, or sorted what lies below a folder's. In a glob "*" stands for "/" as well."""
    from pyarrow.fs import FileSelector, FileType

    top, star, _ = url.rstrip("/").partition("*")
    top = top.rpartition("/")[0] if star else top
    try:
        system, path = place(top)
        if not star and system.get_file_info(path).type != FileType.Directory:
            yield url
            return
        below = system.get_file_info(FileSelector(path, recursive=True))
    except _errors() as error:
        raise DataError(f"{url}: cannot be listed: {reason(error)}") from error
    for info in sorted(below, key=lambda one: one.path):
        name = top + info.path[len(path) :]
        taken = fnmatchcase(name, url) if star else _suffix(name) or _is_photo(name)
        if info.type == FileType.File and taken:
            yield name


def _is_photo(name: str) -> bool:
    file = os.path.basename(name)
    return not photo_paths.is_hidden(file) and photo_paths.is_read(
        os.path.splitext(file)[1].lower()
    )


def place(name: str) -> tuple[Any, str]:
    """The file system, as pyarrow has them, in which a path or URL lies, and its path there."""
    if "://" not in name:
        return _local(), name
    url = urlsplit(name)
    system, root = _system(f"{url.scheme}://{url.netloc}/")
    return system, f"{root.rstrip('/')}/{name.split('://', 1)[1].partition('/')[2]}"


@cache
def _local() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@cache
def _system(root: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(root)  # type: ignore[no-any-return]


def fetched(names: Iterable[str | Image]) -> Iterator[Image]:
    """What lies elsewhere by its content, some fetched at once; local paths, and images, as they are."""

    def fetch(one: str | Image) -> Image:
        if not isinstance(one, str):
            return one
        if "://" not in one:
            return one, one, ""
        try:
            system, path = place(one)
            with system.open_input_stream(path) as file:
                return one, file.read(), ""
        except _errors() as error:
            return one, b"", f"cannot be fetched: {reason(error)}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        coming = iter(names)
        waiting = deque(pool.submit(fetch, one) for one in islice(coming, AT_ONCE))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(fetch, one) for one in islice(coming, 1))


def _opened(name: str) -> tuple[Any, str]:
    """A file, and its stamp."""
    system, path = place(name)
    info = system.get_file_info(path)
    return system.open_input_file(path), f"{info.size} {info.mtime_ns}"


# Shards: plain tars, of which each image counts, whatever else lies beside it


def _in_tar(file: Any, shard: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The images from where the file stands. Disks jump over what is not read, object stores do not."""
    mode: Any = "r|" if "://" in shard else "r:"
    with tarfile.open(fileobj=file, mode=mode, bufsize=BUFFER_BYTES) as tar:
        for info in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all
            if info.isfile() and _is_photo(info.name):
                yield info, tar


def _shard(name: str, size: int) -> Iterator[Part]:
    """Its parts, for which it is read once; a damage is one image more, that has an error."""
    offsets, problem, stamp = [], "", ""
    try:
        file, stamp = _opened(name)
        with file:
            for info, _ in _in_tar(file, name):
                offsets.append(info.offset)  # those before a damage are kept
            file.seek(max(0, file.size() - 2 * tarfile.BLOCKSIZE))
            if any(file.read()):  # two empty blocks end a tar
                raise EOFError("it ends before its end")
    except _errors() as error:
        problem = f"cannot be read as a shard, a plain tar: {reason(error)}"
        offsets.append(0)
    for first in range(0, len(offsets), size):
        last = first + size >= len(offsets)
        count = min(size, len(offsets) - first)
        yield Part((name,), count, offsets[first], "", stamp, problem if last else "")


def _members(part: Part) -> Iterator[Image]:
    shard = part.names[0]
    with _opened(shard)[0] as file:
        file.seek(part.start)
        for info, tar in _in_tar(file, shard):
            content = tar.extractfile(info)
            yield f"{shard}/{info.name}", content.read() if content else b"", ""


# Tables


def _table(name: str, size: int, column: str | None) -> Iterator[Part]:
    from pyarrow import parquet

    try:
        file, stamp = _opened(name)
        with file, parquet.ParquetFile(file) as table:
            schema, count = table.schema_arrow, table.metadata.num_rows
    except _errors() as error:
        yield Part((name,), 1, problem=f"cannot be read as a Parquet table: {reason(error)}")
        return
    column = image_column(schema, column, name)
    for start in range(0, count, size):
        yield Part((name,), min(size, count - start), start, column, stamp)


def _rows(part: Part) -> Iterator[Image]:
    return fetched(_cells(part))


def _cells(part: Part) -> Iterator[str | Image]:
    from pyarrow import parquet

    name, end, first = part.names[0], part.start + part.count, 0
    with _opened(name)[0] as file, parquet.ParquetFile(file, buffer_size=BUFFER_BYTES) as table:
        image_column(table.schema_arrow, part.column, name)  # it may be another table by now
        groups = list(range(table.num_row_groups))
        while (
            groups and first + (rows := table.metadata.row_group(groups[0]).num_rows) <= part.start
        ):
            first += rows
            del groups[0]
        for batch in table.iter_batches(ROWS, row_groups=groups, columns=[part.column]):
            for row in range(max(first, part.start), min(first + len(batch), end)):
                cell = plain(batch.column(0)[row - first].as_py())
                if isinstance(cell, str) and cell:
                    yield _found(cell, name)
                else:
                    yield f"{name}#{row}", cell or b"", "" if cell else "the cell is empty"
            first += len(batch)
            if first >= end:
                return


def plain(cell: Any) -> Any:
    """What a cell holds; of Hugging Face's struct its bytes or its path."""
    return (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell


def _found(path: str, table: str) -> str:
    """A path as seen from the table's folder, else from where the command runs."""
    if "://" in path or os.path.isabs(path):
        return path
    beside = os.path.join(os.path.dirname(table), path)
    return beside if "://" in table or os.path.lexists(beside) else path


def image_column(schema: Any, asked: str | None, what: str) -> str:
    """The column of a table that holds images: bytes, or else paths; DataError where none does, or several.

    schema: pyarrow's. Hugging Face's structs of bytes and path hold both.
    """
    from pyarrow.types import is_struct

    binary, text = ("binary", "large_binary"), ("string", "large_string")
    kinds = {field.name: str(field.type) for field in schema}
    structs = {
        field.name: [one.name for one in field.type] for field in schema if is_struct(field.type)
    }
    images = [
        name for name, kind in kinds.items()
        if kind.startswith(binary) or "bytes" in structs.get(name, ())
    ]  # fmt: skip
    texts = [name for name, kind in kinds.items() if kind in text]
    if asked is not None:
        if asked not in images + texts:
            known = nearest(asked, images + texts)
            raise DataError(f"{what}: no column {asked!r} of bytes or paths{known}")
        return asked
    found = images or [name for name in texts if name.lower() in (*PATH_COLUMNS, "url")]
    if len(found) != 1:
        several = f"several columns may hold images, {', '.join(found)}"
        none = f"no column of images among {', '.join(kinds)}; expected bytes or paths"
        raise DataError(f"{what}: {several if found else none}; name it with --column")
    return str(found[0])
