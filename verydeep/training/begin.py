"""`train()`: find the recipe, change what was asked to be changed, and hand it to what runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import recipes
from .data.check import looked_over
from .data.labelled import find_for
from .data.shards import is_stream
from .recipes import Config, changed
from .record.folder import following
from .record.result import TrainResult
from .run import run

if TYPE_CHECKING:  # torch
    from .profile import Profile
    from .ratetest import RateTest

Event = Callable[[Mapping[str, Any]], None]


def train(
    recipe: Any,
    data: object,
    val: object = None,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | None = None,
    width: float | None = None,
    settings: Iterable[str] | Mapping[str, Any] = (),
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    strict: bool = False,
    tensorboard: bool = False,
    event: Event | None = None,
) -> TrainResult:
    """Train on labelled images and write model.safetensors, report.html and the rest into `out`.

    out: None for the first of runs/1, runs/2, ... that is not there.
    recipe: a name of `verydeep.training.recipes.RECIPES`, or the config that one of them returns.
    data, val: as `verydeep.training.data.labelled.find` takes them. settings: "key=value" each, or a
    mapping, changing the recipe; model and width are settings too. init: weights to start from, a
    built-in's or catalogue name or a file. resume: go on from the last checkpoint in `out`, to the bit on
    a CPU. device: "auto", "cpu", "cuda" or "mps". strict: every image is decoded and compared first, as by
    `verydeep check`, and what is odd about the data is an error.
    tensorboard: write its figures for TensorBoard too.
    event: is given each line of the log as it is written.

    Raises DataError, NetworkError, WeightsError or OutputError before long work where something is wrong
    with what was given; `verydeep.training.loop.Diverged` where the loss is no number any more. Ctrl-C and
    SIGTERM write a checkpoint and then do what they always do.
    """
    out = following() if out is None else out
    # the process that writes; the others may share no disk with it
    first = os.environ.get("RANK", "0") == "0"
    if resume and first and not os.path.isdir(out):
        raise DataError(
            f"--resume: there is no folder {os.fspath(out)}; name the --out of a run, or begin one without "
            "--resume"
        )
    config, asked = _chosen(recipe, model, width, settings)
    if not isinstance(config, Config) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            f"recipe {config.recipe} takes one process, all cores of it, and torchrun started "
            f"{os.environ['WORLD_SIZE']}; call verydeep train without torchrun"
        )
    import_module(recipes.RECIPES[config.recipe].follows)  # what it lacks is said before any work
    _refuse_streams(config, data, val)
    if tensorboard:
        from .record.board import board

        event = _both(board(Path(out)), event)
    found = find_for(config, data, val)
    if not resume and first:
        sizes = config.sides if isinstance(config, Config) else config.sizes
        # photos that are stretched to a size may well be smaller, on purpose
        least = 0 if config.stretch else min(sizes)
        lines = (*found.warnings, *looked_over(found, least, thorough=strict))
        if strict and lines:
            raise DataError("; ".join(lines))
        found = replace(found, warnings=lines)
    return run(
        config,
        found,
        out=out,
        init=init,
        named=tuple(asked),
        resume=resume,
        device=device,
        event=event,
    )


def find_rate(
    recipe: Any, data: object, val: object = None, *, model: str | None = None,
    width: float | None = None, settings: Iterable[str] | Mapping[str, Any] = (),
    init: str | os.PathLike[str] | None = None, device: str = "auto",
) -> RateTest:  # fmt: skip
    """A rate range test: which rate suits this recipe on this data. Arguments as for `train`."""
    config, asked = _loops(recipe, data, val, model, width, settings)
    from .learn import own_numbers, ready
    from .parallel import device_of
    from .ratetest import rate_test

    with own_numbers(device_of(device)):
        one = ready(config, data, val, init, tuple(asked), device)
        return rate_test(one.learner, one.feed)


def profile(
    recipe: Any, data: object, val: object = None, *, model: str | None = None,
    width: float | None = None, settings: Iterable[str] | Mapping[str, Any] = (),
    init: str | os.PathLike[str] | None = None, device: str = "auto",
) -> Profile:  # fmt: skip
    """How fast images are made ready, and how fast the network learns. Arguments as for `train`."""
    config, asked = _loops(recipe, data, val, model, width, settings)
    from . import profile as measuring
    from .learn import own_numbers, ready
    from .parallel import device_of
    from .speed import memory_kept

    with own_numbers(device_of(device)), memory_kept():
        one = ready(config, data, val, init, tuple(asked), device)
        return measuring.profile(one.learner, one.feed)


def _both(first: Event, second: Event | None) -> Event:
    def event(line: Mapping[str, Any]) -> None:
        first(line)
        if second is not None:
            second(line)

    return event


def _chosen(
    recipe: Any, model: str | None, width: float | None, given: Iterable[str] | Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The config, and what was asked for beside the recipe."""
    config = recipes.recipe(recipe) if isinstance(recipe, str) else recipe
    asked = recipes.settings(given)
    asked |= {k: v for k, v in (("model", model), ("width", width)) if v is not None}
    return changed(config, asked), asked


def _refuse_streams(config: Any, *sets: object) -> None:
    """DataError, before a shard is opened, where they are streamed and the recipe needs images at hand."""
    for one in sets:
        if not is_stream(one):
            continue
        if not isinstance(config, Config) or config.start == "probe":
            raise DataError(
                f"{one}: recipe {config.recipe} reads images in any order, which a stream cannot give; "
                "fetch the shards and give their path, or take paper or small-images"
            )
        for key, wrong, right in (
            ("memory", config.memory, "false"),
            ("balance", config.balance == "sampling", "weights"),
        ):
            if wrong:
                raise DataError(
                    f"{one}: {key}={getattr(config, key)} needs all images at hand, and these are "
                    f"streamed; --set {key}={right}, or fetch the shards and give their path"
                )


def _loops(
    recipe: Any, data: object, val: object, model: str | None, width: float | None,
    given: Iterable[str] | Mapping[str, Any],
) -> tuple[Config, dict[str, Any]]:  # fmt: skip
    """The same, for what only a recipe with a loop has."""
    config, asked = _chosen(recipe, model, width, given)
    if not isinstance(config, Config):
        raise DataError(
            f"recipe {config.recipe} solves its head at once: it has no rate and no steps"
        )
    _refuse_streams(config, data, val)
    return config, asked
