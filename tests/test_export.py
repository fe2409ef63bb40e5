"""An exported file runs in its real engine, alone, and gives what the model gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from PIL import Image, ImageOps

import verydeep as package
from verydeep import engines, modelfile
from verydeep import exporting as export
from verydeep.errors import EngineError, LayerError, ModelFileError, OutputError
from verydeep.exporting import FORMATS, mnn, ncnn, openvino, preparation
from verydeep.exporting import onnx as onnx_format
from verydeep.exporting import torch as torch_format
from verydeep.graphs import int8 as qdq
from verydeep.graphs import network as graph
from verydeep.nets import Network, network
from verydeep.preprocess import CAFFE, TORCHVISION, Preprocess

from .conftest import Run
from .test_int8 import int8_file
from .tiny import NAMES, model_file, photo, pixels, tiny, weights

SUFFIX = {name: form.suffix for name, form in FORMATS.items()}
LOAD: dict[str, Callable[..., Callable[[np.ndarray], dict[str, np.ndarray]]]] = {
    "onnx": onnx_format.load,
    "openvino": openvino.load,
    "ncnn": ncnn.load,
    "mnn": mnn.load,
    "torch": torch_format.load,
}


def independent(net: Network, preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """Scores by the torch module and the reference pre-processing: neither is part of an export."""
    import torch

    from verydeep import models

    module = models.build(net)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in weights(net).items()}
    module.load_state_dict(tensors)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the classic head says that 32 pixels are few
        found = module.eval().double()(torch.from_numpy(preprocess.normalise(images)).double())
    return found.numpy()


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("name", "head", "pool"),
    [("vgg11", "classic", "max"), ("vgg11_bn", "gap", "l2"), ("vgg11", "small", "avg")],
)
def test_any_batch_and_size(to: str, name: str, head: str, pool: str, tmp_path: Path) -> None:
    if (to, head) == ("torch", "classic"):
        return  # seconds of torch.export, which test_taps has in any case
    net = tiny(name, head, pool=pool)
    preprocess = Preprocess(resize_size=32, crop_size=32)
    model = model_file(tmp_path / "tiny.safetensors", net, preprocess=preprocess)
    done = export.export(model, to, tmp_path / f"tiny{SUFFIX[to]}")
    assert 0 <= done.error <= 1e-3
    run = LOAD[to](done.path, ("scores",), "fast")
    for height, width, count in ((32, 32, 1), (50, 33, 3), (64, 96, 2)):
        images = pixels(height, width, count)
        expected = independent(net, preprocess, images)
        assert engines.relative_error(run(images)["scores"], expected) < 1e-3


@pytest.mark.parametrize("to", FORMATS)
def test_the_program_beside_it_runs(to: str, tmp_path: Path) -> None:
    """As a program of its own, elsewhere, with verydeep out of reach; all that it needs is in the file."""
    preprocess = replace(CAFFE, resize_size=40, crop_size=32, interpolation="bicubic")
    model = model_file(tmp_path / "tiny.safetensors", preprocess=preprocess, licence="CC0-1.0")
    image = photo(tmp_path / "photo.png", 91, 120)
    (tmp_path / "made").mkdir()
    done = export.export(model, to, tmp_path / "made" / f"tiny{SUFFIX[to]}")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "made", elsewhere)
    facts = inside(to, elsewhere / done.path.name)
    assert tuple(json.loads(facts["labels"])) == NAMES
    assert Preprocess.from_dict(json.loads(facts["preprocess"])) == preprocess
    assert (facts["network"], facts["licence"]) == ("vgg11", "CC0-1.0")
    program = elsewhere / done.program.name
    text = program.read_text(encoding="utf-8")
    assert "verydeep" not in re.sub(r'\["verydeep", "labels"\]', "", text)
    assert (
        len(text.split("\n\n")[2].splitlines()) <= 7
    )  # what runs the file; the rest opens a photo
    command = [sys.executable, "-I", "-W", "error", str(program), str(image)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr
    rows = re.findall(r"^ *([\d.]+)%  (.+)$", ran.stdout, re.MULTILINE)
    answer = package.load(model, engine="onnxruntime", precision="exact")(image)
    expected = {p.label: p.probability for p in answer.predictions}
    assert [label for _, label in rows] == list(expected)
    for percent, label in rows:
        assert float(percent) / 100 == pytest.approx(expected[label], abs=0.001)


def inside(to: str, path: Path) -> dict[str, str]:
    """What the file says about itself, read as a stranger reads it."""
    names = ("labels", "preprocess", "network", "licence")
    if to == "onnx":
        return {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    if to == "openvino":
        (info,) = ElementTree.parse(path).getroot().iterfind("rt_info/verydeep")
        return {item.tag: item.attrib["value"] for item in info}
    if to == "ncnn":
        return dict(json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8")))
    if to == "mnn":
        raw = path.read_bytes()
        start = raw.index(b'{"producer"')
        return dict(json.JSONDecoder().raw_decode(raw[start:].decode("utf-8", "ignore"))[0])
    import torch

    extra = {f"{name}.txt": "" for name in names}
    torch.export.load(path, extra_files=extra)
    return {name: extra[f"{name}.txt"] for name in names}


@pytest.mark.parametrize("to", FORMATS)
def test_half_stores_half(to: str, tmp_path: Path) -> None:
    net = tiny("vgg11", "classic", width=1 / 4)
    model = model_file(tmp_path / "tiny.safetensors", net)
    half = export.export(model, to, tmp_path / f"half{SUFFIX[to]}", precision="half")
    assert half.size_bytes < 0.55 * model.stat().st_size
    assert 0 < half.error <= 3e-2
    images = pixels(40, 32, 2)
    expected = independent(net, Preprocess(resize_size=32, crop_size=32), images)
    found = LOAD[to](half.path, ("scores",), "half")(images)["scores"]
    assert engines.relative_error(found, expected) < 3e-2


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_computes_what_the_int8_graph_computes(to: str, tmp_path: Path) -> None:
    image = export.synthetic_photos(64, 64)
    net = tiny("vgg11", "gap")
    model = int8_file(tmp_path / "tiny.safetensors", net, image)
    done = export.export(model, to, tmp_path / f"tiny{SUFFIX[to]}", precision="int8")
    images = export.synthetic_photos(64, 96, 2)
    built = qdq.build(model)
    expected = engines.Engine("onnxruntime", built, precision="int8", threads=1).run(images)
    found = LOAD[to](done.path, ("scores",), "int8")(images)["scores"]
    assert engines.relative_error(found, expected["scores"]) < (1e-6 if to == "onnx" else 5e-2)
    plain = engines.Engine("onnxruntime", export.Job(model, "exact").source.graph)
    # it is the int8 graph: the float one is nearby, and is another
    assert 1e-3 < engines.relative_error(found, plain.run(images)["scores"]) < 0.5
    float_file = model_file(tmp_path / "float.safetensors")
    with pytest.raises(ModelFileError, match="was not quantised"):
        export.export(float_file, to, tmp_path / f"float{SUFFIX[to]}", precision="int8")


@pytest.mark.parametrize("to", FORMATS)
def test_taps(to: str, tmp_path: Path) -> None:
    """From before and from within the head, and what the head itself reads."""
    net = tiny("vgg11", "classic")
    model = model_file(tmp_path / "tiny.safetensors", net)
    taps = ("conv1_1", "relu5_2", "pool5", "fc7", "prob")
    if to == "torch":
        with pytest.raises(
            EngineError, match=r"no pool5 as an output.*take relu5_2, and pool that"
        ):
            export.export(model, to, tmp_path / "tiny.pt2", taps=taps)
        taps = ("conv1_1", "relu5_2", "fc7", "prob")
    done = export.export(model, to, tmp_path / f"tiny{SUFFIX[to]}", taps=taps)
    run = LOAD[to](done.path, (*taps, "scores"), "fast")
    record = modelfile.read(model).record
    built = graph.build(net, weights(net), record.preprocess, taps=taps)
    engine = engines.Engine("onnxruntime", built, threads=1)
    for height, width, count in ((32, 32, 1), (50, 33, 3), (64, 96, 2)):
        images = pixels(height, width, count)
        answers, expected = run(images), engine.run(images)
        assert {k: v.shape for k, v in answers.items()} == {k: v.shape for k, v in expected.items()}
        for name, value in expected.items():
            assert engines.relative_error(answers[name], value) < 1e-3, name
    if to == "torch":
        return  # its program is run above, and takes seconds to load torch
    ran = subprocess.run(
        [sys.executable, str(done.program), str(photo(tmp_path / "photo.png"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines()[-1].strip().endswith(tuple(NAMES))


def test_a_trunk_gives_its_taps(tmp_path: Path) -> None:
    net = network("vgg11", width=1 / 16, classes=0)
    model = model_file(tmp_path / "trunk.safetensors", net)
    with pytest.raises(EngineError, match=r"trunk without a head.*such as relu5_2"):
        export.export(model, "onnx", tmp_path / "trunk.onnx")
    done = export.export(model, "onnx", tmp_path / "trunk.onnx", taps=("relu5_2",))
    ran = subprocess.run(
        [sys.executable, str(done.program), str(photo(tmp_path / "photo.png"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == "{'relu5_2': (1, 32, 2, 2)}"


@pytest.mark.parametrize("to", ["onnx", "ncnn"])
def test_a_grey_model(to: str, tmp_path: Path) -> None:
    net = tiny(in_channels=1)
    grey = Preprocess(resize_size=32, crop_size=32, channel_order="L", mean=(0.5,), std=(0.25,))
    model = model_file(tmp_path / "grey.safetensors", net, preprocess=grey)
    done = export.export(model, to, tmp_path / f"grey{SUFFIX[to]}")
    images = pixels(32, 48, 2, channels=1)
    found = LOAD[to](done.path, ("scores",), "fast")(images)["scores"]
    assert engines.relative_error(found, independent(net, grey, images)) < 1e-5
    command = [sys.executable, str(done.program), str(photo(tmp_path / "photo.png"))]
    assert "%" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize_size=40, crop_size=32),
        Preprocess(resize_size=40, crop_size=48),
        Preprocess(resize_size=40, crop_size=None),
        Preprocess(resize="exact", resize_size=40, crop_size=None),
        Preprocess(resize="exact", resize_size=40, crop_size=32, interpolation="lanczos"),
        Preprocess(resize_size=64, crop_size=64, detail=32),
        Preprocess(resize="exact", resize_size=64, crop_size=None, detail=32),
        Preprocess(resize="none", resize_size=None, crop_size=48, detail=32),
        Preprocess(resize_size=64, crop_size=64, detail=200),
    ],
)
def test_the_program_prepares_photos_as_the_record_says(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    """The program's own lines: photos larger and smaller than the crop, of odd sides, turned by EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, (height, width) in enumerate(((91, 120), (120, 91), (33, 47), (47, 33), (17, 300))):
        for exif in (None, turned):
            path = tmp_path / f"{number}.png"
            noise = Image.fromarray(pixels(height, width, 1)[0])
            noise.save(path, exif=exif)
            assert_same_pixels(preprocess, path)


