"""Fine-tuning: from the solved head on, what does not learn left alone, resumed to the bit, or the head."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import verydeep
from verydeep import modelfile
from verydeep.datasets.labelled import Sample
from verydeep.errors import DataError, VerydeepError, WeightsError
from verydeep.models import build, loading
from verydeep.nets import Head
from verydeep.preprocess import Preprocess
from verydeep.probing.linear import LinearHead, Scaling
from verydeep.training import begin, learn
from verydeep.training.begin import train as run
from verydeep.training.learner import Learner, ScaledHead, scaled
from verydeep.training.optim import grouped
from verydeep.training.probe import ProbeConfig
from verydeep.training.recipes import Config, changed, finetune, small_images
from verydeep.training.record.result import TrainResult
from verydeep.training.start import started

from .labelled import assert_same
from .test_probe import photos
from .test_training_run import At, one_thread  # noqa: F401  # a fixture
from .tiny import model_file, tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn"])
def trunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = tiny(request.param)
    return model_file(tmp_path_factory.mktemp("trunk") / "trunk.safetensors", net)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    photos(folder / "train", 12)
    photos(folder / "val", 4, seed=1)
    return folder


def config(trunk: Path, **changes: object) -> Config:
    given = {
        "model": str(trunk), "size": 32, "epochs": 3, "batch": 8, "blocks": 0, "precision": "fp32",
        "hold": 0.25, "patience": 10, "smoothing": 0.0,
        "dropout": 0.0, "cutmix": 0.0, "jitter": 0.0, "area": 0.9,
        "layout": "default",
    }  # fmt: skip
    return changed(finetune(), {**given, **changes})


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is kept, whether it is better or not."""
    monkeypatch.setattr(learn, "SURE", 2.0)


def epochs(result: TrainResult) -> list[Any]:
    return [line for line in result.log if line["event"] == "epoch"]


