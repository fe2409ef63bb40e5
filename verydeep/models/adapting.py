"""The weights of one network made to fit another: other channels, another head, deeper."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import modelfile
from ..errors import NetworkError, WeightsError
from ..nets import Network
from .loading import Trained
from .module import VGG, tabled

# The first four convolutions of A and the three FC layers (arXiv:1409.1556, section 3.1). Matched
# by the paper's names: the k-th convolution of a deeper network has other channels than A's k-th.
WARM_START_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


def adapt(trained: Trained, network: Network) -> tuple[Trained, list[str]]:
    """The weights for a network with other input channels or another head, and in words what was done.

    The first convolution's filters are summed over their input channels for one channel (a grey
    image then answers as the same image in three equal channels did), and repeated and scaled by
    the ratio of the channels for others. FC layers that do not fit are new: N(0, 0.01), biases 0.
    Raises WeightsError where the convolutions themselves differ.
    """
    old, notes = trained.network, []
    tensors = dict(trained.tensors)
    if (old.head.kind, old.head.layers) != (network.head.kind, network.head.layers):
        tensors = {key: value for key, value in tensors.items() if key.startswith("features.")}
    fresh: list[str] = []
    for layer in network.layers:
        for key, shape in layer.tensors.items():
            value = tensors.get(key)
            if value is not None and value.shape == shape:
                continue
            if layer.kind == "fc":
                tensors[key] = torch.zeros(shape, dtype=torch.float32)  # as those of a file
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
                    f"these weights are those of {old.name}, {old.widths}: they have {given} for {key}, "
                    f"and {network.name}, {network.widths}, needs {shape}"
                )
    if fresh:
        notes.append(f"{', '.join(fresh)} {'is' if len(fresh) == 1 else 'are'} new and untrained")
    kept = {key: tensors[key] for key in network.tensors}
    return Trained(network, kept, _record(trained, network)), notes


def _with_channels(filters: Tensor, channels: int) -> Tensor:
    """Filters (out, c, h, w) for images of that many channels instead of c."""
    if channels == 1:
        return filters.sum(1, keepdim=True)
    before = filters.shape[1]
    repeated = filters.repeat(1, -(-channels // before), 1, 1)[:, :channels]
    return repeated * (before / channels)


def _record(trained: Trained, network: Network) -> modelfile.Record | None:
    """What still holds of the weights' record for the network that they were adapted to."""
    record, old = trained.record, trained.network
    if record is None or network.in_channels != old.in_channels:
        return None  # the pre-processing is for other channels
    if network == old or replace(network) != network:
        return record  # of a cut network, the record is that of the file
    # class names, threshold and figures belong to the old head
    return modelfile.Record(
        network, record.preprocess, licence=record.licence, provenance=record.provenance
    )


def warm_start(model: VGG, trained: VGG) -> tuple[str, ...]:
    """Copy a trained A's first four convolutions and three FC layers into a deeper network in place.

    Layers that the two networks' heads do not share are left as they are. Returns the paper names
    of the layers that were copied. Raises NetworkError where a shape differs (another width, head
    size or number of classes), before anything is changed.
    """
    net, trained_net = tabled(model), tabled(trained)
    shared = set(net.taps) & set(trained_net.taps)
    copied = tuple(name for name in WARM_START_LAYERS if name in shared)
    pairs: list[tuple[str, str]] = []
    for name in copied:
        ours, theirs = net.layer(name).tensors.items(), trained_net.layer(name).tensors.items()
        # Batch norm's come last: one that the trained network lacks is left the identity that it is.
        for (key, shape), (other, given) in zip(ours, theirs, strict=False):
            if given != shape:
                raise NetworkError(
                    f"{name} is {given} in {trained_net.name} and {shape} in {net.name}; "
                    "a warm start needs the same width, head and number of classes"
                )
            pairs.append((key, other))
    source, target = trained.state_dict(), model.state_dict()
    with torch.no_grad():
        for key, other in pairs:
            target[key].copy_(source[other])
    return copied
