"""Direct sums compute what the plain layers compute, whatever the global switches say."""

import numpy as np
import pytest
import torch
from torch import nn

from sklip.inference import direct_forward, flat_chain
from sklip.layers import to_torch
from sklip.networks import lipschitz_cnn, tutorial_cnn

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 5), "padding": "same"},
    {"kernel_size": 3, "stride": 2, "padding": (1, 0), "dilation": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "padding": "valid", "groups": 4},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_a_convolution_is_the_one_of_torch(arguments):
    layer = nn.Conv2d(40, 8, **arguments).double()
    x = torch.randn(3, 40, 9, 10, dtype=torch.float64)
    # Sums of at most 400 terms of size 1 in two orders.
    torch.testing.assert_close(direct_forward(layer, x), layer(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_features", [1, 127, 128, 129, 1000])
def test_a_linear_layer_is_the_one_of_numpy(n_features):
    layer = nn.Linear(n_features, 5).double()
    x = np.random.default_rng(0).normal(size=(7, n_features))
    expected = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    # 1000 terms below 1 in another order.
    np.testing.assert_allclose(direct_forward(layer, torch.from_numpy(x)), expected, atol=1e-12)


@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn])
def test_networks_are_evaluated_in_batches_without_a_trace(build):
    network = to_torch(build((1, 12, 12), 10)).eval().double()
    x = torch.randn(300, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    output = direct_forward(network, x)
    assert not output.requires_grad
    torch.testing.assert_close(output, network(x).detach(), rtol=0, atol=1e-12)
    assert all(type(layer) is not nn.Sequential for layer in flat_chain(network))


@pytest.mark.parametrize("switch", ["medium", "high"])
def test_products_of_low_precision_are_not_used(switch):
    network = to_torch(lipschitz_cnn((1, 8, 8), 3)).eval()
    x = torch.rand(9, 1, 8, 8)
    exact = direct_forward(network.double(), x.double())
    network.float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(switch)
        got = direct_forward(network, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, exact.float())


def test_autocast_does_not_reach_the_sums():
    network = to_torch(lipschitz_cnn((1, 8, 8), 3)).eval()
    x = torch.rand(9, 1, 8, 8)
    expected = direct_forward(network, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(direct_forward(network, x), expected)
