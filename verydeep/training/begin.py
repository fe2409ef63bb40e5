"""`train()`: find the recipe, change what was asked to be changed, and hand it to what runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from . import recipes
from .recipes import Config, changed
from .result import TrainResult

__all__ = ["train"]


def train(
    recipe: Any,
    data: object,
    val: object = None,
    *,
    out: str | os.PathLike[str],
    model: str | None = None,
    width: float | None = None,
    settings: Iterable[str] | Mapping[str, Any] = (),
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    event: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Train on labelled images and write model.safetensors, report.html and the rest into `out`.

    recipe: a name of `verydeep.training.recipes.RECIPES`, or the config that one of them returns.
    data, val: as `verydeep.training.data.find` takes them. settings: "key=value" each, or a mapping,
    changing the recipe; model and width are settings too. init: weights to start from, a built-in's or
    catalogue name or a file. resume: go on from the last checkpoint in `out`, to the bit on a CPU.
    device: "auto", "cpu", "cuda" or "mps". event: is given each line of the log as it is written.

    Raises DataError, NetworkError, WeightsError or OutputError before long work where something is wrong
    with what was given; `verydeep.training.loop.Diverged` where the loss is no number any more. Ctrl-C and
    SIGTERM write a checkpoint and then do what they always do.
    """
    config = recipes.recipe(recipe) if isinstance(recipe, str) else recipe
    asked = recipes.settings(settings)
    asked |= {k: v for k, v in (("model", model), ("width", width)) if v is not None}
    run = import_module(recipes.RECIPES[config.recipe].runs).run
    told: dict[str, Any] = {"out": out, "resume": resume, "device": device, "event": event}
    if isinstance(config, Config):
        told |= {"init": init, "named": "model" in asked}
    elif init is not None:  # a recipe that trains no trunk: its model is what it starts from
        asked["model"] = os.fspath(init)
    result: TrainResult = run(changed(config, asked), data, val, **told)
    return result
