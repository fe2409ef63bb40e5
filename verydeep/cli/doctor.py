"""`verydeep doctor`: what is installed here, and whether it answers rightly. Nothing is fetched."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from textwrap import indent

import click
import numpy as np

from .. import __version__
from ..engines import DEVICE_NAMES, ENGINES, TOLERANCES, Kind
from ..engines.processor import cores
from ..errors import EngineError, VerydeepError
from ..files.folders import cache_folder
from ..files.progress import Progress, reached
from ..files.wording import counted, plain, table

LABEL, LEAST = "bannister", 0.9  # what the built-in model says of `rings`: 97.6 %


@click.command()
def doctor() -> int:
    """Say what is installed, and check that it answers rightly.

    One screen: versions, extras, the cache, and each installed engine on a picture whose answer is known.
    Exit status 1 where an engine fails or answers otherwise. Nothing is looked for over the network.
    """
    click.echo(
        f"verydeep {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {counted(cores(), 'core')}"
    )
    click.echo(f"with {', '.join(_versions(None))}")
    folder = cache_folder()
    size, files = _held(folder)
    click.echo(f"cache {plain(str(folder))}: {size / 1e6:.0f} MB in {counted(files, 'file')}")
    click.echo("\nextras")
    click.echo(indent(table(_extras()), "  "))
    click.echo("\nengines, each asked what it sees on a drawn picture")
    failed, lines = 0, []
    reference: np.ndarray | None = None  # of the first that answers rightly
    with Progress("asking engines", ""):
        for number, kind in enumerate(ENGINES.values(), 1):
            if not kind.available:
                lines.append((kind.name, "-", f"not installed: {kind.install}"))
                continue
            reached(number, len(ENGINES), f"asking {kind.name}")
            try:
                said, values = _asked(kind, reference)
                reference = values if reference is None else reference
            except (VerydeepError, ImportError, OSError) as error:
                failed, said = failed + 1, f"FAILED: {' '.join(str(error).split())}"
            lines.append((kind.name, kind.version or "?", said))
    click.echo(indent(table(lines), "  ") + "\n")
    click.echo(f"{counted(failed, 'engine')} failed" if failed else "all is well")
    return 1 if failed else 0


def rings() -> np.ndarray:
    """(224, 224, 3) uint8: fifteen white rings, which need no file and look the same everywhere."""
    y, x = np.mgrid[:224, :224]
    ring = np.sqrt((x - 112.0) ** 2 + (y - 112.0) ** 2) // 7.5
    return np.repeat(((ring % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _asked(kind: Kind, reference: np.ndarray | None) -> tuple[str, np.ndarray]:
    """What the engine says in `exact`, and the probabilities. EngineError where that is not right."""
    from ..predictor import load

    began = time.perf_counter()
    with load(engine=kind.name, precision="exact") as predictor:
        answer = predictor(rings(), top=len(predictor.labels))
    seconds = time.perf_counter() - began
    if answer.label != LABEL or answer.probability < LEAST:
        raise EngineError(f"it says {answer}; expected {LABEL} with at least {LEAST:.0%}")
    values = np.array([one.probability for one in sorted(answer.predictions, key=lambda p: p.id)])
    off = 0.0 if reference is None else float(np.abs(values - reference).max())
    if off > TOLERANCES["exact"]:
        raise EngineError(f"its probabilities differ by {off:.1e} from those of the engines above")
    gpus = [f", {DEVICE_NAMES[name]}" for name in kind.found() if name in DEVICE_NAMES]
    return f"{answer.label} {answer.probability:.1%}, {seconds:.1f} s{''.join(gpus)}", values


def _extras() -> Iterator[tuple[str, str]]:
    """Each extra that is not an engine: what it brings that is here, and how to have the rest."""
    with suppress(metadata.PackageNotFoundError):  # a checkout that was never installed
        for extra in metadata.metadata("verydeep").get_all("Provides-Extra") or ():
            if extra not in ("dev", "docs", *ENGINES) and (versions := _versions(extra)):
                missing = any(one.endswith(" missing") for one in versions)
                advice = f': pip install "verydeep[{extra}]"' if missing else ""
                yield extra, f"{', '.join(versions)}{advice}"


def _versions(extra: str | None) -> list[str]:
    """The packages that verydeep, or an extra of it, asks for, each with its version or "missing"."""
    found = []
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("verydeep") or ():
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            of = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
            if name == "verydeep" or (of[1] if of else None) != extra:
                continue
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                found.append(f"{name} missing")
    return found


def _held(folder: os.PathLike[str]) -> tuple[int, int]:
    """Bytes and files under a folder; (0, 0) where it is not there."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(os.stat(os.path.join(place, name)).st_size)
    return sum(sizes), len(sizes)
