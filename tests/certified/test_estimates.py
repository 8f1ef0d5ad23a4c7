"""The empirical constant lies below the proven one, and meets it where the network is an isometry."""

import numpy as np
import pytest
import torch

from sklip import lipschitz_bound, lipschitz_estimate
from sklip.layers import to_torch
from sklip.networks import lipschitz_cnn, lipschitz_mlp

pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lipschitz_mlp((20,), 4, (32, 32)), (20,)),
        (lipschitz_cnn((1, 8, 8), 4, (4, 8), (16,)), (1, 8, 8)),
        (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)), (5,)),
    ],
    ids=["mlp", "cnn", "relu"],
)
def test_the_estimate_is_below_the_bound(network, shape):
    plain = to_torch(network).double()
    estimate = lipschitz_estimate(plain, torch.randn(30, *shape, dtype=torch.float64))
    # The estimate's own rounding: products of some hundred numbers in float64.
    assert 0 < estimate <= lipschitz_bound(plain) * (1 + 1e-12)


def test_the_bound_of_an_orthogonal_network_is_tight():
    plain = to_torch(lipschitz_mlp((32,), 4, (32, 32))).double()
    estimate = lipschitz_estimate(plain, torch.randn(5, 32, dtype=torch.float64))
    # Square orthogonal matrices, permutations and a head with orthonormal rows, stored in float32.
    assert lipschitz_bound(plain) * (1 - 1e-6) <= estimate


def test_the_estimate_is_the_largest_norm_of_the_jacobians():
    first, second = torch.nn.Linear(5, 7).double(), torch.nn.Linear(7, 3).double()
    X = torch.randn(30, 5, dtype=torch.float64)
    W, V = first.weight.detach().numpy(), second.weight.detach().numpy()
    active = X.numpy() @ W.T + first.bias.detach().numpy() > 0
    norms = [np.linalg.norm(V @ (each[:, None] * W), ord=2) for each in active]
    assert min(norms) < 0.9 * max(norms)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    assert lipschitz_estimate(network, X) == pytest.approx(max(norms), rel=1e-12)
