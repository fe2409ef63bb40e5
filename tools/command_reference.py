"""Print the command reference from the program itself, so that it cannot say anything else.

`python tools/command_reference.py --write` puts it into docs/commands.md; tools/check_docs.py fails
where that file differs from what the program says now.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from verydeep.cli import cli

__all__ = ["PAGE", "reference"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
COLUMNS = 100  # of the help texts

_HEAD = """\
# Commands

What each command prints for `--help`. Written by `python tools/command_reference.py --write`: change
the program, not this page.
"""


def reference() -> str:
    """The whole page: one section for the program and one for each verb, in alphabetical order."""
    sections = [_HEAD]
    for depth, path, text in _helps(cli, "verydeep", None):
        sections.append(f"{'#' * (depth + 2)} {path}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def _helps(
    command: click.Command, name: str, parent: click.Context | None, depth: int = 0
) -> Iterator[tuple[int, str, str]]:
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=COLUMNS,
        max_content_width=COLUMNS,
        **command.context_settings,
    )
    yield depth, context.command_path, command.get_help(context).strip()
    if isinstance(command, click.Group):
        for verb in sorted(command.list_commands(context)):
            child = command.get_command(context, verb)
            if child is not None and not child.hidden:
                yield from _helps(child, verb, context, depth + 1)


def main() -> int:
    if sys.argv[1:] not in ([], ["--write"]):
        print("usage: python tools/command_reference.py [--write]", file=sys.stderr)
        return 2
    page = reference()
    if sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
