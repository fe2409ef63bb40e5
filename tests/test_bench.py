"""The race says what it measured: every entrant right, every turn taken, every ratio a median of pairs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from verydeep import benching as bench
from verydeep import engines, modelfile
from verydeep.benching import float64, plain
from verydeep.errors import EngineError, ModelFileError
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import CAFFE, TORCHVISION

from .conftest import Run
from .test_int8 import int8_file
from .tiny import model_file, pixels, tiny, weights

KEYS = {
    "engine", "precision", "batch", "ms_per_image", "speedup_vs_torch", "speedup_vs_best_plain",
    "error", "chosen",
}  # fmt: skip


def in_torch(net: Network, images: np.ndarray, preprocess: Any) -> np.ndarray:
    import torch

    from verydeep import models

    module = models.build(net)
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights(net).items()})
    # normalised in float64, so that nothing is rounded before
    low, high = preprocess.range
    x = images.astype(np.float64)[..., ::-1] if preprocess.channel_order == "BGR" else images
    x = (x / 255 * (high - low) + low - np.array(preprocess.mean)) / np.array(preprocess.std)
    with torch.inference_mode():
        found = module.eval().double()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return np.asarray(found.numpy())


@pytest.mark.parametrize("pool", ["max", "avg", "l2"])
@pytest.mark.parametrize("head", ["classic", "gap", "small"])
@pytest.mark.parametrize("name", ["vgg11_bn", "vgg11_lrn", "vgg16c"])
def test_float64_is_torchs_float64(name: str, head: str, pool: str) -> None:
    net = tiny(name, head, pool=pool)
    images = pixels(70, 99, 2)
    for preprocess in (TORCHVISION, CAFFE):
        found = float64.scores(net, weights(net), preprocess, images)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, in_torch(net, images, preprocess), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", plain.PLAIN)
def test_plain_engines_keep_their_class(name: str, tmp_path: Path) -> None:
    net = tiny("vgg11_bn", "classic")
    model = modelfile.read(model_file(tmp_path / "tiny.safetensors", net, preprocess=CAFFE))
    bench._write_onnx(model, tmp_path / "model.onnx")
    images = pixels(64, 96, 3)
    expected = float64.scores(net, weights(net), CAFFE, images)
    run = plain.PLAIN[name].open(model, tmp_path / "model.onnx", 1)
    error = engines.relative_error(run(images), expected)
    assert error <= engines.TOLERANCES[plain.PLAIN[name].precision]
    assert run(images[:1]).shape == (1, 7)


def test_the_baseline_is_torchvisions_own_module() -> None:
    from torchvision.models.vgg import VGG

    net = network("vgg11", classes=3)
    shapes = net.tensors
    tensors = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}

    class Model:
        record = modelfile.Record(network=net)

        def tensors(self) -> dict[str, np.ndarray]:
            return tensors

    assert type(plain._module(Model())) is VGG  # type: ignore[arg-type]


def test_json(verydeep: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batch sizes, a plain engine and its rival, in processes of their own."""
    few = {name: plain.PLAIN[name] for name in (plain.BASELINE, "plain onnxruntime")}
    monkeypatch.setattr(bench, "PLAIN", few)
    words = ("--engines", "onnxruntime,auto", "--precision", "exact,fast", "--batch", "1,3")
    outcome = verydeep("bench", model, *words, "--rounds", 2, "--threads", 1, "--json")
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)
    assert all(row.keys() == KEYS for row in rows)
    names = [(row["engine"], row["precision"], row["batch"]) for row in rows]
    assert sorted(names) == sorted(
        (*entrant, batch)
        for batch in (1, 3)
        for entrant in (
            (plain.BASELINE, "exact"), ("plain onnxruntime", "exact"), ("onnxruntime", "exact"),
            ("onnxruntime", "fast"), ("auto", "exact"), ("auto", "fast"),
        )
    )  # fmt: skip
    for row in rows:
        assert 0 < row["error"] < engines.TOLERANCES[row["precision"]]
        assert row["ms_per_image"] > 0
        assert row["speedup_vs_torch"] > 0
        assert (row["chosen"] in engines.ENGINES) == (row["engine"] == "auto")
        if row["engine"] == plain.BASELINE:
            assert row["speedup_vs_torch"] == 1
    # the very same computation for both precisions, so it was raced once
    for batch in (1, 3):
        exact, fast = (
            row for row in rows if (row["engine"], row["batch"]) == ("onnxruntime", batch)
        )
        assert {**exact, "precision": "fast"} == fast


