"""Places for results, made and tried before the work whose results they are to hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..errors import OutputError


def output_folder(path: Path) -> Path:
    """The folder, made where there is none. OutputError where files cannot be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise OutputError(f"{path}: a file, and a folder is needed; name another") from None
    except NotADirectoryError:
        raise OutputError(f"{path}: lies in a file, not in a folder; name another") from None
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; choose a folder you may write to"
        ) from error
    return path


def output_file(path: Path) -> Path:
    """The path of a file to be written. OutputError where its folder does not take one."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path}: a folder, and a file is needed; name one in it")
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written: there is no folder {folder}; make it first")
    output_folder(folder)
    return path


class Names:
    """Names for files in a folder, each given once: photos of two folders may bear the same name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._given: dict[str, int] = {}

    def __call__(self, stem: str, suffix: str) -> Path:
        count = self._given[stem.casefold()] = self._given.get(stem.casefold(), 0) + 1
        return self.folder / f"{stem}{f'-{count}' if count > 1 else ''}{suffix}"
