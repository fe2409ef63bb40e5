"""A frozen VGG that images look through on their way to a loss, in pieces that memory and cache can hold.

Three things make it cheaper than the network called as it is. Large images go through the first blocks in
strips, which overlap by what the convolutions reach, and the backward pass computes these blocks again
(arXiv:1604.06174): of a megapixel's features, nothing as wide as the image is kept. Batches go through in
parts, since allocations beyond some 32 MB cost the processor more than the arithmetic on them. The
reference keeps no graph, but on a GPU that waits for launches: there small ones go with the images. Values
are those of the whole network, to rounding.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..distances.perceptual import OVERSHOOT, range_name, warn_if_suspicious
from ..engines.torch import MOST_NUMBERS, in_one_pass, repeatable
from ..errors import ArgumentError, ImageError, NetworkError
from ..models import backbone
from ..models.layers import L2Pool2d, positions
from ..models.module import looked_at
from ..models.vgg import WeightsLike
from ..nets import Layer, Network
from ..preprocess import RANGES, TORCHVISION, Preprocess, Range, limits

PART_BYTES = {"cpu": 1 << 24}  # of the largest feature map of one part
PART_BYTES_ELSEWHERE = 1 << 28
LEAST_ROWS = 16  # of a strip
# On a GPU. Of a largest map smaller than this, handing over takes longer than computing, so image and
# reference go together; of maps larger than that, passes over them count, so ReLUs go with convolutions.
TOGETHER_BYTES, FUSED_BYTES = 1 << 26, 1 << 25
AGAIN_BYTES = 1 << 25  # feature maps of one image larger than this are computed again, not kept

Span = tuple[float, float]  # black and white

# How far beyond its range an image may go, in widths of the range: what is optimised, or comes out of a
# network that still learns, overshoots by more than a picture does.
OVERSHOOT_LEARNING = 8.0

Read = Callable[..., Tensor]  # of a layer's name, the image's features, and the reference's
Strips = Literal["rows", "sum"] | None
Calls = list[Callable[[Tensor], Tensor]]
Stage = tuple[Layer, ...]  # of the table, from one pool to the next, that one included


@dataclass(frozen=True, eq=False)
class Reference:
    """What a loss remembers of a reference, to be given in its place as often as one likes.

    values: by layer. size: (height, width) of the images.
    """

    values: Mapping[str, Tensor]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


class Scaling(nn.Module):
    """The normalisation before a network, of images from -1 to 1: lpips' layer of that name."""

    shift: Tensor
    scale: Tensor

    def __init__(self, record: Preprocess) -> None:
        super().__init__()
        # On the scale of 0 to 1 that pictures have, whatever range the weights were trained on.
        low, high = record.range
        exact: Any = {"dtype": torch.float64, "device": "cpu"}  # a Mac's GPU has no such numbers
        mean = (torch.tensor(record.mean, **exact) - low) / (high - low)
        std = torch.tensor(record.std, **exact) / (high - low)
        self.flip = record.channel_order == "BGR"
        if self.flip:
            mean, std = mean.flip(0), std.flip(0)
        self.register_buffer("shift", constant(2 * mean - 1)[None, :, None, None])
        self.register_buffer("scale", constant(2 * std)[None, :, None, None])

    def forward(self, x: Tensor, black: float = -1.0, white: float = 1.0) -> Tensor:
        half, middle = (white - black) / 2, (white + black) / 2
        x = x.to(torch.promote_types(x.dtype, self.shift.dtype))
        shift, scale = self.shift, self.scale
        if (half, middle) != (1, 0):  # else they are as they are: a GPU has four launches less
            shift, scale = shift * half + middle, scale * half
        x = (x - shift) / scale
        return x.flip(1) if self.flip else x

    def undone(self, x: Tensor) -> Tensor:
        """The image from 0 to 1 that was normalised."""
        x = x.flip(1) if self.flip else x
        return x * (self.scale / 2) + (self.shift + 1) / 2