def assert_same_pixels(preprocess: Preprocess, path: Path, off: float = 0) -> None:
    lines = "\n".join(preparation(preprocess))
    names: dict[str, Any] = {
        "sys": SimpleNamespace(argv=["", str(path)]), "Image": Image, "ImageOps": ImageOps, "numpy": np,
    }  # fmt: skip
    exec(lines, names)
    expected = preprocess.pixels(path)[None]
    assert names["pixels"].dtype == np.uint8
    assert names["pixels"].shape == expected.shape
    assert np.abs(names["pixels"].astype(float) - expected).max() <= off


def test_the_program_prepares_grey_photos(tmp_path: Path) -> None:
    grey = Preprocess(channel_order="L", mean=(0.5,), std=(0.2,), crop_size=48, resize_size=40)
    image = Image.open(photo(tmp_path / "photo.png", 91, 120))
    for mode in ("RGB", "L", "P", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        image.convert(mode).save(path)
        assert_same_pixels(grey, path)
        assert_same_pixels(TORCHVISION, path)
    deep = np.linspace(0, 65535, 91 * 120).reshape(91, 120).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert_same_pixels(grey, tmp_path / "deep.png", off=1)
    assert_same_pixels(TORCHVISION, tmp_path / "deep.png", off=1)


def test_a_file_that_strays_is_not_handed_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tiny.onnx"
    out.write_text("what was there before")
    honest = onnx_format.load

    def liar(*given: object) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        run = honest(*given)  # type: ignore[arg-type]
        return lambda images: {name: 1.01 * value for name, value in run(images).items()}

    monkeypatch.setattr(onnx_format, "load", liar)
    with pytest.raises(EngineError, match=r"strays.*error 1\.0e-02 on two synthetic.*allows 1e-03"):
        export.export(model, "onnx", out)
    assert out.read_text() == "what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx", "tiny.safetensors"]


