"""Coded weights: what is coded comes back, golden bytes stay golden, damage is told."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verydeep import load, modelfile
from verydeep.errors import EngineError, ModelFileError
from verydeep.files.cache import Cache
from verydeep.modelfile import Record, codec, decoding, read, write
from verydeep.modelfile.codec import Coded, decode, encode
from verydeep.nets import network
from verydeep.training.run import trunk_of

from . import tiny
from .conftest import Run

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "modelfile_coded.safetensors"


def coded(shape: tuple[int, ...], seed: int = 0, size: float = 1.5, **choices: Any) -> Coded:
    draw = np.random.default_rng(seed)
    wide = int(np.prod(shape[1:]))
    cells, width = codec.grid(shape)
    parts = {
        "multiples": np.rint(draw.laplace(0, size, shape)).astype(np.int16),
        "rows": np.zeros(shape[0], np.int16),
        "columns": np.zeros(wide, np.int16),
        **choices,
    }
    return Coded(step=0.25, cells=cells, width=width, **parts)


def there_and_back(given: Coded) -> bytes:
    stream = encode(given)
    found = decode(np.frombuffer(stream, np.uint8), given.multiples.shape)
    for part in ("multiples", "rows", "columns"):
        np.testing.assert_array_equal(getattr(found, part), getattr(given, part))
    assert (found.step, found.cells, found.width) == (given.step, given.cells, given.width)
    return stream


def test_golden_bytes_are_golden_weights() -> None:
    made = runpy.run_path(str(HERE / "golden" / "modelfile_coded_make.py"))
    model = read(GOLDEN)
    weights = [key for key, shape in model.record.network.tensors.items() if len(shape) > 1]
    tensors = model.tensors()
    for layer, key in enumerate(weights):
        multiples, rows, columns = made["numbers"](tensors[key].shape, layer)
        flat = multiples.reshape(len(multiples), -1).astype(np.float64)
        exact = flat * made["step"](layer) * 2 ** (rows[:, None] / 4) * 2 ** (columns / 4)
        np.testing.assert_allclose(tensors[key].reshape(flat.shape), exact, rtol=5e-7)
        assert tensors[key].dtype == np.float32
    assert tensors["features.18.bias"][-1] == 15 / 8


def test_golden_file_is_written_byte_for_byte(tmp_path: Path) -> None:
    model = read(GOLDEN)
    write(tmp_path / "again", model.record, model.stored)
    assert (tmp_path / "again").read_bytes() == GOLDEN.read_bytes()
    for key, stream in model.stored.items():
        if key.endswith(".code"):
            shape = model.record.network.tensors[modelfile.key_of(key)]
            assert encode(decode(stream, shape)) == stream.tobytes()


def test_many_weights_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which two threads decode at once; all else of the matrix is the same in each."""
    shape = (50, 6, 3, 3)
    rows = np.arange(50, dtype=np.int16) - 25
    given = coded(shape, rows=rows, columns=np.arange(54, dtype=np.int16))
    whole = there_and_back(given)
    monkeypatch.setattr(codec, "_PART", 1000)
    stream = there_and_back(given)
    assert (whole[16], stream[16], stream[17]) == (1, 2, 3)
    for one in (whole, stream):
        weight = codec.weight(np.frombuffer(one, np.uint8), shape)
        np.testing.assert_array_equal(weight, given.weight)
    parts = list(codec._cut(given, 3))
    np.testing.assert_array_equal(np.concatenate([part.weight for part in parts]), given.weight)

    def joined(streams: list[bytes]) -> np.ndarray:
        lengths = np.array([len(one) for one in streams], "<u4").tobytes()
        rest = lengths + b"".join(streams)
        return np.frombuffer(codec._sum(rest) + bytes([2, len(streams)]) + rest, np.uint8)

    good = [encode(part) for part in parts]
    assert joined(good).tobytes() == stream
    other = encode(replace(parts[2], columns=given.columns[::-1]))
    nested = joined([encode(part) for part in codec._cut(parts[2], 2)]).tobytes()
    for wrong in ([*good[:2], other], [*good[:2], nested], good[:2], [*good, good[2]], good[::-1]):
        for read_by in (decode, codec.weight):
            with pytest.raises(ModelFileError):
                read_by(joined(wrong), shape)