def test_images_have_the_size_that_the_model_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretched to it, where that is how photos are prepared, and not the 224 pixels of others."""
    stretched = replace(TORCHVISION, resize="exact", resize_size=(64, 96), crop_size=None)
    path = model_file(tmp_path / "model.safetensors", preprocess=stretched)
    seen: list[tuple[int, ...]] = []
    scores = float64.scores
    monkeypatch.setattr(
        float64, "scores", lambda *given: (seen.append(given[3].shape), scores(*given))[1]
    )
    rows = bench.bench(path, batches=[1], rounds=1, engines=["onnxruntime"], precisions=["exact"])
    assert seen == [(1, 64, 96, 3)]
    assert all(row.error < 1e-4 for row in rows)  # the workers' images were the same ones
    tasks: list[dict[str, Any]] = []
    worker = bench.Worker
    monkeypatch.setattr(bench, "Worker", lambda *given: (tasks.append(given[2]), worker(*given))[1])
    with bench.against(path, rounds=1) as (_, times):
        assert times(path) > 0
    assert {tuple(task["sides"]) for task in tasks} == {(64, 96)}


def test_an_unprepared_network_gets_random_weights(
    monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    monkeypatch.setattr(bench, "network", tiny)
    monkeypatch.setattr(bench, "PLAIN", {})
    outcome = verydeep(
        "bench", "vgg11", "--engines", "onnxruntime", "--precision", "exact", "--batch", 1,
        "--rounds", 1, "--size", 32,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "no weights of vgg11 are at hand: random ones" in outcome.err
    header, line = outcome.out.splitlines()[1:]
    assert header.split() == (
        "engine precision ms/image x torch x plain error load s peak MB".split()
    )
    assert line.split()[:2] == ["onnxruntime", "exact"]
    assert line.split()[3:5] == ["-", "-"]  # no torch and no plain engine took part


def test_int8_runs_the_int8_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr(bench, "PLAIN", {})
    eight = int8_file(tmp_path / "int8.safetensors", tiny(), pixels(64, 64, 1)).path
    choices: dict[str, Any] = {"batches": [1], "rounds": 1, "size": 64}
    rows = bench.bench(eight, engines="onnxruntime", **choices)
    assert [row.precision for row in rows] == ["exact", "fast", "half", "int8"]
    errors = {row.precision: row.error for row in rows}
    assert errors["exact"] < 1e-5 < 1e-3 < errors["int8"]
    with pytest.raises(ModelFileError, match="`verydeep quantize` makes one"):
        bench.bench(model, precisions="int8", engines="onnxruntime", **choices)


@pytest.mark.parametrize("name", NETWORKS)
def test_random_weights_keep_the_signal_alive(name: str, tmp_path: Path) -> None:
    """Neither zeros nor infinities, which some processors compute slower or faster than numbers."""
    net = tiny(name, "classic")
    model = modelfile.read(bench.random_model(net, tmp_path / "random.safetensors"))
    images = pixels(64, 64, 1)
    found = float64.scores(net, model.tensors(), TORCHVISION, images)
    assert 1e-6 < np.abs(found).max() < 1e6
    again = modelfile.read(bench.random_model(net, tmp_path / "again.safetensors"))
    assert again.sha256 == model.sha256


class Fake(bench.Worker):
    """A worker that answers from a list of seconds, and notes who was asked when."""

    def __init__(
        self, name: str, precisions: list[str], answers: list[float], calls: list[str]
    ) -> None:
        self.entrant, self.precisions, self.answers, self.calls = name, precisions, answers, calls
        self.seconds, self.error = {}, 1e-7
        self.told = {2: {"chosen": None, "load_seconds": 1.5}}

    def ask(self, question: str, batch: int = 0) -> float:  # noqa: ARG002
        if question == "peak":
            return 4
        self.calls.append(self.entrant)
        return self.answers.pop(0)


def test_rounds_ratios_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 2 meets a slow machine: pairs see through it, and the medians of all do not matter."""
    monkeypatch.setattr(bench, "PAUSE_SECONDS", 0)
    calls: list[str] = []
    seconds = {
        plain.BASELINE: [4.0, 40.0, 4.4], "plain onnxruntime": [2.0, 16.0, 2.2],
        "plain mnn": [1.0, 9.0, 1.1], "mnn": [0.8, 8.0, 0.88],
    }  # fmt: skip
    precision = {"plain mnn": ["fast"], "mnn": ["fast", "half"]}
    workers = [
        Fake(name, precision.get(name, ["exact"]), list(given), calls)
        for name, given in seconds.items()
    ]
    bench._rounds(workers, 2, 3)
    names = list(seconds)
    assert calls == [*names, *names[1:], names[0], *names[2:], *names[:2]]
    rows = {(row.engine, row.precision): row for row in bench._rows(workers, 2)}
    mnn = rows["mnn", "fast"]
    pairs = zip(seconds[plain.BASELINE], seconds["mnn"], strict=True)
    assert mnn.speedup_vs_torch == statistics.median(a / b for a, b in pairs) == pytest.approx(5)
    assert mnn.ms_per_image == pytest.approx(440)
    assert mnn.speedup_vs_best_plain == pytest.approx(1.25)  # plain mnn is the best of its class
    assert rows["plain onnxruntime", "exact"].speedup_vs_best_plain == 1  # plain mnn is not exact
    assert rows["mnn", "half"] == bench.Row(**{**vars(mnn), "precision": "half"})
    assert (mnn.load_seconds, mnn.peak_bytes) == (1.5, 4)


