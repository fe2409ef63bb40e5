"""Choose what 8 bits stand for, of values and of weights, by what rounding them does on real photos.

Where a value's range ends is a trade: beyond its end numbers are cut off, below it they are rounded more
coarsely the further away the end is. How large a value gets on the photos is counted first, which leaves a
few candidates (`Tally`). For each of them the layers that follow are computed once more on the rounded
value, inside one graph (`probed`), and the end that changes their output least is taken.

Of weights, each output channel has its own step, chosen by search. Then they are rounded one input at a
time, and what a rounding does to the answers is made up for by the weights that are not yet rounded: GPTQ
(Frantar et al. 2022, arXiv:2210.17323), whose matrix is the inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import onnx

from ..graphs.int8 import rounding
from ..graphs.writer import Graph, Writer
from ..modelfile import Activation

Array = np.ndarray

LEVELS = 255  # steps from 0 to the largest number that 8 bits hold

_SHIFT = 15  # of 31 bits: 8 of the exponent and 8 of the fraction stay
_BINS = 1 << (31 - _SHIFT)

_FACTORS = (2**-0.25, 1, 2**0.25, 2**0.5)


class Tally:
    """Counts of one value's numbers, by how large they are, over any number of images.

    The bins are the leading bits of a float32: its exponent and first 8 bits of fraction. So they are as
    fine for small numbers as for large ones, 1/256 to 1/512 of the number, nothing needs to be known of
    the range beforehand, and counting takes one pass.

    channels: sums over all images and positions for each channel, float64: `squares`, and how many
    numbers that were, `positions`.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.squares: Array = np.zeros(())
        self.positions = 0
        self.signed = False  # whether numbers below 0 came, as before a ReLU

    @property
    def levels(self) -> int:
        """Steps from 0 to the largest number that 8 bits hold: half of them where some are negative."""
        return LEVELS // 2 if self.signed else LEVELS

    def activation(self, end: float) -> Activation:
        """The rounding of a range that ends there."""
        return Activation(end / self.levels, LEVELS - self.levels if self.signed else 0)

    def add(self, values: Array) -> None:
        """values: (batch, channels, height, width) or (batch, features) float32."""
        bits = np.abs(np.ascontiguousarray(values, np.float32)).view(np.uint32) >> _SHIFT
        self.signed |= bool((values < 0).any())
        self.counts += np.bincount(bits.reshape(-1), minlength=_BINS)
        axes = (0, *range(2, values.ndim))
        self.squares = self.squares + np.square(values, dtype=np.float64).sum(axes)
        self.positions += values.size // values.shape[1]

    @property
    def largest(self) -> float:
        """The largest number, at most half a bin off; 0 where all are."""
        return float(_MIDDLES[np.flatnonzero(self.counts)[-1]]) if self.counts.any() else 0.0

    def squared_error(self, top: float) -> float:
        """Mean squared error of rounding to 8 bits, where `top` is the largest number that they hold."""
        step = top / self.levels
        used = np.flatnonzero(self.counts)
        middle = _MIDDLES[used]
        error = np.minimum(np.rint(middle / step), self.levels) * step - middle
        return float((self.counts[used] * error * error).sum() / self.counts.sum())

    def ends(self) -> tuple[float, ...]:
        """Where the range of 8 bits may well end: about where the squared error is least, or at the end.

        Cut-off numbers are the largest ones, and their errors go together, so that a later layer may want
        the end further out than the squared error does.
        """
        largest = self.largest or 1.0
        grid = largest * 2.0 ** -np.arange(0, 3, 1 / 8)
        best = min(grid, key=self.squared_error)
        return tuple(
            sorted({float(min(best * factor, largest)) for factor in _FACTORS} | {largest})
        )


# the number in the middle of each bin; bin 0 is 0
_bits = (np.arange(_BINS, dtype=np.uint32) << _SHIFT) + (1 << (_SHIFT - 1))
_bits[0] = 0
_bits[0xFF << 8 :] = 0xFF << 23  # infinity, and what is no number
_MIDDLES = _bits.view(np.float32).astype(np.float64)


def error_names(place: str, candidates: Sequence[Activation]) -> list[str]:
    """The outputs that `probed` adds for a place."""
    return [f"{place}_error_{number}" for number in range(len(candidates))]


