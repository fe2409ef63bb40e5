"""The pieces of training, each against an independent answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from PIL.JpegImagePlugin import JpegImageFile
from sklearn import metrics

from verydeep.datasets import labelled
from verydeep.errors import DataError
from verydeep.evaluation import figures
from verydeep.models import build
from verydeep.preprocess import PRESETS, Preprocess
from verydeep.training import draws
from verydeep.training.data import augment
from verydeep.training.data.colours import colour_shift, statistics
from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Source
from verydeep.training.data.views import Views, pictures
from verydeep.training.learner import Learner, normaliser
from verydeep.training.loop import Position, fit
from verydeep.training.optim import drops_after, effort, rate_at, side_at
from verydeep.training.recipes import Config, changed, finetune, paper, recipe, small_images
from verydeep.training.stuck import Stuck

from .labelled import FIT, arrays, images, in_memory

GOLDEN = Path(__file__).parent / "golden" / "training_curve.json"


def held(count: int = 40) -> Views:
    pixels, labels = images(count, seed=3)
    samples = [
        labelled.Sample(p, int(k), str(i))
        for i, (p, k) in enumerate(zip(pixels, labels, strict=True))
    ]
    return pictures(samples, FIT)


def luck(count: int) -> augment.Luck:
    return partial(draws.uniform, 0, 0, np.arange(count))


# Random numbers


def test_draws_are_uniform_and_independent() -> None:
    indices = np.arange(20_000)
    one = draws.uniform(0, 0, indices, "row")
    assert one.min() >= 0
    assert one.max() < 1
    np.testing.assert_allclose(np.histogram(one, 10, (0, 1))[0], 2000, atol=200)
    for other in (
        draws.uniform(1, 0, indices, "row"), draws.uniform(0, 1, indices, "row"),
        draws.uniform(0, 0, indices, "column"), draws.uniform(0, 0, indices + 1, "row"),
    ):  # fmt: skip
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_draws_are_pinned() -> None:
    # by hand from SplitMix64's definition, in whole numbers without end
    def mixed(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    import zlib

    state = 12
    for fact in (zlib.crc32(b"row"), 5, 7):
        state = mixed(state ^ mixed(fact))
    assert int(draws.bits(7, 5, [12], "row")[0]) == state


def test_order_is_a_permutation_of_its_own_each_epoch() -> None:
    first, second = draws.order(0, 0, 100), draws.order(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).sum() > 80


# Augmentation


@pytest.mark.parametrize("epoch", [2, 3])
def test_shift_and_flip_is_pad_crop_and_mirror(epoch: int) -> None:
    pixels = held().images
    assert pixels is not None
    indices = np.arange(len(pixels))
    config = changed(small_images(), {"seed": 1, "size": 32, "padding": 0.125, "cover": 0})
    found = in_memory(held(), config).batch(epoch, indices).images
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    rows, columns = (
        np.floor(draws.uniform(1, epoch, indices, name) * 9).astype(int)
        for name in ("row", "column")
    )
    mirrored = draws.uniform(1, 0, indices, "flip") < 0.5
    if epoch == 3:  # the other side
        mirrored = ~mirrored
    assert 0 < mirrored.sum() < len(pixels)
    for i in indices:
        crop = padded[i, rows[i] : rows[i] + 32, columns[i] : columns[i] + 32]
        np.testing.assert_array_equal(found[i], crop[:, ::-1] if mirrored[i] else crop)


def test_cover_is_one_square_of_one_colour() -> None:
    batch = np.full((50, 16, 16, 3), 7, np.uint8)
    augment.cover(batch, luck(50), side=4, colour=np.array([1, 2, 3], np.uint8))
    hidden = (batch == [1, 2, 3]).all(-1)
    assert hidden.sum((1, 2)).max() == 16
    assert hidden.any((1, 2)).all()
    for mask in hidden:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
    assert ((batch == 7).all(-1) | hidden).all()


def test_cutmix_is_a_rectangle_of_the_next_image() -> None:
    batch = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    left = augment.mix(batch, luck(60), mixup=0, cutmix=1.0)
    for i, image in enumerate(batch):
        pasted = (image == (i + 1) % 60).all(-1)
        assert (pasted | (image == i).all(-1)).all()
        assert pasted.sum() == pasted.any(1).sum() * pasted.any(0).sum()
        assert left[i] == pytest.approx(1 - pasted.mean())
    assert left.std() > 0.1


@pytest.mark.parametrize("mix", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_a_mixture_is_of_its_labels(mix: dict[str, float]) -> None:
    flat = np.zeros((30, 32, 32, 3), np.uint8)
    labels = np.arange(30) % 3
    flat[np.arange(30), :, :, labels] = 200
    samples = [labelled.Sample(p, int(k)) for p, k in zip(flat, labels, strict=True)]
    config = changed(small_images(), {"cover": 0, **mix})
    batch = in_memory(pictures(samples, FIT), config).batch(0, np.arange(30))
    assert batch.others is not None
    assert batch.shares is not None
    assert batch.shares.std() > 0.05
    expected = np.zeros((30, 3))
    np.add.at(expected, (np.arange(30), batch.labels), 200 * batch.shares)
    np.add.at(expected, (np.arange(30), batch.others), 200 * (1 - batch.shares))
    np.testing.assert_allclose(batch.images.mean((1, 2)), expected, atol=0.6)


def test_augmentation_depends_on_the_image_alone() -> None:
    source = in_memory(held(), changed(small_images(), {"jitter": 0.4}))
    whole = source.batch(3, np.arange(40))
    part = source.batch(3, np.array([31, 4]))
    np.testing.assert_array_equal(part.images, whole.images[[31, 4]])
    assert (source.batch(4, np.arange(40)).images != whole.images).any()


@pytest.mark.parametrize("times", [(1.3, 1, 1), (1, 0.6, 1), (1, 1, 1.4), (0.8, 1.2, 0.7)])
def test_recoloured_is_pils(times: tuple[float, float, float]) -> None:
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(60, 180, (20, 30, 3), dtype=np.uint8))
    expected = photo
    for enhance, factor in zip(
        (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness),
        times[::-1],
        strict=True,
    ):
        expected = enhance(expected).enhance(factor)
    found = np.asarray(augment.recoloured(photo, np.array(times))).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 2  # theirs rounds three times


def test_jitter_goes_as_far_as_it_may() -> None:
    times = augment.jitter(luck(3000), most=0.4)
    np.testing.assert_allclose([times.min(0), times.max(0)], [[0.6] * 3, [1.4] * 3], atol=0.01)
    np.testing.assert_allclose(np.corrcoef(times.T), np.eye(3), atol=0.06)


def test_colour_shift_is_the_papers() -> None:
    draw = np.random.default_rng(0)
    pixels = (draw.normal(0, 30, (40, 8, 8, 1)) + draw.normal(120, 10, (40, 8, 8, 3))).clip(0, 255)
    found = statistics([pixels.astype(np.uint8)])
    flat = pixels.astype(np.uint8).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(found.mean, flat.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(flat.T, bias=True))
    shift = colour_shift(found, luck(20_000), deviation=0.1)
    # sum of p_i a_i l_i: its covariance is P diag((0.1 l)^2) P', which is (0.1 C)^2, in the scale of 0 to 1
    expected = (0.1 * np.cov(flat.T / 255, bias=True)) @ (0.1 * np.cov(flat.T / 255, bias=True))
    np.testing.assert_allclose(np.cov(shift.T / 255), expected, rtol=0.1, atol=1e-8)
    np.testing.assert_allclose(shift.mean(0), 0, atol=0.02)


def test_a_photos_crop_is_of_the_rescaled_photo(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    photo = small.resize((120, 90), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "a.png")
    config = changed(paper(), {"size": 32, "scales": (40, 48), "flip": False, "colour": 0.0})
    source = Source(
        [labelled.Sample(str(tmp_path / "a.png"), 0)] * 8, config, statistics([np.asarray(photo)])
    )
    seen = source.batch(0, np.arange(8)).images
    sides = set()
    for view, u in zip(seen, draws.uniform(config.seed, 0, np.arange(8), "scale"), strict=True):
        shorter = 40 + int(u * 9)
        sides.add(shorter)
        whole = np.asarray(photo.resize((round(shorter * 120 / 90), shorter), 2)).astype(int)
        gaps = [
            np.abs(whole[y : y + 32, x : x + 32] - view).mean()
            for y in range(whole.shape[0] - 31) for x in range(whole.shape[1] - 31)
        ]  # fmt: skip
        assert min(gaps) < 3  # it is somewhere there; the photo's own deviation is above 50
    assert len(sides) > 2


@pytest.mark.parametrize("scales", [(40,), ()])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_that_is_decoded_smaller_gives_the_same_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scales: tuple[int, ...], orientation: int
) -> None:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    photo = small.resize((480, 360), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.jpg", quality=95, exif=exif, subsampling=0)
    config = changed(paper(), {"size": 32, "scales": scales, "colour": 0.0, "jitter": 0.2})
    source = Source(
        [labelled.Sample(str(tmp_path / "a.jpg"), 0)] * 8, config, statistics([np.asarray(photo)])
    )
    drafts: list[object] = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *a: drafts.append(a[2]) or draft(*a))
    found = source.batch(0, np.arange(8)).images.astype(float)
    assert drafts
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    whole = source.batch(0, np.arange(8)).images
    assert 0 < np.abs(found - whole).mean() < 2


# Feeding


def counted(count: int, **changes: object) -> Source:
    """Images each of one value, its number."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 32, 32, 3), np.uint8
    )
    config = changed(
        small_images(), {"cover": 0, "flip": False, "padding": 0, "size": 32, **changes}
    )
    return in_memory(pictures([labelled.Sample(p, 0) for p in pixels], FIT), config)


