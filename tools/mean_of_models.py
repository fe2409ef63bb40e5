"""The mean of several model files' weights, its batch norms' statistics measured anew.

    python tools/mean_of_models.py DATA OUT MODEL MODEL [MODEL ...]

Networks that one training run started from another, at a low rate, often lie in one basin, and their mean
answers better than each (Wortsman et al., "Model soups", arXiv:2203.05482). All are of one network and
pre-processing. DATA: labelled images as `verydeep train` takes them; some of those to train on, without
their labels, say what batch norms see. Ends with the accuracy of each on those to validate with.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from verydeep import modelfile
from verydeep.datasets import labelled
from verydeep.evaluation import evaluate

BATCH, BATCHES = 256, 20


def mean(paths: list[Path]) -> tuple[modelfile.Record, dict[str, np.ndarray]]:
    """The first one's record, and the mean of all their tensors."""
    files = [modelfile.read(path) for path in paths]
    first, *others = files
    for other in others:
        for what in ("network", "preprocess", "class_names", "class_ids"):
            if getattr(other.record, what) != getattr(first.record, what):
                raise SystemExit(f"{other.path} has another {what} than {first.path}")
    if first.record.thresholds or first.record.activations:
        raise SystemExit(f"{first.path} has thresholds or int8 activations, which have no mean")
    tensors = [one.tensors() for one in files]
    record = replace(
        first.record, threshold=None, least_mean=None, measured=(),
        provenance={"mean_of": [one.sha256 for one in files]},
    )  # fmt: skip
    return record, {
        name: np.mean([one[name] for one in tensors], axis=0, dtype=np.float64).astype(value.dtype)
        for name, value in tensors[0].items()
    }


def measure(record: modelfile.Record, path: Path, data: Path) -> None:
    """Batch norms' statistics of the file at `path`, from images to train on; the file is written anew."""
    import torch

    from verydeep import models

    samples = labelled.find(data).train
    model = models.load(path).eval()
    for norm in (one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(BATCHES):
            some = draw.choice(len(samples), min(BATCH, len(samples)), replace=False)
            pixels = [record.preprocess.pixels(labelled.open(samples[at])) for at in some]
            model(torch.from_numpy(record.preprocess.normalise(np.stack(pixels))))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    modelfile.write(path, record, state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    words = parser.parse_args()
    about, weights = mean(words.models)
    modelfile.write(words.out, about, weights)
    if about.network.batch_norm:
        measure(about, words.out, words.data)
    for one in (*words.models, words.out):
        print(one, evaluate(one, words.data), flush=True)
