"""Radii: from logits and bounds, exactly; bounds of logit differences; certificates of pipelines."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.decomposition import KernelPCA
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    StandardScaler,
)
from torch import nn

from sklip import LipschitzClassifier, layers
from sklip.radii import certificates, certified_radii, margin_bounds, margin_radii

# -- certified_radii against exact rational arithmetic -----------------------------------------


def exact_radius(logits, bounds):
    """The smallest exact quotient as a Fraction, or math.inf."""
    logits = [Fraction(float(value)) for value in np.atleast_1d(logits)]
    if len(logits) == 1:
        margins = [(abs(logits[0]), bounds[0][0])]
    else:
        top = max(range(len(logits)), key=lambda c: (logits[c], -c))
        margins = [(logits[top] - logits[c], bounds[top][c]) for c in range(len(logits)) if c != top]
    radius = math.inf
    for margin, bound in margins:
        if margin == 0:
            return Fraction(0)
        if bound == math.inf:
            return Fraction(0)
        if bound != 0:
            radius = min(radius, margin / Fraction(float(bound)))
    return radius


def normal_floats(width):
    """Numbers whose differences and quotients are far from underflow and overflow."""
    size = st.floats(2.0**-20, 2.0**20, width=width)
    return st.one_of(st.just(0.0), size, size.map(lambda value: -value))


@st.composite
def problems(draw, logit, bound):
    n_classes = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    logits = [draw(logit[dtype]) for _ in range(n_classes)]
    bounds = np.zeros((n_classes, n_classes))
    for i in range(n_classes):
        for j in range(i):
            bounds[i, j] = bounds[j, i] = draw(bound)
    if n_classes == 1:
        return np.array(logits, dtype=dtype), np.array([[draw(bound)]])
    return np.array([logits], dtype=dtype), bounds


NORMAL = problems(
    {np.float32: normal_floats(32), np.float64: normal_floats(64)},
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6)),
)
# Subnormal numbers and such whose sums and differences overflow.
ALL_FINITE = problems(
    {
        width: st.floats(allow_nan=False, allow_infinity=False, width=bits)
        for width, bits in [(np.float32, 32), (np.float64, 64)]
    },
    st.floats(0, allow_nan=False),
)


@settings(deadline=None, max_examples=300)
@given(NORMAL)
def test_radius_is_the_exact_one_or_a_little_below(problem):
    logits, bounds = problem
    (radius,) = certified_radii(logits, bounds)
    exact = exact_radius(logits.ravel(), bounds)
    if exact == math.inf:
        assert radius == math.inf
    else:
        assert Fraction(float(radius)) <= exact
        assert Fraction(float(radius)) >= exact * (1 - Fraction(1, 10**14))


@settings(deadline=None, max_examples=300)
@given(ALL_FINITE)
# 3 / 2 of the smallest float is a tie that rounds up.
@example((np.array([[1.5e-323, 0.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])))
# The sum of the logits is 0, their difference overflows; the radius is 3.4e307.
@example((np.array([[1.7e308, -1.7e308]]), np.array([[0.0, 10.0], [10.0, 0.0]])))
@example((np.array([1e308]), np.array([[0.5]])))
def test_radius_is_never_above_the_exact_one_for_any_finite_logits(problem):
    logits, bounds = problem
    (radius,) = certified_radii(logits, bounds)
    exact = exact_radius(logits.ravel(), bounds)
    assert radius >= 0
    if radius == math.inf:
        # Infinity may stand for what no float can hold.
        assert exact == math.inf or exact > Fraction(np.finfo(float).max)
    elif exact != math.inf:
        assert Fraction(float(radius)) <= exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_certify_nothing(dtype):
    bounds = 1.0 - np.eye(3)
    logits = np.array([[1, 1, 0], [0, 2, 2], [3, 3, 3], [0, 0, 0]], dtype=dtype)
    assert certified_radii(logits, bounds).tolist() == [0, 0, 0, 0]
    assert certified_radii(np.array([0.0, -0.0], dtype=dtype), np.ones((1, 1))).tolist() == [0, 0]
    # Even where the two logits can never part.
    assert certified_radii(logits, np.zeros((3, 3))).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "row",
    [
        [math.nan, 1, 0],
        [1, math.nan, 0],
        [0, 1, math.inf],
        [math.inf, math.inf, 0],
        [0, 1, -math.inf],
        [-math.inf, 0, math.inf],
        [math.nan, math.nan, math.nan],
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_with_a_logit_that_is_not_finite_certify_nothing(row, dtype):
    # The other row keeps its radius; no warning is raised.
    radii = certified_radii(np.array([row, [3, 1, 0]], dtype=dtype), 1.0 - np.eye(3))
    assert radii[0] == 0
    assert 2 * (1 - 1e-14) <= radii[1] <= 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_logit_that_is_not_finite_certifies_nothing(value):
    radii = certified_radii(np.array([value, -3.0]), np.array([[2.0]]))
    assert radii[0] == 0
    assert 1.5 * (1 - 1e-14) <= radii[1] <= 1.5


def test_classes_with_equal_rows_in_the_head_never_limit_the_radius():
    bounds = np.array([[0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [4.0, 4.0, 0.0]])
    radii = certified_radii(np.array([[3.0, 2.5, 1.0], [2.0, 2.0, 1.0]]), bounds)
    assert 0.5 * (1 - 1e-14) <= radii[0] <= 0.5
    assert radii[1] == 0
    assert certified_radii(np.array([[3.0, 2.5]]), np.zeros((2, 2))).tolist() == [math.inf]
    assert certified_radii(np.array([3.0, 0.0]), np.zeros((1, 1))).tolist() == [math.inf, 0]


def test_the_bound_of_the_pair_counts_and_not_the_runner_up():
    # The runner-up 1 is further away than class 2, whose bound is larger.
    bounds = np.array([[0.0, 1.0, 10.0], [1.0, 0.0, 1.0], [10.0, 1.0, 0.0]])
    (radius,) = certified_radii(np.array([[5.0, 4.0, 1.0]]), bounds)
    assert 0.4 * (1 - 1e-14) <= radius <= 0.4


def test_a_column_of_single_logits_certifies_no_more_than_the_flat_logits():
    # A binary network in torch returns such a column; it must not count as one class of one.
    logits, bounds = np.array([3.0, -1.0, 0.0]), np.array([[2.0]])
    try:
        radii = certified_radii(logits[:, None], bounds)
    except ValueError:
        return
    assert radii.tolist() == certified_radii(logits, bounds).tolist()


# -- margin_bounds -----------------------------------------------------------------------------


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
    assume(bool((diagonal != 0).any()))
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


@pytest.mark.parametrize("difference", [[1e-170], [5e-324], [1e-161, 3e-162], [1.3e-154, 1e-162]])
def test_margin_bound_is_above_differences_whose_squares_underflow(difference):
    # The biases make a margin of 1: a bound of zero would certify an infinite radius.
    head = linear([difference, [0.0] * len(difference)], bias=[1.0, 0.0])
    bounds = margin_bounds(head, 2)
    assert Fraction(float(bounds[0, 1])) ** 2 >= sum(Fraction(d) ** 2 for d in difference)


# -- what margin_bounds refuses ----------------------------------------------------------------


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


# -- margin_radii ------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1.0, 0.5, 3])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_margin_radius_is_top_minus_runner_up_over_the_divisor(n_classes, disjoint, bound):
    scores = np.random.default_rng(0).normal(size=(20, n_classes))
    scores[0, :2] = scores[0].max() + 1  # a tie at the top
    radii = margin_radii(scores, lipschitz_bound=bound, disjoint_neurons=disjoint)
    for row, radius in zip(scores.tolist(), radii, strict=True):
        second, first = sorted(row)[-2:]
        expected = (first - second) / ((2 if disjoint else 2**0.5) * bound)
        assert radius == pytest.approx(expected, rel=4 * np.finfo(float).eps, abs=0)
    assert radii[0] == 0


@pytest.mark.parametrize("disjoint", [False, True])
def test_margin_radius_of_one_logit_is_its_size_over_the_bound(disjoint):
    radii = margin_radii([3.0, -1.0, 0.0], lipschitz_bound=2.0, disjoint_neurons=disjoint)
    assert radii.tolist() == [1.5, 0.5, 0.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_margin_radius_needs_a_positive_bound(bound):
    with pytest.raises(ValueError, match=r"^lipschitz_bound must be positive and finite"):
        margin_radii([1.0], lipschitz_bound=bound)


@pytest.mark.parametrize("scores", [[math.nan], [[1.0, math.inf]], [[[1.0, 2.0]]], [[1.0], [2.0]], []])
def test_margin_radius_refuses_what_are_no_logits(scores):
    with pytest.raises(ValueError, match=r"NaN|infinity|dim|shape|column|class|sample|kth"):
        margin_radii(scores)


# -- certificates ------------------------------------------------------------------------------


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:200], y[:200]


@pytest.fixture(scope="module")
def fitted(digits):
    return quick().fit(*digits)


def test_certificates_of_a_classifier_are_its_own(fitted, digits):
    radii = certificates(fitted, digits[0])
    assert radii.tolist() == fitted.certificates_(digits[0]).tolist()
    expected = [exact_radius(row, fitted.margin_bounds_) for row in fitted.decision_function(digits[0])]
    assert all(Fraction(r) <= e for r, e in zip(radii.tolist(), expected, strict=True))
    assert radii.max() > 0


def standard_constant(scaler):
    return 1 / min(Fraction(value) for value in scaler.scale_.tolist())


def min_max_constant(scaler):
    return max(Fraction(value) for value in scaler.scale_.tolist())


PREPROCESSING = {
    "standard": (lambda: StandardScaler(), standard_constant),
    "standard_without_std": (lambda: StandardScaler(with_std=False), lambda s: Fraction(1)),
    "standard_without_mean": (
        lambda: StandardScaler(with_mean=False),
        standard_constant,
    ),
    "min_max": (lambda: MinMaxScaler((-3, 2)), min_max_constant),
    "min_max_clipped": (lambda: MinMaxScaler(clip=True), min_max_constant),
    "passthrough": (lambda: "passthrough", lambda s: Fraction(1)),
    "none": (lambda: None, lambda s: Fraction(1)),
    "nested": (
        lambda: Pipeline([("a", StandardScaler()), ("b", "passthrough"), ("c", MinMaxScaler())]),
        lambda s: standard_constant(s["a"]) * min_max_constant(s["c"]),
    ),
    "nested_twice": (
        lambda: make_pipeline(make_pipeline(MinMaxScaler((0, 7)), "passthrough"), None),
        lambda s: min_max_constant(s[0][0]),
    ),
}


@pytest.fixture(scope="module")
def pipelines(digits):
    return {
        name: Pipeline([("prepare", make()), ("classify", quick())]).fit(*digits)
        for name, (make, _) in PREPROCESSING.items()
    }


def check_quotient(radii, inner, constant):
    """At most the exact quotient, and within 1e-9 of it, as the bounds of the steps are.

    Or within 1e-11, the charge for the scaler's rounding: some units of 1e-16 on rows of length 100.
    """
    for radius, numerator in zip(radii.tolist(), inner.tolist(), strict=True):
        exact = Fraction(numerator) / constant
        lowest = min(exact * (1 - Fraction(1, 10**9)), exact - Fraction(1, 10**11))
        assert lowest <= Fraction(radius) <= exact


@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_pipeline_divides_the_radius_by_the_constant_of_its_steps(pipelines, digits, name):
    pipeline, X = pipelines[name], digits[0]
    step = pipeline["prepare"]
    Z = X if step in (None, "passthrough") else step.transform(X)
    inner = pipeline["classify"].certificates_(Z)
    assert inner.max() > 0
    check_quotient(certificates(pipeline, X), inner, PREPROCESSING[name][1](step))


def test_a_pipeline_of_the_classifier_alone_gives_its_radii(fitted, digits):
    X = digits[0]
    expected = fitted.certificates_(X)
    check_quotient(certificates(Pipeline([("classify", fitted)]), X), expected, Fraction(1))
    nested = Pipeline([("outer", Pipeline([("classify", fitted)]))])
    check_quotient(certificates(nested, X), expected, Fraction(1))


def test_constants_of_several_scalers_multiply(digits):
    X, y = digits
    first, second = MinMaxScaler().fit(X), StandardScaler()
    second.fit(first.transform(X))
    pipeline = make_pipeline(first, second, quick()).fit(X, y)
    inner = pipeline[-1].certificates_(pipeline[:-1].transform(X))
    constant = min_max_constant(first) * standard_constant(second)
    check_quotient(certificates(pipeline, X), inner, constant)


@pytest.mark.parametrize("with_pipeline", [False, True])
@pytest.mark.parametrize("kind", [GridSearchCV, RandomizedSearchCV])
def test_certificates_of_a_search_are_those_of_its_best_estimator(digits, kind, with_pipeline):
    X, y = digits
    estimator = Pipeline([("scale", StandardScaler()), ("classify", quick())])
    grid = {"classify__tau": [1.0, 10.0]} if with_pipeline else {"tau": [1.0, 10.0]}
    estimator = estimator if with_pipeline else quick()
    extra = {"n_iter": 2} if kind is RandomizedSearchCV else {}
    search = kind(estimator, grid, cv=2, **extra).fit(X, y)
    expected = certificates(search.best_estimator_, X)
    assert expected.max() > 0
    assert certificates(search, X).tolist() == expected.tolist()
    inside = Pipeline(
        [
            ("scale", StandardScaler()),
            ("search", kind(quick(), {"tau": [1.0]}, cv=2, **({"n_iter": 1} if extra else {}))),
        ]
    ).fit(X, y)
    scaler, search = inside["scale"], inside["search"]
    inner = search.best_estimator_.certificates_(scaler.transform(X))
    check_quotient(certificates(inside, X), inner, standard_constant(scaler))


# -- certificates under attack -------------------------------------------------------------------


def two_sided_data(n_classes, seed=0):
    """Rows whose every column has mean 0 and a standard deviation and a maximum of exactly 4."""
    rng = np.random.default_rng(seed)
    half = 4.0 * rng.choice([-1.0, 1.0], size=(60, 5))
    X = np.vstack([half, -half])
    return X, np.arange(len(X)) % n_classes


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("equal_scales", [True, False])
@pytest.mark.parametrize(
    "scaler",
    [StandardScaler(), MinMaxScaler(), make_pipeline(MinMaxScaler((-5, 5)), StandardScaler())],
    ids=["standard", "min_max", "both"],
)
def test_the_worst_step_in_raw_units_flips_just_beyond_the_radius(scaler, equal_scales, n_classes):
    X, y = two_sided_data(n_classes)
    if not equal_scales:
        X = X * [0.01, 1.0, 3.0, 50.0, 1000.0]
    pipeline = make_pipeline(
        clone(scaler), quick(hidden_layer_sizes=(), architecture="mlp", max_epochs=20)
    ).fit(X, y)
    rng = np.random.default_rng(1)
    rows = X[:40] + 0.1 * rng.normal(size=(40, 5)) * X.std(axis=0)
    radii = certificates(pipeline, rows)
    # The map from raw rows to logits is affine; its matrix is read off from the model.
    weight = pipeline[-1].to_torch()[-1].weight.detach().numpy()
    center = X.mean(axis=0)
    step = np.diag(X.std(axis=0))
    factors = pipeline[:-1].transform(center + step) - pipeline[:-1].transform([center])
    gradient = weight * (factors.diagonal() / X.std(axis=0))
    codes = np.searchsorted(pipeline.classes_, pipeline.predict(rows))
    assert (radii > 1e-3 * X.std(axis=0).min()).all()
    flipped = np.zeros(len(rows), dtype=bool)
    for other in range(n_classes):
        if n_classes == 2:
            direction = np.where(codes[:, None] == 1, -gradient, gradient)
            rivals = codes == other
        else:
            direction = gradient[other] - gradient[codes]
            rivals = codes != other
        norms = np.linalg.norm(direction[rivals], axis=1, keepdims=True)
        unit = direction[rivals] / norms
        inside = rows[rivals] + (1 - 1e-9) * radii[rivals, None] * unit
        assert (pipeline.predict(inside) == pipeline.predict(rows[rivals])).all()
        beyond = rows[rivals] + (1 + 1e-6) * radii[rivals, None] * unit
        flipped[rivals] |= pipeline.predict(beyond) != pipeline.predict(rows[rivals])
    if equal_scales:
        # Then the steps before the classifier scale all directions alike, and nothing is given away.
        assert flipped.all()


def test_random_steps_inside_the_radius_never_flip_a_trained_network(pipelines, digits):
    X = digits[0][:40]
    rng = np.random.default_rng(0)
    for pipeline in pipelines.values():
        radii, labels = certificates(pipeline, X), pipeline.predict(X)
        for _ in range(5):
            steps = rng.normal(size=X.shape)
            steps *= (1 - 1e-9) * (radii / np.linalg.norm(steps, axis=1))[:, None]
            assert (pipeline.predict(X + steps) == labels).all()


def test_a_scaler_switched_after_its_fit_gives_no_radius_of_the_old_map():
    X, y = two_sided_data(2)
    pipeline = make_pipeline(StandardScaler(), quick(hidden_layer_sizes=())).fit(X, y)
    pipeline[0].set_params(with_std=False)
    # Now transform only shifts: the pipeline's radius is that of the classifier.
    inner = pipeline[1].certificates_(X - X.mean(axis=0))
    try:
        radii = certificates(pipeline, X)
    except (TypeError, ValueError):
        return
    # The shift is exact up to rounding; a factor of 4 is what must not slip in.
    assert (radii <= inner * (1 + 1e-6)).all()


def test_rounding_of_the_input_to_the_networks_precision_breaks_no_radius():
    # Seconds since 1970: float32 holds them to 128 s only.
    rng = np.random.default_rng(0)
    X = 1.7e9 + 1e3 * rng.normal(size=(200, 1))
    y = (X[:, 0] > 1.7e9).astype(int)
    clf = quick(dtype="float32", hidden_layer_sizes=(), max_epochs=50).fit(X, y)
    boundary = 1.7e9 + np.linspace(-3000, 3000, 601)[:, None]
    radii, labels = certificates(clf, boundary), clf.predict(boundary)
    for side in (-1, 1):
        for share in (0.25, 0.5, 0.75, 0.99):
            moved = boundary + side * share * radii[:, None]
            near = np.abs(moved - boundary)[:, 0] < radii
            assert (clf.predict(moved)[near] == labels[near]).all()


class ScaledArchitecture:
    """A picklable architecture whose constant is no weight."""

    scale = 1.0

    def __call__(self, input_shape, n_outputs):
        return nn.Sequential(nn.Linear(*input_shape, n_outputs), layers.Scale(self.scale))


def test_a_copy_whose_architecture_has_changed_gives_no_radius_of_the_old_bound(digits, monkeypatch):
    X, y = digits
    clf = quick(architecture=ScaledArchitecture()).fit(X, y)
    # A copy is stored weights in a network that the architecture builds anew.
    monkeypatch.setattr(ScaledArchitecture, "scale", 10.0)
    try:
        copied = copy.deepcopy(clf)
    except (TypeError, ValueError):
        return
    bounds = margin_bounds(copied.to_torch(), 10)
    exact = [exact_radius(row, bounds) for row in copied.decision_function(X)]
    assert all(Fraction(r) <= e for r, e in zip(certificates(copied, X).tolist(), exact, strict=True))


# -- what certificates refuses -------------------------------------------------------------------


class MyScaler(StandardScaler):
    def transform(self, X, copy=None):
        return 10 * super().transform(X, copy)


class MyPipeline(Pipeline):
    def predict(self, X, **params):
        return super().predict(-np.asarray(X), **params)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("step", "name"),
    [
        (KernelPCA(5), "KernelPCA"),
        (Normalizer(), "Normalizer"),
        (PolynomialFeatures(1), "PolynomialFeatures"),
        (FunctionTransformer(lambda X: 10 * X), "FunctionTransformer"),
        (MyScaler(), "MyScaler"),
        (MyPipeline([("scale", StandardScaler())]), "MyPipeline"),
    ],
)
def test_a_step_without_a_bound_is_refused_by_name(digits, step, name, nested):
    X, y = digits
    step = make_pipeline(StandardScaler(), step) if nested else step
    pipeline = make_pipeline(step, quick(max_epochs=1)).fit(X, y)
    with pytest.raises(TypeError, match=rf"^{name} has no Lipschitz bound.*register_transformer_bound"):
        certificates(pipeline, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MyPipeline([("classify", quick(max_epochs=1))]),
        lambda: VotingClassifier([("a", quick(max_epochs=1))]),
        lambda: CalibratedClassifierCV(quick(max_epochs=1), cv=2),
        lambda: LogisticRegression(max_iter=1000),
        lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        lambda: make_pipeline(StandardScaler(), VotingClassifier([("a", quick(max_epochs=1))])),
        lambda: GridSearchCV(MyPipeline([("classify", quick(max_epochs=1))]), {}, cv=2),
    ],
    ids=[
        "pipeline_subclass",
        "voting",
        "calibrated",
        "logistic",
        "in_pipeline",
        "voting_in_pipeline",
        "in_search",
    ],
)
def test_an_estimator_without_certificates_is_refused_by_name(digits, make):
    estimator = make().fit(*digits)
    last = getattr(estimator, "best_estimator_", estimator)
    last = last[-1] if type(last) is Pipeline else last
    with pytest.raises(TypeError, match=rf"^{type(last).__name__} gives no certificates"):
        certificates(estimator, digits[0])


@pytest.mark.parametrize("last", ["passthrough", None])
def test_a_pipeline_that_ends_in_no_classifier_is_refused(digits, last):
    pipeline = Pipeline([("scale", StandardScaler()), ("last", last)]).fit(digits[0])
    with pytest.raises(TypeError, match="gives no certificates"):
        certificates(pipeline, digits[0])


@pytest.mark.parametrize(
    "estimator",
    [
        quick(),
        make_pipeline(quick()),
        make_pipeline(StandardScaler(), quick()),
        make_pipeline("passthrough", quick()),
        GridSearchCV(quick(), {"tau": [1.0]}),
        GridSearchCV(make_pipeline(StandardScaler(), quick()), {}),
        GridSearchCV(quick(), {"tau": [1.0]}, refit=False),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_unfitted_estimators_are_refused_as_such(digits, estimator):
    with pytest.raises(NotFittedError):
        certificates(estimator, digits[0])


def test_an_unfitted_scaler_before_a_fitted_classifier_is_refused_as_such(digits, fitted):
    with pytest.raises(NotFittedError):
        certificates(Pipeline([("scale", StandardScaler()), ("classify", fitted)]), digits[0])


def test_a_search_without_refit_is_told_to_refit(digits):
    search = GridSearchCV(quick(max_epochs=1), {"tau": [1.0]}, cv=2, refit=False).fit(*digits)
    with pytest.raises(TypeError, match=r"^GridSearchCV needs refit=True"):
        certificates(search, digits[0])
