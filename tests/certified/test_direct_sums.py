"""Direct sums compute what the plain layers compute, whatever the global switches say."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sklip.certified import Arithmetic, direct_sums
from sklip.certified.direct_sums import _added_in_pairs, direct_forward, flat_chain
from sklip.layers import Residual, to_torch
from sklip.networks import lipschitz_cnn, tutorial_cnn

pytestmark = pytest.mark.usefixtures("two_threads")

FLOAT32, FLOAT64 = map(Arithmetic.of_networks, ("float32", "float64"))

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
    computed = direct_forward(layer, x, FLOAT64)[0]
    torch.testing.assert_close(computed, layer(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_features", [1, 127, 128, 129, 1000])
def test_a_linear_layer_is_the_one_of_numpy(n_features):
    layer = nn.Linear(n_features, 5).double()
    x = np.random.default_rng(0).normal(size=(7, n_features))
    expected = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    # 1000 terms below 1 in another order.
    computed = direct_forward(layer, torch.from_numpy(x), FLOAT64)[0]
    np.testing.assert_allclose(computed, expected, atol=1e-12)


class Counted:
    """Parts of a sum, and the additions that the first of them went through."""

    def __init__(self, parts, additions=0):
        self.parts, self.additions = parts, additions

    def add_(self, other):
        return Counted(self.parts + other.parts, max(self.additions, other.additions) + 1)


@pytest.mark.parametrize("n_parts", [*range(1, 20), 31, 32, 33, 49, 66, 1000])
def test_sums_of_blocks_are_added_in_as_few_steps_as_the_charge_says(n_parts):
    total = _added_in_pairs(Counted([part]) for part in range(n_parts))
    assert total.additions <= math.ceil(math.log2(n_parts))
    assert sorted(total.parts) == list(range(n_parts))


@pytest.mark.parametrize("n_features", [64, 700, 784])
def test_a_large_linear_layer_errs_no_more_than_the_charge_allows(n_features, monkeypatch):
    # Rows and outputs enough for the detour over oneDNN; values that cancel, and one that is huge.
    rng = np.random.default_rng(0)
    layer = nn.Linear(n_features, 256, bias=False)
    x = rng.normal(size=(1100, n_features)).astype(np.float32)
    x[:, 1] = -x[:, 0]
    x[::3, 2] = 1e8
    weight = layer.weight.detach().double().numpy()
    weight[:, 1] = weight[:, 0]
    layer.weight.data.copy_(torch.from_numpy(weight))
    gamma = FLOAT32.gamma_of_sum(n_features)
    calls, convolution = [], torch.mkldnn_convolution
    monkeypatch.setattr(
        torch, "mkldnn_convolution", lambda *args: calls.append(1) or convolution(*args)
    )
    computed = direct_forward(layer, torch.from_numpy(x), FLOAT32)[0].double().numpy()
    error = np.abs(computed - x @ weight.T)
    assert len(calls) >= n_features // FLOAT32.block
    assert (error <= gamma * (np.abs(x) @ np.abs(weight.T))).all()


@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn])
def test_networks_are_evaluated_in_batches_without_a_trace(build):
    network = to_torch(build((1, 12, 12), 10)).eval().double()
    x = torch.randn(300, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    output = direct_forward(network, x, FLOAT64)[0]
    assert not output.requires_grad
    torch.testing.assert_close(output, network(x).detach(), rtol=0, atol=1e-12)
    assert all(type(layer) is not nn.Sequential for layer in flat_chain(network))


def residual_network():
    return nn.Sequential(
        Residual(
            nn.Conv2d(3, 40, 3, padding=1),
            nn.Sequential(nn.ReLU(inplace=True), Residual(nn.Conv2d(40, 40, 3, padding="same"))),
            nn.Conv2d(40, 3, 1),
        ),
        nn.Flatten(),
        Residual(Residual(nn.Linear(147, 147), nn.Tanh()), nn.Identity()),
        nn.Linear(147, 4),
    )


def test_branches_of_residuals_are_direct_sums(monkeypatch):
    network = residual_network().double()
    x = torch.randn(130, 3, 7, 7, dtype=torch.float64)
    expected = network(x).detach()

    def indirect(*_):
        raise AssertionError("not a direct sum")

    monkeypatch.setattr(nn.Linear, "forward", indirect)
    monkeypatch.setattr(nn.Conv2d, "forward", indirect)
    # Sums of at most 360 terms, a few of them after one another.
    torch.testing.assert_close(direct_forward(network, x, FLOAT64)[0], expected, rtol=0, atol=1e-12)
    alone, wrapped = (
        direct_forward(part, x, FLOAT64)[0] for part in (network[0], nn.Sequential(network[0]))
    )
    torch.testing.assert_close(alone, wrapped, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not a direct sum"):
        network(x)


def test_a_residual_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"Residual needs .* \(5, 1\) for .* \(5, 4\)"):
        direct_forward(nn.Sequential(Residual(nn.Linear(4, 1))), torch.zeros(5, 4), FLOAT32)[0]


@pytest.mark.parametrize("wrap", [nn.Sequential, Residual])
@pytest.mark.parametrize("n_rows", [3, 300])
def test_layers_that_work_in_place_change_neither_the_input_nor_the_way_around_them(wrap, n_rows):
    x = torch.linspace(-1, 1, 2 * n_rows).view(n_rows, 2)
    before = x.clone()
    output = direct_forward(wrap(nn.Identity(), nn.LeakyReLU(-3.0, inplace=True)), x, FLOAT32)[0]
    leaky = torch.where(before > 0, before, -3 * before)
    assert torch.equal(output, leaky if wrap is nn.Sequential else before + leaky)
    assert torch.equal(x, before)


def test_the_size_of_a_kernel_is_that_of_its_weight():
    layer = nn.Conv2d(1, 1, (4, 1)).double()
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    expected = layer(x).detach()
    layer.kernel_size = (2, 2)  # as many taps, in another order
    torch.testing.assert_close(direct_forward(layer, x, FLOAT64)[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("switch", ["medium", "high"])
def test_products_of_low_precision_are_not_used(switch):
    network = to_torch(lipschitz_cnn((1, 8, 8), 3)).eval()
    x = torch.rand(9, 1, 8, 8)
    exact = direct_forward(network.double(), x.double(), FLOAT64)[0]
    network.float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(switch)
        got = direct_forward(network, x, FLOAT32)[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, exact.float())


def test_autocast_does_not_reach_the_sums():
    network = to_torch(lipschitz_cnn((1, 8, 8), 3)).eval()
    x = torch.rand(9, 1, 8, 8)
    expected = direct_forward(network, x, FLOAT32)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(direct_forward(network, x, FLOAT32)[0], expected)


SWITCHES = [
    "backends.cuda.matmul.fp32_precision = 'tf32'",
    "backends.fp32_precision = 'tf32'",
    "backends.mkldnn.fp32_precision = 'bf16'",
    "backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "backends.mkldnn.conv.fp32_precision = 'bf16'",
    "set_float32_matmul_precision('medium')",
]


# Each in a process of its own: torch won't have the older and the newer switches mixed.
IN_PROCESSES = """
import contextlib
import os
import sys
import torch
torch.set_num_threads(1)  # a fork has no threads but its own
torch.manual_seed(0)
from sklip.certified import Arithmetic
from sklip.certified.direct_sums import direct_forward
from sklip.layers import to_torch
from sklip.networks import lipschitz_cnn
network = to_torch(lipschitz_cnn((1, 8, 8), 10)).eval()
X = torch.randn(300, 1, 8, 8)
exact = direct_forward(network.double(), X.double(), Arithmetic("float64"))[0]
network.float()
for switch in sys.argv[1:]:
    if os.fork() == 0:
        with contextlib.suppress(AttributeError):  # versions of torch without this switch
            exec(f"torch.{switch}")
        got = direct_forward(network, X, Arithmetic.of_networks("float32"))[0]
        print((got - exact).abs().max().item(), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def largest_errors():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_PROCESSES, *SWITCHES],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(zip(SWITCHES, map(float, done.stdout.split()), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("switch", SWITCHES)
def test_no_global_switch_changes_a_prediction_by_more_than_float32_does(largest_errors, switch):
    assert largest_errors[switch] < 1e-5


@pytest.mark.parametrize("room", [1, 3, 100, 600])
def test_where_memory_is_short_fewer_rows_are_evaluated_at_once(monkeypatch, room):
    """A device that holds so many rows of a layer's output, and no more."""
    layer, x = nn.Linear(4, 2).double(), torch.randn(1500, 4, dtype=torch.float64)
    expected = direct_forward(layer, x, FLOAT64)[0]
    evaluated = []

    def short_of_memory(layer, x, arithmetic):
        if len(x) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        evaluated.append(len(x))
        return layer(x)

    monkeypatch.setitem(direct_sums._EVALUATIONS, nn.Linear, short_of_memory)
    with pytest.warns(UserWarning, match="where 1024 would be"):
        computed = direct_forward(layer, x, FLOAT64)[0]
    torch.testing.assert_close(computed, expected, rtol=1e-14, atol=1e-14)
    assert room / 2 < max(evaluated) <= room


def test_a_device_that_holds_no_row_is_an_error(monkeypatch):
    def no_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(direct_sums._EVALUATIONS, nn.Linear, no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out"):
        direct_forward(nn.Linear(4, 2), torch.zeros(3, 4), FLOAT32)