def test_photos_are_checked_too(verydeep: Run, model: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "photo.png")
    words = ("export", model, "--to", "onnx", "--out", tmp_path / "t.onnx", "--check", image)
    outcome = verydeep(*words, "--json")
    value = json.loads(outcome.out)
    assert outcome.status == 0
    assert list(value["errors"])[2:] == [str(image)]
    assert value["error"] == max(value["errors"].values()) <= 1e-5
    assert value["size_bytes"] == (tmp_path / "t.onnx").stat().st_size
    outcome = verydeep(*words)
    assert f"python {tmp_path / 't.onnx.py'} photo.jpg" in outcome.out
    assert re.search(r"\n  \d\.\de[-+]\d\d  two synthetic photos of 32x32\n", outcome.out)
    outcome = verydeep(*words, "--check", tmp_path / "gone.png")
    assert outcome.status == 2
    assert "gone.png" in outcome.err


def test_one_layer_and_one_photo_are_lists_of_one(model: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "photo.png")
    done = export.export(model, "onnx", tmp_path / "t.onnx", taps="relu5_2", photos=str(image))
    assert list(done.errors)[2:] == [str(image)]
    assert "relu5_2" in done.program.read_text(encoding="utf-8")


def test_refusals(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tiny.onnx"
    with pytest.raises(EngineError, match="format 'onyx' is unknown; did you mean onnx"):
        export.export(model, "onyx", out)
    with pytest.raises(EngineError, match="mnn keeps precision fast or half; 'exact' was asked"):
        export.export(model, "mnn", out, precision="exact")
    with pytest.raises(OutputError, match=r"tiny\.onnx: expected a name that ends in \.pt2"):
        export.export(model, "torch", out)
    with pytest.raises(OutputError, match=r"no/tiny\.onnx: cannot be written.*make the folder"):
        export.export(model, "onnx", tmp_path / "no" / "tiny.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=r"folder\.onnx: cannot be written: it is a folder"):
        export.export(model, "onnx", tmp_path / "folder.onnx")
    if hasattr(os, "mkfifo"):
        pipe = tmp_path / "folder.onnx" / "pipe.onnx"
        os.mkfifo(pipe)
        with pytest.raises(OutputError, match=r"pipe\.onnx: .* it is no regular file"):
            export.export(model, "onnx", pipe)
    (tmp_path / "folder.onnx" / "t.onnx.py").mkdir()  # where the program should be
    (tmp_path / "folder.onnx" / "t.onnx").write_text("old")
    with pytest.raises(OutputError, match=r"t\.onnx: cannot be written: t\.onnx\.py is a folder"):
        export.export(model, "onnx", tmp_path / "folder.onnx" / "t.onnx")
    assert (tmp_path / "folder.onnx" / "t.onnx").read_text() == "old"
    with pytest.raises(LayerError, match=r"no layer 'relu5_9'; did you mean"):
        export.export(model, "onnx", out, taps=("relu5_9",))
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OutputError, match=r"needs . MB for a while.*0 MB free; free some space"):
        export.export(model, "onnx", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "tiny.safetensors"]
    monkeypatch.setattr(engines.Kind, "available", False)
    with pytest.raises(EngineError, match=r"MNN, which is not installed; install it with: pip"):
        export.export(model, "mnn", tmp_path / "tiny.mnn")


@pytest.mark.parametrize("to", ["openvino", "ncnn", "onnx"])
def test_what_is_beside_is_nobody_elses(to: str, model: Path, tmp_path: Path) -> None:
    """A file of another export, or of a person's; those of an earlier export of the same are replaced."""
    out = tmp_path / f"net{SUFFIX[to]}"
    done = export.export(model, to, tmp_path / f"other{SUFFIX[to]}")
    beside = {f"{out.stem}{end}" for end in (*FORMATS[to].beside, f"{SUFFIX[to]}.py")}
    written = {file.name.replace("other", "net") for file in (*done.files, done.program)}
    assert written == beside | {out.name}
    for name in beside:
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match=f"its {name} would replace one that is not of this"):
            export.export(model, to, out)
        assert (tmp_path / name).read_text() == "mine"
        assert not out.exists()
        (tmp_path / name).unlink()
    for _ in range(2):
        export.export(model, to, out)
    if to == "openvino":
        with pytest.raises(OutputError, match=r"net\.param: its net\.bin would replace"):
            export.export(model, "ncnn", tmp_path / "net.param")


