"""Gains of columns against exact fractions, dense decompositions, and changes that really happen."""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklip.certified import Gains, MapBound
from sklip.certified.norms import column_lengths_upper, matrix_norm_upper

# -- chains of maps, drawn at random ---------------------------------------------------------------


@dataclass
class Chain:
    """Maps one after another, each as a function of columns of values, and what Gains says of them."""

    rng: np.random.Generator
    n_columns: int
    kinds: tuple[str, ...]
    fixed: np.ndarray
    start: Gains | None = None
    maps: list = field(default_factory=list)
    gains: Gains = field(init=False)
    n_values: int = field(init=False)
    size: float = 1.0

    def __post_init__(self):
        self.n_values = self.n_columns
        self.gains = Gains.at_start(self.n_columns, self.fixed) if self.start is None else self.start
        if self.start is not None and self.start.moves is not None:
            self.n_values = len(self.start.moves)

    def add(self, kind):
        n, rng = self.n_values, self.rng
        factors = rng.choice([-1.0, 1.0, 1.0], n) * np.exp(rng.normal(scale=2.0, size=n))
        if kind == "scale":
            step = MapBound(np.abs(factors).max(), factors=factors, linear=True)
            self._append(lambda z: factors[:, None] * z, step)
        elif kind == "clip":
            # Values of about 1: some are clipped.
            step = MapBound(np.abs(factors).max(), factors=np.abs(factors))
            self._append(lambda z: factors[:, None] * np.clip(z, -1, 1), step)
        elif kind == "fold":
            # Neither rising nor falling: it moves values by factors on either side of 0.
            step = MapBound(np.abs(factors).max(), factors=np.abs(factors))
            self._append(lambda z: factors[:, None] * np.maximum(z, -z / 2), step)
        elif kind == "pick":
            picked = rng.integers(0, n, rng.integers(1, 5))
            constant = np.sqrt(np.bincount(picked).max())
            step = MapBound(constant, factors=np.ones(len(picked)), sources=picked, linear=True)
            self._append(lambda z: z[picked], step)
        elif kind == "matrix":
            matrix = rng.normal(size=(rng.integers(1, 5), n)) * np.exp(rng.normal(size=n))
            weights = torch.from_numpy(matrix)
            step = MapBound(matrix_norm_upper(weights), matrix=weights)
            self._append(lambda z: matrix @ z, step)
        elif kind == "sort":
            self._append(lambda z: 3 * np.sort(z, axis=0), MapBound(3.0))
        else:
            self._side_by_side()

    def _append(self, function, step):
        self.maps.append(function)
        self.size *= max(1.0, step.constant)
        self.gains = self.gains.through(step)
        self.n_values = len(function(np.zeros((self.n_values, 1))))

    def _side_by_side(self):
        """As the steps of a ColumnTransformer are described."""
        n, known = self.n_values, self.gains.moves is not None
        start = self.gains if known else Gains.at_start(n)
        parts = []
        for _ in range(self.rng.integers(1, 4)):
            reads = self.rng.choice(n, self.rng.integers(1, n + 1), replace=False)
            inner = tuple(kind for kind in self.kinds if kind != "side")
            part = Chain(self.rng, self.n_columns, inner, self.fixed, start.of_values(reads))
            part.n_values = len(reads)
            for kind in self.rng.choice(inner, self.rng.integers(0, 3)):
                part.add(kind)
            parts.append((reads, part))
            self.size *= part.size
        after = Gains.side_by_side([part.gains for _, part in parts], len(start.errors))
        self.gains = after if known else self.gains.times(after.bound)
        self.maps.append(lambda z: np.vstack([part(z[reads]) for reads, part in parts]))
        self.n_values = sum(part.n_values for _, part in parts)

    def __call__(self, values):
        for function in self.maps:
            values = function(values)
        return values


LINEAR = ("scale", "pick", "matrix", "side")
ALL = (*LINEAR, "clip", "fold", "sort")


