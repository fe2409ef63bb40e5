"""The race and what is made of it: the quickest engine that agrees, and none that does not."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import verydeep
from verydeep import engines, errors, exporting, graphs, modelfile
from verydeep.engines import (
    ENGINES,
    Engine,
    Kind,
    Run,
    check,
    choice,
    installed,
    onnxruntime,
    processor,
    race,
)  # fmt: skip
from verydeep.engines.choice import Choice
from verydeep.engines.race import Memory, Standing
from verydeep.errors import EngineError
from verydeep.graphs import Source, lighter, source_of
from verydeep.graphs import network as graph
from verydeep.graphs.writer import Graph
from verydeep.preprocess import TORCHVISION, Preprocess

from .conftest import Outcome
from .conftest import Run as Command
from .tiny import model_file, photo, pixels, tiny, weights


class Planted:
    """Engines that take as long, and lie as much, as a test wants; each opening is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self._patch = monkeypatch
        self._kinds: dict[str, Kind] = {"onnxruntime": ENGINES["onnxruntime"]}
        monkeypatch.setattr(choice, "installed", lambda: tuple(self._kinds.values()))

        def opened(name: str, *args: Any, **told: Any) -> Engine:
            self.opened.append(name)
            return Engine(name, *args, **told)

        monkeypatch.setattr(choice, "Engine", opened)
        monkeypatch.setattr(race, "Engine", opened)

    def add(
        self, name: str, *, seconds: float = 0.0, factor: float = 1.0, fails: bool = False,
        value: float | None = None,
    ) -> None:  # fmt: skip
        """An engine that answers as ONNX Runtime does, times `factor`, `seconds` later."""
        kind = Kind(name, "numpy", ("numpy",), ("exact", "fast", "half"))

        def prepare(engine: Engine) -> Run:
            if fails:
                raise EngineError(f"{name} did not take the graph: it is on fire")
            inner = onnxruntime.prepare(engine)

            def run(image: np.ndarray) -> dict[str, np.ndarray]:
                time.sleep(seconds)
                outputs = {k: v * np.float32(factor) for k, v in inner(image).items()}
                if value is not None:
                    outputs["scores"][-1, 0] = value
                return outputs

            return run

        module = SimpleNamespace(
            prepare=prepare, variants=lambda *_: ({},), devices=lambda: ("cpu",)
        )
        self._kinds[name] = kind
        self._patch.setitem(ENGINES, name, kind)
        real = Kind.load
        self._patch.setattr(Kind, "load", lambda self: module if self.name == name else real(self))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    return Planted(monkeypatch)


@pytest.fixture(scope="module")
def built() -> Graph:
    net = tiny(head="small")
    return graph.build(net, weights(net), TORCHVISION)


def keyed(built: Graph, find_key: Callable[[], str]) -> Source:
    return replace(Source.of(built), find_key=find_key)


def choose(built: Graph, **told: Any) -> Choice:
    return Choice(Source.of(built), threads=1, device="cpu", **told)


BATCH = pixels(32, 32, 8)


def test_the_quickest_wins(
    planted: Planted, built: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.add("slow", seconds=0.2)
    planted.add("slower", seconds=1.0)
    engine = choose(built).engine(BATCH, to_come=100)
    assert engine.name == "onnxruntime"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0] == (
        "verydeep: measuring which engine is the quickest here: onnxruntime, slow, slower on 8 images of "
        "32x32"
    )
    assert re.fullmatch(
        r"verydeep: chose onnxruntime: [\d.]+ ms an image, [\d.]+ times as fast as slow \([\d.]+\), [\d.]+ "
        r"as slower \([\d.]+\); remembered for this model until an engine or verydeep is updated or "
        r"`verydeep cache clear`",
        said[1],
    )
    (row,) = Memory().choices()
    assert [r["engine"] for r in row["standings"]] == ["onnxruntime", "slow", "slower"]


