"""What befalls a run from outside: stopped at any step, torn files, odd names, another in its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from verydeep import modelfile, train
from verydeep.datasets.check import check
from verydeep.datasets.labelled import find
from verydeep.errors import DataError, ModelFileError, OutputError
from verydeep.preprocess import Preprocess
from verydeep.probing import linear
from verydeep.training import begin, learn, loop, measuring, recipes
from verydeep.training import run as training_run
from verydeep.training.begin import train as run
from verydeep.training.probe import ProbeConfig
from verydeep.training.recipes import RECIPES
from verydeep.training.record import checkpoint
from verydeep.training.record.board import board
from verydeep.training.record.folder import Log, taken

from .conftest import Run
from .labelled import SETTINGS, arrays, assert_same, images, trained
from .test_probe import photos
from .test_training_run import At, one_thread
from .tiny import model_file, photo, tiny

__all__ = ["one_thread"]  # a fixture that each test here uses


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("data") / "set.npz")


GREY = Preprocess(resize_size=32, crop_size=32, channel_order="L", mean=(0.5,), std=(0.2,))


def lines(out: Path, event: str) -> list[dict[str, object]]:
    every = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in every if line["event"] == event]


@pytest.mark.parametrize("last", [4, 12])
def test_stopped_in_the_last_step_of_an_epoch(last: int, data: Path, tmp_path: Path) -> None:
    """Its checkpoint is of an epoch without steps to do that has not been validated."""
    trained(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(
            data, tmp_path / "cut",
            event=At(last - 1, lambda: signal.raise_signal(signal.SIGINT)),
        )  # fmt: skip
    assert list((tmp_path / "cut" / "checkpoints").glob(f"step-{last:09}.*"))
    assert len(lines(tmp_path / "cut", "epoch")) == last // 4 - 1
    trained(data, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    epochs = [lines(tmp_path / name, "epoch") for name in ("whole", "cut")]
    assert [line["rate"] for line in epochs[0]] == [line["rate"] for line in epochs[1]]
    assert [line["step"] for line in epochs[1]] == [4, 8, 12]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["validated", "measured", "written"])
def test_stopped_after_the_last_step(
    when: str, number: signal.Signals, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was as if nothing had been asked, since nobody looked any more."""
    trained(data, tmp_path / "whole")
    measured, written = learn.Learning._validate, modelfile.write

    def validated(self: learn.Learning) -> dict[str, object]:
        if when == "validated" and self.position.epoch == 2:
            signal.raise_signal(number)
        return measured(self)

    def finished(self: training_run.Run, outcome: training_run.Outcome) -> object:
        if when == "measured":
            signal.raise_signal(number)
        return finish(self, outcome)

    def write(*given: object) -> None:
        if when == "written":
            signal.raise_signal(number)
        written(*given)  # type: ignore[arg-type]

    def ended(*_: object) -> None:
        raise SystemExit(128 + number)

    finish = training_run.Run.finish
    before = signal.signal(signal.SIGTERM, ended)
    with monkeypatch.context() as patch:
        patch.setattr(learn.Learning, "_validate", validated)
        patch.setattr(training_run.Run, "finish", finished)
        patch.setattr(modelfile, "write", write)
        try:
            with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
                trained(data, tmp_path / "cut")
        finally:
            signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    trained(data, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_what_a_kill_left_half_written_goes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trained(data, out, event=At(6, lambda: signal.raise_signal(signal.SIGINT)))
    for name in (".model.safetensors.ab12.part", ".report.html.cd34.part", ".mine.part"):
        (out / name).touch()
    trained(data, out, resume=True)
    assert [path.name for path in out.glob(".*.part")] == [".mine.part"]


def test_a_signal_that_is_ignored_is_ignored(data: Path, tmp_path: Path) -> None:
    """As of what a shell runs in its background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = At(3, lambda: signal.raise_signal(signal.SIGINT))
        assert trained(data, tmp_path / "run", event=stop).top1 > 0.5
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_rank_without_a_world_is_one_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learned to the end, and wrote no model."""
    monkeypatch.setenv("RANK", "1")
    assert trained(data, tmp_path / "run", epochs=1).model.exists()


def test_a_run_on_grey_images_that_was_stopped_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    net = tiny("vgg11_bn", "small", in_channels=1, classes=3)
    grey = model_file(tmp_path / "grey.safetensors", net, preprocess=GREY)
    with pytest.raises(KeyboardInterrupt):
        trained(
            data, tmp_path / "cut", init=grey,
            event=At(6, lambda: signal.raise_signal(signal.SIGINT)),
        )  # fmt: skip
    result = trained(data, tmp_path / "on", init=tmp_path / "cut", epochs=1)
    assert modelfile.read(result.model).record.network.in_channels == 1


def test_several_labels_of_nothing_leave_a_log_that_is_json(tmp_path: Path) -> None:
    for at in range(12):
        photo(tmp_path / f"{at}.png", 32, 32, seed=at)
    table = "".join(f"{at}.png,{'a;b' if at % 2 else 'a'},train\n" for at in range(8))
    none = "".join(f"{at}.png,,val\n" for at in range(8, 12))
    (tmp_path / "set.csv").write_text(f"path,label,split\n{table}{none}")
    trained(tmp_path / "set.csv", tmp_path / "run", epochs=1, multi="true")
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_names_that_are_no_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.fsencode(tmp_path / "set")
    pixels, _ = images(8, seed=0)
    for label in (b"caf\xe8", b"caf\xe9"):
        os.makedirs(os.path.join(root, label))
        for number, image in enumerate(pixels):
            with open(os.path.join(root, label, b"\xe9%d.png" % number), "wb") as file:
                Image.fromarray(image).save(file, "PNG")
    monkeypatch.setattr(sys, "argv", ["verydeep", "train", os.fsdecode(b"\xe9")])
    result = trained(tmp_path / "set", tmp_path / "run", epochs=1)
    assert result.classes == ("caf\\udce8", "caf\\udce9")
    assert result.bad == ()
    assert modelfile.read(result.model).record.class_names == result.classes
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
    assert find(tmp_path / "set.tar").classes == result.classes


@pytest.mark.parametrize("label", ["two\nlines", "x" * 1001])
def test_a_class_name_that_no_model_file_takes(label: str, tmp_path: Path) -> None:
    pixels, _ = images(4, seed=0)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1, 0, 1], classes=["ant", label])
    with pytest.raises(DataError, match="expected a name on one line, of 1000 at most"):
        find(tmp_path / "a.npz")


