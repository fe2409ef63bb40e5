"""Labelled images: found, checked, read, augmented, and fed to the loop a step at a time."""

from __future__ import annotations
