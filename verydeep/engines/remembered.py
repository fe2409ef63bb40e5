"""Remember what was measured: which engine won, and what files hash to; one small JSON file.

Everything in it can be measured again: a file that cannot be read, or was not written by this program, is
as good as none, and one that cannot be written is done without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import warn_once
from ..files.atomic import replacing
from ..files.folders import cache_folder
from ..files.lock import locked

if TYPE_CHECKING:
    from ..modelfile import ModelFile

FORMAT = 1
MOST = 500  # of each sort are kept, the latest


@dataclass(frozen=True)
class Standing:
    """How one engine did in a race.

    seconds: of one image, its share of the batch. open_seconds: until it could run its first image, with
    its import and the building of the graph. error: against the reference, as `relative_error` has it.
    """

    engine: str
    device: str
    settings: Mapping[str, str | int]
    seconds: float
    open_seconds: float
    error: float


class Memory:
    """The file. None is verydeep's own, "choices.json" in `folders.cache_folder()`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else cache_folder() / "choices.json"
        self._value: dict[str, Any] | None = None

    def standings(self, race: Mapping[str, Any]) -> tuple[Standing, ...]:
        """The result of that race, quickest first; empty where it was not held yet."""
        found = self._read()["choices"].get(_digest(race), {})
        try:
            names = {field.name for field in fields(Standing)}
            rows = tuple(Standing(**{n: row[n] for n in names}) for row in found["standings"])
            good = all(
                isinstance(row.engine, str)
                and isinstance(row.device, str)
                and isinstance(row.settings, dict)
                and row.seconds > 0
                and row.open_seconds >= 0
                for row in rows
            )
        except (KeyError, TypeError):
            return ()
        return rows if good else ()

    def batches(self, graph: str) -> list[int]:
        """The batch sizes with which that graph was raced; quick to ask, beside the rest."""
        races = [row["race"] for row in self.choices()]
        found = [race.get("batch") for race in races if race.get("graph") == graph]
        return sorted({batch for batch in found if isinstance(batch, int)})

    def disturbed(self, race: Mapping[str, Any]) -> bool:
        """Whether the machine was busy with other things while that race was held."""
        row = self._read()["choices"].get(_digest(race))
        return isinstance(row, dict) and row.get("disturbed") is True

    def remember(
        self, race: Mapping[str, Any], standings: Iterable[Standing], *, disturbed: bool = False
    ) -> None:
        """Keep the result of a race. What it was about is kept beside it, for people."""
        rows = [asdict(row) for row in standings]
        value = {"race": dict(race), "standings": rows, "disturbed": disturbed}
        self._write("choices", _digest(race), value)

    def choices(self) -> list[dict[str, Any]]:
        """Every result, as {"race": ..., "standings": [...]}."""
        rows = self._read()["choices"].values()
        return [
            row for row in rows if isinstance(row, dict) and row.keys() >= {"race", "standings"}
        ]

    def sha256(self, path: Path) -> str | None:
        """Of the file, if it was hashed before and has not changed since: 64 hexadecimal digits."""
        with suppress(OSError, TypeError, ValueError, KeyError):
            status = path.stat()
            size, changed, digest = self._read()["digests"][str(path.resolve())]
            if (size, changed) == (status.st_size, status.st_mtime_ns):
                return str(digest)
        return None

    def sha256_of(self, model: ModelFile) -> str:
        """Of a model file; one that was hashed before and has not changed since is not read again."""
        known = self.sha256(model.path)
        if known is None:
            self.remember_sha256(model.path, model.sha256)
        return known or model.sha256

    def remember_sha256(self, path: Path, digest: str) -> None:
        with suppress(OSError):
            status = path.stat()
            facts = [status.st_size, status.st_mtime_ns, digest]
            self._write("digests", str(path.resolve()), facts)

    def clear(self) -> None:
        """Forget everything."""
        self._value = None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        if self._value is None:
            self._value = {"format": FORMAT, "choices": {}, "digests": {}}
            try:
                value = json.loads(self.path.read_text(encoding="utf-8"))
                parts = (value["choices"], value["digests"])
                if value["format"] != FORMAT or not all(isinstance(part, dict) for part in parts):
                    raise ValueError("another program's, or another version's")
                self._value = value
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError):
                warn_once(f"{self.path} cannot be read; what it remembered will be measured again")
        return self._value

    def _write(self, part: str, key: str, value: Any) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock"), lambda: None):
                self._value = None  # another process may have written meanwhile
                whole = self._read()
                rows = whole[part]
                rows.pop(key, None)
                rows[key] = value  # the latest is last
                for old in list(rows)[:-MOST]:
                    del rows[old]
                with replacing(self.path, "w", encoding="utf-8") as file:
                    json.dump(whole, file, indent=1)
        except OSError as error:
            warn_once(
                f"{self.path} cannot be written ({error.strerror or error}); "
                "engines will be measured again next time"
            )


def _digest(race: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(race, sort_keys=True).encode()).hexdigest()[:32]
