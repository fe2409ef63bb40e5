"""Ctrl-C and progress while an engine's own code runs: both need Python's lock, and the main thread."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from verydeep.engines import Engine, installed, mnn
from verydeep.engines.forks import awaited
from verydeep.errors import EngineError
from verydeep.graphs import network as graph
from verydeep.preprocess import TORCHVISION

from .tiny import pixels, tiny, weights

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
ENGINES = [kind.name for kind in installed()]


def _engine(name: str) -> Engine:
    net = tiny("vgg16", width=1 / 8)
    built = graph.build(net, weights(net), TORCHVISION)
    return Engine(name, built, precision="fast", threads=2, device="cpu")


def test_what_would_run_on_is_stopped_and_waited_for() -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stop.wait)
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            awaited(running, stop.set)
        assert running.done()
        assert awaited(pool.submit(lambda: 7), stop.set) == 7


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_was_stopped_answers_as_before(name: str) -> None:
    engine = _engine(name)
    batch = pixels(224, 224, 24)
    before = engine.run(batch)["scores"]
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        list(map(engine.run, itertools.repeat(batch)))
    np.testing.assert_array_equal(engine.run(batch)["scores"], before)


@pytest.mark.parametrize("name", ENGINES)
def test_what_another_signal_raises_stops_an_engine_too(name: str) -> None:
    """Such as the end of the time that a test or a server allows."""

    def over(*_: object) -> None:
        raise TimeoutError

    engine = _engine(name)
    batch = pixels(224, 224, 24)
    before = engine.run(batch)["scores"]
    handler = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises((TimeoutError, EngineError)):
            list(map(engine.run, itertools.repeat(batch)))
    finally:
        signal.signal(signal.SIGALRM, handler)
    np.testing.assert_array_equal(engine.run(batch)["scores"], before)


@pytest.mark.parametrize("name", ["onnxruntime", "ncnn", "torch"])
def test_an_engine_stops_within_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(name)

    def stopped(running: Future[object], stop: Callable[[], object]) -> object:
        stop()
        return running.result()

    monkeypatch.setattr(engine.kind.load(), "awaited", stopped)
    with pytest.raises(EngineError, match="failed on 24x224x224x3 pixels"):
        engine.run(pixels(224, 224, 24))
    monkeypatch.undo()
    assert len(engine.run(pixels(224, 224, 24))["scores"]) == 24


def test_mnn_computes_a_batch_in_pieces_and_converts_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "_tools", raising=False)
    engine = _engine("mnn")
    assert "_tools" not in sys.modules
    assert mnn.PIECE_PIXELS // 224**2 == 4  # else eight images are pieces of two sizes
    batch = pixels(40, 30, 5)
    whole = engine.run(batch)["scores"]
    monkeypatch.setattr(mnn, "PIECE_PIXELS", 40 * 30 * 2)
    parts = [engine.run(batch[at : at + 2])["scores"] for at in (0, 2, 4)]
    np.testing.assert_array_equal(engine.run(batch)["scores"], np.concatenate(parts))
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("python", "frozen"),
    [(None, False), ("", False), ("/gone/python", False), (sys.executable, True)],
)
def test_mnn_where_there_is_no_python_to_start(
    python: str | None, frozen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a program that has Python within it; a packed one would start itself, again and again."""
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"^mnn needs a Python to convert in, and .* is none$"):
        _engine("mnn")


def test_a_converter_that_is_killed_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mnn, "CONVERTER", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"wrote 0 bytes of at least [0-9]+; signal 9 ended it"):
        _engine("mnn")
    monkeypatch.undo()
    assert len(_engine("mnn").run(pixels(40, 30, 1))["scores"]) == 1


OPENING = """
import sys, time
from verydeep.engines.forks import silenced
from verydeep.files import progress
progress.FIRST_SECONDS = 0.01
with progress.Progress("opening", ""), silenced():
    print("an engine says much", flush=True)
    seen, until = set(), time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < until:
        seen |= {progress._Line.standing._drawn} - {""}
        time.sleep(0.02)
"""


def test_the_line_moves_while_an_engine_that_opens_is_silenced() -> None:
    ours, theirs = os.openpty()
    run = subprocess.Popen([sys.executable, "-c", OPENING], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 2**16)
        except OSError:  # of a terminal, this is its end
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert run.wait() == 0
    assert shown.count(b"opening") >= 3
    assert b"an engine says" not in shown