def seen(source: Source, rank: int = 0, world: int = 1, first: int = 0) -> list[list[int]]:
    feed = Feed(source, source.config, rank, world)
    batches = [b.images[:, 0, 0, 0].tolist() for b in feed.epoch(0, first)]
    assert len(batches) == feed.steps - first
    return batches


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (43, 10, [10, 10, 10, 10, 3]), (42, 10, [10, 10, 10, 10, 2]), (41, 10, [10, 10, 10, 11]),
        (40, 10, [10] * 4), (7, 10, [7]), (11, 10, [11]), (3, 1, [1, 1, 1]), (1, 10, [1]),
    ],
)  # fmt: skip
def test_every_image_is_learned_from_once_an_epoch(
    count: int, batch: int, sizes: list[int]
) -> None:
    batches = seen(counted(count, batch=batch))
    assert [len(one) for one in batches] == sizes
    assert sorted(i for one in batches for i in one) == list(range(count))
    assert seen(counted(count, batch=batch), first=len(sizes) // 2) == batches[len(sizes) // 2 :]


@pytest.mark.parametrize(("count", "world"), [(43, 3), (42, 2), (41, 2), (44, 4), (10, 5), (5, 4)])
def test_processes_share_an_epoch_without_doubles(count: int, world: int) -> None:
    source = counted(count, batch=10)
    shares = [seen(source, rank, world) for rank in range(world)]
    together = [sorted(i for share in step for i in share) for step in zip(*shares, strict=True)]
    assert together == [sorted(step) for step in seen(source)]
    # batch norm makes nothing of one image
    assert 1 not in {len(share) for one in shares for share in one}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_batch_of_hardly_any_images(tmp_path: Path, count: int) -> None:
    Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "a.png")
    samples = [labelled.Sample(str(tmp_path / "a.png"), 1, "a")] * 3
    config = changed(
        paper(), {"size": 32, "scales": (), "jitter": 0.1, "cover": 0.2, "mixup": 0.2, "cutmix": 1}
    )
    found = statistics([pictures(samples, FIT).images])
    for source in (
        Source(samples, config, found),
        in_memory(pictures(samples, FIT), config),
    ):
        batch = source.batch(0, np.arange(count))
        assert batch.images.shape == (count, 32, 32, 3)
        assert batch.labels.shape == batch.others.shape == batch.shares.shape == (count,)
        assert batch.shift.shape == (count, 3)
    bad = [*samples[:2], labelled.Sample(str(tmp_path / "none.png"), 0, "none")]
    batch = Source(bad, config, found).batch(0, np.arange(2 - count, 3))
    assert len(batch.images) == len(batch.shares) == count
    assert [name for name, _ in batch.bad] == ["none"]