def test_a_finished_run_without_checkpoints_is_not_written_over(data: Path, tmp_path: Path) -> None:
    result = trained(data, tmp_path / "run", epochs=1)
    before = result.model.read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(OutputError, match="holds a model, and no checkpoint to go on from"):
        trained(data, tmp_path / "run", epochs=1, resume=True)
    assert result.model.read_bytes() == before


def tuned(trunk: Path, **changes: object) -> recipes.Config:
    """The recipe finetune on a tiny trunk and tiny photos."""
    given = {"model": str(trunk), "size": 32, "batch": 4, "precision": "fp32", "hold": 0.25}
    return recipes.changed(recipes.finetune(), {**given, **changes})


def test_a_run_is_resumed_as_it_was_begun_or_not_at_all(tmp_path: Path) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors")
    probe = ProbeConfig(model=str(trunk), engine="onnxruntime", sizes=(32,), precision="exact")
    tune = tuned(trunk, epochs=1)
    here, elsewhere = photos(tmp_path / "here", 6), photos(tmp_path / "elsewhere", 7)
    for config, change in ((probe, "l2"), (tune, "decay")):
        out = tmp_path / config.recipe
        first = run(config, here, out=out)
        with pytest.raises(DataError, match=rf"{change} was .*, is 0\.5; resume it with its own"):
            run(replace(config, **{change: 0.5}), here, out=out, resume=True)  # type: ignore
        with pytest.raises(DataError, match=r"15 images to train on .* 18 and 3 now"):
            run(config, elsewhere, out=out, resume=True)
        again = run(replace(config, threads=1), here, out=out, resume=True)
        assert again.top1 == first.top1
    with pytest.raises(OutputError, match="holds a model, and no checkpoint"):
        run(tune, here, out=tmp_path / "probe", resume=True)
    with pytest.raises(DataError, match="recipe was finetune, is small-images"):
        trained(here, tmp_path / "finetune", resume=True)
    with pytest.raises(OutputError, match="holds a model"):
        trained(here, tmp_path / "probe", resume=True)


