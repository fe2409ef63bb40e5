"""The networks of the paper as data, and everything that can be computed from the data alone.

Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv:1409.1556v6, table 1 and section 2.1. Module indices and tensor names follow
torchvision's ``models/vgg.py``. Nothing else in verydeep knows the architecture: the torch module,
the ONNX graph, the model file's checks and the summaries all walk `Network.layers`.

Plain Python: importing this module imports nothing outside the standard library.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import LayerError, NetworkError, is_number, is_whole, nearest, require

__all__ = ["COLUMNS", "NETWORKS", "POOLS", "Head", "Layer", "Network", "Row", "network"]

Kind = Literal["conv", "relu", "lrn", "pool", "average", "fc", "softmax"]

# arXiv:1409.1556, table 1. A number is a convolution's output channels; ":1" makes it 1x1 instead
# of 3x3; M is a 2x2 pooling of stride 2; LRN is local response normalisation.
COLUMNS: dict[str, str] = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "A-LRN": "64 LRN M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "C": "64 64 M 128 128 M 256 256 256:1 M 512 512 512:1 M 512 512 512:1 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}

# The names people know, as (column, batch norm). Batch norm came after the paper (Ioffe and Szegedy
# 2015, arXiv:1502.03167); its place, between convolution and ReLU, is torchvision's.
NETWORKS: dict[str, tuple[str, bool]] = {
    "vgg11": ("A", False),
    "vgg11_bn": ("A", True),
    "vgg11_lrn": ("A-LRN", False),
    "vgg13": ("B", False),
    "vgg13_bn": ("B", True),
    "vgg16c": ("C", False),
    "vgg16c_bn": ("C", True),
    "vgg16": ("D", False),
    "vgg16_bn": ("D", True),
    "vgg19": ("E", False),
    "vgg19_bn": ("E", True),
}
_NAMES = dict(zip(NETWORKS.values(), NETWORKS, strict=True))

# kernel, stride, padding. "max" is the paper's (section 2.1); "avg" is Gatys et al. 2015
# (arXiv:1508.06576, section 2); "l2" is the Hann-weighted root of summed squares of DISTS
# (Ding et al. 2020, arXiv:2004.07728, section 3.2).
POOLS: dict[str, tuple[int, int, int]] = {"max": (2, 2, 0), "avg": (2, 2, 0), "l2": (3, 2, 1)}

MOST_CHANNELS = 65536  # of a layer whose channels are given one by one

# The Hann window of 5 without its zero ends, made to sum to 1 over 3x3: the l2 pool's weights.
L2_WINDOW: tuple[float, float, float] = (0.25, 0.5, 0.25)
L2_EPSILON = 1e-12  # inside the root, as DISTS-pytorch has it

# Section 2.1 with Krizhevsky et al. 2012, section 3.3: b = a / (k + alpha * sum of a^2)^beta over n
# neighbouring channels. The sum is not divided by n; torch and ONNX divide, so they get alpha * n.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0

# torch.nn.BatchNorm2d's default, with which torchvision's weights were trained
BATCH_NORM_EPSILON = 1e-5

# Grid of the average before the first FC layer, and width of the hidden FC layers. "classic" is the
# paper's on torchvision's 7x7 adaptive pool; "small" is for 32x32 images, whose pool5 is 1x1.
HEADS: dict[str, tuple[int, int]] = {"classic": (7, 4096), "small": (1, 512), "gap": (1, 0)}


def named(layers: str | Iterable[str]) -> tuple[str, ...]:
    """Paper names of layers; a text alone names one layer."""
    alone = isinstance(layers, str) or not isinstance(layers, Iterable)
    names: tuple[Any, ...] = (layers,) if alone else tuple(layers)
    for name in names:
        if not isinstance(name, str):
            raise NetworkError(f"layers are {layers!r}; expected names of layers")
    return names


@dataclass(frozen=True)
class Head:
    """What stands on the convolutions.

    kind: "classic" (7x7 adaptive average pool, FC-4096, FC-4096, FC-classes), "small" (global
    average pool, FC-512, FC-512, FC-classes; for 32x32 images) or "gap" (global averages of
    `layers`, concatenated in that order, then FC-classes).
    classes: number of scores. 0 means no head: a trunk that gives features only.
    layers: for "gap", the paper names of the layers it averages; empty for the others.
    """

    kind: Literal["classic", "gap", "small"] = "classic"
    classes: int = 1000
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        vars(self)["layers"] = named(self.layers)
        require("head", self.kind, HEADS, NetworkError)
        if not is_whole(self.classes, 0):
            raise NetworkError(f"classes is {self.classes!r}; expected a whole number of 0 or more")
        vars(self)["classes"] = int(self.classes)  # numpy's numbers are none of JSON's
        if self.kind == "gap" and self.classes and not self.layers:
            raise NetworkError('head "gap" needs the layers it averages, such as ("relu5_3",)')
        if self.kind != "gap" and self.layers:
            raise NetworkError(f'head "{self.kind}" reads pool5; layers belong to head "gap"')
        if len(set(self.layers)) != len(self.layers):
            raise NetworkError(f"head names a layer twice: {', '.join(self.layers)}")


@dataclass(frozen=True)
class Layer:
    """One step of the network, by its paper name, with what it computes but no weights.

    name: paper name ("conv3_2", "relu3_2", "pool3", "fc6", "relu6", "prob"; the first convolution's
    normalisation is "lrn1", the average before the FC layers "avgpool").
    inputs, outputs: channels (features for FC layers).
    kernel, stride, padding: of convolutions and pools, in pixels of the layer's own input.
    key: torchvision's tensor prefix ("features.10"), empty where there are no weights.
    norm_key: the batch norm's prefix where one follows the convolution, else empty. A tap of the
    convolution is the value after it.
    place: index of the module that gives its value, in torchvision's `features` or `classifier`.
    """

    name: str
    kind: Kind
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    key: str = ""
    norm_key: str = ""
    place: int = 0

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes as torch stores them; weights are (out, in, height, width)."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.kind == "conv":
            shapes[f"{self.key}.weight"] = (self.outputs, self.inputs, self.kernel, self.kernel)
            shapes[f"{self.key}.bias"] = (self.outputs,)
        elif self.kind == "fc":
            shapes[f"{self.key}.weight"] = (self.outputs, self.inputs)
            shapes[f"{self.key}.bias"] = (self.outputs,)
        if self.norm_key:
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{self.norm_key}.{part}"] = (self.outputs,)
            shapes[f"{self.norm_key}.num_batches_tracked"] = ()
        return shapes

    @property
    def parameters(self) -> int:
        """Learned numbers: weights and biases, batch norm's two included, its statistics not."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensors.items()
            if name.rsplit(".", 1)[1] in ("weight", "bias")
        )


