"""Makes sheet.png: a contact sheet of photos of odd shapes, one of which is gone, at a quarter of its size.

    python -m tests.golden.sheet_make

Look at it before you keep it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from tests.tiny import photo
from verydeep import retrieval
from verydeep.retrieval.nearest import Match, Neighbours


def neighbours(folder: Path) -> list[Neighbours]:
    for seed, (height, width) in enumerate([(90, 120), (120, 90), (200, 50), (40, 300)]):
        photo(folder / f"photo-{seed}.png", height, width, seed=seed)
    (folder / "gone.png").write_text("no photo")

    def match(name: str, cosine: float) -> Match:
        return Match(str(folder / name), cosine, 0)

    return [
        Neighbours(
            str(folder / "photo-0.png"),
            (match("photo-0.png", 1.0), match("photo-1.png", 0.8125), match("gone.png", 0.5)),
        ),
        Neighbours(None, (match("photo-2.png", 0.75), match("photo-3.png", -0.25))),
    ]


def picture(folder: Path) -> Image.Image:
    retrieval.contact_sheet(neighbours(folder), folder / "sheet.png")
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.convert("RGB").reduce(4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        picture(Path(place)).save(Path(__file__).with_name("sheet.png"), optimize=True)
