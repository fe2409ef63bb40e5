"""Eight threads get one thread's values, from every engine; what they open is opened once."""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import verydeep
from verydeep.engines import Engine, choice, installed
from verydeep.graphs import Source
from verydeep.graphs import network as graph
from verydeep.predictor import OPEN_GRAPHS, Answer
from verydeep.preprocess import TORCHVISION

from .tiny import model_file, photo, pixels, tiny, weights

ENGINES = [kind.name for kind in installed()]
THREADS = 8


def at_once(task: Callable[[int], object], count: int = THREADS) -> list[object]:
    """What it gives for 0, 1, ... in as many threads, that all begin together."""
    gate = threading.Barrier(count)

    def begin(number: int) -> object:
        gate.wait()
        return task(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.fixture(scope="module")
def eighth() -> Source:
    """A network of width 1/8, with a layer's maps beside the scores."""
    net = tiny("vgg16", width=1 / 8)
    return Source.of(graph.build(net, weights(net), TORCHVISION, taps=("relu3_1",)))


@pytest.mark.parametrize("name", ENGINES)
def test_one_engine_in_eight_threads(name: str, eighth: Source) -> None:
    """Each thread has images of its own, of its own size and number: a mixed-up row cannot be right."""
    engine = Engine(name, eighth, precision="fast", threads=2, device="cpu")
    given = [pixels(64, 64 + 16 * (n % 3), 1 + n % 2, seed=n) for n in range(THREADS)]
    alone = [{k: v.copy() for k, v in engine.run(images).items()} for images in given]

    def task(number: int) -> None:
        kept = [engine.run(given[number]) for _ in range(25)]
        for outputs in kept:  # only now: an output must not change when others run
            for key, value in alone[number].items():
                assert_allclose(outputs[key], value, rtol=1e-4, atol=1e-4)

    at_once(task)


@pytest.mark.parametrize("name", ENGINES)
def test_one_predictor_in_eight_threads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First calls at once open one engine; calls and streams side by side give what each gives alone."""
    model = model_file(tmp_path / "m.safetensors", tiny("vgg16", width=1 / 8))
    files = [photo(tmp_path / f"{n}.png", seed=n) for n in range(5)]
    alone = verydeep.load(model, engine=name, device="cpu").scores(files)
    opened = []
    real = choice.Engine
    monkeypatch.setattr(choice, "Engine", lambda *a, **k: (opened.append(1), real(*a, **k))[1])
    predictor = verydeep.load(model, engine=name, device="cpu")

    def task(number: int) -> None:
        for turn in range(5):
            which = [(number + turn + i) % 5 for i in range(3)]
            if number % 4 == 3:
                answers = list(predictor.stream([files[i] for i in which], batch=2))
                labels = [answer.label for answer in answers if isinstance(answer, Answer)]
                assert labels == [predictor.labels[i] for i in alone[which].argmax(1)]
                assert {answer.engine for answer in answers if isinstance(answer, Answer)} == {name}
            else:
                scores = predictor.scores([files[i] for i in which])
                assert_allclose(scores, alone[which], rtol=1e-4, atol=1e-4)

    at_once(task)
    assert len(opened) == 1


def test_the_race_is_held_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = verydeep.load(model, threads=1)
    images = list(pixels(32, 32, 40))
    at_once(lambda _: predictor.scores(images), 4)
    assert capsys.readouterr().err.count("measuring ") == 1


def test_torch_leaves_the_number_of_threads_alone(eighth: Source) -> None:
    import torch

    before = torch.get_num_threads()
    image = pixels(64, 64, 1)
    at_once(
        lambda n: Engine("torch", eighth, precision="fast", threads=1 + n % 3, device="cpu").run(
            image
        ),
        4,
    )
    assert torch.get_num_threads() == before
    assert at_once(lambda _: torch.get_num_threads(), 2) == [before] * 2  # of threads to come, too


def test_open_engines_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of layer after layer: the last few engines are kept, others opened again when needed."""
    model = model_file(tmp_path / "m.safetensors", tiny("vgg16"))
    real = choice.Engine
    opened = []
    monkeypatch.setattr(choice, "Engine", lambda *a, **k: (opened.append(1), real(*a, **k))[1])
    predictor = verydeep.load(model, threads=1)
    image = pixels(32, 32, 1)[0]
    layers = [layer.name for layer in predictor.record.network.trunk if layer.kind == "relu"]
    for layer in layers:
        predictor.features(image, layer)
    assert len(opened) == len(layers) == 13
    assert len(predictor._choices) == OPEN_GRAPHS
    predictor.features(image, layers[-1])
    assert len(opened) == 13
    expected = predictor.features(image, layers[0])[layers[0]]
    assert len(opened) == 14
    with predictor:
        assert_allclose(predictor.features(image, layers[0])[layers[0]], expected)
    assert not predictor._choices
    assert_allclose(predictor.features(image, layers[0])[layers[0]], expected, rtol=1e-5)
    assert len(opened) == 15


def test_a_stream_outlives_close(model: Path, tmp_path: Path) -> None:
    predictor = verydeep.load(model)
    files = [photo(tmp_path / f"{n}.png", seed=n) for n in range(6)]
    expected = [answer.label for answer in predictor(files)]
    labels = []
    for answer in predictor.stream(files, batch=2):
        assert isinstance(answer, Answer)
        labels.append(answer.label)
        predictor.close()
    assert labels == expected


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_come_as_soon_as_their_batch_is_complete(model: Path, batch: int) -> None:
    """A camera that waits for a batch's answers before it gives the next image; then one that runs."""
    predictor = verydeep.load(model, engine="onnxruntime", threads=1)
    images = pixels(32, 32, 3 * batch)
    expected = predictor.scores(images).argmax(1)
    answered = threading.Semaphore(batch)

    def waiting() -> Iterator[np.ndarray]:
        buffer = np.empty_like(images[0])
        for image in images:
            assert answered.acquire(timeout=20)
            buffer[:] = image  # the same array again and again
            yield buffer

    labels = []
    for answer in predictor.stream(waiting(), batch=batch):
        assert isinstance(answer, Answer)
        labels.append(answer.label)
        answered.release()
    assert labels == [predictor.labels[i] for i in expected]

    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield images[0]

    stream = predictor.stream(endless(), batch=batch)
    for number in range(1, 3 * batch):
        next(stream)
        assert taken <= (number - 1) // batch * batch + 2 * batch + 1
    stream.close()  # type: ignore[attr-defined]


def test_what_a_generator_raises_is_raised(model: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from pixels(32, 32, 3)
        raise OSError("the camera is gone")

    stream = verydeep.load(model).stream(broken(), batch=2)
    for _ in range(3):
        assert isinstance(next(stream), Answer)
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)


def test_closing_while_others_call(model: Path) -> None:
    """Eight threads, one of which closes all the time; a predictor is used again after each `with`."""
    predictor = verydeep.load(model, engine="openvino", threads=1)
    images = pixels(32, 32, 3)
    expected = predictor.scores(images)

    def task(number: int) -> None:
        for _ in range(10):
            if number:
                assert_allclose(predictor.scores(images), expected, rtol=1e-4, atol=1e-5)
            else:
                predictor.close()

    at_once(task)
    for _ in range(2):
        with predictor as same:
            assert_allclose(same.scores(images), expected, rtol=1e-4, atol=1e-5)
    assert_allclose(pickle.loads(pickle.dumps(predictor)).scores(images), expected, rtol=1e-4)


def test_in_asyncio(model: Path) -> None:
    predictor = verydeep.load(model)
    images = pixels(32, 32, 6)
    labels = [answer.label for answer in predictor(list(images))]

    async def ask() -> list[Answer]:
        calls = [asyncio.to_thread(predictor, image) for image in images]
        return await asyncio.gather(*calls)

    assert [answer.label for answer in asyncio.run(ask())] == labels


@pytest.mark.parametrize("end", ["dropped", "closed", "interrupted"])
@pytest.mark.filterwarnings("error")
def test_a_stream_left_half_way_ends_its_threads(model: Path, end: str) -> None:
    predictor = verydeep.load(model, engine="onnxruntime", threads=1)
    before = set(threading.enumerate())
    ended = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        try:
            yield from itertools.cycle(pixels(32, 32, 4))
        finally:
            ended.set()

    stream = predictor.stream(frames(), batch=2)
    next(stream)
    if end == "closed":
        stream.close()  # type: ignore[attr-defined]
    elif end == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del stream
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    gc.collect()
    assert ended.wait(10)