def test_a_resumed_run_keeps_the_arithmetic_that_it_began_with(tmp_path: Path) -> None:
    """On a processor that would have chosen another."""
    trunk, here = model_file(tmp_path / "trunk.safetensors"), photos(tmp_path / "here", 6)
    for precision in ("bf16", "fp32"):
        config, out = tuned(trunk, epochs=1, precision=precision), tmp_path / precision
        run(config, here, out=out)
        (out / "log.jsonl").unlink()  # as if it had not come to its end
        result = run(replace(config, precision="auto"), here, out=out, resume=True)
        assert result.config["config"]["precision"] == precision


def test_damaged_checkpoints_do_not_take_the_place_of_good_ones(tmp_path: Path) -> None:
    def save(step: int) -> None:
        checkpoint.save(tmp_path, step, {"a": torch.ones(3)}, {"step": step})

    for step in (100, 200):
        save(step)
    for file in tmp_path.iterdir():
        file.write_bytes(b"torn")
    (tmp_path / ".step-000000300.safetensors.abc.part").write_bytes(b"half")
    assert checkpoint.latest(tmp_path, lambda _: None) is None
    for step in (10, 20, 30):
        save(step)
        found = checkpoint.latest(tmp_path, pytest.fail)
        assert found is not None
        assert found.facts == {"step": step}
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "step-000000020.safetensors", "step-000000030.safetensors",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_checkpoint_that_was_read_is_not_held_on_to(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"a": torch.ones(3)}, {})
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    assert "step-000000001" not in Path("/proc/self/maps").read_text()


def test_a_batch_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    folder = photos(tmp_path / "set", 3)
    (folder / "red" / "broken.jpg").write_text("no image")
    result = trained(folder, tmp_path / "run", memory=False, batch=1, epochs=1)
    assert [name for name, _ in result.bad] == ["red/broken.jpg"]
    steps = lines(tmp_path / "run", "step")
    assert [line["loss"] for line in steps].count(0) == 1
    assert np.isfinite([line["loss"] for line in steps]).all()


@pytest.fixture
def torn_zip(tmp_path: Path) -> Path:
    """An archive of photos, one of which is damaged in it."""
    path = tmp_path / "set.zip"
    folder = photos(tmp_path / "set", 6)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 40] ^= 255
    path.write_bytes(content)
    return path


def test_an_archive_that_is_damaged_in_one_image(torn_zip: Path, tmp_path: Path) -> None:
    found = check(torn_zip, size=32)
    assert [f.what for f in found.findings] == ["unreadable"]
    for recipe, settings in (
        ("small-images", {"epochs": 1, "precision": "fp32", "layout": "default", "width": 1 / 16}),
        ("probe", {"model": model_file(tmp_path / "trunk.safetensors"), "sizes": (32,)}),
    ):
        result = train(recipe, torn_zip, out=tmp_path / recipe, settings=settings, device="cpu")
        assert [name for name, _ in result.bad] == ["blue/0.png"]
        assert "cannot be unpacked: Bad CRC-32" in result.bad[0][1]