@pytest.fixture(params=["missing", "broken"])
def lose(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """From then on constriction is not installed, or a library of the system that it needs is not."""

    def lost() -> None:
        if request.param == "missing":
            monkeypatch.setitem(sys.modules, "constriction", None)
            return
        (tmp_path / "broken").mkdir()
        text = "raise ImportError('libgcc_s.so.1: cannot open shared object file')"
        (tmp_path / "broken" / "constriction.py").write_text(text)
        monkeypatch.delitem(sys.modules, "constriction", raising=False)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "broken"), *sys.path])

    return lost


def test_plain_python_reads_the_same(lose: Callable[[], None]) -> None:
    """The range decoder of docs/format.md, where constriction cannot be had."""
    expected = read(GOLDEN).tensors()
    lose()
    assert isinstance(codec._reader(np.zeros(2, np.uint32)), codec.PlainReader)
    for key, array in read(GOLDEN).tensors().items():
        np.testing.assert_array_equal(array, expected[key])


def test_plain_python_writes_the_same(lose: Callable[[], None]) -> None:
    """To the byte: where constriction cannot be had, models are compressed all the same."""
    given = [
        coded(shape, size=size)
        for shape in ((5, 3, 3, 3), (40, 7), (64, 64))
        for size in (0.0, 0.6, 40.0, 3000.0)
    ]
    expected = [encode(one) for one in given]
    lose()
    assert isinstance(codec._writer(), codec.PlainWriter)
    assert [encode(one) for one in given] == expected


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_carries_go_as_far_as_they_must(data: st.DataObject) -> None:
    """Of the plain range encoder, by constriction's: most symbols are the last one, next to the end."""
    fast, plain = codec._Writer(), codec.PlainWriter()
    for _ in range(data.draw(st.integers(0, 3))):
        count = data.draw(st.integers(2, 9))
        weights = np.array(
            data.draw(st.lists(st.integers(1, 10**9), min_size=count, max_size=count))
        )
        shares = (weights / weights.sum() * (codec._SCALE - 2 * count)).astype(np.int64)
        shares[-1] += codec._SCALE - count - shares.sum()
        some = st.one_of(st.just(count - 1), st.integers(0, count - 1))
        symbols = np.array(data.draw(st.lists(some, max_size=60)), np.int32)
        length = data.draw(st.integers(1, 15))
        bits = np.full(data.draw(st.integers(0, 5)), (1 << length) - 1, np.int32)
        for writer in (fast, plain):
            writer.symbols(symbols, shares)
            writer.bits(bits, length)
    np.testing.assert_array_equal(plain.words(), fast.words())


def test_parts_of_unequal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is a row larger than the limit is not cut once more, which nothing could read."""
    monkeypatch.setattr(codec, "_PART", 100)
    for rows in range(2, 40):
        given = coded((rows, 30))
        found = decode(np.frombuffer(encode(given), np.uint8), (rows, 30))
        np.testing.assert_array_equal(found.multiples, given.multiples)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.just(3), st.just(3)),
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.just(1), st.just(1)),
    st.tuples(st.integers(1, 40), st.sampled_from([1, 5, 8, 24, 49, 98])),
)


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.0, 0.1, 1.0, 10.0, 3000.0]),
    exponents=st.sampled_from([0, 3, codec.EXPONENTS]),
)
def test_what_is_coded_comes_back(
    shape: tuple[int, ...], seed: int, size: float, exponents: int
) -> None:
    draw = np.random.default_rng(seed)
    multiples = np.clip(
        np.rint(draw.laplace(0, size or 1e-9, shape)), -codec.LARGEST, codec.LARGEST
    )
    there_and_back(
        coded(
            shape,
            multiples=multiples.astype(np.int16),
            rows=draw.integers(-exponents, exponents, shape[0], np.int16, endpoint=True),
            columns=draw.integers(
                -exponents, exponents, int(np.prod(shape[1:])), np.int16, endpoint=True
            ),
        )
    )


def test_the_largest_numbers_and_all_zeros() -> None:
    shape = (4, 3, 3, 3)
    largest = np.where(np.arange(108).reshape(shape) % 2, codec.LARGEST, -codec.LARGEST)
    there_and_back(coded(shape, multiples=largest.astype(np.int16)))
    stream = there_and_back(coded((64, 4096), multiples=np.zeros((64, 4096), np.int16)))
    assert len(stream) == codec.least_bytes((64, 4096)) == 256


def test_smooth_kernels_take_less_than_their_entropy() -> None:
    """And the estimate is the size, to one per cent."""
    draw = np.random.default_rng(0)
    kernels = draw.normal(0, 1, (128, 64, 3, 3)) * draw.lognormal(0, 0.3, (128, 1, 1, 1))
    kernels += 1.5 * draw.normal(0, 1, (128, 64, 1, 1))
    given = coded(kernels.shape, multiples=np.rint(kernels / 1.2).astype(np.int16))
    size = 8 * len(there_and_back(given))
    counts = np.unique(given.multiples, return_counts=True)[1] / given.multiples.size
    assert size < -0.85 * given.multiples.size * (counts * np.log2(counts)).sum()
    assert codec.Rate(given).total == pytest.approx(size, rel=0.01)


# In a model file


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model with coded weights, and the same as floats."""
    net = tiny.tiny()
    tensors: dict[str, np.ndarray] = {}
    for key, array in tiny.weights(net).items():
        if array.ndim < 2:
            tensors[key] = array
            continue
        step = float(np.float32(array.std() / 3))
        multiples = np.rint(array / step).astype(np.int16)
        draft = coded(array.shape, multiples=multiples)
        whole = Coded(multiples, step, draft.rows, draft.columns, draft.cells, draft.width)
        tensors[f"{key}.code"] = np.frombuffer(encode(whole), np.uint8)
    plain = read(tiny.model_file(tmp_path / "plain.safetensors", net))
    write(tmp_path / "coded.safetensors", plain.record, tensors)
    small = read(tmp_path / "coded.safetensors")
    write(tmp_path / "floats.safetensors", plain.record, small.tensors())
    return tmp_path / "coded.safetensors", tmp_path / "floats.safetensors"


