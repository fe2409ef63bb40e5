"""Remember which engine won, so that a race is held once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files.folders import Notebook


@dataclass(frozen=True)
class Standing:
    """How one engine did in a race.

    seconds: of one image, its share of the batch. images: how many it ran at once, which is the whole batch
    or, of a large one, as many as there was time for. error: against the reference, as `relative_error`
    has it.
    """

    engine: str
    device: str
    settings: Mapping[str, str | int]
    seconds: float
    images: int
    error: float


class Memory:
    """Results of races. path: None is verydeep's own, "choices.json" in `folders.cache_folder()`."""

    def __init__(self, path: Path | None = None) -> None:
        self._notebook = Notebook(path or "choices.json")

    def standings(self, race: Mapping[str, Any]) -> tuple[Standing, ...]:
        """The result of that race, quickest first; empty where it was not held yet."""
        row = self._notebook.rows().get(_digest(race), {})
        try:
            names = {field.name for field in fields(Standing)}
            standings = tuple(Standing(**{n: one[n] for n in names}) for one in row["standings"])
            good = all(
                isinstance(one.engine, str)
                and isinstance(one.device, str)
                and isinstance(one.settings, dict)
                and one.seconds > 0
                for one in standings
            )
        except (KeyError, TypeError):
            return ()
        return standings if good else ()

    def knows(self, graph: str) -> bool:
        """Whether that graph was ever raced; quick to ask, beside the rest."""
        return any(row["race"].get("graph") == graph for row in self.choices())

    def remember(self, race: Mapping[str, Any], standings: Iterable[Standing]) -> None:
        """Keep the result of a race. What it was about is kept beside it, for people."""
        rows = [asdict(row) for row in standings]
        self._notebook.write(_digest(race), {"race": dict(race), "standings": rows})

    def choices(self) -> list[dict[str, Any]]:
        """Every result, as {"race": ..., "standings": [...]}."""
        rows = self._notebook.rows().values()
        return [
            row for row in rows if isinstance(row, dict) and row.keys() >= {"race", "standings"}
        ]

    def clear(self) -> None:
        """Forget everything."""
        self._notebook.clear()


def _digest(race: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(race, sort_keys=True).encode()).hexdigest()[:32]
