"""Advice on engines, their cache, the race, exports and int8, followed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import verydeep as package
from verydeep import benching, exporting, modelfile, quantisation
from verydeep.cli import doctor
from verydeep.engines import (
    ENGINES,
    MOST_THREADS,
    Engine,
    Kind,
    choice,
    forks,
    onnxruntime,
    processor,
    race,
)
from verydeep.engines.choice import Choice
from verydeep.engines.race import Memory
from verydeep.errors import EngineError, MissingExtraError
from verydeep.files import folders
from verydeep.files.cache import Cache
from verydeep.graphs import Source
from verydeep.graphs import network as graph
from verydeep.nets import network
from verydeep.preprocess import TORCHVISION
from verydeep.published.foreign import needed

from ..conftest import Run
from ..tiny import model_file, photo, pixels, tiny, weights
from .following import ROOT, brought, command, follows, refused, said, taken

INT8 = ROOT / "tests" / "golden" / "modelfile_int8.safetensors"


@pytest.fixture
def source() -> Source:
    net = tiny(head="small")
    return Source.of(graph.build(net, weights(net), TORCHVISION))


# What is not installed


@follows(
    "engine {} is not installed; install it with: {}", "pip install ",
    "an export to {} is checked in {}, which is not installed; install it with: {}",
)  # fmt: skip
def test_engines_that_are_not_installed(
    source: Source, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kind, "available", False)
    for name, kind in ENGINES.items():
        text = refused(lambda name=name: Engine(name, source, precision="fast"))  # type: ignore[misc]
        said("pip install ", text)
        _, install = said("engine {} is not installed; install it with: {}", text)
        assert kind.distributions[0].lower() in brought(install)
    words = "an export to {} is checked in {}, which is not installed; install it with: {}"
    for to, form in exporting.FORMATS.items():
        text = refused(lambda to=to: exporting.export(model, to, tmp_path / "a"))  # type: ignore[misc]
        (*_, install) = said(words, text)
        assert ENGINES[form.engine].distributions[0].lower() in brought(install)


@follows('; install it with: pip install "verydeep[{}]"', 'pip install "verydeep[fast]"')
def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for package_name, extra in (("torch", "torch"), ("h5py", "keras")):
        with monkeypatch.context() as gone:
            gone.setitem(__import__("sys").modules, package_name, None)
            with pytest.raises(MissingExtraError) as missing:
                needed(package_name, "reading it", extra)
        (named,) = said('; install it with: pip install "verydeep[{}]"', missing.value)
        assert package_name in brought(f"verydeep[{named}]")
        needed(package_name, "reading it", extra)
    monkeypatch.setattr(benching, "installed", lambda: (ENGINES["onnxruntime"],))
    text = benching.table([])
    said('pip install "verydeep[fast]"', text)
    named, engines = re.findall(r'pip install "(.*?)" adds (.*)', text)[0]
    assert {one.lower() for one in re.split(", | and ", engines)} <= brought(named)


@follows(': pip install "verydeep[{}]"')
def test_extras_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    about = Message()
    about["Provides-Extra"] = "tensorboard"
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: about)
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["nowhere>=2; extra == 'tensorboard'"]
    )
    ((extra, text),) = doctor._extras()
    (named,) = said(': pip install "verydeep[{}]"', text)
    assert extra == named
    assert extra in brought(f"verydeep[{named}]")


# Devices and precisions


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@follows("threads is {}; expected {} or fewer, one a core")
def test_more_threads_than_any_machine_has(model: Path) -> None:
    text = refused(lambda: package.load(model, threads=10**6))
    _, most = said("threads is {}; expected {} or fewer, one a core", text)
    assert int(most) == MOST_THREADS
    for few in (1, os.cpu_count() or 1):
        made = package.load(model, engine="onnxruntime", threads=few)
        assert made.scores([pixels(32, 32, 1)[0]]).shape == (1, 7)


@follows("; use --device cpu", "; expected one, or --device cpu")
@pytest.mark.usefixtures("no_gpu")
def test_devices_that_are_not_here(tmp_path: Path, model: Path, verydeep: Run) -> None:
    file = photo(tmp_path / "a.png")
    for words, advice in (
        (("--model", INT8, "--precision", "int8", "--device", "mps"), "; use --device cpu"),
        (("--model", model, "--device", "cuda"), "; expected one, or --device cpu"),
    ):
        done = verydeep("classify", file, *words)
        said(advice, done.err)
        option, value = taken(r"(--\w+ \w+)", done.err).split()
        assert verydeep("classify", file, *words[:-2], option, value).status == 0
        keywords: dict[str, Any] = {option.strip("-"): value}
        assert package.load(model, **keywords)(file)  # in a program it is a keyword


@follows("; use --device cpu")
def test_a_build_with_cuda_that_finds_none(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "devices", lambda: ("cuda", "cpu"))
    monkeypatch.setitem(onnxruntime.PROVIDERS, "cuda", ["CPUExecutionProvider"])
    text = refused(lambda: Engine("onnxruntime", source, device="cuda"))
    said("; use --device cpu", text)
    Engine("onnxruntime", source, device=taken(r"--device (\w+)", text))
    # its extras of these names bring CUDA's libraries and cuDNN's (onnxruntime-gpu 1.21 and later)
    assert taken(r'pip install "(.*)"', text) == "onnxruntime-gpu[cuda,cudnn]"


@follows("; try another precision or --device cpu")
def test_no_engine_that_is_close_enough(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("liar", "numpy", ("numpy",), ("fast", "half"), ("cpu", "gpu"))

    def prepare(engine: Engine) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        inner, factor = onnxruntime.prepare(engine), 1.01 if engine.device == "gpu" else 1
        return lambda image: {k: v * np.float32(factor) for k, v in inner(image).items()}

    module = SimpleNamespace(
        prepare=prepare, variants=lambda *_: ({},), devices=lambda: ("gpu", "cpu")
    )
    real = Kind.load
    monkeypatch.setitem(ENGINES, "liar", kind)
    monkeypatch.setitem(onnxruntime.PROVIDERS, "gpu", ["CPUExecutionProvider"])
    monkeypatch.setattr("verydeep.engines.DEVICES", ("auto", "cpu", "gpu"))
    monkeypatch.setattr(Kind, "load", lambda self: module if self.name == "liar" else real(self))

    def held(precision: str, device: str) -> Engine:
        return race.race(
            source, pixels(32, 32, 2), [kind], precision=precision, threads=1, devices=[device],
            seconds=0,
        )[0]  # fmt: skip

    text = refused(lambda: held("fast", "gpu"))
    said("; try another precision or --device cpu", text)
    assert held("fast", taken(r"--device (\w+)", text)).name == "liar"
    assert held("half", "gpu").name == "liar"


@follows("; use --precision fast, or another engine")
def test_an_engine_whose_sums_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    monkeypatch.setattr(processor, "multiplies_fast", lambda: None)
    monkeypatch.setattr(processor, "overflows", lambda name: name == "onnxruntime")
    words = (
        "classify",
        photo(tmp_path / "a.png"),
        "--model",
        INT8,
        "--precision",
        "int8",
        "--engine",
    )
    done = verydeep(*words, "onnxruntime")
    said("; use --precision fast, or another engine", done.err)
    option, value = taken(r"use (--precision \w+)", done.err).split()
    assert verydeep(*words, "onnxruntime", option, value).status == 0
    assert verydeep(*words, "openvino").status == 0


@follows("`verydeep quantize` makes one")
def test_int8_of_a_model_of_floats(tmp_path: Path, model: Path, verydeep: Run) -> None:
    photos = [photo(tmp_path / "photos" / f"{seed}.png", seed=seed) for seed in range(32)]
    classify = ("classify", photos[0], "--precision", "int8", "--model")
    done = verydeep(*classify, model)
    said("`verydeep quantize` makes one", done.err)
    verb, out = command(taken("`(.*)`", done.err)), tmp_path / "int8.safetensors"
    made = verydeep(*verb, model, "--calibrate", photos[0].parent, "--out", out, "--float", "fc8")
    assert made.status == 0, made.err
    assert verydeep(*classify, out).status == 0


@follows(
    "expected {} or more to calibrate on and as many to check with",
    "expected the float model that it was made from", "; quantise a model that classifies",
    "cannot be written: it is a folder; name a file in it",
)  # fmt: skip
def test_what_can_be_quantised(
    tmp_path: Path, model: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "int8.safetensors"
    opened = modelfile.read(model)
    made = quantisation.Quantised(opened.record, opened.stored, 1.0, 0.0, 1, 1, ())

    def quantize(given: Path, target: Path = out) -> str:
        done = verydeep("quantize", given, "--calibrate", photos, "--out", target)
        assert (done.status == 0) == (not done.err), done.err
        return done.err

    # what takes long comes after the checks
    monkeypatch.setattr(quantisation, "plan", lambda *_: None)
    monkeypatch.setattr(quantisation, "_walk", lambda *_: None)
    for name in ("_tallies", "_ranges", "_sensitive"):
        monkeypatch.setattr(quantisation, name, lambda *_: {})
    monkeypatch.setattr(quantisation, "Quantised", lambda *_: made)
    monkeypatch.setattr(quantisation, "_draft", lambda *_: quantisation.Draft(
        opened.record.network, opened.record.preprocess, dict(opened.stored)))  # fmt: skip

    photo(photos / "0.png")
    words = "expected {} or more to calibrate on and as many to check with"
    (number,) = said(words, quantize(model))
    for seed in range(2 * int(number)):
        photo(photos / f"{seed}.png", seed=seed)
    assert not quantize(model)
    said("expected the float model that it was made from", quantize(INT8))
    trunk = model_file(tmp_path / "trunk.safetensors", tiny(head="classic", classes=0))
    said("; quantise a model that classifies", quantize(trunk))
    said("cannot be written: it is a folder; name a file in it", quantize(model, photos))
    assert not quantize(model, photos / "int8.safetensors")


# Memory and processes


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="Windows does not tell its memory")
@follows("; take a smaller size or batch")
def test_what_memory_cannot_hold(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    pages = {"SC_PHYS_PAGES": 2_500, "SC_PAGE_SIZE": 4096}  # 10 MB
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    for seed in range(8):
        photo(tmp_path / f"{seed}.png", seed=seed)
    words = ("classify", *sorted(tmp_path.glob("*.png")), "--model", model)
    done = verydeep(*words, "--size", 500)
    said("; take a smaller size or batch", done.err)
    assert verydeep(*words, "--size", 100).status == 0
    done = verydeep(*words, "--size", 300, "--batch", 8)
    said("; take a smaller size or batch", done.err)
    assert verydeep(*words, "--size", 300, "--batch", 1).status == 0


@follows(
    "; start processes with the method spawn, use the model in the child alone, or give threads=1"
)
@pytest.mark.parametrize("name", ["mnn", "openvino"])
def test_threads_in_a_forked_child(
    name: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real processes: tests/test_processes.py."""
    # which the parent of a fork leaves
    monkeypatch.setattr(forks, "_threads_of", {name: os.getpid() + 1})
    text = refused(lambda: Engine(name, source, precision="fast", threads=2))
    said(
        "; start processes with the method spawn, use the model in the child alone, or give threads=1",
        text,
    )
    keyword, value = taken(r"(threads=\d)", text).split("=")
    told: dict[str, Any] = {keyword: int(value)}
    Engine(name, source, precision="fast", **told)
    # a spawned child has no past; nor has an unused parent
    monkeypatch.setattr(forks, "_threads_of", {})
    Engine(name, source, precision="fast", threads=2)


