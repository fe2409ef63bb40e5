"""A predictor in other processes: forked ones, and those that it is pickled to."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import verydeep
from verydeep.datasets.items import ASKING
from verydeep.engines import installed
from verydeep.errors import ModelFileError

from .tiny import model_file, pixels, tiny

ENGINES = [kind.name for kind in installed()]
ROOT = Path(__file__).parent.parent

# What a program does that loads once and forks its workers; the child is a real one, and ends by itself.
FORKING = """
import os, sys, threading
import numpy as np
import verydeep
from verydeep.errors import EngineError
from tests.tiny import pixels

engine, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
images = pixels(64, 64, 8)
predictor = verydeep.load(model, engine=engine, device="cpu", threads=threads)
scores = predictor.scores(images)
stop = threading.Event()

def busy():
    while not stop.is_set():
        predictor.scores(images)

others = [threading.Thread(target=busy) for _ in range(3)]
for other in others:
    other.start()
children = []
for _ in range(3):  # in the middle of whatever the others do
    child = os.fork()
    if not child:
        try:
            alike = np.allclose(predictor.scores(images), scores, rtol=1e-4, atol=1e-4)
            os.write(1, b"alike\\n" if alike else b"WRONG\\n")  # whole lines, as children write at once
        except EngineError as error:
            os.write(1, f"EngineError: {error}\\n".encode())
        finally:
            os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
stop.set()
for other in others:
    other.join()
print("parent", np.allclose(predictor.scores(images), scores, rtol=1e-4, atol=1e-4))
"""


@pytest.fixture
def eighth(tmp_path: Path) -> Path:
    from verydeep.preprocess import Preprocess

    record = Preprocess(resize_size=64, crop_size=64)
    return model_file(tmp_path / "m.safetensors", tiny("vgg16", width=1 / 8), preprocess=record)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_a_forked_child_opens_anew(engine: str, threads: int, eighth: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, engine, str(eighth), str(threads)],
        capture_output=True, text=True, timeout=120, check=True, cwd=ROOT,
    )  # fmt: skip
    *children, parent = ran.stdout.splitlines()
    assert parent == "parent True"
    assert len(children) == 3
    if engine in ("mnn", "openvino") and threads > 1:
        for line in children:
            assert line.startswith(
                f"EngineError: {engine} cannot compute with several threads in a process"
            )
            assert "made by fork" in line
            assert "method spawn" in line
    else:
        assert children == ["alike"] * 3


LEAVING = """
import os, sys, verydeep
import numpy as np
predictor = verydeep.load(sys.argv[1], engine="onnxruntime")
image = np.zeros((64, 64, 3), np.uint8)
predictor(image)
child = os.fork()
if not child:
    if sys.argv[2] == "used":
        predictor(image)
    sys.stdout.write("child")  # which waits in a buffer
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's on_exit")
@pytest.mark.parametrize("use", ["used", "unused"])
def test_a_child_may_leave_by_sys_exit(use: str, eighth: Path) -> None:
    """It hung: onnxruntime's own destructor waits for threads that a child does not have."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAVING, str(eighth), use],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.stdout == "child3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_chooses_another_engine_where_the_best_cannot_work(eighth: Path) -> None:
    code = FORKING.replace(
        "stop = threading.Event()",
        "from verydeep.engines import Engine\n"
        "(choice,) = predictor._choices.values()\n"
        "choice._settled[8] = Engine('mnn', choice.source, precision='fast', threads=2)\n"
        "assert predictor([*images])[0].engine == 'mnn'\n"
        "stop = threading.Event()",
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "auto", str(eighth), "2"],
        capture_output=True, text=True, timeout=120, check=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.stdout.splitlines() == ["alike"] * 3 + ["parent True"]


@pytest.mark.parametrize("engine", ENGINES)
def test_pickled(engine: str, eighth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it was told; its file is found from another folder, too."""
    monkeypatch.chdir(eighth.parent)
    predictor = verydeep.load(eighth.name, engine=engine, precision="exact", size=48, device="cpu")
    images = pixels(64, 64, 3)
    scores = predictor.scores(images)
    text = pickle.dumps(predictor)
    assert len(text) < 10_000
    monkeypatch.chdir("/")
    for other in (pickle.loads(text), copy.deepcopy(predictor)):
        assert_array_equal(other.scores(images), scores)
        assert (other.precision, other.preprocess) == ("exact", predictor.preprocess)
        assert other.engine == engine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads beside a fork
def test_a_lock_that_another_thread_held_is_free_in_a_child() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ASKING.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(0 if ASKING.lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()


def labels(predictor: verydeep.Predictor, images: np.ndarray) -> list[str]:
    return [answer.label for answer in predictor(list(images))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads beside a fork
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_sent_to_a_pool(method: str, eighth: Path) -> None:
    predictor = verydeep.load(eighth)
    images = pixels(64, 64, 3)
    expected = labels(predictor, images)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(labels, (predictor, images)).get(60) == expected


def test_a_file_that_has_changed_is_not_the_same_predictor(eighth: Path) -> None:
    text = pickle.dumps(verydeep.load(eighth))
    model_file(eighth, tiny("vgg11"))
    with pytest.raises(ModelFileError):
        pickle.loads(text)
