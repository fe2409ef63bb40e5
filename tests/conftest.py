from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from verydeep import cli, errors, modelfile
from verydeep.modelfile import decoding
from verydeep.published import find_model

from .tiny import model_file, photo

# A shell ignores Ctrl-C in what it starts in the background, and tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
TERMINATED = signal.getsignal(signal.SIGTERM)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def verydeep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: verydeep("classify", path) -> status, stdout, stderr."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["verydeep", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of whoever runs it."""
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_end() -> None:
    """SIGTERM ends a process. Ray leaves a handler of its own, which a forked child takes along.

    A child of a pool that is told to end just before it waits for more would then wait for ever.
    """
    signal.signal(signal.SIGTERM, TERMINATED)


@pytest.fixture(scope="session", autouse=True)
def builtin_decoded_once() -> Iterator[None]:
    """Its weights, which would be decoded anew for the empty cache of each test: a second of both cores."""
    decode, builtin = decoding._decoded, find_model("builtin")
    kept: dict[tuple[str, ...], dict[str, Any]] = {}

    def decoded(model: modelfile.ModelFile, keys: Sequence[str]) -> dict[str, Any]:
        if model.path != builtin:
            return decode(model, keys)
        if tuple(keys) not in kept:
            kept[tuple(keys)] = decode(model, keys)
        return {key: weight.copy() for key, weight in kept[tuple(keys)].items()}

    decoding._decoded = decoded
    yield
    decoding._decoded = decode


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """What the package says to its log is on stderr, as on the command line; once is once a test."""
    errors._said.clear()
    handlers, level = errors.log.handlers, errors.log.level
    errors.log.handlers = [*handlers, cli.Stderr()]
    errors.log.setLevel("INFO")
    yield
    errors.log.handlers = handlers
    errors.log.setLevel(level)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "tiny.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of forty."""
    for seed in range(40):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium that is there, driven by Playwright; what needs it is skipped without."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
