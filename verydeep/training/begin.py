"""`train()`: find the recipe, change what was asked to be changed, look at the data, follow the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.check import looked_over
from ..datasets.labelled import find_for
from ..datasets.shards import is_stream
from ..errors import DataError
from . import recipes
from .recipes import Config, changed
from .record import folder
from .record.result import TrainResult
from .run import Event, Run

if TYPE_CHECKING:  # torch
    from .learn import Learning
    from .measuring import Profile, RateTest


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
    data, val: as `verydeep.datasets.labelled.find` takes them. settings: "key=value" each, or a
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
    # the process that writes; the others may share no disk with it
    first = folder.is_first()
    if out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise DataError(
            "torchrun may start this run again, and it must be found then; name its folder by --out"
        )
    if resume and first and (out is None or not os.path.isdir(out)):
        raise DataError(
            f"--resume: there is no folder {os.fspath(out or folder.RUNS)}; name the --out of a run, or "
            "begin one without --resume"
        )
    resume = (
        resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    )  # a process had died
    config, asked = _chosen(recipe, model, width, settings)
    if not isinstance(config, Config) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            f"recipe {config.recipe} takes one process, all cores of it, and torchrun started "
            f"{os.environ['WORLD_SIZE']}; call verydeep train without torchrun"
        )
    # what it lacks is said before any work
    learnt = import_module(recipes.RECIPES[config.recipe][1]).learnt
    _refuse_streams(config, data, val)
    with folder.taken(out, writes=first, resume=resume) as place:
        listeners = [event] if event else []
        if tensorboard:
            from .record.board import board

            listeners.insert(0, board(place))
        found = find_for(config, data, val)
        if not resume and first:
            sizes = config.sides if isinstance(config, Config) else config.sizes
            # photos that are stretched to a size may well be smaller, on purpose
            least = 0 if config.stretch else min(sizes)
            lines = (*found.warnings, *looked_over(found, least, thorough=strict))
            if strict and lines:
                raise DataError("; ".join(lines))
            found = replace(found, warnings=lines)
        run = Run(
            config, found, place, init=init, named=asked, resume=resume, device=device,
            listeners=listeners,
        )  # fmt: skip
        try:
            result: TrainResult = learnt(run)
        finally:
            run.close()
    return result


def find_rate(recipe: Any, data: object, val: object = None, **chosen: Any) -> RateTest:
    """A rate range test: which rate suits this recipe on this data.

    Arguments as for `train`: model, width, settings, init and device.
    """
    with _ready(recipe, data, val, **chosen) as one:
        from . import measuring

        return measuring.rate_test(one.learner, one.feed)


def profile(recipe: Any, data: object, val: object = None, **chosen: Any) -> Profile:
    """How fast images are made ready, and how fast the network learns. Arguments as for `find_rate`."""
    with _ready(recipe, data, val, **chosen) as one:
        from . import measuring

        return measuring.profile(one.learner, one.feed)


@contextmanager
def _ready(
    recipe: Any, data: object, val: object, *, model: str | None = None, width: float | None = None,
    settings: Iterable[str] | Mapping[str, Any] = (), init: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Iterator[Learning]:  # fmt: skip
    """A run as it is before its first step, of which nothing is written, while the block measures it."""
    config, asked = _chosen(recipe, model, width, settings)
    if not isinstance(config, Config):
        raise DataError(
            f"recipe {config.recipe} solves its head at once: it has no rate and no steps"
        )
    _refuse_streams(config, data, val)
    from .learn import Learning, own_numbers
    from .parallel import ALONE, device_of
    from .speed import memory_kept

    where = device_of(device)
    with own_numbers(where), memory_kept():
        found = find_for(config, data, val)
        one = Learning(
            Run(config, found, Path(), init=init, named=asked, device=device), ALONE, where
        )
        one.prepare(one.before())
        yield one


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
    for one in filter(is_stream, sets):
        if not isinstance(config, Config) or config.start == "probe":
            raise DataError(
                f"{one}: recipe {config.recipe} reads images in any order, which a stream cannot give; "
                "fetch the shards and give their path, or take paper or small-images"
            )
        for key, right, wrong in (
            ("memory", "false", config.memory), ("balance", "weights", config.balance == "sampling"),
            ("hold", "0", config.hold > 0),
        ):  # fmt: skip
            if wrong:
                value = getattr(config, key)
                raise DataError(
                    f"{one}: {key}={value} needs all images at hand, and these are streamed; --set "
                    f"{key}={right}, or fetch the shards and give their path"
                )