def test_one_that_cannot_run_is_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies; the race goes on, and says so."""
    monkeypatch.setattr(bench, "PLAIN", {})
    real = bench.Worker.ask

    def ask(self: bench.Worker, question: str, batch: int = 0) -> Any:
        if self.precisions == ["fast"]:
            self.process.kill()
        return real(self, question, batch)

    monkeypatch.setattr(bench.Worker, "ask", ask)
    choices: dict[str, Any] = {"engines": ["onnxruntime"], "batches": [1], "rounds": 1}
    rows = bench.bench(model, precisions="exact,fast", **choices)
    assert [(row.engine, row.precision) for row in rows] == [("onnxruntime", "exact")]
    said = capsys.readouterr().err
    assert "verydeep: onnxruntime fast is left out: onnxruntime died with status -9" in said
    with pytest.raises(EngineError, match="no engine could run this model"):
        bench.bench(model, precisions="fast", **choices)


def test_peak_memory_is_the_peak_of_this_program_alone() -> None:
    code = (
        "import numpy; from verydeep.benching import _peak_bytes; before = _peak_bytes()\n"
        "held = numpy.ones(30_000_000); del held; print(before, _peak_bytes())"
    )
    held = np.ones(100_000_000)  # by the parent, of which the child must not tell
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=True
    )
    del held
    before, after = map(int, ran.stdout.split())
    assert 10e6 < before < 300e6
    assert 200e6 < after - before < 300e6


def test_refusals(verydeep: Run, model: Path, tmp_path: Path) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors", network("vgg11", width=1 / 16, classes=0))
    for words, message in (
        ((model, "--engines", "onyx"), "engine 'onyx' is unknown; expected one of: auto, onnx"),
        ((model, "--precision", "quick"), "precision 'quick' is unknown"),
        (
            (model, "--engines", "mnn", "--precision", "int8"),
            "mnn computes in precision exact or fast or",
        ),
        ((model, "--batch", "1,0"), "'1,0' are not batch sizes; write 1,8"),
        ((model, "--size", "8"), "size 8 is too small for this model; it needs at least"),
        ((trunk,), "vgg11 has no head here, so no scores"),
        (("vgg61",), "no model 'vgg61'"),
    ):
        outcome = verydeep("bench", *words)
        assert (outcome.status, outcome.out) == (2, ""), outcome
        assert message in outcome.err
    with pytest.raises(ModelFileError):
        bench.bench(tmp_path / "gone.safetensors")
    with pytest.raises(EngineError, match="expected numbers of 1 or more"):
        bench.bench(model, batches=())


def test_engines_that_are_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.Kind, "available", False)
    with pytest.raises(EngineError, match=r'openvino is not installed.*pip install "verydeep\['):
        bench.bench(model, engines="openvino")


def test_the_table_says_what_a_reader_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(engine: str, ms: float, batch: int = 1, chosen: str | None = None) -> bench.Row:
        return bench.Row(engine, "fast", batch, ms, None, None, 0.0, chosen, 1.0, 10**6)

    rows = [
        row("openvino", 10), row("auto", 12, chosen="mnn"), row("torch", 8, 8), row("auto", 10, 8, "mnn"),
        row("mnn", 9.9, 3), row("auto", 10, 3, "mnn"),
        row("onnxruntime", 9, 4), row("auto", 12, 4, "onnxruntime"),
    ]  # fmt: skip
    notes = bench.table(rows).partition("\n\nbatch 1, ")[2].splitlines()
    assert notes == [
        "fast: openvino was 1.20 times as fast as auto; auto chose in a race of its own, which `verydeep "
        "cache clear` makes it hold again",
        "batch 8, fast: torch was 1.25 times as fast as auto; torch takes longer to load than it would win "
        "back, so auto takes it only where a program has loaded it",
    ]
    monkeypatch.setattr(bench, "installed", lambda: (engines.ENGINES["onnxruntime"],))
    assert 'pip install "verydeep[fast]" adds OpenVINO, ncnn and MNN' in bench.table(rows)


def test_the_plot_shows_every_row(tmp_path: Path) -> None:
    row = {"precision": "fast", "chosen": None, "speedup_vs_torch": 2.0, "batch": 1}
    rows = [{**row, "engine": "plain mnn"}, {**row, "engine": "auto", "chosen": "<mnn>"}]
    rows.append({**row, "engine": "torch", "speedup_vs_torch": 1.0, "batch": 8})
    facts = {"processor": "A & B", "family, model": "1, 2", "cores": 2, "has": ["avx2"]}
    result = {"model": "vgg16", "rows": rows, "machine": facts}
    (tmp_path / "result.json").write_text(json.dumps(result))
    plot = Path(__file__).parent.parent / "benchmarks" / "plot.py"
    files = [str(tmp_path / "result.json"), str(tmp_path / "figure.svg")]
    subprocess.run([sys.executable, str(plot), *files], check=True)
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    texts = {element.text for element in root.iter() if element.text}
    assert {"plain mnn, fast", "auto: <mnn>, fast", "torch, fast", "batch 1", "batch 8"} <= texts
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in e.attrib]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == widths[1] == 2 * widths[2]
