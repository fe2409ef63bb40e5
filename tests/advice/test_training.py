"""Advice on training, followed: settings, the weights to start from, the folder of a run, devices."""

from __future__ import annotations

import math
import re
import shutil
import signal
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verydeep import train
from verydeep.errors import DataError, VerydeepError
from verydeep.models.loading import Trained, read
from verydeep.models.widening import widened
from verydeep.nets import network
from verydeep.probing import linear
from verydeep.training import parallel, recipes
from verydeep.training.begin import find_rate
from verydeep.training.begin import train as run
from verydeep.training.learner import Learner
from verydeep.training.loop import Meter
from verydeep.training.probe import ProbeConfig
from verydeep.training.recipes import Config
from verydeep.training.record import checkpoint
from verydeep.training.speed import decided
from verydeep.training.start import started
from verydeep.training.stuck import Stuck

from ..conftest import Run
from ..labelled import SETTINGS, arrays, trained
from ..processes import together
from ..test_finetune import config
from ..test_probe import photos
from ..test_training_run import At
from ..tiny import model_file, tiny
from .following import Row, all_followed, follows, refused, said, taken

CONFIG: Any = recipes.recipe("small-images")


def setting(text: str) -> Any:
    """The configuration with "key=value" as --set takes it."""
    return recipes.changed(CONFIG, [text])


@follows(
    "--set {}: expected key=value, as in epochs=30", "{} is {}; expected {}",
    "{} is {}; expected {} or more, {}", "; set nesterov=false or momentum=0.9",
)  # fmt: skip
def test_settings() -> None:
    def both(advice: str) -> None:
        for one in advice.split(" or "):
            recipes.changed(CONFIG, ["nesterov=true", "momentum=0", one])

    text = refused(lambda: setting("epochs"))
    said("--set {}: expected key=value, as in epochs=30", text)
    setting(taken("as in (.*)", text))
    rows: list[Row] = [
        ("{} is {}; expected {}", lambda: setting("epochs=many"),
         lambda key, _, what: setting(f"{key}={ {'a whole number': 3}[what] }")),
        ("{} is {}; expected {}", lambda: setting("nesterov=perhaps"),
         lambda key, _, what: [setting(f"{key}={one}") for one in what.split(" or ")]),
        ("{} is {}; expected {} or more, {}", lambda: setting("batch=0"),
         lambda key, _, least, __: setting(f"{key}={least}")),
    ]  # fmt: skip
    all_followed(rows)
    text = refused(lambda: recipes.changed(CONFIG, ["nesterov=true", "momentum=0"]))
    said("; set nesterov=false or momentum=0.9", text)
    both(taken("set (.*)", text))