@follows(
    "expected (batch, height, width, {})", "expected numbers from 0 to 255",
)  # fmt: skip
def test_pixels_of_an_engine() -> None:
    net = tiny(head="small")
    engine = Engine("onnxruntime", graph.build(net, weights(net), TORCHVISION, pixels="float32"))
    text = refused(lambda: engine.run(np.zeros((32, 32, 3), np.float32)))
    (channels,) = said("expected (batch, height, width, {})", text)
    engine.run(np.zeros((1, 32, 32, int(channels.rstrip(")"))), np.float32))
    odd = np.full((1, 32, 32, 3), np.nan, np.float32)
    said("expected numbers from 0 to 255", refused(lambda: engine.run(odd)))
    engine.run(np.nan_to_num(odd, nan=255))


# The cache


@pytest.fixture
def prepared() -> Callable[..., bytes]:
    """Opens something of 1 MB in the cache; fails where it is not kept, if that is asked."""

    def opened(make: Callable[[Path], None] | None = None, kept: bool = True) -> bytes:
        def load(folder: Path, _: Mapping[str, Any]) -> bytes:
            return (folder / "toy").read_bytes()[:3]

        def write(folder: Path) -> None:
            (folder / "toy").write_bytes(bytes(10**6))

        cache = Cache()
        value = cache.open("toy", {}, make or write, load, needs_bytes=lambda: 10**6)
        assert bool(cache.entries()) == kept
        return value

    return opened


