"""The torch module: the table walked once, under torchvision's names.

`features`, `avgpool` and `classifier` are torchvision's, with its keys and indices; so a checkpoint
of either loads into the other, strictly, for the eight networks that both have.

Annotations are evaluated here, since torch.fx writes them into its code, which torch.jit.script reads.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Self, TypedDict, Unpack

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import nets
from ..errors import LayerError, NetworkError, warn
from ..modelfile import Record
from ..nets import NETWORKS, Network, named
from . import layers
from .layers import Recipe, initialise


class Choices(TypedDict, total=False):
    """What can be chosen around a named network: the keywords of `verydeep.nets.network`."""

    classes: int
    head: str
    layers: str | Iterable[str]
    width: float
    channels: Sequence[int]
    in_channels: int
    pool: str


class VGG(nn.Module):
    """A network of the paper as a torch module.

    Maps normalised images, float (n, in_channels, height, width), to scores, float (n, classes):
    the values before the soft-max. A network without a head gives its last feature map.

    The constructor takes what torchvision's does; `VGG.of(network)` takes a line of the table, with
    any head, width or pooling.

    features, avgpool, classifier: the parts, under torchvision's keys.
    network: what this is, in the table's words; None where its convolutions are not in the table.
    table: the same; a module whose convolutions are not in the table has no such attribute.
    record: the record of the model file it was loaded from; None for random weights.
    """

    # torch.jit.script neither needs nor understands it
    __jit_unused_properties__ = ("module_names",)

    def __init__(
        self,
        features: nn.Module,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
    ) -> None:
        """The classic head (7x7 average, FC-4096, FC-4096, FC-num_classes) on any `features`.

        features: maps images to (n, channels, height, width); `make_layers` gives them.
        init_weights: torchvision's initialisation; else torch's own for each layer.
        dropout: probability of dropping, after the two hidden FC layers.
        """
        super().__init__()
        convolutions = [m for m in features.modules() if isinstance(m, nn.Conv2d)]
        channels = convolutions[-1].out_channels if convolutions else 512
        self.features: nn.Sequential = features  # type: ignore[assignment]  # nearly always is one
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier: nn.Module = nn.Sequential(
            nn.Linear(channels * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self._know(_recognise(features, num_classes, convolutions))
        if init_weights:
            self._initialize_weights()

    def _initialize_weights(self) -> None:
        """torchvision's name of it, until its 0.13, which subclasses call and override."""
        initialise(self)

    @classmethod
    def of(cls, network: Network, *, dropout: float = 0.5) -> Self:
        """The module of that network, with each layer's own default weights.

        Under `torch.device("meta")` it takes neither time nor memory.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.features = nn.Sequential(*layers.modules(network.trunk, network.pool))
        average, *fc = list(layers.modules(network.top, dropout=dropout)) or [nn.Identity()]
        model.avgpool = average
        model.classifier = nn.Sequential(*fc) if fc else nn.Identity()
        if fc and network.head.kind == "gap":
            model.classifier = fc[0]
        model._know(network)
        return model

    def _know(self, network: Network | None) -> None:
        self.network = network
        self.record: Record | None = None
        self._trunk_only = network is not None and not network.top
        # what a "gap" head averages, as indices in `features`, in the order of joining
        self._averaged: list[int] | None = None
        if network is not None:
            self.table: Network = network
            if network.top and network.head.kind == "gap":
                self._averaged = []
                for name in network.head.layers:
                    self._averaged.append(network.layer(name).place)

    def forward(self, x: Tensor) -> Tensor:
        """(n, classes) scores of normalised images, float (n, in_channels, height, width)."""
        if self._averaged is not None:
            x = self._averages(x, self._averaged)
        else:
            if not torch.jit.is_scripting():  # type: ignore[attr-defined]
                x = _values(self.features, x)
                if not self._trunk_only:
                    _notice_small_images(self.avgpool, x)
            else:
                x = self.features(x)
            if self._trunk_only:
                return x
            x = self.avgpool(x)
        scores: Tensor = self.classifier(torch.flatten(x, 1))
        return scores

    def _averages(self, x: Tensor, averaged: list[int]) -> Tensor:
        """The global averages of the layers that a "gap" head reads, (n, channels, 1, 1)."""
        last = max(averaged)
        maps = [x] * (last + 1)
        for index, module in enumerate(self.features):
            if index <= last:
                x = module(x)
                if index in averaged:
                    maps[index] = x
        return torch.cat([self.avgpool(maps[index]) for index in averaged], 1)

    def taps(self, x: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """The values of the named layers, in the order asked, from one pass that ends at the last.

        x: normalised images, float (n, in_channels, height, width).
        names: a paper name, or several; see `verydeep.nets.Network.taps`. "conv3_2" is the value
        before ReLU and, in networks with batch norm, after it; "prob" the soft-max, or the sigmoids
        where the record says that an image may be of several classes. Raises LayerError for a name
        that the network does not have.
        """
        net, names = tabled(self), named(names)
        if not names:
            raise LayerError(f'no taps were named; expected at least one, such as "{net.taps[-1]}"')
        needed = net.cut(names)
        wanted = set(names) | set(net.head_inputs if needed.top else ())
        features = layers.positions(needed.trunk)
        values = layers.walk(self.features, x, {n: i for n, i in features.items() if n in wanted})
        if needed.top:
            values["avgpool"] = torch.cat([self.avgpool(values[n]) for n in net.head_inputs], 1)
            fc = layers.positions(needed.top)
            if set(names) & {"prob", *fc}:
                head = self.classifier
                modules = list(head) if isinstance(head, nn.Sequential) else [head]
                values |= layers.walk(modules, torch.flatten(values["avgpool"], 1), fc)
            if "prob" in names and "fc8" in values:
                values["prob"] = probabilities(self.record, values["fc8"])
        for name in names:
            if name not in values:
                raise LayerError(f"the classifier was replaced, so there is no {name} any more")
        return {name: values[name] for name in names}

    @property
    def module_names(self) -> dict[str, str]:
        """The module that computes each layer, by paper name: {"relu3_3": "features.15", ...}.

        What torchvision's `create_feature_extractor` and `get_submodule` take. "prob" has no
        module.
        """
        net = self.table
        names = {name: f"features.{index}" for name, index in layers.positions(net.trunk).items()}
        if net.top:
            names["avgpool"] = "avgpool"
            for name, index in layers.positions(net.top).items():
                names[name] = "classifier" if net.head.kind == "gap" else f"classifier.{index}"
        return names


def probabilities(record: Record | None, scores: Tensor) -> Tensor:
    """As `verydeep.predictor.probabilities`, of logits (n, classes)."""
    several = record is not None and record.thresholds
    return torch.sigmoid(scores) if several else torch.softmax(scores, 1)


def tabled(model: VGG) -> Network:
    """`model.network`; NetworkError where that is not one of the table."""
    if model.network is None:
        raise NetworkError(
            "this VGG stands on convolutions that are not in the table, or on layers that compute in "
            "place, so they have no paper names; expected one of verydeep.nets.NETWORKS, or take the "
            "values by hooks"
        )
    return model.network


def build(
    name_or_network: str | Network,
    *,
    init: Recipe = "torchvision",
    dropout: float = 0.5,
    **choices: Unpack[Choices],
) -> VGG:
    """A network with random weights, by name ("vgg16_bn") and choices, or from a `Network`.

    init: "torchvision" (the same numbers as torchvision's under the same seed), "paper", "glorot"
    or "he".
    dropout: probability of dropping, after the hidden FC layers.
    choices: classes, head, layers, width, in_channels, pool, channels, as `verydeep.nets.network` takes
    them.

    Raises NetworkError for what the table does not have.
    """
    if isinstance(name_or_network, Network):
        if choices:
            raise NetworkError(
                f"{', '.join(choices)} given beside a Network, which already has its own; "
                "give a name with choices, or a Network alone"
            )
        network = name_or_network
    else:
        network = nets.network(name_or_network, **choices)
    if init == "torchvision":
        # torch's own draws for each layer come first there too: the same seed gives the same
        # numbers
        model = VGG.of(network, dropout=dropout)
    else:
        with torch.device("meta"):
            model = VGG.of(network, dropout=dropout)
        model.to_empty(device=torch.get_default_device())
    initialise(model, init)
    return model


def _recognise(features: nn.Module, classes: int, convs: list[nn.Conv2d]) -> Network | None:
    """The line of the table that `features` are, layer by layer as they print themselves, or None."""
    if not classes or not convs or convs[0].in_channels > 4096:
        return None
    shapes = {f"features.{key}": tuple(value.shape) for key, value in features.state_dict().items()}
    for name, pool in product(NETWORKS, nets.POOLS):
        net = nets.network(name, classes=classes, in_channels=convs[0].in_channels, pool=pool)
        if net.cut("pool5").tensors == shapes:
            with torch.device("meta"):
                if str(layers.trunk(net)) == str(features):
                    return net
    return None


def _values(features: nn.Module, x: Tensor) -> Tensor:
    """`features(x)`. Where nobody looks on, ReLU writes over what a convolution or norm has just made.

    The largest maps are then made once and not twice: new pages cost an eager forward pass on a processor
    some 5 % of its time. Hooks, modes, tracers and taps see every value as it was.
    """
    if type(x) is not Tensor or _watched(features):
        values: Tensor = features(x)
        return values
    fresh = False
    for module in features:  # type: ignore[attr-defined]
        writes_over = fresh and type(module) is nn.ReLU and type(x) is Tensor
        x = _RELU_IN_PLACE(x) if writes_over else module(x)
        fresh = type(module) in (nn.Conv2d, nn.BatchNorm2d)
    return x


_RELU_IN_PLACE = nn.ReLU(inplace=True)
_HOOKS = [name for name in vars(nn.Module()) if "ward_" in name and "hooks" in name]


def _functions() -> tuple[object, ...]:
    """What torch computes these layers with, which people replace by what remembers or compiles."""
    kinds = (nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
    return nn.Module.__call__, F.conv2d, F.batch_norm, *(kind.forward for kind in kinds)


_TORCHS_OWN = _functions()


def _watched(features: nn.Module) -> bool:
    """Whether anybody may keep, trace or replace what these layers make."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call,attr-defined]
        return True
    if torch._C._len_torch_dispatch_stack() or looked_at(features):
        return True
    return type(features) is not nn.Sequential or _functions() != _TORCHS_OWN


def looked_at(*modules: nn.Module) -> bool:
    """Whether somebody may look at what these make, or make it in their place."""
    anywhere = _has_any_global_hook() or torch._C._len_torch_function_stack()  # type: ignore[no-untyped-call]
    return bool(anywhere) or any(map(hooked, modules))


def hooked(module: nn.Module) -> bool:
    """Whether a hook or somebody's own function hangs on a module, or on one within it.

    A compiler is told of hooks alone: torch's before 2.12 knows no `vars` of a module.
    """
    known = not torch.compiler.is_compiling()
    return any(
        any(getattr(one, name, None) for name in _HOOKS)
        or (known and any(map(callable, vars(one).values())))
        for one in module.modules()
    )


def _notice_small_images(avgpool: nn.Module, x: Tensor) -> None:
    """Warn where the classic head's 7x7 average only repeats one value 49 times."""
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling():
        return  # a shape that is not known yet
    if x.shape[-2:] == (1, 1) and getattr(avgpool, "output_size", None) == (7, 7):
        warn(
            "images this small leave pool5 with 1x1 values, which the classic head's 7x7 average "
            'repeats 49 times; for 32x32 images build the network with head="small"'
        )
