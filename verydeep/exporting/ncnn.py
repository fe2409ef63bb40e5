"""ncnn: its text in a .param, its weights in a .bin, labels and pre-processing as JSON in a .param.json.

Normalisation is inside; resize and crop are not, since no layer of ncnn's does them as Pillow does, nor is
the loop over a batch, since ncnn takes one image at a time. For `half` the weights are stored in float16.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from ..engines.forks import silenced
from ..engines.ncnn import FLOAT32, HALVES, LARGEST_TILES, Text
from ..errors import EngineError
from . import Job, Run

FLOAT16 = np.array([0x01306B47], np.uint32)  # ncnn's mark of it, before the numbers


def write(job: Job, file: Path) -> None:
    channels = job.source.channels
    if channels not in (1, 3):
        raise EngineError(
            f"ncnn reads images of 1 or 3 channels, and those of this network have {channels}"
        )
    text = Text(job.source.graph)
    file.write_text(text.text, encoding="utf-8")
    facts = json.dumps(job.facts, ensure_ascii=False)
    file.with_name(f"{file.name}.json").write_text(facts, encoding="utf-8")
    halved = False
    with open(file.with_suffix(".bin"), "wb") as weights:
        for given in text.weights:
            array = given.astype(np.float16) if halved else np.ascontiguousarray(given)
            halved = given is FLOAT32 and job.precision == "half"
            weights.write(FLOAT16.data if halved else array.data)
            weights.write(b"\0" * (-array.nbytes % 4))


def load(file: Path, outputs: tuple[str, ...], precision: str, threads: int | None = None) -> Run:
    with silenced():
        net = ncnn.Net()
        for name in _off(precision):
            setattr(net.opt, name, False)
        if threads:
            net.opt.num_threads = threads
        if net.load_param(os.fspath(file)) or net.load_model(os.fspath(file.with_suffix(".bin"))):
            raise OSError("it cannot be read")

    def one(image: np.ndarray) -> list[np.ndarray]:
        height, width, channels = image.shape
        kinds: Any = ncnn.Mat.PixelType
        kind = kinds.PIXEL_RGB if channels == 3 else kinds.PIXEL_GRAY
        extractor = net.create_extractor()
        # else each value is forgotten when it was read
        extractor.set_light_mode(len(outputs) == 1)
        extractor.input("pixels", ncnn.Mat.from_pixels(image, kind, width, height))
        return [np.array(extractor.extract(name)[1]) for name in outputs]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        rows = zip(*map(one, pixels), strict=True)
        return dict(zip(outputs, map(np.stack, rows), strict=True))

    return run


def _off(precision: str) -> tuple[str, ...]:
    """What ncnn is told not to do."""
    return {"exact": (*HALVES, LARGEST_TILES), "fast": HALVES}.get(precision, ())


def program(outputs: tuple[str, ...], precision: str) -> tuple[str, str]:
    off = [f"net.opt.{name} = " for name in _off(precision)]
    told = f"; {''.join(off)}False" if off else ""
    kinds = "1 if pixels.shape[3] == 3 else 3"  # PIXEL_RGB or PIXEL_GRAY
    light = "; ex.set_light_mode(False)" if len(outputs) > 1 else ""
    return (
        "pathlib, ncnn",
        f"""\
labels = json.loads(json.loads(pathlib.Path(__file__[:-3] + ".json").read_text("utf-8"))["labels"])
net = ncnn.Net(){told}
net.load_param(__file__[:-3]); net.load_model(__file__[:-9] + ".bin"); ex = net.create_extractor(){light}
ex.input("pixels", ncnn.Mat.from_pixels(pixels[0], {kinds}, *pixels.shape[2:0:-1])); \
outputs = {{name: numpy.array(ex.extract(name)[1])[None] for name in {list(outputs)}}}""",
    )