@follows(
    "; VERYDEEP_CACHE_LIMIT={}MB is enough for it",
    "VERYDEEP_CACHE_LIMIT is {}; expected bytes, or a size such as 500MB or 4GB",
)
def test_the_caches_limit(
    prepared: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", "much")
    words = "VERYDEEP_CACHE_LIMIT is {}; expected bytes, or a size such as 500MB or 4GB"
    text = refused(Cache)
    said(words, text)
    for size in ("1000", *taken("such as (.*)", text).split(" or ")):
        monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", size)
        Cache()
    monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", "1kB")
    prepared(kept=False)
    text = capsys.readouterr().err
    said("; VERYDEEP_CACHE_LIMIT={}MB is enough for it", text)
    monkeypatch.setenv(*taken(r"(VERYDEEP_CACHE_LIMIT=\w+)", text).split("="))
    prepared()
    assert not capsys.readouterr().err


@follows(
    "; free some space, or name another with VERYDEEP_CACHE",
    "free some space, or name a folder on another disk with VERYDEEP_CACHE or TMPDIR",
)  # fmt: skip
def test_a_cache_on_a_full_disk(
    prepared: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usage, free = shutil.disk_usage, [tmp_path / "other"]
    free[0].mkdir()

    def full(path: Path | str) -> Any:
        roomy = Path(path).resolve().is_relative_to(free[0].resolve())
        return usage(path)._replace(free=10**9 if roomy else 10)

    monkeypatch.setattr(shutil, "disk_usage", full)
    both = "free some space, or name a folder on another disk with VERYDEEP_CACHE or TMPDIR"
    text = refused(prepared)
    said(both, text)
    said("; free some space, or name another with VERYDEEP_CACHE", capsys.readouterr().err)
    for name in re.findall(r"VERYDEEP_\w+|TMPDIR", text):
        with monkeypatch.context() as named:
            named.setenv(name, str(free[0]))
            named.setattr("tempfile.tempdir", None)  # which it found before
            prepared(kept=name != "TMPDIR")
    monkeypatch.setattr(shutil, "disk_usage", usage)
    prepared()

    def fills(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Cache().clear()
    said(both, refused(lambda: prepared(fills)))


@follows("VERYDEEP_CACHE names a folder for it", "VERYDEEP_CACHE names another")
def test_a_cache_that_has_no_place(
    prepared: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    for words, place in (
        ("VERYDEEP_CACHE names another", str(tmp_path / "file")),
        ("VERYDEEP_CACHE names a folder for it", ""),
    ):
        monkeypatch.setenv("VERYDEEP_CACHE", place)
        monkeypatch.setattr(folders, "_home", lambda *_: None)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("LOCALAPPDATA", raising=False)
        prepared(kept=False)
        text = capsys.readouterr().err
        said(words, text)
        monkeypatch.setenv(taken(r"(VERYDEEP_\w+) names", text), str(tmp_path / "cache" / words))
        prepared()
        assert not capsys.readouterr().err


@follows("{} is a folder, so nothing is remembered; remove it")
def test_a_folder_where_a_memory_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    memory = folders.Notebook("toys.json")
    memory.path.mkdir(parents=True)
    assert not memory.write("toy", 1)
    err = capsys.readouterr().err.splitlines()[-1]
    (path,) = said("{} is a folder, so nothing is remembered; remove it", err)
    Path(path.removeprefix("verydeep: ")).rmdir()
    assert memory.write("toy", 1)


@follows("`verydeep cache clear`", "`verydeep cache clear` makes it hold again")
def test_a_choice_that_is_made_again(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verydeep: Run,
) -> None:  # fmt: skip
    kinds = (ENGINES["onnxruntime"], ENGINES["openvino"])
    monkeypatch.setattr(choice, "installed", lambda: kinds)
    monkeypatch.setattr("verydeep.benching.installed", lambda: kinds)

    def chosen() -> str:
        made = Choice(source, threads=1, device="cpu")
        monkeypatch.setattr(race, "_duel", lambda *_: (2.0, 1))
        made.engine(pixels(32, 32, 8), to_come=100)
        return capsys.readouterr().err

    text = chosen()
    said("`verydeep cache clear`", text)
    assert "chose" not in chosen()
    row = benching.Row("openvino", "fast", 1, 10, None, None, 0.0, None, 1.0, 10**6)
    table = benching.table([row, replace(row, engine="auto", ms_per_image=20, chosen="mnn")])
    said("`verydeep cache clear` makes it hold again", table)
    for advice in (text, table):
        assert verydeep(*command(taken("`(verydeep .*?)`", advice))).status == 0
        assert not Memory().choices()
        assert "chose" in chosen()


# The race of `verydeep bench`


@follows(
    "expected numbers of 1 or more", "expected all, or some of: {}",
    "; free some space, or name another folder with TMPDIR", "; write 1,8",
)  # fmt: skip
def test_bench(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run) -> None:
    worker = SimpleNamespace(ask=lambda *_: {"1": {}}, close=lambda: None)
    monkeypatch.setattr(benching, "_workers", lambda *_: [worker])
    monkeypatch.setattr(benching, "_rounds", lambda *_: None)
    monkeypatch.setattr(benching, "_rows", lambda *_: ())
    said("expected numbers of 1 or more", refused(lambda: benching.bench(model, batches=(0,))))
    said("expected numbers of 1 or more", refused(lambda: benching.bench(model, rounds=0)))
    benching.bench(model, batches=(1,), rounds=1)
    for option in ("--engines", "--precision"):
        done = verydeep("bench", model, option, ",")
        (names,) = said("expected all, or some of: {}", done.err)
        for name in ("all", *names.split(", ")):
            given = INT8 if name == "int8" else model
            assert verydeep("bench", given, option, name).status == 0, name
    done = verydeep("bench", model, "--batch", "some")
    said("; write 1,8", done.err)
    assert verydeep("bench", model, "--batch", taken(r"write ([\d,]+)", done.err)).status == 0

    usage = shutil.disk_usage

    def full(path: Path | str) -> Any:
        roomy = "another" in str(path)
        return usage(path)._replace(free=10**9 if roomy else 10)

    (tmp_path / "another").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", full)
    monkeypatch.setattr("tempfile.tempdir", None)
    done = verydeep("bench", model)
    said("; free some space, or name another folder with TMPDIR", done.err)
    monkeypatch.setenv(taken(r"folder with (\w+)", done.err), str(tmp_path / "another"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert verydeep("bench", model).status == 0
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert verydeep("bench", model).status == 0


# Exports


@follows(
    "run it: python {} photo.jpg", "; name the layers to give out as taps, such as {}",
    "; take {}, and pool that", "expected a name that ends in {} for {}", "name another",
    "; free some space and try again", "make the folder first", "free some space and try again",
    "choose a folder you may write to", "choose a disk that takes larger files",
)  # fmt: skip
def test_export(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    import subprocess
    import sys

    out = tmp_path / "a.onnx"
    done = verydeep("export", model, "--to", "onnx", "--out", out)
    (program,) = said("run it: python {} photo.jpg", done.out)
    ran = subprocess.run(
        [sys.executable, program, photo(tmp_path / "photo.jpg")], capture_output=True, text=True
    )
    assert "%" in ran.stdout, ran.stderr

    def exported(name: str, *more: object, to: str = "onnx", given: Path = model) -> str:
        done = verydeep("export", given, "--to", to, "--out", tmp_path / name, *more)
        assert (done.status == 0) == (tmp_path / name).is_file(), done.err
        return done.err

    trunk = model_file(tmp_path / "trunk.safetensors", tiny(head="classic", classes=0))
    (layer,) = said(
        "; name the layers to give out as taps, such as {}", exported("b.onnx", given=trunk)
    )
    exported("b.onnx", "--taps", layer, given=trunk)
    assert (tmp_path / "b.onnx").exists()
    layer, _ = (
        said("; take {}, and pool that", exported("c.pt2", "--taps", "pool5", to="torch")),
        None,
    )
    exported("c.pt2", "--taps", layer[0], to="torch")
    assert (tmp_path / "c.pt2").exists()
    suffix, to = said("expected a name that ends in {} for {}", exported("d.model", to="onnx"))
    exported(f"d{suffix}", to=to)
    assert (tmp_path / "d.onnx").exists()

    (tmp_path / "e.onnx").mkdir()
    said("name another", exported("e.onnx"))
    exported("another.onnx")
    assert (tmp_path / "another.onnx").exists()
    said("make the folder first", exported("folder/f.onnx"))
    (tmp_path / "folder").mkdir()
    exported("folder/f.onnx")
    assert (tmp_path / "folder" / "f.onnx").exists()
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    said("; free some space and try again", exported("g.onnx"))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    exported("g.onnx")
    assert (tmp_path / "g.onnx").exists()
    place = exporting.place
    for number, words in (
        (errno.ENOSPC, "free some space and try again"),
        (errno.EACCES, "choose a folder you may write to"),
        (errno.EFBIG, "choose a disk that takes larger files"),
    ):

        def fails(
            stage: Path, folder: Path, last: tuple[str, ...], number: int = number
        ) -> tuple[Path, ...]:
            if folder != tmp_path / "folder":
                raise OSError(number, os.strerror(number))
            return place(stage, folder, last)

        monkeypatch.setattr(exporting, "place", fails)
        said(words, exported(f"{number}.onnx"))
        exported(f"folder/{number}.onnx")
        assert (tmp_path / "folder" / f"{number}.onnx").exists()


@follows("a program may have it open; close it there")
def test_windows_replaces_no_file_that_is_open(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    there, replace_file = open(model, "rb"), os.replace  # noqa: SIM115

    def as_windows(source: object, target: Any) -> None:
        if not there.closed:
            raise PermissionError(errno.EACCES, "Access is denied", source, None, target)
        replace_file(source, target)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", as_windows)
    record, stored = (given := modelfile.read(model)).record, given.stored
    with there:
        said(
            "a program may have it open; close it there",
            refused(lambda: modelfile.write(model, record, stored)),
        )
    modelfile.write(model, record, stored)


@follows("; ask for layers alone", "nothing is asked for: expected scores or layers")
def test_what_is_asked_of_a_network() -> None:
    trunk, whole = network("vgg11", classes=0), network("vgg11")
    said("; ask for layers alone", refused(lambda: trunk.cut("relu1_1", scores=True)))
    trunk.cut("relu1_1")
    said("nothing is asked for: expected scores or layers", refused(lambda: whole.cut(())))
    whole.cut((), scores=True)
    whole.cut("relu1_1")


def test_a_refusal_is_an_error_of_engines(source: Source) -> None:
    """What the tests here rest on: a word that is none is refused."""
    with pytest.raises(EngineError):
        Engine("onyx", source)