def test_odd_names(verydeep: Run, model: Path, tmp_path: Path) -> None:
    """The line that is printed, and the program, are run as they are."""
    image = photo(tmp_path / "photo.png")
    for name in ("my model.onnx", "two\nlines\r.onnx", "it's.onnx"):
        outcome = verydeep("export", model, "--to", "onnx", "--out", tmp_path / name)
        line = outcome.out.partition("run it: python ")[2].replace("photo.jpg", str(image))
        line = f"{sys.executable} {line}"
        ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), name
        assert "%" in ran.stdout
    text = (tmp_path / "two\nlines\r.onnx.py").read_text(encoding="utf-8")
    assert text.startswith("# python 'two\\nlines\\r.onnx.py' photo.jpg ")


def test_a_link_stays_one_and_the_file_behind_it_is_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    link, file = tmp_path / "now.xml", tmp_path / "models" / "old.xml"
    file.write_text("old")
    link.symlink_to(file)
    done = export.export(model, "openvino", link)
    (tmp_path / "own.onnx").symlink_to(model)
    with pytest.raises(OutputError, match="leads to the file that it is made of"):
        export.export(model, "onnx", tmp_path / "own.onnx")
    assert link.is_symlink()
    assert file.read_text(encoding="utf-8").startswith("<?xml")
    assert done.files == (tmp_path / "now.bin", link)  # where OpenVINO looks for the weights
    command = [sys.executable, str(done.program), str(photo(tmp_path / "photo.png"))]
    assert "%" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("now")) == [
        "now.bin", "now.xml", "now.xml.py",
    ]  # fmt: skip


def test_synthetic_photos_look_like_photos() -> None:
    images = export.synthetic_photos(96, 128, 2)
    assert (images.shape, images.dtype) == ((2, 96, 128, 3), np.uint8)
    np.testing.assert_array_equal(images, export.synthetic_photos(96, 128, 2))
    values = images.astype(np.float64)
    assert 80 < values.mean() < 150
    assert 30 < values.std() < 80
    along = np.abs(np.diff(values, axis=2)).mean()  # neighbours are alike, strangers are not
    assert along < 0.6 * np.abs(values - values[:, :, ::-1]).mean()
