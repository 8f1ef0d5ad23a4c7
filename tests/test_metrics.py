"""Metrics against plain loops."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from sklip.metrics import (
    average_certified_radius_score,
    average_normalized_margin_score,
    certified_accuracy_score,
)

N = 60
# A mean of N values adds 2 N roundings at most (products and sums) to sizes below SIZE.
SIZE = 10.0
ROUNDING = 4 * N * SIZE * np.finfo(float).eps

LABELS = {
    "integers": np.array([3, -1, 7]),
    "strings": np.array(["cat", "dog", "axolotl"]),
    "objects": np.array(["cat", "dog", "axolotl"], dtype=object),
    "booleans": np.array([False, True]),
}


def draw(labels, seed=0):
    """True labels, predictions that are right for about half the samples, radii, weights."""
    rng = np.random.default_rng(seed)
    y_true = rng.choice(labels, N)
    y_pred = np.where(rng.random(N) < 0.4, y_true, rng.choice(labels, N))
    # Rounded, so that some radii equal the eps of the tests, which do not count.
    radii = rng.uniform(0, 1, N).round(1)
    return y_true, y_pred, radii, rng.uniform(0, 2, N)


def loop_mean(values, weights):
    weights = [1.0] * len(values) if weights is None else list(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("eps", [0, 0.3, np.float32(0.5), 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_certified_accuracy_counts_right_predictions_with_a_radius_above_eps(labels, weighted, eps):
    y_true, y_pred, radii, weights = draw(labels)
    weights = weights if weighted else None
    counts = [1.0 if t == p and r > eps else 0.0 for t, p, r in zip(y_true, y_pred, radii, strict=True)]
    score = certified_accuracy_score(y_true, y_pred, radii, eps=eps, sample_weight=weights)
    assert type(score) is float
    assert score == pytest.approx(loop_mean(counts, weights), rel=0, abs=ROUNDING)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_average_certified_radius_counts_wrong_predictions_as_zero(labels, weighted):
    y_true, y_pred, radii, weights = draw(labels)
    weights = weights if weighted else None
    counts = [float(r) if t == p else 0.0 for t, p, r in zip(y_true, y_pred, radii, strict=True)]
    score = average_certified_radius_score(y_true, y_pred, radii, sample_weight=weights)
    assert type(score) is float
    assert score == pytest.approx(loop_mean(counts, weights), rel=0, abs=ROUNDING)


def test_a_radius_of_exactly_eps_does_not_count():
    # A radius speaks of smaller perturbations only.
    assert certified_accuracy_score([1, 1], [1, 1], [0.5, np.nextafter(0.5, 1)], eps=0.5) == 0.5
    assert certified_accuracy_score([1], [1], [0.0], eps=0) == 0


def test_certified_accuracy_never_rises_with_eps():
    y_true, y_pred, radii, weights = draw(LABELS["integers"])
    scores = [
        certified_accuracy_score(y_true, y_pred, radii, eps=eps, sample_weight=weights)
        for eps in np.linspace(0, 1, 21)
    ]
    assert scores == sorted(scores, reverse=True)


def test_infinite_radii_exceed_every_eps_and_make_the_mean_infinite():
    radii = [np.inf, 1.0, np.inf]
    assert certified_accuracy_score([0, 1, 2], [0, 1, 0], radii, eps=1e300) == pytest.approx(1 / 3)
    assert average_certified_radius_score([0, 1, 2], [0, 1, 2], radii) == math.inf
    # A wrong prediction counts 0, whatever its radius.
    assert average_certified_radius_score([1, 1, 1], [0, 1, 0], radii) == pytest.approx(1 / 3)


def test_a_sample_of_weight_zero_does_not_count_even_with_an_infinite_radius():
    score = average_certified_radius_score([0, 1], [0, 1], [np.inf, 1.0], sample_weight=[0, 2])
    assert score == 1.0


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, pd.Series])
def test_metrics_take_any_sequence(convert):
    y_true, y_pred = convert([0, 1, 1]), convert([0, 1, 0])
    radii, weights = convert([0.5, 1.0, 2.0]), convert([1.0, 1.0, 2.0])
    assert certified_accuracy_score(y_true, y_pred, radii, eps=0.75, sample_weight=weights) == 0.25
    assert average_certified_radius_score(y_true, y_pred, radii, sample_weight=weights) == 0.375


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf, -math.inf, None, [0.5], 10**400])
def test_eps_must_be_a_finite_budget(eps):
    message = f"^eps must be a finite number of at least 0, got {re.escape(str(eps))}"
    with pytest.raises(ValueError, match=message):
        certified_accuracy_score([0], [0], [1.0], eps=eps)


def test_labels_may_be_tensors_that_require_gradients():
    labels = torch.tensor([0.0, 1.0], requires_grad=True)
    assert certified_accuracy_score(labels, labels, [1.0, 1.0], eps=0.5) == 1


def test_words_beside_numbers_are_an_error_not_a_score_of_0():
    for y_true, y_pred in (
        (["0", "1"], [0, 1]),
        (np.array([0, 1]), np.array(["0", "1"], dtype=object)),
    ):
        with pytest.raises(ValueError, match="Mix of label input types"):
            certified_accuracy_score(y_true, y_pred, [1.0, 1.0], eps=0.5)
        with pytest.raises(ValueError, match="Mix of label input types"):
            average_certified_radius_score(y_true, y_pred, [1.0, 1.0])
    assert certified_accuracy_score([True, False], [1.0, 0.0], [1.0, 1.0], eps=0.5) == 1
    words = np.array(["a", "b"], dtype=object)
    assert certified_accuracy_score(words, words.astype(str), [1.0, 1.0], eps=0.5) == 1


def certified_at_half(*arrays, **kwargs):
    return certified_accuracy_score(*arrays, eps=0.5, **kwargs)


BOTH = pytest.mark.parametrize(
    "metric", [certified_at_half, average_certified_radius_score], ids=["accuracy", "radius"]
)


@BOTH
@pytest.mark.parametrize("bad", [-1e-300, math.nan, -math.inf])
def test_radii_must_be_lengths(metric, bad):
    with pytest.raises(ValueError, match=r"^radii must be at least 0 and not NaN"):
        metric([0, 1], [0, 1], [1.0, bad])


@BOTH
@pytest.mark.parametrize("lengths", [(3, 2, 2), (2, 3, 2), (2, 2, 3)])
def test_lengths_must_agree(metric, lengths):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        metric(*(np.ones(n) for n in lengths))


@BOTH
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"sample_weight\.shape"),
        ([1.0, 1.0, 1.0], r"sample_weight\.shape"),
        ([1.0, -1.0], "Negative values"),
        ([0.0, 0.0], "at least one non-zero"),
        ([1.0, math.nan], "NaN"),
        ([1.0, math.inf], "infinity"),
    ],
)
def test_weights_must_be_weights(metric, weights, message):
    with pytest.raises(ValueError, match=message):
        metric([0, 1], [0, 1], [1.0, 1.0], sample_weight=weights)


@BOTH
def test_no_samples_are_an_error(metric):
    with pytest.raises(ValueError, match=r"minimum of 1|at least (1|one)|empty"):
        metric([], [], [])


# -- the negative form ---------------------------------------------------------------------------


def loop_margins(y_true, scores, classes, bound, disjoint):
    radii = []
    for label, row in zip(y_true, scores, strict=True):
        own = next(c for c in range(len(classes)) if classes[c] == label)
        rival = max(row[c] for c in range(len(classes)) if c != own)
        radii.append((row[own] - rival) / ((2 if disjoint else 2**0.5) * bound))
    return radii


@pytest.mark.parametrize("bound", [1.0, 0.25, 3])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_normalized_margin_is_that_of_the_true_class(labels, weighted, disjoint, bound):
    y_true, _, _, weights = draw(labels)
    weights = weights if weighted else None
    scores = np.random.default_rng(1).normal(size=(N, len(labels)))
    expected = loop_mean(loop_margins(y_true, scores, labels, bound, disjoint), weights)
    score = average_normalized_margin_score(
        y_true,
        scores,
        classes=labels,
        lipschitz_bound=bound,
        disjoint_neurons=disjoint,
        sample_weight=weights,
    )
    assert type(score) is float
    assert score == pytest.approx(expected, rel=0, abs=ROUNDING / bound)


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [[0, 1], ["no", "yes"], ["yes", "no"]])
def test_normalized_margin_of_one_logit_is_that_towards_the_true_class(classes, weighted, disjoint):
    y_true, _, _, weights = draw(np.array(classes))
    weights = weights if weighted else None
    scores = np.random.default_rng(1).normal(size=N)
    radii = [
        (score if label == classes[1] else -score) / 2.0
        for label, score in zip(y_true, scores, strict=True)
    ]
    score = average_normalized_margin_score(
        y_true,
        scores,
        classes=classes,
        lipschitz_bound=2.0,
        disjoint_neurons=disjoint,
        sample_weight=weights,
    )
    assert score == pytest.approx(loop_mean(radii, weights), rel=0, abs=ROUNDING)


def test_normalized_margin_is_negative_where_wrong_and_agrees_with_the_average_where_right():
    scores, classes = [[2.0, 0.0], [0.0, 1.0]], ["a", "b"]
    assert average_normalized_margin_score(["b", "a"], scores, classes=classes) < 0
    right = average_normalized_margin_score(["a", "b"], scores, classes=classes)
    radii = [2 / math.sqrt(2), 1 / math.sqrt(2)]
    assert right == pytest.approx(
        average_certified_radius_score(["a", "b"], ["a", "b"], radii), rel=0, abs=ROUNDING
    )


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_normalized_margin_needs_a_positive_bound(bound):
    with pytest.raises(ValueError, match=r"^lipschitz_bound must be positive and finite"):
        average_normalized_margin_score([0], [1.0], classes=[0, 1], lipschitz_bound=bound)


@pytest.mark.parametrize(
    ("y_true", "scores", "classes", "message"),
    [
        ([0, 5], [[1.0, 0.0], [0.0, 1.0]], [0, 1], "only labels of classes"),
        (["a", "c"], [1.0, 0.0], ["a", "b"], "only labels of classes"),
        ([0, 1], [[1.0, 0.0], [0.0, 1.0]], [0, 1, 2], "one column a class"),
        ([0, 1], [[1.0], [0.0]], [0, 1], "one column a class"),
        ([0, 1], [1.0, 0.0], [0, 1, 2], "one column a class"),
        ([0, 1, 1], [1.0, 0.0], [0, 1], "inconsistent numbers of samples"),
        ([0, 1], [1.0, math.nan], [0, 1], "NaN"),
        ([0, 1], [[1.0, math.inf], [0.0, 1.0]], [0, 1], "infinity"),
    ],
)
def test_normalized_margin_refuses_what_does_not_fit(y_true, scores, classes, message):
    with pytest.raises(ValueError, match=message):
        average_normalized_margin_score(y_true, scores, classes=classes)