def test_damaged_archives_are_one_line(tmp_path: Path) -> None:
    folder = photos(tmp_path / "set", 6)
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        archive.add(folder, "set")
    whole = (tmp_path / "set.tgz").read_bytes()
    for at in range(60, len(whole), len(whole) // 40):
        (tmp_path / "set.tgz").write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
        with suppress(DataError):
            find(tmp_path / "set.tgz")


@pytest.mark.parametrize("content", [b"words", b"", b"PK\x03\x04 cut short"])
def test_an_npz_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not an \.npz, or one that was cut short"):
        find(tmp_path / "a.npz")


def test_labels_in_a_column(tmp_path: Path) -> None:
    """As Keras and MedMNIST have them; each was a class named "[3]"."""
    pixels, labels = images(6, seed=0)
    np.savez(tmp_path / "a.npz", train_images=pixels, train_labels=labels[:, None])
    found = find(tmp_path / "a.npz", val_fraction=0)
    assert found.classes == ("0", "1", "2")
    assert [sample.label for sample in found.train] == labels.tolist()


def test_nothing_to_validate_with_can_be_read(tmp_path: Path) -> None:
    learn = photos(tmp_path / "learn", 3)
    for label in ("red", "green", "blue"):
        (tmp_path / "judge" / label).mkdir(parents=True)
        (tmp_path / "judge" / label / "1.png").write_text("no image")
    changes = {"memory": False, "schedule": "plateau", "patience": 1, "drops": 0, "epochs": 2}
    result = trained(find(learn, tmp_path / "judge"), tmp_path / "run", **changes)
    assert len(result.bad) == 3
    assert np.isnan(result.top1)
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()  # it is JSON


def test_a_finished_run_says_its_figures_again(data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "precision": "bf16", "layout": "channels-last"}
    first = trained(data, tmp_path / "run", **settings)
    again = trained(data, tmp_path / "run", resume=True, **settings)
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-6)


def test_recipes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of torchrun's would have written the same files at the same time."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="recipe probe takes one process"):
        train("probe", tmp_path, out=tmp_path / "run")


def test_a_pace_of_a_single_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    settings = {**SETTINGS, "batch": 256}
    found = begin.profile(
        "small-images", data, model="vgg11_bn", width=1 / 16, settings=settings, device="cpu"
    )
    assert np.isfinite(found.input)  # it was infinitely many images a second


def test_a_rate_test_that_breaks_at_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, told = loop.Meter.line, []

    def breaking(self: loop.Meter, *given: object) -> object:
        told.append(given)
        if len(told) == 4:
            self._sums[0][0] *= float("nan")
        return line(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Meter, "line", breaking)
    with pytest.raises(loop.Diverged, match=r"the loss broke in step 4, at a rate of 1\.5e-05"):
        begin.find_rate(
            "small-images", data, model="vgg11_bn", width=1 / 16, settings=SETTINGS, device="cpu"
        )


def test_photos_that_do_not_differ(tmp_path: Path) -> None:
    folder = photos(tmp_path / "set", 4)
    one = (folder / "red" / "0.png").read_bytes()
    for file in folder.rglob("*.png"):
        file.write_bytes(one)
    trunk = str(model_file(tmp_path / "trunk.safetensors"))
    with pytest.raises(DataError, match="no two of which differ"):
        run(ProbeConfig(model=trunk, sizes=(32,)), folder, out=tmp_path / "run")


def test_photos_are_held_out_of_those_that_can_be_read(tmp_path: Path) -> None:
    folder = photos(tmp_path / "set", 2)
    config = tuned(model_file(tmp_path / "trunk.safetensors"), epochs=1)
    samples = find(folder, val_fraction=0).train
    fold = linear.folds(np.array([s.label for s in samples]), 4, seed=0)
    only = next(s for s, number in zip(samples, fold, strict=True) if number == 0)
    Path(str(only.source)).write_text("no image")
    result = run(config, find(folder, val_fraction=0), out=tmp_path / "run")
    assert only.name in dict(result.bad)
    epochs = [line for line in result.log if line["event"] == "epoch"]
    assert np.isfinite([line["loss"] for line in epochs]).all()


def test_a_fine_tuning_loss_that_is_no_number(tmp_path: Path) -> None:
    config = tuned(model_file(tmp_path / "trunk.safetensors"), epochs=1, rate=1e30)
    with pytest.raises(loop.Diverged, match=r"lower the rate, as with --set rate=3\.3e\+29"):
        run(config, photos(tmp_path / "set", 3), out=tmp_path / "run")


