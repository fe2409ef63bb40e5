"""Facts that took time to find, kept in one small JSON file, the latest few hundred of them.

Everything in it can be found again: a file that cannot be read, or was not written by this program, is as
good as none, and one that cannot be written is done without.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import warn_once
from .atomic import locked, replacing
from .folders import cache_folder, going_without

FORMAT = 2  # 1 held races and hashes in one file
MOST = 500  # rows are kept


class Notebook:
    """Rows of JSON values by key. file: a name in verydeep's own cache folder, or a path."""

    def __init__(self, file: str | Path) -> None:
        self.path = cache_folder() / file  # a whole path stays as it is
        self._rows: dict[str, Any] | None = None

    def rows(self) -> dict[str, Any]:
        """All of them, the latest last, as they were when first asked for."""
        if self._rows is None:
            rows: dict[str, Any] = {}
            try:
                value = json.loads(self.path.read_text(encoding="utf-8"))
                if value["format"] == FORMAT:  # of another version's nothing need be said
                    rows = dict(value["rows"])
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                warn_once(f"{self.path} cannot be read; what it remembered will be found anew")
            self._rows = rows  # whole, whichever thread looks
        return self._rows

    def write(self, key: str, value: Any) -> None:
        """Add a row, or put it in the place of the one with that key."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock"), lambda: None):
                rows = Notebook(self.path).rows()  # another process may have written meanwhile
                rows.pop(key, None)
                latest = [*rows.items(), (key, value)][-MOST:]
                self._rows = dict(latest)
                with replacing(self.path, "w", encoding="utf-8") as file:
                    json.dump({"format": FORMAT, "rows": self._rows}, file, indent=1)
        except OSError as error:
            going_without(self.path.parent, error)

    def clear(self) -> None:
        """Forget everything."""
        self._rows = None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
