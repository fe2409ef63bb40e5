"""How right `probe` is on small sets, beside scikit-learn's LogisticRegressionCV on the same layers.

    python benchmarks/small_sets.py TRAIN VAL [--name NAME] [--each 20 40 60] [--draws 5]
                                              [--out FILE.json [--add]]

TRAIN and VAL are folders of class folders. --each: so many photos of each class are drawn from TRAIN, by
seeds 0, 1 and so on; without it all of TRAIN is one set. On each of them the command `verydeep train` makes
its model with the probe's own defaults. scikit-learn then learns from the same photos at the same size:
from averages of the layers that the probe chose, standardised, its penalty chosen by five folds and
log-loss. Both answer the same photos of VAL, one view of each. The features that scikit-learn gets are
compared with whole maps in `exact`, averaged by numpy. --add keeps what FILE.json has of other sets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from machine import ENGINES, report

import verydeep
from verydeep import modelfile
from verydeep.datasets import labelled
from verydeep.probing.features import averages

COMPARED = 8  # photos whose features are computed a second time
PARITY = 3e-2  # relative error, as `half` is promised


def drawn(train: Path, each: int, seed: int, folder: Path) -> None:
    """A folder of so many photos of each class."""
    for kind in sorted(path for path in train.iterdir() if path.is_dir()):
        photos = sorted(kind.iterdir())
        order = np.random.default_rng(seed).permutation(len(photos))[:each]
        (folder / kind.name).mkdir(parents=True)
        for at in order:
            shutil.copy(photos[at], folder / kind.name)


def probed(train: Path, val: Path, folder: Path) -> tuple[dict[str, object], Path]:
    """The command's result and the model file."""
    command = [sys.executable, "-m", "verydeep", "train", str(train), "--val", str(val), "--recipe"]
    done = subprocess.run(
        [*command, "probe", "--out", str(folder), "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout), folder / "model.safetensors"


def parity(
    predictor: verydeep.Predictor, photos: list[labelled.Sample], layers: tuple[str, ...],
    size: tuple[int, int], values: np.ndarray,
) -> float:  # fmt: skip
    """Relative error of kept features against whole maps, computed in `exact` and averaged here."""
    exact = verydeep.load(predictor.model.path, precision="exact")
    maps = exact.features([str(photo.source) for photo in photos], layers, size=size)
    expected = np.concatenate([maps[name].mean(axis=(2, 3)) for name in layers], axis=1)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def compared(train: Path, val: Path, folder: Path) -> dict[str, object]:
    """Both classifiers on one set."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    told, path = probed(train, val, folder)
    record = modelfile.read(path).record
    layers, side = record.network.head.layers, record.preprocess.resize_size
    assert isinstance(side, int)
    size = (side, side)
    data = labelled.find(train, val)
    trunk = verydeep.load("builtin", precision="half")
    learnt, judged = (averages(trunk, part, layers, size=size) for part in (data.train, data.val))
    assert not learnt.faults
    assert not judged.faults
    error = parity(trunk, list(data.val[:COMPARED]), layers, size, judged.values[:COMPARED])
    assert error <= PARITY, f"features differ by {error:.1e}"
    other = make_pipeline(
        StandardScaler(), LogisticRegressionCV(cv=5, scoring="neg_log_loss", max_iter=1000)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings whose defaults will change
        other.fit(learnt.values, [sample.label for sample in data.train])
    answers = other.predict(judged.values)
    count = len(data.val)
    right = int((answers == [sample.label for sample in data.val]).sum())
    return {
        "photos": len(data.train), "judged": count, "layers": list(layers), "size": side,
        "parity": float(f"{error:.1e}"), "probe_right": round(float(str(told["top1"])) * count),
        "sklearn_right": right,
    }  # fmt: skip


def summary(sets: list[dict[str, object]]) -> dict[str, object]:
    """Means over the draws, in percent, with their standard errors."""
    rows = np.array(
        [[float(str(s[k])) for k in ("probe_right", "sklearn_right", "judged")] for s in sets]
    )
    own, other = 100 * rows[:, :2].T / rows[:, 2]
    error = {"standard_error": round(float((own - other).std(ddof=1) / len(sets) ** 0.5), 2)}
    return {
        "draws": len(sets), "probe": round(float(own.mean()), 2), "sklearn": round(float(other.mean()), 2),
        "difference": round(float((own - other).mean()), 2), **(error if len(sets) > 1 else {}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--each", type=int, nargs="+", default=[0])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--name")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--add", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.out.read_text())["results"] if args.add else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("VERYDEEP_CACHE", str(folder / "cache"))  # else what is there is used
        for each in args.each:
            sets = []
            for seed in range(args.draws if each else 1):
                train = args.train
                if each:
                    train = folder / f"{each}-{seed}"
                    drawn(args.train, each, seed, train)
                sets.append(compared(train, args.val, folder / f"run-{each}-{seed}"))
                print(each, seed, sets[-1], file=sys.stderr, flush=True)
            found.append({"name": args.name, "each": each or None, **summary(sets), "sets": sets})
    report("small_sets", {"results": found}, args.out, *ENGINES, "scikit-learn", "pillow")


if __name__ == "__main__":
    main()
