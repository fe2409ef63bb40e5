"""Makes training_curve.json, the losses of 20 steps of a tiny network.

    python -m tests.golden.training_curve_make

The test trains again and compares, so that no change of what training computes goes unseen. Where a change
is meant, run this and say so in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from verydeep.datasets import labelled
from verydeep.models import build
from verydeep.preprocess import Preprocess
from verydeep.training.data.feed import Feed
from verydeep.training.data.views import pictures
from verydeep.training.learner import Learner
from verydeep.training.loop import Position, fit
from verydeep.training.recipes import changed, small_images

from ..labelled import FIT, images, in_memory


def curve() -> list[float]:
    """The mean loss of each step."""
    config = changed(
        small_images(), {"precision": "fp32", "layout": "default", "batch": 16, "epochs": 4,
                         "rate": 0.02, "warmup": 1.0, "mixup": 0.2, "dropout": 0.0, "optimiser": "sgd",
                         "schedule": "cosine", "grow": (), "size": 32},
    )  # fmt: skip
    pixels, labels = images(80, seed=7)
    samples = [labelled.Sample(p, int(k)) for p, k in zip(pixels, labels, strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("vgg11_bn", classes=3, head="small", width=1 / 16, init="glorot", dropout=0.0)
        learner = Learner(model, config, Preprocess(), torch.device("cpu"))
        feed = Feed(in_memory(pictures(samples, FIT), config), config)
        lines: list[dict[str, Any]] = []
        fit(learner, feed, Position(), event=lines.append, every=1)
    return [line["loss"] for line in lines if line["event"] == "step"]


if __name__ == "__main__":
    path = Path(__file__).with_name("training_curve.json")
    path.write_text(json.dumps([round(value, 5) for value in curve()]) + "\n")
