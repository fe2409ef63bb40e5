"""Makes portrait_*.png: the pictures of a tiny network's portrait, at a tenth of their size.

    python -m tests.golden.portrait_make

Look at them before you keep them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import verydeep
from tests.tiny import model_file, photo


def pictures(folder: Path) -> dict[str, Image.Image]:
    model = verydeep.load(model_file(folder / "tiny.safetensors"), precision="exact")
    seen = verydeep.show(model, photo(folder / "photo.png"), size=96, strongest=3)
    return {
        name: whole.resize((whole.width // 10, whole.height // 10), Image.Resampling.BOX)
        for name, whole in seen.pictures.items()
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name, picture in pictures(Path(place)).items():
            picture.save(Path(__file__).with_name(f"portrait_{name}.png"), optimize=True)
