"""A GPU against torchvision and `lpips` in torch: answers, LPIPS, features of JPEGs, training steps.

    python benchmarks/gpu.py [--out gpu.json] [--seconds 220] [--rounds 7] [--only WORD ...]
    python benchmarks/gpu.py --device cpu --quick     a rehearsal: tiny, on the processor

Each row is checked before it is timed, and written as it comes: who is cut off keeps what there is.
float64 on the processor judges the scores; losses, gradients, features and the first training step are
compared. All entrants run in this process, in turns, each as many calls a turn as take 0.1 s, between two
waits for the device; ratios are medians of those within the rounds. Numbers come from, and go to, the
processor's memory. "TF32" is torch's own default, in which convolutions keep ten bits; the rest of the
answers is float32 or bfloat16. LPIPS and training are as torch comes. Under four minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from folder import make_photos
from machine import machine
from paced import paced
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import verydeep
from verydeep import models
from verydeep.engines import ENGINES, TOLERANCES, Engine, relative_error
from verydeep.errors import MissingExtraError
from verydeep.graphs import network as graph
from verydeep.graphs.writer import Graph
from verydeep.losses import LPIPS
from verydeep.nets import network
from verydeep.preprocess import TORCHVISION, sized
from verydeep.training.data.source import Batch
from verydeep.training.learner import Learner
from verydeep.training.measuring import Again
from verydeep.training.recipes import recipe

LAST, PLANES = torch.channels_last, torch.contiguous_format
LEAST_ROUNDS = 3
Call = Callable[[], Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """Where and how long. quick: tiny, to see that everything runs."""

    device: torch.device
    rounds: int
    row_seconds: float
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


def turns(told: Told, entrants: dict[str, Call], images: int) -> Row:
    """Milliseconds an image of each entrant, and how often faster than each of the others ours are."""
    counts: dict[str, int] = {}
    for name, call in entrants.items():
        for _ in range(1 if told.quick else 3):
            call()
        counts[name] = 1 if told.quick else max(1, round(0.1 / seconds(told, call, 2)))
    names = list(entrants)
    times: dict[str, list[float]] = {name: [] for name in names}
    until, number = time.monotonic() + told.row_seconds, 0
    while number < told.rounds and (number < LEAST_ROUNDS or time.monotonic() < until):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(told, entrants[name], counts[name]))
        number += 1

    def faster(name: str, other: str) -> float:
        pairs = zip(times[name], times[other], strict=True)
        return round(statistics.median(theirs / ours for ours, theirs in pairs), 3)

    ours = [name for name in names if name.startswith("verydeep")]
    others = [name for name in names if name not in ours]
    return {
        "rounds": number,
        "ms an image": {n: round(1e3 * statistics.median(t) / images, 4) for n, t in times.items()},
        "times as fast": {name: {other: faster(name, other) for other in others} for name in ours},
    }


def seconds(told: Told, call: Call, count: int) -> float:
    told.wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    told.wait()
    return (time.perf_counter() - began) / count


def peaks(told: Told, entrants: dict[str, Call]) -> Row:
    """MiB that torch allocates on the device in one call of each, beyond what lies there before."""
    if not told.cuda:
        return {}
    found = {}
    for name, call in entrants.items():
        told.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        told.wait()
        found[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    return {"peak MiB": found}


def apart(ours: Any, theirs: Any) -> float:
    ours, theirs = (torch.as_tensor(t).detach().cpu().double() for t in (ours, theirs))
    return float(f"{(ours - theirs).norm() / theirs.norm():.2g}")


def require(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(f"no parity: {what}")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's switch for convolutions; set alone, since `cudnn.flags` would set the others too."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def normalised(told: Told, pixels: Any, dtype: torch.dtype, layout: torch.memory_format) -> Any:
    """(n, h, w, 3) uint8 to the input of torchvision's networks, on the device."""
    mean, std = (torch.tensor(v, device=told.device)[:, None, None] for v in
                 (TORCHVISION.mean, TORCHVISION.std))  # fmt: skip
    x = torch.from_numpy(pixels).to(told.device).permute(0, 3, 1, 2).float()
    return ((x / 255 - mean) / std).to(dtype).contiguous(memory_format=layout)