def test_ncnn_by_name_has_an_image_a_thread(built: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `auto` would, without a race; and no second engine for a batch of another size."""
    named = Choice(Source.of(built), engine="ncnn", threads=2)
    engine = named.engine(BATCH)
    assert engine.settings == {"streams": 2}
    assert named.engine(BATCH[:1], batch=8) is named.engine(BATCH[:3]) is engine
    assert Choice(Source.of(built), engine="ncnn", threads=2).engine(BATCH[:1]).settings == {}
    assert Choice(Source.of(built), engine="mnn", threads=2).engine(BATCH).settings == {}

    def too_large(self: Engine, _: tuple[int, ...]) -> None:
        if self.settings:
            raise EngineError("two at once are too many")

    monkeypatch.setattr(Engine, "require_memory", too_large)
    assert named.engine(BATCH).settings == {}


class Field:
    """Engines that a race may open, on a clock of their own: nobody waits, and nothing disturbs them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: Callable[[int], float]) -> None:
        self.now, self.seconds, self.opened, self.ran = 0.0, seconds, [], []  # type: ignore[var-annotated]
        self.extra = 0.0  # seconds that a run takes longer where the graph is whole
        self.wrong: set[tuple[str, tuple[str, ...]]] = set()  # engine and outputs
        field = self

        class Timed:
            def __init__(self, name: str, graph: Source, *, device: str, settings: Any, **_: Any):
                self.name, self.device, self.settings, self.graph = name, device, settings, graph
                if self.called not in field.seconds:
                    raise EngineError("it is not there")
                field.opened.append((self.called, graph.outputs))

            @property
            def called(self) -> str:
                return f"{self.name}{'' if self.device == 'cpu' else '_' + self.device}"

            def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
                field.now += field.seconds[self.called](len(image))
                field.now += field.extra * (self.graph is not field.light)
                field.ran.append((self.called, len(image)))
                value = 1.5 if (self.called, self.graph.outputs) in field.wrong else 1.0
                return {name: np.full((len(image), 2), value) for name in self.graph.outputs}

        clock = SimpleNamespace(perf_counter=lambda: self.now, sleep=lambda _: None)
        monkeypatch.setattr(race, "time", clock)
        monkeypatch.setattr(race, "Engine", Timed)
        self.graph = cast(Source, SimpleNamespace(outputs=("scores",)))
        self.light = self.graph
        monkeypatch.setattr(race, "lighter", lambda _: (self.light, self.graph))
        real = Kind.variants
        monkeypatch.setattr(
            Kind, "variants",
            lambda kind, *told: ({},) if kind.package == "none" else real(kind, *told),
        )  # fmt: skip

    def race(
        self,
        *,
        batch: int = 8,
        threads: int = 1,
        devices: tuple[str, ...] = ("cpu",),
        backwards: bool = False,
        known: tuple[Standing, ...] = (),
    ) -> tuple[str, tuple[Standing, ...]]:
        names = [name for name in self.seconds if "_" not in name]
        kinds = [Kind(name, "none", ("none",), ("fast",), ("cpu", "cuda")) for name in names]
        winner, rows = race.race(
            self.graph, np.zeros((batch, 32, 32, 3), np.uint8), kinds[:: -1 if backwards else 1],
            precision="fast", threads=threads, devices=devices, known=known,
        )  # fmt: skip
        return winner.name, rows


def steady(seconds: float) -> Callable[[int], float]:
    return lambda images: images * seconds


