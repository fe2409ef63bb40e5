"""Check what the documentation claims about the repository: its links and its command reference.

Every relative link in a Markdown file must lead to a file, and its #fragment to a heading there;
docs/commands.md must be what the program says now. Links to the web are not followed.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import command_reference

__all__ = ["broken_links", "stale_reference"]

ROOT = Path(__file__).resolve().parent.parent

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
# [text](target), ![text](target), <img src="target">, <a href="target">, and [name]: target
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"|^\s*\[[^\]]+\]:\s+(\S+)", re.MULTILINE
)
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)


def markdown_files(root: Path) -> list[Path]:
    """Every .md under `root`, but for folders whose name starts with a dot, and builds."""
    skipped = {"build", "dist", "node_modules"}
    return sorted(
        path
        for path in root.rglob("*.md")
        if not any(
            part.startswith(".") or part in skipped for part in path.relative_to(root).parts[:-1]
        )
    )


def broken_links(root: Path) -> Iterator[str]:
    """One line for each relative link that leads nowhere."""
    for path in markdown_files(root):
        text = path.read_text(encoding="utf-8")
        prose = _CODE.sub("", _FENCE.sub("", text))
        for match in _LINK.finditer(prose):
            target = next(group for group in match.groups() if group)
            if _ELSEWHERE.match(target):
                continue
            name, _, fragment = unquote(target).partition("#")
            goal = (path.parent / name).resolve() if name else path
            where = path.relative_to(root)
            if not goal.exists():
                yield f"{where}: link to {target}: there is no {name}"
            elif not goal.is_relative_to(root.resolve()):
                yield f"{where}: link to {target}: leads out of the repository"
            elif fragment and goal.suffix == ".md" and fragment not in _anchors(goal):
                yield f"{where}: link to {target}: no heading makes #{fragment}"


def _anchors(path: Path) -> set[str]:
    """The fragments that the headings of a Markdown file make, by GitHub's rule."""
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    anchors: set[str] = set()
    for heading in _HEADING.findall(prose):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count, unique = 0, anchor
        while unique in anchors:
            count += 1
            unique = f"{anchor}-{count}"
        anchors.add(unique)
    return anchors


def stale_reference(page: Path) -> Iterator[str]:
    """The first lines in which the command reference differs from what the program says."""
    if not page.exists():
        yield f"{page.name} is missing: run python tools/command_reference.py --write"
        return
    old, new = page.read_text(encoding="utf-8"), command_reference.reference()
    if old != new:
        yield f"{page.name} is out of date: run python tools/command_reference.py --write"
        changes = difflib.unified_diff(
            old.splitlines(), new.splitlines(), page.name, "the program", n=0, lineterm=""
        )
        yield from list(changes)[:20]


def main() -> int:
    complaints = [*broken_links(ROOT), *stale_reference(command_reference.PAGE)]
    for line in complaints:
        print(line, file=sys.stderr)
    if not complaints:
        print(f"{len(markdown_files(ROOT))} Markdown files: links and command reference hold")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