@follows(
    "go on with it by --resume, or choose another folder", "; set size={} or more", "; set grow=1",
    "--init {} is {}, and --model is {}; leave --model out to train the network that the weights are of",
    "; lower the rate, as with --set rate={}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_runs(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "data.npz"), tmp_path / "out"
    trained(data, out, epochs=1)
    text = refused(lambda: trained(data, out, epochs=1))
    said("go on with it by --resume, or choose another folder", text)
    trained(data, out, epochs=1, resume=True)
    text = refused(lambda: trained(data, tmp_path / "another", epochs=1, size=8))
    said("; set size={} or more", text)
    trained(data, tmp_path / "another", epochs=1, size=int(taken(r"size=(\d+)", text)))
    text = refused(lambda: trained(data, tmp_path / "small", epochs=1, grow="0.25,1"))
    said("; set grow=1", text)
    trained(data, tmp_path / "small", epochs=1, grow=taken("grow=(.*)", text))
    other = model_file(
        tmp_path / "a.safetensors", network("vgg13_bn", head="small", width=1 / 16, classes=3)
    )
    text = refused(lambda: trained(data, tmp_path / "other", epochs=1, init=other))
    said(
        "--init {} is {}, and --model is {}; leave --model out to train the network that "
        "the weights are of",
        text,
    )
    train(
        "small-images", data, out=tmp_path / "other", init=other, device="cpu",
        settings={**SETTINGS, "epochs": 1},
    )  # fmt: skip

    rate, tries = "1e3", 0
    while True:  # a third each time: what is far too high takes several
        tries += 1
        try:
            trained(data, tmp_path / f"rate{tries}", epochs=1, warmup=0.0, rate=rate)
            break
        except VerydeepError as error:
            said("; lower the rate, as with --set rate={}", error)
            lower = taken(r"rate=(\S+?)[;.]?$", str(error).partition("; the last")[0])
            assert float(lower) < float(rate)
            rate = lower
    assert 1 < tries < 20


def choices(text: str, pattern: str = r"--set (\w+=[\w.-]+)") -> dict[str, Any]:
    """The settings that a message says to give."""
    return dict(one.split("=") for one in re.findall(pattern, text))


@follows(
    "scales is {}; expected one shorter side, or the least and the greatest, none below the {} pixels of a "
    "crop",
    "grow is {}; expected parts of the size, above 0 and at most 1",
    "sizes is {}; expected different numbers of pixels, as 160",
    "sizes has {}, too small for {} of {}; expected {} or more",
    "l2 is {}; expected a number above 0, or the answer may be infinite",
    "{} photos to learn from, no two of which differ: nothing can be held out to choose by; expected more "
    "photos",
    "{} of {} cannot become one of width {}; expected a greater width, and a network without LRN or "
    "channels of its own",
)  # fmt: skip
def test_numbers(tmp_path: Path, model: Path) -> None:
    draw = np.random.default_rng(0)
    features, flags = draw.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 2
    config = ProbeConfig(model=str(model), engine="onnxruntime", precision="exact")
    few = photos(tmp_path / "few", 2)
    one = (few / "red" / "0.png").read_bytes()
    for file in few.rglob("*.png"):
        file.write_bytes(one)

    def probed(folder: Path, sizes: tuple[int, ...]) -> object:
        return run(replace(config, sizes=sizes), folder, out=tmp_path / f"{folder.name} {sizes}")

    def trunk(name: str) -> Trained:
        return read(model_file(tmp_path / f"{name}.safetensors", tiny(name)))

    more = photos(tmp_path / "more", 3)
    rows: list[Row] = [
        ("scales is {}; expected one shorter side, or the least and the greatest, none below the {} pixels "
         "of a crop", lambda: setting("scales=8"),
         lambda _, least: [setting(f"scales={least}"), setting(f"scales={least},256")]),
        ("grow is {}; expected parts of the size, above 0 and at most 1", lambda: setting("grow=2"),
         lambda _: setting("grow=0.01,1")),
        ("sizes is {}; expected different numbers of pixels, as 160",
         lambda: recipes.changed(config, ["sizes=160,160"]),
         lambda _: recipes.changed(config, ["sizes=160"])),
        ("sizes has {}, too small for {} of {}; expected {} or more", lambda: probed(more, (4,)),
         lambda _, __, ___, least: [probed(more, (int(least),)), probed(more, (int(least) + 1,))]),
        ("l2 is {}; expected a number above 0, or the answer may be infinite",
         lambda: linear.solve(features, flags, 2, l2=0),
         lambda _: linear.solve(features, flags, 2, l2=1e-3)),
        ("{} photos to learn from, no two of which differ: nothing can be held out to choose by; expected "
         "more photos", lambda: probed(few, (32,)), lambda _: probed(more, (32,))),
        ("{} of {} cannot become one of width {}; expected a greater width, and "
         "a network without LRN or channels of its own",
         lambda: widened(trunk("vgg11_lrn"), 0.125),
         lambda _, width, __: widened(trunk("vgg11"), 2 * float(width.split()[1]))),
    ]  # fmt: skip
    all_followed(rows)


@follows(
    "--resume: there is no folder {}; name the --out of a run, or begin one without --resume",
    "{} holds a model, and no checkpoint to go on from; choose another folder",
    "{} is a run of another configuration: {}; resume it with its own, or choose another folder",
    "the data has changed since the run in {} was begun: {} images to train on and {} to validate then, {} "
    "and {} now, not all of them the same; choose another folder for a new run",
    "{} is a file; expected a folder to write into",
    "{}: another process is training in it; wait for it, or choose another folder",
)  # fmt: skip
def test_folders_of_runs(tmp_path: Path) -> None:
    data, other = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz", seed=5)
    (tmp_path / "file").touch()
    number = count()

    def learn(data: Path = data, out: Path | None = None, **how: Any) -> object:
        return trained(data, out or tmp_path / f"another {next(number)}", **{"epochs": 1, **how})

    def go_on(out: str, **how: Any) -> object:
        return trained(data, Path(out), resume=True, **{"epochs": 1, **how})

    run_ = tmp_path / "run"
    learn(out=run_)
    learn(out=tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    rows: list[Row] = [
        ("--resume: there is no folder {}; name the --out of a run, or begin one without --resume",
         lambda: go_on(str(tmp_path / "none")),
         lambda place: [go_on(str(run_)), learn(out=Path(place))]),
        ("{} holds a model, and no checkpoint to go on from; choose another folder",
         lambda: go_on(str(tmp_path / "bare")), lambda _: learn()),
        ("{} is a run of another configuration: {}; resume it with its own, or choose another folder",
         lambda: go_on(str(run_), rate=0.01), lambda out, _: [go_on(out), learn(rate=0.01)]),
        ("the data has changed since the run in {} was begun: {} images to train on and {} to validate "
         "then, {} and {} now, not all of them the same; choose another folder for a new run",
         lambda: learn(other, run_, resume=True), lambda *_: learn(other)),
        ("{} is a file; expected a folder to write into", lambda: learn(out=tmp_path / "file"),
         lambda _: learn()),
    ]  # fmt: skip
    all_followed(rows)

    def second(line: Mapping[str, object]) -> None:
        if line["event"] == "step" and not texts:
            texts.append(refused(lambda: go_on(str(tmp_path / "held"))))
            learn()

    texts: list[str] = []
    learn(out=tmp_path / "held", event=second)
    words = "{}: another process is training in it; wait for it, or choose another folder"
    (place,) = said(words, texts[0])
    go_on(place)


@follows(
    "--init {} has width {}, and --width is {}; a network can be made wider, not narrower",
    "start=probe needs weights to start from; name them with --init",
    "{}: no run of the loop with a checkpoint in it; expected a name, a file of weights, or the folder of "
    "such a run",
)  # fmt: skip
def test_weights_to_start_from(tmp_path: Path) -> None:
    net = network("vgg11_bn", head="small", width=1 / 16, classes=3)
    file, data = model_file(tmp_path / "a.safetensors", net), arrays(tmp_path / "a.npz")
    trained(data, tmp_path / "run", epochs=1)
    (tmp_path / "empty").mkdir()

    def wide(width: float) -> object:
        config = recipes.changed(CONFIG, {"model": "vgg11_bn", "width": width, "head": "small"})
        return started(config, 3, file, named=("width",))

    def probed(**how: Any) -> object:
        config = recipes.changed(
            CONFIG, {"model": "vgg11_bn", "start": "probe", "size": 32, "grow": "1"}
        )
        return started(config, 3, **how)

    def begun(init: Any) -> object:
        return started(recipes.changed(CONFIG, {"head": "small", "grow": "1"}), 3, init)

    rows: list[Row] = [
        ("--init {} has width {}, and --width is {}; a network can be made wider, not narrower",
         lambda: wide(1 / 32), lambda _, width, __: [wide(float(width)), wide(2 * float(width))]),
        ("start=probe needs weights to start from; name them with --init", lambda: probed(),
         lambda: probed(init=file)),
        ("{}: no run of the loop with a checkpoint in it; expected a name, a file of weights, or "
         "the folder of such a run", lambda: begun(tmp_path / "empty"),
         lambda _: [begun(one) for one in (f"./{file.name}", file, tmp_path / "run")]),
    ]  # fmt: skip
    with chdir(tmp_path):
        all_followed(rows)


@follows(
    "{} images are few for batches of {}: they are of {}, for {} epochs, and the rates that are not "
    "set {} times the recipe's; --set batch={} takes it as it is",
    "{}={} cannot be relied on on mps; --set {}={}",
    "precision=fp16 is for GPUs; --set precision=bf16, or auto",
    "device {} is none; expected a name as cpu, or cuda:0",
    "device {} is not here; expected cuda:0 to cuda:{}, one a process",
    "recipe {} takes one process, all cores of it, and torchrun started {}; call verydeep train without "
    "torchrun",
)  # fmt: skip
def test_what_a_machine_can(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = arrays(tmp_path / "a.npz")
    given = {key: value for key, value in SETTINGS.items() if key != "batch"}

    def usual(out: str, **more: Any) -> Any:
        return train("small-images", data, out=tmp_path / out, model="vgg11_bn", width=1 / 16, device="cpu",
                     settings={**given, "epochs": 1, **more})  # fmt: skip

    words = (
        "{} images are few for batches of {}: they are of {}, for {} epochs, and the rates that are "
        "not set {} times the recipe's; --set batch={} takes it as it is"
    )
    note = next(line["text"] for line in usual("fitted").log if line["event"] == "note")
    said(words, note)
    result = usual("whole", **choices(note))
    assert result.config["config"]["batch"] == int(choices(note)["batch"])

    def settled(device: str, **how: Any) -> Config:
        return decided(recipes.changed(CONFIG, {"layout": "default", **how}), torch.device(device))

    rows: list[Row] = [
        ("{}={} cannot be relied on on mps; --set {}={}", lambda: settled("mps", layout="channels-last"),
         lambda _, __, key, value: settled("mps", **{key: value})),
        ("{}={} cannot be relied on on mps; --set {}={}", lambda: settled("mps", compile=True),
         lambda _, __, key, value: settled("mps", **{key: value})),
        ("precision=fp16 is for GPUs; --set precision=bf16, or auto",
         lambda: settled("cpu", precision="fp16"),
         lambda: [settled("cpu", precision=one) for one in ("bf16", "auto")]),
    ]  # fmt: skip
    all_followed(rows)

    monkeypatch.setattr(parallel, "devices", lambda: ("cuda", "cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    rows = [
        ("device {} is none; expected a name as cpu, or cuda:0", lambda: parallel.device_of("cpu:x"),
         lambda _: [parallel.device_of(one) for one in ("cpu", "cuda:0")]),
        ("device {} is not here; expected cuda:0 to cuda:{}, one a process",
         lambda: parallel.device_of("cuda:2"),
         lambda _, last: [parallel.device_of(f"cuda:{at}") for at in range(int(last) + 1)]),
    ]  # fmt: skip
    all_followed(rows)

    def probed() -> object:
        folder = photos(tmp_path / f"p{next(number)}", 3)
        return train("probe", folder, out=tmp_path / "probed", device="cpu",
                     settings={"model": str(model), "sizes": 32, "engine": "onnxruntime"})  # fmt: skip

    number = count()
    words = (
        "recipe {} takes one process, all cores of it, and torchrun started {}; call verydeep "
        "train without torchrun"
    )
    with monkeypatch.context() as many:
        many.setenv("WORLD_SIZE", "2")
        many.setenv("RANK", "0")
        said(words, refused(probed))
    probed()


def _failing(rank: int, data: Path, out: Path) -> object:
    parallel.TIMEOUT = timedelta(seconds=20)
    follow = Learner.follow

    def failing(self: Learner, step: int) -> None:
        if step == 5:
            raise DataError("mine alone")
        follow(self, step)

    if rank:
        Learner.follow = failing  # type: ignore[method-assign]
    trained(data, out if not rank else out / "elsewhere", epochs=2)
    raise AssertionError("nothing was missed")


@follows(
    "process {} of {} has lost another, which ended or no longer answers; see what that one said, and "
    "go on with --resume ({})"
)
def test_a_process_that_is_lost(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "a.npz"), tmp_path / "run"
    (_, first), (_, second) = together(2, _failing, data, out)
    said(
        "process {} of {} has lost another, which ended or no longer answers; see what that one said, and "
        "go on with --resume ({})", first,
    )  # fmt: skip
    assert second == "DataError: mine alone"
    log = trained(data, out, epochs=2, resume=True).log
    assert [line["step"] for line in log if line["event"] == "resume"] == [4]


@follows(
    "the loss broke in step {}, at a rate of {}, before it could fall: no rate suits; {}look whether "
    "labels and images belong together",
    "draw other weights, as with --set start=glorot, or ",
    "lower the rate, or look whether labels and images belong together",
    "draw the weights as He et al. do (--set start=he), take a network with batch norm (--model vgg16_bn), "
    "or start from trained weights, as the paper did from its net A (--init)",
)  # fmt: skip
def test_what_does_not_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    data = arrays(tmp_path / "a.npz")
    line = Meter.line

    def breaking(self: Meter, *given: Any) -> Any:
        if broken:
            self._sums[0][0] *= float("nan")
        return line(self, *given)

    def tested(**how: Any) -> object:
        return find_rate("small-images", data, model="vgg11_bn", width=1 / 16, device="cpu",
                         settings={**SETTINGS, **how})  # fmt: skip

    def looked(text: str) -> None:
        assert "labels and images belong together" in text
        assert verydeep("check", data, "--size", 32).status == 0

    monkeypatch.setattr(Meter, "line", breaking)
    broken = True  # as weights drawn too large do
    text = refused(lambda: tested(start="paper"))
    *_, other = said(
        "the loss broke in step {}, at a rate of {}, before it could fall: no rate suits; {}look whether "
        "labels and images belong together", text,
    )  # fmt: skip
    said("draw other weights, as with --set start=glorot, or ", other)
    broken = False
    tested(**choices(text))
    looked(text)

    def stuck(*, batch_norm: bool) -> str:
        watch = Stuck(3, batch_norm=batch_norm)
        told = [watch({"event": "step", "step": s, "loss": math.log(3)}) for s in range(0, 700, 10)]
        return next(filter(None, told))

    text = stuck(batch_norm=True)
    said("lower the rate, or look whether labels and images belong together", text)
    trained(data, tmp_path / "lower", epochs=1, rate=SETTINGS["rate"] / 3)
    looked(text)
    text = stuck(batch_norm=False)
    said(
        "draw the weights as He et al. do (--set start=he), take a network with batch norm (--model "
        "vgg16_bn), or start from trained weights, as the paper did from its net A (--init)", text,
    )  # fmt: skip
    words = [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 1}.items()]
    begin = (
        "train",
        data,
        "--recipe",
        "small-images",
        *words,
        "--width",
        "0.0625",
        "--device",
        "cpu",
    )
    first = tmp_path / "first"
    assert verydeep(*begin, "--model", "vgg11", "--out", first).status == 0
    for at, option in enumerate([*re.findall(r"\((--.*?)\)", text)]):
        more = [*option.split(), first] if option == "--init" else option.split()
        model = () if "--model" in more else ("--model", "vgg11")
        done = verydeep(*begin, *model, *more, "--out", tmp_path / str(at))
        assert done.status == 0, done.err


@follows(
    "{} is not the file any more that the run in {} began with; put that one back, or choose another "
    "folder for a new run"
)
def test_weights_that_changed_meanwhile(tmp_path: Path) -> None:
    for part, each in (("train", 12), ("val", 4)):
        photos(tmp_path / "data" / part, each)
    mine, network_ = tmp_path / "mine.safetensors", tiny("vgg11")
    first = model_file(mine, network_).read_bytes()
    settings: Any = config(mine, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run(
            settings, tmp_path / "data", out=tmp_path / "out",
            event=At(2, lambda: signal.raise_signal(signal.SIGINT)),
        )  # fmt: skip
    model_file(mine, network_, licence="another's")
    text = refused(lambda: run(settings, tmp_path / "data", out=tmp_path / "out", resume=True))
    said(
        "{} is not the file any more that the run in {} began with; put that one back, or choose another "
        "folder for a new run",
        text,
    )
    assert run(settings, tmp_path / "data", out=tmp_path / "new").model.exists()
    mine.write_bytes(first)
    assert run(settings, tmp_path / "data", out=tmp_path / "out", resume=True).model.exists()


@follows(
    "start=probe solves a head gap, in floats, and {}; leave it out, or take small-images",
    "recipe finetune goes on from trained weights, and start is {}; leave start out, or take "
    "small-images or paper",
    "torchrun may start this run again, and it must be found then; name its folder by --out",
)  # fmt: skip
def test_what_goes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors", tiny())
    data = photos(tmp_path / "set", 6)
    number = count()

    def tuned(**how: Any) -> object:
        own = config(trunk, epochs=1, **how)
        return run(own, data, out=tmp_path / str(next(number)), device="cpu")

    def other(**how: Any) -> object:
        return trained(data, tmp_path / str(next(number)), epochs=1, **how)

    words = "start=probe solves a head gap, in floats, and {}; leave it out, or take small-images"
    rows: list[Row] = [
        (words, lambda: tuned(head="small"), lambda _: [tuned(), other(head="small")]),
        (words, lambda: tuned(code_bytes=900), lambda _: tuned()),
        ("recipe finetune goes on from trained weights, and start is {}; leave start out, or take "
         "small-images or paper", lambda: tuned(start="he"), lambda start: [tuned(), other(start=start)]),
    ]  # fmt: skip
    all_followed(rows)

    words = "torchrun may start this run again, and it must be found then; name its folder by --out"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with chdir(tmp_path):
        said(words, refused(lambda: run(config(trunk, epochs=1), data, device="cpu")))
        assert not Path("runs").exists()
    tuned()


@follows(
    "{}, and the run in {} was begun with it; go on on a device that can, or choose another folder for "
    "a new run",
    "--resume without DATA goes on as the run in {} was begun, and {} is given beside it; leave {} out, or "
    "give DATA too",
    ", and go on from its last good checkpoint by --init {}, in another folder",
)  # fmt: skip
def test_runs_that_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    data, cut = arrays(tmp_path / "a.npz"), tmp_path / "cut"
    stop = At(2, lambda: signal.raise_signal(signal.SIGINT))
    words = [
        "--recipe",
        "small-images",
        "--model",
        "vgg11_bn",
        "--width",
        1 / 16,
        "--device",
        "cpu",
    ]
    words += [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 1}.items()]
    assert verydeep("train", data, *words, "--out", tmp_path / "run").status == 0
    done = verydeep("train", "--resume", "--set", "seed=5", "--out", tmp_path / "run")
    assert done.status == 2
    out, option, _ = said(
        "--resume without DATA goes on as the run in {} was begun, and {} is given beside it; leave {} "
        "out, or give DATA too", done.err,
    )  # fmt: skip
    assert option == "--set"
    assert verydeep("train", "--resume", "--out", out).status == 0
    done = verydeep("train", "--resume", "--json", "--out", out)
    assert done.out.startswith("{")
    assert verydeep("train", data, *words, "--resume", "--out", out).status == 0

    # as a run that was begun on a GPU
    with pytest.raises(KeyboardInterrupt):
        trained(data, cut, event=stop)
    found = checkpoint.latest(cut / "checkpoints", lambda _: None)
    assert found is not None
    facts = {**found.facts, "config": {**found.facts["config"], "precision": "fp16"}}
    checkpoint.save(cut / "checkpoints", found.facts["step"], found.tensors, facts)
    text = refused(lambda: trained(data, cut, resume=True, precision="auto"))
    what, place = said(
        "{}, and the run in {} was begun with it; go on on a device that can, or choose another folder for "
        "a new run", text,
    )  # fmt: skip
    assert (what, place) == ("precision=fp16 is for GPUs", str(cut))
    trained(data, tmp_path / "another", epochs=1, precision="auto")

    line, told = Meter.line, count()

    def breaking(self: Meter, *given: Any) -> Any:
        if next(told) == 6:
            self._sums[0][0] *= float("nan")
        return line(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "line", breaking)
        text = refused(lambda: trained(data, tmp_path / "broken"))
    words_ = ", and go on from its last good checkpoint by --init {}, in another folder"
    (place,) = said(words_, text)
    trained(data, tmp_path / "better", init=taken("(.*)", place), **choices(text))
