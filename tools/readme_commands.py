"""Print a command that the README shows, so that CI runs what people read.

A command is the one shell block that follows a mark in the README:

    <!-- ci: try -->
    ```sh
    pip install . && verydeep classify examples/photos
    ```

`python tools/readme_commands.py try` prints that block. Standard library only: it runs before anything
is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["README", "commands"]

README = Path(__file__).resolve().parent.parent / "README.md"

# Only blank lines may lie between a mark and its block.
_BLOCK = re.compile(
    r"^<!-- ci: (?P<name>[a-z-]+) -->[ \t]*\n(?:[ \t]*\n)*```(?:sh|bash)[ \t]*\n(?P<command>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"^<!-- ci: ", re.MULTILINE)


def commands(text: str) -> dict[str, str]:
    """Command by name of its mark. ValueError for a mark without a block, or one used twice."""
    found: dict[str, str] = {}
    for match in _BLOCK.finditer(text):
        if match["name"] in found:
            raise ValueError(f"two blocks are marked '<!-- ci: {match['name']} -->'")
        found[match["name"]] = match["command"].strip()
    marks = len(_MARK.findall(text))
    if marks != len(found):
        raise ValueError(
            f"{marks} '<!-- ci: ... -->' marks, {len(found)} of them before a ```sh block"
        )
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python tools/readme_commands.py NAME", file=sys.stderr)
        return 2
    try:
        found = commands(README.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"{README.name}: {error}", file=sys.stderr)
        return 1
    if sys.argv[1] not in found:
        has = ", ".join(sorted(found)) or "none"
        print(
            f"{README.name}: no block marked '<!-- ci: {sys.argv[1]} -->'; has {has}",
            file=sys.stderr,
        )
        return 1
    sys.stdout.reconfigure(newline="\n")  # type: ignore[union-attr]  # bash on Windows keeps a \r
    print(found[sys.argv[1]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
