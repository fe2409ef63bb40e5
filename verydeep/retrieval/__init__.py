"""Photos by what a network sees in them: features kept in a file, the nearest found, duplicates listed."""

from __future__ import annotations

from .doubles import Duplicates, Group, Member, duplicates
from .extraction import features
from .featurefile import About, FeatureFile, open_features
from .nearest import Match, Neighbours, contact_sheet, similar

__all__ = [
    "About", "Duplicates", "FeatureFile", "Group", "Match", "Member", "Neighbours", "contact_sheet",
    "duplicates", "features", "open_features", "similar",
]  # fmt: skip
