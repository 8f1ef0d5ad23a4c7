"""Rules, layers and proofs that somebody has bent: refused, noticed, or as sound as before."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklip import CertifiedNetwork, layers, lipschitz_bound
from sklip.certified import Affine, Arithmetic, MapBound, exact, register_layer
from sklip.certified.arithmetic import FLOOR, floored_product
from sklip.certified.gains import Gains
from sklip.certified.rules import LAYERS
from sklip.networks import lipschitz_cnn, lipschitz_mlp


class Odd(nn.Module):
    def forward(self, x):
        return x


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))


# -- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [-1.0, math.nan, math.inf, np.array([1.0, math.nan])])
def test_factors_that_are_no_sizes_are_refused(factors):
    register_layer(Odd)(lambda module, shape: MapBound(1.0, exact, factors=factors))
    with pytest.raises(ValueError, match="factors of Odd must be finite and at least 0"):
        lipschitz_bound(Odd())


def test_factors_of_linear_maps_have_signs():
    register_layer(Odd)(lambda module, shape: MapBound(1.0, exact, factors=-1.0, linear=True))
    assert lipschitz_bound(Odd()) == 1


@pytest.mark.parametrize("returned", [1.0, None])
def test_a_rule_that_returns_something_else_is_refused(returned):
    register_layer(Odd)(lambda module, shape: returned)
    with pytest.raises(TypeError, match="rule of Odd must return a MapBound"):
        lipschitz_bound(Odd())


def test_constants_of_single_precision_are_multiplied_in_double_precision():
    register_layer(Odd)(lambda module, shape: MapBound(np.float32(0.6784477), exact))
    exact_product = float(np.float32(0.6784477)) ** 5
    bound = lipschitz_bound(nn.Sequential(*(Odd() for _ in range(5))))
    assert exact_product <= bound <= exact_product * (1 + 1e-14)
    register_layer(Odd)(lambda module, shape: MapBound(np.float32(1e-30), exact))
    assert lipschitz_bound(nn.Sequential(*(Odd() for _ in range(20)))) >= FLOOR


def test_what_is_not_a_number_stays_so():
    assert math.isnan(floored_product(math.nan, 2.0))
    assert floored_product(math.inf, 0.0) == 0.0


# -- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pads", [[-1, 3, -1, 3], [0, 2, 0, 2], [3, -1, 3, -1]])
def test_circular_padding_that_its_word_does_not_mean_is_refused(pads):
    module = nn.Conv2d(1, 1, 3, padding="same", padding_mode="circular")
    lipschitz_bound(module)
    module._reversed_padding_repeated_twice = pads
    with pytest.raises(TypeError, match="padding"):
        lipschitz_bound(module, (1, 6, 6))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (2, 5)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_words_for_padding_are_read_as_torch_reads_them(kernel_size, dilation, padding):
    lipschitz_bound(nn.Conv2d(1, 1, kernel_size, padding=padding, dilation=dilation))


def test_a_center_for_each_sample_is_refused():
    center = layers.Center(2)
    center.center = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    with pytest.raises(TypeError, match="Center has no bound unless it subtracts one row"):
        CertifiedNetwork.prove(nn.Sequential(center, nn.Linear(2, 2)), (2,))


def test_a_layer_that_makes_two_samples_of_one_is_refused():
    class Doubling(nn.Module):
        def forward(self, x):
            return torch.cat([x, x])

    register_layer(Doubling)(lambda module, shape: MapBound(2.0, exact))
    with pytest.raises(TypeError, match="Doubling must treat samples apart"):
        CertifiedNetwork.prove(nn.Sequential(Doubling(), nn.Linear(2, 2)), (2,))


@pytest.mark.parametrize("layer", [nn.Linear(2, 4), nn.Conv2d(2, 4, 1)], ids=["Linear", "Conv2d"])
def test_a_bias_for_several_outputs_is_refused(layer):
    layer = copy.deepcopy(layer)
    layer.bias = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"needs a bias of shape \(4,\)"):
        lipschitz_bound(layer)


@pytest.mark.parametrize("dtype", ["float16", "complex64", "longdouble"])
def test_networks_are_proven_for_two_precisions_only(dtype):
    with pytest.raises(ValueError, match=r"float32.*float64|floating type"):
        CertifiedNetwork(nn.Linear(2, 2), (2,), Arithmetic(dtype))


def test_distances_behind_a_wide_scaling_are_not_below_the_exact_ones():
    head = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e100, 1e-225], [0.0, 0.0]], dtype=torch.float64))
    certified = CertifiedNetwork.prove(head, (2,), "float64")
    scales = MapBound(1e200, factors=np.array([1e-250, 1e200]), linear=True)
    margins = certified.margins_behind(Gains.at_start(2).through(scales))
    assert margins.bounds[0, 1] >= 1e-25
    assert margins.of_column(1)[0, 1] >= 1e-25


# -- changes after the proof -------------------------------------------------------------------


class Holding(nn.Module):
    """Multiplies by a buffer that no state_dict holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.factor * x


