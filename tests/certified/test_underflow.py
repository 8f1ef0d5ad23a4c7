"""Constants so small that products of them vanish: a bound must not vanish with them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from torch import nn

from sklip import CertifiedNetwork, LipschitzClassifier, layers, lipschitz_bound
from sklip.certified.arithmetic import FLOOR, Affine
from sklip.certified.gains import Gains
from sklip.certified.maps import MapBound, composed, exact, product_upper
from sklip.certified.norms import (
    convolution_norm_upper,
    matrix_norm_upper,
    row_distances_upper,
)
from sklip.preprocessing import transformer_bound


def scaling(*factors):
    """A chain of one-value linear layers in float64."""
    chain = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in factors]
    with torch.no_grad():
        for layer, factor in zip(chain, factors, strict=True):
            layer.weight.fill_(factor)
    return nn.Sequential(*chain)


@pytest.mark.parametrize(
    "constants",
    [
        (1e-162, 7.08e-162),  # a subnormal product, which rounds to the next one below
        (1e-200, 1e-200),
        (1e-200, 1e-200, 1e180, 1e200),  # zero in between, not in the end
        (5e-324, 0.5),
    ],
)
def test_a_product_is_never_below_the_exact_one(constants):
    exact_product = math.prod(map(Fraction, constants))
    assert Fraction(product_upper(constants)) >= exact_product
    assert Fraction(composed([MapBound(each, exact) for each in constants]).constant) >= exact_product


def test_a_product_with_a_zero_is_zero():
    assert product_upper([1e-200, 0.0, 1e300]) == 0.0


@pytest.mark.parametrize("factors", [(1e-162, 7.08e-162), (1e-200, 1e-200, 1e180, 1e200)])
def test_the_bound_of_a_network_is_never_below_the_exact_one(factors):
    network = scaling(*factors)
    exact_bound = math.prod(Fraction(float(layer.weight.detach())) for layer in network)
    assert Fraction(lipschitz_bound(network)) >= exact_bound
    certified = CertifiedNetwork.prove(network, (1,), "float64")
    assert Fraction(float(certified.margin_bounds[0, 0])) >= exact_bound


def test_radii_of_a_network_that_hardly_moves_are_finite():
    network = nn.Sequential(*scaling(1e-200, 1e-200), nn.Linear(1, 1, dtype=torch.float64))
    with torch.no_grad():
        network[-1].weight.fill_(1.0)
        network[-1].bias.fill_(1.0)
    certified = CertifiedNetwork.prove(network, (1,), "float64")
    radius = certified.radii([[1.0]])
    # Proven up to the length from which something might overflow, and no further.
    assert 0 < radius[0] <= certified.precisions[0].longest


def test_a_drift_multiplied_by_a_tiny_constant_is_still_charged():
    certified = CertifiedNetwork.prove(scaling(1e-200, 1.0), (1,), "float64")
    decided = certified.decisions([[1.0]])
    budget = certified.budget(decided, reach=1e-200, drift=Affine(0.0, 0.0))
    assert budget.per_distance[0, 0] >= FLOOR


@pytest.fixture
def flushing():
    """This thread's processor takes subnormal numbers for zeros."""
    if not torch.set_flush_denormal(True):
        pytest.fail("the processor can't flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushing")
def test_no_constant_vanishes_where_subnormal_numbers_are_flushed():
    assert product_upper([1e-200, 1e-200]) > 0
    assert product_upper([1e-200, 1e-200, 1e180, 1e200]) >= 1e-20
    certified = CertifiedNetwork.prove(scaling(1e-200, 1e-200), (1,), "float64")
    assert certified.lipschitz_bound > 0
    assert certified.margin_bounds[0, 0] > 0


@pytest.mark.usefixtures("flushing")
def test_a_fit_where_subnormal_numbers_are_flushed_gives_the_usual_constants():
    X = np.random.default_rng(0).normal(size=(60, 4))
    clf = LipschitzClassifier(hidden_layer_sizes=(8,), max_epochs=2, random_state=0)
    bounds = clf.fit(X, X[:, 0] > 0).certified_network_.margin_bounds
    torch.set_flush_denormal(False)
    expected = clf.fit(X, X[:, 0] > 0).certified_network_.margin_bounds
    np.testing.assert_allclose(bounds, expected, rtol=1e-12)


def test_rows_that_differ_by_a_subnormal_number_are_not_equal():
    assert row_distances_upper(torch.tensor([[1.0], [1.0]]))[0, 1] == 0
    assert row_distances_upper(torch.tensor([[0.0], [5e-324]], dtype=torch.float64))[0, 1] >= FLOOR


