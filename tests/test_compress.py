"""`verydeep compress`: rounding against brute force, goals met or said not to be, what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import verydeep
from verydeep import modelfile
from verydeep.compression import Compressed, _search, _Trial, carried
from verydeep.compression.rounding import SLOPE, curved_by, round_coded
from verydeep.errors import ArgumentError, DataError, ModelFileError, NetworkError
from verydeep.modelfile.codec import Coded, Rate, quarters
from verydeep.quantisation import Draft
from verydeep.quantisation.rounding import second_moments

from . import tiny
from .conftest import Run


def moments_of(draw: np.random.Generator, channels: int, kernel: int) -> np.ndarray:
    """Of smooth maps whose channels have much in common, some of them large."""
    maps = draw.normal(0, 1, (8, channels, 12, 12)) + draw.normal(0, 1, (8, 1, 12, 12))
    maps = maps + np.roll(maps, 1, 2) + np.roll(maps, 1, 3)
    maps *= draw.lognormal(0, 0.7, (1, channels, 1, 1))
    return second_moments([maps.astype(np.float32)], kernel, kernel // 2, patches=144)


def loss(weight: np.ndarray, rounded: np.ndarray, moments: np.ndarray) -> float:
    off = (rounded - weight).reshape(len(weight), -1).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", off, moments, off))


@pytest.mark.parametrize("few", [True, False])
def test_carried_photos_are_what_the_whole_network_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    """Of two sizes, with what changed on the way; whether maps are kept or computed again."""
    monkeypatch.setattr(carried, "KEPT", 2**30 if few else 100_000)
    model = modelfile.read(tiny.model_file(tmp_path / "m", tiny.tiny("vgg11_bn")))
    record = model.record
    draft = Draft(record.network, record.preprocess, model.decoded())
    key = f"{record.network.layer('conv3_1').key}.weight"
    images = [*tiny.pixels(64, 64, count=5), *tiny.pixels(80, 64, count=3)]
    ours = carried.Carried(draft, images)
    for name in ("relu1_1", "pool1", "relu3_1", "pool3"):
        found = list(ours.maps(name))
        whole = [batch[name] for batch in draft.run(draft.graph((name,), int8=False), images)]
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
        if name == "pool1":  # what is not computed yet may change
            draft.stored[key] = 1.25 * draft.stored[key]


def test_tiny_layer_against_brute_force() -> None:
    """One output, three 1x1 inputs: of all numbers near, those found are nearly the best."""
    draw = np.random.default_rng(3)
    ours, nearest, best = 0.0, 0.0, 0.0
    for _ in range(12):
        moments = moments_of(draw, 3, 1)
        weight = draw.normal(0, 1, (1, 3, 1, 1))
        found = round_coded(weight, 0.6, curved_by(moments, 1))
        steps = found.step * quarters(found.columns)

        def made(numbers: np.ndarray, like: Coded = found) -> np.ndarray:
            return replace(like, multiples=numbers.astype(np.int16).reshape(1, 3, 1, 1)).weight

        middle = np.rint(weight.ravel() / steps)
        tries = [middle + np.array(move) for move in itertools.product((-2, -1, 0, 1, 2), repeat=3)]
        losses = [loss(weight, made(numbers), moments) for numbers in tries]
        best += min(losses)
        nearest += loss(weight, made(middle), moments)
        ours += loss(weight, found.weight, moments)
    # the bits that it weighs cost a little; what it must not do is to be as bad as rounding one by one
    assert best <= ours < 0.8 * nearest


def test_smaller_and_nearer_than_the_nearest_multiples() -> None:
    draw = np.random.default_rng(0)
    moments = moments_of(draw, 24, 3)
    weight = 0.05 * (draw.normal(0, 1, (48, 24, 3, 3)) + draw.normal(0, 1, (48, 24, 1, 1)))
    found = round_coded(weight, 0.04, curved_by(moments, 9))
    found_bits = Rate(found).total
    numbers = np.rint(weight / 0.03).astype(np.int16)
    plain = Coded(numbers, 0.03, found.rows, np.zeros(216, np.int16), 9, 3)
    assert found_bits < 0.9 * Rate(plain).total
    assert loss(weight, found.weight, moments) < 0.9 * loss(weight, plain.weight, moments)


def test_bits_weigh_what_they_cost() -> None:
    """With the rate in the objective, cost and bits together are less than without."""
    draw = np.random.default_rng(1)
    weight = draw.normal(0, 1, (64, 16, 3, 3))
    found = round_coded(weight, 1.5)
    numbers = np.rint(weight / 1.5).astype(np.int16)
    plain = Coded(numbers, found.step, found.rows, found.columns, 9, 3)

    def total(coded: Coded) -> float:
        return float(np.square((coded.weight - weight) / 1.5).sum()) + SLOPE * Rate(coded).total

    assert total(found) < total(plain)
    assert Rate(found).total < Rate(plain).total


def test_rows_whose_outputs_matter_less_are_coarser() -> None:
    weight = np.random.default_rng(2).normal(0, 1, (4, 8, 3, 3))
    rows = np.array([0, 0, 0, 8], np.int16)
    found = round_coded(weight, 0.01, rows=rows)
    off = np.abs(found.weight - weight).reshape(4, -1).max(1)
    assert off[3] > 2 * off[:3].max()


# The search


def trial(coarseness: float) -> _Trial:
    size = round(100_000 * (6 - np.log2(coarseness)) / 8)
    return _Trial(coarseness, {}, size, 100_000, coarseness, None, None)


@pytest.mark.parametrize("size", [50_000, 75_000, 30_000])
def test_a_size_is_found(size: int) -> None:
    tries: list[float] = []

    def tried(coarseness: float) -> _Trial:
        tries.append(coarseness)
        return trial(coarseness)

    found = _search(trial(1.0), tried, size, lambda one: one.size <= size)
    assert 0.97 * size <= found.size <= size
    assert len(tries) < 6


@pytest.mark.parametrize("drop", [0.3, 5.0, 0.01])
def test_a_drop_is_found(drop: float) -> None:
    found = _search(trial(1.0), trial, None, lambda one: one.drop <= drop)
    assert drop / 2 < found.drop <= drop


def test_a_goal_that_cannot_be_met_gives_the_nearest() -> None:
    def never(_: _Trial) -> bool:
        return False

    assert _search(trial(1.0), trial, 1, never).coarseness > 50
    stuck = _search(trial(1.0), trial, None, never)
    assert stuck.coarseness < 0.1


# The command


def test_a_convolution_too_wide_for_its_moments(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is rounded by how large each of its inputs is, and never fitted to what is before it."""
    monkeypatch.setattr("verydeep.compression._WIDEST", 40)
    result = verydeep.compress(model, tmp_path / "small.safetensors", calibrate=[str(photos)])
    assert result.checked == 20
    assert result.error is not None
    assert result.error < 0.5