def test_balanced_sampling_evens_out() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    pixels = np.zeros((1000, 32, 32, 3), np.uint8)
    samples = [labelled.Sample(p, int(k)) for p, k in zip(pixels, labels, strict=True)]
    config = changed(small_images(), {"balance": "sampling"})
    feed = Feed(in_memory(pictures(samples, FIT), config), config)
    counts = sum(np.bincount(labels[feed.indices(e) % 1000], minlength=3) for e in range(5))
    np.testing.assert_allclose(counts, 5000 / 3, rtol=0.1)


def test_what_is_shown_more_often_is_shown_differently() -> None:
    """24 draws of two images gave two pictures, again and again."""
    labels = np.array([0] * 46 + [1] * 2)
    draw = np.random.default_rng(0)
    samples = [
        labelled.Sample(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), int(k)) for k in labels
    ]
    config = changed(small_images(), {"balance": "sampling", "size": 32, "batch": 48})
    source = in_memory(pictures(samples, FIT), config)
    [batch] = Feed(source, config).epoch(0)
    rare = batch.images[batch.labels == 1]
    assert len(rare) > 15
    assert len(np.unique(rare, axis=0)) > 0.9 * len(rare)
    # and what comes for the first time, as it always was
    alone = Source(samples, changed(config, {"balance": "none"}), source._found, 0, source._held)
    numbers = Feed(source, config).indices(0)
    first = numbers[numbers < 48]
    np.testing.assert_array_equal(source.batch(0, first).images, alone.batch(0, first).images)


