"""Learning from what a trained trunk makes of photos: `probe` solves a head, `finetune` moves blocks."""

from __future__ import annotations
