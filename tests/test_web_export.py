"""What an exported page is made of, and where its runtime comes from: npm, a cache, a mirror, a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from verydeep import modelfile
from verydeep.exporting import export, web
from verydeep.modelfile import codec
from verydeep.nets import network
from verydeep.preprocess import Preprocess
from verydeep.published.catalog import Published

from .conftest import Run
from .tiny import IDS, NAMES, model_file, pixels, tiny, weights

NPM = web.Package.name


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder that has what onnxruntime-web has, by name."""
    for name in web.RUNTIME:
        file = tmp_path / "runtime" / "dist" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "runtime"


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive as npm has them, which is taken for the real one."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name in web.RUNTIME:
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    digest = f"sha256:{hashlib.sha256(whole.getvalue()).hexdigest()}"
    published = (Published(web.Package.published[0].url, digest),)
    monkeypatch.setattr(web.Package, "published", published)
    return whole.getvalue()


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program of that name, the only one there is."""
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder))


def scores(page: Path, images: np.ndarray) -> np.ndarray:
    packed = (page / "model.onnx.gz").read_bytes()
    session = onnxruntime.InferenceSession(gzip.decompress(packed))
    return np.asarray(session.run(["scores"], {"pixels": images})[0])


def test_what_is_in_the_folder(verydeep: Run, runtime: Path, tmp_path: Path) -> None:
    model = model_file(
        tmp_path / "m.safetensors", threshold=0.25, least_mean=-1.5, licence="CC0-1.0"
    )
    out = tmp_path / "a page"
    words = ("export", model, "--to", "web", "--out", out, "--runtime", runtime)
    done = verydeep(*words)
    assert done.status == 0
    assert f"python -m http.server -d '{out}'" in done.out
    about = json.loads((out / "page.json").read_text("utf-8"))
    assert about.pop("producer").startswith("verydeep ")
    assert about == {
        "network": "vgg11", "precision": "fast", "licence": "CC0-1.0", "labels": list(NAMES),
        "preprocess": Preprocess(resize_size=32, crop_size=32).to_dict(),
        "threshold": 0.25, "least_mean": -1.5, "thresholds": [],
        "size_bytes": (out / "model.onnx.gz").stat().st_size,
    }  # fmt: skip
    for name in web.RUNTIME:
        assert (out / name).read_text() == name
    assert "MIT License" in (out / "onnxruntime-LICENSE").read_text("utf-8")
    html = (out / "index.html").read_text("utf-8")
    for name in ("style.css", "photo.css", "page.js"):
        assert f'="{name}"' in html
        assert (out / name).is_file()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert verydeep(*words, "--json").status == 0  # again, in its own folder: the same bytes
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_weights_stay_in_few_bits(runtime: Path, tmp_path: Path) -> None:
    net = tiny("vgg16")
    plain = weights(net)
    few: dict[str, np.ndarray] = {}
    for key, value in plain.items():
        if value.ndim < 2 or key == "features.0.weight":
            few[key] = value
        elif key == "features.2.weight":
            coded = codec.Coded(
                np.rint(value * 40).astype(np.int16), 1 / 32,
                np.arange(len(value), dtype=np.int16) % 5,
                np.arange(value[0].size, dtype=np.int16) % 3, 9, 3,
            )  # fmt: skip
            few[f"{key}.code"] = np.frombuffer(codec.encode(coded), np.uint8)
        else:
            scale = np.abs(value).max(tuple(range(1, value.ndim)), keepdims=True) / np.float32(127)
            few[f"{key}.q"] = np.rint(value / scale).astype(np.int8)
            few[f"{key}.scale"] = scale
    record = modelfile.Record(
        network=net, preprocess=Preprocess(resize_size=32, crop_size=32), class_names=NAMES, class_ids=IDS
    )  # fmt: skip
    modelfile.write(tmp_path / "few.safetensors", record, few)
    sizes = {}
    images = pixels(32, 32, 3)
    for precision in ("exact", "half"):
        page = tmp_path / precision
        export(tmp_path / "few.safetensors", "web", page, precision=precision, runtime=runtime)
        sizes[precision] = (page / "model.onnx.gz").stat().st_size
    expected = tmp_path / "few.onnx"
    export(tmp_path / "few.safetensors", "onnx", expected, precision="exact")
    session = onnxruntime.InferenceSession(expected)
    (right,) = session.run(["scores"], {"pixels": images})
    np.testing.assert_allclose(scores(tmp_path / "exact", images), right, rtol=1e-6, atol=1e-6)
    assert sizes["exact"] < 0.6 * sizes["half"]


def test_where_the_runtime_comes_from(
    verydeep: Run, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_file(tmp_path / "m.safetensors")

    def exported(name: str, status: int = 2) -> str:
        done = verydeep("export", model, "--to", "web", "--out", tmp_path / name)
        assert done.status == status
        assert (tmp_path / name).exists() == (status == 0)
        return done.err

    npm(tmp_path / "bin", monkeypatch, "exit 1")
    (tmp_path / "bin" / "npm").unlink()
    assert "npm, which brings it, is not installed" in exported("none")
    said = r"npm error code ENOTFOUND\nnpm error network request to x failed, reason: no y\n"
    npm(tmp_path / "bin", monkeypatch, f"printf '{said}' >&2; exit 1")
    text = exported("unreachable")
    assert (
        f"npm cannot fetch {NPM}: network request to x failed, reason: no y; set VERYDEEP_MIRROR"
        in text
    )
    assert text.count("\n") < 8
    (tmp_path / "whole.tgz").write_bytes(archive)
    npm(tmp_path / "bin", monkeypatch, f"echo odd > {web.Package.file}")
    assert "gave a file whose sha256 is" in exported("other")
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    assert "VERYDEEP_OFFLINE is set" in exported("offline")
    monkeypatch.delenv("VERYDEEP_OFFLINE")
    cat = f'/bin/cat "{tmp_path}/whole.tgz" > {web.Package.file}'
    npm(tmp_path / "bin", monkeypatch, f'[ "$1 $2" = "pack {NPM}" ] || exit 1\n{cat}')
    assert "fetching onnxruntime-web" in exported("fetched", 0)
    for name in web.RUNTIME:
        assert (tmp_path / "fetched" / name).read_text() == name
    (tmp_path / "bin" / "npm").unlink()
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    assert "fetching" not in exported("kept", 0)  # it is in the cache
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("VERYDEEP_MIRROR", str(tmp_path / "mirror"))
    assert f"which has no {web.Package.file}" in exported("no_mirror")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / web.Package.file).write_bytes(archive)
    exported("mirrored", 0)


def test_what_is_refused(verydeep: Run, runtime: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.safetensors")

    def refused(*words: object, given: Path = model, out: str = "page") -> str:
        done = verydeep("export", given, "--to", "web", "--out", tmp_path / out, *words)
        assert done.status == 2
        return done.err.splitlines()[-1]

    (tmp_path / "bare").mkdir()
    text = refused("--runtime", tmp_path / "bare")
    assert f"bare has no {web.RUNTIME[0]} with {web.RUNTIME[1]}" in text
    assert f"npm pack {NPM}" in text
    assert not (tmp_path / "page").exists()
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in refused(out="file")
    (tmp_path / "bare" / "mine.txt").write_text("mine")
    assert "has other files in it; name a new folder" in refused(out="bare")
    assert "make the folder first" in refused("--runtime", runtime, out="no/page")
    assert "leave the taps out" in refused("--taps", "relu5_3")
    trunk = model_file(tmp_path / "t.safetensors", network("vgg11", width=1 / 16, classes=0))
    assert "without a head" in refused(given=trunk)
    done = verydeep(
        "export", model, "--to", "onnx", "--out", tmp_path / "a.onnx", "--runtime", runtime
    )
    assert done.status == 2
    assert "leave it out for onnx" in done.err
    assert sorted(os.listdir(tmp_path / "bare")) == ["mine.txt"]
