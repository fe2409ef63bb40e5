"""Training: recipes, and the loop that follows them.

`data` is what comes in, `record` what a run leaves behind; `probe` solves a head on what a trained trunk
makes of photos, where the loop trains whole networks.
"""

from __future__ import annotations
