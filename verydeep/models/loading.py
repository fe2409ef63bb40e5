"""A module from a file: the weights stay where they are, on the disk, until they are used.

The file is opened once and mapped copy-on-write, and its tensors become the module's parameters as they
stand: no random numbers are drawn, nothing is copied, and training such a module leaves the file as it
was. Tensors of fewer bits become float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import modelfile
from ..errors import ArgumentError, ModelFileError
from ..files.strict_json import shown
from ..nets import Network
from .module import VGG


@dataclass(frozen=True, eq=False)
class Trained:
    """What a file holds: a network, its tensors by torchvision's keys, its record if it has one."""

    network: Network
    tensors: dict[str, Tensor]
    record: modelfile.Record | None = None


def load(path: str | os.PathLike[str], *, dropout: float = 0.5) -> VGG:
    """The module of a model file, ready for inference (`eval()`), with the file's `record`.

    path: of a `.safetensors` file that verydeep wrote. dropout: for training it further.
    Raises ModelFileError where the file is missing, damaged or contradicts its record, ArgumentError
    where that is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"the model is {shown(path)}; expected the path of a file")
    return assemble(read(path, foreign=False), dropout=dropout).eval()


def read(
    path: str | os.PathLike[str],
    network: str | None = None,
    *,
    taps: tuple[str, ...] = (),
    foreign: bool = True,
) -> Trained:
    """The weights of a model file, or of a file in any other layout that verydeep knows.

    network: its name, where shapes alone do not say. taps: where given, only what these layers
    need. foreign: whether other layouts are taken. Raises ModelFileError or WeightsError where the file
    cannot be used.
    """
    try:
        file = modelfile.read(path)
    except ModelFileError:
        if not foreign or modelfile.is_model_file(path):
            raise
        return _foreign(Path(path), network, taps)
    net = file.record.network.cut(taps) if taps else file.record.network
    return Trained(net, as_torch(file.tensors(net.tensors, writable=True)), file.record)


def _foreign(path: Path, network: str | None, taps: tuple[str, ...]) -> Trained:
    from ..published import foreign, layouts

    net, arrays, _ = layouts.arrange(foreign.read_tensors(path), network=network)
    net = net.cut(taps) if taps else net
    return Trained(net, as_torch({key: arrays[key] for key in net.tensors}))


def assemble(trained: Trained, *, dropout: float = 0.5, dtype: torch.dtype = torch.float32) -> VGG:
    """The module of these weights, on torch's default device; of float32 there, around their very tensors.

    dtype: of all its weights.
    """
    with torch.device("meta"):
        model = VGG.of(trained.network, dropout=dropout)
    model.load_state_dict(trained.tensors, strict=True, assign=True)
    model.record = trained.record
    return model.requires_grad_(True).to(torch.get_default_device(), dtype)


def as_torch(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Tensors on the memory of the arrays; copies of those that may not be written or are narrower."""
    tensors = {}
    for key, array in arrays.items():
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors
