"""Proven Lipschitz constants against Jacobians: they hold, and are tight where a rule says so."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from sklip import CertifiedNetwork, layers, lipschitz_bound
from sklip.certified.rules import length_upper

pytestmark = pytest.mark.usefixtures("seeded_torch")

EPS = float(np.finfo(np.float64).eps)


def rounding(matrix):
    """Relative tolerance: entries are sums of at most n products, and NumPy's SVD adds n eps."""
    return 16 * max(matrix.shape) * EPS


def jacobian(module, shape):
    """Jacobian matrix in float64 at a random point: one row a copy of it in a batch."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    size = module(x).numel()
    copies = x.repeat(size, *[1] * len(shape)).requires_grad_()
    out = module(copies).reshape(size, size)
    return torch.autograd.grad(out, copies, torch.eye(size, dtype=torch.float64))[0].flatten(1).numpy()


def assert_bound_dominates(module, shape, *, points=1, tightness=None):
    """The bound is at least the norm of the Jacobian; with `tightness`, at most that times it."""
    bound = lipschitz_bound(module.double())
    matrices = [jacobian(module, shape) for _ in range(points)]
    norm = max(np.linalg.norm(matrix, 2) for matrix in matrices)
    slack = rounding(matrices[0])
    assert norm <= bound * (1 + slack)
    if tightness is not None:
        assert bound <= norm * tightness * (1 + slack)


def with_attribute(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


# -- a rule for each layer ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_bound_of_a_matrix_is_its_norm(shape):
    # Charges of 16 n^2 eps at most, see test_norms.py.
    assert_bound_dominates(nn.Linear(*shape), shape[:1], tightness=1 + 16 * 64 * EPS)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "padding": (4, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3)},
    {"kernel_size": 2, "stride": 4},
    {"kernel_size": 2, "dilation": (2, 3), "padding": 3},
    {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "groups": 2, "dilation": 2, "stride": (2, 1), "padding": 2},
    {"kernel_size": 1, "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": "valid"},
]
CIRCULAR = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 5, "padding": (1, 0)},
    {"kernel_size": 2, "padding": 0},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 2, "dilation": 2, "padding": "same"},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_bound_dominates_zero_padded_convolutions(options):
    for shape in [(4, 5, 6), (4, 9, 8)]:
        assert_bound_dominates(nn.Conv2d(4, 6, **options), shape)


@pytest.mark.parametrize("options", CIRCULAR, ids=str)
def test_bound_dominates_circular_convolutions(options):
    for shape in [(4, 5, 6), (4, 9, 8)]:
        assert_bound_dominates(nn.Conv2d(4, 6, padding_mode="circular", **options), shape)


@pytest.mark.parametrize(
    ("options", "map_size"),
    [
        ({"kernel_size": 3, "padding": 1}, 12),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, 12),
        ({"kernel_size": 2, "dilation": 2, "padding": 1}, 12),
    ],
)
def test_bound_is_tight_for_circular_convolutions(options, map_size):
    # A circular map is its symbol on a grid of 12 frequencies an axis, degree 2: it may miss
    # 1 / cos(2 pi / 12)^2 of the squared norm (Ehlich, Zeller), and sklip's grid adds 0.4 %.
    tightness = 1.004 / math.cos(2 * math.pi / map_size)
    module = nn.Conv2d(2, 4, padding_mode="circular", **options)
    assert_bound_dominates(module, (2, map_size, map_size), tightness=tightness)


@st.composite
def convolutions(draw, padding_mode):
    """A random Conv2d that has a bound, and the shape of a map of up to 14 x 14 that it takes."""
    groups = draw(st.integers(1, 3))
    kernel = draw(pairs(1, 5))
    circular = padding_mode == "circular"
    stride = (1, 1) if circular else draw(st.sampled_from([(1, 1), draw(pairs(1, 4))]))
    dilation = draw(pairs(1, 3))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    widest = [(span - 1) // 2 for span in spans] if circular else [6, 6]
    padding = draw(st.sampled_from(["valid", "same", tuple(draw(st.integers(0, w)) for w in widest)]))
    padding = "valid" if padding == "same" and stride != (1, 1) else padding
    module = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    ).double()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=module.weight.shape)
    if draw(st.booleans()):  # of one sign, whose symbol is largest at frequency 0
        values = np.abs(values)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(values))
    left, right, top, bottom = module._reversed_padding_repeated_twice
    # Circular padding must not wrap around twice, and something must be left to sum.
    least = [
        max(1, span - low - high, *((low, high) if circular else ()))
        for span, low, high in zip(spans, (top, left), (bottom, right), strict=True)
    ]
    return module, (module.in_channels, *(draw(st.integers(side, 14)) for side in least))


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


def convolution_by_loops(module, shape):
    """Dense matrix of a convolution, from its definition."""
    weight, groups = module.weight.detach().numpy(), module.groups
    left, right, top, bottom = module._reversed_padding_repeated_twice
    (n_out, n_in, *taps), (height, width) = weight.shape, shape[1:]
    extended = (top + height + bottom, left + width + right)
    rows, columns = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(extended, module.dilation, taps, module.stride, strict=True)
    )
    matrix = np.zeros((n_out, rows, columns, *shape))
    for row, column, a, b in np.ndindex(rows, columns, *taps):
        y = row * module.stride[0] + a * module.dilation[0] - top
        x = column * module.stride[1] + b * module.dilation[1] - left
        if module.padding_mode == "circular":
            y, x = y % height, x % width
        if not (0 <= y < height and 0 <= x < width):
            continue
        for group in range(groups):
            outs = slice(group * n_out // groups, (group + 1) * n_out // groups)
            ins = slice(group * n_in, (group + 1) * n_in)
            matrix[outs, row, column, ins, y, x] += weight[outs, :, a, b]
    return matrix.reshape(n_out * rows * columns, -1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_bound_dominates_the_norm_of_any_convolution(padding_mode, data):
    module, shape = data.draw(convolutions(padding_mode))
    matrix = convolution_by_loops(module, shape)
    assert np.linalg.norm(matrix, 2) <= lipschitz_bound(module) * (1 + rounding(matrix))


def test_the_oracle_of_convolutions_is_the_convolution_of_torch():
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    module = nn.Conv2d(4, 6, (3, 2), **options).double()
    circular = nn.Conv2d(2, 3, (3, 2), padding="same", dilation=2, padding_mode="circular").double()
    for convolution, shape in [(module, (4, 5, 6)), (circular, (2, 4, 5))]:
        matrix = convolution_by_loops(convolution, shape)
        np.testing.assert_allclose(matrix, jacobian(convolution, shape), atol=rounding(matrix))


def supremum_of_the_symbol(module):
    r"""Norm on infinite maps, from below: the largest on a fine grid of frequencies.

    Of the outputs' frequencies theta: those that fold onto theta are omega = (theta + 2 pi p) / stride,
    and the squared norm is that of the mean over p of K^(omega) K^(omega)^*.
    """
    weight = module.weight.detach().numpy()
    phases = []
    for d, k, s in zip(module.dilation, weight.shape[2:], module.stride, strict=True):
        # Without a stride, a dilation goes through the same frequencies faster.
        d = d if s > 1 else 1
        # Degree n: a grid of 16 n points misses 1 / cos(pi / 16), 2 %, of a squared norm at most.
        side = 16 * -(-d * (k - 1) // s) + 1
        omega = 2 * np.pi * (np.arange(side)[:, None] / side + np.arange(s)) / s
        phases.append(np.exp(-1j * omega[..., None] * d * np.arange(k)))
    largest = 0.0
    for part in np.split(weight, module.groups):
        symbols = np.einsum("oiab,upa,vqb->uvoipq", part, *phases)
        symbols = symbols.reshape(*symbols.shape[:3], -1)
        grams = symbols @ symbols.conj().swapaxes(-1, -2) / math.prod(module.stride)
        largest = max(largest, np.linalg.eigvalsh(grams).max())
    return math.sqrt(largest)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_bound_is_near_the_supremum_of_the_symbol(padding_mode, data):
    module, _ = data.draw(convolutions(padding_mode))
    supremum = supremum_of_the_symbol(module)
    # 1 % of the norm for each axis of the test's grid, and 0.4 % for sklip's.
    assert supremum * (1 - 64 * EPS) <= lipschitz_bound(module) <= 1.02 * supremum * (1 + 1e-9)


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.floats(-1e3, 1e3).map(lambda value: round(value, 6)),
    )
)
@settings(deadline=None, max_examples=100)
def test_bound_of_any_linear_layer_is_its_norm(matrix):
    norm = np.linalg.norm(matrix, 2)
    bound = lipschitz_bound(linear(matrix))
    assert norm * (1 - 16 * 12 * EPS) <= bound <= 1.001 * norm


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize(
    "arguments", [(2, 6, 3), (6, 2, 3), (4, 4, 5), (4, 4, (3, 1)), (3, 3, (1, 5)), (1, 1, 3), (5, 7, 1)]
)
def test_bound_of_an_orthogonal_convolution_is_its_norm_on_circular_maps(arguments, size):
    layer = layers.OrthogonalConv2d(*arguments, padding_mode="circular", k=1.7)
    plain = layers.to_torch(layers.polish_(layer.double()))
    norm = np.linalg.norm(convolution_by_loops(plain, (arguments[0], size, size)), 2)
    # Nearly 1e-9, and an order of magnitude better than the 1.001 that is asked.
    assert norm * (1 - 64 * EPS * size**2) <= lipschitz_bound(layer) <= (1 + 1e-9) * norm


def test_bound_of_groups_is_that_of_the_largest_group():
    module = nn.Conv2d(2, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([3.0, 4.0, 1.0, 0.0]).view(4, 1, 1, 1))
    assert lipschitz_bound(module) == pytest.approx(5.0, rel=16 * 4 * EPS)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(), nn.Flatten(1, 2)], ids=repr)
def test_maps_that_keep_distances_have_bound_one(module):
    assert lipschitz_bound(module) == 1
    assert_bound_dominates(module, (2, 3, 4), tightness=1)


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (nn.ReLU(), 1),
        (nn.Tanh(), 1),
        (nn.LeakyReLU(), 1),
        (nn.LeakyReLU(-1.0), 1),
        (nn.LeakyReLU(-3.0), 3),
        (nn.LeakyReLU(2.5), 2.5),
        (nn.Dropout().eval(), 1),
        (nn.Dropout2d().eval(), 1),
        (nn.MaxPool2d(2), 1),
        (nn.AvgPool2d((4, 1)), 0.5),
        (layers.GroupSort2(), 1),
        (layers.GroupSort(3), 1),
        (layers.FullSort(), 1),
        (nn.Flatten(), 1),
        (layers.Center(3), 1),
        (layers.Scale(2.0), 2),
        (layers.ScaledL2NormPool2d(2, k=0.5), 0.5),
        (layers.ScaledAvgPool2d((1, 2), k=3.0), 3),
    ],
    ids=repr,
)
def test_bound_of_a_layer_without_weights_is_its_constant(module, constant):
    # Means are divided by the root of the window's size, which is rounded up.
    rounded = 2**-51 if type(module) is nn.AvgPool2d else 0
    assert lipschitz_bound(module) == constant * (1 + rounded)
    # Slopes at random points reach the constant, except that of tanh, which has it at zero only.
    assert_bound_dominates(module, (6, 4, 3), tightness=None if type(module) is nn.Tanh else 1)


# -- pools -------------------------------------------------------------------------------------


def pool_options(max_dilation):
    """Options of one axis: window, stride, padding up to half of it, dilation, ceil_mode."""
    axes = itertools.product([1, 2, 3], [1, 2, 3, 4, 5], [0, 1, 2], range(1, max_dilation + 1))
    for (kernel, stride, padding, dilation), ceil in itertools.product(axes, [False, True]):
        if padding <= kernel // 2:
            yield kernel, stride, padding, dilation, ceil


def bound_unless_windows_overlap(module):
    """The bound, or None if the module is refused for a stride that is too small."""
    try:
        return lipschitz_bound(module)
    except TypeError as error:
        if "stride of at least" not in str(error):
            raise
        return None


def most_windows_of_a_pixel(pool, shape):
    """Number of outputs that change if one pixel rises: the squared change of the output."""
    spikes = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, 1, *shape) - 1
    below = torch.full((1, 1, *shape), -1.0, dtype=torch.float64)
    return int((pool(spikes) != pool(below)).flatten(1).sum(1).max())


@pytest.mark.parametrize("across", [False, True])
def test_max_pools_are_accepted_exactly_where_no_pixel_counts_twice(across):
    n_accepted = n_refused = 0
    for kernel, stride, padding, dilation, ceil in pool_options(max_dilation=2):
        values = [(kernel, 1), (stride, 1), (padding, 0), (dilation, 1)]
        pool = nn.MaxPool2d(*(pair[::-1] if across else pair for pair in values), ceil_mode=ceil)
        most = 0
        for side in range(dilation * (kernel - 1) + 1, 13):
            most = max(most, most_windows_of_a_pixel(pool, (1, side) if across else (side, 1)))
        bound = bound_unless_windows_overlap(pool)
        if bound is None:
            n_refused += 1
            # Dilated windows may miss one another for other reasons: those are refused as well.
            assert most > 1 or dilation > 1
        else:
            n_accepted += 1
            assert (bound, most) == (1, 1)
    assert min(n_accepted, n_refused) > 20


POOLS_2D = [
    {"kernel_size": 2},
    {"kernel_size": (2, 3), "padding": 1},
    {"kernel_size": 3, "stride": (3, 4), "padding": (0, 1)},
    {"kernel_size": (3, 1), "stride": (4, 1)},
    {"kernel_size": 1, "stride": (2, 1)},
    {"kernel_size": 4, "stride": 5, "padding": 2},
]


DILATED = [
    {"kernel_size": 2, "dilation": (2, 3), "stride": 4},
    {"kernel_size": (3, 2), "dilation": 2, "stride": (5, 4), "padding": 1},
]


@pytest.mark.parametrize("shape", [(2, 7, 9), (1, 10, 8)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("options", POOLS_2D + DILATED, ids=str)
def test_bound_of_max_pools_is_attained_on_maps(options, ceil_mode, shape):
    pool = nn.MaxPool2d(**options, ceil_mode=ceil_mode)
    assert lipschitz_bound(pool) == 1
    assert_bound_dominates(pool, shape, points=3, tightness=1)


def test_bound_of_mean_pools_is_attained_over_all_options():
    n_accepted = n_refused = 0
    without_ceil = [options for *options, ceil in pool_options(max_dilation=1) if not ceil]
    for (kernel, stride, padding, _), width in itertools.product(without_ceil, [1, 2]):
        pool = nn.AvgPool2d((kernel, width), (stride, width), (padding, 0))
        side = stride + kernel + 1  # two windows at least, one of them without padding
        matrix = jacobian(pool, (1, side, width + 1))
        norm, bound = np.linalg.norm(matrix, 2), bound_unless_windows_overlap(pool)
        if bound is None:
            n_refused += 1
            assert norm > (1 + rounding(matrix)) / math.sqrt(kernel * width)
        else:
            n_accepted += 1
            assert norm <= bound * (1 + rounding(matrix))
            assert bound <= norm * (1 + rounding(matrix))
    assert min(n_accepted, n_refused) > 10


@pytest.mark.parametrize("options", POOLS_2D, ids=str)
def test_bound_of_mean_pools_is_attained_on_maps(options):
    assert_bound_dominates(nn.AvgPool2d(**options), (2, 9, 10), tightness=1)


@pytest.mark.parametrize(
    ("options", "shape", "setting"),
    [
        ({"ceil_mode": True}, (1, 3, 3), "ceil_mode=True"),
        ({"divisor_override": 1}, (1, 4, 4), "divisor_override"),
        ({"padding": 1, "count_include_pad": False}, (1, 4, 4), "count_include_pad=False"),
    ],
)
def test_mean_pools_that_divide_by_less_are_refused(options, shape, setting):
    pool = nn.AvgPool2d(2, **options)
    with pytest.raises(TypeError, match=f"AvgPool2d with {setting} has no Lipschitz bound"):
        lipschitz_bound(pool)
    # And rightly: the norm would be above 1 / 2.
    assert np.linalg.norm(jacobian(pool, shape), 2) > 0.99


def test_settings_of_mean_pools_without_an_effect_are_accepted():
    assert_bound_dominates(nn.AvgPool2d(2, count_include_pad=False), (1, 4, 5), tightness=1)


def test_max_pools_with_indices_are_refused():
    with pytest.raises(TypeError, match="MaxPool2d with return_indices=True"):
        lipschitz_bound(nn.MaxPool2d(2, return_indices=True))


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize(
    "attributes",
    [
        {"stride": None},
        {"stride": ()},
        {"kernel_size": [3, 1], "stride": [3, 2]},
        {"kernel_size": (3,), "stride": (4,), "padding": (1,)},
        {"kernel_size": 3, "stride": None},
        {"kernel_size": (1, 2)},
        {"kernel_size": 3},
        {"stride": 1},
        {"kernel_size": (2, 3)},
        {"kernel_size": (3, 2), "stride": [2, 2]},
    ],
    ids=str,
)
def test_pools_are_read_as_their_forward_pass_reads_them(pool, attributes):
    module = with_attribute(pool(2), **attributes)
    bound = bound_unless_windows_overlap(module)
    # A window of 3 at the old stride of 2 overlaps, and so does a stride of 1.
    overlaps = attributes == {"stride": 1} or ("3" in str(attributes) and "stride" not in attributes)
    assert (bound is None) == (overlaps or attributes.get("stride") == [2, 2])
    if bound is not None:
        assert_bound_dominates(module, (1, 7, 8), tightness=1)


# -- smooth activations ------------------------------------------------------------------------


def steepest_slope(module, reach):
    """Largest slope in float64 between neighbours on a fine grid that has 0 in it."""
    x = torch.linspace(-reach, reach, 20001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(module(x).sum(), x)
    return float(slopes.abs().max())


def test_bound_of_the_sigmoid_is_its_slope_at_zero():
    assert lipschitz_bound(nn.Sigmoid()) == 0.25 == steepest_slope(nn.Sigmoid(), 40)
    assert_bound_dominates(nn.Sigmoid(), (5,), points=5)


@pytest.mark.parametrize("beta", [1, 0.1, 30.0, -1, -0.5])
def test_bound_of_the_softplus_is_the_slope_it_tends_to(beta):
    # A threshold that is never reached: the slope at beta x = 40 is 1 - exp(-40), 1 in float64.
    module = nn.Softplus(beta, threshold=100)
    slope = steepest_slope(module, 40 / abs(beta))
    assert 1 - EPS <= slope <= lipschitz_bound(module) == 1


@pytest.mark.parametrize("beta", [0, math.inf, -math.inf, math.nan])
def test_softplus_without_a_function_is_refused(beta):
    with pytest.raises(TypeError, match=f"Softplus has no Lipschitz bound for beta={beta}"):
        lipschitz_bound(nn.Softplus(beta))


@pytest.mark.parametrize("module", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish()], ids=repr)
def test_smooth_activations_without_a_rule_are_those_steeper_than_one(module):
    assert steepest_slope(module, 4) > 1.08
    with pytest.raises(TypeError, match=f"{type(module).__name__} has no Lipschitz bound"):
        lipschitz_bound(module)


# -- residuals ---------------------------------------------------------------------------------


def linear(matrix):
    module = nn.Linear(*reversed(matrix.shape), bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(matrix))
    return module


def orthogonal_matrix(n):
    return np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]


@pytest.mark.parametrize("scale", [1.0, 0.1, 7.0])
def test_bound_of_a_residual_is_attained_where_both_ways_agree(scale):
    residual = layers.Residual(linear(scale * np.eye(4)))
    # The charges of a matrix, and two roundings of the sum.
    assert_bound_dominates(residual, (4,), tightness=1 + 16 * 16 * EPS)
    assert 1 + scale <= lipschitz_bound(residual)


def test_bound_of_a_residual_is_loose_where_the_ways_cancel():
    residual = layers.Residual(linear(-np.eye(3)))
    assert not jacobian(residual, (3,)).any()
    assert 2 <= lipschitz_bound(residual) <= 2 * (1 + 16 * 9 * EPS)


def test_bound_of_a_residual_around_an_orthogonal_matrix_is_near_two():
    # I + Q is largest where Q rotates least.
    q = orthogonal_matrix(6)
    bound = lipschitz_bound(layers.Residual(linear(q)))
    norm = np.linalg.norm(np.eye(6) + q, 2)
    assert norm * (1 - 6 * EPS) <= bound
    assert bound == pytest.approx(2, rel=16 * 36 * EPS)
    swapped = layers.Residual(linear(q), linear(q.T))
    assert_bound_dominates(swapped, (6,), tightness=1 + 64 * 36 * EPS)


def test_bound_of_a_residual_without_layers_is_two():
    assert 2 <= lipschitz_bound(layers.Residual()) <= 2 * (1 + EPS)


@pytest.mark.parametrize("branch", [0.0, 1e-30, 0.1, 1.0, 3.7, 1e300])
def test_bound_of_a_residual_is_rounded_up(branch):
    bound = lipschitz_bound(layers.Residual(with_attribute(layers.Scale(1.0), k=branch)))
    exact = 1 + Fraction(branch)
    # The product rounds up by 4 eps at most, the sum by 2.
    assert exact < Fraction(bound) <= exact * Fraction(1 + 6 * EPS)


def test_bound_dominates_residual_networks():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        layers.Residual(
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Softplus(2.0),
            layers.Residual(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), nn.Sigmoid()),
            nn.Sequential(nn.LeakyReLU(2.0, inplace=True), nn.Conv2d(6, 4, 1)),
        ),
        nn.AvgPool2d(2),
        nn.Flatten(),
        layers.Residual(nn.Linear(16, 16), layers.GroupSort2()),
    )
    assert_bound_dominates(network, (1, 4, 4), points=5)
    block = network.double()[1]
    parts = [lipschitz_bound(part) for part in (block[0], block[2][0], block[3][1])]
    expected = 1 + parts[0] * (1 + parts[1] / 4) * 2 * parts[2]
    assert lipschitz_bound(block) == pytest.approx(expected, rel=32 * EPS)


def test_bound_of_residuals_in_a_chain_with_a_constant_is_near_it():
    chain = layers.Sequential(
        layers.SpectralLinear(6, 6),
        layers.Residual(layers.SpectralLinear(6, 6, k=0.5), layers.GroupSort2()),
        layers.Residual(layers.Residual(layers.SpectralLinear(6, 6))),
        k=3.0,
    )
    layers.polish_(chain.double())
    assert_bound_dominates(chain, (6,), points=3)
    # Charges of three matrices of side 6.
    assert 3 <= lipschitz_bound(chain) <= 3 * (1 + 3 * 16 * 36 * EPS)
    assert lipschitz_bound(layers.to_torch(chain)) == pytest.approx(
        lipschitz_bound(chain), rel=64 * EPS
    )


CONSTRAINED = [
    (layers.SpectralLinear(4, 6, k=2.0), (4,), 2.0),
    (layers.SpectralConv2d(2, 4, 3, k=0.5), (2, 5, 5), 0.5),
    (layers.OrthogonalConv2d(2, 8, 4, 2), (2, 6, 6), 1.0),
    (layers.OrthogonalConv2d(3, 3, 3, padding_mode="circular"), (3, 6, 6), 1.0),
    (
        layers.Sequential(
            layers.OrthogonalConv2d(1, 8, 3, k=3.0),
            layers.GroupSort2(),
            layers.ScaledL2NormPool2d(2, k=0.1),
            nn.Flatten(),
            layers.SpectralLinear(72, 5),
            k=4.0,
        ),
        (1, 6, 6),
        4.0,
    ),
]


@pytest.mark.parametrize(("module", "shape", "k"), CONSTRAINED, ids=lambda value: type(value).__name__)
def test_bound_of_a_constrained_layer_is_near_its_k(module, shape, k):
    layers.polish_(module.double())
    assert_bound_dominates(module, shape, points=3)
    # Orthogonal up to n eps, and the charges of the bound, which test_norms.py derives.
    assert lipschitz_bound(module) <= k * (1 + 1e-9)
    # The export multiplies the same numbers in another order.
    assert lipschitz_bound(layers.to_torch(module)) == pytest.approx(
        lipschitz_bound(module), rel=64 * EPS
    )


def test_bound_follows_a_k_that_was_changed():
    for k in (-3.0, 0.5):
        assert lipschitz_bound(with_attribute(layers.Scale(1.0), k=k)) == abs(k)
        linear = with_attribute(layers.polish_(layers.SpectralLinear(3, 3).double()), k=abs(k))
        assert_bound_dominates(linear, (3,), tightness=1 + 16 * 9 * EPS)


def test_bound_of_a_chain_is_the_product_and_dominates_the_jacobian():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.LeakyReLU(2.0),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 8), layers.GroupSort2()),
        nn.Linear(8, 3),
    ).double()
    assert_bound_dominates(module, (1, 6, 6), points=5)
    factors = [lipschitz_bound(part) for part in (module[0], module[1], module[2][1], module[3])]
    assert math.prod(factors) <= lipschitz_bound(module) <= math.prod(factors) * (1 + 16 * EPS)


def test_bound_of_a_chain_multiplies_norms_even_where_directions_differ():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([3.0, 0.0])))
        second.weight.copy_(torch.diag(torch.tensor([5.0, 7.0])))
    # 3 * 7, not the 15 of the product of the matrices: chains multiply. 16 n^2 eps for each.
    bound = lipschitz_bound(nn.Sequential(first, second))
    assert 21 <= bound <= 21 * (1 + 2 * 16 * 2**2 * EPS)


def test_empty_chain_is_the_identity():
    assert lipschitz_bound(nn.Sequential()) == 1


def test_bound_of_a_chain_of_tiny_layers_is_positive():
    chain = nn.Sequential(*(layers.Scale(1e-200) for _ in range(2)))
    assert lipschitz_bound(chain) > 0


def test_a_module_used_twice_counts_twice():
    double = layers.Scale(2.0)
    assert lipschitz_bound(nn.Sequential(double, double)) == pytest.approx(4.0, rel=4 * EPS)


def test_a_changed_weight_changes_the_bound():
    module = nn.Linear(3, 3)
    before = lipschitz_bound(module)
    with torch.no_grad():
        module.weight.mul_(2)
    assert lipschitz_bound(module) == pytest.approx(2 * before, rel=4 * EPS)


def test_bound_leaves_module_and_random_generator_alone():
    module = layers.Sequential(layers.SpectralLinear(3, 2), k=2.0)
    state, generator = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    lipschitz_bound(module)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_weights_that_are_not_finite_are_refused():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        lipschitz_bound(module)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bias_that_is_finite_but_for_one_value_is_refused(value):
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.bias[1] = value
    with pytest.raises(ValueError, match="Linear must give finite values"):
        CertifiedNetwork.prove(module, (2,))


@pytest.mark.parametrize("seed", range(20))
def test_the_length_of_values_is_the_exact_one_or_a_little_above(seed):
    values = torch.randn(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    squared = sum(Fraction(value) ** 2 for value in values.tolist())
    assert squared <= Fraction(length_upper(values)) ** 2 <= squared * (1 + Fraction(1, 2**28))


# -- circular padding with a stride ----------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "padding", "sizes"),
    [
        (2, 2, 1, 0, [(4, 4), (6, 2)]),
        (3, 2, 1, 1, [(4, 6), (8, 8)]),
        (3, (2, 1), 1, (1, 1), [(6, 5), (2, 3)]),
        (3, (3, 2), 1, (1, 0), [(9, 4), (3, 6)]),
        ((4, 3), 2, 1, (1, 1), [(8, 4)]),
        (3, 2, 2, 2, [(8, 8), (4, 6)]),
        (5, 4, 1, 2, [(8, 12), (4, 4)]),
    ],
)
def test_strided_circular_convolutions_are_bounded_where_the_stride_divides_the_map(
    kernel_size, stride, dilation, padding, sizes, groups
):
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    module = nn.Conv2d(4, 6, kernel_size, padding_mode="circular", bias=False, **options).double()
    for size in sizes:
        inputs = torch.eye(4 * math.prod(size), dtype=torch.float64).view(-1, 4, *size)
        norm = np.linalg.norm(module(inputs).detach().flatten(1).numpy(), 2)
        assert lipschitz_bound(module, (4, *size)) >= norm * (1 - 1e-12)
    # On a large map the norm comes close to the supremum.
    assert lipschitz_bound(module, (4, *sizes[0])) <= 1.35 * norm


def test_a_stride_that_does_not_divide_a_circular_map_is_refused():
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="circular"))
    lipschitz_bound(module, (2, 8, 6))
    with pytest.raises(TypeError, match="unless its stride divides the size of the map"):
        lipschitz_bound(module, (2, 7, 6))
    with pytest.raises(TypeError, match="pass input_shape"):
        lipschitz_bound(module)


def test_the_size_of_the_map_is_followed_through_the_layers():
    circular = nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="circular")
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(circular, layers.Residual(nn.Tanh())))
    lipschitz_bound(network, (1, 10, 6))
    with pytest.raises(TypeError, match=r"stride=\(2, 2\) for \(9, 4\)"):
        lipschitz_bound(network, (1, 11, 6))


def test_strided_circular_orthogonal_convolutions_are_orthogonal():
    layer = layers.OrthogonalConv2d(4, 16, 3, stride=2, padding_mode="circular").double()
    layers.polish_(layer)  # to the precision of float64
    assert 1 - 1e-9 <= lipschitz_bound(layer, (4, 8, 8)) <= 1 + 1e-9


def test_padding_set_after_construction_is_refused():
    """torch's forward pass reads one attribute for zeros and another for circular padding."""
    module = nn.Conv2d(1, 1, 3, padding=1)
    module.padding = (0, 0)
    with pytest.raises(TypeError, match="padding was set after it was made"):
        lipschitz_bound(module)


def circular_ones(kernel_size, **attributes):
    module = nn.Conv2d(1, 1, kernel_size, padding=2, padding_mode="circular", bias=False)
    return with_attribute(module, weight=nn.Parameter(torch.ones(1, 1, 1, 1)), **attributes)


@pytest.mark.parametrize(
    "make",
    [lambda: circular_ones(5), lambda: circular_ones(1, padding=(0, 0))],
    ids=["weight", "padding"],
)
def test_altered_circular_convolutions_are_refused(make):
    # What torch computes has norm 3 on a map of 2 x 2, where the symbol of the one tap says 1.
    module = make().double()
    assert np.linalg.norm(jacobian(module, (1, 2, 2)), 2) == pytest.approx(3, rel=64 * EPS)
    with pytest.raises(TypeError, match="padding"):
        lipschitz_bound(module)
