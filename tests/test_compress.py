"""`verydeep compress`: rounding against brute force, goals met or said not to be, what is refused."""

from __future__ import annotations

import itertools
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import verydeep
from verydeep import modelfile
from verydeep.compression import (
    Compressed,
    _digest,
    _digests,
    _fitted,
    _search,
    _Trial,
    carried,
    compress,
)  # fmt: skip
from verydeep.compression.goal import Goal
from verydeep.compression.rounding import SLOPE, curved_by, round_coded
from verydeep.errors import ArgumentError, DataError, ModelFileError, NetworkError, OutputError
from verydeep.evaluation.figures import paired_interval, share_interval
from verydeep.modelfile import decoding
from verydeep.modelfile.codec import Coded, Rate, quarters
from verydeep.preprocess import TORCHVISION
from verydeep.published import find_model
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


def below_a_bit(coarseness: float) -> _Trial:
    """Sizes fall by a quarter of what the first step tells."""
    return replace(trial(coarseness), size=round(75_000 * coarseness**-0.6))


@pytest.mark.parametrize(
    ("size", "made", "fewer"),
    [
        *((size, trial, 6) for size in (50_000, 75_000, 30_000)),
        *((size, below_a_bit, 8) for size in (11_000, 3_000)),
    ],
)
def test_a_size_is_found(size: int, made: Callable[[float], _Trial], fewer: int) -> None:
    tries: list[float] = []

    def tried(coarseness: float) -> _Trial:
        tries.append(coarseness)
        return made(coarseness)

    found = _search(made(1.0), tried, size, lambda one: one.size <= size)
    assert 0.97 * size <= found.size <= size
    assert len(tries) < fewer


def test_a_drop_that_is_met_to_the_point() -> None:
    """Of 85 of 100 photos one fewer is a point, and a bit more than one in floats."""
    for before, now, points in ((0.85, 0.84, 1), (0.5, 0.47, 3), (1.0, 0.99, 1)):
        assert Goal(max_drop=points).met(1, 100 * (before - now))
    assert not Goal(max_drop=1).met(1, 1.01)


@pytest.mark.parametrize("drop", [0.3, 5.0, 0.01])
def test_a_drop_is_found(drop: float) -> None:
    found = _search(trial(1.0), trial, None, lambda one: one.drop <= drop)
    assert drop / 2 < found.drop <= drop


@pytest.mark.parametrize("goal", [Goal(size=50_000), Goal(max_drop=5.0), Goal()])
def test_fitted_layers_may_be_coarser(goal: Goal) -> None:
    """As they lose half as much: a drop allows fewer bytes, a size is used up, else one is enough."""
    tries: list[float] = []

    def tried(coarseness: float, _: bool) -> _Trial:
        tries.append(coarseness)
        one = trial(coarseness)
        return replace(one, drop=one.drop / 2, error=one.drop / 2, size=round(1.06 * one.size))

    def met(one: _Trial) -> bool:
        return goal.met(one.size, one.drop)

    first = trial(2.0 if goal.size is None else 4.0)  # of as many bytes as are asked for
    found = _fitted(replace(first, error=first.drop), [first], tried, goal, met)
    assert met(found)
    assert tries[0] == first.coarseness
    if goal.size is not None:
        assert 0.97 * goal.size <= found.size <= goal.size
        assert found.error is not None
        assert found.error < first.drop  # a fitted one
        assert len(tries) == 2
    else:
        assert found.coarseness == (tries[-1] if goal.max_drop else first.coarseness)
        assert len(tries) == (3 if goal.max_drop else 1)


