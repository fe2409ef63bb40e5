"""Advice on exported pages and on their runtime, followed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from verydeep.exporting import export, web
from verydeep.nets import network
from verydeep.published.catalog import Published

from ..conftest import Run
from ..test_web_export import runtime_in
from ..tiny import model_file
from . import following
from .following import follows, said

NPM = web.Package.name


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


@follows(
    "comes by npm, which is not installed; install Node.js",
    "; set VERYDEEP_MIRROR to an address or folder that has it, or put the file at {}, or {}",
    "unpack it in a folder that you name with --runtime",
)
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
    said("comes by npm, which is not installed; install Node.js", exported("none"))
    text = r"npm error code ENOTFOUND\nnpm error network request to x failed, reason: no y\n"
    npm(tmp_path / "bin", monkeypatch, f"printf '{text}' >&2; exit 1")
    text = exported("unreachable")
    assert f"npm cannot fetch {NPM}: network request to x failed, reason: no y; set" in text
    words = (
        "; set VERYDEEP_MIRROR to an address or folder that has it, or put the file at {}, or {}"
    )
    place, otherwise = said(words, text)
    said("unpack it in a folder that you name with --runtime", otherwise)
    given = ("export", model, "--to", "web", "--out", tmp_path / "page", "--runtime")
    assert verydeep(*given, runtime_in(tmp_path / "given")).status == 0
    (tmp_path / "whole.tgz").write_bytes(archive)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_bytes(archive)
    assert "fetching" not in exported("put", 0)
    Path(place).unlink()
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


@follows(
    "look at it: python -m http.server -d {} 8000, and http://localhost:8000/",
    "a page shows names and no layers; leave the taps out",
    "a runtime is for web alone; leave it out for {}", "is a file; name a folder for the page",
    "has other files in it; name a new folder, or an empty one",
    "; unpack there what this brings: npm pack {}",
    "{}: its {} would replace one that is not of this export; name another file",
    "{}: its path is not UTF-8, and no runtime opens that; name another file",
)  # fmt: skip
def test_a_page(verydeep: Run, tmp_path: Path) -> None:
    runtime = runtime_in(tmp_path / "runtime")
    model = model_file(tmp_path / "m.safetensors")

    def refused(*words: object, given: Path = model, out: str = "page") -> str:
        done = verydeep("export", given, "--to", "web", "--out", tmp_path / out, *words)
        assert done.status == 2
        return done.err.splitlines()[-1]

    (tmp_path / "bare").mkdir()
    text = refused("--runtime", tmp_path / "bare")
    assert f"bare has no {web.RUNTIME[0]} with {web.RUNTIME[1]}" in text
    assert said("; unpack there what this brings: npm pack {}", text) == (NPM,)
    assert not (tmp_path / "page").exists()
    runtime_in(tmp_path / "bare" / "package")
    words = ("export", model, "--to", "web", "--runtime", tmp_path / "bare", "--out")
    done = verydeep(*words, tmp_path / "page")
    (folder,) = said(
        "look at it: python -m http.server -d {} 8000, and http://localhost:8000/", done.out
    )
    assert (Path(folder) / "index.html").is_file()
    (tmp_path / "file").write_text("mine")
    said("is a file; name a folder for the page", refused(out="file"))
    said("has other files in it; name a new folder, or an empty one", refused(out="bare"))
    (tmp_path / "empty").mkdir()
    assert verydeep(*words, tmp_path / "empty").status == 0
    said("make the folder first", refused("--runtime", runtime, out="no/page"))
    (tmp_path / "no" / "page").mkdir(parents=True)
    assert verydeep(*words, tmp_path / "no" / "page").status == 0
    said("a page shows names and no layers; leave the taps out", refused("--taps", "relu5_3"))
    trunk = model_file(tmp_path / "t.safetensors", network("vgg11", width=1 / 16, classes=0))
    assert "without a head" in refused(given=trunk)
    onnx = ("export", model, "--to", "onnx", "--out", tmp_path / "a.onnx")
    said(
        "a runtime is for web alone; leave it out for {}", verydeep(*onnx, "--runtime", runtime).err
    )
    program = tmp_path / "a.onnx.py"
    program.write_text("mine")
    said(
        "{}: its {} would replace one that is not of this export; name another file",
        verydeep(*onnx).err,
    )
    assert verydeep(*onnx[:-1], tmp_path / "b.onnx").status == 0
    assert program.read_text() == "mine"
    odd = tmp_path / os.fsdecode(b"caf\xe9.onnx")
    words = "{}: its path is not UTF-8, and no runtime opens that; name another file"
    said(words, following.refused(lambda: export(model, "onnx", odd)))
    assert verydeep(*onnx[:-1], tmp_path / "caf\xe9.onnx").status == 0
