"""Training: data, recipes, the loop, checkpoints, and what is told about all of them."""

from __future__ import annotations