def test_the_best_of_fitted_and_others() -> None:
    """What meets the goal, though its error is larger; where nothing does, the nearest."""
    plain = _Trial(1.0, {}, 51_000, 100_000, 6.0, None, 0.100)
    for goal, made, wins in (
        (Goal(size=50_000), {"size": 49_500, "error": 0.11}, True),
        (Goal(size=40_000), {"size": 50_900, "error": 0.11}, True),
        (Goal(size=40_000), {"size": 51_100, "error": 0.01}, False),
        (Goal(max_drop=5.0), {"drop": 4.0, "error": 0.101, "size": 51_100}, True),
        (Goal(max_drop=5.0), {"drop": 5.5, "error": 0.2}, True),
        (Goal(max_drop=7.0), {"drop": 6.5, "error": 0.2, "size": 51_100}, False),
        (Goal(), {"error": 0.2}, False),
    ):
        one = replace(plain, **made)  # type: ignore[arg-type]
        met = lambda trial, goal=goal: goal.met(trial.size, trial.drop)  # noqa: E731
        found = _fitted(plain, [plain], lambda *_, one=one: one, goal, met)  # type: ignore[misc]
        assert (found is one) == wins, goal


def test_a_goal_that_cannot_be_met_gives_the_nearest() -> None:
    def never(_: _Trial) -> bool:
        return False

    assert _search(trial(1.0), trial, 1, never).coarseness > 50
    stuck = _search(trial(1.0), trial, None, never)
    assert stuck.coarseness < 0.1


def test_intervals_are_those_of_others() -> None:
    # by hand, and the example of R's PropCIs::diffpropci.mp
    np.testing.assert_allclose(share_interval(0, 10), (0, 0.2775), atol=1e-4)
    np.testing.assert_allclose(share_interval(81, 263), (0.2553, 0.3662), atol=1e-4)
    np.testing.assert_allclose(paired_interval(20, 40, 160), (0.030896, 0.216017), atol=1e-5)
    low, high = paired_interval(0, 0, 100)
    assert low == -high != 0


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
    assert done.err.count("bytes, ") >= 2
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


def test_the_drop_has_an_interval(model: Path, tmp_path: Path) -> None:
    """Of the pairs of answers, photo by photo; and photos to calibrate on come from the set itself."""
    predictor = verydeep.load(model)
    for seed in range(160):
        image = tiny.photo(tmp_path / "new.png", seed=seed)
        label = predictor(image).label if seed % 5 else tiny.NAMES[seed % 7]
        image.rename(tiny.photo(tmp_path / "data" / label / f"{seed}.png", seed=seed))
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "data", "data")
    events: list[Mapping[str, object]] = []
    made = verydeep.compress(
        model, tmp_path / "o", data=tmp_path / "data.tar", size=9_000, on_event=events.append
    )
    assert [event["event"] for event in events][:2] == ["start", "trial"]
    assert made.report == tmp_path / "o.report.html"
    page = made.report.read_text()
    assert page.count('<tr class="chosen">') == 1
    assert page.count('<circle class="dot a"') == len(made.trials)  # and the one that was chosen
    assert page.count('<circle class="dot b"') == 1
    assert f"{made.drop:.2f} points" in page
    assert "<dt>accuracy lost</dt>" in page
    assert "level line is the model that it was made of" in page
    assert all(layer["name"] in page for layer in made.layers)
    record = modelfile.read(tmp_path / "o").record
    rows = {row["what"]: row for row in record.measured}
    assert set(rows) == {"top1", "drop", "agreement", "output_error"}
    assert rows["drop"]["n"] == 160 - 40  # of the undivided set a quarter was to calibrate on
    assert made.checked == 20
    low, high = rows["drop"]["interval"]  # type: ignore[misc]
    assert low < made.drop < high  # type: ignore[operator]
    low, high = rows["agreement"]["interval"]  # type: ignore[misc]
    assert low < made.agreement < high  # type: ignore[operator]
    source = record.provenance["compressed_from"]
    assert {"command", "versions", "sha256", "photos", "coarseness"} <= source.keys()  # type: ignore[union-attr]


