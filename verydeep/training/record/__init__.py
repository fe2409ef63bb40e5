"""What a run leaves behind: its folder, log, checkpoints and figures."""

from __future__ import annotations
