"""A frozen VGG that images look through on their way to a loss, in pieces that memory and cache can hold.

Three things make it cheaper than the network called as it is. Large images go through the first blocks in
strips, which overlap by what the convolutions reach, and the backward pass computes these blocks again
(arXiv:1604.06174): of a megapixel's features, nothing as wide as the image is kept. Batches go through in
parts, since allocations beyond some 32 MB cost the processor more than the arithmetic on them. The
reference keeps no graph. Values are those of the whole network, to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..distances.inputs import OVERSHOOT, range_name, warn_if_suspicious
from ..errors import ImageError, LayerError, NetworkError
from ..models import Backbone, backbone, layers
from ..models.layers import L2Pool2d
from ..models.vgg import WeightsLike
from ..preprocess import RANGES, TORCHVISION, Range, limits

PART_BYTES = {"cpu": 1 << 24}  # of the largest feature map of one part
PART_BYTES_ELSEWHERE = 1 << 28
LEAST_ROWS = 16  # of a strip
AGAIN_BYTES = 1 << 25  # feature maps of one image larger than this are computed again, not kept

Span = tuple[float, float]  # black and white

# How far beyond its range an image may go, in widths of the range: what is optimised, or comes out of a
# network that still learns, overshoots by more than a picture does.
OVERSHOOT_LEARNING = 8.0

Read = Callable[[str, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Look:
    """What is read of the features of a layer.

    read: (layer, features of the image, features of the reference or None) to a tensor (n, ...).
    strips: how the readings of strips, one below the other, become that of the whole: "rows" are joined
    along the second-last axis, a "sum" is added up; None: only the whole can be read.
    """

    read: Read
    strips: Literal["rows", "sum"] | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What a loss remembers of a reference, to be given in its place as often as one likes.

    values: by layer. size: (height, width) of the images.
    """

    values: Mapping[str, Tensor]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


@dataclass(frozen=True)
class _Stage:
    """The layers from one pool to the next, that one included."""

    modules: tuple[tuple[str, nn.Module], ...]  # by paper name
    pool: tuple[str, nn.Module] | None
    channels: int  # of its feature maps
    reach: int  # rows that one output sees above and below its own, before the pool

    def size(self, x: Tensor) -> int:
        """Bytes of a feature map of this stage, for its input x."""
        return x[:, :1].numel() * self.channels * x.element_size()

    def among(self, taps: Sequence[str]) -> list[str]:
        names = [name for name, _ in self.modules] + ([self.pool[0]] if self.pool else [])
        return [name for name in names if name in taps]


