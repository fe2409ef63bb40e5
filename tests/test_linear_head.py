"""The solver against scikit-learn's answers, and the pieces that a probe is judged with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import binomtest, ttest_rel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.metrics import log_loss as sklearn_log_loss

from verydeep.errors import DataError
from verydeep.evaluation.figures import average_precision
from verydeep.probing.choosing import less, mcnemar, threshold, thresholds
from verydeep.probing.linear import folds, log_loss, scaling, solve, temperature


def problem(
    count: int = 300, width: int = 40, classes: int = 5, noise: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different sizes, one that never changes, and labels that they half explain."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, width)) * np.geomspace(0.01, 100, width)
    truth = draw.normal(size=(width, classes)) / np.geomspace(0.01, 100, width)[:, None]
    labels = (features @ truth + noise * draw.normal(size=(count, classes))).argmax(axis=1)
    features += 50
    features[:, 7] = 3.3
    return features.astype(np.float32), labels


@pytest.mark.parametrize("l2", [1e-3, 1e-1, 10.0])
def test_it_is_scikit_learns_answer(l2: float) -> None:
    features, labels = problem()
    scaled = scaling(features).apply(features)
    head = solve(scaled, labels, 5, l2=l2, tolerance=1e-7)
    other = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=10_000)
    other.fit(scaled.astype(np.float64), labels)
    assert head.gradient <= 1e-7
    assert_allclose(head.weight, other.coef_, atol=2e-4 * np.abs(other.coef_).max())
    # a number added to every bias changes nothing
    assert_allclose(
        head.bias - head.bias.mean(), other.intercept_ - other.intercept_.mean(), atol=1e-3
    )


def test_a_start_near_the_answer_saves_steps_and_changes_nothing() -> None:
    features, labels = problem()
    scaled = scaling(features).apply(features)
    cold = solve(scaled, labels, 5, l2=0.05, tolerance=1e-6)
    warm = solve(scaled, labels, 5, l2=0.05, tolerance=1e-6, start=cold)
    near = solve(scaled, labels, 5, l2=0.06, tolerance=1e-6, start=cold)
    assert (cold.steps > near.steps, warm.steps) == (True, 0)
    assert_allclose(warm.weight, cold.weight)


def test_classes_that_can_be_told_apart_entirely() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = (np.eye(3)[labels] * 100 + draw.normal(size=(90, 3))).astype(np.float32)
    head = solve(features, labels, 3, l2=1e-6)
    assert (head.scores(features).argmax(axis=1) == labels).all()
    assert np.isfinite(head.weight).all()


def test_a_class_without_examples_gets_low_scores() -> None:
    features, labels = problem()
    scaled = scaling(features).apply(features)
    head = solve(scaled, labels, 6, l2=0.1)
    assert (head.scores(scaled).argmax(axis=1) < 5).all()


def test_scaling_and_what_it_folds_into() -> None:
    features, labels = problem()
    scale = scaling(features)
    scaled = scale.apply(features)
    assert_allclose(
        scaled.mean(axis=0), 0, atol=2e-3
    )  # float32: the mean is 50, the least scale 0.01
    deviation = scaled.std(axis=0)
    assert_allclose(np.delete(deviation, 7), 1, rtol=1e-3)
    assert (scaled[:, 7] == 0).all()
    head = solve(scaled, labels, 5, l2=0.1)
    raw = scale.fold(head)
    assert_allclose(
        features.astype(np.float64) @ raw.weight.T.astype(np.float64) + raw.bias,
        head.scores(scaled), atol=1e-2,
    )  # fmt: skip
    assert (raw.weight[:, 7] == 0).all()
    layers = scaling(features, (15, 25))
    assert (layers.apply(features)[:, 7] == 0).all()
    before, after = features.std(axis=0), layers.apply(features).std(axis=0)
    for layer in (slice(15), slice(15, 40)):
        # a channel's deviation is the root of what it was; a layer's mean square is 1
        own = np.sqrt(before[layer] / before[layer].mean())
        assert_allclose(np.delete(after[layer], 7), np.delete(own, 7), rtol=1e-2)
    with pytest.raises(DataError, match="l2 is 0; expected a number above 0"):
        solve(scaled, labels, 5, l2=0)


def test_folds_are_stratified_seeded_and_keep_groups_together() -> None:
    labels = np.array([0] * 10 + [1] * 7 + [2] * 3)
    fold = folds(labels, 3, seed=1)
    table = np.array([[((fold == f) & (labels == c)).sum() for c in range(3)] for f in range(3)])
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1
    assert (fold == folds(labels, 3, seed=1)).all()
    assert (fold != folds(labels, 3, seed=2)).any()
    groups = np.arange(20) // 2  # copies, side by side
    fold = folds(np.repeat(np.arange(2), 10), 3, groups=groups)
    assert (fold[::2] == fold[1::2]).all()


def test_the_temperature_that_was_hidden_is_found() -> None:
    draw = np.random.default_rng(0)
    scores = 3 * draw.normal(size=(20_000, 4))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) > draw.random((20_000, 1))).argmax(axis=1)
    assert temperature(2.5 * scores, labels) == pytest.approx(2.5, rel=0.03)
    assert log_loss(scores, labels) == pytest.approx(sklearn_log_loss(labels, chances), rel=1e-9)
    assert log_loss(2.5 * scores, labels, divide=2.5) == pytest.approx(log_loss(scores, labels))


# Several labels a photo


def several(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and whether each example is of each of four classes; the last is rare."""
    features, _ = problem(count, seed=seed)
    draw = np.random.default_rng(seed)
    scaled = scaling(features).apply(features)
    hidden = scaled @ draw.normal(size=(40, 4)) + 2 * draw.normal(size=(count, 4))
    return scaled, (hidden > np.array([0, 3, -4, 13])).astype(np.float32)


