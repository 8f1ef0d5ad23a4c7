"""Training that goes on: warm starts and partial fits."""

import numpy as np
import pytest
import torch

from sklip import LipschitzClassifier


def quick(**parameters):
    return LipschitzClassifier(**{"max_epochs": 8, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def digits(digits):
    X, y = digits
    return X[:600], y[:600]


def test_warm_start_goes_on_and_a_cold_start_does_not(digits):
    X, y = digits
    warm = quick(warm_start=True).fit(X, y)
    loss = warm.history_[-1]["train_loss"]
    warm.fit(X, y)
    assert warm.n_iter_ == 16
    assert warm.history_[8]["train_loss"] < 2 * loss < warm.history_[0]["train_loss"]
    assert quick().fit(X, y).fit(X, y).n_iter_ == 8


def test_partial_fit_learns_from_parts(digits):
    X, y = digits
    clf = quick()
    for _ in range(6):
        for part in np.array_split(np.arange(len(X)), 3):
            clf.partial_fit(X[part], y[part], classes=np.arange(10))
    assert clf.n_iter_ == 18
    assert clf.score(X, y) > 0.9
    assert clf.lipschitz_bound_ < 1 + 1e-6
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        clf.partial_fit(X, y, classes=[0, 1])


def test_a_partial_fit_of_one_batch_turns_the_constrained_matrices(digits):
    X, y = digits
    clf = quick(solver="muon").partial_fit(X[:100], y[:100], classes=np.arange(10))
    before = [p.detach().clone() for p in clf.net_.module_.parameters() if p.ndim > 1]
    clf.partial_fit(X[100:200], y[100:200])
    after = [p for p in clf.net_.module_.parameters() if p.ndim > 1]
    assert len(after) == 3
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)
