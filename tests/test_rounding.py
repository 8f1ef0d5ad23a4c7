"""The charge for rounding covers the error that is made, and is small."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

from sklip import LipschitzClassifier, layers
from sklip.inference import direct_forward
from sklip.layers import to_torch
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.proofs import margin_bounds, rounding_charges
from sklip.radii import certified_radii, row_lengths_upper
from sklip.rounding import Affine, Precision, Step, propagate
from sklip.transformers import transformer_step


def mixed_network(input_shape, n_outputs):
    """Every layer that has a rule."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1, dilation=1),
        layers.GroupSort(4),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode="circular"),
        nn.LeakyReLU(0.3),
        nn.Sequential(layers.ScaledAvgPool2d(2), layers.Scale(1.7), nn.Tanh()),
        nn.Identity(),
        nn.Flatten(),
        layers.FullSort(),
        nn.Linear(8 * (height // 4) * (width // 4), 12),
        nn.ReLU(),
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


# Setting the flags makes torch speak of GPUs that it has no build for.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("n_rows", [1, 256])
@pytest.mark.parametrize("mkldnn", [True, False])
@pytest.mark.parametrize("kind", ["one huge pixel", "all huge", "tiny", "image"])
@pytest.mark.parametrize("n_outputs", [1, 5])
@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn, mixed_network, centred_mlp])
def test_the_charge_covers_the_error_of_float32(build, n_outputs, kind, mkldnn, n_rows):
    torch.manual_seed(0)
    shape = (1, 12, 12)
    network = randomised(build(shape, n_outputs))
    offsets, slopes, longest = rounding_charges(network, n_outputs, "float32", shape)
    # Far above any data, far below the largest float32, 3e38.
    assert 1e10 < longest < 1e19
    x = hostile(kind, n_rows, shape)
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        computed = direct_forward(network, torch.from_numpy(x)).double().numpy()
    # float64 is 2 ** 29 times more precise: its own error is below a millionth of the charge.
    exact = direct_forward(network.double(), torch.from_numpy(x).double()).numpy()
    error = computed - exact
    if n_outputs > 1:
        error = error[:, :, None] - error[:, None, :]
    lengths = np.linalg.norm(x.reshape(n_rows, -1).astype(np.float64), axis=1)
    charge = offsets + slopes * lengths[:, None, None]
    assert (np.abs(error).reshape(charge.shape) <= charge).all()


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


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


@pytest.mark.parametrize(
    ("parameters", "largest_loss"),
    [
        ({"dtype": "float64"}, 1e-9),
        ({"dtype": "float32"}, 1e-2),
        ({"dtype": "float32", "input_shape": (1, 8, 8)}, 1e-2),
    ],
    ids=str,
)
def test_the_charge_is_small(digits, parameters, largest_loss):
    X, y = digits
    clf = LipschitzClassifier(max_epochs=10, random_state=0, **parameters).fit(X, y)
    losses = clf.rounding_loss_(X)
    assert 0 < np.median(losses) <= largest_loss
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
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = rng.normal(size=(1, 4))
        bounds, p, q = (np.abs(rng.normal(size=(4, 4))) * scale for scale in (1, 0.01, 0.02))
        length = abs(rng.normal())
        (radius,) = certified_radii(logits, bounds + q, [(p, 2.0), (q, np.array([2 * length]))])
        top = int(logits[0].argmax())
        left = []
        for j in set(range(4)) - {top}:
            margin = Fraction(logits[0, top]) - Fraction(logits[0, j])
            charge = Fraction(p[top, j]) * 2 + Fraction(q[top, j]) * (
                2 * Fraction(length) + Fraction(radius)
            )
            left.append((margin - charge - Fraction(bounds[top, j]) * Fraction(radius), margin))
        smallest, margin = min(left)
        assert radius == 0 or 0 <= smallest <= margin * Fraction(1, 10**14)


def test_without_layers_only_the_input_is_rounded():
    value, error = propagate([], 2.0**-24, 0.0)
    assert value == Affine(0.0, 1 + 2.0**-40)
    assert error == Affine(0.0, 2.0**-24 * (1 + 2.0**-40))
    value, error = propagate([Step(3.0, 5.0, 0.25, 0.5)], 0.0, 1.0)
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
    step = transformer_step(scaler, Precision.of(dtype))
    computed = scaler.transform(X)
    for row, image in zip(X, computed, strict=True):
        squared = Fraction(0)
        for j, (value, got) in enumerate(zip(row, image, strict=True)):
            x = Fraction(float(value))
            if isinstance(scaler, MinMaxScaler):
                exact = x * Fraction(scaler.scale_[j]) + Fraction(scaler.min_[j])
            else:
                exact = x - Fraction(scaler.mean_[j])
                if scaler.with_std:
                    exact /= Fraction(scaler.scale_[j])
            squared += (Fraction(float(got)) - exact) ** 2
        length = float(np.linalg.norm(row.astype(np.float64)))
        assert float(squared) ** 0.5 <= step.error_slope * length + step.error_offset


def test_row_lengths_are_upper_bounds():
    rows = np.random.default_rng(0).normal(size=(20, 50))
    for dtype in (np.float64, np.float32):
        for row, length in zip(rows, row_lengths_upper(rows.astype(dtype)), strict=True):
            assert Fraction(length) ** 2 >= sum(Fraction(x) ** 2 for x in row)


@pytest.mark.parametrize("build", [lipschitz_cnn, tutorial_cnn, mixed_network])
def test_rows_as_long_as_is_allowed_do_not_overflow(build):
    network = randomised(build((1, 12, 12), 3))
    longest = rounding_charges(network, 3, "float32", (1, 12, 12)).longest
    rows = np.random.default_rng(0).normal(size=(50, 1, 12, 12))
    rows *= longest / np.linalg.norm(rows.reshape(50, -1), axis=1)[:, None, None, None]
    assert torch.isfinite(direct_forward(network, torch.from_numpy(rows.astype(np.float32)))).all()


def test_rows_that_might_overflow_certify_nothing(digits):
    X, y = digits
    clf = LipschitzClassifier(dtype="float32", max_epochs=2, random_state=0).fit(X, y)
    assert (clf.certificates_(np.full((1, 64), 1e30)) == 0).all()
    assert clf.longest_row_ > 1e10


def test_a_layer_without_a_rule_is_refused_by_name():
    class Own(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="Own has no"):
        rounding_charges(nn.Sequential(nn.Linear(2, 2), Own(), nn.Linear(2, 2)), 2, "float32", (2,))


def test_changed_weights_are_refused(digits):
    X, y = digits
    clf = LipschitzClassifier(max_epochs=2, random_state=0).fit(X, y)
    clf.network_[-1].weight.data.mul_(10)
    with pytest.raises(RuntimeError, match="weights of network_ were changed after fit"):
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
    change(clf.network_)
    with pytest.raises((RuntimeError, TypeError), match=r"changed after fit|forward hooks"):
        clf.certificates_(X)


def test_margin_bounds_are_not_changed_by_the_precision(digits):
    """The charge is beside the constants, not in them."""
    network = randomised(lipschitz_mlp((4,), 3, (8,)))
    np.testing.assert_array_equal(margin_bounds(network, 3), margin_bounds(network.float(), 3))
