"""Weights of columns: the pull on them against NumPy, and what becomes of noise."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine, make_classification
from torch import nn

from sklip import LipschitzClassifier, certificates
from sklip.layers import ColumnWeightedLinear, SpectralLinear, retract_, to_torch
from sklip.losses import BinaryTauCrossEntropyLoss, TauCrossEntropyLoss
from sklip.training import StiefelMuon
from sklip.training.columns import penalize_, weighted_columns

pytestmark = pytest.mark.usefixtures("seeded_torch")


def noisy(n_rows=300, n_columns=40):
    return make_classification(
        n_rows, n_columns, n_informative=4, n_redundant=0, shuffle=False, random_state=0
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_pull_is_a_share_of_the_size_of_each_rows_gradient(n_outputs, weighted):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 5)), rng.integers(0, max(2, n_outputs), 20)
    weight = rng.uniform(0.5, 3, 20) if weighted else np.ones(20)
    layer = ColumnWeightedLinear(5, n_outputs).double()
    logits = layer(torch.from_numpy(X))
    logits.retain_grad()
    loss = (BinaryTauCrossEntropyLoss if n_outputs == 1 else TauCrossEntropyLoss)(2.0)
    loss(logits, torch.from_numpy(y), torch.from_numpy(weight) if weighted else None).backward()
    before = layer.column_weights.grad.clone()
    scales = torch.from_numpy(rng.uniform(0.1, 1, 5))
    penalize_(layer.column_weights, scales, logits, torch.from_numpy(weight) if weighted else None)
    pull = (layer.column_weights.grad - before).numpy()
    # The gradient of tau * cross-entropy / tau by the logits is the probability less the truth.
    scores = 2.0 * logits.detach().numpy()
    if n_outputs == 1:
        residuals = 1 / (1 + np.exp(-scores)) - y[:, None]
    else:
        residuals = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) - np.eye(3)[y]
    size = np.sqrt(np.average((residuals**2).sum(1), weights=weight))
    np.testing.assert_allclose(pull, 0.3 * size * scales.numpy(), rtol=1e-12)


def test_layers_of_other_widths_and_frozen_ones_are_left_alone():
    layers = nn.Sequential(ColumnWeightedLinear(5, 4), ColumnWeightedLinear(4, 3), SpectralLinear(3, 2))
    assert weighted_columns(layers, None) == []
    (found,) = weighted_columns(layers, torch.ones(4))
    assert found is layers[1].column_weights
    layers[1].column_weights.requires_grad_(False)
    outputs = layers(torch.randn(3, 5))
    outputs.retain_grad()
    outputs.sum().backward()
    penalize_(found, torch.ones(4), outputs, None)
    assert found.grad is None


@pytest.mark.parametrize("solver", ["muon", "adam"])
def test_weights_stay_between_0_and_1_and_the_constant_at_most_k(solver):
    layer = ColumnWeightedLinear(6, 8, k=2.0)
    optimizer = torch.optim.Adam(layer.parameters(), 0.5)
    if solver == "muon":
        optimizer = StiefelMuon(layer, lr=0.3)
    for step in range(12):
        optimizer.zero_grad()
        sign = 1.0 if step < 6 else -1.0
        (layer.column_weights * torch.tensor([1, 1, 1, -1, -1, -1.0]) * sign).sum().backward()
        layer.raw.grad = torch.randn_like(layer.raw)
        optimizer.step()
        if solver == "adam":
            retract_(layer)
        assert (layer.column_weights >= 0).all()
        assert (layer.column_weights <= 1).all()
        assert torch.linalg.matrix_norm(layer.weight, ord=2) <= 2.0 * (1 + 1e-3)


def test_the_export_is_a_plain_linear_layer_of_the_same_function():
    layer = ColumnWeightedLinear(5, 4, k=3.0).double()
    with torch.no_grad():
        layer.column_weights.uniform_()
    X, plain = torch.randn(7, 5, dtype=torch.float64), to_torch(layer)
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(X), layer(X), rtol=1e-12, atol=1e-12)


def test_noise_loses_its_weight_and_what_matters_keeps_it():
    X, y = noisy()
    clf = LipschitzClassifier(random_state=0).fit(X, y)
    assert (clf.column_weights_[:4] > 0.5).sum() >= 3
    assert np.median(clf.column_weights_[4:]) < 0.2
    test_X, test_y = noisy(600)
    plain = LipschitzClassifier(random_state=0, hidden_layer_sizes=(64, 64), loss="hkr").fit(X, y)
    assert (plain.column_weights_ == 1).all()
    assert clf.lipschitz_bound_ <= 1 + 1e-9
    # Rows that were trained on are the first of these.
    assert clf.score(test_X[300:], test_y[300:]) > 0.75


def test_columns_that_agree_keep_their_weights():
    X, y = load_wine(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    clf = LipschitzClassifier(random_state=0).fit(X, y)
    assert (clf.column_weights_ == 1).all()


def test_a_column_without_weight_carries_no_change():
    X, y = noisy()
    clf = LipschitzClassifier(random_state=0).fit(X, y)
    gone = np.flatnonzero(clf.column_weights_ == 0)
    assert len(gone) > 5
    far = X.copy()
    far[:, gone] += 1e3
    np.testing.assert_array_equal(clf.predict(far), clf.predict(X))
    others = np.flatnonzero(clf.column_weights_ > 0)
    # Only rounding, of the columns' own values, is left to bound how far they may go.
    assert (certificates(clf, X, fixed_columns=others.tolist()) > 1e9).all()