class Trunk(nn.Module):
    """The convolutions of a network up to the last of `taps`, frozen, with the normalisation before.

    It is no part of the module that holds it as far as optimisers, checkpoints and distributed training
    are concerned, and it stays in evaluation mode: see `Looking`.

    taps: paper names. model: weights as for `verydeep.models.backbone`. network, pool: of them.
    checkpointing: True computes every stage again in the backward pass, False none, None those whose
    feature maps are large.
    """

    def __init__(
        self,
        taps: Sequence[str],
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        *,
        pool: str | None = None,
        checkpointing: bool | None = None,
    ) -> None:
        super().__init__()
        if len(set(taps)) < len(taps):
            raise LayerError(f"a layer is named twice: {', '.join(taps)}")
        with torch.inference_mode(False):  # what is made in it can never be differentiated through
            body = backbone(network, taps, model, pool=pool)
            body.requires_grad_(False).eval()
            self.body = body.to(memory_format=torch.channels_last)
        self._arguments = (taps, model, network, pool) if model == "builtin" else None
        self._twins: dict[tuple[torch.device, torch.dtype], Trunk] = {}
        self.taps = body.taps
        self.checkpointing = checkpointing
        self.smallest = body.network.minimum_size
        self._staged = tuple(_stages(body))
        self.in_channels = body.network.in_channels
        record = body.record.preprocess if body.record else TORCHVISION
        if len(record.mean) != self.in_channels:
            raise NetworkError(
                f"{network} takes images of {self.in_channels} channels, and its pre-processing is for "
                f"{len(record.mean)}; expected weights for pictures"
            )
        # On the scale of 0 to 1 that pictures have, whatever range the weights were trained on.
        low, high = record.range
        mean = (torch.tensor(record.mean, dtype=torch.float64) - low) / (high - low)
        std = torch.tensor(record.std, dtype=torch.float64) / (high - low)
        self.flip = record.channel_order == "BGR"
        if self.flip:
            mean, std = mean.flip(0), std.flip(0)
        self.register_buffer("mean", constant(mean)[:, None, None])
        self.register_buffer("std", constant(std)[:, None, None])
        self.mean: Tensor
        self.std: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.body.features[0].weight.dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.body.features[0].weight.device  # type: ignore[return-value]

    def at(self, image: Tensor) -> Trunk:
        """The trunk that looks at such an image: itself, or a copy on its device, in its
        float64 or float32.

        Copies are kept, and nothing of this one is moved.
        """
        dtype = self.dtype
        if {image.dtype, dtype} == {torch.float32, torch.float64}:
            dtype = image.dtype  # one is exact in the other
        key = (image.device, dtype)
        if key == (self.device, self.dtype) or torch.compiler.is_compiling():
            return self
        if key not in self._twins:
            with torch.inference_mode(False), torch.no_grad():
                twin = copy.deepcopy(self)
                self._twins.setdefault(key, twin.to(*key).to(memory_format=torch.channels_last))
        return self._twins[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Trunk:
        self._twins = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Trunk:
        twin = Trunk.__new__(Trunk)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_twins": {}}, memo))
        return twin

    def __reduce__(self) -> Any:
        """The built-in weights are in every installation, so a pickle has them by name."""
        state = {**self.__dict__, "_twins": {}}
        if self._arguments is None:
            return _restored, (state,)
        return _rebuilt, (self._arguments, self.checkpointing, self.device, self.dtype)

    def normalised(self, image: Tensor, black: float, white: float) -> Tensor:
        """What the network takes of an image whose black and white are these."""
        width = white - black
        mean, std = self.mean * width + black, self.std * width
        x = (image.to(torch.promote_types(image.dtype, mean.dtype)) - mean) / std
        x = x.flip(1) if self.flip else x
        x = x.to(self._dtype(image))
        # vmap gives tensors an axis of its own, and they cannot be laid out so
        return x if in_torch_func() else x.contiguous(memory_format=torch.channels_last)

    def _dtype(self, image: Tensor) -> torch.dtype:
        """What is computed in: the trunk's own, finer where the image is float64."""
        if self.dtype == torch.float32:
            return torch.promote_types(image.dtype, self.dtype)
        return self.dtype

    def look(self, x: Tensor, y: Tensor | Mapping[str, Tensor] | None, look: Look) -> list[Tensor]:
        """What `look` reads at each tap, in order.

        x: normalised images. y: their references, as many, normalised; or features by tap, of as many
        or of one; or None.
        """
        # A compiler finds its own parts; the l2 pool reads beyond the edges of a strip.
        if look.strips is None or self.body.network.pool == "l2" or transformed():
            return self._part(x, y, look, 1 << 62)
        part_bytes = PART_BYTES.get(x.device.type, PART_BYTES_ELSEWHERE)
        part = max(1, part_bytes // max(1, self._staged[0].size(x[:1])))
        parts = [
            self._part(xs, _batch(y, start, start + part), look, part_bytes)
            for start, xs in zip(range(0, len(x), part), torch.split(x, part), strict=True)
        ]
        return [
            torch.cat(values) if len(values) > 1 else values[0]
            for values in zip(*parts, strict=True)
        ]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The taps' values for normalised images, without a graph."""
        with torch.no_grad():
            values = self.look(x, None, Look(_itself, "rows"))
        return dict(zip(self.taps, values, strict=True))

    def _part(
        self, x: Tensor, y: Tensor | Mapping[str, Tensor] | None, look: Look, part_bytes: int
    ) -> list[Tensor]:
        """What `look` reads of these few images, in strips where a feature map would be larger."""
        values: dict[str, Tensor] = {}
        images = 2 if isinstance(y, Tensor) else 1
        for stage in self._staged:
            size, height = stage.size(x), x.shape[2]
            again = self.checkpointing
            if again is None:
                again = size > AGAIN_BYTES * len(x)
            rows = height
            if size > part_bytes:
                rows = max(LEAST_ROWS, part_bytes * height // size // 2 * 2)
            strips: list[list[Tensor]] = []
            start = 0
            while start < height:
                end = start + rows
                if height - end < 2:  # one row alone would leave the pool nothing
                    end = height
                strips.append(self._strip(stage, x, y, look, start, end, again=again))
                start = end
            columns = list(zip(*strips, strict=True))
            parts = [_joined(column, "rows") for column in columns[:images]]
            readings = [_joined(column, look.strips) for column in columns[images:]]
            x = parts[0]
            if images == 2:
                y = parts[1]
            values.update(zip(stage.among(self.taps), readings, strict=True))
        return [values[tap] for tap in self.taps]

    def _strip(
        self,
        stage: _Stage,
        x: Tensor,
        y: Tensor | Mapping[str, Tensor] | None,
        look: Look,
        start: int,
        end: int,
        *,
        again: bool,
    ) -> list[Tensor]:
        """Rows start to end: the stage's output for x, for y where it is images, then the readings."""
        top = min(start, stage.reach)
        bottom = min(x.shape[2] - end, stage.reach)
        whole = start == 0 and end == x.shape[2]
        around = slice(start - top, end + bottom)
        own = slice(top, top + end - start)
        known = y if isinstance(y, Mapping) else {}

        def cut(f: Tensor, rows: slice) -> Tensor:
            return f if whole else f[:, :, rows]

        def run(x: Tensor, y: Tensor | None) -> list[Tensor]:
            readings: list[Tensor] = []
            for name, module in stage.modules:
                x = module(x)
                y = None if y is None else module(y)
                if name in self.taps:
                    other = None if y is None else cut(y, own)
                    if name in known:
                        other = cut(known[name], slice(start, end))
                    readings.append(look.read(name, cut(x, own), other))
            x, y = cut(x, own), None if y is None else cut(y, own)
            if stage.pool:
                name, pool = stage.pool
                x = _pooled(pool, x)
                y = None if y is None else _pooled(pool, y)
                if name in self.taps:
                    other = y
                    if name in known:
                        other = cut(known[name], slice(start // 2, end // 2))
                    readings.append(look.read(name, x, other))
            return [x, *([] if y is None else [y]), *readings]

        xs, ys = cut(x, around), cut(y, around) if isinstance(y, Tensor) else None
        if (
            again
            and not transformed()
            and torch.is_grad_enabled()
            and any(t is not None and t.requires_grad for t in (xs, ys))
        ):
            done: list[Tensor] = checkpoint(
                run, xs, ys, use_reentrant=False, preserve_rng_state=False
            )
            return done
        return run(xs, ys)


class Looking(nn.Module):
    """A loss that looks through a trunk.

    The trunk is not among the module's children: it is a constant, read from a file, so it stands in no
    checkpoint, no optimiser and no `train()`. It goes along with `to`, `half` and the like. Images on
    another device, or in float64, are looked at by a copy of it, which is kept.

    range: of float images. check: refuse images that contradict it.
    """

    def __init__(self, trunk: Trunk, range: Range, *, check: bool) -> None:
        super().__init__()
        limits(range)
        object.__setattr__(self, "trunk", trunk)
        self.trunk: Trunk
        self.range = range
        self.check = check
        self.layers = trunk.taps  # that a reference has
        self._looked = False

    def extra_repr(self) -> str:
        return f"{self.trunk.body.network.name}: {', '.join(self.trunk.taps)}; range={self.range!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Looking:
        with torch.inference_mode(False):
            self.trunk._apply(fn, recurse)
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _seen(self, image: object, what: str, range: Range = None) -> tuple[Tensor, Span]:
        """The image as floats, with its black and white; ImageError where it cannot be used.

        image: (n, channels, h, w), of floats in that range, or uint8, which is 0..255 whatever `range`.
        what: for the message. A contradiction to the range is refused, and what only looks like another
        range is warned of. The range is said, never guessed: LPIPS takes -1 to 1, nearly everything else
        0 to 1, and published work was computed on the wrong one (nerfstudio#1424, pixelsplat#19).
        """
        if not isinstance(image, Tensor):
            raise ImageError(f"{what} is a {type(image).__name__}; expected a tensor (n, c, h, w)")
        shape, channels, smallest = tuple(image.shape), self.trunk.in_channels, self.trunk.smallest
        if image.ndim != 4 or shape[1] != channels or shape[0] == 0:
            hint = "; add a batch axis: image[None]" if image.ndim == 3 else ""
            raise ImageError(
                f"{what} has shape {shape}; expected (n, {channels}, height, width){hint}"
            )
        if min(shape[2:]) < smallest:
            raise ImageError(
                f"{what} is {shape[2]}x{shape[3]} pixels, too small for the layers that are read: "
                f"expected at least {smallest}x{smallest}"
            )
        if image.dtype == torch.uint8:
            return image.float(), RANGES["0..255"]
        if not image.is_floating_point():
            raise ImageError(f"{what} is of {image.dtype}; expected floats, or uint8")
        # On other devices than the processor a look at the values waits for all work before it, so
        # there it is the first call's alone: the range is a property of the program, not of the batch.
        again = image.device.type != "cpu" and self._looked
        if self.check and not again and not transformed():
            _look(image, what, range or self.range)
        return image, limits(range or self.range)

    def _pair(
        self, image: object, target: object, names: tuple[str, str], range: Range = None
    ) -> tuple[Trunk, Tensor, Tensor | Mapping[str, Tensor]]:
        """The trunk for both, and both normalised, in the finer type of the two; the target's features in
        its place where it is one for many, or known.
        """
        x, black_white = self._seen(image, names[0], range)
        if isinstance(target, Reference):
            _fits(target, x, self.layers)
            self._looked = True
            trunk = self.trunk.at(x)
            x = trunk.normalised(x, *black_white)
            values = {tap: value.to(x.device, x.dtype) for tap, value in target.values.items()}
            return trunk, x, values
        y, other = self._seen(target, names[1], range)
        self._looked = True
        if x.shape[2:] != y.shape[2:] or (len(x) != len(y) and 1 not in (len(x), len(y))):
            raise ImageError(
                f"{names[0]} has shape {tuple(x.shape)} and {names[1]} {tuple(y.shape)}; expected the "
                "same, or one image against several"
            )
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(x.device, dtype)
        trunk = self.trunk.at(x)
        x, y = trunk.normalised(x, *black_white), trunk.normalised(y, *other)
        if len(x) == 1 < len(y):
            x = x.expand(len(y), -1, -1, -1)
        elif len(y) == 1 < len(x):
            if not y.requires_grad:
                return trunk, x, trunk.features(y)
            y = y.expand(len(x), -1, -1, -1)
        return trunk, x, y

    def _remembered(self, target: Tensor, range: Range = None) -> Reference:
        """The features of `target`, which may be one image for all."""
        y, black_white = self._seen(target, "target", range)
        trunk = self.trunk.at(y)
        values = trunk.features(trunk.normalised(y.detach(), *black_white))
        return Reference(values, (y.shape[2], y.shape[3]))


def wide(f: Tensor) -> Tensor:
    """The features in float32 at least."""
    return f.float() if f.dtype in (torch.float16, torch.bfloat16) else f


def constant(values: Tensor) -> Tensor:
    """A copy in float32, which can stand in a graph though it is made under inference_mode."""
    with torch.inference_mode(False):
        return values.detach().float().clone()


def _restored(state: dict[str, Any]) -> Trunk:
    trunk = Trunk.__new__(Trunk)
    trunk.__dict__.update(state)
    return trunk


def _rebuilt(arguments: Any, checkpointing: bool | None, *place: Any) -> Trunk:
    taps, model, network, pool = arguments
    trunk = Trunk(taps, model, network, pool=pool, checkpointing=checkpointing)
    return trunk.to(*place)


def _fits(reference: Reference, x: Tensor, taps: Sequence[str]) -> None:
    """ImageError where what was remembered is of other layers, another size or number of images."""
    if set(reference.values) != set(taps):
        raise ImageError(
            f"the reference was remembered by another loss: it has {', '.join(reference.values)}; "
            f"expected {', '.join(taps)}"
        )
    if reference.size != tuple(x.shape[2:]) or len(reference) not in (1, len(x)):
        height, width = reference.size
        raise ImageError(
            f"the reference was remembered of {len(reference)} images of {height}x{width}, and there are "
            f"{len(x)} of {x.shape[2]}x{x.shape[3]}; expected one or as many, of the same size"
        )


def _stages(body: Backbone) -> Iterator[_Stage]:
    """The trunk cut after each pool."""
    places = layers.positions(body.network.trunk)
    children = list(body.features.children())
    current: list[tuple[str, nn.Module]] = []
    channels = reach = start = 0
    for layer in body.network.trunk:
        own = children[start : places[layer.name] + 1]  # a convolution with its batch norm
        start = places[layer.name] + 1
        module = own[0] if len(own) == 1 else nn.Sequential(*own)
        if layer.kind == "pool":
            yield _Stage(tuple(current), (layer.name, module), channels, reach)
            current, reach = [], 0
        else:
            current.append((layer.name, module))
            channels = layer.outputs
            reach += layer.kernel // 2 if layer.kind == "conv" else 0
    if current:
        yield _Stage(tuple(current), None, channels, reach)


def _batch(y: Any, start: int, end: int) -> Any:
    """Images start to end of a batch, or of features; those of one image are everybody's."""
    if isinstance(y, Tensor):
        return y[start:end] if len(y) > 1 else y
    return y and {tap: _batch(value, start, end) for tap, value in y.items()}


def _joined(values: Sequence[Tensor], how: str | None) -> Tensor:
    if len(values) == 1:
        return values[0]
    return torch.cat(list(values), 2) if how == "rows" else torch.stack(list(values)).sum(0)


def _pooled(pool: nn.Module, x: Tensor) -> Tensor:
    if isinstance(pool, L2Pool2d) and x.dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(x.device.type, enabled=False):  # its squares overflow in fewer bits
            return cast(Tensor, pool(x.float())).to(x.dtype)
    return cast(Tensor, pool(x))


def _itself(_tap: str, f: Tensor, _other: Tensor | None) -> Tensor:
    return f


def in_torch_func() -> bool:
    """Whether one of torch.func's transforms looks on, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether torch.compile or torch.func looks on, to whom values are unknown."""
    return torch.compiler.is_compiling() or in_torch_func()


def _look(image: Tensor, what: str, range: Range) -> None:
    low, high = limits(range)
    learning = image.requires_grad
    margin = (high - low) * (OVERSHOOT_LEARNING if learning else OVERSHOOT)
    least, most = (float(value) for value in image.detach().aminmax())
    if least != least or most != most:
        if learning:
            return  # a step that went wrong: its NaN belongs to the optimiser, or the loss scaler
        raise ImageError(f"{what} has values that are not numbers (NaN)")
    if least < low - margin or most > high + margin:
        raise ImageError(
            f"{what} goes from {least:.4g} to {most:.4g}, and its range was said to be "
            f"{range_name(range)}; scale it, or say which of {', '.join(RANGES)} or (black, white) it is"
        )
    warn_if_suspicious(what, least, most, range, stacklevel=5)