def test_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    folder = photos(tmp_path / "set", 2)
    (folder / "red" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "rose").symlink_to(
        photos(tmp_path / "elsewhere", 3) / "red", target_is_directory=True
    )
    found = find(folder, val_fraction=0)
    assert found.counts().tolist() == [2, 2, 2, 3]


def test_two_runs_at_once_take_two_folders(data: Path, tmp_path: Path) -> None:
    with chdir(tmp_path), taken(None, writes=True) as one, taken(None, writes=True) as other:
        assert [str(one), str(other)] == [os.path.join("runs", "1"), os.path.join("runs", "2")]
        (one / "log.jsonl").touch()
        with pytest.raises(ModelFileError, match="no model"):
            train("probe", data, model="none")
        assert sorted(os.listdir("runs")) == ["1", "2"]
    assert os.listdir(tmp_path / "runs") == ["1"]


def test_where_the_curve_goes_is_looked_at_first(
    data: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begin, "find_rate", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("here")
    done = verydeep(
        "train", data, "--recipe", "small-images", "--find-lr", "--out", tmp_path / "file"
    )
    assert done.status == 2
    assert "a file, and a folder is needed" in done.err


def test_tensorboard_gets_nothing_of_a_run_that_had_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda _: pytest.fail("a file was made")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board(tmp_path)({"event": "note", "text": "had finished"})


def test_two_runs_in_one_folder(data: Path, tmp_path: Path) -> None:
    """The second one, which began while the first made ready, or resumes what is still running."""
    out = tmp_path / "run"
    found: list[str] = []

    def second(line: Mapping[str, object]) -> None:
        if line["event"] == "step" and line["step"] == 6:
            with pytest.raises(OutputError, match="another process is training in it; wait"):
                trained(data, out, resume=True)
            found.append((out / "log.jsonl").read_text())

    trained(data, out, event=second)
    assert '"step": 6' in found[0]  # what the first had written is still there
    assert len(lines(out, "step")) == 12
    trained(data, out, resume=True)  # and when it is done, the folder is anybody's


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log._file.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(OutputError, match=r"log\.jsonl: cannot be written: No space left"):
        log({"event": "note"})
    log.close()


def test_each_recipe_shows_itself(verydeep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = verydeep("train", "--recipes")
    assert shown.status == 0
    for name in RECIPES:
        assert f"{name}\n" in shown.out
    assert "Command: verydeep train photos/ --recipe probe --out run" in shown.out
    assert "average=0.995" in shown.out
    assert "cover=0.25" in shown.out
    for name in [name for name in sys.modules if name.startswith("verydeep.training.l")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    shown = verydeep("train", "--recipes")
    assert 'finetune\n  needs torch: pip install "verydeep[torch]"' in shown.out


def test_without_torch_what_needs_it_says_so(
    verydeep: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("verydeep.training.l")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = verydeep("train", tmp_path, "--recipe", "finetune", "--out", tmp_path / "out")
    assert done.status == 2
    assert done.err == (
        "verydeep: what was asked of verydeep train needs an optional dependency; install it with: "
        'pip install "verydeep[torch]"\n'
    )


def test_one_name_in_two_sets_is_of_two_images(tmp_path: Path) -> None:
    """A broken image to validate with had it said that nothing is known of a class."""
    learn, judge = photos(tmp_path / "learn", 1), photos(tmp_path / "judge", 1, seed=1)
    (judge / "red" / "0.png").write_bytes(b"no image")
    found = find(learn, judge)
    assert not {s.name for s in found.train} & {s.name for s in found.val}
    result = trained(found, tmp_path / "run", epochs=1, memory=False)
    assert [Path(name).name for name, _ in result.bad] == ["0.png"]
    told = [line.get("text", "") for line in result.log if line["event"] == "warning"]
    assert not any("nothing is known" in text for text in told)
