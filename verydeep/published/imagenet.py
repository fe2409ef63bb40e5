"""ImageNet's 1000 classes, in the order that every published network scores them.

`imagenet.tsv` holds one class a line: its WordNet id, a tab, its name. The ids are those of ILSVRC 2012
(Russakovsky et al., arXiv:1409.0575), which numbers the classes in the order of their ids; the names
are torchvision's (`_IMAGENET_CATEGORIES`, BSD-3-Clause), which tell apart the two cranes and the two
maillots.
"""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def _rows() -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = (
        resources.files("verydeep.published").joinpath("imagenet.tsv").read_text(encoding="utf-8")
    )
    ids, names = zip(*(line.split("\t") for line in text.splitlines()), strict=True)
    return ids, names


def class_ids() -> tuple[str, ...]:
    """The 1000 WordNet ids, "n01440764" first."""
    return _rows()[0]


def class_names() -> tuple[str, ...]:
    """The 1000 names, "tench" first; all different."""
    return _rows()[1]
