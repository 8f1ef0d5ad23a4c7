"""Radii from logits and bounds, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sklip.certified import Budget, certified_radii
from sklip.certified.radii import row_lengths_upper, softmax_budget
from sklip.metrics import normalized_margins

# -- certified_radii against exact rational arithmetic -----------------------------------------


def exact_radius(logits, bounds):
    """The smallest exact quotient as a Fraction, or math.inf."""
    logits = [Fraction(float(value)) for value in np.atleast_1d(logits)]
    if len(logits) == 1:
        margins = [(abs(logits[0]), bounds[0][0])]
    else:
        top = max(range(len(logits)), key=lambda c: (logits[c], -c))
        margins = [(logits[top] - logits[c], bounds[top][c]) for c in range(len(logits)) if c != top]
    radius = math.inf
    for margin, bound in margins:
        if margin == 0:
            return Fraction(0)
        if bound == math.inf:
            return Fraction(0)
        if bound != 0:
            radius = min(radius, margin / Fraction(float(bound)))
    return radius


def normal_floats(width):
    """Numbers whose differences and quotients are far from underflow and overflow."""
    size = st.floats(2.0**-20, 2.0**20, width=width)
    return st.one_of(st.just(0.0), size, size.map(lambda value: -value))


@st.composite
def problems(draw, logit, bound):
    n_classes = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    logits = [draw(logit[dtype]) for _ in range(n_classes)]
    bounds = np.zeros((n_classes, n_classes))
    for i in range(n_classes):
        for j in range(i):
            bounds[i, j] = bounds[j, i] = draw(bound)
    if n_classes == 1:
        return np.array(logits, dtype=dtype), np.array([[draw(bound)]])
    return np.array([logits], dtype=dtype), bounds


NORMAL = problems(
    {np.float32: normal_floats(32), np.float64: normal_floats(64)},
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6)),
)
# Subnormal numbers and such whose sums and differences overflow.
ALL_FINITE = problems(
    {
        width: st.floats(allow_nan=False, allow_infinity=False, width=bits)
        for width, bits in [(np.float32, 32), (np.float64, 64)]
    },
    st.floats(0, allow_nan=False),
)


@settings(deadline=None, max_examples=300)
@given(NORMAL)
def test_radius_is_the_exact_one_or_a_little_below(problem):
    logits, bounds = problem
    (radius,) = certified_radii(logits, bounds)
    exact = exact_radius(logits.ravel(), bounds)
    if exact == math.inf:
        assert radius == math.inf
    else:
        assert Fraction(float(radius)) <= exact
        assert Fraction(float(radius)) >= exact * (1 - Fraction(1, 10**14))


@settings(deadline=None, max_examples=300)
@given(ALL_FINITE)
# 3 / 2 of the smallest float is a tie that rounds up.
@example((np.array([[1.5e-323, 0.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])))
# The sum of the logits is 0, their difference overflows; the radius is 3.4e307.
@example((np.array([[1.7e308, -1.7e308]]), np.array([[0.0, 10.0], [10.0, 0.0]])))
@example((np.array([1e308]), np.array([[0.5]])))
def test_radius_is_never_above_the_exact_one_for_any_finite_logits(problem):
    logits, bounds = problem
    (radius,) = certified_radii(logits, bounds)
    exact = exact_radius(logits.ravel(), bounds)
    assert radius >= 0
    if exact != math.inf:
        # Infinity would say that nothing is far enough.
        assert radius < math.inf
        assert Fraction(float(radius)) <= exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_certify_nothing(dtype):
    bounds = 1.0 - np.eye(3)
    logits = np.array([[1, 1, 0], [0, 2, 2], [3, 3, 3], [0, 0, 0]], dtype=dtype)
    assert certified_radii(logits, bounds).tolist() == [0, 0, 0, 0]
    assert certified_radii(np.array([0.0, -0.0], dtype=dtype), np.ones((1, 1))).tolist() == [0, 0]
    # Even where the two logits can never part.
    assert certified_radii(logits, np.zeros((3, 3))).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "row",
    [
        [math.nan, 1, 0],
        [1, math.nan, 0],
        [0, 1, math.inf],
        [math.inf, math.inf, 0],
        [0, 1, -math.inf],
        [-math.inf, 0, math.inf],
        [math.nan, math.nan, math.nan],
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_with_a_logit_that_is_not_finite_certify_nothing(row, dtype):
    # The other row keeps its radius; no warning is raised.
    radii = certified_radii(np.array([row, [3, 1, 0]], dtype=dtype), 1.0 - np.eye(3))
    assert radii[0] == 0
    assert 2 * (1 - 1e-14) <= radii[1] <= 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_logit_that_is_not_finite_certifies_nothing(value):
    radii = certified_radii(np.array([value, -3.0]), np.array([[2.0]]))
    assert radii[0] == 0
    assert 1.5 * (1 - 1e-14) <= radii[1] <= 1.5


def test_classes_with_equal_rows_in_the_head_never_limit_the_radius():
    bounds = np.array([[0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [4.0, 4.0, 0.0]])
    radii = certified_radii(np.array([[3.0, 2.5, 1.0], [2.0, 2.0, 1.0]]), bounds)
    assert 0.5 * (1 - 1e-14) <= radii[0] <= 0.5
    assert radii[1] == 0
    assert certified_radii(np.array([[3.0, 2.5]]), np.zeros((2, 2))).tolist() == [math.inf]
    assert certified_radii(np.array([3.0, 0.0]), np.zeros((1, 1))).tolist() == [math.inf, 0]


def test_the_bound_of_the_pair_counts_and_not_the_runner_up():
    # The runner-up 1 is further away than class 2, whose bound is larger.
    bounds = np.array([[0.0, 1.0, 10.0], [1.0, 0.0, 1.0], [10.0, 1.0, 0.0]])
    (radius,) = certified_radii(np.array([[5.0, 4.0, 1.0]]), bounds)
    assert 0.4 * (1 - 1e-14) <= radius <= 0.4


def test_a_column_of_single_logits_certifies_no_more_than_the_flat_logits():
    # A binary network in torch returns such a column; it must not count as one class of one.
    logits, bounds = np.array([3.0, -1.0, 0.0]), np.array([[2.0]])
    radii = certified_radii(logits[:, None], bounds)
    assert radii.tolist() == certified_radii(logits, bounds).tolist()


# -- budgets -----------------------------------------------------------------------------------


def added(first, other, n_times):
    """A budget and n_times another one, by additions one after another."""
    total = Budget(*(np.array([[0.0, value]]) for value in first))
    for _ in range(n_times):
        total = total + Budget(*(np.array([[0.0, value]]) for value in other))
    return total


@pytest.mark.parametrize("size", [2.0**-300, 1.0, 2.0**300])
def test_what_rounding_loses_of_sums_of_budgets_is_taken_from_the_radius(size):
    lost = 2.0**-53  # added to 1, half a unit in the last place: it is lost
    logits = size * np.array([[1 + 2.0**-50, 0.0]])
    spent = added((size, 1.0), (size * lost, 0.0), 8)
    assert spent.spent[0, 1] == size
    # The exact sum is the margin itself, of which nothing is left.
    assert spent.radii(logits).tolist() == [0.0]
    assert added((size, 1.0), (0.0, 0.0), 8).radii(logits * 2)[0] > 0
    for numerator in range(16):
        logits = size * np.array([[1 + numerator / 16, 0.0]])
        (radius,) = added((0.0, 1.0), (0.0, lost), 7).radii(logits)
        exact = Fraction(logits[0, 0]) / (1 + 7 * Fraction(lost))
        assert exact * (1 - Fraction(1, 10**14)) <= Fraction(radius) <= exact


def test_a_sum_of_budgets_spends_both_and_reaches_as_far_as_the_shorter():
    ones, twos = np.ones((1, 2)), np.full((1, 2), 2.0)
    total = Budget(ones, twos, np.array([3.0])) + Budget(4 * ones, 8 * twos, np.array([5.0]))
    assert total.spent.tolist() == [[5.0, 5.0]]
    assert total.per_distance.tolist() == [[18.0, 18.0]]
    assert total.longest.tolist() == [3.0]


@pytest.mark.parametrize(
    ("spent", "per_distance", "rival"),
    [
        ([0, 0, 0], [1, 1, 1], 2),
        ([0, 0, 0], [1, 4, 1], 1),
        # All margins are used up at once: the smallest of them counts.
        ([9, 9, 9], [1, 4, 1], 2),
        ([0, 9, 9], [1, 1, 1], 2),
        ([0, 9, 0], [1, 1, 1], 2),
        ([0, 0, 0], [1, 4, 0], 1),
        ([0, 0, 0], [1, 0, 0], 0),
    ],
)
def test_the_rival_is_the_class_whose_margin_is_used_up_first(spent, per_distance, rival):
    logits = np.array([[3.0, 0.0, 1.5]])
    budget = Budget(np.array([spent], dtype=float), np.array([per_distance], dtype=float))
    assert budget.rivals(logits, np.array([0])).tolist() == [rival]


def test_the_rival_of_a_single_logit_is_the_other_class_unless_it_is_never_reached():
    logits, codes = np.array([[2.0], [-2.0], [2.0], [-2.0]]), np.array([1, 0, 1, 0])
    budget = Budget(np.zeros((4, 1)), np.array([[1.0], [1.0], [0.0], [0.0]]))
    assert budget.rivals(logits, codes).tolist() == [0, 1, 1, 0]


# -- lengths, and softmax --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_lengths_of_rows_are_the_exact_ones_or_a_millionth_above(size, dtype):
    rows = (size * np.random.default_rng(0).normal(size=(20, 50))).astype(dtype)
    for row, length in zip(rows, row_lengths_upper(rows), strict=True):
        squared = sum(Fraction(float(x)) ** 2 for x in row)
        assert squared <= Fraction(length) ** 2
        assert length <= math.sqrt(squared) * (1 + 1e-6) + 1e-30


@pytest.mark.parametrize("beta", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_a_softmax_of_logits_further_apart_than_its_budget_decides_as_they_do(shift, dtype, beta):
    rng, unit = np.random.default_rng(0), float(np.finfo(dtype).eps) / 2
    logits = (shift + rng.uniform(-1, 1, size=(300, 2))).astype(dtype)
    budget = softmax_budget(logits, beta, 3.0)
    sizes = np.maximum(np.abs(logits.astype(float)).max(axis=1), 28)
    # Four roundings of the logits and their products, and as many units as an exponential needs.
    least = unit * (4 * sizes + 32 / beta)
    assert (budget.spent >= least[:, None]).all()
    assert (budget.spent <= 7 * least[:, None]).all()
    assert (budget.per_distance >= 3 * 4 * unit).all()
    assert (budget.per_distance <= 3 * 28 * unit).all()
    assert np.isinf(budget.longest)
    logits[:, 1] = np.nextafter(logits[:, 0] + budget.spent[:, 0].astype(dtype), np.inf, dtype=dtype)
    scaled = dtype(beta) * logits
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert (shares[:, 1] > shares[:, 0]).all()


# -- normalized_margins ------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1.0, 0.5, 3])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_normalized_margin_is_top_minus_runner_up_over_the_divisor(n_classes, disjoint, bound):
    scores = np.random.default_rng(0).normal(size=(20, n_classes))
    scores[0, :2] = scores[0].max() + 1  # a tie at the top
    radii = normalized_margins(scores, lipschitz_bound=bound, disjoint_neurons=disjoint)
    for row, radius in zip(scores.tolist(), radii, strict=True):
        second, first = sorted(row)[-2:]
        expected = (first - second) / ((2 if disjoint else 2**0.5) * bound)
        assert radius == pytest.approx(expected, rel=4 * np.finfo(float).eps, abs=0)
    assert radii[0] == 0


@pytest.mark.parametrize("disjoint", [False, True])
def test_normalized_margin_of_one_logit_is_its_size_over_the_bound(disjoint):
    radii = normalized_margins([3.0, -1.0, 0.0], lipschitz_bound=2.0, disjoint_neurons=disjoint)
    assert radii.tolist() == [1.5, 0.5, 0.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_normalized_margin_needs_a_positive_bound(bound):
    with pytest.raises(ValueError, match=r"^lipschitz_bound must be positive and finite"):
        normalized_margins([1.0], lipschitz_bound=bound)


@pytest.mark.parametrize("scores", [[math.nan], [[1.0, math.inf]], [[[1.0, 2.0]]], [[1.0], [2.0]], []])
def test_normalized_margin_refuses_what_are_no_logits(scores):
    with pytest.raises(ValueError, match=r"NaN|infinity|dim|shape|column|class|sample|kth"):
        normalized_margins(scores)
