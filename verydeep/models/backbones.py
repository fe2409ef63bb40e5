"""VGG as the first part of other people's networks: named layers out, with channels and strides.

For detectors, segmentation nets and losses: SSD (arXiv:1512.02325), FCN (arXiv:1411.4038), U-Net.
Annotations are evaluated here, as in `module`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import nets
from ..errors import LayerError
from ..modelfile import Record
from ..nets import Network
from . import layers, vgg
from .module import VGG

DEFAULT_TAPS = ("relu3_3", "relu4_3", "relu5_3")


class Backbone(nn.Module):
    """The convolutions up to the last tap; maps images to a dict of the taps' values.

    Calling it on normalised images, float (n, in_channels, height, width), gives {tap: float
    (n, channels, h, w)}, in the order of `taps`, differentiable.

    taps: paper names. channels, strides: of each tap, strides in input pixels.
    features: the layers, under torchvision's keys.
    network: the part of the table that this is. record: of the file the weights came from, with the
    pre-processing that they expect; None where there is none.
    checkpointing: compute each block again in the backward pass instead of keeping its values: less
    memory, about a third more time. Can be switched at any time.
    """

    def __init__(
        self,
        features: nn.Sequential,
        network: Network,
        taps: Sequence[str],
        *,
        checkpointing: bool = False,
        record: Record | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.network = network
        self.taps = tuple(taps)
        self.checkpointing = checkpointing
        self.record = record
        rows = {row.layer.name: row for row in network.rows()}
        self.channels = {name: network.layer(name).outputs for name in self.taps}
        self.strides = {name: rows[name].stride for name in self.taps}
        places = layers.positions(network.trunk)
        # indices in `features`: of the taps, and where its pieces end, at a tap or a pool
        self._names = {places[name]: name for name in self.taps}
        ends = [n.name for n in network.trunk if n.name in self.taps or n.kind == "pool"]
        self._ends = [places[name] for name in ends]
        self._order = list(dict.fromkeys(self.taps))  # torch.jit.script walks no tuple

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Values by tap, in their order, of normalised images, float (n, in_channels, height, width)."""
        values: dict[str, Tensor] = {}
        if not torch.jit.is_scripting() and self.checkpointing and torch.is_grad_enabled():  # type: ignore[attr-defined]
            values = self._in_pieces(x)
        else:
            for index, module in enumerate(self.features):
                x = module(x)
                if index in self._names:
                    values[self._names[index]] = x
        return {name: values[name] for name in self._order}

    def _in_pieces(self, x: Tensor) -> dict[str, Tensor]:
        """The same, of which the backward pass finds only what stands between the pieces."""
        values: dict[str, Tensor] = {}
        modules, start = list(self.features), 0
        for last in self._ends:
            piece, start = modules[start : last + 1], last + 1
            # nothing special at first; the second time nothing is counted in the statistics
            contexts = partial(lambda piece: (nullcontext(), _not_counting(piece)), piece)
            x = checkpoint(_run, piece, x, use_reentrant=False, context_fn=contexts)
            if last in self._names:
                values[self._names[last]] = x
        return values


def backbone(
    name: str = "vgg16",
    taps: str | Iterable[str] | None = None,
    weights: vgg.WeightsLike | None = "builtin",
    *,
    in_channels: int | None = None,
    pool: str | None = None,
    width: float | None = None,
    checkpointing: bool = False,
    progress: bool = True,
) -> Backbone:
    """A differentiable module that returns the values of the layers `taps`, cut after the last.

    name: a network ("vgg16"). taps: paper names of its convolutions, ReLUs and pools; None for "relu3_3",
    "relu4_3" and "relu5_3", or the last ReLU of these blocks.
    weights: as for `vgg16`: "builtin" (VGG-16's), "DEFAULT", an enum member, a path, None for
    random.
    in_channels, pool, width: of the network; None means as in the weights. Other channels than
    theirs adapt the first filters.
    checkpointing: see `Backbone`. progress: a bar on stderr while weights are fetched.

    Raises LayerError for a tap that the trunk does not have, WeightsError for weights of another
    network.
    """
    whole = nets.network(name, classes=0)
    taps = whole.own(DEFAULT_TAPS) if taps is None else nets.named(taps)
    if not taps:
        raise LayerError('no taps were named; expected at least one, such as "pool5"')
    whole.cut(taps)  # refuses what is not there before anything is fetched

    def cut(of: Network) -> Network:
        return nets.network(
            name,
            classes=0,
            width=of.width if width is None else width,
            channels=of.channels if width is None else (),
            in_channels=of.in_channels if in_channels is None else in_channels,
            pool=of.pool if pool is None else pool,
        ).cut(taps)

    if weights is None:
        model = VGG.of(cut(nets.network(name)))
        layers.initialise(model)
    else:
        model = vgg.trained(name, weights, cut, taps=taps, progress=progress)
    return Backbone(
        model.features, model.table, taps, checkpointing=checkpointing, record=model.record
    )


def _run(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


@contextmanager
def _not_counting(modules: Sequence[nn.Module]) -> Iterator[None]:
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
