"""Which arithmetic and layout train fastest here: a few steps of each, once a machine, and remembered."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..engines.processor import processor
from ..errors import VerydeepError
from ..files.atomic import replacing
from ..files.folders import cache_folder
from ..models import VGG
from .recipes import Config

FILE = "training.json"
PROBE_BATCH, PROBE_STEPS = 64, 3


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
    open_to = [
        c
        for c in CHOICES
        if config.precision in ("auto", c.precision) and config.layout in ("auto", c.layout)
    ]
    if not open_to:  # bf16 in the default layout, asked for by name
        return config
    choice = open_to[0] if len(open_to) == 1 else _remembered(open_to, config, model, device)
    return replace(config, precision=choice.precision, layout=choice.layout)  # type: ignore[arg-type]


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run the block in that precision; weights and sums stay float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def seconds(choice: Choice, config: Config, model: VGG, device: torch.device) -> float:
    """Of the fastest of a few training steps on noise, after one to warm up."""
    trial = copy.deepcopy(model).to(device).train()
    # on a GPU a small batch would measure how fast its work is handed over
    batch = min(config.batch, PROBE_BATCH) if device.type == "cpu" else config.batch
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
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if trial_step:
            best = min(best, time.perf_counter() - began)
    return best


def _remembered(open_to: list[Choice], config: Config, model: VGG, device: torch.device) -> Choice:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    facts = {
        "machine": f"{where}, {torch.get_num_threads()} threads", "torch": torch.__version__,
        "network": f"{model.table.name} {model.table.width:g}", "size": config.size,
        "choices": [asdict(c) for c in open_to],
    }  # fmt: skip
    key = json.dumps(facts, sort_keys=True)
    path = cache_folder() / FILE
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
    with suppress(KeyError, TypeError):
        return Choice(**known[key])
    times = {}
    for choice in open_to:
        try:
            times[choice] = seconds(choice, config, model, device)
        except (RuntimeError, NotImplementedError):  # this device cannot
            times[choice] = float("inf")
    best = min(open_to, key=lambda c: times[c])
    with suppress(OSError, VerydeepError):  # it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "w", encoding="utf-8") as file:
            json.dump({**known, key: asdict(best)}, file, indent=1)
    return best