def test_balanced_sampling_of_several_labels_an_image() -> None:
    labels = np.zeros((1000, 3), np.float32)  # the third class has no image
    labels[:900, 0] = 1  # and 100 images no class
    labels[:45, 1] = 1
    samples = [
        labelled.Sample(
            np.zeros((32, 32, 3), np.uint8), 0, labels=tuple(map(int, np.flatnonzero(row)))
        )
        for row in labels
    ]
    config = changed(small_images(), {"balance": "sampling", "size": 32, "mixup": 0.2})
    source = in_memory(pictures(samples, FIT), config, classes=3)
    np.testing.assert_array_equal(source.labels, labels)
    drawn = Feed(source, config).indices(0) % 1000
    # a third of the draws are for each, and of those for the first class 5 % are of both
    assert labels[drawn, 1].mean() == pytest.approx(0.35, abs=0.05)
    assert labels[drawn].any(1).mean() == pytest.approx(2 / 3, abs=0.05)
    batch = source.batch(0, np.array([3, 700]))
    assert batch.others is not None
    np.testing.assert_array_equal(batch.labels, labels[[3, 700]])
    np.testing.assert_array_equal(batch.others, labels[[700, 3]])


# The rate


@pytest.mark.parametrize("steps", [1, 3, 5, 21])
def test_no_rate_is_above_the_highest(steps: int) -> None:
    """A warm-up of half an epoch of 3 steps ended at 1.33 times it."""
    config = changed(finetune(), {"epochs": 4})
    rates = [rate_at(config, step, steps) for step in range(4 * steps)]
    assert max(rates) <= config.rate
    assert rates[0] > 0


def test_a_plateau_of_several_labels_an_image_is_of_those_to_validate() -> None:
    config = changed(small_images(), {"schedule": "plateau", "patience": 3})
    rows = [{"train_top1": k / 10, "mean_average_precision": 1 - k / 10} for k in range(8)]
    assert drops_after(config, rows) == drops_after(
        config, [{"train_top1": 0.0, "top1": row["mean_average_precision"]} for row in rows]
    )
    assert drops_after(config, rows) == 2


def test_settings_are_numpys_too() -> None:
    """And one of many is itself: a number needs no list around it."""
    config = changed(
        small_images(),
        {
            "rate": np.float32(0.5),
            "epochs": np.int64(3),
            "flip": np.bool_(False),
            "grow": 1,
            "scales": 96,
        },
    )
    assert (config.rate, config.epochs, config.flip) == (0.5, 3, False)
    assert (config.grow, config.scales) == ((1.0,), (96,))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    for wrong in (-1, 0, float("nan"), "nan", np.float64("nan"), None, True, [1]):
        with pytest.raises(DataError, match="width is"):
            changed(small_images(), {"width": wrong})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_rises_and_falls(schedule: str) -> None:
    config = changed(small_images(), {"epochs": 10, "warmup": 2, "rate": 0.4, "schedule": schedule})
    rates = [rate_at(config, step, 5) for step in range(50)]
    left = 1 - np.arange(40) / 40
    fallen = (1 - np.cos(np.pi * left)) / 2 if schedule == "cosine" else left
    np.testing.assert_allclose(rates, 0.4 * np.append(np.arange(1, 11) / 10, fallen))