def test_the_command_meets_a_size(model: Path, photos: Path, tmp_path: Path, verydeep: Run) -> None:
    out = tmp_path / "small.safetensors"
    words = ("compress", model, "--out", out, "--calibrate", photos, "--size", "20KB")
    done = verydeep(*words, "--threads", 1)
    assert done.status == 0, done.err
    assert done.err.count("trial: ") >= 2
    assert "conv5_2" in done.out
    assert f"became {out.stat().st_size:,}" in done.out
    assert 15_000 < out.stat().st_size <= 20_000
    record = modelfile.read(out).record
    assert record.provenance["compressed_from"]["photos"] == 20  # type: ignore[index,call-overload]
    assert {figure["what"] for figure in record.measured} == {"agreement", "output_error"}
    assert verydeep("classify", "--model", out, photos / "0.png").status == 0
    # and not twice, without a word
    twice = verydeep("compress", out, "--out", tmp_path / "again", "--size", "9KB")
    assert twice.status == 2
    assert "it was compressed already, and would lose twice" in twice.err
    done = verydeep("compress", out, "--out", tmp_path / "again", "--again", "--json")
    assert done.status == 0
    assert json.loads(done.out)["agreement"] is None


def test_accuracy_on_labelled_photos(model: Path, tmp_path: Path) -> None:
    predictor = verydeep.load(model)
    for seed in range(24):
        image = tiny.photo(tmp_path / "new.png", seed=seed)
        image.rename(
            tiny.photo(tmp_path / "data" / predictor(image).label / f"{seed}.png", seed=seed)
        )
    made = verydeep.compress(model, tmp_path / "o.safetensors", data=tmp_path / "data", max_drop=20)
    assert made.met
    assert made.drop is not None
    assert made.drop <= 20
    assert made.size_bytes < made.before_bytes / 5
    assert all({"coarseness", "size", "drop"} <= one.keys() for one in made.trials)


def test_a_trunk_and_batch_norm(photos: Path, tmp_path: Path) -> None:
    net = tiny.tiny("vgg11_bn", head="classic", classes=0)
    trunk = tiny.model_file(tmp_path / "trunk.safetensors", net)
    made = verydeep.compress(trunk, tmp_path / "o", calibrate=[str(photos)], threads=1)
    assert made.agreement is None
    assert made.error is not None
    assert made.error < 0.1
    assert "nothing of its answers is promised" not in str(made)


def test_without_photos_nothing_is_promised(model: Path, tmp_path: Path) -> None:
    made = verydeep.compress(model, tmp_path / "o")
    assert isinstance(made, Compressed)
    assert "nothing of its answers is promised" in str(made)
    far = verydeep.compress(model, tmp_path / "o", size=1)
    assert not far.met
    assert "the goal was not met: this is the nearest" in str(far)
    assert modelfile.read(tmp_path / "o").tensors()


def test_what_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(
        ArgumentError, match="needs photos to measure it on: give data or calibrate"
    ):
        verydeep.compress(model, out, max_drop=1)
    with pytest.raises(ArgumentError, match="two goals; give one of them"):
        verydeep.compress(model, out, max_drop=1, size=1000, calibrate=[str(photos)])
    with pytest.raises(DataError, match="1 photos to calibrate on; expected 32 or more"):
        verydeep.compress(model, out, calibrate=[str(photos / "0.png")])
    trunk = tiny.model_file(tmp_path / "trunk", tiny.tiny(head="classic", classes=0))
    with pytest.raises(NetworkError, match="a trunk has no answers to drop; give size instead"):
        verydeep.compress(trunk, out, max_drop=1, calibrate=[str(photos)])
    int8 = Path(__file__).parent / "golden" / "modelfile_int8.safetensors"
    with pytest.raises(ModelFileError, match="it was quantised; expected the float model"):
        verydeep.compress(int8, out)
    assert not out.exists()
