"""What makes training fast here: arithmetic and layout, raced once a machine and remembered; memory kept.

Memory that a training step frees is kept for the next step, where glibc would hand it back. Every step
asks for the same large arrays again. Handed back, their pages are cleared and mapped anew each time: 8 to
13 % of a step's processor time. Other systems' allocators are left as they are.
"""

from __future__ import annotations

import copy
import ctypes
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F

from ..engines.processor import processor
from ..errors import DataError
from ..files.folders import Notebook
from ..files.progress import stage
from ..models import VGG
from .recipes import Config

FILE = "training.json"
PROBE_PIXELS, PROBE_STEPS = 64 * 64**2, 3  # of a batch on a processor; steps
# malloc.h: parameters of mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1  # mallopt takes an int
# what glibc's own thresholds rise to by themselves: DEFAULT_MMAP_THRESHOLD_MAX of mallopt(3), and twice it
OWN_TRIM, OWN_MMAP = 64 * 2**20, 32 * 2**20


@dataclass(frozen=True)
class Choice:
    """precision: "fp32" or "bf16". layout: "default" or "channels-last"."""

    precision: str
    layout: str


# in the order of preference where two are equally fast
CHOICES = (
    Choice("fp32", "default"),
    Choice("fp32", "channels-last"),
    Choice("bf16", "channels-last"),
)


def decided(config: Config, model: VGG, device: torch.device) -> Config:
    """The config with `precision` and `layout` settled, by a race of what it leaves open."""
    if device.type == "mps":
        # gradients in channels-last were wrong there (pytorch#175189), and bf16 gains nothing
        for key, wrong, right in (
            ("layout", "channels-last", "default"), ("compile", True, "false"),
        ):  # fmt: skip
            if getattr(config, key) == wrong:
                raise DataError(f"{key}={wrong} cannot be relied on on mps; --set {key}={right}")
        precision = "fp32" if config.precision == "auto" else config.precision
        return replace(config, precision=precision, layout="default")
    if device.type == "cpu" and config.precision == "fp16":
        raise DataError("precision=fp16 is for GPUs; --set precision=bf16, or auto")
    open_to = [
        c
        for c in CHOICES
        if config.precision in ("auto", c.precision) and config.layout in ("auto", c.layout)
    ]
    if not open_to:  # asked for by name, and not raced: fp16, or bf16 in the default layout
        layout = "channels-last" if config.layout == "auto" else config.layout
        return replace(config, layout=layout)
    choice = open_to[0] if len(open_to) == 1 else _remembered(open_to, config, model, device)
    return replace(config, precision=choice.precision, layout=choice.layout)  # type: ignore[arg-type]


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run the block in that precision; weights and sums stay float32."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16):
        yield


def seconds(choice: Choice, config: Config, model: VGG, device: torch.device) -> float:
    """Of the fastest of a few training steps on noise, after one to warm up."""
    trial = copy.deepcopy(model).to(device).train()
    # on a GPU a small batch would measure how fast its work is handed over
    batch = config.batch
    if device.type == "cpu":
        batch = min(batch, 64, max(4, PROBE_PIXELS // config.size**2))
    noise = torch.Generator().manual_seed(0)
    shape = (batch, model.table.in_channels, config.size, config.size)
    x = torch.randn(shape, generator=noise).to(device)
    y = torch.zeros(batch, dtype=torch.long, device=device)
    if choice.layout == "channels-last":
        trial = trial.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    best = float("inf")
    for trial_step in range(1 + PROBE_STEPS):
        began = time.perf_counter()
        with arithmetic(choice.precision, device):
            loss = F.cross_entropy(trial(x).float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if trial_step:
            best = min(best, time.perf_counter() - began)
    return best


def _remembered(open_to: list[Choice], config: Config, model: VGG, device: torch.device) -> Choice:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    facts = {
        "machine": f"{where}, {torch.get_num_threads()} threads", "torch": torch.__version__,
        "network": f"{model.table.name} {model.table.widths}", "size": config.size,
        "choices": [asdict(c) for c in open_to],
    }  # fmt: skip
    key, known = json.dumps(facts, sort_keys=True), Notebook(FILE)
    with suppress(KeyError, TypeError):
        return Choice(**known.rows()[key])
    times = {}
    for choice in stage(open_to, "measuring which arithmetic is the quickest", "way"):
        try:
            times[choice] = seconds(choice, config, model, device)
        except (RuntimeError, NotImplementedError):  # this device cannot
            times[choice] = float("inf")
    best = min(open_to, key=lambda c: times[c])
    known.write(key, asdict(best))
    return best


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory while the block runs, and give it back after it."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, OWN_TRIM)
        libc.mallopt(M_MMAP_THRESHOLD, OWN_MMAP)
        libc.malloc_trim(0)
