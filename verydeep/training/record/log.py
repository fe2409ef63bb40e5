"""log.jsonl: one JSON object a line for whatever happens in a run, there as soon as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ...errors import OutputError
from ...files.atomic import locked, replacing


def read(path: Path) -> list[dict[str, Any]]:
    """The lines; one that was cut off by a crash is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


class Log:
    """The log of a run. step: where a run that is resumed goes on; what was told after it is dropped.

    While it is open its folder is this process's alone. OutputError where another trains in it.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        def refuse() -> None:
            raise OutputError(
                f"{path.parent}: another process is training in it; wait for it, or choose another folder"
            )

        self._held = ExitStack()
        self._held.enter_context(locked(path.with_name(".lock"), refuse))
        self.lines = [
            line
            for line in (read(path) if step else [])
            if line.get("step", 0) <= step and line["event"] != "end"
        ]
        with replacing(path, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self.lines)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        try:
            self._file.write(f"{json.dumps(line)}\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        with suppress(OSError):  # what a full disk refuses was told of when it was written
            self._file.close()
        self._held.close()
