"""Weights as whole multiples of steps, in few bytes: a range coder under a model of what comes next.

A weight's matrix is (rows, channels, cells): an output, an input channel, and a place in the kernel (of
fc6: in the 7x7 map). Its step is one number times 2^(a/4) of its row and 2^(b/4) of its column, a and b
whole numbers. The multiples are coded in groups, some rows at one cell, so that all that foretells a group
is known before it, and it is decoded by whole arrays. What foretells a number:

- its mean: a linear mixture of the cells around it in the same kernel that came before, since kernels are
  smooth;
- its spread about that: that of its column in the rows before, of its row in the cells before, and the
  size of the cells around it.

Both in a few grades make its context. Each context counts what it has seen, from the two-sided geometric
distribution on, and probabilities are these counts. No number depends on the machine: sums are of whole
numbers, floats go through single additions, products, quotients and square roots (IEEE 754), and
probabilities are multiples of 2^-24. docs/format.md has it all for those who write another decoder.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError

Array = NDArray[Any]

MOST = 1024  # weights a byte, at most, so that a small file cannot claim all of the memory
LARGEST = 32767  # of a multiple's absolute value
EXPONENTS = 127  # of a row's or column's exponent, likewise
_ROWS = 64  # of a matrix that are made float32 in one go, while they are near the processor
_ALPHABET = 47  # a difference from the mean at least so large is coded in two parts

_VERSION, _PARTED = 1, 2
_PART = (
    1 << 25
)  # weights that one stream has at most; more are cut into parts, which decode side by side
_MOST_PARTS, _VERSION_AT = 64, 16
_HEAD = struct.Struct(
    "<16sBHBfI"
)  # digest, version, cells, cells a line, step, words of the range coder
_CUT = struct.Struct("<16sBB")  # digest, version, parts
_PLANE = struct.Struct("<Bf3B")  # alphabet, expected size, weights of the spread's three parts
_MIXTURE = 32  # what stands for 1 in a mixture's weights, int8
_PARTS = 64  # and in the spread's, uint8
_NEIGHBOURS = ((0, -1), (-1, -1), (-1, 0), (-1, 1))  # lines down, cells to the right
_BLOCKS = (16, 8, 4, 2, 1)  # a block of rows ends at these parts of all

# A float32's bits without the last 22 are its exponent and the first half of it: two grades an octave.
_HALF, _LOWEST, _GRADES = 22, (127 - 6) * 2, 24
_SIDES = 4  # grades of how far the mean lies from a whole number
_FEW = 8  # contexts, which are looked for one by one sooner than all are sorted
_PRIOR, _EVEN = (
    4,
    8,
)  # rows that a column's expected size counts for; what every row's sum begins with
_UNIT, _TRUST = 64, 64  # of a count; what the prior weighs, in counts
_SCALE = 1 << 24  # of probabilities

_STATE = (1 << 64) - 1  # of the range coder: 64 bits, and words of 32
_WORD = (1 << 32) - 1

_NONSENSE = "its head does not make sense"
_DAMAGED = "its checksum is not that of its numbers"


@dataclass(frozen=True)
class Coded:
    """A matrix of weights as `decode` gives it: weight = multiple * step * 2^(row/4) * 2^(column/4).

    multiples: int16, in the weight's shape. rows: (rows,), columns: (columns,) int16 exponents, a column
    for each of the weight's dimensions but the first, flattened.
    cells, width: how many columns one input channel has, and how many of them make a line.
    """

    multiples: Array
    step: float
    rows: Array
    columns: Array
    cells: int
    width: int

    @cached_property
    def weight(self) -> Array:
        """float32, in the shape of `multiples`."""
        weight = np.empty(self.multiples.shape, np.float32)
        self.fill(weight)
        return weight

    def fill(self, weight: Array) -> None:
        """Put the weight into a float32 array of the shape of `multiples`."""
        rows = (np.float32(self.step) * quarters(self.rows))[:, None]
        columns, multiples = quarters(self.columns)[None], self.multiples.reshape(len(rows), -1)
        flat = weight.reshape(multiples.shape)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            np.multiply(multiples[part], rows[part], out=flat[part])
            flat[part] *= columns

    def digest(self) -> bytes:
        """Of all that decides the weights."""
        hashed = hashlib.blake2b(struct.pack("<f", self.step), digest_size=16)
        for part in (self.rows, self.columns, self.multiples):
            hashed.update(np.ascontiguousarray(part, "<i2").data)
        return hashed.digest()


def quarters(exponents: Array) -> Array:
    """2^(exponent/4) as float32: one of four numbers, times a power of 2."""
    whole = exponents.astype(np.int32)
    return np.asarray(np.ldexp(_ROOTS[whole & 3], whole >> 2))


_ROOTS = np.array(
    [1.0, 1.1892071150027210667, 1.4142135623730950488, 1.6817928305074290861], np.float32
)


def grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Cells of an input channel, and cells a line, as the encoder chooses them for a weight's shape.

    Of an FC layer the columns of 7x7 cells (fc6), else eight neighbours, so that a row's spread is known
    from the first of them on.
    """
    if len(shape) == 4:
        return shape[2] * shape[3], shape[3]
    return next(
        (cells, width) for cells, width in ((49, 7), (8, 8), (1, 1)) if not shape[1] % cells
    )


