"""Thresholds and means of computed probabilities, against torch itself and against exact sums."""

import math

import numpy as np
import pytest
import torch

from sklip.certified.decisions import with_winners
from sklip.certified.probabilities import (
    LogitDifferences,
    check_tau,
    compared,
    leads,
    radii_of_means,
    undecided_logits,
    undecided_outputs,
)
from sklip.certified.radii import predicted_codes

# -- thresholds ----------------------------------------------------------------------------------

THRESHOLDS = [1e-30, 1e-6, 0.01, 0.3, 0.5, 0.5000001, 0.7, 0.99, 1 - 1e-6, 1 - 1e-12]


def positive_probability(logits, tau):
    """As LipschitzClassifier.predict_proba computes it."""
    scores = torch.from_numpy(logits)[:, None]
    probabilities = torch.sigmoid(tau * torch.cat((-scores, scores), dim=1)).numpy()
    return with_winners(probabilities, predicted_codes(logits[:, None]))[:, 1]


def neighbours(value, dtype, count):
    """Representable numbers around a value: the nearest ones, and ever further ones."""
    center = np.array(value, dtype=dtype)
    integer = {"float32": np.int32, "float64": np.int64}[dtype]
    steps = np.unique(np.concatenate([np.arange(count), np.geomspace(1, 2**20, count).astype(int)]))
    bits = center.view(integer) + np.concatenate([-steps, steps]).astype(integer)
    return bits.view(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tau", [1e-3, 0.7, 3.0, 100.0])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_outside_of_the_interval_the_computed_sigmoid_is_on_the_side_that_is_claimed(
    threshold, tau, dtype
):
    low, high = undecided_logits(*compared(threshold, dtype), tau, dtype)
    assert low < high
    for end in (low, high):
        if math.isinf(end):
            continue
        logits = neighbours(end, dtype, 20_000)
        reached = positive_probability(logits, tau) >= threshold
        assert not reached[logits <= low].any()
        assert reached[logits >= high].all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threshold", [1e-6, 0.01, 0.3, 0.5, 0.7, 0.99])
def test_the_interval_is_some_units_of_a_probability_wide(threshold, dtype):
    low, high = undecided_logits(*compared(threshold, dtype), 3.0, dtype)
    middle = (math.log(threshold) - math.log1p(-threshold)) / 3
    # A unit of p is 1 / (1 - p) of its logit; the logit itself loses some of its own.
    unit = np.finfo(dtype).eps
    width = 200 * unit * (1 / (1 - threshold) + abs(middle))
    assert middle - width < low < middle < high < middle + width


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1.0, (-math.inf, -math.inf)),
        (0.0, (-math.inf, -math.inf)),
        (1.5, (math.inf, math.inf)),
        (math.inf, (math.inf, math.inf)),
        (-math.inf, (-math.inf, -math.inf)),
    ],
)
def test_beyond_0_and_1_one_side_is_certain_everywhere(threshold, expected, dtype):
    assert undecided_logits(*compared(threshold, dtype), 3.0, dtype) == expected


def test_a_threshold_of_1_is_never_certainly_reached():
    low, high = undecided_logits(1.0, 1.0, 3.0, "float32")
    assert high == math.inf
    assert 0 < low < 17 / 3


@pytest.mark.parametrize("threshold", [0.1, 1 / 3, np.float64(0.1), np.float32(0.1), 1e-50, 1])
def test_a_threshold_may_be_rounded_as_numpy_does(threshold):
    low, high = compared(threshold, "float32")
    scores = neighbours(np.float32(threshold), "float32", 50)
    reached = scores >= threshold
    assert reached[scores >= high].all()
    assert not reached[scores.astype(np.float64) < low].any()
    assert low <= float(threshold) <= high


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threshold", [-1e30, -2.5, -1e-40, 0.0, 1e-300, 1e-10, 0.1, 7.0, 1e30])
def test_rounding_a_logit_keeps_it_on_its_side(threshold, dtype):
    low, high = undecided_outputs(threshold, threshold, dtype)
    assert high - low <= 4 * np.finfo(dtype).eps * abs(threshold) + 8 * np.finfo(dtype).tiny
    for end in (low, high):
        wide = neighbours(end, "float64", 2000)
        wide = np.concatenate([wide, wide * (1 + 1e-7), wide * (1 - 1e-7)])
        with np.errstate(under="ignore"):
            logits = with_winners(wide.astype(dtype)[:, None], (wide > 0).astype(int))[:, 0]
        assert (logits.astype(float)[wide >= high] >= threshold).all()
        assert (logits.astype(float)[wide <= low] < threshold).all()


