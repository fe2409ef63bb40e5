"""The example of the losses, run as a person runs it, on a picture small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "style_transfer.py"


def test_it_paints(tmp_path: Path) -> None:
    out = tmp_path / "painted.jpg"
    photos = [str(EXAMPLE.parent / "photos" / name) for name in ("viaduct.jpg", "bee.jpg")]
    words = [*photos, str(out), "--size", "64", "--steps", "2", "3"]
    command = [sys.executable, "-W", "error", str(EXAMPLE), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert done.stderr.count(" s left, loss ") >= 2
    with Image.open(out) as image:
        assert image.size == (64, 43)
        with Image.open(photos[0]) as content:
            before = np.asarray(content.resize((64, 43)), float)
        assert 5 < np.abs(np.asarray(image, float) - before).mean() < 120
