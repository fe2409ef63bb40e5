"""A module from a file: the weights stay where they are, on the disk, until they are used.

The file is mapped copy-on-write and its tensors become the module's parameters as they stand: no
random numbers are drawn, nothing is copied, and training such a module leaves the file as it was.
Tensors of fewer bits become float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from .. import modelfile
from ..errors import WeightsError
from ..nets import Network
from .module import VGG

BUILTIN = Path(__file__).parents[1] / "builtin" / "vgg16.safetensors"


@dataclass(frozen=True, eq=False)
class Weights:
    """What a file holds: a network, its tensors by torchvision's keys, its record if it has one."""

    network: Network
    tensors: dict[str, Tensor]
    record: modelfile.Record | None = None


def load(path: str | os.PathLike[str], *, dropout: float = 0.5) -> VGG:
    """The module of a model file, ready for inference (`eval()`), with the file's `record`.

    path: of a `.safetensors` file that verydeep wrote. dropout: for training it further.
    Raises ModelFileError where the file is missing, damaged or contradicts its record.
    """
    record = modelfile.read(path).record
    keys = record.network.tensors
    return assemble(Weights(record.network, _mapped(path, keys), record), dropout=dropout).eval()


def read(
    path: str | os.PathLike[str], network: str | None = None, *, taps: tuple[str, ...] = ()
) -> Weights:
    """The weights of a model file, or of a file in any other layout that verydeep knows.

    network: its name, where shapes alone do not say. taps: where given, only what these layers
    need. Raises ModelFileError or WeightsError where the file cannot be used.
    """
    if _is_model_file(path):
        record = modelfile.read(path).record
        net = record.network.cut(taps) if taps else record.network
        return Weights(net, _mapped(path, net.tensors), record)
    from ..published import foreign, layouts

    net, arrays, _ = layouts.arrange(foreign.read_tensors(Path(path)), network=network)
    net = net.cut(taps) if taps else net
    # from_numpy shares memory: what torch mapped is copy-on-write, what is read-only is copied
    tensors = {
        key: torch.from_numpy(arrays[key] if arrays[key].flags.writeable else arrays[key].copy())
        for key in net.tensors
    }
    return Weights(net, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


def assemble(weights: Weights, *, dropout: float = 0.5) -> VGG:
    """The module of these weights, around their very tensors, which it does not copy."""
    with torch.device("meta"):
        model = VGG.of(weights.network, dropout=dropout)
    model.load_state_dict(weights.tensors, strict=True, assign=True)
    model.record = weights.record
    return model.requires_grad_(True)


def adapt(weights: Weights, network: Network) -> tuple[Weights, list[str]]:
    """The weights for a network with other input channels or another head, and what was done, in
    words.

    The first convolution's filters are summed over their input channels for one channel (a grey
    image then answers as the same image in three equal channels did), and repeated and scaled by
    the ratio of the channels for others. FC layers that do not fit are new: N(0, 0.01), biases 0.
    Raises WeightsError where the convolutions themselves differ.
    """
    found, notes = weights.network, []
    tensors = dict(weights.tensors)
    if (found.head.kind, found.head.layers) != (network.head.kind, network.head.layers):
        tensors = {key: value for key, value in tensors.items() if key.startswith("features.")}
    fresh: list[str] = []
    for layer in network.layers:
        for key, shape in layer.tensors.items():
            value = tensors.get(key)
            if value is not None and value.shape == shape:
                continue
            if layer.kind == "fc":
                tensors[key] = torch.zeros(shape)
                if key.endswith("weight"):
                    torch.nn.init.normal_(tensors[key], 0, 0.01)  # as torchvision starts them
                    fresh.append(layer.name)
            elif value is not None and value.shape[:1] == shape[:1] and layer is network.trunk[0]:
                tensors[key] = _with_channels(value, shape[1])
                how = "summed over" if shape[1] == 1 else "repeated and rescaled along"
                notes.append(f"the filters of {layer.name} were {how} their input channels")
            else:
                given = "nothing" if value is None else tuple(value.shape)
                raise WeightsError(
                    f"these weights are those of {found.name}, width {found.width:g}: they have "
                    f"{given} for {key}, and {network.name}, width {network.width:g}, needs {shape}"
                )
    if fresh:
        notes.append(f"{', '.join(fresh)} {'is' if len(fresh) == 1 else 'are'} new and untrained")
    kept = {key: tensors[key] for key in network.tensors}
    return Weights(network, kept, _record(weights, network)), notes


def _record(weights: Weights, network: Network) -> modelfile.Record | None:
    """What still holds of the weights' record for the network that they were adapted to."""
    record, found = weights.record, weights.network
    if record is None or network == found:
        return record
    if network.in_channels != found.in_channels or replace(network) != network:
        return None  # the pre-processing is for other channels; a cut network has no record
    # class names, threshold and figures belong to the old head
    return modelfile.Record(
        network, record.preprocess, licence=record.licence, provenance=record.provenance
    )


def _with_channels(filters: Tensor, channels: int) -> Tensor:
    """Filters (out, c, h, w) for images of that many channels instead of c."""
    if channels == 1:
        return filters.sum(1, keepdim=True)
    before = filters.shape[1]
    repeated = filters.repeat(1, -(-channels // before), 1, 1)[:, :channels]
    return repeated * (before / channels)


def _mapped(path: str | os.PathLike[str], keys: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a checked model file: views of a copy-on-write map where they are stored in
    float32.
    """
    tensors: dict[str, Tensor] = {}
    with safetensors.safe_open(os.fspath(path), framework="pt") as file:
        stored = set(file.keys())
        for key in keys:
            if key in stored:
                tensor = file.get_tensor(key)
                tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
            else:
                tensors[key] = file.get_tensor(f"{key}.q") * file.get_tensor(f"{key}.scale")
    return tensors


def _is_model_file(path: str | os.PathLike[str]) -> bool:
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            return "verydeep" in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return Path(path).suffix == ".safetensors"  # its reader says best what is wrong
