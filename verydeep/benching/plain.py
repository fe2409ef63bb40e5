"""Each engine as its own documentation runs a network: what verydeep's speed is compared with.

No setting but the number of threads, and where the name says so the precision; the pre-processing is done
as those documents do it. torch runs torchvision's module where torchvision has the network, the others
run the ONNX file, MNN after its converter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.forks import silenced
from ..modelfile import ModelFile

Run = Callable[[np.ndarray], np.ndarray]  # pixels to scores


@dataclass(frozen=True)
class Plain:
    """One way to run the network. engine: a key of ENGINES, of the package that it needs.

    precision: the class that it belongs to. open(model, onnx, threads): model: for torch. onnx: the file.
    apart: a name of its own, by which alone it is asked for; "" where the engine's name brings it along.
    """

    engine: str
    precision: str
    open: Callable[[ModelFile, Path, int], Run]
    bf16: bool = False  # only where the processor computes in bfloat16
    apart: str = ""

    @property
    def called(self) -> str:
        return self.apart or self.engine


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
    tensors = {k: torch.tensor(v) for k, v in model.tensors().items()}
    try:
        from torchvision.models import vgg

        usual = (network.head.kind, network.pool, network.width, network.in_channels)
        if usual != ("classic", "max", 1, 3) or network.name not in vgg.__all__:
            raise ImportError("torchvision has no such network")
        features = vgg.make_layers(vgg.cfgs[network.column], network.batch_norm)
        with torch.device("meta"):
            module = vgg.VGG(features, network.head.classes, init_weights=False)
    except ImportError:
        from ..models import VGG

        with torch.device("meta"):
            module = VGG.of(network)
    module.load_state_dict(tensors, assign=True)
    return module


def _onnxruntime(onnx: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        os.fspath(onnx), options, providers=["CPUExecutionProvider"]
    )
    return lambda pixels: np.asarray(session.run(["scores"], {"pixels": pixels})[0])


def _openvino(onnx: Path, threads: int, **config: object) -> Run:
    import openvino

    model = openvino.Core().compile_model(
        os.fspath(onnx), "CPU", {"INFERENCE_NUM_THREADS": threads, **config}
    )
    return lambda pixels: np.array(model(pixels)["scores"])


def _mnn(onnx: Path, threads: int) -> Run:
    from ..engines.mnn import convert

    with silenced():
        import MNN.expr
        import MNN.nn
    file = onnx.with_suffix(".mnn")
    if not file.exists():
        convert(onnx, file, "MNN", 1)
    with silenced():
        manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads},))
        net = MNN.nn.load_module_from_file(
            os.fspath(file), ["pixels"], ["scores"], runtime_manager=manager
        )
    expr: Any = MNN.expr

    def run(pixels: np.ndarray, keep: object = manager) -> np.ndarray:  # noqa: ARG001
        given = expr.const(pixels, list(pixels.shape), expr.NCHW, expr.uint8)
        return np.array(expr.convert(net.forward([given])[0], expr.NCHW).read())

    return run


COMPILED = "torch-compiled"
BASELINE = "plain torch"  # torch eager, the way most people run VGG

PLAIN: dict[str, Plain] = {
    BASELINE: Plain("torch", "exact", lambda model, _, threads: _torch(model, threads)),
    "plain torch channels-last": Plain(
        "torch", "exact", lambda model, _, threads: _torch(model, threads, channels_last=True)
    ),
    # torch.compile needs a C++ compiler and minutes
    "plain torch compiled": Plain(
        "torch", "exact", lambda model, _, threads: _torch(model, threads, compiled=True),
        apart=COMPILED,
    ),
    "plain onnxruntime": Plain(
        "onnxruntime", "exact", lambda _, onnx, threads: _onnxruntime(onnx, threads)
    ),
    "plain openvino f32": Plain(
        "openvino", "exact",
        lambda _, onnx, threads: _openvino(onnx, threads, INFERENCE_PRECISION_HINT="f32"),
    ),
    "plain mnn": Plain("mnn", "fast", lambda _, onnx, threads: _mnn(onnx, threads)),
    "plain openvino": Plain(
        "openvino", "half", lambda _, onnx, threads: _openvino(onnx, threads), bf16=True
    ),
    "plain torch bf16": Plain(
        "torch", "half",
        lambda model, _, threads: _torch(model, threads, channels_last=True, bf16=True), bf16=True,
    ),
}  # fmt: skip