def test_images_grow_by_equal_parts_of_the_epochs() -> None:
    config = changed(small_images(), {"epochs": 7, "grow": "0.5,0.75,1", "size": 40})
    assert config.sides == (20, 30, 40)
    assert [side_at(config, epoch) for epoch in range(7)] == [20, 20, 20, 30, 30, 40, 40]
    assert side_at(changed(config, {"grow": ()}), 0) == 40
    with pytest.raises(
        DataError, match=r"grow is .* expected parts of the size, above 0 and at most 1"
    ):
        changed(config, {"grow": "16,32"})


def test_what_epochs_take_goes_with_pixels() -> None:
    config = changed(small_images(), {"epochs": 6, "grow": "0.5,1", "size": 40})
    assert effort(config, 3) == 3 * 20**2
    assert effort(config, 3.5) == 3 * 20**2 + 40**2 / 2
    assert effort(config, 6) == 3 * 20**2 + 3 * 40**2
    even = changed(config, {"grow": ()})
    assert effort(even, 2) * 3 == effort(even, 6)


def test_a_plateau_drops_the_rate() -> None:
    def drops(*accuracies: float, **changes: object) -> int:
        rows = [{"top1": one, "train_top1": 0.0} for one in accuracies]
        return drops_after(changed(paper(), {"patience": 2, **changes}), rows)

    assert drops(0.1, 0.2, 0.3) == 0
    assert drops(0.1, 0.3, 0.3, 0.2) == 1
    assert drops(0.1, 0.3, 0.3, 0.2, 0.25, 0.26) == 2
    assert drops(0.1, 0.3, 0.3, 0.2, 0.4, 0.1) == 1
    assert drops(0.1, 0.3, 0.3, 0.2, schedule="cosine") == 0
    assert rate_at(paper(), 1000, 10, drops=2) == pytest.approx(1e-4)


# Figures


def test_figures_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(7), 200).astype(np.float32)
    labels = draw.choice(6, 200)  # the last class has no image
    guesses = probabilities.argmax(1)
    assert figures.top(probabilities, labels) == metrics.accuracy_score(labels, guesses)
    for k in (2, 5):
        assert figures.top(probabilities, labels, k) == pytest.approx(
            metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=range(7))
        )
    table = figures.confusion(probabilities, labels)
    np.testing.assert_array_equal(table, metrics.confusion_matrix(labels, guesses, labels=range(7)))
    by_class = figures.class_figures(table)
    theirs = metrics.precision_recall_fscore_support(
        labels, guesses, labels=range(7), zero_division=0
    )
    for ours, other in zip(by_class, theirs, strict=True):
        np.testing.assert_allclose(ours, other)
    assert math.isnan(figures.top(probabilities[:0], labels[:0]))


# The loop's pieces


@pytest.mark.parametrize("name", ["torchvision", "caffe", "lpips"])
def test_normalising_on_the_device_is_the_records(name: str) -> None:
    record: Preprocess = PRESETS[name]
    pixels, _ = images(4, seed=0)
    found = normaliser(record, torch.device("cpu"))(torch.from_numpy(pixels), None)
    np.testing.assert_allclose(found.numpy(), record.normalise(pixels), rtol=1e-4, atol=1e-4)


def learner(**changes: object) -> tuple[Learner, Feed]:
    config = changed(
        small_images(), {"precision": "fp32", "layout": "default", "batch": 12, "dropout": 0.0,
                         "cover": 0, "average": 0.0, "optimiser": "sgd", **changes},
    )  # fmt: skip
    torch.manual_seed(0)
    model = build("vgg11_bn", classes=3, head="small", width=1 / 16, init="glorot", dropout=0.0)
    made = Learner(model, config, Preprocess(), torch.device("cpu"))
    made.model.train()
    return made, Feed(in_memory(held(), config), config)


def followed(ours: Learner, feed: Feed, after: Callable[[], object] = lambda: None) -> list[float]:
    """The mean loss of each step of an epoch at a rate of 0.1; after: called after each."""
    losses = []

    def event(line: dict[str, Any]) -> None:
        if line["event"] == "step":
            losses.append(line["loss"])
            after()

    fit(ours, feed, Position(), event=event, rate_of=lambda _: 0.1, every=1)
    return losses