@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_several_labels_are_scikit_learns_answers_one_by_one(l2: float) -> None:
    features, labels = several()
    assert 0 < labels[:, 3].sum() < 20
    head = solve(features, labels, 4, l2=l2, tolerance=1e-7)
    for at in range(4):
        other = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=10_000)
        other.fit(features.astype(np.float64), labels[:, at])
        assert_allclose(
            head.weight[at], other.coef_[0], atol=3e-4 * np.abs(other.coef_).max(), err_msg=str(at)
        )
        assert head.bias[at] == pytest.approx(other.intercept_[0], abs=1e-3)
    scores = head.scores(features)
    chances = 1 / (1 + np.exp(-scores.astype(np.float64)))
    expected = np.mean([sklearn_log_loss(labels[:, at], chances[:, at]) for at in range(4)])
    assert log_loss(scores, labels) == pytest.approx(expected, rel=1e-6)
    assert log_loss(3 * scores, labels, divide=3) == pytest.approx(expected, rel=1e-6)
    assert log_loss(np.float32([[1e4, -1e4]]), np.array([[1, 0]])) == 0


def test_several_labels_are_spread_over_folds() -> None:
    _, labels = several()
    fold = folds(labels, 4)
    rare = np.bincount(fold[labels[:, 3] > 0], minlength=4)
    assert np.ptp(rare) <= 1
    assert np.ptp(np.bincount(fold)) <= 4
    assert (folds(np.zeros((8, 3)), 4) == folds(np.zeros(8, int), 4)).all()


def test_several_labels_have_a_temperature() -> None:
    draw = np.random.default_rng(0)
    scores = 2 * draw.normal(size=(20_000, 3))
    labels = (draw.random(scores.shape) < 1 / (1 + np.exp(-scores))).astype(np.float32)
    assert temperature(1.7 * scores, labels) == pytest.approx(1.7, rel=0.03)


def test_thresholds_have_the_largest_f1() -> None:
    draw = np.random.default_rng(1)
    labels = (draw.random((120, 3)) < (0.5, 0.1, 0.3)).astype(np.float32)
    labels[0, 1] = 1
    scores = np.round(3 * labels - 1 + 2 * draw.normal(size=labels.shape), 1)  # with ties
    found = thresholds(scores, labels, 2.0)
    chances = 1 / (1 + np.exp(-scores / 2))
    for at in range(3):
        own = f1_score(labels[:, at], chances[:, at] >= found[at])
        every = [f1_score(labels[:, at], chances[:, at] >= cut) for cut in chances[:, at]]
        assert own == pytest.approx(max(every))
        assert not np.isclose(chances[:, at], found[at], atol=1e-6).any()
    assert thresholds(scores, np.zeros_like(labels)).tolist() == [0.5, 0.5, 0.5]
    assert thresholds(np.full((4, 1), 3.0), np.ones((4, 1)))[0] < 0.95


def test_a_rare_class_is_not_said_of_every_photo() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(60, 2)) - 5
    labels = np.zeros((60, 2))
    labels[:2, 0] = 1  # of two photos, one the least likely of all
    scores[0, 0] = -9
    labels[np.argsort(-scores[:, 1])[[10, 20, 30, 40, 50, 59]], 1] = 1  # nothing is known of these
    assert thresholds(scores, labels).tolist() == [0.5, 0.5]


def test_average_precision_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random((90, 5)) < 0.3).astype(np.float32)
    labels[:, 4] = 0
    chances = np.round((0.3 * labels + draw.random(labels.shape)) / 1.3, 2).astype(np.float32)
    made = average_precision(chances, labels)
    for at in range(4):
        expected = average_precision_score(labels[:, at], chances[:, at])
        assert made[at] == pytest.approx(expected, rel=1e-9)
    assert np.isnan(made[4])


# Two classifiers on the same photos


@pytest.mark.parametrize("won_lost", [(0, 0), (3, 0), (9, 2), (2, 9), (30, 20), (700, 640)])
def test_mcnemar_is_scipys_binomial(won_lost: tuple[int, int]) -> None:
    won, lost = won_lost
    expected = binomtest(won, won + lost, 0.5, "greater").pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)


def test_one_photo_in_a_hundred_is_below_the_threshold() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(5000, 3)) * 4
    chances = np.exp(scores / 2) / np.exp(scores / 2).sum(axis=1, keepdims=True)
    assert (chances.max(axis=1) < threshold(scores, 2.0)).mean() == pytest.approx(0.01, abs=2e-3)
    # where all are sure, all are answered
    sure = np.tile([11.0, 0, 0], (100, 1))
    assert threshold(sure) == 0.9999


@pytest.mark.parametrize("gain", [-0.02, 0.0, 0.02, 0.05])
def test_smaller_losses_are_scipys_paired_t_test(gain: float) -> None:
    draw = np.random.default_rng(3)
    theirs = draw.gamma(1, 0.3, 400)
    ours = theirs - gain + draw.normal(0, 0.2, 400)
    expected = ttest_rel(ours, theirs, alternative="less").pvalue
    assert less(ours, theirs) == pytest.approx(expected, abs=2e-3)
    assert less(theirs, theirs) == 1.0
