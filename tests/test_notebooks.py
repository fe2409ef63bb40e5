"""The notebooks of the documentation run from top to bottom, and are kept as they ran."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import notebooks  # noqa: E402


def kinds(notebook: Any) -> list[list[str]]:
    """Of each cell's outputs; what is printed comes in as many pieces as the machine pleases."""
    found = [[one.output_type for one in cell.get("outputs", ())] for cell in notebook.cells]
    return [[kind for kind, _ in groupby(kinds)] for kinds in found]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's
@pytest.mark.parametrize("name", ["perceptual", "transfer"])
def test_a_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = ROOT / "docs" / "notebooks" / f"{name}.ipynb"
    assert path in notebooks.NOTEBOOKS
    for variable, value in {
        "PYTHONPATH": ROOT, "TMPDIR": tmp_path, "IPYTHONDIR": tmp_path / "ipython",
        "JUPYTER_RUNTIME_DIR": tmp_path / "jupyter", "JUPYTER_PLATFORM_DIRS": 1,
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, str(value))
    notebook = notebooks.ran(path)
    assert kinds(notebook) == kinds(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        assert not [one.text for one in cell.get("outputs", ()) if one.get("name") == "stderr"]
