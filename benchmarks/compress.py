"""VGG-16's published convolutions made small without retraining, against others, in one run.

    python benchmarks/compress.py --photos DIR --count 512 --pixels 160 --out FILE --nncodec PYTHON
    python benchmarks/compress.py --photos DATA/train --data DATA --rows fitted gptq --nncodec PYTHON ...

Half of the photos calibrate. Rows, each with its bytes and the relative L2 error of relu5_3 against float32
on the other half. With --data also how many of its photos to validate a fixed classifier has right, and of
how many it says what it says of float32's features. That classifier is a logistic regression on averages of
relu5_3, float32, of every second photo to train on. Rows:

- verydeep: `verydeep.compression`, at several coarsenesses, before and after the fitting walk;
  with steps shared between layers as the command shares them;
- plain: a step a layer (a quarter of it in the first two blocks), nearest multiples;
- gptq: plain rate-aware GPTQ, the same steps as plain, the same moments as ours; both by an adaptive
  arithmetic coder of order 0;
- nncodec: PyPI's, at several qp, where a Python that has it is given; and the same with its biases put
  right, as ours are and as it does not: by what rounding does to the mean.

The convolutions come by tools/sources.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from sources import published_vgg16

from verydeep import compression
from verydeep.compression.rounding import SLOPE
from verydeep.datasets import labelled, unlabelled
from verydeep.modelfile import Record, read, write
from verydeep.nets import Layer, network
from verydeep.preprocess import TORCHVISION
from verydeep.quantisation import Draft, output_error, photos
from verydeep.quantisation.rounding import compensate, factor


def trunk(folder: Path, pixels: int, cache: Path) -> Path:
    net = network("vgg16", classes=0)
    source = published_vgg16(cache)
    tensors = {
        f"{layer.key}.{part}": source[f"{layer.name}.{part}"]
        for layer in net.layers if layer.key for part in ("weight", "bias")
    }  # fmt: skip
    path = folder / "vgg16.safetensors"
    size = replace(TORCHVISION, resize_size=pixels, crop_size=pixels)
    write(path, Record(net, preprocess=size), tensors)
    return path


def order_0(numbers: np.ndarray) -> float:
    """Bytes of an adaptive arithmetic coder without contexts: its counts begin with one of each symbol."""
    from math import lgamma, log

    counts = np.bincount((numbers - numbers.min()).ravel())
    nats = lgamma(counts.sum() + len(counts)) - lgamma(len(counts))
    nats -= sum(lgamma(count + 1) for count in counts)
    return nats / log(2) / 8


def plain_gptq(weight: np.ndarray, step: float, moments: np.ndarray | None) -> np.ndarray:
    """Multiples of one step, by least squared error plus SLOPE times the bits of an order-0 model."""
    flat = weight.reshape(len(weight), -1) / step
    counts = np.ones(2 * 4096 + 1)
    rounded = np.clip(np.rint(flat), -4096, 4096).astype(int) + 4096
    counts += np.bincount(rounded.ravel(), minlength=len(counts))
    bits = np.log2(counts.sum() / counts)
    chosen = np.zeros(flat.shape, np.int16)

    def decide(column: int, values: np.ndarray) -> np.ndarray:
        low = np.clip(np.floor(values), -4095, 4095)
        options = np.stack([low, low + 1, np.zeros_like(low)])
        cost = np.square(values - options) + SLOPE * bits[options.astype(int) + 4096]
        best = np.take_along_axis(options, cost.argmin(0)[None], 0)[0]
        chosen[:, column] = best
        return best

    if moments is None:
        for column in range(flat.shape[1]):
            decide(column, flat[:, column])
    else:
        order = np.argsort(-np.diagonal(moments), kind="stable")
        compensate(flat, order, factor(moments, order), decide)
    return chosen.reshape(weight.shape)


class Classifier:
    """A fixed one, learnt on what float32's trunk gives, and what it says of another trunk's."""

    def __init__(self, work: compression._Work, data: Path) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.work = work
        found = labelled.find(str(data))
        images, labels = [], []
        pixels = work.model.record.preprocess.pixels
        for part in (found.train[::2], found.val):  # half of them say enough
            images.append([pixels(labelled.open(one)) for one in part])
            labels.append([one.label for one in part])
        self.images, self.labels = images[1], np.array(labels[1])
        self.solved = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        self.solved.fit(self.averages(work.reference, images[0]), labels[0])
        self.theirs = self.answers(work.reference)

    def averages(self, draft: Draft, images: list[np.ndarray]) -> np.ndarray:
        """Of relu5_3, (images, channels)."""
        last = self.work.last
        batches = draft.run(draft.graph((last,), int8=False), images)
        return np.concatenate([batch[last].mean((2, 3)) for batch in batches])

    def answers(self, draft: Draft) -> np.ndarray:
        return np.asarray(self.solved.predict(self.averages(draft, self.images)))

    def figures(self, draft: Draft) -> dict[str, float]:
        """Shares of the photos to validate."""
        found = self.answers(draft)
        return {
            "accuracy": round(float((found == self.labels).mean()), 4),
            "agreement": round(float((found == self.theirs).mean()), 4),
        }


class Race:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.model = read(trunk(folder, args.pixels, args.cache))
        record = self.model.record
        first, second, _ = photos(record.preprocess, unlabelled.photos(args.photos), (), args.count)
        self.work = compression._Work(self.model, (first, second), None, args.threads)
        self.rows: list[dict[str, object]] = []
        self.began = time.time()
        self.classifier = Classifier(self.work, args.data) if args.data else None
        weights = sum(self.work._weight(layer).size for layer in self.work.layers)
        self.row("float32", 4 * weights, self.work.reference)
        self.work.steps = self.work.share()

    def row(self, who: str, size: float, draft: Draft, **more: object) -> None:
        """Measure the draft; size: in bytes."""
        assert self.work.theirs is not None
        error = output_error(self.work._outputs(draft, self.work.check), self.work.theirs)
        figures = self.classifier.figures(draft) if self.classifier else {}
        row = {"who": who, "bytes": round(size), "relu5_3": round(error, 5), **figures, **more}
        self.rows.append(row)
        print(f"{time.time() - self.began:6.0f} s", row, flush=True)

    def verydeep(self, coarseness: float, fitted: bool) -> None:
        one = self.work.trial(coarseness, fitted)
        path = self.folder / "trial.safetensors"
        write(path, self.model.record, one.tensors)
        draft = replace(self.work.reference, stored=read(path).decoded())
        self.row("verydeep", one.size, draft, coarseness=coarseness, fitted=fitted)

    def other(self, who: str, step: float, gptq: bool) -> None:
        """A step a layer, as a share of its deviation; a quarter of it in the first two blocks."""
        draft = replace(self.work.reference, stored=dict(self.work.reference.stored))
        size = 0.0
        for layer in self.work.layers:
            weight = self.work._weight(layer)
            own = step * float(weight.std()) / (4 if layer.name[4] in "12" else 1)
            known = self.work.known.get(layer.name)
            moments = known.moments if gptq and known else None
            q = plain_gptq(weight, own, moments) if gptq else np.rint(weight / own).astype(np.int16)
            size += order_0(q) + 4 * len(q)
            self.put(draft, layer, (q * np.float32(own)).astype(np.float32))
        self.row(who, size, draft, step=step)

    def put(self, draft: Draft, layer: Layer, new: np.ndarray, biases: bool = True) -> None:
        """Rounded weights in place of a layer's, and on its bias what that does to the mean."""
        weight, known = self.work._weight(layer), self.work.known.get(layer.name)
        draft.stored[f"{layer.key}.weight"] = new
        if known and biases:
            shift = (weight - new).reshape(len(weight), -1) @ known.mean
            key = f"{layer.key}.bias"
            draft.stored[key] = (draft.stored[key] + shift).astype(np.float32)

    def nncodec(self, python: Path, qp: int) -> None:
        """In an environment of its own, since it asks for numpy below 2."""
        weights = {layer.name: self.work._weight(layer) for layer in self.work.layers}
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/in.npz", **weights)
            subprocess.run([python, "-c", NNCODEC, folder, str(qp)], check=True)
            size = Path(folder, "stream").stat().st_size
            with np.load(f"{folder}/out.npz") as found:
                rounded = {name: found[name].astype(np.float32) for name in weights}
        for who, biases in (("nncodec", False), ("nncodec, biases put right", True)):
            draft = replace(self.work.reference, stored=dict(self.work.reference.stored))
            for layer in self.work.layers:
                new = rounded[layer.name].reshape(weights[layer.name].shape)
                self.put(draft, layer, new, biases=biases)
            self.row(who, size, draft, qp=qp)