def test_a_step_is_plain_torch() -> None:
    ours, feed = learner(smoothing=0.1, decay=0.01, epochs=1)
    losses = followed(ours, feed)
    torch.manual_seed(0)
    model = build(
        "vgg11_bn", classes=3, head="small", width=1 / 16, init="glorot", dropout=0.0
    ).train()
    pulled = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimiser = torch.optim.SGD(
        [{"params": pulled, "weight_decay": 0.01}, {"params": others}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for step, batch in enumerate(feed.epoch(0)):
        inputs = torch.from_numpy(Preprocess().normalise(batch.images))
        expected = F.cross_entropy(
            model(inputs), torch.from_numpy(batch.labels), label_smoothing=0.1
        )
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
        assert losses[step] == pytest.approx(float(expected.detach()), rel=1e-3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-2, atol=1e-3)


def test_shown_smaller_is_resized() -> None:
    ours, feed = learner()
    batch = next(iter(feed.epoch(0)))
    found = ours.shaped(torch.from_numpy(batch.images), None, 16)
    whole = torch.from_numpy(Preprocess().normalise(batch.images))
    # half the side, antialiased: a triangle of four pixels, 1 3 3 1, but at the edges
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (weights[:, None] * weights).expand(3, 1, 4, 4)
    expected = F.conv2d(whole, kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert found.shape[-2:] == (16, 16)


def test_accumulated_parts_are_one_step() -> None:
    results = []
    for parts in (1, 3):
        # batch norm would see other batches
        ours, feed = learner(accumulate=parts, decay=0.0, keep_norm=True, epochs=1)
        followed(ours, feed)
        results.append(ours.model.state_dict()["features.0.weight"].clone())
    torch.testing.assert_close(results[0], results[1])


def test_the_average_lags_behind() -> None:
    ours, feed = learner(average=0.5, epochs=1)
    key = "classifier.6.weight"
    seen = [ours.model.state_dict()[key].clone()]
    followed(ours, feed, lambda: seen.append(ours.model.state_dict()[key].clone()))
    expected = seen[0]
    for step, weights in enumerate(seen[1:]):
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weights
    torch.testing.assert_close(ours.average.state_dict()[key], expected)


def test_the_golden_curve() -> None:
    """20 steps, as golden/training_curve_make.py recorded them; wide enough for other processors."""
    from .golden.training_curve_make import curve

    np.testing.assert_allclose(curve(), json.loads(GOLDEN.read_text()), rtol=0.02)


def test_stuck_at_chance_is_told_once() -> None:
    watch = Stuck(10, batch_norm=False)
    told = [
        watch({"event": "step", "step": step, "loss": math.log(10) + 0.001})
        for step in range(0, 700, 10)
    ]
    lines = [line for line in told if line]
    assert len(lines) == 1
    assert "2.304 = ln 10" in lines[0]
    assert "--model vgg16_bn" in lines[0]
    moving = Stuck(10, batch_norm=False)
    assert not any(
        moving({"event": "step", "step": s, "loss": 2.3 if s % 100 else 2.0})
        for s in range(0, 700, 10)
    )


# Recipes


def test_recipes_say_their_command() -> None:
    from importlib import import_module

    from verydeep.training.recipes import RECIPES

    for name, (module, _) in RECIPES.items():
        text = getattr(import_module(module), name.replace("-", "_")).__doc__
        for word in ("Command: verydeep train", f"--recipe {name}", "Expected:", "Duration:"):
            assert word in text, name
        config = recipe(name)
        assert config.recipe == name
        assert {"epochs", "batch", "seed"} <= set(config.to_dict())


def test_settings_are_of_their_kind() -> None:
    config = changed(
        small_images(), ["size=32", "scales=40,48", "rate=1e-2", "flip=false", "width=1"]
    )
    assert config.scales == (40, 48)
    assert changed(config, {"scales": 40, "layers": "relu5_3"}).scales == (40,)
    assert config.rate == 0.01
    assert config.flip is False
    assert config.width == 1.0
    assert changed(config, {}) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(paper().to_dict()) == paper()
    with pytest.raises(DataError, match="none below the 32 pixels"):
        changed(config, ["scales=20"])


def test_the_paper_recipe_is_section_3_1() -> None:
    found = paper()
    assert (found.batch, found.momentum, found.decay, found.rate) == (256, 0.9, 5e-4, 1e-2)
    assert (found.dropout, found.drops, found.epochs, found.scales) == (0.5, 3, 74, (256,))
    assert found.decay_all
    assert not found.nesterov
    assert isinstance(found, Config)


def test_arrays_are_read_back(tmp_path: Path) -> None:
    found = labelled.find(arrays(tmp_path / "set.npz"))
    pixels, labels = images(48, seed=0)
    np.testing.assert_array_equal(pictures(found.train, FIT).images, pixels)
    assert [s.label for s in found.train] == labels.tolist()