def theirs_of(told: Told, name: str, classes: int = 1000) -> torch.nn.Module:
    """torchvision's network, random; in a rehearsal ours, a sixteenth as wide, which it does not have."""
    torch.manual_seed(0)
    if told.quick:
        return models.build(name, classes=classes, width=1 / 16)
    built: torch.nn.Module = getattr(torchvision.models, name)(num_classes=classes)
    return built


# Answers: VGG-16 with its classic head, uint8 pixels in, scores out


@dataclass(frozen=True)
class Answers:
    """The network as torch has it and as a graph; images, and float64's scores of the first few."""

    module: torch.nn.Module
    built: Graph
    pixels: np.ndarray
    truth: np.ndarray


def answers_of(told: Told) -> Answers:
    module = theirs_of(told, "vgg16").eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):  # so that scores are of the size of real ones
            torch.nn.init.kaiming_normal_(layer.weight)
    net = network("vgg16", width=1 / 16 if told.quick else 1)
    tensors = {key: value.numpy() for key, value in module.state_dict().items()}
    size, count = (64, 3) if told.quick else (224, 64)
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 3, size // 8, size // 8)).astype(np.float32)
    smooth = F.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic").clamp(0, 255)
    pixels = np.ascontiguousarray(smooth.round().byte().permute(0, 2, 3, 1).numpy())
    on_cpu = replace(told, device=torch.device("cpu"))
    with torch.inference_mode():
        truth = (
            copy.deepcopy(module)
            .double()(normalised(on_cpu, pixels[:2], torch.float64, PLANES))
            .numpy()
        )
    return Answers(module, graph.build(net, tensors, TORCHVISION), pixels, truth)


def answer(told: Told, given: Answers, precision: str, batch: int) -> Row:
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    pixels = given.pixels[:batch]
    others = {
        name: copy.deepcopy(given.module).to(told.device, dtype, memory_format=layout)
        for name, layout in (("torchvision", PLANES), ("torchvision channels-last", LAST))
    }

    def theirs(name: str, layout: torch.memory_format, allowed: bool) -> Any:
        with torch.inference_mode(), tf32(allowed):
            return others[name](normalised(told, pixels, dtype, layout)).float().cpu().numpy()

    calls: dict[str, Call] = {
        "torchvision": partial(theirs, "torchvision", PLANES, False),
        "torchvision channels-last": partial(theirs, "torchvision channels-last", LAST, False),
    }
    if precision != "half":
        calls["torchvision channels-last TF32"] = partial(
            theirs, "torchvision channels-last", LAST, True
        )
    source = Engine("torch", given.built, precision=precision, device="cpu").source
    for settings in ENGINES["torch"].variants(source, precision, 1, batch, told.device.type):
        engine = Engine(
            "torch", source, precision=precision, device=told.device.type, settings=settings
        )
        calls[" ".join(("verydeep", *settings))] = lambda e=engine: e.run(pixels)["scores"]
    few, errors = min(2, batch), {}
    for name, call in list(calls.items()):
        errors[name] = float(f"{relative_error(call()[:few], given.truth[:few]):.2g}")
        ours = name.startswith("verydeep")
        if ours and name != "verydeep" and not errors[name] <= TOLERANCES[precision]:
            del calls[name]  # as a race would do
    require(errors["verydeep"] <= TOLERANCES[precision], f"{precision} is not kept: {errors}")
    return {"error against float64": errors, **turns(told, calls, batch)}


# LPIPS, forward, and forward and backward to the first image, with the built-in convolutions


