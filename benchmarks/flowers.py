"""How small a whole VGG-16 becomes, and how fast a classifier, for at most a point of accuracy on flowers.

    python benchmarks/flowers.py size DATA --folder F [--out FILE]
    python benchmarks/flowers.py speed DATA --folder F [--speedup 4] [--out FILE]

DATA: a folder with train/ and val/. F keeps what was made: a run that was stopped goes on with that.

size: the published convolutions, untouched, with the classic head: 138 M weights, of which fc6 to fc8 are
learnt here from random ones, on pool5 of the photos, by AdamW, whose decay takes what nothing is learnt
from to 0. Then `verydeep compress --size 11MB`. No timing.

speed: what `verydeep train` makes by `probe`; then `verydeep compress --speedup 3`; then the recipe
`finetune`, the first as the teacher, without mixed images (TUNED). Both are timed by turns in the engine
that is the quickest for the first, and answer the same photos of val/: how many each alone has right says
whether that is chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import ENGINES, report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from sources import published_vgg16

import verydeep
from verydeep import modelfile
from verydeep.benching import against
from verydeep.datasets import labelled
from verydeep.evaluation.figures import paired_interval
from verydeep.files.atomic import replacing
from verydeep.nets import network
from verydeep.preprocess import TORCHVISION

RATE, DECAY, STEPS, BATCH, DROPOUT = 5e-4, 40.0, 500, 128, 0.5
BYTES = 11_000_000
# finetune's own rate is for a trunk that is whole: a pruned one has more to learn, and does so from a
# teacher, whose answers on mixed images say little
TUNED = {"blocks": 0, "cutmix": 0.0, "rate": 3e-4, "head_rate": 1e-3, "epochs": 12}


def tell(event: object) -> None:
    print(event, file=sys.stderr, flush=True)


def maps(trunk: Path, samples: Sequence[labelled.Sample], cache: Path) -> np.ndarray:
    """pool5 of the photos, (photos, 25088) float16."""
    if not cache.exists():
        with verydeep.load(trunk) as predictor:
            rows = predictor.features_stream(map(labelled.open, samples), "pool5")
            values = [np.asarray(row["pool5"], np.float16).ravel() for row in rows]  # type: ignore[index]
        with replacing(cache) as file:
            np.save(file, np.stack(values))
    return np.asarray(np.load(cache))


def learnt(values: np.ndarray, labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Weight and bias of fc6, fc7 and fc8, from torchvision's random ones."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes = [(values.shape[1], 4096), (4096, 4096), (4096, classes)]
    layers = [nn.Linear(*size) for size in sizes]
    for layer in layers:
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)
    drop = nn.Dropout(DROPOUT)
    net = nn.Sequential(layers[0], nn.ReLU(), drop, layers[1], nn.ReLU(), drop, layers[2])
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)
    draw = np.random.default_rng(0)
    for step in range(STEPS):
        rate = RATE * min(1, step / 40) * min(1, 2 * (1 - step / STEPS))
        for group in optimiser.param_groups:
            group["lr"] = rate
        some = draw.integers(len(values), size=BATCH)
        x = torch.from_numpy(values[some].astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            scores = net(x)
        loss = nn.functional.cross_entropy(scores.float(), torch.from_numpy(labels[some]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            print(f"step {step} of {STEPS}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return [part.detach().numpy() for layer in layers for part in (layer.weight, layer.bias)]


def classic(data: Path, folder: Path, cache: Path) -> Path:
    """The model file with 138 M weights."""
    path = folder / "classic.safetensors"
    if path.exists():
        return path
    found = labelled.find(data)
    labels = np.array([sample.label for sample in found.train])
    net = network("vgg16", classes=len(found.classes))
    source = published_vgg16(cache)
    tensors = {
        f"{layer.key}.{part}": source[f"{layer.name}.{part}"]
        for layer in net.layers if layer.kind == "conv" for part in ("weight", "bias")
    }  # fmt: skip
    trunk = folder / "trunk.safetensors"
    modelfile.write(
        trunk, modelfile.Record(network("vgg16", classes=0), preprocess=TORCHVISION), tensors
    )
    values = maps(trunk, found.train, folder / "pool5.npy")
    numbers = iter(learnt(values, labels, len(found.classes)))
    for layer in net.layers:
        if layer.kind == "fc":
            tensors |= {f"{layer.key}.{part}": next(numbers) for part in ("weight", "bias")}
    record = modelfile.Record(net, preprocess=TORCHVISION, class_names=found.classes)
    modelfile.write(path, record, tensors)
    return path


def size(words: argparse.Namespace) -> dict[str, object]:
    data, folder = words.data, words.folder
    whole = classic(data, folder, words.cache)
    small = folder / "small.safetensors"
    result = verydeep.compress(
        whole, small, data=data, size=BYTES, resume=Path(f"{small}.work").exists(),
        on_event=tell,
    )  # fmt: skip
    tensors = modelfile.read(whole).decoded()
    small_weights = {
        key: float((np.abs(array) < 1e-4).mean())
        for key, array in tensors.items()
        if array.ndim == 2
    }
    return {
        "head": {"rate": RATE, "decay": DECAY, "steps": STEPS, "batch": BATCH, "dropout": DROPOUT},
        "share of weights below 1e-4": small_weights,
        "accuracy": right(whole, data)[1], "bytes": whole.stat().st_size,
        "small": {"met": result.met, "bytes": result.size_bytes, "drop": result.drop,
                  "drop_row": dict(result.figure("drop")), "layers": result.layers},
    }  # fmt: skip


def right(model: Path, data: Path, engine: str = "auto") -> tuple[list[bool], float]:
    """Whether each photo of val/ is answered right, and how many of them."""
    answers: list[bool] = []
    with verydeep.Predictor(modelfile.read(model), engine=engine) as predictor:
        measured = verydeep.evaluate(
            predictor, data, on_event=lambda event: answers.append(bool(event.get("right")))
        )
    return answers, measured.top1  # type: ignore[union-attr]


def speed(words: argparse.Namespace) -> dict[str, object]:
    data, folder, aim = words.data, words.folder, words.speedup
    runs = {"probe": folder / "probe", "tuned": folder / f"tuned-{aim:g}x"}
    whole, tuned = (run / "model.safetensors" for run in runs.values())
    if not whole.exists():
        verydeep.train("probe", data, out=runs["probe"], resume=runs["probe"].exists())
    pruned = folder / f"pruned-{aim:g}x.safetensors"
    if not pruned.exists():
        verydeep.compress(
            whole, pruned, calibrate=[data / "train"], speedup=aim,
            resume=Path(f"{pruned}.work").exists(),
            on_event=tell,
        )  # fmt: skip
    if not tuned.exists():
        verydeep.train(
            "finetune", data, out=runs["tuned"], init=pruned, resume=runs["tuned"].exists(),
            settings={"teacher": str(whole), **TUNED},
            event=tell,
        )  # fmt: skip
    with against(whole) as (engine, times):
        speeds = {"pruned": times(pruned), "tuned": times(tuned)}
    before, now = right(whole, data, engine), right(tuned, data, engine)
    better = sum(b > a for a, b in zip(before[0], now[0], strict=True))
    worse = sum(b < a for a, b in zip(before[0], now[0], strict=True))
    low, high = paired_interval(better, worse, len(now[0]))
    return {
        "asked": aim, "tuned by": TUNED, "engine": engine, "times as fast, one photo": speeds,
        "accuracy": {"whole": before[1], "pruned": right(pruned, data, engine)[1], "tuned": now[1]},
        "points lost": {"value": 100 * (before[1] - now[1]), "95 %": [100 * low, 100 * high]},
        "right alone": {"whole": worse, "tuned": better},
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("size", "speed"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/sources"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--speedup", type=float, default=3.0)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    measured = {"size": size, "speed": speed}[words.what](words)
    report(f"flowers: {words.what}", measured, words.out, "torch", *ENGINES)
