"""Bounds of logit differences, and what has none."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sklip import CertifiedNetwork, layers
from sklip.certified import Affine, Arithmetic, MapBound
from sklip.certified.gains import Gains
from sklip.certified.norms import matrix_norm_upper

pytestmark = pytest.mark.usefixtures("seeded_torch")


def proven(network, n_outputs, shape=None):
    """Prove a network in the precision of its weights, for rows as wide as its first layer."""
    widths = [m.in_features for m in network.modules() if isinstance(m, nn.Linear)]
    dtypes = {str(value.dtype).removeprefix("torch.") for value in network.parameters()}
    shape = (widths[0] if widths else n_outputs,) if shape is None else shape
    (dtype,) = dtypes or {"float32"}
    certified = CertifiedNetwork(network, shape, Arithmetic.of_networks(dtype))
    assert certified.n_outputs == n_outputs
    return certified


def margin_bounds(network, n_outputs):
    return proven(network, n_outputs).margin_bounds


# -- constants of logit differences ------------------------------------------------------------


def linear(weight, bias=None):
    # Lists count as float64; arrays and tensors keep their precision.
    weight = torch.as_tensor(np.asarray(weight) if isinstance(weight, list) else weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer


def random_network(n_outputs, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, columns):
        return linear(torch.randn(rows, columns, generator=generator, dtype=dtype))

    return nn.Sequential(draw(6, 5), layers.GroupSort2(), draw(4, 6), draw(n_outputs, 4))


@st.composite
def exact_networks(draw):
    """A head behind a diagonal body whose norm is known exactly; weights in float32 or float64."""
    width = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    number = st.floats(-1e3, 1e3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
    diagonal = draw(st.lists(number, min_size=width, max_size=width))
    n_outputs = draw(st.integers(1, 4))
    head = [draw(st.lists(number, min_size=width, max_size=width)) for _ in range(n_outputs)]
    return torch.tensor(diagonal, dtype=dtype), torch.tensor(head, dtype=dtype)


@settings(deadline=None, max_examples=150)
@given(exact_networks())
def test_margin_bound_is_above_the_exact_constant_and_within_a_billionth(weights):
    diagonal, head = weights
    network = nn.Sequential(linear(diagonal.diag()), nn.ReLU(), linear(head))
    rows = [[Fraction(value) for value in row] for row in head.tolist()]
    squared_norm = max(Fraction(value) ** 2 for value in diagonal.tolist())
    bounds = margin_bounds(network, len(rows))
    assert bounds.shape == (len(rows), len(rows))
    assert bounds.dtype == np.float64
    if len(rows) == 1:
        pairs = [(0, 0, sum(a**2 for a in rows[0]))]
    else:
        pairs = [
            (i, j, sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)))
            for i in range(len(rows))
            for j in range(len(rows))
        ]
    for i, j, squared_distance in pairs:
        squared = Fraction(float(bounds[i, j])) ** 2
        exact = squared_distance * squared_norm
        assert squared >= exact
        assert squared <= exact * (1 + Fraction(1, 10**9)) ** 2
    if len(rows) > 1:
        assert (bounds == bounds.T).all()
        assert (bounds.diagonal() == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_outputs", [1, 2, 7])
def test_margin_bound_of_dense_layers_is_the_product_of_their_norms(n_outputs, dtype):
    network = random_network(n_outputs, dtype)
    first, second, head = (network[i].weight.detach().double().numpy() for i in (0, 2, 3))
    body = np.linalg.svd(first)[1][0] * np.linalg.svd(second)[1][0]
    head = np.vstack([head, np.zeros(4)]) if n_outputs == 1 else head
    exact = body * np.array([[np.linalg.norm(a - b) for b in head] for a in head])
    exact = exact[:1, 1:] if n_outputs == 1 else exact
    bounds = margin_bounds(network, n_outputs)
    # LAPACK's singular values have relative errors of a few eps for matrices of 6 x 6.
    assert (bounds >= exact * (1 - 1e-13)).all()
    assert (bounds <= exact * (1 + 1e-9)).all()


def test_margin_bound_is_attained_by_a_linear_network():
    body, head = random_network(3)[0], linear(np.random.default_rng(1).normal(size=(3, 6)))
    network = nn.Sequential(body, head)
    bounds = margin_bounds(network, 3)
    matrix = head.weight.detach().numpy() @ body.weight.detach().numpy()
    for i, j in [(0, 1), (1, 2), (0, 2)]:
        reached = np.linalg.norm(matrix[i] - matrix[j])
        assert reached <= bounds[i, j]
    # An orthogonal body loses nothing.
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    bounds = margin_bounds(nn.Sequential(linear(rotation), head), 3)
    rows = head.weight.detach().numpy()
    for i, j in [(0, 1), (1, 2), (0, 2)]:
        assert bounds[i, j] == pytest.approx(np.linalg.norm(rows[i] - rows[j]), rel=1e-9)


def test_margin_bound_is_never_looser_than_root_two_times_the_head():
    for seed in range(5):
        network = random_network(6, seed=seed)
        norms = [np.linalg.norm(network[i].weight.detach().numpy(), 2) for i in (0, 2, 3)]
        # 1e-9 is the excess that the bound of the body may have.
        assert margin_bounds(network, 6).max() <= math.sqrt(2) * math.prod(norms) * (1 + 1e-9)


@pytest.mark.parametrize("n_outputs", [1, 4])
def test_margin_bound_without_a_linear_head_is_root_two_times_the_whole(n_outputs):
    weight = np.random.default_rng(0).normal(size=(n_outputs, 3))
    network = nn.Sequential(linear(weight), nn.ReLU())
    norm = np.linalg.norm(weight, 2)
    bounds = margin_bounds(network, n_outputs)
    pairs = math.sqrt(2) * (1 - np.eye(n_outputs))
    exact = norm * (np.ones((1, 1)) if n_outputs == 1 else pairs)
    assert (bounds >= exact * (1 - 1e-13)).all()
    assert (bounds <= exact * (1 + 1e-9)).all()


def test_margin_bound_of_a_linear_layer_alone_is_the_distance_of_its_rows():
    head = linear([[3.0, 0.0], [0.0, 4.0]])
    for network in (head, nn.Sequential(head), nn.Sequential(nn.Sequential(), head)):
        bounds = margin_bounds(network, 2)
        assert 5 <= bounds[0, 1] <= 5 * (1 + 1e-12)


def test_nesting_changes_no_margin_bound():
    a, b, c, d = random_network(3)
    flat = margin_bounds(nn.Sequential(a, b, c, d), 3)
    for nested in (
        nn.Sequential(nn.Sequential(a, b), nn.Sequential(c, nn.Sequential(d))),
        nn.Sequential(nn.Sequential(nn.Sequential(a, b, c, d))),
        nn.Sequential(nn.Sequential(), a, b, nn.Sequential(nn.Sequential()), c, d),
    ):
        # What the bound charges for products of norms may differ.
        assert margin_bounds(nested, 3) == pytest.approx(flat, rel=1e-12, abs=0)


def test_equal_rows_have_bound_zero_and_nearly_equal_rows_have_not():
    head = linear([[1.0, 2.0], [1.0, 2.0], [1.0, np.nextafter(2.0, 3.0)]])
    bounds = margin_bounds(head, 3)
    assert bounds[0, 1] == 0
    assert bounds[0, 2] >= 2.0**-51


@pytest.mark.parametrize("difference", [[1e-170], [1e-161, 3e-162], [1.3e-154, 1e-162]])
def test_margin_bound_is_above_differences_whose_squares_underflow(difference):
    # The biases make a margin of 1: a bound of zero would certify an infinite radius.
    head = linear([difference, [0.0] * len(difference)], bias=[1.0, 0.0])
    bounds = margin_bounds(head, 2)
    assert Fraction(float(bounds[0, 1])) ** 2 >= sum(Fraction(d) ** 2 for d in difference)


# -- what can't be proven ------------------------------------------------------------------------


def hook(module):
    module.register_forward_hook(lambda module, args, output: 10 * output)


def pre_hook(module):
    module.register_forward_pre_hook(lambda module, args: (10 * args[0],))


def hook_with_kwargs(module):
    module.register_forward_hook(
        lambda module, args, kwargs, output: 10 * output, with_kwargs=True, always_call=True
    )


def replaced_forward(module):
    forward = module.forward
    module.forward = lambda x: 10 * forward(x)


PLACES = {
    "outer": lambda network: network,
    "inner_first": lambda network: network[0],
    "inner_last": lambda network: network[2],
    "innermost": lambda network: network[2][1],
    "body_layer": lambda network: network[0][0],
    "activation": lambda network: network[1],
    "head": lambda network: network[2][1][0],
}


@pytest.mark.parametrize("alter", [hook, pre_hook, hook_with_kwargs, replaced_forward])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("linear_end", [True, False])
def test_a_network_that_computes_something_else_is_refused(linear_end, place, alter):
    network = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4)),
        layers.GroupSort2(),
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))),
    )
    if not linear_end:
        network.append(nn.Identity())
    margin_bounds(network, 3)
    x = torch.ones(1, 3)
    before = network(x)
    alter(PLACES[place](network))
    assert not torch.equal(network(x), before)
    with pytest.raises(TypeError, match=r"hooks|replaced forward"):
        margin_bounds(network, 3)


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
    ],
)
@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.ReLU()])
def test_global_hooks_are_refused(register, network):
    handle = register(lambda *args: None)
    try:
        with pytest.raises(TypeError, match="hooks"):
            margin_bounds(network, 2)
    finally:
        handle.remove()
    margin_bounds(network, 2)


class TenfoldSequential(nn.Sequential):
    def forward(self, x):
        return 10 * super().forward(x)


class TenfoldLinear(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


class TenfoldSpectralLinear(layers.SpectralLinear):
    def forward(self, x):
        return 10 * super().forward(x)


@pytest.mark.parametrize(
    "network",
    [
        TenfoldSequential(nn.Linear(2, 2)),
        nn.Sequential(TenfoldSequential(nn.Linear(2, 2)), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), TenfoldSequential(nn.Linear(2, 2))),
        nn.Sequential(nn.Linear(2, 2), TenfoldLinear(2, 2)),
        TenfoldLinear(2, 2),
        nn.Sequential(TenfoldLinear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.BatchNorm1d(2).train(), nn.Linear(2, 2)),
        nn.Sequential(nn.Dropout().train(), nn.Linear(2, 2)),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.GELU()),
        TenfoldSpectralLinear(2, 2),
        nn.Sequential(TenfoldSpectralLinear(2, 2), nn.Linear(2, 2)),
    ],
    ids=lambda network: "".join(str(network).split()),
)
def test_modules_without_a_rule_are_refused_wherever_they_stand(network):
    with pytest.raises(TypeError, match=r"no Lipschitz bound|no bound"):
        margin_bounds(network, 2)


@pytest.mark.parametrize("alter", [hook, pre_hook, replaced_forward])
def test_a_layer_altered_inside_a_constrained_sequential_is_refused(alter):
    # Its export to plain layers would leave the alteration behind.
    network = layers.Sequential(layers.SpectralLinear(2, 2), layers.SpectralLinear(2, 2))
    alter(network[0])
    with pytest.raises(TypeError, match=r"hooks|replaced forward"):
        margin_bounds(network, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, 3])
def test_weights_that_are_not_finite_are_refused(position, bad):
    network = random_network(3)
    with torch.no_grad():
        network[position].weight[0, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        margin_bounds(network, 3)


# -- other maps folded into the first layers -----------------------------------------------------


def behind(network, n_outputs, matrix):
    """Bounds of a network behind a matrix, or a diagonal."""
    start = Gains.at_start(matrix.shape[-1])
    if matrix.ndim == 1:
        gains = start.through(MapBound(matrix.max(), factors=matrix, linear=True))
    else:
        norm = matrix_norm_upper(torch.from_numpy(matrix))
        gains = start.through(MapBound(norm, matrix=torch.from_numpy(matrix)))
    return proven(network, n_outputs).margins_behind(gains)


def pulled_back(network, matrix):
    """Matrix of a linear network behind another matrix, or a diagonal."""
    product = np.diag(matrix) if matrix.ndim == 1 else matrix
    for layer in network:
        if isinstance(layer, nn.Linear):
            product = layer.weight.detach().double().numpy() @ product
    return product


def pair_norms(product):
    return np.linalg.norm(product[:, None] - product, axis=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("lead", [[], [nn.Identity()], [layers.Center(7), nn.Flatten()]], ids=len)
def test_a_folded_scaling_gives_the_exact_constants_of_a_linear_classifier(lead, spread, dtype):
    factors = np.exp(spread * np.random.default_rng(0).normal(size=7))
    factors[2] = 0.0
    network = nn.Sequential(*copy.deepcopy(lead), nn.Linear(7, 4)).to(dtype)
    product = pulled_back(network, factors)
    margins = behind(network, 4, factors)
    assert (margins.bounds >= pair_norms(product)).all()
    np.testing.assert_allclose(margins.bounds, pair_norms(product), rtol=1e-12, atol=0)
    for column, entries in enumerate(product.T):
        exact, bounds = np.abs(entries[:, None] - entries), margins.of_column(column)
        assert (bounds >= exact).all()
        np.testing.assert_allclose(bounds, exact, rtol=1e-12, atol=0)
    binary = nn.Sequential(*copy.deepcopy(lead), nn.Linear(7, 1)).to(dtype)
    row = binary[-1].weight.detach().double().numpy()[0] * factors
    margins, norm = behind(binary, 1, factors), np.linalg.norm(row)
    assert norm <= margins.bounds[0, 0] <= norm * (1 + 1e-12)
    for column, entry in enumerate(np.abs(row)):
        assert entry <= margins.of_column(column)[0, 0] <= entry * (1 + 1e-12)


@pytest.mark.parametrize("lead", [[], [layers.Center(9)]], ids=len)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_matrices_are_multiplied_through_all_linear_layers_that_come_first(depth, lead):
    rng = np.random.default_rng(1)
    for width in (2, 5, 20):
        matrix = rng.normal(size=(9, 6)) * rng.lognormal(size=6)
        sizes = [9, *[width] * (depth - 1), 3]
        network = nn.Sequential(*lead, *map(nn.Linear, sizes, sizes[1:])).double()
        product, margins = pulled_back(network, matrix), behind(network, 3, matrix)
        exact = pair_norms(product)
        assert (margins.bounds >= exact).all()
        np.testing.assert_allclose(margins.bounds, exact, rtol=1e-11, atol=0)
        for column, entries in enumerate(product.T):
            exact = np.abs(entries[:, None] - entries)
            assert (margins.of_column(column) >= exact).all()
            np.testing.assert_allclose(margins.of_column(column), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("diagonal", [False, True])
def test_maps_are_folded_into_the_first_layer_in_front_of_others(diagonal):
    rng = np.random.default_rng(2)
    matrix = rng.lognormal(size=9) if diagonal else rng.normal(size=(9, 7))
    network = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    margins, network = behind(network.double(), 3, matrix), network.double()
    first = network[0].weight.detach().numpy() @ (np.diag(matrix) if diagonal else matrix)
    later = np.linalg.norm(network[2].weight.detach().numpy(), 2)
    heads = pair_norms(network[4].weight.detach().numpy())
    np.testing.assert_allclose(margins.bounds, np.linalg.norm(first, 2) * later * heads, rtol=1e-9)
    for column, length in enumerate(np.linalg.norm(first, axis=0)):
        np.testing.assert_allclose(margins.of_column(column), length * later * heads, rtol=1e-9)
    assert (margins.bounds < 0.99 * margin_bounds(network, 3) * np.linalg.norm(matrix, 2)).any()


def test_a_network_that_does_not_end_in_a_linear_layer_is_bounded_by_its_whole():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double()
    factors = np.array([1.0, 2.0, 3.0, 4.0])
    norm = np.linalg.norm(network[0].weight.detach().numpy() * factors, 2)
    bounds = behind(network, 3, factors).bounds
    np.testing.assert_allclose(bounds, math.sqrt(2) * norm * (1 - np.eye(3)), rtol=1e-9)
    one = nn.Sequential(nn.Linear(4, 1), nn.Tanh()).double()
    column = behind(one, 1, factors).of_column(1)
    expected = 2 * abs(float(one[0].weight.detach()[0, 1]))
    np.testing.assert_allclose(column, [[expected]], rtol=1e-9)


def test_rows_that_differ_in_a_scaled_column_never_have_constant_zero():
    head = nn.Linear(2, 2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1, 1], [1, 1 + 2.0**-52]], dtype=torch.float64))
    margins = behind(nn.Sequential(head), 2, np.array([1.0, 1e-200]))
    assert margins.bounds[0, 1] >= 2.0**-52 * 1e-200
    assert margins.of_column(1)[0, 1] >= 2.0**-52 * 1e-200


def test_equal_rows_of_a_head_stay_equal_behind_a_matrix():
    head = nn.Linear(5, 3)
    with torch.no_grad():
        head.weight[2] = head.weight[0]
    margins = behind(nn.Sequential(head), 3, np.random.default_rng(0).normal(size=(5, 4)))
    assert margins.bounds[0, 2] == margins.of_column(1)[2, 0] == 0
    assert margins.bounds[0, 1] > 0


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)), (1, 3, 3)),
        (nn.Sequential(nn.ReLU(), nn.Linear(9, 3)), (9,)),
        (nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.ReLU(), nn.Linear(9, 3)), (3, 3)),
    ],
    ids=["convolution", "activation", "rows of a map"],
)
def test_nothing_is_folded_into_another_first_layer(network, shape):
    certified, factors = proven(network, 3, shape), np.arange(1.0, 10.0)
    start = Gains.at_start(9).through(MapBound(9.0, factors=factors, linear=True))
    margins = certified.margins_behind(start)
    np.testing.assert_allclose(margins.bounds, 9 * certified.margin_bounds, rtol=1e-9)
    np.testing.assert_allclose(margins.of_column(3), 4 * certified.margin_bounds, rtol=1e-9)


# -- the head's own rounding ---------------------------------------------------------------------


def test_rows_of_the_head_whose_squares_vanish_are_charged():
    head = nn.Linear(3, 2).double()
    with torch.no_grad():
        head.weight.fill_(1e-170)
        head.weight[1] *= -1
    slope = proven(head, 2).precisions[0].from_length.slope[0, 1]
    assert slope >= 2 * math.sqrt(3) * 1e-170 * 2.0**-53


def test_the_head_is_charged_by_its_weight_whatever_its_attributes_say():
    head = nn.Linear(1000, 2)
    honest = proven(head, 2).precisions[0].from_length.slope
    head.in_features = 1
    np.testing.assert_array_equal(proven(head, 2, (1000,)).precisions[0].from_length.slope, honest)


def test_gains_of_another_number_of_values_are_refused():
    certified = CertifiedNetwork.prove(torch.nn.Sequential(torch.nn.Linear(3, 2)), (3,))
    with pytest.raises(ValueError, match=r"of the 3 values that the network takes, got those of 2\."):
        certified.margins_behind(Gains.at_start(2))
    # Of the length of a change alone, the number does not matter.
    behind = certified.margins_behind(Gains.at_start(2).times(1.0)).bounds
    np.testing.assert_allclose(behind, certified.margin_bounds, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 2), (4,), (3, 5), (3, 2, 3), (3, 1, 2, 2)], ids=str)
def test_rows_of_another_shape_and_no_rows_are_refused(shape):
    certified = CertifiedNetwork.prove(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (2, 2))
    message = r"X must have at least one row and shape \(n_samples, 4\) or \(n_samples, 2, 2\)"
    for method in (certified.predict, certified.radii, certified.logits):
        with pytest.raises(ValueError, match=message):
            method(np.zeros(shape))


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_what_the_maps_before_have_moved_costs_the_constants_times_as_much(n_outputs):
    certified = proven(random_network(n_outputs), n_outputs)
    decided = certified.decisions(np.random.default_rng(0).normal(size=(4, 5)))
    constants = certified.margin_bounds[decided.pairs]
    # Factors other than 1, which would not be missed.
    assert not np.isclose(constants, 1, atol=0.1).any()
    offsets, slope = np.array([0.0, 0.25, 0.5, 4.0]), 0.125
    still = certified.budget(decided)
    moved = certified.budget(decided, drift=Affine(offsets, slope))
    spent, per_distance = constants * offsets[:, None], constants * slope
    np.testing.assert_allclose(moved.spent - still.spent, spent, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        moved.per_distance - still.per_distance, per_distance, rtol=1e-9, atol=1e-12
    )