def test_few_labelled_photos_calibrate_too(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A quarter of them, or half where that is too few. One that cannot be read is named, and counted."""
    for seed in range(74):
        tiny.photo(tmp_path / "data" / tiny.NAMES[seed % 7] / f"{seed:02}.png", seed=seed)
    broken = tmp_path / "data" / tiny.NAMES[1] / "01.png"
    broken.write_bytes(broken.read_bytes()[:90])
    made = verydeep.compress(model, tmp_path / "o", data=tmp_path / "data")
    record = modelfile.read(tmp_path / "o").record
    assert record.provenance["compressed_from"]["photos"] == 18  # type: ignore[index,call-overload]
    assert made.checked == 18
    assert made.unreadable == 1
    assert [text for text in caplog.messages if "01.png" in text]


def test_what_is_prepared_of_trials_is_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks for it again, and it would take the room of what is."""
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding, "WORTH_KEEPING", 1)
    for seed in range(70):
        tiny.photo(tmp_path / "data" / tiny.NAMES[seed % 7] / f"{seed}.png", seed=seed)
    verydeep.compress(model, tmp_path / "o", data=tmp_path / "data", size=20_000)
    assert not list((tmp_path / "cache").glob("prepared/weights-*"))
    with verydeep.load(tmp_path / "o") as predictor:
        predictor(tiny.photo(tmp_path / "one.png"))
    assert list((tmp_path / "cache").glob("prepared/weights-*"))


def test_layers_that_no_score_reads(photos: Path, tmp_path: Path) -> None:
    """Of a head on earlier layers; they are rounded as they are, pruned or not."""
    net = verydeep.network("vgg11", head="gap", layers="relu3_2", classes=7, width=1 / 16)
    model = tiny.model_file(tmp_path / "model", net)
    for goal in ({"size": 30_000}, {"size": 30_000, "multiply_adds": 400_000}, {}):
        made = verydeep.compress(model, tmp_path / "o", calibrate=photos, **goal)  # type: ignore[arg-type]
        assert {row["name"] for row in made.layers} >= {"conv5_2", "conv1_1"}
        assert modelfile.read(tmp_path / "o").tensors()


def test_a_trunk_whose_photos_keep_their_sizes(tmp_path: Path) -> None:
    for seed in range(40):
        tiny.photo(tmp_path / "photos" / f"{seed}.png", 40 + seed % 3, 48 + seed % 2, seed=seed)
    own = replace(TORCHVISION, resize="none", resize_size=None, crop_size=None)
    trunk = tiny.tiny(head="classic", classes=0)
    model = tiny.model_file(tmp_path / "model", trunk, preprocess=own)
    made = verydeep.compress(model, tmp_path / "o", calibrate=tmp_path / "photos")
    assert made.error is not None
    assert 0 < made.error < 0.2


def test_several_classes_are_said_and_no_accuracy_is_bounded(photos: Path, tmp_path: Path) -> None:
    """Their mean average precision may fall though none of what is said changes."""
    model = tiny.model_file(tmp_path / "model", thresholds=(0.5,) * 7)
    made = verydeep.compress(model, tmp_path / "o", calibrate=photos)
    assert "; the same classes said of " in made.said
    assert "can have lost at most" not in made.said
    assert "can have lost at most" in verydeep.compress(
        tiny.model_file(tmp_path / "other"), tmp_path / "o", calibrate=photos
    ).said  # fmt: skip


def test_of_a_divided_set_what_is_to_train_on_calibrates(model: Path, tmp_path: Path) -> None:
    for seed in range(96):
        part = "train" if seed < 80 else "val"
        tiny.photo(tmp_path / "data" / part / tiny.NAMES[seed % 7] / f"{seed}.png", seed=seed)
    verydeep.compress(model, tmp_path / "o", data=tmp_path / "data", count=50)
    record = modelfile.read(tmp_path / "o").record
    assert record.provenance["compressed_from"]["photos"] == 25  # type: ignore[index,call-overload]
    assert next(row for row in record.measured if row["what"] == "drop")["n"] == 16


