"""Advice on model files, published weights and conversion, followed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from verydeep import modelfile, nets
from verydeep.files import strict_json
from verydeep.modelfile import Activation, Record
from verydeep.models import build, vgg
from verydeep.preprocess import PRESETS
from verydeep.published import catalog, conversion, fetching, foreign, layouts
from verydeep.published.catalog import Entry, Published

from ..conftest import Run
from ..tiny import model_file, photo, tiny, weights
from .following import ROOT, Row, all_followed, command, evaluated, follows, refused, said, taken

INT8 = ROOT / "tests" / "golden" / "modelfile_int8.safetensors"
NET = tiny(head="classic")


def state(net: nets.Network = NET) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in weights(net).items()}


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """Weights in torchvision's layout, of a network that nobody published."""
    torch.save(state(), tmp_path / "mine of 2026.pth")
    return tmp_path / "mine of 2026.pth"


# Model files


@follows(
    "it was cut short, added to or damaged: fetch or write it again", "expected a model file",
    "expected a .safetensors file", "; expected at most {}: the file is damaged",
    "; try again", "; pickle again", "keep less in the record",
)  # fmt: skip
def test_model_files(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.read_bytes()
    long = (2**40).to_bytes(8, "little")
    for content, words in (
        (whole[:-9], "it was cut short, added to or damaged: fetch or write it again"),
        (b"", "expected a model file"),
        (long + whole[8:], "; expected at most {}: the file is damaged"),
    ):
        model.write_bytes(content)
        said(words, refused(lambda: modelfile.read(model)))
        model_file(model)
        assert model.read_bytes() == whole
        modelfile.read(model)
    said("expected a .safetensors file", refused(lambda: modelfile.read(tmp_path)))
    (tmp_path / "page.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    text = refused(lambda: modelfile.read(tmp_path / "page.h5"))
    said("expected a .safetensors file", text)
    with monkeypatch.context() as swapped:
        loads = strict_json.loads

        def other(text: bytes) -> Any:
            return {**loads(text), "from another file": {}}  # type: ignore[dict-item]

        swapped.setattr("verydeep.modelfile.strict_json.loads", other)
        said("; try again", refused(lambda: modelfile.read(model)))
    opened = modelfile.read(model)
    pickled = pickle.dumps(opened)
    model_file(model, tiny("vgg13"))
    said("; pickle again", refused(lambda: pickle.loads(pickled)))
    pickle.loads(pickle.dumps(modelfile.read(model)))
    long_note = replace(opened.record, provenance={"note": "x" * modelfile.MAX_HEADER_BYTES})
    text = refused(lambda: modelfile.write(model, long_note, opened.stored))
    said("keep less in the record", text)
    modelfile.write(model, replace(opened.record, provenance={}), opened.stored)


@follows("`verydeep weights convert` makes a model file of published or trained weights")
def test_weights_that_are_no_model_file(tmp_path: Path, pth: Path, verydeep: Run) -> None:
    save_file(state(), tmp_path / "state.safetensors")
    for file in (pth, tmp_path / "state.safetensors"):
        classify = ("classify", photo(tmp_path / "a.png"), "--model")
        done = verydeep(*classify, file)
        words = "`verydeep weights convert` makes a model file of published or trained weights"
        said(words, done.err)
        convert = command(taken("`(verydeep .*?)`", done.err))
        out = tmp_path / "made.safetensors"
        made = verydeep(*convert, file, out, "--preprocess", "torchvision")
        assert made.status == 0, made.err
        assert verydeep(*classify, out).status == 0


RECORD = Record(NET)
JSON = json.loads(RECORD.to_json())
TENSORS = weights(NET)
FIRST = "features.0.weight"
FIGURE = {"what": "top1", "protocol": "by hand", "value": 1}


def read(**changes: Any) -> Record:
    return Record.from_json(json.dumps({**JSON, **changes}))


def write(path: str, **changes: Any) -> None:
    modelfile.write(Path(os.environ["VERYDEEP_CACHE"]) / path, RECORD, {**TENSORS, **changes})


def described(entry: dict[str, Any]) -> modelfile.ModelFile:
    """A model file whose first tensor is described by that."""
    path = Path(os.environ["VERYDEEP_CACHE"]) / "described.safetensors"
    write(path.name)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[FIRST] |= entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return modelfile.read(path)


RECORDS: list[Row] = [
    ("an activation's scale is {}; expected a number from {} to {}",
     lambda: Activation(0), lambda _, *ends: [Activation(float(end)) for end in ends]),
    ("an activation's zero_point is {}; expected a whole number, 0 to 255",
     lambda: Activation(1, 256), lambda _: [Activation(1, 0), Activation(1, 255)]),
    ("the network is {} cut short; expected all of it",
     lambda: Record(NET.cut("relu1_1")), lambda _: Record(NET)),
    ("the record's {} is {}; expected {}",
     lambda: Record(NET, threshold=2),
     lambda *_: [Record(NET, threshold=0), Record(NET, threshold=1), Record(NET, threshold=None)]),
    ("expected 1 to {} characters of text without control characters",
     lambda: Record(NET, class_names=("\n",) * 7),
     lambda most: [Record(NET, class_names=("x" * n,) * 7) for n in (1, int(most))]),
    ("the record's format_version is {}; expected 1 to {}",
     lambda: read(format_version=0), lambda _, other: [read(format_version=n) for n in (1, int(other))]),
    ("the head's layers are {}; expected a list",
     lambda: read(network={**JSON["network"], "head": {**JSON["network"]["head"], "layers": 0}}),
     lambda _: read(network={**JSON["network"], "head": {**JSON["network"]["head"], "layers": []}})),
    ("the {} is {}; expected a JSON object",
     lambda: read(network=3), lambda *_: read(network=JSON["network"])),
    ("the {} has {} as {}; expected {}",
     lambda: read(measured=[{**FIGURE, "value": "x"}]), lambda *_: read(measured=[FIGURE])),
    ("expected a JSON object with one member for each rounded value, or no activations at all",
     lambda: read(activations={}),
     lambda: [read(), read(activations={"input": {"scale": 1.0, "zero_point": 0}})]),
    ("the record's activations are {}; expected a mapping",
     lambda: Record(NET, activations=[1]),  # type: ignore[arg-type]
     lambda _: Record(NET, activations={"input": Activation(1)})),
    ("the record's activation {} is {}; expected an Activation",
     lambda: Record(NET, activations={"input": 1}),  # type: ignore[dict-item]
     lambda *_: Record(NET, activations={"input": Activation(1)})),
    ("it has the number {}; expected a finite one",
     lambda: Record(NET, provenance={"x": np.inf}), lambda _: Record(NET, provenance={"x": 1.5})),
    ("it has the key {}; expected text",
     lambda: Record(NET, provenance={"x": {1: 1}}),  # type: ignore[dict-item]
     lambda _: Record(NET, provenance={"x": {"1": 1}})),
    ("tensor {} is described by {}; expected dtype, shape and data_offsets",
     lambda: described({"more": 1}), lambda *_: described({})),
    ("it has {} both as floats and {}; expected one",
     lambda: write("a", **{f"{FIRST}.q": TENSORS[FIRST].astype(np.int8)}), lambda *_: write("a")),
    ("the tensor {} has the dtype {}; expected {}",
     lambda: write("a", **{FIRST: TENSORS[FIRST].astype(float)}),
     lambda _, __, kinds: [write("a", **{FIRST: TENSORS[FIRST].astype({"F32": "f4", "F16": "f2"}[kind])})
                           for kind in kinds.split(" or ")]),
    ("the tensor {} has the value {}; expected finite numbers above 0",
     lambda: quantised(0), lambda *_: quantised(1)),
    ("it was given a tensor named {}; expected text",
     lambda: modelfile.write("a", RECORD, {3: TENSORS[FIRST]}),  # type: ignore[dict-item]
     lambda _: write("a")),
    ("the tensor {} was given as {}; expected a numpy array",
     lambda: write("a", **{FIRST: TENSORS[FIRST].tolist()}),
     lambda *_: write("a", **{FIRST: np.array(TENSORS[FIRST].tolist(), np.float32)})),
]  # fmt: skip


def quantised(scale: float) -> None:
    rest = {key: value for key, value in TENSORS.items() if key != FIRST}
    scales = np.full((len(TENSORS[FIRST]), 1, 1, 1), scale, np.float32)
    whole = {f"{FIRST}.q": np.zeros(TENSORS[FIRST].shape, np.int8), f"{FIRST}.scale": scales}
    modelfile.write(Path(os.environ["VERYDEEP_CACHE"]) / "a", RECORD, {**rest, **whole})


@follows(*(words for words, _, _ in RECORDS))
def test_records_and_tensors() -> None:
    Path(os.environ["VERYDEEP_CACHE"]).mkdir(exist_ok=True)
    all_followed(RECORDS)


# Published weights


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server that has the catalogue's "tiny": a VGG-11, small, as torch.save writes it."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(state(tiny(head="classic", classes=1000)), folder / "tiny.pth")
    head = hashlib.sha256((folder / "tiny.pth").read_bytes()).hexdigest()[:8]

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # whoever is refused goes away

    for name in ("VERYDEEP_MIRROR", "VERYDEEP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with Server(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/tiny.pth"
        entry = Entry(
            "tiny", "vgg11", "V1", (Published(url, f"sha256:{head}"),), "MIT", "torchvision"
        )
        monkeypatch.setitem(catalog.ENTRIES, "tiny", entry)
        yield folder
        server.shutdown()


def forget() -> None:
    """The cache as it is on a new machine."""
    shutil.rmtree(os.environ["VERYDEEP_CACHE"], ignore_errors=True)


@follows(
    "get it with: verydeep weights fetch {}",
    "`verydeep weights convert {} OUT.pth` makes a .pth again",
)
def test_fetching(published: Path, tmp_path: Path, verydeep: Run) -> None:
    done = verydeep("weights", "verify", "tiny")
    said("get it with: verydeep weights fetch {}", done.out)
    done = verydeep(*command(taken("(verydeep weights fetch .*)", done.out)))
    assert done.status == 0, done.err
    assert verydeep("weights", "verify", "tiny").status == 0
    said("`verydeep weights convert {} OUT.pth` makes a .pth again", done.err)
    words = command(taken("`(verydeep .*?)`", done.err), **{"OUT.pth": tmp_path / "back.pth"})
    assert verydeep(*words).status == 0
    back, first = (
        torch.load(p, weights_only=True) for p in (tmp_path / "back.pth", published / "tiny.pth")
    )
    assert all(torch.equal(back[key], first[key]) for key in first)


@follows(
    "VERYDEEP_OFFLINE is set; put {} at {}, or unset the variable",
    "VERYDEEP_MIRROR is the folder {}, which has no {} that agrees with {}; put it there, or unset the "
    "variable",
    "set VERYDEEP_MIRROR to an address or folder that has it, or put the file at {}, or {}",
    "give the path of one that you have",
)  # fmt: skip
def test_ways_to_weights_that_cannot_be_fetched(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    file, image = published / "tiny.pth", photo(tmp_path / "a.png")

    def classify() -> str:
        forget()
        done = verydeep("classify", image, "--model", "tiny")
        assert (done.status == 0) == (
            "tiny.pth at" not in done.err and "VERYDEEP" not in done.err
        ), done.err
        return done.err

    def put(place: str) -> str:
        forget()
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        done = verydeep("classify", image, "--model", "tiny")
        assert done.status == 0, done.err
        return done.err

    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    name, place = said("VERYDEEP_OFFLINE is set; put {} at {}, or unset the variable", classify())
    assert name == Path(place).name
    put(place)
    monkeypatch.delenv("VERYDEEP_OFFLINE")
    classify()

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("VERYDEEP_MIRROR", str(empty))
    words = (
        "VERYDEEP_MIRROR is the folder {}, which has no {} that agrees with {}; put it there, or unset the "
        "variable"
    )
    folder, name, _ = said(words, classify())
    put(str(Path(folder, name)))
    monkeypatch.delenv("VERYDEEP_MIRROR")
    classify()

    entry = catalog.ENTRIES["tiny"]
    gone = replace(
        entry, published=(replace(entry.published[0], url="http://127.0.0.1:9/tiny.pth"),)
    )
    monkeypatch.setitem(catalog.ENTRIES, "tiny", gone)
    words = "set VERYDEEP_MIRROR to an address or folder that has it, or put the file at {}, or {}"
    place, otherwise = said(words, classify())
    said("give the path of one that you have", otherwise)
    put(place)
    for mirror in (str(published), entry.published[0].url.removesuffix("/tiny.pth")):
        monkeypatch.setenv("VERYDEEP_MIRROR", mirror)
        classify()
    monkeypatch.delenv("VERYDEEP_MIRROR")
    forget()
    assert verydeep("weights", "fetch", file).status == 0  # and from then on it is there
    assert verydeep("classify", image, "--model", "tiny").status == 0


@follows(
    "; make room, or set VERYDEEP_CACHE to a folder on another disk",
    "set VERYDEEP_CACHE to a folder that you may write to",
    "make room and start again: it goes on where it stopped",
)
def test_disks_that_refuse(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    assert published
    usage, fsync = shutil.disk_usage, os.fsync
    cache = os.environ["VERYDEEP_CACHE"]

    def fetch() -> str:
        forget()
        done = verydeep("weights", "fetch", "tiny")
        assert (done.status == 0) == bool(done.out), done.err
        return done.err

    def full(path: Any) -> Any:
        return usage(path)._replace(free=10 if str(path).startswith(cache) else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", full)
    words = "; make room, or set VERYDEEP_CACHE to a folder on another disk"
    text = fetch()
    said(words, text)
    monkeypatch.setenv(taken(r"set (VERYDEEP_\w+)", text), str(tmp_path / "other"))
    assert words not in fetch()
    monkeypatch.setenv("VERYDEEP_CACHE", cache)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert words not in fetch()
    for number, words in (
        (errno.EACCES, "set VERYDEEP_CACHE to a folder that you may write to"),
        (errno.ENOSPC, "make room and start again: it goes on where it stopped"),
    ):

        def fails(file: int, number: int = number) -> None:
            if os.environ["VERYDEEP_CACHE"] == cache:
                raise OSError(number, os.strerror(number))
            fsync(file)

        with monkeypatch.context() as failing:
            failing.setattr(fetching.os, "fsync", fails)
            said(words, fetch())
            parts = list(Path(cache).rglob("*.part"))
            assert parts  # what it goes on with
            failing.setenv("VERYDEEP_CACHE", str(tmp_path / f"another{number}"))
            assert words not in fetch()
        assert verydeep("weights", "fetch", "tiny").status == 0


@follows("open it in a browser to see what it says", "expected one that begins with {}")
def test_a_page_in_place_of_weights(
    published: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    file, whole = published / "page.bin", (published / "tiny.pth").read_bytes()
    file.write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    entry = catalog.ENTRIES["tiny"]
    url = entry.published[0].url.replace("tiny.pth", "page.bin")
    monkeypatch.setitem(
        catalog.ENTRIES, "tiny", replace(entry, published=(replace(entry.published[0], url=url),))
    )
    text = verydeep("weights", "fetch", "tiny").err
    said("open it in a browser to see what it says", text)
    with urllib.request.urlopen(taken(r"(http://\S+) answered", text)) as page:
        assert b"Please log in" in page.read()
    file.write_bytes(whole + b"?")
    (digest,) = said(
        "expected one that begins with {}; it", verydeep("weights", "fetch", "tiny").err
    )
    said("expected one that begins with {}", verydeep("weights", "fetch", "tiny").err)
    assert hashlib.sha256(whole).hexdigest().startswith(digest)


@follows("; make a model file of it with: verydeep weights convert {} OUT --preprocess NAME")
def test_weights_that_are_not_in_the_catalogue(pth: Path, tmp_path: Path, verydeep: Run) -> None:
    text = verydeep("weights", "fetch", pth).err
    said("; make a model file of it with: verydeep weights convert {} OUT --preprocess NAME", text)
    out = tmp_path / "out.safetensors"
    words = command(taken("(verydeep weights convert .*)", text), OUT=out, NAME="torchvision")
    assert verydeep(*words).status == 0
    assert verydeep("weights", "fetch", out).status == 0


# Conversion


@follows(
    "say it with --preprocess {}", "for torch's own format leave --to out",
    "; convert the float model that it was made from", "; leave --preprocess out",
    "; if you know what it is, {}, and say its pre-processing with --preprocess",
    "give it another name", "leave --as out", "expected one for each of {} classes",
    "leads to the file that it is made of; name another file", "not {}; leave {} out",
)  # fmt: skip
def test_conversion(published: Path, pth: Path, tmp_path: Path, verydeep: Run) -> None:
    out = tmp_path / "out.safetensors"

    def convert(*words: object, good: bool = False) -> str:
        done = verydeep("weights", "convert", *words)
        assert (done.status == 0) == good, done.err
        return done.err

    (names,) = said("say it with --preprocess {}", convert(pth, out))
    for name in names.split("|"):
        convert(pth, out, "--preprocess", name, good=True)
    assert set(names.split("|")) == set(PRESETS)
    said("leads to the file that it is made of; name another file", convert(out, out))
    convert(out, tmp_path / "another.safetensors", good=True)
    words = (pth, tmp_path / "out.pth", "--to", "verydeep")
    _, option = said("not {}; leave {} out", convert(out, tmp_path / "x.pth", "--as", "vgg19"))
    assert option == "--as"
    convert(out, tmp_path / "x.pth", good=True)
    said("for torch's own format leave --to out", convert(*words))
    convert(*words[:2], good=True)
    said("; convert the float model that it was made from", convert(INT8, out))
    convert(ROOT / "tests" / "golden" / "modelfile.safetensors", out, good=True)
    theirs = published / "tiny.pth"
    said("; leave --preprocess out", convert(theirs, out, "--preprocess", "caffe"))
    convert(theirs, out, good=True)
    (tmp_path / "labels").write_text("")
    own = (pth, out, "--preprocess", "lpips")
    (count,) = said(
        "expected one for each of {} classes", convert(*own, "--labels", tmp_path / "labels")
    )
    (tmp_path / "labels").write_text("\n".join(f"n{i}\ta {i}" for i in range(int(count))))
    convert(*own, "--labels", tmp_path / "labels", good=True)

    said("leave --as out", convert(*own, "--as", "tiny"))
    (way,) = said(
        "; if you know what it is, {}, and say its pre-processing with --preprocess",
        convert(pth, out, "--as", "tiny"),
    )
    assert way == "leave --as out"
    convert(*own, good=True)
    named = shutil.copy(pth, tmp_path / "tiny.pth")  # the published file's name
    said("give it another name", convert(named, out, "--preprocess", "caffe"))
    convert(shutil.move(named, tmp_path / "other.pth"), out, "--preprocess", "caffe", good=True)


@follows(
    "; `verydeep weights convert --trunk` takes its convolutions alone",
    "leave it out with --trunk", "name them with --averages (Keras's include_top=False averages pool5)",
    "or leave it out with --trunk",
)  # fmt: skip
def test_heads_that_are_not_of_the_table(tmp_path: Path, verydeep: Run) -> None:
    file, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    trunk = state(tiny(head="classic", classes=0))
    channels = len(trunk["features.18.weight"])
    for head, words in (
        ({"decide.0.weight": torch.zeros(5, 32)},
         "; `verydeep weights convert --trunk` takes its convolutions alone"),
        ({"classifier.weight": torch.zeros(5, channels * 49)}, "leave it out with --trunk"),
        ({"classifier.weight": torch.zeros(5, channels), "classifier.bias": torch.zeros(5)},
         "or leave it out with --trunk"),
    ):  # fmt: skip
        torch.save({**trunk, **head}, file)
        base = ("weights", "convert", file, out, "--preprocess", "torchvision")
        text = verydeep(*base).err
        said(words, text)
        assert verydeep(*base, taken("(--trunk)", text)).status == 0
        assert not modelfile.read(out).record.network.head.classes
    said("name them with --averages (Keras's include_top=False averages pool5)", text)
    option, layer = taken("(--averages)", text), taken(r"averages (\w+)\)", text)
    assert verydeep(*base, option, layer).status == 0
    assert modelfile.read(out).record.network.head.layers == (layer,)


@follows(
    "open it with torch.jit.load where you trust it, and torch.save its state_dict()",
    "load it where you trust it, and save its state_dict() alone",
    "expected .pth, .safetensors, .keras, .h5, .npz, .npy, .pkl or .caffemodel",
    "{} is one array; expected a dictionary of named arrays", "{}: {} is {}; expected floating point",
    "there are no tensors; expected the weights of a network", "{} is {}, expected {}",
    "save the state_dict() of the one that is meant",
    'expected "classic" or a trunk',
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_peoples_files(tmp_path: Path) -> None:
    file = tmp_path / "in.pth"
    module = build(NET).eval()
    image = torch.zeros(1, 3, 32, 32)
    torch.jit.save(torch.jit.trace(module.features, image), file)  # type: ignore[no-untyped-call]
    text = refused(lambda: conversion.load_weights(file))
    said("open it with torch.jit.load where you trust it, and torch.save its state_dict()", text)
    opened = evaluated(taken(r"(torch\.jit\.load)", text))(file)
    evaluated(taken(r"(torch\.save)", text))(opened.state_dict(), file)
    conversion.load_weights(file)
    torch.save(module, file)
    words = "load it where you trust it, and save its state_dict() alone"
    said(words, refused(lambda: conversion.load_weights(file)))
    torch.save(torch.load(file, weights_only=False).state_dict(), file)
    conversion.load_weights(file)

    odd = tmp_path / "in.bin"
    odd.write_bytes(bytes(range(100, 200)))
    text = refused(lambda: foreign.read_tensors(odd))
    said("expected .pth, .safetensors, .keras, .h5, .npz, .npy, .pkl or .caffemodel", text)
    tensors = {key: value.numpy() for key, value in module.state_dict().items()}
    np.savez(tmp_path / "in.npz", **tensors)
    np.save(tmp_path / "in.npy", tensors, allow_pickle=True)  # type: ignore[arg-type]
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(tensors))
    save_file(module.state_dict(), tmp_path / "in.safetensors")
    import h5py

    with h5py.File(tmp_path / "in.h5", "w") as h5:
        for key, value in tensors.items():
            h5[key.replace(".", "/")] = value
    # .keras and .caffemodel are made by tests/test_convert.py
    for suffix in (".pth", ".safetensors", ".h5", ".npz", ".npy", ".pkl"):
        assert foreign.read_tensors(tmp_path / f"in{suffix}").keys(), suffix

    np.save(tmp_path / "in.npy", np.zeros(3))
    words = "{} is one array; expected a dictionary of named arrays"
    said(words, refused(lambda: foreign.read_tensors(tmp_path / "in.npy")))
    np.save(tmp_path / "in.npy", tensors, allow_pickle=True)  # type: ignore[arg-type]
    foreign.read_tensors(tmp_path / "in.npy")
    both = {
        f"{whose}.{key}": value
        for whose in ("student", "teacher")
        for key, value in state().items()
    }
    torch.save(both, file)
    said(
        "save the state_dict() of the one that is meant",
        refused(lambda: conversion.load_weights(file)),
    )
    one = {key: value for key, value in both.items() if key.startswith("student.")}
    torch.save(one, file)
    conversion.load_weights(file)
    torch.save({key: value.int() for key, value in state().items()}, file)
    said("{}: {} is {}; expected floating point", refused(lambda: conversion.load_weights(file)))
    torch.save(state(), file)
    conversion.load_weights(file)

    all_followed([
        ("there are no tensors; expected the weights of a network",
         lambda: layouts.arrange({}), lambda: layouts.arrange(tensors)),
        ("{} is {}, expected {}",
         lambda: layouts.arrange({**tensors, "features.0.bias": np.zeros(5)}),
         lambda _, __, shape: layouts.arrange(
             {**tensors, "features.0.bias": np.zeros(evaluated(shape))})),
        ('expected "classic" or a trunk',
         lambda: layouts.to_timm(tiny(), weights(tiny())),
         lambda: [layouts.to_timm(net, weights(net)) for net in (NET, tiny(head="classic", classes=0))]),
    ])  # fmt: skip


# torchvision's door


@follows(
    "; give weights alone",
    "pretrained={} is deprecated; write {}",
    "; give a path, or None",
    "expected the path of a file",
)
def test_weights_of_the_door(model: Path) -> None:
    say: Any = vgg.vgg11
    text = refused(lambda: say(weights=model, pretrained=True))
    said("; give weights alone", text)
    choices: dict[str, Any] = {"width": 1 / 16}
    model_file(model, tiny(head="classic"))
    say(weights=model, num_classes=7)
    with pytest.warns(UserWarning, match="deprecated") as warned:
        say(pretrained=False, **choices)
    _, instead = said("pretrained={} is deprecated; write {}", warned[0].message)
    say(**evaluated(f"dict({instead})"), **choices)
    text = refused(lambda: vgg.vgg16c(weights=vgg.VGG16_Weights["DEFAULT"]))
    said("; give a path, or None", text)
    text = refused(lambda: vgg.vgg11(weights="IMAGENET"))
    said("expected the path of a file", text)
    vgg.vgg11(weights=model, num_classes=7)
    vgg.vgg16c(weights=None, **choices)
    model_file(model, tiny("vgg16c", head="classic"))
    vgg.vgg16c(weights=model, num_classes=7)


@follows("the record has thresholds, and also threshold or least_mean; expected one or the other")
def test_thresholds_of_a_record() -> None:
    def record(**sure: Any) -> Record:
        return Record(NET, PRESETS["torchvision"], **sure)

    each = (0.5,) * NET.head.classes
    said(
        "the record has thresholds, and also threshold or least_mean; expected one or the other",
        refused(lambda: record(thresholds=each, threshold=0.5)),
    )
    assert record(thresholds=each).thresholds == each
    assert record(threshold=0.5, least_mean=0.0).threshold == 0.5
