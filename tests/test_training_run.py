"""A run of training: what it leaves, and that nothing is lost however it is broken off."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import verydeep
from verydeep import modelfile, train
from verydeep.datasets.labelled import find
from verydeep.errors import DataError, OutputError
from verydeep.training.learner import Learner
from verydeep.training.loop import Diverged
from verydeep.training.recipes import changed, small_images
from verydeep.training.record import checkpoint

from .conftest import Run
from .labelled import CLASSES, SETTINGS, arrays, assert_same, folders, images, trained

STEPS = 12  # of the run in `labelled`


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("data") / "set.npz")


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unbroken") / "run"
    trained(data, out)
    return out


class At:
    """Does something at the log's line of that step, once."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action, self.lines = step, action, []

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        if line["event"] == "step" and line["step"] == self.step:
            self.action()


def test_what_a_run_leaves(unbroken: Path) -> None:
    record = modelfile.read(unbroken / "model.safetensors").record
    assert record.class_names == CLASSES
    assert record.provenance["config"]["epochs"] == 3
    assert record.provenance["made_by"] == "verydeep train"
    top1 = next(figure["value"] for figure in record.measured if figure["what"] == "top1")
    assert top1 > 0.9

    # the model file gives the accuracy that its record states, on an engine that knows no torch
    judge, labels = images(24, seed=1)
    predictor = verydeep.load(
        unbroken / "model.safetensors", engine="onnxruntime", precision="exact"
    )
    answers = [CLASSES.index(answer.label) for answer in predictor(list(judge))]
    assert np.mean(answers == labels) == pytest.approx(top1)

    config = json.loads((unbroken / "config.json").read_text())
    assert config["config"]["precision"] == "fp32"
    assert config["data"]["train"] == 48
    log = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    kinds = [line["event"] for line in log]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("epoch") == 3
    assert kinds.count("step") == STEPS
    assert len(list((unbroken / "checkpoints").iterdir())) == 2


def test_preprocessing_is_of_this_data(unbroken: Path) -> None:
    pixels, _ = images(48, seed=0)
    record = modelfile.read(unbroken / "model.safetensors").record.preprocess
    np.testing.assert_allclose(record.mean, pixels.mean((0, 1, 2)) / 255, atol=1e-5)
    np.testing.assert_allclose(record.std, pixels.std((0, 1, 2)) / 255, atol=1e-5)


def test_muon_on_growing_images_resumes_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "head": "gap", "start": "he", "optimiser": "muon", "schedule": "linear", "grow": (0.5, 1.0),
        "epochs": 4,
    }  # fmt: skip
    judged: list[int | None] = []
    scores = Learner.scores

    def noted(self: Learner, images: np.ndarray, side: int | None = None) -> np.ndarray:
        judged.append(side)
        return scores(self, images, side)

    monkeypatch.setattr(Learner, "scores", noted)
    trained(data, tmp_path / "whole", **own)
    assert judged == [16, 16, 32, 32, None]  # the last for the record, at the full size
    stop = At(7, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "cut", event=stop, **own)
    result = trained(data, tmp_path / "cut", resume=True, **own)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert [line["side"] for line in result.log if line["event"] == "epoch"] == [16, 16, 32, 32]


