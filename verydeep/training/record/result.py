"""What a training run ends with: the model file, the figures, and all that a report tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.labelled import Sample
from ...evaluation.figures import mean_average_precision


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The end of a run.

    folder: holds model.safetensors, report.html, log.jsonl, config.json and checkpoints/.
    model: the model file. classes: names, in the order of the scores.
    config: as config.json has it. log: the lines of log.jsonl, each with "event".
    top1, top5: fractions of the validation images, NaN where there are none.
    val: the validation samples that could be read, whose probabilities are (n, classes) float32 and whose
    labels are (n,) int64, in the same order; where an image may be of several, (n, classes) of 0 and 1,
    top1 and top5 are NaN, and thresholds has a probability for each class.
    warnings: of the data. bad: (name, why) of images that could not be read.
    seconds: of training, those before a resume included.
    """

    folder: Path
    model: Path
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    top1: float
    top5: float
    val: tuple[Sample, ...]
    probabilities: NDArray[np.float32]
    labels: NDArray[Any]
    warnings: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    seconds: float
    thresholds: tuple[float, ...] = ()

    @property
    def mean_average_precision(self) -> float:
        """Of images that may be of several classes; NaN for others, or where there are none."""
        if self.labels.ndim == 1:
            return float("nan")
        return mean_average_precision(self.probabilities, self.labels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: None where there was nothing to validate with."""
        figures = {
            "model": str(self.model), "top1": self.top1, "top5": self.top5, "n": len(self.labels),
            "seconds": round(self.seconds, 1), "bad": len(self.bad),
        }  # fmt: skip
        if self.labels.ndim == 2:
            figures["mean_average_precision"] = self.mean_average_precision
        return {k: None if v != v else v for k, v in figures.items()}

    def __str__(self) -> str:
        count, figures = len(self.labels), "no images to validate with"
        if self.labels.ndim == 2 and count and not self.labels.any():
            figures = f"{count} images to validate with are of no class"
        elif self.labels.ndim == 2 and count:
            figures = f"mean average precision {self.mean_average_precision:.2%} of {count} images"
        elif count:
            top5 = (
                f", top-5 {self.top5:.2%}" if len(self.classes) > 5 else ""
            )  # of five, it is all of them
            figures = f"top-1 {self.top1:.2%}{top5} of {count} images"
        return f"{self.model}: {figures}"