# -- subnormal weights and rows ------------------------------------------------------------------


def linear(weight, bias, dtype=torch.float32):
    layer = nn.Linear(len(weight[0]), len(weight), dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def centre(value):
    layer = layers.Center(1)
    layer.center.fill_(value)
    return layer


HEAD = [[1e38], [0.0]], [0.0, 0.05]
# Each would decide for class 0 at a row, were it not for the zeros.
SUBNORMAL = {
    "weight": ([linear([[1e-39]], [0.0]), linear(*HEAD)], 0.9),
    "bias": ([linear([[0.0]], [1e-39]), linear(*HEAD)], 0.9),
    "buffer": ([centre(-1e-39), linear(*HEAD)], 0.0),
}


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(("parts", "row"), SUBNORMAL.values(), ids=SUBNORMAL)
def test_subnormal_weights_become_zeros(parts, row, flush):
    network = nn.Sequential(*parts)
    try:
        torch.set_flush_denormal(flush)
        certified = CertifiedNetwork.prove(network, (1,))
        with pytest.raises(ValueError, match=r"subnormal.*set them to 0"):
            CertifiedNetwork(network, (1,), certified.arithmetic)
        codes, radii = certified.predict_with_radii([[row]])
    finally:
        torch.set_flush_denormal(False)
    assert codes[0] == 1
    # Behind the center a flushed row would decide.
    assert (radii[0] > 0) == (row != 0)
    values = [
        value for value in certified.network.state_dict().values() if value.dtype == torch.float32
    ]
    sizes = [value.abs() for value in values]
    assert all(((size == 0) | (size > 1e-30)).all() for size in sizes)


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_single_precision_that_are_flushed_certify_no_more_than_that(dtype):
    """The exact function sees 9e-39 and decides for class 0; converted to float64 it may be 0."""
    certified = CertifiedNetwork.prove(linear([[1e38], [0.0]], [0.0, 0.5]), (1,), dtype)
    assert certified.radii(np.array([[9e-39]], dtype=np.float32)) == 0
    assert certified.radii(np.array([[9e-37]], dtype=np.float32)) > 0


@pytest.mark.usefixtures("flushing")
def test_norms_of_subnormal_weights_do_not_vanish_where_they_are_flushed():
    torch.set_flush_denormal(False)
    weight = torch.tensor([3e-39, -4e-39]).view(1, 2)
    torch.set_flush_denormal(True)
    kernel = weight.view(1, 2, 1, 1)
    for bound in (matrix_norm_upper(weight), convolution_norm_upper(kernel, (1, 1))):
        assert 5e-39 * (1 - 1e-5) <= bound <= 5e-39 * (1 + 1e-5)


def test_center_on_a_map_is_charged_for_each_of_its_rows():
    center = layers.Center(4)
    with torch.no_grad():
        center.center.fill_(1000.1)
    shape = (3, 5, 4)
    certified = CertifiedNetwork.prove(nn.Sequential(center, nn.Flatten()), shape)
    X = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    error = certified.logits(X).astype(np.float64).reshape(2, -1) - (
        X.astype(np.float64) - certified.network[0].center.double().numpy()
    ).reshape(2, -1)
    unit, length = 2.0**-24, 1000.1 * math.sqrt(3 * 5 * 4)
    assert certified.precisions[0].from_length.offset.max() >= 1.499 * unit * length
    assert np.linalg.norm(error, axis=1).max() <= certified.precisions[0].from_length.offset.max()
    # For one row alone the charge would be too small for this error.
    assert np.linalg.norm(error, axis=1).max() > 0.3 * unit * 1000.1 * math.sqrt(4)


def test_a_bound_of_scalers_that_cancel_does_not_vanish():
    X = np.random.default_rng(0).normal(size=(20, 3)) * 1e165
    steps = make_pipeline(MaxAbsScaler(), PCA(2), MaxAbsScaler()).fit(X)
    steps[-1].scale_ = np.full(2, 1e165)
    # 1e-165 twice: a product that no float holds.
    assert transformer_bound(steps) >= FLOOR
    assert transformer_bound(steps[:-1]) >= 1e-166


@pytest.mark.usefixtures("flushing")
def test_a_subnormal_entry_behind_a_huge_scale_is_not_lost():
    torch.set_flush_denormal(False)
    matrix = torch.tensor([[1.0, 1e-310], [1.0, 0.0]], dtype=torch.float64)
    torch.set_flush_denormal(True)
    gains = Gains.at_start(2, scale=np.array([1.0, 1e300])).through(MapBound(1.5, matrix=matrix))
    assert gains.of_columns[1] >= 1e-10
