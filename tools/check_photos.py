"""Check what `verydeep classify examples/photos` printed: every photo named, with its right class first.

    verydeep classify examples/photos | python tools/check_photos.py

The table in examples/photos/README.md says what each photo shows; any of the names that it gives for
the class is right. Standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["complaints", "expected", "first_guesses"]

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"

# | `bee.jpg` | a honey bee on an aster | bee (n02206856) | ...
_ROW = re.compile(r"^\| `(?P<file>[^`]+)` \|[^|]*\| (?P<names>[^|]+) \(n\d{8}\) \|", re.MULTILINE)
# "  espresso      ████░░░░  97.3%"
_GUESS = re.compile(r"^\s+(?P<label>\S.*?)\s+(?:[█░#.]+\s+)?(?P<percent>\d+(?:\.\d+)?)\s?%\s*$")


def expected(table: str) -> dict[str, set[str]]:
    """File name -> the names of the class it shows, from the README beside the photos."""
    return {row["file"]: set(row["names"].split(", ")) for row in _ROW.finditer(table)}


def first_guesses(output: str) -> dict[str, tuple[str, float]]:
    """File name -> label and probability in percent of the first guess printed below it."""
    found: dict[str, tuple[str, float]] = {}
    photo = ""
    for line in output.splitlines():
        guess = _GUESS.match(line)
        if guess and photo:
            found.setdefault(photo, (guess["label"], float(guess["percent"])))
        elif line and not line[0].isspace():
            photo = Path(line.removesuffix("not sure").strip()).name
    return found


def complaints(output: str, table: str, files: set[str]) -> list[str]:
    """What is wrong: photos without a row or an answer, impossible probabilities, wrong answers."""
    right, guesses = expected(table), first_guesses(output)
    lines = [f"{name}: no row in the README's table" for name in sorted(files - right.keys())]
    lines += [f"{name}: in the table, but not there" for name in sorted(right.keys() - files)]
    for name in sorted(files & right.keys()):
        if name not in guesses:
            lines.append(f"{name}: no label with a probability was printed")
            continue
        label, percent = guesses[name]
        if not 0 < percent <= 100:
            lines.append(f"{name}: {percent} % is no probability of a first guess")
        if label not in right[name]:
            lines.append(
                f"{name}: {label} ({percent} %), expected {', '.join(sorted(right[name]))}"
            )
    return lines


def main() -> int:
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    files = {path.name for path in PHOTOS.iterdir() if path.suffix.lower() in suffixes}
    table = (PHOTOS / "README.md").read_text(encoding="utf-8")
    wrong = complaints(sys.stdin.read(), table, files)
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(files)} photos, each answered rightly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