@pytest.mark.usefixtures("sure")
def test_end_to_end(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    result = run(config(trunk, blocks=1), flowers, out=tmp_path / "out")
    assert [line["epoch"] for line in epochs(result)] == [0, 1, 2, 3]
    assert all(line["judged"] == "held-out" for line in epochs(result))
    assert result.top1 > 0.9
    losses = [line["loss"] for line in epochs(result)[1:]]
    assert result.log[-1]["best_epoch"] == 1 + int(np.argmin(losses))
    made = verydeep.load(result.model, engine="onnxruntime", precision="exact")
    paths = [str(path) for path in sorted((flowers / "val").glob("*/*.png"))]
    own = verydeep.predictor.softmax(made.scores(paths))
    # trained filters are stored in half precision
    assert_allclose(own, result.probabilities, atol=5e-3)
    before, after = modelfile.read(trunk), modelfile.read(result.model)
    network = after.record.network
    changed_ = {
        layer.name
        for layer in network.trunk
        for key in layer.tensors
        if not np.array_equal(before.tensors([key])[key], after.tensors([key])[key])
    }
    assert changed_ == {"conv5_1", "conv5_2"}
    for layer in network.trunk:
        if layer.norm_key:  # statistics are those that it came with
            for field in ("running_mean", "running_var"):
                key = f"{layer.norm_key}.{field}"
                assert_allclose(after.tensors([key])[key], before.tensors([key])[key])
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["blocks"] == 1


def test_the_head_that_it_begins_with_is_the_solved_one(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the network, scaled, it says what a probe's model says of the photos held out."""
    seen: list[tuple[Any, np.ndarray]] = []
    scores = learn.Learning.scores

    def noted(self: learn.Learning, samples: Any, side: int | None = None) -> Any:
        found = scores(self, samples, side)
        seen.append(found)
        return found

    solved: list[torch.Tensor] = []
    solve = learn.Learning._solve

    def kept(self: learn.Learning, head: ScaledHead, *given: Any) -> None:
        solve(self, head, *given)
        solved.extend(t.detach().clone() for t in (head.weight, head.bias, head.mean, head.inverse))

    monkeypatch.setattr(learn.Learning, "scores", noted)
    monkeypatch.setattr(learn.Learning, "_solve", kept)
    run(config(trunk, epochs=1), flowers, out=tmp_path / "out")
    (weight, bias, mean, inverse), (samples, found) = (t.numpy() for t in solved), seen[0]
    layers = (
        config(trunk).layers
        or tuple(
            one.name for one in modelfile.read(trunk).record.network.trunk if one.kind == "relu"
        )[-6:]
    )
    predictor = verydeep.load(trunk, engine="onnxruntime", precision="exact")
    taken = predictor.features([str(s.source) for s in samples], layers, "avg", size=(32, 32))
    averages = np.concatenate([taken[name] for name in layers], axis=1)
    # the head was solved on features of half precision
    expected = (averages - mean) * inverse @ weight.T + bias
    assert_allclose(found, expected, atol=0.05 * np.abs(found).max())


def test_where_training_is_no_better_the_head_is_kept(
    trunk: Path, flowers: Path, tmp_path: Path
) -> None:
    result = run(config(trunk, rate=1e-9, head_rate=1e-9), flowers, out=tmp_path / "out")
    assert any("the head alone is kept" in str(line.get("text")) for line in result.log)
    assert result.log[-1]["best_epoch"] == 0
    relus = [one.name for one in modelfile.read(trunk).record.network.trunk if one.kind == "relu"]
    probe = ProbeConfig(model=str(trunk), sizes=(32,), layers=tuple(relus[-6:]))
    other = run(probe, flowers, out=tmp_path / "probe")
    assert_same(result.folder, other.folder)
    ours, theirs = modelfile.read(result.model), modelfile.read(other.model)
    assert ours.record.threshold == theirs.record.threshold


def test_a_scaled_head_is_folded() -> None:
    draw = np.random.default_rng(0)
    network = replace(tiny("vgg11_bn"), head=Head("gap", 3, ("relu4_2", "relu5_2")))
    model = loading.assemble(loading.Trained(network, build(network).state_dict())).eval()
    width = model.classifier.weight.shape[1]
    scaling = Scaling(
        draw.normal(size=width).astype(np.float32), draw.uniform(0.5, 2, width).astype(np.float32)
    )
    scaling.deviation[0] = np.inf  # of an average that never changes
    head = scaled(model.classifier, 0.0)
    head.mean.copy_(torch.from_numpy(scaling.mean))
    head.inverse.copy_(torch.from_numpy(1 / scaling.deviation))
    ours = Learner(model, config(Path("x"), average=0.5), Preprocess(), torch.device("cpu"))
    told = scaling.fold(LinearHead(head.weight.detach().numpy(), head.bias.detach().numpy()))
    assert_allclose(ours.weights()["classifier.weight"], told.weight, rtol=1e-6)
    assert_allclose(ours.weights()["classifier.bias"], told.bias, rtol=1e-5, atol=1e-6)
    images = draw.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    found = ours.scores(images)
    weights = {key: ours.weights()[key] for key in network.tensors}
    plain = loading.assemble(loading.Trained(network, weights)).eval()
    with torch.no_grad():
        expected = plain(torch.from_numpy(Preprocess().normalise(images))).numpy()
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rates_fall_towards_the_input() -> None:
    model = build("vgg11_bn", classes=3, head="gap", layers=("relu5_2",), width=1 / 16)
    groups = grouped(
        model, changed(finetune(), {"blocks": 2, "fall": 0.5, "head_rate": 1e-3, "decay_all": True})
    )
    shares = sorted({group["share"] for group in groups}, reverse=True)
    assert shares == [
        10.0,
        1.0,
        0.5,
        0.25,
        0.125,
    ]  # the head, and four convolutions of blocks 4 and 5
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(learning)
    assert all("classifier" in name or int(name.split(".")[1]) > 14 for name in learning)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("step", [2, 3, 6])
def test_resumed_to_the_bit(trunk: Path, flowers: Path, tmp_path: Path, step: int) -> None:
    settings = config(trunk, dropout=0.3, cutmix=1.0, jitter=0.2)
    whole = run(settings, flowers, out=tmp_path / "whole")
    stop = At(step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(settings, flowers, out=tmp_path / "cut", event=stop)
    result = run(settings, flowers, out=tmp_path / "cut", resume=True)
    assert_same(result.folder, whole.folder)
    assert result.log[-1]["best_epoch"] == whole.log[-1]["best_epoch"]


@pytest.mark.usefixtures("sure")
def test_the_best_epoch_is_kept_and_patience_ends_a_run(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 3.0, 2.0, 4.0, 5.0, 6.0])  # of the head, and of each epoch
    validate: Callable[..., dict[str, Any]] = learn.Learning._validate
    made: list[dict[str, torch.Tensor]] = []

    def noted(self: learn.Learning) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(learn.linear, "log_loss", lambda *_: next(losses))
            found = validate(self)
        made.append({k: v.clone() for k, v in self.learner.average.state_dict().items()})
        return found

    monkeypatch.setattr(learn.Learning, "_validate", noted)
    monkeypatch.setattr(learn, "SHARES", (1.0,))
    result = run(config(trunk, epochs=9, patience=2), flowers, out=tmp_path / "out")
    assert [line["epoch"] for line in epochs(result)] == [0, 1, 2, 3, 4]
    assert result.log[-1]["best_epoch"] == 2
    key = "features.0.weight"
    kept = modelfile.read(result.model).tensors([key])[key]
    assert_array_equal(kept, made[2][key].half().float().numpy())


def test_a_solved_head_is_judged_at_the_size_that_it_was_solved_at(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images may be shown smaller at first; what is trained from trained weights knows the whole size."""
    sides: list[int | None] = []
    scores = learn.Learning.scores

    def noted(self: learn.Learning, samples: Any, side: int | None = None) -> Any:
        sides.append(side)
        return scores(self, samples, side)

    monkeypatch.setattr(learn.Learning, "scores", noted)
    run(config(trunk, size=64, grow="0.5,1", epochs=2), flowers, out=tmp_path / "out")
    assert len(sides) >= 3
    assert set(sides) == {None}


@pytest.mark.usefixtures("sure")
def test_what_was_trained_is_mixed_with_its_start(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So far as held-out photos are named the most surely, and the model file has these weights."""
    ones: list[learn.Learning] = []
    mix, losses = learn.Learning._mix, iter([5.0, 4.0, 2.0, 3.0, 6.0])
    shares: list[float] = []

    def noted(self: learn.Learning, share: float) -> None:
        ones.append(self)
        shares.append(share)
        mix(self, share)

    monkeypatch.setattr(learn.Learning, "_mix", noted)
    monkeypatch.setattr(
        learn.linear, "losses", lambda scores, *_, **__: np.full(len(scores), next(losses))
    )
    monkeypatch.setattr(learn.linear, "log_loss", lambda *_, **__: 1.0)
    result = run(config(trunk), flowers, out=tmp_path / "out")
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0, 0.5]
    key = "features.0.weight"
    begun, best = ones[0].begun[key], ones[0].best[key]
    assert_array_equal(begun.numpy(), modelfile.read(trunk).tensors([key])[key])
    assert not torch.equal(begun, best)
    kept = modelfile.read(result.model).tensors([key])[key]
    assert_array_equal(kept, torch.lerp(begun, best, 0.5).half().float().numpy())
    told = next(line["text"] for line in result.log if "head alone" in str(line.get("text")))
    assert "epoch 1, of which 50% is taken" in told
    assert "loss 5.000 and 2.000" in told
    assert result.log[-1]["mixed"] == 0.5
    assert modelfile.read(result.model).record.provenance["trained_share"] == 0.5
    assert "Epoch 1 was kept, 50% of it" in (result.folder / "report.html").read_text()


@pytest.mark.parametrize(("gain", "kept"), [(0.0, False), (0.03, True)])
def test_fewer_wrong_answers_are_not_all_that_is_better(
    trunk: Path,
    flowers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gain: float,
    kept: bool,
) -> None:
    """Where as many are right, being surer of them is enough, if it is no chance."""
    draw = np.random.default_rng(0)
    calls = iter([gain if number else 0.0 for number in range(5)])  # the first is of the head
    noise = draw.normal(0.3, 0.05, 100)

    def losses(scores: np.ndarray, *_: object, **__: object) -> np.ndarray:
        return noise[: len(scores)] - next(calls) - draw.normal(0, 0.005, len(scores))

    monkeypatch.setattr(learn.linear, "losses", losses)
    monkeypatch.setattr(learn.linear, "log_loss", lambda *_, **__: 1.0)
    monkeypatch.setattr(learn, "CALIBRATED", 5)
    result = run(config(trunk), flowers, out=tmp_path / "out")
    assert any("the head alone is kept" in str(line.get("text")) for line in result.log) != kept


def test_what_is_compared_could_be_read_each_time(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, count = learn.Learning.scores, [0]

    def lost(self: learn.Learning, samples: Any, side: int | None = None) -> Any:
        read, found = scores(self, samples, side)
        count[0] += 1
        gone = count[0] % 3  # another photo each time
        keep = [at for at in range(len(read)) if at != gone]
        return tuple(read[at] for at in keep), found[keep]

    monkeypatch.setattr(learn.Learning, "scores", lost)
    result = run(config(trunk), flowers, out=tmp_path / "out")
    told = next(line["text"] for line in result.log if "head alone" in str(line.get("text")))
    assert "of 6 held-out photos" in told


def test_a_start_from_a_probe_needs_weights(flowers: Path, tmp_path: Path) -> None:
    with pytest.raises(VerydeepError, match="vgg11_bn"):
        verydeep.train(
            "small-images",
            flowers,
            out=tmp_path / "out",
            model="vgg11_bn",
            settings={"start": "probe"},
        )


def test_a_rate_test_and_a_profile_begin_as_a_run_does(
    trunk: Path, flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("verydeep.training.measuring.rate_test", lambda *given: seen.append(given))
    monkeypatch.setattr("verydeep.training.measuring.profile", lambda *given: seen.append(given))
    for look in (begin.find_rate, begin.profile):
        look(config(trunk), flowers, device="cpu")
    assert [isinstance(one.model.classifier, ScaledHead) for one, _ in seen] == [True, True]


def test_held_out_photos_of_which_none_can_be_read_are_one_line(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: learn.Learning, samples: Any, side: int | None = None) -> Any:  # noqa: ARG001
        self.run.bad.update({one.name: "cut off" for one in samples})
        return (), np.zeros((0, 3), np.float32)

    monkeypatch.setattr(learn.Learning, "scores", nothing)
    with pytest.raises(
        DataError, match=r"not one of \d+ photos that were held out .* cut off; .*hold=0"
    ):
        run(config(trunk), flowers, out=tmp_path / "out")


def test_without_photos_held_out_the_validation_photos_measure(
    trunk: Path, flowers: Path, tmp_path: Path
) -> None:
    """The head alone is told of once, also where a run is gone on with, and for what it is."""
    settings = config(trunk, hold=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(
            settings, flowers, out=tmp_path, event=At(3, lambda: signal.raise_signal(signal.SIGINT))
        )
    result = run(settings, flowers, out=tmp_path, resume=True)
    assert [line["epoch"] for line in epochs(result)] == [0, 1, 2, 3]
    assert not any("judged" in line for line in epochs(result))
    (tmp_path / "none").mkdir()
    alone = run(changed(settings, {"val_fraction": 0}), flowers / "train", out=tmp_path / "none")
    assert [line["epoch"] for line in epochs(alone)] == [1, 2, 3]


def test_what_begins_from_a_run_that_was_stopped_has_its_answers(
    trunk: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint's head is held for scaled averages; without its scaling it says something else."""
    settings, seen, save = config(trunk, epochs=2), [], learn.Learning.save
    with monkeypatch.context() as patch:
        patch.setattr(learn.Learning, "save", lambda self: seen.append(self) or save(self))
        stop = At(3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(settings, flowers, out=tmp_path / "cut", event=stop)
    weights = seen[0].learner.weights()
    layers = seen[0].learner.model.table.head.layers
    like = changed(small_images(), {"head": "gap", "layers": layers, "size": 32, "grow": "1"})
    model, _, _ = started(like, 3, tmp_path / "cut")
    for name, value in model.state_dict().items():
        assert_allclose(value.numpy(), weights[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("sure")
@pytest.mark.parametrize("memory", [True, False])
def test_the_file_sees_what_was_measured(memory: bool, trunk: Path, tmp_path: Path) -> None:
    """Wide photos, stretched: kept in memory they were cropped, and the file stretched them."""
    for part, count in (("train", 12), ("val", 4)):
        for at, colour in enumerate(((200, 60, 60), (60, 160, 60))):
            folder = tmp_path / "set" / part / "ab"[at]
            folder.mkdir(parents=True)
            for number in range(count):
                draw = np.random.default_rng([count, number, at])
                pixels = np.array(colour) + draw.normal(0, 60, (24, 96, 3))
                pixels[:, :32] = 255 * at  # what a crop does not show
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    result = run(
        config(trunk, epochs=1, memory=memory, padding=0.0), tmp_path / "set", out=tmp_path / "run"
    )
    made = verydeep.load(result.model, engine="onnxruntime", precision="exact")
    assert made.record.preprocess.resize == "exact"
    own = verydeep.predictor.softmax(made.scores([sample.source for sample in result.val]))
    assert_allclose(own, result.probabilities, atol=5e-3)


def test_what_is_held_out_leaves_some_of_each_class() -> None:
    """The only image of a class was held out, and nothing was learned of it; 0.4 held out a half."""
    draw = np.random.default_rng(0)
    labels = [0] * 20 + [1]
    samples = tuple(
        Sample(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8), label, f"{n}")
        for n, label in enumerate(labels)
    )
    for hold, count in ((0.15, 3), (0.4, 8)):
        for seed in range(5):
            own = changed(finetune(), {"hold": hold, "seed": seed})
            learned, held = learn._parted(samples, own)
            assert {sample.label for sample in learned} == {0, 1}
            assert len(held) == count
            assert len(learned) + len(held) == len(samples)


def test_a_device_may_have_its_number(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    """Its features are an engine's, which knows kinds alone."""
    result = run(config(trunk, epochs=1), flowers, out=tmp_path / "run", device="cpu:0")
    assert result.top1 > 0.9


def test_it_is_of_the_width_of_its_weights(trunk: Path, flowers: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"weights of width 0\.0625, and width is 2; leave width out"
    ):
        run(config(trunk), flowers, out=tmp_path / "out", width=2.0)
