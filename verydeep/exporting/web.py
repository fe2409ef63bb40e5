"""A page that classifies in the browser: static files, the model among them, and onnxruntime-web's WASM.

The runtime comes from npm and is no part of this package. The model is its ONNX file, packed by gzip, which
browsers unpack; weights that the model file has in few bits stay so, until the browser opens it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime

from ..errors import EngineError, OutputError, log
from ..graphs.writer import Graph, Writer, write_onnx
from ..modelfile import ModelFile, codec, read
from ..pictures.page import PHOTO_SCRIPT, PHOTO_STYLE, STYLE
from ..preprocess import ImageLike
from ..published import find_model
from ..published.catalog import Published
from ..published.supply import find_source
from . import Exported, Job, place, staged, written
from . import onnx as onnx_format

STATIC = {"style.css": STYLE, "photo.css": PHOTO_STYLE, "photo.js": PHOTO_SCRIPT}
STATIC |= {file.name: file for file in (Path(__file__).parent / "page").iterdir()}
MODEL, ABOUT, FIRST = "model.onnx.gz", "page.json", "index.html"
# of the package: the plain build, which has what loads it in one file
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
WHERE = (
    "",
    "dist",
    "package/dist",
    "node_modules/onnxruntime-web/dist",
)  # in a folder that is given
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")


class Package:
    """onnxruntime-web as npm has it, as `find_source` asks for what it is to find."""

    name = "onnxruntime-web@1.30.0"
    file = "onnxruntime-web-1.30.0.tgz"
    otherwise: ClassVar = "unpack it in a folder that you name with --runtime"
    published = (
        Published(
            f"npm:{name}/{file}",
            "sha256:d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
        ),
    )


def page(
    model: str | os.PathLike[str] | ModelFile,
    folder: Path,
    *,
    precision: str,
    photos: ImageLike | Sequence[ImageLike],
    runtime: str | os.PathLike[str] | None,
) -> Exported:
    """`export` to "web": `folder` is new, empty, or has a page that was made before.

    runtime: a folder with the package onnxruntime-web, unpacked; None for the one in the cache, or npm's.
    The model is checked as an ONNX file is, in ONNX Runtime.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder for the page")
    ours = all((folder / name).is_file() for name in (ABOUT, MODEL))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise OutputError(f"{folder} has other files in it; name a new folder, or an empty one")
    if isinstance(model, str | os.PathLike):
        model = read(find_model(model))
    network = model.record.network
    if not network.head.classes:
        raise EngineError(f"{model.path} is a trunk without a head: it has no names to show")
    if network.in_channels not in (1, 3):
        raise EngineError(
            f"{model.path} takes images of {network.in_channels} channels; browsers have photos of 3"
        )
    with staged(folder / MODEL, 0, new=not folder.exists()) as stage:
        _take_runtime(None if runtime is None else Path(runtime), stage)
        file = stage / "model.onnx"
        done = written(model, "onnx", file, precision, photos, write=_write)
        log.info(f"packing {MODEL}")
        with (
            open(file, "rb") as plain,
            open(stage / MODEL, "wb") as opened,
            gzip.GzipFile("", "wb", 6, opened, mtime=0) as packed,
        ):
            sha256 = hashlib.file_digest(plain, "sha256").hexdigest()
            plain.seek(0)
            shutil.copyfileobj(plain, packed, 1 << 20)
        file.unlink()
        done.program.unlink()
        for name, source in STATIC.items():
            shutil.copyfile(source, stage / name)
        about = _about(Job(model, precision), (stage / MODEL).stat().st_size, sha256)
        (stage / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        files = place(stage, folder, (FIRST,))
    return replace(
        done, path=folder, files=files, program=folder / FIRST, to="web",
        size_bytes=sum(one.stat().st_size for one in files),
    )  # fmt: skip


def _write(job: Job, file: Path) -> None:
    """The ONNX file; where the weights keep their values, in as few bits as the model file has them."""
    if job.precision not in ("exact", "fast"):
        onnx_format.write(job, file)
        return
    graph = _in_few_bits(job.source.graph, job.model)
    write_onnx(graph, file, beside=False, facts=job.facts)


def _about(job: Job, size_bytes: int, sha256: str) -> dict[str, object]:
    """What the page has to know of the model. size_bytes: packed. sha256: unpacked."""
    record, facts = job.model.record, job.facts
    return {
        **{key: facts[key] for key in ("producer", "network", "precision", "licence")},
        "labels": json.loads(facts["labels"]),
        "preprocess": record.preprocess.to_dict(),
        "threshold": record.threshold,
        "least_mean": record.least_mean,
        "thresholds": record.thresholds,
        "size_bytes": size_bytes,
        "sha256": sha256,
    }


def _in_few_bits(graph: Graph, model: ModelFile) -> Graph:
    """The same graph, weights as integers and their scales where their product is what they are.

    ONNX Runtime multiplies constants once, when it loads.
    """
    writer = Writer(graph)
    for layer in model.record.network.layers:
        name = f"{layer.name}.weight"
        if name not in graph.weights:
            continue
        numbers, *scales = _stored(model, f"{layer.key}.weight", graph.weights[name].shape)
        product = numbers.astype(np.float32)
        for scale in scales:
            product *= scale
        if not scales or not np.array_equal(product, graph.weights[name]):
            continue  # batch norm is in it, say
        value = writer.constant(f"{name}.numbers", numbers)
        value = writer.node("Cast", [value], f"{name}.float", to=onnx.TensorProto.FLOAT)
        for at, scale in enumerate(scales, 1):
            by = writer.constant(f"{name}.scale{at}", scale)
            last = at == len(scales)
            value = writer.node("Mul", [value, by], name if last else f"{name}.part{at}")
    for node in graph.model.graph.node:
        writer.copy(node)
    return writer.graph()


def _stored(model: ModelFile, key: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    """A weight as the model file has it: integers, and float32 that they are multiplied by; or floats."""
    stored = model.stored
    if f"{key}.q" in stored:
        return [stored[f"{key}.q"], stored[f"{key}.scale"]]
    if f"{key}.code" not in stored:
        return [stored[key]]
    coded = codec.decode(stored[f"{key}.code"], shape)
    numbers = coded.multiples
    if np.abs(numbers).max(initial=0) < 128:
        numbers = numbers.astype(np.int8)
    rows = np.float32(coded.step) * codec.quarters(coded.rows)
    columns = codec.quarters(coded.columns).reshape(1, *shape[1:])
    return [numbers, rows.reshape(-1, *(1,) * len(shape[1:])), columns]


def _take_runtime(folder: Path | None, stage: Path) -> None:
    """Copy the runtime's files, and its licence, which ONNX Runtime brings for Python too."""
    if folder is None:
        with tarfile.open(find_source(Package())) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # its hash is the one that we know
                with member, open(stage / name, "wb") as file:
                    shutil.copyfileobj(member, file)
    else:
        dist = next(
            (
                folder / one
                for one in WHERE
                if all((folder / one / name).is_file() for name in RUNTIME)
            ),
            None,
        )
        if dist is None:
            raise EngineError(
                f"{folder} has no {RUNTIME[0]} with {RUNTIME[1]}; unpack there what this brings: "
                f"npm pack {Package.name}"
            )
        for name in RUNTIME:
            shutil.copyfile(dist / name, stage / name)
    for name in LICENCES:
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), stage / f"onnxruntime-{name}")
