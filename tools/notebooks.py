"""Run the documentation's notebooks: `python tools/notebooks.py --write` keeps what they print and draw.

The site shows them as they are kept; tests/test_notebooks.py runs each and keeps nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

__all__ = ["NOTEBOOKS", "ran"]

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def ran(path: Path) -> Any:
    """The notebook with the outputs of a fresh run; CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, record_timing=False, resources=where).execute()
    notebook.metadata.pop("language_info", None)  # the version of Python that ran it
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/jpeg" in output.get(
                "data", {}
            ):  # Pillow gives PNG as well, five times as large
                output.data.pop("image/png", None)
    return notebook


def main() -> int:
    if sys.argv[1:] not in ([], ["--write"]):
        print("usage: python tools/notebooks.py [--write]", file=sys.stderr)
        return 2
    for path in NOTEBOOKS:
        notebook = ran(path)
        if sys.argv[1:]:
            nbformat.write(notebook, path)
        print(f"{path.name} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
