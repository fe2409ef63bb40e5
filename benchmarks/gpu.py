"""A CUDA device: VGG-16's answers, LPIPS and a training step, against torchvision and `lpips` in torch.

    python benchmarks/gpu.py [--rounds 9] [--size 224] [--out FILE.json]

Parity first: float64 on the processor judges the scores of both; losses, gradients and the first step of
training are compared. All entrants run in this process, in turns, each as many calls a turn as take 0.1 s;
what is stated is the median of the ratios within the rounds. Scores go from uint8 pixels in the processor's
memory to numbers there, on both sides. "as it comes" is torch's own default, in which convolutions round to
TF32. Peak memory is what torch allocated on the device beyond what lay there before the call. Two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lpips
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from machine import report
from paced import paced

from verydeep import models
from verydeep.engines import TOLERANCES, Engine, relative_error
from verydeep.graphs import network as graph
from verydeep.losses import LPIPS
from verydeep.nets import network
from verydeep.preprocess import TORCHVISION
from verydeep.training.data.feed import Batch
from verydeep.training.learner import Learner
from verydeep.training.profile import Again
from verydeep.training.recipes import recipe

DEVICE = torch.device("cuda")
TURN = 0.1  # seconds
LAST = torch.channels_last
Call = Callable[[], Any]


def turns(entrants: dict[str, Call], rounds: int, images: int) -> dict[str, dict[str, float]]:
    """Of each: milliseconds an image, and how often faster than the first; both medians."""
    counts: dict[str, int] = {}
    for name, call in entrants.items():
        for _ in range(3):
            call()
        counts[name] = max(1, round(TURN / seconds(call, 3)))
    names = list(entrants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(entrants[name], counts[name]))
    found = {}
    for name in names:
        ratios = [theirs / ours for theirs, ours in zip(times[names[0]], times[name], strict=True)]
        found[name] = {
            "ms an image": round(1e3 * statistics.median(times[name]) / images, 4),
            "times as fast": round(statistics.median(ratios), 3),
        }
    return found


def seconds(call: Call, count: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def peak_mib(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def apart(ours: Any, theirs: Any) -> float:
    ours, theirs = (torch.as_tensor(t).detach().double().cpu() for t in (ours, theirs))
    return float(f"{(ours - theirs).norm() / theirs.norm():.2g}")


def answers(rounds: int, size: int) -> list[dict[str, Any]]:
    """VGG-16 with its classic head: uint8 pixels in, scores out."""
    net = network("vgg16")
    torch.manual_seed(0)
    with DEVICE:
        module = torchvision.models.vgg16().eval().to(memory_format=LAST)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear):  # so that scores are of the size of real ones
                torch.nn.init.kaiming_normal_(layer.weight)
    tensors = {key: value.cpu().numpy() for key, value in module.state_dict().items()}
    built = graph.build(net, tensors, TORCHVISION)
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (32, 3, size // 8, size // 8)).astype(np.float32)
    smooth = F.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic").clamp(0, 255)
    pixels = np.ascontiguousarray(smooth.round().byte().permute(0, 2, 3, 1).numpy())
    mean, std = (torch.tensor(v, device=DEVICE)[:, None, None] for v in
                 (TORCHVISION.mean, TORCHVISION.std))  # fmt: skip

    def theirs(net: torch.nn.Module, given: np.ndarray, dtype: torch.dtype, tf32: bool) -> Any:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            x = torch.from_numpy(given).to(DEVICE).permute(0, 3, 1, 2).float()
            x = ((x / 255 - mean) / std).to(dtype).contiguous(memory_format=LAST)
            return net(x).float().cpu().numpy()

    judge = torchvision.models.vgg16().double().eval()
    judge.load_state_dict(module.state_dict())
    x = torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2).double() / 255
    x = (x - mean.cpu().double()) / std.cpu().double()
    with torch.inference_mode():
        truth = judge(x).numpy()
    coarser = torchvision.models.vgg16().to(DEVICE, torch.bfloat16, memory_format=LAST).eval()
    coarser.load_state_dict(module.state_dict())
    rows = []
    for precision, other, dtype, tf32s in (
        ("exact", module, torch.float32, {"torchvision": False, "torchvision as it comes": True}),
        ("fast", module, torch.float32, {"torchvision": False, "torchvision as it comes": True}),
        ("half", coarser, torch.bfloat16, {"torchvision": False}),
    ):
        engine = Engine("torch", built, precision=precision, device="cuda")
        for batch in (1, 32):
            given = pixels[:batch]
            calls: dict[str, Call] = {
                name: lambda o=other, g=given, d=dtype, t=tf32: theirs(o, g, d, t)
                for name, tf32 in tf32s.items()
            }
            calls["verydeep"] = lambda e=engine, g=given: e.run(g)["scores"]
            few = min(4, batch)
            errors = {
                name: relative_error(call()[:few], truth[:few]) for name, call in calls.items()
            }
            if not errors["verydeep"] <= TOLERANCES[precision]:
                raise SystemExit(f"{precision} is not kept: {errors}")
            found = turns(calls, rounds, batch)
            for name, error in errors.items():
                found[name]["error against float64"] = float(f"{error:.2g}")
            rows.append({"precision": precision, "batch": batch, **found})
        del engine
    return rows


def distances(rounds: int) -> list[dict[str, Any]]:
    """LPIPS of eight pairs, forward and backward to the images, with the built-in convolutions."""
    ours = LPIPS(net="vgg").to(DEVICE)
    trunk = LPIPS(net="vgg").net.children()
    features = torch.nn.Sequential(*(layer for part in trunk for layer in part))
    features.to(memory_format=torch.contiguous_format)
    for module in features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True  # as torchvision has it
    torchvision.models.vgg16, kept = (
        (lambda **_: SimpleNamespace(features=features)),
        torchvision.models.vgg16,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="vgg", verbose=False).to(DEVICE)
    torchvision.models.vgg16 = kept
    rows = []
    for size in (64, 256):
        torch.manual_seed(0)
        y = torch.rand(8, 3, size // 8, size // 8, device=DEVICE) * 2 - 1
        y = F.interpolate(y, (size, size), mode="bilinear")
        x = (y + 0.1 * torch.randn_like(y)).clamp(-1, 1).requires_grad_()
        known = ours.remember(y)

        def call(loss: Any, target: Any, x: torch.Tensor = x) -> tuple[torch.Tensor, torch.Tensor]:
            value = loss(x, target)
            return value, torch.autograd.grad(value.sum(), x)[0]

        calls: dict[str, Call] = {
            "lpips": lambda y=y, call=call: call(theirs, y),
            "verydeep": lambda y=y, call=call: call(ours, y),
            "remembered": lambda known=known, call=call: call(ours, known),
        }
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            (a, slope_a), (b, slope_b) = calls["verydeep"](), calls["lpips"]()
        if apart(a, b) > 1e-5 or apart(slope_a, slope_b) > 1e-2:
            raise SystemExit(f"LPIPS differs: {apart(a, b)}, gradient {apart(slope_a, slope_b)}")
        found = turns(calls, rounds, 8)
        for name, one in calls.items():
            found[name]["peak MiB"] = peak_mib(one)
        rows.append({"size": size, "batch": 8, "values apart": apart(a, b),
                     "gradients apart": apart(slope_a, slope_b), **found})  # fmt: skip
    return rows


def steps(rounds: int, size: int) -> list[dict[str, Any]]:
    """A training step of VGG-16 on 32 images of uint8, by SGD with momentum, channels-last."""
    draw = np.random.default_rng(0)
    batch = Batch(draw.integers(0, 256, (32, size, size, 3), np.uint8), draw.integers(0, 1000, 32))
    rows = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        with DEVICE:
            theirs = torchvision.models.vgg16().to(memory_format=LAST)
            module = models.vgg16()
        module.load_state_dict(theirs.state_dict())
        config = replace(recipe("paper"), batch=32, size=size, precision=precision,
                         layout="channels-last", model="vgg16")  # fmt: skip
        learner = Learner(module, config, TORCHVISION, DEVICE)
        optimiser = torch.optim.SGD(theirs.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
        mean, std = (torch.tensor(v, device=DEVICE)[:, None, None] for v in
                     (TORCHVISION.mean, TORCHVISION.std))  # fmt: skip

        def plain(
            net: Any = theirs, optimiser: Any = optimiser, mean: Any = mean, std: Any = std,
            bf16: bool = precision == "bf16",
        ) -> torch.Tensor:  # fmt: skip
            x = torch.from_numpy(batch.images).to(DEVICE).permute(0, 3, 1, 2).float() / 255
            x = ((x - mean) / std).contiguous(memory_format=LAST)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(x), torch.from_numpy(batch.labels).to(DEVICE))
            loss.backward()
            optimiser.step()
            return loss.detach()

        calls: dict[str, Call] = {
            "torchvision": plain,
            "verydeep": paced(learner, Again(batch), 1e-2),
        }
        theirs.eval(), learner.model.eval()  # without dropout, which draws its own numbers
        first = {name: float(call()) for name, call in calls.items()}
        weights = (learner.model.classifier[0].weight, theirs.classifier[0].weight)
        moved = apart(*weights)
        if abs(first["verydeep"] / first["torchvision"] - 1) > 2e-2 or moved > 1e-3:
            raise SystemExit(f"the first step differs: {first}, weights {moved}")
        theirs.train(), learner.model.train()
        found = turns(calls, rounds, 32)
        for name, call in calls.items():
            found[name]["peak MiB"] = peak_mib(call)
        rows.append({"precision": precision, "batch": 32, "first loss": first,
                     "weights apart after it": moved, **found})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224, help="pixels a side of what is classified")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    about = torch.cuda.get_device_properties(DEVICE)
    result: dict[str, Any] = {
        "card": {
            "name": about.name, "GiB": round(about.total_memory / 2**30),
            "multiprocessors": about.multi_processor_count,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        },
        "rounds": args.rounds,
    }  # fmt: skip
    for name, part in (
        ("answers", lambda: answers(args.rounds, args.size)),
        ("lpips", lambda: distances(args.rounds)),
        ("training step", lambda: steps(args.rounds, args.size)),
    ):
        try:
            result[name] = part()
        except SystemExit as error:  # the others are still worth having
            result[name] = f"no parity: {error}"
        torch.cuda.empty_cache()
    report("gpu", result, args.out, "torch", "torchvision", "lpips")


if __name__ == "__main__":
    main()
