"""Recognise the famous failure: a deep VGG whose loss stands at ln K, the loss of knowing nothing.

arXiv:1409.1556, section 3.1: deep nets without batch norm do not learn from small random numbers, since
gradients fade on the way down; that is why the paper started D and E from a trained A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

STEPS = 300  # without a change
TOLERANCE = 0.01  # of ln K


class Stuck:
    """Watches the log's lines; calling it gives the explanation once, at the time it is due, else None."""

    def __init__(self, classes: int, batch_norm: bool) -> None:
        self._chance, self._classes, self._batch_norm = math.log(classes), classes, batch_norm
        self._since = 0  # the first step of those near chance, without one between that is not
        self._told = False

    def __call__(self, line: Mapping[str, Any]) -> str | None:
        if line.get("event") != "step" or self._told:
            return None
        if abs(line["loss"] - self._chance) > TOLERANCE * self._chance:
            self._since = 0
            return None
        self._since = self._since or line["step"]
        steps = line["step"] - self._since
        if steps < STEPS:
            return None
        self._told = True
        advice = (
            "lower the rate, or look whether labels and images belong together"
            if self._batch_norm
            else "draw the weights as He et al. do (--set start=he), take a network with batch norm "
            "(--model vgg16_bn), or start from trained weights, as the paper did from its net A (--init)"
        )
        return (
            f"for {steps} steps the loss has stood at {line['loss']:.3f} = ln {self._classes}, that of "
            f"answering anything with equal probability: the network is not learning; {advice}"
        )