# The plane: one matrix of whole numbers under its model


@dataclass(frozen=True)
class _Model:
    """What the encoder found to foretell a plane best.

    alphabet: differences from -alphabet to alphabet have symbols; 0 where all numbers are 0.
    size: the expected one of a number whose column's exponent is 0.
    parts: of the spread, 64ths: the column's and row's, the neighbours', the mean's.
    mixture: (cells, 4), 32nds: of the neighbours, in the order of _NEIGHBOURS, 0 where there is none.
    """

    alphabet: int
    size: float
    parts: tuple[int, int, int]
    mixture: Array

    def pack(self) -> bytes:
        head = _PLANE.pack(self.alphabet, self.size, *self.parts)
        return head + (self.mixture.astype(np.int8).tobytes() if self.alphabet else b"")


def _neighbours(cells: int, width: int) -> list[list[tuple[int, int]]]:
    """For each cell those around it that came before: (number in _NEIGHBOURS, cell)."""
    found: list[list[tuple[int, int]]] = []
    for cell in range(cells):
        line, place = divmod(cell, width)
        found.append(
            [
                (number, (line + down) * width + place + right)
                for number, (down, right) in enumerate(_NEIGHBOURS)
                if line + down >= 0 and 0 <= place + right < width
            ]
        )
    return found


@dataclass(frozen=True)
class _Group:
    """Some rows at one cell: what is known of them before they are.

    mean: float32 (rows, channels); or one 0, (1, 1), where the cells around say nothing, as in most FC
    layers. spreads: the same, the parts of the spread before they are weighed.
    """

    block: slice
    cell: int
    mean: Array
    spreads: tuple[Array, Array, Array]

    def spread(self, parts: tuple[int, int, int]) -> Array:
        weights = [np.float32(part / _PARTS) for part in parts]
        own, around, mean = self.spreads
        return np.asarray(own * weights[0] + around * weights[1] + mean * weights[2])


