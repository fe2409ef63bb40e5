"""Published weights: where they are, how they arrive whole, whose they are, how they are read.

Here is the way from what a person calls a model to its file: one that ships in the package, a published
one, a path.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ArgumentError, ModelFileError, nearest
from ..files.strict_json import shown
from ..files.wording import quoted

BUILTIN = Path(__file__).parents[1] / "builtin"


def builtin_models() -> dict[str, Path]:
    """The models that ship in the package, by the name `load` takes: "builtin" is the VGG-16."""
    models = {"builtin": BUILTIN / "vgg16.safetensors"}
    for file in sorted(BUILTIN.glob("*.safetensors")):
        if file not in models.values():
            models[f"builtin/{file.stem}"] = file
    return models


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The model file of a built-in's or catalogue name, a run's folder, or a path; else ModelFileError, of
    what is neither text nor a path ArgumentError.

    A run's folder stands for the model that `verydeep train` left in it. A catalogue name means the
    published weights, fetched and converted where that is needed, unless a file has that name; a folder of
    that name changes nothing. With a separator ("./vgg16") it is a path, and so is a pathlib.Path, which
    drops "./".
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ArgumentError(f"the model is {shown(name_or_path)}; expected a name or a path")
    name = os.fsdecode(name_or_path)
    models = builtin_models()
    if (ours := name.replace(os.sep, "/")) in models:  # on Windows a Path turns the separator
        return models[ours]
    path, there = Path(name), os.path.exists(name)  # which is False of names that no disk takes
    told = isinstance(name_or_path, Path) or path.suffix or os.path.basename(name) != name
    if told or (there and not os.path.isdir(name)):
        return _in_run(path)
    from . import catalog, supply

    if name in catalog.ENTRIES:
        return supply.obtain(name)
    if there:
        return _in_run(path)
    raise ModelFileError(
        f"no model {name!r}: neither a file, nor a built-in, nor in the catalogue"
        f"{nearest(name, [*models, *catalog.ENTRIES])}"
    )


def _in_run(path: Path) -> Path:
    """The model of a run's folder; any other path is itself: reading it says what is wrong with it."""
    if not os.path.isfile(path / "config.json"):
        return path
    model = path / "model.safetensors"
    if not os.path.isfile(model):
        raise ModelFileError(
            f"{path}: the run in this folder has no model yet; finish it with: "
            f"verydeep train --resume --out {quoted(path)}"
        )
    return model
