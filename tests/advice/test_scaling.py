"""Advice of computing on a cluster, followed; the worker is in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verydeep.scaling import classify, features, job
from verydeep.scaling.cluster import connected
from verydeep.scaling.work import MANIFEST, Worker

from ..conftest import Run
from ..tiny import photo
from .following import follows, refused, said

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


class Here:
    """Workers of `scaling.cluster`, without a cluster."""

    most = 1

    def __init__(self, _: Any, *told: Any) -> None:
        self.nodes = {"here": 1}
        self.worker = Worker(*told)

    def reports(self, parts: Any) -> Iterator[Any]:
        assert not self.worker.ready().refusal
        yield from (self.worker.compute(*part) for part in parts)

    def close(self) -> None:
        pass


@pytest.fixture
def how(model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    ray = SimpleNamespace(cluster_resources=dict)
    monkeypatch.setattr(job, "connected", lambda _: contextlib.nullcontext(ray))
    monkeypatch.setattr(job, "Workers", Here)
    return {"model": model, "engine": "onnxruntime", "part": 2}


@follows(
    "no images in {}; expected photos, shards (.tar), tables (.parquet), or folders that hold some",
    "{}: {}; name it with --column",
)  # fmt: skip
def test_sources(tmp_path: Path, how: dict[str, Any], verydeep: Run) -> None:
    words = "no images in {}; expected photos, shards (.tar), tables (.parquet), or folders that hold some"
    (tmp_path / "in").mkdir()
    said(words, refused(lambda: features(tmp_path / "in", tmp_path / "r", **how)))
    content = photo(tmp_path / "in" / "a.png").read_bytes()
    assert features(tmp_path / "in", tmp_path / "r", **how).images == 1
    pq.write_table(pa.table({"raw": [content], "face": [content]}), tmp_path / "t.parquet")
    out = ("--ray", "--out", tmp_path / "t", "--model", how["model"], "--engine", "onnxruntime")
    said("{}: {}; name it with --column", verydeep("features", tmp_path / "t.parquet", *out).err)
    done = verydeep("features", tmp_path / "t.parquet", *out, "--column", "face")
    assert done.status == 0, done.err


@follows(
    "{}: cannot be written: {}; name another folder",
    "{}: holds files of something else; name another folder",
    "{}: cannot be gone on with: {}; name another folder", "{}: the source has changed since it was made; "
    "give another --out", "{}: holds {}, of which the source has nothing any more; give another --out",
    "{} holds another job ({}); give that command again to go on with it, or another --out",
)  # fmt: skip
def test_folders(tmp_path: Path, how: dict[str, Any], photos: Path) -> None:
    given = sorted(photos.iterdir())[:4]
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "mine.txt"
    file.write_text("mine")
    said(
        "{}: cannot be written: {}; name another folder",
        refused(lambda: features(given, file, **how)),
    )
    said(
        "{}: holds files of something else; name another folder",
        refused(lambda: features(given, tmp_path / "mine", **how)),
    )
    out = tmp_path / "r"
    assert features(given, out, **how).computed == 4
    words = "{} holds another job ({}); give that command again to go on with it, or another --out"
    said(words, refused(lambda: features(given, out, "relu3_2", **how)))
    assert features(given, out, **how).images == 4
    assert classify(given, tmp_path / "another", **how).images == 4
    folder = tmp_path / "in"
    for number in range(4):
        photo(folder / f"{number}.png", seed=number)
    features(folder, tmp_path / "s", **how)
    (folder / "3.png").unlink()
    words = "{}: the source has changed since it was made; give another --out"
    said(words, refused(lambda: features(folder, tmp_path / "s", **how)))
    (folder / "2.png").unlink()
    words = "{}: holds {}, of which the source has nothing any more; give another --out"
    said(words, refused(lambda: features(folder, tmp_path / "s", **how)))
    assert features(folder, tmp_path / "s2", **how).images == 2
    (out / MANIFEST).write_text("{")
    words = "{}: cannot be gone on with: {}; name another folder"
    said(words, refused(lambda: features(given, out, **how)))


@follows(
    "expected HOST:PORT, auto or local",
    "--ray and --out FOLDER go together, without --json, --csv or --profile",
)  # fmt: skip
def test_words(tmp_path: Path, how: dict[str, Any], verydeep: Run) -> None:
    def asked() -> None:
        with connected("somewhere"):
            pass

    said("expected HOST:PORT, auto or local", refused(asked))  # test_scaling.py takes local
    one = photo(tmp_path / "a.png")
    told = (
        "classify",
        one,
        "--model",
        how["model"],
        "--out",
        tmp_path / "r",
        "--engine",
        "onnxruntime",
    )
    words = "--ray and --out FOLDER go together, without --json, --csv or --profile"
    said(words, verydeep(*told).err)
    said(words, verydeep(*told, "--ray", "--json").err)
    assert verydeep(*told, "--ray").status == 0
