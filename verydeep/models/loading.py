"""A module from a model file: the weights stay where they are, on the disk, until they are used.

The file is mapped copy-on-write and its tensors become the module's parameters as they stand: no
random numbers are drawn, nothing is copied, and training such a module leaves the file as it was.
Tensors of fewer bits become float32.
"""

from __future__ import annotations

import os

import safetensors
import torch
from torch import Tensor

from .. import modelfile
from ..errors import ModelFileError
from ..nets import Network
from .module import VGG

__all__ = ["assemble", "load", "state"]


def load(path: str | os.PathLike[str], *, dropout: float = 0.5) -> VGG:
    """The module of a model file, ready for inference (`eval()`), with the file's `record`.

    path: of a `.safetensors` file that verydeep wrote. dropout: for training it further.
    Raises ModelFileError where the file is damaged or contradicts its record, OSError where it
    cannot be opened.
    """
    record, tensors = state(path)
    model = assemble(record.network, tensors, dropout=dropout)
    model.record = record
    return model.eval()


def state(path: str | os.PathLike[str]) -> tuple[modelfile.Record, dict[str, Tensor]]:
    """The record and the tensors of a model file, by torchvision's keys, float32, mapped where
    stored so.
    """
    record = modelfile.read(path).record
    tensors: dict[str, Tensor] = {}
    with safetensors.safe_open(os.fspath(path), framework="pt") as file:
        stored = set(file.keys())
        for key in record.network.tensors:
            if key in stored:
                tensor = file.get_tensor(key)
                tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
            else:
                scale = file.get_tensor(f"{key}.scale")
                tensors[key] = file.get_tensor(f"{key}.q") * scale
    return record, tensors


def assemble(network: Network, tensors: dict[str, Tensor], *, dropout: float = 0.5) -> VGG:
    """The module of that network around those very tensors, which it does not copy."""
    with torch.device("meta"):
        model = VGG.of(network, dropout=dropout)
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"these weights are not {network.name}'s: {error}") from error
    return model.requires_grad_(True)