def test_in_channels_last_a_run_resumes_to_the_bit(data: Path, tmp_path: Path) -> None:
    """A checkpoint has its numbers in one order, and SGD's fused step takes the momentum as it lies."""
    trained(data, tmp_path / "whole", layout="channels-last")
    stop = At(7, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "cut", event=stop, layout="channels-last")
    trained(data, tmp_path / "cut", resume=True, layout="channels-last")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_before_the_first_step_is_not_waited_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verydeep.training import learn

    monkeypatch.setattr(learn, "pictures", lambda *_: signal.raise_signal(signal.SIGINT))
    log = At(0, None)
    # what was started in the background of a shell ignores it, which is inherited
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(data, tmp_path / "run", event=log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [line for line in log.lines if line["event"] == "step"]
    monkeypatch.undo()
    trained(data, tmp_path / "run")  # nothing stands in the way of beginning anew


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from tests.labelled import trained
def event(line):
    if line["event"] == "step" and line["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
trained(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), event=event, checkpoint_minutes=0.0)
"""


def test_killed_and_resumed(unbroken: Path, data: Path, tmp_path: Path) -> None:
    step = int(np.random.default_rng().integers(2, STEPS))
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(data), str(out), str(step)], check=False,
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / "model.safetensors").exists()
    log = At(0, None)
    trained(data, out, resume=True, event=log, checkpoint_minutes=0.0)
    assert log.lines[0]["event"] == "resume"
    assert log.lines[0]["step"] == step - 1, step  # the step that was killed had not been saved
    assert_same(out, unbroken)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    number: signal.Signals, unbroken: Path, data: Path, tmp_path: Path
) -> None:
    stop = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    before = signal.getsignal(number)
    times = 2 if number == signal.SIGTERM else 1  # as `timeout` sends it

    def send() -> None:
        for _ in range(times):
            signal.raise_signal(number)

    with pytest.raises(stop) as caught:
        trained(data, tmp_path / "run", event=At(6, send))
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert signal.getsignal(number) is before
    found = checkpoint.latest(tmp_path / "run" / "checkpoints", print)
    assert found is not None
    assert 6 <= found.facts["step"] <= 7
    trained(data, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", unbroken)


def test_a_finished_run_is_left_alone(unbroken: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / "run")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    result = trained(data, out, resume=True)
    assert result.top1 > 0.9
    assert {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()
    } == before


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    unbroken: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trained(data, out, event=At(10, lambda: signal.raise_signal(signal.SIGINT)))
    newest = max((out / "checkpoints").iterdir())
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:]):
        spoilt = shutil.copytree(out, tmp_path / f"spoilt {len(list(tmp_path.iterdir()))}")
        file = spoilt / "checkpoints" / newest.name
        file.write_bytes(damage(file.read_bytes()))
        log = At(0, None)
        trained(data, spoilt, resume=True, event=log)
        told = [line["text"] for line in log.lines if line["event"] == "note"]
        assert any("is damaged" in text and newest.name in text for text in told)
        assert log.lines[0]["step"] == 8  # the end of the second epoch
        assert_same(spoilt, unbroken)


def test_another_configuration_is_refused(unbroken: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / "run")
    with pytest.raises(DataError, match=r"rate was 0\.05, is 0\.1; resume it with its own"):
        trained(data, out, resume=True, rate=0.1)


def test_what_a_small_set_settled_is_settled_again(tmp_path: Path) -> None:
    """A rate that was asked for stays; another one is refused, before there is a checkpoint, too."""
    few = arrays(tmp_path / "few.npz", 30)
    given = {k: v for k, v in SETTINGS.items() if k != "batch"}
    fit = partial(train, "small-images", few, out=tmp_path / "run", model="vgg11_bn", width=1 / 16)
    with pytest.raises(KeyboardInterrupt):
        fit(settings=given, event=At(1, lambda: signal.raise_signal(signal.SIGINT)))
    result = fit(settings=given, resume=True)
    settled = result.config["config"]
    assert (settled["batch"], settled["rate"]) == (16, 0.05)
    assert settled["kernel_rate"] == pytest.approx(0.04 * (16 / 512) ** 0.5)
    for name, value in (("head_rate", 0.5), ("rate", 0.1), ("seed", 3), ("batch", 8)):
        with pytest.raises(DataError, match=f"another configuration: .*{name} was"):
            fit(settings={**given, name: value}, resume=True)
        before = tmp_path / f"before {name}"
        before.mkdir()
        shutil.copy(tmp_path / "run" / "config.json", before)
        with pytest.raises(DataError, match=f"another configuration: .*{name} was"):
            fit(settings={**given, name: value}, resume=True, out=before)


def test_a_run_of_another_version_is_one_line(unbroken: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / "run")
    found = checkpoint.latest(out / "checkpoints", print)
    assert found is not None
    facts = {**found.facts, "position": {"epoch": 1}}
    facts["config"] = {k: v for k, v in facts["config"].items() if k != "head_rate"}
    checkpoint.save(out / "checkpoints", facts["step"], found.tensors, facts)
    with pytest.raises(
        DataError, match="begun by another version of verydeep; go on with that one"
    ):
        trained(data, out, resume=True)


def test_a_run_without_its_report_is_not_finished(
    unbroken: Path, data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "run")
    (out / "report.html").unlink()  # killed between its last two files
    trained(data, out, resume=True)
    assert (out / "report.html").exists()
    assert_same(out, unbroken)


def test_test_images_are_reported_apart(tmp_path: Path, verydeep: Run) -> None:
    for part in ("train", "val", "test"):
        folders(tmp_path / "set" / part, 12)
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 1}.items()]
    done = verydeep(
        "train", str(tmp_path / "set"), "--recipe", "small-images", "--model", "vgg11_bn", "--width",
        "0.0625", "--out", str(tmp_path / "run"), "--device", "cpu", *settings,
    )  # fmt: skip
    end = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    told = f"{end['top1, test']:.2%}"
    assert f"top1, test: {told}" in done[2]
    assert (
        f"<dt>top1, test</dt><dd>{told} of test/</dd>"
        in (tmp_path / "run" / "report.html").read_text()
    )


def test_parts_of_which_nothing_can_be_read_cost_no_model(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "train", 12)
    for part in ("val", "test"):
        for path in folders(tmp_path / "set" / part, 12).rglob("*.png"):
            path.write_text(f"no image {path}")
    result = trained(tmp_path / "set", tmp_path / "run", epochs=1)
    assert result.model.exists()
    assert np.isnan(result.top1)
    assert len(result.bad) == 24


def test_other_data_is_refused(unbroken: Path, tmp_path: Path) -> None:
    out = shutil.copytree(unbroken, tmp_path / "run")
    other = arrays(tmp_path / "other.npz", seed=5)
    with pytest.raises(DataError, match="data has changed since the run"):
        trained(other, out, resume=True)


def test_a_run_is_not_written_over(unbroken: Path, data: Path) -> None:
    with pytest.raises(OutputError, match="holds a run already; go on with it by --resume"):
        trained(data, unbroken)


def test_nothing_to_resume_begins_anew(unbroken: Path, data: Path, tmp_path: Path) -> None:
    log = At(0, None)
    with pytest.raises(DataError, match=r"--resume: there is no folder .*run"):
        trained(data, tmp_path / "run", resume=True, event=log)
    (tmp_path / "run").mkdir()
    trained(data, tmp_path / "run", resume=True, event=log)
    assert "no checkpoint in" in log.lines[1]["text"]
    assert_same(tmp_path / "run", unbroken)


def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step \d+ .*rate.*lower the rate, as with --set rate="):
        trained(data, tmp_path / "run", rate=1e15, momentum=0.99)
    found = checkpoint.latest(tmp_path / "run" / "checkpoints", print)
    if found is not None:
        assert all(tensor.isfinite().all() for tensor in found.tensors.values())


def test_a_full_disk_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.fsync

    def full(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "step-000000008" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"step-000000008.*No space left.*free some space"):
        trained(data, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "step-000000004.safetensors"
    ]


def test_a_file_is_no_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="is a file; expected a folder"):
        trained(data, tmp_path / "file" / "run")


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    few = arrays(tmp_path / "few.npz", train_count=6, val_count=3)
    result = trained(few, tmp_path / "run", batch=256)
    assert [line["step"] for line in result.log if line["event"] == "epoch"] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.4, "cutmix": 1.0}, {"balance": "weights"}, {"balance": "sampling"},
        {"clip": 1.0, "accumulate": 3}, {"schedule": "plateau", "patience": 1, "drops": 0},
        {"average": 0.0, "smoothing": 0.0, "cover": 0, "flip": False}, {"memory": False},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_what_a_recipe_can_be_told(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    result = trained(data, tmp_path / "run", **changes)
    first = next(line for line in result.log if line["event"] == "step")
    last = next(line for line in reversed(result.log) if line["event"] == "step")
    assert last["loss"] < first["loss"]
    assert np.isfinite(result.probabilities).all()


def test_an_image_that_cannot_be_read_is_skipped_and_listed(tmp_path: Path) -> None:
    folders(tmp_path / "photos", 24)
    (tmp_path / "photos" / "red" / "broken.jpg").write_text("no image")
    for memory in (True, False):
        result = trained(tmp_path / "photos", tmp_path / f"run {memory}", memory=memory, batch=8)
        assert [name for name, _ in result.bad] == ["red/broken.jpg"]
    for file in (tmp_path / "photos" / "red").iterdir():
        file.write_text(f"no image {file}")
    data = find(tmp_path / "photos", val_fraction=0)
    told = [line.get("text", "") for line in trained(data, tmp_path / "no red", batch=8).log]
    assert "no image to train on of these could be read, so nothing is known of them: red" in told


def test_the_command(data: Path, tmp_path: Path, verydeep: Run) -> None:
    said = [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 1}.items()]
    words = ["train", data, "--recipe", "small-images", "--model", "vgg11_bn", "--width", 1 / 16]
    done = verydeep(*words, *said, "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    figures = json.loads(done.out)
    assert figures["n"] == 24
    assert "epoch 1 of 1: top-1 " in done.err
    assert "small-images: vgg11_bn of width 0.0625, 3 classes, 48 images to train on" in done.err

    done = verydeep(*words, *said, "--out", tmp_path / "run", "--resume", "--json")
    assert done.status == 0
    assert json.loads(done.out)["top1"] == figures["top1"]
    assert "had finished; nothing is done" in done.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--recipe", "smal-images"), "no recipe 'smal-images'; did you mean small-images?"),
        (("--set", "epoch=3"), "recipe small-images has no setting 'epoch'; did you mean epochs?"),
        (("--set", "epochs"), "--set epochs: expected key=value, as in epochs=30"),
        (("--set", "epochs=many"), "epochs is 'many'; expected a whole number"),
        (("--set", "epochs=0"), "epochs is 0; expected 1 or more"),
        (("--set", "nesterov=maybe"), "nesterov is 'maybe'; expected true or false"),
        (
            ("--set", "schedule=steps"),
            "schedule is 'steps'; expected one of: linear, cosine, plateau",
        ),
        (("--set", "size=8"), "images of 8 pixels are too small for vgg16_bn"),
        (("--model", "vgg61"), "network 'vgg61' is unknown; did you mean"),
        (("--device", "tpu"), "device 'tpu' is not here; expected one of: auto, cpu"),
        (("--device", "cpu:abc"), "device 'cpu:abc' is none; expected a name as cpu, or cuda:0"),
        (("--init", "nothing.safetensors"), "there is no such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[str, str], line: str, data: Path, tmp_path: Path, verydeep: Run
) -> None:
    recipe = () if "--recipe" in words else ("--recipe", "small-images")
    done = verydeep("train", data, *recipe, *words, "--out", tmp_path / "run")
    assert done.status == 2
    assert line in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_image(tmp_path: Path) -> None:
    """Nothing is left to validate with: the run says so, and ends well."""
    few = arrays(tmp_path / "few.npz", train_count=3, val_count=3)
    with np.load(few) as held:
        np.savez(few, **{k: v for k, v in held.items() if not k.startswith("val")})
    result = trained(few, tmp_path / "run")
    assert result.warnings == ("a single image to train on of: red, green, blue",)
    assert np.isnan(result.top1)
    assert str(result).endswith("no images to validate with")
    record = modelfile.read(result.model).record
    assert record.measured == ()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(("knows", "taken"), [(True, "bf16"), (False, "fp32")])
def test_arithmetic_is_what_the_device_multiplies(
    knows: bool, taken: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verydeep.training import speed

    monkeypatch.setattr(speed, "computes_bf16", lambda: knows)
    free = {"precision": "auto", "layout": "auto", "epochs": 1}
    log = At(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "run", event=log, **free)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["precision"], config["layout"]) == (taken, "channels-last")
    monkeypatch.setattr(speed, "computes_bf16", lambda: not knows)
    result = trained(data, tmp_path / "run", resume=True, **free)
    assert result.config["config"]["precision"] == taken  # a run goes on as it began
    auto = changed(small_images(), free)
    on_mac = speed.decided(auto, torch.device("mps"))
    assert (on_mac.precision, on_mac.layout) == ("fp32", "default")


def test_arithmetic_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    result = trained(data, tmp_path / "run", precision="bf16", layout="channels-last", epochs=4)
    assert result.top1 > 0.9
