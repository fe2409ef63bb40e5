"""What a compression ends with: the small file, what was measured of it, and all that its page tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.strict_json import JSON
from ..files.wording import table


@dataclass(frozen=True)
class Compressed:
    """A small model file, and what was measured of it.

    path, report: of the file, and of the page about it; None of a device. size_bytes, before_bytes: of
    both files. trials: of each its "coarseness", "size", what was measured, and whether it is the one that
    was "chosen". layers: of each with weights its "name", "weights", "bits" a weight, and "share" of the
    bytes.
    agreement: the fraction of `checked` photos with the first answer of the model that it was made of, or,
    where photos have `several` classes, with all that it said; None without photos or head. error: of the
    scores there, or of the last layer's maps (||a - b|| / ||b||).
    drop: of the accuracy on `data`, in percentage points; None without it. met: whether the goal was.
    multiply_adds, before_multiply_adds: of one image. speedup: how many times as fast it was measured to
    be; None where no channel went. measured: as the file's record has it, with intervals. goal: in words.
    made: the "command" that began it, and "versions".
    """

    path: Path
    size_bytes: int
    before_bytes: int
    trials: tuple[dict[str, Any], ...]
    layers: tuple[dict[str, Any], ...]
    agreement: float | None
    error: float | None
    drop: float | None
    checked: int
    met: bool
    unreadable: int = 0
    multiply_adds: int = 0
    before_multiply_adds: int = 0
    speedup: float | None = None
    measured: tuple[Mapping[str, JSON], ...] = ()
    goal: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)
    report: Path | None = None
    several: bool = False

    def to_dict(self) -> dict[str, object]:
        """What `verydeep compress --json` prints."""
        paths = {"path": str(self.path), "report": self.report and str(self.report)}
        return {**vars(self), **paths}

    def figure(self, what: str) -> Mapping[str, Any]:
        """A row of `measured`; empty where that was not."""
        return next((row for row in self.measured if row["what"] == what), {})

    @property
    def said(self) -> str:
        """In a sentence, and what is not promised."""
        text = f"{self.before_bytes:,} bytes became {self.size_bytes:,}"
        if self.size_bytes < self.before_bytes:  # float32 may take more than rounded weights did
            text += f" ({self.before_bytes / self.size_bytes:.1f}x smaller)"
        if self.multiply_adds < self.before_multiply_adds:
            fewer = self.before_multiply_adds / self.multiply_adds
            text += f"; {self.multiply_adds:,} multiply-adds an image ({fewer:.1f}x fewer)"
        if self.speedup is not None:
            text += f"; {self.speedup:.2f} times as fast here"
        if self.drop is not None:
            row = self.figure("drop")
            text += f"; {self.drop:.2f} points less accurate on {row['n']:,} labelled photos"
            if "interval" in row:
                text += " (95% interval {:.2f} to {:.2f})".format(*row["interval"])
        if self.agreement is not None:
            what = "classes said of" if self.several else "first answer on"
            text += f"; the same {what} {self.agreement:.1%} of {self.checked} photos"
            text += " that no weight was fitted to (95% interval {:.1%} to {:.1%})".format(
                *self.figure("agreement")["interval"]
            )
        if self.agreement is not None and self.drop is None and not self.several:
            text += (
                "; without labelled photos its accuracy was not measured: there it can have lost at most "
                f"the {1 - self.agreement:.1%} whose answer changed"
            )
        if self.error is not None:
            text += f"; error {self.error:.2%}"
        elif self.drop is None:
            text += "; without photos nothing was measured, and nothing of its answers is promised"
        return text + ("" if self.met else "; the goal was not met: this is the nearest")

    def __str__(self) -> str:
        rows = [("layer", "weights", "bits", "of the file")]
        rows += [
            (one["name"], f"{one['weights']:,}", f"{one['bits']:.2f}", f"{one['share']:.1%}")
            for one in self.layers
        ]
        return f"{table(rows, '<>')}\n{self.said}"