def test_an_engine_that_is_slow_on_the_processor_may_win_on_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("verydeep.engines.torch.devices", lambda: ("cuda", "cpu"))
    field = Field(
        monkeypatch, onnxruntime=steady(0.03), torch=steady(0.2), torch_cuda=steady(0.001)
    )
    winner, rows = field.race(devices=("cpu", "cuda"))
    assert [(row.engine, row.device) for row in rows] == [
        ("torch", "cuda"), ("onnxruntime", "cpu"), ("torch", "cpu"),
    ]  # fmt: skip
    assert winner == "torch"


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_does_not_decide(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three that lie within three per cent, too; the hopeless are not looked at for long."""
    field = Field(
        monkeypatch, onnxruntime=steady(0.01), slow=steady(0.0065), third=steady(0.00412),
        second=steady(0.00404), first=steady(0.004),
    )  # fmt: skip
    winner, rows = field.race(backwards=backwards)
    assert winner == "first"
    assert [row.engine for row in rows[:3]] == ["first", "second", "third"]
    for row in rows:
        others = [other.seconds for other in rows if other.engine == row.engine]
        assert others == [pytest.approx(field.seconds[row.engine](1))]
        assert row.images == 8
    assert max(row.pairs for row in rows) == race.MOST_PAIRS
    if not backwards:
        assert sum(name == "onnxruntime" for name, _ in field.ran) == 2  # as the judge
        assert sum(name == "slow" for name, _ in field.ran) == 3  # once more before it is out


@pytest.mark.parametrize(("backwards", "pairs"), [(False, {1}), (True, {1, 2})])
def test_who_is_behind_in_a_run_and_a_pair_has_no_other(
    backwards: bool, pairs: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs two runs; who is ahead, and not by far, has to be so twice."""
    field = Field(monkeypatch, onnxruntime=steady(0.05), other=steady(0.013), first=steady(0.01))
    winner, rows = field.race(backwards=backwards)
    assert winner == "first"
    assert {row.pairs for row in rows if row.pairs} == pairs


@pytest.mark.parametrize("quick", ["first", "second"])
def test_a_disturbance_does_not_decide(quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs after opening, and now and then another one, take half as long again."""
    runs = dict.fromkeys(("first", "second"), 0)

    def disturbed(name: str) -> Callable[[int], float]:
        def seconds(images: int) -> float:
            runs[name] += 1
            slow = runs[name] <= 2 or (name == quick and runs[name] % 4 == 0)
            return images * (0.04 if name == quick else 0.043) * (1.4 if slow else 1)

        return seconds

    field = Field(
        monkeypatch, onnxruntime=steady(0.2), first=disturbed("first"), second=disturbed("second")
    )
    winner, rows = field.race()
    assert winner == quick
    assert max(row.pairs for row in rows) >= 3


def test_what_an_engine_does_once_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as preparing each layer when it first meets a batch of that size."""
    met: set[int] = set()

    def prepared(images: int) -> float:
        once = 0.0 if images in met else 5.0
        met.add(images)
        return once + images * 0.004

    field = Field(monkeypatch, onnxruntime=steady(0.01), quick=prepared)
    winner, rows = field.race()
    assert (winner, rows[0].seconds) == ("quick", pytest.approx(0.004))


@pytest.mark.parametrize("first", [True, False])
def test_the_hopeless_run_once(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine one may take minutes for what the reference does in a second."""
    busy = {"busy": steady(8.0)}
    quick = {"quick": steady(0.004)}
    entrants = quick | busy if first else busy | quick  # the last of them comes first
    field = Field(monkeypatch, onnxruntime=steady(0.01), **entrants)
    winner, rows = field.race()
    assert winner == "quick"
    assert [row.engine for row in rows] == ["quick", "onnxruntime", "busy"]
    assert rows[-1].seconds == pytest.approx(8.0)
    ran = sum(name == "busy" for name, _ in field.ran)
    assert ran == (2 if first else 1)  # as champion once more, against who comes next


@pytest.mark.parametrize("engine", ["auto", "ncnn"])
def test_numbers_may_be_numpys(built: Graph, planted: Planted, engine: str) -> None:
    """They are written into JSON, and given to engines."""
    two, eight, many = np.int64(2), np.uint8(8), np.int32(100)
    chosen = Choice(Source.of(built), engine=engine, threads=two, device="cpu")  # type: ignore[arg-type]
    planted.add("slow", seconds=0.05)
    assert chosen.engine(BATCH, batch=eight, to_come=many).threads == 2  # type: ignore[arg-type]
    assert type(chosen.engine(BATCH).threads) is int
    assert len(Memory().choices()) == (engine == "auto")


def test_a_batch_is_cut_but_never_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shares a batch out to threads is slow for one image, and quickest for eight."""

    def shared(images: int) -> float:
        return 0.5 * -(-images // 2)  # two at a time

    field = Field(monkeypatch, onnxruntime=steady(1.0), whole=steady(0.3), shared=shared)
    assert field.race(batch=1, threads=2)[0] == "whole"
    winner, rows = field.race(batch=8, threads=2)
    assert winner == "shared"
    assert {row.images for row in rows} == {2}
    assert max(images for _, images in field.ran) == 2
    for batch, threads, images in ((1, 2, 1), (8, 1, 2), (8, 3, 3), (8, 4, 4), (8, 6, 6), (64, 16, 16),
                                   (3, 2, 2), (2, 8, 2)):  # fmt: skip
        assert race.fewest(batch, threads) == images


def test_only_the_winner_is_prepared_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Large FC layers are left out of the race; who is wrong with them is caught, the next one taken."""
    seconds = {"onnxruntime": 0.2, "far": 0.06, "near": 0.044, "quick": 0.04}
    field = Field(monkeypatch, **{name: steady(value) for name, value in seconds.items()})
    field.light = cast(Source, SimpleNamespace(outputs=("map",)))
    monkeypatch.setattr(field, "graph", cast(Source, SimpleNamespace(outputs=("scores", "map"))))

    def whole() -> list[str]:
        return [name for name, outputs in field.opened if outputs == field.graph.outputs]

    field.extra = 0.1
    winner, rows = field.race()
    assert winner == "quick"
    assert whole() == [
        "onnxruntime",
        "quick",
        "near",
    ]  # the judge, the winner and who was close to it
    assert [row.engine for row in rows] == list(seconds)[::-1]
    field.opened.clear()
    field.wrong.add(("quick", field.graph.outputs))
    winner, rows = field.race()
    assert winner == "near"
    assert [row.engine for row in rows] == ["near", "far", "onnxruntime"]
    assert "engine quick is left out: its relative error on this model" in capsys.readouterr().err
    field.wrong.add(("near", field.graph.outputs))
    field.opened.clear()
    winner, rows = field.race()
    assert (winner, whole()) == ("far", ["onnxruntime", "quick", "near", "far"])


@pytest.mark.parametrize(
    "taps", [(), ("relu6", "relu3_1"), ("fc8", "prob"), ("conv5_2", "avgpool")]
)
def test_a_graph_without_its_large_layers(
    taps: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that stands before them: the same values, none of their weights, another key."""
    net = tiny(head="classic")
    held = Source.of(graph.build(net, weights(net), TORCHVISION, taps=taps))
    assert lighter.lighter(held) == (held, held)
    monkeypatch.setattr(lighter, "LARGE_BYTES", 1 << 10)
    light, both = lighter.lighter(held)
    assert both.outputs[: len(held.outputs)] == held.outputs
    before = {tap for tap in taps if tap in net.cut(("avgpool",)).taps}
    assert set(light.outputs) == {"flat", *before}
    assert set(light.outputs) <= set(both.outputs)
    assert not [name for name in light.graph.weights if name.startswith("fc")]
    assert len({light.key, both.key, held.key}) == 3
    image = pixels(64, 64)
    whole = Engine("onnxruntime", held, threads=1).run(image)
    more = Engine("onnxruntime", both, threads=1).run(image)
    for name in held.outputs:
        np.testing.assert_array_equal(more[name], whole[name])
    for kind in installed():
        part = Engine(kind.name, light, precision="exact", threads=1, device="cpu").run(image)
        assert race.worst_error(part, {name: more[name] for name in light.outputs}) < 1e-5


def test_a_model_with_large_layers_is_raced(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lighter, "LARGE_BYTES", 1 << 10)
    net = tiny(head="classic")
    planted.add("liar", factor=1.01)
    source = Source.of(graph.build(net, weights(net), TORCHVISION))
    engine = Choice(source, threads=1, device="cpu").engine(BATCH, to_come=100)
    assert (engine.name, engine.source) == ("onnxruntime", source)
    (row,) = Memory().choices()
    assert [r["engine"] for r in row["standings"]] == ["onnxruntime"]


def test_of_known_layers_only_the_quickest_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge, the winner and who was close to it; others where these are wrong with the new weights."""
    seconds = {"onnxruntime": 0.2, "far": 0.06, "near": 0.044, "quick": 0.04}
    field = Field(monkeypatch, **{name: steady(value) for name, value in seconds.items()})
    _, known = field.race()
    field.opened.clear()

    def opened() -> list[str]:
        return [name for name, _ in field.opened]

    winner, rows = field.race(known=known)
    assert (winner, opened()) == ("quick", ["onnxruntime", "quick"])
    assert [row.engine for row in rows] == [row.engine for row in known]
    field.seconds["quick"] = steady(0.4)  # it was quick on another day
    assert field.race(known=known)[0] == "near"
    field.seconds["quick"] = steady(0.04)
    field.wrong.add(("quick", field.graph.outputs))
    field.opened.clear()
    winner, rows = field.race(known=known)
    assert (winner, opened()[:2]) == ("near", ["onnxruntime", "quick"])
    assert [row.engine for row in rows] == ["near", "far", "onnxruntime"]
    assert "engine quick is left out: its relative error on this model" in capsys.readouterr().err
    # the judge is opened once, where it won; who is not there any more is not waited for
    field.seconds["onnxruntime"] = steady(0.01)
    _, known = field.race()
    field.opened.clear()
    assert field.race(known=known)[0] == "onnxruntime"
    assert opened() == ["onnxruntime"]
    assert field.race(known=(replace(known[0], engine="gone"),))[0] == "onnxruntime"


def test_who_cannot_make_up_for_it_is_not_prepared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """FC layers are read once a batch: the less they take of it, the fewer engines they can put first."""
    field = Field(monkeypatch, onnxruntime=steady(0.2), near=steady(0.044), quick=steady(0.04))
    field.light = cast(Source, SimpleNamespace(outputs=("map",)))
    monkeypatch.setattr(field, "graph", cast(Source, SimpleNamespace(outputs=("scores", "map"))))
    monkeypatch.setattr(race, "RUN_SECONDS", 1e-9)  # two images of a batch are run
    for read, batch, whole in ((0.01, 8, ["quick"]), (0.02, 2, ["quick", "near"])):
        field.extra = read
        field.opened.clear()
        winner, rows = field.race(batch=batch)
        assert winner == "quick"
        assert [row.engine for row in rows] == ["quick", "near", "onnxruntime"]
        opened = [name for name, outputs in field.opened if outputs == field.graph.outputs]
        assert opened == ["onnxruntime", *whole]


def test_a_race_of_the_same_layers_is_remembered(
    planted: Planted, built: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.add("slow", seconds=0.2)
    choose(built).engine(BATCH, to_come=100)
    net = tiny(head="small")
    others = {name: value * 2 for name, value in weights(net).items()}
    planted.opened.clear()
    capsys.readouterr()
    other = choose(graph.build(net, others, TORCHVISION))
    assert other.engine(BATCH, to_come=100).name == "onnxruntime"
    assert planted.opened == ["onnxruntime"]
    assert "checking onnxruntime, the quickest for another model of the same layers, on 8" in (
        capsys.readouterr().err
    )
    first, second = Memory().choices()
    assert first["layers"] == second["layers"]
    assert first["race"]["graph"] != second["race"]["graph"]
    about, layers = first["race"], first["layers"]
    another = about | {"graph": "another"}
    assert [row.engine for row in Memory().alike(another, layers)] == ["onnxruntime", "slow"]
    assert Memory().alike(another | {"batch": 4}, layers) == ()
    assert Memory().alike(another, "others") == ()
    # a race that left an engine out says less; a row that is damaged, or the graph's own, nothing
    some = [Standing("slow", "cpu", {}, 0.1, 8, 0.0)]
    for graph_key, standings in (("partial", some), ("empty", []), ("another", some)):
        Memory().remember(about | {"graph": graph_key}, standings, layers)
    assert [row.engine for row in Memory().alike(another, layers)] == ["onnxruntime", "slow"]
    Memory().clear()
    Memory().remember(another, some, layers)
    assert Memory().alike(another, layers) == ()


def test_a_forked_child_leaves_what_is_remembered(
    planted: Planted, built: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that cannot be opened in the child may well be the quickest elsewhere."""
    planted.add("gone", fails=True)
    chosen = choose(built)
    about = chosen._about([ENGINES["onnxruntime"], ENGINES["gone"]], BATCH, 8)
    Memory().remember(about, [Standing("gone", "cpu", {}, 0.001, 8, 0.0)])
    for begun_in, remembered in ((-1, ["gone"]), (os.getpid(), ["onnxruntime"])):
        monkeypatch.setattr(choice, "BEGUN_IN", begun_in)
        assert choose(built).engine(BATCH, to_come=100).name == "onnxruntime"
        (row,) = Memory().choices()
        assert [one["engine"] for one in row["standings"]] == remembered


def test_photos_of_many_sizes_are_not_raced_each_length_by_itself(
    planted: Planted, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.add("other")
    raced: list[int] = []
    real = Choice._race

    def counted(self: Choice, kinds: Any, pixels: np.ndarray, *rest: Any, **more: Any) -> Engine:
        raced.append(len(pixels))
        return real(self, kinds, pixels, *rest, **more)

    monkeypatch.setattr(Choice, "_race", counted)
    predictor = verydeep.load(model)
    images = [pixels(32 + 16 * (n % 3 > 0), 48, 1)[0] for n in range(60)]
    list(predictor.features_stream(images, size="own", pool="avg"))
    assert not raced


def test_one_image_and_several_have_their_own_ncnn(model: Path) -> None:
    if not ENGINES["ncnn"].available:
        pytest.skip("no ncnn")
    predictor = verydeep.load(model, engine="ncnn", threads=2)
    image = pixels(32, 32, 1)[0]
    for count in (8, 1, 8):
        predictor([image] * count)
    (kept,) = predictor._choices.values()
    assert [key[2:] for key in kept._open] == [(("streams", 2),), ()]


def test_a_program_without_its_sources(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen one: its files of Python are not there."""
    monkeypatch.setattr(graphs, "_PACKAGE", Path("/frozen"))
    assert len(verydeep.load(model)([pixels(32, 32, 1)[0]] * 40)) == 40


def test_what_layers_are_the_same() -> None:
    """The numbers, the classes and the pixels' scale do not matter; the convolutions and pools do."""

    def layers(pre: Preprocess = TORCHVISION, name: str = "vgg11", **facts: Any) -> str:
        net = tiny(name, head="small", **facts)
        return lighter.layers_of(Source.of(graph.build(net, weights(net), pre)))

    same = layers()
    assert same == layers(classes=9)
    assert same == layers(replace(TORCHVISION, mean=(0.0, 0.0, 0.0)))
    others = [{"pool": "avg"}, {"name": "vgg13"}, {"width": 1 / 8}, {"name": "vgg11_lrn"}]
    assert same not in [layers(**other) for other in others]
    assert layers(width=1 / 64) != layers(name="vgg13", width=1 / 64)
    net = tiny(head="small")
    tapped = graph.build(net, weights(net), TORCHVISION, taps=("relu1_1",))
    assert lighter.layers_of(Source.of(tapped)) != same


def test_a_wrong_engine_is_left_out(
    planted: Planted, built: Graph, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """However quick: wrong by a little, by not being a number, or by not working at all."""
    real = onnxruntime.prepare

    def prepare(engine: Engine) -> Run:
        run = real(engine)
        return lambda image: (time.sleep(0.05), run(image))[1]

    planted.add("liar", factor=1.01)
    planted.add("nan", value=np.nan)
    planted.add("infinite", value=np.inf)
    planted.add("broken", fails=True)
    monkeypatch.setattr(onnxruntime, "prepare", prepare)  # the reference is the slowest of all
    engine = choose(built).engine(BATCH, to_come=100)
    assert engine.name == "onnxruntime"
    said = capsys.readouterr().err
    assert (
        "engine liar is left out: its relative error on this model is 1.0e-02, and fast allows 1e-03"
        in said
    )
    assert "engine nan is left out: nan fast gave scores that are not finite" in said
    assert "engine infinite is left out: infinite fast gave scores that are not finite" in said
    assert "engine broken is left out: broken did not take the graph: it is on fire" in said
    (row,) = Memory().choices()
    assert [r["engine"] for r in row["standings"]] == ["onnxruntime"]


@pytest.mark.parametrize(("precision", "stays"), [("exact", False), ("fast", True), ("half", True)])
def test_the_check_is_the_precision_s(
    planted: Planted, built: Graph, precision: str, stays: bool
) -> None:
    planted.add("near", factor=1.0005)
    choose(built, precision=precision).engine(BATCH, to_come=100)
    (row,) = Memory().choices()
    assert ("near" in [r["engine"] for r in row["standings"]]) == stays


def test_a_handful_is_not_worth_a_race(planted: Planted, built: Graph) -> None:
    planted.add("other")
    chosen = choose(built)
    for _ in range(3):
        assert chosen.engine(BATCH, batch=8).name == "onnxruntime"
    assert planted.opened == ["onnxruntime"]
    assert Memory().choices() == []
    chosen.engine(BATCH, batch=8)  # the 32nd image: who has seen many will see many
    assert len(Memory().choices()) == 1


def test_a_winner_that_starts_slowly_waits_for_a_handful(planted: Planted, built: Graph) -> None:
    """Neither it nor what is remembered is touched for a few; open already, it serves one as well."""
    planted.add("quick")
    kinds = [ENGINES["onnxruntime"], ENGINES["quick"]]
    for batch in (1, 8):
        about = choose(built)._about(kinds, BATCH[:batch], batch)
        Memory().remember(about, [Standing("quick", "cpu", {}, 0.01, batch, 0.0)])

    def never() -> str:
        raise AssertionError("the model file was hashed")

    source = keyed(built, never)
    few = Choice(source, threads=1, device="cpu")
    for _ in range(choice.HANDFUL - 1):
        assert few.engine(BATCH[:1]).name == "onnxruntime"
    vars(source)["key"] = Source.of(built).key
    assert few.engine(BATCH[:1]).name == "quick"  # who has seen a handful
    many = Choice(source, threads=1, device="cpu")
    assert many.engine(BATCH).name == "quick"
    alone = Choice(source, threads=1, device="cpu")
    assert alone.engine(BATCH[:1], to_come=choice.HANDFUL - 1).name == "quick"
    assert alone.engine(BATCH[:2]).name == "quick"


def test_the_winner_is_remembered(
    planted: Planted, built: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.add("slow", seconds=0.05)
    source = keyed(built, lambda: "k" * 64)
    told: dict[str, Any] = {"threads": 1, "device": "cpu"}
    Choice(source, **told).engine(BATCH, to_come=100)
    assert len(Memory().choices()) == 1
    planted.opened.clear()
    assert Choice(source, **told).engine(BATCH, to_come=100).name == "onnxruntime"
    assert planted.opened == ["onnxruntime"]
    # anything that the result depends on changes: another race
    for change in ("processor", "version", "threads", "precision", "batch", "graph"):
        with monkeypatch.context() as patch:
            told_now, key, batch = dict(told), "k" * 64, BATCH
            if change == "processor":
                patch.setattr(choice, "processor", lambda: "another")
            elif change == "version":
                patch.setattr(Kind, "version", "9.9")
            elif change == "threads":
                told_now["threads"] = 2
            elif change == "precision":
                told_now["precision"] = "half"
            elif change == "batch":
                batch = BATCH[:4]
            else:
                key = "l" * 64
            before = len(Memory().choices())
            Choice(keyed(built, partial(str, key)), **told_now).engine(batch, to_come=100)
            assert len(Memory().choices()) == before + 1, change


def test_what_was_raced_is_what_is_remembered(
    planted: Planted, built: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image tells nothing of eight, nor does what an earlier version of verydeep remembered."""
    planted.add("other", seconds=0.05)
    chosen = choose(built)
    assert chosen.engine(BATCH[:1], batch=8, to_come=100).name == "onnxruntime"
    assert Memory().choices() == []
    about = chosen._about([ENGINES["onnxruntime"], ENGINES["other"]], BATCH, 8)
    old = {key: value for key, value in about.items() if key != "images"}
    with monkeypatch.context() as then:
        then.setattr(choice, "__version__", "0.1.0")
        earlier = chosen._about([ENGINES["onnxruntime"], ENGINES["other"]], BATCH, 8)
    for race_of in (old, earlier):
        Memory().remember(race_of, [Standing("other", "cpu", {}, 0.001, 1, 0.0)])
    monkeypatch.setattr(race, "RUN_SECONDS", 1e-9)
    assert chosen.engine(BATCH, batch=8, to_come=100).name == "onnxruntime"
    row = Memory().choices()[-1]
    assert (row["race"]["batch"], row["race"]["images"]) == (8, 2)
    assert {one["images"] for one in row["standings"]} == {2}


def test_threads_that_come_first_race_once(planted: Planted, built: Graph) -> None:
    planted.add("slow", seconds=0.02)
    chosen = choose(built)
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: chosen.engine(BATCH, to_come=100), range(8)))
    assert len(set(map(id, engines))) == 1
    assert planted.opened == ["onnxruntime", "slow"]
    alone = choose(built, engine="slow")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: alone.engine(BATCH), range(8)))
    assert planted.opened == ["onnxruntime", "slow", "slow"]


@pytest.mark.parametrize("writable", [True, False])
def test_predictors_of_one_model_race_once(
    writable: bool, planted: Planted, built: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread has a choice of its own, as each has that loads the model."""
    if not writable:
        (tmp_path / "file").touch()
        monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "file" / "cache"))
    planted.add("slow", seconds=0.02)
    source, start = keyed(built, lambda: "k" * 64), Barrier(8)

    def one(_: int) -> str:
        start.wait()
        return Choice(source, threads=1, device="cpu").engine(BATCH, to_come=100).name

    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(one, range(8))} == {"onnxruntime"}
    assert planted.opened.count("slow") == 1


def test_another_process_s_race_is_waited_for(planted: Planted, built: Graph) -> None:
    planted.add("slow", seconds=0.02)
    source, waits = keyed(built, lambda: "k" * 64), Event()
    Choice(source, threads=1, device="cpu").engine(BATCH, to_come=100)
    (held,) = Memory().choices()
    Memory().clear()
    planted.opened.clear()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "another process is measuring engines" in record.getMessage():
                waits.set()

    ear = Ear()
    errors.log.addHandler(ear)
    try:
        with ThreadPoolExecutor(1) as pool:
            with race.alone():  # as the other process has it
                chosen = pool.submit(
                    Choice(source, threads=1, device="cpu").engine, BATCH, to_come=100
                )
                assert waits.wait(60)
                standings = [race.Standing(**row) for row in held["standings"]]
                Memory().remember(held["race"], standings)
            assert chosen.result(60).name == "onnxruntime"
    finally:
        errors.log.removeHandler(ear)
    assert planted.opened == ["onnxruntime"]


def test_an_engine_that_broke_since(
    planted: Planted, built: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.add("gone", fails=True)
    source = keyed(built, lambda: "k" * 64)
    told: dict[str, Any] = {"threads": 1, "device": "cpu"}
    about = Choice(source, **told)._about([ENGINES["onnxruntime"], ENGINES["gone"]], BATCH, 8)
    rows = [
        Standing("gone", "cpu", {}, 0.01, 8, 0.0),
        Standing("onnxruntime", "cpu", {}, 0.02, 8, 0.0),
    ]
    Memory().remember(about, rows)
    assert Choice(source, **told).engine(BATCH, to_come=100).name == "onnxruntime"
    assert "engine gone is left out: gone did not take the graph" in capsys.readouterr().err


def test_an_engine_whose_package_cannot_be_imported(
    tmp_path: Path, built: Graph, monkeypatch: pytest.MonkeyPatch, verydeep: Command
) -> None:
    """A race goes on without it; who asks for it, or exports for it, is told why."""
    (tmp_path / "ncnn").mkdir()
    (tmp_path / "ncnn" / "__init__.py").write_text(
        "raise ImportError('libgomp.so.1: no such file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for name in ("ncnn", "verydeep.engines.ncnn", "verydeep.exporting.ncnn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for module in (engines, exporting):
        monkeypatch.delattr(module, "ncnn", raising=False)
    kinds = [ENGINES["onnxruntime"], ENGINES["ncnn"]]
    winner, _ = race.race(Source.of(built), BATCH, kinds, precision="exact", threads=1)
    assert winner.name == "onnxruntime"
    assert "GOMP_SPINCOUNT" not in os.environ  # is told as ncnn is imported, to it alone
    why = "ncnn is installed and cannot be imported: libgomp.so.1: no such file"
    with pytest.raises(EngineError, match=why):
        Engine("ncnn", built)
    done = verydeep(
        "export", model_file(tmp_path / "m"), "--to", "ncnn", "--out", tmp_path / "m.param"
    )
    assert done.status == 2
    assert why in done.err


def test_a_torch_that_cannot_be_imported(
    tmp_path: Path, built: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is imported only where its devices are asked for."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    why = "torch is installed and cannot be imported: libcudart.so.12"
    with pytest.raises(EngineError, match=why):
        Engine("torch", built)
    with pytest.raises(EngineError, match=why):
        engines.check("torch", "exact", "cuda")
    kinds = [ENGINES["onnxruntime"], ENGINES["torch"]]
    devices = ("cpu", "cuda")
    winner, _ = race.race(
        Source.of(built), BATCH, kinds, precision="exact", threads=1, devices=devices
    )
    assert winner.name == "onnxruntime"


def test_what_takes_more_memory_than_there_is(
    built: Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ncnn takes three times what others do of an image: with too large ones it does not win, or stay."""
    source, batch = replace(Source.of(built), maps=8), pixels(64, 64, 8)
    chosen = Choice(source, threads=1, device="cpu")
    chosen._settled[8] = ncnn = Engine("ncnn", source, precision="fast", threads=1)
    assert chosen.engine(batch, batch=8) is ncnn
    one = 2 * 4 * source.maps * 64 * 64  # bytes of its first two layers
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10 * one, "SC_PAGE_SIZE": 1}.__getitem__)
    assert len(ncnn.run(batch)["scores"]) == 8  # one after another
    larger = pixels(128, 128, 2)
    assert chosen.engine(larger, batch=8).name == "onnxruntime"
    with pytest.raises(EngineError, match="1 image of 128x128 at once would take"):
        ncnn.run(larger)
    assert len(Engine("onnxruntime", source).run(larger)["scores"]) == 2
    kinds = [ENGINES["onnxruntime"], ENGINES["ncnn"]]
    winner, standings = race.race(source, larger, kinds, precision="fast", threads=1)
    assert [row.engine for row in standings] == [winner.name] == ["onnxruntime"]
    assert "engine ncnn is left out: 1 image of 128x128 at once" in capsys.readouterr().err


def test_what_cannot_be_remembered_is_not_said_to_be(
    planted: Planted, built: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "file"))
    planted.add("other", seconds=0.01)
    choose(built).engine(BATCH, to_come=100)
    said = capsys.readouterr().err
    assert "file cannot be written" in said
    assert "chose onnxruntime" in said
    assert "remembered for this model" not in said


def test_one_engine_needs_no_race(planted: Planted, built: Graph) -> None:
    assert choose(built).engine(BATCH, to_come=1000).name == "onnxruntime"
    assert Memory().choices() == []
    assert planted.opened == ["onnxruntime"]


@pytest.mark.parametrize("precision", ["exact", "fast", "half"])
def test_the_real_engines(built: Graph, precision: str) -> None:
    chosen = Choice(
        Source.of(built), precision=precision, threads=1, device="cpu",
    )  # fmt: skip
    winner = chosen.engine(BATCH, to_come=100)
    assert winner.precision == precision
    (row,) = Memory().choices()
    ran = {r["engine"] for r in row["standings"]}
    assert {"onnxruntime", "openvino", "ncnn", "mnn"} <= ran
    assert all(r["error"] <= engines.TOLERANCES[precision] for r in row["standings"])
    assert chosen.engine(BATCH) is winner
    assert chosen.engine(BATCH[:3], batch=8) is winner  # the last, smaller batch of a stream


def test_refusals(built: Graph) -> None:
    with pytest.raises(
        EngineError, match=r"engine 'onxruntime' is unknown; did you mean onnxruntime"
    ):
        Choice(Source.of(built), engine="onxruntime")
    with pytest.raises(EngineError, match="precision 'exakt' is unknown; did you mean exact"):
        Choice(Source.of(built), precision="exakt")
    with pytest.raises(EngineError, match="device 'gpu' is unknown"):
        Choice(Source.of(built), device="gpu")


def test_a_key_depends_on_all_that_builds_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that was prepared by older code must not be found again."""
    model = modelfile.read(model_file(tmp_path / "m.safetensors"))
    house = tmp_path / "verydeep"
    shutil.copytree(
        Path(verydeep.__file__).parent,
        house,
        ignore=lambda _, names: [n for n in names if n == "builtin"],
    )
    monkeypatch.setattr("verydeep.graphs._PACKAGE", house)
    whole = {"taps": ("relu5_2",), "scores": False, "pool": "avg", "int8": True}
    before = source_of(model, "uint8", **whole).key  # type: ignore[arg-type]
    for name in ("nets", "graphs/network", "graphs/writer", "graphs/pooling", "graphs/int8"):
        file = house / f"{name}.py"
        text = file.read_text(encoding="utf-8")
        file.write_text(f"{text}\n", encoding="utf-8")
        assert source_of(model, "uint8", **whole).key != before, name  # type: ignore[arg-type]
        file.write_text(text, encoding="utf-8")


def test_the_key_of_a_file(tmp_path: Path) -> None:
    model = modelfile.read(model_file(tmp_path / "a.safetensors"))
    key = source_of(model, "uint8").key
    again = source_of(model, "uint8")
    assert again.key == key
    facts = ("dtype", "channels", "minimum_size", "outputs")
    for fact in facts:
        assert getattr(again, fact) == getattr(Source.of(again.graph), fact)
    assert source_of(model, "float32").key != key
    model_file(tmp_path / "a.safetensors", threshold=0.5)
    changed = source_of(modelfile.read(model.path), "uint8")
    assert changed.key != key


def test_a_stream_is_raced_and_stays_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_file(tmp_path / "m.safetensors")
    files = [photo(tmp_path / f"{i % 7}.png", seed=i % 7) for i in range(45)]
    predictor = verydeep.load(model, threads=1)
    answers = list(predictor.stream(files))
    assert "measuring " in capsys.readouterr().err
    expected = verydeep.load(model, engine="onnxruntime", precision="exact")(files)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.precision == "fast"
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-3)
    assert {answer.engine for answer in answers} == {predictor.engine}  # raced on the first batch
    again = verydeep.load(model, threads=1)
    list(again.stream(files))
    assert "measuring " not in capsys.readouterr().err


def test_int8_on_a_gpu_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has CUDA and no integers: that it has the one must not stand for the other."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check("auto", "half", "cuda")
    with pytest.raises(EngineError, match="onnxruntime finds no CUDA device here"):
        check("auto", "int8", "cuda")
    with pytest.raises(EngineError, match="no engine that is installed computes int8 on mps"):
        check("auto", "int8", "mps")


def test_options_of_the_command(verydeep: Command, model: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png")
    base = ("classify", "--model", model, image, "--json")
    for engine, precision in (("onnxruntime", "exact"), ("openvino", "half"), ("mnn", "fast")):
        done: Outcome = verydeep(
            *base, "--engine", engine, "--precision", precision, "--threads", 1
        )
        assert done.status == 0, done.err
        assert f'"engine": "{engine}", "precision": "{precision}"' in done.out
    for words, message in (
        (("--engine", "onyx"), "engine 'onyx' is unknown"),
        (("--precision", "int8"), "it was not quantised, and int8 needs a file that was"),
        (("--precision", "double"), "precision 'double' is unknown"),
        (("--device", "tpu"), "device 'tpu' is unknown"),
        (("--engine", "openvino", "--device", "cuda"), "openvino runs on cpu"),
    ):
        done = verydeep(*base, *words)
        assert done.status == 2
        assert message in done.err
        assert len(done.err.splitlines()) == 1


def test_the_cache_command(
    verydeep: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))
    empty = verydeep("cache", "list")
    assert "0 prepared models, 0 of 2000 MB; 0 engine choices" in empty.out
    photos = tmp_path / "photos"
    for i in range(40):
        photo(photos / f"{i}.png", seed=i)
    done = verydeep("classify", "--model", model, photos, "--threads", 1)
    assert done.status == 0, done.err
    assert "quickest here: onnxruntime, openvino, ncnn, mnn" in done.err
    listed = verydeep("cache", "list")
    assert "1 prepared model, " in listed.out
    assert "1 engine choice\n" in listed.out
    assert "mnn-" in listed.out
    assert "fast, 8 of 32x32, 1 thread: " in listed.out
    assert '"limit_bytes": 2000000000' in verydeep("cache", "list", "--json").out
    assert " freed; " in verydeep("cache", "clear").out
    assert "0 prepared models" in verydeep("cache", "list").out


def test_processor() -> None:
    assert processor.processor()
    assert processor.cores() >= 1
