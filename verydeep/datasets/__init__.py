"""Labelled images wherever they lie: found, told apart, divided, and looked through for what is wrong."""

from __future__ import annotations
