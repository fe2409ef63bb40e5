"""Remember which engine won, so that a race is held once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files.notebook import Notebook


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
                and one.open_seconds >= 0
                for one in standings
            )
        except (KeyError, TypeError):
            return ()
        return standings if good else ()

    def batches(self, graph: str) -> list[int]:
        """The batch sizes with which that graph was raced; quick to ask, beside the rest."""
        races = [row["race"] for row in self.choices()]
        batches = [race.get("batch") for race in races if race.get("graph") == graph]
        return sorted({batch for batch in batches if isinstance(batch, int)})

    def disturbed(self, race: Mapping[str, Any]) -> bool:
        """Whether the machine was busy with other things while that race was held."""
        row = self._notebook.rows().get(_digest(race))
        return isinstance(row, dict) and row.get("disturbed") is True

    def remember(
        self, race: Mapping[str, Any], standings: Iterable[Standing], *, disturbed: bool = False
    ) -> None:
        """Keep the result of a race. What it was about is kept beside it, for people."""
        rows = [asdict(row) for row in standings]
        value = {"race": dict(race), "standings": rows, "disturbed": disturbed}
        self._notebook.write(_digest(race), value)

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