def test_commands_read_it_as_any_file(
    pair: tuple[Path, Path], verydeep: Run, tmp_path: Path
) -> None:
    small, floats = pair
    assert small.stat().st_size < floats.stat().st_size / 5
    photo = tiny.photo(tmp_path / "a.png")
    answers = [
        verydeep("classify", photo, "--json", "--precision", "exact", "--model", one)
        for one in pair
    ]
    assert answers[0].status == 0, answers[0].err
    assert answers[0].out == answers[1].out
    assert verydeep("summary", small).status == 0
    images = tiny.pixels(32, 32)
    scores = [load(one).scores(list(images)) for one in pair]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_a_head_on_a_coded_trunk_leaves_it_coded(pair: tuple[Path, Path]) -> None:
    model = read(pair[0])
    trunk = trunk_of(model, model.record.network)
    assert all(name.endswith((".code", ".bias")) for name in trunk)
    assert len(trunk) == 16


def test_a_large_one_is_decoded_once(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded is mapped from the cache by all that open the file later."""
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))
    times, decode = [], codec.decode
    monkeypatch.setattr(codec, "decode", lambda *given: times.append(1) or decode(*given))
    expected, first = read(pair[1]).tensors(), read(pair[0]).tensors(["features.0.weight"])
    assert len(times) == len([name for name in read(pair[0]).stored if name.endswith(".code")])
    times.clear()
    second = read(pair[0]).tensors(writable=True)
    assert not times
    np.testing.assert_array_equal(first["features.0.weight"], expected["features.0.weight"])
    for key, value in second.items():
        np.testing.assert_array_equal(value, expected[key])
        value[...] = 0  # one's own copy
    np.testing.assert_array_equal(
        read(pair[0]).tensors()["features.0.weight"], expected["features.0.weight"]
    )
    (entry,) = Cache().entries()
    kept = entry.path / decoding.FILE
    kept.write_bytes(kept.read_bytes()[:-8])  # damaged: made again
    assert read(pair[0]).tensors().keys() == expected.keys()
    assert times


def test_who_waits_for_plain_python_is_told(
    pair: tuple[Path, Path],
    lose: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    lose()
    with caplog.at_level("INFO", "verydeep"):
        for _ in range(2):
            read(pair[0]).tensors()
    (line,) = [record.message for record in caplog.records]
    assert "million weights in Python" in line


def test_where_nothing_more_can_be_mapped_it_is_read(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    expected = read(pair[0]).tensors()
    small = read(pair[0])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(decoding.mmap, "mmap", full)
    monkeypatch.setattr(codec, "decode", full)  # what is kept is not decoded again
    for key, array in small.tensors().items():
        np.testing.assert_array_equal(array, expected[key])
    assert len(Cache().entries()) == 1


def test_where_nothing_can_be_kept_it_is_decoded_each_time(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    expected = read(pair[1]).tensors()
    for name, value in (("VERYDEEP_CACHE", os.devnull), ("VERYDEEP_CACHE_LIMIT", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setenv("TMPDIR", os.devnull)  # nor is there room elsewhere
            found = read(pair[0]).tensors()
        for key, array in found.items():
            np.testing.assert_array_equal(array, expected[key])


def test_a_limit_of_the_cache_that_is_none_is_said(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decoded anew in each process, without a word."""
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    monkeypatch.setenv("VERYDEEP_CACHE_LIMIT", "much")
    with pytest.raises(EngineError, match="VERYDEEP_CACHE_LIMIT is 'much'; expected bytes"):
        read(pair[0]).tensors()


def test_older_readers_say_that_it_is_newer() -> None:
    (length,) = np.frombuffer(GOLDEN.read_bytes()[:8], "<u8")
    header = json.loads(GOLDEN.read_bytes()[8 : 8 + int(length)])
    assert json.loads(header["__metadata__"]["verydeep"])["format_version"] == 2
    assert json.loads(Record(network("vgg11")).to_json())["format_version"] == 1


def test_what_contradicts_the_table_is_refused(tmp_path: Path) -> None:
    model = read(GOLDEN)
    name = "features.18.weight.code"
    for wrong, message in (
        (
            np.zeros(51, np.uint8),
            r"has the shape \[51\]; expected one dimension, and for 2304 weights 52",
        ),
        (np.zeros((9, 9), np.uint8), r"has the shape \[9, 9\]; expected one dimension"),
        (np.zeros(500, np.int8), r"has the dtype I8; expected U8"),
    ):
        with pytest.raises(ModelFileError, match=message):
            write(tmp_path / "m", model.record, {**model.stored, name: wrong})
    both = {**model.stored, "features.18.weight": model.tensors()["features.18.weight"]}
    with pytest.raises(ModelFileError, match="both as floats and coded; expected one"):
        write(tmp_path / "m", model.record, both)
    # the whole VGG-16 sixteen times as wide, claimed by a few bytes
    wide = network("vgg16", width=16)
    claims = {
        f"{key}.code" if len(shape) > 1 else key: np.zeros(
            60 if len(shape) > 1 else shape, np.uint8 if len(shape) > 1 else np.float32
        )
        for key, shape in wide.tensors.items()
    }
    with pytest.raises(ModelFileError, match="weights 9216 bytes at least"):
        write(tmp_path / "m", Record(wide), claims)


ROUNDS = 300  # 10,000 were run once


def damaged(stream: bytes, draw: np.random.Generator) -> bytes:
    """With one to four changes: a bit, a byte, some bytes gone or doubled, or another end."""
    data = bytearray(stream)
    for _ in range(draw.integers(1, 5)):
        place = int(draw.integers(len(data))) if draw.random() < 0.6 else int(draw.integers(60))
        place %= len(data)
        kind = draw.integers(5)
        if kind == 0:
            data[place] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            data[place] = int(draw.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del data[place : place + int(draw.integers(1, 9))]
        elif kind == 3:
            data[place:place] = data[place : place + int(draw.integers(1, 9))]
        else:
            del data[int(draw.integers(len(data))) + 1 :]
        data = data or bytearray(1)
    return bytes(data)


def test_damage_is_told_or_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read(GOLDEN)
    streams = {
        model.record.network.tensors[modelfile.key_of(name)]: array.tobytes()
        for name, array in model.stored.items()
        if name.endswith(".code")
    }
    monkeypatch.setattr(codec, "_PART", 200)
    streams[(40, 2, 3, 3)] = encode(coded((40, 2, 3, 3)))  # of several parts
    draw = np.random.default_rng(0)
    told = 0
    for number in range(ROUNDS):
        shape, stream = list(streams.items())[number % len(streams)]
        wrong = np.frombuffer(damaged(stream, draw), np.uint8)
        try:
            found = decode(wrong, shape)
        except ModelFileError as error:
            told += str(error).isprintable()
            with pytest.raises(ModelFileError, match=re.escape(str(error))):
                codec.weight(wrong, shape)
        else:
            right = decode(np.frombuffer(stream, np.uint8), shape).weight
            np.testing.assert_array_equal(found.weight, right)
            np.testing.assert_array_equal(codec.weight(wrong, shape), right)
    assert told > 0.8 * ROUNDS


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    content = bytearray(GOLDEN.read_bytes())
    content[-40] ^= 16
    (tmp_path / "m.safetensors").write_bytes(content)
    model = read(tmp_path / "m.safetensors")
    with pytest.raises(
        ModelFileError, match=r"m\.safetensors: the tensor features\.\d+\.weight\.code: its "
    ):
        model.tensors()