def test_a_threshold_beyond_the_numbers_is_reached_by_none():
    low, high = undecided_outputs(1e39, 1e39, "float32")
    assert high == math.inf
    assert low > 1e38


@pytest.mark.parametrize("tau", [0.0, -1.0, 1e-20, 1e20, math.nan])
def test_factors_that_flush_or_overflow_are_refused(tau):
    assert check_tau(np.float32(3.0)) == 3.0
    with pytest.raises(TypeError, match="must lie between 1e-12 and 1e12"):
        check_tau(tau)


# -- means ---------------------------------------------------------------------------------------


def member(logits, slopes, *, tau=1.0, weight=1.0, unit=2.0**-53):
    """Differences of logits that move by at most `slopes` for each unit of distance."""
    values = logits[:, :, None] - logits[:, None, :]
    per_distance = np.broadcast_to(slopes, values.shape)
    return LogitDifferences(values, np.zeros_like(values), per_distance, tau, weight, unit)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("n_classes", [2, 3, 6])
def test_leads_are_below_those_of_all_logits_within_the_bounds(n_classes):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2, 50, n_classes))
    weights, taus = (2.0, 0.5), (1.0, 3.0)
    members = [
        member(each, 1 - np.eye(n_classes), tau=tau, weight=weight)
        for each, tau, weight in zip(logits, taus, weights, strict=True)
    ]
    radii = rng.uniform(0, 3, size=50)
    codes = rng.integers(n_classes, size=50)
    bounds, rows = leads(members, codes, radii), np.arange(50)
    closest = np.full(bounds.shape, np.inf)
    corners = rng.choice([-0.5, 0.5], size=(500, 2, 50, n_classes))
    for moves in np.concatenate([corners, rng.uniform(-0.5, 0.5, size=corners.shape)]):
        moved = sum(
            weight * softmax(tau * (each + move * radii[:, None]))
            for each, move, tau, weight in zip(logits, moves, taus, weights, strict=True)
        )
        real = moved[rows, codes][:, None] - moved
        real[rows, codes] = np.inf
        assert (bounds <= real + 1e-12).all()
        closest = np.minimum(closest, real - np.where(np.isinf(bounds), 0, bounds))
    if n_classes == 2:
        # Both members' worst logits are tried, and for two classes the bound is attained.
        assert closest[np.isfinite(closest)].max() < 1e-9


def test_the_radius_of_one_member_is_that_of_its_margins():
    """A mean of one: the largest probability is the largest logit."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 5))
    codes = logits.argmax(axis=1)
    one = member(logits, np.sqrt(2) * (1 - np.eye(5)))
    radii, rivals = radii_of_means([one], codes, np.full(200, 1e6))
    ordered = np.sort(logits, axis=1)
    exact = (ordered[:, -1] - ordered[:, -2]) / np.sqrt(2)
    assert (radii <= exact).all()
    np.testing.assert_allclose(radii, exact, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(rivals, logits.argsort(axis=1)[:, -2])


def test_what_never_fails_is_limited_by_what_is_claimed_at_all():
    one = member(np.array([[1.0, 0.0]]), np.zeros((2, 2)))
    radii, rivals = radii_of_means([one], np.array([0]), np.array([7.0]))
    assert radii.tolist() == [7.0]
    assert rivals.tolist() == [0]


@pytest.mark.parametrize("longest", [0.0, -1.0, math.nan])
def test_where_nothing_is_claimed_the_radius_is_0(longest):
    one = member(np.array([[1.0, 0.0]]), 1 - np.eye(2))
    radii, rivals = radii_of_means([one], np.array([0]), np.array([longest]))
    assert radii.tolist() == [0.0]
    assert rivals.tolist() == [1]


def test_ties_and_numbers_that_overflow_have_radius_0():
    logits = np.array([[1.0, 1.0], [np.inf, 0.0], [1e308, -1e308]])
    with np.errstate(invalid="ignore", over="ignore"):
        one = member(logits, 1 - np.eye(2))
        radii, _ = radii_of_means([one], np.zeros(3, dtype=int), np.full(3, 9.0))
    assert radii[:2].tolist() == [0.0, 0.0]