def probed(graph: Graph, place: str, until: str, candidates: Sequence[Activation]) -> Graph:
    """The float graph with the squared change of `until` for each way of rounding `place` as its outputs.

    The outputs are those of `error_names`, (batch,) float32 each: the sum over one image of the squared
    difference between what `until` is with `place` rounded and what it is without.
    """
    writer = Writer(graph)
    for node in graph.model.graph.node:
        writer.copy(node)
    nodes = _between(graph.model.graph.node, place, until)
    values = [place, until, *(node.output[0] for node in nodes)]
    for number, (how, output) in enumerate(
        zip(candidates, error_names(place, candidates), strict=True)
    ):
        names = {value: f"{value}@{place}@{number}" for value in values}
        rounding(writer, place, how, f"{names[place]}_q", names[place])
        for node in nodes:
            writer.copy(node, names)
        change = writer.node("Sub", [names[until], until], f"{output}_change")
        flat = writer.node("Flatten", [change], f"{output}_flat", axis=1)
        writer.node("ReduceSumSquare", [flat], output, axes=[1], keepdims=0)
        writer.output(output, ["batch"])
    return writer.graph()


def part_of(graph: Graph, start: str, channels: int, end: str) -> Graph:
    """A graph's part from one of its maps to another; its pixels are the first one's, channels last."""
    writer = Writer(graph)
    writer.input("pixels", onnx.TensorProto.FLOAT, ["batch", "height", "width", channels])
    writer.node("Transpose", ["pixels"], start, perm=[0, 3, 1, 2])
    for node in _between(graph.model.graph.node, start, end):
        writer.copy(node)
    return writer.graph()


