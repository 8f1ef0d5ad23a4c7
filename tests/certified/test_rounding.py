"""The charge for rounding covers the error that is made, and is small."""

import copy
import functools
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

from sklip import CertifiedNetwork, LipschitzClassifier, layers
from sklip.certified import Affine, Arithmetic, Budget, MapBound, exact, register_layer
from sklip.certified.direct_sums import direct_forward
from sklip.certified.maps import Course
from sklip.certified.rules import LAYERS, described_chain
from sklip.layers import to_torch
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.preprocessing.rules import described_transformer

pytestmark = pytest.mark.usefixtures("two_threads")

FLOAT32, FLOAT64 = map(Arithmetic.of_networks, ("float32", "float64"))


def described(layer, shape):
    (bound,), _ = described_chain([layer], shape)
    return bound


def charge_of(layer, dtype, shape):
    """The bound on a layer's error, by the length of its input."""
    return described(layer, shape).error_in(Arithmetic(dtype))


def mixed_network(input_shape, n_outputs):
    """Layers of nearly every type that has a rule."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1, dilation=1),
        nn.Dropout2d(),
        layers.GroupSort(4),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode="circular"),
        nn.LeakyReLU(0.3),
        layers.Residual(
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Softplus(-2.0),
            layers.Residual(nn.Conv2d(6, 6, 1), nn.Sigmoid(), layers.Scale(2.0)),
            nn.Sequential(nn.Conv2d(6, 8, 3, padding="same"), layers.GroupSort2()),
        ),
        nn.Sequential(layers.ScaledAvgPool2d((1, 2)), layers.Scale(1.7), nn.Tanh()),
        nn.MaxPool2d((2, 1)),
        nn.AvgPool2d((1, 2), padding=(0, 1)),
        nn.Identity(),
        nn.Flatten(),
        layers.FullSort(),
        nn.Linear(8 * (height // 4) * (width // 6), 12),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(12, n_outputs),
    )


def centred_mlp(input_shape, n_outputs):
    network = lipschitz_mlp((int(np.prod(input_shape)),), n_outputs, (32,))
    network[0].center.uniform_(-100, 100)
    return nn.Sequential(nn.Flatten(), *to_torch(network))


def randomised(network):
    with torch.no_grad():
        for module in network.modules():
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.normal_()
    return to_torch(network).eval().requires_grad_(False)


def hostile(kind, n_rows, shape):
    rng = np.random.default_rng(0)
    if kind == "one huge pixel":
        x = np.full((n_rows, *shape), 1e-3)
        x[:, 0, 1, 1] = 1e8
    elif kind == "all huge":
        x = rng.normal(size=(n_rows, *shape)) * 1e6
    elif kind == "tiny":
        x = rng.normal(size=(n_rows, *shape)) * 1e-30
    else:
        x = rng.random((n_rows, *shape))
    return x.astype(np.float32)


SHAPE = (1, 12, 12)


@functools.cache
def proven(build, n_outputs):
    torch.manual_seed(0)
    network = randomised(build(SHAPE, n_outputs))
    return network, CertifiedNetwork.prove(network, SHAPE)


# Setting the flags makes torch speak of GPUs that it has no build for.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("n_rows", [1, 256])
@pytest.mark.parametrize("mkldnn", [True, False])
@pytest.mark.parametrize("kind", ["one huge pixel", "all huge", "tiny", "image"])
@pytest.mark.parametrize("n_outputs", [1, 5])
@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn, mixed_network, centred_mlp])
def test_the_charge_covers_the_error_of_float32(build, n_outputs, kind, mkldnn, n_rows):
    network, certified = proven(build, n_outputs)
    single = certified.precisions[0]
    # Far above any data, far below the largest float32, 3e38.
    assert 1e10 < single.longest < 1e19
    x = hostile(kind, n_rows, SHAPE)
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        computed, inside = direct_forward(network, torch.from_numpy(x), FLOAT32, single.measured)
    computed, inside = computed.double().numpy(), inside.numpy()
    # float64 is 2 ** 29 times more precise: its own error is below a millionth of the charge.
    double = copy.deepcopy(network).double()
    precise = direct_forward(double, torch.from_numpy(x).double(), FLOAT64)[0].numpy()
    error = computed - precise
    lengths = np.linalg.norm(x.reshape(n_rows, -1).astype(np.float64), axis=1)
    assert (inside[:, 0] >= lengths).all()
    for pair in range(n_outputs):
        pairs = np.full(n_rows, pair)
        off = np.abs(error - error[:, [pair]] * (n_outputs > 1))
        assert (off <= single.for_length(pairs, lengths)).all()
        # What is known of the values on the way makes the charge smaller; measured lengths of tiny
        # values are rounded up.
        assert (off <= single.at(pairs, inside)).all()
        if kind in ("one huge pixel", "image"):
            assert (single.at(pairs, inside) <= single.for_length(pairs, lengths) * (1 + 1e-4)).all()


# -- one layer at a time ----------------------------------------------------------------------


def extended(x):
    return np.asarray(x).astype(np.longdouble)


def softplus(beta):
    return lambda x: np.logaddexp(0, extended(beta) * x) / extended(beta)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def mean_pool(kernel, stride, padding):
    def pool(x):
        padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))
        return windows[:, :, :: stride[0], :: stride[1]].mean((4, 5))

    return pool


# Values of all sizes, and values at which an exponential is neither 0 nor infinite.
SIZES = 10.0 ** np.arange(-38, 3, 2)
ROWS = np.random.default_rng(1).uniform(-1, 1, (2, len(SIZES), 300, 4))
ROWS *= np.stack([SIZES, np.full(len(SIZES), 100.0)])[..., None, None]
ROWS = ROWS.reshape(-1, 1, 2, 2)


# An oracle needs more precision than what it checks.
DTYPES = ["float32"]
if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps:
    DTYPES.append("float64")


def layer_error(layer, oracle, x, dtype="float32"):
    """Error of each row of x, and the charge for it."""
    charge = charge_of(layer.to(getattr(torch, dtype)), dtype, x.shape[1:])
    x = x.astype(dtype)
    computed = direct_forward(layer, torch.from_numpy(x), Arithmetic(dtype))[0].numpy()
    error = np.sqrt(((extended(computed) - oracle(extended(x))) ** 2).reshape(len(x), -1).sum(1))
    length = np.sqrt((extended(x) ** 2).reshape(len(x), -1).sum(1))
    return error, charge.slope * length + charge.offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [20, 3, 0.1, 0, -2, -30, 80])
@pytest.mark.parametrize("beta", [1, -1, 0.07, -3.3, 1e-5, 1e5, 1e-30, -1e30])
def test_the_charge_covers_the_error_of_softplus(beta, threshold, dtype):
    x = np.clip(ROWS, -1e3, 1e3) / abs(beta)
    # Right above the threshold, where torch's jump is largest, and right below.
    steps = np.arange(-3, 4) * 2 * np.finfo(dtype).eps
    edges = (threshold + steps * max(abs(threshold), 1e-9)) / beta
    x = np.concatenate([x, np.broadcast_to(edges[:, None, None, None], (7, 1, 2, 2))])
    error, charge = layer_error(nn.Softplus(beta, threshold), softplus(beta), x, dtype)
    assert (error <= charge).all()
    # Where it can be seen, the jump is most of the charge, and is charged at its size.
    if threshold <= 3:
        assert (error[-7:] / charge[-7:]).max() > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layer", "oracle"), [(nn.Sigmoid(), sigmoid), (nn.Tanh(), np.tanh)], ids=["Sigmoid", "Tanh"]
)
def test_the_charge_covers_the_error_of_saturating_activations(layer, oracle, dtype):
    error, charge = layer_error(layer, oracle, ROWS, dtype)
    assert (error <= charge).all()
    # Eight units in the last place are charged, and one is lost: an eighth, or some of it.
    assert (error / charge).max() > 1 / 50


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((2, 2), (2, 2), (0, 0)),
        ((3, 2), (4, 2), (1, 1)),
        ((5, 5), (5, 5), (0, 2)),
        ((1, 1), (2, 1), (0, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["one huge pixel", "all huge", "tiny", "image", "subnormal"])
def test_the_charge_covers_the_error_of_mean_pools(kind, kernel, stride, padding):
    shape = (2, 10, 11)
    x = hostile(kind, 300, shape) * np.float32(1e-44 if kind == "subnormal" else 1)
    error, charge = layer_error(
        nn.AvgPool2d(kernel, stride, padding), mean_pool(kernel, stride, padding), x
    )
    assert (error <= charge).all()
    if kind in ("all huge", "image") and kernel != (1, 1):
        assert (error / charge).max() > 1e-2


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("kind", ["one huge pixel", "all huge", "tiny", "image", "subnormal"])
@pytest.mark.parametrize(
    ("make", "k"),
    [
        (lambda kernel: nn.LPPool2d(2, kernel), 1.0),
        (lambda kernel: layers.ScaledL2NormPool2d(kernel, k=1.7), 1.7),
    ],
    ids=["LPPool2d", "ScaledL2NormPool2d"],
)
def test_the_charge_covers_the_error_of_norm_pools(make, k, kind, kernel):
    x = hostile(kind, 300, (2, 10, 11)) * np.float32(1e-44 if kind == "subnormal" else 1)

    def oracle(x):
        return k * np.sqrt(mean_pool(kernel, kernel, (0, 0))(x**2) * (kernel[0] * kernel[1]))

    error, charge = layer_error(make(kernel), oracle, x)
    assert (error <= charge).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mean", "scaled mean", "norm", "scaled norm", "dense", "convolution"])
def test_the_charge_covers_terms_that_are_lost_in_a_sum(kind, dtype):
    # Added to 1, half a unit in its last place is lost.
    unit = float(np.finfo(dtype).eps) / 2
    terms = np.full(256, unit if "mean" in kind else unit**0.5)
    terms[128] = 1  # a kernel may add up the first ones by themselves, up to an aligned address
    layer = {
        "mean": nn.AvgPool2d(16),
        "scaled mean": layers.ScaledAvgPool2d(16),
        "norm": nn.LPPool2d(2, 16),
        "scaled norm": layers.ScaledL2NormPool2d(16),
        "dense": nn.Linear(256, 1, bias=False),
        "convolution": nn.Conv2d(1, 1, 16, bias=False),
    }[kind].double()
    if hasattr(layer, "weight"):
        layer.weight.data.copy_(torch.from_numpy(terms).view_as(layer.weight))

    def exact_value(x):
        flat = x.reshape(len(x), -1)
        if "mean" in kind:
            return flat.sum(1, keepdims=True) / (256 if kind == "mean" else 16)
        return np.sqrt((flat**2).sum(1, keepdims=True)) if "norm" in kind else flat @ terms[:, None]

    x = terms.reshape((1, 256) if kind == "dense" else (1, 1, 16, 16))
    error, charge = layer_error(
        layer, lambda x: exact_value(x).reshape(-1, *[1] * (x.ndim - 1)), x, dtype
    )
    assert charge / 200 <= error <= charge


@pytest.mark.parametrize(
    "layer", [nn.Linear(256, 8), nn.Conv2d(1, 8, 16)], ids=["dense", "convolution"]
)
def test_the_charge_covers_products_that_are_flushed_to_zero(layer):
    # Each product is subnormal, their sum is not.
    with torch.no_grad():
        layer.weight.fill_(1e-19)
        layer.bias.zero_()
    x = np.full((1, 256) if isinstance(layer, nn.Linear) else (1, 1, 16, 16), np.float32(1.1e-19))

    def exact_value(x):
        total = extended(np.float32(1e-19)) * x.reshape(1, -1).sum(1, keepdims=True)
        return np.broadcast_to(total, (1, 8)).reshape(1, 8, *[1] * (x.ndim - 2))

    flushes = torch.set_flush_denormal(True)
    try:
        error, charge = layer_error(layer, exact_value, x)
    finally:
        torch.set_flush_denormal(False)
    assert error <= charge
    if flushes:
        assert error > charge / 4


@pytest.mark.parametrize("kind", ["one huge pixel", "all huge", "tiny", "image"])
def test_max_pools_round_nothing(kind):
    layer = nn.MaxPool2d((2, 3), (2, 4), (1, 1), ceil_mode=True)
    x = -np.abs(hostile(kind, 50, (2, 7, 8)))  # zeros from padding would be the largest
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 2)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), (2, 3))[:, :, ::2, ::4]
    expected = windows.max((4, 5))
    computed = direct_forward(layer, torch.from_numpy(x), FLOAT32)[0].numpy()
    assert computed.shape[2:] == (4, 3)
    np.testing.assert_array_equal(computed[..., :2], expected[..., :2])
    bound = described(layer, (2, 7, 8))
    assert (bound.constant, bound.at_zero, bound.error_in(FLOAT32)) == (1.0, 0.0, Affine(0.0, 0.0))


def residual_branches():
    torch.manual_seed(3)
    wide, narrow = nn.Linear(30, 300), nn.Linear(300, 30)
    half = nn.Linear(30, 30, bias=False)
    with torch.no_grad():
        half.weight.copy_(torch.eye(30) * -0.3)
    return {
        "nothing": [],
        "exact": [layers.FullSort()],
        "linear": [wide, nn.ReLU(), narrow],
        "cancelling": [half],
        # 1.1 is rounded up to float32: forty errors of one sign, in which the bias has its part.
        "long": [nn.Linear(30, 30), *[layers.Scale(1.1)] * 40],
        "nested": [layers.Residual(wide, narrow), nn.Sequential(layers.Residual(half), nn.ReLU())],
    }


def in_extended_precision(layer, x):
    if isinstance(layer, nn.Linear):
        bias = 0 if layer.bias is None else extended(layer.bias.detach())
        return x @ extended(layer.weight.detach()).T + bias
    if isinstance(layer, nn.ReLU):
        return np.maximum(x, 0)
    if isinstance(layer, layers.FullSort):
        return np.sort(x, axis=1)
    if isinstance(layer, layers.Scale):
        return x * extended(layer.k)
    result = x
    for child in layer:
        result = in_extended_precision(child, result)
    return x + result if isinstance(layer, layers.Residual) else result


# Setting the switch makes torch speak of GPUs that it has no build for.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("switch", ["highest", "high"])
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e6])
@pytest.mark.parametrize("branch", residual_branches())
def test_the_charge_covers_the_error_of_residuals(branch, scale, switch):
    layer = layers.Residual(*residual_branches()[branch])
    x = np.random.default_rng(0).normal(size=(500, 30)) * scale
    x[::2, 0] *= 100
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(switch)
        error, charge = layer_error(layer, lambda x: in_extended_precision(layer, x), x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (error <= charge).all()
    if scale == 1 and branch != "nothing":  # 2 x is exact
        assert (error / charge).max() > 1e-4


@pytest.mark.parametrize("size", [1e-323, 1e-165, 1.0, 1e165])
@pytest.mark.parametrize(
    ("layer", "shape", "squared"),
    [(nn.Linear(2, 3), (2,), 3), (nn.Conv2d(1, 2, 2), (1, 3, 3), 8), (layers.Center(4), (4,), 4)],
    ids=lambda value: type(value).__name__,
)
def test_the_charge_covers_offsets_whose_squares_vanish_or_overflow(layer, shape, squared, size):
    layer = copy.deepcopy(layer).double()
    (layer.center if type(layer) is layers.Center else layer.bias).data.fill_(size)
    bound = described(layer, shape)
    length = squared**0.5 * size
    assert length <= bound.at_zero <= length * (1 + 1e-8)
    # The sum with the bias is rounded.
    assert 2.0**-53 * length <= bound.error_in(FLOAT64).offset <= 2.0**-45 * length + 1e-300


@pytest.mark.parametrize(
    "layer",
    [
        layers.Scale(1e-45),
        nn.LeakyReLU(1e-45),
        layers.ScaledAvgPool2d(2, k=1e-45),
        layers.ScaledL2NormPool2d(2, k=1e-45),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_charge_covers_factors_that_are_subnormal(layer):
    # 1e-45 becomes 1.4e-45 in float32: not a small relative error.
    x = torch.full((1, 1, 2, 2), -1e18 if type(layer) is nn.LeakyReLU else 1e18)
    charge = charge_of(layer, "float32", (1, 2, 2))
    error = float((direct_forward(layer, x, FLOAT32)[0].double() - layer(x.double())).norm())
    assert 1e-28 < error <= charge.slope * 2e18 + charge.offset


@pytest.mark.parametrize(
    ("layer", "dtype", "message"),
    [
        (nn.Softplus(threshold=88), "float32", "threshold from -87 to 87 .* got 88"),
        (nn.Softplus(threshold=709), "float64", "threshold from -708 to 708 .* got 709"),
        (nn.Softplus(threshold=np.inf), "float64", "threshold .* got inf"),
        (nn.Softplus(threshold=-np.inf), "float32", "threshold .* got -inf"),
        (nn.Softplus(threshold=np.nan), "float32", "threshold .* got nan"),
        (nn.Softplus(1e-40), "float32", "Softplus needs a beta .* got 1e-40"),
        (nn.Softplus(-1e39), "float32", r"Softplus needs a beta .* got -1e\+39"),
        (layers.Scale(1e39), "float32", r"Scale has a factor that overflows, 1e\+39"),
        (nn.LeakyReLU(-1e39), "float32", r"LeakyReLU has a factor that overflows, -1e\+39"),
        (layers.ScaledAvgPool2d(2, k=2e38), "float32", r"ScaledAvgPool2d has a factor that overflows"),
        (nn.MaxPool2d(2, 3, 1, dilation=2), "float32", r"MaxPool2d has windows of nothing but padding"),
    ],
    ids=str,
)
def test_settings_that_overflow_are_refused(layer, dtype, message):
    shape = (1, 2, 2) if type(layer) is layers.ScaledAvgPool2d else (1, 1, 1)
    for attempt in (layer, layers.Residual(nn.Sequential(layer))):
        with pytest.raises(ValueError, match=message):
            LAYERS.bound(attempt, shape).error_in(Arithmetic(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_refused_as_overflowing_does_overflow_beyond(dtype):
    highest = np.log(np.finfo(dtype).max)
    x = torch.full((1, 1), float(highest) * 1.01, dtype=getattr(torch, dtype))
    arithmetic = Arithmetic(dtype)
    assert torch.isinf(direct_forward(nn.Softplus(threshold=2 * highest), x, arithmetic)[0]).all()
    limit = np.floor(highest) - 1
    near = torch.full((1, 1), float(limit), dtype=getattr(torch, dtype))
    assert torch.isfinite(direct_forward(nn.Softplus(threshold=limit), near, arithmetic)[0]).all()
    assert charge_of(nn.Softplus(threshold=limit), dtype, (1,)).slope < 1


# -- whole networks ---------------------------------------------------------------------------


def test_the_charge_covers_the_rounding_of_the_input():
    """A linear model on numbers whose neighbours in float32 are 128 apart."""
    rng = np.random.default_rng(0)
    X = 1.7e9 + rng.normal(size=(40, 3)) * 1e3
    y = (X[:, 0] > 1.7e9).astype(int)
    clf = LipschitzClassifier(hidden_layer_sizes=(), dtype="float32", max_epochs=50, random_state=0)
    radii = clf.fit(X, y).certificates_(X)
    weight = clf.to_torch()[-1].weight.double().numpy()
    direction = np.where(clf.decision_function(X) > 0, -1, 1)[:, None] * weight
    direction /= np.linalg.norm(direction)
    for share in (0.5, 0.9, 0.999, 1 - 1e-9):
        moved = X + direction * radii[:, None] * share
        assert (clf.predict(moved) == clf.predict(X)).all()


@pytest.mark.parametrize(
    ("parameters", "largest_loss"),
    [
        ({"dtype": "float64"}, 1e-9),
        ({"dtype": "float32"}, 5e-3),
        ({"dtype": "float32", "input_shape": (1, 8, 8)}, 5e-3),
    ],
    ids=str,
)
def test_the_charge_is_small(digits, parameters, largest_loss):
    X, y = digits
    clf = LipschitzClassifier(max_epochs=10, random_state=0, **parameters).fit(X, y)
    losses = clf.rounding_loss(X)
    assert 0 < np.median(losses) <= largest_loss
    # What would lose more is evaluated in float64.
    assert losses[clf.certificates_(X) > 0].max() <= 0.011
    assert (losses >= 0).all()
    assert (losses <= 1).all()


def test_neighbouring_floats_inside_the_radius_never_flip(digits):
    """Random search near the boundary, along the worst direction, as in arXiv 2205.10159."""
    X, y = digits
    clf = LipschitzClassifier(
        hidden_layer_sizes=(), dtype="float32", max_epochs=10, random_state=0
    ).fit(X, y > 4)
    X = X[np.argsort(clf.certificates_(X))[:20]].astype(np.float32)
    radii = clf.certificates_(X)
    weight = clf.to_torch()[-1].weight.double().numpy()
    direction = np.where(clf.decision_function(X) > 0, -1, 1)[:, None] * weight
    direction /= np.linalg.norm(direction)
    rng = np.random.default_rng(0)
    tried = 0
    for _ in range(200):
        moved = X + direction * radii[:, None] * rng.uniform(1 - 1e-6, 1, size=(20, 1))
        moved = np.nextafter(
            moved.astype(np.float32), rng.choice([-np.inf, np.inf], size=moved.shape).astype(np.float32)
        )
        inside = np.linalg.norm(moved.astype(np.float64) - X, axis=1) < radii
        tried += inside.sum()
        assert (clf.predict(moved) == clf.predict(X))[inside].all()
    assert tried > 100


def test_radii_with_charges_solve_the_inequality():
    """The formula in exact fractions: r leaves a margin of at least 0, and little more."""
    rng, n_positive = np.random.default_rng(0), 0
    for _ in range(50):
        logits = rng.normal(size=(1, 4))
        bounds, p, q = (np.abs(rng.normal(size=(4, 4))) * scale for scale in (1, 0.01, 0.02))
        length = abs(rng.normal())
        top = int(logits[0].argmax())
        budget = Budget((2 * p + 2 * length * q)[[top]], (bounds + q)[[top]])
        (radius,) = budget.radii(logits)
        left = []
        for j in set(range(4)) - {top}:
            margin = Fraction(logits[0, top]) - Fraction(logits[0, j])
            charge = Fraction(p[top, j]) * 2 + Fraction(q[top, j]) * (
                2 * Fraction(length) + Fraction(radius)
            )
            left.append((margin - charge - Fraction(bounds[top, j]) * Fraction(radius), margin))
        smallest, margin = min(left)
        assert radius == 0 or 0 <= smallest <= margin * Fraction(1, 10**14)
        assert radius > 0 or smallest <= 0
        n_positive += radius > 0
    assert n_positive > 25


def test_without_layers_only_the_input_is_rounded():
    course = Course([], FLOAT32, Affine(0.0, 2.0**-24))
    assert course.values == [Affine(0.0, 1 + 2.0**-40)]
    assert course.errors == [Affine(0.0, 2.0**-24 * (1 + 2.0**-40))]
    bound = MapBound(3.0, lambda arithmetic: Affine(0.5, 0.25), at_zero=5.0)
    course = Course([bound], FLOAT32, Affine(1.0, 0.0))
    value, error = course.values[-1], course.errors[-1]
    # Error 3 * 1 + 0.25 * (t + 1) + 0.5, value 3 t + 5.
    assert value.offset == pytest.approx(5.0, rel=1e-11)
    assert value.slope == pytest.approx(3.0, rel=1e-11)
    assert error.offset == pytest.approx(3.75, rel=1e-11)
    assert error.slope == pytest.approx(0.25, rel=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "scaler", [StandardScaler(), StandardScaler(with_std=False), MinMaxScaler((-3, 5))], ids=str
)
def test_the_charge_covers_the_error_of_a_scaler(scaler, dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(30, 4)) * [1, 1e-3, 1e3, 1] + [0, 5, -1e4, 1e5]).astype(dtype)
    scaler.fit(X.astype(np.float64))
    charge = described_transformer(scaler).error_in(Arithmetic(np.dtype(dtype).name))
    computed = scaler.transform(X)
    for row, image in zip(X, computed, strict=True):
        squared = Fraction(0)
        for j, (value, got) in enumerate(zip(row, image, strict=True)):
            x = Fraction(float(value))
            if isinstance(scaler, MinMaxScaler):
                wanted = x * Fraction(scaler.scale_[j]) + Fraction(scaler.min_[j])
            else:
                wanted = x - Fraction(scaler.mean_[j])
                if scaler.with_std:
                    wanted /= Fraction(scaler.scale_[j])
            squared += (Fraction(float(got)) - wanted) ** 2
        length = float(np.linalg.norm(row.astype(np.float64)))
        assert float(squared) ** 0.5 <= charge.slope * length + charge.offset


@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn, mixed_network])
def test_rows_as_long_as_is_allowed_do_not_overflow(build):
    network = randomised(build((1, 12, 12), 3))
    longest = CertifiedNetwork.prove(network, (1, 12, 12)).precisions[0].longest
    rows = np.random.default_rng(0).normal(size=(50, 1, 12, 12))
    rows *= longest / np.linalg.norm(rows.reshape(50, -1), axis=1)[:, None, None, None]
    computed = direct_forward(network, torch.from_numpy(rows.astype(np.float32)), FLOAT32)[0]
    assert torch.isfinite(computed).all()


def huge_linear(factor):
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(factor * torch.tensor(scipy.linalg.hadamard(4)))
    return layer


OVERFLOWING_BRANCHES = {
    "values": [layers.Scale(1e25), layers.Scale(1e-25)],
    "values of a residual": [layers.Residual(layers.Scale(1e25)), layers.Scale(1e-25)],
    "residual in a residual": [layers.Residual(layers.Scale(1e25), layers.Scale(1e-25))],
    "sums": [huge_linear(1e25), huge_linear(1e-25)],
    "values in the middle": [layers.Scale(1e-3), layers.Scale(1e28), nn.ReLU(), layers.Scale(1e-25)],
}


@pytest.mark.parametrize("branch", OVERFLOWING_BRANCHES.values(), ids=OVERFLOWING_BRANCHES.keys())
def test_rows_as_long_as_is_allowed_do_not_overflow_inside_a_residual(branch):
    network = nn.Sequential(layers.Residual(*branch), layers.Residual(layers.FullSort()))
    longest = CertifiedNetwork.prove(network, (4,)).precisions[0].longest
    # Inside, values grow by 1e25 or 4e25, and must stay below the root of 3e38.
    assert 1e-8 < longest < 1e-6

    def outputs(length):
        return direct_forward(network, torch.full((1, 4), length / 2), FLOAT32)[0]

    assert torch.isfinite(outputs(longest)).all()
    assert not torch.isfinite(outputs(1e15)).all()


class Power(nn.Module):
    """Multiplies by a power of two, which rounds nothing."""

    def __init__(self, exponent):
        super().__init__()
        self.factor = 2.0**exponent

    def forward(self, x):
        return self.factor * x


def test_values_inside_a_residual_do_not_overflow_where_nothing_is_rounded(monkeypatch):
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))
    register_layer(Power)(lambda module, shape: MapBound(module.factor, exact))
    branch = [Power(80), Power(-80)]
    for network in (layers.Residual(*branch), nn.Sequential(layers.Residual(layers.Residual(*branch)))):
        longest = CertifiedNetwork.prove(network, (4,)).precisions[0].longest
        # A quarter of the root of 2 ** 128 is left for the values.
        assert 2.0**-20 < longest <= 2.0 ** (62 - 80)


@pytest.mark.parametrize("wrap", [nn.Sequential, layers.Residual])
def test_the_charge_of_a_residual_bounds_the_sums_inside(wrap):
    linear = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(scipy.linalg.hadamard(64)) * 1e20)
    layer = layers.Residual(wrap(linear), layers.Scale(1e-20))
    # Eight times more than the norm of the matrix: that of its absolute values.
    assert charge_of(layer, "float32", (64,)).slope >= 2.0**-24 * 64e20


def test_the_charge_of_a_residual_bounds_what_a_rule_of_its_branch_adds(monkeypatch):
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))
    # Sums of up to 1e20 / 2 ** -24, of which the next layer leaves nothing.
    register_layer(Power)(
        lambda module, shape: MapBound(module.factor, lambda arithmetic: Affine(1e20, 0.0))
    )
    layer = layers.Residual(Power(0), layers.Scale(1e-30))
    assert charge_of(layer, "float32", (4,)).offset >= 1e20


def test_rows_that_might_overflow_certify_nothing(digits):
    X, y = digits
    clf = LipschitzClassifier(dtype="float32", max_epochs=2, random_state=0).fit(X, y)
    single, double = clf.certified_network_.precisions
    assert (clf.certified_network_.radii(np.full((1, 64), 1e160)) == 0).all()
    assert single.longest > 1e10
    assert double.longest > 1e140


def test_a_layer_without_a_rule_is_refused_by_name():
    class Own(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="Own has no"):
        CertifiedNetwork.prove(nn.Sequential(nn.Linear(2, 2), Own(), nn.Linear(2, 2)), (2,))


def test_a_layer_without_a_rule_is_refused_by_name_inside_a_residual():
    # Its constant is known, but only its export is evaluated by direct sums.
    network = nn.Sequential(layers.Residual(layers.SpectralLinear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(TypeError, match="SpectralLinear has no bound on its rounding error"):
        CertifiedNetwork.prove(network, (2,))
    assert CertifiedNetwork.prove(to_torch(network), (2,)).n_outputs == 2


def test_a_residual_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"Residual needs layers that keep the shape"):
        CertifiedNetwork.prove(layers.Residual(nn.Linear(4, 1)), (4,))


@pytest.mark.parametrize(
    "proves",
    [
        lambda network: CertifiedNetwork(network, (2,), FLOAT32),
        lambda network: CertifiedNetwork.prove(network, (2,)),
    ],
    ids=["CertifiedNetwork", "prove"],
)
@pytest.mark.parametrize("inside", [nn.Linear(2, 2), nn.Identity()], ids=["Linear", "Identity"])
def test_hooks_inside_a_residual_are_refused_by_the_layers_name(inside, proves):
    network = nn.Sequential(layers.Residual(nn.Sequential(inside)), nn.Linear(2, 2))
    assert proves(network).n_outputs == 2
    hook = inside.register_forward_hook(lambda module, inputs, output: 10 * output)
    try:
        with pytest.raises(TypeError, match=f"{type(inside).__name__} has hooks"):
            proves(network)
    finally:
        hook.remove()


def test_changed_weights_are_refused(digits):
    X, y = digits
    clf = LipschitzClassifier(max_epochs=2, random_state=0).fit(X, y)
    clf.certified_network_.network[-1].weight.data.mul_(10)
    with pytest.raises(RuntimeError, match="weights of the network were changed after its proof"):
        clf.certificates_(X)


def louder(network):
    network[2].register_forward_hook(lambda module, inputs, output: 10 * output)


def in_training(network):
    network.train()


def replaced(network):
    network[2] = layers.Scale(10.0)


@pytest.mark.parametrize("change", [louder, in_training, replaced])
def test_a_network_changed_in_other_ways_is_refused(digits, change):
    X, y = digits
    clf = LipschitzClassifier(max_epochs=2, random_state=0).fit(X, y)
    change(clf.certified_network_.network)
    with pytest.raises((RuntimeError, TypeError), match=r"changed after its proof|hooks"):
        clf.certificates_(X)


def test_margin_bounds_are_not_changed_by_the_precision():
    """The charge is beside the constants, not in them."""
    network = randomised(lipschitz_mlp((4,), 3, (8,)))
    single, double = (CertifiedNetwork.prove(network, (4,), dtype) for dtype in ("float32", "float64"))
    np.testing.assert_array_equal(single.margin_bounds, double.margin_bounds)
    others = ~np.eye(3, dtype=bool)
    assert (single.precisions[0].from_length.slope > double.precisions[0].from_length.slope)[
        others
    ].all()


def test_a_linear_layer_on_a_map_is_charged_for_each_of_its_rows():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1 / 3)
    charge = charge_of(layer, "float32", (1, 10_000, 1))
    x = torch.rand(1, 1, 10_000, 1, generator=torch.Generator().manual_seed(0)) * 1e-3
    precise = (x.double() * layer.weight.double() + layer.bias.double()).detach()
    error = float((direct_forward(layer, x, FLOAT32)[0].double() - precise).norm())
    assert error <= charge.slope * float(x.double().norm()) + charge.offset