def packed(photos: Path, tmp_path: Path, form: str) -> object:
    """The folder's photos in a form that `train` takes."""
    files = sorted(photos.iterdir())
    if form == "csv":
        lines = "".join(f"{file},{at % 2}\n" for at, file in enumerate(files))
        (tmp_path / "set.csv").write_text(f"path,label\n{lines}")
    elif form == "npz":
        pixels = np.stack([np.asarray(Image.open(file)) for file in files])
        np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(len(files)) % 2)
    elif form in ("tar", "shards"):
        half = [files] if form == "tar" else [files[::2], files[1::2]]
        for number, some in enumerate(half):
            with tarfile.open(
                tmp_path / ("set.tar" if form == "tar" else f"s-{number}.tar"), "w"
            ) as tar:
                for file in some:
                    tar.add(file, f"deep/{file.name}")
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in files:
                archive.write(file, file.name)
    elif form == "pairs":
        return Pairs(files)
    return tmp_path / ("s-{0..1}.tar" if form == "shards" else f"set.{form}")


class Pairs:
    """What torch calls a Dataset."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        with Image.open(self.files[at]) as image:
            return image.convert("RGB"), at % 2


@pytest.mark.parametrize("form", ["csv", "npz", "tar", "zip", "shards", "pairs"])
def test_photos_come_in_every_form_that_train_takes(
    form: str, model: Path, photos: Path, tmp_path: Path
) -> None:
    """Labels and folders are not asked; the file is that of the folder itself, but for the command."""
    held = {}
    for name, given in (("folder", photos), ("packed", packed(photos, tmp_path, form))):
        verydeep.compress(model, tmp_path / name, calibrate=given, threads=1)
        held[name] = modelfile.read(tmp_path / name)
    source = held["packed"].record.provenance["compressed_from"]
    assert source["photos"] == 20  # type: ignore[index,call-overload]
    if form not in ("shards", "npz"):  # in another order
        for key, value in held["folder"].stored.items():
            np.testing.assert_array_equal(held["packed"].stored[key], value)


@pytest.mark.parametrize("form", ["npz", "tar", "bmp"])
def test_what_was_stopped_goes_on_with_the_same_photos_alone(
    form: str, model: Path, tmp_path: Path
) -> None:
    """Others of the same names and sizes are others; a copy of later date is the same."""

    def given(seed: int) -> object:
        for number in range(32):
            tiny.photo(tmp_path / "set" / f"{number}.bmp", seed=seed + number)
        return tmp_path / "set" if form == "bmp" else packed(tmp_path / "set", tmp_path, form)

    def stop(event: Mapping[str, object]) -> None:
        if event["event"] == "trial":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "o", calibrate=given(0), threads=1, on_event=stop)
    with pytest.raises(
        ArgumentError, match=r"was begun with calibrate 32 photos of digest .*, whic"
    ):
        compress(model, tmp_path / "o", calibrate=given(1), threads=1, resume=True)
    compress(model, tmp_path / "o", calibrate=given(0), threads=1, resume=True)


def test_a_photo_of_an_archive_that_cannot_be_read_is_named(
    model: Path, photos: Path, tmp_path: Path, verydeep: Run
) -> None:
    (photos / "7.png").write_bytes(b"\x89PNG no more")
    given = packed(photos, tmp_path, "tar")
    done = verydeep(
        "compress", model, "--out", tmp_path / "o", "--calibrate", given, "--threads", 1
    )
    assert done.status == 1
    assert "deep/7.png: " in done.err


def test_what_has_the_built_in_trunk(photos: Path, tmp_path: Path) -> None:
    """Its rounded weights are the reference, and it is no file that this made."""
    builtin = modelfile.read(find_model("builtin"))
    narrow = tiny.tiny("vgg11", width=1 / 16)
    assert not builtin.record.activations
    # the same forms of tensors in a network that takes seconds: 16 bits, and 8
    tensors = dict(tiny.weights(narrow))
    for at, key in enumerate([k for k in tensors if k.startswith("features") and "weight" in k]):
        weight = tensors.pop(key)
        scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / (127 if at else 32767)
        tensors[f"{key}.q"] = np.rint(weight / scale).astype(np.int8 if at else np.int16)
        tensors[f"{key}.scale"] = scale.astype(np.float32)
    path = tmp_path / "own"
    record = replace(builtin.record, network=narrow, class_names=tiny.NAMES, class_ids=tiny.IDS)
    how = modelfile.read(tiny.model_file(tmp_path / "other")).record.preprocess
    modelfile.write(path, replace(record, preprocess=how), tensors)
    made = verydeep.compress(path, tmp_path / "o", calibrate=photos, threads=1)
    assert made.error is not None
    assert made.error < 0.2
    assert made.size_bytes < path.stat().st_size


def test_a_trunk_and_batch_norm(photos: Path, tmp_path: Path) -> None:
    net = tiny.tiny("vgg11_bn", head="classic", classes=0)
    trunk = tiny.model_file(tmp_path / "trunk.safetensors", net)
    made = verydeep.compress(trunk, tmp_path / "o", calibrate=[str(photos)], threads=1)
    assert made.agreement is None
    assert made.error is not None
    assert made.error < 0.1
    assert "nothing of its answers is promised" not in str(made)


def test_a_layer_that_answers_nothing(model: Path, photos: Path, tmp_path: Path) -> None:
    """On no photo: what reads it has no moments to be fitted by, and stays as it is."""
    given = modelfile.read(model)
    bias = {"features.6.bias": np.full(16, -1000, np.float32)}
    modelfile.write(tmp_path / "dead", given.record, {**given.tensors(), **bias})
    made = verydeep.compress(tmp_path / "dead", tmp_path / "o", calibrate=photos, threads=1)
    assert len(made.trials) == 2  # the last one is fitted
    assert made.agreement == 1
    assert made.error is not None
    assert made.error < 1e-4


def test_efforts(model: Path, photos: Path, tmp_path: Path, verydeep: Run) -> None:
    """Quick is one trial without second moments, and nearer than nothing known; nothing else is taken."""
    errors = {}
    for effort in ("quick", "normal", "max"):
        words = ("--effort", effort, "--calibrate", photos, "--threads", 1, "--json")
        done = verydeep("compress", model, "--out", tmp_path / effort, *words)
        assert done.status == 0, done.err
        told = json.loads(done.out)
        assert len(told["trials"]) == (1 if effort == "quick" else 2)
        errors[effort] = told["error"] * told["size_bytes"]
    assert errors["normal"] < errors["quick"]
    with pytest.raises(ArgumentError, match="effort is 'much'; expected quick, normal or max"):
        compress(model, tmp_path / "o", effort="much")


def test_what_photos_without_labels_cannot_say(
    model: Path, photos: Path, tmp_path: Path, verydeep: Run
) -> None:
    """The drop is bounded by the answers that change; the exit status is 0."""
    out = tmp_path / "o"
    done = verydeep("compress", model, "--out", out, "--calibrate", photos, "--max-drop", 100)
    assert done.status == 0, done.err
    assert "its accuracy was not measured: there it can have lost at most the " in done.out
    assert f"report: {out}.report.html" in done.out
    assert "<h2>Size and same first answer</h2>" in Path(f"{out}.report.html").read_text()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="a device of Unix")
def test_to_a_device(model: Path) -> None:
    """Nothing is written beside it."""
    assert verydeep.compress(model, "/dev/null").report is None
    assert not list(Path("/dev").glob("null?*"))


def test_without_photos_nothing_is_promised(model: Path, tmp_path: Path) -> None:
    made = verydeep.compress(model, tmp_path / "o")
    assert "nothing of its answers is promised" in made.report.read_text()  # type: ignore[union-attr]
    assert isinstance(made, Compressed)
    assert "nothing of its answers is promised" in str(made)
    with pytest.raises(ArgumentError, match="size is 1; no file of this network has fewer than"):
        verydeep.compress(model, tmp_path / "o", size=1)
    events: list[Mapping[str, object]] = []
    least = least_of(model)
    far = verydeep.compress(model, tmp_path / "o", size=least, on_event=events.append)
    assert not far.met
    assert len(events) < 9  # it was not gone on with once nothing became smaller
    assert "the goal was not met: this is the nearest" in str(far)
    assert modelfile.read(tmp_path / "o").tensors()


def least_of(model: Path) -> int:
    with pytest.raises(ArgumentError) as caught:
        verydeep.compress(model, model.with_name("never"), size=1)
    return int(str(caught.value).partition("fewer than ")[2].split()[0])


@pytest.mark.parametrize("size", [120_000, 500_000_000])
def test_more_bytes_than_it_can_take(model: Path, photos: Path, tmp_path: Path, size: int) -> None:
    """The finest there is, rounded all the same, and found in a few trials."""
    made = verydeep.compress(model, tmp_path / "o", calibrate=photos, size=size)
    assert made.met
    assert made.size_bytes < made.before_bytes
    assert "compressed_from" in modelfile.read(tmp_path / "o").record.provenance
    assert all(one["coarseness"] > 0 for one in made.trials)
    assert made.error is not None
    assert made.error < 1e-3


def test_from_python_nothing_is_shown(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(70):
        tiny.photo(tmp_path / "data" / tiny.NAMES[seed % 7] / f"{seed}.png", seed=seed)
    verydeep.compress(model, tmp_path / "o", data=tmp_path / "data")
    shown = capsys.readouterr()
    assert not shown.out
    assert "measuring accuracy" not in shown.err
    source = modelfile.read(tmp_path / "o").record.provenance["compressed_from"]
    assert "folder" not in source  # type: ignore[operator]  # it is somebody's own


def test_photos_of_one_name_are_several(photos: Path) -> None:
    """As the images of two arrays, which have numbers for names."""
    files = sorted(photos.iterdir())
    some = [(name, files[at].read_bytes()) for at in range(6) for name in ("image 0",)]
    whole = _digest(_digests(some))
    assert whole.startswith("6 photos of digest ")
    assert _digest(_digests(some[1:])) != whole
    other = [("image 0", files[9].read_bytes()), *some[1:]]
    assert _digest(_digests(other)) != whole


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


def test_numbers_that_cannot_be_are_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    """At once, by name, before a photo is looked for; numpy's own are taken."""
    wrong = {
        "size": (0, "6MB", math.nan, 2.5), "multiply_adds": (-5, "9"), "count": (0, -5, "9"),
        "threads": (0,), "max_drop": (-1, math.nan, "1", True), "speedup": (1, math.nan, "2"),
    }  # fmt: skip
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(ArgumentError, match=f"^{name} is {value!r}; expected "):
            verydeep.compress(model, tmp_path / "o", calibrate=photos, **{name: value})
    assert not list(tmp_path.glob("o*"))
    made = verydeep.compress(model, tmp_path / "o", size=np.int64(20_000), threads=np.int32(1))
    assert made.size_bytes <= 20_000


def test_a_folder_of_hidden_files_is_somebody_elses(model: Path, tmp_path: Path) -> None:
    """Of what is hidden a lock, and what was not written to its end, are ours."""
    folder = tmp_path / "o.work"
    folder.mkdir()
    for name in (".lock", ".asked.json.12345678.part"):
        (folder / name).touch()
    verydeep.compress(model, tmp_path / "o", threads=1)
    assert not folder.exists()
    folder.mkdir()
    (folder / ".mine").write_text("s")
    with pytest.raises(OutputError, match=r"o\.work: holds something else"):
        verydeep.compress(model, tmp_path / "o", threads=1)
    assert (folder / ".mine").read_text() == "s"


def test_through_a_link(model: Path, tmp_path: Path) -> None:
    """The file behind it is written; where there can be none, that is said before the work."""
    (tmp_path / "there").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "there" / "o")
    verydeep.compress(model, tmp_path / "good", threads=1)
    assert (tmp_path / "good").is_symlink()
    assert modelfile.read(tmp_path / "there" / "o").tensors()
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "o")
    with pytest.raises(OutputError, match="dangling: cannot be written: No such file"):
        verydeep.compress(model, tmp_path / "dangling", on_event=pytest.fail)