ROWS = ("fitted", "unfitted", "gptq", "plain")
NNCODEC = """
import sys
import numpy as np
from nncodec.nn import decode, encode

folder, qp = sys.argv[1:]
weights = dict(np.load(f"{folder}/in.npz"))
stream = bytearray(encode(weights, {"qp": int(qp), "results": folder, "verbose": False}))
open(f"{folder}/stream", "wb").write(stream)
np.savez(f"{folder}/out.npz", **{key: np.asarray(value) for key, value in decode(stream).items()})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--nncodec", type=Path, help="a Python that has it")
    parser.add_argument("--qp", type=int, nargs="*", default=[-44, -40, -36, -32])
    parser.add_argument("--coarse", type=float, nargs="*", default=[0.25, 0.5, 1, 2, 4])
    parser.add_argument(
        "--gptq-coarse", type=float, nargs="*", help="of plain and gptq, where others"
    )
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, help="beside nncodec's")
    parser.add_argument("--data", type=Path, help="labelled photos, by which a classifier judges")
    parser.add_argument("--cache", type=Path, default=Path("build/sources"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        race = Race(args, Path(folder))
        for qp in args.qp if args.nncodec else ():
            race.nncodec(args.nncodec, qp)
        for coarseness in args.coarse:
            for who in ("fitted", "unfitted"):
                if who in args.rows:
                    race.verydeep(coarseness, who == "fitted")
        for coarseness in args.coarse if args.gptq_coarse is None else args.gptq_coarse:
            for who in ("gptq", "plain"):
                if who in args.rows:
                    race.other(who, coarseness / 8, who == "gptq")
    if args.out:
        args.out.write_text(json.dumps({"rows": race.rows, "command": sys.argv[1:]}, indent=1))


if __name__ == "__main__":
    main()