def lpips_of(told: Told) -> tuple[Any, Any]:
    """Ours and lpips' own, of the same weights."""
    try:
        import lpips
    except ImportError as error:
        raise MissingExtraError("comparing with lpips", "dev") from error
    parts = LPIPS(net="vgg").net.children()
    features = torch.nn.Sequential(*(layer for part in parts for layer in part))
    features.to(memory_format=PLANES)
    for module in features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True  # as torchvision has it
    kept, torchvision.models.vgg16 = (
        torchvision.models.vgg16,
        (lambda **_: SimpleNamespace(features=features)),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = lpips.LPIPS(net="vgg", verbose=False)
    finally:
        torchvision.models.vgg16 = kept
    return LPIPS(net="vgg").to(told.device), theirs.to(told.device)


def distance(told: Told, batch: int, backward: bool) -> Row:
    ours, theirs = lpips_of(told)
    size, batch = (32, min(batch, 2)) if told.quick else (256, batch)
    torch.manual_seed(0)
    y = F.interpolate(
        torch.rand(batch, 3, size // 8, size // 8) * 2 - 1, (size, size), mode="bilinear"
    )
    x = (y + 0.1 * torch.randn_like(y)).clamp(-1, 1).to(told.device).requires_grad_(backward)
    y = y.to(told.device)

    def call(loss: Any, target: Any) -> list[torch.Tensor]:
        with torch.set_grad_enabled(backward):
            value = loss(x, target)
            return [value, *(torch.autograd.grad(value.sum(), x) if backward else ())]

    with tf32(False):
        off = [apart(a, b) for a, b in zip(call(ours, y), call(theirs, y), strict=True)]
    require(off[0] <= 1e-5 and off[-1] <= 1e-2, f"LPIPS: {off}")
    calls: dict[str, Call] = {
        "lpips": partial(call, theirs, y),
        "verydeep": partial(call, ours, y),
        "verydeep remembered": partial(call, ours, ours.remember(y)),
    }
    names = ("values apart", "gradients apart")
    return {"size": size, "pairs": batch, **dict(zip(names, off, strict=False)),
            **turns(told, calls, batch), **peaks(told, calls)}  # fmt: skip


# Features: JPEGs on the disk to the averages of relu5_3, in numpy


class Photos(Dataset[torch.Tensor]):
    """As torchvision's documentation prepares them."""

    def __init__(self, paths: list[Path], record: Any) -> None:
        T = torchvision.transforms  # noqa: N806
        self.paths = paths
        self.prepare = T.Compose([
            T.Resize(record.resize_size), T.CenterCrop(record.crop_size), T.ToTensor(),
            T.Normalize(record.mean, record.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        ready: torch.Tensor = self.prepare(Image.open(self.paths[index]).convert("RGB"))
        return ready


def features(told: Told, workers: int) -> Row:
    count, size, batch = (8, 64, 4) if told.quick else (256, 224, 32)
    engine = "torch" if told.quick else "auto"
    with (
        tempfile.TemporaryDirectory() as name,
        verydeep.load(device=told.device.type, engine=engine) as predictor,
    ):
        make_photos(Path(name), count)
        paths = sorted(Path(name).iterdir())
        record = sized(predictor.record.preprocess, size)
        net = (
            models.vgg16(weights="builtin").features[:30].to(told.device, memory_format=LAST).eval()
        )
        loader = DataLoader(
            Photos(paths, record), batch, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=told.cuda,
        )  # fmt: skip

        def theirs(allowed: bool) -> np.ndarray:
            rows = []
            with torch.inference_mode(), tf32(allowed):
                for images in loader:
                    given = images.to(told.device, memory_format=LAST, non_blocking=True)
                    rows.append(net(given).mean((2, 3)))
                return torch.cat(rows).cpu().numpy()

        def ours() -> np.ndarray:
            stream = predictor.features_stream(paths, "relu5_3", "avg", size=size, batch=batch)
            return np.stack([one["relu5_3"] for one in stream])  # type: ignore[index]

        calls: dict[str, Call] = {
            "torchvision channels-last": partial(theirs, False),
            "torchvision channels-last TF32": partial(theirs, True),
            "verydeep auto": ours,
        }
        ours(), theirs(False)  # the engine is chosen, the workers have begun
        off = apart(ours(), theirs(False))
        require(off <= TOLERANCES["fast"], f"features: {off}")
        found = turns(told, calls, count)
    return {"photos": count, "size": size, "workers": workers, "engine": predictor.engine,
            "apart": off, **found}  # fmt: skip


# A training step, on uint8 images in the processor's memory, by SGD with momentum


def step(told: Told, name: str, size: int, batch: int, classes: int, precision: str) -> Row:
    if told.quick:
        size, batch = 64, 4
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (batch, size, size, 3), np.uint8)
    given = Batch(images, draw.integers(0, classes, batch))
    first = theirs_of(told, name, classes)
    module = models.build(name, classes=classes, width=1 / 16 if told.quick else 1)
    module.load_state_dict(first.state_dict())
    config = replace(recipe("paper"), batch=batch, size=size, precision=precision,
                     layout="channels-last", model=name)  # fmt: skip
    learner = Learner(module, config, TORCHVISION, told.device)

    def plain(net: torch.nn.Module, layout: torch.memory_format) -> Call:
        """The loop of torchvision's references/classification/train.py."""
        net = net.to(told.device, memory_format=layout)
        optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

        def one() -> float:
            x = normalised(told, given.images, torch.float32, layout)
            target = torch.from_numpy(given.labels).to(told.device)
            with torch.autocast(told.device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = net(x)
                loss = F.cross_entropy(output, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            _, guesses = output.topk(5, 1)  # its utils.accuracy
            correct = guesses.t().eq(target[None])
            for k in (1, 5):
                correct[:k].flatten().sum(dtype=torch.float32).item()
            return loss.item()

        return one

    last = copy.deepcopy(first)
    calls: dict[str, Call] = {
        "torchvision": plain(first, PLANES), "torchvision channels-last": plain(last, LAST),
        "verydeep": paced(learner, Again(given), 1e-3),
    }  # fmt: skip
    nets = (first, last, learner.model)
    for net in nets:  # without dropout, which draws its own numbers
        net.train()
        for layer in net.modules():
            layer.train(not isinstance(layer, torch.nn.Dropout))
    with tf32(False):
        losses = {key: float(call()) for key, call in calls.items()}
    heads = [net.classifier[0].weight for net in nets]
    moved = apart(heads[2], heads[1])
    off = abs(losses["verydeep"] / losses["torchvision"] - 1)
    require(off <= 2e-2 and moved <= 1e-3, f"the first step: {losses}, weights {moved}")
    for net in nets:
        net.train()
    return {"size": size, "batch": batch, "first loss": losses, "weights apart after it": moved,
            **turns(told, calls, batch), **peaks(told, calls)}  # fmt: skip


def rows_of(told: Told, workers: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row's name, and what measures it; what is wanted most comes first."""
    prepared: list[Answers] = []

    def answers(precision: str, batch: int) -> Row:
        if not prepared:
            prepared.append(answers_of(told))
        return answer(told, prepared[0], precision, batch)

    for batch in (1, 8, 64):
        for precision in ("exact", "half"):
            # on a GPU `fast` computes what `exact` does: TF32 is too far off for it
            name = "exact and fast, float32" if precision == "exact" else "half, bfloat16"
            yield f"answers, {name}, batch {batch}", partial(answers, precision, batch)
    for batch in (1, 16):
        yield f"lpips, forward, batch {batch}", partial(distance, told, batch, False)
        yield f"lpips, forward and backward, batch {batch}", partial(distance, told, batch, True)
    yield "features of JPEGs", partial(features, told, workers)
    for precision in ("fp32", "bf16"):
        for name, size, batch, classes in (("vgg16", 224, 32, 1000), ("vgg16_bn", 64, 128, 200)):
            yield (
                f"training step, {name} at {size}, {precision}",
                partial(step, told, name, size, batch, classes, precision),
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny: a rehearsal")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=220, help="after which no row is begun")
    parser.add_argument("--row-seconds", type=float, default=5, help="of turns, about")
    parser.add_argument("--workers", type=int, default=8, help="of torchvision's DataLoader")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="rows with one of these"
    )
    args = parser.parse_args()
    began = time.monotonic()
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not there.get(args.device, lambda: True)():
        raise SystemExit(
            f"no {args.device} device here; rehearse with --device cpu --quick, which times nothing real"
        )
    told = Told(torch.device(args.device), args.rounds, args.row_seconds, args.quick)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "machine": machine("torch", "torchvision", "lpips", "onnxruntime"),
        "card": {"name": args.device},
        "rehearsal": args.quick,
        "rows": [],
    }
    if told.cuda:
        about = torch.cuda.get_device_properties(told.device)
        result["card"] = {
            "name": about.name, "GiB": round(about.total_memory / 2**30),
            "multiprocessors": about.multi_processor_count,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    failed = False
    for name, measure in rows_of(told, args.workers):
        if not any(word in f"{name}," for word in args.only):
            continue
        start = time.monotonic()
        try:
            found = {"skipped": "time was up"} if start - began > args.seconds else measure()
        except MissingExtraError as error:
            found = {"skipped": str(error)}
        except Exception as error:  # the others are still worth having
            failed, found = True, {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        found["seconds"] = round(time.monotonic() - start, 1)
        result["rows"].append({"row": name, **found})
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        told_of = found.get("failed") or found.get("skipped") or found["times as fast"]
        print(f"{time.monotonic() - began:5.0f} s  {name}: {told_of}", file=sys.stderr, flush=True)
        if told.cuda:
            torch.cuda.empty_cache()
    print(json.dumps(result, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