def drawn_chain(seed, kinds):
    rng = np.random.default_rng(seed)
    n_columns = int(rng.integers(1, 5))
    fixed = (rng.random(n_columns) < 0.25) & (np.arange(n_columns) > 0)
    chain = Chain(rng, n_columns, kinds, fixed)
    for kind in rng.choice(kinds, rng.integers(1, 6)):
        chain.add(kind)
    return chain


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_linear_chains_have_the_gains_of_their_product_and_no_larger_ones(seed):
    chain = drawn_chain(seed, LINEAR)
    identity = np.array(
        [[Fraction(int(i == j)) for j in range(chain.n_columns)] for i in range(chain.n_columns)]
    )
    exact = np.asarray(chain(identity.view(Exact))).view(np.ndarray)
    exact[:, chain.fixed] = Fraction(0)
    gains, rounding = chain.gains, 1e-13 * chain.size
    squares = [sum((entry**2 for entry in column), Fraction(0)) for column in exact.T]
    for square, gain in zip(squares, gains.of_columns.tolist(), strict=True):
        assert square <= Fraction(gain) ** 2
        assert gain <= float(square) ** 0.5 * (1 + 1e-9) + rounding
    norm = np.linalg.norm(exact.astype(np.float64), 2)
    assert norm * (1 - 1e-13) <= gains.bound <= norm * (1 + 1e-9) + rounding
    assert gains.moves is not None
    assert not exact[~gains.moves].any()


class Exact(np.ndarray):
    """An array of Fractions that turns the floats of maps into Fractions before it multiplies them."""

    __array_priority__ = 100

    @staticmethod
    def _exact(other):
        other = np.asarray(other)
        if other.dtype == object:
            return other
        return np.vectorize(Fraction, otypes=[object])(other)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inputs = [self._exact(each).view(np.ndarray) for each in inputs]
        return getattr(ufunc, method)(*inputs, **kwargs).view(Exact)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_change_of_columns_comes_further_than_its_gains(seed):
    chain = drawn_chain(seed, ALL)
    rng, n = np.random.default_rng(seed), chain.n_columns
    x = rng.normal(size=(n, 50)) * 2
    steps = rng.normal(size=(n, 50)) * 10.0 ** rng.integers(-4, 2, 50)
    steps[chain.fixed] = 0
    base, gains = chain(x), chain.gains
    moved = np.linalg.norm(chain(x + steps) - base, axis=0)
    rounding = 1e-10 * (1 + np.abs(base).max())
    assert (moved <= gains.bound * np.linalg.norm(steps, axis=0) * (1 + 1e-9) + rounding).all()
    carried = np.linalg.norm(gains.carried(steps.T), axis=1)
    assert (moved <= carried * (1 + 1e-9) + rounding).all()
    for column in range(n):
        alone = np.where(np.arange(n)[:, None] == column, steps, 0)
        moved = np.linalg.norm(chain(x + alone) - base, axis=0)
        size = np.abs(alone).sum(axis=0)
        assert (moved <= gains.of_columns[column] * size * (1 + 1e-9) + rounding).all()
    if gains.moves is not None:
        assert (chain(x + steps)[~gains.moves] == base[~gains.moves]).all()


# -- what clipping leaves of a product -------------------------------------------------------------


def clipping(factors):
    return MapBound(max(factors), factors=np.array(factors))


def multiplying(matrix):
    weights = torch.tensor(matrix, dtype=torch.float64)
    return MapBound(matrix_norm_upper(weights), matrix=weights)


def test_clipping_before_a_matrix_is_folded_and_after_it_leaves_the_length():
    matrix = np.array([[3.0, 4.0], [0.0, 1.0]])
    before = Gains.at_start(2).through(clipping([1.0, 0.5])).through(multiplying(matrix))
    product = matrix * [1.0, 0.5]
    assert before.bound == pytest.approx(np.linalg.norm(product, 2), rel=1e-9)
    after = Gains.at_start(2).through(multiplying(matrix)).through(clipping([1.0, 0.5]))
    assert after.bound == pytest.approx(np.linalg.norm([[1.0], [0.5]] * matrix, 2), rel=1e-9)
    assert before.moves is not None
    assert after.moves is None
    assert after.through(multiplying([[1.0, 1.0]])).bound == pytest.approx(
        np.sqrt(2) * after.bound, rel=1e-9
    )