def _groups(numbers: Array, exponents: Array, model: _Model, width: int) -> Iterator[_Group]:
    """The groups of a plane, in their order. `numbers` must hold each group's when the next is asked for.

    numbers: (cells, rows, channels) int16. exponents: (channels, cells) of the columns.
    """
    cells, rows, channels = numbers.shape
    around = _neighbours(cells, width)
    before = np.zeros((cells, channels), np.int64)  # sums of the rows of earlier blocks
    start = 0
    for part in _BLOCKS:
        stop = max(1, rows // part)
        if stop <= start:
            continue
        block = slice(start, stop)
        by_row = np.zeros(stop - start, np.int64)
        for cell in range(cells):
            mean: Array = np.zeros((1, 1), np.float32)
            sizes = mean
            for number, other in around[cell]:
                weight = model.mixture[cell, number]
                if not weight and not model.parts[1]:
                    continue  # nothing comes of it, as where an FC layer's columns have no order
                value = numbers[other, block] * quarters(exponents[:, other] - exponents[:, cell])
                if weight:
                    mean = mean + value * np.float32(weight / _MIXTURE)
                if model.parts[1]:
                    sizes = sizes + np.abs(value, out=value)
            sizes = sizes * np.float32(1 / max(1, len(around[cell])))
            mean = np.clip(mean, -LARGEST, LARGEST)
            expected = np.float32(model.size) * quarters(-exponents[:, cell])
            column = before[cell].astype(np.float32) + expected * np.float32(_PRIOR)
            column /= np.float32(start + _PRIOR)
            row = ((by_row + _EVEN) * len(by_row)).astype(np.float32)
            row /= np.float32(by_row.sum() + _EVEN * len(by_row))
            yield _Group(block, cell, mean, (row[:, None] * column, sizes, np.abs(mean)))
            off = np.abs(numbers[cell, block] - np.rint(mean).astype(np.int32))
            by_row += off.sum(1, dtype=np.int64)
            before[cell] += off.sum(0, dtype=np.int64)
        start = stop


def contexts(mean: Array, spread: Array) -> tuple[Array, Array, Array]:
    """The whole number next to the mean, which side of it the mean lies on (1 or -1), and the context."""
    middle = np.rint(mean)
    rest = mean - middle
    side = np.where(rest < 0, np.int8(-1), np.int8(1))
    far = np.minimum((np.abs(rest) * np.float32(2 * _SIDES)).astype(np.uint8), _SIDES - 1)
    grade = (np.ascontiguousarray(spread).view(np.int32) >> _HALF) - _LOWEST
    grade = np.clip(grade, 0, _GRADES - 1).astype(np.uint8)
    return middle.astype(np.int32), side, grade * np.uint8(_SIDES) + far


@cache
def _priors(alphabet: int) -> Array:
    """Counts to begin with, (contexts, symbols) int64: two-sided geometric distributions."""
    counts = np.zeros((_GRADES * _SIDES, 2 * alphabet + 1), np.int64)
    for grade in range(_GRADES):
        size = math.ldexp(5 / 4 if grade % 2 == 0 else 7 / 4, (grade + _LOWEST) // 2 - 127)
        ratio = (math.sqrt(1 + size * size) - 1) / size  # so the absolute value's mean is `size`
        powers = [1.0]
        for _ in range(alphabet + 1):
            powers.append(powers[-1] * ratio)
        for far in range(_SIDES):
            share = (2 * far + 1) / (4 * _SIDES)
            weights = [
                powers[abs(number)] * (1 - share) + powers[abs(number - 1)] * share
                for number in range(-alphabet, alphabet + 1)
            ]
            total = 0.0
            for weight in weights:
                total += weight
            counts[grade * _SIDES + far] = [
                1 + int(weight / total * (_UNIT * _TRUST)) for weight in weights
            ]
    return counts


class _Counts:
    """What each context has seen: (contexts, symbols), and the probabilities that it makes of it."""

    def __init__(self, priors: Array) -> None:
        self.seen = priors.copy()

    def shares(self, context: int) -> Array:
        """Probabilities in units of 2^-24, int64, without the one unit that every symbol has besides."""
        row = self.seen[context]
        free = _SCALE - len(row)
        shares = row * free // row.sum()
        shares[len(row) // 2] += free - shares.sum()
        return np.asarray(shares)

    def add(self, context: int, symbols: Array) -> None:
        self.seen[context] += np.bincount(symbols, minlength=self.seen.shape[1]) * _UNIT


def _places(context: Array) -> Iterator[tuple[int, Array]]:
    """Each context that is there, and where, in order."""
    counts = np.bincount(context)
    there = np.flatnonzero(counts).tolist()
    if len(there) <= _FEW:
        yield from ((number, np.flatnonzero(context == number)) for number in there)
    else:
        order, ends = np.argsort(context, kind="stable"), np.cumsum(counts).tolist()
        yield from (
            (number, order[ends[number] - counts[number] : ends[number]]) for number in there
        )


def _code(
    numbers: Array, exponents: Array, model: _Model, width: int, coder: _Coder
) -> _Counts | None:
    """Bring a plane through a coder: written from `numbers`, or read into them, which are zeros.

    Gives what was counted in the end.
    """
    alphabet = model.alphabet
    if not alphabet:
        return None
    counts = _Counts(_priors(alphabet))
    lengths = _Counts(np.full((1, 16), _UNIT, np.int64))
    for group in _groups(numbers, exponents, model, width):
        middle, side, context = contexts(group.mean, group.spread(model.parts))
        middle, side, context = middle.ravel(), side.ravel(), context.ravel()
        place = numbers[group.cell, group.block]
        known = None if coder.reads else (place.ravel() - middle) * side
        values = np.empty(len(context), np.int32)
        for number, where in _places(context):
            symbols = np.empty(len(where), np.int32)
            if known is not None:
                symbols[:] = np.clip(known[where], -alphabet, alphabet) + alphabet
            coder.symbols(symbols, counts.shares(number))
            counts.add(number, symbols)
            values[where] = symbols - alphabet
        beyond = np.flatnonzero(np.abs(values) == alphabet)
        if len(beyond):
            more = np.zeros(len(beyond), np.int32)
            if known is not None:
                more[:] = np.abs(known[beyond]) - alphabet + 1
            digits = np.frexp(more.astype(np.float64))[1].astype(np.int32) - 1
            coder.symbols(digits, lengths.shares(0))
            lengths.add(0, digits)
            for length in range(1, 16):
                where = np.flatnonzero(digits == length)
                rest = more[where] - (1 << length)
                coder.bits(rest, length)
                more[where] = rest + (1 << length)
            more[digits == 0] = 1
            values[beyond] = np.sign(values[beyond]) * (more + (alphabet - 1))
        if coder.reads:
            found = values * side + middle
            if np.abs(found).max(initial=0) > LARGEST:
                raise ValueError
            place[:] = found.reshape(place.shape)
    return counts


class _Coder:
    """One direction of the range coder, whole arrays at a time: `symbols` are written, or filled in."""

    reads = False

    def symbols(self, array: Array, shares: Array) -> None:
        raise NotImplementedError

    def bits(self, array: Array, length: int) -> None:
        raise NotImplementedError


class _Writer(_Coder):
    def __init__(self) -> None:
        from constriction import stream

        self._models = stream.model
        self._coder = stream.queue.RangeEncoder()

    def symbols(self, array: Array, shares: Array) -> None:
        self._coder.encode(array, self._models.Categorical(shares / _SCALE, perfect=False))

    def bits(self, array: Array, length: int) -> None:
        if len(array):
            self._coder.encode(array, self._models.Uniform(1 << length))

    def words(self) -> Array:
        return np.asarray(self._coder.get_compressed(), "<u4")


class _Plain(_Coder):
    """Whole arrays one symbol after another, in Python alone."""

    def symbols(self, array: Array, shares: Array) -> None:
        self._each(array, [0, *np.cumsum(shares + 1).tolist()])

    def bits(self, array: Array, length: int) -> None:
        self._each(array, range(0, _SCALE + 1, _SCALE >> length))

    def _each(self, array: Array, ends: Sequence[int]) -> None:
        """ends: where each symbol begins in 0 to 2^24, and the last one's end."""
        raise NotImplementedError


class PlainWriter(_Plain):
    """The same bytes in Python alone, where constriction has no wheel: about a second a million symbols."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._low, self._range = 0, _STATE

    def _each(self, array: Array, ends: Sequence[int]) -> None:
        low, width, words = self._low, self._range, self._words
        for symbol in array.tolist():
            unit = width >> 24
            low += unit * ends[symbol]
            width = unit * (ends[symbol + 1] - ends[symbol])
            if low > _STATE:
                low &= _STATE
                self._carry()
            if width < 1 << 32:
                words.append(low >> 32)
                low, width = low << 32 & _STATE, width << 32
        self._low, self._range = low, width

    def _carry(self) -> None:
        """Add one to what was written."""
        at = len(self._words) - 1
        while self._words[at] == _WORD:
            self._words[at] = 0
            at -= 1
        self._words[at] += 1

    def words(self) -> Array:
        """Ended as constriction does: by the fewest words after which any others may follow."""
        if self._range < _STATE:
            point = self._low + _WORD
            if point > _STATE:
                point &= _STATE
                self._carry()
            last = point >> 32
            self._words.append(last)
            if (self._low + self._range & _STATE) >> 32 == last:
                self._words.append(0)
        return np.array(self._words, "<u4")


class _Reader(_Coder):
    reads = True

    def __init__(self, words: Array) -> None:
        from constriction import stream

        self._models = stream.model
        self._coder = stream.queue.RangeDecoder(words)

    def symbols(self, array: Array, shares: Array) -> None:
        model = self._models.Categorical(shares / _SCALE, perfect=False)
        array[:] = self._coder.decode(model, len(array))

    def bits(self, array: Array, length: int) -> None:
        if len(array):
            array[:] = self._coder.decode(self._models.Uniform(1 << length), len(array))


class PlainReader(_Plain):
    """The same in Python alone, where constriction has no wheel: about a second a million symbols."""

    reads = True

    def __init__(self, words: Array) -> None:
        self._words = iter(words.tolist())
        self._low, self._range = 0, _STATE
        self._point = next(self._words, 0) << 32 | next(self._words, 0)

    def _each(self, array: Array, ends: Sequence[int]) -> None:
        low, width, point = self._low, self._range, self._point
        for place in range(len(array)):
            unit = width >> 24
            symbol = bisect_right(ends, (point - low & _STATE) // unit) - 1
            if symbol >= len(ends) - 1:
                raise ValueError
            low = low + unit * ends[symbol] & _STATE
            width = unit * (ends[symbol + 1] - ends[symbol])
            if width < 1 << 32:
                low, width = low << 32 & _STATE, width << 32
                point = (point << 32 | next(self._words, 0)) & _STATE
            array[place] = symbol
        self._low, self._range, self._point = low, width, point


def _writer() -> _Writer | PlainWriter:
    try:
        return _Writer()
    except ImportError:  # not here, or it cannot be loaded
        return PlainWriter()


def _reader(words: Array) -> _Coder:
    try:
        return _Reader(words)
    except ImportError:  # not here, or it cannot be loaded
        return PlainReader(words)


class _Measure(_Coder):
    """Writes nothing, and adds up what it would take."""

    def __init__(self) -> None:
        self.total = 0.0

    def symbols(self, array: Array, shares: Array) -> None:
        counts = np.bincount(array, minlength=len(shares))
        self.total -= float(counts @ np.log2((shares + 1) / _SCALE))

    def bits(self, array: Array, length: int) -> None:
        self.total += len(array) * length


# Encoding and decoding


def encode(coded: Coded) -> bytes:
    """The stream of a weight's matrix, which `decode` reads. The same input gives the same bytes."""
    parts = min(-(-coded.multiples.size // _PART), len(coded.rows), _MOST_PARTS)
    if parts > 1:
        streams = [_whole(part) for part in _cut(coded, parts)]
        lengths = np.array([len(stream) for stream in streams], "<u4")
        rest = lengths.tobytes() + b"".join(streams)
        return _CUT.pack(_sum(rest), _PARTED, parts) + rest
    return _whole(coded)


def _whole(coded: Coded) -> bytes:
    """The stream of a matrix that is not cut: a part of one may be a row larger than the others."""
    writer = _writer()
    planes = _planes(coded)
    heads = b""
    for numbers, exponents, width in planes:
        model = _fitted(numbers, exponents, width)
        heads += model.pack()
        _code(numbers, exponents, model, width, writer)
    words = writer.words()
    head = _HEAD.pack(coded.digest(), _VERSION, coded.cells, coded.width, coded.step, len(words))
    stream = head + heads + words.tobytes()
    return stream + bytes(max(0, -(-coded.multiples.size // MOST) - len(stream)))


def _sum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _ends(rows: int, parts: int) -> list[int]:
    """Where parts of rows begin, and the last one's end."""
    return [rows * part // parts for part in range(parts + 1)]


def _cut(coded: Coded, parts: int) -> Iterator[Coded]:
    for start, stop in pairwise(_ends(len(coded.rows), parts)):
        some = slice(start, stop)
        yield replace(coded, multiples=coded.multiples[some], rows=coded.rows[some])


def _planes(coded: Coded) -> list[tuple[Array, Array, int]]:
    """The three planes of a matrix: rows' exponents, columns', multiples, each (cells, rows, channels)."""
    rows, channels = len(coded.rows), len(coded.columns) // coded.cells
    columns = coded.columns.reshape(channels, coded.cells)
    flat = coded.multiples.reshape(rows, channels, coded.cells)
    none = np.zeros((channels, coded.cells), np.int16)
    return [
        (coded.rows.reshape(1, 1, rows), np.zeros((rows, 1), np.int16), 1),
        (np.ascontiguousarray(columns.T)[:, None], none, coded.width),
        (np.ascontiguousarray(flat.transpose(2, 0, 1)), columns, coded.width),
    ]


class Rate:
    """What a matrix's multiples take, and what others in their place would, under the model fitted to them.

    total: of all of them, in bits, to a few bytes what `encode` makes of them.
    """

    def __init__(self, coded: Coded) -> None:
        numbers, exponents, width = _planes(coded)[2]
        self._model = _fitted(numbers, exponents, width)
        self._near = _neighbours(coded.cells, width)
        self._scales = quarters(exponents)  # (channels, cells)
        measure = _Measure()
        counts = _code(numbers, exponents, self._model, width, measure)
        self.total = measure.total
        seen = np.ones((1, 1)) if counts is None else counts.seen
        self._bits = np.log2(seen.sum(1, keepdims=True) / seen)
        off = np.zeros(numbers.shape, np.float32)
        for group in _groups(numbers, exponents, self._model, width):
            off[group.cell, group.block] = np.abs(
                numbers[group.cell, group.block] - np.rint(group.mean)
            )
        self._columns = off.mean(1)  # (cells, channels)
        self._rows = off.mean((0, 2)) / max(float(off.mean()), 1e-9)

    def bits(self, channels: slice, cell: int, before: Array, numbers: Array) -> Array:
        """Of candidates, (candidates, rows, channels) whole numbers; the same shape.

        before: (rows, channels, cells) of the same channels, of which the cells before `cell` count.
        """
        alphabet = self._model.alphabet
        if not alphabet:  # nothing is known of anything but zeros
            return np.asarray(np.log2(1 + 2 * np.abs(numbers)))
        mean = np.zeros(numbers.shape[1:], np.float32)
        sizes = np.zeros_like(mean)
        for number, other in self._near[cell]:
            value = before[:, :, other] * (
                self._scales[channels, other] / self._scales[channels, cell]
            )
            mean += value * (self._model.mixture[cell, number] / _MIXTURE)
            sizes += np.abs(value) / len(self._near[cell])
        own = self._rows[:, None] * self._columns[cell, channels]
        parts = np.asarray(self._model.parts) / _PARTS
        spread = own * parts[0] + sizes * parts[1] + np.abs(mean) * parts[2]
        middle, side, context = contexts(mean, spread.astype(np.float32))
        off = ((numbers - middle) * side).astype(np.int64)
        beyond = np.maximum(np.abs(off) - alphabet, 0)
        symbols = np.clip(off, -alphabet, alphabet) + alphabet
        return np.asarray(self._bits[context, symbols] + 2 * np.log2(1 + beyond))


def _fitted(numbers: Array, exponents: Array, width: int) -> _Model:
    """The model of a plane: mixtures by least squares, then the parts of the spread likewise."""
    cells = len(numbers)
    mixture = np.zeros((cells, len(_NEIGHBOURS)), np.int64)
    if not numbers.any():
        return _Model(0, 1.0, (0, 0, 0), mixture)
    scale = quarters(exponents).T[:, None]  # (cells, 1, channels)
    values = (numbers * scale).reshape(cells, -1).astype(np.float64)
    products = values @ values.T
    for cell, near in enumerate(_neighbours(cells, width)):
        if near:
            others = [other for _, other in near]
            inner = products[np.ix_(others, others)]
            inner[np.diag_indices_from(inner)] += 1e-3 * inner.diagonal().mean() + 1e-9
            best = np.linalg.solve(inner, products[others, cell])
            mixture[cell, [number for number, _ in near]] = np.clip(
                np.rint(best * _MIXTURE), -128, 127
            )
    size = float(np.abs(values).mean())
    size = float(np.float32(size)) if np.isfinite(size) else 1.0
    draft = _Model(_ALPHABET, max(size, 2.0**-20), (_PARTS, 1, 1), mixture)
    inner, right, largest = np.zeros((3, 3)), np.zeros(3), 1
    for group in _groups(numbers, exponents, draft, width):
        off = np.abs(numbers[group.cell, group.block] - np.rint(group.mean)).ravel()
        largest = max(largest, int(off.max(initial=0)))
        whole = np.broadcast_arrays(*group.spreads)
        features = np.stack([part.ravel() for part in whole]).astype(np.float64)
        weighed = features / np.square(features[0] + 0.05)
        inner += weighed @ features.T
        right += weighed @ off
    inner[np.diag_indices_from(inner)] += 1e-6 * inner.diagonal().mean() + 1e-12
    parts = np.clip(np.rint(np.linalg.solve(inner, right) * _PARTS), 0, 255).astype(int)
    if not parts.any():
        parts[0] = _PARTS
    alphabet = min(largest, _ALPHABET)
    return _Model(alphabet, draft.size, (int(parts[0]), int(parts[1]), int(parts[2])), mixture)


def decode(stream: Array, shape: tuple[int, ...]) -> Coded:
    """The matrix of a weight of that shape. ModelFileError where the stream is not one of it.

    stream: (bytes,) uint8. Nothing is allocated before the stream is found long enough for the shape.
    """
    data = memoryview(np.ascontiguousarray(stream).data)
    rows, wide = shape[0], math.prod(shape[1:])
    if len(data) < least_bytes(shape):
        raise ModelFileError(f"it has {len(data)} bytes, too few for {rows * wide} weights")
    digest, version, cells, width, step, count = _HEAD.unpack_from(data)
    if version == _PARTED:
        return _joined(data, shape)
    if version != _VERSION:
        raise ModelFileError(
            f"it has the version {version}, and this verydeep reads {_VERSION}; upgrade with: "
            "pip install --upgrade verydeep"
        )
    if not cells or not width or cells % width or wide % cells or not 0 < step < math.inf:
        raise ModelFileError(_NONSENSE)
    models, at = [], _HEAD.size
    for places in (1, cells, cells):
        model, at = _unpacked(data, at, places)
        models.append(model)
    if at + 4 * count > len(data):
        raise ModelFileError(_NONSENSE)
    reader = _reader(np.frombuffer(data, "<u4", count, at).astype(np.uint32))
    try:
        by_row = np.zeros((1, 1, rows), np.int16)
        by_column = np.zeros((cells, 1, wide // cells), np.int16)
        numbers = np.zeros((cells, rows, wide // cells), np.int16)
        with np.errstate(all="ignore"):  # what overflows in a damaged one is refused in the end
            _code(by_row, np.zeros((rows, 1), np.int16), models[0], 1, reader)
            _code(by_column, np.zeros((wide // cells, cells), np.int16), models[1], width, reader)
            if max(int(np.abs(part).max()) for part in (by_row, by_column)) > EXPONENTS:
                raise ValueError
            exponents = np.ascontiguousarray(by_column[:, 0].T)
            _code(numbers, exponents, models[2], width, reader)
    except (ValueError, AssertionError):  # the range coder's own is the second
        raise ModelFileError("its numbers are beyond what they may be") from None
    except MemoryError:
        raise _too_many(rows * wide) from None
    multiples = np.ascontiguousarray(numbers.transpose(1, 2, 0)).reshape(shape)
    coded = Coded(multiples, step, by_row.ravel(), exponents.reshape(-1), cells, width)
    if coded.digest() != digest:
        raise ModelFileError(_DAMAGED)
    return coded


def weight(stream: Array, shape: tuple[int, ...]) -> Array:
    """What `decode(stream, shape).weight` is; of a stream in parts in less time and memory."""
    data = memoryview(np.ascontiguousarray(stream).data)
    if len(data) < least_bytes(shape) or data[_VERSION_AT] != _PARTED:
        return decode(stream, shape).weight  # or an error that says why not
    pieces = _pieces(data, shape)
    try:
        found = np.empty(shape, np.float32)
    except MemoryError:
        raise _too_many(math.prod(shape)) from None

    def fill(rows: slice, part: Coded) -> Coded:
        part.fill(found[rows])
        return replace(part, multiples=part.multiples[:0].copy())

    _parts(pieces, shape, fill)
    return found


def _joined(data: memoryview, shape: tuple[int, ...]) -> Coded:
    """The matrix whose rows were cut into parts, each a stream of its own."""
    found = _parts(_pieces(data, shape), shape, lambda _, part: part)
    return replace(
        found[0],
        multiples=np.concatenate([one.multiples for one in found]),
        rows=np.concatenate([one.rows for one in found]),
    )


def _pieces(data: memoryview, shape: tuple[int, ...]) -> list[memoryview]:
    """The streams of the parts, whose checksum is right."""
    digest, _, parts = _CUT.unpack_from(data)
    begin = _CUT.size + 4 * parts
    if not 2 <= parts <= min(_MOST_PARTS, shape[0]) or begin > len(data):
        raise ModelFileError(_NONSENSE)
    if _sum(data[_CUT.size :]) != digest:
        raise ModelFileError(_DAMAGED)
    lengths = np.frombuffer(data, "<u4", parts, _CUT.size).tolist()
    places = [begin + sum(lengths[:part]) for part in range(parts + 1)]
    if places[-1] != len(data):
        raise ModelFileError(_NONSENSE)
    return [data[start:stop] for start, stop in pairwise(places)]


def _parts(
    pieces: list[memoryview], shape: tuple[int, ...], taken: Callable[[slice, Coded], Coded]
) -> list[Coded]:
    """What `taken` makes of each part's rows and matrix, two at a time, in their order."""

    def part(number: int) -> Coded:
        start, stop = ends[number : number + 2]
        stream = np.frombuffer(pieces[number], np.uint8)
        if _PARTED in stream[_VERSION_AT : _VERSION_AT + 1]:  # no parts of parts
            raise ModelFileError(_NONSENSE)
        return taken(slice(start, stop), decode(stream, (stop - start, *shape[1:])))

    ends = _ends(shape[0], len(pieces))
    with ThreadPoolExecutor(2, "verydeep-decoding") as threads:
        found = list(threads.map(part, range(len(pieces))))
    first = found[0]
    for one in found:
        alike = (one.step, one.cells, one.width) == (first.step, first.cells, first.width)
        if not alike or not np.array_equal(one.columns, first.columns):
            raise ModelFileError(_NONSENSE)
    return found


def _too_many(weights: int) -> ModelFileError:
    return ModelFileError(f"there is not enough memory for its {weights} weights")


def _unpacked(data: memoryview, at: int, cells: int) -> tuple[_Model, int]:
    """The model of a plane, which lies there, and where the next one begins."""
    mixture = np.zeros((cells, len(_NEIGHBOURS)), np.int8)
    if at + _PLANE.size > len(data):
        raise ModelFileError(_NONSENSE)
    alphabet, size, *parts = _PLANE.unpack_from(data, at)
    at += _PLANE.size
    length = mixture.size if alphabet else 0  # of a plane of zeros there is nothing to know
    if at + length > len(data):
        raise ModelFileError(_NONSENSE)
    mixture.flat[:length] = np.frombuffer(data, np.int8, length, at)
    if not 0 < size < math.inf or alphabet > _ALPHABET:
        raise ModelFileError(_NONSENSE)
    return _Model(alphabet, size, (parts[0], parts[1], parts[2]), mixture), at + length


def least_bytes(shape: tuple[int, ...]) -> int:
    """Below which a stream cannot hold a weight of that shape."""
    return max(_HEAD.size + 3 * _PLANE.size, -(-math.prod(shape) // MOST))
