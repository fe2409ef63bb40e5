"""Labelled images as a network learns from them: read, augmented, and fed to the loop a step at a time."""

from __future__ import annotations
