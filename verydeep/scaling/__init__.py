"""Millions of images, by a Ray cluster: folders of Parquet files, and a map over any Ray Dataset."""

from __future__ import annotations

from .dataset import mapped
from .job import Scaled, classify, features

__all__ = ["Scaled", "classify", "features", "mapped"]
