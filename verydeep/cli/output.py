"""Where results go: JSON to stdout, files to places that take them, what failed to the exit status."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import DataError, OutputError, log


def is_utf8() -> bool:
    """Whether stdout takes every character."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def json_text(value: object) -> str:
    """One JSON value. DataError where it holds a number that is not finite: JSON has none."""
    try:
        # what an encoding has no byte for would be escaped as Python does, and JSON does not
        text = json.dumps(value, ensure_ascii=not is_utf8(), allow_nan=False)
    except ValueError as error:
        raise DataError(f"the result has a number that is not finite ({error})") from error
    # a file name that is not UTF-8 stays JSON: its odd bytes are escaped, and Python reads them back
    return re.sub("[\ud800-\udfff]", lambda odd: f"\\u{ord(odd[0]):04x}", text)


def show_list(records: Sequence[Mapping[str, Any]]) -> None:
    """Print records as one JSON list, a line each, as `Listing` does while they come."""
    click.echo("[" + "\n,".join(map(json_text, records)) + ("\n]" if records else "]"))


def show(result: Any, as_json: bool) -> None:
    """Print a result as one JSON value, or as its own text."""
    click.echo(json_text(result.to_dict()) if as_json else str(result))


@dataclass
class Listing(AbstractContextManager["Listing"]):
    """Prints records as they come: one JSON list, which is whole even when stopped, or a text for each.

    Records with an "error" go to stderr. count, failed: how many records there were, and how many of these.
    """

    as_json: bool
    count: int = 0
    failed: int = 0

    def __exit__(self, *_: object) -> None:
        if self.as_json:
            click.echo("]" if self.count else "[]")

    def __call__(self, record: Mapping[str, Any], text: str = "") -> None:
        if self.as_json:
            click.echo(("," if self.count else "[") + json_text(record))
        self.count += 1
        if "error" in record:
            self.failed += 1
            log.error(record["error"])
        elif not self.as_json:
            click.echo(text)


@contextmanager
def photo_events(
    doing: str, total: Callable[[], int] | None = None
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields the `on_event` of work on photos: shows its progress, says which cannot be read."""
    from ..files.progress import Progress

    with Progress(doing, total=total) as bar:

        def on_event(event: Mapping[str, Any]) -> None:
            bar.total = event.get("total", bar.total)
            bar.advance(event["done"] - bar.done)
            if event["error"]:
                log.error(event["error"])

        yield on_event


def exit_status(failed: int, total: int, what: str = "file", how: str = "could not be read") -> int:
    """0 where nothing failed, 1 where some did, 2 where all did; says how many of several did."""
    if failed and total > 1:
        from ..files.wording import counted

        log.error(f"{failed:,} of {counted(total, what)} {how}")
    return 0 if not failed else 1 if failed < total else 2


def output_folder(path: Path) -> Path:
    """The folder, made where there is none. OutputError where files cannot be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        why = "a file, and a folder is needed" if path.is_file() else why
        raise OutputError(f"{path}: {why}; name another folder") from error
    return path
