"""The choice by held-out rows: which rows these are, and when a gain counts."""

import numpy as np
import pytest
import torch
from torch import nn

from sklip.estimators.column_choice import _held_out, weights_pay
from sklip.training.data import TrainingData


def samples_of(X, y, weight=None):
    return TrainingData(X, y, weight, np.unique(y), (X.shape[1],), "float64").samples("cpu")


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 3)), rng.integers(0, 2, 90)


def test_a_third_of_the_rows_and_equal_ones_on_one_side(table):
    X, y = table
    held = _held_out(samples_of(X, y), seed=0)
    assert held.sum() == 30
    assert not np.array_equal(held, _held_out(samples_of(X, y), seed=1))
    repeats = np.random.default_rng(1).integers(0, 4, len(X))
    weighted = samples_of(X, y, repeats.astype(float))
    repeated = samples_of(X.repeat(repeats, axis=0), y.repeat(repeats))
    of_weighted, of_repeated = _held_out(weighted, 0), _held_out(repeated, 0)
    np.testing.assert_array_equal(of_weighted.repeat(repeats[repeats > 0]), of_repeated)


class Certain(nn.Module):
    """Says the sign of the first column with a given margin."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, X):
        return self.margin * X[:, :1].sign()


@pytest.mark.parametrize(
    ("plain", "weighted", "expected"), [(0.1, 2.0, True), (2.0, 0.1, False), (1.0, 1.0, False)]
)
def test_weights_are_taken_where_other_rows_are_predicted_better(table, plain, weighted, expected):
    X, _ = table
    trained_on = []

    def train(samples):
        trained_on.append(len(samples))
        # As good as each other at the second temperature.
        return [(Certain(plain), Certain(weighted)), (Certain(1.0), Certain(1.0))]

    samples = samples_of(X, (X[:, 0] > 0).astype(np.int64))
    assert weights_pay(train, samples, [3.0, 5.0], float(len(X)), seed=0) == [expected, False]
    assert trained_on == [60]


def test_a_gain_within_half_its_error_does_not_count(table):
    X, _ = table
    y = (X[:, 0] > 0).astype(np.int64)
    samples = samples_of(X, y)
    judges = torch.from_numpy(np.flatnonzero(_held_out(samples, 0)))

    class Noisy(nn.Module):
        """As certain as the other in the mean, but for noise and a small gain."""

        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def forward(self, rows):
            noise = torch.linspace(-1, 1, len(judges), dtype=rows.dtype)
            return rows[:, :1].sign() * (5 + noise[:, None] + self.gain)

    def pays(gain):
        def train(_):
            return [(Certain(5.0), Noisy(gain))]

        return weights_pay(train, samples, [1.0], 90.0, seed=0)[0]

    assert not pays(0.0)
    assert pays(2.0)


def test_rows_that_are_all_the_same_have_no_weights():
    def train(samples):
        raise AssertionError("nothing is there to compare by")

    samples = samples_of(np.ones((90, 3)), np.arange(90) % 2)
    assert weights_pay(train, samples, [3.0, 5.0], 90.0, seed=0) == [False, False]