class Looking(nn.Module):
    """A loss that looks through the convolutions of a network, frozen, up to the last of its layers.

    They are its children as lpips has them: `scaling_layer`, which normalises, and `net`, with a slice for
    each layer that is read. They stay frozen and in evaluation mode whatever holds the loss.

    layers: paper names. model: weights as for `verydeep.models.backbone`. network, pool: of them.
    range: of float images. checkpointing: True computes every stage again in the backward pass, False
    none, None those whose feature maps are large. check: refuse images that contradict the range.
    """

    eval_mode = True
    remembered: tuple[str, ...] = ()  # by a reference, beside the layers
    # a number for each image, and so for none none; a mean of none would be no number
    of_each = False

    def __init__(
        self,
        layers: Sequence[str],
        *,
        model: WeightsLike | None = "builtin",
        network: str = "vgg16",
        pool: str | None = None,
        range: Range = "0..1",
        checkpointing: bool | None = None,
        check: bool = True,
        **unknown: object,
    ) -> None:
        super().__init__()
        for name in unknown:
            kind = type(self).__name__
            raise ArgumentError(f"{kind}.__init__() got an unexpected keyword argument {name!r}")
        limits(range)
        with torch.inference_mode(False):  # what is made in it can never be differentiated through
            body = backbone(network, layers, model, pool=pool)
            body.requires_grad_(False).to(memory_format=torch.channels_last)
        self.layers, self.channels, self.table = body.taps, body.channels, body.network
        self.range, self.checkpointing, self.check = range, checkpointing, check
        self._looked: set[str] = set()  # the arguments whose values were looked at
        record = body.record.preprocess if body.record else TORCHVISION
        if len(record.mean) != self.table.in_channels:
            raise NetworkError(
                f"{network} takes images of {self.table.in_channels} channels, and its pre-processing "
                f"is for {len(record.mean)}; expected weights for pictures"
            )
        self.scaling_layer = Scaling(record)
        self._stages = tuple(_stages(self.table))
        # among the children of the trunk: a convolution has its batch norm with it
        stops = {name: place + 1 for name, place in positions(self.table.trunk).items()}
        self._places = dict(
            zip(stops, map(slice, [0, *stops.values()], stops.values()), strict=True)
        )
        ends = sorted(stops[layer] for layer in self.layers)
        children = list(body.features.named_children())
        self.net = nn.ModuleDict(
            {
                f"slice{number}": nn.Sequential(OrderedDict(children[start:end]))
                for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1)
            }
        )
        self.eval()

    def extra_repr(self) -> str:
        return f"{self.table.name}: {', '.join(self.layers)}; range={self.range!r}"

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.eval_mode)

    @property
    def _weight(self) -> Tensor:
        """Of the first convolution: all are on its device and of its type."""
        convolution: Any = self.net["slice1"][0]  # type: ignore[index]
        return cast(Tensor, convolution.weight)

    def _normalised(self, image: Tensor, black: float, white: float) -> Tensor:
        """What the network takes of an image whose black and white are these.

        In the network's own type; in float64 where either is.
        """
        x: Tensor = self.scaling_layer(image, black, white)
        dtype = self._weight.dtype
        if dtype == torch.float32:
            dtype = torch.promote_types(image.dtype, dtype)
        x = x.to(dtype)
        # vmap gives tensors an axis of its own, and they cannot be laid out so
        return x if in_torch_func() else x.contiguous(memory_format=torch.channels_last)

    def look(
        self, x: Tensor, y: Tensor | Mapping[str, Tensor] | None, read: Read, strips: Strips = None
    ) -> list[Tensor]:
        """What `read` makes of each layer, in order: of its features a tensor (n, ...).

        x: normalised images. y: their references, as many, normalised; or features by layer, of as many
        or of one; or None, and then `read` is given none. strips: how the readings of strips, one below
        the other, become that of the whole: "rows" are joined along the second-last axis, a "sum" is added
        up; None: only the whole can be read.
        """
        images = [x, y] if isinstance(y, Tensor) else [x]
        known = y if isinstance(y, Mapping) else {}
        # A compiler finds its own parts; the l2 pool reads beyond the edges of a strip.
        if strips is None or self.table.pool == "l2" or transformed():
            return self._part(images, known, read, strips, 1 << 62)
        largest = _size(self._stages[0], x)
        small = x.device.type == "cuda" and largest <= TOGETHER_BYTES
        if small and isinstance(y, Tensor) and self._unwatched():
            return self._part([torch.cat([x, y])], {}, _read_apart(read, y), strips, 1 << 62)
        part_bytes = PART_BYTES.get(x.device.type, PART_BYTES_ELSEWHERE)
        part = max(1, part_bytes // max(1, _size(self._stages[0], x[:1])))
        parts = []
        for start in range(0, max(1, len(x)), part):
            some = slice(start, start + part)
            # features of one image are everybody's
            features = {tap: f[some] if len(f) > 1 else f for tap, f in known.items()}
            parts.append(self._part([f[some] for f in images], features, read, strips, part_bytes))
        return [_joined(values, 0) for values in zip(*parts, strict=True)]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The layers' values for normalised images, without a graph."""
        with torch.inference_mode(False), torch.no_grad():  # a graph may be made around them
            values = self.look(x, None, lambda _layer, f: f, "rows")
        return dict(zip(self.layers, values, strict=True))

    def _part(
        self, images: list[Tensor], known: Mapping[str, Tensor], read: Read, strips: Strips,
        part_bytes: int,
    ) -> list[Tensor]:  # fmt: skip
        """What `read` makes of these few images, in strips where a feature map would be larger."""
        values: dict[str, Tensor] = {}
        for stage in self._stages:
            size, height = _size(stage, images[0]), images[0].shape[2]
            again = self.checkpointing
            if again is None:
                again = size > AGAIN_BYTES * len(images[0])
            rows = height
            if size > part_bytes:
                rows = max(LEAST_ROWS, part_bytes * height // size // 2 * 2)
            # one row alone would leave the pool nothing
            starts = [start for start in range(0, height, rows) if height - start > 1] or [0]
            pieces = [
                self._strip(stage, images, known, read, start, end, again=again)
                for start, end in zip(starts, [*starts[1:], height], strict=True)
            ]
            columns = list(zip(*pieces, strict=True))
            here = [layer.name for layer in stage if layer.name in self.layers]
            for layer, column in zip(here, columns[len(images) :], strict=True):
                values[layer] = (
                    _joined(column, 2) if strips == "rows" else sum(column[1:], column[0])
                )
            images = [_joined(column, 2) for column in columns[: len(images)]]
        return [values[layer] for layer in self.layers]

    def _strip(
        self, stage: Stage, images: list[Tensor], known: Mapping[str, Tensor], read: Read, start: int,
        end: int, *, again: bool,
    ) -> list[Tensor]:  # fmt: skip
        """Rows start to end: the stage's output for the images, then the readings."""
        height = images[0].shape[2]
        # what one output sees above and below its own row, before the pool
        reach = sum(layer.padding for layer in stage if layer.kind == "conv")
        top = min(start, reach)
        around = slice(start - top, end + min(height - end, reach))
        own = slice(top, top + end - start)
        steps = self._steps(stage, images[0])

        def cut(f: Tensor, rows: slice) -> Tensor:
            return f if end - start == height else f[:, :, rows]

        def run(*images: Tensor) -> list[Tensor]:
            readings: list[Tensor] = []
            inside = own
            for layer, calls in steps:
                if layer.kind == "pool":
                    images, inside = tuple(cut(f, own) for f in images), slice(None)
                for call in calls:
                    images = tuple(call(f) for f in images)
                if layer.name in self.layers:
                    seen = [cut(f, inside) for f in images]
                    if known:
                        rows = slice(start // layer.stride, end // layer.stride)
                        seen.append(cut(known[layer.name], rows))
                    readings.append(read(layer.name, *seen))
            return [*(cut(f, inside) for f in images), *readings]

        images = [cut(f, around) for f in images]
        if not (again and torch.is_grad_enabled() and not transformed()):
            return run(*images)
        if not any(f.requires_grad for f in images):
            return run(*images)
        done: list[Tensor] = checkpoint(run, *images, use_reentrant=False, preserve_rng_state=False)
        return done

    def _unwatched(self) -> bool:
        """Whether nothing in the trunk learns, counts its batches, or is looked at."""
        learns = any(p.requires_grad for p in self.net.parameters())
        counts = any(module.training for module in self.net.modules())
        return not (learns or counts or looked_at(self.net))

    def _steps(self, stage: Stage, x: Tensor) -> list[tuple[Layer, Calls]]:
        """The layers of a stage, each with what computes it from the one before."""
        # asked for anew, since they are others in a replica of this loss
        modules = [module for part in self.net.children() for module in part.children()]
        own = [modules[self._places[layer.name]] for layer in stage]
        calls: list[Calls] = [[partial(_run, module) for module in some] for some in own]
        for at in range(len(stage) - 1):
            if stage[at].name not in self.layers and _joined_up([*own[at], *own[at + 1]], x):
                calls[at], calls[at + 1] = [], [partial(_rectified, own[at][0])]
        return list(zip(stage, calls, strict=True))

    def _seen(self, image: object, what: str, range: Range = None) -> tuple[Tensor, Span]:
        """The image as floats, with its black and white; ImageError where it cannot be used.

        image: (n, channels, h, w), or (channels, h, w) for one; one channel stands for all. Floats in that
        range, or uint8, which is 0..255 whatever `range`. what: for the message.
        A contradiction to the range is refused, and what only looks like another range is warned of. The
        range is said, never guessed: LPIPS takes -1 to 1, nearly everything else 0 to 1, and published work
        was computed on the wrong one (nerfstudio#1424, pixelsplat#19).
        """
        if not isinstance(image, Tensor):
            raise ImageError(f"{what} is a {type(image).__name__}; expected a tensor (n, c, h, w)")
        shape, channels = tuple(image.shape), self.table.in_channels
        smallest = self.table.minimum_size
        if image.ndim == 3:
            image = image[None]
        none = len(image) == 0 and not self.of_each
        if image.ndim != 4 or image.shape[1] not in (1, channels) or none:
            raise ImageError(
                f"{what} has shape {shape}; expected (n, {channels}, height, width), one image of these, "
                "or one channel for all"
            )
        if min(image.shape[2:]) < smallest:
            raise ImageError(
                f"{what} is {shape[-2]}x{shape[-1]} pixels, too small for the layers that are read: "
                f"expected at least {smallest}x{smallest}"
            )
        if image.device != self._weight.device:
            advice = f"move one of them, as in loss.to({str(image.device)!r})"
            if self._weight.is_meta:
                advice = "nothing can be moved from there; make the loss anew"
            raise ImageError(
                f"{what} is on {image.device} and the loss on {self._weight.device}; {advice}"
            )
        if image.dtype == torch.uint8:
            return image.float(), RANGES["0..255"]
        if not image.is_floating_point():
            raise ImageError(f"{what} is of {image.dtype}; expected floats, or uint8")
        # On other devices than the processor a look at the values waits for all work before it, so
        # there it is the first call's alone: the range is a property of the program, not of the batch.
        again = image.device.type != "cpu" and what in self._looked
        if self.check and image.numel() and not (image.is_meta or again or transformed()):
            _look(image, what, range or self.range)
            self._looked.add(what)
        return image, limits(range or self.range)

    def _pair(
        self, image: object, target: object, names: tuple[str, str], range: Range = None
    ) -> tuple[Tensor, Tensor | Mapping[str, Tensor]]:
        """Both normalised, in the finer type of the two; the target's features in its place where it is
        one for many, or known.
        """
        x, black_white = self._seen(image, names[0], range)
        if isinstance(target, Reference):
            fits(target, (*self.remembered, *self.layers))
            if target.size != tuple(x.shape[2:]) or len(target) not in (1, len(x)):
                height, width = target.size
                raise ImageError(
                    f"the reference was remembered of {len(target)} images of {height}x{width}, and there "
                    f"are {len(x)} of {x.shape[2]}x{x.shape[3]}; expected one or as many, of the same size"
                )
            x = self._normalised(x, *black_white)
            values = {tap: value.to(x.device, x.dtype) for tap, value in target.values.items()}
            return x, values
        y, other = self._seen(target, names[1], range)
        if x.shape[2:] != y.shape[2:] or (len(x) != len(y) and 1 not in (len(x), len(y))):
            raise ImageError(
                f"{names[0]} has shape {tuple(x.shape)} and {names[1]} {tuple(y.shape)}; expected the "
                "same, or one image against several"
            )
        dtype = torch.promote_types(x.dtype, y.dtype)
        x = self._normalised(x.to(dtype), *black_white)
        y = self._normalised(y.to(dtype), *other)
        if len(x) == 1 != len(y):
            x = x.expand(len(y), -1, -1, -1)
        elif len(y) == 1 != len(x):
            if not (y.requires_grad or self._weight.requires_grad):
                return x, self.features(y)
            y = y.expand(len(x), -1, -1, -1)
        return x, y

    def remember(self, target: Tensor) -> Reference:
        """The features of `target`, to be given in its place: computed once, without a graph."""
        return self._remembered(target)

    def _remembered(self, target: Tensor, range: Range = None) -> Reference:
        """The features of `target`, which may be one image for all."""
        y, black_white = self._seen(target, "target", range)
        values = self.features(self._normalised(y.detach(), *black_white))
        return Reference(values, (y.shape[2], y.shape[3]))


def wide(f: Tensor) -> Tensor:
    """The features in float32 at least."""
    return f.float() if f.dtype in (torch.float16, torch.bfloat16) else f


def precise(f: Tensor) -> AbstractContextManager[None]:
    """What is computed in it keeps its type, whatever autocast is on around it."""
    return (
        nullcontext() if f.is_meta else torch.autocast(f.device.type, enabled=False)
    )  # has no meta


def constant(values: Tensor) -> Tensor:
    """A copy in float32 on torch's default device, which may stand in a graph whatever made it."""
    with torch.inference_mode(False):
        return values.detach().to(torch.get_default_device(), torch.float32, copy=True)


def fits(reference: Reference, layers: Sequence[str]) -> None:
    """ImageError where what was remembered is of other layers."""
    if set(reference.values) != set(layers):
        raise ImageError(
            f"the reference was remembered by another loss: it has {', '.join(reference.values)}; "
            f"expected {', '.join(layers)}"
        )


def _stages(table: Network) -> Iterator[Stage]:
    stage: list[Layer] = []
    for layer in table.trunk:
        stage.append(layer)
        if layer.kind == "pool" or layer is table.trunk[-1]:
            yield tuple(stage)
            stage = []


def _size(stage: Stage, x: Tensor) -> int:
    """Bytes of a feature map of this stage, for its input x."""
    return x[:, :1].numel() * stage[0].outputs * x.element_size()


def _read_apart(read: Read, y: Tensor) -> Read:
    """The same of features of images and of their references, y, in one tensor."""
    learns = y.requires_grad

    def both(layer: str, f: Tensor) -> Tensor:
        f0, f1 = f.chunk(2)
        return read(layer, f0, f1 if learns else f1.detach())

    return both


def _joined(values: tuple[Tensor, ...], axis: int) -> Tensor:
    return values[0] if len(values) == 1 else torch.cat(values, axis)


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """Of a layer; where x is finer than frozen weights, of a copy in its type: nothing is moved."""
    if isinstance(module, L2Pool2d) and x.dtype in (torch.float16, torch.bfloat16):
        with precise(x):  # its squares overflow in fewer bits
            return cast(Tensor, module(x.float())).to(x.dtype)
    weight = getattr(module, "weight", x)
    if x.dtype == torch.float64 != weight.dtype and not weight.requires_grad:
        module = copy.deepcopy(module).double()
    return cast(Tensor, module(x))


def _joined_up(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether these are a frozen convolution and its ReLU that cuDNN computes in one pass."""
    cudnn = torch.backends.cudnn
    if x.device.type != "cuda" or torch.version.hip or not cudnn.enabled:
        return False
    if [type(module) for module in modules] != [nn.Conv2d, nn.ReLU]:
        return False
    convolution = cast(nn.Conv2d, modules[0])
    numbers = x[:, :1].numel() * len(convolution.weight)
    if numbers * x.element_size() <= FUSED_BYTES or numbers >= MOST_NUMBERS:
        return False
    # no deterministic one is asked for in such a call
    if repeatable() or transformed():
        return False
    plain = x.dtype == convolution.weight.dtype and convolution.padding_mode == "zeros"
    learns = any(p.requires_grad for p in convolution.parameters())
    autocast = torch.is_autocast_enabled(x.device.type)
    return plain and not (learns or autocast or looked_at(*modules))


def _rectified(convolution: nn.Module, x: Tensor) -> Tensor:
    done: Tensor = _Rectified.apply(
        x, convolution.weight, convolution.bias, convolution.stride, convolution.padding
    )
    return done


class _Rectified(torch.autograd.Function):
    """A frozen convolution and its ReLU: a GPU goes once through what comes of them, not four times."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        if x.device.type == "cuda":
            found = in_one_pass(x, weight, bias, stride, padding, 1)
            if found is not None:
                return cast(Tensor, found)
        return F.conv2d(x, weight, bias, stride, padding).relu_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, output = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        slope, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
            (True, False, False),
        )  # fmt: skip
        return slope, None, None, None, None


def in_torch_func() -> bool:
    """Whether one of torch.func's transforms looks on, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether anything looks on that knows torch's plain operations alone, or to which values are unknown.

    A compiler, a tracer such as that of ONNX, a mode, one of torch.func's transforms, forward-mode AD.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call,attr-defined]
        return True
    modes = torch._C._len_torch_dispatch_stack()
    return bool(modes or in_torch_func() or torch.autograd.forward_ad._current_level >= 0)


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
    warn_if_suspicious(what, least, most, range)
