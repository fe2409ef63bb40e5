"""What an exported page is made of, and where its runtime comes from: npm, a cache, a mirror, a folder."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from verydeep import modelfile
from verydeep.errors import EngineError, OutputError
from verydeep.exporting import export, web
from verydeep.graphs.writer import Graph
from verydeep.modelfile import codec
from verydeep.preprocess import Preprocess

from .conftest import Run
from .tiny import IDS, NAMES, model_file, pixels, tiny, weights

NPM = web.Package.name


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return runtime_in(tmp_path / "runtime")


def runtime_in(folder: Path) -> Path:
    """A folder that has what onnxruntime-web has, by name."""
    (folder / "dist").mkdir(parents=True)
    for name in web.RUNTIME:
        (folder / "dist" / name).write_bytes(name.encode())
    return folder


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
        "sha256": hashlib.sha256(gzip.decompress((out / "model.onnx.gz").read_bytes())).hexdigest(),
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


def test_what_is_packed_is_what_was_checked(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_file(tmp_path / "m.safetensors")
    right = web._in_few_bits

    def strays(graph: Graph, model: modelfile.ModelFile) -> Graph:
        made = right(graph, model)
        return Graph(made.model, {name: 1.1 * value for name, value in made.weights.items()})

    monkeypatch.setattr(web, "_in_few_bits", strays)
    with pytest.raises(EngineError, match="the file strays from the model"):
        export(model, "web", tmp_path / "page", runtime=runtime)
    assert not (tmp_path / "page").exists()


def test_a_folder_of_somebody_else_is_left_alone(runtime: Path, tmp_path: Path) -> None:
    """Though it has a file by the name of one of a page."""
    (tmp_path / "site").mkdir()
    for name in ("page.json", "README.md"):
        (tmp_path / "site" / name).write_text("mine")
    with pytest.raises(OutputError, match="site has other files in it; name a new folder"):
        export(model_file(tmp_path / "m.safetensors"), "web", tmp_path / "site", runtime=runtime)
    assert (tmp_path / "site" / "README.md").read_text() == "mine"


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
