"""Each engine as its own documentation runs a network: what verydeep's speed is compared with.

No setting but the number of threads, and where the name says so the precision; the pre-processing is done
as those documents do it. torch runs torchvision's module where torchvision has the network, the others
run the ONNX file as an export is run where it is checked, MNN after its converter, and ncnn our export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..modelfile import ModelFile

Run = Callable[[np.ndarray], np.ndarray]  # pixels to scores


@dataclass(frozen=True)
class Plain:
    """One way to run the network. engine: a key of ENGINES, of the package that it needs.

    precision: the class that it belongs to. told: what torch is told besides. bf16: only where the
    processor computes in bfloat16. apart: a name of its own, by which alone it is asked for; "" where the
    engine's name brings it along.
    """

    engine: str
    precision: str
    told: Mapping[str, bool] = field(default_factory=dict)
    bf16: bool = False
    apart: str = ""

    @property
    def called(self) -> str:
        return self.apart or self.engine

    def open(self, model: ModelFile, onnx: Path, threads: int) -> Run:
        """onnx: the model as an ONNX file, for all but torch."""
        if self.engine == "torch":
            return _torch(model, threads, bf16=self.bf16, **self.told)
        file = onnx
        if self.engine == "ncnn":
            from ..exporting import Job, ncnn

            file = onnx.with_suffix(".param")
            if not file.exists():
                ncnn.write(Job(model, self.precision), file)
        if self.engine == "mnn":
            from ..engines.mnn import convert

            file = onnx.with_suffix(".mnn")
            if not file.exists():
                convert(onnx, file, "MNN", 1)
        name = "onnx" if self.engine == "onnxruntime" else self.engine
        form = import_module(f"..exporting.{name}", __package__)
        run = form.load(file, ("scores",), self.precision, threads)
        return lambda pixels: np.asarray(run(pixels)["scores"])


def _torch(
    model: ModelFile,
    threads: int,
    *,
    channels_last: bool = False,
    bf16: bool = False,
    compiled: bool = False,
) -> Run:
    import torch

    torch.set_num_threads(threads)
    record = model.record
    module = _module(model).eval().requires_grad_(False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)
    if compiled:  # when it first runs, with whatever compilers print
        module = torch.compile(module, dynamic=False)
    preprocess = record.preprocess
    low, high = preprocess.range
    mean = torch.tensor(preprocess.mean)[:, None, None]
    std = torch.tensor(preprocess.std)[:, None, None]

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            x = x.flip(1) if preprocess.channel_order == "BGR" else x
            x = ((x.float() / 255 * (high - low) + low - mean) / std).contiguous(
                memory_format=layout
            )
            return np.asarray(module(x).float().numpy())

    return run


def _module(model: ModelFile) -> Any:
    """torchvision's own module where it has this network, else ours."""
    import torch

    network = model.record.network
    usual = (
        network.head.kind, network.pool, network.width, network.channels, network.in_channels
    )  # fmt: skip
    with torch.device("meta"):
        try:
            if usual != ("classic", "max", 1, (), 3):
                raise ValueError("torchvision has no such network")
            from torchvision.models import get_model

            module = get_model(network.name, num_classes=network.head.classes)
        except (ImportError, ValueError):
            from ..models import VGG

            module = VGG.of(network)
    tensors = {k: torch.tensor(v) for k, v in model.tensors().items()}
    module.load_state_dict(tensors, assign=True)
    return module


COMPILED = "torch-compiled"
BASELINE = "plain torch"  # torch eager, the way most people run VGG
QUICKER = {"channels_last": True}

PLAIN: dict[str, Plain] = {
    BASELINE: Plain("torch", "exact"),
    "plain torch channels-last": Plain("torch", "exact", QUICKER),
    # torch.compile needs a C++ compiler and minutes
    "plain torch compiled": Plain("torch", "exact", {"compiled": True}, apart=COMPILED),
    "plain onnxruntime": Plain("onnxruntime", "exact"),
    "plain openvino f32": Plain("openvino", "exact"),
    "plain ncnn": Plain("ncnn", "fast"),
    "plain mnn": Plain("mnn", "fast"),
    "plain openvino": Plain("openvino", "half", bf16=True),
    "plain torch bf16": Plain("torch", "half", QUICKER, bf16=True),
}
