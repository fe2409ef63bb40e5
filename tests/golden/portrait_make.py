"""Makes portrait.png: the picture of a tiny network's portrait, at an eighth of its size.

    python -m tests.golden.portrait_make

Look at it before you keep it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import verydeep
from tests.tiny import model_file, photo


def picture(folder: Path) -> Image.Image:
    model = verydeep.load(model_file(folder / "tiny.safetensors"), precision="exact")
    seen = verydeep.show(model, photo(folder / "photo.png"), size=96, strongest=3)
    whole = seen.picture()
    return whole.resize((whole.width // 8, whole.height // 8), Image.Resampling.BOX)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        picture(Path(place)).save(Path(__file__).with_name("portrait.png"), optimize=True)
