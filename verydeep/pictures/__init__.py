"""What pictures and pages are made with, and how they become files: by the ending of their name."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from ..errors import OutputError
from ..files.atomic import replacing

# ending of the name -> how Pillow writes it; a PNG packed half as small would take six times as long
PICTURES: dict[str, dict[str, object]] = {
    ".png": {"format": "PNG", "compress_level": 1},
    ".jpg": {"format": "JPEG", "quality": 92},
    ".jpeg": {"format": "JPEG", "quality": 92},
}
LONGEST_JPEG = 65500  # pixels a side, of libjpeg
PAGES, FIGURES = (".html", ".htm"), (".svg",)


def require_ending(path: str | os.PathLike[str], endings: tuple[str, ...]) -> str:
    """The ending of a file's name, in lower case; OutputError where it is not one of these."""
    suffix = Path(path).suffix.lower()
    if suffix not in endings:
        raise OutputError(f"{os.fspath(path)}: expected a name that ends in {' or '.join(endings)}")
    return suffix


def require_picture(path: str | os.PathLike[str]) -> str:
    """The ending of a picture's name; OutputError where no picture is written by it."""
    return require_ending(path, tuple(PICTURES))


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture by its name's ending, whole or not at all. OutputError where that cannot be."""
    options = PICTURES[require_picture(path)]
    if options["format"] == "JPEG" and max(picture.size) > LONGEST_JPEG:
        raise OutputError(
            f"{os.fspath(path)}: {picture.width}x{picture.height} pixels are too many for a JPEG; "
            "name a .png file"
        )
    with replacing(path) as file:
        picture.save(file, **options)  # type: ignore[arg-type]


def write(text: str, path: str | os.PathLike[str], endings: tuple[str, ...] = PAGES) -> None:
    """Write a page, or what else is text, by a name with one of these endings, as `save` does."""
    require_ending(path, endings)
    # names of files may hold what is no UTF-8
    with replacing(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(text)
