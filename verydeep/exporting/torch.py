"""torch: an ExportedProgram in a .pt2 file, with labels and pre-processing in its extra files.

Its module takes uint8 pixels and gives a dict of outputs. For `half` it computes in bfloat16.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import models
from ..errors import EngineError
from ..models.layers import positions, walk
from ..models.module import VGG, probabilities
from ..nets import HEADS
from ..preprocess import Preprocess
from . import Job, Run


class PixelsToOutputs(nn.Module):
    """uint8 pixels (batch, height, width, channels), RGB, to the named outputs, float32."""

    def __init__(
        self, model: VGG, preprocess: Preprocess, taps: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        super().__init__()
        net = model.table
        self.outputs = (*taps, *(("fc8",) if net.head.classes else ()))
        needed = net.cut(self.outputs)
        self.reads = net.head_inputs if needed.top else ()
        self.head = [layer for layer in needed.top if layer.kind in ("fc", "relu")]
        self.cells = HEADS[net.head.kind][0]
        stops = set(self.reads) | set(taps)
        # pool5 of a small image has one unit a side, for which torch would export another program: it is
        # computed with a margin that is then left out
        self.margin = "pool5" in stops
        places = positions(needed.trunk)
        self.last = places[needed.trunk[-1].name]
        self.before = needed.trunk[-2].name
        if self.margin:
            stops = stops - {"pool5"} | {self.before}
        self.stops = {name: index for name, index in places.items() if name in stops}
        self.tops = positions(needed.top)
        self.model = model.to(dtype)
        self.dtype = dtype
        self.reverse = preprocess.channel_order == "BGR"
        low, high = preprocess.range
        mean, std = (np.asarray(v, np.float64) for v in (preprocess.mean, preprocess.std))
        for name, value in (("factor", (high - low) / 255 / std), ("shift", (low - mean) / std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        x = x.flip(1) if self.reverse else x
        x = (x * self.get_buffer("factor") + self.get_buffer("shift")).to(self.dtype)
        values = walk(self.model.features, x, self.stops)
        margins = dict.fromkeys(values, 0)
        if self.margin:
            padded = F.pad(values[self.before], (0, 2, 0, 2))
            values["pool5"], margins["pool5"] = self.model.features[self.last](padded), 1
        if self.reads:
            averages = [_average(values[name], self.cells, margins[name]) for name in self.reads]
            values["avgpool"] = torch.cat(averages, 1)
            modules = list(self.model.classifier.children()) or [self.model.classifier]
            values |= walk(modules, values["avgpool"].flatten(1), self.tops)
            if "prob" in self.outputs:
                values["prob"] = probabilities(self.model.record, values["fc8"].float())
        names = {"fc8": "scores"}
        return {names.get(name, name): values[name].float() for name in self.outputs}


def _average(x: Tensor, cells: int, margin: int) -> Tensor:
    """torch's adaptive average of x without its last `margin` rows and columns, `cells` a side."""
    height, width = x.shape[2] - margin, x.shape[3] - margin
    rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    if cells == 1:
        inside = (rows < height)[:, None] & (columns < width)
        return (x * inside.to(x.dtype)).sum((2, 3), keepdim=True) / (height * width)
    masks = []
    for size, units in ((height, rows), (width, columns)):
        cell = torch.arange(cells)[:, None]
        first, last = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
        inside = (units >= first) & (units < last)
        masks.append((inside.to(torch.float32) / (last - first)).to(x.dtype))
    return masks[0] @ x @ masks[1].T


def write(job: Job, file: Path) -> None:
    record = job.model.record
    dtype = torch.bfloat16 if job.precision == "half" else torch.float32
    model = models.load(job.model.path).eval().requires_grad_(False)
    module = PixelsToOutputs(model, record.preprocess, job.taps, dtype).eval()
    # two images, of no round size: torch takes a 1 to be always a 1
    example = torch.zeros((2, 96, 128, record.network.in_channels), dtype=torch.uint8)
    if "pool5" in job.taps:
        raise EngineError(
            "torch exports no pool5 as an output, since it would fix the size of the images; "
            f"take {record.network.trunk[-2].name}, and pool that"
        )
    dim = torch.export.Dim  # 32: what five pools need
    try:
        program = torch.export.export(
            module,
            (example,),
            dynamic_shapes={
                "pixels": {0: dim("batch"), 1: dim("height", min=32), 2: dim("width", min=32)}
            },
        )
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"torch cannot export this model: {line}") from error
    extra = {f"{key}.txt": text for key, text in job.facts.items()}
    torch.export.save(program, os.fspath(file), extra_files=extra)


def load(file: Path, outputs: tuple[str, ...], precision: str) -> Run:  # noqa: ARG001
    module = torch.export.load(os.fspath(file)).module()

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = module(torch.from_numpy(pixels))
        return {name: values[name].numpy() for name in outputs}

    return run


def program(outputs: tuple[str, ...], precision: str) -> tuple[str, str]:  # noqa: ARG001
    return (
        "torch",
        """\
extra = {"labels.txt": ""}
net = torch.export.load(__file__[:-3], extra_files=extra).module()
labels = json.loads(extra["labels.txt"])
outputs = {name: f.numpy() for name, f in net(torch.from_numpy(pixels)).items()}""",
    )