@dataclass(frozen=True)
class Network:
    """A network of the paper's table: a column, and the choices that are made around it.

    column: a key of COLUMNS. batch_norm: whether each convolution has one.
    width: multiplies the channels of every convolution and hidden FC layer (rounded, at least 1).
    in_channels: of the image. pool: a key of POOLS. head: what stands on top.
    channels: of a network that some were taken from: of each convolution in order, then of the head's two
    hidden FC layers where it has them; these may be left out, and are then the table's times width. Empty
    where all are the table's times width, and made so where they are.

    name: the one people know ("vgg16_bn"), whatever the width, pooling or head. trunk: the layers from
    conv1_1 to pool5. top: the head's layers, empty for a trunk alone. layers: both. head_inputs: those of
    the trunk that the head averages.
    """

    column: str
    batch_norm: bool = False
    width: float = 1.0
    in_channels: int = 3
    pool: Literal["max", "avg", "l2"] = "max"
    head: Head = Head()
    channels: tuple[int, ...] = ()
    name: str = field(init=False, repr=False)
    head_inputs: tuple[str, ...] = field(init=False, repr=False)
    trunk: tuple[Layer, ...] = field(init=False, repr=False)
    top: tuple[Layer, ...] = field(init=False, repr=False)
    layers: tuple[Layer, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require("column", self.column, COLUMNS, NetworkError)
        require("pool", self.pool, POOLS, NetworkError)
        if not isinstance(self.batch_norm, bool):
            raise NetworkError(f"batch_norm is {self.batch_norm!r}; expected true or false")
        width, channels = self.width, self.in_channels
        if not is_number(width, 0, 16) or not width:
            raise NetworkError(f"width is {width!r}; expected a number above 0, at most 16")
        if not is_whole(channels, 1, 4096):
            raise NetworkError(f"in_channels is {channels!r}; expected a whole number, 1 to 4096")
        width = width if isinstance(width, int) else float(width)
        vars(self).update(width=width, in_channels=int(channels))  # they may be numpy's
        entries = COLUMNS[self.column].split()
        vars(self)["channels"] = own = _own_channels(self, entries)
        if own:
            left = iter(own)
            # "256:1" becomes "97:1"
            entries = [re.sub(r"^\d+", lambda _: str(next(left)), entry) for entry in entries]
            width = 1
        trunk = tuple(convolutions(entries, channels, self.batch_norm, width, self.pool))
        # past the frozen fields' guard; the top comes last, since it is made from the others
        vars(self).update(
            # A-LRN with batch norm is allowed, but nobody has named it
            name=_NAMES.get((self.column, self.batch_norm), "vgg11_lrn_bn"),
            head_inputs=self.head.layers if self.head.kind == "gap" else ("pool5",),
            trunk=trunk,
            top=(),
            layers=trunk,
        )
        top = tuple(_top(self))
        vars(self).update(top=top, layers=trunk + top)

    @property
    def taps(self) -> tuple[str, ...]:
        """The names that can be asked for as outputs, in order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint, by torchvision's key, with its shape, in torch's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            shapes |= layer.tensors
        return shapes

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def widths(self) -> str:
        """How wide the network is, in words: "width 0.5", or "channels 12-33-..." of its own."""
        own = "-".join(map(str, self.channels))
        return f"channels {own}" if own else f"width {self.width:g}"

    @property
    def weight_layers(self) -> int:
        """Convolutions and FC layers: the number in the paper's names, with the classic head."""
        return sum(layer.kind in ("conv", "fc") for layer in self.layers)

    def layer(self, name: str) -> Layer:
        """The layer of that paper name; LayerError, with the nearest names, where there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        of = self.name if self.head.classes else f"the trunk of {self.name}"
        raise LayerError(f"{of} has no layer {name!r}{nearest(str(name), self.taps)}")

    def cut(self, taps: str | Iterable[str], *, scores: bool = False) -> Network:
        """The same network without what comes after the last of `taps`, and after "fc8" for scores.

        The result's `trunk` ends there; its `top` is empty unless a tap lies in the head. Raises LayerError
        for a tap that there is not, NetworkError for scores without a head, and where nothing is asked for.
        """
        taps = named(taps)
        if scores and not self.head.classes:
            raise NetworkError(f"{self.name} has no head here, so no scores; ask for layers alone")
        if scores:
            taps += ("fc8",)
        if not taps:
            raise NetworkError("nothing is asked for: expected scores or layers")
        for name in taps:
            self.layer(name)
        trunk, top = self.trunk, self.top
        while top and top[-1].name not in taps:
            top = top[:-1]
        if top:
            taps += self.head_inputs
        while trunk and trunk[-1].name not in taps:
            trunk = trunk[:-1]
        needed = copy.copy(self)
        vars(needed).update(trunk=trunk, top=top, layers=trunk + top)
        return needed

    @property
    def last_relus(self) -> tuple[str, ...]:
        """Of each block of the trunk its last ReLU, which is what its pool reads."""
        relus = (layer.name for layer in self.trunk if layer.kind == "relu")
        return tuple({name.partition("_")[0]: name for name in relus}.values())

    def own(self, relus: Iterable[str]) -> tuple[str, ...]:
        """Defaults that are named after VGG-16: where this network has no such ReLU, its block's last."""
        taps, last = self.taps, {name.partition("_")[0]: name for name in self.last_relus}
        own = (
            n if n in taps else last.get(n.partition("_")[0], [*last.values()][-1]) for n in relus
        )
        return tuple(dict.fromkeys(own))

    @property
    def minimum_size(self) -> int:
        """The smallest height or width, in pixels, that leaves a unit everywhere in the trunk."""
        return self.size_for(1)

    def size_for(self, units: int) -> int:
        """The smallest height or width, in pixels, of which the trunk's last map has so many units."""
        size = units
        for layer in reversed(self.trunk):
            size = max(1, (size - 1) * layer.stride + layer.kernel - 2 * layer.padding)
        return size

    def rows(self, height: int = 224, width: int | None = None) -> tuple[Row, ...]:
        """Shape, cost and field of view of every layer for one image of that many pixels.

        Raises NetworkError where the image is too small for the pools.
        """
        return tuple(_rows(self, height, height if width is None else width))


@dataclass(frozen=True)
class Row:
    """One layer at a given input size: a line of `verydeep summary`.

    shape: output (channels, height, width), or (features,) after the average.
    multiply_adds: for one image; biases, batch norm, ReLU and pools are not counted.
    size_bytes: of the parameters in float32.
    receptive_field, stride: of one output unit, in input pixels, along the longer axis. From the
    average on, the field is that of the first unit, the stride that of the map it averages.
    position: the centre of the first unit's receptive field, in pixels; the first pixel's centre
    is 0.
    """

    layer: Layer
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    size_bytes: int
    receptive_field: int
    stride: int
    position: float


def network(
    name: str,
    *,
    classes: int = 1000,
    head: str = "classic",
    layers: str | Iterable[str] = (),
    width: float = 1.0,
    in_channels: int = 3,
    pool: str = "max",
    channels: Sequence[int] = (),
) -> Network:
    """The network that people know by `name`, such as "vgg16_bn"; NetworkError where there is none.

    `head`, `classes` and `layers` are those of `Head`, the rest those of `Network`.
    """
    require("network", name, NETWORKS, NetworkError)
    column, batch_norm = NETWORKS[name]
    top = Head(head, classes, named(layers))  # type: ignore[arg-type]  # checked by Head itself
    return Network(column, batch_norm, width, in_channels, pool, top, channels)  # type: ignore[arg-type]


def _own_channels(net: Network, entries: Iterable[str]) -> tuple[int, ...]:
    """`net.channels`, checked and complete; nothing where they are those of the table and width."""
    counts = (entry.partition(":")[0] for entry in entries)
    usual = [_times(int(count), net.width) for count in counts if count.isdigit()]
    convs, hidden = len(usual), HEADS[net.head.kind][1] if net.head.classes else 0
    usual += [_times(hidden, net.width)] * 2 if hidden else []
    given: Any = net.channels
    own = list(given) if isinstance(given, list | tuple) else [0]
    if len(own) not in (0, convs, convs + 2) or not all(is_whole(n, 1, MOST_CHANNELS) for n in own):
        raise NetworkError(
            f"channels are {given!r}; expected {convs} whole numbers, 1 to {MOST_CHANNELS}, one for each "
            f"convolution of column {net.column}, and perhaps two for the hidden FC layers"
        )
    own = [int(n) for n in own]
    # those of FC layers that the head does not have are left out
    own = own[: len(usual)] + usual[len(own) :]
    return () if own == usual else tuple(own)


def _times(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def convolutions(
    column: Iterable[str], channels: int, batch_norm: bool, width: float = 1.0, pool: str = "max"
) -> Iterator[Layer]:
    """Walk a column: one entry gives a convolution with its ReLU, a normalisation or a pool."""
    block, number, index = 1, 0, 0
    for entry in column:
        if entry == "M":
            yield Layer(f"pool{block}", "pool", channels, channels, *POOLS[pool], place=index)
            block, number, index = block + 1, 0, index + 1
        elif entry == "LRN":
            yield Layer(f"lrn{block}", "lrn", channels, channels, place=index)
            index += 1
        else:
            count, _, kernel_text = entry.partition(":")
            outputs, kernel = _times(int(count), width), int(kernel_text or 3)
            number, last = number + 1, index + batch_norm
            yield Layer(
                f"conv{block}_{number}", "conv", channels, outputs, kernel, 1, kernel // 2,
                f"features.{index}", f"features.{last}" if batch_norm else "", last,
            )  # fmt: skip
            yield Layer(f"relu{block}_{number}", "relu", outputs, outputs, place=last + 1)
            channels, index = outputs, last + 2


def _top(net: Network) -> Iterator[Layer]:
    """The head's layers. Dropout computes nothing at inference: the torch module adds it."""
    head, inputs = net.head, 0
    for name in net.head_inputs:
        inputs += net.layer(name).outputs
    if not head.classes:
        return
    grid, hidden = HEADS[head.kind]
    yield Layer("avgpool", "average", inputs, inputs, grid)
    if head.kind == "gap":
        yield Layer("fc8", "fc", inputs, head.classes, key="classifier")
    else:
        features = inputs * grid * grid
        wide = net.channels[-2:] or [_times(hidden, net.width)] * 2
        for name, index, outputs in zip("67", (0, 3), wide, strict=True):
            key = f"classifier.{index}"
            yield Layer(f"fc{name}", "fc", features, outputs, key=key, place=index)
            yield Layer(f"relu{name}", "relu", outputs, outputs, place=index + 1)
            features = outputs
        yield Layer("fc8", "fc", features, head.classes, key="classifier.6", place=6)
    yield Layer("prob", "softmax", head.classes, head.classes)


def _rows(net: Network, height: int, width: int) -> Iterator[Row]:
    least = net.minimum_size
    if min(height, width) < least:
        raise NetworkError(
            f"an input of {height}x{width} pixels is too small for {net.name}: "
            f"its {net.trunk[-1].name} needs at least {least}x{least}"
        )
    size, field_size, jump, position = (height, width), 1, 1, 0.0
    shape: tuple[int, ...] = (net.in_channels, *size)
    maps: dict[str, tuple[int, int, int, float]] = {}
    flat = False
    for layer in net.layers:
        cost = 0
        if layer.kind in ("conv", "pool"):
            k, s, p = layer.kernel, layer.stride, layer.padding
            size = ((size[0] + 2 * p - k) // s + 1, (size[1] + 2 * p - k) // s + 1)
            field_size += (k - 1) * jump
            position += ((k - 1) / 2 - p) * jump
            jump *= s
        if layer.kind == "conv":
            cost = layer.outputs * layer.inputs * layer.kernel**2 * size[0] * size[1]
        maps[layer.name] = (max(size), field_size, jump, position)
        if layer.kind == "average":
            read = [maps[name] for name in net.head_inputs]
            field_size, position = _first_cell(read, layer.kernel)
            size = (layer.kernel, layer.kernel)
        if layer.kind == "fc":
            cost = layer.outputs * layer.inputs
        if layer.kind == "fc" and not flat:
            # from here on a unit sees the whole map: the FC layers as a convolution (section 3.2)
            flat, (field_size, position) = True, _first_cell(read, 1)
        shape = (layer.outputs,) if flat else (layer.outputs, *size)
        yield Row(
            layer, shape, layer.parameters, cost, 4 * layer.parameters, field_size, jump, position
        )


def _first_cell(maps: list[tuple[int, int, int, float]], grid: int) -> tuple[int, float]:
    """Receptive field and position of the first of `grid` averages over all of these maps.

    Each map is (size, receptive field, stride, position) along one axis.
    """
    starts, ends = [], []
    for size, field_size, jump, position in maps:
        starts.append(position - (field_size - 1) / 2)
        ends.append(position + (field_size - 1) / 2 + (math.ceil(size / grid) - 1) * jump)
    first, last = min(starts), max(ends)
    return int(last - first) + 1, (first + last) / 2