def test_values_of_one_column_that_are_clipped_apart_are_not_added_up_with_their_signs():
    """x - clip(x) moves by up to |d|, where the matrix says 0."""
    copied = Gains.at_start(1).of_values(np.array([0, 0]))
    step = MapBound(1.0, factors=np.ones(2))
    difference = copied.through(step).through(multiplying([[1.0, -1.0]]))
    assert difference.bound >= 1
    exact = copied.through(multiplying([[1.0, -1.0]]))
    assert 0 <= exact.bound <= 1e-14


def test_one_part_that_is_clipped_does_not_damp_its_neighbours():
    """x - y, clip(x) + clip(y): from (1, -1) to (2, 0) the first stays, of the second only y moves."""
    start = Gains.at_start(2)
    clipped = start.through(clipping([1.0, 1.0])).through(multiplying([[1.0, 1.0]]))
    plain = start.through(multiplying([[1.0, -1.0]]))
    both = Gains.side_by_side([plain, clipped], 2)
    assert both.bound >= 2**0.5
    assert both.moves is None
    apart = Gains.side_by_side([plain.of_values(np.array([0])), Gains.held(2, 3)], 2)
    assert apart.moves.tolist() == [True, False, False, False]


# -- size, overflow, underflow ---------------------------------------------------------------------


def test_diagonal_chains_take_no_square_of_memory():
    n = 300_000
    gains = Gains.at_start(n)
    step = MapBound(2.0, factors=np.full(n, 2.0), linear=True)
    for _ in range(3):
        gains = Gains.side_by_side([gains.through(step).of_values(np.arange(n))], n)
    assert gains.matrix.shape == (n,)
    assert gains.bound == pytest.approx(8, rel=1e-12)


def test_a_few_mixed_columns_beside_many_others_take_no_square_of_memory():
    n = 50_000
    start = Gains.at_start(n)
    mixed = start.of_values(np.arange(3)).through(multiplying([[1.0, 2.0, 2.0]]))
    beside = Gains.side_by_side([mixed, start.of_values(np.arange(3, n))], n)
    assert beside.matrix.size < 2 * n
    assert beside.bound == pytest.approx(3, rel=1e-9)
    overlapping = Gains.side_by_side([mixed, start], n)
    assert overlapping.bound == pytest.approx(10**0.5, rel=1e-9)


def test_a_product_far_larger_than_its_factors_is_not_formed():
    start = Gains.at_start(40_000).through(multiplying(np.ones((1, 40_000))))
    tall = MapBound(1.0, matrix=torch.full((1000, 1), 1000**-0.5, dtype=torch.float64))
    assert start.through(tall).matrix.shape == (1, 40_000)
    assert start.through(tall).bound == pytest.approx(200, rel=1e-9)


@pytest.mark.filterwarnings("error")
def test_gains_that_overflow_are_infinite_and_those_that_underflow_are_not_zero():
    scaling = [MapBound(size, factors=size, linear=True) for size in (1e200, 1e-200)]
    start = Gains.at_start(2, np.array([False, True]))
    for step, matrix in zip(scaling, ([[1e200, 0.0]], [[1e-200, 1.0]]), strict=True):
        for chain in ([step, step], [step, multiplying(matrix)], [multiplying(matrix), step]):
            gains = start
            for each in chain:
                gains = gains.through(each)
            assert gains.bound > 1e-300
            assert gains.of_columns[0] > 1e-300
            if step is scaling[0]:
                assert gains.bound == np.inf
            elif np.isfinite(gains.bound):
                assert gains.of_columns[1] == 0


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
def test_lengths_of_columns_are_not_below_the_exact_ones(values):
    length = float(column_lengths_upper(np.array(values)[:, None])[0])
    square = sum(Fraction(value) ** 2 for value in values if abs(value) > 1e-290)
    assert square <= Fraction(length) ** 2 if np.isfinite(length) else max(map(abs, values)) > 1e299