def _between(nodes: Sequence[onnx.NodeProto], start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes on the ways from one value to another, in order."""
    reached, after = {start}, []
    for node in nodes:
        if reached & set(node.input):
            after.append(node)
            reached.update(node.output)
    needed, between = {end}, []
    for node in reversed(after):
        if needed & set(node.output):
            between.append(node)
            needed.update(node.input)
    return between[::-1]


LIMIT = 127  # the largest 8-bit weight, either sign

_FRACTIONS = np.linspace(1, 0.5, 11)  # of the largest weight, tried as what LIMIT stands for
_BLOCK = 128  # columns whose corrections are passed on together
DAMPING = 0.01  # share of the mean second moment that is added to each, as GPTQ's authors do


def steps(weight: Array, importance: Array) -> Array:
    """The step of each output channel that leaves the least squared error, (outputs,) float32 above 0.

    weight: (outputs, inputs). importance: of the error of each input's weight, (inputs,).
    """
    largest: Array = np.abs(weight).max(axis=1)
    best = np.full(len(weight), np.inf)
    chosen = largest / LIMIT
    for fraction in _FRACTIONS:
        step = np.maximum(largest * fraction / LIMIT, np.finfo(np.float32).tiny)[:, None]
        error = np.clip(np.rint(weight / step), -LIMIT, LIMIT) * step - weight
        cost = np.square(error) @ importance
        better = cost < best
        best[better], chosen[better] = cost[better], step[better, 0]
    chosen[largest == 0] = 1  # weights of 0 are 0 on any scale
    return np.asarray(chosen, np.float32)


def round_weights(weight: Array, step: Array, moments: Array | None = None) -> Array:
    """The weights as multiples of their channel's step, int8, in the shape of `weight`.

    weight: (outputs, inputs). step: (outputs,). moments: the inputs' second moments, (inputs, inputs),
    the mean of x x' over many inputs x; without them each weight is rounded for itself.
    """
    step = np.asarray(step, np.float64)
    if moments is None:
        nearest: Array = np.clip(np.rint(weight / step[:, None]), -LIMIT, LIMIT)
        return nearest.astype(np.int8)
    # the inputs that matter most come first
    order = np.argsort(-np.diagonal(moments), kind="stable")
    q = np.zeros(weight.shape, np.int8)

    def nearest_multiples(column: int, values: Array) -> Array:
        q[:, column] = np.clip(np.rint(values / step), -LIMIT, LIMIT)
        return np.asarray(q[:, column] * step)

    compensate(weight, order, factor(moments, order), nearest_multiples)
    return q


def compensate(
    weight: Array, order: Array, upper: Array, decide: Callable[[int, Array], Array]
) -> None:
    """Round one column after another; what that does to the answers the columns still to come make up for.

    weight: (outputs, inputs). order: of the inputs. upper: their `factor`. decide: of an input's number and
    its values as they stand by then, (outputs,), gives what they become.
    """
    rest = np.asarray(weight, np.float64)[:, order]
    for start in range(0, rest.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rest.shape[1])
        errors = np.zeros((len(rest), stop - start))
        for column in range(start, stop):
            became = decide(int(order[column]), rest[:, column])
            error = (rest[:, column] - became) / upper[column, column]
            rest[:, column:stop] -= np.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]


def factor(moments: Array, order: Array) -> Array:
    """The upper Cholesky factor of the damped moments' inverse, inputs in that order.

    A change e of the input that comes k-th costs (e / factor[k, k])^2, once those after it have made up for
    what they can.
    """
    moments = moments[np.ix_(order, order)]
    damped = np.asarray(moments, np.float64).copy()
    mean = np.diagonal(damped).mean()
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


class Moments:
    """Means of two kinds of numbers that come together, and of their products.

    Products are taken in float32, which is quick, of what is left once the first batch's means are taken
    off: where numbers vary little beside their means, those of the numbers themselves would lose it. They
    are summed in float64. beside: one whose first batch's means are taken off here, too, so that both can
    be added.
    """

    def __init__(self, beside: Moments | None = None) -> None:
        self.count = 0
        self._about: list[Array] = beside._about if beside else []
        self._sums: list[Array] = []
        self._products: Array = np.zeros(())

    def __add__(self, other: Moments) -> Moments:
        both = Moments(self)
        both.count = self.count + other.count
        both._sums = [one + two for one, two in zip(self._sums, other._sums, strict=True)]
        both._products = self._products + other._products
        return both

    def add(self, *pair: Array) -> None:
        """One or two of (samples, numbers) float32; one is paired with itself."""
        if not self.count:
            self._about = self._about or [one.mean(0) for one in pair]
            self._sums = [np.zeros(len(mean)) for mean in self._about]
            self._products = np.zeros((len(self._about[0]), len(self._about[-1])))
        left = [one - mean for one, mean in zip(pair, self._about, strict=True)]
        self._products += left[0].T @ left[-1]
        for total, one in zip(self._sums, left, strict=True):
            total += one.sum(0, dtype=np.float64)
        self.count += len(pair[0])

    @property
    def means(self) -> list[Array]:
        """Of each, (numbers,) float64."""
        pairs = zip(self._about, self._sums, strict=True)
        return [mean + total / self.count for mean, total in pairs]

    @property
    def covariance(self) -> Array:
        """The mean of x y' about the means, (numbers, numbers) float64."""
        off = [total / self.count for total in self._sums]
        return np.asarray(self._products / self.count - np.outer(off[0], off[-1]))


def second_moments(maps: Iterable[Array], kernel: int, padding: int, *, patches: int) -> Array:
    """The mean of x x' over `patches_of` maps, (inputs, inputs) float64."""
    moments = Moments()
    for flat in patches_of(maps, kernel, padding, patches=patches):
        moments.add(flat)
    (mean,) = moments.means
    return moments.covariance + np.outer(mean, mean)


def patches_of(
    maps: Iterable[Array], kernel: int, padding: int, *, patches: int
) -> Iterator[Array]:
    """Patches x at random places, (patches, inputs) float32 for each batch; the same places each time.

    maps: batches of (batch, channels, height, width) float32, padded with 0 as the convolution does. Each
    patch is flattened as the convolution's weight is: (channels * kernel * kernel). patches: how many are
    taken of each image, all where it has fewer.
    """
    draw = np.random.default_rng(0)
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    for batch in maps:
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(batch, sides), (kernel, kernel), (2, 3)
        )  # (batch, channels, rows, columns, kernel, kernel), a view
        rows, columns = windows.shape[2:4]
        picked = []
        for image in windows:
            places = draw.choice(rows * columns, min(patches, rows * columns), replace=False)
            # (channels, places, kernel, kernel)
            windows_there = image[:, places // columns, places % columns]
            picked.append(windows_there.transpose(1, 0, 2, 3).reshape(len(places), -1))
        yield np.concatenate(picked)