def made_subclass(certified):
    certified.network[1].__class__ = type("ReLU", (nn.ReLU,), {"__module__": nn.ReLU.__module__})


def larger_bounds(certified):
    certified.margin_bounds = certified.margin_bounds / 10


def larger_bounds_in_place(certified):
    certified.margin_bounds.flags.writeable = True
    certified.margin_bounds /= 10


def longer(certified):
    certified.precisions[-1].longest *= 2


def no_rounding(certified):
    error = certified.precisions[-1].from_length
    certified.precisions[-1].from_length = Affine(0 * error.offset, 0 * error.slope)


def one_precision(certified):
    certified.precisions = certified.precisions[:1]


def other_blocks(certified):
    certified.arithmetic = Arithmetic("float32", block=1000)


def larger_buffer(certified):
    certified.network[2].factor.fill_(3.0)


CHANGES = [
    *(made_subclass, larger_bounds, larger_bounds_in_place, longer, no_rounding, other_blocks),
    *(larger_buffer, one_precision),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_proof_is_noticed(change):
    register_layer(Holding)(
        lambda module, shape: MapBound(
            float(module.factor.abs()), lambda arithmetic: Affine(1e-30, arithmetic.gamma(2) * 10)
        )
    )
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Holding(), nn.Linear(2, 2))
    certified = CertifiedNetwork.prove(network, (2,))
    assert certified.radii(np.ones((1, 2))).shape == (1,)
    change(certified)
    with pytest.raises(RuntimeError, match="changed after its proof"):
        certified.radii(np.ones((1, 2)))


@pytest.mark.parametrize("held", [{"a": 1}, np.ones(2), torch.ones(2), math.sqrt], ids=str)
def test_a_layer_with_state_that_no_digest_holds_is_refused(held):
    register_layer(Odd)(lambda module, shape: MapBound(1.0, exact))
    odd = Odd()
    odd.held = held
    with pytest.raises(TypeError, match=r"Odd has attributes that can't be certified.*held"):
        CertifiedNetwork.prove(nn.Sequential(odd, nn.Linear(2, 2)), (2,))


# -- weights that anybody may have written -------------------------------------------------------


HOSTILE = {
    "zeros": lambda x, limits: 0 * x,
    "subnormal": lambda x, limits: x * limits.tiny / 64,
    "tiny": lambda x, limits: x * limits.tiny,
    "huge": lambda x, limits: x.sign() * limits.max**0.75,
    "nearly infinite": lambda x, limits: x.sign() * limits.max,
    "of all sizes": lambda x, limits: x.sign() * limits.max ** (x.abs() - 1).clamp(-1, 1),
    "equal rows": lambda x, limits: x[..., :1, :].expand_as(x),
    "nearly equal rows": lambda x, limits: x[..., :1, :] + 1e-7 * x,
    "graded rows": lambda x, limits: x * 10.0 ** (-4 * torch.arange(x.shape[-2])[:, None]),
    "not a number": lambda x, limits: torch.where(x > x.mean(), math.nan, x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fill", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("retracted", [False, True])
def test_whatever_the_raw_weights_are_the_bound_is_1_or_they_are_refused(
    retracted, fill, dtype, seeded_torch
):
    networks = [
        (lipschitz_mlp((6,), 3, (8, 6), column_weights=True), (6,)),
        (lipschitz_cnn((2, 6, 6), 3, (4, 6), (8,)), (2, 6, 6)),
    ]
    for network, shape in networks:
        with torch.no_grad():
            for name, parameter in network.to(dtype).named_parameters():
                if not name.endswith("bias"):
                    matrix = parameter if parameter.ndim > 1 else parameter[None]
                    matrix.copy_(fill(torch.randn(matrix.shape).double(), torch.finfo(dtype)))
        if retracted:
            layers.retract_(network)
        if all(torch.isfinite(value).all() for value in network.state_dict().values()):
            assert lipschitz_bound(layers.to_torch(layers.polish_(network)), shape) <= 1 + 1e-6
        else:
            with pytest.raises(ValueError, match="finite"):
                lipschitz_bound(layers.to_torch(network), shape)


# -- copies and rows ---------------------------------------------------------------------------


def test_sizes_that_are_numbers_of_numpy_can_be_stored():
    network = nn.Sequential(nn.Linear(np.prod((2, 2)), np.int64(3)))
    certified = CertifiedNetwork.prove(network, (4,))
    X = np.random.default_rng(0).normal(size=(5, 4))
    for copied in (copy.deepcopy(certified), pickle.loads(pickle.dumps(certified))):
        np.testing.assert_array_equal(copied.radii(X), certified.radii(X))
        assert type(copied.network[0].in_features) is int


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2]], ids=str)
def test_rows_in_any_order_of_memory_are_read(view):
    certified = CertifiedNetwork.prove(nn.Linear(4, 3), (4,))
    X = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_array_equal(certified.radii(X[view]), certified.radii(X[view].copy()))
