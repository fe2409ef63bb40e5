"""A linear head solved on averages of a trunk's layers: the averages, the solver, what folds choose."""

from __future__ import annotations
